"""Faults of PostgreSQL and Redis, and of the ways to them."""

import asyncio
import contextlib
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from agentrpc.ending import end_tasks
from scripts.chaos.moment import Moment, fault

__all__: list[str] = []

_STREAM = "agentrpc:doorbell"
# Many, each waiting for long: a bell goes to whoever has waited longest.
_THIEVES = 8


# ---- Redis ----


async def _without_redis(moment: Moment, seconds: float) -> tuple[int, str]:
    await moment.wait("run_started")
    await moment.world.stop_redis()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await moment.under_way()
        await asyncio.sleep(0.2)
    await moment.world.start_redis()
    return 1, f"outages of {seconds:g} s"


@fault(harmless=True)
async def redis_1s(moment: Moment) -> tuple[int, str]:
    return await _without_redis(moment, 1)


@fault(harmless=True)
async def redis_30s(moment: Moment) -> tuple[int, str]:
    return await _without_redis(moment, 5 if moment.short else 30)


@fault(harmless=True)
async def redis_flushall(moment: Moment) -> tuple[int, str]:
    await moment.wait("run_started")
    async with Redis(port=moment.world.redis_port) as redis:
        for _ in range(5):
            await redis.flushall()
            await asyncio.sleep(0.3)
    return 5, "flushes"


@fault(harmless=True)
async def doorbells(moment: Moment) -> tuple[int, str]:
    """Thieves among the workers take bells: they drop them, or ring twice."""
    dropped = doubled = 0

    async def steal(number: int) -> None:
        nonlocal dropped, doubled
        async with Redis(port=moment.world.redis_port) as redis:
            while True:
                with contextlib.suppress(RedisError):
                    taken = await redis.xreadgroup("workers", f"thief-{number}", {_STREAM: ">"}, count=1, block=2000)
                    for key, fields in (entry for _, entries in taken or [] for entry in entries):
                        await redis.xack(_STREAM, "workers", key)
                        if moment.random.random() < 0.5:
                            dropped += 1
                            continue
                        doubled += 1
                        for _ in range(2):
                            await redis.xadd(_STREAM, fields)

    thieves = [asyncio.create_task(steal(number)) for number in range(_THIEVES)]
    try:
        # A bell rings for sessions that nobody holds: new ones.
        await moment.traffic.run(3 if moment.short else 6)
    finally:
        await end_tasks(thieves)
    return dropped + doubled, f"bells: {dropped} dropped, {doubled} doubled"


@fault(harmless=True)
async def racing_workers(moment: Moment) -> tuple[int, str]:
    """Whatever waits rings at both workers, all the time."""
    signals = 0
    deadline = time.monotonic() + (2 if moment.short else 4)
    async with Redis(port=moment.world.redis_port) as redis:
        while time.monotonic() < deadline:
            await moment.under_way()
            workers = await moment.fetch("SELECT id FROM workers WHERE dead_time IS NULL")
            sessions = await moment.fetch(
                "SELECT session_id FROM session_heads WHERE queued > 0 OR active_run IS NOT NULL"
            )
            for _ in range(5):
                for session in sessions:
                    for worker in workers:
                        signals += await redis.publish(b"agentrpc:worker:" + worker[0].bytes, session[0].bytes)
                await asyncio.sleep(0.01)
    return signals, "signals heard"


# ---- PostgreSQL ----


@fault()
async def postgres_restart(moment: Moment) -> tuple[int, str]:
    await moment.wait("run_started", "tool_call_started")
    await asyncio.to_thread(moment.world.postgres.stop)
    await moment.pause(2)
    await asyncio.to_thread(moment.world.postgres.start)
    return 1, "restarts"


@fault()
async def postgres_terminate(moment: Moment) -> tuple[int, str]:
    """`pg_terminate_backend` at any moment, and in the middle of COMMIT, which is made to last."""
    killed: list[str] = []
    await moment.fetch("ALTER SYSTEM SET commit_siblings = 0")
    await moment.fetch("ALTER SYSTEM SET commit_delay = 10000")
    await moment.fetch("SELECT pg_reload_conf()")
    try:
        deadline = time.monotonic() + (2 if moment.short else 4)
        while time.monotonic() < deadline:
            await moment.under_way()
            rows = await moment.fetch(
                "SELECT pg_terminate_backend(pid), query FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = 'agentrpc' AND backend_type = 'client backend'"
                " AND (state = 'active' AND (query LIKE 'COMMIT%' OR random() < 0.3) OR random() < 0.02)"
            )
            killed += [row[1] for row in rows]
            await moment.pause(0.05)
    finally:
        await moment.fetch("ALTER SYSTEM RESET ALL")
        await moment.fetch("SELECT pg_reload_conf()")
    commits = sum(query.startswith("COMMIT") for query in killed)
    return commits, f"connections ended in COMMIT, {len(killed) - commits} elsewhere"


@fault()
async def answers_lost(moment: Moment) -> tuple[int, str]:
    """The server has committed events, and the news of it is lost."""
    wire = moment.world.wire
    before = wire.swallowed
    await moment.wait("run_started")
    for _ in range(4 if moment.short else 8):
        await moment.under_way()
        with wire.swallowing():
            await asyncio.sleep(0.1)
        await moment.pause(0.6)
    return wire.swallowed - before, "answers lost"


@fault()
async def wire_cut(moment: Moment) -> tuple[int, str]:
    """Nobody of ours reaches the server for some seconds."""
    session = await moment.wait("run_started", "tool_call_started")
    seconds = moment.random.choice([1, 4])
    moment.world.wire.refuses = True
    moment.world.wire.cut()
    await asyncio.sleep(seconds)
    moment.world.wire.refuses = False
    return int(session is not None), f"cuts of {seconds} s"
