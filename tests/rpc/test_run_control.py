"""Runs under way, from the edge: decisions about calls in doubt, further messages, stopping, making a run again."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from agentrpc.client import RpcError
from agentrpc.domain.states import RunState
from agentrpc.errors import LeaseLostError
from agentrpc.names import parse_run
from agentrpc.services import run_control
from agentrpc.services.doubt import UNKNOWN_RESULT
from agentrpc.services.session_host import lifecycle
from agentrpc.store.leases import Origin
from agentrpc.store.tables import Run as RunRow
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, run_service_pb2, session_service_pb2

Run = run_pb2.Run
Decision = run_service_pb2.ResolveRunRequest
Finished = event_pb2.ToolCallFinished
RESUME, RETRY = Decision.DECISION_RESUME, Decision.DECISION_RETRY_CALLS
DONE, ABANDON = Decision.DECISION_ASSUME_DONE, Decision.DECISION_ABANDON
NOWHERE = "sessions/00000000-0000-7000-8000-000000000000/runs/00000000-0000-7000-8000-000000000000"


def result(tool_use_id, text="", failed=False):
    return Decision.CallResult(tool_use_id=tool_use_id, text=text, failed=failed)


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


async def fields(awaitable):
    """The fields that FIELD_INVALID names."""
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.reason == "FIELD_INVALID"
    return caught.value.message


@pytest.fixture
async def doubtful(begun, hand):
    """A run in UNKNOWN_OUTCOME with the calls t1 and t2: (run, claim)."""
    run, claim = begun
    await hand.doubt(claim, "t1", "t2")
    return run, claim


# ---- ResolveRun ----


@pytest.mark.parametrize("decision", [RESUME, RETRY])
async def test_a_run_in_doubt_goes_on_and_its_calls_have_ended_unknown(
    client, doubtful, new_hand, events_of, edge, decision
):
    run, _ = doubtful
    waiting = await client.get_run(run.name)
    assert waiting.state == Run.STATE_UNKNOWN_OUTCOME
    assert [(call.tool_use_id, call.tool_name) for call in waiting.in_doubt_calls] == [("t1", "Bash"), ("t2", "Bash")]
    other = await new_hand()
    assert await other.claim() is None
    decided = await client.resolve_run(run.name, decision)
    assert decided.state == Run.STATE_RUNNING
    assert not decided.in_doubt_calls
    ends = await events_of(run, "tool_call_finished")
    assert [(end.tool_use_id, end.outcome) for end in ends] == [
        ("t1", Finished.OUTCOME_UNKNOWN), ("t2", Finished.OUTCOME_UNKNOWN)
    ]  # fmt: skip
    assert ends[0].content[0].text.text == UNKNOWN_RESULT
    changed = (await events_of(run, "run_state_changed"))[-1]
    assert (changed.previous_state, changed.state) == (Run.STATE_UNKNOWN_OUTCOME, Run.STATE_RUNNING)
    claim = await other.claim()
    assert (claim.origin, claim.run.id) == (Origin.RELEASED, parse_run(run.name)[1])
    record = await lifecycle.record_of_run(edge.database, *parse_run(run.name))
    assert record.retry == ({"t1": 1, "t2": 1} if decision == RETRY else {})
    assert {row.outcome for row in record.ledger.values()} == {Finished.OUTCOME_UNKNOWN}


async def test_calls_are_taken_as_done_with_the_results_that_the_caller_gives(client, doubtful, events_of, edge):
    run, _ = doubtful
    given = [result("t2", "it broke", failed=True), result("t1", "all good")]
    assert (await client.resolve_run(run.name, DONE, given)).state == Run.STATE_RUNNING
    ends = {end.tool_use_id: end for end in await events_of(run, "tool_call_finished")}
    assert (ends["t1"].outcome, ends["t1"].content[0].text.text) == (Finished.OUTCOME_SUCCEEDED, "all good")
    assert (ends["t2"].outcome, ends["t2"].content[0].text.text) == (Finished.OUTCOME_FAILED, "it broke")
    record = await lifecycle.record_of_run(edge.database, *parse_run(run.name))
    assert [record.ledger[key].outcome for key in ("t1", "t2")] == [
        Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_FAILED
    ]  # fmt: skip
    assert not record.retry
    # The same again, in another order, is the same decision.
    assert (await client.resolve_run(run.name, DONE, given[::-1])).name == run.name
    other = client.resolve_run(run.name, DONE, [result("t1"), result("t2")])
    assert await failure(other) == ("FAILED_PRECONDITION", "STATE_INVALID")


async def test_an_abandoned_run_is_cancelled_and_the_queue_goes_on(client, session, doubtful, new_hand, events_of):
    run, _ = doubtful
    following = await client.create_run(session, "y")
    ended = await client.resolve_run(run.name, ABANDON)
    assert ended.state == Run.STATE_CANCELLED
    assert not ended.HasField("stop_receipt")
    assert not ended.HasField("waiting_on")
    assert [end.outcome for end in await events_of(run, "tool_call_finished")] == [Finished.OUTCOME_UNKNOWN] * 2
    assert (await events_of(run))[-1].run_ended.state == Run.STATE_CANCELLED
    assert (await client.resolve_run(run.name, ABANDON)) == ended
    assert (await (await new_hand()).claim()).run.id == parse_run(following.name)[1]


async def test_the_first_decision_counts(client, doubtful, hand, events_of):
    run, _ = doubtful
    decided = await asyncio.gather(
        *(client.resolve_run(run.name, decision) for decision in (RESUME, RETRY, ABANDON) * 5), return_exceptions=True
    )
    good = [one for one in decided if isinstance(one, Run)]
    assert len(good) == 5
    assert {one.reason for one in decided if not isinstance(one, Run)} == {"STATE_INVALID"}
    changes = [
        event for event in await events_of(run) if event.HasField("run_ended") or event.HasField("run_state_changed")
    ]
    assert len(changes) == 2  # into doubt, and out of it


async def test_a_decision_said_again_after_the_end_returns_the_run(client, doubtful, new_hand):
    run, _ = doubtful
    await client.resolve_run(run.name, RESUME)
    other = await new_hand()
    await other.end(await other.claim())
    assert (await client.resolve_run(run.name, RESUME)).state == Run.STATE_SUCCEEDED
    assert await failure(client.resolve_run(run.name, ABANDON)) == ("FAILED_PRECONDITION", "STATE_INVALID")


async def test_in_doubt_again_means_to_decide_again(client, doubtful, new_hand):
    run, _ = doubtful
    await client.resolve_run(run.name, RESUME)
    other = await new_hand()
    await other.doubt(await other.claim(), "t3")
    waiting = await client.get_run(run.name)
    assert [call.tool_use_id for call in waiting.in_doubt_calls] == ["t3"]
    assert (await client.resolve_run(run.name, RETRY)).state == Run.STATE_RUNNING


async def test_a_conversation_of_unknown_format_has_no_calls_to_decide_about(client, begun, hand):
    run, claim = begun
    await hand.doubt(claim)
    assert (await client.get_run(run.name)).state == Run.STATE_UNKNOWN_OUTCOME
    assert (await client.resolve_run(run.name, DONE)).state == Run.STATE_RUNNING


async def test_bad_decisions(client, doubtful):
    run, _ = doubtful
    assert "decision" in await fields(client.resolve_run(run.name, Decision.DECISION_UNSPECIFIED))
    assert "decision" in await fields(client.resolve_run(run.name, 77))
    assert "results" in await fields(client.resolve_run(run.name, RESUME, [result("t1")]))
    assert "none for t2" in await fields(client.resolve_run(run.name, DONE, [result("t1")]))
    many = [result("t1"), result("t2"), result("t3")]
    assert "results[2].tool_use_id" in await fields(client.resolve_run(run.name, DONE, many))
    twice = [result("t1"), result("t2"), result("t1")]
    assert "results[2].tool_use_id" in await fields(client.resolve_run(run.name, DONE, twice))
    assert "results[0].tool_use_id" in await fields(client.resolve_run(run.name, DONE, [result("")]))
    long = [result("t1", "x" * (256 * 1024 + 1)), result("t2")]
    assert "results[0].text" in await fields(client.resolve_run(run.name, DONE, long))
    assert "results[0].text" in await fields(client.resolve_run(run.name, DONE, [result("t1", "\0"), result("t2")]))
    assert (await client.get_run(run.name)).state == Run.STATE_UNKNOWN_OUTCOME


async def test_only_a_run_in_doubt_waits_for_a_decision(client, session, begun):
    run, _ = begun
    queued = await client.create_run(session, "y")
    for name in (run.name, queued.name):
        assert await failure(client.resolve_run(name, RESUME)) == ("FAILED_PRECONDITION", "STATE_INVALID")


# ---- SteerRun ----


async def test_a_further_message_is_kept_for_the_worker(client, begun, hand, events_of):
    run, claim = begun
    assert (await client.steer(run.name, "one")).state == Run.STATE_RUNNING
    await client.steer(run.name, "two")
    assert (await hand.wanted(claim)).inputs == 2
    # The run does not succeed before they are read.
    assert await hand.end(claim) is None
    taking = (hand.database, claim.session.id, claim.run.id, claim.epoch)
    inputs, left, _ = await lifecycle.take_inputs(*taking, set(), 1)
    assert ([text for _, text in inputs], left) == (["one"], 1)
    inputs, left, _ = await lifecycle.take_inputs(*taking, {input_id for input_id, _ in inputs}, 60)
    assert left == 0
    assert [text for _, text in inputs] == ["one", "two"]
    said = [message for message in await events_of(run, "user_message") if message.origin == message.ORIGIN_STEER]
    assert [message.blocks[0].text.text for message in said] == ["one", "two"]
    assert await hand.end(claim)


async def test_a_request_id_says_it_once(client, begun, hand):
    run, claim = begun
    request_id = str(uuid4())
    await asyncio.gather(*(client.steer(run.name, "one", request_id=request_id) for _ in range(20)))
    assert (await hand.wanted(claim)).inputs == 1
    other = client.steer(run.name, "two", request_id=request_id)
    assert await failure(other) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    await hand.end(claim, RunState.FAILED)
    assert (await client.steer(run.name, "one", request_id=request_id)).state == Run.STATE_FAILED


async def test_a_run_that_waits_for_an_answer_can_be_told_more(client, begun, hand, ask):
    run, claim = begun
    await ask(run, "may I")
    assert (await client.steer(run.name, "x")).state == Run.STATE_REQUIRES_ACTION
    await hand.park(claim)
    await client.steer(run.name, "y")


async def test_messages_that_cannot_be_taken(client, session, doubtful, hand, new_hand, monkeypatch):
    run, _ = doubtful
    queued = await client.create_run(session, "y")
    invalid = ("FAILED_PRECONDITION", "STATE_INVALID")
    for name in (run.name, queued.name):
        assert await failure(client.steer(name, "x")) == invalid
    await client.resolve_run(run.name, RESUME)
    assert "text" in await fields(client.steer(run.name, ""))
    assert "text" in await fields(client.steer(run.name, "a\0b"))
    assert "request_id" in await fields(client.steer(run.name, "x", request_id="1"))
    assert await failure(client.steer(run.name, "x" * (1024 * 1024 + 1))) == ("INVALID_ARGUMENT", "TOO_LARGE")
    monkeypatch.setattr(run_control, "_MAX_INPUTS", 2)
    for _ in range(2):
        await client.steer(run.name, "x")
    assert await failure(client.steer(run.name, "x")) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    await (await new_hand()).claim()
    await client.interrupt(run.name)
    assert await failure(client.steer(run.name, "x")) == invalid


# ---- RetryRun ----


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED])
async def test_a_run_is_made_again(client, session, hand, state):
    wanted = Run(prompt="do it", labels={"a": "b"}, conflict_policy=Run.CONFLICT_POLICY_INTERRUPT)
    wanted.timeout.FromTimedelta(timedelta(hours=1))
    wanted.inactivity_timeout.FromTimedelta(timedelta(minutes=1))
    request = run_service_pb2.CreateRunRequest(parent=session, run=wanted)
    run = await client.call(client.runs.CreateRun, request)
    await hand.end(await hand.claim(), state)
    again = await client.retry(run.name)
    assert again.name != run.name
    assert (again.prompt, dict(again.labels), again.retry_of) == ("do it", {"a": "b"}, run.name)
    assert (again.timeout, again.inactivity_timeout) == (wanted.timeout, wanted.inactivity_timeout)
    assert again.conflict_policy == Run.CONFLICT_POLICY_ENQUEUE
    assert await client.get_run(again.name) == again
    assert (await hand.claim()).run.id == parse_run(again.name)[1]


async def test_a_retry_with_one_request_id_makes_one_run(client, session, begun, hand, settings):
    run, claim = begun
    await hand.end(claim, RunState.FAILED)
    request_id = str(uuid4())
    made = await asyncio.gather(*(client.retry(run.name, request_id=request_id) for _ in range(20)))
    assert len({one.name for one in made}) == 1
    other = await client.create_run(session, "y")
    await client.cancel(other.name)
    reused = client.retry(other.name, request_id=request_id)
    assert await failure(reused) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    await client.cancel(made[0].name)
    archive = session_service_pb2.ArchiveSessionRequest(name=session)
    await client.call(client.sessions.ArchiveSession, archive)
    assert (await client.retry(run.name, request_id=request_id)).name == made[0].name
    assert await failure(client.retry(run.name)) == ("FAILED_PRECONDITION", "SESSION_NOT_ACTIVE")


async def test_what_cannot_be_made_again(client, session, begun, hand, settings):
    run, claim = begun
    invalid = ("FAILED_PRECONDITION", "STATE_INVALID")
    assert await failure(client.retry(run.name)) == invalid
    await hand.end(claim)
    assert await failure(client.retry(run.name)) == invalid
    assert "request_id" in await fields(client.retry(run.name, request_id="1"))
    cancelled = await client.create_run(session, "y")
    await client.cancel(cancelled.name)
    for _ in range(settings.max_queued_runs):
        await client.create_run(session, "x")
    assert await failure(client.retry(cancelled.name)) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


# ---- CreateRun with a request_id ----


async def test_fifty_creates_at_once_with_one_request_id_make_one_run(edge, second_edge, client, session):
    request_id = str(uuid4())
    async with second_edge.client("ann") as elsewhere:
        made = await asyncio.gather(
            *((client, elsewhere)[number % 2].create_run(session, "x", request_id=request_id) for number in range(50))
        )
    assert len({run.name for run in made}) == 1
    assert (await client.get_session(session)).run_count == 1
    other = client.create_run(session, "another body", request_id=request_id)
    assert await failure(other) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


# ---- CancelRun and InterruptRun ----


def receipt_of(run):
    return run.stop_receipt.process_count, run.stop_receipt.confirmed


async def test_cancelling_what_waits_in_the_queue(client, session, events_of):
    run = await client.create_run(session, "x")
    ended = await client.cancel(run.name, "not needed")
    assert ended.state == Run.STATE_CANCELLED
    assert receipt_of(ended) == (0, True)
    assert [end.stop_receipt.confirmed for end in await events_of(run, "run_ended")] == [True]
    assert await client.cancel(run.name) == ended
    assert not (await client.interrupt((await client.create_run(session, "y")).name)).HasField("stop_receipt")


async def test_cancelling_a_run_that_its_worker_drives(client, begun, hand, events_of):
    run, claim = begun
    stopping = await client.cancel(run.name)
    assert stopping.state == Run.STATE_RUNNING
    wanted = await hand.wanted(claim)
    assert (wanted.stop_run, wanted.stop_kind) == (claim.run.id, "CANCEL")
    # An interrupt does not go further than that.
    await client.interrupt(run.name)
    assert (await hand.wanted(claim)).stop_kind == "CANCEL"
    await hand.end(claim, RunState.CANCELLED, run_pb2.StopReceipt(process_count=3, confirmed=True))
    ended = await client.get_run(run.name)
    assert (ended.state, receipt_of(ended)) == (Run.STATE_CANCELLED, (3, True))
    assert ended.stop_receipt.elapsed.ToTimedelta() > timedelta()
    assert (await events_of(run))[-1].run_ended.stop_receipt == ended.stop_receipt
    assert await client.cancel(run.name) == ended


async def test_a_cancel_goes_further_than_an_interrupt(client, begun, hand):
    run, claim = begun
    await client.interrupt(run.name)
    assert (await hand.wanted(claim)).stop_kind == "INTERRUPT"
    await client.cancel(run.name)
    assert (await hand.wanted(claim)).stop_kind == "CANCEL"


async def test_a_run_that_ends_when_it_was_to_be_stopped_has_been_stopped(client, begun, hand):
    """A cancel needs its receipt: the worker has to look again; for an interrupt the turn's end is as good as any."""
    run, claim = begun
    await client.interrupt(run.name)
    await client.cancel(run.name)
    assert await hand.end(claim) is None
    assert (await client.get_run(run.name)).state == Run.STATE_RUNNING
    await hand.end(claim, RunState.CANCELLED, run_pb2.StopReceipt(process_count=1, confirmed=True))
    assert (await client.get_run(run.name)).stop_receipt.process_count == 1
    other = await client.create_run(run.name.partition("/runs/")[0], "x")
    claim = await hand.claim()
    await client.interrupt(other.name)
    await hand.end(claim)
    assert (await client.get_run(other.name)).state == Run.STATE_CANCELLED


async def test_stopping_cancels_the_questions_at_once(client, begun, hand, ask, events_of):
    run, claim = begun
    approval = await ask(run, "may I")
    stopping = await client.interrupt(run.name)
    assert stopping.state == Run.STATE_RUNNING
    assert not stopping.pending_approvals
    allow = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)
    assert await failure(client.resolve(approval, allow)) == ("FAILED_PRECONDITION", "APPROVAL_NOT_PENDING")
    assert (await hand.wanted(claim)).stop_kind == "INTERRUPT"
    await hand.end(claim, RunState.CANCELLED)
    kinds = [event.WhichOneof("payload") for event in await events_of(run)]
    assert kinds[-3:] == ["approval_resolved", "run_state_changed", "run_ended"]


async def test_cancelling_a_parked_run(client, session, begun, hand, ask, events_of):
    run, claim = begun
    await ask(run, "may I")
    await hand.park(claim)
    following = await client.create_run(session, "y")
    ended = await client.cancel(run.name)
    assert (ended.state, receipt_of(ended)) == (Run.STATE_CANCELLED, (0, True))
    assert [one.state for one in await events_of(run, "approval_resolved")] == [approval_pb2.Approval.STATE_CANCELLED]
    assert (await hand.claim()).run.id == parse_run(following.name)[1]


async def test_cancelling_a_run_in_doubt(client, doubtful, events_of):
    run, _ = doubtful
    ended = await client.cancel(run.name)
    assert (ended.state, receipt_of(ended)) == (Run.STATE_CANCELLED, (0, True))
    assert [end.outcome for end in await events_of(run, "tool_call_finished")] == [Finished.OUTCOME_UNKNOWN] * 2
    assert not ended.in_doubt_calls


async def test_cancelling_a_run_whose_worker_is_dead(client, session, begun, hand, new_hand, events_of):
    run, claim = begun
    await hand.call(claim, "t1")
    await hand.die()
    ended = await client.cancel(run.name)
    assert (ended.state, receipt_of(ended)) == (Run.STATE_CANCELLED, (0, True))
    assert [end.outcome for end in await events_of(run, "tool_call_finished")] == [Finished.OUTCOME_UNKNOWN]
    # Should the worker not know that it is dead, it changes nothing any more.
    with pytest.raises(LeaseLostError):
        await hand.end(claim)
    assert await (await new_hand()).claim() is None


async def test_bad_names_and_roles(edge, client, begun):
    run, _ = begun
    calls = (
        lambda c, name: c.cancel(name),
        lambda c, name: c.interrupt(name),
        lambda c, name: c.retry(name),
        lambda c, name: c.steer(name, "x"),
        lambda c, name: c.resolve_run(name, RESUME),
    )
    async with edge.client("bob") as bob, edge.client("vic") as viewer:
        for call in calls:
            for name in ("", "x", run.name.partition("/runs/")[0], run.name.upper()):
                assert await failure(call(client, name)) == ("INVALID_ARGUMENT", "NAME_INVALID")
            assert await failure(call(client, NOWHERE)) == ("NOT_FOUND", "NOT_FOUND")
            assert await failure(call(bob, run.name)) == ("NOT_FOUND", "NOT_FOUND")
            assert await failure(call(viewer, run.name)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert "reason" in await fields(client.cancel(run.name, "x" * 1001))
    for seconds in (0, 9, 86401):
        wanted = Run(prompt="x")
        wanted.inactivity_timeout.FromSeconds(seconds)
        request = run_service_pb2.CreateRunRequest(parent=run.name.partition("/runs/")[0], run=wanted)
        assert "run.inactivity_timeout" in await fields(client.call(client.runs.CreateRun, request))
    async with edge.database.transaction() as tx:
        row = await tx.get_one(RunRow, parse_run(run.name)[1])
    assert row.state == "RUNNING"
