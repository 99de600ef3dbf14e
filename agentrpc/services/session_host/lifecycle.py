"""What a worker changes about a run, each in one transaction that locks the head row and checks the epoch.

Each may be tried again after a lost connection: a transition that is found done already is left as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.states import TERMINAL_RUN_STATES, ApprovalState, RunState, may_follow
from agentrpc.errors import LeaseLostError
from agentrpc.names import run_name
from agentrpc.services import approvals
from agentrpc.services.views import head_state
from agentrpc.store.approvals import granted_rules, of_run, settled_approvals
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.runs import LedgerRow, ledger_of_run, session_options
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, run_pb2, run_service_pb2

__all__ = [
    "Asked",
    "Ending",
    "RunRecord",
    "await_decision",
    "cancel_approvals",
    "end_run",
    "grants",
    "hand_over",
    "load_options",
    "mark_agent",
    "note_loss",
    "park",
    "record_of_run",
    "request_approval",
    "resolutions",
]


@dataclass(slots=True)
class Ending:
    """How a run ended: what `RunEnded` and the run's row say."""

    state: RunState
    result: run_pb2.RunResult | None = None
    error: run_pb2.RunError | None = None
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    model_usage: Sequence[common_pb2.ModelUsage] = ()
    receipt: run_pb2.StopReceipt | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """An approval of a run, as a new process has to know it."""

    approval_id: UUID
    tool_use_id: str
    tool_name: str
    by_subagent: bool
    state: ApprovalState
    resolution: approval_pb2.Resolution


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the store knows of a run that is taken up again.

    Attributes:
        ledger: The calls that it has begun, by tool_use_id.
        asked: The approvals that it has asked for, the newest of each call.
        retry: Calls that are made again by a caller's decision.
    """

    ledger: dict[str, LedgerRow]
    asked: dict[str, Asked]
    retry: frozenset[str]


async def end_run(database: Database, session_id: UUID, run_id: UUID, epoch: int, ending: Ending) -> list[StoredEvent]:
    """End the active run: its row, its waiting approvals, the head row, the session's totals, and `run_ended`.

    Returns:
        The events, to be published; none when the run had ended already.

    Raises:
        LeaseLostError: Another epoch has begun.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        before = RunState(run.state)
        if before in TERMINAL_RUN_STATES:
            return []
        assert may_follow(before, ending.state)
        session_before = head_state(head)
        events = await approvals.cancel_pending(tx, head, run_id)

        ended = event_pb2.RunEnded(state=f"STATE_{ending.state}", usage=ending.usage, model_usage=ending.model_usage)
        if ending.result is not None:
            ended.result.CopyFrom(ending.result)
        if ending.error is not None:
            ended.error.CopyFrom(ending.error)
        if ending.receipt is not None:
            _complete(ending.receipt, head, ending)
            ended.stop_receipt.CopyFrom(ending.receipt)
            run.stop_receipt = ending.receipt.SerializeToString()
        event = event_pb2.Event(run=run_name(session_id, run_id), run_ended=ended)
        run.state = ending.state
        run.end_time = clock.utcnow()
        event.time.FromDatetime(run.end_time)
        run.result = ending.result.SerializeToString() if ending.result is not None else None
        run.error = ending.error.SerializeToString() if ending.error is not None else None
        run.usage = event_pb2.RunEnded(usage=ending.usage, model_usage=ending.model_usage).SerializeToString()
        run.cost_usd = ending.usage.cost_usd
        run.decision = None
        head.active_run = None
        head.losses = 0
        if head.stop_run == run_id:
            head.stop_run = head.stop_kind = head.stop_time = None
        session = await tx.get_one(Session, session_id)
        session.usage = _sum(session.usage, ending.usage)
        events.append(LogEvent.of(event, run_id))
        last_of_run = len(events)
        events += approvals.session_state_event(session_before, head_state(head))
        await tx.flush()
        stored = await append_control(tx, session_id, events)
        run.last_sequence = stored[last_of_run - 1].sequence
        return stored


async def request_approval(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, approval: approval_pb2.Approval
) -> Sequence[StoredEvent]:
    """Store an approval and let the run wait for it. Raises LeaseLostError."""
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        return await approvals.request_approval(tx, head, run, approval)


async def resolutions(
    database: Database, session_id: UUID, approval_ids: Sequence[UUID]
) -> dict[UUID, tuple[str, approval_pb2.Resolution]]:
    """State and answer of those approvals that are not pending any more."""
    async with database.transaction() as tx:
        found = await settled_approvals(tx, session_id, approval_ids)
    return {key: (state, approval_pb2.Resolution.FromString(answer)) for key, (state, answer) in found.items()}


async def grants(database: Database, session_id: UUID) -> list[str]:
    """The rules that answers "for the session" have added."""
    async with database.transaction() as tx:
        return await granted_rules(tx, session_id)


async def record_of_run(database: Database, session_id: UUID, run_id: UUID) -> RunRecord:
    """What the store knows of a run that is taken up again."""
    async with database.transaction() as tx:
        ledger = await ledger_of_run(tx, session_id, run_id)
        asked = {}
        for row in await of_run(tx, session_id, run_id):
            question = approval_pb2.Approval.FromString(row.question)
            asked[question.tool_use_id] = Asked(
                row.id,
                question.tool_use_id,
                question.tool_name,
                bool(question.parent_tool_use_id),
                ApprovalState(row.state),
                approval_pb2.Resolution.FromString(row.resolution or b""),
            )
        run = await tx.get_one(Run, run_id)
        decision = run_service_pb2.ResolveRunRequest.FromString(run.decision or b"")
    retry = decision.decision == run_service_pb2.ResolveRunRequest.DECISION_RETRY_CALLS
    return RunRecord(ledger, asked, frozenset(result.tool_use_id for result in decision.results if retry))


async def cancel_approvals(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, approval_ids: Sequence[UUID]
) -> list[StoredEvent]:
    """Cancel approvals whose call is lost: whoever asked is gone and cannot be brought back."""
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        before = head_state(head)
        events = await approvals.cancel_pending(tx, head, run_id, approval_ids)
        if not events:
            return []
        if run.state == RunState.REQUIRES_ACTION and not head.pending_approvals:
            events.append(approvals.run_state_event(run, RunState.RUNNING, "who asked was lost"))
        events += approvals.session_state_event(before, head_state(head))
        await tx.flush()
        return await append_control(tx, session_id, events)


async def park(database: Database, session_id: UUID, run_id: UUID, epoch: int) -> bool:
    """Give the session back while the run waits for approvals. False: it waits no more, or is to stop: carry on."""
    async with database.transaction() as tx:
        head, _ = await _held(tx, session_id, run_id, epoch)
        if not head.pending_approvals or head.stop_run == run_id or head.inputs:
            return False
        head.worker = None
        return True


async def hand_over(database: Database, session_id: UUID, run_id: UUID, epoch: int) -> None:
    """Give the session back in the middle of a run, between two tool calls: any worker takes it up."""
    async with database.transaction() as tx:
        head, _ = await _held(tx, session_id, run_id, epoch)
        head.worker = None


async def await_decision(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, calls: Sequence[LedgerRow], message: str
) -> list[StoredEvent]:
    """The run becomes UNKNOWN_OUTCOME, holds its session's queue, and the session is given back."""
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if head.in_doubt:
            return []
        before = head_state(head)
        events = await approvals.cancel_pending(tx, head, run_id)
        changed = approvals.run_state_event(run, RunState.UNKNOWN_OUTCOME, message, [_in_doubt(row) for row in calls])
        run.doubt_time = clock.utcnow()
        run.decision = None
        head.in_doubt = True
        head.worker = None
        events += [changed, *approvals.session_state_event(before, head_state(head))]
        await tx.flush()
        return await append_control(tx, session_id, events)


async def note_loss(database: Database, session_id: UUID, run_id: UUID, epoch: int) -> tuple[int, list[StoredEvent]]:
    """The CLI process was lost under the run: how many were in a row, and the beginning of the next attempt."""
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        head.losses += 1
        run.attempt += 1
        started = event_pb2.Event(
            run=run_name(session_id, run_id),
            run_started=event_pb2.RunStarted(attempt=run.attempt, process_start=event_pb2.PROCESS_START_RESUMED),
        )
        started.time.FromDatetime(clock.utcnow())
        losses = head.losses
        await tx.flush()
        return losses, await append_control(tx, session_id, [LogEvent.of(started, run_id)])


async def load_options(database: Database, session_id: UUID) -> bytes:
    """The session's options as they are now, serialized."""
    async with database.transaction() as tx:
        return await session_options(tx, session_id)


async def mark_agent(database: Database, session_id: UUID, claude_session_id: UUID, version: str) -> None:
    """Note which CLI wrote the session's transcript, and under which id."""
    async with database.transaction() as tx:
        session = await tx.get_one(Session, session_id)
        session.claude_session_id = claude_session_id
        session.agent_version = version


async def _held(tx: Transaction, session_id: UUID, run_id: UUID, epoch: int) -> tuple[SessionHead, Run]:
    head = await lock_head(tx, session_id)
    if head is None or head.epoch != epoch:
        raise LeaseLostError(f"session {session_id}: epoch {epoch} is stale")
    return head, await tx.get_one(Run, run_id)


def _in_doubt(row: LedgerRow) -> run_pb2.CallInDoubt:
    call = run_pb2.CallInDoubt(tool_use_id=row.tool_use_id, tool_name=row.tool_name)
    call.start_time.FromDatetime(row.start_time)
    return call


def _complete(receipt: run_pb2.StopReceipt, head: SessionHead, ending: Ending) -> None:
    """What only the store knows of a receipt: when it was asked for."""
    if head.stop_time is not None:
        receipt.elapsed.FromTimedelta(max(clock.utcnow() - head.stop_time, timedelta()))
    receipt.cost_usd = ending.usage.cost_usd


def _sum(stored: bytes, usage: common_pb2.Usage) -> bytes:
    total = common_pb2.Usage.FromString(stored)
    for name in common_pb2.Usage.DESCRIPTOR.fields_by_name:
        setattr(total, name, getattr(total, name) + getattr(usage, name))
    return total.SerializeToString()
