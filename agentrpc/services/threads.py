"""Work that blocks, in threads."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

__all__ = ["in_thread", "outlasting", "while_wanted"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do what blocks in a thread. Cancelled, it waits for it: no descriptor is closed under work that goes on."""
    return await outlasting(asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs)))


async def outlasting(working: "asyncio.Future[_T]") -> _T:
    """What comes of work that cannot be stopped. Cancelled, it waits for its end."""
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await _outlast(working)
        raise


async def while_wanted(work: Callable[[Callable[[], bool]], _T]) -> _T:
    """The same for long work, which is told when nobody waits for it any more: its argument then says False."""
    given_up = threading.Event()
    working = asyncio.ensure_future(in_thread(work, lambda: not given_up.is_set()))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        given_up.set()
        await _outlast(working)
        raise


async def _outlast(working: "asyncio.Future[_T]") -> None:
    """Wait for it however often that is cancelled: whoever ends tasks for good repeats it."""
    while not working.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([working])
    with suppress(Exception):
        working.result()
