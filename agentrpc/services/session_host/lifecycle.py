"""What a worker changes about a run, each in one transaction that locks the head row and checks the epoch.

Each may be tried again after a lost connection: a transition that is found done already is left as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.states import TERMINAL_RUN_STATES, RunState, may_follow
from agentrpc.errors import LeaseLostError
from agentrpc.names import run_name
from agentrpc.services import approvals
from agentrpc.services.views import head_state
from agentrpc.store.approvals import granted_rules, settled_approvals
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.runs import open_calls, session_options
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, run_pb2

__all__ = [
    "Ending",
    "calls_in_doubt",
    "cancel_orphaned_approvals",
    "end_run",
    "grants",
    "load_options",
    "mark_agent",
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
        event = event_pb2.Event(run=run_name(session_id, run_id), run_ended=ended)
        run.state = ending.state
        run.end_time = clock.utcnow()
        event.time.FromDatetime(run.end_time)
        run.result = ending.result.SerializeToString() if ending.result is not None else None
        run.error = ending.error.SerializeToString() if ending.error is not None else None
        run.usage = event_pb2.RunEnded(usage=ending.usage, model_usage=ending.model_usage).SerializeToString()
        run.cost_usd = ending.usage.cost_usd
        head.active_run = None
        if head.interrupt_run == run_id:
            head.interrupt_run = None
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


async def calls_in_doubt(database: Database, session_id: UUID, run_id: UUID) -> list[tuple[str, str]]:
    """(tool_use_id, tool) of calls that began and whose end nobody has seen. Index tool_calls_in_doubt."""
    async with database.transaction() as tx:
        return await open_calls(tx, session_id, run_id)


async def cancel_orphaned_approvals(
    database: Database, session_id: UUID, run_id: UUID, epoch: int
) -> list[StoredEvent]:
    """After a takeover: what the lost worker asked waits for nothing any more."""
    async with database.transaction() as tx:
        head, _ = await _held(tx, session_id, run_id, epoch)
        before = head_state(head)
        events = await approvals.cancel_pending(tx, head, run_id)
        if not events:
            return []
        events += approvals.session_state_event(before, head_state(head))
        await tx.flush()
        return await append_control(tx, session_id, events)


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


def _sum(stored: bytes, usage: common_pb2.Usage) -> bytes:
    total = common_pb2.Usage.FromString(stored)
    for name in common_pb2.Usage.DESCRIPTOR.fields_by_name:
        setattr(total, name, getattr(total, name) + getattr(usage, name))
    return total.SerializeToString()
