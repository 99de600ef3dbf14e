"""The typer app: global options, and the commands that talk to a service."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict, MessageToJson
from google.protobuf.message import Message
from rich.table import Column, Table

from agentrpc.cli import agents, approvals, credentials, mcp_servers, schedules, talk, tasks, webhooks
from agentrpc.cli.checks import run_checks
from agentrpc.cli.connection import connection, credentials_path, fail, run_command
from agentrpc.cli.files import archives_app, files_app
from agentrpc.cli.limits import Limit, resource_limits
from agentrpc.cli.memory import builtin_servers, memory_app
from agentrpc.cli.render import level_name, print_line, state_name, wait_name
from agentrpc.cli.reports import reports_app
from agentrpc.cli.resources import full_name
from agentrpc.cli.terminal import Terminal, print_warnings
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import (
    run_service_pb2,
    session_pb2,
    session_service_pb2,
)

__all__ = ["app"]

app = typer.Typer(
    name="agentrpc",
    help="A self-hosted control service for Claude agents, spoken over gRPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
sessions_app = typer.Typer(help="Sessions.", no_args_is_help=True)
runs_app = typer.Typer(help="Runs.", no_args_is_help=True)
app.add_typer(sessions_app, name="sessions")
app.add_typer(runs_app, name="runs")
approvals.register(app, sessions_app)
agents.register(app)
app.add_typer(memory_app, name="memory")
app.add_typer(files_app, name="files")
app.add_typer(archives_app, name="archives")
tasks.register(app)
schedules.register(app)
app.add_typer(mcp_servers.app, name="mcp-servers")
app.add_typer(credentials.app, name="credentials")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(reports_app, name="reports")

console = Terminal()
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Agent = Annotated[str, typer.Option(help="For a new session: the agent, by its display name, name or version.")]


@app.callback()
def options(
    server: Annotated[str, typer.Option(envvar="AGENTRPC_SERVER", help="host:port")] = "127.0.0.1:7400",
    token: Annotated[str, typer.Option(envvar="AGENTRPC_TOKEN", help="An access token.")] = "",
    tls: Annotated[bool, typer.Option(help="Encrypt, and trust the system's authorities.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="Encrypt, and trust this PEM authority.")] = None,
) -> None:
    """Options of all commands that talk to a service."""
    connection.server, connection.token, connection.tls, connection.tls_ca = server, token, tls, tls_ca


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


def _json_line(message: Message) -> str:
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))


def _session_name(text: str) -> str:
    return text if text.startswith("sessions/") else f"sessions/{text}"


def _only_for_new(session: str, agent: str) -> None:
    if session and agent:
        raise fail("--agent is for a new session: leave it or the session out", 2)


async def _create(client: AgentRpcClient, wanted: session_pb2.Session, agent: str) -> str:
    if agent:
        wanted.agent = await agents.find_agent(client, agent)
    made = await client.create_session(wanted)
    print_warnings(made.rule_warnings)
    return made.name


@app.command()
def login(
    username: str = "admin",
    password_stdin: Annotated[bool, typer.Option(help="Read the password from standard input.")] = False,
) -> None:
    """Log in, and keep the tokens in a file that only you may read."""
    # With a token given nothing would be kept.
    connection.token = ""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else typer.prompt("Password", hide_input=True)

    async def work(client: AgentRpcClient) -> None:
        user = await client.login(username, password)
        console.print(f"logged in as {user.username} at {connection.server} ({credentials_path()})")
        if os.environ.get("AGENTRPC_TOKEN"):
            console.print("AGENTRPC_TOKEN is set, and is what commands use: unset it to use this login")

    run_command(work)


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="What the agent is to do; - reads standard input.")],
    session: Annotated[str, typer.Option(help="An existing session.")] = "",
    agent: Agent = "",
    model: str = "",
    allow: Annotated[list[str] | None, typer.Option(help="A rule that allows calls; may be repeated.")] = None,
    approve: Annotated[str, typer.Option(help="ask, all or none.")] = "ask",
    as_json: Annotated[bool, typer.Option("--json", help="One event a line.")] = False,
) -> None:
    """Run a prompt and print the answer.

    Exit status: 0 succeeded, 1 failed, 3 cancelled, 4 expired, 5 unknown outcome, 6 an approval and nobody to ask.
    """
    if approve not in {"ask", "all", "none"}:
        raise fail("--approve must be ask, all or none", 2)
    _only_for_new(session, agent)
    text = sys.stdin.read() if prompt == "-" else prompt
    wanted = session_pb2.Session(options=session_pb2.SessionOptions(model=model, allowed_tools=allow or []))

    async def work(client: AgentRpcClient) -> int:
        name = _session_name(session) if session else await _create(client, wanted, agent)
        return await talk.run_once(client, name, text, approve=approve, as_json=as_json)

    run_command(work)


@app.command()
def chat(
    session: Annotated[str, typer.Argument(help="An existing session; a new one when left out.")] = "",
    agent: Agent = "",
    model: str = "",
    system: Annotated[str, typer.Option(help="Text to add to the system prompt.")] = "",
    permission_mode: Annotated[str, typer.Option(help="default, accept_edits, plan or dont_ask.")] = "",
    allow: Annotated[list[str] | None, typer.Option(help="A rule that allows calls; may be repeated.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="A rule that denies calls; may be repeated.")] = None,
) -> None:
    """Talk with an agent. Ctrl-C interrupts it; twice leaves."""
    _only_for_new(session, agent)
    # Left out, it is the agent's.
    mode = f"PERMISSION_MODE_{permission_mode.upper() or 'UNSPECIFIED'}"
    try:
        given = session_pb2.SessionOptions(
            model=model, permission_mode=mode, allowed_tools=allow or [], disallowed_tools=deny or []
        )
    except ValueError:
        raise fail("--permission-mode must be default, accept_edits, plan or dont_ask", 2) from None
    if system:
        given.system_prompt.append = system

    async def work(client: AgentRpcClient) -> None:
        wanted = session_pb2.Session(options=given)
        name = _session_name(session) if session else await _create(client, wanted, agent)
        await talk.chat(client, name)

    run_command(work)


@app.command()
def watch(
    session: str,
    after: Annotated[int, typer.Option(help="Begin after this sequence.")] = 0,
    deltas: Annotated[bool, typer.Option(help="Live events too.")] = False,
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One event a line.")] = False,
) -> None:
    """Watch a session; goes on by itself after a lost connection."""

    async def work(client: AgentRpcClient) -> None:
        name = _session_name(session)
        async for event in client.watch(name, after_sequence=after, include_deltas=deltas, event_types=types or ()):
            if as_json:
                print(_json_line(event), flush=True)
            else:
                print_line(console, event)

    run_command(work)


@app.command()
def doctor() -> None:
    """Check what this machine has and whether the service answers; each finding comes with its remedy."""
    raise SystemExit(asyncio.run(run_checks(console)))


@sessions_app.command("list")
def list_sessions(
    page_size: int = 20,
    agent: Annotated[str, typer.Option(help="Only those made from this agent, or version of it.")] = "",
    as_json: Json = False,
) -> None:
    """List sessions, newest first."""

    async def work(client: AgentRpcClient) -> None:
        name = await agents.find_agent(client, agent) if agent else ""
        request = session_service_pb2.ListSessionsRequest(page_size=page_size, agent=name)
        response = await client.call(client.sessions.ListSessions, request)
        if as_json:
            _print(response)
            return
        columns = ("state", "isolation", "runs", "tool calls", "cost", "name")
        table = Table(Column("session", no_wrap=True), *columns, box=None)
        for found in response.sessions:
            state = session_pb2.Session.State.Name(found.state).removeprefix("STATE_")
            cost = f"${found.usage.cost_usd:.4f}"
            counts = str(found.run_count), str(found.tool_call_count)
            table.add_row(found.name, state, level_name(found.isolation_level), *counts, cost, found.display_name)
        console.print(table)

    run_command(work)


@sessions_app.command("get")
def get_session(session: str) -> None:
    """Show a session."""
    _call(lambda client: client.get_session(_session_name(session)))


@sessions_app.command("create")
def create_session(
    display_name: str = "",
    model: str = "",
    allow: Annotated[list[str] | None, typer.Option(help="A rule that allows calls; may be repeated.")] = None,
    memory: Annotated[str, typer.Option(help="A memory store that the agent reads and writes.")] = "",
    database: Annotated[str, typer.Option(help="A configured database that the agent may query.")] = "",
    system: Annotated[bool, typer.Option(help="The agent may see what its machine has and uses.")] = False,
    isolation_level: Annotated[
        str, typer.Option(help="none, user or sandbox: runs wait for a worker that has this, or more.")
    ] = "",
    credential: Annotated[list[str] | None, typer.Option(help="What the agent may use; may be repeated.")] = None,
    limit: Limit = None,
) -> None:
    """Create a session."""
    if isolation_level not in {"", "none", "user", "sandbox"}:
        raise fail("--isolation-level must be none, user or sandbox", 2)
    options = session_pb2.SessionOptions(
        model=model,
        allowed_tools=allow or [],
        mcp_servers=builtin_servers(memory, database, system=system),
        isolation_level=f"ISOLATION_LEVEL_{isolation_level.upper() or 'UNSPECIFIED'}",
        credentials=[full_name("credentials", name) for name in credential or []],
        limits=resource_limits(limit) if limit else None,
    )
    wanted = session_pb2.Session(display_name=display_name, options=options)
    _call(lambda client: client.create_session(wanted))


@sessions_app.command("archive")
def archive_session(session: str) -> None:
    """Close a session for good."""
    request = session_service_pb2.ArchiveSessionRequest(name=_session_name(session))
    _call(lambda client: client.call(client.sessions.ArchiveSession, request))


@sessions_app.command("delete")
def delete_session(session: str) -> None:
    """Delete a session."""
    request = session_service_pb2.DeleteSessionRequest(name=_session_name(session))
    _call(lambda client: client.call(client.sessions.DeleteSession, request))


@sessions_app.command("pause")
def pause_session(session: str, reason: str = "") -> None:
    """Halt a session before its next tool call; nothing is lost."""
    _call(lambda client: client.pause_session(_session_name(session), reason))


@sessions_app.command("resume")
def resume_session(session: str) -> None:
    """Let a paused session go on."""
    _call(lambda client: client.resume_session(_session_name(session)))


@sessions_app.command("terminate")
def terminate_session(session: str, reason: str = "") -> None:
    """End everything in a session at once, and close it for good."""
    _call(lambda client: client.terminate_session(_session_name(session), reason))


@sessions_app.command("fork")
def fork_session(
    session: str,
    at: Annotated[str, typer.Option(help="The last message to keep, by its transcript_uuid.")] = "",
    files: Annotated[bool, typer.Option(help="Copy the files of the workspace too.")] = False,
    display_name: str = "",
) -> None:
    """Create a session that begins with a copy of another one's conversation."""
    name = _session_name(session)
    _call(lambda client: client.fork_session(name, transcript_uuid=at, copy_workspace=files, display_name=display_name))


@sessions_app.command("rewind")
def rewind_session(
    run: Annotated[str, typer.Argument(help="The run, sessions/{session}/runs/{run}, to whose beginning to go back.")],
    files: Annotated[bool, typer.Option(help="The files of the workspace too, from the run's checkpoint.")] = False,
) -> None:
    """Take the conversation of a session back to before a run."""
    _call(lambda client: client.rewind_session(run, restore_workspace=files))


@runs_app.command("list")
def list_runs(session: str = "-", page_size: int = 20, as_json: Json = False) -> None:
    """List runs, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = run_service_pb2.ListRunsRequest(parent=_session_name(session), page_size=page_size)
        response = await client.call(client.runs.ListRuns, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("run", no_wrap=True), "state", "waits for", "prompt", box=None)
        for found in response.runs:
            table.add_row(found.name, state_name(found), wait_name(found), " ".join(found.prompt.split())[:60])
        console.print(table)

    run_command(work)


@runs_app.command("get")
def get_run(name: str) -> None:
    """Show a run."""
    _call(lambda client: client.get_run(name))


@runs_app.command("interrupt")
def interrupt_run(name: str, reason: str = "") -> None:
    """Interrupt a run."""
    _call(lambda client: client.interrupt(name, reason))


@runs_app.command("cancel")
def cancel_run(name: str, reason: str = "") -> None:
    """End a run and its whole process tree at once."""
    _call(lambda client: client.cancel(name, reason))


@runs_app.command("retry")
def retry_run(name: str) -> None:
    """Create a run anew that failed, expired or was cancelled."""
    _call(lambda client: client.retry(name))


@runs_app.command("steer")
def steer_run(name: str, text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")]) -> None:
    """Say something more to a run that is under way."""
    said = sys.stdin.read() if text == "-" else text
    _call(lambda client: client.steer(name, said))


@runs_app.command("resolve")
def resolve_run(
    name: str,
    decision: Annotated[str, typer.Argument(help="resume, retry-calls, assume-done or abandon.")],
    result: Annotated[list[str] | None, typer.Option(help="With assume-done: ID=TEXT of a call.")] = None,
    failed: Annotated[list[str] | None, typer.Option(help="The same, of a call that failed.")] = None,
) -> None:
    """Decide how a run in UNKNOWN_OUTCOME goes on; `runs get` shows its in_doubt_calls."""
    request = run_service_pb2.ResolveRunRequest
    try:
        wanted = request.Decision.Value(f"DECISION_{decision.upper().replace('-', '_')}")
    except ValueError:
        raise fail("the decision must be resume, retry-calls, assume-done or abandon", 2) from None
    results = []
    for text, is_error in [*((r, False) for r in result or []), *((r, True) for r in failed or [])]:
        tool_use_id, separator, told = text.partition("=")
        if not separator:
            raise fail(f"{text!r} must be ID=TEXT", 2)
        results.append(request.CallResult(tool_use_id=tool_use_id, text=told, failed=is_error))
    _call(lambda client: client.resolve_run(name, wanted, results))


def _call(make: Any) -> None:  # noqa: ANN401 - a call of any message
    async def work(client: AgentRpcClient) -> None:
        answer = await make(client)
        _print(answer)
        print_warnings(getattr(answer, "rule_warnings", ()))

    run_command(work)
