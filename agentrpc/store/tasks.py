"""Tasks, their executions, and the slots of their schedules."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    Uuid,
    case,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc.domain.states import RunState
from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base, Run, SessionHead, ToolCallRow

__all__ = [
    "NO_BACKFILL",
    "TASK_ORDER",
    "ExecutionQuery",
    "ExecutionRow",
    "Found",
    "SlotRow",
    "TaskQuery",
    "TaskRow",
    "due_executions",
    "execution_of_run",
    "find_execution",
    "find_executions",
    "find_tasks",
    "lock_execution",
    "lock_task",
    "newest_executions",
    "pending_executions",
    "put_off_execution",
    "tasks_using_agent",
    "tasks_using_tool_group",
    "tool_call_counts",
]

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
        Index("tasks_by_agent", "agent_id", postgresql_where=text("agent_id IS NOT NULL")),
        Index("tasks_by_tool_group", "tool_groups", postgresql_using="gin"),
        Index("tasks_due", "next_slot_time", postgresql_where=text("next_slot_time IS NOT NULL AND NOT paused")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[dict[str, str]]
    spec: Mapped[bytes]  # agentrpc.v1.Task: what callers set
    agent_id: Mapped[UUID | None]  # as in `spec`, for those who ask who refers to it
    tool_groups: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid()))  # as in `spec`
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
        Index(
            "executions_stopping", "id", postgresql_where=text("stop IS NOT NULL AND state IN ('PENDING', 'STARTED')")
        ),
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
    due_time: Mapped[datetime | None]
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
    stop: Mapped[str | None] = mapped_column(CheckConstraint("stop IN ('INTERRUPT', 'CANCEL')"))  # for a later slot
    stopped: Mapped[bool] = mapped_column(server_default=text("false"))  # it was to be, whether it ended so or not


class SlotRow(Base):
    """A slot that was dealt with: the key is what keeps it from being dealt with twice."""

    __tablename__ = "slots"
    __table_args__ = (Index("slots_by_time", "deal_time"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(CheckConstraint("kind IN ('SCHEDULE', 'BACKFILL')"), primary_key=True)
    nominal: Mapped[datetime] = mapped_column(primary_key=True)
    backfill_id: Mapped[UUID] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(CheckConstraint("outcome IN ('FIRED', 'SKIPPED', 'BUFFERED')"))
    execution_id: Mapped[UUID | None]
    deal_time: Mapped[datetime] = mapped_column(server_default=text("now()"))


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


_COLUMNS: dict[str, Any] = {
    "create_time": TaskRow.create_time,
    "update_time": TaskRow.update_time,
    "display_name": TaskRow.display_name,
    "id": TaskRow.id,
}
TASK_ORDER = frozenset(_COLUMNS) - {"id"}
_TEXT = func.concat_ws("\n", TaskRow.display_name, TaskRow.description)


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """What to find.

    Attributes:
        visible_to: Only what this user owns, or others share and have not deleted; None: everything.
        owner: Only this owner's; None: everyone's.
        labels: All of these.
        scheduled: Only those with a schedule.
        text: Is in the name or the description, whatever its case.
        show_deleted: Deleted ones too.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    visible_to: UUID | None = None
    owner: UUID | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    scheduled: bool = False
    text: str = ""
    show_deleted: bool = False
    order: Sequence[tuple[str, bool]] = (("create_time", True), ("id", True))
    after: Sequence[Any] | None = None
    limit: int = 50


async def find_tasks(tx: Transaction, query: TaskQuery) -> list[TaskRow]:
    """Tasks. Indexes tasks_by_owner and tasks_shared for one user's newest."""
    statement = select(TaskRow)
    if query.visible_to is not None:
        mine = TaskRow.owner == query.visible_to
        statement = statement.where(or_(mine, TaskRow.shared & TaskRow.delete_time.is_(None)))
    if query.owner is not None:
        statement = statement.where(TaskRow.owner == query.owner)
    if query.labels:
        statement = statement.where(TaskRow.labels.contains(dict(query.labels)))
    if query.scheduled:
        statement = statement.where(TaskRow.scheduled)
    if query.text:
        statement = statement.where(_TEXT.icontains(query.text, autoescape=True))
    if not query.show_deleted:
        statement = statement.where(TaskRow.delete_time.is_(None))
    if query.after is not None:
        statement = statement.where(beyond(_COLUMNS, query.order, query.after))
    statement = statement.order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def tasks_using_agent(tx: Transaction, agent_id: UUID, limit: int) -> list[tuple[UUID, UUID]]:
    """Tasks that refer to an agent, and their owners. Index tasks_by_agent."""
    return await _using(tx, TaskRow.agent_id == agent_id, limit)


async def tasks_using_tool_group(tx: Transaction, group_id: UUID, limit: int) -> list[tuple[UUID, UUID]]:
    """Tasks that refer to a tool group, and their owners. Index tasks_by_tool_group."""
    return await _using(tx, TaskRow.tool_groups.contains([group_id]), limit)


async def _using(tx: Transaction, wanted: ColumnElement[bool], limit: int) -> list[tuple[UUID, UUID]]:
    statement = select(TaskRow.id, TaskRow.owner).where(wanted, TaskRow.delete_time.is_(None)).limit(limit)
    return [(row[0], row[1]) for row in await tx.execute(statement)]


# Index executions_by_task, from its end.
_NEWEST = text("""
SELECT t.id AS task_id, e.id, e.create_time
FROM unnest(CAST(:tasks AS uuid[])) AS t (id)
JOIN LATERAL (
    SELECT id, create_time FROM executions
    WHERE task_id = t.id AND (CAST(:creator AS uuid) IS NULL OR creator = :creator)
    ORDER BY id DESC LIMIT 1
) e ON true
""")


async def newest_executions(
    tx: Transaction, task_ids: Sequence[UUID], creator: UUID | None
) -> dict[UUID, tuple[UUID, datetime]]:
    """The newest execution of each task, by anyone or by one creator, and when it was created."""
    rows = await tx.execute(_NEWEST, {"tasks": list(task_ids), "creator": creator})
    return {row.task_id: (row.id, row.create_time) for row in rows}


@dataclass(frozen=True, slots=True)
class Found:
    """An execution, and its run once it has one that is still stored."""

    execution: ExecutionRow
    run: Run | None
    head: SessionHead | None


# The state that callers see: the run's, while that decides.
_STATE = case(
    (ExecutionRow.state == "PENDING", RunState.QUEUED.value),
    (ExecutionRow.state == "STARTED", Run.state),
    else_=ExecutionRow.state,
)


@dataclass(frozen=True, slots=True)
class ExecutionQuery:
    """What to find; ids are UUIDv7, so that their order is that of creation.

    Attributes:
        task_id: Of this task; None: of all that are not deleted.
        creator: Only what this user began; None: everyone's.
        states: Names of run states; none: all.
        triggers: Names of triggers; none: all.
        created_from: At or after.
        created_before: Before.
        descending: Newest first.
        after: The last id of the page before.
        limit: At most so many.
    """

    task_id: UUID | None = None
    creator: UUID | None = None
    states: Sequence[str] = ()
    triggers: Sequence[str] = ()
    created_from: datetime | None = None
    created_before: datetime | None = None
    descending: bool = True
    after: UUID | None = None
    limit: int = 50


_FOUND = (
    select(ExecutionRow, Run, SessionHead)
    .outerjoin(Run, Run.id == ExecutionRow.run_id)
    .outerjoin(SessionHead, SessionHead.session_id == ExecutionRow.session_id)
)


async def find_executions(tx: Transaction, query: ExecutionQuery) -> list[Found]:
    """Executions with their runs. Index executions_by_task for one task's, executions_by_creator for one user's."""
    statement = _FOUND
    if query.task_id is not None:
        statement = statement.where(ExecutionRow.task_id == query.task_id)
    else:
        statement = statement.join(TaskRow, TaskRow.id == ExecutionRow.task_id).where(TaskRow.delete_time.is_(None))
    if query.creator is not None:
        statement = statement.where(ExecutionRow.creator == query.creator)
    if query.states:
        statement = statement.where(_STATE.in_(query.states))
    if query.triggers:
        statement = statement.where(ExecutionRow.trigger.in_(query.triggers))
    if query.created_from is not None:
        statement = statement.where(ExecutionRow.create_time >= query.created_from)
    if query.created_before is not None:
        statement = statement.where(ExecutionRow.create_time < query.created_before)
    if query.after is not None:
        behind = ExecutionRow.id < query.after if query.descending else ExecutionRow.id > query.after
        statement = statement.where(behind)
    statement = statement.order_by(ExecutionRow.id.desc() if query.descending else ExecutionRow.id).limit(query.limit)
    return [Found(*row) for row in await tx.execute(statement)]


async def find_execution(tx: Transaction, task_id: UUID, execution_id: UUID) -> Found | None:
    """One execution of a task that is not deleted, as it is now."""
    statement = (
        _FOUND.join(TaskRow, TaskRow.id == ExecutionRow.task_id)
        .where(ExecutionRow.id == execution_id, TaskRow.id == task_id, TaskRow.delete_time.is_(None))
        .execution_options(populate_existing=True)
    )
    row = (await tx.execute(statement)).one_or_none()
    return Found(*row) if row is not None else None


async def tool_call_counts(tx: Transaction, runs: Collection[tuple[UUID, UUID]]) -> dict[UUID, int]:
    """How many tool calls these runs, (session, run), have made. Primary key of tool_calls."""
    if not runs:
        return {}
    statement = (
        select(ToolCallRow.run_id, func.count())
        .where(tuple_(ToolCallRow.session_id, ToolCallRow.run_id).in_(runs))
        .group_by(ToolCallRow.run_id)
    )
    return {row[0]: row[1] for row in await tx.execute(statement)}


async def execution_of_run(tx: Transaction, run_id: UUID) -> ExecutionRow | None:
    """The execution that a run belongs to; None for a run of a session of somebody's own. Index executions_by_run."""
    found: ExecutionRow | None = await tx.scalar(select(ExecutionRow).where(ExecutionRow.run_id == run_id))
    return found


async def pending_executions(tx: Transaction, task_id: UUID) -> list[ExecutionRow]:
    """Those of a locked task that have not begun, locked. Index executions_open."""
    statement = (
        select(ExecutionRow)
        .where(ExecutionRow.task_id == task_id, ExecutionRow.state == "PENDING")
        .order_by(ExecutionRow.id)
        .with_for_update()
    )
    return list(await tx.scalars(statement))


async def due_executions(database: Database, limit: int) -> list[tuple[UUID, UUID]]:
    """Executions that are to begin by now, and for whom: the first of each user, then the second, and so on.

    Of one user those due first. Index executions_due.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT id, creator FROM (SELECT id, creator, due_time, row_number()"
            " OVER (PARTITION BY creator ORDER BY due_time NULLS FIRST, id) AS turn FROM executions"
            " WHERE state = 'PENDING' AND NOT buffered AND (due_time IS NULL OR due_time <= now())) AS due"
            " ORDER BY turn, due_time NULLS FIRST LIMIT $1",
            limit,
        )
    return [(row[0], row[1]) for row in rows]


async def put_off_execution(database: Database, execution_id: UUID, longest: timedelta) -> int:
    """Let one that could not begin for a reason of ours wait, twice as long each time; how often it was tried."""
    async with database.transaction() as tx:
        tries: int | None = await tx.scalar(
            update(ExecutionRow)
            .where(ExecutionRow.id == execution_id, ExecutionRow.state == "PENDING")
            .values(
                tries=ExecutionRow.tries + 1,
                due_time=func.now()
                + func.least(longest, timedelta(seconds=1) * func.power(2, func.least(ExecutionRow.tries, 20))),
            )
            .returning(ExecutionRow.tries)
        )
    return tries or 0
