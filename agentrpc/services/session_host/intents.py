"""What a run is to do besides its work, as its actor knows it: stop, pause, leave, take in a further message.

The head row in the store says it first; some comes from the worker itself. Whatever the actor waits for, it waits here:
a change of mind and the loss of the lease wake it at once.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from agentrpc.domain.states import RunState, StopKind
from agentrpc.errors import LeaseLostError
from agentrpc.services.run_end import Ending
from agentrpc.store.leases import OwnedSession

__all__ = ["Intents", "Stop", "Stopped"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run has to end before its turn has."""

    kind: StopKind
    reason: str
    failure: Ending | None = None

    @property
    def state(self) -> RunState:
        """What becomes of the run."""
        return RunState.EXPIRED if self.kind is StopKind.EXPIRE else RunState.CANCELLED


class Stopped(Exception):
    """The run is to stop."""


class Intents:
    """The intents of one session's active run.

    Args:
        lost: Done when the lease is lost.
    """

    def __init__(self, lost: "asyncio.Future[None]") -> None:
        self._lost = lost
        self.changed = asyncio.Event()
        self.stop: Stop | None = None
        self.paused = self.draining = self.abandoned = False
        self.inputs = 0

    def begin_run(self) -> None:
        """Another run: nobody wants it to stop yet."""
        self.stop = None
        self.abandoned = False
        self.inputs = 0

    @property
    def cancelled(self) -> bool:
        """Whether the run's whole process tree is to end at once."""
        return self.stop is not None and self.stop.kind is StopKind.CANCEL

    @property
    def failed(self) -> bool:
        """Whether the run has failed, whatever becomes of its turn."""
        return self.stop is not None and self.stop.failure is not None

    @property
    def leaving(self) -> bool:
        """Whether the session is to be given back in the middle of the run."""
        return self.paused or self.draining or self.abandoned

    def stop_run(self, stop: Stop) -> None:
        """Stop it. A cancel goes further than the stop that is under way."""
        if self.stop is None or (stop.kind is StopKind.CANCEL and not self.cancelled):
            self.stop = stop
            self.changed.set()

    def heed(self, head: OwnedSession, run_id: UUID) -> None:
        """Take in what the head row says of the run."""
        if head.active_run != run_id:
            return
        if head.stop_run == run_id and head.stop_kind:
            self.stop_run(Stop(StopKind(head.stop_kind), "asked for"))
        if head.inputs and not self.inputs:
            self.inputs = head.inputs
            self.changed.set()
        if head.paused != self.paused:
            self.paused = head.paused
            self.changed.set()

    async def wait(self, *others: "asyncio.Future[Any]", timeout: float | None = None) -> None:
        """Wait for a change, for one of the others, or for a while. Raises LeaseLostError."""
        changed = asyncio.ensure_future(self.changed.wait())
        try:
            waited: set[asyncio.Future[Any]] = {changed, self._lost, *others}
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        self.changed.clear()
        if self._lost.done():
            raise LeaseLostError("the session's writer has stopped")

    async def wait_for(
        self, task: "asyncio.Task[Any]", given_up: Callable[[], bool], deadline: float | None = None
    ) -> None:
        """Wait until a task is done, or until it is given up or the deadline has passed. Raises LeaseLostError."""
        while not task.done() and not given_up() and (deadline is None or time.monotonic() < deadline):
            await self.wait(task, timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))

    async def unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` gives; it is given up when the run is to stop. Raises Stopped, LeaseLostError."""
        working = asyncio.create_task(work)
        try:
            await self.wait_for(working, lambda: self.stop is not None)
            if self.stop is not None:
                raise Stopped
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def wait_out(self, seconds: float) -> None:
        """Wait, but not longer than until the run is to stop, or the lease is lost."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(LeaseLostError):
            while self.stop is None and not self._lost.done() and (left := deadline - time.monotonic()) > 0:
                await self.wait(timeout=left)
