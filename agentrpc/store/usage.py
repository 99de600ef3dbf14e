"""What runs used over a period."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from agentrpc.store.database import Database

__all__ = ["UsageQuery", "UsedRow", "UsedShare", "used_by_owner", "used_by_session", "used_runs"]

# A run's id is made shortly before its create_time is taken.
_SLACK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Runs created at or after `begin` and before `end`, in sessions of `owner` (None: of everyone)."""

    begin: datetime
    end: datetime
    owner: UUID | None


@dataclass(frozen=True, slots=True)
class UsedRow:
    """A run."""

    id: UUID
    state: str
    usage: bytes | None
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class UsedShare:
    """What the runs of one session or owner add up to."""

    id: UUID
    label: str
    runs: int
    failed: int
    cost_usd: float


# Walks the primary key of runs: ids begin with their time.
_FROM = """
FROM runs r JOIN session_heads h ON h.session_id = r.session_id
WHERE r.id > $1 AND r.id < $2 AND r.create_time >= $3 AND r.create_time < $4 AND ($5::uuid IS NULL OR h.tenant = $5)
"""
_RUNS = f"SELECT r.id, r.state, r.usage, r.create_time, r.start_time, r.end_time {_FROM} ORDER BY r.id LIMIT $6"
_SUMS = "count(*) AS runs, count(*) FILTER (WHERE r.state = 'FAILED') AS failed, sum(r.cost_usd)::float8 AS cost"
_SHARES = """
SELECT u.id, {label} AS label, u.runs, u.failed, u.cost, u.everything
FROM (
    SELECT {key} AS id, {sums}, count(*) OVER () AS everything {rows} GROUP BY {key}
    ORDER BY cost DESC, runs DESC, {key} LIMIT $6
) u JOIN {table} t ON t.id = u.id
ORDER BY u.cost DESC, u.runs DESC, u.id
"""
_BY_SESSION = _SHARES.format(key="r.session_id", table="sessions", label="t.display_name", sums=_SUMS, rows=_FROM)
_BY_OWNER = _SHARES.format(key="h.tenant", table="users", label="t.username", sums=_SUMS, rows=_FROM)


def _arguments(query: UsageQuery, after: UUID | None) -> tuple[object, ...]:
    first = after or _id_at(query.begin - _SLACK)
    return first, _id_at(query.end + _SLACK), query.begin, query.end, query.owner


def _id_at(time: datetime) -> UUID:
    return UUID(int=max(0, int(time.timestamp() * 1000)) << 80)


async def used_runs(database: Database, query: UsageQuery, after: UUID | None, limit: int) -> list[UsedRow]:
    """A page of runs, oldest first, behind the run `after`."""
    async with database.connection() as connection:
        rows = await connection.fetch(_RUNS, *_arguments(query, after), limit)
    return [UsedRow(*row) for row in rows]


async def used_by_session(database: Database, query: UsageQuery, limit: int) -> tuple[list[UsedShare], int]:
    """The dearest sessions, and how many had runs."""
    return await _shares(database, _BY_SESSION, query, limit)


async def used_by_owner(database: Database, query: UsageQuery, limit: int) -> tuple[list[UsedShare], int]:
    """The dearest owners, and how many had runs."""
    return await _shares(database, _BY_OWNER, query, limit)


async def _shares(database: Database, statement: str, query: UsageQuery, limit: int) -> tuple[list[UsedShare], int]:
    async with database.connection() as connection:
        rows = await connection.fetch(statement, *_arguments(query, None), limit)
    return [UsedShare(row[0], row[1], row[2], row[3], row[4]) for row in rows], rows[0][5] if rows else 0
