"""HTTP of the egress proxy: CONNECT, and requests with absolute URLs of `http:`.

Messages are parsed and written anew by `h11` on both sides, never copied, so that what one side takes for one request
or one body is one for the other too (RFC 9112, section 11.2). Each request gets a connection of its own to its server;
the client's connection is kept alive.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import h11

from agentrpc.domain.network import read_authority
from agentrpc.ending import end_tasks
from agentrpc.gateway.egress_dial import Dialer, Refusal, Route
from agentrpc.gateway.tunnel import Source, Stream, abort

__all__ = ["MAX_HEAD", "HttpClient", "answer_to", "end_to_end", "next_event", "response_headers"]

MAX_HEAD = 64 * 1024
# `h11` reads the lines of a head, or of what follows chunks, all at once: so many keep the loop for less than a
# millisecond.
_MAX_LINES = 200
_URL = re.compile(r"(?i:http)://(?P<authority>[^/?]*)(?P<path>[^#]*)")
# What belongs to one connection (RFC 9110, section 7.6.1), and what `h11` writes anew.
_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authentication-info",
    b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
}  # fmt: skip
# What no one may drop by naming it as an option of the connection.
_FRAMING = {b"content-length", b"host"}
_Headers: TypeAlias = list[tuple[bytes, bytes]]


class HttpClient:
    """One connection of a client.

    Args:
        client: The connection.
        dialer: Makes connections for it.
        tunnel: Moves the bytes after a CONNECT.
        refuse: Raises Refusal for a host that plain HTTP is not passed on to.
        head: Seconds in which a request's head has to come.
        idle: Seconds without a byte after which a request ends.
    """

    def __init__(
        self,
        client: Stream,
        dialer: Dialer,
        tunnel: Callable[[Stream, Route], Awaitable[None]],
        refuse: Callable[[str], Awaitable[None]],
        *,
        head: float,
        idle: float,
    ) -> None:
        self._client = client
        self._dialer = dialer
        self._tunnel = tunnel
        self._refuse = refuse
        self._head = head
        self._idle = idle
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._method = b""

    async def serve(self) -> None:
        """Serve requests until the connection ends. Closes nothing.

        Raises:
            Refusal: The client has its answer.
            OSError: A side broke off.
            TimeoutError: Nothing moved for too long.
        """
        try:
            while await self._one():
                self._http.start_next_cycle()
        except Refusal as refusal:
            await self._answer(refusal)
            raise

    async def _one(self) -> bool:
        """One request. Whether another may follow."""
        request = await self._request()
        if request is None:
            return False
        self._method = request.method
        if request.method == b"CONNECT":
            await self._connect(request)
            return False
        return await self._forward(request)

    async def _request(self) -> h11.Request | None:
        try:
            async with asyncio.timeout(self._head):
                event = await self._next()
        except TimeoutError:
            if not self._http.trailing_data[0]:
                return None
            raise Refusal(
                408, "Request Timeout", f"The head of a request has to come within {self._head:g} seconds."
            ) from None
        if not isinstance(event, h11.Request):
            return None
        if event.http_version not in {b"1.0", b"1.1"}:
            raise Refusal(505, "HTTP Version Not Supported", "This proxy speaks HTTP/1.1.")
        return event

    async def _next(self) -> h11.Event:
        """The next event of the client."""
        try:
            return await next_event(self._http, self._client)
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                limit = f"A request may have at most {MAX_HEAD} bytes and {_MAX_LINES} lines of headers."
                raise Refusal(431, "Headers Too Large", limit) from None
            hint = f"That is no request of HTTP/1.1 that this proxy understands: {error}."
            raise Refusal(400, "Bad Request", hint[:300]) from None

    async def _connect(self, request: h11.Request) -> None:
        host, port = _authority(request.target, None)
        if _has_body(request.headers):
            raise Refusal(400, "Bad Request", "CONNECT has no body.")
        await self._next()
        route = await self._dialer.connect(host, port)
        try:
            self._client.unread(self._http.trailing_data[0])
            await self._client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._tunnel(self._client, route)
        finally:
            route.stream.sock.close()

    async def _forward(self, request: h11.Request) -> bool:
        url = _URL.fullmatch(request.target.decode("ascii"))
        if url is None:
            raise Refusal(
                400,
                "Bad Request",
                "This is a proxy: ask with CONNECT host:port, or with a whole URL of http:// that has no #.",
            )
        host, port = _authority(url["authority"].encode(), 80)
        await self._refuse(host)
        headers = _request_headers(request, host, port)
        route = await self._dialer.connect(host, port)
        try:
            path = url["path"] if url["path"].startswith("/") else f"/{url['path']}"
            return await _Exchange(self._http, self._client, route, self._idle).run(
                h11.Request(method=request.method, target=path, headers=headers), self._next
            )
        finally:
            route.stream.sock.close()

    async def _answer(self, refusal: Refusal) -> None:
        """The answer of the proxy's own, unless another has begun: then the connection breaks."""
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            abort(self._client.sock)
            return
        response, body = answer_to(refusal)
        head = self._http.send(response) or b""
        await self._client.write(head if self._method == b"HEAD" else head + body)


class _Exchange:
    """One request on its way to its server, and the response on its way back.

    Args:
        http: The client's side, of which a request's head has been read.
        client: Its connection.
        route: The server.
        idle: Seconds without a byte after which it ends.
    """

    def __init__(self, http: h11.Connection, client: Stream, route: Route, idle: float) -> None:
        self._http = http
        self._client = client
        self._route = route
        self._idle = idle
        self._upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._began = False

    async def run(self, request: h11.Request, body: Callable[[], Awaitable[h11.Event]]) -> bool:
        """Do it. Whether the client's connection is good for another.

        Args:
            request: For the server.
            body: The next event of the client.
        """
        up = asyncio.create_task(self._up(request, body))
        down = asyncio.create_task(self._down())
        try:
            # A server may answer before it has all of the request.
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if down not in done:
                up.result()
            await down
        finally:
            await end_tasks([up, down])
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _up(self, request: h11.Request, body: Callable[[], Awaitable[h11.Event]]) -> None:
        event: h11.Event = request
        while True:
            data = self._upstream.send(event) or b""
            self._route.tally.sent += len(data)
            try:
                async with asyncio.timeout(self._idle):
                    await self._route.stream.write(data)
            except OSError:
                # The server wants no more: what it has said is on its way back.
                return
            if isinstance(event, h11.EndOfMessage):
                return
            async with asyncio.timeout(self._idle):
                event = await body()
            # A body may be of a million chunks that are here already.
            await asyncio.sleep(0)
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage()

    async def _down(self) -> None:
        try:
            while True:
                async with asyncio.timeout(self._idle):
                    event = await next_event(self._upstream, self._route.stream, self._count)
                    if isinstance(event, h11.ConnectionClosed):
                        return
                    await self._pass_on(event)
                await asyncio.sleep(0)
                if isinstance(event, h11.EndOfMessage):
                    return
        except TimeoutError:
            raise Refusal(504, "No Answer", f"{self._place} has not answered in time.") from None
        except h11.RemoteProtocolError as error:
            raise Refusal(502, "Bad Answer", f"{self._place} has not answered in HTTP/1.1: {error}."[:300]) from None
        except OSError:
            raise Refusal(502, "No Answer", f"{self._place} has broken the connection off.") from None

    async def _pass_on(self, event: h11.Event) -> None:
        if isinstance(event, h11.InformationalResponse):
            if self._http.their_http_version == b"1.0":
                return
            event = h11.InformationalResponse(status_code=event.status_code, headers=response_headers(event))
        elif isinstance(event, h11.Response):
            self._began = True
            event = h11.Response(status_code=event.status_code, headers=response_headers(event), reason=event.reason)
        elif isinstance(event, h11.EndOfMessage):
            event = h11.EndOfMessage()
        await self._client.write(self._http.send(event) or b"")

    def _count(self, received: int) -> None:
        self._route.tally.received += received

    @property
    def _place(self) -> str:
        return f"{self._route.host}:{self._route.port}"


def answer_to(refusal: Refusal) -> tuple[h11.Response, bytes]:
    """The head and the body of the proxy's own answer, after which the connection is closed."""
    body = f"{refusal.text}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    return h11.Response(status_code=refusal.status, headers=headers, reason=refusal.summary.encode()), body


async def next_event(http: h11.Connection, stream: Source, count: Callable[[int], None] | None = None) -> h11.Event:
    """The next event of either side.

    Args:
        http: Its state.
        stream: Its connection.
        count: Told how many bytes came.

    Raises:
        h11.RemoteProtocolError: What came is not HTTP/1.1, or has more than 200 lines of headers.
    """
    while True:
        event = http.next_event()
        if isinstance(event, h11.Event):
            return event
        # What is there of a body is read at once; lines that wait for more are those of a head.
        if http.trailing_data[0].count(b"\n") > _MAX_LINES:
            raise h11.RemoteProtocolError(f"more than {_MAX_LINES} lines of headers", error_status_hint=431)
        data = await stream.read()
        lines = data.split(b"\n", _MAX_LINES)
        if len(lines) > _MAX_LINES:
            stream.unread(lines[-1])
            data = data[: len(data) - len(lines[-1])]
        if count is not None:
            count(len(data))
        http.receive_data(data)


def _authority(text: bytes, default_port: int | None) -> tuple[str, int]:
    try:
        return read_authority(text.decode("ascii"), default_port)
    except ValueError as error:
        raise Refusal(400, "Bad Request", f"The host that was asked for is refused: {error}.") from None


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in headers)


def _request_headers(request: h11.Request, host: str, port: int) -> _Headers:
    """What goes to the server. The host is the one that was judged, whatever a header says."""
    names = [name for name, _ in request.headers]
    chunked = b"transfer-encoding" in names
    if chunked and b"content-length" in names:
        raise Refusal(400, "Bad Request", "A request has a length or is chunked, and not both.")
    authority = f"[{host}]" if ":" in host else host
    headers = [(b"Host", (authority if port == 80 else f"{authority}:{port}").encode())]
    headers += end_to_end(request, {b"host"})
    if chunked:
        headers.append((b"Transfer-Encoding", b"chunked"))
    return [*headers, (b"Connection", b"close")]


def response_headers(response: h11.Response | h11.InformationalResponse) -> _Headers:
    """What goes to the client; `h11` adds how the body ends for its version of HTTP."""
    chunked = any(name == b"transfer-encoding" for name, _ in response.headers)
    return end_to_end(response, {b"content-length"} if chunked else set())


def end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse, but: set[bytes]) -> _Headers:
    """The headers that are not for one connection alone, without some others, written as they came."""
    dropped = _HOP | but
    for name, value in message.headers:
        if name == b"connection":
            dropped |= {option.strip().lower() for option in value.split(b",")} - _FRAMING
    return [
        (raw, value)
        for (raw, value), (name, _) in zip(message.headers.raw_items(), message.headers, strict=True)
        if name not in dropped
    ]
