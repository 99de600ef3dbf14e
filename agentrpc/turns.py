"""Places that those who want them take by turns, so that nobody who wants many keeps others from theirs.

Waiting is by key, which is a user or an address: a place that gets free goes to the next key, and of each key only so
many are held and wait at once. So one key's crowd costs another at most the time that the places under way take.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from agentrpc.errors import ResourceExhausted

__all__ = ["Turns"]


class Turns:
    """So many places.

    Args:
        limit: How many are held at a time.
        per_key: How many of them one key holds. Fewer than `limit`, so that no key holds them all.
        waiting: How many of one key wait; one more is refused. None: any number.
        newest_first: Of one key the newest is next, and the oldest is refused: for what a key that floods wants to
            delay, and that takes no time where nobody means harm.
    """

    def __init__(self, limit: int, *, per_key: int, waiting: int | None = None, newest_first: bool = False) -> None:
        self._limit = limit
        self._per_key = per_key
        self._waiting = waiting
        self._newest_first = newest_first
        self._total = 0
        self._held: Counter[Hashable] = Counter()
        self._queues: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def take(self, key: Hashable, *, going_on: bool = False) -> AsyncIterator[None]:
        """A place for as long as the block lasts. As `enter`."""
        await self.enter(key, going_on=going_on)
        try:
            yield
        finally:
            self.leave(key)

    async def enter(self, key: Hashable, *, going_on: bool = False) -> None:
        """Wait for a place, to be given back with `leave`.

        Args:
            key: Whose place.
            going_on: Whether a place was had before, and much was done with it: it is not refused.

        Raises:
            ResourceExhausted: RATE_LIMITED, too many of this key wait.
        """
        if self._total < self._limit and self._held[key] < self._per_key and key not in self._queues:
            self._give(key)
            return
        queue = self._queues.setdefault(key, deque())
        if self._waiting is not None and len(queue) >= self._waiting and not going_on:
            if not self._newest_first:
                raise self._crowded()
            oldest = queue.popleft()
            if not oldest.done():
                oldest.set_exception(self._crowded())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was given in the very moment.
                self.leave(key)
            elif turn in queue:
                queue.remove(turn)
                if not queue and self._queues.get(key) is queue:
                    del self._queues[key]
            raise

    def leave(self, key: Hashable) -> None:
        """Give a place back."""
        self._total -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        while self._total < self._limit:
            turn = self._next()
            if turn is None:
                return
            turn.set_result(None)

    def _next(self) -> "asyncio.Future[None] | None":
        """The next to have a place, which is counted as held already."""
        for key, queue in list(self._queues.items()):
            while queue and self._held[key] < self._per_key:
                turn = queue.pop() if self._newest_first else queue.popleft()
                if turn.done():
                    # Cancelled.
                    continue
                self._give(key)
                self._queues.move_to_end(key)
                if not queue:
                    del self._queues[key]
                return turn
            if not queue:
                del self._queues[key]
        return None

    def _give(self, key: Hashable) -> None:
        self._total += 1
        self._held[key] += 1

    def _crowded(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"{self._waiting} such calls of yours wait already: make fewer at a time",
            reason="RATE_LIMITED",
            retry_after=1.0,
        )
