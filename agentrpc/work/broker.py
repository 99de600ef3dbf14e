"""The doorbell: a taskiq broker on a Redis stream, hardened.

What stock taskiq-redis 1.2.4 does not do, and this does: a lost connection or a flushed Redis does not end `listen()`
(and with it the worker and every run in it); the group is made again; socket time-outs; one message at a time, so that
no worker hoards what others could do; the stream has a bounded length, since XACK alone deletes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog
from redis.exceptions import RedisError
from taskiq import AckableMessage
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from agentrpc import clock
from agentrpc.ending import end_tasks

__all__ = ["Bell", "DoorbellBroker", "answer_bell"]

log = structlog.get_logger()

_RUN = "agentrpc.work:may_be_there"
_JOB = "agentrpc.work:job_may_be_there"
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
        except Exception as error:
            _note(error)

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Messages, for ever: any trouble is waited out. A transport that closes gives RuntimeError as well."""
        while True:
            try:
                async for message in super().listen():
                    yield message
            except Exception as error:
                _note(error)
                await asyncio.sleep(clock.jitter(0.5))
                with suppress(Exception):
                    # After FLUSHALL the group is gone (NOGROUP).
                    await self._declare_consumer_group()


def _note(error: Exception) -> None:
    if isinstance(error, (RedisError, OSError)):
        log.warning("redis_unreachable", doing="doorbell", error=type(error).__name__)
    else:
        log.error("doorbell_failed", exc_info=error)


def _tasks(broker: DoorbellBroker, ring: Callable[[], None], ring_job: Callable[[str], None]) -> tuple[Any, Any]:
    async def may_be_there() -> None:
        ring()

    async def job_may_be_there(kind: str) -> None:
        ring_job(kind)

    return (
        broker.register_task(may_be_there, task_name=_RUN),
        broker.register_task(job_may_be_there, task_name=_JOB),
    )


class Bell:
    """The side that rings. Never waits for Redis and never fails.

    Args:
        url: `redis://host:port/db`.
    """

    def __init__(self, url: str) -> None:
        self._broker = DoorbellBroker(url)
        self._run, self._job = _tasks(self._broker, lambda: None, lambda _: None)
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
        self._begin(self._run.kiq)

    async def ring_job(self, kind: str) -> None:
        """Tell some worker that there may be a job of this kind."""
        self._begin(lambda: self._job.kiq(kind))

    def _begin(self, kick: Callable[[], Awaitable[Any]]) -> None:
        task = asyncio.create_task(self._send(kick), name="ring")
        self._ringing.add(task)
        task.add_done_callback(self._ringing.discard)

    async def _send(self, kick: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with asyncio.timeout(2):
                await kick()
        except Exception as error:
            # Workers ask Postgres every few seconds anyway.
            log.warning("bell_not_rung", error=type(error).__name__)


async def answer_bell(url: str, ring: Callable[[], None], ring_job: Callable[[str], None]) -> None:
    """Call `ring`, or `ring_job` with the kind of the job, for every message, until cancelled."""
    broker = DoorbellBroker(url)
    _tasks(broker, ring, ring_job)
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
        await end_tasks([listening])
        await broker.shutdown()
