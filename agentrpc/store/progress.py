"""Where runs are that have not ended, for a whole page of them in a fixed number of queries."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from agentrpc.domain.isolation import Level
from agentrpc.domain.states import SUPERSEDING, TERMINAL_RUN_STATES, ApprovalState, RunState
from agentrpc.store.database import Transaction
from agentrpc.store.runs import LedgerRow
from agentrpc.store.tables import Approval, Run, SessionHead, ToolCallRow, Worker

__all__ = ["Holder", "Progress", "progress_of_runs"]


@dataclass(frozen=True, slots=True)
class Holder:
    """The worker that holds a session.

    Attributes:
        address: `{host}:{process id}`.
        lease_expire_time: Until when it has said that it lives.
        silent: Whether that has passed.
        dead_time: When it was declared dead.
    """

    address: str
    lease_expire_time: datetime
    silent: bool
    dead_time: datetime | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Attributes:
        first: For one that is queued: whether no other run of its session comes before it.
        pause_time: Since when its session is paused.
        holder: Who holds its session.
        newest_event: The newest event of the run, serialized; of its session, when no run of it is under way.
        pending: (approval, when it was asked) of those that wait, oldest first.
        open_calls: The calls that have begun and not ended, oldest first.
        worker_levels: Of a session that needs one: the levels of isolation that living workers have.
    """

    first: bool = True
    pause_time: datetime | None = None
    holder: Holder | None = None
    newest_event: bytes = b""
    pending: Sequence[tuple[UUID, datetime]] = ()
    open_calls: Sequence[LedgerRow] = ()
    worker_levels: Sequence[Level] = ()


# Primary keys throughout. The log is walked back from its end, and not at all for runs that wait behind another one.
_PLACES = text("""
SELECT r.id, s.pause_time, w.host, w.pid, w.lease_expire_time, w.lease_expire_time < now() AS silent, w.dead_time,
       e.data AS newest_event
FROM runs r
JOIN sessions s ON s.id = r.session_id
JOIN session_heads h ON h.session_id = r.session_id
LEFT JOIN workers w ON w.id = h.worker
LEFT JOIN LATERAL (
    SELECT data FROM session_events
    WHERE session_id = r.session_id AND (h.active_run IS NULL OR h.active_run = r.id)
      AND sequence >= r.first_sequence AND (h.active_run IS NULL OR run_id = r.id)
    ORDER BY sequence DESC LIMIT 1
) e ON true
WHERE r.id = ANY (CAST(:runs AS uuid[]))
""")


async def progress_of_runs(tx: Transaction, rows: Sequence[tuple[Run, SessionHead]]) -> dict[UUID, Progress]:
    """The progress of those that have not ended, by run."""
    live = {run.id: (run, head) for run, head in rows if run.state not in TERMINAL_RUN_STATES}
    if not live:
        return {}
    crowded = {head.session_id for _, head in live.values() if head.active_run is None and head.queued > 1}
    nexts = await _next_runs(tx, crowded)
    begun = {run.id: run.session_id for run, _ in live.values() if run.state != RunState.QUEUED}
    pending = await _pending(tx, begun)
    calls = await _open_calls(tx, begun)
    levels = await _worker_levels(tx) if any(head.needed_level for _, head in live.values()) else []
    found = {}
    for place in await tx.execute(_PLACES, {"runs": list(live)}):
        _, head = live[place.id]
        holder = None
        if place.host is not None:
            address = f"{place.host}:{place.pid}"
            holder = Holder(address, place.lease_expire_time, place.silent, place.dead_time)
        found[place.id] = Progress(
            first=head.active_run is None and nexts.get(head.session_id, place.id) == place.id,
            pause_time=place.pause_time,
            holder=holder,
            newest_event=place.newest_event or b"",
            pending=pending.get(place.id, ()),
            open_calls=calls.get(place.id, ()),
            worker_levels=levels,
        )
    return found


async def _worker_levels(tx: Transaction) -> list[Level]:
    living = select(Worker.isolation_level).where(Worker.dead_time.is_(None), Worker.lease_expire_time > func.now())
    return sorted(Level(level) for level in await tx.scalars(living.distinct()))


async def _next_runs(tx: Transaction, session_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """The run that each session carries out next, of those that wait. In the order of `claim_next`."""
    if not session_ids:
        return {}
    statement = (
        select(Run.session_id, Run.id)
        .ext(distinct_on(Run.session_id))
        .where(Run.session_id.in_(session_ids), Run.state == RunState.QUEUED)
        .order_by(Run.session_id, Run.conflict_policy.in_(SUPERSEDING).desc(), Run.id)
    )
    return {row[0]: row[1] for row in await tx.execute(statement)}


async def _pending(tx: Transaction, runs: Mapping[UUID, UUID]) -> dict[UUID, list[tuple[UUID, datetime]]]:
    found: dict[UUID, list[tuple[UUID, datetime]]] = {}
    if runs:
        statement = select(Approval.run_id, Approval.id, Approval.create_time).where(
            Approval.session_id.in_(runs.values()), Approval.run_id.in_(runs), Approval.state == ApprovalState.PENDING
        )
        for row in await tx.execute(statement.order_by(Approval.id)):
            found.setdefault(row[0], []).append((row[1], row[2]))
    return found


async def _open_calls(tx: Transaction, runs: Mapping[UUID, UUID]) -> dict[UUID, list[LedgerRow]]:
    """Index tool_calls_in_doubt."""
    found: dict[UUID, list[LedgerRow]] = {}
    if runs:
        statement = select(ToolCallRow).where(
            ToolCallRow.session_id.in_(runs.values()), ToolCallRow.run_id.in_(runs), ToolCallRow.outcome.is_(None)
        )
        for row in await tx.scalars(statement.order_by(ToolCallRow.start_time, ToolCallRow.tool_use_id)):
            call = LedgerRow(row.tool_use_id, row.tool_name, row.attempt, row.start_time, None)
            found.setdefault(row.run_id, []).append(call)
    return found
