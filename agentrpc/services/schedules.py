"""Schedules: when tasks are carried out by themselves."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from agentrpc.domain.principal import Principal
from agentrpc.services.validation import Faults
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.tasks import ExecutionRow, TaskRow
from agentrpc.v1 import task_pb2, task_service_pb2

__all__ = ["Schedules"]


class Schedules:
    """The use cases, and what tasks and executions ask and tell."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def check(self, schedule: task_pb2.Schedule, faults: Faults, field: str) -> None:
        """Note what is wrong with a schedule. `field` is such as `task.schedule`."""

    def changed(self, task: TaskRow, before: task_pb2.Schedule | None, after: task_pb2.Schedule | None) -> None:
        """A task has got another schedule, or none; `task` is new or locked. Sets the columns of its schedule."""

    async def status(self, tx: Transaction, tasks: Sequence[TaskRow]) -> Mapping[UUID, task_pb2.ScheduleStatus]:
        """What became of the schedules of these tasks; those without one are left out."""
        return {}

    async def execution_ended(
        self, tx: Transaction, task: TaskRow, execution: ExecutionRow, retry: ExecutionRow | None
    ) -> None:
        """An execution has ended, in this transaction, which holds the locks of both rows.

        Args:
            tx: The transaction.
            task: Its task, which is not deleted.
            execution: The execution; `state` says how it ended.
            retry: The new execution by which the retry policy tries it again.
        """

    async def pause(self, principal: Principal, request: task_service_pb2.PauseScheduleRequest) -> task_pb2.Task:
        """PauseSchedule."""
        raise NotImplementedError

    async def resume(self, principal: Principal, request: task_service_pb2.ResumeScheduleRequest) -> task_pb2.Task:
        """ResumeSchedule."""
        raise NotImplementedError

    async def preview(
        self, principal: Principal, request: task_service_pb2.PreviewScheduleRequest
    ) -> task_service_pb2.PreviewScheduleResponse:
        """PreviewSchedule."""
        raise NotImplementedError

    async def backfill(
        self, principal: Principal, request: task_service_pb2.BackfillTaskRequest
    ) -> task_service_pb2.BackfillTaskResponse:
        """BackfillTask."""
        raise NotImplementedError
