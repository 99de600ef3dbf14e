"""Workers and what they hold: claim, takeover, release, and the one query by which an owner learns of intents.

One heartbeat row for each worker covers all its sessions. A worker is lost when somebody has said so in `dead_time`:
its parent, which has seen it end, or a reaper that has seen its lease unchanged for longer than TTL + T_kill, within
which the worker has ended its own processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from sqlalchemy import TextClause, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentrpc import clock
from agentrpc.domain.isolation import Level
from agentrpc.domain.states import SUPERSEDING
from agentrpc.errors import LeaseLostError
from agentrpc.store.database import Database
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.tables import Run, Session, SessionHead, User, Worker

__all__ = [
    "KNOWN_CLI",
    "Claim",
    "Origin",
    "OwnedSession",
    "claim_next",
    "declare_dead",
    "declare_frozen",
    "find_owner",
    "forget_workers",
    "give_up",
    "living_workers",
    "lock_head",
    "owned_sessions",
    "register_worker",
    "release",
    "renew_lease",
    "retire_worker",
    "still_held",
]


# Of a worker that has every CLI there is.
NEWEST_CLI = (2**31 - 1,)


class Origin(Enum):
    """Where a claimed run was."""

    QUEUED = "queued"
    RELEASED = "released"  # under way, and given back by the worker that had it
    LOST = "lost"  # under way on a worker that is dead, or that has given it up


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker has to carry out now.

    Attributes:
        session: The session, as it was at the claim.
        run: The run, already RUNNING.
        epoch: The epoch under which the worker holds the session.
        batch: The number of the newest append in that epoch.
        last_sequence: The newest event before the claim's own.
        origin: Where the run was.
        losses: How many workers and processes in a row were lost while they carried it out.
        events: What the claim appended, to be published.
    """

    session: Session
    run: Run
    epoch: int
    batch: int
    last_sequence: int
    origin: Origin
    losses: int
    events: list[StoredEvent]


@dataclass(frozen=True, slots=True)
class OwnedSession:
    """What the owner of a session has to know of its head."""

    session_id: UUID
    epoch: int
    active_run: UUID | None
    queued: int
    stop_run: UUID | None
    stop_kind: str | None
    paused: bool
    inputs: int
    closed: str | None
    needed_level: int = 0


async def register_worker(
    database: Database,
    worker_id: UUID,
    *,
    host: str,
    pid: int,
    version: str,
    ttl: float,
    isolation_level: Level = Level.NONE,
) -> None:
    """Make a worker known, with a lease of `ttl` seconds."""
    async with database.transaction() as tx:
        await tx.execute(
            text(
                "INSERT INTO workers (id, host, pid, version, start_time, lease_expire_time, isolation_level)"
                " VALUES (:id, :host, :pid, :version, now(), now() + make_interval(secs => :ttl), :level)"
            ),
            {"id": worker_id, "host": host, "pid": pid, "version": version, "ttl": ttl, "level": isolation_level},
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


def still_held(head: SessionHead | None, session_id: UUID, epoch: int) -> SessionHead:
    """The head, when the session is held under this epoch. Raises LeaseLostError, which names who holds it now."""
    if head is None or head.epoch != epoch:
        holder, current = (head.worker, head.epoch) if head else (None, None)
        raise LeaseLostError.stale(session_id, f"epoch {epoch}", holder, current)
    return head


async def find_owner(
    tx: AsyncSession, session_id: UUID, epoch: int, *, lock: bool = False
) -> tuple[User, UUID | None] | None:
    """The owner of a session that is still held under this epoch, and its active run; None when it is not.

    With `lock` nobody takes the session over before the transaction ends. The writer's appends wait for it too.
    """
    statement = (
        select(User, SessionHead.active_run)
        .join(Session, Session.owner == User.id)
        .join(SessionHead, SessionHead.session_id == Session.id)
        .where(Session.id == session_id, SessionHead.epoch == epoch)
    )
    if lock:
        statement = statement.with_for_update(read=True, of=SessionHead)
    row = (await tx.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1])


async def living_workers(database: Database) -> dict[UUID, datetime]:
    """The workers that nobody has declared dead, and the ends of their leases."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT id, lease_expire_time FROM workers WHERE dead_time IS NULL")
    return {row[0]: row[1] for row in rows}


async def declare_frozen(database: Database, worker_id: UUID, lease_expire_time: datetime) -> bool:
    """Say that a worker is dead because its lease was not renewed. False: it was renewed, or said already."""
    async with database.connection() as connection:
        done = await connection.fetchval(
            "UPDATE workers SET dead_time = now() WHERE id = $1 AND lease_expire_time = $2 AND dead_time IS NULL"
            " RETURNING true",
            worker_id,
            lease_expire_time,
        )
    return bool(done)


async def forget_workers(database: Database, age: timedelta) -> None:
    """Remove workers that have been dead for longer than `age`, once others have taken their runs over.

    Sessions without a run that they held are nobody's from then on.
    """
    async with database.connection() as connection:
        # Index session_heads_by_worker.
        await connection.execute(
            "UPDATE session_heads h SET worker = NULL FROM workers w"
            " WHERE h.worker = w.id AND w.dead_time < now() - $1::interval AND h.active_run IS NULL",
            age,
        )
        await connection.execute(
            "DELETE FROM workers w WHERE dead_time < now() - $1::interval"
            " AND NOT EXISTS (SELECT 1 FROM session_heads h WHERE h.worker = w.id)",
            age,
        )


# Whether the session's newest CLI is none or at most this worker's: an older one does not know what a newer one has
# written. What is no version at all was not told by a CLI, and counts as none. By the primary key of sessions.
KNOWN_CLI = """EXISTS (
    SELECT 1 FROM sessions s
    WHERE s.id = h.session_id
      AND CASE WHEN s.agent_version ~ '^[0-9]{1,9}([.][0-9]{1,9}){0,5}$'
               THEN CAST(string_to_array(s.agent_version, '.') AS int[]) ELSE '{}' END <= CAST(%s AS int[])
)"""
_KNOWN_CLI = KNOWN_CLI % ":cli"

# Indexes session_heads_queue, session_heads_active and session_heads_served. Tenants with the fewest active runs come
# first, then those that were served longest ago: one that never stops asking does not keep the others waiting. Of one
# tenant, sessions that the worker holds come first, then the longest wait. Locks the chosen head row and passes over
# those that another worker is choosing, or has chosen since: what counts is looked at again under the lock.
_NEXT = text(f"""
WITH waiting AS (
    SELECT h.session_id, h.tenant, h.epoch
    FROM session_heads h
    LEFT JOIN workers w ON w.id = h.worker
    WHERE h.queued > 0 AND h.active_run IS NULL AND h.closed IS NULL AND NOT h.paused
      AND (h.worker = :worker OR :may_take_new AND (h.worker IS NULL OR w.id IS NULL OR w.dead_time IS NOT NULL))
      AND h.needed_level <= :level AND {_KNOWN_CLI}
), tenants AS (
    SELECT tenant,
           (SELECT count(*) FROM session_heads a WHERE a.tenant = t.tenant AND a.active_run IS NOT NULL) AS runs,
           (SELECT max(claim_time) FROM session_heads s WHERE s.tenant = t.tenant) AS served
    FROM (SELECT DISTINCT tenant FROM waiting) t
)
SELECT h.*
FROM session_heads h
JOIN waiting w ON w.session_id = h.session_id AND w.epoch = h.epoch
JOIN tenants ON tenants.tenant = w.tenant
WHERE h.queued > 0 AND h.active_run IS NULL AND h.closed IS NULL AND NOT h.paused AND h.needed_level <= :level
ORDER BY tenants.runs, tenants.served NULLS FIRST, (h.worker IS NOT DISTINCT FROM :worker) DESC, h.queued_since
LIMIT 1
FOR UPDATE OF h SKIP LOCKED
""")  # noqa: S608 - ours

# Index session_heads_released. A run under way that nobody drives and that waits for nothing.
_RELEASED = text(f"""
SELECT h.*
FROM session_heads h
WHERE h.active_run IS NOT NULL AND h.worker IS NULL AND h.pending_approvals = 0 AND NOT h.in_doubt AND NOT h.paused
  AND h.needed_level <= :level AND {_KNOWN_CLI}
LIMIT 1
FOR UPDATE OF h SKIP LOCKED
""")  # noqa: S608 - ours

# Index session_heads_by_worker. A run whose worker is lost: at once the first time, then after 5 s. The third
# loss is the last one: what is claimed then fails, and has nothing to wait for.
# As above: whom another worker has taken over since has another epoch. Without this the recheck of a row that was
# changed would not find its new worker, and take it for one that is gone.
_LOST = text(f"""
WITH lost AS MATERIALIZED (
    SELECT h.session_id, h.epoch
    FROM session_heads h
    LEFT JOIN workers w ON w.id = h.worker
    WHERE h.active_run IS NOT NULL AND h.worker IS NOT NULL AND h.worker <> :worker
      AND (w.id IS NULL
           OR w.dead_time + make_interval(secs => CASE h.losses WHEN 1 THEN 5 ELSE 0 END) <= now())
      AND h.needed_level <= :level AND {_KNOWN_CLI}
)
SELECT h.*
FROM session_heads h
JOIN lost ON lost.session_id = h.session_id AND lost.epoch = h.epoch
WHERE h.active_run IS NOT NULL AND h.worker IS NOT NULL AND h.worker <> :worker AND h.needed_level <= :level
LIMIT 1
FOR UPDATE OF h SKIP LOCKED
""")  # noqa: S608 - ours


async def claim_next(
    database: Database,
    worker_id: UUID,
    *,
    may_take_new: bool,
    begun_first: bool = False,
    isolation_level: Level = Level.NONE,
    cli: Sequence[int] = NEWEST_CLI,
    begin: Callable[[Session, Run, Origin], Sequence[LogEvent]],
) -> Claim | None:
    """Take the next run that waits or that nobody drives; None when there is nothing for this worker.

    Args:
        database: The store.
        worker_id: The worker.
        may_take_new: False: only sessions that the worker holds already.
        begun_first: Look for runs that nobody drives before those that wait. Alternate, so that neither starves.
        isolation_level: How the worker keeps agents apart; noted at the session. Those that need more are left to
            others.
        cli: The version of the worker's CLI. Sessions in which a newer one has written are left to others.
        begin: Gives the first events of the run, from session, run and where it was.
    """
    async with database.transaction() as tx:
        found = await _choose(tx, worker_id, cli, isolation_level, may_take_new=may_take_new, begun_first=begun_first)
        if found is None:
            return None
        head, origin = found
        session_id = head.session_id
        wanted = Run.state == "QUEUED" if origin is Origin.QUEUED else Run.id == head.active_run
        rows = await tx.execute(
            select(Run, Session)
            .join(Session, Session.id == Run.session_id)
            .where(Run.session_id == session_id, wanted)
            .order_by(Run.conflict_policy.in_(SUPERSEDING).desc(), Run.id)
            .limit(2)
        )
        waiting, sessions = zip(*((row[0], row[1]) for row in rows), strict=True)
        run: Run = waiting[0]
        session: Session = sessions[0]
        if origin is Origin.QUEUED:
            head.active_run = run.id
            head.queued -= 1
            head.queued_since = waiting[1].create_time if len(waiting) > 1 else None
            head.claim_time = clock.utcnow()
            run.state = "RUNNING"
            run.start_time = run.start_time or clock.utcnow()
        elif origin is Origin.LOST:
            head.losses += 1
        if origin is not Origin.RELEASED:
            run.attempt += 1
        if head.worker != worker_id:
            head.worker = worker_id
            head.epoch += 1
            head.batch = 0
        session.isolation_level = isolation_level.name
        before = head.last_sequence
        losses = head.losses
        await tx.flush()
        events = await append_control(tx, session_id, begin(session, run, origin))
        if not run.first_sequence:
            run.first_sequence = before + 1
        return Claim(session, run, head.epoch, head.batch, before, origin, losses, events)


async def _choose(
    tx: AsyncSession, worker_id: UUID, cli: Sequence[int], level: Level, *, may_take_new: bool, begun_first: bool
) -> tuple[SessionHead, Origin] | None:
    searches: list[tuple[TextClause, Origin, dict[str, object]]] = [
        (_NEXT, Origin.QUEUED, {"worker": worker_id, "may_take_new": may_take_new})
    ]
    if may_take_new:
        at = 0 if begun_first else 1
        searches[at:at] = [(_RELEASED, Origin.RELEASED, {}), (_LOST, Origin.LOST, {"worker": worker_id})]
    for statement, origin, binds in searches:
        head = await tx.scalar(
            select(SessionHead).from_statement(statement), {**binds, "cli": list(cli), "level": level}
        )
        if head is not None:
            return head, origin
    return None


async def release(database: Database, session_id: UUID, epoch: int) -> bool:
    """Give an idle session back. False: there is work for it after all, or it is another's by now.

    Runs that wait do not keep one that needs a higher level of isolation than its worker has: they are others' work.
    """
    async with database.connection() as connection:
        # The primary key of the head row.
        done = await connection.fetchval(
            "UPDATE session_heads h SET worker = NULL"
            " WHERE session_id = $1 AND epoch = $2 AND active_run IS NULL"
            " AND (queued = 0 OR paused"
            "      OR needed_level > (SELECT w.isolation_level FROM workers w WHERE w.id = h.worker)) RETURNING true",
            session_id,
            epoch,
        )
    return bool(done)


# No worker has this id.
_NOBODY = UUID(int=0)


async def give_up(database: Database, worker_id: UUID, head: OwnedSession) -> bool:
    """Let a run count as lost that a living worker has and does not carry out. False: it has it no more."""
    async with database.connection() as connection:
        # The primary key of the head row.
        done = await connection.fetchval(
            "UPDATE session_heads SET worker = $5"
            " WHERE session_id = $1 AND worker = $2 AND epoch = $3 AND active_run = $4 RETURNING true",
            head.session_id,
            worker_id,
            head.epoch,
            head.active_run,
            _NOBODY,
        )
    return bool(done)


async def owned_sessions(database: Database, worker_id: UUID) -> dict[UUID, OwnedSession]:
    """The heads of all sessions that the worker holds, in one query: intents are columns, Redis only hastens them."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT session_id, epoch, active_run, queued, stop_run, stop_kind, paused, inputs, closed,"
            " needed_level FROM session_heads WHERE worker = $1",
            worker_id,
        )
    return {row[0]: OwnedSession(*row) for row in rows}
