"""A session as one worker holds it, and the one way in which its parts change the store beside the writer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.services.signals import publish
from agentrpc.store.database import Database
from agentrpc.store.log import StoredEvent

__all__ = ["Hold"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Hold:
    """One session under one epoch.

    Attributes:
        database: The store.
        bus: The live tail.
        writer: The session's writer; when it has lost the lease, all is over.
        session_id: The session.
        epoch: The epoch under which this worker holds it.
    """

    database: Database
    bus: Bus
    writer: SessionWriter
    session_id: UUID
    epoch: int

    async def patiently(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try again while the database is away: the run goes on when it is back. Raises LeaseLostError meanwhile."""
        delay = 0.1
        while True:
            if self.writer.lost.done():
                raise LeaseLostError("the session's writer has stopped")
            try:
                return await attempt()
            except StoreUnavailable:
                await asyncio.sleep(clock.jitter(delay))
                delay = min(delay * 2, 2.0)

    async def show(self, events: Sequence[StoredEvent]) -> None:
        """Show watchers what was committed beside the writer."""
        if events:
            self.writer.committed(events[-1].sequence)
            await publish(self.bus, self.session_id, events)
