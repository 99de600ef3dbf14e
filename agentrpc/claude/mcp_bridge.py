"""A session's way to an MCP server that is not in its sandbox: in the worker, with the server's secrets.

The CLI speaks to it over HTTP, through the worker's gateway, whatever the server itself speaks. Remote servers are
called from here; programs run in a sandbox of their own, in a folder that no agent writes to. What a server sends
without being asked is kept until somebody listens.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp_types import jsonrpc_message_adapter

from agentrpc.claude.mcp_client import Ground, McpConnectError, Streams, transport_to, words_of
from agentrpc.v1 import session_pb2

__all__ = ["McpBridge", "McpGone"]

_START_SECONDS = 60.0
_MAX_WAITING = 200
# What nobody listens to yet: the newest of it.
_MAX_KEPT = 1000
_MAX_KEPT_BYTES = 4 * 1024 * 1024
_INITIALIZE = "initialize"
_INITIALIZED = "notifications/initialized"


class McpGone(Exception):
    """The server ended or cannot be reached. The message is for those who may see its configuration."""


class McpBridge:
    """One server of one session. It is connected when the CLI says its first word, and again when the CLI begins anew.

    One that has ended is connected again at the next word. It is greeted then as the CLI has greeted the last one: the
    CLI does not know that it is another.

    Args:
        server: Its configuration with all secrets: stdio, sse or http.
        ground: With what.
        report: Told why it ended, if it was not closed.
    """

    def __init__(self, server: session_pb2.McpServer, ground: Ground, report: Callable[[str], None]) -> None:
        self._server = server
        self._ground = replace(ground, lasting=True, on_start=self._note_process)
        self._report = report
        self._pid: int | None = None
        self._write: Any = None
        self._running: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._begun = False
        self._last_id = 0
        # By the ids that the server sees: more than one may ask with the same id.
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids: dict[Any, int] = {}
        self._kept: deque[tuple[int, dict[str, Any]]] = deque()
        self._kept_bytes = 0
        self._hello: dict[str, Any] | None = None
        self._hello_headers: Mapping[str, str] = {}
        self._came = asyncio.Event()
        self._listening: object = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The first process of its program; None: there is none."""
        return self._pid

    async def ask(self, message: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        """Send a request and wait for its answer, which has the same id.

        Raises:
            McpGone: There is no answer, and will be none.
            ValueError: It is no message of JSON-RPC.
        """
        await self._open(message, headers)
        return await self._ask(message, headers)

    async def _ask(self, message: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        if len(self._waiting) >= _MAX_WAITING:
            raise McpGone("too many requests wait for their answers")
        self._last_id += 1
        number, given = self._last_id, message["id"]
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._ids[given] = number
        try:
            await self._send({**message, "id": number}, headers)
            return {**await answer, "id": given}
        finally:
            self._waiting.pop(number, None)
            if self._ids.get(given) == number:
                del self._ids[given]

    async def tell(self, message: dict[str, Any], headers: Mapping[str, str]) -> None:
        """Send a notification, or the answer to what the server has asked. Raises as `ask` does."""
        await self._open(message, headers)
        params = message.get("params")
        if message.get("method") == "notifications/cancelled" and isinstance(params, dict):
            number = self._ids.get(params.get("requestId"))
            if number is None:
                return
            message = {**message, "params": {**params, "requestId": number}}
        await self._send(message, headers)

    async def listen(self) -> AsyncIterator[dict[str, Any]]:
        """What the server sends unasked. Who listens last gets it; others hear no more."""
        me = self._listening = object()
        self._came.set()
        while self._listening is me and not self._closed:
            while self._kept and self._listening is me:
                size, message = self._kept.popleft()
                self._kept_bytes -= size
                yield message
            self._came.clear()
            await self._came.wait()

    async def close(self) -> None:
        """End the connection and the program."""
        self._closed = True
        self._came.set()
        await self._stop()

    # ---- The connection ----

    async def _open(self, message: dict[str, Any], headers: Mapping[str, str]) -> None:
        async with self._opening:
            if self._closed:
                raise McpGone("the session's process has ended")
            begins = message.get("method") == _INITIALIZE
            if self._running is not None and begins and self._begun:
                await self._stop()
            if self._running is None:
                ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._running = asyncio.create_task(self._run(ready), name=f"mcp-{self._server.name}")
                await self._in_time(asyncio.shield(ready))
            if not begins and not self._begun and self._hello is not None:
                await self._in_time(self._greet(self._hello))
            if begins:
                self._hello, self._hello_headers = message, headers
            self._begun = self._begun or begins

    async def _greet(self, hello: dict[str, Any]) -> None:
        await self._ask(hello, self._hello_headers)
        await self._send({"jsonrpc": "2.0", "method": _INITIALIZED}, self._hello_headers)
        self._begun = True

    async def _in_time(self, step: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await step
        except TimeoutError:
            await self._stop()
            raise McpGone(f"it did not answer within {_START_SECONDS:g} s") from None

    async def _run(self, ready: "asyncio.Future[None]") -> None:
        stderr = bytearray()
        said = "it has closed the connection"
        try:
            async with (
                transport_to(self._server, self._ground, _START_SECONDS, stderr) as transport,
                transport as streams,
            ):
                await self._carry(streams, ready)
        except McpConnectError as error:
            said = str(error)
        except asyncio.CancelledError:
            said = "it was stopped"
            raise
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever others' servers make of it
            said = words_of(error)
        finally:
            self._ended(said if not stderr else f"{said}; it said: {stderr.decode(errors='replace').strip()}", ready)

    async def _carry(self, streams: Streams, ready: "asyncio.Future[None]") -> None:
        read, self._write = streams
        ready.set_result(None)
        async for item in read:
            if isinstance(item, Exception):
                continue
            message: dict[str, Any] = item.message.model_dump(by_alias=True, mode="json", exclude_unset=True)
            if "method" not in message:
                waiting = self._waiting.get(message.get("id", 0))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
                continue
            self._keep(message)

    def _keep(self, message: dict[str, Any]) -> None:
        size = len(json.dumps(message))
        self._kept.append((size, message))
        self._kept_bytes += size
        while len(self._kept) > _MAX_KEPT or self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= self._kept.popleft()[0]
        self._came.set()

    def _ended(self, why: str, ready: "asyncio.Future[None]") -> None:
        self._running = self._write = self._pid = None
        self._begun = False
        gone = McpGone(why)
        futures: list[asyncio.Future[Any]] = [*self._waiting.values(), ready]
        for waiting in futures:
            if not waiting.done():
                waiting.set_exception(gone)
                # Nobody may be there any more to ask for it.
                waiting.exception()
        if not self._closed:
            self._report(why)

    async def _send(self, message: dict[str, Any], headers: Mapping[str, str]) -> None:
        parsed = jsonrpc_message_adapter.validate_python(message, by_name=False)
        if self._write is None:
            raise McpGone("it has ended")
        try:
            await self._write.send(SessionMessage(parsed, ClientMessageMetadata(headers=dict(headers))))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise McpGone("it has ended") from None

    async def _stop(self) -> None:
        running = self._running
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})

    def _note_process(self, pid: int) -> None:
        self._pid = pid
