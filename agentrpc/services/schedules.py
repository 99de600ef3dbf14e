"""Schedules: when tasks are carried out by themselves. What fires them is in `firing.py`."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc import clock
from agentrpc.domain.crons import Timetable, parse_cron, parse_zone
from agentrpc.domain.principal import Principal
from agentrpc.domain.schedules import Action, OverlapPolicy, decide_each
from agentrpc.domain.variables import dump_variables, load_variables
from agentrpc.errors import FailedPrecondition, InvalidArgument
from agentrpc.names import execution_name, parse_task, task_name
from agentrpc.services.access import require_write
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.task_access import change_task, load_task
from agentrpc.services.task_views import describe_tasks, task_spec
from agentrpc.services.validation import Faults, check_enums, request_uuid
from agentrpc.store.database import Database, Transaction, database_time
from agentrpc.store.outbox import tell
from agentrpc.store.schedules import (
    NewSlot,
    executions_of_backfill,
    overlaps,
    record_slots,
    release_oldest,
    want_stopped,
)
from agentrpc.store.tasks import ExecutionRow, TaskRow
from agentrpc.v1 import task_pb2, task_service_pb2

__all__ = ["Schedules", "catchup_window", "overlap_policy", "slot_variables", "timetable_of"]

_MAX_CRONS = 16
_MAX_REASON = 1000
_MAX_BACKFILL = 1000
_MAX_PREVIEW = 1000
_SHOWN = 5
_CATCHUP = timedelta(minutes=1)
_YEAR = timedelta(days=365)
# Times that any zone and any sum of them can be reckoned with.
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class Schedules:
    """The use cases, and what tasks and executions ask and tell."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- What tasks and executions ask and tell ----

    def check(self, schedule: task_pb2.Schedule, faults: Faults, field: str) -> None:
        """Note what is wrong with a schedule. `field` is such as `task.schedule`."""
        _check(schedule, faults, field)

    async def changed(
        self, tx: Transaction, task: TaskRow, before: task_pb2.Schedule | None, after: task_pb2.Schedule | None
    ) -> None:
        """A task has got another schedule, or none; `task` is new or locked. Sets the columns of its schedule."""
        before, after = before or task_pb2.Schedule(), after or task_pb2.Schedule()
        if _slots(before)[:2] != _slots(after)[:2]:
            task.fired_count = task.skipped_count = task.missed_count = task.failure_count = 0
            task.last_slot_time = None
            task.generation += 1
        if before.paused and not after.paused:
            task.failure_count = 0
        task.scheduled, task.paused = bool(after.crons), after.paused
        same = not before.paused and _slots(before) == _slots(after)
        if not after.crons or after.paused:
            task.next_slot_time = None
        elif not same:
            # With the same slots as before it goes on: one that has just come is not lost.
            task.next_slot_time = timetable_of(after).next(await database_time(tx))
        if before.paused and not after.paused:
            await release_oldest(tx, task.id, paused=False)

    async def status(self, tx: Transaction, tasks: Sequence[TaskRow]) -> Mapping[UUID, task_pb2.ScheduleStatus]:
        """What became of the schedules of these tasks; those without one are left out."""
        scheduled = [task for task in tasks if task.scheduled]
        if not scheduled:
            return {}
        met = await overlaps(tx, [task.id for task in scheduled])
        coming = {task.id: (task_spec(task).schedule, task.next_slot_time) for task in scheduled if task.next_slot_time}
        # In a thread: there may be many tasks, with slots that are years apart.
        shown = await asyncio.to_thread(lambda: {task_id: _shown(*given) for task_id, given in coming.items()})
        return {
            task.id: _status(task, met[task.id].buffered if task.id in met else 0, shown.get(task.id, ()))
            for task in scheduled
        }

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
        of_schedule = execution.slot_time is not None and execution.backfill_id is None
        if retry is None and of_schedule and task.scheduled:
            if execution.state == "SUCCEEDED":
                task.failure_count = 0
            elif execution.state in {"FAILED", "EXPIRED"}:
                task.failure_count += 1
                if _pause_after_failures(task):
                    tell(tx, "schedule_paused", task.owner, task_name(task.id))
        await release_oldest(tx, task.id, paused=task.paused)

    # ---- What callers do ----

    async def pause(self, principal: Principal, request: task_service_pb2.PauseScheduleRequest) -> task_pb2.Task:
        """PauseSchedule."""
        task_id = parse_task(request.name)
        require_write(principal, "tasks.pause")
        faults = Faults()
        faults.text("reason", request.reason, _MAX_REASON)
        faults.done()
        async with self._database.transaction() as tx:
            task = await change_task(tx, principal, task_id, "tasks.pause")
            schedule = _schedule_of(task)
            if not (schedule.paused and schedule.pause_reason == request.reason):
                _set_paused(task, paused=True, reason=request.reason)
                task.next_slot_time = None
            return await self._describe(tx, principal, task)

    async def resume(self, principal: Principal, request: task_service_pb2.ResumeScheduleRequest) -> task_pb2.Task:
        """ResumeSchedule."""
        task_id = parse_task(request.name)
        require_write(principal, "tasks.resume")
        async with self._database.transaction() as tx:
            task = await change_task(tx, principal, task_id, "tasks.resume")
            schedule = _schedule_of(task)
            task.failure_count = 0
            if schedule.paused:
                _set_paused(task, paused=False, reason="")
                task.next_slot_time = _usable(schedule).next(await database_time(tx))
                await release_oldest(tx, task.id, paused=False)
            return await self._describe(tx, principal, task)

    async def preview(
        self, principal: Principal, request: task_service_pb2.PreviewScheduleRequest
    ) -> task_service_pb2.PreviewScheduleResponse:
        """PreviewSchedule."""
        faults = Faults()
        faults.check(0 <= request.count <= _MAX_PREVIEW, "count", f"must be between 1 and {_MAX_PREVIEW}, or 0 for 10")
        if request.HasField("after"):
            _check_time(request.after, faults, "after")
        given = request.WhichOneof("of")
        faults.check(given is not None, "task", "is required, or `schedule`")
        if given == "schedule":
            check_enums(request.schedule, faults, "schedule.")
            _check(request.schedule, faults, "schedule")
        faults.done()
        async with self._database.transaction() as tx:
            schedule = request.schedule
            if given == "task":
                schedule = _schedule_of(await load_task(tx, principal, parse_task(request.task, field="task")))
            after = request.after.ToDatetime(UTC) if request.HasField("after") else await database_time(tx)
        timetable = _usable(schedule)
        response = task_service_pb2.PreviewScheduleResponse()
        # In a thread: slots may be years apart.
        for slot in await asyncio.to_thread(timetable.after, after, request.count or 10):
            shown = response.slots.add(local_time=slot.astimezone(timetable.zone).isoformat())
            shown.time.FromDatetime(slot)
        return response

    async def backfill(
        self, principal: Principal, request: task_service_pb2.BackfillTaskRequest
    ) -> task_service_pb2.BackfillTaskResponse:
        """BackfillTask."""
        task_id = parse_task(request.name)
        require_write(principal, "tasks.backfill")
        begin, before = _range(request)
        key = RequestKey(principal, "BackfillTask", request_uuid(request.request_id), request_hash(request))
        backfill_id = clock.uuid7()
        async with self._database.transaction() as tx:
            task = await change_task(tx, principal, task_id, "tasks.backfill")
            schedule = _schedule_of(task)
            if (known := await known_request(tx, key, backfill_id)) is not None:
                return await _backfilled(tx, task_id, known)
            if before > await database_time(tx):
                raise InvalidArgument.field("before", "must not be in the future: those slots are still to come")
            slots = list(islice(_usable(schedule).between(begin, before), _MAX_BACKFILL + 1))
            if len(slots) > _MAX_BACKFILL:
                text = f"there are more than {_MAX_BACKFILL} slots in this range: choose a shorter one"
                raise InvalidArgument.field("before", text)
            policy = overlap_policy(request.overlap_policy, OverlapPolicy.BUFFER_ALL)
            await _carry_out(tx, task, slots, policy, backfill_id)
            return await _backfilled(tx, task_id, backfill_id)

    async def _describe(self, tx: Transaction, principal: Principal, task: TaskRow) -> task_pb2.Task:
        await tx.flush()
        return (await describe_tasks(tx, principal, [task], await self.status(tx, [task])))[0]


# ---- Schedules as they are stored ----


def timetable_of(schedule: task_pb2.Schedule) -> Timetable:
    """The slots of a schedule that was checked. Raises ValueError when its zone has gone from the machine."""
    return Timetable(
        crons=tuple(map(parse_cron, schedule.crons)),
        zone=parse_zone(schedule.time_zone),
        start=schedule.start_time.ToDatetime(UTC) if schedule.HasField("start_time") else None,
        end=schedule.end_time.ToDatetime(UTC) if schedule.HasField("end_time") else None,
    )


def overlap_policy(value: int, default: OverlapPolicy = OverlapPolicy.SKIP) -> OverlapPolicy:
    """The policy of a schedule or a request."""
    if not value:
        return default
    name = task_pb2.Schedule.OverlapPolicy.Name(task_pb2.Schedule.OverlapPolicy.ValueType(value))
    return OverlapPolicy(name.removeprefix("OVERLAP_POLICY_"))


def catchup_window(schedule: task_pb2.Schedule) -> timedelta:
    """How late a slot may fire."""
    return schedule.catchup_window.ToTimedelta() if schedule.HasField("catchup_window") else _CATCHUP


def slot_variables(spec: task_pb2.Task) -> str:
    """The variables of the executions of a task's slots, as the text of a JSON object."""
    given = load_variables(spec.default_variables_json) | load_variables(spec.schedule.variables_json)
    return dump_variables(given)


def _schedule_of(task: TaskRow) -> task_pb2.Schedule:
    """The schedule of a task. Raises STATE_INVALID when it has none."""
    if not task.scheduled:
        raise FailedPrecondition("the task has no schedule: set task.schedule with UpdateTask", reason="STATE_INVALID")
    return task_spec(task).schedule


def _slots(schedule: task_pb2.Schedule) -> tuple[object, ...]:
    """What says when a schedule has slots: crons, zone, start and end."""
    times = schedule.start_time.ToNanoseconds(), schedule.end_time.ToNanoseconds()
    return list(schedule.crons), schedule.time_zone or "UTC", *times


def _usable(schedule: task_pb2.Schedule) -> Timetable:
    """As `timetable_of`, for a caller. Raises STATE_INVALID when the zone has gone."""
    try:
        return timetable_of(schedule)
    except ValueError as error:
        raise FailedPrecondition(
            f"{error}: the server's list of zones has changed, give task.schedule another one", reason="STATE_INVALID"
        ) from None


def _shown(schedule: task_pb2.Schedule, slot: datetime) -> list[datetime]:
    """A slot with those after it; alone when the zone has gone."""
    following = []
    with suppress(ValueError):
        following = timetable_of(schedule).after(slot, _SHOWN - 1)
    return [slot, *following]


def _status(task: TaskRow, buffered: int, next_times: Sequence[datetime]) -> task_pb2.ScheduleStatus:
    status = task_pb2.ScheduleStatus(
        fired_count=task.fired_count,
        skipped_count=task.skipped_count,
        missed_count=task.missed_count,
        buffered_count=buffered,
        failure_count=task.failure_count,
    )
    if task.last_slot_time is not None:
        status.last_time.FromDatetime(task.last_slot_time)
    for slot in next_times:
        status.next_times.add().FromDatetime(slot)
    return status


def _set_paused(task: TaskRow, *, paused: bool, reason: str) -> None:
    """Write into a locked task whether its schedule is paused, as if a caller had set it."""
    spec = task_spec(task)
    spec.schedule.paused, spec.schedule.pause_reason = paused, reason
    task.spec = spec.SerializeToString(deterministic=True)
    task.paused = paused
    task.revision += 1
    task.update_time = clock.utcnow()


def _pause_after_failures(task: TaskRow) -> bool:
    limit = task_spec(task).schedule.pause_after_failures
    due = bool(limit) and task.failure_count >= limit and not task.paused
    if due:
        reason = f"{task.failure_count} executions in a row have failed: mend the cause, then resume the schedule"
        _set_paused(task, paused=True, reason=reason)
        task.next_slot_time = None
    return due


# ---- Checks ----


def _check(schedule: task_pb2.Schedule, faults: Faults, field: str) -> None:
    crons = schedule.crons
    faults.check(bool(crons), f"{field}.crons", "is required: at least one cron, such as `30 2 * * *`")
    faults.check(len(crons) <= _MAX_CRONS, f"{field}.crons", f"may have at most {_MAX_CRONS} crons")
    for index, cron in enumerate(crons[:_MAX_CRONS]):
        try:
            parse_cron(cron)
        except ValueError as error:
            faults.add(f"{field}.crons[{index}]", str(error))
    try:
        parse_zone(schedule.time_zone)
    except ValueError as error:
        faults.add(f"{field}.time_zone", str(error))
    if schedule.HasField("catchup_window"):
        faults.duration(f"{field}.catchup_window", schedule.catchup_window, timedelta(seconds=10), _YEAR)
    if schedule.HasField("jitter"):
        faults.duration(f"{field}.jitter", schedule.jitter, timedelta(), timedelta(days=1))
    times = [name for name in ("start_time", "end_time") if schedule.HasField(name)]
    good = [_check_time(getattr(schedule, name), faults, f"{field}.{name}") for name in times]
    if len(times) == len([one for one in good if one]) == len(("start_time", "end_time")):
        in_order = schedule.start_time.ToDatetime() < schedule.end_time.ToDatetime()
        faults.check(in_order, f"{field}.end_time", "must be after start_time")
    faults.text(f"{field}.pause_reason", schedule.pause_reason, _MAX_REASON)
    faults.check(schedule.pause_after_failures >= 0, f"{field}.pause_after_failures", "must not be negative")


def _check_time(value: Timestamp, faults: Faults, field: str) -> bool:
    try:
        good = _FIRST <= value.ToDatetime(UTC) < _LAST
    except (OverflowError, ValueError):
        good = False
    faults.check(good, field, f"must be a time between {_FIRST.year} and {_LAST.year}")
    return good


def _range(request: task_service_pb2.BackfillTaskRequest) -> tuple[datetime, datetime]:
    faults = Faults()
    check_enums(request, faults)
    good = []
    for name in ("from", "before"):
        faults.check(request.HasField(name), name, "is required")
        good.append(request.HasField(name) and _check_time(getattr(request, name), faults, name))
    begin, before = (getattr(request, name).ToDatetime(UTC) if all(good) else _FIRST for name in ("from", "before"))
    faults.check(not all(good) or begin < before, "before", "must be after `from`")
    faults.done()
    return begin, before


# ---- Back-fills ----


async def _carry_out(
    tx: Transaction,
    task: TaskRow,
    slots: Sequence[datetime],
    policy: OverlapPolicy,
    backfill_id: UUID,
) -> None:
    """Make the executions of a back-fill, whose slots all come at once. The caller holds the task's lock."""
    met = (await overlaps(tx, [task.id])).get(task.id)
    under_way = met.under_way if met is not None else 0
    decisions = decide_each(policy, len(slots), under_way, buffered=0, limit=_MAX_BACKFILL)
    made = []
    for slot, decision in zip(slots, decisions, strict=True):
        if decision.action is Action.SKIP:
            made.append(NewSlot(task.id, slot))
        else:
            waits = decision.action is Action.BUFFER
            made.append(NewSlot(task.id, slot, clock.uuid7(), task.owner, buffered=waits))
    counts = await record_slots(tx, made, {task.id: slot_variables(task_spec(task))}, backfill_id)
    task.execution_count += counts.get(task.id, (0, 0))[0]
    if stop := next((decision.stop for decision in decisions if decision.stop is not None), None):
        await want_stopped(tx, [task.id], stop)


async def _backfilled(tx: Transaction, task_id: UUID, backfill_id: UUID) -> task_service_pb2.BackfillTaskResponse:
    found = await executions_of_backfill(tx, task_id, backfill_id)
    executions = [execution_name(task_id, made) for made in found if made is not None]
    return task_service_pb2.BackfillTaskResponse(slot_count=len(found), executions=executions)
