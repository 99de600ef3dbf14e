"""Approvals: questions of agents to people.

Every change of an approval locks its session's head row first, so that an answer, a deadline and the end of a run
cannot pass each other.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import ApprovalState, RunState, SessionState, may_follow
from agentrpc.errors import AgentRpcError, FailedPrecondition, InvalidArgument
from agentrpc.names import approval_name, parse_approval, parse_run, parse_session_or_wildcard, run_name, user_name
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.pages import Pager, fitting, page_size
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.validation import Faults, check_enums, json_object
from agentrpc.services.views import approval_message, head_state
from agentrpc.settings import Settings
from agentrpc.store.approvals import (
    ApprovalQuery,
    current_approvals,
    due_approvals,
    find_approvals,
    grant_rule,
    pending_of_run,
)
from agentrpc.store.database import Database, Transaction, database_time
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.tables import Approval, Run, SessionHead
from agentrpc.v1 import approval_pb2, approval_service_pb2, event_pb2, run_pb2

__all__ = ["Approvals", "cancel_pending", "is_asked", "request_approval", "run_state_event", "session_state_event"]

log = structlog.get_logger()

_EXPIRE_AT_ONCE = 50
_ALLOW = approval_pb2.Resolution.DECISION_ALLOW


class Approvals:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def get(self, principal: Principal, name: str) -> approval_pb2.Approval:
        """GetApproval."""
        session_id, approval_id = parse_approval(name)
        async with self._database.transaction() as tx:
            return approval_message(await _visible(tx, principal, session_id, approval_id))

    async def list(
        self, principal: Principal, request: approval_service_pb2.ListApprovalsRequest
    ) -> approval_service_pb2.ListApprovalsResponse:
        """ListApprovals, oldest first."""
        session_id = parse_session_or_wildcard(request.parent)
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        faults.done()
        after = self._pager.read(request, principal.user_id)
        query = ApprovalQuery(
            session_id=session_id,
            owner=visible_owner(principal),
            run_id=parse_run(request.run, field="run")[1] if request.run else None,
            states=[approval_pb2.Approval.State.Name(state).removeprefix("STATE_") for state in request.states],
            after=UUID(after[0]) if after is not None else None,
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            if session_id is not None:
                head = await tx.get(SessionHead, session_id)
                require_visible(principal, head.tenant if head else None, "Session", request.parent)
            rows = await find_approvals(tx, query)
        approvals = fitting([approval_message(row) for row in rows[:size]])
        response = approval_service_pb2.ListApprovalsResponse(approvals=approvals)
        if len(rows) > len(approvals):
            last = rows[len(approvals) - 1].id
            response.next_page_token = self._pager.issue(request, principal.user_id, [str(last)])
        return response

    async def current(
        self, owner: UUID | None, session_id: UUID | None, since: datetime | None
    ) -> Sequence[approval_pb2.Approval]:
        """What a watcher has to know: the pending ones, and those that changed since a time.

        Args:
            owner: Of the sessions; None for everyone's.
            session_id: Only of this session.
            since: Also those with a final state that changed at or after this time.
        """
        async with self._database.transaction() as tx:
            return [approval_message(row) for row in await current_approvals(tx, owner, session_id, since)]

    async def resolve(
        self, principal: Principal, name: str, resolution: approval_pb2.Resolution
    ) -> approval_pb2.Approval:
        """ResolveApproval: the first answer counts; the same answer of the same caller again changes nothing."""
        session_id, approval_id = parse_approval(name)
        require_write(principal, "approvals.resolve")
        answer = _answer(resolution, principal)
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            row = await _visible(tx, principal, session_id, approval_id)
            assert head is not None
            if row.state != ApprovalState.PENDING:
                if row.resolution is not None and _same(approval_pb2.Resolution.FromString(row.resolution), answer):
                    return approval_message(row)
                raise _not_pending(row)
            now = await database_time(tx)
            if now >= row.expire_time:
                raise FailedPrecondition(
                    "the deadline of the approval has passed, so it counts as denied",
                    reason="APPROVAL_EXPIRED",
                    metadata={"expire_time": row.expire_time.isoformat()},
                )
            question = approval_pb2.Approval.FromString(row.question)
            if answer.scope == approval_pb2.Resolution.SCOPE_SESSION and not question.session_rules:
                raise InvalidArgument.field(
                    "resolution.scope", "no rule would be narrow enough for this call: allow it once"
                )
            answer.resolve_time.FromDatetime(now)
            allowed = answer.decision == _ALLOW
            if allowed and answer.scope == approval_pb2.Resolution.SCOPE_SESSION:
                for rule in question.session_rules:
                    await grant_rule(tx, session_id, rule, approval_id, principal.user_id)
            row.resolution = answer.SerializeToString()
            state = ApprovalState.ALLOWED if allowed else ApprovalState.DENIED
            events = await _settle(tx, head, row, state, answer)
            worker = head.worker
            message = approval_message(row)
        await publish(self._bus, session_id, events)
        await self._doorbell.ring(session_id, worker)
        return message

    async def expire_due(self) -> int:
        """Let approvals past their deadline expire; how many did. Any number of schedulers may do this."""
        async with self._database.transaction() as tx:
            due = await due_approvals(tx, _EXPIRE_AT_ONCE)
        for session_id, approval_id in due:
            try:
                async with self._database.transaction() as tx:
                    head = await lock_head(tx, session_id)
                    row = await tx.get(Approval, approval_id)
                    if head is None or row is None or row.state != ApprovalState.PENDING:
                        continue
                    events = await _settle(tx, head, row, ApprovalState.EXPIRED, None)
                    worker = head.worker
            except AgentRpcError:
                raise
            except Exception:
                # One that cannot expire does not keep the others.
                log.exception("approval_not_expired", approval=approval_name(session_id, approval_id))
                continue
            await publish(self._bus, session_id, events)
            await self._doorbell.ring(session_id, worker)
        return len(due)


async def is_asked(tx: Transaction, approval: approval_pb2.Approval) -> bool:
    """Whether this question is stored already."""
    return await tx.get(Approval, parse_approval(approval.name)[1]) is not None


async def request_approval(
    tx: Transaction, head: SessionHead, run: Run, approval: approval_pb2.Approval
) -> Sequence[StoredEvent]:
    """Store a question of a run; the caller holds the head row's lock and has checked its epoch.

    Its times become those of the database's clock: a deadline by a clock that is wrong would come too late, or at once.
    """
    before = head_state(head)
    now = await database_time(tx)
    ahead = approval.create_time.ToDatetime(UTC) - now
    approval.create_time.FromDatetime(now)
    approval.expire_time.FromDatetime(approval.expire_time.ToDatetime(UTC) - ahead)
    question = approval_pb2.Approval()
    question.CopyFrom(approval)
    for name in ("state", "create_time", "expire_time", "resolution"):
        question.ClearField(name)
    tx.add(
        Approval(
            id=parse_approval(approval.name)[1],
            session_id=head.session_id,
            tenant=head.tenant,
            run_id=run.id,
            state=ApprovalState.PENDING,
            question=question.SerializeToString(),
            expire_time=approval.expire_time.ToDatetime(now.tzinfo),
            create_time=approval.create_time.ToDatetime(now.tzinfo),
            update_time=now,
        )
    )
    head.pending_approvals += 1
    asked = event_pb2.Event(
        run=run_name(head.session_id, run.id),
        parent_tool_use_id=approval.parent_tool_use_id,
        approval_requested=event_pb2.ApprovalRequested(approval=approval),
    )
    asked.time.FromDatetime(now)
    events = [LogEvent.of(asked, run.id)]
    if run.state == RunState.RUNNING:
        events.append(run_state_event(run, RunState.REQUIRES_ACTION, approval.title))
    events += session_state_event(before, head_state(head))
    await tx.flush()
    return await append_control(tx, head.session_id, events)


async def cancel_pending(
    tx: Transaction, head: SessionHead, run_id: UUID, only: Sequence[UUID] | None = None
) -> list[LogEvent]:
    """Cancel what waits in a run, or only some of it; the events are the caller's to append."""
    rows = [row for row in await pending_of_run(tx, head.session_id, run_id) if only is None or row.id in only]
    if not rows:
        return []
    now = await database_time(tx)
    for row in rows:
        row.state = ApprovalState.CANCELLED
        row.update_time = now
        head.pending_approvals -= 1
    return [_resolved(row, None) for row in rows]


def session_state_event(before: SessionState, after: SessionState) -> list[LogEvent]:
    """`session_state_changed`, if it did change."""
    if before == after:
        return []
    event = event_pb2.Event(
        session_state_changed=event_pb2.SessionStateChanged(
            previous_state=f"STATE_{before}",
            state=f"STATE_{after}",
        )
    )
    event.time.FromDatetime(clock.utcnow())
    return [LogEvent.of(event, None)]


async def _settle(
    tx: Transaction,
    head: SessionHead,
    row: Approval,
    state: ApprovalState,
    answer: approval_pb2.Resolution | None,
) -> Sequence[StoredEvent]:
    before = head_state(head)
    row.state = state
    row.update_time = await database_time(tx)
    head.pending_approvals -= 1
    events = [_resolved(row, answer)]
    run = await tx.get_one(Run, row.run_id)
    await tx.flush()
    if run.state == RunState.REQUIRES_ACTION and not await pending_of_run(tx, row.session_id, run.id):
        events.append(run_state_event(run, RunState.RUNNING, "the approval was answered"))
    events += session_state_event(before, head_state(head))
    await tx.flush()
    return await append_control(tx, head.session_id, events)


def run_state_event(run: Run, state: RunState, message: str, in_doubt: Sequence[run_pb2.CallInDoubt] = ()) -> LogEvent:
    """Bring a run from one state that is not terminal to another; the event is the caller's to append."""
    assert may_follow(RunState(run.state), state)
    event = event_pb2.Event(
        run=run_name(run.session_id, run.id),
        run_state_changed=event_pb2.RunStateChanged(
            previous_state=f"STATE_{run.state}",
            state=f"STATE_{state}",
            message=message,
            in_doubt_calls=in_doubt,
        ),
    )
    event.time.FromDatetime(clock.utcnow())
    run.state = state
    return LogEvent.of(event, run.id)


def _resolved(row: Approval, answer: approval_pb2.Resolution | None) -> LogEvent:
    event = event_pb2.Event(
        run=run_name(row.session_id, row.run_id),
        approval_resolved=event_pb2.ApprovalResolved(
            approval=approval_name(row.session_id, row.id),
            tool_use_id=approval_pb2.Approval.FromString(row.question).tool_use_id,
            state=f"STATE_{row.state}",
        ),
    )
    if answer is not None:
        event.approval_resolved.resolution.CopyFrom(answer)
    event.time.FromDatetime(clock.utcnow())
    return LogEvent.of(event, row.run_id)


async def _visible(tx: Transaction, principal: Principal, session_id: UUID, approval_id: UUID) -> Approval:
    row = await tx.get(Approval, approval_id)
    if row is not None and row.session_id != session_id:
        row = None
    require_visible(principal, row.tenant if row else None, "Approval", approval_name(session_id, approval_id))
    assert row is not None
    return row


def _answer(resolution: approval_pb2.Resolution, principal: Principal) -> approval_pb2.Resolution:
    faults = Faults()
    check_enums(resolution, faults, "resolution.")
    faults.check(bool(resolution.decision), "resolution.decision", "is required: DECISION_ALLOW or DECISION_DENY")
    faults.text("resolution.message", resolution.message, 4000)
    if resolution.decision == _ALLOW:
        faults.check(not resolution.message, "resolution.message", "goes with DECISION_DENY only")
        faults.check(not resolution.interrupt, "resolution.interrupt", "goes with DECISION_DENY only")
    elif resolution.decision:
        faults.check(not resolution.scope, "resolution.scope", "must be unset with DECISION_DENY")
        faults.check(
            not resolution.updated_input_json, "resolution.updated_input_json", "goes with DECISION_ALLOW only"
        )
    faults.done()
    if resolution.updated_input_json:
        json_object("resolution.updated_input_json", resolution.updated_input_json)
    answer = approval_pb2.Resolution()
    answer.CopyFrom(resolution)
    answer.resolver = user_name(principal.user_id)
    answer.ClearField("resolve_time")
    if answer.decision == _ALLOW and not answer.scope:
        answer.scope = approval_pb2.Resolution.SCOPE_ONCE
    return answer


def _same(stored: approval_pb2.Resolution, answer: approval_pb2.Resolution) -> bool:
    stored.ClearField("resolve_time")
    return stored == answer


def _not_pending(row: Approval) -> FailedPrecondition:
    resolver = approval_pb2.Resolution.FromString(row.resolution).resolver if row.resolution else ""
    return FailedPrecondition(
        f"the approval has the final state {row.state}: watch for new ones with WatchApprovals",
        reason="APPROVAL_NOT_PENDING",
        metadata={"state": f"STATE_{row.state}", "resolver": resolver},
    )
