"""Connects to MCP servers that callers name: here to see whether they answer and which tools they have.

What they are is not known: a program runs in a sandbox of its own, without anything of a session or of this service,
and its whole tree is ended afterwards; an address is called only if it is one of those that may be. Time and output
are bounded. `mcp` speaks the protocol, old and new.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx2
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import CONNECTION_CLOSED, jsonrpc_message_adapter

from agentrpc.claude.agent_users import AgentUser, AgentUsers
from agentrpc.claude.content import clean
from agentrpc.claude.launcher import Isolation, SessionPaths, stop_tree, write_launcher
from agentrpc.claude.limits import Limits
from agentrpc.claude.listeners import Handover, WaysOut
from agentrpc.claude.options import plain_environment
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.errors import AgentRpcError
from agentrpc.v1 import mcp_server_pb2, session_pb2

__all__ = ["Found", "Ground", "McpConnectError", "Streams", "look", "transport_to", "words_of"]

_MAX_LINE = 16 * 1024 * 1024
# Of a server that is looked at, all in all.
_MAX_OUTPUT = 16 * 1024 * 1024
# Lines that are no messages: some programs print a few.
_MAX_NOISE = 1000
_STDERR = 2000
_MAX_TOOLS = 1000
_MAX_TOOL_BYTES = 1024 * 1024
_MAX_PAGES = 100
_MAX_DESCRIPTION = 4096
_MAX_SCHEMA = 64 * 1024
_MAX_WORDS = 200
# How long a program may take to leave after its input has ended.
_LEAVE = 1.0
# What takes longer is left to the next check of any server.
_REMOVE_SECONDS = 30.0
# Finds the program by the PATH inside a sandbox; its own path is the same inside and outside.
_SHELL = Path("/bin/sh").resolve()

Streams = tuple[
    "anyio.abc.ObjectReceiveStream[SessionMessage | Exception]", "anyio.abc.ObjectSendStream[SessionMessage]"
]


class McpConnectError(Exception):
    """A server does not answer as one. The message is for those who may see its configuration."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a look is made with.

    Attributes:
        folder: For a program's files; made, and removed afterwards.
        isolation: How a program is kept apart.
        resolve: The addresses of a host and port that may be called; raises an AgentRpcError or OSError.
        lasting: For as long as it is used, instead of a look: the folder stays, and what comes is bounded for a message
            only.
        on_start: Told the process of a program.
        ways_out: Serves what leads out of a fenced program, for as long as it is there. None: nothing does.
        users: Has a user for each program, where the isolation is that.
        limits: How a program is bounded.
        group: The folder of its cgroup; None: it has none.
    """

    folder: Path
    isolation: Isolation
    resolve: Callable[[str, int], Awaitable[list[str]]]
    lasting: bool = False
    on_start: Callable[[int], None] = lambda _: None
    ways_out: WaysOut | None = None
    users: AgentUsers | None = None
    limits: Limits = field(default_factory=Limits)
    group: Path | None = None


@dataclass(slots=True)
class Found:
    """What a server says of itself.

    Attributes:
        server_name: Its name; empty: it has not said.
        server_version: Its version.
        protocol_version: What was agreed on.
        tools: At most 1,000 and 1 MiB.
        cut: Whether there are more.
    """

    server_name: str = ""
    server_version: str = ""
    protocol_version: str = ""
    tools: list[mcp_server_pb2.McpTool] = field(default_factory=list)
    cut: bool = False


async def look(server: session_pb2.McpServer, ground: Ground, *, timeout: float) -> Found:
    """Connect to a server, list its tools, leave.

    Args:
        server: Its configuration with all secrets: stdio, sse or http.
        ground: With what.
        timeout: Seconds for all of it. A program's tree is ended after that.

    Raises:
        McpConnectError: It does not answer, or not as an MCP server.
    """
    stderr = bytearray()
    try:
        async with asyncio.timeout(timeout), transport_to(server, ground, timeout, stderr) as transport:
            return await _ask(transport, timeout)
    except TimeoutError:
        raise McpConnectError(_with_stderr(f"it did not answer within {timeout:g} s", stderr)) from None
    except McpConnectError as error:
        raise McpConnectError(_with_stderr(str(error), stderr)) from None
    except (Exception, BaseExceptionGroup) as error:
        raise McpConnectError(_with_stderr(words_of(error), stderr)) from error


def words_of(error: BaseException) -> str:
    """What went wrong, for those who may see the server's configuration."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, AgentRpcError):
        return error.message
    if isinstance(error, MCPError):
        ended = error.code == CONNECTION_CLOSED
        return "it ended before it had answered" if ended else f"it answered with an error: {error}"
    if isinstance(error, httpx2.HTTPStatusError):
        return f"it answered {error.response.status_code}"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _with_stderr(message: str, stderr: bytearray) -> str:
    said = stderr.decode(errors="replace").strip()
    return f"{message}; it said: {said}" if said else message


async def _ask(transport: AbstractAsyncContextManager[Streams], timeout: float) -> Found:
    async with Client(transport, read_timeout_seconds=timeout) as client:
        found = Found(protocol_version=client.protocol_version)
        if client.server_info is not None:
            found.server_name = client.server_info.name[:_MAX_WORDS]
            found.server_version = client.server_info.version[:_MAX_WORDS]
        if client.server_capabilities.tools is None:
            return found
        cursor, room = None, _MAX_TOOL_BYTES
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                one = _tool(tool.name, tool.description or "", tool.input_schema)
                room -= one.ByteSize()
                if room < 0 or len(found.tools) >= _MAX_TOOLS:
                    found.cut = True
                    return found
                found.tools.append(one)
            cursor = page.next_cursor
            if not cursor:
                return found
        found.cut = True
        return found


# ---- Programs ----


@contextlib.asynccontextmanager
async def _program(stdio: session_pb2.McpStdio, ground: Ground, stderr: bytearray) -> AsyncIterator[Streams]:
    paths = SessionPaths(ground.folder, ground.folder / "workspace")
    paths.create()
    paths.workspace.mkdir(mode=0o700, exist_ok=True)
    async with _with_user(paths, ground.users) as owned, _started(stdio, ground, owned, stderr) as streams:
        yield streams


@contextlib.asynccontextmanager
async def _with_user(paths: SessionPaths, users: AgentUsers | None) -> AsyncIterator[SessionPaths]:
    if users is None:
        yield paths
        return
    owned = await users.taken(paths)
    try:
        yield owned
    finally:
        await asyncio.shield(asyncio.to_thread(users.give_back, owned))


@contextlib.asynccontextmanager
async def _started(
    stdio: session_pb2.McpStdio, ground: Ground, paths: SessionPaths, stderr: bytearray
) -> AsyncIterator[Streams]:
    environment = {**plain_environment(paths, ground.isolation), **stdio.env}
    script = await asyncio.to_thread(
        write_launcher, paths, ground.isolation, _SHELL, environment, ground.limits, ground.group
    )
    handover = Handover(needed=ground.isolation.fenced and ground.ways_out is not None)
    with contextlib.closing(handover):
        process = await handover.spawn(
            str(script),
            *("-c", 'exec "$0" "$@"', stdio.command, *stdio.args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_MAX_LINE,
        )
        async with contextlib.AsyncExitStack() as stack:
            streams = await stack.enter_async_context(_talking(process, ground, paths, stderr))
            if (listeners := await handover.listeners()) is not None and ground.ways_out is not None:
                await stack.enter_async_context(ground.ways_out(listeners))
            yield streams


@contextlib.asynccontextmanager
async def _talking(
    process: asyncio.subprocess.Process, ground: Ground, paths: SessionPaths, stderr: bytearray
) -> AsyncIterator[Streams]:
    """Carries messages to a program and back, and ends it."""
    ground.on_start(process.pid)
    came, read = anyio.create_memory_object_stream[SessionMessage | Exception](16)
    write, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(process, came, lasting=ground.lasting), name="mcp-stdout"),
        asyncio.create_task(_write(process, to_send), name="mcp-stdin"),
        asyncio.create_task(_keep_tail(process, stderr), name="mcp-stderr"),
    ]
    try:
        yield read, write
    finally:
        await asyncio.shield(_end(process, tasks, paths.user))
        for stream in (came, read, write, to_send):
            stream.close()


async def _read(
    process: asyncio.subprocess.Process, came: "anyio.abc.ObjectSendStream[SessionMessage]", *, lasting: bool
) -> None:
    assert process.stdout is not None
    left, noise = _MAX_OUTPUT, 0
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with came:
            # ValueError: a line is longer than the limit.
            with contextlib.suppress(ValueError):
                while (line := await process.stdout.readline()) and left > 0 and noise < _MAX_NOISE:
                    left -= 0 if lasting else len(line)
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        noise += 1
                        continue
                    noise = 0 if lasting else noise
                    await came.send(SessionMessage(message))


async def _write(process: asyncio.subprocess.Process, to_send: "anyio.abc.ObjectReceiveStream[SessionMessage]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        async for item in to_send:
            process.stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await process.stdin.drain()
        process.stdin.close()


async def _keep_tail(process: asyncio.subprocess.Process, stderr: bytearray) -> None:
    assert process.stderr is not None
    while data := await process.stderr.read(65536):
        stderr += data
        del stderr[:-_STDERR]


async def _end(process: asyncio.subprocess.Process, tasks: list["asyncio.Task[None]"], user: AgentUser | None) -> None:
    """End the tree, whatever it does."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE):
                await process.wait()
    finally:
        await stop_tree(process.pid, user=user)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE):
                # The pipes close when all of them has been read; nobody writes to them any more.
                for output in (process.stdout, process.stderr):
                    while output is not None and await output.read(_MAX_LINE):
                        continue
                await process.wait()


# ---- Addresses ----


class _Stream(httpx2.AsyncByteStream):
    """A body with an end."""

    def __init__(self, stream: httpx2.AsyncByteStream, room: list[int]) -> None:
        self._stream = stream
        self._room = room

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._room[0] -= len(chunk)
            if self._room[0] < 0:
                raise McpConnectError(f"it sent more than {_MAX_OUTPUT} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Pinned(httpx2.AsyncBaseTransport):
    """Connects to addresses that were judged, and reads no more than is bearable."""

    def __init__(self, ground: Ground) -> None:
        self._resolve = ground.resolve
        self._inner = httpx2.AsyncHTTPTransport()
        self._lasting = ground.lasting
        self._room = [_MAX_OUTPUT]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
        addresses = await self._resolve(host, port)
        for left, address in enumerate(addresses, 1 - len(addresses)):
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                response = await self._inner.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if not left:
                    raise
                continue
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise McpConnectError("it compresses its answer, unasked")
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            if self._lasting and request.method == "GET":
                # Events, for as long as somebody listens: the reader bounds each of them.
                return response
            room = [_MAX_OUTPUT] if self._lasting else self._room
            return httpx2.Response(
                response.status_code,
                headers=response.headers,
                stream=_Stream(response.stream, room),
                extensions=response.extensions,
            )
        raise McpConnectError("its host has no address")

    async def aclose(self) -> None:
        await self._inner.aclose()


def _http_client(remote: session_pb2.McpRemote, ground: Ground, timeout: float) -> Callable[..., httpx2.AsyncClient]:
    def make(**_: object) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=_Pinned(ground),
            headers={**remote.headers, "accept-encoding": "identity"},
            timeout=httpx2.Timeout(timeout, read=None) if ground.lasting else timeout,
            trust_env=False,
        )

    return make


@contextlib.asynccontextmanager
async def transport_to(
    server: session_pb2.McpServer, ground: Ground, timeout: float, stderr: bytearray
) -> AsyncIterator[AbstractAsyncContextManager[Streams]]:
    """What carries messages to a server and back, to be opened. `stderr` gets the end of what a program says there.

    Raises:
        McpConnectError: It is of no kind that can be called.
    """
    match server.WhichOneof("transport"):
        case "stdio":
            try:
                yield _program(server.stdio, ground, stderr)
            finally:
                if not ground.lasting:
                    await asyncio.to_thread(remove_tree, ground.folder, seconds=_REMOVE_SECONDS)
        case "sse":
            make = _http_client(server.sse, ground, timeout)
            yield sse_client(server.sse.url, httpx_client_factory=make, sse_read_timeout=timeout)
        case "http":
            async with _http_client(server.http, ground, timeout)() as client:
                yield streamable_http_client(  # type: ignore[misc]
                    server.http.url, http_client=client, max_sse_event_size=_MAX_OUTPUT
                )
        case _:
            raise McpConnectError("only stdio, sse and http servers can be called")


def _tool(name: str, description: str, schema: dict[str, object]) -> mcp_server_pb2.McpTool:
    text = clean(json.dumps(schema, ensure_ascii=False))
    return mcp_server_pb2.McpTool(
        name=clean(name)[:_MAX_WORDS],
        description=clean(description)[:_MAX_DESCRIPTION],
        input_schema_json=text if len(text.encode()) <= _MAX_SCHEMA else "",
    )
