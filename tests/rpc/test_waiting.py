"""What a run waits for, one by one and in lists; and the deadlines of runs that nobody drives."""

import asyncio
from datetime import UTC, timedelta

import pytest

from agentrpc import clock
from agentrpc.domain.states import RunState
from agentrpc.names import parse_run
from agentrpc.services.deadlines import Deadlines
from agentrpc.services.signals import Doorbell
from agentrpc.store import progress
from agentrpc.store.leases import lock_head
from agentrpc.store.tables import Run as RunRow
from agentrpc.store.tables import Session
from agentrpc.v1 import approval_pb2, approval_service_pb2, run_pb2, run_service_pb2, session_pb2

Run, On = run_pb2.Run, run_pb2.WaitingOn
ALLOW = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)


@pytest.fixture
def waits(client):
    """What a run waits for, which a list says as well: `await waits(run)`; (reason, subject, since)."""

    async def waits(run):
        found = await client.get_run(run.name)
        request = run_service_pb2.ListRunsRequest(parent=run.name.partition("/runs/")[0])
        listed = (await client.call(client.runs.ListRuns, request)).runs
        assert found in listed
        on = found.waiting_on
        since = on.since.ToDatetime(UTC) if on.HasField("since") else None
        return On.Reason.Name(on.reason).removeprefix("REASON_"), on.subject, since

    return waits


async def pause(edge, run):
    session_id, _ = parse_run(run.name)
    async with edge.database.transaction() as tx:
        head = await lock_head(tx, session_id)
        head.paused = True
        (await tx.get_one(Session, session_id)).pause_time = now = clock.utcnow()
    return now


async def row_of(edge, run):
    async with edge.database.transaction() as tx:
        return await tx.get_one(RunRow, parse_run(run.name)[1])


def created(run):
    return run.create_time.ToDatetime(UTC)


# ---- waiting_on ----


async def test_in_the_queue(client, session, begun, waits, hand):
    run, claim = begun
    second, third = await client.create_run(session, "y"), await client.create_run(session, "z")
    assert second.waiting_on.reason == On.REASON_QUEUE
    assert await waits(second) == ("QUEUE", run.name, created(second))
    await hand.end(claim)
    # Held by its worker, which takes it at once: what it waits for now is that worker's capacity.
    reason, subject, since = await waits(second)
    assert (reason, subject) == ("CAPACITY", "")
    assert since >= (await client.get_run(run.name)).end_time.ToDatetime(UTC)
    assert await waits(third) == ("QUEUE", "", created(third))
    urgent = await client.call(
        client.runs.CreateRun,
        run_service_pb2.CreateRunRequest(
            parent=session, run=Run(prompt="x", conflict_policy=Run.CONFLICT_POLICY_INTERRUPT)
        ),
    )
    assert urgent.waiting_on.reason == On.REASON_CAPACITY
    assert (await waits(urgent))[0] == "CAPACITY"
    assert await waits(second) == ("QUEUE", "", created(second))


async def test_for_capacity(client, session, waits, new_hand, hand):
    run = await client.create_run(session, "x")
    assert run.waiting_on.reason == On.REASON_CAPACITY
    reason, subject, since = await waits(run)
    assert (reason, subject) == ("CAPACITY", "")
    assert created(run) <= since <= clock.utcnow()
    assert not run.worker
    await hand.hand_over(await hand.claim())
    found = await client.get_run(run.name)
    reason, _, since = await waits(run)
    assert (reason, since) == ("CAPACITY", found.last_event_time.ToDatetime(UTC))
    other = await new_hand()
    await other.claim()
    await other.die()
    assert (await waits(run))[0] == "CAPACITY"
    assert not (await client.get_run(run.name)).worker


async def test_for_the_lease_of_a_silent_worker(client, session, begun, waits, hand):
    run, claim = begun
    await hand.fall_silent()
    reason, subject, since = await waits(run)
    assert (reason, subject) == ("LEASE", "host:7")
    assert since <= clock.utcnow()
    assert (await client.get_run(run.name)).worker == "host:7"
    following = await client.create_run(session, "y")
    assert (await waits(following))[0] == "QUEUE"
    await hand.end(claim)
    assert (await waits(following))[:2] == ("LEASE", "host:7")
    await hand.die()
    assert (await waits(following))[0] == "CAPACITY"


async def test_for_the_end_of_a_pause(edge, client, session, begun, waits, hand):
    run, claim = begun
    paused = await pause(edge, run)
    await hand.call(claim, "t1")
    assert (await waits(run))[0] == "TOOL"
    await hand.hand_over(claim)
    assert await waits(run) == ("PAUSE", "", paused)
    following = await client.create_run(session, "y")
    assert (await waits(following))[0] == "QUEUE"
    await client.cancel(run.name)
    assert await waits(following) == ("PAUSE", "", created(following))


async def test_for_an_answer(client, begun, waits, ask, hand):
    run, claim = begun
    first, second = await ask(run, "one"), await ask(run, "two")
    request = approval_service_pb2.GetApprovalRequest(name=first)
    asked = (await client.call(client.approvals.GetApproval, request)).create_time.ToDatetime(UTC)
    assert await waits(run) == ("APPROVAL", first, asked)
    assert list((await client.get_run(run.name)).pending_approvals) == [first, second]
    await client.resolve(first, ALLOW)
    await hand.park(claim)
    assert (await waits(run))[:2] == ("APPROVAL", second)
    assert not (await client.get_run(run.name)).worker
    await client.resolve(second, ALLOW)
    assert (await waits(run))[0] == "CAPACITY"


async def test_for_the_model_and_for_tools(client, begun, waits, hand):
    run, claim = begun
    found = await client.get_run(run.name)
    assert found.worker == "host:7"
    assert await waits(run) == ("MODEL", "", found.last_event_time.ToDatetime(UTC))
    await hand.call(claim, "t1", tool="Agent")
    await hand.call(claim, "t2")
    reason, subject, since = await waits(run)
    assert (reason, subject) == ("TOOL", "t2")
    assert since > found.last_event_time.ToDatetime(UTC)
    assert not (await client.get_run(run.name)).in_doubt_calls


async def test_for_a_decision(edge, client, begun, waits, hand):
    run, claim = begun
    await hand.doubt(claim, "t1")
    assert await waits(run) == ("DECISION", "", (await row_of(edge, run)).doubt_time)
    await client.resolve_run(run.name, run_service_pb2.ResolveRunRequest.DECISION_ABANDON)
    ended = await client.get_run(run.name)
    assert not ended.HasField("waiting_on")
    assert ended.last_event_time == ended.end_time


async def test_a_page_costs_as_many_queries_as_one_run(client, new_hand, ask, monkeypatch, edge):
    asked = []

    async def counting(tx, rows, original=progress.progress_of_runs):
        execute = type(tx).execute

        async def counted(self, *arguments, **options):
            asked[-1] += 1
            return await execute(self, *arguments, **options)

        asked.append(0)
        with monkeypatch.context() as patch:
            patch.setattr(type(tx), "execute", counted)
            return await original(tx, rows)

    monkeypatch.setattr("agentrpc.services.runs.progress_of_runs", counting)
    hand = await new_hand()
    for _ in range(10):
        name = (await client.create_session(session_pb2.Session())).name
        run = await client.create_run(name, "x")
        claim = await hand.claim()
        await hand.call(claim, "t1")
        await ask(run, "may I")
        await client.create_run(name, "y")
    for _ in range(10):
        idle = (await client.create_session(session_pb2.Session())).name
        for _ in range(2):
            await client.create_run(idle, "z")
    asked.clear()
    listed = await client.call(client.runs.ListRuns, run_service_pb2.ListRunsRequest(parent="sessions/-"))
    assert {On.Reason.Name(run.waiting_on.reason)[7:] for run in listed.runs} == {"APPROVAL", "QUEUE", "CAPACITY"}
    assert len(listed.runs) == 40
    assert len(asked) == 1
    assert asked[0] <= 4


# ---- Deadlines ----


@pytest.fixture
def deadlines(edge):
    """Of an impatient scheduler, with a bell that counts."""
    rung = []

    async def ring():
        rung.append(1)

    def make(decision_timeout=86400.0):
        settings = edge.settings.model_copy(update={"decision_timeout": decision_timeout})
        made = Deadlines(edge.database, edge.bus, Doorbell(edge.bus, ring), settings)
        made.rung = rung
        return made

    return make


async def test_a_run_that_was_to_be_cancelled_by_a_worker_that_is_dead_ends(client, begun, hand, deadlines):
    run, _ = begun
    await client.cancel(run.name)
    assert await deadlines().enforce() == 0
    await hand.die()
    impatient = deadlines()
    assert await impatient.enforce() == 1
    found = await client.get_run(run.name)
    assert found.state == Run.STATE_CANCELLED
    assert found.stop_receipt.confirmed
    assert impatient.rung
    assert await deadlines().enforce() == 0


async def create_with_timeout(client, session, seconds=1):
    run = Run(prompt="x")
    run.timeout.FromSeconds(seconds)
    return await client.call(client.runs.CreateRun, run_service_pb2.CreateRunRequest(parent=session, run=run))


async def begin_long_ago(edge, claim):
    async with edge.database.transaction() as tx:
        (await tx.get_one(RunRow, claim.run.id)).start_time -= timedelta(hours=1)


async def test_a_run_that_nobody_decides_about_fails(client, session, begun, hand, deadlines, events_of):
    run, claim = begun
    await hand.doubt(claim, "t1")
    following = await client.create_run(session, "y")
    assert await deadlines().enforce() == 0
    impatient = deadlines(0.001)
    await asyncio.gather(*(impatient.enforce() for _ in range(3)))
    failed = await client.get_run(run.name)
    assert (failed.state, failed.error.reason) == (Run.STATE_FAILED, run_pb2.RunError.REASON_UNDECIDED)
    assert len(await events_of(run, "run_ended")) == 1
    assert impatient.rung
    assert (await hand.claim()).run.id == parse_run(following.name)[1]


@pytest.mark.parametrize("how", ["parked", "in doubt", "paused", "dead worker"])
async def test_a_run_past_its_time_out_that_nobody_drives_expires(
    edge, client, session, hand, ask, deadlines, events_of, how
):
    run = await create_with_timeout(client, session)
    claim = await hand.claim()
    if how == "parked":
        await ask(run, "may I")
        await hand.park(claim)
    elif how == "in doubt":
        await hand.doubt(claim, "t1")
    elif how == "paused":
        await pause(edge, run)
        await hand.hand_over(claim)
    else:
        await hand.die()
    await begin_long_ago(edge, claim)
    await deadlines().enforce()
    ended = await client.get_run(run.name)
    assert ended.state == Run.STATE_EXPIRED
    assert not ended.pending_approvals
    assert (await events_of(run))[-1].run_ended.state == Run.STATE_EXPIRED
    assert (await client.retry(run.name)).retry_of == run.name
    assert await deadlines().enforce() == 0


async def test_what_is_in_time_queued_or_driven_is_left_alone(edge, client, session, hand, deadlines):
    driven = await create_with_timeout(client, session)
    queued = await create_with_timeout(client, session)
    claim = await hand.claim()
    await begin_long_ago(edge, claim)
    assert await deadlines().enforce() == 0
    assert (await hand.wanted(claim)).stop_run is None
    await hand.end(claim, RunState.EXPIRED)
    async with edge.database.transaction() as tx:
        (await tx.get_one(RunRow, parse_run(queued.name)[1])).create_time -= timedelta(hours=1)
    assert await deadlines().enforce() == 0
    patient = await create_with_timeout(client, session, 3600)
    await client.cancel(queued.name)
    await hand.hand_over(await hand.claim())
    assert await deadlines().enforce() == 0
    found = [(await client.get_run(run.name)).state for run in (driven, queued, patient)]
    assert found == [Run.STATE_EXPIRED, Run.STATE_CANCELLED, Run.STATE_RUNNING]
