"""Rows of tasks and executions as messages of the contract."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc.domain.principal import Principal
from agentrpc.names import execution_name, run_name, session_name, task_name, user_name
from agentrpc.services.access import visible_owner
from agentrpc.services.fields import etag_of
from agentrpc.services.views import public_options, run_message
from agentrpc.store.database import Transaction
from agentrpc.store.progress import progress_of_runs
from agentrpc.store.tasks import ExecutionRow, Found, TaskRow, newest_executions, tool_call_counts
from agentrpc.v1 import common_pb2, run_pb2, task_pb2

__all__ = ["describe_executions", "describe_tasks", "task_spec"]


def task_spec(row: TaskRow) -> task_pb2.Task:
    """What callers set of a task, with the values of secrets."""
    return task_pb2.Task.FromString(row.spec)


async def describe_tasks(
    tx: Transaction,
    principal: Principal,
    rows: Sequence[TaskRow],
    schedules: Mapping[UUID, task_pb2.ScheduleStatus],
) -> list[task_pb2.Task]:
    """`agentrpc.v1.Task` of each, as this caller sees it.

    Args:
        tx: The transaction.
        principal: The caller.
        rows: The tasks.
        schedules: What became of their schedules.
    """
    newest = await newest_executions(tx, [row.id for row in rows], visible_owner(principal))
    return [_task_message(row, schedules.get(row.id), newest.get(row.id)) for row in rows]


def _task_message(
    row: TaskRow, status: task_pb2.ScheduleStatus | None, newest: tuple[UUID, datetime] | None
) -> task_pb2.Task:
    message = task_spec(row)
    if message.HasField("options"):
        message.options.CopyFrom(public_options(message.options.SerializeToString()))
    message.name = task_name(row.id)
    message.owner = user_name(row.owner)
    message.etag = etag_of(row.revision)
    _time(message.create_time, row.create_time)
    _time(message.update_time, row.update_time)
    if row.delete_time is not None:
        _time(message.delete_time, row.delete_time)
    if status is not None:
        message.schedule_status.CopyFrom(status)
    message.summary.CopyFrom(_summary(row))
    if newest is not None:
        message.summary.last_execution = execution_name(row.id, newest[0])
        _time(message.summary.last_execution_time, newest[1])
    return message


def _summary(row: TaskRow) -> task_pb2.ExecutionSummary:
    judged = row.succeeded_count + row.failed_count
    summary = task_pb2.ExecutionSummary(
        total_count=row.execution_count,
        open_count=row.execution_count - judged - row.cancelled_count,
        succeeded_count=row.succeeded_count,
        failed_count=row.failed_count,
        cancelled_count=row.cancelled_count,
        success_rate=row.succeeded_count / judged if judged else 0,
        usage=common_pb2.Usage.FromString(row.usage),
    )
    if row.timed_count:
        summary.mean_duration.FromTimedelta(row.duration / row.timed_count)
    return summary


async def describe_executions(
    tx: Transaction, found: Sequence[Found], *, in_list: bool = False
) -> list[task_pb2.Execution]:
    """`agentrpc.v1.Execution` of each; lists cut results, as lists of runs do."""
    runs = [(one.run, one.head) for one in found if one.run is not None and one.head is not None]
    progress = await progress_of_runs(tx, runs)
    calls = await tool_call_counts(tx, {(run.session_id, run.id) for run, _ in runs})
    messages = []
    for one in found:
        message = _execution_message(one.execution)
        if one.run is not None:
            run = run_message(one.run, head=one.head, progress=progress.get(one.run.id), in_list=in_list)
            _add_run(message, run)
            message.tool_call_count = calls.get(one.run.id, 0)
        messages.append(message)
    return messages


def _execution_message(row: ExecutionRow) -> task_pb2.Execution:
    message = task_pb2.Execution(
        name=execution_name(row.task_id, row.id),
        trigger=f"TRIGGER_{row.trigger}",
        creator=user_name(row.creator),
        variables_json=row.variables,
        buffered=row.buffered,
        agent=row.agent,
        attempt=row.attempt,
        retry_of=execution_name(row.task_id, row.retry_of) if row.retry_of else "",
    )
    if row.state != "STARTED":
        state = "QUEUED" if row.state == "PENDING" else row.state
        message.MergeFrom(task_pb2.Execution(state=f"STATE_{state}"))
    if row.session_id is not None and row.run_id is not None:
        message.session = session_name(row.session_id)
        message.run = run_name(row.session_id, row.run_id)
    _time(message.create_time, row.create_time)
    if row.slot_time is not None:
        _time(message.slot_time, row.slot_time)
    if row.due_time is not None:
        _time(message.due_time, row.due_time)
    if row.end_time is not None:
        _time(message.end_time, row.end_time)
    if row.error is not None:
        message.error.ParseFromString(row.error)
    return message


def _add_run(message: task_pb2.Execution, run: run_pb2.Run) -> None:
    if not message.state:
        message.state = run.state
    for name in ("result", "error", "usage", "start_time", "end_time"):
        if run.HasField(name):
            getattr(message, name).CopyFrom(getattr(run, name))
    message.worker = run.worker


def _time(out: Timestamp, value: datetime) -> None:
    out.FromDatetime(value)
