"""The hot path: one fenced, idempotent statement appends a batch; replay reads it back as bytes.

An event is stored as the serialized `agentrpc.v1.Event` without its sequence. A sequence is a varint field of its own
and later fields win in protobuf, so that it can be put behind the bytes once it is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from agentrpc.errors import LeaseLostError
from agentrpc.store.database import Database, Lane
from agentrpc.v1 import event_pb2

__all__ = [
    "LOOKED_AT",
    "Batch",
    "LogEvent",
    "StartedCall",
    "StoredEvent",
    "append",
    "append_control",
    "copy_transcript",
    "drop_transcript",
    "last_sequences",
    "message_ends",
    "number_events",
    "read_events",
    "read_transcript",
    "transcript_place",
    "with_sequence",
]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A durable event that has no number yet.

    Attributes:
        run_id: The run it belongs to; None for events of the session as a whole.
        kind: The field number in `Event.payload`.
        data: The serialized event, without its sequence.
    """

    run_id: UUID | None
    kind: int
    data: bytes

    @classmethod
    def of(cls, event: event_pb2.Event, run_id: UUID | None) -> "LogEvent":
        """Serialize an event."""
        payload = event.WhichOneof("payload")
        assert payload is not None
        kind = event_pb2.Event.DESCRIPTOR.fields_by_name[payload].number
        return cls(run_id, kind, event.SerializeToString())


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A durable event with its number in `data` and beside it."""

    sequence: int
    run_id: UUID | None
    kind: int
    data: bytes


class StartedCall(NamedTuple):
    """A call that begins, for the ledger. `attempt` is above 1 when somebody decided that it is made again."""

    tool_use_id: str
    tool_name: str
    run_id: UUID
    attempt: int = 1


@dataclass(slots=True)
class Batch:
    """What one append commits: events, transcript lines and what they mean for the tool ledger.

    Attributes:
        events: In order.
        transcript: (subpath, line without its newline), in order.
        started: Calls that begin.
        finished: (tool_use_id, `ToolCallFinished.Outcome`) of calls that ended.
        time: When, for the ledger.
    """

    events: list[LogEvent] = field(default_factory=list)
    transcript: list[tuple[str, bytes]] = field(default_factory=list)
    started: list[StartedCall] = field(default_factory=list)
    finished: list[tuple[str, int]] = field(default_factory=list)
    time: datetime | None = None


# Locks the head row by its primary key; the fence is `epoch`, the idempotency key is `batch`. Zero rows: see `append`.
_HEAD = """
WITH head AS (
    UPDATE session_heads
    SET last_sequence = last_sequence + $4, transcript_position = transcript_position + $5,
        tool_call_count = tool_call_count + $6, batch = $3, batch_base = last_sequence
    WHERE session_id = $1 AND epoch = $2 AND batch = $3 - 1
    RETURNING batch_base AS base, transcript_position - $5 AS position
)"""

# Set-returning functions in the select list run in step and hand each row on as it is made; in FROM all rows would be
# stored before the first is inserted. Nearly every batch is of one run, which then goes as one value.
_EVENTS = """, events AS (
    INSERT INTO session_events (session_id, sequence, run_id, kind, data)
    SELECT $1, generate_series(head.base + 1, head.base + $4), {run}, unnest($8::smallint[]), unnest($9::bytea[])
    FROM head
)"""
_ONE_RUN = _EVENTS.format(run="$7::uuid")
_MANY_RUNS = _EVENTS.format(run="unnest($7::uuid[])")

_TRANSCRIPT = """, transcript AS (
    INSERT INTO session_transcripts (session_id, position, subpath, data)
    SELECT $1, generate_series(head.position + 1, head.position + $5), unnest($10::text[]), unnest($11::bytea[])
    FROM head
)"""

# A call that is in the ledger already must not run again: the unique key refuses the whole batch. One that is
# interrupted while its start waits to be committed begins and ends in one batch: the update does not see its row yet.
_LEDGER = """, started AS (
    INSERT INTO tool_calls (session_id, tool_use_id, attempt, run_id, epoch, tool_name, start_time, end_time, outcome)
    SELECT $1, c.tool_use_id, c.attempt, c.run_id, $2, c.tool_name, $15::timestamptz,
           CASE WHEN e.outcome IS NOT NULL THEN $15::timestamptz END, e.outcome
    FROM head, unnest($12::text[], $13::text[], $14::uuid[], $18::smallint[])
        AS c (tool_use_id, tool_name, run_id, attempt)
    LEFT JOIN LATERAL (
        SELECT f.outcome FROM unnest($16::text[], $17::smallint[]) AS f (tool_use_id, outcome)
        WHERE f.tool_use_id = c.tool_use_id LIMIT 1
    ) AS e ON true
), finished AS (
    UPDATE tool_calls SET outcome = f.outcome, end_time = $15
    FROM head, unnest($16::text[], $17::smallint[]) AS f (tool_use_id, outcome)
    WHERE tool_calls.session_id = $1 AND tool_calls.tool_use_id = f.tool_use_id AND tool_calls.outcome IS NULL
)"""

_BASE = " SELECT base FROM head"


def _statements(more: str) -> tuple[str, str]:
    """The append with events of one run, and of several."""
    return _HEAD + _ONE_RUN + more + _BASE, _HEAD + _MANY_RUNS + more + _BASE


_APPEND_EVENTS = _statements("")
_APPEND_WITH_TRANSCRIPT = _statements(_TRANSCRIPT)
_APPEND_ALL = _statements(_TRANSCRIPT + _LEDGER)

_LAST_APPEND = "SELECT worker, epoch, batch, batch_base FROM session_heads WHERE session_id = $1"


async def append(database: Database, session_id: UUID, epoch: int, number: int, batch: Batch) -> int:
    """Commit a batch under the lease, once, however often it is tried.

    Args:
        database: The store.
        session_id: The session.
        epoch: The epoch under which the caller holds it.
        number: The number of the batch in that epoch, from 1, without a gap.
        batch: What to commit. May hold transcript lines alone.

    Returns:
        The sequence before the first event of the batch.

    Raises:
        LeaseLostError: Another epoch has begun; nothing was written.
        StoreUnavailable: Not known whether it was committed: try again with the same number and the same batch.
    """
    events = batch.events
    runs = [event.run_id for event in events]
    run = runs[0] if runs else None
    # Not by a set: a UUID's hash and equality are computed in Python, and `count` needs neither for the same object.
    several = runs.count(run) < len(runs)
    arguments: list[object] = [
        session_id,
        epoch,
        number,
        len(events),
        len(batch.transcript),
        len(batch.started),
        runs if several else run,
        [event.kind for event in events],
        [event.data for event in events],
    ]
    statements = _APPEND_EVENTS
    if batch.transcript or batch.started or batch.finished:
        arguments += [[path for path, _ in batch.transcript], [line for _, line in batch.transcript]]
        statements = _APPEND_WITH_TRANSCRIPT
    if batch.started or batch.finished:
        arguments += [
            [call.tool_use_id for call in batch.started],
            [call.tool_name for call in batch.started],
            [call.run_id for call in batch.started],
            batch.time,
            [call[0] for call in batch.finished],
            [call[1] for call in batch.finished],
            [call.attempt for call in batch.started],
        ]
        statements = _APPEND_ALL
    async with database.connection() as connection:
        base = await connection.fetchval(statements[several], *arguments)
        if base is None:
            row = await connection.fetchrow(_LAST_APPEND, session_id)
            if row is None or row["epoch"] != epoch or row["batch"] != number:
                holder, current = (row["worker"], row["epoch"]) if row else (None, None)
                raise LeaseLostError.stale(session_id, f"epoch {epoch}, batch {number}", holder, current)
            base = row["batch_base"]
    return int(base)


_APPEND_CONTROL = text("""
WITH head AS (
    UPDATE session_heads SET last_sequence = last_sequence + :count
    WHERE session_id = :session_id
    RETURNING last_sequence - :count AS base, tenant
), events AS (
    INSERT INTO session_events (session_id, sequence, run_id, kind, data)
    SELECT :session_id, head.base + e.ordinal, e.run_id, e.kind, e.data
    FROM head, unnest(CAST(:runs AS uuid[]), CAST(:kinds AS smallint[]), CAST(:datas AS bytea[]))
        WITH ORDINALITY AS e (run_id, kind, data, ordinal)
), told AS (
    INSERT INTO outbox (topic, tenant, subject, session_id, run_id, sequence)
    SELECT e.topic, head.tenant, '', :session_id, e.run_id, head.base + e.ordinal
    FROM head, unnest(CAST(:runs AS uuid[]), CAST(:topics AS text[])) WITH ORDINALITY AS e (run_id, topic, ordinal)
    WHERE e.topic <> ''
)
SELECT base FROM head
""")

# Control events that others than watchers are told of.
_TOLD = {
    event_pb2.Event.DESCRIPTOR.fields_by_name[name].number: name
    for name in (
        "run_started",
        "run_state_changed",
        "run_ended",
        "session_pause_changed",
        "session_state_changed",
        "approval_requested",
        "approval_resolved",
    )
}


async def append_control(transaction: AsyncSession, session_id: UUID, events: Sequence[LogEvent]) -> list[StoredEvent]:
    """Append events of the edge or the scheduler inside their transaction, which holds the head row's lock.

    They need no epoch: the lock orders them among the worker's own. Those that others have to be told of go into the
    outbox too. Publish what is returned after the commit.
    """
    base = await transaction.scalar(
        _APPEND_CONTROL,
        {
            "session_id": session_id,
            "count": len(events),
            "runs": [event.run_id for event in events],
            "kinds": [event.kind for event in events],
            "datas": [event.data for event in events],
            "topics": [_TOLD.get(event.kind, "") for event in events],
        },
    )
    assert base is not None
    return number_events(events, base)


def number_events(events: Sequence[LogEvent], base: int) -> list[StoredEvent]:
    """Give numbers from `base + 1` on to events that were committed."""
    return [
        StoredEvent(sequence, event.run_id, event.kind, with_sequence(event.data, sequence))
        for sequence, event in enumerate(events, base + 1)
    ]


def with_sequence(data: bytes, sequence: int) -> bytes:
    """The event's bytes with field 1, its sequence, at the end: tag 0x08 and a varint."""
    out = bytearray(data)
    out.append(0x08)
    while sequence > 0x7F:
        out.append((sequence & 0x7F) | 0x80)
        sequence >>= 7
    out.append(sequence)
    return bytes(out)


# Lines of one statement when a transcript is copied.
_COPY_LINES = 500

# How many numbers a reader with a filter looks at in one go. The log has no gaps, so that a range of numbers bounds the
# rows that a statement walks, however few of them pass the filter.
LOOKED_AT = 10_000

# Walks the primary key of one partition.
_READ = """
SELECT sequence, run_id, kind, data FROM session_events
WHERE session_id = $1 AND sequence > $2 AND sequence <= $3
  AND ($4::smallint[] IS NULL OR kind = ANY ($4)) AND ($5::uuid IS NULL OR run_id = $5)
ORDER BY sequence LIMIT $6
"""
_READ_DESCENDING = """
SELECT sequence, run_id, kind, data FROM session_events
WHERE session_id = $1 AND sequence > $2 AND sequence < $3
  AND ($4::smallint[] IS NULL OR kind = ANY ($4)) AND ($5::uuid IS NULL OR run_id = $5)
ORDER BY sequence DESC LIMIT $6
"""


async def read_events(
    database: Database,
    session_id: UUID,
    *,
    after: int,
    up_to: int = 2**62,
    kinds: Sequence[int] | None = None,
    run_id: UUID | None = None,
    limit: int = 1000,
    descending: bool = False,
    lane: Lane = Lane.HOT,
) -> list[StoredEvent]:
    """Durable events in order of sequence, with their numbers in their bytes.

    Args:
        database: The store.
        session_id: The session.
        after: Only greater numbers.
        up_to: Only numbers up to this one; with `descending`, below it.
        kinds: Only these field numbers of `Event.payload`. None: all.
        run_id: Only of this run.
        limit: At most so many.
        descending: Newest first.
        lane: For callers, who may read long logs, not the one of the hot path.
    """
    statement = _READ_DESCENDING if descending else _READ
    async with database.connection(lane) as connection:
        rows = await connection.fetch(
            statement, session_id, after, up_to, list(kinds) if kinds is not None else None, run_id, limit
        )
    return [StoredEvent(row[0], row[1], row[2], with_sequence(row[3], row[0])) for row in rows]


async def message_ends(transaction: AsyncSession, session_id: UUID, run_id: UUID, first_sequence: int) -> list[bytes]:
    """The `message_completed` events of a run. Walks the primary key from the run's first event on."""
    rows = await transaction.scalars(
        text(
            "SELECT data FROM session_events WHERE session_id = :session_id AND sequence >= :first"
            " AND run_id = :run_id AND kind = :kind"
        ),
        {
            "session_id": session_id,
            "first": first_sequence,
            "run_id": run_id,
            "kind": event_pb2.Event.MESSAGE_COMPLETED_FIELD_NUMBER,
        },
    )
    return list(rows)


async def last_sequences(
    database: Database, session_ids: Sequence[UUID], lane: Lane = Lane.HOT
) -> dict[UUID, tuple[int, str | None]]:
    """The newest number of each session's log, and `closed` of its head once its last run has ended, in one query."""
    async with database.connection(lane) as connection:
        rows = await connection.fetch(
            "SELECT session_id, last_sequence, CASE WHEN active_run IS NULL AND queued = 0 THEN closed END"
            " FROM session_heads WHERE session_id = ANY ($1::uuid[])",
            list(session_ids),
        )
    return {row[0]: (row[1], row[2]) for row in rows}


async def read_transcript(database: Database, session_id: UUID) -> list[tuple[str, bytes]]:
    """The session's transcript: (subpath, line) in the order in which the CLI wrote it."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT subpath, data FROM session_transcripts WHERE session_id = $1 ORDER BY position", session_id
        )
    return [(row[0], row[1]) for row in rows]


async def transcript_place(database: Database, session_id: UUID, uuid: str) -> int | None:
    """The position of the line of the main conversation with this uuid."""
    async with database.connection() as connection:
        position = await connection.fetchval(
            "SELECT min(position) FROM session_transcripts"
            " WHERE session_id = $1 AND subpath = '' AND position(convert_to($2, 'UTF8') in data) > 0",
            session_id,
            f'"uuid":"{uuid}"',
        )
    return None if position is None else int(position)


async def copy_transcript(transaction: AsyncSession, session_id: UUID, lines: Sequence[tuple[str, bytes]]) -> None:
    """Give a new session, whose head row is stored, the transcript (subpath, line)."""
    for begin in range(0, len(lines), _COPY_LINES):
        part = lines[begin : begin + _COPY_LINES]
        await transaction.execute(
            text(
                "INSERT INTO session_transcripts (session_id, position, subpath, data)"
                " SELECT :session_id, :begin + t.ordinal, t.subpath, t.data"
                " FROM unnest(CAST(:subpaths AS text[]), CAST(:datas AS bytea[]))"
                " WITH ORDINALITY AS t (subpath, data, ordinal)"
            ),
            {
                "session_id": session_id,
                "begin": begin,
                "subpaths": [subpath for subpath, _ in part],
                "datas": [line for _, line in part],
            },
        )


async def drop_transcript(transaction: AsyncSession, session_id: UUID, position: int) -> bool:
    """Remove the lines from a position on; the caller holds the head row's lock. False: there are none."""
    dropped = await transaction.execute(
        text("DELETE FROM session_transcripts WHERE session_id = :session_id AND position >= :position RETURNING 1"),
        {"session_id": session_id, "position": position},
    )
    return dropped.first() is not None
