"""Secrets in configurations of MCP servers, and files of Claude Desktop that go in and come out."""

import json
import random

import pytest

from agentrpc.domain.mcp_config import (
    EntryError,
    entry_of,
    keep_secrets,
    missing_secrets,
    parse_entry,
    redacted,
    secret_values,
    url_is_redacted,
)

ENTRIES = {
    "plain": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=Etc/UTC"]},
    "with env": {"command": "npx", "args": ["-y", "x"], "env": {"API_KEY": "${API_KEY}"}, "disabled": True},
    "empty parts": {"command": "x", "args": [], "env": {}, "cwd": "/tmp", "alwaysAllow": ["a", {"b": None}]},
    "typed": {"type": "stdio", "command": "x"},
    "http": {"type": "http", "url": "https://example.org/mcp"},
    "streamable": {"type": "streamable-http", "url": "https://example.org/mcp", "headers": {"X-Key": "${X_KEY}"}},
    "sse": {"type": "sse", "url": "https://example.org/sse", "timeout": 60, "oauth": {"clientId": "ä"}},
    "ünï ☃": {"command": "ö", "args": ["${HOME}", "", " "]},
}


@pytest.mark.parametrize("key", ENTRIES)
def test_what_goes_in_comes_out(key):
    config, extra = parse_entry(key, ENTRIES[key])
    assert entry_of(redacted(config), extra) == ENTRIES[key]


def test_a_url_without_a_type_is_http():
    config, extra = parse_entry("x", {"url": "https://example.org/mcp"})
    assert entry_of(config, extra) == {"type": "http", "url": "https://example.org/mcp"}


def test_random_files_lose_nothing():
    chance = random.Random(3)

    def word():
        return "".join(chance.choice('aZ0_-é "\\$') for _ in range(chance.randrange(1, 8)))

    for _ in range(300):
        if chance.random() < 0.5:
            entry = {"command": word()}
            if chance.random() < 0.7:
                entry["args"] = [word() for _ in range(chance.randrange(3))]
            if chance.random() < 0.7:
                entry["env"] = {word(): word() for _ in range(chance.randrange(3))}
        else:
            entry = {"type": chance.choice(["sse", "http"]), "url": f"https://h/{chance.randrange(9)}"}
            if chance.random() < 0.7:
                entry["headers"] = {word(): word() for _ in range(chance.randrange(3))}
        entry |= {f"x{word()}": chance.choice([None, 1.5, [word()], {word(): word()}]) for _ in range(2)}
        key = word()
        config, extra = parse_entry(key, entry)
        shown = redacted(config)
        written = json.loads(json.dumps(entry_of(shown, extra)))
        again, extra_again = parse_entry(key, written)
        keep_secrets(config, again)
        assert (again, json.loads(extra_again or "{}")) == (config, json.loads(extra or "{}"))
        secrets = {"env", "headers"}
        assert {k: v for k, v in written.items() if k not in secrets} == {
            k: v for k, v in entry.items() if k not in secrets
        }
        for part in secrets & set(entry):
            assert set(written.get(part, {})) == set(entry[part])


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (1, ""), ({}, ""), ({"command": "x", "url": "y"}, ""), ({"command": 1}, "command"),
        ({"command": "x", "args": "y"}, "args"), ({"command": "x", "args": [1]}, "args"),
        ({"command": "x", "env": {"PORT": 80}}, "env.PORT"), ({"command": "x", "type": "http"}, "type"),
        ({"url": "x", "type": "ws"}, "type"), ({"url": "x", "type": {}}, "type"), ({"url": "x", "headers": []}, "headers"),
        ({"url": "x", "headers": None}, "headers"),
    ],
)  # fmt: skip
def test_entries_that_are_none(entry, path):
    with pytest.raises(EntryError) as caught:
        parse_entry("x", entry)
    assert caught.value.path == path


def test_secrets_are_not_shown_and_come_back():
    url = "https://me:pass@example.org:8/a?key=k1&plain&other=k2#f"
    config, _ = parse_entry("x", {"url": url, "headers": {"Authorization": "Bearer t"}})
    shown = redacted(config)
    assert shown.http.url == "https://REDACTED@example.org:8/a?key=REDACTED&plain&other=REDACTED#f"
    assert dict(shown.http.headers) == {"Authorization": ""}
    assert url_is_redacted(shown)
    assert not url_is_redacted(config)
    assert set(secret_values(config)) == {"me", "pass", "k1", "k2", "Bearer t"}
    again = type(shown)()
    again.CopyFrom(shown)
    keep_secrets(config, again)
    assert again == config
    changed = type(shown)()
    changed.CopyFrom(shown)
    changed.http.url = "https://other.example/a?key=REDACTED"
    changed.http.headers["New"] = ""
    keep_secrets(config, changed)
    assert url_is_redacted(changed)
    assert dict(changed.http.headers) == {"Authorization": "Bearer t", "New": ""}
    # Secrets of one transport are not those of another.
    other, _ = parse_entry("x", {"url": "https://example.org/", "type": "sse", "headers": {"Authorization": ""}})
    keep_secrets(config, other)
    assert other.sse.headers["Authorization"] == ""


def test_placeholders_without_a_secret_are_told():
    config, _ = parse_entry("x", {"command": "x", "env": {"B": "${B}", "A": "${A}", "C": "c"}})
    assert missing_secrets(config) == ["env.A", "env.B"]
