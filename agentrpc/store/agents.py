"""Agents, their versions, and how often they were used.

A version never changes: there is no statement here that updates one. How often an agent was used is counted in rows
of its own, of which it has as many as there were ever sessions created from it at one moment: whoever counts takes one
that nobody holds, so that nobody waits for another's transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, Text, Uuid, and_, cast, func, or_, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, column_property, mapped_column

from agentrpc import clock
from agentrpc.names import task_name
from agentrpc.store.database import Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base
from agentrpc.store.tasks import tasks_using_agent

__all__ = [
    "AGENT_ORDER",
    "Agent",
    "AgentQuery",
    "AgentUse",
    "AgentVersion",
    "agent_used_by",
    "count_use",
    "find_agents",
    "find_versions",
    "lock_agent",
    "version_of",
]


class AgentVersion(Base):
    """A version of an agent, for good."""

    __tablename__ = "agent_versions"
    __table_args__ = (
        Index("agent_versions_by_number", "agent_id", "number", unique=True),
        Index("agent_versions_by_tool_group", "tool_groups", postgresql_using="gin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"))
    number: Mapped[int] = mapped_column(Integer)
    options: Mapped[bytes]  # agentrpc.v1.SessionOptions
    tool_groups: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid()))
    note: Mapped[str]
    creator: Mapped[UUID]
    create_time: Mapped[datetime]


class AgentUse(Base):
    """A part of an agent's count of uses."""

    __tablename__ = "agent_uses"
    __table_args__ = (Index("agent_uses_by_agent", "agent_id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"))
    count: Mapped[int] = mapped_column(BigInteger)
    last_time: Mapped[datetime]


class Agent(Base):
    """What can be changed about an agent. Versions are numbered up to `newest_version`."""

    __tablename__ = "agents"
    __table_args__ = (
        Index("agents_by_owner", "owner", "create_time", "id"),
        Index("agents_shared", "create_time", "id", postgresql_where=text("shared AND delete_time IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    category: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    labels: Mapped[dict[str, str]]
    shared: Mapped[bool]
    default_version: Mapped[int] = mapped_column(Integer)
    newest_version: Mapped[int] = mapped_column(Integer)
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]
    delete_time: Mapped[datetime | None]
    # Sums over agent_uses, by its index agent_uses_by_agent.
    usage_count: Mapped[int] = column_property(
        select(cast(func.coalesce(func.sum(AgentUse.count), 0), BigInteger))
        .where(AgentUse.agent_id == id)  # noqa: A003 - the column above
        .correlate_except(AgentUse)
        .scalar_subquery(),
        expire_on_flush=False,
    )
    last_used_time: Mapped[datetime | None] = column_property(
        select(func.max(AgentUse.last_time))
        .where(AgentUse.agent_id == id)  # noqa: A003 - the column above
        .correlate_except(AgentUse)
        .scalar_subquery(),
        expire_on_flush=False,
    )


_COLUMNS: dict[str, Any] = {
    "create_time": Agent.create_time,
    "update_time": Agent.update_time,
    "display_name": Agent.display_name,
    "usage_count": Agent.usage_count,
    "id": Agent.id,
}
AGENT_ORDER = frozenset(_COLUMNS) - {"id"}
_TEXT = func.concat_ws(
    " ", Agent.display_name, Agent.description, Agent.category, func.array_to_string(Agent.tags, " ")
)


@dataclass(frozen=True, slots=True)
class AgentQuery:
    """What to find.

    Attributes:
        visible_to: Only what this user owns, or others share and have not deleted; None: everything.
        owner: Only this owner's; None: everyone's.
        words: All of these in its texts, whatever their case.
        category: This one; empty: any.
        tags: All of these.
        labels: All of these.
        show_deleted: Deleted ones too.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    visible_to: UUID | None = None
    owner: UUID | None = None
    words: Sequence[str] = ()
    category: str = ""
    tags: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    show_deleted: bool = False
    order: Sequence[tuple[str, bool]] = (("create_time", True), ("id", True))
    after: Sequence[Any] | None = None
    limit: int = 50


async def find_agents(tx: Transaction, query: AgentQuery) -> list[Agent]:
    """Agents. Indexes agents_by_owner and agents_shared; words are looked for in all that these give."""
    wanted = [_TEXT.icontains(word, autoescape=True) for word in query.words]
    if query.visible_to is not None:
        wanted.append(or_(Agent.owner == query.visible_to, and_(Agent.shared, Agent.delete_time.is_(None))))
    if query.owner is not None:
        wanted.append(Agent.owner == query.owner)
    if query.category:
        wanted.append(Agent.category == query.category)
    if query.tags:
        wanted.append(Agent.tags.contains(list(query.tags)))
    if query.labels:
        wanted.append(Agent.labels.contains(dict(query.labels)))
    if not query.show_deleted:
        wanted.append(Agent.delete_time.is_(None))
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = select(Agent).where(*wanted).order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def lock_agent(tx: Transaction, agent_id: UUID, *, to_refer: bool = False) -> Agent | None:
    """An agent, locked: nobody else changes or deletes it meanwhile. Sessions can be created from it.

    Args:
        tx: The unit of work.
        agent_id: The agent.
        to_refer: For whoever stores a reference to it; any number may at a time.
    """
    found: Agent | None = await tx.scalar(
        select(Agent).where(Agent.id == agent_id).with_for_update(read=to_refer, key_share=not to_refer)
    )
    return found


async def version_of(tx: Transaction, agent_id: UUID, number: int) -> AgentVersion | None:
    """A version by its number."""
    found: AgentVersion | None = await tx.scalar(
        select(AgentVersion).where(AgentVersion.agent_id == agent_id, AgentVersion.number == number)
    )
    return found


async def find_versions(tx: Transaction, agent_id: UUID, *, before: int | None, limit: int) -> list[AgentVersion]:
    """Versions of an agent, newest first, those with a smaller number than `before`. Index agent_versions_by_number."""
    statement = select(AgentVersion).where(AgentVersion.agent_id == agent_id)
    if before is not None:
        statement = statement.where(AgentVersion.number < before)
    return list(await tx.scalars(statement.order_by(AgentVersion.number.desc()).limit(limit)))


# Locks one row of agent_uses until the transaction ends, one that nobody else holds.
_COUNT = text(
    """
    WITH free AS (
        SELECT id FROM agent_uses WHERE agent_id = :agent_id LIMIT 1 FOR UPDATE SKIP LOCKED
    ), counted AS (
        UPDATE agent_uses SET count = count + 1, last_time = :now FROM free WHERE agent_uses.id = free.id RETURNING 1
    )
    INSERT INTO agent_uses (id, agent_id, count, last_time)
    SELECT :id, :agent_id, 1, :now WHERE NOT EXISTS (SELECT 1 FROM counted)
    """
)


async def count_use(tx: Transaction, agent_id: UUID) -> None:
    """Count, in the transaction that creates a session, that it was created from an agent. Waits for nobody."""
    await tx.execute(_COUNT, {"agent_id": agent_id, "id": clock.uuid7(), "now": clock.utcnow()})


async def agent_used_by(tx: Transaction, agent_id: UUID) -> list[tuple[str, UUID]]:
    """Names and owners of what refers to an agent and keeps it from being deleted, at most 100.

    Sessions do not: they have a copy of the options. Whoever stores a reference locks the agent `to_refer` before.
    """
    return [(task_name(task), owner) for task, owner in await tasks_using_agent(tx, agent_id, 100)]
