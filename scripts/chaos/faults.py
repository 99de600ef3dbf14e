"""The faults. Each waits for its moment, does its harm, and heals what does not heal by itself."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil
from redis.asyncio import Redis

from agentrpc.client import RpcError
from agentrpc.v1 import event_pb2
from scripts.chaos.traffic import SessionRecord
from scripts.chaos.world import Child, World

__all__ = ["FAULTS", "Moment", "Skip"]


class Skip(Exception):
    """The fault cannot be made on this machine; the message says why."""


@dataclass
class Moment:
    """What faults wait for: events as watchers see them."""

    world: World
    random: random.Random
    events: "asyncio.Queue[tuple[SessionRecord, event_pb2.Event]]"

    async def wait(self, *kinds: str, timeout: float = 20.0) -> SessionRecord | None:
        """The session of the next event of one of these kinds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    session, event = await self.events.get()
                    if event.WhichOneof("payload") in kinds and self.random.random() < 0.6:
                        return session
        return None

    async def worker_of(self, session: SessionRecord | None) -> Child:
        """The worker that holds a session, else any."""
        workers = self.world.of_kind("worker")
        if session is not None:
            rows = await self.world.execute(
                "SELECT w.pid FROM session_heads h JOIN workers w ON w.id = h.worker"
                f" WHERE h.session_id = '{session.name.rpartition('/')[2]}'"
            )
            for child in workers:
                if rows and self.world.real_worker(child).pid == rows[0][0]:
                    return child
        return self.random.choice(workers)

    async def kill_worker(self, *kinds: str, delay: float = 0.0) -> None:
        session = await self.wait(*kinds) if kinds else None
        await asyncio.sleep(self.random.random() * delay)
        child = await self.worker_of(session)
        with contextlib.suppress(psutil.Error):
            self.world.real_worker(child).kill()


Fault = Callable[[Moment], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


def fault(made: Fault) -> Fault:
    FAULTS[made.__name__.replace("_", "-")] = made
    return made


@fault
async def nothing(moment: Moment) -> None:
    """No fault: the suite itself has to be sound."""
    await asyncio.sleep(1)


@fault
async def kill_worker_idle(moment: Moment) -> None:
    await moment.kill_worker("run_ended", delay=1)


@fault
async def kill_worker_in_text(moment: Moment) -> None:
    await moment.kill_worker("message_started", "run_started", delay=0.5)


@fault
async def kill_worker_in_tool(moment: Moment) -> None:
    await moment.kill_worker("tool_call_started", delay=0.3)


@fault
async def kill_worker_at_approval(moment: Moment) -> None:
    await moment.kill_worker("approval_requested", delay=1.5)


@fault
async def kill_worker_at_commit(moment: Moment) -> None:
    """Between the commit of what a worker writes and its knowing, and so its telling watchers or letting a tool run."""
    child = moment.random.choice(moment.world.of_kind("worker"))
    moment.world.wire.on_commit(moment.world.real_worker(child).kill, skip=moment.random.randint(0, 30))
    await moment.world.wire.committed(timeout=15)


@fault
async def kill_worker_parent(moment: Moment) -> None:
    session = await moment.wait("tool_call_started", "message_started")
    child = await moment.worker_of(session)
    os.kill(child.pid, signal.SIGKILL)


@fault
async def freeze_worker(moment: Moment) -> None:
    """Stopped for longer than its lease, then woken."""
    session = await moment.wait("tool_call_started", "message_started")
    process = moment.world.real_worker(await moment.worker_of(session))
    with contextlib.suppress(psutil.Error):
        process.suspend()
        try:
            await asyncio.sleep(moment.random.choice([2, 11]))
        finally:
            process.resume()


@fault
async def kill_edge(moment: Moment) -> None:
    await moment.wait("assistant_message", "tool_call_started")
    os.kill(moment.random.choice(moment.world.of_kind("serve")).pid, signal.SIGKILL)


@fault
async def stop_edge(moment: Moment) -> None:
    await moment.wait("assistant_message", "tool_call_started")
    os.kill(moment.random.choice(moment.world.of_kind("serve")).pid, signal.SIGTERM)


@fault
async def drain_worker(moment: Moment) -> None:
    session = await moment.wait("tool_call_started", "message_started")
    os.kill((await moment.worker_of(session)).pid, signal.SIGTERM)


@fault
async def kill_scheduler(moment: Moment) -> None:
    await moment.wait("approval_requested", "run_started")
    for child in moment.world.of_kind("scheduler"):
        os.kill(child.pid, signal.SIGKILL)


async def _without_redis(moment: Moment, seconds: float) -> None:
    await moment.wait("run_started")
    await moment.world.stop_redis()
    await asyncio.sleep(seconds)
    await moment.world.start_redis()


@fault
async def redis_1s(moment: Moment) -> None:
    await _without_redis(moment, 1)


@fault
async def redis_30s(moment: Moment) -> None:
    await _without_redis(moment, 30)


@fault
async def redis_flushall(moment: Moment) -> None:
    await moment.wait("run_started")
    async with Redis(port=moment.world.redis_port) as redis:
        for _ in range(5):
            await redis.flushall()
            await asyncio.sleep(0.3)


@fault
async def doorbells(moment: Moment) -> None:
    """Lost ones and doubled ones."""
    async with Redis(port=moment.world.redis_port) as redis:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            async for key in redis.scan_iter("agentrpc:doorbell*", _type="STREAM"):
                if moment.random.random() < 0.5:
                    await redis.xtrim(key, maxlen=0)
                else:
                    for _, fields in await redis.xrange(key, count=5):
                        await redis.xadd(key, fields)
            await asyncio.sleep(0.02)


@fault
async def postgres_restart(moment: Moment) -> None:
    await moment.wait("run_started", "tool_call_started")
    await asyncio.to_thread(moment.world.postgres.stop)
    await asyncio.sleep(moment.random.random() * 2)
    await asyncio.to_thread(moment.world.postgres.start)


@fault
async def postgres_terminate(moment: Moment) -> None:
    """`pg_terminate_backend` at random moments, COMMIT among them."""
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        await moment.world.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = 'agentrpc' AND (state = 'active' OR random() < 0.05)"
        )
        await asyncio.sleep(moment.random.random() * 0.1)


@fault
async def answers_lost(moment: Moment) -> None:
    """The server has committed, and its answer is lost."""
    await moment.wait("run_started")
    for _ in range(8):
        with moment.world.wire.swallowing():
            await asyncio.sleep(0.1)
        await asyncio.sleep(moment.random.random() * 0.6)


@fault
async def wire_cut(moment: Moment) -> None:
    """Nobody of ours reaches the server for some seconds."""
    await moment.wait("run_started", "tool_call_started")
    moment.world.wire.refuses = True
    moment.world.wire.cut()
    await asyncio.sleep(moment.random.choice([1, 4]))
    moment.world.wire.refuses = False


@fault
async def kill_cli(moment: Moment) -> None:
    await moment.wait("message_started", "tool_call_started", "assistant_message")
    agents = moment.world.agents()
    if agents:
        with contextlib.suppress(psutil.Error):
            moment.random.choice(agents).kill()


@fault
async def hang_cli(moment: Moment) -> None:
    """A CLI that is stopped for some seconds."""
    await moment.wait("message_started", "tool_call_started", "assistant_message")
    stopped = [process for process in moment.world.agents() if moment.random.random() < 0.5]
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    await asyncio.sleep(4)
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.resume()


@fault
async def slow_clients(moment: Moment) -> None:
    """Readers that read nothing, and readers that vanish."""
    session = await moment.wait("run_started")
    if session is None:
        return

    async def nothing_read(number: int) -> None:
        async with moment.world.client(number) as client:
            stream = client.watch(session.name, include_deltas=True)
            with contextlib.suppress(StopAsyncIteration, RpcError):
                await anext(stream)
                await asyncio.sleep(6)

    async def vanishing(number: int) -> None:
        for _ in range(10):
            async with moment.world.client(number) as client:
                with contextlib.suppress(TimeoutError, RpcError):
                    async with asyncio.timeout(0.3):
                        async for _ in client.watch(session.name, include_deltas=True):
                            pass

    await asyncio.gather(*(nothing_read(n) for n in range(5)), *(vanishing(n) for n in range(5)))


@fault
async def racing_workers(moment: Moment) -> None:
    """Every bell rings at both workers, all the time."""
    deadline = time.monotonic() + 4
    async with Redis(port=moment.world.redis_port) as redis:
        while time.monotonic() < deadline:
            rows = await moment.world.execute("SELECT id FROM workers WHERE dead_time IS NULL")
            sessions = await moment.world.execute("SELECT session_id FROM session_heads WHERE queued > 0 LIMIT 20")
            for row in rows:
                for session in sessions:
                    await redis.publish(f"agentrpc:worker:{row[0]}", session[0].bytes)
            await asyncio.sleep(0.05)
