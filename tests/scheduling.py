"""Tasks with schedules, and what is stored of them."""

from uuid import UUID

from sqlalchemy import select

from agentrpc.store.tasks import ExecutionRow, SlotRow
from agentrpc.v1 import task_pb2
from agentrpc.v1 import task_service_pb2 as api


def schedule(*crons, window=None, jitter=None, **fields):
    given = task_pb2.Schedule(crons=crons or ["* * * * *"], **fields)
    if window is not None:
        given.catchup_window.FromTimedelta(window)
    if jitter is not None:
        given.jitter.FromTimedelta(jitter)
    return given


async def create(client, given, **fields):
    task = task_pb2.Task(display_name="t", prompt_template="[[text: done]]", schedule=given, **fields)
    return await client.call(client.tasks.CreateTask, api.CreateTaskRequest(task=task))


def get(client, task):
    return client.call(client.tasks.GetTask, api.GetTaskRequest(name=task.name))


def id_of(task):
    return UUID(task.name.removeprefix("tasks/"))


async def stored(database, task):
    """The executions of a task in the order of their slots, and its slots."""
    async with database.transaction() as tx:
        executions = select(ExecutionRow).where(ExecutionRow.task_id == id_of(task))
        made = await tx.scalars(executions.order_by(ExecutionRow.slot_time, ExecutionRow.create_time, ExecutionRow.id))
        slots = await tx.scalars(select(SlotRow).where(SlotRow.task_id == id_of(task)).order_by(SlotRow.nominal))
        return list(made), list(slots)
