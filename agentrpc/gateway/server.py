"""A pass-through proxy on loopback between the CLI and the provider.

Keeps promises 3 and 6: an agent holds a run token that is good for this worker's gateway only and for as long as the
worker's lease; the provider key is added here and is in no agent environment, file, log or event. Bytes pass through as
they come; usage is read from them on the way.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import Counter, Histogram
from yarl import URL

__all__ = ["ModelGateway"]

log = structlog.get_logger()

TOKENS = Counter(
    "agentrpc_gateway_tokens_total", "Tokens by model and kind, as the provider counts.", ("model", "kind")
)
REQUESTS = Counter("agentrpc_gateway_requests_total", "Requests of agents by status.", ("status",))
FIRST_BYTE = Histogram("agentrpc_gateway_first_byte_seconds", "From an agent's request to the first byte back.")

_ROUTES = {("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"), ("GET", "/v1/models")}
_MAX_BODY = 256 * 1024 * 1024

# What never passes: who the agent is to us, and what belongs to one connection (RFC 9110, section 7.6.1).
_DROP_UP = {
    "authorization", "x-api-key", "cookie", "host", "connection", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "accept-encoding", "expect",
}  # fmt: skip
_DROP_DOWN = {
    "connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "set-cookie", "server",
    "date", "trailer", "upgrade",
}  # fmt: skip
_KINDS = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_creation_input_tokens": "cache_write",
    "cache_read_input_tokens": "cache_read",
}


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a run token stands for."""

    session_id: UUID
    may_call: Callable[[], bool]


class ModelGateway:
    """The proxy.

    Args:
        upstream_url: A Messages-compatible endpoint.
        api_key: The provider key; None where the endpoint wants none.
        auth_style: How the key is sent.
    """

    def __init__(
        self, *, upstream_url: str, api_key: str | None, auth_style: Literal["x-api-key", "bearer"] = "x-api-key"
    ) -> None:
        self._upstream = URL(upstream_url.rstrip("/"))
        self._key = api_key
        self._auth = {"x-api-key": api_key or "none"}
        if auth_style == "bearer":
            self._auth = {"authorization": f"Bearer {api_key or 'none'}"}
        self._grants: dict[str, _Grant] = {}
        self._under_way: dict[str, set[asyncio.Task[Any]]] = {}
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve; `url` says where."""
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=256 * 1024,
        )
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End it, with all calls under way."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    def issue(self, session_id: UUID, may_call: Callable[[], bool]) -> str:
        """A new run token.

        Args:
            session_id: The session that it is for.
            may_call: False once the worker's lease is over or the session is not its any more.
        """
        token = f"run-{secrets.token_urlsafe(32)}"
        self._grants[token] = _Grant(session_id, may_call)
        return token

    def revoke(self, token: str) -> None:
        """End a token; calls under way with it are aborted."""
        self._grants.pop(token, None)
        for task in self._under_way.pop(token, ()):
            task.cancel()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method in {"HEAD", "GET"} and request.path == "/":
            return web.Response()
        response = await self._judge(request)
        REQUESTS.labels(str(response.status)).inc()
        return response

    async def _judge(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        # A token is 256 random bits: a look-up by hash tells nothing useful by its time.
        grant = self._grants.get(token)
        if grant is None:
            return _refusal(401, "authentication_error", "the run token is missing, wrong or no longer good")
        if (request.method, request.path) not in _ROUTES:
            return _refusal(404, "not_found_error", "the gateway passes on Messages requests only")
        if not grant.may_call():
            return _refusal(403, "permission_error", "this worker does not hold the session any more")
        task = asyncio.current_task()
        assert task is not None
        under_way = self._under_way.setdefault(token, set())
        under_way.add(task)
        try:
            return await self._forward(request)
        finally:
            under_way.discard(task)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        assert self._client is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROP_UP}
        headers |= {**self._auth, "accept-encoding": "identity"}
        target = self._upstream.with_path(self._upstream.path.rstrip("/") + request.path).with_query(request.query)
        began = asyncio.get_running_loop().time()
        started: web.StreamResponse | None = None
        try:
            async with self._client.request(
                request.method, target, headers=headers, data=await request.read(), allow_redirects=False
            ) as upstream:
                FIRST_BYTE.observe(asyncio.get_running_loop().time() - began)
                kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _DROP_DOWN}
                if upstream.status != 200:
                    return web.Response(status=upstream.status, headers=kept, body=self._scrub(await upstream.read()))
                meter = _Meter(streamed="event-stream" in upstream.content_type)
                response = web.StreamResponse(status=200, headers=kept)
                await response.prepare(request)
                started = response
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                    meter.feed(chunk)
                meter.close()
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("provider_unreachable", error=type(error).__name__)
            if started is not None:
                # The answer has begun: cut it, so that the CLI sees a broken stream and not an end.
                if request.transport is not None:
                    request.transport.abort()
                return started
            return _refusal(529, "overloaded_error", "the model's endpoint cannot be reached: trying again may help")
        except ConnectionResetError:
            assert started is not None
            return started

    def _scrub(self, body: bytes) -> bytes:
        return body.replace(self._key.encode(), b"[key]") if self._key else body


class _Meter:
    """Reads usage from the bytes that pass: from two kinds of event of a stream, or from a whole JSON answer."""

    def __init__(self, *, streamed: bool) -> None:
        self._streamed = streamed
        self._rest = b""
        self._model = "unknown"

    def feed(self, chunk: bytes) -> None:
        if not self._streamed:
            self._rest += chunk
            return
        end = chunk.find(b"\n") + 1
        if not end:
            self._rest += chunk
            return
        self._line(self._rest + chunk[:end])
        start = chunk.rfind(b"\n") + 1
        self._rest = chunk[start:]
        # Nothing but pieces of text, as nearly always, is searched once and not taken apart.
        while (found := chunk.find(b"message_", end, start)) >= 0:
            begin, end = chunk.rfind(b"\n", 0, found) + 1, chunk.find(b"\n", found) + 1
            self._line(chunk[begin:end])

    def _line(self, line: bytes) -> None:
        if line.startswith((b'data: {"type":"message_', b'data: {"type": "message_')) and b'"usage"' in line:
            self._read(line[6:])

    def close(self) -> None:
        if not self._streamed:
            self._read(self._rest)

    def _read(self, text: bytes) -> None:
        with suppress(ValueError, AttributeError):
            data = json.loads(text)
            message = data.get("message", data)
            self._model = str(message.get("model") or self._model)[:100]
            for key, value in (message.get("usage") or {}).items():
                # The first event counts one output token that the last one counts again.
                if key in _KINDS and isinstance(value, int) and not (data["type"] == "message_start" and value == 1):
                    TOKENS.labels(self._model, _KINDS[key]).inc(value)


def _refusal(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)
