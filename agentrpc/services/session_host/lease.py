"""The worker's lease: renewed by a thread with a connection of its own, so that a busy event loop does not lose it.

Fails closed: when the lease could not be renewed, the gate and the gateway refuse from `deadline` on, by this machine's
clock, before anyone else may take the sessions over (which is T_kill after the lease's end). The clock is one that goes
on while the machine sleeps, CLOCK_BOOTTIME, and the same for all its processes: the worker's parent is told the
deadline, and kills a worker that has not ended in time, because it is stopped or hangs.
"""

import asyncio
import threading
from collections.abc import Callable
from uuid import UUID

import structlog

from agentrpc import clock
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
        on_deadline: Gets each new deadline, by `clock.boottime`. Called on any thread.
    """

    def __init__(
        self,
        database_url: str,
        worker_id: UUID,
        ttl: float,
        on_lost: Callable[[], None],
        on_deadline: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._database_url = database_url
        self._worker_id = worker_id
        self._ttl = ttl
        self._on_lost = on_lost
        self._on_deadline = on_deadline
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._lost = False
        self._deadline = clock.boottime() + ttl
        self._thread = threading.Thread(target=lambda: asyncio.run(self._keep()), name="lease", daemon=True)
        # Before the worker is registered: whoever is to bury it knows it from the beginning.
        on_deadline(self._deadline)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End it. The lease runs out by itself."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def valid(self) -> bool:
        """Whether this worker may still begin tool and model calls."""
        return not self._lost and clock.boottime() < self._deadline

    async def _keep(self) -> None:
        database = Database(self._database_url, pool_size=1, timeout=min(5.0, self._ttl / 3))
        try:
            while not self._stopping.is_set():
                asked = clock.boottime()
                if asked >= self._deadline:
                    # Also after this process was stopped for long: what it held may be another's by now.
                    self._lose()
                    return
                try:
                    if not await renew_lease(database, self._worker_id, self._ttl):
                        log.error("declared_dead", worker=str(self._worker_id))
                        self._lose()
                        return
                    # Counted from before the question: the database's clock began after it.
                    self._deadline = asked + self._ttl
                    self._on_deadline(self._deadline)
                except AgentRpcError as error:
                    log.warning("lease_not_renewed", error=error.reason, left=round(self._deadline - asked, 1))
                await asyncio.to_thread(
                    self._stopping.wait, min(self._ttl / 6, max(self._deadline - clock.boottime(), 0))
                )
        finally:
            await database.close()

    def _lose(self) -> None:
        self._lost = True
        self._on_deadline(min(self._deadline, clock.boottime()))
        self._loop.call_soon_threadsafe(self._on_lost)
