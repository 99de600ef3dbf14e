"""Queries over runs and the tool ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text, update

from agentrpc.domain.states import SUPERSEDING
from agentrpc.store.database import Transaction
from agentrpc.store.tables import Run, RunInput, Session, SessionHead, ToolCallRow
from agentrpc.v1 import event_pb2

__all__ = [
    "LedgerRow",
    "RunQuery",
    "find_runs",
    "finish_calls",
    "has_unknown_calls",
    "inputs_of_run",
    "ledger_of_run",
    "newest_input",
    "newest_queued",
    "oldest_queued",
    "overdue_runs",
    "session_options",
    "superseding_queued",
]


@dataclass(frozen=True, slots=True)
class RunQuery:
    """What to find; ids are UUIDv7, so that their order is that of creation.

    Attributes:
        session_id: Of this session; None: of all.
        owner: Of this owner's sessions; None: of everyone's.
        states: Names of run states; none: all.
        labels: All of these.
        created_from: At or after.
        created_before: Before.
        descending: Newest first.
        after: The last id of the page before.
        limit: At most so many.
    """

    session_id: UUID | None = None
    owner: UUID | None = None
    states: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_from: datetime | None = None
    created_before: datetime | None = None
    descending: bool = True
    after: UUID | None = None
    limit: int = 50


async def find_runs(tx: Transaction, query: RunQuery) -> list[tuple[Run, SessionHead]]:
    """Runs with their sessions' heads. Index runs_by_session for one session's."""
    statement = select(Run, SessionHead).join(SessionHead, SessionHead.session_id == Run.session_id)
    if query.session_id is not None:
        statement = statement.where(Run.session_id == query.session_id)
    if query.owner is not None:
        statement = statement.where(SessionHead.tenant == query.owner)
    if query.states:
        statement = statement.where(Run.state.in_(query.states))
    if query.labels:
        statement = statement.where(Run.labels.contains(dict(query.labels)))
    if query.created_from is not None:
        statement = statement.where(Run.create_time >= query.created_from)
    if query.created_before is not None:
        statement = statement.where(Run.create_time < query.created_before)
    if query.after is not None:
        statement = statement.where(Run.id < query.after if query.descending else Run.id > query.after)
    statement = statement.order_by(Run.id.desc() if query.descending else Run.id).limit(query.limit)
    return [(row[0], row[1]) for row in await tx.execute(statement)]


# Index runs_open, of runs under way alone. A worker that lives keeps the time-out of the run that it drives.
_OVERDUE = text("""
SELECT r.session_id, r.id
FROM runs r
JOIN session_heads h ON h.active_run = r.id AND h.session_id = r.session_id
LEFT JOIN workers w ON w.id = h.worker
WHERE r.state IN ('RUNNING', 'REQUIRES_ACTION', 'UNKNOWN_OUTCOME')
  AND ((r.start_time + r.timeout <= :now OR h.stop_run = r.id) AND (w.id IS NULL OR w.dead_time IS NOT NULL)
       OR r.doubt_time <= :doubt_before)
LIMIT :limit
""")


async def overdue_runs(
    tx: Transaction, now: datetime, *, doubt_before: datetime, limit: int
) -> list[tuple[UUID, UUID]]:
    """(session, run) of those that nobody drives though they are to stop or out of time; and of long doubt."""
    rows = await tx.execute(_OVERDUE, {"now": now, "doubt_before": doubt_before, "limit": limit})
    return [(row[0], row[1]) for row in rows]


async def superseding_queued(tx: Transaction, session_id: UUID) -> list[Run]:
    """Those that wait in a session and were created to end what is under way."""
    statement = select(Run).where(
        Run.session_id == session_id, Run.state == "QUEUED", Run.conflict_policy.in_(SUPERSEDING)
    )
    return list(await tx.scalars(statement.order_by(Run.id)))


async def newest_queued(tx: Transaction, session_id: UUID) -> UUID | None:
    """The last one of those that wait in a session."""
    statement = select(Run.id).where(Run.session_id == session_id, Run.state == "QUEUED")
    found: UUID | None = await tx.scalar(statement.order_by(Run.id.desc()).limit(1))
    return found


async def oldest_queued(tx: Transaction, session_id: UUID) -> datetime | None:
    """When the oldest run that waits in a session was created."""
    statement = select(Run.create_time).where(Run.session_id == session_id, Run.state == "QUEUED")
    found: datetime | None = await tx.scalar(statement.order_by(Run.id).limit(1))
    return found


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What the ledger says of a call: its newest attempt."""

    tool_use_id: str
    tool_name: str
    attempt: int
    start_time: datetime
    outcome: int | None


async def ledger_of_run(tx: Transaction, session_id: UUID, run_id: UUID) -> dict[str, LedgerRow]:
    """The calls that a run has begun, by tool_use_id. Primary key of tool_calls."""
    statement = select(ToolCallRow).where(ToolCallRow.session_id == session_id, ToolCallRow.run_id == run_id)
    rows = await tx.scalars(statement.order_by(ToolCallRow.attempt))
    return {
        row.tool_use_id: LedgerRow(row.tool_use_id, row.tool_name, row.attempt, row.start_time, row.outcome)
        for row in rows
    }


async def has_unknown_calls(tx: Transaction, session_id: UUID, run_id: UUID) -> bool:
    """Whether nobody knows how a call of a run, in its newest attempt, has ended."""
    unknown = {None, event_pb2.ToolCallFinished.OUTCOME_UNKNOWN}
    return any(row.outcome in unknown for row in (await ledger_of_run(tx, session_id, run_id)).values())


async def finish_calls(tx: Transaction, session_id: UUID, tool_use_ids: Sequence[str], outcome: int) -> None:
    """Write the outcome of calls that have not ended into the ledger."""
    if tool_use_ids:
        await tx.execute(
            update(ToolCallRow)
            .where(
                ToolCallRow.session_id == session_id,
                ToolCallRow.tool_use_id.in_(tool_use_ids),
                ToolCallRow.outcome.is_(None),
            )
            .values(outcome=outcome, end_time=text("now()"))
        )


async def inputs_of_run(tx: Transaction, run_id: UUID) -> list[RunInput]:
    """The further messages to a run, in order. Index run_inputs_by_run."""
    return list(await tx.scalars(select(RunInput).where(RunInput.run_id == run_id).order_by(RunInput.id)))


async def newest_input(tx: Transaction, run_id: UUID) -> UUID | None:
    """The last one of the further messages to a run. Index run_inputs_by_run."""
    statement = select(RunInput.id).where(RunInput.run_id == run_id)
    found: UUID | None = await tx.scalar(statement.order_by(RunInput.id.desc()).limit(1))
    return found


async def session_options(tx: Transaction, session_id: UUID) -> bytes:
    """A session's options, serialized."""
    return await tx.scalar(select(Session.options).where(Session.id == session_id)) or b""
