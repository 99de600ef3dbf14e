"""A whole service under test: PostgreSQL, Redis, a scripted model, two of each of our processes, each as it is deployed.

Every process can be killed, stopped and started again. Ours reach PostgreSQL through a wire that can be cut, also
between the server's commit and its answer.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from agentrpc.app import _admin_for
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.embedded.servers import EmbeddedPostgres, dying_with_parent, redis_binary
from agentrpc.errors import StoreUnavailable
from agentrpc.store.database import Database
from agentrpc.store.schema import migrate
from agentrpc.testkit import write_cli
from scripts.chaos.clock import Clocks
from scripts.chaos.wire import Wire

__all__ = ["Child", "World", "world"]

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
    "AGENTRPC_LOGIN_ATTEMPTS_PER_MINUTE": "100000",
    "AGENTRPC_LOG_LEVEL": "info",
}
_READY = 60.0
_CLIENTS = 4
_ROOT = Path(__file__).resolve().parents[2]


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
    """The service. Made by `world`.

    Attributes:
        folder: Everything that it keeps, logs too.
        code: The folder with the package that its processes run.
        stuck: Our processes that had to be killed at the end, because they did not leave when they were asked to.
    """

    folder: Path
    code: Path
    postgres: EmbeddedPostgres
    wire: Wire
    model: ScriptedModel
    redis_port: int
    store_url: str
    clocks: Clocks
    password: str = ""
    children: dict[str, Child] = field(default_factory=dict)
    redis: asyncio.subprocess.Process | None = None
    clients: list[AgentRpcClient] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    # ---- Processes ----

    def of_kind(self, kind: str) -> list[Child]:
        return [child for child in self.children.values() if child.kind == kind]

    def address(self, number: int) -> str:
        return self.of_kind("serve")[number % 2].environment["AGENTRPC_LISTEN"]

    def client(self, number: int) -> AgentRpcClient:
        """A client of one of the edges, which is everyone's: it is closed with the world."""
        while len(self.clients) < _CLIENTS:
            self.clients.append(self.own_client(len(self.clients)))
        return self.clients[number % _CLIENTS]

    def own_client(self, number: int) -> AgentRpcClient:
        """A client of one of the edges, with a connection of its own."""
        return AgentRpcClient(self.address(number), username="admin", password=self.password)

    async def start_child(self, child: Child) -> None:
        child.log = self.folder / f"{child.name}.log"
        inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TZ", "TMPDIR"}}
        with child.log.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                *dying_with_parent(sys.executable, "-m", "agentrpc", child.kind),
                cwd=self.code,
                env={**inherited, **child.environment, "PYTHONPATH": str(self.code)},
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

    def host_of(self, child: Child) -> psutil.Process | None:
        """The process that hosts sessions under a worker's parent. None: there is none just now."""
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(child.pid).children():
                # Not the one that says in the store that another is dead.
                with contextlib.suppress(psutil.Error):
                    if "worker-process" in process.cmdline():
                        return process
        return None

    def agents_by_session(self) -> dict[str, list[psutil.Process]]:
        """Whatever works in sessions' folders, by the session's id."""
        found: dict[str, list[psutil.Process]] = {}
        for process, place in _working_in(self.workspaces):
            found.setdefault(place.partition("/")[0], []).append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """Whatever works in the service's folder: ours, and agents."""
        return [process for process, _ in _working_in(self.folder)]

    @property
    def workspaces(self) -> Path:
        return self.folder / "data" / "workspaces"

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

        async with Redis(port=self.redis_port, retry=Retry(ConstantBackoff(0.05), 200)) as redis:
            await redis.ping()

    async def stop_redis(self) -> None:
        assert self.redis is not None
        self.redis.kill()
        await self.redis.wait()

    async def execute(self, statement: str) -> list:
        """Straight at the server, past the wire; waits for a server that is away."""
        database = Database(self.store_url, pool_size=1)
        deadline = time.monotonic() + _READY
        try:
            while True:
                try:
                    async with database.connection() as connection:
                        return await connection.fetch(statement)
                except StoreUnavailable:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)
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
async def world(*, real_cli: bool = False, change: Callable[[Path], None] = lambda _: None) -> AsyncIterator[World]:
    """The service, up and running.

    Args:
        real_cli: Its agents are the real CLI with the scripted model, not those of the test kit.
        change: Changes the copy of the package, in this folder, that its processes run.
    """
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-faults-"))
    folder.chmod(0o755)
    code = folder / "code"
    # A copy: an edit in the checkout does not reach what is started again.
    for package in ("agentrpc", "migrations"):
        shutil.copytree(_ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    change(code)
    postgres = EmbeddedPostgres(folder / "postgres")
    store_url = await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(migrate, store_url)
    unix_socket = Path(parse_qs(urlsplit(store_url).query)["host"][0]) / ".s.PGSQL.5432"
    wire = Wire(str(unix_socket))
    await wire.start()
    model = ScriptedModel()
    await model.start()
    made = World(folder, code, postgres, wire, model, _port(), store_url, Clocks(folder))
    common = {
        **_TIMES,
        "AGENTRPC_DATABASE_URL": f"postgresql://postgres:{urlsplit(store_url).password}@127.0.0.1:{wire.port}/agentrpc",
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
            listen = {"AGENTRPC_LISTEN": f"127.0.0.1:{_port()}"}
            await made.add(f"serve-{number}", "serve", {**common, **listen})
            for kind in ("worker", "scheduler"):
                name = f"{kind}-{number}"
                await made.add(name, kind, {**common, **made.clocks.environment(name)})
        await made.until_served()
        yield made
    finally:
        await _stop(made)


def _working_in(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Processes, each with the place in the folder where it works."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            place = process.cwd()
            if place.startswith(f"{folder}/") and process.status() != psutil.STATUS_ZOMBIE:
                yield process, place.removeprefix(f"{folder}/")


def _port() -> int:
    """A free port, outside of the range from which clients get theirs: nobody takes it while its server is away."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def _stop(made: World) -> None:
    for client in made.clients:
        await client.close()
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
                made.stuck.append(child.name)
                child.process.kill()
        if child.keeping is not None:
            child.keeping.cancel()
    if made.redis is not None and made.redis.returncode is None:
        await made.stop_redis()
    await made.model.stop()
    await made.wire.stop()
    await asyncio.to_thread(made.postgres.stop)
    for folder in made.mounts:
        subprocess.run(["umount", "--lazy", folder], check=False)
