"""What happened is told to others once it is committed, in the transaction of those who deal with it."""

import asyncio
import threading

import pytest

from agentrpc.errors import StoreUnavailable
from agentrpc.services.outbox import Outbox
from agentrpc.services.threads import in_thread
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
    jobs.start()
    assert [await done.get() for _ in range(2)] == [1, 0]
    jobs.ring("reports")
    jobs.ring("of another version")
    assert [await done.get() for _ in range(2)] == [1, 0]
    await jobs.stop()


async def test_jobs_end_though_what_was_cancelled_fails_in_its_own_way():
    """As one that cannot give its job back, for the database is away."""
    started, calls = asyncio.Event(), []

    async def drain():
        calls.append(1)
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise StoreUnavailable from None
        return 0

    jobs = Jobs({"archives": drain})
    jobs.start()
    async with asyncio.timeout(5):
        await started.wait()
        await jobs.stop()
    assert calls == [1]


async def test_work_in_a_thread_is_waited_for_however_often_it_is_cancelled():
    release, ended = threading.Event(), threading.Event()

    def work():
        release.wait(10)
        ended.set()

    working = asyncio.create_task(in_thread(work))
    for _ in range(3):
        await asyncio.sleep(0.01)
        working.cancel()
    await asyncio.sleep(0.01)
    assert not working.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
