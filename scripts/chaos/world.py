"""A whole service under test: PostgreSQL, Redis, a scripted model, two of each of our processes, each as it is deployed.

Every process can be killed, stopped and started again. Ours reach PostgreSQL through a wire that can be cut, also
between the server's commit and its answer.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil

from agentrpc.app import _admin_for
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.embedded.servers import EmbeddedPostgres, dying_with_parent, free_port, redis_binary
from agentrpc.store.database import Database
from agentrpc.store.schema import migrate
from agentrpc.testkit import write_cli

__all__ = ["World", "world"]

# Short, so that unproven death is seen within a round.
_TIMES = {
    "AGENTRPC_LEASE_TTL": "6",
    "AGENTRPC_KILL_TIMEOUT": "2",
    "AGENTRPC_APPROVAL_HOLD": "1",
    "AGENTRPC_IDLE_TTL": "8",
    "AGENTRPC_DRAIN_GRACE": "5",
    "AGENTRPC_HEARTBEAT_INTERVAL": "2",
    "AGENTRPC_AGENT_START_TIMEOUT": "20",
    "AGENTRPC_MAX_PROCESSES": "4",
    "AGENTRPC_LOG_LEVEL": "info",
}
_READY = 60.0


_Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Wire:
    """A TCP port in front of the server's Unix socket."""

    def __init__(self, path: str) -> None:
        self.port = 0
        self._path = path
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        # Connections with a statement under way that names a tool call.
        self._calls: set[_Pair] = set()
        self._swallow = False
        self.refuses = False
        self.swallowed = 0
        self._on_commit: Callable[[], None] | None = None
        self._skip = 0
        self._committed = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    @contextlib.contextmanager
    def swallowing(self):
        """Meanwhile an answer of the server is not passed on, but breaks its connection: was it committed?"""
        self._swallow = True
        try:
            yield
        finally:
            self._swallow = False

    def on_commit(self, act: Callable[[], None], *, skip: int) -> None:
        """Act once when the server has carried out a statement that begins or ends a tool call, or says what it says."""
        self._on_commit, self._skip = act, skip
        self._committed.clear()

    async def committed(self, timeout: float) -> None:
        """Until that has happened."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._committed.wait()
        self._on_commit = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._path, limit=1024 * 1024)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, upstream_writer)
        self._calls.discard(pair)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass(reader, upstream_writer, pair), self._back(upstream_reader, writer, pair))
        finally:
            self._pairs.discard(pair)
            for each in pair:
                each.transport.abort()

    async def _pass(self, reader, writer, pair) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if b"toolu_" in data:
                    self._calls.add(pair)
                writer.write(data)
                await writer.drain()
        for each in pair:
            each.transport.abort()

    async def _back(self, reader, writer, pair) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                done = b"SELECT 1\0" in data or b"COMMIT\0" in data or b"UPDATE " in data
                if done and self._swallow:
                    self.swallowed += 1
                    break
                if done and self._on_commit is not None and pair in self._calls:
                    self._skip -= 1
                    if self._skip < 0:
                        act, self._on_commit = self._on_commit, None
                        with contextlib.suppress(psutil.Error, OSError):
                            act()
                        self._committed.set()
                if done:
                    self._calls.discard(pair)
                writer.write(data)
                await writer.drain()
        for each in pair:
            each.transport.abort()


@dataclass
class Child:
    """One of our processes."""

    name: str
    kind: str
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    wanted: bool = True
    log: Path = Path()
    keeping: asyncio.Task[None] | None = None
    starts: int = 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@dataclass
class World:
    """The service. Made by `world`."""

    folder: Path
    postgres: EmbeddedPostgres
    wire: Wire
    model: ScriptedModel
    redis_port: int
    store_url: str
    password: str = ""
    children: dict[str, Child] = field(default_factory=dict)
    redis: asyncio.subprocess.Process | None = None

    # ---- Processes ----

    def of_kind(self, kind: str) -> list[Child]:
        return [child for child in self.children.values() if child.kind == kind]

    def address(self, number: int) -> str:
        return self.of_kind("serve")[number % 2].environment["AGENTRPC_LISTEN"]

    def client(self, number: int) -> AgentRpcClient:
        """A client of one of the edges."""
        return AgentRpcClient(self.address(number), username="admin", password=self.password)

    async def start_child(self, child: Child) -> None:
        child.log = self.folder / f"{child.name}.log"
        inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TZ", "TMPDIR"}}
        with child.log.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                *dying_with_parent(sys.executable, "-m", "agentrpc.app", child.kind),
                env={**inherited, **child.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        child.starts += 1

    async def keep(self, child: Child) -> None:
        """As a service manager does: what ends is started again."""
        while True:
            assert child.process is not None
            await child.process.wait()
            if not child.wanted:
                return
            await asyncio.sleep(0.3)
            await self.start_child(child)

    async def add(self, name: str, kind: str, environment: dict[str, str]) -> None:
        child = self.children[name] = Child(name, kind, environment)
        await self.start_child(child)
        child.keeping = asyncio.create_task(self.keep(child), name=f"keep-{name}")

    def real_worker(self, child: Child) -> psutil.Process:
        """The process that hosts sessions: the child itself, or the one that it has started."""
        parent = psutil.Process(child.pid)
        for process in parent.children():
            with contextlib.suppress(psutil.Error):
                if "agentrpc" in " ".join(process.cmdline()):
                    return process
        return parent

    def agents(self) -> list[psutil.Process]:
        """Whatever works in a session's folder."""
        found = []
        folder = str(self.folder / "data") + "/"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd().startswith(folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # ---- Servers ----

    async def start_redis(self) -> None:
        binary = redis_binary()
        assert binary is not None
        self.redis = await asyncio.create_subprocess_exec(
            *dying_with_parent(binary, "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""),
            cwd=self.folder,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def stop_redis(self) -> None:
        assert self.redis is not None
        self.redis.kill()
        await self.redis.wait()

    async def execute(self, statement: str) -> list:
        """Straight at the server, past the wire."""
        database = Database(self.store_url, pool_size=1)
        try:
            async with database.connection() as connection:
                return await connection.fetch(statement)
        finally:
            await database.close()

    async def until_served(self) -> None:
        """Until both edges answer."""
        deadline = time.monotonic() + _READY
        for child in self.of_kind("serve"):
            host, _, port = child.environment["AGENTRPC_LISTEN"].rpartition(":")
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{child.name} does not serve: see {child.log}") from None
                    await asyncio.sleep(0.1)
                    continue
                writer.close()
                break


@asynccontextmanager
async def world(*, real_cli: bool = False) -> AsyncIterator[World]:
    """The service, up and running; its agents are those of the test kit, or the real CLI with the scripted model."""
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-faults-"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder / "postgres")
    store_url = await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(migrate, store_url)
    socket = Path(parse_qs(urlsplit(store_url).query)["host"][0]) / ".s.PGSQL.5432"
    wire = Wire(str(socket))
    await wire.start()
    model = ScriptedModel()
    await model.start()
    made = World(folder, postgres, wire, model, free_port(), store_url)
    common = {
        **_TIMES,
        "AGENTRPC_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{wire.port}/agentrpc",
        "AGENTRPC_REDIS_URL": f"redis://127.0.0.1:{made.redis_port}/0",
        "AGENTRPC_DATA_DIR": str(folder / "data"),
        "AGENTRPC_SIGNING_KEY": "for the fault suite, and for nothing else",
        "AGENTRPC_MODEL_URL": model.url,
        "AGENTRPC_MODEL_API_KEY": "scripted",
    }
    if not real_cli:
        common["AGENTRPC_CLI_PATH"] = str(write_cli(folder / "fake-cli"))
    try:
        await made.start_redis()
        made.password = await _admin_for(common) or ""
        for number in (1, 2):
            listen = {"AGENTRPC_LISTEN": f"127.0.0.1:{free_port()}"}
            await made.add(f"serve-{number}", "serve", {**common, **listen})
            await made.add(f"worker-{number}", "worker", common)
            await made.add(f"scheduler-{number}", "scheduler", common)
        await made.until_served()
        yield made
    finally:
        await _stop(made)


async def _stop(made: World) -> None:
    for child in made.children.values():
        child.wanted = False
        if child.process is not None and child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGCONT)
                child.process.terminate()
    for child in made.children.values():
        if child.process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await child.process.wait()
            if child.process.returncode is None:
                child.process.kill()
        if child.keeping is not None:
            child.keeping.cancel()
    if made.redis is not None and made.redis.returncode is None:
        await made.stop_redis()
    await made.model.stop()
    await made.wire.stop()
    await asyncio.to_thread(made.postgres.stop)
