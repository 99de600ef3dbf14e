"""Tasks, their executions, and the slots of their schedules."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, select, text
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.store.database import Transaction
from agentrpc.store.tables import Base

__all__ = ["NO_BACKFILL", "ExecutionRow", "SlotRow", "TaskRow", "lock_execution", "lock_task"]

# In `slots.backfill_id`: the schedule's own slots.
NO_BACKFILL = UUID(int=0)


class TaskRow(Base):
    """What callers set about a task, what its executions add up to, and where its schedule is.

    Counters change under the row's lock, in the transaction of what they count. Lock order: task, execution, head.
    `generation` counts the schedules that it has had.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_by_owner", "owner", "create_time", "id"),
        Index("tasks_by_labels", "labels", postgresql_using="gin"),
        Index("tasks_shared", "create_time", "id", postgresql_where=text("shared")),
        Index("tasks_due", "next_slot_time", postgresql_where=text("next_slot_time IS NOT NULL AND NOT paused")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[dict[str, str]]
    spec: Mapped[bytes]  # agentrpc.v1.Task: what callers set
    shared: Mapped[bool]
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]
    delete_time: Mapped[datetime | None]

    execution_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    succeeded_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failed_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cancelled_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    timed_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  # those that `duration` adds up
    duration: Mapped[timedelta] = mapped_column(server_default=text("'0'::interval"))
    usage: Mapped[bytes] = mapped_column(server_default=text("''::bytea"))  # agentrpc.v1.Usage

    scheduled: Mapped[bool] = mapped_column(server_default=text("false"))
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    next_slot_time: Mapped[datetime | None]
    last_slot_time: Mapped[datetime | None]
    fired_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    skipped_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    missed_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failure_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    generation: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class ExecutionRow(Base):
    """A task that is, was, or is to be carried out once.

    `state` is PENDING before there is a run, STARTED while the run decides, and from then on how it ended, which is
    written once and counted in the task's row by the same transaction. `tries` counts failed attempts to begin it.
    """

    __tablename__ = "executions"
    __table_args__ = (
        Index("executions_by_task", "task_id", "id"),
        Index("executions_by_creator", "creator", "id"),
        Index("executions_by_run", "run_id", unique=True, postgresql_where=text("run_id IS NOT NULL")),
        Index("executions_open", "task_id", "id", postgresql_where=text("state IN ('PENDING', 'STARTED')")),
        Index("executions_due", "due_time", postgresql_where=text("state = 'PENDING' AND NOT buffered")),
        CheckConstraint("state <> 'STARTED' OR run_id IS NOT NULL", name="executions_started"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    trigger: Mapped[str] = mapped_column(CheckConstraint("trigger IN ('MANUAL', 'SCHEDULE', 'BACKFILL', 'RETRY')"))
    creator: Mapped[UUID]
    variables: Mapped[str]  # the text of a JSON object, exact: jsonb would change numbers
    state: Mapped[str] = mapped_column(
        CheckConstraint("state IN ('PENDING', 'STARTED', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')"),
    )
    slot_time: Mapped[datetime | None]
    due_time: Mapped[datetime]
    buffered: Mapped[bool] = mapped_column(server_default=text("false"))
    backfill_id: Mapped[UUID | None]
    session_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    agent: Mapped[str] = mapped_column(server_default=text("''"))  # the name of its version
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    retry_of: Mapped[UUID | None]
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    create_time: Mapped[datetime]
    end_time: Mapped[datetime | None]
    error: Mapped[bytes | None]  # agentrpc.v1.RunError: why it could not begin


class SlotRow(Base):
    """A slot that was dealt with: the key is what keeps it from being dealt with twice."""

    __tablename__ = "slots"

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(CheckConstraint("kind IN ('SCHEDULE', 'BACKFILL')"), primary_key=True)
    nominal: Mapped[datetime] = mapped_column(primary_key=True)
    backfill_id: Mapped[UUID] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(CheckConstraint("outcome IN ('FIRED', 'SKIPPED', 'MISSED', 'BUFFERED')"))
    execution_id: Mapped[UUID | None]


async def lock_task(tx: Transaction, task_id: UUID) -> TaskRow | None:
    """A task's row, locked until the end of the transaction, as it is now."""
    row: TaskRow | None = await tx.scalar(
        select(TaskRow).where(TaskRow.id == task_id).with_for_update().execution_options(populate_existing=True)
    )
    return row


async def lock_execution(tx: Transaction, execution_id: UUID) -> ExecutionRow | None:
    """An execution's row, locked until the end of the transaction, as it is now."""
    row: ExecutionRow | None = await tx.scalar(
        select(ExecutionRow)
        .where(ExecutionRow.id == execution_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return row
