"""What happens after a commit: watchers are shown the events, a worker is told that there may be work.

Both are hints that may be lost: watchers ask Postgres once a second, workers every two.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from agentrpc.bus.live import LiveBatch
from agentrpc.bus.redis_bus import Bus
from agentrpc.store.log import StoredEvent

__all__ = ["Doorbell", "publish"]


class Doorbell:
    """Tells a worker that there may be work.

    Args:
        bus: Reaches the worker that holds a session.
        ring_any: Reaches any worker with free capacity. Must neither raise nor take long.
        ring_job: Reaches any worker, with the kind of a job; likewise.
    """

    def __init__(
        self,
        bus: Bus,
        ring_any: Callable[[], Awaitable[None]],
        ring_job: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._bus = bus
        self._ring_any = ring_any
        self._ring_job = ring_job

    async def ring(self, session_id: UUID, worker: UUID | None) -> None:
        """Ring for a session that `worker` holds, or nobody."""
        if worker is None or not await self._bus.signal_worker(worker, session_id):
            await self._ring_any()

    async def ring_job(self, kind: str) -> None:
        """Ring for a job of this kind."""
        if self._ring_job is not None:
            await self._ring_job(kind)


async def publish(bus: Bus, session_id: UUID, events: Sequence[StoredEvent]) -> None:
    """Show committed control events to watchers."""
    if events:
        batch = LiveBatch.of(events[-1].sequence, [(e.sequence, e.kind, e.run_id, e.data) for e in events])
        await bus.publish(session_id, batch.encode())
