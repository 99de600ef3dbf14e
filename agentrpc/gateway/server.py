"""What the CLI finds in place of the provider, and in place of MCP servers.

Keeps promises 3 and 6: each process has a door of its own, which others cannot reach where it is fenced in. Its run
token is good at that door only, while a run of its session is under way and for as long as the worker's lease; the
provider key is added here and is in no agent environment, file, log or event. What is asked is judged (`requests.py`)
and counted against the bounds of the run, whoever in the sandbox asks; answers pass as they come, and usage is read
from them on the way.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, Literal

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import Counter, Histogram
from yarl import URL

from agentrpc.domain.model_calls import Refusal, RunAllowance
from agentrpc.gateway.intake import MAX_BODY, Intake, IntakeFull, TooLarge, TooSlow
from agentrpc.gateway.mcp import PREFIX, McpEndpoint, McpRoutes
from agentrpc.gateway.meter import Meter
from agentrpc.gateway.requests import Asked, Forbidden, check_betas, read_body

__all__ = ["Door", "ModelGateway"]

log = structlog.get_logger()

REQUESTS = Counter("agentrpc_gateway_requests_total", "Requests of agents by status.", ("status",))
FIRST_BYTE = Histogram("agentrpc_gateway_first_byte_seconds", "From an agent's request to the first byte back.")

_MESSAGES = "/v1/messages"
_COUNT = "/v1/messages/count_tokens"
# Of one door. The CLI has a few for each subagent.
_MAX_CONNECTIONS = 512
_ROUTES = {("POST", _MESSAGES), ("POST", _COUNT), ("GET", "/v1/models")}

# What never passes: who the agent is to us, and what belongs to one connection (RFC 9110, section 7.6.1).
_DROP_UP = {
    "authorization", "x-api-key", "cookie", "host", "connection", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "accept-encoding", "expect",
}  # fmt: skip
_DROP_DOWN = {
    "connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "set-cookie", "server",
    "date", "trailer", "upgrade",
}  # fmt: skip


class ModelGateway:
    """The way to the provider.

    Args:
        upstream_url: A Messages-compatible endpoint.
        api_key: The provider key; None where the endpoint wants none.
        auth_style: How the key is sent.
        betas: What agents may ask for besides what the CLI does, as names without a date.
        body_memory: Bytes of requests that may be in memory at once, of all agents.
    """

    def __init__(
        self,
        *,
        upstream_url: str,
        api_key: str | None,
        auth_style: Literal["x-api-key", "bearer"] = "x-api-key",
        betas: Sequence[str] = (),
        body_memory: int = 8 * MAX_BODY,
    ) -> None:
        self._upstream = URL(upstream_url.rstrip("/"))
        self._key = api_key
        self._auth = {"x-api-key": api_key or "none"}
        if auth_style == "bearer":
            self._auth = {"authorization": f"Bearer {api_key or 'none'}"}
        self._betas = tuple(betas)
        self._intake = Intake(body_memory)
        self._client: aiohttp.ClientSession | None = None
        self._doors: set[Door] = set()

    async def start(self) -> None:
        """Be ready for doors."""
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=256 * 1024,
        )

    async def stop(self) -> None:
        """End it, with all calls under way."""
        for door in list(self._doors):
            await door.close()
        if self._client is not None:
            await self._client.close()

    def open(self, may_call: Callable[[], bool], under_way: Callable[[], RunAllowance | None]) -> "Door":
        """A new door.

        Args:
            may_call: False once the worker's lease is over or the session is not its any more.
            under_way: What the run under way may ask; None while there is none.
        """
        door = Door(self, self._intake, may_call, under_way, self._doors.discard)
        self._doors.add(door)
        return door

    async def ask(
        self, request: web.BaseRequest, token: str, allowance: RunAllowance, under_way: Callable[[], bool]
    ) -> web.StreamResponse:
        """Judge a request that came with a good token, and pass it on. `under_way`: whether its run still is."""
        try:
            check_betas(request.headers.getall("anthropic-beta", ()), allowance, self._betas)
            if request.method == "GET":
                return await self._forward(request, None, allowance)
            async with self._intake.body(request, token) as body:
                asked = read_body(body, allowance)
                del body
                if not under_way():
                    return _refusal(401, "authentication_error", "the run is over")
                if request.path == _COUNT:
                    return await self._forward(request, asked, allowance)
                return await self._metered(request, asked, allowance)
        except Forbidden as error:
            return _refusal(error.status, error.kind, str(error))
        except TooLarge:
            return _refusal(413, "request_too_large", f"a request may have at most {MAX_BODY} bytes")
        except TooSlow:
            return _refusal(408, "timeout_error", "the request did not come in time")
        except IntakeFull:
            return _refusal(529, "overloaded_error", "too many requests are under way: trying again may help")

    async def _metered(self, request: web.BaseRequest, asked: Asked, allowance: RunAllowance) -> web.StreamResponse:
        """Pass a request on under the bounds of its run."""
        try:
            amount = allowance.reserve(asked.model, len(asked.body), asked.max_tokens)
        except Refusal as error:
            wait = error.reason == "busy"
            headers = {"retry-after": "2"} if wait else {"x-should-retry": "false"}
            return _refusal(429, "rate_limit_error" if wait else "billing_error", str(error), headers)
        meter = Meter(streamed=True, count_pieces=allowance.max_cost is not None)
        answered, taken = True, []
        try:
            for name in asked.server_tools:
                if not allowance.take_server_tool(name):
                    answered = False
                    raise Forbidden(f"tools: {name} may be used once for each call of its tool that was allowed")
                taken.append(name)
            response = await self._forward(request, asked, allowance, meter)
            answered = response.status == 200
            return response
        finally:
            meter.close()
            # Who has hung up before the provider has said so much has used it all the same.
            tokens = {"input_tokens": len(asked.body) // 4, **meter.tokens}
            allowance.settle(amount, asked.model, tokens, answered=answered)
            if not answered:
                # The CLI tries again.
                for name in taken:
                    allowance.give_back_server_tool(name)

    async def _forward(
        self, request: web.BaseRequest, asked: Asked | None, allowance: RunAllowance, meter: Meter | None = None
    ) -> web.StreamResponse:
        assert self._client is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROP_UP}
        headers |= {**self._auth, "accept-encoding": "identity"}
        target = self._upstream.with_path(self._upstream.path.rstrip("/") + request.path).with_query(request.query)
        began = asyncio.get_running_loop().time()
        started: web.StreamResponse | None = None
        data = asked.body if asked is not None else None
        try:
            async with self._client.request(
                request.method, target, headers=headers, data=data, allow_redirects=False
            ) as upstream:
                FIRST_BYTE.observe(asyncio.get_running_loop().time() - began)
                kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _DROP_DOWN}
                if upstream.status != 200:
                    return web.Response(status=upstream.status, headers=kept, body=self._scrub(await upstream.read()))
                response = web.StreamResponse(status=200, headers=kept)
                await response.prepare(request)
                started = response
                if meter is not None:
                    meter.streamed = "event-stream" in upstream.content_type
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                    if meter is None:
                        continue
                    meter.feed(chunk)
                    if meter.pieces and asked is not None and allowance.too_dear(asked.model, meter.pieces):
                        allowance.exceeded = allowance.exceeded or "cost"
                        log.warning("cost_limit_cuts_answer")
                        return _cut(request, response)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("provider_unreachable", error=type(error).__name__)
            if started is not None:
                return _cut(request, started)
            return _refusal(529, "overloaded_error", "the model's endpoint cannot be reached: trying again may help")
        except ConnectionResetError:
            assert started is not None
            return started

    def _scrub(self, body: bytes) -> bytes:
        return body.replace(self._key.encode(), b"[key]") if self._key else body


class _Server(web.Server):
    """Takes so many connections at once, and drops the others: descriptors are the whole worker's."""

    def __call__(self) -> Any:  # noqa: ANN401 - a protocol of asyncio
        return super().__call__() if len(self.connections) < _MAX_CONNECTIONS else _Dropped()


class _Dropped(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Door:
    """Where one process finds the gateway and MCP servers. Made by `ModelGateway.open`.

    Attributes:
        token: The run token.
    """

    def __init__(
        self,
        gateway: ModelGateway,
        intake: Intake,
        may_call: Callable[[], bool],
        under_way: Callable[[], RunAllowance | None],
        on_close: Callable[["Door"], None],
    ) -> None:
        self.token = f"run-{secrets.token_urlsafe(32)}"
        self._gateway = gateway
        self._mcp = McpRoutes(intake)
        self._may_call = may_call
        self._allowance = under_way
        self._on_close = on_close
        self._revoked = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self._runner: web.ServerRunner | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Accept what comes there until `close`, which closes it too."""
        server = _Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    def open_mcp(self, endpoint: McpEndpoint) -> str:
        """A new path, at which the CLI finds an MCP server."""
        return self._mcp.open(endpoint)

    def close_mcp(self, path: str) -> None:
        """End a path, and what is under way there."""
        self._mcp.close(path)

    def cut(self) -> None:
        """Abort the calls under way with the token."""
        for task in self._under_way:
            task.cancel()

    def revoke(self) -> None:
        """End the token; calls under way with it are aborted."""
        self._revoked = True
        self.cut()

    async def close(self) -> None:
        """End it, with all that is under way."""
        self.revoke()
        self._on_close(self)
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method in {"HEAD", "GET"} and request.path == "/":
            return web.Response()
        if request.path.startswith(PREFIX):
            return await self._mcp.handle(request)
        response = await self._judge(request)
        REQUESTS.labels(str(response.status)).inc()
        return response

    async def _judge(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        good = not self._revoked and secrets.compare_digest(given.encode(errors="replace"), self.token.encode())
        allowance = self._allowance() if good else None
        if allowance is None:
            return _refusal(401, "authentication_error", "the run token is missing, wrong, or its run is over")
        if (request.method, request.path) not in _ROUTES:
            return _refusal(404, "not_found_error", "the gateway passes on Messages requests only")
        if not self._may_call():
            return _refusal(403, "permission_error", "this worker does not hold the session any more")
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            return await self._gateway.ask(request, self.token, allowance, lambda: self._allowance() is allowance)
        finally:
            self._under_way.discard(task)


def _cut(request: web.BaseRequest, started: web.StreamResponse) -> web.StreamResponse:
    """Break an answer off that has begun, so that the CLI sees a broken stream and not an end."""
    if request.transport is not None:
        request.transport.abort()
    return started


def _refusal(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return web.json_response(error, status=status, headers=headers)
