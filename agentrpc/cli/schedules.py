"""`schedules`: when tasks are carried out by themselves."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Column, Table
from rich.text import Text

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.tasks import TaskArgument, Variables, find_task, read_variables
from agentrpc.cli.terminal import Terminal, shown
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import run_pb2, task_pb2, task_service_pb2

__all__ = ["register"]

schedules_app = typer.Typer(help="Schedules of tasks.", no_args_is_help=True)
console = Terminal()

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(schedules_app, name="schedules")


@schedules_app.command("list")
def list_schedules(
    page_size: int = 50,
    page_token: Annotated[str, typer.Option(help="Of the page before, as it was printed.")] = "",
    as_json: Json = False,
) -> None:
    """List tasks with a schedule, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = task_service_pb2.ListTasksRequest(page_size=page_size, page_token=page_token, scheduled=True)
        response = await client.call(client.tasks.ListTasks, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("task", no_wrap=True), "name", "crons", "next", "fired", "skipped", "missed", box=None)
        for task in response.tasks:
            status = task.schedule_status
            upcoming = _shown(status.next_times[0]) if status.next_times else "over"
            table.add_row(
                task.name,
                task.display_name[:40],
                ", ".join(task.schedule.crons)[:60],
                "paused" if task.schedule.paused else upcoming,
                *map(str, (status.fired_count, status.skipped_count, status.missed_count)),
            )
        console.print(table)
        if response.next_page_token:
            console.print(f"--page-token {response.next_page_token}", style="dim", soft_wrap=True)

    run_command(work)


@schedules_app.command("set")
def set_schedule(
    task: TaskArgument,
    cron: Annotated[list[str] | None, typer.Option(help="A cron of five fields; may be repeated. None: never.")] = None,
    zone: Annotated[str, typer.Option(help="A time zone, such as Europe/Berlin; UTC when left out.")] = "",
    overlap: Annotated[
        str, typer.Option(help="skip, buffer_one, buffer_all, cancel_other, terminate_other or allow_all.")
    ] = "skip",
    catchup: Annotated[int, typer.Option(help="Seconds within which a missed slot fires late; 0: a minute.")] = 0,
    jitter: Annotated[int, typer.Option(help="Seconds by which executions begin later, at most.")] = 0,
    pause_after_failures: Annotated[int, typer.Option(help="Pause after so many in a row; 0: never.")] = 0,
    var: Variables = None,
    as_json: Json = False,
) -> None:
    """Give a task a schedule, in place of the one it has; without --cron take it away."""
    policy = f"OVERLAP_POLICY_{overlap.upper().replace('-', '_')}"
    if policy not in task_pb2.Schedule.OverlapPolicy.keys():  # noqa: SIM118 - not a dictionary
        raise fail("--overlap must be skip, buffer_one, buffer_all, cancel_other, terminate_other or allow_all", 2)
    wanted = task_pb2.Task()
    if cron:
        wanted.schedule.MergeFrom(task_pb2.Schedule(crons=cron, time_zone=zone, overlap_policy=policy))
        wanted.schedule.pause_after_failures = pause_after_failures
        wanted.schedule.variables_json = read_variables(var)
        if catchup:
            wanted.schedule.catchup_window.FromSeconds(catchup)
        if jitter:
            wanted.schedule.jitter.FromSeconds(jitter)

    async def work(client: AgentRpcClient) -> None:
        wanted.name = await find_task(client, task)
        request = task_service_pb2.UpdateTaskRequest(task=wanted, update_mask=FieldMask(paths=["schedule"]))
        found = await client.call(client.tasks.UpdateTask, request)
        times = found.schedule_status.next_times
        upcoming = f"next: {_shown(times[0])}" if times else "it has no schedule" if not cron else "it is over"
        _print(found) if as_json else console.print(f"{found.name}: {upcoming}", highlight=False)

    run_command(work)


@schedules_app.command()
def preview(
    task: Annotated[str, typer.Argument(help="tasks/{task}, its id, or its display name; none with --cron.")] = "",
    cron: Annotated[list[str] | None, typer.Option(help="A cron of five fields; may be repeated.")] = None,
    zone: Annotated[str, typer.Option(help="A time zone, such as Europe/Berlin; UTC when left out.")] = "",
    count: int = 10,
    after: Annotated[str, typer.Option(help="Slots after this time, as 2026-03-29T00:00; now when left out.")] = "",
    as_json: Json = False,
) -> None:
    """Say when a schedule fires: that of a task, or one that no task has yet."""
    if bool(task) == bool(cron):
        raise fail("name a task, or give --cron", 2)
    request = task_service_pb2.PreviewScheduleRequest(count=count)
    if cron:
        request.schedule.crons.extend(cron)
        request.schedule.time_zone = zone
    if after:
        request.after.CopyFrom(_time("--after", after))

    async def work(client: AgentRpcClient) -> None:
        if task:
            request.task = await find_task(client, task)
        response = await client.call(client.tasks.PreviewSchedule, request)
        if as_json:
            _print(response)
            return
        for slot in response.slots:
            console.print(Text.assemble(shown(slot.local_time), "  ", (_shown(slot.time), "dim")))

    run_command(work)


@schedules_app.command()
def pause(task: TaskArgument, reason: str = "", as_json: Json = False) -> None:
    """Pause the schedule of a task."""

    async def work(client: AgentRpcClient) -> None:
        request = task_service_pb2.PauseScheduleRequest(name=await find_task(client, task), reason=reason)
        found = await client.call(client.tasks.PauseSchedule, request)
        _print(found) if as_json else console.print(f"{found.name} is paused", highlight=False)

    run_command(work)


@schedules_app.command()
def resume(task: TaskArgument, as_json: Json = False) -> None:
    """Let a paused schedule go on."""

    async def work(client: AgentRpcClient) -> None:
        request = task_service_pb2.ResumeScheduleRequest(name=await find_task(client, task))
        found = await client.call(client.tasks.ResumeSchedule, request)
        times = found.schedule_status.next_times
        upcoming = f"next: {_shown(times[0])}" if times else "it is over"
        _print(found) if as_json else console.print(f"{found.name} goes on, {upcoming}", highlight=False)

    run_command(work)


@schedules_app.command()
def trigger(
    task: TaskArgument,
    var: Variables = None,
    as_json: Json = False,
) -> None:
    """Carry a task out now, whatever its schedule does."""
    variables = read_variables(var)

    async def work(client: AgentRpcClient) -> None:
        request = task_service_pb2.RunTaskRequest(name=await find_task(client, task), variables_json=variables)
        found = await client.call(client.tasks.RunTask, request)
        state = run_pb2.Run.State.Name(found.state).removeprefix("STATE_")
        _print(found) if as_json else console.print(f"{found.name} {state} {found.session}", highlight=False)

    run_command(work)


@schedules_app.command()
def backfill(
    task: TaskArgument,
    begin: Annotated[str, typer.Option("--from", help="Slots at or after this time, as 2026-11-01T00:00.")],
    before: Annotated[str, typer.Option(help="Slots before this time; now when left out.")] = "",
    overlap: Annotated[str, typer.Option(help="skip, buffer-one, buffer-all, allow-all …")] = "buffer-all",
    as_json: Json = False,
) -> None:
    """Carry out the slots of a past time."""
    request = task_service_pb2.BackfillTaskRequest()
    getattr(request, "from").CopyFrom(_time("--from", begin))
    request.before.CopyFrom(_time("--before", before))
    try:
        request.overlap_policy = f"OVERLAP_POLICY_{overlap.upper().replace('-', '_')}"  # type: ignore[assignment]  # by its name
    except ValueError:
        names = [name.removeprefix("OVERLAP_POLICY_") for name in task_pb2.Schedule.OverlapPolicy.keys()[1:]]
        raise fail(f"--overlap must be one of {', '.join(names).lower().replace('_', '-')}", 2) from None

    async def work(client: AgentRpcClient) -> None:
        request.name = await find_task(client, task)
        response = await client.call(client.tasks.BackfillTask, request)
        if as_json:
            _print(response)
            return
        console.print(f"{response.slot_count} slots, {len(response.executions)} executions", highlight=False)
        for execution in response.executions:
            console.print(execution, highlight=False)

    run_command(work)


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


def _time(option: str, text: str) -> Timestamp:
    """A time as people write it, local without a zone; now when it is empty."""
    found = Timestamp()
    try:
        found.FromDatetime((datetime.fromisoformat(text) if text else datetime.now(UTC)).astimezone(UTC))
    except (ValueError, OverflowError):
        raise fail(f"{option} must be a time such as 2026-11-01T00:00 or 2026-11-01T00:00:00+01:00", 2) from None
    return found


def _shown(time: Timestamp) -> str:
    return time.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M UTC")
