"""The worker's lease: renewed by a thread with a connection of its own, so that a busy event loop does not lose it.

Fails closed: when the lease could not be renewed, the gate and the gateway refuse from `deadline` on, by this machine's
monotonic clock, before anyone else may take the sessions over (which is T_kill after the lease's end).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from agentrpc.errors import AgentRpcError
from agentrpc.store.database import Database
from agentrpc.store.leases import renew_lease

__all__ = ["LeaseKeeper"]

log = structlog.get_logger()


class LeaseKeeper:
    """Keeps one worker's lease.

    Args:
        database_url: For a connection of its own.
        worker_id: The worker.
        ttl: Seconds.
        on_lost: Called once, on the event loop that made this object, when the worker was declared dead or its lease
            has ended.
    """

    def __init__(self, database_url: str, worker_id: UUID, ttl: float, on_lost: Callable[[], None]) -> None:
        self._database_url = database_url
        self._worker_id = worker_id
        self._ttl = ttl
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._lost = False
        self._deadline = time.monotonic() + ttl
        self._thread = threading.Thread(target=lambda: asyncio.run(self._keep()), name="lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End it. The lease runs out by itself."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def valid(self) -> bool:
        """Whether this worker may still begin tool and model calls."""
        return not self._lost and time.monotonic() < self._deadline

    async def _keep(self) -> None:
        database = Database(self._database_url, pool_size=1, timeout=min(5.0, self._ttl / 3))
        try:
            while not self._stopping.is_set():
                asked = time.monotonic()
                try:
                    if not await renew_lease(database, self._worker_id, self._ttl):
                        log.error("declared_dead", worker=str(self._worker_id))
                        self._lose()
                        return
                    # Counted from before the question: the database's clock began after it.
                    self._deadline = asked + self._ttl
                except AgentRpcError as error:
                    log.warning("lease_not_renewed", error=error.reason, left=round(self._deadline - asked, 1))
                if time.monotonic() >= self._deadline:
                    self._lose()
                    return
                await asyncio.to_thread(self._stopping.wait, self._ttl / 6)
        finally:
            await database.close()

    def _lose(self) -> None:
        self._lost = True
        self._loop.call_soon_threadsafe(self._on_lost)
