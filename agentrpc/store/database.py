"""The connection to PostgreSQL: a unit of work for resources, and the driver's pools for the hot path.

Both translate "cannot be reached", and "takes no changes now", into `StoreUnavailable` in this one place.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy import event, func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from agentrpc.ending import end_tasks
from agentrpc.errors import StoreUnavailable

__all__ = [
    "Connection",
    "Database",
    "Lane",
    "Transaction",
    "after_commit",
    "async_url",
    "database_time",
    "is_unreachable",
]

Transaction: TypeAlias = AsyncSession
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"

# What the driver raises when the server is away, going away, or not yet ready. SQLSTATE classes 08 and 57P.
_UNREACHABLE: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # What the driver says when the server ends a connection while it prepares a statement.
    asyncpg.InternalClientError,
    # A process that was stopped in a transaction, and woken when the server had given it up.
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    # A lock or the server was held up for too long, such as by a frozen host: nothing was changed.
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    # It takes no changes: one that is a standby since a failover, or whose disk is full.
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DiskFullError,
    TimeoutError,
)

# A transaction stopped in the middle holds a head row's lock and blocks a takeover: the server ends it.
_SERVER_SETTINGS = {
    "application_name": "agentrpc",
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "10s",
    "statement_timeout": "30s",
    "jit": "off",
}


class Lane(Enum):
    """What bare connections are for. Each has a pool of its own: a crowd in one keeps nobody in another waiting."""

    HOT = "hot"
    # What tells whether the process is well, and its watchers that there is something new.
    PULSE = "pulse"
    # What walks logs for callers.
    REPLAY = "replay"
    LIST = "list"


def after_commit(tx: Transaction, act: Callable[[], None]) -> None:
    """Have something done once the transaction is committed; not at all when it is not. Must neither wait nor fail."""
    event.listen(tx.sync_session, "after_commit", lambda _: act(), once=True)


def async_url(url: str) -> str:
    """The URL as SQLAlchemy wants it, for asyncpg."""
    return "postgresql+asyncpg://" + url.split("://", 1)[1]


def is_unreachable(error: BaseException) -> bool:
    """Whether the same may succeed later: the database could not be reached in time, or takes no changes now."""
    if isinstance(error, (OperationalError, InterfaceError, PoolTimeout)):
        return True
    if isinstance(error, DBAPIError):
        cause = error.__cause__.__cause__ if error.__cause__ else None
        return error.connection_invalidated or isinstance(cause, _UNREACHABLE)
    return isinstance(error, _UNREACHABLE)


class Database:
    """One process's way to PostgreSQL.

    Args:
        url: `postgresql://user:password@host:port/database`.
        pool_size: Connections of the unit of work; the hot path and replays have as many again, lists half of that,
            the pulse two. They are opened when they are needed.
        timeout: Seconds to wait for a connection and for one statement of the hot path.
    """

    def __init__(self, url: str, *, pool_size: int = 8, timeout: float = 10.0) -> None:
        self._url = url
        self._timeout = timeout
        self._engine = create_async_engine(
            async_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=timeout,
            pool_pre_ping=False,
            # Errors with their statements go into the log; the values, which may be prompts and secrets, do not.
            hide_parameters=True,
            connect_args={"server_settings": _SERVER_SETTINGS, "timeout": timeout},
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._sizes = {Lane.HOT: pool_size, Lane.PULSE: 2, Lane.REPLAY: pool_size, Lane.LIST: max(pool_size // 2, 1)}
        self._pools: dict[Lane, asyncpg.Pool[Any]] = {}
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Give up all connections. Waits two seconds for those in use, then cuts them."""
        # Pool.close() alone waits for ever for a connection that is not given back.
        closing = {asyncio.ensure_future(pool.close()): pool for pool in self._pools.values()}
        if closing:
            _, late = await asyncio.wait(closing, timeout=2)
            for one in late:
                closing[one].terminate()
            await end_tasks(late)
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A unit of work: commits at the end of the block, rolls back when it raises.

        Raises:
            StoreUnavailable: The database cannot be used now. `unsure` when COMMIT said so: its outcome is not known.
        """
        committing = False
        try:
            async with self._sessions() as session, session.begin():
                yield session
                # So that nothing but COMMIT is left.
                await session.flush()
                committing = True
        except Exception as error:
            if is_unreachable(error):
                raise StoreUnavailable(unsure=committing) from error
            raise

    @asynccontextmanager
    async def connection(self, lane: Lane = Lane.HOT) -> AsyncIterator[Connection]:
        """A bare connection of the driver, for the named statements of the hot path. Raises as `transaction`."""
        try:
            pool = self._pools.get(lane) or await self._open(lane)
            # Not by `acquire(timeout=...)`: on Python 3.11 that starts a task.
            async with asyncio.timeout(self._timeout):
                connection = await pool.acquire()
            try:
                yield connection
            finally:
                await pool.release(connection, timeout=self._timeout)
        except Exception as error:
            if is_unreachable(error):
                raise StoreUnavailable from error
            raise

    async def _open(self, lane: Lane) -> "asyncpg.Pool[Any]":
        async with self._opening:
            if lane not in self._pools:
                self._pools[lane] = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._sizes[lane],
                    command_timeout=self._timeout,
                    timeout=self._timeout,
                    server_settings=_SERVER_SETTINGS,
                    reset=_keep,
                )
            return self._pools[lane]


async def database_time(transaction: Transaction) -> datetime:
    """The time by the database's clock, which is the same for all processes whatever their own clocks do."""
    now: datetime = (await transaction.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def _keep(connection: asyncpg.Connection) -> None:
    """In place of the driver's reset, one more round trip whenever a connection comes back: `RESET ALL` and the like.

    No statement of ours changes a connection's state, and before it calls this the driver rolls back what is open.
    """
