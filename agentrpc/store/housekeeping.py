"""What is done now and then: figures for the gauges, old request ids and logins, files of closed sessions."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, not_, or_, select

from agentrpc.domain.isolation import Level
from agentrpc.store.archives import ArchiveRow
from agentrpc.store.database import Database, Transaction, database_time
from agentrpc.store.leases import KNOWN_CLI, lock_head
from agentrpc.store.tables import Session, SessionHead

__all__ = [
    "cleaned_sessions",
    "forget_logins",
    "forget_requests",
    "has_waiting",
    "newest_workspaces",
    "note_cleaned",
    "queue_figures",
    "sessions_to_clean",
]


async def queue_figures(database: Database) -> tuple[dict[str, int], float]:
    """Runs that have not ended by state, and the age in seconds of the oldest that waits for a worker."""
    async with database.connection() as connection:
        # Index runs_open.
        rows = await connection.fetch(
            "SELECT state, count(*) FROM runs WHERE state IN"
            " ('QUEUED', 'RUNNING', 'REQUIRES_ACTION', 'UNKNOWN_OUTCOME') GROUP BY state"
        )
        # Index session_heads_queue.
        oldest = await connection.fetchval(
            "SELECT extract(epoch FROM now() - min(queued_since))::float8 FROM session_heads"
            " WHERE queued > 0 AND active_run IS NULL AND closed IS NULL AND NOT paused"
        )
    return {row[0]: row[1] for row in rows}, max(oldest or 0.0, 0.0)


async def forget_requests(database: Database, limit: int = 5000) -> bool:
    """Drop request ids that are older than the day for which they count; whether there may be more than the limit."""
    async with database.connection() as connection:
        # Index requests_by_time. What another scheduler is at is left to it.
        rows = await connection.fetch(
            "WITH old AS MATERIALIZED (SELECT principal, method, request_id FROM requests"
            "  WHERE create_time < now() - interval '25 hours' ORDER BY create_time LIMIT $1 FOR UPDATE SKIP LOCKED)"
            " DELETE FROM requests r USING old WHERE r.principal = old.principal AND r.method = old.method"
            " AND r.request_id = old.request_id RETURNING 1",
            limit,
        )
    return len(rows) == limit


async def forget_logins(database: Database, limit: int = 5000) -> bool:
    """Drop logins none of whose tokens is good any more; whether there may be more than the limit."""
    async with database.connection() as connection:
        # Index logins_by_expire_time. An hour: for processes whose clocks are not the database's.
        rows = await connection.fetch(
            "WITH old AS MATERIALIZED (SELECT id FROM logins WHERE expire_time < now() - interval '1 hour'"
            "  ORDER BY expire_time LIMIT $1 FOR UPDATE SKIP LOCKED)"
            " DELETE FROM logins l USING old WHERE l.id = old.id RETURNING 1",
            limit,
        )
    return len(rows) == limit


_KNOWN_CLI = KNOWN_CLI % "$2"
_HAS_WAITING = f"""
SELECT EXISTS (
    SELECT 1 FROM session_heads h
    WHERE queued > 0 AND active_run IS NULL AND closed IS NULL AND NOT paused AND worker IS DISTINCT FROM $1
      AND h.needed_level <= $3 AND {_KNOWN_CLI}
) OR EXISTS (
    SELECT 1 FROM session_heads h
    WHERE active_run IS NOT NULL AND worker IS NULL AND pending_approvals = 0 AND NOT in_doubt AND NOT paused
      AND h.needed_level <= $3 AND {_KNOWN_CLI}
) OR EXISTS (
    SELECT 1 FROM session_heads h JOIN workers w ON w.id = h.worker
    WHERE h.active_run IS NOT NULL AND w.dead_time IS NOT NULL AND h.needed_level <= $3 AND {_KNOWN_CLI}
)
"""  # noqa: S608 - ours


async def has_waiting(
    database: Database, worker_id: UUID, cli: Sequence[int], isolation_level: Level = Level.NONE
) -> bool:
    """Whether a session that this worker does not hold has a run that waits, or that nobody drives.

    Args:
        database: The store.
        worker_id: The worker.
        cli: The version of its CLI, as for `claim_next`.
        isolation_level: How it keeps agents apart, as for `claim_next`.
    """
    async with database.connection() as connection:
        return bool(await connection.fetchval(_HAS_WAITING, worker_id, list(cli), isolation_level))


async def cleaned_sessions(database: Database, session_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these sessions `note_cleaned` was called for."""
    if not session_ids:
        return []
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT id FROM sessions WHERE id = ANY ($1::uuid[]) AND clean_time IS NOT NULL", list(session_ids)
        )
    return [row[0] for row in rows]


async def newest_workspaces(tx: Transaction, limit: int) -> list[UUID]:
    """The sessions whose workspaces were made last, of those that have one."""
    query = select(Session.id).where(Session.workspace_time.is_not(None), Session.clean_time.is_(None))
    return list(await tx.scalars(query.order_by(Session.workspace_time.desc()).limit(limit)))


def _to_clean(keep: timedelta | None) -> Select[Session]:
    archived: ColumnElement[bool] = false()
    if keep is not None:
        stored = exists().where(ArchiveRow.session_id == Session.id)
        archived = and_(Session.archive_time <= func.now() - keep, not_(stored))
    return (
        select(Session)
        .join(SessionHead, SessionHead.session_id == Session.id)
        .where(
            SessionHead.closed == "ARCHIVED",
            SessionHead.worker.is_(None),
            SessionHead.active_run.is_(None),
            Session.clean_time.is_(None),
            or_(Session.delete_time.is_not(None), archived),
        )
    )


async def sessions_to_clean(database: Database, limit: int, *, keep: timedelta | None = timedelta(0)) -> list[UUID]:
    """Some archived and deleted sessions that nobody holds and whose files nobody has removed yet.

    Args:
        database: The store.
        limit: How many at most.
        keep: For how long the files of archived ones stay, so that they can go to archive storage; None: until they do.
            Of those that have gone there, or are to, archive storage removes the files.
    """
    async with database.transaction() as tx:
        return list(await tx.scalars(_to_clean(keep).with_only_columns(Session.id).limit(limit)))


async def note_cleaned(tx: Transaction, session_id: UUID, *, keep: timedelta | None = timedelta(0)) -> bool:
    """Lock the head of a session of `sessions_to_clean`, and note that its files are removed. False: it is none now.

    They are set aside in the same transaction, so that nothing of a session that is noted stays where it was.
    """
    await lock_head(tx, session_id)
    session = await tx.scalar(_to_clean(keep).where(Session.id == session_id))
    if session is None:
        return False
    session.clean_time = await database_time(tx)
    return True
