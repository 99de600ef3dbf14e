"""The reports that tasks want of their executions."""

import structlog

from agentrpc.errors import ResourceExhausted
from agentrpc.names import parse_execution
from agentrpc.services.reports import check_room, new_report
from agentrpc.services.task_views import task_spec
from agentrpc.store.database import Transaction
from agentrpc.store.outbox import Message
from agentrpc.store.tasks import ExecutionRow, TaskRow
from agentrpc.v1 import report_pb2, run_pb2

__all__ = ["report_execution"]

log = structlog.get_logger()


async def report_execution(tx: Transaction, message: Message) -> None:
    """Have the report made of an execution that has ended, if its task wants one. A consumer of the outbox."""
    if message.topic != "task_execution_ended":
        return
    task_id, execution_id = parse_execution(message.subject)
    task, execution = await tx.get(TaskRow, task_id), await tx.get(ExecutionRow, execution_id)
    if task is None or execution is None or execution.run_id is None:
        return
    spec = task_spec(task)
    state = run_pb2.Run.State.Value(f"STATE_{execution.state}")
    if not spec.HasField("report") or (spec.report.states and state not in spec.report.states):
        return
    try:
        await check_room(tx, execution.creator)
    except ResourceExhausted as error:
        log.warning("report_left_out", execution=message.subject, why=error.message)
        return
    given = report_pb2.Report(subject=message.subject, format=spec.report.format, template=spec.report.template)
    tx.add(new_report(execution.creator, given))
