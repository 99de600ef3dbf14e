"""Tool groups: rules for tool calls under one name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, Integer, func, or_, select, text
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.names import agent_version_name, task_name
from agentrpc.store.agents import Agent, AgentVersion
from agentrpc.store.database import Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base
from agentrpc.store.tasks import tasks_using_tool_group

__all__ = [
    "TOOL_GROUP_ORDER",
    "ToolGroup",
    "ToolGroupQuery",
    "find_tool_groups",
    "lock_tool_groups",
    "read_tool_groups",
    "tool_group_used_by",
]


class ToolGroup(Base):
    """Rules that agents and tasks refer to."""

    __tablename__ = "tool_groups"
    __table_args__ = (Index("tool_groups_by_owner", "owner", "create_time", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[dict[str, str]]
    allowed_tools: Mapped[list[str]]
    disallowed_tools: Mapped[list[str]]
    shared: Mapped[bool]
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


_COLUMNS: dict[str, Any] = {
    "create_time": ToolGroup.create_time,
    "update_time": ToolGroup.update_time,
    "display_name": ToolGroup.display_name,
    "id": ToolGroup.id,
}
TOOL_GROUP_ORDER = frozenset(_COLUMNS) - {"id"}
_TEXT = func.concat_ws(" ", ToolGroup.display_name, ToolGroup.description)


@dataclass(frozen=True, slots=True)
class ToolGroupQuery:
    """What to find.

    Attributes:
        visible_to: Only what this user owns or others share; None: everything.
        owner: Only this owner's; None: everyone's.
        words: All of these in its texts, whatever their case.
        labels: All of these.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    visible_to: UUID | None = None
    owner: UUID | None = None
    words: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[tuple[str, bool]] = (("create_time", True), ("id", True))
    after: Sequence[Any] | None = None
    limit: int = 50


async def find_tool_groups(tx: Transaction, query: ToolGroupQuery) -> list[ToolGroup]:
    """Tool groups. Index tool_groups_by_owner for one owner's newest."""
    wanted = [_TEXT.icontains(word, autoescape=True) for word in query.words]
    if query.visible_to is not None:
        wanted.append(or_(ToolGroup.owner == query.visible_to, ToolGroup.shared))
    if query.owner is not None:
        wanted.append(ToolGroup.owner == query.owner)
    if query.labels:
        wanted.append(ToolGroup.labels.contains(dict(query.labels)))
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = select(ToolGroup).where(*wanted).order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def read_tool_groups(tx: Transaction, ids: Sequence[UUID]) -> dict[UUID, ToolGroup]:
    """Those of these tool groups that there are."""
    if not ids:
        return {}
    return {row.id: row for row in await tx.scalars(select(ToolGroup).where(ToolGroup.id.in_(ids)))}


async def lock_tool_groups(tx: Transaction, ids: Sequence[UUID], *, to_refer: bool = False) -> dict[UUID, ToolGroup]:
    """As `read_tool_groups`, locked: nobody else changes or deletes them meanwhile.

    Args:
        tx: The unit of work.
        ids: The tool groups.
        to_refer: For whoever stores a reference to them; any number may at a time.
    """
    if not ids:
        return {}
    statement = (
        select(ToolGroup)
        .where(ToolGroup.id.in_(ids))
        .order_by(ToolGroup.id)
        .with_for_update(read=to_refer, key_share=not to_refer)
    )
    return {row.id: row for row in await tx.scalars(statement)}


async def tool_group_used_by(tx: Transaction, group_id: UUID) -> list[tuple[str, UUID]]:
    """Names and owners of what refers to a tool group and keeps it from being deleted, of each kind at most 100.

    Index agent_versions_by_tool_group. Whoever stores a reference locks the group `to_refer` before.
    """
    statement = (
        select(AgentVersion.agent_id, AgentVersion.number, Agent.owner)
        .join(Agent, Agent.id == AgentVersion.agent_id)
        .where(AgentVersion.tool_groups.contains([group_id]), Agent.delete_time.is_(None))
        .order_by(AgentVersion.agent_id, AgentVersion.number)
        .limit(100)
    )
    versions = [(agent_version_name(row[0], row[1]), row[2]) for row in await tx.execute(statement)]
    return versions + [(task_name(task), owner) for task, owner in await tasks_using_tool_group(tx, group_id, 100)]
