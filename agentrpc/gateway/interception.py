"""Adds credentials to requests on their way out of a sandbox.

For a host that a credential of the session names, and for no other, the egress proxy ends TLS with a certificate of this
deployment's own authority, reads HTTP/1.1, and writes each request anew: the header of the credential takes the place
of the agent's own. It goes over TLS, verified for that very host, to the address that the proxy has judged, and nowhere
else: what names another host is refused, and redirects are the agent's to follow. Answers pass as they come; what stands
in them of the secret is masked. docs/credentials.md says what that cannot keep.
"""

import asyncio
import contextlib
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import h11
import structlog

from agentrpc import clock
from agentrpc.domain.credentials import HTTPS_PORT, Mask
from agentrpc.errors import AgentRpcError
from agentrpc.gateway.tls import TlsStream
from agentrpc.services.certificate_authority import LEAF_LIFE, CertificateAuthority
from agentrpc.services.session_credentials import Injection, SessionCredentials

__all__ = ["Interceptor", "ServerContexts", "Streams"]

log = structlog.get_logger()

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Headers: TypeAlias = list[tuple[bytes, bytes]]

_MAX_HEAD = 64 * 1024
_MAX_CONTEXTS = 256
_HANDSHAKE_SECONDS = 15.0
# Between two requests, and within one.
_IDLE_SECONDS = 120.0
_STALL_SECONDS = 600.0
# What belongs to one connection (RFC 9110, section 7.6.1), and what is made anew here.
_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"upgrade",
})  # fmt: skip
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


class _Refused(Exception):
    """A request that is answered here. The message is for the agent."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Peer:
    """One side of a tunnel: what HTTP/1.1 says, over TLS."""

    def __init__(self, stream: TlsStream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=_MAX_HEAD)

    async def event(self, patience: float) -> Any:  # noqa: ANN401 - h11 has no common type of its events
        """The next event. Raises h11.RemoteProtocolError, OSError, TimeoutError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(patience):
                self.http.receive_data(await self.stream.read())
        return event

    async def send(self, *events: h11.Event) -> None:
        """Send events. Raises h11.LocalProtocolError, OSError."""
        if data := b"".join(self.http.send(event) or b"" for event in events):
            await self.stream.write(data)

    @property
    def done(self) -> bool:
        """Whether another exchange may begin on this connection."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE


@dataclass(frozen=True, slots=True)
class Interceptor:
    """Takes over connections of one session's process.

    Attributes:
        credentials: What it may use.
        contexts: For its side.
        upstream: For the side of the servers: whom it trusts.
    """

    credentials: SessionCredentials
    contexts: ServerContexts
    upstream: ssl.SSLContext

    async def covers(self, host: str, port: int) -> bool:
        """Whether a connection to this host, in lower case, is to be taken over. Raises StoreUnavailable."""
        return await self.credentials.covers(host, port)

    async def run(
        self, host: str, port: int, agent: Streams, server: Streams, on_use: Callable[[str], None] = lambda _: None
    ) -> None:
        """Carry a connection to its end. Closing the streams is the caller's.

        Args:
            host: Where the agent has asked to go, in lower case.
            port: And the port.
            agent: The connection of the agent, at the first byte of its TLS.
            server: One to an address of that host which may be reached.
            on_use: Told the name of each credential that was added to a request.
        """
        client = TlsStream(*agent, self.contexts.of(host), server_side=True)
        upstream = TlsStream(*server, self.upstream, server_hostname=host)
        with contextlib.suppress(OSError, TimeoutError, h11.ProtocolError):
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await client.handshake()
            tunnel = _Tunnel(self.credentials, host, port, client, upstream, on_use)
            try:
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await upstream.handshake()
            except (OSError, TimeoutError) as error:
                log.warning("upstream_tls_failed", host=host, port=port, error=type(error).__name__)
                reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "no TLS"
                await tunnel.refuse(_Refused(502, f"{host}:{port} cannot be reached safely: {reason}"))
            else:
                await tunnel.carry()
            await client.end()


class _Tunnel:
    """One connection that was taken over."""

    def __init__(
        self,
        credentials: SessionCredentials,
        host: str,
        port: int,
        client: TlsStream,
        upstream: TlsStream,
        on_use: Callable[[str], None],
    ) -> None:
        self._credentials = credentials
        self._host = host
        self._port = port
        self._client = _Peer(client, h11.SERVER)
        self._server = _Peer(upstream, h11.CLIENT)
        self._on_use = on_use

    @property
    def _authority(self) -> str:
        return self._host if self._port == HTTPS_PORT else f"{self._host}:{self._port}"

    async def carry(self) -> None:
        """Exchange after exchange, for as long as both sides go on."""
        try:
            while await self._exchange():
                self._client.http.start_next_cycle()
                self._server.http.start_next_cycle()
        except _Refused as refused:
            await self.refuse(refused)

    async def refuse(self, refused: _Refused) -> None:
        """Answer the agent, if it is not being answered already; nothing more is taken from it."""
        if self._client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        body = f"agentrpc: {refused}\n".encode()
        headers = [
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        await self._client.send(
            h11.Response(status_code=refused.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()
        )

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        request = await self._next_request()
        if request is None:
            return False
        injection = await self._admit(request)
        mask = Mask(injection.secrets)
        await self._server.send(self._outward(request, injection))
        taking = asyncio.create_task(self._take_body())
        answering = asyncio.create_task(self._answer(request, mask))
        try:
            await asyncio.wait({taking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                taking.result()
            switched = await answering
        finally:
            taking.cancel()
            answering.cancel()
            await asyncio.gather(taking, answering, return_exceptions=True)
        if switched:
            await self._relay(mask)
        return self._client.done and self._server.done

    async def _next_request(self) -> h11.Request | None:
        """The next request of the agent; None: there will be none, of either side's will."""
        event = asyncio.create_task(self._client.event(_IDLE_SECONDS))
        # A server that ends an idle connection ends that of the agent, which then knows that it has to make a new one.
        silence = asyncio.create_task(self._server.stream.read())
        try:
            await asyncio.wait({event, silence}, return_when=asyncio.FIRST_COMPLETED)
            if silence.done() or not event.done():
                return None
            request = event.result()
            return request if isinstance(request, h11.Request) else None
        except h11.RemoteProtocolError as error:
            raise _Refused(error.error_status_hint, f"this is not a request of HTTP/1.1: {error}") from None
        finally:
            event.cancel()
            silence.cancel()
            await asyncio.gather(event, silence, return_exceptions=True)

    # ---- Requests ----

    async def _admit(self, request: h11.Request) -> Injection:
        """Judge a request, and find what is to be added to it. Raises _Refused."""
        if request.http_version not in {b"1.0", b"1.1"}:
            raise _Refused(505, "only HTTP/1.1 is spoken here")
        if request.method in _REFUSED_METHODS:
            raise _Refused(405, f"{request.method.decode()} does not go together with credentials")
        headers = dict(request.headers)
        own_form = request.target.startswith(b"/") or (request.method == b"OPTIONS" and request.target == b"*")
        named = headers.get(b"host", self._authority.encode()).lower()
        if not own_form or named not in {self._authority.encode(), f"{self._host}:{self._port}".encode()}:
            raise _Refused(421, f"this connection is for {self._authority}, and the request for another host")
        if b"transfer-encoding" in headers and (b"content-length" in headers or request.http_version == b"1.0"):
            raise _Refused(400, "nobody can tell how long the body of this request is")
        try:
            injection = await self._credentials.take(self._host, self._port)
        except AgentRpcError as error:
            log.warning("credential_not_added", host=self._host, reason=error.reason)
            raise _Refused(503, "the credential for this host cannot be read now") from None
        if injection is None:
            raise _Refused(403, f"the session has no credential for {self._authority} any more: connect again")
        self._on_use(injection.credential)
        return injection

    def _outward(self, request: h11.Request, injection: Injection) -> h11.Request:
        """The request as the server gets it."""
        name, value = (text.encode() for text in injection.header)
        # Servers that hand headers on as variables take `X_Key` for `X-Key`.
        replaced = {_folded(name), b"host", b"accept-encoding"}
        kept = [(key, text) for key, text in _end_to_end(request) if _folded(key) not in replaced]
        # What is packed cannot be looked through.
        fresh = [(b"Host", self._authority.encode()), (name, value), (b"Accept-Encoding", b"identity")]
        if b"websocket" in _tokens(request, b"upgrade") and b"upgrade" in _tokens(request, b"connection"):
            fresh += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        return h11.Request(method=request.method, target=request.target, headers=[*fresh, *kept])

    async def _take_body(self) -> None:
        """Pass the body on, and see then whether the agent waits for its answer.

        Raises:
            _Refused: This is no body.
            OSError: The agent has gone.
        """
        client = self._client
        try:
            while not isinstance(event := await client.event(_STALL_SECONDS), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    raise ConnectionResetError("the agent has gone in the middle of a request")
                # A server that has heard enough answers and closes: what it has said counts.
                with contextlib.suppress(OSError):
                    await self._server.send(h11.Data(data=bytes(event.data)))
        except h11.RemoteProtocolError as error:
            raise _Refused(error.error_status_hint, f"this is not a body of HTTP/1.1: {error}") from None
        with contextlib.suppress(OSError):
            await self._server.send(h11.EndOfMessage())
        data = await client.stream.read()
        if not data:
            raise ConnectionResetError("the agent has gone")
        # What it asks next is taken up when it is answered.
        client.http.receive_data(data)

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
                        headers = _masked(event.headers.raw_items() if switched else [], mask)
                        await client.send(h11.InformationalResponse(status_code=event.status_code, headers=headers))
                    if switched:
                        return True
                elif isinstance(event, h11.Response):
                    headers = _masked(_end_to_end(event), mask)
                    if event.http_version == b"1.0" or b"close" in _tokens(event, b"connection"):
                        headers.append((b"Connection", b"close"))
                    await client.send(
                        h11.Response(status_code=event.status_code, headers=headers, reason=mask.whole(event.reason))
                    )
                elif isinstance(event, h11.Data):
                    if piece := mask.feed(bytes(event.data)):
                        await client.send(h11.Data(data=piece))
                elif isinstance(event, h11.EndOfMessage):
                    await client.send(h11.Data(data=mask.end()), h11.EndOfMessage())
                    return False
                else:
                    raise ConnectionResetError("the server has gone in the middle of an answer")
        except h11.RemoteProtocolError:
            raise _Refused(502, f"{self._authority} has answered what is not HTTP/1.1") from None

    async def _relay(self, mask: Mask) -> None:
        """Pass on what both sides say in a protocol that is not looked into: nothing is added to it any more."""
        ways = [
            asyncio.create_task(_pass_on(self._client, self._server, lambda data: data)),
            asyncio.create_task(_pass_on(self._server, self._client, mask.whole)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pass_on(source: _Peer, target: _Peer, change: Callable[[bytes], bytes]) -> None:
    data, _ = source.http.trailing_data
    while True:
        if data:
            await target.stream.write(change(data))
        data = await source.stream.read()
        if not data:
            return


def _folded(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _tokens(message: h11.Request | h11.Response, name: bytes) -> set[bytes]:
    """The words of a header that is a list, in lower case."""
    return {word.strip().lower() for key, value in message.headers if key == name for word in value.split(b",")}


def _end_to_end(message: h11.Request | h11.Response) -> _Headers:
    """Headers that are not only for one connection; how long the body is they say in one way at most."""
    framing = {b"content-length", b"transfer-encoding"}
    dropped = _HOP_BY_HOP | (_tokens(message, b"connection") - framing)
    if isinstance(message, h11.Response) and _tokens(message, b"transfer-encoding"):
        dropped |= framing
    return [(raw, value) for raw, value in message.headers.raw_items() if raw.lower() not in dropped]


def _masked(headers: _Headers, mask: Mask) -> _Headers:
    return [(name, mask.whole(value)) for name, value in headers]
