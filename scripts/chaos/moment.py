"""What faults wait for and strike at, and the list of all faults."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentrpc.v1 import event_pb2
from scripts.chaos.checker import Expected
from scripts.chaos.traffic import SessionRecord, Traffic
from scripts.chaos.world import Child, World

__all__ = ["FAULTS", "Fault", "Moment", "Skip", "fault"]


class Skip(Exception):
    """The fault cannot be made on this machine; the message says why."""


class Moment:
    """The service under traffic, at which one fault strikes.

    Args:
        world: The service.
        traffic: Its clients.
        seed: Decides about the fault.
        short: The fault is to be over soon.
    """

    def __init__(self, world: World, traffic: Traffic, seed: int, *, short: bool = False) -> None:
        self.world = world
        self.traffic = traffic
        self.random = random.Random(seed)
        self.short = short
        self._events: asyncio.Queue[tuple[SessionRecord, event_pb2.Event]] | None = None
        traffic.on_event = self._on_event

    def _on_event(self, session: SessionRecord, event: event_pb2.Event) -> None:
        if self._events is not None:
            self._events.put_nowait((session, event))

    async def wait(self, *kinds: str, timeout: float = 20.0) -> SessionRecord | None:
        """The session of one of the next events of these kinds, as a watcher sees it now."""
        events = self._events = asyncio.Queue()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self.under_way()
                    with contextlib.suppress(TimeoutError):
                        session, event = await asyncio.wait_for(events.get(), 1)
                        if event.WhichOneof("payload") in kinds and self.random.random() < 0.6:
                            return session
        except TimeoutError:
            return None
        finally:
            self._events = None

    async def sees(self, session: SessionRecord, kind: str, timeout: float = 20.0) -> bool:
        """Wait for an event of this kind in this session; whether it has come."""
        events = self._events = asyncio.Queue()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found, event = await events.get()
                    if found is session and event.WhichOneof("payload") == kind:
                        return True
        except TimeoutError:
            return False
        finally:
            self._events = None

    async def under_way(self) -> None:
        """Make sure that there is something to be disturbed."""
        if self.traffic.sessions and not self.traffic.waiting:
            await self.traffic.more()

    async def fetch(self, statement: str) -> list[Any]:
        return await self.world.execute(statement)

    async def worker_of(self, session: SessionRecord | None) -> Child:
        """The worker that holds a session, else any."""
        if session is not None:
            rows = await self.fetch(
                "SELECT w.pid FROM session_heads h JOIN workers w ON w.id = h.worker"
                f" WHERE h.session_id = '{session.name.rpartition('/')[2]}'"
            )
            for child in self.world.of_kind("worker"):
                host = self.world.host_of(child)
                if rows and host and host.pid == rows[0][0]:
                    return child
        return self.any("worker")

    def any(self, kind: str) -> Child:
        """A process of a kind."""
        return self.random.choice(self.world.of_kind(kind))

    async def pause(self, most: float) -> None:
        """Up to so many seconds."""
        await asyncio.sleep(self.random.random() * most)


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        strike: Does it, and tells how often and with what: (2, "kills").
        may: What it excuses.
    """

    strike: Callable[[Moment], Awaitable[tuple[int, str]]]
    may: Expected


FAULTS: dict[str, Fault] = {}


def fault(**may: Any) -> Callable[[Callable[[Moment], Awaitable[tuple[int, str]]]], None]:
    """Put a fault on the list, under its function's name."""

    def add(strike: Callable[[Moment], Awaitable[tuple[int, str]]]) -> None:
        FAULTS[strike.__name__.replace("_", "-")] = Fault(strike, Expected(**may))

    return add
