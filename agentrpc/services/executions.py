"""Executions: tasks that are, were, or are to be carried out once."""

from datetime import datetime
from uuid import UUID

from agentrpc import clock
from agentrpc.store.database import Transaction
from agentrpc.store.tasks import ExecutionRow, TaskRow

__all__ = ["new_execution"]


def new_execution(
    tx: Transaction,
    task: TaskRow,
    *,
    trigger: str,
    creator: UUID,
    variables: str,
    slot_time: datetime | None = None,
    due_time: datetime | None = None,
    buffered: bool = False,
    backfill_id: UUID | None = None,
    retry_of: UUID | None = None,
    attempt: int = 1,
) -> ExecutionRow:
    """An execution that has not begun. The caller holds the lock of the task's row, which counts it.

    Args:
        tx: The transaction.
        task: The task.
        trigger: MANUAL, SCHEDULE, BACKFILL or RETRY.
        creator: The owner of its session.
        variables: All of them, defaults included, as the text of a JSON object that was checked.
        slot_time: The slot.
        due_time: It does not begin before; None: it begins at once.
        buffered: It waits until it is told that it may begin.
        backfill_id: The back-fill that made it.
        retry_of: The execution that it repeats.
        attempt: 1, and 1 more for each retry by the retry policy.
    """
    now = clock.utcnow()
    row = ExecutionRow(
        id=clock.uuid7(),
        task_id=task.id,
        trigger=trigger,
        creator=creator,
        variables=variables,
        state="PENDING",
        slot_time=slot_time,
        due_time=due_time or now,
        buffered=buffered,
        backfill_id=backfill_id,
        agent="",
        attempt=attempt,
        retry_of=retry_of,
        tries=0,
        create_time=now,
    )
    tx.add(row)
    task.execution_count += 1
    return row
