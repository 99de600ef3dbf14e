"""What callers do with executions, and the beginning of those whose time has come."""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.isolation import Level
from agentrpc.domain.principal import Principal, Role
from agentrpc.domain.states import RunState, StopKind
from agentrpc.ending import end_tasks
from agentrpc.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    StoreUnavailable,
)
from agentrpc.names import execution_name, parse_execution, parse_task, parse_task_or_wildcard
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.executions import (
    Ended,
    Touched,
    begin_execution,
    end_execution,
    new_execution,
    settle,
    stop_execution,
)
from agentrpc.services.idempotency import RequestKey, check_same, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, page_size
from agentrpc.services.signals import Doorbell
from agentrpc.services.task_access import load_task
from agentrpc.services.task_validation import check_json
from agentrpc.services.task_views import describe_executions, task_spec
from agentrpc.services.templates import prepare
from agentrpc.services.validation import Faults, check_enums, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.outbox import Message
from agentrpc.store.requests import find_request
from agentrpc.store.tables import User
from agentrpc.store.tasks import (
    ExecutionQuery,
    ExecutionRow,
    Found,
    TaskRow,
    due_executions,
    find_execution,
    find_executions,
    lock_execution,
    lock_task,
    put_off_execution,
)
from agentrpc.v1 import run_pb2, task_pb2, task_service_pb2

__all__ = ["Executions", "load_execution"]

log = structlog.get_logger()

_MAX_VARIABLES = 256 * 1024
_RETRYABLE = {RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED}
_BATCH = 64
_AT_ONCE = 4
_LOOK_AGAIN = 1.0
_LONGEST = timedelta(minutes=5)
# An hour, for faults of ours: what else the task is to do may wait for it.
_MAX_TRIES = 20


class Executions:
    """The use cases.

    Args:
        database: The store.
        bus: Shows watchers what happens.
        doorbell: Is rung when a run waits.
        settings: The settings.
        ended: Is told of executions that have ended.
    """

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings, ended: Ended) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._ended = ended
        self._minimum = Level.named(settings.minimum_isolation)
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def run(self, principal: Principal, request: task_service_pb2.RunTaskRequest) -> task_pb2.Execution:
        """RunTask."""
        task_id = parse_task(request.name)
        require_write(principal, "tasks.run")
        faults = Faults()
        faults.bytes("variables_json", request.variables_json, _MAX_VARIABLES)
        faults.done()
        check_json("variables_json", request.variables_json)
        key = RequestKey(principal, "RunTask", request_uuid(request.request_id), request_hash(request))
        return await self._carry_out(key, task_id, request.variables_json)

    async def retry(self, principal: Principal, request: task_service_pb2.RetryExecutionRequest) -> task_pb2.Execution:
        """RetryExecution."""
        task_id, execution_id = parse_execution(request.name)
        require_write(principal, "executions.retry")
        key = RequestKey(principal, "RetryExecution", request_uuid(request.request_id), request_hash(request))
        async with self._database.transaction() as tx:
            found = await load_execution(tx, principal, task_id, execution_id)
            state = _state(found)
            if state not in _RETRYABLE:
                raise FailedPrecondition(
                    f"the execution is {state}: only one that failed, expired or was cancelled can be made again",
                    reason="STATE_INVALID",
                    metadata={"state": f"STATE_{state}"},
                )
        return await self._carry_out(key, task_id, found.execution.variables, found.execution)

    async def _carry_out(
        self, key: RequestKey, task_id: UUID, given: str, origin: ExecutionRow | None = None
    ) -> task_pb2.Execution:
        """Make an execution and begin it at once."""
        principal = key.principal
        while True:
            async with self._database.transaction() as tx:
                task = await load_task(tx, principal, task_id)
                if (known := await _known(tx, key)) is not None:
                    return await self._describe(tx, principal, task_id, known)
            spec, revision = task_spec(task), task.revision
            # Not in a transaction: it takes its time.
            prepared = await prepare(
                principal.user_id,
                template=spec.prompt_template,
                schema=spec.variables_schema_json,
                defaults=spec.default_variables_json,
                given=given,
            )
            async with self._database.transaction() as tx:
                task = await load_task(tx, principal, task_id, lock=True)
                if task.revision != revision:
                    # It was changed meanwhile.
                    continue
                execution_id = clock.uuid7()
                if (known := await known_request(tx, key, execution_id)) is not None:
                    return await self._describe(tx, principal, task_id, known)
                execution = new_execution(
                    tx,
                    task,
                    trigger="MANUAL" if origin is None else "RETRY",
                    creator=principal.user_id,
                    variables=prepared.variables,
                    execution_id=execution_id,
                    slot_time=None if origin is None else origin.slot_time,
                    retry_of=None if origin is None else origin.id,
                )
                touched = await begin_execution(tx, task, execution, principal, prepared.prompt, self._minimum)
                message = await self._describe(tx, principal, task_id, execution_id)
            break
        await touched.announce(self._bus, self._doorbell)
        return message

    async def get(self, principal: Principal, name: str) -> task_pb2.Execution:
        """GetExecution."""
        task_id, execution_id = parse_execution(name)
        async with self._database.transaction() as tx:
            return await self._describe(tx, principal, task_id, execution_id)

    async def list(
        self, principal: Principal, request: task_service_pb2.ListExecutionsRequest
    ) -> task_service_pb2.ListExecutionsResponse:
        """ListExecutions."""
        task_id = parse_task_or_wildcard(request.parent)
        size = page_size(request.page_size, limit=100)
        faults = Faults()
        check_enums(request, faults)
        created_from = faults.time(request, "create_time_from")
        created_before = faults.time(request, "create_time_before")
        faults.done()
        if request.order_by.strip() not in {"", "create_time", "create_time asc", "create_time desc"}:
            raise InvalidArgument.field("order_by", "must be `create_time` or `create_time desc`")
        after = self._pager.read(request, principal.user_id)
        query = ExecutionQuery(
            task_id=task_id,
            creator=visible_owner(principal),
            states=[run_pb2.Run.State.Name(state).removeprefix("STATE_") for state in request.states],
            triggers=[task_pb2.Execution.Trigger.Name(one).removeprefix("TRIGGER_") for one in request.triggers],
            created_from=created_from,
            created_before=created_before,
            descending=request.order_by.strip() in {"", "create_time desc"},
            after=UUID(after[0]) if after is not None else None,
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            if task_id is not None:
                await load_task(tx, principal, task_id)
            rows = await find_executions(tx, query)
            executions = fitting(await describe_executions(tx, rows[:size], in_list=True))
        response = task_service_pb2.ListExecutionsResponse(executions=executions)
        if len(rows) > len(executions):
            keyset = [str(rows[len(executions) - 1].execution.id)]
            response.next_page_token = self._pager.issue(request, principal.user_id, keyset)
        return response

    async def cancel(
        self, principal: Principal, request: task_service_pb2.CancelExecutionRequest
    ) -> task_pb2.Execution:
        """CancelExecution."""
        task_id, execution_id = parse_execution(request.name)
        require_write(principal, "executions.cancel")
        faults = Faults()
        faults.text("reason", request.reason, 1000)
        faults.done()
        touched = None
        async with self._database.transaction() as tx:
            await load_execution(tx, principal, task_id, execution_id)
            task = await lock_task(tx, task_id)
            row = await lock_execution(tx, execution_id)
            assert task is not None
            assert row is not None
            if row.state == "PENDING":
                await end_execution(tx, task, row, RunState.CANCELLED, self._ended)
            elif row.state == "STARTED":
                touched = await stop_execution(tx, row, StopKind.CANCEL, request.reason)
            await tx.flush()
            message = await self._describe(tx, principal, task_id, execution_id)
        if touched is not None:
            await touched.announce(self._bus, self._doorbell)
        return message

    async def settle(self, tx: Transaction, message: Message) -> None:
        """A consumer of the outbox: the end of a run ends its execution."""
        await settle(tx, message, self._ended)

    async def start_due(self) -> int:
        """Begin those whose time has come; how many there were. Any number of processes may do this."""
        # And for whom.
        begun: dict[UUID, UUID] = {}
        under_way: set[asyncio.Task[None]] = set()
        waiting, read = _in_turns(await due_executions(self._database, _BATCH), begun), clock.monotonic()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < _AT_ONCE:
                    execution_id, creator = waiting.popleft()
                    begun[execution_id] = creator
                    under_way.add(asyncio.create_task(self._start(execution_id), name=f"begin-{execution_id}"))
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                if waiting and clock.monotonic() - read > _LOOK_AGAIN:
                    # Where beginning takes long, somebody else's may have come meanwhile: his turn is next.
                    due = await due_executions(self._database, _BATCH)
                    read = clock.monotonic()
                    waiting = _in_turns([one for one in due if one[0] not in begun][: _BATCH - len(begun)], begun)
        finally:
            await end_tasks(under_way)
        return len(begun)

    async def _start(self, execution_id: UUID) -> None:
        try:
            touched = await self._begin(execution_id)
        except (InvalidArgument, NotFound, PermissionDenied) as error:
            await self._fail(execution_id, run_pb2.RunError.REASON_TASK_INVALID, error.message)
        except StoreUnavailable:
            # Of one transaction among many: the next round finds out whether it was more.
            log.warning("execution_not_begun", execution=execution_id)
        except Exception:
            log.exception("execution_not_begun", execution=execution_id)
            if await put_off_execution(self._database, execution_id, _LONGEST) >= _MAX_TRIES:
                why = f"a fault of the service; quote {execution_id} to its operator"
                await self._fail(execution_id, run_pb2.RunError.REASON_INTERNAL, why)
        else:
            if touched is not None:
                await touched.announce(self._bus, self._doorbell)

    async def _begin(self, execution_id: UUID) -> Touched | None:
        """Begin one; None: another process has, or it is to be looked at again."""
        async with self._database.transaction() as tx:
            row = await tx.get_one(ExecutionRow, execution_id)
            task = await tx.get_one(TaskRow, row.task_id)
            creator = await tx.get_one(User, row.creator)
        spec, revision = task_spec(task), task.revision
        principal = _principal(creator)
        try:
            # Its variables have the defaults of the time when it was made.
            prepared = await prepare(
                principal.user_id,
                template=spec.prompt_template,
                schema=spec.variables_schema_json,
                defaults="",
                given=row.variables,
            )
        except ResourceExhausted:
            # Calls of its user wait to be rendered: so does this.
            return None
        async with self._database.transaction() as tx:
            locked = await lock_execution(tx, execution_id)
            task = await tx.get_one(TaskRow, row.task_id)
            if locked is None or locked.state != "PENDING" or locked.buffered or task.revision != revision:
                return None
            return await begin_execution(tx, task, locked, principal, prepared.prompt, self._minimum)

    async def _fail(self, execution_id: UUID, reason: run_pb2.RunError.Reason, why: str) -> None:
        why = f"the execution could not begin: {why}"
        error = run_pb2.RunError(reason=reason, message=why)
        async with self._database.transaction() as tx:
            task = await lock_task(tx, (await tx.get_one(ExecutionRow, execution_id)).task_id)
            row = await lock_execution(tx, execution_id)
            if task is not None and row is not None and row.state == "PENDING":
                await end_execution(tx, task, row, RunState.FAILED, self._ended, error=error)

    async def _describe(
        self, tx: Transaction, principal: Principal, task_id: UUID, execution_id: UUID
    ) -> task_pb2.Execution:
        found = await load_execution(tx, principal, task_id, execution_id)
        return (await describe_executions(tx, [found]))[0]


async def load_execution(tx: Transaction, principal: Principal, task_id: UUID, execution_id: UUID) -> Found:
    """An execution that the caller may see. Raises NotFound."""
    found = await find_execution(tx, task_id, execution_id)
    creator = None if found is None else found.execution.creator
    require_visible(principal, creator, "Execution", execution_name(task_id, execution_id))
    assert found is not None
    return found


async def _known(tx: Transaction, key: RequestKey) -> UUID | None:
    """What a request_id has made before, without making it known."""
    if key.request_id is None:
        return None
    principal = key.principal.user_id
    found = await find_request(tx, principal=principal, method=key.method, request_id=key.request_id)
    if found is None:
        return None
    check_same(key.body, found[1], str(key.request_id))
    return found[0]


def _in_turns(due: Sequence[tuple[UUID, UUID]], begun: Mapping[UUID, UUID]) -> deque[tuple[UUID, UUID]]:
    """Executions, one of each user in turn; first those of users for whom the fewest have begun.

    Each process has an order of its own: what another one does at the same time is done in vain.
    """
    queues: dict[UUID, list[tuple[UUID, UUID]]] = {}
    for one in sorted(due, key=lambda _: clock.jitter(1)):
        queues.setdefault(one[1], []).append(one)
    had = Counter(begun.values())
    turns = zip_longest(*(queues[creator] for creator in sorted(queues, key=lambda creator: had[creator])))
    return deque(one for turn in turns for one in turn if one is not None)


def _state(found: Found) -> RunState:
    if found.execution.state == "STARTED" and found.run is not None:
        return RunState(found.run.state)
    return RunState.QUEUED if found.execution.state == "PENDING" else RunState(found.execution.state)


def _principal(user: User) -> Principal:
    """Who an execution is carried out for, as a caller would be. Raises PermissionDenied."""
    if user.disable_time is not None or user.role == Role.VIEWER:
        raise PermissionDenied("tasks.run", f"the user {user.username} may not run tasks any more")
    return Principal(user.id, Role(user.role), UUID(int=0), datetime.max.replace(tzinfo=UTC))
