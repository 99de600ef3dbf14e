"""Who is told of the end of executions: those who listen, and the webhooks that a task names, each once."""

import threading

import pytest

from agentrpc.client import RpcError
from agentrpc.domain.states import RunState
from agentrpc.services import task_validation
from agentrpc.services.outbox import Outbox
from agentrpc.services.validation import check_report_template
from agentrpc.v1 import (
    report_pb2,
    report_service_pb2,
    run_pb2,
    task_pb2,
    task_service_pb2,
    webhook_pb2,
    webhook_service_pb2,
)


@pytest.fixture
def tell(edge):
    """Hands on what happened."""
    return Outbox(edge.database, edge.use_cases.consumers()).drain


async def webhook(client, *event_types):
    given = webhook_pb2.Webhook(url="http://127.0.0.1:9/", event_types=event_types)
    request = webhook_service_pb2.CreateWebhookRequest(webhook=given)
    return (await client.call(client.webhooks.CreateWebhook, request)).name


async def told(client, name):
    request = webhook_service_pb2.ListWebhookDeliveriesRequest(parent=name)
    found = (await client.call(client.webhooks.ListWebhookDeliveries, request)).deliveries
    return [(one.event_type, one.subject) for one in found]


async def create(client, **fields):
    given = task_pb2.Task(display_name="t", prompt_template="x", **fields)
    return await client.call(client.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=given))


async def test_each_end_is_told_once_to_those_who_want_it(edge, client, hand, tell):
    failures, everything = await webhook(client, "run_started"), await webhook(client, "task_execution_ended")
    task = await create(
        client,
        notifications=[
            task_pb2.TaskNotification(webhook=failures, states=[run_pb2.Run.STATE_FAILED]),
            task_pb2.TaskNotification(webhook=everything),
        ],
    )
    ends = []
    for state in (RunState.SUCCEEDED, RunState.FAILED):
        execution = await client.call(client.tasks.RunTask, task_service_pb2.RunTaskRequest(name=task.name))
        await edge.use_cases.executions.start_due()
        await hand.end(await hand.claim(), state)
        await tell()
        ends.insert(0, ("task_execution_ended", execution.name))
    assert await told(client, everything) == ends
    assert [end for end in await told(client, failures) if end[0] != "run_started"] == ends[:1]


async def test_the_owner_of_a_shared_task_hears_of_nobody_elses_executions(edge, client, hand, tell):
    hook = await webhook(client, "run_started")
    task = await create(client, shared=True, notifications=[task_pb2.TaskNotification(webhook=hook)])
    executions = []
    async with edge.client("bob") as bob:
        for user in (bob, client):
            execution = await user.call(user.tasks.RunTask, task_service_pb2.RunTaskRequest(name=task.name))
            executions.append(execution.name)
            await edge.use_cases.executions.start_due()
            await hand.end(await hand.claim())
            await tell()
    ended = [subject for event_type, subject in await told(client, hook) if event_type == "task_execution_ended"]
    assert ended == executions[1:]
    # An administrator may see all, and so is told of all that begins with the own task.
    async with edge.client("admin") as admin, edge.client("bob") as bob:
        hook = await webhook(admin, "run_started")
        given = task_pb2.Task(
            display_name="t", prompt_template="x", shared=True, notifications=[task_pb2.TaskNotification(webhook=hook)]
        )
        task = await admin.call(admin.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=given))
        execution = await bob.call(bob.tasks.RunTask, task_service_pb2.RunTaskRequest(name=task.name))
        await edge.use_cases.executions.start_due()
        await hand.end(await hand.claim())
        await tell()
        assert ("task_execution_ended", execution.name) in await told(admin, hook)


async def test_a_report_is_made_of_each_execution_that_the_task_wants_one_of(edge, client, hand, tell):
    report = task_pb2.TaskReport(format=report_pb2.Report.FORMAT_MARKDOWN, states=[run_pb2.Run.STATE_SUCCEEDED])
    task = await create(client, report=report)
    for state in (RunState.SUCCEEDED, RunState.FAILED):
        execution = await client.call(client.tasks.RunTask, task_service_pb2.RunTaskRequest(name=task.name))
        await edge.use_cases.executions.start_due()
        await hand.end(await hand.claim(), state)
        await tell()
        request = report_service_pb2.ListReportsRequest(subject=execution.name)
        found = (await client.call(client.reports.ListReports, request)).reports
        assert [one.format for one in found] == [report.format] * (state is RunState.SUCCEEDED)
    assert await edge.use_cases.report_maker.drain() == 1


async def test_the_template_of_a_report_is_checked_beside_the_loop(client, monkeypatch):
    threads = []

    def check(*given):
        threads.append(threading.current_thread())
        check_report_template(*given)

    monkeypatch.setattr(task_validation, "check_report_template", check)
    bad = task_pb2.TaskReport(template="{% for %}")
    with pytest.raises(RpcError) as caught:
        await create(client, report=bad)
    assert caught.value.reason == "TEMPLATE_INVALID"
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_a_schedule_that_pauses_itself_is_told(edge, client, hand, tell):
    paused = await webhook(client, "schedule_paused")
    schedule = task_pb2.Schedule(crons=["* * * * *"], pause_after_failures=1)
    task = await create(client, schedule=schedule)
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE tasks SET next_slot_time = date_trunc('minute', now())")
    await edge.use_cases.firing.fire()
    await edge.use_cases.executions.start_due()
    await hand.end(await hand.claim(), RunState.FAILED)
    for _ in range(2):
        await tell()
    assert await told(client, paused) == [("schedule_paused", task.name)]


async def test_a_webhook_that_is_not_there_is_not_named(edge, client):
    async with edge.client("bob") as bob:
        others = await webhook(bob)
    for name in (others, "webhooks/00000000-0000-7000-8000-000000000000"):
        with pytest.raises(RpcError) as caught:
            await create(client, notifications=[task_pb2.TaskNotification(webhook=name)])
        assert caught.value.reason == "NOT_FOUND"
