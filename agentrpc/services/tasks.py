"""Tasks: what callers set, list and delete. Their executions are in `task_executions.py`."""

from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import RunState
from agentrpc.errors import NotFound
from agentrpc.names import parse_agent_or_version, parse_task, parse_tool_group, parse_user
from agentrpc.services.access import require_write, visible_owner
from agentrpc.services.agent_options import refer_to_agent, refer_to_tool_groups
from agentrpc.services.executions import end_execution
from agentrpc.services.fields import check_etag, copy_path, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.schedules import Schedules
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_limits import check_limits
from agentrpc.services.sessions import keep_secrets
from agentrpc.services.task_access import change_task, load_task
from agentrpc.services.task_catalogue import task_templates
from agentrpc.services.task_validation import SETTABLE, check_task
from agentrpc.services.task_views import describe_tasks, task_spec
from agentrpc.services.tool_options import check_tools
from agentrpc.services.validation import Faults, request_uuid
from agentrpc.services.webhooks import check_webhook
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.tasks import TASK_ORDER, TaskQuery, TaskRow, find_tasks, pending_executions
from agentrpc.v1 import task_pb2, task_service_pb2

__all__ = ["Tasks"]


class Tasks:
    """The use cases."""

    def __init__(self, database: Database, schedules: Schedules, settings: Settings) -> None:
        self._database = database
        self._schedules = schedules
        self._settings = settings
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._box = SecretBox(settings.secret_keys)

    async def create(self, principal: Principal, request: task_service_pb2.CreateTaskRequest) -> task_pb2.Task:
        """CreateTask."""
        require_write(principal, "tasks.create")
        spec = _begun_with(request.template)
        for path in settable_paths(FieldMask(), request.task, SETTABLE):
            copy_path(request.task, spec, path)
        request_id = request_uuid(request.request_id)
        await check_task(principal.user_id, spec, self._schedules)
        now = clock.utcnow()
        row = TaskRow(
            id=clock.uuid7(),
            owner=principal.user_id,
            revision=1,
            create_time=now,
            update_time=now,
            execution_count=0,
            succeeded_count=0,
            failed_count=0,
            cancelled_count=0,
            timed_count=0,
            usage=b"",
            scheduled=False,
            paused=False,
            fired_count=0,
            skipped_count=0,
            missed_count=0,
            failure_count=0,
            generation=0,
        )
        async with self._database.transaction() as tx:
            if not request.validate_only:
                key = RequestKey(principal, "CreateTask", request_id, request_hash(request))
                if (known := await known_request(tx, key, row.id)) is not None:
                    return await self._describe(tx, principal, await load_task(tx, principal, known))
            await self._set(tx, principal, row, task_pb2.Task(), spec)
            if not request.validate_only:
                tx.add(row)
            return await self._describe(tx, principal, row)

    async def get(self, principal: Principal, name: str) -> task_pb2.Task:
        """GetTask."""
        task_id = parse_task(name)
        async with self._database.transaction() as tx:
            return await self._describe(tx, principal, await load_task(tx, principal, task_id))

    async def list(
        self, principal: Principal, request: task_service_pb2.ListTasksRequest
    ) -> task_service_pb2.ListTasksResponse:
        """ListTasks."""
        size = page_size(request.page_size, limit=100)
        order = parse_order(request.order_by, TASK_ORDER)
        faults = Faults()
        faults.text("text", request.text, 200)
        faults.filter_labels("labels", request.labels.items())
        faults.done()
        after = self._pager.read(request, principal.user_id)
        query = TaskQuery(
            visible_to=visible_owner(principal),
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            labels=request.labels,
            scheduled=request.scheduled,
            text=request.text,
            show_deleted=request.show_deleted,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_tasks(tx, query)
            status = await self._schedules.status(tx, rows[:size])
            tasks = fitting(await describe_tasks(tx, principal, rows[:size], status))
        response = task_service_pb2.ListTasksResponse(tasks=tasks)
        if len(rows) > len(tasks):
            last = rows[len(tasks) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(self, principal: Principal, request: task_service_pb2.UpdateTaskRequest) -> task_pb2.Task:
        """UpdateTask."""
        task_id = parse_task(request.task.name, field="task.name")
        require_write(principal, "tasks.update")
        paths = settable_paths(request.update_mask, request.task, SETTABLE)
        while True:
            async with self._database.transaction() as tx:
                row = await change_task(tx, principal, task_id, "tasks.update")
                check_etag(request.task.etag, row.revision, "task")
            revision, before = row.revision, task_spec(row)
            self._box.open_options(before.options)
            wanted = task_pb2.Task()
            wanted.CopyFrom(before)
            for path in paths:
                copy_path(request.task, wanted, path)
            if wanted.HasField("options"):
                keep_secrets(before.options, wanted.options)
            # Not in a transaction: it takes its time.
            await check_task(principal.user_id, wanted, self._schedules)
            async with self._database.transaction() as tx:
                row = await change_task(tx, principal, task_id, "tasks.update")
                if row.revision != revision:
                    # It was changed meanwhile.
                    continue
                if wanted != before:
                    await self._set(tx, principal, row, before, wanted)
                    row.revision += 1
                    row.update_time = clock.utcnow()
                return await self._describe(tx, principal, row)

    async def delete(self, principal: Principal, request: task_service_pb2.DeleteTaskRequest) -> None:
        """DeleteTask."""
        task_id = parse_task(request.name)
        require_write(principal, "tasks.delete")
        async with self._database.transaction() as tx:
            row = await change_task(tx, principal, task_id, "tasks.delete")
            check_etag(request.etag, row.revision, "task")
            row.delete_time = clock.utcnow()
            row.next_slot_time = None
            for execution in await pending_executions(tx, task_id):
                await end_execution(tx, row, execution, RunState.CANCELLED, self._schedules.execution_ended)

    async def list_templates(
        self, request: task_service_pb2.ListTaskTemplatesRequest
    ) -> task_service_pb2.ListTaskTemplatesResponse:
        """ListTaskTemplates."""
        faults = Faults()
        faults.text("category", request.category, 200)
        faults.done()
        wanted = [one for one in task_templates().values() if request.category in {"", one.category}]
        return task_service_pb2.ListTaskTemplatesResponse(templates=wanted)

    async def _set(
        self, tx: Transaction, principal: Principal, row: TaskRow, before: task_pb2.Task, wanted: task_pb2.Task
    ) -> None:
        """Give a task, new or locked, what a caller wants. Raises NotFound for what it refers to."""
        if wanted.agent and wanted.agent != before.agent:
            await refer_to_agent(tx, principal, wanted.agent, field="task.agent")
        if wanted.tool_groups and wanted.tool_groups != before.tool_groups:
            await refer_to_tool_groups(tx, principal, wanted.tool_groups, field="task.tool_groups")
        if wanted.options != before.options:
            check_limits(wanted.options, self._settings, path="task.options")
            await check_tools(tx, principal, wanted.options, self._settings, path="task.options")
        for index, notification in enumerate(wanted.notifications):
            if notification not in before.notifications:
                field = f"task.notifications[{index}].webhook"
                await check_webhook(tx, principal, notification.webhook, field=field)
        row.display_name = wanted.display_name
        row.description = wanted.description
        row.labels = dict(wanted.labels)
        row.agent_id = parse_agent_or_version(wanted.agent)[0] if wanted.agent else None
        row.tool_groups = [parse_tool_group(name) for name in wanted.tool_groups]
        row.shared = wanted.shared
        # A copy: the caller compares what it has.
        spec = task_pb2.Task()
        spec.CopyFrom(wanted)
        if spec.HasField("options"):
            self._box.seal_options(spec.options)
        row.spec = spec.SerializeToString(deterministic=True)
        if _schedule(wanted) != _schedule(before):
            await self._schedules.changed(tx, row, _schedule(before), _schedule(wanted))

    async def _describe(self, tx: Transaction, principal: Principal, row: TaskRow) -> task_pb2.Task:
        status = await self._schedules.status(tx, [row])
        return (await describe_tasks(tx, principal, [row], status))[0]


def _begun_with(template: str) -> task_pb2.Task:
    """What a ready-made task sets; nothing without one. Raises NotFound."""
    spec = task_pb2.Task()
    if template:
        found = task_templates().get(template)
        if found is None:
            raise NotFound("TaskTemplate", template[:100])
        spec.CopyFrom(found.task)
    return spec


def _schedule(task: task_pb2.Task) -> task_pb2.Schedule | None:
    return task.schedule if task.HasField("schedule") else None
