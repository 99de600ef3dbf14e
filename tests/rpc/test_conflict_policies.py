"""A busy session: what becomes of the run under way and of those that wait, also when many come at once."""

import asyncio

import pytest

from agentrpc.client import RpcError
from agentrpc.domain.states import RunState
from agentrpc.names import parse_run
from agentrpc.store.tables import Run as RunRow
from agentrpc.v1 import approval_pb2, run_pb2, run_service_pb2, session_pb2, session_service_pb2

Run = run_pb2.Run
INTERRUPT, ROLLBACK = Run.CONFLICT_POLICY_INTERRUPT, Run.CONFLICT_POLICY_ROLLBACK
REJECT = Run.CONFLICT_POLICY_REJECT


@pytest.fixture
async def session(client):
    """A session of ann's."""
    return (await client.create_session(session_pb2.Session())).name


@pytest.fixture
def create(client, session):
    """Creates a run: `await create(policy)`."""

    async def create(policy=Run.CONFLICT_POLICY_UNSPECIFIED, **fields):
        run = Run(prompt="x", conflict_policy=policy)
        return await client.call(
            client.runs.CreateRun, run_service_pb2.CreateRunRequest(parent=session, run=run, **fields)
        )

    return create


@pytest.fixture
def rewind_of(edge):
    """To the beginning of which run a run goes back: `await rewind_of(run)`; its id."""

    async def rewind_of(run):
        async with edge.database.transaction() as tx:
            return (await tx.get_one(RunRow, parse_run(run.name)[1])).rewind_to

    return rewind_of


def id_of(run):
    return parse_run(run.name)[1]


async def states(client, session):
    listed = await client.call(client.runs.ListRuns, run_service_pb2.ListRunsRequest(parent=session, page_size=500))
    return {run.name: Run.State.Name(run.state).removeprefix("STATE_") for run in listed.runs}


async def session_changes(client, session):
    request = session_service_pb2.ListSessionEventsRequest(parent=session, event_types=["session_state_changed"])
    listed = await client.call(client.sessions.ListSessionEvents, request)
    return [session_pb2.Session.State.Name(event.session_state_changed.state)[6:] for event in listed.events]


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_the_run_under_way_is_stopped_and_the_new_one_comes_first(create, hand, rewind_of, policy):
    active = await create()
    claim = await hand.claim()
    waits = await create()
    urgent = await create(policy)
    wanted = await hand.wanted(claim)
    assert (wanted.stop_run, wanted.stop_kind) == (id_of(active), "INTERRUPT")
    await hand.end(claim, RunState.CANCELLED)
    assert (await hand.wanted(claim)).stop_run is None
    first = await hand.claim()
    assert first.run.id == id_of(urgent)
    assert first.run.rewind_to == (id_of(active) if policy == ROLLBACK else None)
    await hand.end(first)
    assert (await hand.claim()).run.id == id_of(waits)


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_in_an_idle_session_it_is_a_run_as_any(create, hand, rewind_of, client, session, policy):
    run = await create(policy)
    assert await rewind_of(run) is None
    assert (await hand.claim()).run.id == id_of(run)
    assert await session_changes(client, session) == ["RUNNING"]


async def test_questions_of_the_interrupted_run_are_cancelled_at_once(create, client, hand, ask, events_of):
    active = await create()
    claim = await hand.claim()
    approval = await ask(active, "may I")
    await create(INTERRUPT)
    with pytest.raises(RpcError) as caught:
        await client.resolve(approval, approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW))
    assert caught.value.reason == "APPROVAL_NOT_PENDING"
    resolved = await events_of(active, "approval_resolved")
    assert [one.state for one in resolved] == [approval_pb2.Approval.STATE_CANCELLED]
    assert (await client.get_run(active.name)).state == Run.STATE_RUNNING
    assert (await hand.wanted(claim)).stop_kind == "INTERRUPT"


@pytest.mark.parametrize("how", ["parked", "in doubt", "dead worker", "handed over"])
async def test_a_run_that_nobody_drives_ends_at_once(
    create, client, session, hand, new_hand, ask, rewind_of, events_of, how
):
    active = await create()
    claim = await hand.claim()
    if how == "parked":
        await ask(active, "may I")
        await hand.park(claim)
    elif how == "in doubt":
        await hand.doubt(claim, "t1")
    elif how == "dead worker":
        await hand.die()
    else:
        await hand.hand_over(claim)
    urgent = await create(ROLLBACK)
    ended = await client.get_run(active.name)
    assert ended.state == Run.STATE_CANCELLED
    assert not ended.HasField("stop_receipt")
    assert (await events_of(active))[-1].HasField("run_ended")
    assert await rewind_of(urgent) == id_of(active)
    # The session was never idle in between.
    assert "IDLE" not in await session_changes(client, session)
    assert (await client.get_session(session)).state == session_pb2.Session.STATE_RUNNING
    assert (await (await new_hand()).claim()).run.id == id_of(urgent)


async def test_of_several_that_wait_the_newest_is_carried_out(create, client, session, hand, events_of):
    await create()
    claim = await hand.claim()
    ordinary = await create()
    older = [await create(policy) for policy in (INTERRUPT, ROLLBACK)]
    newest = await create(INTERRUPT)
    found = await states(client, session)
    assert [found[run.name] for run in older] == ["CANCELLED"] * 2
    assert (found[ordinary.name], found[newest.name]) == ("QUEUED", "QUEUED")
    for run in older:
        assert [end.state for end in await events_of(run, "run_ended")] == [Run.STATE_CANCELLED]
    await hand.end(claim, RunState.CANCELLED)
    following = await hand.claim()
    assert following.run.id == id_of(newest)
    assert following.run.rewind_to is None
    assert (await client.get_session(session)).run_count == 5


async def test_a_rollback_that_is_superseded_by_another_is_still_rolled_back(create, hand, rewind_of):
    active = await create()
    claim = await hand.claim()
    await create(ROLLBACK)
    await hand.end(claim, RunState.CANCELLED)
    # Nothing is under way any more, and nobody has rolled back yet.
    again = await create(ROLLBACK)
    assert await rewind_of(again) == id_of(active)
    assert await rewind_of(await create(INTERRUPT)) is None


async def test_an_interrupt_does_not_soften_a_cancel(create, client, hand):
    active = await create()
    claim = await hand.claim()
    await client.cancel(active.name)
    await create(INTERRUPT)
    assert (await hand.wanted(claim)).stop_kind == "CANCEL"


@pytest.mark.parametrize("begun", [True, False])
async def test_many_interrupts_at_once_leave_one(create, client, session, hand, edge, begun):
    if begun:
        await create()
        claim = await hand.claim()
    made = await asyncio.gather(*(create((INTERRUPT, ROLLBACK)[number % 2]) for number in range(20)))
    found = await states(client, session)
    left = [run for run in made if found[run.name] == "QUEUED"]
    assert len(left) == 1
    assert {found[run.name] for run in made if run is not left[0]} == {"CANCELLED"}
    # The newest: ids are given under the lock.
    assert left[0].name == max(run.name for run in made)
    if begun:
        await hand.end(claim, RunState.CANCELLED)
    assert (await hand.claim()).run.id == id_of(left[0])
    assert await hand.claim() is None
    request = session_service_pb2.ListSessionEventsRequest(parent=session, page_size=1000)
    events = (await client.call(client.sessions.ListSessionEvents, request)).events
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_interrupts_race_with_workers_and_the_end_of_runs(create, client, session, new_hand):
    hands = [await new_hand() for _ in range(2)]
    all_created = asyncio.Event()

    async def work(hand):
        while True:
            last = all_created.is_set()
            claim = await hand.claim()
            if claim is not None:
                stopped = (await hand.wanted(claim)).stop_run == claim.run.id
                await hand.end(claim, RunState.CANCELLED if stopped else RunState.SUCCEEDED)
            elif last:
                return

    workers = [asyncio.create_task(work(hand)) for hand in hands]
    made = await asyncio.gather(*(create((INTERRUPT, ROLLBACK, 0)[number % 3]) for number in range(30)))
    all_created.set()
    await asyncio.gather(*workers)
    assert (await client.get_session(session)).state == session_pb2.Session.STATE_IDLE
    found = await states(client, session)
    assert set(found.values()) <= {"SUCCEEDED", "CANCELLED"}
    # What waited in the ordinary way was not lost; the newest that interrupts was carried out.
    ordinary = [run for number, run in enumerate(made) if number % 3 == 2]
    assert found[max(run.name for run in made if run not in ordinary)] == "SUCCEEDED"
    request = session_service_pb2.ListSessionEventsRequest(parent=session, event_types=["run_ended"], page_size=1000)
    ends = [event.run for event in (await client.call(client.sessions.ListSessionEvents, request)).events]
    assert sorted(ends) == sorted(run.name for run in made)


async def test_a_full_queue_and_the_place_of_a_superseded_run(create, client, settings):
    urgent = await create(INTERRUPT)
    for _ in range(settings.max_queued_runs - 1):
        await create()
    # It takes the place of the one before it.
    await create(INTERRUPT)
    assert (await client.get_run(urgent.name)).state == Run.STATE_CANCELLED
    with pytest.raises(RpcError) as caught:
        await create()
    assert caught.value.reason == "QUEUE_FULL"


async def test_only_checking_stops_nothing(create, client, hand):
    active = await create()
    claim = await hand.claim()
    checked = await create(INTERRUPT, validate_only=True)
    assert checked.state == Run.STATE_QUEUED
    assert (await hand.wanted(claim)).stop_run is None
    assert (await client.get_run(active.name)).state == Run.STATE_RUNNING


async def test_a_busy_session_rejects(create, client, hand):
    run = await create(REJECT)
    await hand.claim()
    with pytest.raises(RpcError) as caught:
        await create(REJECT)
    assert (caught.value.reason, caught.value.metadata["active_run"]) == ("SESSION_BUSY", run.name)


async def test_the_same_request_interrupts_once(create, hand, client):
    request_id = "01234567-89ab-4def-8123-456789abcdef"
    await create()
    first = await create(INTERRUPT, request_id=request_id)
    claim = await hand.claim()
    assert claim.run.id == id_of(first)
    assert (await create(INTERRUPT, request_id=request_id)).name == first.name
    assert (await hand.wanted(claim)).stop_run is None
