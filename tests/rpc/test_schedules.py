"""Schedules over a real socket: how they are set, paused, previewed and back-filled, and what they make of failures."""

import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from agentrpc.client import RpcError
from agentrpc.domain.crons import Timetable
from agentrpc.domain.states import RunState
from agentrpc.services.executions import end_execution
from agentrpc.store.tasks import lock_execution, lock_task
from agentrpc.v1 import task_pb2
from agentrpc.v1 import task_service_pb2 as api
from tests.scheduling import create, get, id_of, schedule, stored

YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)


def at(time):
    made = Timestamp()
    made.FromDatetime(time)
    return made


def times(stamps):
    return [stamp.ToDatetime(UTC) for stamp in stamps]


def update(client, task, given, *paths):
    request = api.UpdateTaskRequest(
        task=task_pb2.Task(name=task.name, schedule=given), update_mask=FieldMask(paths=paths)
    )
    return client.call(client.tasks.UpdateTask, request)


def pause(client, task, reason=""):
    return client.call(client.tasks.PauseSchedule, api.PauseScheduleRequest(name=task.name, reason=reason))


def resume(client, task):
    return client.call(client.tasks.ResumeSchedule, api.ResumeScheduleRequest(name=task.name))


def preview(client, **fields):
    return client.call(client.tasks.PreviewSchedule, api.PreviewScheduleRequest(**fields))


def backfill(client, task, begin, before, **fields):
    request = api.BackfillTaskRequest(name=task.name, before=at(before), **{"from": at(begin)}, **fields)
    return client.call(client.tasks.BackfillTask, request)


async def refused(call, code, reason):
    """The error of a call."""
    with pytest.raises(RpcError) as caught:
        await call
    assert (caught.value.code, caught.value.reason) == (code, reason)
    return caught.value


@pytest.fixture
def rows(edge):
    """What is stored of a task: `await rows(task)`."""
    return lambda task: stored(edge.database, task)


@pytest.fixture
def end(edge):
    """Ends an execution as if its run had: `await end(row, RunState.FAILED)`."""

    async def end_it(row, state):
        async with edge.database.transaction() as tx:
            task, locked = await lock_task(tx, row.task_id), await lock_execution(tx, row.id)
            await end_execution(tx, task, locked, state, edge.use_cases.schedules.execution_ended)

    return end_it


@pytest.fixture
def fire(edge):
    """Fires the next slot of a task now: `await fire(task)`."""

    async def fire_it(task):
        async with edge.database.transaction() as tx:
            await tx.execute(
                text(
                    "UPDATE tasks SET next_slot_time = date_trunc('minute', now()) - make_interval(mins => (SELECT 20 - count(*)::int FROM slots)) WHERE id = :id"
                ),
                {"id": id_of(task)},
            )
        await edge.use_cases.firing.fire()

    return fire_it


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"crons": []}, "task.schedule.crons: is required"),
        ({"crons": ["* * * * *"] * 17}, "at most 16"),
        ({"crons": ["0 0 30 2 *", "61 * * * *"], "time_zone": "Mars/X"}, "crons[0]: '0 0 30 2 *' never fires"),
        ({"crons": ["0 0 30 2 *", "61 * * * *"], "time_zone": "Mars/X"}, "crons[1]: the minute cannot be '61'"),
        ({"crons": ["0 0 30 2 *", "61 * * * *"], "time_zone": "Mars/X"}, "time_zone: 'Mars/X' is not an IANA"),
        ({"crons": ["@reboot"]}, "short name"),
        ({"crons": ["0 0 * * * *"]}, "has 6 fields"),
        ({"overlap_policy": 99}, "99 is not a value of OverlapPolicy"),
        ({"window": timedelta(seconds=9)}, "catchup_window: must be between"),
        ({"window": timedelta(days=366)}, "catchup_window: must be between"),
        ({"jitter": timedelta(days=2)}, "jitter: must be between"),
        ({"start_time": at(YESTERDAY), "end_time": at(YESTERDAY)}, "end_time: must be after start_time"),
        ({"start_time": Timestamp(seconds=-62135596801)}, "start_time: must be a time between"),
        ({"end_time": Timestamp(seconds=253402300799)}, "end_time: must be a time between"),
        ({"pause_after_failures": -1}, "must not be negative"),
        ({"pause_reason": "x" * 1001}, "at most 1000"),
    ],
)
async def test_bad_schedules(client, given, told):
    made = schedule(*given.pop("crons", ["* * * * *"]), **given)
    if told.endswith("is required"):
        made.ClearField("crons")
    error = await refused(create(client, made), "INVALID_ARGUMENT", "FIELD_INVALID")
    assert told in error.message
    # The same without a task.
    error = await refused(preview(client, schedule=made), "INVALID_ARGUMENT", "FIELD_INVALID")
    assert told.removeprefix("task.") in error.message


async def test_a_preview_of_any_schedule(client):
    given = schedule("30 2 * * *", "0 9 * * MON-FRI", time_zone="Europe/Berlin")
    found = await preview(client, schedule=given, count=4, after=at(datetime(2026, 3, 27, 12, tzinfo=UTC)))
    assert [slot.local_time for slot in found.slots] == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
        "2026-03-30T09:00:00+02:00",
    ]
    assert found.slots[1].time.ToDatetime(UTC) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert len((await preview(client, schedule=schedule())).slots) == 10
    over = schedule(end_time=at(YESTERDAY))
    assert not (await preview(client, schedule=over)).slots
    for fields in ({"count": -1, "schedule": given}, {"count": 1001, "schedule": given}, {}):
        await refused(preview(client, **fields), "INVALID_ARGUMENT", "FIELD_INVALID")


async def test_slots_are_reckoned_beside_the_loop(client, monkeypatch):
    task, threads = await create(client, schedule("0 3 * 2 MON#5")), []
    original = Timetable.after

    def after(timetable, instant, count):
        if count > 1:
            threads.append(threading.current_thread())
        return original(timetable, instant, count)

    monkeypatch.setattr(Timetable, "after", after)
    await preview(client, task=task.name, count=20)
    (found,) = (await client.call(client.tasks.ListTasks, api.ListTasksRequest())).tasks
    assert len(found.schedule_status.next_times) == 5
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_a_preview_of_a_task(client, edge):
    task = await create(client, schedule("0 0 1 1 *", paused=True))
    assert not task.schedule_status.next_times
    found = await preview(client, task=task.name, count=2, after=at(datetime(2026, 6, 1, tzinfo=UTC)))
    assert [slot.local_time for slot in found.slots] == ["2027-01-01T00:00:00+00:00", "2028-01-01T00:00:00+00:00"]
    await refused(preview(client, task="tasks/x"), "INVALID_ARGUMENT", "NAME_INVALID")
    async with edge.client("bob") as bob:
        await refused(preview(bob, task=task.name), "NOT_FOUND", "NOT_FOUND")


async def test_what_needs_a_schedule_says_so(client):
    task = await client.call(
        client.tasks.CreateTask, api.CreateTaskRequest(task=task_pb2.Task(display_name="x", prompt_template="x"))
    )
    assert not task.HasField("schedule_status")
    for call in (
        pause(client, task),
        resume(client, task),
        preview(client, task=task.name),
        backfill(client, task, YESTERDAY, YESTERDAY + HOUR),
    ):
        await refused(call, "FAILED_PRECONDITION", "STATE_INVALID")


async def test_pausing_and_resuming(client, edge):
    task = await create(client, schedule())
    paused = await pause(client, task, "for now")
    assert (paused.schedule.paused, paused.schedule.pause_reason) == (True, "for now")
    assert not paused.schedule_status.next_times
    assert paused.etag != task.etag
    assert (await pause(client, task, "for now")).etag == paused.etag
    assert (await pause(client, task, "longer")).schedule.pause_reason == "longer"
    assert not await edge.use_cases.firing.fire()
    resumed = await resume(client, task)
    assert (resumed.schedule.paused, resumed.schedule.pause_reason) == (False, "")
    assert resumed.schedule_status.next_times[0].ToDatetime(UTC) > datetime.now(UTC) - timedelta(seconds=5)
    assert (await resume(client, task)).etag == resumed.etag
    # By an update too.
    again = await update(client, task, task_pb2.Schedule(paused=True), "schedule.paused")
    assert not again.schedule_status.next_times
    await refused(pause(client, task, "x" * 1001), "INVALID_ARGUMENT", "FIELD_INVALID")
    async with edge.client("vic") as vic:
        await refused(pause(vic, task), "PERMISSION_DENIED", "PERMISSION_DENIED")
    async with edge.client("bob") as bob:
        await refused(pause(bob, task), "NOT_FOUND", "NOT_FOUND")


async def test_a_changed_schedule_begins_anew_and_one_that_is_gone_ends(client, fire):
    task = await create(client, schedule(window=HOUR))
    await fire(task)
    before = (await get(client, task)).schedule_status
    assert before.fired_count == 1
    same = await update(
        client, task, task_pb2.Schedule(overlap_policy="OVERLAP_POLICY_SKIP"), "schedule.overlap_policy"
    )
    assert same.schedule_status == before
    other = (await update(client, task, schedule("0 0 1 1 *"), "schedule")).schedule_status
    assert (other.fired_count, other.skipped_count, other.HasField("last_time")) == (0, 0, False)
    assert [(time.month, time.day) for time in times(other.next_times)] == [(1, 1)] * 5
    assert not (await update(client, task, None, "schedule")).HasField("schedule_status")


async def test_executions_that_wait_begin_one_after_the_other(client, rows, fire, end):
    task = await create(client, schedule(window=HOUR, overlap_policy="OVERLAP_POLICY_BUFFER_ALL"))
    await fire(task)
    made, slots = await rows(task)
    assert len(made) == len(slots) == 21
    for number in range(3):
        made, _ = await rows(task)
        assert [one.buffered for one in made] == [False] * (number + 1) + [True] * (20 - number)
        await end(made[number], [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED][number])
    # None of them begins while the schedule is paused.
    await pause(client, task)
    await end(made[3], RunState.SUCCEEDED)
    assert [one.buffered for one in (await rows(task))[0]][4]
    await resume(client, task)
    assert [one.buffered for one in (await rows(task))[0]][4:6] == [False, True]


async def test_a_schedule_pauses_itself_after_failures_in_a_row(client, rows, fire, end):
    policy = "OVERLAP_POLICY_BUFFER_ALL"
    task = await create(client, schedule(window=HOUR, overlap_policy=policy, pause_after_failures=2))
    await fire(task)
    made, _ = await rows(task)
    ends = [RunState.FAILED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED]
    counts = []
    for row, state in zip(made, ends, strict=False):
        assert not (await get(client, task)).schedule.paused
        await end(row, state)
        counts.append((await get(client, task)).schedule_status.failure_count)
    assert counts == [1, 0, 1, 1, 2]
    found = await get(client, task)
    assert found.schedule.paused
    assert "2 executions in a row have failed" in found.schedule.pause_reason
    assert not found.schedule_status.next_times
    assert (await rows(task))[0][5].buffered
    resumed = await resume(client, task)
    assert resumed.schedule_status.failure_count == 0
    assert not (await rows(task))[0][5].buffered


async def test_a_back_fill(client, edge, rows, end):
    task = await create(client, schedule("0 * * * *"))
    request_id = str(uuid4())
    found = await backfill(client, task, YESTERDAY, YESTERDAY + 4 * HOUR, request_id=request_id)
    assert (found.slot_count, len(found.executions)) == (4, 4)
    assert await backfill(client, task, YESTERDAY, YESTERDAY + 4 * HOUR, request_id=request_id) == found
    made, slots = await rows(task)
    assert [(one.slot_time, one.trigger, one.buffered) for one in made] == [
        (YESTERDAY + HOUR * at, "BACKFILL", at > 0) for at in range(4)
    ]
    assert {one.kind for one in slots} == {"BACKFILL"}
    # Another one has slots of its own, and neither counts for the schedule.
    second = await backfill(client, task, YESTERDAY, YESTERDAY + 2 * HOUR, overlap_policy="OVERLAP_POLICY_SKIP")
    assert (second.slot_count, list(second.executions)) == (2, [])
    status = (await get(client, task)).schedule_status
    assert (status.fired_count, status.skipped_count, status.buffered_count) == (0, 0, 0)
    # They go on while the schedule is paused.
    await pause(client, task)
    await end(made[0], RunState.SUCCEEDED)
    assert [one.buffered for one in (await rows(task))[0]] == [False, False, True, True]
    for begin, before, told in (
        (YESTERDAY, YESTERDAY, "after `from`"),
        (YESTERDAY, YESTERDAY + 72 * HOUR, "future"),
        (YESTERDAY - timedelta(days=60), YESTERDAY, "more than 1000"),
    ):
        error = await refused(backfill(client, task, begin, before), "INVALID_ARGUMENT", "FIELD_INVALID")
        assert told in error.message
    error = await refused(
        client.call(client.tasks.BackfillTask, api.BackfillTaskRequest(name=task.name)),
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
    )
    assert "from: is required" in error.message
    assert "before: is required" in error.message
    async with edge.client("vic") as vic:
        await refused(backfill(vic, task, YESTERDAY, YESTERDAY + HOUR), "PERMISSION_DENIED", "PERMISSION_DENIED")


async def test_a_back_fill_with_as_many_slots_as_may_be(client, rows):
    task = await create(client, schedule("0 * * * *"))
    found = await backfill(client, task, YESTERDAY - 1000 * HOUR, YESTERDAY)
    assert (found.slot_count, len(found.executions)) == (1000, 1000)
    everything = await backfill(
        client, task, YESTERDAY - 10 * HOUR, YESTERDAY, overlap_policy="OVERLAP_POLICY_ALLOW_ALL"
    )
    made, _ = await rows(task)
    assert len(everything.executions) == sum(not one.buffered for one in made) - 1 == 10


async def test_a_deleted_task_fires_no_more(client, edge, rows, fire):
    task = await create(client, schedule(window=HOUR, overlap_policy="OVERLAP_POLICY_BUFFER_ALL"))
    await fire(task)
    await client.call(client.tasks.DeleteTask, api.DeleteTaskRequest(name=task.name))
    assert {one.state for one in (await rows(task))[0]} == {"CANCELLED"}
    assert await edge.use_cases.firing.fire() == 0
