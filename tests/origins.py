"""https servers for tests, and clients that reach them through an egress proxy."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import h11
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agentrpc.domain.network import NetworkMode, NetworkPolicy
from agentrpc.gateway.egress import EgressProxy, EgressShare
from agentrpc.gateway.egress_dial import Lookups
from agentrpc.gateway.tls import TlsStream
from agentrpc.gateway.tunnel import Stream
from agentrpc.services import certificate_authority

LOOPBACK = NetworkPolicy(NetworkMode.PUBLIC, private=(ipaddress.ip_network("127.0.0.0/8"),))


def new_authority():
    """A certificate authority."""
    certificate, key = certificate_authority._make()
    return certificate_authority.CertificateAuthority(
        x509.load_der_x509_certificate(certificate), serialization.load_der_private_key(key, None)
    )


def server_context(authority, host):
    """TLS for a server of a host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pem")
        file.write_bytes(authority.issue(host))
        context.load_cert_chain(file)
    return context


def trusting(*authorities):
    """TLS for a client that trusts these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # As Python does by itself from 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata="".join(authority.pem for authority in authorities))
    return context


@dataclass
class Request:
    """What a server got."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name):
        return [value for key, value in self.headers if key == name]


class Origin:
    """An https server that keeps what it gets, and answers what `answer` says: the bytes of a whole answer.

    `answer(request, writer)` may write itself, and return None: then the connection ends. With `raw` set, whatever
    comes is given to it as reader and writer.
    """

    def __init__(self, context, answer=None, raw=None):
        self.requests = []
        self.bytes = b""
        self.connections = 0
        self.closed = asyncio.Event()
        self._context = context
        self._answer = answer or (lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self._raw = raw

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(OSError, h11.RemoteProtocolError, asyncio.IncompleteReadError):
            if self._raw is not None:
                await self._raw(reader, writer)
            else:
                await self._exchange(reader, writer)
        self.closed.set()
        writer.close()

    async def _exchange(self, reader, writer):
        http, request = h11.Connection(h11.SERVER), None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                self.bytes += data
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                headers = [(key.decode(), value.decode()) for key, value in event.headers]
                request = Request(event.method.decode(), event.target.decode(), headers)
            elif isinstance(event, h11.Data):
                request.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.requests.append(request)
                answer = self._answer(request, writer)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
                # Only for its state.
                http.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                http.send(h11.EndOfMessage())
                http.start_next_cycle()
            else:
                return


@contextlib.asynccontextmanager
async def proxy_for(intercept, policy=LOOPBACK, names=None):
    """An egress proxy on a port of loopback: the port, the accesses that it reports, and itself.

    Args:
        intercept: What takes connections over.
        policy: What may be reached.
        names: Addresses by host; 127.0.0.1 for others.
    """

    async def resolve(host, _port):
        return [(names or {}).get(host, "127.0.0.1")]

    reported = []
    share = EgressShare(1, Lookups(resolve))
    proxy = EgressProxy(policy, report=reported.append, share=share, intercept=intercept)
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    await proxy.serve(listener)
    try:
        yield listener.getsockname()[1], reported, proxy
    finally:
        await proxy.close()


class Client:
    """A connection to a host through a proxy, with TLS inside unless `context` is None."""

    def __init__(self, port, place, context, server_hostname=None):
        self._port = port
        self._place = place
        self._context = context
        self._name = server_hostname or place.rpartition(":")[0]
        self._left = b""

    async def __aenter__(self):
        self.sock = socket.create_connection(("127.0.0.1", self._port))
        self.sock.setblocking(False)
        self.stream = Stream(self.sock)
        self.tls = None
        try:
            await self._begin()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begin(self):
        await self.stream.write(f"CONNECT {self._place} HTTP/1.1\r\nHost: {self._place}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await self.stream.read()
            assert piece, head
            head += piece
        head, _, rest = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head + rest
        self.stream.unread(rest)
        if self._context is not None:
            self.tls = TlsStream(self.stream, self._context, server_hostname=self._name)
            await self.tls.handshake()

    async def __aexit__(self, *_):
        if self.tls is not None:
            await self.tls.close()
        self.sock.close()

    @property
    def certificate(self):
        return self.tls._tls.getpeercert()

    async def say(self, data):
        await self.tls.write(data.encode() if isinstance(data, str) else data)

    async def until(self, end):
        """What comes, up to and with `end`."""
        async with asyncio.timeout(30):
            while end not in self._left:
                piece = await self.tls.read()
                assert piece, f"ended: {self._left[-500:]!r}"
                self._left += piece
        found, _, self._left = self._left.partition(end)
        return found + end

    async def exactly(self, count):
        """So many bytes."""
        async with asyncio.timeout(60):
            while len(self._left) < count:
                piece = await self.tls.read()
                assert piece, f"ended: {self._left[-500:]!r}"
                self._left += piece
        found, self._left = self._left[:count], self._left[count:]
        return found

    async def rest(self):
        """All that comes until the other side has ended it. Raises OSError if it was cut off."""
        async with asyncio.timeout(30):
            while piece := await self.tls.read():
                self._left += piece
        found, self._left = self._left, b""
        return found

    async def ask(self, request):
        """One request, and its answer: status, headers, body."""
        await self.say(request)
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=request.split(" ")[0], target="/", headers=[("host", "x")]))
        http.send(h11.EndOfMessage())
        if self._left:
            http.receive_data(self._left)
            self._left = b""
        head, body = None, b""
        async with asyncio.timeout(30):
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await self.tls.read())
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._left = http.trailing_data[0]
                    return head.status_code, dict(head.headers), body
                elif isinstance(event, h11.ConnectionClosed):
                    raise AssertionError("no answer")
