"""Queries over sessions: keyset pages in any order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, not_, or_, select

from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Session, SessionHead

__all__ = ["SESSION_ORDER", "SessionQuery", "find_sessions", "rules_revision"]

_COLUMNS: dict[str, Any] = {
    "create_time": Session.create_time,
    "update_time": Session.update_time,
    "display_name": Session.display_name,
    "id": Session.id,
}
SESSION_ORDER = frozenset(_COLUMNS) - {"id"}

# As `domain.states.session_state`.
_AT_REST = and_(SessionHead.active_run.is_(None), SessionHead.queued == 0)
_STATES: dict[str, ColumnElement[bool]] = {
    "ARCHIVED": and_(_AT_REST, SessionHead.closed == "ARCHIVED"),
    "FAILED": and_(_AT_REST, SessionHead.closed == "FAILED"),
    "IDLE": and_(_AT_REST, SessionHead.closed.is_(None)),
    "REQUIRES_ACTION": or_(SessionHead.pending_approvals > 0, SessionHead.in_doubt),
    "RUNNING": and_(not_(_AT_REST), SessionHead.pending_approvals == 0, SessionHead.in_doubt.is_(False)),
}


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """What to find.

    Attributes:
        owners: All of these must be the owner; none: everyone's.
        states: Names of session states; none: all.
        labels: All of these.
        created_from: At or after.
        created_before: Before.
        show_deleted: Deleted ones too.
        agent: Made from this agent, and from the version of this number if there is one.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    owners: Sequence[UUID] = ()
    states: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_from: datetime | None = None
    created_before: datetime | None = None
    show_deleted: bool = False
    agent: tuple[UUID, int | None] | None = None
    order: Sequence[tuple[str, bool]] = (("create_time", True), ("id", True))
    after: Sequence[Any] | None = None
    limit: int = 50


async def find_sessions(tx: Transaction, query: SessionQuery) -> list[tuple[Session, SessionHead]]:
    """Sessions with their heads. Indexes sessions_by_owner, sessions_by_agent for the newest."""
    wanted = [Session.owner == owner for owner in query.owners]
    if not query.show_deleted:
        wanted.append(Session.delete_time.is_(None))
    if query.states:
        wanted.append(or_(*(_STATES[state] for state in query.states if state in _STATES), Session.id.is_(None)))
    if query.labels:
        wanted.append(Session.labels.contains(dict(query.labels)))
    if query.created_from is not None:
        wanted.append(Session.create_time >= query.created_from)
    if query.created_before is not None:
        wanted.append(Session.create_time < query.created_before)
    if query.agent is not None:
        agent_id, number = query.agent
        wanted.append(Session.agent_id == agent_id)
        if number is not None:
            wanted.append(Session.agent_number == number)
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = (
        select(Session, SessionHead)
        .join(SessionHead, SessionHead.session_id == Session.id)
        .where(*wanted)
        .order_by(*in_order(_COLUMNS, query.order))
        .limit(query.limit)
    )
    return [(row[0], row[1]) for row in await tx.execute(statement)]


async def rules_revision(database: Database, session_id: UUID) -> int:
    """The number that changes whenever the rules of a session do. The primary key of the session's row."""
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT rules_revision FROM sessions WHERE id = $1", session_id) or 0)
