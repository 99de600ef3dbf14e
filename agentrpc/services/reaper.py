"""Finds workers that are lost without a proof: frozen, cut off, or killed together with their parent.

Keeps promise 3. A worker renews its lease several times in a TTL, and has ended all its processes T_kill after a lease
that it could not renew. So a lease that this process has itself seen unchanged for TTL + T_kill, by its own monotonic
clock and while the database answered all the time, is that of a dead worker. No other clock counts, the database's
neither: a lease is only compared with what it was. What was seen before a gap of any kind counts for nothing: a
database that was away, or this process when it was stopped, says nothing about workers.

Any number may run: of several that find the same worker one declares it dead.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.errors import AgentRpcError
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.leases import declare_frozen, forget_workers, living_workers
from agentrpc.telemetry import WORKERS_DECLARED_DEAD

__all__ = ["Reaper"]

log = structlog.get_logger()

_LONGEST_INTERVAL = 2.0
# A look that comes so many intervals late is a gap.
_GAP = 4
_HOUSEKEEPING = 600.0
_REMEMBERED = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lease, and since when it is known not to have changed."""

    expire_time: datetime
    since: float


class Reaper:
    """The loop.

    Args:
        database: The store.
        ring_any: Tells some worker that there may be work.
        settings: TTL and T_kill, which have to be the same for all processes.
    """

    def __init__(self, database: Database, ring_any: Callable[[], Awaitable[None]], settings: Settings) -> None:
        self._database = database
        self._ring_any = ring_any
        self._patience = settings.lease_ttl + settings.kill_timeout
        self._interval = min(_LONGEST_INTERVAL, settings.lease_ttl / 6)
        self._seen: dict[UUID, _Seen] = {}
        self._looked = 0.0
        self._next_housekeeping = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
                if clock.monotonic() >= self._next_housekeeping:
                    await forget_workers(self._database, _REMEMBERED)
                    self._next_housekeeping = clock.monotonic() + _HOUSEKEEPING
            except AgentRpcError as error:
                log.warning("reaper_paused", reason=error.reason)
            except Exception:
                log.exception("reaper_failed")
            await asyncio.sleep(clock.jitter(self._interval, 0.2))

    async def look(self) -> list[UUID]:
        """Look at all leases once; the workers that this process has declared dead.

        Raises:
            StoreUnavailable: What was seen before counts for nothing.
        """
        before, known = clock.monotonic(), self._seen
        self._seen = {}
        if before - self._looked > _GAP * self._interval:
            known = {}
        leases = await living_workers(self._database)
        after = self._looked = clock.monotonic()
        if after - before > _GAP * self._interval:
            return []
        seen, dead = {}, []
        for worker_id, expire_time in leases.items():
            lease = known.get(worker_id)
            if lease is None or lease.expire_time != expire_time:
                # From the end of the question: the lease was renewed before it at the latest.
                lease = _Seen(expire_time, after)
            elif before - lease.since > self._patience and await declare_frozen(self._database, worker_id, expire_time):
                dead.append(worker_id)
            seen[worker_id] = lease
        self._seen = seen
        if dead:
            log.error("workers_lost", workers=[str(worker_id) for worker_id in dead])
            WORKERS_DECLARED_DEAD.inc(len(dead))
            await self._ring_any()
        return dead
