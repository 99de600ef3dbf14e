"""Commands for memory stores and what is in them."""

import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Column, Table
from rich.text import Text

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.terminal import Terminal, printable, shown
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import memory_pb2, session_pb2
from agentrpc.v1 import memory_service_pb2 as pb

__all__ = ["builtin_servers", "memory_app"]

memory_app = typer.Typer(help="Notes that outlive sessions.", no_args_is_help=True)
console = Terminal()
_M = TypeVar("_M", bound=Message)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Store = Annotated[str, typer.Argument(help="memoryStores/{store}, or its id.")]
Key = Annotated[str, typer.Argument(help="Such as projects/apollo/owner.")]


def builtin_servers(memory: str, database: str, *, system: bool) -> list[session_pb2.McpServer]:
    """The servers of this service that `sessions create` switches on."""
    found = []
    if memory:
        given = session_pb2.MemoryTools(store=_store(memory), writable=True)
        found.append(session_pb2.McpServer(name="memory", builtin=session_pb2.BuiltinServer(memory=given)))
    if database:
        queries = session_pb2.DatabaseTools(database=database)
        found.append(session_pb2.McpServer(name="database", builtin=session_pb2.BuiltinServer(database=queries)))
    if system:
        sums = session_pb2.SystemTools()
        found.append(session_pb2.McpServer(name="system", builtin=session_pb2.BuiltinServer(system=sums)))
    return found


@memory_app.command("stores")
def list_stores(page_size: int = 20, page_token: str = "", as_json: Json = False) -> None:
    """List the stores that you may read, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = pb.ListMemoryStoresRequest(page_size=page_size, page_token=page_token)
        response = await client.call(client.memory.ListMemoryStores, request)
        if as_json:
            return _print(response)
        table = Table(Column("store", no_wrap=True), "entries", "bytes", "shared", "name", box=None)
        for found in response.memory_stores:
            shared = "yes" if found.shared else f"{len(found.readers)} readers" if found.readers else ""
            name = found.display_name
            table.add_row(found.name, str(found.entry_count), str(found.byte_count), shared, name)
        return _show(table, response.next_page_token)

    run_command(work)


@memory_app.command("create")
def create_store(
    display_name: str = "",
    description: str = "",
    shared: Annotated[bool, typer.Option(help="Every user may read it.")] = False,
    reader: Annotated[list[str] | None, typer.Option(help="users/{user} who may read it; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Create a store."""
    wanted = memory_pb2.MemoryStore(
        display_name=display_name, description=description, shared=shared, readers=reader or []
    )
    request = pb.CreateMemoryStoreRequest(memory_store=wanted)
    _call(lambda client: client.call(client.memory.CreateMemoryStore, request), _name, as_json=as_json)


@memory_app.command("get")
def get_store(store: Store, as_json: Json = False) -> None:
    """Show a store."""
    request = pb.GetMemoryStoreRequest(name=_store(store))
    _call(
        lambda client: client.call(client.memory.GetMemoryStore, request),
        lambda found: f"{found.display_name}: {found.entry_count} entries, {found.byte_count} bytes, of {found.owner}",
        as_json=as_json,
    )


@memory_app.command("update")
def update_store(
    store: Store,
    display_name: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    shared: Annotated[bool | None, typer.Option("--shared/--not-shared", help="Every user may read it.")] = None,
    reader: Annotated[list[str] | None, typer.Option(help="Replaces the readers; may be repeated, or none.")] = None,
    max_entries: Annotated[int | None, typer.Option()] = None,
    max_bytes: Annotated[int | None, typer.Option()] = None,
    max_versions: Annotated[int | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """Change a store."""
    limits = {"max_entries": max_entries, "max_bytes": max_bytes, "max_versions": max_versions}
    readers = None if not reader else [] if reader == ["none"] else reader
    given = {"display_name": display_name, "description": description, "shared": shared, "readers": readers}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted = memory_pb2.MemoryStore(name=_store(store), limits=memory_pb2.MemoryLimits(**limits), **fields)
    request = pb.UpdateMemoryStoreRequest(memory_store=wanted)
    request.update_mask.paths.extend(fields)
    request.update_mask.paths.extend(f"limits.{name}" for name, value in limits.items() if value is not None)
    if not request.update_mask.paths:
        raise fail("say what to change: see --help", 2)
    _call(lambda client: client.call(client.memory.UpdateMemoryStore, request), _name, as_json=as_json)


@memory_app.command("drop")
def delete_store(
    store: Store, force: Annotated[bool, typer.Option(help="With its entries.")] = False, as_json: Json = False
) -> None:
    """Delete a store for good."""
    request = pb.DeleteMemoryStoreRequest(name=_store(store), force=force)
    _call(lambda client: client.call(client.memory.DeleteMemoryStore, request), lambda _: "deleted", as_json=as_json)


@memory_app.command("list")
def list_entries(
    store: Store, prefix: str = "", page_size: int = 50, page_token: str = "", as_json: Json = False
) -> None:
    """List the entries of a store."""

    async def work(client: AgentRpcClient) -> None:
        request = pb.ListMemoryEntriesRequest(
            parent=_store(store), key_prefix=prefix, page_size=page_size, page_token=page_token
        )
        response = await client.call(client.memory.ListMemoryEntries, request)
        if as_json:
            return _print(response)
        return _show(_table(response.memory_entries), response.next_page_token)

    run_command(work)


@memory_app.command("read")
def read_entry(
    store: Store, key: Key, version: Annotated[int, typer.Option(help="An older one.")] = 0, as_json: Json = False
) -> None:
    """Print an entry."""

    async def work(client: AgentRpcClient) -> None:
        request = pb.GetMemoryEntryRequest(name=_entry(store, key), version=version)
        entry = await client.call(client.memory.GetMemoryEntry, request)
        if as_json:
            return _print(entry)
        return print(printable(entry.content))

    run_command(work)


@memory_app.command("write")
def write_entry(
    store: Store,
    key: Key,
    content: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    expected_version: Annotated[int | None, typer.Option(help="Only onto this version; 0: only if it is new.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Write an entry; what is there becomes an older version."""
    text = sys.stdin.read() if content == "-" else content
    labels = dict(one.partition("=")[::2] for one in label or [])
    entry = memory_pb2.MemoryEntry(name=_entry(store, key), content=text, labels=labels)
    request = pb.WriteMemoryEntryRequest(memory_entry=entry, expected_version=expected_version)
    _call(
        lambda client: client.call(client.memory.WriteMemoryEntry, request),
        lambda written: f"version {written.version}",
        as_json=as_json,
    )


@memory_app.command("search")
def search(store: Store, query: str, prefix: str = "", limit: int = 20, as_json: Json = False) -> None:
    """Find entries by words or parts of words."""

    async def work(client: AgentRpcClient) -> None:
        request = pb.SearchMemoryEntriesRequest(parent=_store(store), query=query, key_prefix=prefix, page_size=limit)
        response = await client.call(client.memory.SearchMemoryEntries, request)
        if as_json:
            return _print(response)
        for hit in response.hits:
            snippet = " ".join(hit.snippet.split())
            console.print(Text.assemble(shown(_key(hit.memory_entry), "bold"), "  ", shown(snippet)))
        return None

    run_command(work)


@memory_app.command("versions")
def list_versions(store: Store, key: Key, page_size: int = 50, page_token: str = "", as_json: Json = False) -> None:
    """List the versions of an entry that are kept, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = pb.ListMemoryEntryVersionsRequest(
            parent=_entry(store, key), page_size=page_size, page_token=page_token
        )
        response = await client.call(client.memory.ListMemoryEntryVersions, request)
        if as_json:
            return _print(response)
        return _show(_table(response.memory_entries), response.next_page_token)

    run_command(work)


@memory_app.command("delete")
def delete_entry(
    store: Store,
    key: Key,
    expected_version: Annotated[int, typer.Option(help="Only this version.")] = 0,
    as_json: Json = False,
) -> None:
    """Delete an entry with all its versions, for good."""
    request = pb.DeleteMemoryEntryRequest(name=_entry(store, key), expected_version=expected_version)
    _call(lambda client: client.call(client.memory.DeleteMemoryEntry, request), lambda _: "deleted", as_json=as_json)


def _table(entries: Iterable[memory_pb2.MemoryEntry]) -> Table:
    table = Table(Column("key", no_wrap=True), "version", "bytes", "written", "by", box=None)
    for entry in entries:
        written = entry.update_time.ToDatetime().isoformat(" ", "seconds")
        by = entry.author.run or entry.author.session or entry.author.user
        table.add_row(_key(entry), str(entry.version), str(entry.byte_count), written, by)
    return table


def _show(table: Table, next_page_token: str) -> None:
    console.print(table)
    if next_page_token:
        console.print(f"more: --page-token {next_page_token}", style="dim", soft_wrap=True)


def _name(store: memory_pb2.MemoryStore) -> str:
    return store.name


def _key(entry: memory_pb2.MemoryEntry) -> str:
    return entry.name.partition("/entries/")[2]


def _store(text: str) -> str:
    return text if text.startswith("memoryStores/") else f"memoryStores/{text}"


def _entry(store: str, key: str) -> str:
    return f"{_store(store)}/entries/{key}"


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


def _call(make: Callable[[AgentRpcClient], Awaitable[_M]], line: Callable[[_M], str], *, as_json: bool) -> None:
    """Make a call, and print its answer as one line, or as JSON."""

    async def work(client: AgentRpcClient) -> None:
        answer = await make(client)
        if as_json:
            _print(answer)
        else:
            console.print(line(answer), soft_wrap=True)

    run_command(work)
