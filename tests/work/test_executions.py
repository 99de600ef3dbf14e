"""Executions begin once and end once, whatever is told twice, dies in the middle or happens at the same time."""

import asyncio
import json
from datetime import timedelta
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import func, select, text, update

from agentrpc import clock
from agentrpc.domain.states import RunState
from agentrpc.services import executions as mechanics
from agentrpc.services import task_executions
from agentrpc.services.deadlines import Deadlines
from agentrpc.services.executions import new_execution
from agentrpc.services.outbox import Outbox
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.beginnings import first_events
from agentrpc.services.signals import Doorbell
from agentrpc.store.leases import claim_next, register_worker
from agentrpc.store.outbox import Message, OutboxRow
from agentrpc.store.tables import Run, Session, ToolCallRow, User
from agentrpc.store.tasks import ExecutionRow, TaskRow, lock_task
from agentrpc.v1 import common_pb2, event_pb2, run_pb2, task_pb2
from agentrpc.v1 import task_service_pb2 as api
from tests.rpc.test_unary import failure

RETRYABLE = run_pb2.RunError(reason=run_pb2.RunError.REASON_PROVIDER_UNAVAILABLE, retryable=True)
FINAL = run_pb2.RunError(reason=run_pb2.RunError.REASON_MAX_TURNS)
Finished = event_pb2.ToolCallFinished


@pytest.fixture
def executions(edge):
    return edge.use_cases.executions


@pytest.fixture
def make(client):
    """A task: `await make(retry_policy=...)`."""

    async def make(**fields):
        task = task_pb2.Task(**{"display_name": "t", "prompt_template": "do it", **fields})
        return await client.call(client.tasks.CreateTask, api.CreateTaskRequest(task=task))

    return make


@pytest.fixture
def run(client):
    async def run(task):
        return await client.call(client.tasks.RunTask, api.RunTaskRequest(name=task.name))

    return run


@pytest.fixture
def pending(edge):
    """An execution as a schedule makes it: `await pending(task)`; its id."""

    async def pending(task, **fields):
        async with edge.database.transaction() as tx:
            row = await lock_task(tx, UUID(task.name.removeprefix("tasks/")))
            given = {"trigger": "SCHEDULE", "creator": row.owner, "variables": "{}", **fields}
            return new_execution(tx, row, **given).id

    return pending


@pytest.fixture
def take(edge):
    """Takes the next run as a worker does: its claim."""

    async def take():
        worker_id = clock.uuid7()
        await register_worker(edge.database, worker_id, host="host", pid=7, version="0", ttl=600)
        claim = await claim_next(
            edge.database,
            worker_id,
            may_take_new=True,
            begin=lambda session, run, origin: first_events(session, run, origin=origin, warm=False),
        )
        assert claim is not None
        return claim

    return take


@pytest.fixture
def carry_out(edge, take):
    """Takes the next run and ends it as a worker does."""

    async def carry_out(state=RunState.SUCCEEDED, error=None, calls=()):
        claim = await take()
        await begin_calls(edge, claim, calls)
        usage = common_pb2.Usage(output_tokens=7, cost_usd=0.5)
        ending = Ending(state, error=error, usage=usage, complete=True)
        await lifecycle.end_run(edge.database, claim.session.id, claim.run.id, claim.epoch, ending)
        return claim.run

    return carry_out


async def begin_calls(edge, claim, outcomes):
    """Attempts of one tool call, which ended so; None: nobody has told."""
    async with edge.database.transaction() as tx:
        for attempt, outcome in enumerate(outcomes, 1):
            tx.add(
                ToolCallRow(
                    session_id=claim.session.id, tool_use_id="t1", attempt=attempt, run_id=claim.run.id,
                    epoch=claim.epoch, tool_name="Bash", start_time=clock.utcnow(), outcome=outcome,
                )
            )  # fmt: skip


@pytest.fixture
def told(edge):
    """Hands on what happened, and collects what is told of executions."""
    found = []

    async def listen(_, message):
        if message.topic == "task_execution_ended":
            found.append(message.subject)

    async def tell():
        await Outbox(edge.database, [*edge.use_cases.consumers(), listen]).drain()
        return found

    return tell


@pytest.fixture
def rows(edge):
    """Rows of executions, oldest first."""

    async def rows():
        async with edge.database.transaction() as tx:
            return list(await tx.scalars(select(ExecutionRow).order_by(ExecutionRow.id)))

    return rows


@pytest.fixture
def count(edge):
    async def count(table):
        async with edge.database.transaction() as tx:
            return await tx.scalar(select(func.count()).select_from(table))

    return count


async def nobody():
    return None


async def summary(client, task):
    return (await client.call(client.tasks.GetTask, api.GetTaskRequest(name=task.name))).summary


async def make_due(edge):
    async with edge.database.transaction() as tx:
        await tx.execute(update(ExecutionRow).values(due_time=text("now()")))


async def test_what_is_due_begins_once_by_any_number_of_schedulers(
    edge, client, executions, make, pending, rows, count
):
    task = await make()
    ids = [await pending(task) for _ in range(5)]
    later = await pending(task, due_time=clock.utcnow() + timedelta(hours=1))
    waiting = await pending(task, buffered=True)
    await asyncio.gather(*(executions.start_due() for _ in range(4)))
    states = {row.id: row.state for row in await rows()}
    assert states == {**dict.fromkeys(ids, "STARTED"), later: "PENDING", waiting: "PENDING"}
    assert await count(Session) == await count(Run) == 5
    listed = await client.call(client.tasks.ListExecutions, api.ListExecutionsRequest(parent=task.name))
    assert {one.state for one in listed.executions} == {run_pb2.Run.STATE_QUEUED}
    assert [one.buffered for one in listed.executions] == [True] + [False] * 6
    assert [one.HasField("due_time") for one in listed.executions] == [False, True] + [False] * 5
    assert await executions.start_due() == 0


async def test_the_end_of_a_run_counts_once_however_often_it_is_told(
    edge, client, executions, make, run, carry_out, told
):
    task = await make()
    made = await run(task)
    ended = await carry_out()
    message = Message(1, "run_ended", ended.creator, "", ended.session_id, ended.id, 1, clock.utcnow())

    async def again():
        async with edge.database.transaction() as tx:
            await executions.settle(tx, message)

    await asyncio.gather(*(again() for _ in range(5)), told(), told())
    found = await summary(client, task)
    assert (found.total_count, found.succeeded_count, found.open_count) == (1, 1, 0)
    assert (found.usage.output_tokens, found.usage.cost_usd) == (7, 0.5)
    assert await told() == [made.name]


async def test_what_fails_in_the_middle_of_the_end_is_done_again_as_a_whole(edge, client, make, run, carry_out, told, monkeypatch):  # fmt: skip
    task = await make()
    await run(task)
    await carry_out()
    failures = [RuntimeError, RuntimeError]

    async def fail(*_):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(edge.use_cases.executions, "_ended", fail)
    async with asyncio.timeout(60):
        while failures or not await told():
            async with edge.database.transaction() as tx:
                await tx.execute(update(OutboxRow).values(due_time=text("now()")))
            await told()
    found = await summary(client, task)
    assert (found.succeeded_count, found.usage.output_tokens) == (1, 7)


@pytest.mark.parametrize("step", ["add_session", "accept", "new_run"])
async def test_who_dies_while_it_begins_leaves_nothing(edge, executions, make, pending, rows, count, monkeypatch, step):
    task = await make()
    await pending(task)
    original = getattr(mechanics, step)

    def die(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(mechanics, step, die)
    await executions.start_due()
    assert await count(Session) == await count(Run) == 0
    (row,) = await rows()
    assert (row.state, row.session_id, row.tries) == ("PENDING", None, 1)
    assert row.due_time is not None
    monkeypatch.setattr(mechanics, step, original)
    await make_due(edge)
    await executions.start_due()
    assert await count(Session) == await count(Run) == 1
    assert (await rows())[0].state == "STARTED"


async def test_what_never_begins_fails_after_so_many_tries(edge, client, executions, make, pending, rows, monkeypatch):
    task = await make()
    await pending(task)

    def die(*_, **__):
        raise RuntimeError("of our own")

    monkeypatch.setattr(mechanics, "accept", die)
    monkeypatch.setattr(task_executions, "_MAX_TRIES", 3)
    states = []
    for _ in range(4):
        await executions.start_due()
        states.append((await rows())[0].state)
        await make_due(edge)
    assert states == ["PENDING", "PENDING", "FAILED", "FAILED"]
    (row,) = await rows()
    error = run_pb2.RunError.FromString(row.error)
    assert error.reason == run_pb2.RunError.REASON_INTERNAL
    assert str(row.id) in error.message
    assert "of our own" not in error.message
    assert (await summary(client, task)).failed_count == 1


async def test_who_dies_before_the_commit_of_run_task_has_made_nothing(client, edge, make, run, count, monkeypatch):
    task = await make()
    original = task_executions.describe_executions
    failures = [1]

    async def die(*given, **more):
        if failures:
            failures.pop()
            raise RuntimeError
        return await original(*given, **more)

    monkeypatch.setattr(task_executions, "describe_executions", die)
    assert await failure(run(task)) == ("INTERNAL", "INTERNAL")
    assert await count(Session) == await count(Run) == await count(ExecutionRow) == 0
    assert (await summary(client, task)).total_count == 0
    await run(task)
    assert await count(Session) == await count(Run) == await count(ExecutionRow) == 1


async def test_a_cancel_and_a_beginning_at_the_same_time_agree(edge, client, executions, make, pending, rows, told):
    task = await make()
    ids = [await pending(task) for _ in range(10)]
    cancels = [
        client.call(client.tasks.CancelExecution, api.CancelExecutionRequest(name=f"{task.name}/executions/{one}"))
        for one in ids
    ]
    await asyncio.gather(executions.start_due(), *cancels)
    await told()
    assert {row.state for row in await rows()} == {"CANCELLED"}
    found = await summary(client, task)
    assert (found.cancelled_count, found.open_count) == (10, 0)
    assert sorted(await told()) == sorted(f"{task.name}/executions/{one}" for one in ids)
    async with edge.database.transaction() as tx:
        assert {run.state for run in await tx.scalars(select(Run))} <= {"CANCELLED"}


async def test_the_retry_policy_tries_again_after_its_back_off(
    edge, client, executions, make, run, carry_out, told, rows
):
    policy = task_pb2.RetryPolicy(max_attempts=3, backoff=Duration(seconds=100))
    task = await make(retry_policy=policy)
    made = await run(task)
    waits = []
    for _ in range(3):
        await carry_out(RunState.FAILED, RETRYABLE)
        await told()
        newest = (await rows())[-1]
        if newest.due_time is not None and newest.state == "PENDING":
            assert await executions.start_due() == 0
            waits.append((newest.due_time - newest.create_time).total_seconds())
            await make_due(edge)
        await executions.start_due()
    first, second, third = await rows()
    assert [row.attempt for row in (first, second, third)] == [1, 2, 3]
    assert (second.retry_of, third.retry_of) == (first.id, second.id)
    assert [row.state for row in (first, second, third)] == ["FAILED"] * 3
    assert [row.trigger for row in (first, second, third)] == ["MANUAL", "RETRY", "RETRY"]
    assert [round(wait, -1) for wait in waits] == [100, 200]
    found = await summary(client, task)
    assert (found.total_count, found.failed_count, found.success_rate) == (3, 3, 0)
    retried = await client.call(
        client.tasks.GetExecution, api.GetExecutionRequest(name=f"{task.name}/executions/{second.id}")
    )
    assert retried.retry_of == made.name
    assert retried.error.retryable


@pytest.mark.parametrize(
    ("state", "error", "tried_again"),
    [
        (RunState.FAILED, RETRYABLE, True),
        (RunState.EXPIRED, None, True),
        (RunState.FAILED, FINAL, False),
        (RunState.CANCELLED, None, False),
        (RunState.SUCCEEDED, None, False),
    ],
)
async def test_only_what_may_well_succeed_is_tried_again(make, run, carry_out, told, rows, state, error, tried_again):
    task = await make(retry_policy=task_pb2.RetryPolicy(max_attempts=2))
    await run(task)
    await carry_out(state, error)
    await told()
    assert len(await rows()) == 1 + tried_again


@pytest.mark.parametrize(
    ("state", "error", "outcomes", "tried_again"),
    [
        (RunState.EXPIRED, None, [Finished.OUTCOME_INTERRUPTED], True),
        (RunState.EXPIRED, None, [Finished.OUTCOME_UNKNOWN, Finished.OUTCOME_FAILED], True),
        (RunState.EXPIRED, None, [None], False),
        (RunState.FAILED, RETRYABLE, [Finished.OUTCOME_UNKNOWN], False),
    ],
)
async def test_a_call_whose_outcome_nobody_knows_is_not_made_again_by_the_retry_policy(
    make, run, carry_out, told, rows, state, error, outcomes, tried_again
):
    task = await make(retry_policy=task_pb2.RetryPolicy(max_attempts=2))
    await run(task)
    await carry_out(state, error, outcomes)
    await told()
    assert len(await rows()) == 1 + tried_again


@pytest.mark.parametrize("how", ["timeout", "undecided"])
async def test_what_ends_in_doubt_is_tried_again_by_people_alone(edge, client, make, run, take, told, rows, how):
    task = await make(retry_policy=task_pb2.RetryPolicy(max_attempts=2), timeout=Duration(seconds=3600))
    made = await run(task)
    claim = await take()
    # As with a conversation that cannot be read: no call is in doubt.
    await lifecycle.await_decision(edge.database, claim.session.id, claim.run.id, claim.epoch, [], "in doubt")
    column = {"timeout": "start_time", "undecided": "doubt_time"}[how]
    async with edge.database.transaction() as tx:
        await tx.execute(text(f"UPDATE runs SET {column} = {column} - interval '2 days'"))
    assert await Deadlines(edge.database, edge.bus, Doorbell(edge.bus, nobody), edge.settings).enforce() == 1
    await told()
    (ended,) = await rows()
    assert ended.state == {"timeout": "EXPIRED", "undecided": "FAILED"}[how]
    retry = await client.call(client.tasks.RetryExecution, api.RetryExecutionRequest(name=made.name))
    assert retry.retry_of == made.name


async def test_the_hook_hears_of_each_end_with_its_retry(edge, executions, make, run, pending, carry_out, told, monkeypatch):  # fmt: skip
    heard = []

    async def hear(_, task, execution, retry):
        heard.append((task.id, execution.state, retry is not None))

    monkeypatch.setattr(executions, "_ended", hear)
    task = await make(retry_policy=task_pb2.RetryPolicy(max_attempts=2))
    task_id = UUID(task.name.removeprefix("tasks/"))
    await run(task)
    await carry_out(RunState.FAILED, RETRYABLE)
    await told()
    await make_due(edge)
    await executions.start_due()
    await carry_out(RunState.FAILED, RETRYABLE)
    await told()
    assert heard == [(task_id, "FAILED", True), (task_id, "FAILED", False)]


async def test_a_deleted_task_begins_nothing_more(edge, client, executions, make, run, pending, carry_out, told, rows):
    task = await make(retry_policy=task_pb2.RetryPolicy(max_attempts=3))
    await run(task)
    await pending(task, buffered=True)
    await client.call(client.tasks.DeleteTask, api.DeleteTaskRequest(name=task.name))
    assert [row.state for row in await rows()] == ["STARTED", "CANCELLED"]
    await carry_out(RunState.FAILED, RETRYABLE)
    await told()
    assert await executions.start_due() == 0
    assert [row.state for row in await rows()] == ["FAILED", "CANCELLED"]


async def test_what_cannot_begin_fails_and_says_why(edge, client, executions, make, pending, told):
    schema = json.dumps({"properties": {"x": {"type": "integer"}}, "required": ["x"]})
    task = await make(variables_schema_json=schema, prompt_template="{{ 1 // x }}")
    for given in ["{}", '{"x": 0}', '{"x": 1}']:
        await pending(task, variables=given)
    await executions.start_due()
    listed = await client.call(
        client.tasks.ListExecutions, api.ListExecutionsRequest(parent=task.name, order_by="create_time")
    )
    missing, zero, good = listed.executions
    for failed, why in [(missing, "'x' is a required property"), (zero, "division")]:
        assert failed.state == run_pb2.Run.STATE_FAILED
        assert failed.error.reason == run_pb2.RunError.REASON_TASK_INVALID
        assert why in failed.error.message
        assert not failed.run
        assert failed.HasField("end_time")
    assert good.run
    assert (await summary(client, task)).failed_count == 2
    assert sorted(await told()) == sorted([missing.name, zero.name])


async def test_who_may_not_run_tasks_any_more_runs_none(edge, client, executions, make, pending, rows):
    task = await make()
    await pending(task)
    async with edge.database.transaction() as tx:
        owner = (await tx.scalars(select(TaskRow.owner))).one()
        await tx.execute(update(User).where(User.id == owner).values(disable_time=text("now()")))
    await executions.start_due()
    (row,) = await rows()
    assert row.state == "FAILED"
    assert b"ann may not run tasks" in row.error


async def test_a_change_of_the_task_counts_for_what_has_not_begun(edge, client, executions, make, pending):
    task = await make()
    made = await pending(task)
    changed = task_pb2.Task(name=task.name, prompt_template="do the other")
    await client.call(client.tasks.UpdateTask, api.UpdateTaskRequest(task=changed))
    await executions.start_due()
    one = await client.call(client.tasks.GetExecution, api.GetExecutionRequest(name=f"{task.name}/executions/{made}"))
    assert (await client.get_run(one.run)).prompt == "do the other"
