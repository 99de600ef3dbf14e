"""Options as they are stored, of sessions, agents and tasks, for one-off work on all of them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc import clock
from agentrpc.store.agents import AgentVersion
from agentrpc.store.database import Transaction
from agentrpc.store.tables import Base, Session
from agentrpc.store.tasks import TaskRow

__all__ = ["TABLES", "is_done", "note_done", "page_of", "put"]


class DataMigration(Base):
    """One-off work on stored rows that is done."""

    __tablename__ = "data_migrations"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_time: Mapped[datetime]


# The tables, and the column of each that holds options: a SessionOptions, in that of tasks a Task.
TABLES: dict[str, tuple[Any, Any]] = {
    "sessions": (Session.id, Session.options),
    "agent_versions": (AgentVersion.id, AgentVersion.options),
    "tasks": (TaskRow.id, TaskRow.spec),
}


async def page_of(tx: Transaction, table: str, after: UUID, limit: int) -> list[tuple[UUID, bytes]]:
    """The rows with the next ids, none of which is changed by others meanwhile."""
    key, column = TABLES[table]
    rows = await tx.execute(
        select(key, column).where(key > after).order_by(key).limit(limit).with_for_update(key_share=True)
    )
    return [(row[0], bytes(row[1])) for row in rows]


async def put(tx: Transaction, table: str, row_id: UUID, value: bytes) -> None:
    """Replace what a row holds."""
    key, column = TABLES[table]
    await tx.execute(update(key.class_).where(key == row_id).values({column.key: value}))


async def is_done(tx: Transaction, name: str) -> bool:
    """Whether one-off work is done."""
    return await tx.get(DataMigration, name) is not None


async def note_done(tx: Transaction, name: str) -> None:
    """One-off work is done."""
    await tx.merge(DataMigration(name=name, done_time=clock.utcnow()))
