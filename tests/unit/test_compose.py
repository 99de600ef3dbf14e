"""What docker-compose.yml and the image promise; there is no Docker here to try them."""

import re
from pathlib import Path

import pytest
import yaml

from agentrpc.services.mcp_catalogue import TEMPLATES
from agentrpc.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OURS = {"migrate", "serve", "worker", "scheduler"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def filled_in(value):
    """As compose does it, when every variable has been set."""
    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", lambda found: found[1].lower(), value)


def test_the_worker_may_use_bubblewrap_and_nothing_else(compose):
    worker = compose["services"]["worker"]
    assert {"seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"} <= set(worker["security_opt"])
    assert worker["environment"]["AGENTRPC_ISOLATION"] == "bubblewrap"
    for name, service in compose["services"].items():
        assert not service.get("privileged"), name
        assert name == "worker" or not any("unconfined" in option for option in service.get("security_opt", ())), name
    for name in OURS | {"redis"}:
        service = compose["services"][name]
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_redis_and_postgres_have_passwords_that_have_to_be_set(compose):
    text = (ROOT / "docker-compose.yml").read_text()
    for name in ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "AGENTRPC_SIGNING_KEY", "ANTHROPIC_API_KEY"):
        assert set(re.findall(rf"\$\{{{name}(:\?)?", text)) == {":?"}, name
        assert f"#   {name} " in text
    redis = compose["services"]["redis"]
    assert "requirepass" in redis["command"][-1]
    assert "PASSWORD" not in str(redis["command"]), "arguments are for everybody to see"
    assert redis["init"], "a shell that is the first process ignores SIGTERM"
    assert redis["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")
    for name in OURS:
        environment = compose["services"][name]["environment"]
        assert filled_in(environment["AGENTRPC_REDIS_URL"]) == "redis://:redis_password@redis:6379/0"
        assert ("ANTHROPIC_API_KEY" in environment) == (name == "worker")


def test_only_who_needs_them_reaches_redis_and_postgres(compose):
    services, networks = compose["services"], compose["networks"]
    assert services["redis"]["networks"] == ["bus"]
    assert services["postgres"]["networks"] == ["store"]
    assert networks["bus"]["internal"]
    assert networks["store"]["internal"]
    assert "bus" not in services["migrate"]["networks"]
    assert {name for name, service in services.items() if "ports" in service} == {"serve"}
    assert {name for name, service in services.items() if "agents" in service["networks"]} == {"worker"}


def test_everything_is_bounded_and_looked_after(compose):
    for name, service in compose["services"].items():
        assert service["pids_limit"], name
        assert service["mem_limit"], name
        assert service["restart"], name
    assert "grep" in str(compose["services"]["redis"]["healthcheck"]["test"]), (
        "redis-cli ends well whatever is answered"
    )


def test_settings_take_what_it_gives(compose):
    for name in OURS:
        given = {
            key.removeprefix("AGENTRPC_").lower(): filled_in(value)
            for key, value in compose["services"][name]["environment"].items()
            if key.startswith("AGENTRPC_") and key != "AGENTRPC_SECRET_KEYS"
        }
        assert Settings(**{**given, "signing_key": "k" * 32}).redis_url.get_secret_value().startswith("redis://:")


def test_the_image_has_what_it_is_said_to_have():
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in ("bubblewrap", "fonts-noto-cjk", "fonts-noto-color-emoji"):
        assert package in dockerfile
    for command in {template.config.stdio.command for template in TEMPLATES if template.config.HasField("stdio")}:
        assert f"/usr/local/bin/{command}" in dockerfile or f"/{command} /usr/local/bin/\n" in dockerfile, command
    port = re.search(r"AGENTRPC_METRICS_LISTEN=127\.0\.0\.1:(\d+)", dockerfile)[1]
    assert f"http://127.0.0.1:{port}/metrics" in dockerfile
    user = re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE)[-1]
    assert int(user) > 0, "runAsNonRoot looks no names up"
    assert f"--uid {user} agentrpc" in dockerfile
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == kept
