"""Registered MCP servers, and which of them have to be checked.

A check is made by whoever has the row's lease; what comes of it counts only under that lease, and for the configuration
that it was made with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ForeignKey, Index, Integer, UniqueConstraint, func, or_, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.names import agent_version_name, mcp_server_name, task_name
from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base
from agentrpc.store.users import lock_user

__all__ = [
    "MCP_SERVER_ORDER",
    "McpServerQuery",
    "McpServerRow",
    "ask_for_check",
    "claim_check",
    "find_mcp_servers",
    "give_back_check",
    "lock_mcp_server",
    "mcp_server_used_by",
    "own_mcp_servers",
]


class McpServerRow(Base):
    """A registered server."""

    __tablename__ = "mcp_servers"
    __table_args__ = (
        UniqueConstraint("owner", "display_name", name="mcp_servers_names"),
        Index("mcp_servers_by_owner", "owner", text("create_time DESC")),
        Index("mcp_servers_due", "due_time", postgresql_where=text("due_time IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    tags: Mapped[list[str]]
    shared: Mapped[bool] = mapped_column(Boolean)
    config: Mapped[bytes]  # a McpServer without secrets
    secrets: Mapped[bytes | None]  # the McpServer with them, sealed; None: there are none
    extra: Mapped[str]
    revision: Mapped[int] = mapped_column(Integer)
    config_revision: Mapped[int] = mapped_column(Integer, server_default="1")
    health_state: Mapped[str]
    health: Mapped[bytes]  # a McpServerHealth
    tools: Mapped[bytes | None]  # a ListMcpServerToolsResponse, of the last good check
    due_time: Mapped[datetime | None]
    lease: Mapped[UUID | None]
    lease_time: Mapped[datetime | None]
    claim_time: Mapped[datetime | None]
    checked_time: Mapped[datetime | None]  # when the check began that the health is of
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


_COLUMNS: dict[str, Any] = {
    "create_time": McpServerRow.create_time,
    "update_time": McpServerRow.update_time,
    "display_name": McpServerRow.display_name,
    "id": McpServerRow.id,
}
MCP_SERVER_ORDER = frozenset(_COLUMNS) - {"id"}


@dataclass(frozen=True, slots=True)
class McpServerQuery:
    """What to find.

    Attributes:
        reader: Only what this user has, or others share; None: everything.
        owner: Only this user's.
        tags: With one of these; none: all.
        states: Whose health is one of these; none: all.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    reader: UUID | None
    owner: UUID | None
    tags: Sequence[str]
    states: Sequence[str]
    order: Sequence[tuple[str, bool]]
    after: Sequence[Any] | None
    limit: int


async def find_mcp_servers(tx: Transaction, query: McpServerQuery) -> list[McpServerRow]:
    """Servers. Index mcp_servers_by_owner for one owner's newest."""
    wanted = []
    if query.reader is not None:
        wanted.append(or_(McpServerRow.owner == query.reader, McpServerRow.shared))
    if query.owner is not None:
        wanted.append(McpServerRow.owner == query.owner)
    if query.tags:
        wanted.append(McpServerRow.tags.op("&&")(list(query.tags)))
    if query.states:
        wanted.append(McpServerRow.health_state.in_(query.states))
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = select(McpServerRow).where(*wanted).order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def own_mcp_servers(tx: Transaction, owner: UUID) -> dict[str, McpServerRow]:
    """All servers of a user by their names. The user's row stays locked, so that two at once know of each other."""
    await lock_user(tx, owner)
    rows = await tx.scalars(select(McpServerRow).where(McpServerRow.owner == owner).order_by(McpServerRow.create_time))
    return {row.display_name: row for row in rows}


async def lock_mcp_server(tx: Transaction, server_id: UUID) -> McpServerRow | None:
    """A server that nobody else changes meanwhile."""
    return await tx.get(McpServerRow, server_id, with_for_update=True, populate_existing=True)


async def ask_for_check(tx: Transaction, server_id: UUID) -> datetime:
    """Have a server checked at once; a check that begins after the returned time has seen this."""
    asked: datetime = await tx.scalar(select(func.clock_timestamp()))  # type: ignore[assignment]  # it is never NULL
    await tx.execute(update(McpServerRow).where(McpServerRow.id == server_id).values(due_time=asked))
    return asked


# Index mcp_servers_due.
_CLAIM = """
UPDATE mcp_servers SET lease = gen_random_uuid(), lease_time = clock_timestamp() + $1, claim_time = clock_timestamp()
WHERE id = (
    SELECT id FROM mcp_servers
    WHERE due_time <= clock_timestamp() AND (lease IS NULL OR lease_time <= clock_timestamp())
    ORDER BY due_time LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING id, lease
"""


async def claim_check(database: Database, lease: timedelta) -> tuple[UUID, UUID] | None:
    """Take the server whose check is longest due: its id and the lease."""
    async with database.connection() as connection:
        row = await connection.fetchrow(_CLAIM, lease)
    return None if row is None else (row["id"], row["lease"])


async def give_back_check(database: Database, lease: UUID) -> None:
    """Let others check at once what was not checked to its end."""
    async with database.connection() as connection:
        await connection.execute("UPDATE mcp_servers SET lease = NULL, lease_time = NULL WHERE lease = $1", lease)


# Options are serialized messages, in which the name stands as it is.
_USED_BY = text("""
SELECT a.id, v.number, a.owner, NULL AS task_id
FROM agent_versions v JOIN agents a ON a.id = v.agent_id
WHERE a.delete_time IS NULL AND position(CAST(:name AS bytea) IN v.options) > 0
UNION ALL
SELECT NULL, NULL, t.owner, t.id
FROM tasks t
WHERE t.delete_time IS NULL AND position(CAST(:name AS bytea) IN t.spec) > 0
LIMIT 100
""")


async def mcp_server_used_by(tx: Transaction, server_id: UUID) -> list[tuple[str, UUID]]:
    """Names and owners of what refers to a server and keeps it from being deleted, at most 100.

    Sessions do not: a process that finds it gone says so.
    """
    rows = await tx.execute(_USED_BY, {"name": mcp_server_name(server_id).encode()})
    return [
        (task_name(row.task_id) if row.task_id else agent_version_name(row.id, row.number), row.owner) for row in rows
    ]
