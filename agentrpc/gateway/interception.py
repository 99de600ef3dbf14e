"""Adds credentials to requests on their way out of a sandbox.

For a host that a credential of the session names, and for no other, the egress proxy ends TLS with a certificate of
this deployment's own authority, reads HTTP/1.1, and writes each request anew: the header of the credential takes the
place of the agent's own. It goes over TLS, verified for that very host, to the address that the proxy has judged, and
nowhere else: what names another host is refused, and redirects are the agent's to follow. Answers pass as they come;
what stands in them of the secret is masked. docs/credentials.md says what that cannot keep.
"""

import asyncio
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import h11
import structlog

from agentrpc import clock
from agentrpc.domain.credentials import HTTPS_PORT, Mask
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError
from agentrpc.gateway.egress import EgressProxy, Relay
from agentrpc.gateway.egress_dial import Refusal, Route
from agentrpc.gateway.egress_http import MAX_HEAD, answer_to, end_to_end, next_event, response_headers
from agentrpc.gateway.tls import TlsStream
from agentrpc.gateway.tunnel import Stream, linger
from agentrpc.services.certificate_authority import LEAF_LIFE, CertificateAuthority
from agentrpc.services.session_credentials import Injection, SessionCredentials

__all__ = ["Interceptor", "ServerContexts", "intercepting"]

log = structlog.get_logger()

_Headers: TypeAlias = list[tuple[bytes, bytes]]

_MAX_CONTEXTS = 256
_HANDSHAKE_SECONDS = 15.0
# Between two requests, within one, and in another protocol.
_IDLE_SECONDS = 120.0
_STALL_SECONDS = 600.0
_RELAY_SECONDS = 3600.0
# TRACE has the server send back what it was sent; CONNECT and PRI are for proxies and for HTTP/2.
_REFUSED_METHODS = frozenset({b"TRACE", b"TRACK", b"CONNECT", b"PRI"})


class ServerContexts:
    """TLS contexts for the hosts whose part this proxy plays, made when they are needed.

    Args:
        authority: Issues the certificates.
    """

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority
        self._known: OrderedDict[str, tuple[float, ssl.SSLContext]] = OrderedDict()

    def of(self, host: str) -> ssl.SSLContext:
        """A context with a certificate for a host that is good for a day or more."""
        made, context = self._known.get(host, (0.0, None))
        if context is None or clock.monotonic() - made > LEAF_LIFE.total_seconds() / 2:
            context = _server_context(host, self._authority.issue(host))
            self._known[host] = (clock.monotonic(), context)
        self._known.move_to_end(host)
        if len(self._known) > _MAX_CONTEXTS:
            self._known.popitem(last=False)
        return context


def _server_context(host: str, certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # It takes files only. This one is in memory, and gone when it was read.
    with os.fdopen(os.memfd_create("certificate"), "wb") as file:
        file.write(certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")

    def check_name(_: Any, name: str | None, __: Any) -> int | None:  # noqa: ANN401 - of ssl
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if name is not None and name.lower() != host else None

    context.sni_callback = check_name
    return context


def intercepting(make: Callable[..., EgressProxy]) -> Callable[..., EgressProxy]:
    """The same maker of proxies, that takes `credentials` too: a proxy with some adds them."""
    contexts: dict[CertificateAuthority, ServerContexts] = {}

    def made(*given: Any, credentials: SessionCredentials | None = None, **named: Any) -> EgressProxy:  # noqa: ANN401
        if credentials is None:
            return make(*given, **named)
        # A worker has one authority, and one cache for all sessions.
        known = contexts.setdefault(credentials.authority, ServerContexts(credentials.authority))
        return make(*given, intercept=Interceptor(credentials, known, credentials.upstream), **named)

    return made


class _Peer:
    """One side of a tunnel: what HTTP/1.1 says, over TLS."""

    def __init__(self, stream: TlsStream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)

    async def event(self, patience: float) -> h11.Event:
        """The next event. Raises h11.RemoteProtocolError, OSError, TimeoutError."""
        async with asyncio.timeout(patience):
            return await next_event(self.http, self.stream)

    async def send(self, *events: h11.Event) -> None:
        """Send events. Raises OSError."""
        await self.stream.write(b"".join(self.http.send(event) or b"" for event in events))

    @property
    def done(self) -> bool:
        """Whether another exchange may begin on this connection."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE


@dataclass(frozen=True, slots=True)
class Interceptor:
    """Takes over connections of one session's process: an `egress.Intercept`.

    Attributes:
        credentials: What it may use.
        contexts: For its side.
        upstream: For the side of the servers: whom it trusts.
    """

    credentials: SessionCredentials
    contexts: ServerContexts
    upstream: ssl.SSLContext

    async def relay(self, host: str, port: int) -> Relay | None:
        """What carries a connection to a host that a credential is for. Raises OSError when nobody can tell."""
        try:
            return self._carry if await self.credentials.covers(host, port) else None
        except AgentRpcError as error:
            raise ConnectionAbortedError(error.reason) from None

    async def check_plain(self, host: str) -> None:
        """Refuse plain HTTP to a host that a credential is for. Raises Refusal."""
        try:
            covered = await self.credentials.covers(host)
        except AgentRpcError:
            raise _UNREADABLE from None
        if covered:
            raise Refusal(
                403,
                "Credentials Go Over HTTPS Only",
                f"{host} is a host to which a credential of this session is added, and that is done over https only: "
                f"ask for https://{host}.",
            )

    async def _carry(self, agent: Stream, route: Route) -> None:
        client = TlsStream(agent, self.contexts.of(route.host), server_side=True)
        server = TlsStream(route.stream, self.upstream, server_hostname=route.host)
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await client.handshake()
            await _Tunnel(self.credentials, route, client, server).carry()
            await client.end()
            await linger(agent.sock)
        except h11.ProtocolError:
            # Of the server in the middle of an answer: it ends without having been ended.
            log.info("answer_broken", host=route.host, port=route.port)
        finally:
            route.tally.sent += server.sent
            route.tally.received += server.received
            await client.close()
            await server.close()


_UNREADABLE = Refusal(503, "Credential Not Readable", "The credential for this host cannot be read now: try later.")


class _Tunnel:
    """One connection that was taken over.

    Args:
        credentials: What the session may use.
        route: Where it goes.
        client: The agent, with whom TLS has begun.
        server: The server, with whom it has not.
    """

    def __init__(self, credentials: SessionCredentials, route: Route, client: TlsStream, server: TlsStream) -> None:
        self._credentials = credentials
        self._host = route.host
        self._port = route.port
        self._on_credential = route.on_credential
        self._client = _Peer(client, h11.SERVER)
        self._server = _Peer(server, h11.CLIENT)
        # As a Host header names it.
        self._place = self._host if self._port == HTTPS_PORT else f"{self._host}:{self._port}"

    async def carry(self) -> None:
        """Exchange after exchange, for as long as both sides go on. Raises OSError, TimeoutError, h11.ProtocolError."""
        try:
            await self._reach()
            while await self._exchange():
                self._client.http.start_next_cycle()
                self._server.http.start_next_cycle()
        except Refusal as refusal:
            await self._refuse(refusal)

    async def _reach(self) -> None:
        """Begin TLS with the server. Raises Refusal, which is shown to the agent as an answer."""
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await self._server.stream.handshake()
        except ssl.SSLCertVerificationError as error:
            why = f"{self._place} has no certificate that is good for it: {error.verify_message}."
            raise Refusal(502, "Bad Certificate", why) from None
        except (OSError, TimeoutError):
            raise Refusal(502, "No TLS", f"{self._place} does not speak TLS, or has broken it off.") from None

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer the agent, if it is not being answered already; nothing more is taken from it."""
        if self._client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            raise ConnectionAbortedError
        response, body = answer_to(refusal)
        await self._client.send(response, h11.Data(data=body), h11.EndOfMessage())

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        request = await self._next_request()
        if request is None:
            return False
        injection = await self._admit(request)
        mask = Mask(injection.secrets)
        await self._server.send(self._outward(request, injection))
        taking = asyncio.create_task(self._take_body(), name="take-body")
        answering = asyncio.create_task(self._answer(request, mask), name="answer")
        try:
            await asyncio.wait({taking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                taking.result()
            switched = await answering
        finally:
            await end_tasks([taking, answering])
        if switched:
            await self._relay(mask)
            return False
        return self._client.done and self._server.done

    async def _next_request(self) -> h11.Request | None:
        """The next request of the agent; None: there will be none, by the will of either side."""
        event = asyncio.create_task(self._client.event(_IDLE_SECONDS), name="next-request")
        # A server that ends an idle connection ends that of the agent too, which then makes another.
        silence = asyncio.create_task(self._server.stream.read(), name="silence")
        try:
            await asyncio.wait({event, silence}, return_when=asyncio.FIRST_COMPLETED)
            if silence.done() or not event.done():
                return None
            request = event.result()
            return request if isinstance(request, h11.Request) else None
        except h11.RemoteProtocolError as error:
            raise Refusal(
                error.error_status_hint, "Bad Request", f"That is no request of HTTP/1.1: {error}."[:300]
            ) from None
        finally:
            await end_tasks([event, silence])

    # ---- Requests ----

    async def _admit(self, request: h11.Request) -> Injection:
        """Judge a request, and find what is to be added to it. Raises Refusal."""
        if request.http_version not in {b"1.0", b"1.1"}:
            raise Refusal(505, "HTTP/1.1 Only", "Only HTTP/1.1 is spoken to hosts that have a credential.")
        if request.method in _REFUSED_METHODS:
            method = request.method.decode()
            raise Refusal(405, "Method Not Allowed", f"{method} is not passed on to hosts that have a credential.")
        headers = dict(request.headers)
        own_form = request.target.startswith(b"/") or (request.method == b"OPTIONS" and request.target == b"*")
        named = headers.get(b"host", self._place.encode()).lower()
        if not own_form or named not in {self._place.encode(), f"{self._host}:{self._port}".encode()}:
            told = f"This connection is for {self._place}, and the request names another host: make one for that."
            raise Refusal(421, "Misdirected Request", told)
        if b"transfer-encoding" in headers and (b"content-length" in headers or request.http_version == b"1.0"):
            raise Refusal(400, "Bad Request", "A request has a length or is chunked, and not both.")
        try:
            injection = await self._credentials.take(self._host, self._port)
        except AgentRpcError as error:
            log.warning("credential_not_added", host=self._host, reason=error.reason)
            raise _UNREADABLE from None
        if injection is None:
            told = f"This session has no credential for {self._place} any more: connect again, and go without."
            raise Refusal(403, "Credential Gone", told)
        self._on_credential(injection.credential)
        return injection

    def _outward(self, request: h11.Request, injection: Injection) -> h11.Request:
        """The request as the server gets it."""
        name, value = (text.encode() for text in injection.header)
        # Servers that hand headers on as variables take `X_Key` for `X-Key`.
        replaced = {_folded(name), b"host", b"accept-encoding"}
        kept = [(key, text) for key, text in end_to_end(request, set()) if _folded(key) not in replaced]
        # What is packed cannot be looked through.
        fresh = [(b"Host", self._place.encode()), (name, value), (b"Accept-Encoding", b"identity")]
        if b"chunked" in _tokens(request, b"transfer-encoding"):
            fresh.append((b"Transfer-Encoding", b"chunked"))
        if b"websocket" in _tokens(request, b"upgrade") and b"upgrade" in _tokens(request, b"connection"):
            fresh += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        return h11.Request(method=request.method, target=request.target, headers=[*fresh, *kept])

    async def _take_body(self) -> None:
        """Pass the body on, and see then whether the agent waits for its answer.

        Raises:
            Refusal: This is no body.
            OSError: The agent has gone.
        """
        client = self._client
        try:
            while not isinstance(event := await client.event(_STALL_SECONDS), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    raise ConnectionResetError("the agent has gone in the middle of a request")
                # A server that has heard enough answers and closes: what it has said counts.
                with suppress(OSError):
                    await self._server.send(h11.Data(data=bytes(event.data)))
        except h11.RemoteProtocolError as error:
            raise Refusal(
                error.error_status_hint, "Bad Request", f"That is no body of HTTP/1.1: {error}."[:300]
            ) from None
        with suppress(OSError):
            await self._server.send(h11.EndOfMessage())
        data = await client.stream.read()
        if not data:
            raise ConnectionResetError("the agent has gone")
        # What it asks next is taken up when this is answered.
        client.stream.unread(data)

    # ---- Answers ----

    async def _answer(self, request: h11.Request, mask: Mask) -> bool:
        """Pass the answer on. True: both sides have gone over to another protocol."""
        client = self._client
        try:
            while True:
                event = await self._server.event(_STALL_SECONDS)
                if isinstance(event, h11.InformationalResponse):
                    switched = event.status_code == 101
                    if request.http_version == b"1.1":
                        headers = _masked(event.headers.raw_items() if switched else response_headers(event), mask)
                        await client.send(h11.InformationalResponse(status_code=event.status_code, headers=headers))
                    if switched:
                        return True
                elif isinstance(event, h11.Response):
                    headers = _masked(response_headers(event), mask)
                    if event.http_version == b"1.0" or b"close" in _tokens(event, b"connection"):
                        headers.append((b"Connection", b"close"))
                    reason = mask.whole(event.reason)
                    await client.send(h11.Response(status_code=event.status_code, headers=headers, reason=reason))
                elif isinstance(event, h11.Data):
                    if piece := mask.feed(bytes(event.data)):
                        await client.send(h11.Data(data=piece))
                elif isinstance(event, h11.EndOfMessage):
                    await client.send(h11.Data(data=mask.end()), h11.EndOfMessage())
                    return False
                else:
                    raise ConnectionResetError("the server has gone in the middle of an answer")
        except h11.RemoteProtocolError as error:
            told = f"{self._place} has not answered in HTTP/1.1: {error}."[:300]
            raise Refusal(502, "Bad Answer", mask.whole(told.encode()).decode(errors="replace")) from None

    async def _relay(self, mask: Mask) -> None:
        """Pass on what both sides say in a protocol that is not looked into: nothing is added to it."""
        async with asyncio.timeout(_RELAY_SECONDS) as limit:

            async def pass_on(source: _Peer, target: _Peer, change: Callable[[bytes], bytes]) -> None:
                data, _ = source.http.trailing_data
                while True:
                    await target.stream.write(change(data))
                    if not (data := await source.stream.read()):
                        return
                    limit.reschedule(asyncio.get_running_loop().time() + _RELAY_SECONDS)

            ways = [
                asyncio.create_task(pass_on(self._client, self._server, lambda data: data), name="relay-out"),
                asyncio.create_task(pass_on(self._server, self._client, mask.whole), name="relay-in"),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end_tasks(ways)


def _folded(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _tokens(message: h11.Request | h11.Response, name: bytes) -> set[bytes]:
    """The words of a header that is a list, in lower case."""
    return {word.strip().lower() for key, value in message.headers if key == name for word in value.split(b",")}


def _masked(headers: _Headers, mask: Mask) -> _Headers:
    return [(name, mask.whole(value)) for name, value in headers]
