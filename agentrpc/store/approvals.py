"""Queries over approvals and the rules that answers have added."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, or_, select, tuple_, update

from agentrpc import clock
from agentrpc.store.database import Transaction, database_time
from agentrpc.store.tables import Approval, Session, SessionGrant

__all__ = [
    "ApprovalQuery",
    "approvals_by_id",
    "changed_approvals",
    "current_approvals",
    "due_approvals",
    "find_approvals",
    "find_grants",
    "grant_rule",
    "granted_rules",
    "of_run",
    "pending_of_run",
    "pending_of_sessions",
    "rules_changed",
    "settled_approvals",
]

_PENDING = Approval.state == "PENDING"


@dataclass(frozen=True, slots=True)
class ApprovalQuery:
    """What to find, oldest first; None and empty mean all."""

    session_id: UUID | None = None
    owner: UUID | None = None
    run_id: UUID | None = None
    states: Sequence[str] = ()
    after: UUID | None = None
    limit: int = 50


async def find_approvals(tx: Transaction, query: ApprovalQuery) -> list[Approval]:
    """A page of approvals. Index approvals_by_session for one session's."""
    statement = select(Approval).order_by(Approval.id).limit(query.limit)
    if query.session_id is not None:
        statement = statement.where(Approval.session_id == query.session_id)
    if query.owner is not None:
        statement = statement.where(Approval.tenant == query.owner)
    if query.run_id is not None:
        statement = statement.where(Approval.run_id == query.run_id)
    if query.states:
        statement = statement.where(Approval.state.in_(query.states))
    if query.after is not None:
        statement = statement.where(Approval.id > query.after)
    return list(await tx.scalars(statement))


async def current_approvals(
    tx: Transaction, owner: UUID | None, session_id: UUID | None, since: datetime | None
) -> list[Approval]:
    """The pending ones, and those that changed at or after `since`. Indexes approvals_pending, approvals_changed."""
    statement = select(Approval).order_by(Approval.id)
    statement = statement.where(_PENDING if since is None else or_(_PENDING, Approval.update_time >= since))
    if owner is not None:
        statement = statement.where(Approval.tenant == owner)
    if session_id is not None:
        statement = statement.where(Approval.session_id == session_id)
    return list(await tx.scalars(statement))


async def changed_approvals(tx: Transaction, since: datetime) -> set[tuple[UUID, str]]:
    """(approval, state) of those that were asked or got a final state at or after `since`. Index approvals_changed."""
    statement = select(Approval.id, Approval.state).where(Approval.update_time >= since)
    return {(row[0], row[1]) for row in await tx.execute(statement)}


async def approvals_by_id(tx: Transaction, approval_ids: Sequence[UUID]) -> list[Approval]:
    """These, oldest first."""
    statement = select(Approval).where(Approval.id.in_(approval_ids)).order_by(Approval.id)
    return list(await tx.scalars(statement))


async def due_approvals(tx: Transaction, limit: int) -> list[tuple[UUID, UUID]]:
    """(session, approval) of those that wait past their deadline, by the database's clock. Index approvals_pending."""
    statement = (
        select(Approval.session_id, Approval.id).where(_PENDING, Approval.expire_time <= func.now()).limit(limit)
    )
    return [(row[0], row[1]) for row in await tx.execute(statement)]


async def of_run(tx: Transaction, session_id: UUID, run_id: UUID) -> list[Approval]:
    """All of a run, oldest first."""
    statement = select(Approval).where(Approval.session_id == session_id, Approval.run_id == run_id)
    return list(await tx.scalars(statement.order_by(Approval.id)))


async def pending_of_run(tx: Transaction, session_id: UUID, run_id: UUID) -> list[Approval]:
    """Those of a run that wait."""
    statement = select(Approval).where(Approval.session_id == session_id, Approval.run_id == run_id, _PENDING)
    return list(await tx.scalars(statement.order_by(Approval.id)))


async def pending_of_sessions(tx: Transaction, session_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """The ids of those that wait, by session."""
    found: dict[UUID, list[UUID]] = {}
    if session_ids:
        statement = select(Approval.session_id, Approval.id).where(_PENDING, Approval.session_id.in_(session_ids))
        for row in await tx.execute(statement.order_by(Approval.id)):
            found.setdefault(row[0], []).append(row[1])
    return found


async def settled_approvals(
    tx: Transaction, session_id: UUID, approval_ids: Sequence[UUID]
) -> dict[UUID, tuple[str, bytes]]:
    """State and answer of those among these that do not wait any more."""
    statement = select(Approval.id, Approval.state, Approval.resolution).where(
        Approval.session_id == session_id, Approval.id.in_(approval_ids), Approval.state != "PENDING"
    )
    return {row[0]: (row[1], row[2] or b"") for row in await tx.execute(statement)}


async def find_grants(
    tx: Transaction, session_id: UUID, after: tuple[datetime, UUID] | None, limit: int | None
) -> list[SessionGrant]:
    """A page of the rules that answers "for the session" have added, oldest first; all without a limit."""
    statement = select(SessionGrant).where(SessionGrant.session_id == session_id)
    if after is not None:
        statement = statement.where(tuple_(SessionGrant.create_time, SessionGrant.id) > tuple_(*after))
    return list(await tx.scalars(statement.order_by(SessionGrant.create_time, SessionGrant.id).limit(limit)))


async def granted_rules(tx: Transaction, session_id: UUID) -> list[str]:
    """All the rules that answers "for the session" have added."""
    return list(await tx.scalars(select(SessionGrant.rule).where(SessionGrant.session_id == session_id)))


async def grant_rule(tx: Transaction, session_id: UUID, rule: str, approval_id: UUID, creator: UUID) -> None:
    """Add a rule to those of a session, unless it has it already; the caller holds the head row's lock."""
    if await tx.get(SessionGrant, (session_id, rule)) is not None:
        return
    now = await database_time(tx)
    grant = SessionGrant(session_id=session_id, rule=rule, approval_id=approval_id)
    grant.id, grant.creator, grant.create_time = clock.uuid7(), creator, now
    tx.add(grant)
    await tx.flush()
    await rules_changed(tx, session_id)


async def rules_changed(tx: Transaction, session_id: UUID) -> None:
    """Let the session's worker, if it has one, judge by the rules as they are when this is committed."""
    await tx.execute(update(Session).where(Session.id == session_id).values(rules_revision=Session.rules_revision + 1))
