"""Short jobs with no agent in them: reports, webhook deliveries, archives, clean-up.

A job is a row in Postgres, which decides: whoever takes it does so under a lock or a lease of its own, and doing it
twice does no harm. A message of the doorbell says that there may be one; without Redis it is found a little later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import structlog

from agentrpc import clock
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError

__all__ = ["Drain", "Jobs"]

log = structlog.get_logger()

_POLL = 5.0
# A job that was cancelled ends processes and gives back what it had taken.
_TIDY_UP = 10.0

Drain: TypeAlias = Callable[[], Awaitable[int]]


class Jobs:
    """Does jobs of several kinds, those of one kind one after the other.

    Args:
        drains: By kind: does what is due, and says how much that was.
    """

    def __init__(self, drains: Mapping[str, Drain]) -> None:
        self._drains = drains
        self._rung = {kind: asyncio.Event() for kind in drains}
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False

    def ring(self, kind: str) -> None:
        """There may be jobs of this kind. A kind that this worker does not know is another version's."""
        if kind in self._rung:
            self._rung[kind].set()

    def start(self) -> None:
        """Begin to look for jobs."""
        self._loops = [
            asyncio.create_task(self._loop(kind, drain), name=f"jobs-{kind}") for kind, drain in self._drains.items()
        ]

    async def stop(self) -> None:
        """End; what is under way is cancelled, and is found again by the next to look."""
        self._stopping = True
        await end_tasks(self._loops, again=_TIDY_UP)

    async def _loop(self, kind: str, drain: Drain) -> None:
        rung = self._rung[kind]
        while True:
            rung.clear()
            try:
                if await drain() and not self._stopping:
                    continue
            except AgentRpcError as error:
                log.warning("jobs_paused", kind=kind, reason=error.reason)
            except Exception:
                log.exception("jobs_failed", kind=kind)
            if self._stopping:
                # What a job raises that cannot tidy up takes the cancellation's place.
                return
            try:
                async with asyncio.timeout(clock.jitter(_POLL, 0.2)):
                    await rung.wait()
            except TimeoutError:
                continue
