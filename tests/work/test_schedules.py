"""Schedules fire each slot once, whatever becomes of the schedulers and of the clock. Real PostgreSQL."""

import asyncio
import contextlib
import inspect
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text, update

from agentrpc import clock
from agentrpc.client import RpcError
from agentrpc.services import firing as firing_module
from agentrpc.services.firing import Firing
from agentrpc.services.outbox import Outbox
from agentrpc.services.schedules import Schedules
from agentrpc.services.signals import Doorbell
from agentrpc.services.task_executions import Executions
from agentrpc.store.outbox import Message
from agentrpc.store.schedules import lock_due_tasks
from agentrpc.store.tables import Run
from agentrpc.store.tasks import NO_BACKFILL, SlotRow, TaskRow
from agentrpc.v1 import task_pb2
from agentrpc.v1 import task_service_pb2 as api
from tests.scheduling import create, get, id_of, schedule, stored

MINUTE = timedelta(minutes=1)
Policy = task_pb2.Schedule


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
    """What is stored of a task: `await rows(task)`."""
    return lambda task: stored(edge.database, task)


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


@pytest.fixture
def five(client, came):
    """A task with five slots that have come, and no other for a year: `await five(policy)`. Fewer with `count`."""

    async def make(policy="ALLOW_ALL", count=5, **fields):
        begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=30)
        times = [begin + MINUTE * at for at in range(count)]
        crons = [f"{at.minute} {at.hour} {at.day} {at.month} *" for at in times]
        given = schedule(*crons, window=timedelta(hours=1), overlap_policy=f"OVERLAP_POLICY_{policy}", **fields)
        task = await create(client, given)
        await came(task, timedelta(minutes=32))
        return task, times

    return make


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        ("UNSPECIFIED", ["under way", "", "", "", ""]),
        ("SKIP", ["under way", "", "", "", ""]),
        ("BUFFER_ONE", ["under way", "waits", "", "", ""]),
        ("BUFFER_ALL", ["under way", "waits", "waits", "waits", "waits"]),
        ("CANCEL_OTHER", ["INTERRUPT", "waits", "", "", ""]),
        ("TERMINATE_OTHER", ["CANCEL", "waits", "", "", ""]),
        ("ALLOW_ALL", ["under way"] * 5),
    ],
)
async def test_overlap(client, firing, five, rows, policy, states):
    task, times = await five(policy)
    await firing.fire()
    made, slots = await rows(task)
    told = {one.slot_time: one.stop or ("waits" if one.buffered else "under way") for one in made}
    assert [told.get(time, "") for time in times] == states
    assert [(one.nominal, one.outcome) for one in slots] == [
        (time, {"": "SKIPPED", "waits": "BUFFERED"}.get(state, "FIRED"))
        for time, state in zip(times, states, strict=True)
    ]
    status = (await get(client, task)).schedule_status
    assert (status.fired_count, status.skipped_count) == (len(made), states.count(""))
    assert status.buffered_count == states.count("waits")


@pytest.mark.parametrize("told", ["before it is stopped", "after it is stopped"])
async def test_what_was_to_be_stopped_for_a_slot_is_not_tried_again(client, edge, firing, came, rows, told):
    policy = task_pb2.RetryPolicy(max_attempts=2)
    given = schedule(window=timedelta(hours=1), overlap_policy=Policy.OVERLAP_POLICY_TERMINATE_OTHER)
    task = await create(client, given, retry_policy=policy)
    await client.call(client.tasks.RunTask, api.RunTaskRequest(name=task.name))
    await came(task, MINUTE)
    await firing.fire()
    # Its run has ended just before, and nobody has told yet.
    async with edge.database.transaction() as tx:
        await tx.execute(update(Run).values(state="EXPIRED", end_time=func.now()))
        run = (await tx.scalars(select(Run))).one()
    message = Message(1, "run_ended", run.creator, "", run.session_id, run.id, 1, run.end_time)
    if told == "after it is stopped":
        assert await firing.stop() == 1
    async with edge.database.transaction() as tx:
        await edge.use_cases.executions.settle(tx, message)
    made, _ = await rows(task)
    assert sorted((one.state, one.trigger, one.buffered) for one in made) == [
        ("EXPIRED", "MANUAL", False),
        ("PENDING", "SCHEDULE", False),
    ]


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
            pass

    await asyncio.gather(*[scheduler() for _ in range(6)])
    for task in tasks:
        made, slots = await rows(task)
        assert len(made) == len(slots) >= 10
        assert max(Counter(one.slot_time for one in made).values()) == 1


async def test_many_slots_are_dealt_with_in_several_transactions(client, firing, came, rows):
    everything = schedule(window=timedelta(hours=3), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL)
    tasks = [await create(client, everything) for _ in range(12)]
    for task in tasks:
        await came(task, timedelta(hours=2))
    assert await firing.fire() == 10
    assert await firing.fire() == 2
    for task in tasks:
        assert len((await rows(task))[0]) == 100


async def test_a_scheduler_passes_over_what_another_has_locked(client, edge, firing, came, rows):
    tasks = [await create(client, schedule(window=timedelta(hours=1))) for _ in range(2)]
    await came(tasks[0], 2 * MINUTE)
    async with edge.database.transaction() as tx:
        assert [one.id for one in await lock_due_tasks(tx, 10)] == [id_of(tasks[0])]
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
                    backfill_id=NO_BACKFILL,
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


async def test_a_zone_that_is_gone_holds_nobody_up(client, edge, firing, came, rows, monkeypatch):
    broken, good = await create(client, schedule()), await create(client, schedule())
    async with edge.database.transaction() as tx:
        row = await tx.get_one(TaskRow, id_of(broken))
        spec = task_pb2.Task.FromString(row.spec)
        spec.schedule.time_zone = "Old/Zone"
        row.spec = spec.SerializeToString()
    slot = await came(broken, 3 * MINUTE) - 3 * MINUTE
    await came(good, MINUTE)
    assert await firing.fire() == 2
    assert len((await rows(good))[1]) >= 1
    assert not (await rows(broken))[1]
    assert await firing.fire() == 0
    assert await firing.seconds_to_next() > 0
    async with edge.database.transaction() as tx:
        assert (await tx.get_one(TaskRow, id_of(broken))).next_slot_time == slot
    # After a while it looks again.
    start = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: start + 120)
    assert await firing.seconds_to_next() > 0
    assert await firing.fire() == 1
    assert await firing.fire() == 0
    # Its owner is told, and can mend it.
    assert len((await get(client, broken)).schedule_status.next_times) == 1
    with pytest.raises(RpcError, match="Old/Zone"):
        await client.call(client.tasks.PreviewSchedule, api.PreviewScheduleRequest(task=broken.name))
    mended = task_pb2.Task(name=broken.name, schedule=schedule())
    mended = await client.call(client.tasks.UpdateTask, api.UpdateTaskRequest(task=mended))
    assert len(mended.schedule_status.next_times) == 5
    # That is another slot, which it does not leave alone.
    await came(broken, MINUTE)
    assert await firing.fire() == 1
    assert (await rows(broken))[1]


async def test_slots_are_left_to_a_scheduler_that_knows_the_zone(client, edge, firing, came, rows, monkeypatch):
    given = schedule(window=timedelta(hours=1), overlap_policy=Policy.OVERLAP_POLICY_ALLOW_ALL, time_zone="Asia/Tokyo")
    task = await create(client, given)
    now = await came(task, 3 * MINUTE)
    known = firing_module.timetable_of

    def gone(_):
        raise ValueError("Asia/Tokyo")

    monkeypatch.setattr(firing_module, "timetable_of", gone)
    assert await firing.fire() == 1
    assert await firing.fire() == 0
    monkeypatch.setattr(firing_module, "timetable_of", known)
    assert await Process(edge, edge.database).firing.fire() == 1
    expected = minutes(now, 3 * MINUTE)
    assert [one.nominal for one in (await rows(task))[1]][: len(expected)] == expected


# ---- A scheduler ends anywhere ----


class CrashError(Exception):
    """The scheduler is gone."""


class Dying:
    """A store whose user ends at a step: before or after a statement, or before or after a commit."""

    def __init__(self, database, step):
        self._database, self._left = database, step
        self.died = False

    def step(self):
        if self.died or not self._left:
            self.died = True
            raise CrashError
        self._left -= 1

    @contextlib.asynccontextmanager
    async def transaction(self):
        async with self._database.transaction() as tx:
            yield DyingTransaction(tx, self.step)
            self.step()
        self.step()

    @contextlib.asynccontextmanager
    async def connection(self):
        self.step()
        async with self._database.connection() as connection:
            yield connection
        self.step()


class DyingTransaction:
    def __init__(self, tx, step):
        self._tx, self._step = tx, step

    def __getattr__(self, name):
        found = getattr(self._tx, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def stepping(*given, **named):
            self._step()
            result = await found(*given, **named)
            self._step()
            return result

        return stepping


class Process:
    """What a scheduler does, with a store of its own."""

    def __init__(self, edge, database):
        bus, settings = edge.bus, edge.settings
        doorbell = Doorbell(bus, nobody)
        ended = Schedules(database).execution_ended
        self.firing = Firing(database, bus, doorbell, ended)
        self.executions = Executions(database, bus, doorbell, settings, ended)
        self.outbox = Outbox(database, [self.executions.settle])

    async def round(self):
        await self.firing.fire()
        await self.firing.stop()
        await self.outbox.drain()
        await self.executions.start_due()


async def nobody():
    return None


async def hurry(edge):
    """What was put off after a failure is due again."""
    async with edge.database.transaction() as tx:
        await tx.execute(text("UPDATE executions SET due_time = NULL"))
        await tx.execute(text("UPDATE outbox SET due_time = now()"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["ALLOW_ALL", "TERMINATE_OTHER"])
async def test_a_scheduler_that_ends_anywhere_loses_nothing_and_does_nothing_twice(client, edge, five, rows, policy):
    healthy = Process(edge, edge.database)
    step = deaths = 0
    while True:
        task, times = await five(policy, count=3)
        dying = Dying(edge.database, step)
        # What it would do next fails too: it is gone. Later processes find what it has left.
        try:
            await Process(edge, dying).round()
        except* CrashError:
            pass
        await hurry(edge)
        for _ in range(2):
            await healthy.round()
        made, slots = await rows(task)
        assert [one.nominal for one in slots] == times, step
        if policy == "ALLOW_ALL":
            assert [(one.slot_time, one.state) for one in made] == [(time, "STARTED") for time in times], step
        else:
            assert [(one.slot_time, one.state) for one in made] == [(times[0], "CANCELLED"), (times[1], "STARTED")], (
                step
            )
        async with edge.database.transaction() as tx:
            sessions = [one.session_id for one in made if one.session_id]
            runs = await tx.scalar(select(func.count()).select_from(Run).where(Run.session_id.in_(sessions)))
        assert runs == len(sessions) == len(set(sessions)), step
        status = (await get(client, task)).schedule_status
        assert (status.fired_count, status.skipped_count) == (len(made), 3 - len(made)), step
        deaths += dying.died
        if not dying.died:
            break
        step += 1
    assert deaths > 15
