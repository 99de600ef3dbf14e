"""`agentrpc mcp-servers`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from rich.table import Column, Table

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.resources import Json, full_name, print_json, show, when
from agentrpc.cli.terminal import Terminal, printable
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import mcp_server_pb2, mcp_server_service_pb2, session_pb2

__all__ = ["app"]

app = typer.Typer(help="MCP servers that sessions refer to.", no_args_is_help=True)
console = Terminal()

# A check takes as long as the server does.
_LONG = 70.0

Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")]


def _name(text: str) -> str:
    return full_name("mcpServers", text)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or []]
    if not all(separator for _, separator, _ in pairs):
        raise fail(f"{option} must be NAME=VALUE", 2)
    return {key: value for key, _, value in pairs}


@app.command("create")
def create_mcp_server(
    display_name: str,
    command: Annotated[list[str] | None, typer.Argument(help="A program and its arguments, after `--`.")] = None,
    http: Annotated[str, typer.Option(help="A streamable-HTTP address, in place of a program.")] = "",
    sse: Annotated[str, typer.Option(help="A server-sent-events address, in place of a program.")] = "",
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a program; may be repeated.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for an address; may be repeated.")] = None,
    tag: Tags = None,
    description: str = "",
    shared: Annotated[bool, typer.Option(help="All users may use it.")] = False,
) -> None:
    """Register a server; it is checked at once."""
    if (bool(command) + bool(http) + bool(sse)) != 1:
        raise fail("give one of --http, --sse, and a program after `--`", 2)
    config = session_pb2.McpServer()
    if command:
        stdio = session_pb2.McpStdio(command=command[0], args=command[1:], env=_pairs("--env", env))
        config.stdio.CopyFrom(stdio)
    else:
        remote = session_pb2.McpRemote(url=http or sse, headers=_pairs("--header", header))
        (config.http if http else config.sse).CopyFrom(remote)
    given = mcp_server_pb2.RegisteredMcpServer(
        display_name=display_name, description=description, tags=tag or [], shared=shared, config=config
    )
    request = mcp_server_service_pb2.CreateMcpServerRequest(mcp_server=given)
    show(lambda client: client.call(client.mcp_servers.CreateMcpServer, request))


@app.command("list")
def list_mcp_servers(tag: Tags = None, page_size: int = 50, as_json: Json = False) -> None:
    """List servers that you may use, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = mcp_server_service_pb2.ListMcpServersRequest(tags=tag or [], page_size=page_size)
        response = await client.call(client.mcp_servers.ListMcpServers, request)
        if as_json:
            print_json(response)
            return
        table = Table(Column("server", no_wrap=True), "name", "by", "health", "tools", "checked", box=None)
        for found in response.mcp_servers:
            health = found.health
            state = mcp_server_pb2.McpServerHealth.State.Name(health.state).removeprefix("STATE_").lower()
            kind = found.config.WhichOneof("transport") or ""
            table.add_row(found.name, found.display_name, kind, state, str(health.tool_count), when(health.check_time))
        console.print(table)

    run_command(work)


@app.command("get")
def get_mcp_server(server: str) -> None:
    """Show a server, without its secrets."""
    request = mcp_server_service_pb2.GetMcpServerRequest(name=_name(server))
    show(lambda client: client.call(client.mcp_servers.GetMcpServer, request))


@app.command("update")
def update_mcp_server(
    server: str,
    display_name: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    tag: Tags = None,
    shared: Annotated[bool | None, typer.Option("--shared/--owned")] = None,
) -> None:
    """Change a server; for its configuration, import it under its name."""
    given = mcp_server_pb2.RegisteredMcpServer(
        name=_name(server),
        display_name=display_name or "",
        description=description or "",
        tags=tag or [],
        shared=bool(shared),
    )
    options = {"display_name": display_name, "description": description, "tags": tag, "shared": shared}
    mask = FieldMask(paths=[path for path, value in options.items() if value is not None])
    if not mask.paths:
        raise fail("say what to change: --display-name, --description, --tag, --shared or --owned", 2)
    request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=given, update_mask=mask)
    show(lambda client: client.call(client.mcp_servers.UpdateMcpServer, request))


@app.command("delete")
def delete_mcp_server(server: str) -> None:
    """Delete a server."""
    request = mcp_server_service_pb2.DeleteMcpServerRequest(name=_name(server))
    show(lambda client: client.call(client.mcp_servers.DeleteMcpServer, request))


@app.command("check")
def check_mcp_server(server: str) -> None:
    """Check a server now. Exit status 1: it is not well."""

    async def work(client: AgentRpcClient) -> int:
        request = mcp_server_service_pb2.CheckMcpServerRequest(name=_name(server))
        found = await client.call(client.mcp_servers.CheckMcpServer, request, timeout=_LONG)
        print_json(found)
        return int(found.health.state != mcp_server_pb2.McpServerHealth.STATE_HEALTHY)

    run_command(work)


@app.command("tools")
def list_tools(
    server: str,
    cached: Annotated[bool, typer.Option(help="As at the last good check, without connecting.")] = False,
    as_json: Json = False,
) -> None:
    """Connect to a server and list its tools."""

    async def work(client: AgentRpcClient) -> None:
        request = mcp_server_service_pb2.ListMcpServerToolsRequest(parent=_name(server), cached=cached)
        response = await client.call(client.mcp_servers.ListMcpServerTools, request, timeout=_LONG)
        if as_json:
            print_json(response)
            return
        table = Table(Column("tool", no_wrap=True), "what it does", box=None)
        for tool in response.tools:
            table.add_row(tool.name, " ".join(tool.description.split())[:100])
        console.print(table)

    run_command(work)


@app.command("import")
def import_mcp_servers(
    file: Annotated[str, typer.Argument(help="Such as claude_desktop_config.json; - reads standard input.")],
    shared: Annotated[bool, typer.Option(help="All users may use new ones.")] = False,
    check_only: Annotated[bool, typer.Option(help="Only check the file.")] = False,
) -> None:
    """Register what is in a file of Claude Desktop."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, ValueError) as error:
        raise fail(f"{file} cannot be read: {error}", 2) from None
    request = mcp_server_service_pb2.ImportMcpServersRequest(config_json=text, shared=shared, validate_only=check_only)
    show(lambda client: client.call(client.mcp_servers.ImportMcpServers, request))


@app.command("export")
def export_mcp_servers(
    server: Annotated[list[str] | None, typer.Argument(help="Left out: all of yours.")] = None,
) -> None:
    """Print servers as a file of Claude Desktop, without secrets."""

    async def work(client: AgentRpcClient) -> None:
        request = mcp_server_service_pb2.ExportMcpServersRequest(names=map(_name, server or []))
        print(printable((await client.call(client.mcp_servers.ExportMcpServers, request)).config_json))

    run_command(work)


@app.command("catalogue")
def list_catalogue(as_json: Json = False) -> None:
    """List well-known servers."""

    async def work(client: AgentRpcClient) -> None:
        request = mcp_server_service_pb2.ListMcpServerCatalogueRequest()
        response = await client.call(client.mcp_servers.ListMcpServerCatalogue, request)
        if as_json:
            print_json(response)
            return
        table = Table(Column("name", no_wrap=True), "what it does", "how", box=None)
        for found in response.templates:
            stdio = found.config.stdio
            how = " ".join([stdio.command, *stdio.args]) if stdio.command else found.config.http.url
            table.add_row(found.name, found.description, how or f"builtin: {found.builtin}")
        console.print(table)

    run_command(work)
