"""Workers and what they hold: claim, takeover, release, and the one query by which an owner learns of intents.

One heartbeat row for each worker covers all its sessions; the database's clock decides. A worker is lost when its
parent has said so (`dead_time`) or when its lease has been over for longer than T_kill, within which it has ended its
own processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentrpc import clock
from agentrpc.store.database import Database
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.tables import Run, Session, SessionHead, Worker

__all__ = [
    "Claim",
    "OwnedSession",
    "claim_next",
    "declare_dead",
    "lock_head",
    "owned_sessions",
    "register_worker",
    "release",
    "renew_lease",
    "retire_worker",
]


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker has to carry out now.

    Attributes:
        session: The session, as it was at the claim.
        run: The run, already RUNNING.
        epoch: The epoch under which the worker holds the session.
        batch: The number of the newest append in that epoch.
        last_sequence: The newest event before the claim's own.
        taken_over: True when a lost worker had begun the run.
        events: What the claim appended, to be published.
    """

    session: Session
    run: Run
    epoch: int
    batch: int
    last_sequence: int
    taken_over: bool
    events: list[StoredEvent]


@dataclass(frozen=True, slots=True)
class OwnedSession:
    """What the owner of a session has to know of its head."""

    session_id: UUID
    epoch: int
    active_run: UUID | None
    queued: int
    interrupt_run: UUID | None
    closed: str | None


async def register_worker(
    database: Database, worker_id: UUID, *, host: str, pid: int, version: str, ttl: float
) -> None:
    """Make a worker known, with a lease of `ttl` seconds."""
    async with database.transaction() as tx:
        await tx.execute(
            text(
                "INSERT INTO workers (id, host, pid, version, start_time, lease_expire_time)"
                " VALUES (:id, :host, :pid, :version, now(), now() + make_interval(secs => :ttl))"
            ),
            {"id": worker_id, "host": host, "pid": pid, "version": version, "ttl": ttl},
        )


async def renew_lease(database: Database, worker_id: UUID, ttl: float) -> bool:
    """Extend the lease by `ttl` seconds from now. False: the worker was declared dead and must stop at once."""
    async with database.connection() as connection:
        done = await connection.fetchval(
            "UPDATE workers SET lease_expire_time = now() + make_interval(secs => $2)"
            " WHERE id = $1 AND dead_time IS NULL RETURNING true",
            worker_id,
            ttl,
        )
    return bool(done)


async def declare_dead(
    database: Database,
    worker_ids: Sequence[UUID] | None = None,
    *,
    host: str | None = None,
    pid: int | None = None,
) -> int:
    """Say that workers are dead for certain: their process trees are gone. Takeover is at once.

    Args:
        database: The store.
        worker_ids: These workers.
        host: All workers of this host instead.
        pid: Of that host only the process with this id.

    Returns:
        How many were alive until now.
    """
    query = update(Worker).where(Worker.dead_time.is_(None)).values(dead_time=text("now()"))
    query = query.where(Worker.id.in_(worker_ids)) if worker_ids is not None else query.where(Worker.host == host)
    if pid is not None:
        query = query.where(Worker.pid == pid)
    async with database.transaction() as tx:
        return len((await tx.execute(query.returning(Worker.id))).all())


async def retire_worker(database: Database, worker_id: UUID) -> None:
    """Forget a worker that has released everything it held."""
    async with database.transaction() as tx:
        await tx.execute(update(SessionHead).where(SessionHead.worker == worker_id).values(worker=None))
        await tx.execute(delete(Worker).where(Worker.id == worker_id))


async def lock_head(tx: AsyncSession, session_id: UUID) -> SessionHead | None:
    """The session's head row, locked until the end of the transaction. Every transition begins here."""
    head: SessionHead | None = await tx.scalar(
        select(SessionHead).where(SessionHead.session_id == session_id).with_for_update()
    )
    return head


# Index session_heads_queue. Sessions that the worker holds come first, then tenants with the fewest active runs, then
# the longest wait. Locks the chosen head row and passes over those that another worker is choosing.
_NEXT = text("""
WITH active AS (
    SELECT tenant, count(*) AS runs FROM session_heads WHERE active_run IS NOT NULL GROUP BY tenant
)
SELECT h.*
FROM session_heads h
LEFT JOIN workers w ON w.id = h.worker
LEFT JOIN active a ON a.tenant = h.tenant
WHERE h.queued > 0 AND h.active_run IS NULL AND h.closed IS NULL
  AND (h.worker = :worker OR :may_take_new AND (
        h.worker IS NULL OR w.id IS NULL OR w.dead_time IS NOT NULL
        OR w.lease_expire_time + make_interval(secs => :kill_timeout) < now()))
ORDER BY (h.worker IS NOT DISTINCT FROM :worker) DESC, coalesce(a.runs, 0), h.queued_since
LIMIT 1
FOR UPDATE OF h SKIP LOCKED
""")

# Index session_heads_by_worker. A run whose worker is lost.
_ORPHAN = text("""
SELECT h.*
FROM session_heads h
LEFT JOIN workers w ON w.id = h.worker
WHERE h.active_run IS NOT NULL AND h.worker IS NOT NULL AND h.worker <> :worker
  AND (w.id IS NULL OR w.dead_time IS NOT NULL
       OR w.lease_expire_time + make_interval(secs => :kill_timeout) < now())
LIMIT 1
FOR UPDATE OF h SKIP LOCKED
""")


async def claim_next(
    database: Database,
    worker_id: UUID,
    *,
    may_take_new: bool,
    kill_timeout: float,
    begin: Callable[[Session, Run, bool], Sequence[LogEvent]],
) -> Claim | None:
    """Take the next run that waits, or one whose worker is lost; None when there is nothing for this worker.

    Args:
        database: The store.
        worker_id: The worker.
        may_take_new: False: only sessions that the worker holds already.
        kill_timeout: T_kill in seconds.
        begin: Gives the first events of the run, from session, run and whether it is taken over.
    """
    binds = {"worker": worker_id, "may_take_new": may_take_new, "kill_timeout": kill_timeout}
    async with database.transaction() as tx:
        taken_over = False
        head: SessionHead | None = await tx.scalar(select(SessionHead).from_statement(_NEXT), binds)
        if head is None and may_take_new:
            binds = {"worker": worker_id, "kill_timeout": kill_timeout}
            head = await tx.scalar(select(SessionHead).from_statement(_ORPHAN), binds)
            taken_over = head is not None
        if head is None:
            return None
        session_id = head.session_id
        wanted = Run.id == head.active_run if taken_over else Run.state == "QUEUED"
        rows = await tx.execute(
            select(Run, Session)
            .join(Session, Session.id == Run.session_id)
            .where(Run.session_id == session_id, wanted)
            .order_by(Run.id)
            .limit(2)
        )
        waiting, sessions = zip(*((row[0], row[1]) for row in rows), strict=True)
        run: Run = waiting[0]
        session: Session = sessions[0]
        if not taken_over:
            head.active_run = run.id
            head.queued -= 1
            head.queued_since = waiting[1].create_time if len(waiting) > 1 else None
        if head.worker != worker_id or taken_over:
            head.worker = worker_id
            head.epoch += 1
            head.batch = 0
        run.state = "RUNNING"
        run.attempt += 1
        run.start_time = run.start_time or clock.utcnow()
        before = head.last_sequence
        await tx.flush()
        events = await append_control(tx, session_id, begin(session, run, taken_over))
        if not run.first_sequence:
            run.first_sequence = before + 1
        return Claim(session, run, head.epoch, head.batch, before, taken_over, events)


async def release(database: Database, session_id: UUID, epoch: int) -> bool:
    """Give a session back (evict). False: there is work for it after all, or it is another's by now."""
    async with database.connection() as connection:
        # The primary key of the head row.
        done = await connection.fetchval(
            "UPDATE session_heads SET worker = NULL"
            " WHERE session_id = $1 AND epoch = $2 AND active_run IS NULL AND queued = 0 RETURNING true",
            session_id,
            epoch,
        )
    return bool(done)


async def owned_sessions(database: Database, worker_id: UUID) -> dict[UUID, OwnedSession]:
    """The heads of all sessions that the worker holds, in one query: intents are columns, Redis only hastens them."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT session_id, epoch, active_run, queued, interrupt_run, closed FROM session_heads WHERE worker = $1",
            worker_id,
        )
    return {row[0]: OwnedSession(*row) for row in rows}
