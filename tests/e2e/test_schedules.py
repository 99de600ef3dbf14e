"""Schedules carried out: each overlap policy, catching up and back-fills, with agents that really run (the fake CLI)."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import asyncpg
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc.testkit import write_cli
from agentrpc.v1 import run_pb2, session_pb2, task_pb2
from agentrpc.v1 import task_service_pb2 as api
from tests.e2e.stacks import own_stack, run_state
from tests.e2e.talk import bash

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SCHEMA = json.dumps({"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]})
# Goes on until its file is there, which the test makes.
BUSY = bash("until [ -e go ]; do sleep 0.1; done") + "\n[[then]]\n[[text: busy]]"
SHORT = "[[text: done]]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    cli = write_cli(tmp_path_factory.mktemp("schedules") / "cli")
    async with own_stack(cli_path=cli, poll_interval=0.5, drain_grace=2) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with stack.client() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def came(stack):
    """Lets a slot of a task come now, which has been due for so long: `await came(task, ago)`."""
    store = await asyncpg.connect(stack.stack.environment["AGENTRPC_DATABASE_URL"])

    async def come(task, ago):
        await store.execute(
            "UPDATE tasks SET next_slot_time = now() - $2::interval WHERE id = $1",
            task.name.removeprefix("tasks/"),
            ago,
        )

    yield come
    await store.close()


async def create(client, policy, ago=(3,), window=timedelta(hours=1), prompt=SHORT):
    """A task with slots so many minutes ago, and no other for a year."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    times = [now - timedelta(minutes=minutes) for minutes in ago]
    task = task_pb2.Task(
        display_name=policy,
        prompt_template="{{ prompt }}",
        variables_schema_json=SCHEMA,
        options=session_pb2.SessionOptions(allowed_tools=["Bash"]),
    )
    task.schedule.crons.extend(f"{at.minute} {at.hour} {at.day} {at.month} *" for at in times)
    task.schedule.overlap_policy = task_pb2.Schedule.OverlapPolicy.Value(f"OVERLAP_POLICY_{policy}")
    task.schedule.variables_json = json.dumps({"prompt": prompt})
    task.schedule.catchup_window.FromTimedelta(window)
    return await client.call(client.tasks.CreateTask, api.CreateTaskRequest(task=task))


async def begin(client, task):
    """An execution that is busy in a tool."""
    request = api.RunTaskRequest(name=task.name, variables_json=json.dumps({"prompt": BUSY}))
    made = await client.call(client.tasks.RunTask, request)
    async for event in client.watch(made.session, event_types=["tool_call_started"]):
        assert event.HasField("tool_call_started")
        return made
    raise AssertionError(made.name)


def let_go(stack, execution):
    (stack.workspace(execution.session) / "go").touch()


async def look(client, task, ready):
    """The executions of a task in order, and its schedule's status, once `ready` says so."""
    async with asyncio.timeout(90):
        while True:
            # In this order: the executions of the slots that are counted are there.
            status = (await client.call(client.tasks.GetTask, api.GetTaskRequest(name=task.name))).schedule_status
            request = api.ListExecutionsRequest(parent=task.name, order_by="create_time")
            found = list((await client.call(client.tasks.ListExecutions, request)).executions)
            if ready([run_state(one) for one in found], status):
                return found, status
            await asyncio.sleep(0.1)


def dealt(count):
    return lambda _, status: status.fired_count + status.skipped_count == count


def ended(*states):
    return lambda found, _: found == list(states)


async def test_skip(stack, client, came):
    task = await create(client, "SKIP")
    busy = await begin(client, task)
    await came(task, timedelta(minutes=5))
    found, status = await look(client, task, dealt(1))
    assert (len(found), status.skipped_count) == (1, 1)
    let_go(stack, busy)
    await look(client, task, ended("SUCCEEDED"))


async def test_buffer_one(stack, client, came):
    task = await create(client, "BUFFER_ONE", ago=(4, 3))
    busy = await begin(client, task)
    await came(task, timedelta(minutes=5))
    found, status = await look(client, task, dealt(2))
    assert [one.buffered for one in found] == [False, True]
    assert (status.skipped_count, status.buffered_count) == (1, 1)
    let_go(stack, busy)
    found, status = await look(client, task, ended("SUCCEEDED", "SUCCEEDED"))
    assert_one_after_the_other(found)
    assert found[1].result.text == "done"
    assert found[1].trigger == task_pb2.Execution.TRIGGER_SCHEDULE
    assert status.buffered_count == 0


async def test_buffer_all(stack, client, came):
    task = await create(client, "BUFFER_ALL", ago=(5, 4, 3))
    busy = await begin(client, task)
    await came(task, timedelta(minutes=6))
    await look(client, task, dealt(3))
    let_go(stack, busy)
    found, _ = await look(client, task, ended(*["SUCCEEDED"] * 4))
    assert_one_after_the_other(found)
    assert [one.slot_time.seconds for one in found[1:]] == sorted(one.slot_time.seconds for one in found[1:])


@pytest.mark.parametrize("policy", ["CANCEL_OTHER", "TERMINATE_OTHER"])
async def test_another_is_stopped(client, came, policy):
    task = await create(client, policy)
    stopped = await begin(client, task)
    await came(task, timedelta(minutes=5))
    found, status = await look(client, task, ended("CANCELLED", "SUCCEEDED"))
    assert found[0].name == stopped.name
    assert_one_after_the_other(found)
    assert (status.fired_count, status.skipped_count) == (1, 0)


async def test_allow_all(stack, client, came):
    task = await create(client, "ALLOW_ALL", ago=(4, 3))
    busy = await begin(client, task)
    await came(task, timedelta(minutes=5))
    await look(client, task, lambda found, _: sorted(found[1:]) == ["SUCCEEDED", "SUCCEEDED"] and found[0] == "RUNNING")
    let_go(stack, busy)
    await look(client, task, ended(*["SUCCEEDED"] * 3))


async def test_catching_up(client, came):
    task = await create(client, "BUFFER_ALL", ago=(50, 40, 5, 4, 3), window=timedelta(minutes=20))
    await came(task, timedelta(minutes=60))
    found, status = await look(client, task, ended(*["SUCCEEDED"] * 3))
    assert (status.fired_count, status.missed_count) == (3, 2)
    assert_one_after_the_other(found)


async def test_a_back_fill(client):
    task = await create(client, "SKIP", ago=(5, 4, 3))
    times = [Timestamp(), Timestamp()]
    times[0].FromDatetime(datetime.now(UTC) - timedelta(minutes=10))
    times[1].FromDatetime(datetime.now(UTC))
    request = api.BackfillTaskRequest(name=task.name, before=times[1], **{"from": times[0]})
    made = await client.call(client.tasks.BackfillTask, request)
    assert (made.slot_count, len(made.executions)) == (3, 3)
    found, status = await look(client, task, ended(*["SUCCEEDED"] * 3))
    assert [one.name for one in found] == list(made.executions)
    assert_one_after_the_other(found)
    assert status.fired_count == 0


async def test_a_slot_that_comes_by_itself(client):
    """Nobody moves a clock: a minute goes by."""
    task = await create(client, "SKIP")
    soon = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    task.schedule.crons[:] = [f"{soon.minute} {soon.hour} * * *"]
    await client.call(
        client.tasks.UpdateTask, api.UpdateTaskRequest(task=task_pb2.Task(name=task.name, schedule=task.schedule))
    )
    found, _ = await look(client, task, ended("SUCCEEDED"))
    assert found[0].slot_time.ToDatetime(UTC) == soon
    assert found[0].create_time.ToDatetime(UTC) - soon < timedelta(seconds=5)
    assert found[0].state == run_pb2.Run.STATE_SUCCEEDED


def assert_one_after_the_other(executions):
    for before, after in pairwise(executions):
        assert before.end_time.ToDatetime() <= after.start_time.ToDatetime()
