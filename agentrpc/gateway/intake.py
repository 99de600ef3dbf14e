"""Bodies of requests in the worker's memory: bounded for each token and in all, and not for long.

A body has to be there as a whole before it is judged. Its place is taken before its first byte is read; until then the
connection stands still, with what one buffer holds.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

__all__ = ["MAX_BODY", "Intake", "IntakeFull", "TooLarge", "TooSlow"]

# The provider takes no more.
MAX_BODY = 32 * 1024 * 1024
# Two of the largest: the subagents of one session ask at once.
_FOR_A_TOKEN = 2 * MAX_BODY
# Requests of one token that wait or are under way.
_MAX_CALLS = 100
_PATIENCE = 30.0
_SECONDS = 60.0


class IntakeFull(Exception):
    """There is no place for a body now."""


class TooLarge(Exception):
    """A body is larger than MAX_BODY."""


class TooSlow(Exception):
    """A body did not come in time."""


class Intake:
    """Places for the bodies of all requests.

    Args:
        limit: Bytes of all that are in memory at once.
    """

    def __init__(self, limit: int) -> None:
        self._free = max(limit, _FOR_A_TOKEN)
        self._used: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._waiting: deque[tuple[str, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def body(self, request: web.BaseRequest, token: str) -> AsyncIterator[bytes]:
        """The body of a request, whose place is kept until this ends.

        Raises:
            IntakeFull: Too many of this token are under way, or of all.
            TooLarge: It is larger than any may be.
            TooSlow: It did not come in time.
        """
        size = request.content_length if request.content_length is not None else MAX_BODY
        if size > MAX_BODY:
            raise TooLarge
        if self._calls[token] >= _MAX_CALLS:
            raise IntakeFull
        self._calls[token] += 1
        try:
            await self._take(token, size)
            try:
                yield await self._read(request)
            finally:
                self._give(token, size)
        finally:
            self._calls[token] -= 1
            if not self._calls[token]:
                del self._calls[token]

    @staticmethod
    async def _read(request: web.BaseRequest) -> bytes:
        data = bytearray()
        try:
            async with asyncio.timeout(_SECONDS):
                async for chunk in request.content.iter_any():
                    data += chunk
                    if len(data) > MAX_BODY:
                        raise TooLarge
        except TimeoutError:
            raise TooSlow from None
        return bytes(data)

    async def _take(self, token: str, size: int) -> None:
        turn = not any(self._has_room(*place[:2]) for place in self._waiting)
        if turn and self._has_room(token, size) and size <= self._free:
            self._hold(token, size)
            return
        place = (token, size, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            async with asyncio.timeout(_PATIENCE):
                await place[2]
        except BaseException as error:
            if place[2].done() and not place[2].cancelled():
                # It was given up in the moment in which it had its turn.
                self._give(token, size)
            else:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise IntakeFull from None
            raise

    def _has_room(self, token: str, size: int) -> bool:
        """Whether only others keep it waiting."""
        return self._used[token] + size <= _FOR_A_TOKEN

    def _hold(self, token: str, size: int) -> None:
        self._free -= size
        self._used[token] += size

    def _give(self, token: str, size: int) -> None:
        self._free += size
        self._used[token] -= size
        if not self._used[token]:
            del self._used[token]
        # In their order; who waits only for others of his own token keeps nobody waiting.
        for place in list(self._waiting):
            if place[2].done() or not self._has_room(*place[:2]):
                continue
            if place[1] > self._free:
                break
            self._waiting.remove(place)
            self._hold(place[0], place[1])
            place[2].set_result(None)
