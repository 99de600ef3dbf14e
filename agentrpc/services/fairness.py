"""Places for heavy work in this process, given to users in turn: whoever wants much waits behind nobody but himself."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from agentrpc.errors import ResourceExhausted

__all__ = ["FairPlaces"]

_RETRY_SECONDS = 2.0


class FairPlaces:
    """So many places. It belongs to one event loop.

    Args:
        what: The work, for the error that a user gets whose calls wait.
        places: How many calls may be at work.
        each: How many of them may be one user's.
        waiting: How many calls of one user may wait.
    """

    def __init__(self, what: str, *, places: int, each: int, waiting: int) -> None:
        self._what = what
        self._free = places
        self._each = each
        self._waiting = waiting
        self._held: dict[UUID, int] = {}
        # Of users in the order of their last turns.
        self._queues: dict[UUID, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def place(self, user: UUID, *, going_on: bool = False) -> AsyncIterator[None]:
        """A place, when it is the user's turn.

        Args:
            user: Whose call it is.
            going_on: Whether the call has had a place before, and has done much since: it is not refused.

        Raises:
            ResourceExhausted: RATE_LIMITED: too many calls of the user wait already.
        """
        queue = self._queues.setdefault(user, deque())
        if len(queue) >= self._waiting and not going_on:
            raise ResourceExhausted(
                f"{len(queue)} calls of yours wait for {self._what} already: wait for some of them, then try again",
                reason="RATE_LIMITED",
                retry_after=_RETRY_SECONDS,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._deal()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It had just got the place.
                self._give_back(user)
            else:
                self._drop(user, turn)
            raise
        try:
            yield
        finally:
            self._give_back(user)

    def _deal(self) -> None:
        while self._free:
            may = [user for user in self._queues if self._held.get(user, 0) < self._each]
            if not may:
                return
            # Who has the fewest; of several, who has waited longest for a turn.
            user = min(may, key=lambda user: self._held.get(user, 0))
            # Whoever gets a place goes to the end of the line.
            queue = self._queues.pop(user)
            turn = queue.popleft()
            if queue:
                self._queues[user] = queue
            if turn.done():
                # It was given up, and its task does not know yet.
                continue
            self._free -= 1
            self._held[user] = self._held.get(user, 0) + 1
            turn.set_result(None)

    def _give_back(self, user: UUID) -> None:
        self._free += 1
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        self._deal()

    def _drop(self, user: UUID, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(user)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[user]
