"""Archives of sessions: who writes or reads one at the moment, where it is, and the rows that go there and come back.

A row is both the state and the job. Whoever works on it holds its lease; what that work changes it changes in one
transaction, under the head row's lock and only while it holds the lease.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, and_, func, or_, select, text
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc import clock
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.tables import Base, Session, SessionHead

__all__ = [
    "ArchiveJob",
    "ArchiveLeaseLost",
    "ArchiveRow",
    "EventRow",
    "TranscriptRow",
    "archives_of",
    "drop_log",
    "enqueue_due",
    "held_archive",
    "insert_events",
    "insert_transcript",
    "note_failure",
    "read_event_rows",
    "read_transcript_rows",
    "renew_archive",
    "take_archive",
]


class ArchiveRow(Base):
    """The archive of a session.

    `dropped`: events and transcript are only there. `files_left`: the workspace is there, and still to be removed here.
    """

    __tablename__ = "archives"
    __table_args__ = (
        Index("archives_due", "due_time", postgresql_where=text("state IN ('STORING', 'RESTORING') OR files_left")),
    )

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(
        CheckConstraint("state IN ('STORING', 'STORED', 'RESTORING', 'RESTORED', 'FAILED')")
    )
    dropped: Mapped[bool] = mapped_column(server_default=text("false"))
    files_left: Mapped[bool] = mapped_column(server_default=text("false"))
    object: Mapped[str | None]  # its key below the archive URL
    size: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    sha256: Mapped[str] = mapped_column(server_default=text("''"))
    event_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    file_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    has_workspace: Mapped[bool] = mapped_column(server_default=text("false"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    error: Mapped[str] = mapped_column(server_default=text("''"))
    lease: Mapped[UUID | None]
    lease_expire_time: Mapped[datetime | None]
    due_time: Mapped[datetime] = mapped_column(server_default=text("now()"))
    create_time: Mapped[datetime] = mapped_column(server_default=text("now()"))
    store_time: Mapped[datetime | None]
    restore_time: Mapped[datetime | None]


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """A row that was taken, under a lease.

    Attributes:
        session_id: The session.
        lease: Whose it is.
        state: STORING, RESTORING, or STORED with files that are still to be removed.
        attempts: This one included.
        key: Of the object, if there is one.
        size: Of the object.
        sha256: Of the object.
        has_workspace: Whether the object holds one.
    """

    session_id: UUID
    lease: UUID
    state: str
    attempts: int
    key: str
    size: int
    sha256: str
    has_workspace: bool


class EventRow(NamedTuple):
    """A row of the log as it is stored."""

    sequence: int
    run_id: UUID | None
    kind: int
    data: bytes


class TranscriptRow(NamedTuple):
    """A row of the transcript as it is stored."""

    position: int
    subpath: str
    data: bytes


class ArchiveLeaseLost(Exception):
    """Somebody else has the job, or the session was deleted. Stop, and change nothing."""


async def archives_of(tx: Transaction, session_ids: Sequence[UUID]) -> dict[UUID, ArchiveRow]:
    """The archives of these sessions, of those that have one."""
    if not session_ids:
        return {}
    rows = await tx.scalars(select(ArchiveRow).where(ArchiveRow.session_id.in_(session_ids)))
    return {row.session_id: row for row in rows}


# What was closed, and is held by nobody any more: nothing changes its rows.
_AT_REST = and_(SessionHead.closed == "ARCHIVED", SessionHead.worker.is_(None), SessionHead.active_run.is_(None))


async def enqueue_due(database: Database, after: timedelta, limit: int = 200) -> int:
    """Let sessions be stored that were archived, or restored, so long ago; how many. Index sessions_archived."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "INSERT INTO archives (session_id, state)"
            " SELECT s.id, 'STORING' FROM sessions s JOIN session_heads h ON h.session_id = s.id"
            " WHERE s.archive_time < now() - $1::interval AND s.delete_time IS NULL AND h.closed = 'ARCHIVED'"
            " AND h.worker IS NULL AND h.active_run IS NULL AND h.queued = 0"
            " AND NOT EXISTS (SELECT 1 FROM archives a WHERE a.session_id = s.id AND NOT"
            "  (a.state = 'RESTORED' AND a.restore_time < now() - $1::interval))"
            " LIMIT $2 ON CONFLICT (session_id) DO UPDATE SET state = 'STORING', attempts = 0, due_time = now()"
            " WHERE archives.state = 'RESTORED' RETURNING 1",
            after,
            limit,
        )
    return len(rows)


async def take_archive(database: Database, ttl: float) -> ArchiveJob | None:
    """The oldest job that is due and that nobody has, under a lease of so many seconds. Index archives_due."""
    async with database.transaction() as tx:
        row = await tx.scalar(
            select(ArchiveRow)
            .join(SessionHead, SessionHead.session_id == ArchiveRow.session_id)
            .join(Session, Session.id == ArchiveRow.session_id)
            .where(
                or_(ArchiveRow.state.in_(("STORING", "RESTORING")), ArchiveRow.files_left),
                ArchiveRow.due_time <= func.now(),
                or_(ArchiveRow.lease_expire_time.is_(None), ArchiveRow.lease_expire_time < func.now()),
                Session.delete_time.is_(None),
                _AT_REST,
            )
            .order_by(ArchiveRow.due_time)
            .limit(1)
            .with_for_update(of=ArchiveRow, skip_locked=True)
        )
        if row is None:
            return None
        row.lease = clock.uuid7()
        row.lease_expire_time = await _in_seconds(tx, ttl)
        row.attempts += 1
        return ArchiveJob(
            row.session_id, row.lease, row.state, row.attempts, row.object or "", row.size, row.sha256,
            row.has_workspace,
        )  # fmt: skip


async def _in_seconds(tx: Transaction, seconds: float) -> datetime:
    """The database's time in so many seconds."""
    now: datetime = (await tx.execute(select(func.now()))).scalar_one()
    return now + timedelta(seconds=seconds)


async def renew_archive(database: Database, job: ArchiveJob, ttl: float) -> bool:
    """Keep the lease for so many seconds more. False: it is lost."""
    async with database.connection() as connection:
        done = await connection.fetchval(
            "UPDATE archives SET lease_expire_time = now() + make_interval(secs => $3)"
            " WHERE session_id = $1 AND lease = $2 RETURNING true",
            job.session_id,
            job.lease,
            ttl,
        )
    return bool(done)


async def held_archive(tx: Transaction, job: ArchiveJob) -> tuple[Session, SessionHead, ArchiveRow]:
    """Everything about a job, locked. Raises ArchiveLeaseLost."""
    head = await lock_head(tx, job.session_id)
    row = await tx.scalar(select(ArchiveRow).where(ArchiveRow.session_id == job.session_id).with_for_update())
    session = await tx.get(Session, job.session_id)
    if head is None or row is None or session is None or row.lease != job.lease or session.delete_time is not None:
        raise ArchiveLeaseLost
    return session, head, row


async def note_failure(database: Database, job: ArchiveJob, error: str, wait: float, most: int) -> None:
    """Give a job back that did not succeed: it is tried again after so many seconds, but not more often than `most`."""
    async with database.transaction() as tx:
        row = await tx.get(ArchiveRow, job.session_id, with_for_update=True)
        if row is None or row.lease != job.lease:
            return
        row.lease = row.lease_expire_time = None
        row.error = error
        row.due_time = await _in_seconds(tx, wait)
        if job.attempts >= most and row.state == "STORING":
            row.state = "FAILED"
        elif job.attempts >= most and row.state == "RESTORING":
            row.state = "STORED"


# ---- Rows that go and come back: walks of the primary key of one partition ----


async def read_event_rows(database: Database, session_id: UUID, after: int, limit: int) -> list[EventRow]:
    """The log behind a number."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT sequence, run_id, kind, data FROM session_events WHERE session_id = $1 AND sequence > $2"
            " ORDER BY sequence LIMIT $3",
            session_id,
            after,
            limit,
        )
    return [EventRow(*row) for row in rows]


async def read_transcript_rows(database: Database, session_id: UUID, after: int, limit: int) -> list[TranscriptRow]:
    """The transcript behind a position."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT position, subpath, data FROM session_transcripts WHERE session_id = $1 AND position > $2"
            " ORDER BY position LIMIT $3",
            session_id,
            after,
            limit,
        )
    return [TranscriptRow(*row) for row in rows]


async def drop_log(tx: Transaction, session_id: UUID) -> None:
    """Remove events and transcript of a session whose head row is locked."""
    for table in ("session_events", "session_transcripts"):
        await tx.execute(text(f"DELETE FROM {table} WHERE session_id = :id"), {"id": session_id})  # noqa: S608 - ours


async def insert_events(tx: Transaction, session_id: UUID, rows: Sequence[EventRow]) -> None:
    """Put events back."""
    await tx.execute(
        text(
            "INSERT INTO session_events (session_id, sequence, run_id, kind, data)"
            " SELECT :id, e.* FROM unnest(CAST(:sequences AS bigint[]), CAST(:runs AS uuid[]),"
            " CAST(:kinds AS smallint[]), CAST(:datas AS bytea[])) AS e"
        ),
        {
            "id": session_id,
            "sequences": [row.sequence for row in rows],
            "runs": [row.run_id for row in rows],
            "kinds": [row.kind for row in rows],
            "datas": [row.data for row in rows],
        },
    )


async def insert_transcript(tx: Transaction, session_id: UUID, rows: Sequence[TranscriptRow]) -> None:
    """Put transcript lines back."""
    await tx.execute(
        text(
            "INSERT INTO session_transcripts (session_id, position, subpath, data)"
            " SELECT :id, t.* FROM unnest(CAST(:positions AS bigint[]), CAST(:subpaths AS text[]),"
            " CAST(:datas AS bytea[])) AS t"
        ),
        {
            "id": session_id,
            "positions": [row.position for row in rows],
            "subpaths": [row.subpath for row in rows],
            "datas": [row.data for row in rows],
        },
    )
