"""MCP servers of sessions, as the CLI in its sandbox sees them: addresses of this gateway, and no secret.

It is the server's side of the Streamable HTTP transport of MCP. An address is 256 random bits and good for as long as
the process that it was made for. What a session may ask is decided by whoever has opened the address.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from aiohttp import web

from agentrpc.gateway.intake import Intake, IntakeFull, TooLarge, TooSlow

__all__ = ["PREFIX", "McpEndpoint", "McpRoutes"]

PREFIX = "/mcp/"
_MAX_MESSAGE = 8 * 1024 * 1024
_ALIVE = 15.0
_INVALID = -32600


class McpEndpoint(Protocol):
    """What is behind an address."""

    async def ask(self, message: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a request, errors included."""
        ...

    async def tell(self, message: dict[str, Any], headers: Mapping[str, str]) -> None:
        """Pass on what wants no answer."""
        ...

    def listen(self) -> AsyncIterator[dict[str, Any]]:
        """What comes unasked."""
        ...


class McpRoutes:
    """All addresses.

    Args:
        intake: Where bodies wait.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._open: dict[str, McpEndpoint] = {}
        self._under_way: dict[str, set[asyncio.Task[Any]]] = {}

    def open(self, endpoint: McpEndpoint) -> str:
        """A new path."""
        key = secrets.token_urlsafe(32)
        self._open[key] = endpoint
        return PREFIX + key

    def close(self, path: str) -> None:
        """End a path, and what is under way there."""
        key = path.removeprefix(PREFIX)
        self._open.pop(key, None)
        for task in self._under_way.pop(key, ()):
            task.cancel()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request below the prefix."""
        key = request.path.removeprefix(PREFIX)
        endpoint = self._open.get(key)
        if endpoint is None:
            return web.Response(status=404)
        # Pages that a browser on this machine shows have no business here.
        if "origin" in request.headers:
            return web.Response(status=403)
        task = asyncio.current_task()
        assert task is not None
        under_way = self._under_way.setdefault(key, set())
        under_way.add(task)
        try:
            if request.method == "GET":
                return await _events(request, endpoint.listen())
            if request.method == "DELETE":
                return web.Response(status=405)
            return await self._post(request, key, endpoint)
        finally:
            under_way.discard(task)

    async def _post(self, request: web.BaseRequest, key: str, endpoint: McpEndpoint) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        if request.content_length is not None and request.content_length > _MAX_MESSAGE:
            return web.Response(status=413)
        try:
            async with self._intake.body(request, key) as body:
                if len(body) > _MAX_MESSAGE:
                    return web.Response(status=413)
                message = msgspec.json.decode(body)
        except TooLarge:
            return web.Response(status=413)
        except (TooSlow, IntakeFull):
            return web.Response(status=503)
        except (msgspec.DecodeError, RecursionError):
            return _error(None, "not JSON")
        if not isinstance(message, dict):
            return _error(None, "one message at a time")
        given = message.get("id")
        if "id" in message and (isinstance(given, bool) or not isinstance(given, int | str)):
            return _error(None, "an id must be a number or a text")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower().startswith("mcp-") and name.lower() != "mcp-session-id"
        }
        try:
            if "id" not in message or "method" not in message:
                await endpoint.tell(message, headers)
                return web.Response(status=202)
            return await _events(request, _one(endpoint.ask(message, headers)))
        except ValueError:
            return _error(given, "not a message of JSON-RPC")


async def _one(answer: Any) -> AsyncIterator[dict[str, Any]]:  # noqa: ANN401 - a coroutine
    yield await answer


async def _events(request: web.BaseRequest, messages: AsyncIterator[dict[str, Any]]) -> web.StreamResponse:
    """Messages as events. The beginning is sent at once: a call may take longer than the CLI waits for that."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    next_message: asyncio.Future[dict[str, Any]] | None = None
    try:
        with suppress(ConnectionResetError, StopAsyncIteration):
            while True:
                next_message = next_message or asyncio.ensure_future(anext(messages))
                done, _ = await asyncio.wait({next_message}, timeout=_ALIVE)
                if not done:
                    await response.write(b": alive\n\n")
                    continue
                message, next_message = next_message.result(), None
                await response.write(b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n")
        with suppress(ConnectionResetError):
            await response.write_eof()
    finally:
        if next_message is not None:
            next_message.cancel()
            await asyncio.gather(next_message, return_exceptions=True)
    return response


def _error(given: object, message: str) -> web.Response:
    error = {"jsonrpc": "2.0", "id": given, "error": {"code": _INVALID, "message": message}}
    return web.json_response(error, status=400)
