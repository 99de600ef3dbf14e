"""What happened is told to others once it is committed, in the transaction of those who deal with it."""

import asyncio

import pytest

from agentrpc.services.outbox import Outbox
from agentrpc.v1 import session_pb2
from agentrpc.work.jobs import Jobs


@pytest.fixture
async def run(client):
    session = await client.create_session(session_pb2.Session())
    run = await client.create_run(session.name, "work")
    await client.interrupt(run.name)
    return run


async def test_each_thing_is_told_once_by_any_number(edge, run):
    told = []

    async def consumer(_, message):
        told.append((message.topic, str(message.run_id)))
        await asyncio.sleep(0.01)

    await asyncio.gather(*[Outbox(edge.database, [consumer]).drain() for _ in range(5)])
    ended = ("run_ended", run.name.rpartition("/")[2])
    assert told.count(ended) == 1
    assert told.count(("session_state_changed", "None")) == 2
    assert await Outbox(edge.database, [consumer]).drain() == 0


async def test_what_fails_is_tried_again_and_holds_nobody_up(edge, run):
    told = []

    async def consumer(_, message):
        if message.topic == "run_ended" and not told.count("failed"):
            told.append("failed")
            raise RuntimeError
        told.append(message.topic)

    outbox = Outbox(edge.database, [consumer])
    async with asyncio.timeout(30):
        while "run_ended" not in told:
            await outbox.drain()
            await asyncio.sleep(0.1)
    assert told == ["session_state_changed", "failed", "session_state_changed", "run_ended"]


async def test_jobs_are_done_when_rung_and_go_on_after_a_failure():
    done = asyncio.Queue()
    left = [1, 0, 1, 0]

    async def drain():
        count = left.pop(0) if left else 0
        await done.put(count)
        if len(left) == 2:
            raise RuntimeError
        return count

    jobs = Jobs({"reports": drain})
    running = asyncio.create_task(jobs.run())
    assert [await done.get() for _ in range(2)] == [1, 0]
    jobs.ring("reports")
    jobs.ring("of another version")
    assert [await done.get() for _ in range(2)] == [1, 0]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
