"""The gRPC server: every handler of the contract behind one wrapper, with health and reflection beside it.

The wrapper takes raw bytes and decodes them itself, so that a request that is not valid UTF-8 or not the message gets a
clear error; it knows who calls, keeps the limits, measures, and turns every error into a status. Whatever is not in the
error tree reaches callers as INTERNAL with an id. Handlers are registered as one dictionary: the generated
`add_*_to_server` would register others that win over them.

All methods are registered as if their requests were streams, see `bodies`.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from agentrpc import __version__, clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError, ResourceExhausted, Unauthenticated, Unavailable
from agentrpc.rpc.bodies import Bodies, peer_address
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.methods import Method, Service
from agentrpc.rpc.status import internal_error, to_status
from agentrpc.rpc.stream import StalledError
from agentrpc.services.accounts import Accounts
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Lane
from agentrpc.telemetry import OPEN_STREAMS, RPC_LATENCY
from agentrpc.turns import Turns

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["EdgeServer"]

log = structlog.get_logger()

_PUBLIC = {"/agentrpc.v1.AuthService/Login", "/agentrpc.v1.AuthService/RefreshToken"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HEALTH_INTERVAL = 2.0
_UNHEALTHY_AFTER = 5.0
_LAST_WORDS = 5.0
# How long nobody may have called before a stopping server closes its door: gRPC drops the calls that come in that very
# moment without a word.
_QUIET = 0.25
_LISTING = ("List", "Search")

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.so_reuseport", 0),
    # A prompt of 10 MB is to get TOO_LARGE and not a bare status.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    # What a client may send that nobody reads stays at 64 KiB, however fast it has shown to be.
    ("grpc.http2.bdp_probe", 0),
    # Clients that ping every 30 s are not sent away.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A burst of streams is queued rather than shed at random.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 30_000),
)


@dataclass(slots=True)
class Call:
    """One RPC as its handler sees it."""

    principal: Principal | None
    peer: str
    request_id: str
    metadata: list[tuple[str, str]]


class _Place:
    """One stream's place among those of its caller."""

    def __init__(self, streams: "Counter[UUID]", limit: int, path: str) -> None:
        self._streams = streams
        self._limit = limit
        self._path = path
        self._user: UUID | None = None

    def enter(self, principal: Principal) -> None:
        """Take it. Raises TOO_MANY_STREAMS."""
        count = self._streams[principal.user_id]
        if count >= self._limit:
            raise ResourceExhausted(
                f"you have {count} streams open: close some, or watch with fewer",
                reason="TOO_MANY_STREAMS",
                metadata={"limit": str(self._limit)},
            )
        self._user = principal.user_id
        self._streams[self._user] += 1
        OPEN_STREAMS.labels(self._path).inc()

    def leave(self) -> None:
        """Give it back, if it was taken."""
        if self._user is not None:
            OPEN_STREAMS.labels(self._path).dec()
            self._streams[self._user] -= 1
            if not self._streams[self._user]:
                del self._streams[self._user]


class EdgeServer:
    """The server.

    Args:
        settings: Where to listen, TLS, limits.
        database: For the health check.
        bus: For rate limits.
        accounts: Who calls.
        hub: What streams need.
        services: What is served.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        bus: Bus,
        accounts: Accounts,
        hub: Hub,
        services: Sequence[Service],
    ) -> None:
        self._settings = settings
        self._database = database
        self._bus = bus
        self._accounts = accounts
        self._hub = hub
        self._bodies = Bodies(settings)
        # Lists and searches walk what no index bounds: the store is to have room for others beside them.
        self._lists = Turns(4, per_key=2, waiting=100)
        self._streams: Counter[UUID] = Counter()
        self._calls: set[asyncio.Task[Any]] = set()
        self._called_at = 0.0
        self._draining = False
        self._health = HealthServicer()
        self._checking: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(options=_OPTIONS)
        names = []
        for service in services:
            name = service.descriptor.full_name
            handlers = {
                method.name: self._handler(name, method, service.methods[method.name])
                for method in service.descriptor.methods
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            names.append(name)
        self._names = [*names, ""]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self) -> int:
        """Listen; the port."""
        await self._set_health(serving=True)
        if self._settings.tls_cert is not None and self._settings.tls_key is not None:
            ca = self._settings.tls_client_ca
            credentials = grpc.ssl_server_credentials(
                [(self._settings.tls_key.read_bytes(), self._settings.tls_cert.read_bytes())],
                root_certificates=ca.read_bytes() if ca is not None else None,
                require_client_auth=ca is not None,
            )
            port = self._server.add_secure_port(self._settings.listen, credentials)
        else:
            port = self._server.add_insecure_port(self._settings.listen)
        await self._server.start()
        self._hub.start()
        self._checking = asyncio.create_task(self._check_health(), name="health")
        log.info("serving", port=port, tls=self._settings.tls_cert is not None)
        return port

    async def stop(self, grace: float) -> None:
        """Leave no client guessing: not healthy, new calls are refused, streams end with their resume point, then stop.

        Args:
            grace: Seconds for what is under way. What takes longer is cut off, and told so.
        """
        self._draining = True
        if self._checking is not None:
            await end_tasks([self._checking])
        await self._set_health(serving=False)
        self._hub.drain()
        now = time.monotonic()
        # Whoever has called by now, though the call is still on its way to its handler, is told too.
        self._called_at = now
        deadline = now + max(grace, _QUIET)
        while (self._calls or now - self._called_at < _QUIET) and now < deadline:
            await asyncio.sleep(0.02)
            now = time.monotonic()
        if calls := list(self._calls):
            # They get a status: a caller that is cut off without one does not know what has become of its call.
            for call in calls:
                call.cancel()
            await asyncio.wait(calls, timeout=_LAST_WORDS)
        await self._server.stop(0.2)
        await self._hub.close()

    async def _check_health(self) -> None:
        answered = time.monotonic()
        while True:
            try:
                async with self._database.connection(Lane.PULSE) as connection:
                    await connection.fetchval("SELECT 1")
                answered = time.monotonic()
            except AgentRpcError:
                pass
            except Exception:
                log.exception("health_check_failed")
            await self._set_health(serving=time.monotonic() - answered < _UNHEALTHY_AFTER)
            await asyncio.sleep(_HEALTH_INTERVAL)

    async def _set_health(self, *, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, state)

    # ---- One RPC ----

    def _handler(
        self,
        service: str,
        method: Any,  # noqa: ANN401 - a descriptor
        target: Method,
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = f"/{service}/{method.name}"
        request_class = GetMessageClass(method.input_type)
        if method.server_streaming:

            async def stream(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
                await self._stream(path, request_class, target, context)

            return grpc.stream_stream_rpc_method_handler(stream)
        if method.client_streaming:

            async def upload(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
                return await self._upload(path, request_class, target, context)

            return grpc.stream_unary_rpc_method_handler(upload)
        listing = method.name.startswith(_LISTING)

        async def unary(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            return await self._unary(path, request_class, target, context, listing=listing)

        return grpc.stream_unary_rpc_method_handler(unary)

    async def _unary(
        self,
        path: str,
        request_class: type[Message],
        target: Callable[..., Awaitable[Message]],
        context: "grpc.aio.ServicerContext[bytes, bytes]",
        *,
        listing: bool,
    ) -> bytes:
        async def work(call: Call) -> bytes:
            if call.principal is not None:
                await self._limit(call.principal)
            request = await self._bodies.one(_user(call), call.peer, request_class, context)
            if listing and call.principal is not None:
                async with self._lists.take(call.principal.user_id):
                    response = await target(call, request)
            else:
                response = await target(call, request)
            await context.send_initial_metadata(call.metadata)
            return response.SerializeToString()

        result = await self._guard(path, context, work)
        assert result is not None
        return result

    async def _stream(
        self,
        path: str,
        request_class: type[Message],
        target: Callable[..., Awaitable[None]],
        context: "grpc.aio.ServicerContext[bytes, bytes]",
    ) -> None:
        async def work(call: Call) -> None:
            assert call.principal is not None
            await self._limit(call.principal)
            request = await self._bodies.one(_user(call), call.peer, request_class, context)
            held.enter(call.principal)
            opened = False

            async def send(response: bytes) -> None:
                nonlocal opened
                if not opened:
                    opened = True
                    await context.send_initial_metadata(call.metadata)
                await context.write(response)

            await target(call, request, send)

        # Not left before its status has gone: what a stuck stream has written takes memory for so long.
        with self._held(path) as held:
            await self._guard(path, context, work)

    async def _upload(
        self,
        path: str,
        request_class: type[Message],
        target: Callable[..., Awaitable[Message]],
        context: "grpc.aio.ServicerContext[bytes, bytes]",
    ) -> bytes:
        """A stream of requests, of which one is read when the one before is dealt with: the sender waits meanwhile."""

        async def work(call: Call) -> bytes:
            assert call.principal is not None
            await self._limit(call.principal)
            held.enter(call.principal)
            response = await target(call, self._bodies.each(request_class, context))
            await context.send_initial_metadata(call.metadata)
            return response.SerializeToString()

        with self._held(path) as held:
            result = await self._guard(path, context, work)
        assert result is not None
        return result

    @contextmanager
    def _held(self, path: str) -> "Iterator[_Place]":
        """A place among the streams, for as long as the block lasts; taken by `enter`."""
        place = _Place(self._streams, self._settings.max_streams_per_user, path)
        try:
            yield place
        finally:
            place.leave()

    async def _guard(
        self,
        path: str,
        context: "grpc.aio.ServicerContext[bytes, bytes]",
        work: Callable[[Call], Awaitable[bytes | None]],
    ) -> bytes | None:
        """Run one RPC: who, how long, and every error as a status."""
        began = self._called_at = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        # Not before its status has gone.
        task.add_done_callback(self._calls.discard)
        given = dict(context.invocation_metadata() or ())
        wanted = given.get("x-request-id", "")
        request_id = wanted if isinstance(wanted, str) and _REQUEST_ID.fullmatch(wanted) else str(clock.uuid7())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request_id, method=path)
        metadata = [("x-request-id", request_id), ("agentrpc-version", __version__)]
        code = "OK"
        try:
            if self._draining:
                raise Unavailable(
                    "this server is shutting down; nothing was changed: another one answers",
                    reason="DRAINING",
                    retry_after=1.0,
                )
            principal = await self._principal(path, given)
            call = Call(principal, peer_address(context.peer()), request_id, metadata)
            return await work(call)
        except AgentRpcError as error:
            code = error.code
            status = to_status(error, request_id)
        except StalledError:
            code = "UNAVAILABLE"
            slow = Unavailable(
                "the stream was not read for too long: resume it, without deltas if that happens again",
                reason="SLOW_CONSUMER",
                retry_after=1.0,
            )
            status = to_status(slow, request_id)
        except asyncio.CancelledError:
            code = "CANCELLED"
            if context.cancelled() or context.done():
                raise
            # Not the client's doing: without a status it would wait for its deadline.
            gone = Unavailable("the call was cut off by the server: try again", reason="DRAINING", retry_after=1.0)
            status = to_status(gone, request_id)
        except Exception:
            code = "INTERNAL"
            error_id = str(clock.uuid7())
            log.exception("rpc_failed", error_id=error_id)
            status = to_status(internal_error(error_id), request_id)
        finally:
            RPC_LATENCY.labels(path, code).observe(time.monotonic() - began)
            log.debug("rpc", code=code, seconds=round(time.monotonic() - began, 4))
        # Sent already with the first response of a stream, or the call is over.
        with suppress(grpc.aio.UsageError, asyncio.InvalidStateError):
            await context.send_initial_metadata(metadata)
        await context.abort_with_status(status)
        return None

    async def _principal(self, path: str, given: dict[str, Any]) -> Principal | None:
        if path in _PUBLIC:
            return None
        scheme, _, token = str(given.get("authorization", "")).partition(" ")
        if not token or scheme.lower() != "bearer":
            raise Unauthenticated(
                "there is no token: send the metadata `authorization: Bearer {access_token}` from AuthService.Login",
                reason="CREDENTIALS_MISSING",
            )
        return await self._accounts.authenticate(token.strip())

    async def _limit(self, principal: Principal) -> None:
        rate = self._settings.requests_per_second
        wait = await self._bus.take_token(f"rpc:{principal.user_id}", rate=rate, burst=rate * 2)
        if wait:
            raise ResourceExhausted(
                f"more than {rate:.0f} requests a second: try again in {wait:.2f} s",
                reason="RATE_LIMITED",
                retry_after=wait,
            )


def _user(call: Call) -> "UUID | None":
    return call.principal.user_id if call.principal is not None else None
