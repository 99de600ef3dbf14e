"""Schedules fire each slot once, whatever becomes of the schedulers and of the clock. Real PostgreSQL."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text, update

from agentrpc.store.schedules import lock_due_tasks
from agentrpc.store.tasks import ExecutionRow, SlotRow, TaskRow
from agentrpc.v1 import task_pb2
from agentrpc.v1 import task_service_pb2 as api

MINUTE = timedelta(minutes=1)
Policy = task_pb2.Schedule


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
    return task.name.removeprefix("tasks/")


@pytest.fixture
def firing(edge):
    return edge.use_cases.firing


@pytest.fixture
def came(edge):
    """Lets time pass for a schedule: `await came(task, ago)` makes its next slot one that was due so long ago."""

    async def pass_by(task, ago):
        async with edge.database.transaction() as tx:
            now = await tx.scalar(select(func.now()))
            await tx.execute(update(TaskRow).where(TaskRow.id == id_of(task)).values(next_slot_time=now - ago))
        return now

    return pass_by


@pytest.fixture
def rows(edge):
    """What is stored of a task: its executions in order, and its slots."""

    async def read(task):
        async with edge.database.transaction() as tx:
            made = await tx.scalars(
                select(ExecutionRow)
                .where(ExecutionRow.task_id == id_of(task))
                .order_by(ExecutionRow.slot_time, ExecutionRow.id)
            )
            slots = await tx.scalars(select(SlotRow).where(SlotRow.task_id == id_of(task)).order_by(SlotRow.nominal))
            return list(made), list(slots)

    return read


def minutes(now, ago):
    """The whole minutes of so long until now."""
    first = (now - ago).replace(second=0, microsecond=0)
    first += MINUTE if first < now - ago else timedelta()
    return [first + MINUTE * at for at in range(int((now - first) / MINUTE) + 1)]


async def test_slots_that_have_come_fire_once(client, firing, came, rows):
    task = await create(client, schedule(window=timedelta(hours=1), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL))
    assert len(task.schedule_status.next_times) == 5
    assert await firing.fire() == 0
    now = await came(task, 5 * MINUTE)
    assert await firing.fire() == 1
    assert await firing.fire() == 0
    made, slots = await rows(task)
    expected = minutes(now, 5 * MINUTE)
    assert [one.slot_time for one in made] == [one.nominal for one in slots] == expected
    assert {(one.state, one.trigger, one.variables, one.due_time) for one in made} == {
        ("PENDING", "SCHEDULE", "{}", None)
    }
    found = await get(client, task)
    assert found.schedule_status.fired_count == len(expected) == found.summary.total_count
    assert found.schedule_status.last_time.ToDatetime(UTC) == expected[-1]
    assert found.schedule_status.next_times[0].ToDatetime(UTC) == expected[-1] + MINUTE
    assert found.etag == task.etag


@pytest.mark.parametrize(
    ("policy", "states", "skipped"),
    [
        ("UNSPECIFIED", ["under way"], 4),
        ("SKIP", ["under way"], 4),
        ("BUFFER_ONE", ["under way", "waits"], 3),
        ("BUFFER_ALL", ["under way", "waits", "waits", "waits", "waits"], 0),
        ("CANCEL_OTHER", ["to stop", "waits"], 3),
        ("TERMINATE_OTHER", ["to stop", "waits"], 3),
        ("ALLOW_ALL", ["under way"] * 5, 0),
    ],
)
async def test_overlap(client, firing, came, rows, policy, states, skipped):
    task = await create(client, schedule(window=timedelta(hours=1), overlap_policy=f"OVERLAP_POLICY_{policy}"))
    now = await came(task, 4.5 * MINUTE)
    slots = minutes(now, 4.5 * MINUTE)
    if len(slots) == 4:
        now = await came(task, 5.2 * MINUTE)
    await firing.fire()
    made, _ = await rows(task)
    told = ["to stop" if one.stop else "waits" if one.buffered else "under way" for one in made]
    status = (await get(client, task)).schedule_status
    assert (told[: len(states)], len(told) + status.skipped_count) == (
        states,
        status.fired_count + status.skipped_count,
    )
    assert status.buffered_count == told.count("waits")
    assert abs(status.skipped_count - skipped) <= 1


async def test_what_is_too_old_or_too_many_is_missed(client, firing, came, rows):
    everything = {"overlap_policy": Policy.OVERLAP_POLICY_ALLOW_ALL}
    short = await create(client, schedule(window=10 * MINUTE, **everything))
    long = await create(client, schedule(window=timedelta(days=30), **everything))
    late = await create(client, schedule("0 0 1 1 *", **everything))
    now = await came(short, timedelta(days=3))
    await came(long, timedelta(days=3))
    await came(late, timedelta(days=800))
    await firing.fire()
    all_of = minutes(now, timedelta(days=3))
    for task, fired in ((short, minutes(now, 10 * MINUTE)), (long, all_of[-100:])):
        made, _ = await rows(task)
        # It was fired a moment after `now`.
        assert [one.slot_time for one in made][:5] in (fired[:5], fired[1:6])
        status = (await get(client, task)).schedule_status
        assert status.fired_count == len(made)
        assert 0 <= status.missed_count + status.fired_count - len(all_of) <= 1
    status = (await get(client, late)).schedule_status
    assert (status.fired_count, status.missed_count) == (0, 2)


async def test_any_number_of_schedulers_fire_each_slot_once(client, firing, came, rows):
    fields = schedule(window=timedelta(hours=1), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL)
    tasks = [await create(client, fields) for _ in range(12)]
    for task in tasks:
        await came(task, 10 * MINUTE)

    async def scheduler():
        while await firing.fire():
            await asyncio.sleep(0)

    await asyncio.gather(*[scheduler() for _ in range(6)])
    for task in tasks:
        made, slots = await rows(task)
        assert len(made) == len(slots) >= 10
        assert max(Counter(one.slot_time for one in made).values()) == 1


async def test_a_scheduler_passes_over_what_another_has_locked(client, edge, firing, came, rows):
    tasks = [await create(client, schedule(window=timedelta(hours=1))) for _ in range(2)]
    await came(tasks[0], 2 * MINUTE)
    async with edge.database.transaction() as tx:
        assert [str(one.id) for one in await lock_due_tasks(tx, 10)] == [id_of(tasks[0])]
        await came(tasks[1], 2 * MINUTE)
        async with asyncio.timeout(5):
            assert await firing.fire() == 1
            assert await firing.fire() == 0
    assert await firing.fire() == 1


async def test_a_clock_that_is_put_forward_and_back_does_no_harm(client, edge, firing, came, rows):
    task = await create(client, schedule(window=timedelta(hours=1), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL))
    # As if the database's clock had been ahead by some minutes: slots to come were dealt with.
    now = await came(task, MINUTE * 0)
    ahead = minutes(now + 10 * MINUTE, 9 * MINUTE)
    async with edge.database.transaction() as tx:
        for nominal in ahead:
            tx.add(
                SlotRow(
                    task_id=id_of(task),
                    kind="SCHEDULE",
                    nominal=nominal,
                    backfill_id="00000000-0000-0000-0000-000000000000",
                    outcome="FIRED",
                )
            )
        await tx.execute(
            update(TaskRow)
            .where(TaskRow.id == id_of(task))
            .values(next_slot_time=ahead[-1] + MINUTE, last_slot_time=ahead[-1])
        )
    assert await firing.follow_clock() == 1
    assert await firing.follow_clock() == 0
    assert (await get(client, task)).schedule_status.next_times[0].ToDatetime(UTC) <= ahead[0]
    # When their time comes they are passed over.
    async with edge.database.transaction() as tx:
        await tx.execute(text("UPDATE slots SET nominal = nominal - interval '15 minutes'"))
        await tx.execute(text("UPDATE tasks SET next_slot_time = next_slot_time - interval '15 minutes'"))
    await firing.fire()
    made, slots = await rows(task)
    assert len(slots) == len({one.nominal for one in slots})
    dealt = {nominal - 15 * MINUTE for nominal in ahead}
    assert not dealt & {one.slot_time for one in made}
    assert made


async def test_jitter_is_of_the_run_and_the_same_for_the_same_slot(client, firing, came, rows):
    task = await create(
        client,
        schedule(window=timedelta(hours=1), jitter=timedelta(hours=2), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL),
    )
    await came(task, 20 * MINUTE)
    await firing.fire()
    made, slots = await rows(task)
    assert [one.slot_time for one in made] == [one.nominal for one in slots]
    waits = [one.due_time - one.slot_time for one in made]
    assert all(timedelta() <= wait < timedelta(hours=2) for wait in waits)
    assert len(set(waits)) > len(waits) // 2


async def test_a_zone_that_is_gone_holds_nobody_up(client, edge, firing, came, rows):
    broken, good = await create(client, schedule()), await create(client, schedule())
    async with edge.database.transaction() as tx:
        row = await tx.get_one(TaskRow, id_of(broken))
        spec = task_pb2.Task.FromString(row.spec)
        spec.schedule.time_zone = "Old/Zone"
        row.spec = spec.SerializeToString()
    await came(broken, 0.5 * MINUTE)
    await came(good, MINUTE)
    assert await firing.fire() == 2
    assert len((await rows(good))[1]) >= 1
    assert not (await rows(broken))[1]
    assert await firing.fire() == 0
    async with edge.database.transaction() as tx:
        assert (await tx.get_one(TaskRow, id_of(broken))).next_slot_time > datetime.now(UTC)
