"""Ending tasks for good.

A cancellation can be lost: a library that is just connecting may swallow it, or turn it into an error of its own, which
a loop that goes on for ever takes for one more trouble. So it is repeated until the tasks are done.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

__all__ = ["end_tasks"]

log = structlog.get_logger()

_AGAIN = 1.0


async def end_tasks(tasks: Iterable["asyncio.Future[Any]"], again: float = _AGAIN) -> None:
    """Cancel tasks, and wait until all are done. What they raise is not raised here.

    Args:
        tasks: The tasks.
        again: Seconds until those that are left are cancelled once more: longer than they need to tidy up.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=again)
        for task in done:
            if not task.cancelled():
                task.exception()
        for task in left:
            log.warning("cancellation_lost", task=task.get_name() if isinstance(task, asyncio.Task) else str(task))
