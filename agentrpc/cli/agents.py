"""`agents` and `tool-groups`: definitions that sessions are made from, and rules that these share."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from google.protobuf.message import Message
from rich.table import Column, Table

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.terminal import Terminal, print_warnings
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    session_pb2,
    tool_group_pb2,
    tool_group_service_pb2,
)

__all__ = ["find_agent", "register"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/versions/[0-9]+)?")

agents_app = typer.Typer(help="Agents: definitions that sessions are made from.", no_args_is_help=True)
groups_app = typer.Typer(help="Tool groups: rules for tool calls that agents share.", no_args_is_help=True)
console = Terminal()

AgentArgument = Annotated[str, typer.Argument(help="agents/{agent}, its id, or its display name.")]
GroupArgument = Annotated[str, typer.Argument(help="toolGroups/{tool_group}, its id, or its display name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Description = Annotated[str | None, typer.Option(help="For people.")]
Category = Annotated[str | None, typer.Option(help="Such as code-review.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")]
Shared = Annotated[bool | None, typer.Option("--shared/--not-shared", help="Whether everyone may use it.")]
Model = Annotated[str, typer.Option(help="The model.")]
System = Annotated[str, typer.Option(help="Text to add to the system prompt.")]
Mode = Annotated[str, typer.Option(help="default, accept_edits, plan or dont_ask.")]
Allow = Annotated[list[str] | None, typer.Option(help="A rule that allows calls; may be repeated.")]
Deny = Annotated[list[str] | None, typer.Option(help="A rule that denies calls; may be repeated.")]
Groups = Annotated[list[str] | None, typer.Option("--tool-group", help="A tool group; may be repeated.")]
OptionsFile = Annotated[
    Path | None, typer.Option("--options", help="A file with session options as JSON; other flags win over it.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(agents_app, name="agents")
    app.add_typer(groups_app, name="tool-groups")


async def find_agent(client: AgentRpcClient, text: str) -> str:
    """The name of an agent, or of its version, that somebody has typed: a name, an id, or a display name."""
    if text.startswith("agents/"):
        return text
    if _UUID.fullmatch(text):
        return f"agents/{text}"
    request = agent_service_pb2.ListAgentsRequest(query=text[:200], page_size=500)
    response = await client.call(client.agents.ListAgents, request)
    return _only("agent", text, [found.name for found in response.agents if found.display_name == text])


async def _find_group(client: AgentRpcClient, text: str) -> str:
    if text.startswith("toolGroups/"):
        return text
    if _UUID.fullmatch(text):
        return f"toolGroups/{text}"
    request = tool_group_service_pb2.ListToolGroupsRequest(query=text[:200], page_size=500)
    response = await client.call(client.tool_groups.ListToolGroups, request)
    return _only("tool group", text, [found.name for found in response.tool_groups if found.display_name == text])


def _only(what: str, text: str, names: list[str]) -> str:
    if not names:
        raise fail(f"there is no {what} {text!r}, or you may not see it")
    if len(names) > 1:
        raise fail(f"{text!r} is the display name of several: {', '.join(names)}")
    return names[0]


def _options(
    file: Path | None, model: str, system: str, mode: str, allow: list[str] | None, deny: list[str] | None
) -> session_pb2.SessionOptions:
    options = session_pb2.SessionOptions()
    if file is not None:
        try:
            Parse(file.read_text(), options)
        except (OSError, UnicodeDecodeError, ParseError) as error:
            raise fail(f"{file}: {str(error).splitlines()[0]}", 2) from None
    if model:
        options.model = model
    if system:
        options.system_prompt.append = system
    if mode:
        try:
            options.permission_mode = f"PERMISSION_MODE_{mode.upper()}"  # type: ignore[assignment]  # by its name
        except ValueError:
            raise fail("--permission-mode must be default, accept_edits, plan or dont_ask", 2) from None
    options.allowed_tools.extend(allow or [])
    options.disallowed_tools.extend(deny or [])
    return options


@agents_app.command("list")
def list_agents(
    query: Annotated[str, typer.Argument(help="Words to look for.")] = "",
    category: Annotated[str, typer.Option(help="Only this category.")] = "",
    tag: Tags = None,
    most_used: Annotated[bool, typer.Option(help="The most used first.")] = False,
    page_size: int = 20,
    as_json: Json = False,
) -> None:
    """List your agents and shared ones, newest first."""
    request = agent_service_pb2.ListAgentsRequest(
        query=query,
        category=category,
        tags=tag or (),
        page_size=page_size,
        order_by="usage_count desc" if most_used else "",
    )

    async def work(client: AgentRpcClient) -> None:
        response = await client.call(client.agents.ListAgents, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("agent", no_wrap=True), "default", "used", "category", "tags", "name", box=None)
        for found in response.agents:
            version = found.default_version.rpartition("/")[2]
            name = f"{found.display_name} (shared)" if found.shared else found.display_name
            table.add_row(found.name, version, str(found.usage_count), found.category, " ".join(found.tags), name)
        console.print(table)

    run_command(work)


@agents_app.command("get")
def get_agent(agent: AgentArgument, as_json: Json = False) -> None:  # noqa: ARG001 - it is JSON anyway
    """Show an agent or, named agents/{agent}/versions/{version}, one of its versions."""

    async def work(client: AgentRpcClient) -> None:
        name = await find_agent(client, agent)
        if "/versions/" in name:
            version = agent_service_pb2.GetAgentVersionRequest(name=name)
            _print(await client.call(client.agents.GetAgentVersion, version))
        else:
            _print(await client.call(client.agents.GetAgent, agent_service_pb2.GetAgentRequest(name=name)))

    run_command(work)


@agents_app.command("create")
def create_agent(
    display_name: str,
    description: Description = None,
    category: Category = None,
    tag: Tags = None,
    shared: Shared = None,
    model: Model = "",
    system: System = "",
    permission_mode: Mode = "",
    allow: Allow = None,
    deny: Deny = None,
    tool_group: Groups = None,
    options: OptionsFile = None,
    as_json: Json = False,
) -> None:
    """Create an agent with its version 1."""
    given = _options(options, model, system, permission_mode, allow, deny)
    agent = agent_pb2.Agent(
        display_name=display_name,
        description=description or "",
        category=category or "",
        tags=tag or (),
        shared=bool(shared),
    )

    async def work(client: AgentRpcClient) -> Message:
        groups = [await _find_group(client, group) for group in tool_group or ()]
        version = agent_pb2.AgentVersion(options=given, tool_groups=groups)
        request = agent_service_pb2.CreateAgentRequest(agent=agent, version=version)
        made = await client.call(client.agents.CreateAgent, request)
        first = agent_service_pb2.GetAgentVersionRequest(name=made.default_version)
        print_warnings((await client.call(client.agents.GetAgentVersion, first)).rule_warnings)
        return made

    _named(work, as_json=as_json)


@agents_app.command("update")
def update_agent(
    agent: AgentArgument,
    display_name: Annotated[str | None, typer.Option(help="A new name for people.")] = None,
    description: Description = None,
    category: Category = None,
    tag: Tags = None,
    shared: Shared = None,
    default_version: Annotated[int | None, typer.Option(help="The version for sessions that ask for none.")] = None,
    as_json: Json = False,
) -> None:
    """Change an agent, apart from its versions. What is given replaces what was there."""
    fields: dict[str, Any] = {
        "display_name": display_name,
        "description": description,
        "category": category,
        "tags": tag,
        "shared": shared,
    }
    fields = {field: value for field, value in fields.items() if value is not None}

    async def work(client: AgentRpcClient) -> Message:
        name = await find_agent(client, agent)
        if default_version is not None:
            fields["default_version"] = f"{name}/versions/{default_version}"
        request = agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(name=name, **fields), update_mask=_mask(fields)
        )
        return await client.call(client.agents.UpdateAgent, request)

    _named(work, as_json=as_json)


@agents_app.command("delete")
def delete_agent(agent: AgentArgument) -> None:
    """Delete an agent; its sessions go on."""

    async def work(client: AgentRpcClient) -> None:
        request = agent_service_pb2.DeleteAgentRequest(name=await find_agent(client, agent))
        await client.call(client.agents.DeleteAgent, request)

    run_command(work)


@agents_app.command("versions")
def list_versions(agent: AgentArgument, page_size: int = 20, as_json: Json = False) -> None:
    """List the versions of an agent, newest first."""

    async def work(client: AgentRpcClient) -> None:
        name = await find_agent(client, agent)
        request = agent_service_pb2.ListAgentVersionsRequest(parent=name, page_size=page_size)
        response = await client.call(client.agents.ListAgentVersions, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("version", no_wrap=True), "created", "note", box=None)
        for found in response.versions:
            created = f"{found.create_time.ToDatetime():%Y-%m-%d %H:%M}"
            table.add_row(found.name, created, " ".join(found.note.split())[:60])
        console.print(table)

    run_command(work)


@agents_app.command("add-version")
def add_version(
    agent: AgentArgument,
    note: Annotated[str, typer.Option(help="What is new, for people.")] = "",
    make_default: Annotated[bool, typer.Option(help="Make it the default.")] = False,
    model: Model = "",
    system: System = "",
    permission_mode: Mode = "",
    allow: Allow = None,
    deny: Deny = None,
    tool_group: Groups = None,
    options: OptionsFile = None,
    as_json: Json = False,
) -> None:
    """Add a version to an agent, with these options and no others."""
    given = _options(options, model, system, permission_mode, allow, deny)

    async def work(client: AgentRpcClient) -> Message:
        groups = [await _find_group(client, group) for group in tool_group or ()]
        request = agent_service_pb2.CreateAgentVersionRequest(
            parent=await find_agent(client, agent),
            version=agent_pb2.AgentVersion(options=given, tool_groups=groups, note=note),
            make_default=make_default,
        )
        return await client.call(client.agents.CreateAgentVersion, request)

    _named(work, as_json=as_json)


@groups_app.command("list")
def list_groups(
    query: Annotated[str, typer.Argument(help="Words to look for.")] = "", page_size: int = 20, as_json: Json = False
) -> None:
    """List your tool groups and shared ones, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = tool_group_service_pb2.ListToolGroupsRequest(query=query, page_size=page_size)
        response = await client.call(client.tool_groups.ListToolGroups, request)
        if as_json:
            _print(response)
            return
        table = Table(Column("tool group", no_wrap=True), "allows", "denies", "name", box=None)
        for found in response.tool_groups:
            name = f"{found.display_name} (shared)" if found.shared else found.display_name
            table.add_row(found.name, _short(found.allowed_tools), _short(found.disallowed_tools), name)
        console.print(table)

    run_command(work)


@groups_app.command("get")
def get_group(group: GroupArgument, as_json: Json = False) -> None:  # noqa: ARG001 - it is JSON anyway
    """Show a tool group."""

    async def work(client: AgentRpcClient) -> None:
        request = tool_group_service_pb2.GetToolGroupRequest(name=await _find_group(client, group))
        _print(await client.call(client.tool_groups.GetToolGroup, request))

    run_command(work)


@groups_app.command("create")
def create_group(
    display_name: str,
    allow: Allow = None,
    deny: Deny = None,
    description: Description = None,
    shared: Shared = None,
    as_json: Json = False,
) -> None:
    """Create a tool group."""
    group = tool_group_pb2.ToolGroup(
        display_name=display_name,
        description=description or "",
        allowed_tools=allow or (),
        disallowed_tools=deny or (),
        shared=bool(shared),
    )
    request = tool_group_service_pb2.CreateToolGroupRequest(tool_group=group)
    _named(lambda client: client.call(client.tool_groups.CreateToolGroup, request), as_json=as_json)


@groups_app.command("update")
def update_group(
    group: GroupArgument,
    display_name: Annotated[str | None, typer.Option(help="A new name for people.")] = None,
    allow: Allow = None,
    deny: Deny = None,
    description: Description = None,
    shared: Shared = None,
    as_json: Json = False,
) -> None:
    """Change a tool group. What is given replaces what was there."""
    fields: dict[str, Any] = {
        "display_name": display_name,
        "description": description,
        "allowed_tools": allow,
        "disallowed_tools": deny,
        "shared": shared,
    }
    fields = {field: value for field, value in fields.items() if value is not None}

    async def work(client: AgentRpcClient) -> Message:
        wanted = tool_group_pb2.ToolGroup(name=await _find_group(client, group), **fields)
        request = tool_group_service_pb2.UpdateToolGroupRequest(tool_group=wanted, update_mask=_mask(fields))
        return await client.call(client.tool_groups.UpdateToolGroup, request)

    _named(work, as_json=as_json)


@groups_app.command("delete")
def delete_group(group: GroupArgument) -> None:
    """Delete a tool group that nothing refers to."""

    async def work(client: AgentRpcClient) -> None:
        request = tool_group_service_pb2.DeleteToolGroupRequest(name=await _find_group(client, group))
        await client.call(client.tool_groups.DeleteToolGroup, request)

    run_command(work)


def _mask(fields: dict[str, Any]) -> FieldMask:
    if not fields:
        raise fail("say what is to be changed: see --help", 2)
    return FieldMask(paths=list(fields))


def _short(rules: Any) -> str:  # noqa: ANN401 - a repeated field
    return " ".join(rules)[:40]


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


def _named(make: Callable[[AgentRpcClient], Awaitable[Any]], *, as_json: bool) -> None:
    """Print what was made: its name, or all of it."""

    async def work(client: AgentRpcClient) -> None:
        made = await make(client)
        if as_json:
            _print(made)
        else:
            console.print(made.name, soft_wrap=True)
        print_warnings(getattr(made, "rule_warnings", ()))

    run_command(work)
