"""TaskService: what each of its RPCs does."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.schedules import Schedules
from agentrpc.services.task_executions import Executions
from agentrpc.services.tasks import Tasks
from agentrpc.v1 import task_service_pb2

__all__ = ["task_service"]


def task_service(tasks: Tasks, executions: Executions, schedules: Schedules) -> Service:
    """TaskService."""
    return Service(
        task_service_pb2.DESCRIPTOR.services_by_name["TaskService"],
        {
            "CreateTask": lambda call, r: tasks.create(call.principal, r),
            "GetTask": lambda call, r: tasks.get(call.principal, r.name),
            "ListTasks": lambda call, r: tasks.list(call.principal, r),
            "UpdateTask": lambda call, r: tasks.update(call.principal, r),
            "DeleteTask": emptied(lambda call, r: tasks.delete(call.principal, r)),
            "RunTask": lambda call, r: executions.run(call.principal, r),
            "GetExecution": lambda call, r: executions.get(call.principal, r.name),
            "ListExecutions": lambda call, r: executions.list(call.principal, r),
            "CancelExecution": lambda call, r: executions.cancel(call.principal, r),
            "RetryExecution": lambda call, r: executions.retry(call.principal, r),
            "ListTaskTemplates": lambda _, r: tasks.list_templates(r),
            "PauseSchedule": lambda call, r: schedules.pause(call.principal, r),
            "ResumeSchedule": lambda call, r: schedules.resume(call.principal, r),
            "PreviewSchedule": lambda call, r: schedules.preview(call.principal, r),
            "BackfillTask": lambda call, r: schedules.backfill(call.principal, r),
        },
    )
