"""The scheduler: schedules, executions that are due, deadlines, what others are to be told, housekeeping.

Any number may run: each step takes its rows under locks and is found done by the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

from agentrpc import clock
from agentrpc.errors import AgentRpcError
from agentrpc.services.approvals import Approvals
from agentrpc.services.deadlines import Deadlines
from agentrpc.services.firing import Firing
from agentrpc.services.outbox import Outbox
from agentrpc.services.task_executions import Executions
from agentrpc.store.database import Database
from agentrpc.store.housekeeping import forget_logins, forget_requests, queue_figures
from agentrpc.store.schema import ensure_partitions
from agentrpc.telemetry import QUEUE_AGE, RUNS

__all__ = ["Scheduler"]

log = structlog.get_logger()

_TICK = 1.0
_SOON = 0.3
# Tasks that are new, or have got another schedule, are seen after so long.
_LONGEST_NAP = 1.0
# Where another scheduler deals with what has come.
_SHORTEST_NAP = 0.02
_CLOCK_LOOK = 60.0
_HOUSEKEEPING = 600.0


class Scheduler:
    """The loop.

    Args:
        database: The store.
        approvals: Expires them.
        deadlines: Ends runs that nobody drives.
        outbox: Hands on what happened.
        executions: Begins those whose time has come.
        firing: Fires schedules.
    """

    def __init__(
        self,
        database: Database,
        approvals: Approvals,
        deadlines: Deadlines,
        outbox: Outbox,
        executions: Executions,
        firing: Firing,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._approvals = approvals
        self._deadlines = deadlines
        self._executions = executions
        self._firing = firing
        # Slots come first: what they have made begins when all of them are stored.
        self._dealt = asyncio.Event()
        self._dealt.set()
        self._next_housekeeping = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for step in (self._approvals.expire_due, self._deadlines.enforce, self._measure, self._keep_house):
                with _going_on():
                    await step()
            await asyncio.sleep(clock.jitter(_TICK, 0.2))

    async def tell(self) -> None:
        """Hand on what happened, until cancelled."""
        await _repeat(self._outbox.drain)

    async def begin(self) -> None:
        """Begin executions whose time has come, until cancelled."""

        async def step() -> int:
            await self._dealt.wait()
            return await self._executions.start_due()

        await _repeat(step)

    async def fire(self) -> None:
        """Fire schedules, each slot when it comes, until cancelled."""
        next_clock_look = 0.0
        while True:
            nap = _LONGEST_NAP
            with _going_on():
                await self._fire_all()
                await self._firing.stop()
                if clock.monotonic() >= next_clock_look:
                    await self._firing.follow_clock()
                    next_clock_look = clock.monotonic() + _CLOCK_LOOK
                nap = min(max(await self._firing.seconds_to_next(), _SHORTEST_NAP), _LONGEST_NAP)
            await asyncio.sleep(nap)

    async def _fire_all(self) -> None:
        self._dealt.clear()
        try:
            while await self._firing.fire():
                pass
        finally:
            self._dealt.set()

    async def _keep_house(self) -> None:
        if clock.monotonic() < self._next_housekeeping:
            return
        await ensure_partitions(self._database, clock.utcnow())
        more = False
        with _going_on():
            # One part for each turn of the loop: what else is due comes in between.
            more = await forget_requests(self._database)
            more = await forget_logins(self._database) or more
        with _going_on():
            await self._firing.forget()
        if not more:
            self._next_housekeeping = clock.monotonic() + _HOUSEKEEPING

    async def _measure(self) -> None:
        states, oldest = await queue_figures(self._database)
        for state in ("QUEUED", "RUNNING", "REQUIRES_ACTION", "UNKNOWN_OUTCOME"):
            RUNS.labels(state).set(states.get(state, 0))
        QUEUE_AGE.set(oldest)


@contextmanager
def _going_on() -> Iterator[None]:
    """What goes wrong is logged and ends nothing but what is within."""
    try:
        yield
    except AgentRpcError as error:
        log.warning("scheduler_paused", reason=error.reason)
    except Exception:
        log.exception("scheduler_failed")


async def _repeat(step: Callable[[], Awaitable[int]]) -> None:
    while True:
        with _going_on():
            await step()
        await asyncio.sleep(clock.jitter(_SOON, 0.2))
