"""The end of a run: its row, its approvals, its head row, the session's totals and the log, in one transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from agentrpc import clock
from agentrpc.domain.states import RunState, StopKind, may_follow
from agentrpc.names import run_name
from agentrpc.services import approvals
from agentrpc.services.doubt import UNKNOWN_RESULT, finished
from agentrpc.services.views import head_state
from agentrpc.store.database import Transaction
from agentrpc.store.log import LogEvent, StoredEvent, append_control, message_ends
from agentrpc.store.runs import LedgerRow, finish_calls, ledger_of_run, oldest_queued
from agentrpc.store.tables import Run, Session, SessionHead, Worker
from agentrpc.v1 import common_pb2, event_pb2, run_pb2

__all__ = ["Ending", "cancel_queued", "conclude", "finish_call_events", "stop_run", "sum_usage"]


@dataclass(slots=True)
class Ending:
    """How a run ended: what `RunEnded` and the run's row say.

    Attributes:
        state: A terminal one.
        result: Of its last turn.
        error: Why it failed.
        usage: What its turns say that they used.
        model_usage: The same by model.
        receipt: What was stopped.
        complete: Whether every turn has told what it used. Otherwise the log is asked.
    """

    state: RunState
    result: run_pb2.RunResult | None = None
    error: run_pb2.RunError | None = None
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    model_usage: list[common_pb2.ModelUsage] = field(default_factory=list)
    receipt: run_pb2.StopReceipt | None = None
    complete: bool = False


async def conclude(tx: Transaction, head: SessionHead, run: Run, ending: Ending) -> list[StoredEvent]:
    """End the active run. The caller holds the head row's lock and may do so: it owns the session, or nobody does.

    Returns:
        The events, to be published after the commit.
    """
    assert may_follow(RunState(run.state), ending.state)
    session_id = head.session_id
    before = head_state(head)
    events = await approvals.cancel_pending(tx, head, run.id)
    doubt = [row for row in (await ledger_of_run(tx, session_id, run.id)).values() if row.outcome is None]
    events += await finish_call_events(tx, run, doubt, event_pb2.ToolCallFinished.OUTCOME_UNKNOWN, UNKNOWN_RESULT)

    if not ending.complete:
        add_logged_usage(ending, await message_ends(tx, session_id, run.id, run.first_sequence))
    ended = event_pb2.RunEnded(state=f"STATE_{ending.state}", usage=ending.usage, model_usage=ending.model_usage)
    if ending.result is not None:
        ended.result.CopyFrom(ending.result)
    if ending.error is not None:
        ended.error.CopyFrom(ending.error)
    if ending.receipt is not None:
        if head.stop_time is not None:
            ending.receipt.elapsed.FromTimedelta(max(clock.utcnow() - head.stop_time, timedelta()))
        ending.receipt.cost_usd = ending.usage.cost_usd
        ended.stop_receipt.CopyFrom(ending.receipt)
        run.stop_receipt = ending.receipt.SerializeToString()
    event = event_pb2.Event(run=run_name(session_id, run.id), run_ended=ended)
    run.state = ending.state
    run.end_time = clock.utcnow()
    event.time.FromDatetime(run.end_time)
    run.result = ending.result.SerializeToString() if ending.result is not None else None
    run.error = ending.error.SerializeToString() if ending.error is not None else None
    run.usage = event_pb2.RunEnded(usage=ending.usage, model_usage=ending.model_usage).SerializeToString()
    run.cost_usd = ending.usage.cost_usd
    head.active_run = None
    head.losses = head.inputs = 0
    head.in_doubt = False
    if head.closed is not None:
        # A session that was terminated: nothing is appended behind its last state.
        head.epoch += 1
    if head.stop_run == run.id:
        head.stop_run = head.stop_kind = head.stop_time = None
    session = await tx.get_one(Session, session_id)
    session.usage = _sum(session.usage, ending.usage)
    events.append(LogEvent.of(event, run.id))
    last_of_run = len(events)
    events += approvals.session_state_event(before, head_state(head))
    await tx.flush()
    stored = await append_control(tx, session_id, events)
    run.last_sequence = stored[last_of_run - 1].sequence
    return stored


def add_logged_usage(ending: Ending, messages: Iterable[bytes]) -> None:
    """Count what the log knows of turns that never told their usage: tokens, but not what they cost."""
    logged = common_pb2.Usage()
    models: dict[str, common_pb2.Usage] = {}
    for data in messages:
        done = event_pb2.Event.FromString(data).message_completed
        for total in (logged, models.setdefault(done.model, common_pb2.Usage())):
            sum_usage(total, done.usage)
    _raise_to(ending.usage, logged)
    told = {used.model: used for used in ending.model_usage}
    for model, usage in models.items():
        if model not in told:
            told[model] = common_pb2.ModelUsage(model=model)
            ending.model_usage = [*ending.model_usage, told[model]]
        _raise_to(told[model].usage, usage)


async def stop_run(tx: Transaction, head: SessionHead, run: Run, kind: StopKind) -> list[StoredEvent]:
    """Stop a run that has not ended. The caller holds the head row's lock.

    A queued run, and one that nobody drives, ends here; one under way on its worker, which reads the intent: only its
    approvals are cancelled here, so that no answer lets a call begin any more. A later kind counts only if it goes
    further.

    Returns:
        The events, to be published after the commit; ring the doorbell then: a worker is to look, or another run may
        begin.
    """
    receipt = run_pb2.StopReceipt(confirmed=True) if kind is StopKind.CANCEL else None
    if run.state == RunState.QUEUED:
        return await cancel_queued(tx, head, run, receipt)
    if head.stop_run != run.id or kind is StopKind.CANCEL:
        head.stop_time = (head.stop_run == run.id and head.stop_time) or clock.utcnow()
        head.stop_run, head.stop_kind = run.id, kind
    if head.worker is not None:
        worker = await tx.get(Worker, head.worker)
        if worker is not None and worker.dead_time is None:
            return await _cancel_approvals(tx, head, run)
        # Whoever had it is dead, with all its processes; should it not know, its epoch is over.
        head.worker = None
        head.epoch += 1
    state = RunState.EXPIRED if kind is StopKind.EXPIRE else RunState.CANCELLED
    return await conclude(tx, head, run, Ending(state, receipt=receipt))


async def _cancel_approvals(tx: Transaction, head: SessionHead, run: Run) -> list[StoredEvent]:
    before = head_state(head)
    events = await approvals.cancel_pending(tx, head, run.id)
    if not events:
        return []
    if run.state == RunState.REQUIRES_ACTION:
        events.append(approvals.run_state_event(run, RunState.RUNNING, "it is to stop"))
    events += approvals.session_state_event(before, head_state(head))
    await tx.flush()
    return await append_control(tx, head.session_id, events)


async def finish_call_events(
    tx: Transaction,
    run: Run,
    calls: Sequence[LedgerRow],
    outcome: event_pb2.ToolCallFinished.Outcome,
    text: str,
) -> list[LogEvent]:
    """End calls whose end no process has told, in the ledger too; the events are the caller's to append."""
    events = []
    for row in calls:
        event = finished(row.tool_use_id, row.tool_name, outcome, text)
        event.run = run_name(run.session_id, run.id)
        events.append(LogEvent.of(event, run.id))
    await finish_calls(tx, run.session_id, [row.tool_use_id for row in calls], outcome)
    return events


async def cancel_queued(
    tx: Transaction, head: SessionHead, run: Run, receipt: run_pb2.StopReceipt | None = None
) -> list[StoredEvent]:
    """Take a run out of the queue. The caller holds the head row's lock."""
    before = head_state(head)
    run.state = RunState.CANCELLED
    run.end_time = clock.utcnow()
    head.queued -= 1
    await tx.flush()
    head.queued_since = await oldest_queued(tx, head.session_id)
    run.stop_receipt = receipt.SerializeToString() if receipt is not None else None
    ended = event_pb2.Event(
        run=run_name(run.session_id, run.id),
        run_ended=event_pb2.RunEnded(state=run_pb2.Run.STATE_CANCELLED, stop_receipt=receipt),
    )
    ended.time.FromDatetime(run.end_time)
    await tx.flush()
    events = await append_control(
        tx, head.session_id, [LogEvent.of(ended, run.id), *approvals.session_state_event(before, head_state(head))]
    )
    run.first_sequence = run.last_sequence = events[0].sequence
    return events


def _sum(stored: bytes, usage: common_pb2.Usage) -> bytes:
    total = common_pb2.Usage.FromString(stored)
    sum_usage(total, usage)
    return total.SerializeToString()


def sum_usage(total: common_pb2.Usage, usage: common_pb2.Usage) -> None:
    """Add `usage` to `total`."""
    for name in common_pb2.Usage.DESCRIPTOR.fields_by_name:
        setattr(total, name, getattr(total, name) + getattr(usage, name))


def _raise_to(total: common_pb2.Usage, least: common_pb2.Usage) -> None:
    for name in common_pb2.Usage.DESCRIPTOR.fields_by_name:
        setattr(total, name, max(getattr(total, name), getattr(least, name)))
