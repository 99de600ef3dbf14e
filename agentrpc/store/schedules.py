"""Slots: which tasks are due, what became of their slots, and the executions that these have made.

All statements are set-based. A task's row is locked before its slots are dealt with, and its slots' keys keep any of
them from being dealt with twice, whatever the clock does.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text, update

from agentrpc.store.database import Transaction
from agentrpc.store.tasks import NO_BACKFILL, ExecutionRow, SlotRow

__all__ = [
    "Advance",
    "DueTask",
    "NewSlot",
    "Overlap",
    "advance_tasks",
    "executions_of_backfill",
    "executions_to_stop",
    "forget_slots",
    "lock_due_tasks",
    "lock_tasks_ahead",
    "next_due",
    "overlaps",
    "record_slots",
    "release_oldest",
    "want_stopped",
]

_OPEN = ("PENDING", "STARTED")


@dataclass(frozen=True, slots=True)
class DueTask:
    """A task that has a slot to deal with, locked; `now` is the time of the database."""

    id: UUID
    owner: UUID
    spec: bytes
    next_slot_time: datetime
    now: datetime


# Index tasks_due. Others pass over what is locked: they deal with the rest.
_LOCK_DUE = text("""
SELECT id, owner, spec, next_slot_time, now() AS now
FROM tasks
WHERE next_slot_time <= now() AND NOT paused
  AND (id, next_slot_time) NOT IN
    (SELECT * FROM unnest(CAST(:without_ids AS uuid[]), CAST(:without_slots AS timestamptz[])))
ORDER BY next_slot_time
LIMIT :limit
FOR UPDATE SKIP LOCKED
""")


async def lock_due_tasks(tx: Transaction, limit: int, without: Collection[tuple[UUID, datetime]] = ()) -> list[DueTask]:
    """Tasks with a slot that has come, the oldest first.

    Args:
        tx: The transaction.
        limit: At most so many.
        without: Tasks to leave alone as long as this is their next slot.
    """
    return [DueTask(*row) for row in await tx.execute(_LOCK_DUE, {"limit": limit, **_left_out(without)})]


_LOCK_AHEAD = text("""
SELECT id, owner, spec, next_slot_time, now() AS now
FROM tasks
WHERE last_slot_time > now() + interval '1 minute' AND next_slot_time IS NOT NULL
LIMIT :limit
FOR UPDATE SKIP LOCKED
""")


async def lock_tasks_ahead(tx: Transaction, limit: int) -> list[DueTask]:
    """Tasks whose slots were dealt with before their time: the database's clock was ahead and has been put back."""
    return [DueTask(*row) for row in await tx.execute(_LOCK_AHEAD, {"limit": limit})]


# Index tasks_due.
_NEXT_DUE = text("""
SELECT clock_timestamp(), (
    SELECT next_slot_time
    FROM tasks
    WHERE next_slot_time IS NOT NULL AND NOT paused
      AND (id, next_slot_time) NOT IN
        (SELECT * FROM unnest(CAST(:without_ids AS uuid[]), CAST(:without_slots AS timestamptz[])))
    ORDER BY next_slot_time
    LIMIT 1
)
""")


async def next_due(
    tx: Transaction, without: Collection[tuple[UUID, datetime]] = ()
) -> tuple[datetime, datetime | None]:
    """The time of the database, and the next slot of any task, as `lock_due_tasks`."""
    row = (await tx.execute(_NEXT_DUE, _left_out(without))).one()
    return row[0], row[1]


def _left_out(without: Collection[tuple[UUID, datetime]]) -> dict[str, object]:
    return {"without_ids": [one[0] for one in without], "without_slots": [one[1] for one in without]}


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a new slot of a task meets.

    Attributes:
        under_way: Executions that have not ended and wait for no other.
        buffered: Slots of the schedule itself that wait.
    """

    under_way: int = 0
    buffered: int = 0


# Index executions_open.
_OVERLAPS = text("""
SELECT task_id, count(*) FILTER (WHERE NOT buffered), count(*) FILTER (WHERE buffered AND backfill_id IS NULL)
FROM executions
WHERE task_id = ANY(CAST(:task_ids AS uuid[])) AND state IN ('PENDING', 'STARTED')
GROUP BY task_id
""")


async def overlaps(tx: Transaction, task_ids: Collection[UUID]) -> dict[UUID, Overlap]:
    """What new slots of these tasks meet; tasks that have nothing open are left out."""
    rows = await tx.execute(_OVERLAPS, {"task_ids": list(task_ids)})
    return {row[0]: Overlap(row[1], row[2]) for row in rows}


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot and what becomes of it.

    Attributes:
        task_id: Of this task, whose row is locked.
        nominal: Its time.
        execution_id: Of the execution that it makes; None: it is skipped.
        creator: Of the execution.
        due_time: Of the execution.
        buffered: The execution waits for the end of another.
    """

    task_id: UUID
    nominal: datetime
    execution_id: UUID | None = None
    creator: UUID | None = None
    due_time: datetime | None = None
    buffered: bool = False


# Slots that were dealt with before make nothing: what is not in `slot` has no execution either.
_RECORD = text("""
WITH given AS (
    SELECT *
    FROM unnest(
        CAST(:task_ids AS uuid[]), CAST(:nominals AS timestamptz[]), CAST(:execution_ids AS uuid[]),
        CAST(:creators AS uuid[]), CAST(:due_times AS timestamptz[]), CAST(:buffered AS boolean[])
    ) AS given (task_id, nominal, execution_id, creator, due_time, buffered)
), of_task AS (
    SELECT * FROM unnest(CAST(:with_variables AS uuid[]), CAST(:variables AS text[])) AS of_task (task_id, variables)
), slot AS (
    INSERT INTO slots (task_id, kind, nominal, backfill_id, outcome, execution_id)
    SELECT task_id, :kind, nominal, :slot_backfill,
           CASE WHEN execution_id IS NULL THEN 'SKIPPED' WHEN buffered THEN 'BUFFERED' ELSE 'FIRED' END, execution_id
    FROM given
    ON CONFLICT DO NOTHING
    RETURNING task_id, nominal, execution_id
), made AS (
    INSERT INTO executions
        (id, task_id, trigger, creator, variables, state, slot_time, due_time, buffered, backfill_id, create_time)
    SELECT given.execution_id, given.task_id, :kind, given.creator, of_task.variables, 'PENDING', given.nominal,
           given.due_time, given.buffered, CAST(:backfill_id AS uuid), now()
    FROM given JOIN slot USING (task_id, nominal) JOIN of_task USING (task_id)
    WHERE given.execution_id IS NOT NULL
)
SELECT task_id, count(execution_id) AS fired, count(*) - count(execution_id) AS skipped FROM slot GROUP BY task_id
""")


async def record_slots(
    tx: Transaction, slots: Sequence[NewSlot], variables: Mapping[UUID, str], backfill_id: UUID | None = None
) -> Mapping[UUID, tuple[int, int]]:
    """Write slots that nobody has dealt with, and their executions.

    Args:
        tx: The transaction.
        slots: The slots.
        variables: Of the executions, by task.
        backfill_id: Whose slots they are; None: those of the schedules.

    Returns:
        By task, how many have fired and how many were skipped.
    """
    if not slots:
        return {}
    rows = await tx.execute(
        _RECORD,
        {
            "kind": "SCHEDULE" if backfill_id is None else "BACKFILL",
            "slot_backfill": backfill_id or NO_BACKFILL,
            "backfill_id": backfill_id,
            "task_ids": [slot.task_id for slot in slots],
            "nominals": [slot.nominal for slot in slots],
            "execution_ids": [slot.execution_id for slot in slots],
            "creators": [slot.creator for slot in slots],
            "with_variables": list(variables),
            "variables": list(variables.values()),
            "due_times": [slot.due_time for slot in slots],
            "buffered": [slot.buffered for slot in slots],
        },
    )
    return {row.task_id: (row.fired, row.skipped) for row in rows}


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a schedule is after its slots were dealt with."""

    task_id: UUID
    next_slot_time: datetime | None
    last_slot_time: datetime | None
    fired: int = 0
    skipped: int = 0
    missed: int = 0


_ADVANCE = text("""
UPDATE tasks
SET next_slot_time = given.next_slot_time,
    last_slot_time = coalesce(given.last_slot_time, tasks.last_slot_time),
    fired_count = fired_count + given.fired,
    execution_count = execution_count + given.fired,
    skipped_count = skipped_count + given.skipped,
    missed_count = missed_count + given.missed
FROM unnest(
    CAST(:task_ids AS uuid[]), CAST(:next_times AS timestamptz[]), CAST(:last_times AS timestamptz[]),
    CAST(:fired AS bigint[]), CAST(:skipped AS bigint[]), CAST(:missed AS bigint[])
) AS given (task_id, next_slot_time, last_slot_time, fired, skipped, missed)
WHERE tasks.id = given.task_id
""")


async def advance_tasks(tx: Transaction, advances: Sequence[Advance]) -> None:
    """Move schedules on. The caller holds the locks of the tasks' rows."""
    await tx.execute(
        _ADVANCE,
        {
            "task_ids": [one.task_id for one in advances],
            "next_times": [one.next_slot_time for one in advances],
            "last_times": [one.last_slot_time for one in advances],
            "fired": [one.fired for one in advances],
            "skipped": [one.skipped for one in advances],
            "missed": [one.missed for one in advances],
        },
    )


async def want_stopped(tx: Transaction, task_ids: Collection[UUID], kind: str) -> None:
    """Let what is under way of these tasks be stopped, once this is committed. The caller holds their rows' locks."""
    await tx.execute(
        update(ExecutionRow)
        .where(ExecutionRow.task_id.in_(task_ids), ExecutionRow.state.in_(_OPEN), ~ExecutionRow.buffered)
        .values(stop=kind, stopped=True)
    )


async def executions_to_stop(tx: Transaction, limit: int) -> list[tuple[UUID, UUID]]:
    """(task, execution) of those that are to be stopped. Index executions_stopping."""
    statement = select(ExecutionRow.task_id, ExecutionRow.id).where(
        ExecutionRow.stop.is_not(None), ExecutionRow.state.in_(_OPEN)
    )
    return [(row[0], row[1]) for row in await tx.execute(statement.limit(limit))]


async def release_oldest(tx: Transaction, task_id: UUID, *, paused: bool) -> bool:
    """Let the oldest that waits begin, if nothing is under way. The caller holds the task's lock.

    Args:
        tx: The transaction.
        task_id: The task.
        paused: The schedule's own slots go on waiting.
    """
    await tx.flush()
    of_task = (ExecutionRow.task_id == task_id, ExecutionRow.state.in_(_OPEN))
    if await tx.scalar(select(ExecutionRow.id).where(*of_task, ~ExecutionRow.buffered).limit(1)) is not None:
        return False
    waiting = select(ExecutionRow).where(*of_task, ExecutionRow.buffered)
    if paused:
        waiting = waiting.where(ExecutionRow.backfill_id.is_not(None))
    row = await tx.scalar(waiting.order_by(ExecutionRow.create_time, ExecutionRow.id).limit(1).with_for_update())
    if row is None:
        return False
    row.buffered = False
    return True


async def executions_of_backfill(tx: Transaction, task_id: UUID, backfill_id: UUID) -> list[UUID | None]:
    """What the slots of a back-fill have made, in their order; None for those skipped."""
    statement = select(SlotRow.execution_id).where(
        SlotRow.task_id == task_id, SlotRow.kind == "BACKFILL", SlotRow.backfill_id == backfill_id
    )
    return list(await tx.scalars(statement.order_by(SlotRow.nominal)))


# Index slots_by_time. Back-fills have old slots: their request_id is good for a day.
_FORGET = text("""
DELETE FROM slots
WHERE (task_id, kind, nominal, backfill_id) IN (
    SELECT task_id, kind, nominal, backfill_id FROM slots WHERE deal_time < now() - interval '30 days' LIMIT :limit
)
""")


async def forget_slots(tx: Transaction, limit: int) -> int:
    """Delete what was dealt with long ago, in which no clock is wrong; how many there were."""
    result = await tx.execute(_FORGET, {"limit": limit})
    return int(result.rowcount)  # type: ignore[attr-defined]  # of a statement that changes rows
