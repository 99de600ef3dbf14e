"""What is done now and then: figures for the gauges, old request ids, files of closed sessions."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select

from agentrpc.store.database import Database, Transaction
from agentrpc.store.tables import Session

__all__ = [
    "cleaned_sessions",
    "forget_requests",
    "has_waiting",
    "newest_workspaces",
    "queue_figures",
    "take_sessions_to_clean",
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


async def forget_requests(database: Database) -> None:
    """Drop request ids that are older than the day for which they count."""
    async with database.connection() as connection:
        await connection.execute("DELETE FROM requests WHERE create_time < now() - interval '25 hours'")


async def has_waiting(database: Database, worker_id: UUID) -> bool:
    """Whether a session that this worker does not hold has a run that waits, or that nobody drives."""
    async with database.connection() as connection:
        return bool(
            await connection.fetchval(
                "SELECT EXISTS (SELECT 1 FROM session_heads WHERE queued > 0 AND active_run IS NULL"
                " AND closed IS NULL AND NOT paused AND worker IS DISTINCT FROM $1)"
                " OR EXISTS (SELECT 1 FROM session_heads WHERE active_run IS NOT NULL AND worker IS NULL"
                " AND pending_approvals = 0 AND NOT in_doubt AND NOT paused)"
                " OR EXISTS (SELECT 1 FROM session_heads h JOIN workers w ON w.id = h.worker"
                " WHERE h.active_run IS NOT NULL AND w.dead_time IS NOT NULL)",
                worker_id,
            )
        )


async def cleaned_sessions(database: Database, session_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these sessions `take_sessions_to_clean` has given."""
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


async def take_sessions_to_clean(database: Database, *, keep: timedelta | None = timedelta(0)) -> list[UUID]:
    """Archived and deleted sessions that nobody holds and whose files nobody has removed yet; each is given once.

    Args:
        database: The store.
        keep: For how long the files of archived ones stay, so that they can go to archive storage; None: until they do.
            Of those that have gone there, or are to, archive storage removes the files.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            "UPDATE sessions SET clean_time = now() FROM session_heads h"
            " WHERE h.session_id = sessions.id AND h.closed = 'ARCHIVED' AND h.worker IS NULL AND h.active_run IS NULL"
            " AND sessions.clean_time IS NULL AND (sessions.delete_time IS NOT NULL"
            "  OR archive_time <= now() - $1::interval"
            "   AND NOT EXISTS (SELECT 1 FROM archives a WHERE a.session_id = sessions.id))"
            " RETURNING sessions.id",
            keep,
        )
    return [row[0] for row in rows]
