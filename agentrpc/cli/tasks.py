"""`tasks`: work that is described once and carried out many times."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from google.protobuf.message import Message
from rich.table import Column, Table

from agentrpc.cli.agents import find_agent
from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.render import print_line
from agentrpc.cli.terminal import Terminal, printable
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import run_pb2, task_pb2, task_service_pb2

__all__ = ["TaskArgument", "Variables", "find_task", "read_variables", "register", "tasks_app"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# As of `agentrpc run`.
_STATUS = {
    run_pb2.Run.STATE_SUCCEEDED: 0,
    run_pb2.Run.STATE_FAILED: 1,
    run_pb2.Run.STATE_CANCELLED: 3,
    run_pb2.Run.STATE_EXPIRED: 4,
    run_pb2.Run.STATE_UNKNOWN_OUTCOME: 5,
}

tasks_app = typer.Typer(help="Tasks, and their executions.", no_args_is_help=True)
console = Terminal()

TaskArgument = Annotated[str, typer.Argument(help="tasks/{task}, its id, or its display name.")]
ExecutionArgument = Annotated[str, typer.Argument(help="tasks/{task}/executions/{execution}.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Variables = Annotated[
    list[str] | None,
    typer.Option("--var", help="NAME=VALUE; the value is JSON, or else a text. May be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(tasks_app, name="tasks")


async def find_task(client: AgentRpcClient, text: str) -> str:
    """The name of a task that somebody has typed: a name, an id, or a display name."""
    if text.startswith("tasks/"):
        return text
    if _UUID.fullmatch(text):
        return f"tasks/{text}"
    request = task_service_pb2.ListTasksRequest(text=text[:200], page_size=100)
    response = await client.call(client.tasks.ListTasks, request)
    names = [found.name for found in response.tasks if found.display_name == text]
    if not names:
        raise fail(f"there is no task {text!r}, or you may not see it")
    if len(names) > 1:
        raise fail(f"{text!r} is the display name of several: {', '.join(names)}")
    return names[0]


@tasks_app.command("create")
def create_task(
    display_name: Annotated[str, typer.Argument(help="A name for people.")] = "",
    file: Annotated[Path | None, typer.Option(help="The task as JSON; flags win over it.")] = None,
    template: Annotated[str, typer.Option(help="A ready-made task to begin with: see `tasks templates`.")] = "",
    prompt: Annotated[str, typer.Option(help="The template of the prompt; @FILE reads a file.")] = "",
    schema: Annotated[str, typer.Option(help="The JSON Schema of its variables; @FILE reads a file.")] = "",
    default: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a variable that is not given; may be repeated.")
    ] = None,
    agent: Annotated[str, typer.Option(help="The agent that carries it out.")] = "",
    allow: Annotated[list[str] | None, typer.Option(help="A rule that allows calls; may be repeated.")] = None,
    attempts: Annotated[int, typer.Option(help="How often to try at most.")] = 0,
    timeout: Annotated[int, typer.Option(help="Seconds after which an execution ends as expired.")] = 0,
    shared: Annotated[bool, typer.Option(help="Let everyone run it.")] = False,
    check: Annotated[bool, typer.Option(help="Only check it.")] = False,
) -> None:
    """Create a task, from a file, flags, or a ready-made one."""
    task = task_pb2.Task()
    if file is not None:
        try:
            Parse(file.read_text(), task)
        except (OSError, UnicodeDecodeError, ParseError) as error:
            raise fail(f"{file}: {error}", 2) from None
    given = task_pb2.Task(
        display_name=display_name,
        prompt_template=_text(prompt),
        variables_schema_json=_text(schema),
        default_variables_json=read_variables(default),
        shared=shared,
    )
    task.MergeFrom(given)
    if allow:
        task.options.allowed_tools.extend(allow)
    if attempts:
        task.retry_policy.max_attempts = attempts
    if timeout:
        task.timeout.FromSeconds(timeout)

    async def work(client: AgentRpcClient) -> None:
        if agent:
            task.agent = await find_agent(client, agent)
        request = task_service_pb2.CreateTaskRequest(task=task, template=template, validate_only=check)
        _print(await client.call(client.tasks.CreateTask, request))

    run_command(work)


@tasks_app.command("list")
def list_tasks(
    text: Annotated[str, typer.Argument(help="A text to look for.")] = "",
    scheduled: Annotated[bool, typer.Option(help="Only those with a schedule.")] = False,
    page_size: int = 20,
    as_json: Json = False,
) -> None:
    """List your tasks and shared ones, newest first."""
    request = task_service_pb2.ListTasksRequest(text=text, scheduled=scheduled, page_size=page_size)

    async def work(client: AgentRpcClient) -> None:
        response = await client.call(client.tasks.ListTasks, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("task", no_wrap=True), "name", "executions", "open", "succeeded", "cost", box=None)
        for task in response.tasks:
            summary = task.summary
            table.add_row(
                task.name,
                task.display_name,
                str(summary.total_count),
                str(summary.open_count),
                f"{summary.success_rate:.0%}" if summary.succeeded_count or summary.failed_count else "",
                f"${summary.usage.cost_usd:.4f}",
            )
        console.print(table)

    run_command(work)


@tasks_app.command("get")
def get_task(task: TaskArgument) -> None:
    """Show a task."""
    _of(task, lambda client, name: client.call(client.tasks.GetTask, task_service_pb2.GetTaskRequest(name=name)))


@tasks_app.command("delete")
def delete_task(task: TaskArgument) -> None:
    """Delete a task; executions that have not begun are cancelled."""
    _of(task, lambda client, name: client.call(client.tasks.DeleteTask, task_service_pb2.DeleteTaskRequest(name=name)))


@tasks_app.command("run")
def run_task(
    task: TaskArgument,
    var: Variables = None,
    watch: Annotated[bool, typer.Option(help="Show what happens, until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Carry a task out now.

    Exit status with --watch: 0 succeeded, 1 failed, 3 cancelled, 4 expired, 5 unknown outcome.
    """
    variables = read_variables(var)

    async def work(client: AgentRpcClient) -> int:
        name = await find_task(client, task)
        request = task_service_pb2.RunTaskRequest(name=name, variables_json=variables)
        made = await client.call(client.tasks.RunTask, request)
        return await _follow(client, made, watch=watch, as_json=as_json)

    run_command(work)


async def _follow(client: AgentRpcClient, made: task_pb2.Execution, *, watch: bool, as_json: bool) -> int:
    if not watch:
        _print(made)
        return 0
    if not as_json:
        console.print(made.name, style="dim")
    async for event in client.watch(made.session, run=made.run):
        if not as_json:
            print_line(console, event)
    ended = await client.call(client.tasks.GetExecution, task_service_pb2.GetExecutionRequest(name=made.name))
    if as_json:
        _print(ended)
    elif ended.result.text:
        print(printable(ended.result.text))
    return _STATUS.get(ended.state, 1)


@tasks_app.command("executions")
def list_executions(
    task: Annotated[str, typer.Argument(help="A task; all when left out.")] = "-",
    page_size: int = 20,
    as_json: Json = False,
) -> None:
    """List executions, newest first."""

    async def work(client: AgentRpcClient) -> None:
        parent = "tasks/-" if task == "-" else await find_task(client, task)
        request = task_service_pb2.ListExecutionsRequest(parent=parent, page_size=page_size)
        response = await client.call(client.tasks.ListExecutions, request)
        if as_json:
            _print(response)
            return
        table = Table(
            Column("execution", overflow="fold"), "state", "trigger", "attempt", "tool calls", "cost", box=None
        )
        for one in response.executions:
            table.add_row(
                one.name,
                run_pb2.Run.State.Name(one.state).removeprefix("STATE_"),
                task_pb2.Execution.Trigger.Name(one.trigger).removeprefix("TRIGGER_"),
                str(one.attempt),
                str(one.tool_call_count),
                f"${one.usage.cost_usd:.4f}",
            )
        console.print(table)

    run_command(work)


@tasks_app.command("execution")
def get_execution(execution: ExecutionArgument) -> None:
    """Show an execution."""
    request = task_service_pb2.GetExecutionRequest(name=execution)
    _call(lambda client: client.call(client.tasks.GetExecution, request))


@tasks_app.command("cancel")
def cancel_execution(execution: ExecutionArgument, reason: str = "") -> None:
    """End an execution."""
    request = task_service_pb2.CancelExecutionRequest(name=execution, reason=reason)
    _call(lambda client: client.call(client.tasks.CancelExecution, request))


@tasks_app.command("retry")
def retry_execution(
    execution: ExecutionArgument,
    watch: Annotated[bool, typer.Option(help="Show what happens, until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Carry an execution out again that failed, expired or was cancelled."""
    request = task_service_pb2.RetryExecutionRequest(name=execution)

    async def work(client: AgentRpcClient) -> int:
        made = await client.call(client.tasks.RetryExecution, request)
        return await _follow(client, made, watch=watch, as_json=as_json)

    run_command(work)


@tasks_app.command("templates")
def list_templates(
    category: Annotated[str, typer.Argument(help="Only this category.")] = "", as_json: Json = False
) -> None:
    """List ready-made tasks."""
    request = task_service_pb2.ListTaskTemplatesRequest(category=category)

    async def work(client: AgentRpcClient) -> None:
        response = await client.call(client.tasks.ListTaskTemplates, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("template", no_wrap=True), "category", "what it does", box=None)
        for found in response.templates:
            table.add_row(found.id, found.category, found.description)
        console.print(table)

    run_command(work)


def read_variables(pairs: list[str] | None) -> str:
    """NAME=VALUE pairs as the text of a JSON object; empty without any."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise fail(f"{pair!r} must be NAME=VALUE", 2)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return json.dumps(found, ensure_ascii=False) if found else ""


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{given[1:]}: {error}", 2) from None


def _of(text: str, make: Callable[[AgentRpcClient, str], Awaitable[Message]]) -> None:
    async def work(client: AgentRpcClient) -> None:
        _print(await make(client, await find_task(client, text)))

    run_command(work)


def _call(make: Callable[[AgentRpcClient], Awaitable[Message]]) -> None:
    async def work(client: AgentRpcClient) -> None:
        _print(await make(client))

    run_command(work)


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))
