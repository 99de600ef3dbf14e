"""The egress proxy: the one way out of a session's sandbox.

It speaks HTTP/1.1 (CONNECT, and absolute URLs of `http:`) and SOCKS5 on one socket, told apart by the first byte. The
socket may lie in another network namespace; connections are made in the worker's. Where to is decided by the session's
`NetworkPolicy`, on the address that is then connected to.

What passes through a tunnel is not looked at. So a policy is about hosts and addresses, not about what a host does for
others: a client that speaks TLS to an allowed host of a content delivery network may name another site of the same
network inside (domain fronting), and whoever serves at an allowed address may pass on to anywhere.
"""

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog
from prometheus_client import Gauge

from agentrpc.domain.network import NetworkPolicy
from agentrpc.ending import end_tasks
from agentrpc.gateway import egress_socks
from agentrpc.gateway.egress_dial import CONNECTIONS, Access, Book, Dialer, Lookups, Refusal, Route
from agentrpc.gateway.egress_http import HttpClient
from agentrpc.gateway.tunnel import Pace, Stream, abort, linger, tunnel
from agentrpc.services.addresses import any_addresses
from agentrpc.turns import Turns

__all__ = ["Access", "EgressProxy", "EgressShare", "Intercept", "Relay", "Route", "Stream", "Waits"]

log = structlog.get_logger()

OPEN = Gauge("agentrpc_egress_open_connections", "Connections of agents that are open now.")

Relay: TypeAlias = Callable[[Stream, Route], Awaitable[None]]


class Intercept(Protocol):
    """What takes connections over, such as one that ends TLS."""

    async def relay(self, host: str, port: int) -> Relay | None:
        """What moves the bytes of a tunnel, in place of the proxy, and counts them on `route.tally`. None: the proxy.

        Raises OSError: the tunnel ends.
        """

    async def check_plain(self, host: str) -> None:
        """Raise Refusal for a host to which no plain HTTP is passed on."""


# Of a connection: two sockets, a second try to connect.
_DESCRIPTORS = 4
_MOST_OF_A_SESSION = 256
_NO_DESCRIPTORS_SECONDS = 0.2


class EgressShare:
    """What the proxies of all sessions of a worker share: descriptors, and threads that look names up.

    Args:
        sessions: How many sessions there may be at once; each has a share that the others cannot take.
        lookups: For tests.
    """

    def __init__(self, sessions: int, lookups: Lookups | None = None) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Half of the descriptors are the rest of the worker's.
        self.connections = max(soft // 2 // _DESCRIPTORS, sessions)
        self.of_a_session = max(1, min(_MOST_OF_A_SESSION, self.connections // sessions))
        self.turns = Turns(self.connections, per_key=self.of_a_session)
        self.lookups = lookups or Lookups(any_addresses)


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a connection may do nothing, in seconds.

    Attributes:
        head: Until a request's head is there.
        exchange: Within a request of plain HTTP.
        tunnel: Within a tunnel.
    """

    head: float = 60.0
    exchange: float = 600.0
    tunnel: float = 3600.0


class EgressProxy:
    """The proxy of one session.

    Args:
        policy: What it may reach.
        report: Called at the first connection to each new host and port that is allowed, and that is denied, and
            whenever a credential is added to a request.
        share: Of all sessions of the worker.
        intercept: Asked about each tunnel and each request.
        waits: How long nothing may happen.
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        *,
        report: Callable[[Access], None],
        share: EgressShare | None = None,
        intercept: Intercept | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._share = share or EgressShare(1)
        self._intercept = intercept
        self._waits = waits or Waits()
        self._book = Book(report)
        self._dialer = Dialer(policy, self._book, self._share.lookups)
        self._pace = Pace()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Begin to accept connections. The socket is the proxy's from now on.

        Args:
            listener: A stream socket that listens, of any family and in any network namespace.
        """
        listener.setblocking(False)
        self._listener = listener
        if listener.family in {socket.AF_INET, socket.AF_INET6}:
            self._dialer.listens_at = listener.getsockname()[:2]
        self._start(self._accept(listener))

    async def close(self) -> None:
        """End it, with all connections."""
        await end_tasks(self._tasks)
        if self._listener is not None:
            self._listener.close()

    def totals(self) -> Sequence[Access]:
        """What the session had to do with each destination until now."""
        return self._book.totals()

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue
            except OSError as error:
                # Most likely out of descriptors, which others give back.
                log.warning("egress_cannot_accept", error=str(error))
                await asyncio.sleep(_NO_DESCRIPTORS_SECONDS)
                continue
            try:
                # Those that come while all places are taken wait in the listening socket.
                await self._share.turns.enter(self)
            except BaseException:
                client.close()
                raise
            self._start(self._connection(client))

    async def _connection(self, client: socket.socket) -> None:
        OPEN.inc()
        try:
            with client:
                client.setblocking(False)
                if client.family != socket.AF_UNIX:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._serve(Stream(client))
        finally:
            OPEN.dec()
            self._share.turns.leave(self)

    async def _serve(self, client: Stream) -> None:
        try:
            try:
                async with asyncio.timeout(self._waits.head):
                    first = await client.read()
                client.unread(first)
                if first[:1] == bytes((egress_socks.VERSION,)):
                    await self._socks(client)
                elif first:
                    await self._http(client)
            except Refusal as refusal:
                CONNECTIONS.labels(_OUTCOMES.get(refusal.status, "NOT_UNDERSTOOD")).inc()
                await linger(client.sock)
        except (EOFError, TimeoutError):
            pass
        except OSError:
            abort(client.sock)

    async def _http(self, client: Stream) -> None:
        waits = self._waits
        await HttpClient(
            client, self._dialer, self._tunnel, self._check_plain, head=waits.head, idle=waits.exchange
        ).serve()

    async def _check_plain(self, host: str) -> None:
        if self._intercept is not None:
            await self._intercept.check_plain(host)

    async def _socks(self, client: Stream) -> None:
        async with asyncio.timeout(self._waits.head):
            host, port = await egress_socks.read_socks(client)
        route = await egress_socks.answer_socks(client, self._dialer, host, port)
        try:
            await self._tunnel(client, route)
        finally:
            route.stream.sock.close()

    async def _tunnel(self, client: Stream, route: Route) -> None:
        relay = await self._intercept.relay(route.host, route.port) if self._intercept is not None else None
        if relay is not None:
            await relay(client, route)
            return
        try:
            await tunnel(client, route.stream, route.tally, idle=self._waits.tunnel, pace=self._pace)
        except OSError:
            abort(route.stream.sock)
            raise


_OUTCOMES = {403: "DENIED", 502: "UNREACHABLE", 504: "UNREACHABLE"}
