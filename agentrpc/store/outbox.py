"""What others have to be told of: stored with the change itself, handed on once it is committed.

A row is written in the transaction of the event or the change that it tells of, and deleted in the transaction of
whoever deals with it (transactional outbox).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, Integer, func, select, text
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.store.database import Database, Transaction
from agentrpc.store.tables import Base

__all__ = ["Message", "OutboxRow", "put_off", "take_message", "tell"]


class OutboxRow(Base):
    """One thing to tell."""

    __tablename__ = "outbox"
    __table_args__ = (Index("outbox_due", "due_time", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    topic: Mapped[str]
    tenant: Mapped[UUID]
    subject: Mapped[str]
    session_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    create_time: Mapped[datetime] = mapped_column(server_default=text("now()"))
    due_time: Mapped[datetime] = mapped_column(server_default=text("now()"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to tell.

    Attributes:
        id: Grows, but for those that were written at the same time. The same when it is told again.
        topic: What happened: the name of an event type, such as `run_ended`, or of a change of another resource.
        tenant: Whose it is.
        subject: The name of the resource; empty when it is an event's session or run.
        session_id: The session of an event.
        run_id: Its run, if it has one.
        sequence: Its number in the log.
        time: When it was stored.
    """

    id: int
    topic: str
    tenant: UUID
    subject: str
    session_id: UUID | None
    run_id: UUID | None
    sequence: int | None
    time: datetime


def tell(tx: Transaction, topic: str, tenant: UUID, subject: str) -> None:
    """Store, with a change of a resource that has no log, that others are to be told of it."""
    tx.add(OutboxRow(topic=topic, tenant=tenant, subject=subject))


async def take_message(tx: Transaction) -> Message | None:
    """The oldest that is due; gone when the transaction commits. Others pass over it meanwhile. Index outbox_due."""
    row = await tx.scalar(
        select(OutboxRow)
        .where(OutboxRow.due_time <= func.now())
        .order_by(OutboxRow.due_time, OutboxRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if row is None:
        return None
    await tx.delete(row)
    return Message(
        row.id, row.topic, row.tenant, row.subject, row.session_id, row.run_id, row.sequence, row.create_time
    )


async def put_off(database: Database, message_id: int, longest: timedelta) -> int:
    """Let one that could not be dealt with wait, twice as long each time; how often it was tried."""
    async with database.connection() as connection:
        return int(
            await connection.fetchval(
                "UPDATE outbox SET attempts = attempts + 1,"
                " due_time = now() + least($2, interval '1 second' * power(2, least(attempts, 20)))"
                " WHERE id = $1 RETURNING attempts",
                message_id,
                longest,
            )
            or 0
        )
