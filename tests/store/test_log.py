"""Promises 1 and 3 in the store: no gap, no duplicate, and nothing from a stale epoch."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from agentrpc import clock
from agentrpc.errors import LeaseLostError
from agentrpc.store.leases import (
    Origin,
    claim_next,
    declare_dead,
    give_up,
    owned_sessions,
    register_worker,
    release,
)
from agentrpc.store.log import (
    Batch,
    LogEvent,
    StartedCall,
    append,
    append_control,
    read_events,
    read_transcript,
    with_sequence,
)
from agentrpc.store.tables import Run, Session, SessionHead, User
from agentrpc.v1 import event_pb2


def notice(text):
    return LogEvent.of(event_pb2.Event(notice=event_pb2.Notice(text=text)), None)


@pytest.fixture
async def session_id(database):
    user, session = clock.uuid7(), clock.uuid7()
    async with database.transaction() as tx:
        tx.add(User(id=user, username=str(user), password_hash="", role="USER", create_time=clock.utcnow()))
        await tx.flush()
        tx.add(
            Session(
                id=session,
                owner=user,
                display_name="",
                description="",
                labels={},
                options=b"",
                claude_session_id=uuid4(),
                usage=b"",
                create_time=clock.utcnow(),
                update_time=clock.utcnow(),
            )
        )
        await tx.flush()
        tx.add(SessionHead(session_id=session, tenant=user, epoch=1))
    return session


async def texts(database, session_id):
    rows = await read_events(database, session_id, after=0)
    events = [event_pb2.Event.FromString(row.data) for row in rows]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.notice.text for event in events]


async def test_appends_are_numbered_without_a_gap(database, session_id):
    assert await append(database, session_id, 1, 1, Batch(events=[notice("a"), notice("b")])) == 0
    assert await append(database, session_id, 1, 2, Batch(events=[notice("c")])) == 2
    assert await texts(database, session_id) == ["a", "b", "c"]


async def test_the_same_batch_again_changes_nothing(database, session_id):
    batch = Batch(events=[notice("a")], transcript=[("", b"{}")], time=clock.utcnow())
    for _ in range(3):
        assert await append(database, session_id, 1, 1, batch) == 0
    async with database.transaction() as tx:
        await append_control(tx, session_id, [notice("control")])
    assert await append(database, session_id, 1, 1, batch) == 0
    assert await texts(database, session_id) == ["a", "control"]
    assert await read_transcript(database, session_id) == [("", b"{}")]


async def test_each_event_keeps_its_run(database, session_id):
    first, second = clock.uuid7(), clock.uuid7()
    batches = ([], [first], [first, first], [first, second], [None, first], [None])
    for number, runs in enumerate(batches, 1):
        before = len(await read_events(database, session_id, after=0))
        events = [replace(notice(f"{number}.{place}"), run_id=run) for place, run in enumerate(runs)]
        assert await append(database, session_id, 1, number, Batch(events=events)) == before
        found = await read_events(database, session_id, after=before)
        assert [(event.run_id, event.kind) for event in found] == [(event.run_id, event.kind) for event in events]


async def test_a_connection_comes_back_without_its_transaction(database):
    async with database.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute("CREATE TABLE left_open ()")
        process = connection.get_server_pid()
    async with database.connection() as connection:
        assert connection.get_server_pid() == process
        assert not connection.is_in_transaction()
        assert await connection.fetchval("SELECT to_regclass('left_open')") is None


async def test_a_stale_epoch_writes_nothing(database, session_id):
    for epoch, number in [(0, 1), (2, 1), (1, 2)]:
        with pytest.raises(LeaseLostError):
            await append(database, session_id, epoch, number, Batch(events=[notice("x")]))
    assert await texts(database, session_id) == []


async def test_a_call_that_begins_and_ends_in_one_batch_has_its_end_in_the_ledger(database, session_id):
    # An interrupt answers a call whose start still waits to be committed.
    started = [StartedCall("t1", "Bash", clock.uuid7()), StartedCall("t2", "Bash", clock.uuid7())]
    await append(database, session_id, 1, 1, Batch(started=started, finished=[("t1", 4)], time=clock.utcnow()))
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT outcome, end_time IS NULL FROM tool_calls ORDER BY tool_use_id")
    assert [tuple(row) for row in rows] == [(4, False), (None, True)]


async def test_a_call_is_in_the_ledger_once(database, session_id):
    run = clock.uuid7()
    await append(database, session_id, 1, 1, Batch(started=[StartedCall("t1", "Bash", run)], time=clock.utcnow()))
    with pytest.raises(Exception, match="tool_calls"):
        await append(database, session_id, 1, 2, Batch(started=[StartedCall("t1", "Bash", run)], time=clock.utcnow()))
    await append(database, session_id, 1, 2, Batch(finished=[("t1", 1)], time=clock.utcnow()))
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT outcome FROM tool_calls") == 1


async def test_writers_at_once_leave_no_gap(database, session_id):
    async def control(number):
        async with database.transaction() as tx:
            await append_control(tx, session_id, [notice(f"c{number}")])

    async def worker():
        for number in range(1, 21):
            await append(database, session_id, 1, number, Batch(events=[notice(f"w{number}")]))

    await asyncio.gather(worker(), *(control(number) for number in range(20)))
    found = await texts(database, session_id)
    assert sorted(found) == sorted([f"c{n}" for n in range(20)] + [f"w{n}" for n in range(1, 21)])
    assert [text for text in found if text[0] == "w"] == [f"w{n}" for n in range(1, 21)]


@pytest.mark.parametrize("sequence", [1, 127, 128, 300, 2**31, 2**40])
def test_the_number_goes_behind_the_bytes(sequence):
    data = event_pb2.Event(notice=event_pb2.Notice(text="x")).SerializeToString()
    event = event_pb2.Event.FromString(with_sequence(data, sequence))
    assert (event.sequence, event.notice.text) == (sequence, "x")


async def queue(database, session_id, count=1):
    async with database.transaction() as tx:
        head = await tx.get_one(SessionHead, session_id)
        for _ in range(count):
            now = clock.utcnow()
            tx.add(
                Run(
                    id=clock.uuid7(),
                    session_id=session_id,
                    creator=head.tenant,
                    state="QUEUED",
                    prompt="x",
                    conflict_policy="ENQUEUE",
                    labels={},
                    attempt=0,
                    create_time=now,
                )
            )
            head.queued += 1
            head.queued_since = head.queued_since or now


async def claim(database, worker, **options):
    return await claim_next(database, worker, may_take_new=True, begin=lambda *_: [notice("begin")], **options)


async def test_of_many_workers_one_gets_the_run(database, session_id):
    await queue(database, session_id, 2)
    workers = [clock.uuid7() for _ in range(5)]
    for worker in workers:
        await register_worker(database, worker, host="h", pid=1, version="0", ttl=60)
    claims = [c for c in await asyncio.gather(*(claim(database, w) for w in workers)) if c]
    assert len(claims) == 1
    assert claims[0].epoch == 2
    assert not await release(database, session_id, 2)


async def test_a_session_is_given_back_under_its_epoch_alone(database, session_id):
    assert not await release(database, session_id, 2)
    assert await release(database, session_id, 1)
    await queue(database, session_id)
    assert not await release(database, session_id, 1)


async def test_a_run_that_its_living_worker_gives_up_counts_as_lost(database, session_id):
    await queue(database, session_id)
    worker = clock.uuid7()
    await register_worker(database, worker, host="h", pid=1, version="0", ttl=60)
    mine = await claim(database, worker)
    head = (await owned_sessions(database, worker))[session_id]
    assert await give_up(database, worker, head)
    assert not await give_up(database, worker, head)
    again = await claim(database, worker)
    assert (again.run.id, again.origin, again.losses, again.run.attempt) == (mine.run.id, Origin.LOST, 1, 2)
    assert again.epoch == mine.epoch + 1
    assert not await give_up(database, worker, head)


async def test_a_dead_workers_run_is_taken_over_with_a_new_epoch(database, session_id):
    await queue(database, session_id)
    first, second = clock.uuid7(), clock.uuid7()
    for worker in (first, second):
        await register_worker(database, worker, host="h", pid=1, version="0", ttl=60)
    mine = await claim(database, first)
    assert await claim(database, second) is None
    await declare_dead(database, [first])
    theirs = await claim(database, second)
    assert (theirs.origin, theirs.losses) == (Origin.LOST, 1)
    assert theirs.run.id == mine.run.id
    assert theirs.run.attempt == 2
    with pytest.raises(LeaseLostError, match=f"worker {second} holds it, at epoch {theirs.epoch}"):
        await append(database, session_id, mine.epoch, 1, Batch(events=[notice("late")]))
    await append(database, session_id, theirs.epoch, 1, Batch(events=[notice("mine")]))
