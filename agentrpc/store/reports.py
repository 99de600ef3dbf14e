"""Reports: what was asked for, who makes it, and the document in pieces.

A report that is not finished is its own job: whoever has its lease makes it, and writes only while it still has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, SmallInteger, func, or_, select, text
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base

__all__ = [
    "CHUNK",
    "REPORT_ORDER",
    "ReportChunkRow",
    "ReportQuery",
    "ReportRow",
    "add_chunk",
    "claim_report",
    "count_reports",
    "find_reports",
    "finish_report",
    "give_up_report",
    "keep_report",
    "read_chunk",
]

# Bytes of a piece; all but the last are as long.
CHUNK = 256 * 1024


class ReportRow(Base):
    """A report. `lease` is whoever makes it; `usage_owner` whose usage it is, None for everyone's."""

    __tablename__ = "reports"
    __table_args__ = (
        Index("reports_by_owner", "owner", "create_time", "id"),
        Index("reports_shared", "create_time", "id", postgresql_where=text("shared")),
        Index("reports_by_subject", "subject", postgresql_where=text("subject <> ''")),
        Index("reports_by_labels", "labels", postgresql_using="gin"),
        Index("reports_open", "id", postgresql_where=text("state IN ('PENDING', 'RUNNING')")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    labels: Mapped[dict[str, str]]
    subject: Mapped[str]
    format: Mapped[str]
    shared: Mapped[bool]
    given: Mapped[bytes]  # agentrpc.v1.Report: what the caller set
    usage_owner: Mapped[UUID | None]
    state: Mapped[str] = mapped_column(CheckConstraint("state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED')"))
    progress: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    lease: Mapped[UUID | None]
    lease_expire_time: Mapped[datetime | None]
    error: Mapped[bytes | None]  # agentrpc.v1.ReportError
    size: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    sha256: Mapped[str] = mapped_column(server_default=text("''"))
    create_time: Mapped[datetime]
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]


class ReportChunkRow(Base):
    """A piece of a document."""

    __tablename__ = "report_chunks"

    report_id: Mapped[UUID] = mapped_column(ForeignKey("reports.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes]


_COLUMNS: dict[str, Any] = {
    "create_time": ReportRow.create_time,
    "display_name": ReportRow.display_name,
    "id": ReportRow.id,
}
REPORT_ORDER = frozenset(_COLUMNS) - {"id"}


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """What to find.

    Attributes:
        visible_to: Only reports of this user and shared ones; None: everyone's.
        owner: Only of this owner.
        states: Names of states; none: all.
        formats: Names of formats; none: all.
        subject: Only about this.
        labels: All of these.
        created_from: At or after.
        created_before: Before.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    visible_to: UUID | None = None
    owner: UUID | None = None
    states: Sequence[str] = ()
    formats: Sequence[str] = ()
    subject: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_from: datetime | None = None
    created_before: datetime | None = None
    order: Sequence[tuple[str, bool]] = (("create_time", True), ("id", True))
    after: Sequence[Any] | None = None
    limit: int = 50


async def find_reports(tx: Transaction, query: ReportQuery) -> list[ReportRow]:
    """A page of reports. Indexes reports_by_owner and reports_shared for the newest of a user."""
    wanted = []
    if query.visible_to is not None:
        wanted.append(or_(ReportRow.owner == query.visible_to, ReportRow.shared))
    if query.owner is not None:
        wanted.append(ReportRow.owner == query.owner)
    if query.states:
        wanted.append(ReportRow.state.in_(query.states))
    if query.formats:
        wanted.append(ReportRow.format.in_(query.formats))
    if query.subject:
        wanted.append(ReportRow.subject == query.subject)
    if query.labels:
        wanted.append(ReportRow.labels.contains(dict(query.labels)))
    if query.created_from is not None:
        wanted.append(ReportRow.create_time >= query.created_from)
    if query.created_before is not None:
        wanted.append(ReportRow.create_time < query.created_before)
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = select(ReportRow).where(*wanted).order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def count_reports(tx: Transaction, owner: UUID) -> tuple[int, int]:
    """How many reports of a user are not finished, and how many there are.

    Transactions of the same user wait here for each other: none passes a limit beside another one.
    """
    await tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"reports {owner}", 0))))
    row = (
        await tx.execute(
            select(func.count().filter(ReportRow.state.in_(["PENDING", "RUNNING"])), func.count()).where(
                ReportRow.owner == owner
            )
        )
    ).one()
    return int(row[0]), int(row[1])


# Index reports_open. Of the owners with something to make the one with the fewest that are being made comes first.
_CLAIM = """
UPDATE reports SET state = 'RUNNING', progress = 0, attempt = attempt + 1, lease = $1,
    lease_expire_time = now() + make_interval(secs => $2), start_time = coalesce(start_time, now())
WHERE id = (
    SELECT r.id FROM reports r
    WHERE r.state IN ('PENDING', 'RUNNING') AND (r.lease_expire_time IS NULL OR r.lease_expire_time <= now())
    ORDER BY (SELECT count(*) FROM reports o WHERE o.owner = r.owner AND o.state = 'RUNNING'
              AND o.lease_expire_time > now()), r.id
    LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id
"""


async def claim_report(database: Database, lease: UUID, ttl: float) -> UUID | None:
    """Take a report that nobody makes, for `ttl` seconds; None when there is none."""
    async with database.connection() as connection:
        found: UUID | None = await connection.fetchval(_CLAIM, lease, ttl)
    return found


async def keep_report(database: Database, report_id: UUID, lease: UUID, ttl: float, progress: int) -> bool:
    """Keep the lease for `ttl` more seconds and say how far it is; False when it is lost, or the report deleted."""
    async with database.connection() as connection:
        done = await connection.execute(
            "UPDATE reports SET lease_expire_time = now() + make_interval(secs => $3),"
            " progress = greatest(progress, $4) WHERE id = $1 AND lease = $2 AND state = 'RUNNING'",
            report_id,
            lease,
            ttl,
            progress,
        )
    return bool(done == "UPDATE 1")


async def give_up_report(database: Database, report_id: UUID, lease: UUID) -> None:
    """Give a report back that this process cannot make to its end; it does not count as an attempt."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE reports SET state = 'PENDING', lease = NULL, lease_expire_time = NULL, attempt = attempt - 1"
            " WHERE id = $1 AND lease = $2 AND state = 'RUNNING'",
            report_id,
            lease,
        )


async def finish_report(
    tx: Transaction, report_id: UUID, lease: UUID, *, size: int = 0, sha256: str = "", error: bytes | None = None
) -> bool:
    """Write the end of a report, once; False when the lease is lost. The document's pieces come by `add_chunk`."""
    row = await tx.scalar(
        select(ReportRow)
        .where(ReportRow.id == report_id, ReportRow.lease == lease, ReportRow.state == "RUNNING")
        .with_for_update()
    )
    if row is None:
        return False
    row.state = "SUCCEEDED" if error is None else "FAILED"
    row.progress = 100
    row.size, row.sha256, row.error = size, sha256, error
    row.lease = row.lease_expire_time = None
    row.end_time = await tx.scalar(select(func.now()))
    await tx.flush()
    return True


async def add_chunk(tx: Transaction, report_id: UUID, position: int, data: bytes) -> None:
    """Store a piece; the caller has the lease in the same transaction."""
    await tx.execute(
        text("INSERT INTO report_chunks (report_id, position, data) VALUES (:id, :position, :data)"),
        {"id": report_id, "position": position, "data": data},
    )


async def read_chunk(database: Database, report_id: UUID, position: int) -> bytes | None:
    """A piece; None when there is none, which means that the report was deleted."""
    async with database.connection() as connection:
        data: bytes | None = await connection.fetchval(
            "SELECT data FROM report_chunks WHERE report_id = $1 AND position = $2", report_id, position
        )
    return data
