"""The doorbell: a taskiq broker on a Redis stream, hardened.

What stock taskiq-redis 1.2.4 does not do, and this does: a lost connection or a flushed Redis does not end `listen()`
(and with it the worker and every run in it); the group is made again; socket time-outs; one message at a time, so that
no worker hoards what others could do; the stream has a bounded length, since XACK alone deletes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import structlog
from redis.exceptions import RedisError
from taskiq import AckableMessage
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from agentrpc import clock

__all__ = ["Bell", "DoorbellBroker", "answer_bell"]

log = structlog.get_logger()

_TASK = "agentrpc.work:may_be_there"
_BLOCK_MS = 1000


class DoorbellBroker(RedisStreamBroker):
    """A stream broker that outlives its Redis.

    Args:
        url: `redis://host:port/db`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(
            url,
            queue_name="agentrpc:doorbell",
            consumer_group_name="workers",
            # "$" would lose what was rung before the group existed.
            consumer_id="0",
            xread_count=1,
            xread_block=_BLOCK_MS,
            maxlen=10_000,
            # A ring carries no decision: one that a dead worker took is worth nothing after seconds.
            idle_timeout=60_000,
            unacknowledged_lock_timeout=10,
            socket_timeout=_BLOCK_MS / 1000 + 2,
            socket_connect_timeout=1,
        )

    async def startup(self) -> None:
        """Declare the group, now or when Redis comes."""
        try:
            await super().startup()
        except (RedisError, OSError) as error:
            log.warning("redis_unreachable", doing="doorbell", error=type(error).__name__)

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages, for ever: any trouble with Redis is waited out."""
        while True:
            try:
                async for message in super().listen():
                    yield message
            except (RedisError, OSError) as error:
                log.warning("redis_unreachable", doing="doorbell", error=type(error).__name__)
                await asyncio.sleep(clock.jitter(0.5))
                try:
                    # After FLUSHALL the group is gone (NOGROUP).
                    await self._declare_consumer_group()
                except (RedisError, OSError):
                    continue


def _task(broker: DoorbellBroker, ring: Callable[[], None]) -> Any:  # noqa: ANN401 - taskiq's decorated task
    async def may_be_there() -> None:
        ring()

    return broker.register_task(may_be_there, task_name=_TASK)


class Bell:
    """The side that rings. Never waits for Redis and never fails.

    Args:
        url: `redis://host:port/db`.
    """

    def __init__(self, url: str) -> None:
        self._broker = DoorbellBroker(url)
        self._task = _task(self._broker, lambda: None)
        self._ringing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open it."""
        await self._broker.startup()

    async def close(self) -> None:
        """End it."""
        for task in self._ringing:
            task.cancel()
        await self._broker.shutdown()

    async def ring(self) -> None:
        """Tell some worker that there may be work."""
        task = asyncio.create_task(self._send(), name="ring")
        self._ringing.add(task)
        task.add_done_callback(self._ringing.discard)

    async def _send(self) -> None:
        try:
            async with asyncio.timeout(2):
                await self._task.kiq()
        except Exception as error:
            # Workers ask Postgres every two seconds anyway.
            log.warning("bell_not_rung", error=type(error).__name__)


async def answer_bell(url: str, ring: Callable[[], None]) -> None:
    """Call `ring` for every message, until cancelled."""
    broker = DoorbellBroker(url)
    _task(broker, ring)
    broker.is_worker_process = True
    await broker.startup()
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # A cancellation in the middle of connecting is swallowed there.
        raise asyncio.CancelledError
    finish = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=16, run_startup=False, propagate_exceptions=False)
    listening = asyncio.create_task(receiver.listen(finish), name="doorbell")
    try:
        await asyncio.shield(listening)
    finally:
        finish.set()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await broker.shutdown()
