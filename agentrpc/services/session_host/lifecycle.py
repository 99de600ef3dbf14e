"""What a worker changes about a run, each in one transaction that locks the head row and checks the epoch.

Each may be tried again after a lost connection: a transition that is found done already is left as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.states import TERMINAL_RUN_STATES, ApprovalState, RunState, StopKind
from agentrpc.names import run_name
from agentrpc.services import approvals
from agentrpc.services.run_end import Ending, conclude
from agentrpc.services.views import call_in_doubt, head_state, text_block
from agentrpc.store.approvals import granted_rules, of_run, settled_approvals
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import OwnedSession, lock_head, still_held
from agentrpc.store.log import LogEvent, StoredEvent, append_control, drop_transcript
from agentrpc.store.runs import LedgerRow, inputs_of_run, ledger_of_run, session_options
from agentrpc.store.sessions import rules_revision
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import approval_pb2, event_pb2, run_service_pb2, session_pb2

__all__ = [
    "MAX_LOSSES",
    "Asked",
    "RunRecord",
    "SessionRules",
    "await_decision",
    "cancel_approvals",
    "end_run",
    "hand_over",
    "has_workspace",
    "intents",
    "load_options",
    "mark_agent",
    "note_loss",
    "note_workspace",
    "park",
    "record_of_run",
    "request_approval",
    "resolutions",
    "rewind",
    "rewind_targets",
    "rules_since",
    "take_inputs",
]


# So many workers and processes in a row may be lost under a run.
MAX_LOSSES = 3


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
        inputs: (id, text) of the further messages that were given to a process, in order.
        retry: The attempts, by tool_use_id, after which calls are made again by a caller's decision.
    """

    ledger: dict[str, LedgerRow]
    asked: dict[str, Asked]
    inputs: list[tuple[UUID, str]]
    retry: dict[str, int]


@dataclass(frozen=True, slots=True)
class SessionRules:
    """What the gate judges by, besides the mode.

    Attributes:
        revision: Changes when the rules do.
        allowed: Those of the options, and those that answers have added.
        disallowed: Those of the options, and those that the owner cannot change.
    """

    revision: int
    allowed: Sequence[str]
    disallowed: Sequence[str]


async def end_run(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, ending: Ending
) -> list[StoredEvent] | None:
    """End the active run: its row, its waiting approvals, the head row, the session's totals, and `run_ended`.

    Returns:
        The events, to be published; none when the run had ended already. None: it has not ended, because in the last
        moment a further message came that waits to be delivered, or a cancel that has to end its processes.

    Raises:
        LeaseLostError: Another epoch has begun.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if run.state in TERMINAL_RUN_STATES:
            return []
        if head.stop_run == run_id and ending.state is not RunState.FAILED:
            # Whoever asked for it in the last moment was told that it will be stopped.
            if head.stop_kind == StopKind.CANCEL and ending.receipt is None:
                return None
            if ending.state is RunState.SUCCEEDED:
                ending.state = RunState.EXPIRED if head.stop_kind == StopKind.EXPIRE else RunState.CANCELLED
        if ending.state is RunState.SUCCEEDED and head.inputs:
            return None
        return await conclude(tx, head, run, ending)


async def request_approval(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, approval: approval_pb2.Approval
) -> Sequence[StoredEvent] | None:
    """Store an approval and let the run wait for it.

    Returns:
        The events, to be published. None: the run has ended or is to stop, and nobody is asked.

    Raises:
        LeaseLostError: Another epoch has begun.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if await approvals.is_asked(tx, approval):
            return []
        if head.active_run != run_id or head.stop_run == run_id:
            return None
        return await approvals.request_approval(tx, head, run, approval)


async def resolutions(
    database: Database, session_id: UUID, approval_ids: Sequence[UUID]
) -> dict[UUID, tuple[str, approval_pb2.Resolution]]:
    """State and answer of those approvals that are not pending any more."""
    async with database.transaction() as tx:
        found = await settled_approvals(tx, session_id, approval_ids)
    return {key: (state, approval_pb2.Resolution.FromString(answer)) for key, (state, answer) in found.items()}


async def rules_since(database: Database, session_id: UUID, revision: int | None = None) -> SessionRules | None:
    """The rules of a session as they are now; None when they have not changed since a revision.

    One look-up by the primary key as long as nothing changes: the gate does it for every call.
    """
    now = await rules_revision(database, session_id)
    if now == revision:
        return None
    async with database.transaction() as tx:
        session = await tx.get_one(Session, session_id)
        options = session_pb2.SessionOptions.FromString(session.options)
        granted = await granted_rules(tx, session_id)
    return SessionRules(
        session.rules_revision,
        [*options.allowed_tools, *granted],
        [*session.imposed_rules, *options.disallowed_tools],
    )


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
        inputs = [(row.id, row.text) for row in await inputs_of_run(tx, run_id) if row.deliver_time is not None]
        run = await tx.get_one(Run, run_id)
        decision = run_service_pb2.ResolveRunRequest.FromString(run.decision or b"")
    retry = decision.decision == run_service_pb2.ResolveRunRequest.DECISION_RETRY_CALLS
    return RunRecord(
        ledger, asked, inputs, {result.tool_use_id: int(result.text) for result in decision.results if retry}
    )


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
        if head.worker is None:
            return True
        if not head.pending_approvals or head.stop_run == run_id:
            return False
        head.worker = None
        head.losses = 0
        return True


async def hand_over(database: Database, session_id: UUID, run_id: UUID, epoch: int, *, clean: bool) -> bool:
    """Give the session back in the middle of a run: any worker takes it up. False: it is to stop.

    Args:
        database: The store.
        session_id: The session.
        run_id: Its run.
        epoch: The epoch under which this worker holds it.
        clean: Between two tool calls. Otherwise what was under way is void, as after a loss.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if head.worker is None:
            return True
        if head.stop_run == run_id:
            return False
        if not clean:
            run.attempt += 1
        head.worker = None
        return True


async def intents(database: Database, session_id: UUID, epoch: int) -> OwnedSession:
    """What is wanted of a session now. Raises LeaseLostError."""
    async with database.transaction() as tx:
        head = still_held(await tx.get(SessionHead, session_id), session_id, epoch)
        return OwnedSession(
            session_id,
            head.epoch,
            head.active_run,
            head.queued,
            head.stop_run,
            head.stop_kind,
            head.paused,
            head.inputs,
            head.closed,
            head.needed_level,
        )


async def take_inputs(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, tried: set[UUID], limit: int
) -> tuple[list[tuple[UUID, str]], int, list[StoredEvent]]:
    """The further messages that wait, from now on counted as delivered, how many are left, and their events.

    Args:
        database: The store.
        session_id: The session.
        run_id: Its run.
        epoch: The epoch under which this worker holds it.
        tried: What attempts before may have taken without knowing it: it is given again. Empty at first.
        limit: How many at most, the oldest ones.
    """
    async with database.transaction() as tx:
        head, _ = await _held(tx, session_id, run_id, epoch)
        waiting = [row for row in await inputs_of_run(tx, run_id) if row.deliver_time is None or row.id in tried]
        rows, left = waiting[:limit], len(waiting[limit:])
        events = []
        for row in rows:
            if row.deliver_time is not None:
                continue
            tried.add(row.id)
            row.deliver_time = clock.utcnow()
            message = event_pb2.UserMessage(
                transcript_uuid=str(row.id), origin=event_pb2.UserMessage.ORIGIN_STEER, blocks=[text_block(row.text)]
            )
            event = event_pb2.Event(run=run_name(session_id, run_id), user_message=message)
            event.time.FromDatetime(row.deliver_time)
            events.append(LogEvent.of(event, run_id))
        head.inputs = left
        await tx.flush()
        stored = await append_control(tx, session_id, events) if events else []
        return [(row.id, row.text) for row in rows], left, stored


async def rewind_targets(database: Database, to: UUID) -> list[UUID]:
    """The run to whose beginning the conversation goes back; if it never began, the one that it was to go back to."""
    targets: list[UUID] = []
    following: UUID | None = to
    async with database.transaction() as tx:
        while following is not None and following not in targets:
            targets.append(following)
            run = await tx.get(Run, following)
            following = run.rewind_to if run is not None else None
    return targets


async def rewind(database: Database, session_id: UUID, to: UUID, epoch: int, position: int) -> list[StoredEvent]:
    """Drop the conversation from the beginning of the run `to` on, which is at `position` of the transcript."""
    async with database.transaction() as tx:
        _, run = await _held(tx, session_id, to, epoch)
        if not await drop_transcript(tx, session_id, position):
            return []
        rewound = event_pb2.ConversationRewound(to_sequence=run.first_sequence - 1)
        event = event_pb2.Event(conversation_rewound=rewound)
        event.time.FromDatetime(clock.utcnow())
        return await append_control(tx, session_id, [LogEvent.of(event, None)])


async def await_decision(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, calls: Sequence[LedgerRow], message: str
) -> list[StoredEvent] | None:
    """The run becomes UNKNOWN_OUTCOME, holds its session's queue, and the session is given back.

    Returns:
        The events, to be published. None: it is to stop, and nothing was changed.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if head.in_doubt:
            return []
        if head.stop_run == run_id:
            return None
        before = head_state(head)
        events = await approvals.cancel_pending(tx, head, run_id)
        changed = approvals.run_state_event(
            run, RunState.UNKNOWN_OUTCOME, message, [call_in_doubt(row) for row in calls]
        )
        run.doubt_time = clock.utcnow()
        run.decision = None
        head.in_doubt = True
        head.worker = None
        events += [changed, *approvals.session_state_event(before, head_state(head))]
        await tx.flush()
        return await append_control(tx, session_id, events)


async def note_loss(
    database: Database, session_id: UUID, run_id: UUID, epoch: int, attempt: int
) -> tuple[int, list[StoredEvent]]:
    """The CLI process was lost under this attempt of the run: how many were in a row, and the beginning of the next.

    After the last one that is borne there is none.
    """
    async with database.transaction() as tx:
        head, run = await _held(tx, session_id, run_id, epoch)
        if run.attempt > attempt:
            return head.losses, []
        head.losses += 1
        if head.losses >= MAX_LOSSES:
            return head.losses, []
        run.attempt += 1
        started = event_pb2.Event(
            run=run_name(session_id, run_id),
            run_started=event_pb2.RunStarted(attempt=run.attempt, process_start=event_pb2.PROCESS_START_RESUMED),
        )
        started.time.FromDatetime(clock.utcnow())
        losses = head.losses
        await tx.flush()
        return losses, await append_control(tx, session_id, [LogEvent.of(started, run_id)])


async def has_workspace(database: Database, session_id: UUID) -> bool:
    """Whether the session's workspace has been made."""
    async with database.transaction() as tx:
        return (await tx.get_one(Session, session_id)).workspace_time is not None


async def note_workspace(database: Database, session_id: UUID, epoch: int) -> None:
    """The session's workspace has been made: from now on it has to be there. Raises LeaseLostError."""
    async with database.transaction() as tx:
        still_held(await lock_head(tx, session_id), session_id, epoch)
        session = await tx.get_one(Session, session_id)
        session.workspace_time = session.workspace_time or clock.utcnow()


async def load_options(database: Database, session_id: UUID) -> bytes:
    """The session's options as they are now, serialized."""
    async with database.transaction() as tx:
        return await session_options(tx, session_id)


async def mark_agent(database: Database, session_id: UUID, epoch: int, claude_session_id: UUID, version: str) -> None:
    """Note which CLI wrote the session's transcript, and under which id. Raises LeaseLostError."""
    async with database.transaction() as tx:
        still_held(await lock_head(tx, session_id), session_id, epoch)
        session = await tx.get_one(Session, session_id)
        session.claude_session_id = claude_session_id
        session.agent_version = version


async def _held(tx: Transaction, session_id: UUID, run_id: UUID, epoch: int) -> tuple[SessionHead, Run]:
    head = still_held(await lock_head(tx, session_id), session_id, epoch)
    return head, await tx.get_one(Run, run_id)
