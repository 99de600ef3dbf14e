"""From the host that an agent asks for to a connection, or to why there is none.

A name is looked up once, each of its addresses is judged, and the connection goes to one that was judged: a name that
resolves to something else a moment later changes nothing. Look-ups run in threads of their own, so many at a time, and
sessions take them by turns: a slow name server of one session keeps no other from its hosts.
"""

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import psutil
import structlog
from aiohappyeyeballs import start_connection
from prometheus_client import Counter

from agentrpc.domain.network import NetworkPolicy, Verdict
from agentrpc.gateway.tunnel import Stream
from agentrpc.services.addresses import Resolver
from agentrpc.turns import Turns

__all__ = ["CONNECTIONS", "Access", "Book", "Dialer", "Lookups", "Refusal", "Route"]

log = structlog.get_logger()

CONNECTIONS = Counter(
    "agentrpc_egress_connections_total",
    "Connections that agents asked for: ALLOWED, DENIED, UNREACHABLE, or NOT_UNDERSTOOD.",
    ("outcome",),
)

# Fewer than there are threads for names: the service has some of its own to look up.
_LOOKUPS = 24
_LOOKUPS_OF_A_SESSION = 6
_LOOKUP_SECONDS = 15.0
_CONNECT_SECONDS = 30.0
# Addresses that are tried of those that a name has, and seconds between the beginnings of two tries (RFC 8305).
_TRIES = 8
_STAGGER = 0.25
_MAX_DESTINATIONS = 500
_ADDRESSES_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Access:
    """What a session had to do with one destination.

    Attributes:
        host: As it was asked for. `*`, with port 0, stands for all destinations beyond the first 500.
        port: Its port.
        allowed: What was decided.
        rule: Which rule decided the first time.
        connections: How often it was asked for.
        bytes_sent: From the agent.
        bytes_received: To the agent.
        credential: The credential that was added to a request there last, `credentials/{credential}`. Empty: none.
    """

    host: str
    port: int
    allowed: bool
    rule: str
    connections: int
    bytes_sent: int
    bytes_received: int
    credential: str = ""


@dataclass(slots=True)
class _Tally:
    host: str
    port: int
    verdict: Verdict
    connections: int = 0
    sent: int = 0
    received: int = 0
    credential: str = ""

    def access(self) -> Access:
        return Access(
            self.host,
            self.port,
            self.verdict.allowed,
            self.verdict.rule,
            self.connections,
            self.sent,
            self.received,
            self.credential,
        )


class Book:
    """All destinations of a session, bounded in number: an agent may name millions.

    Args:
        report: Called with each that is new, and whenever a credential is added to a request.
    """

    def __init__(self, report: Callable[[Access], None]) -> None:
        self._report = report
        self._tallies: dict[tuple[str, int, bool], _Tally] = {}

    def enter(self, host: str, port: int, verdict: Verdict) -> _Tally:
        """Count a connection; what it moves is counted on what this returns."""
        key = (host, port, verdict.allowed)
        if key not in self._tallies and len(self._tallies) >= _MAX_DESTINATIONS:
            host, port, key = "*", 0, ("*", 0, verdict.allowed)
        tally = self._tallies.get(key)
        new = tally is None
        if tally is None:
            tally = self._tallies[key] = _Tally(host, port, verdict)
        tally.connections += 1
        if new:
            self._report(tally.access())
        return tally

    def note_credential(self, tally: _Tally, credential: str) -> None:
        """A credential was added to a request."""
        tally.credential = credential
        self._report(tally.access())

    def totals(self) -> list[Access]:
        """All of them, in the order in which they came."""
        return [tally.access() for tally in self._tallies.values()]


class Refusal(Exception):
    """What was asked for is not done.

    Attributes:
        status: Of HTTP.
        summary: A few words for the status line; programs show it where they do not show the text.
        text: What a model can act on.
    """

    def __init__(self, status: int, summary: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.summary = summary
        self.text = text


@dataclass(frozen=True, slots=True)
class Route:
    """A connection that was made.

    Attributes:
        host: As it was asked for.
        port: Its port.
        stream: The connection.
        tally: Counts its bytes.
        on_credential: To be told of each credential that is added to a request.
    """

    host: str
    port: int
    stream: Stream
    tally: _Tally
    on_credential: Callable[[str], None]


@dataclass(slots=True)
class Lookups:
    """Look-ups of all sessions of a worker.

    Attributes:
        resolve: Gives the addresses of a host; OSError if there are none.
    """

    resolve: Resolver
    _turns: Turns = field(default_factory=lambda: Turns(_LOOKUPS, per_key=_LOOKUPS_OF_A_SESSION))
    _running: set[asyncio.Task[list[str]]] = field(default_factory=set)

    async def find(self, session: object, host: str, port: int) -> list[str]:
        """The addresses of a host. Raises OSError if there are none, TimeoutError after 15 seconds."""
        # A thread that looks a name up cannot be stopped: its place is free when it is done, not when nobody waits.
        task = asyncio.create_task(self._find(session, host, port))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        async with asyncio.timeout(_LOOKUP_SECONDS):
            return await asyncio.shield(task)

    async def _find(self, session: object, host: str, port: int) -> list[str]:
        async with self._turns.take(session):
            return await self.resolve(host, port)


class Dialer:
    """Connects for one session.

    Args:
        policy: What it may reach.
        book: Where all is written.
        lookups: Of all sessions.
        listens_at: Where the session's own proxy listens, as far as that is an address of IP.
    """

    def __init__(
        self, policy: NetworkPolicy, book: Book, lookups: Lookups, listens_at: tuple[str, int] | None = None
    ) -> None:
        self._policy = policy
        self._book = book
        self._lookups = lookups
        self.listens_at = listens_at

    async def connect(self, host: str, port: int) -> Route:
        """Connect to a host, as `read_host` gives it.

        Raises:
            Refusal: That is not allowed, or does not work.
        """
        verdict = self._policy.by_name(host, port)
        if verdict is not None:
            raise self._denied(host, port, verdict)
        addresses = await self._addresses(host, port)
        verdicts = {address: self._judge(host, port, address) for address in addresses}
        allowed = [address for address in addresses if verdicts[address].allowed]
        if not allowed:
            raise self._denied(host, port, verdicts[addresses[0]])
        tally = self._book.enter(host, port, verdicts[allowed[0]])
        try:
            sock = await _connect(allowed[:_TRIES], port)
        except TimeoutError:
            raise Refusal(504, "Host Does Not Answer", f"{host}:{port} does not answer: try later.") from None
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else "no connection"
            raise Refusal(502, "Host Not Reachable", f"{host}:{port} cannot be reached: {why}.") from None
        try:
            self._check_peer(sock, allowed)
        except OSError:
            sock.close()
            raise self._denied(host, port, Verdict(allowed=False, rule="the connection led elsewhere")) from None
        CONNECTIONS.labels("ALLOWED").inc()
        return Route(host, port, Stream(sock), tally, partial(self._book.note_credential, tally))

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            addresses = await self._lookups.find(self, host, port)
        except TimeoutError:
            raise _silent(host) from None
        except OSError as error:
            if error.errno == socket.EAI_AGAIN:
                raise _silent(host) from None
            addresses = []
        if not addresses:
            raise Refusal(502, "Unknown Host", f"{host} has no address: check the name.")
        return addresses

    def _judge(self, host: str, port: int, address: str) -> Verdict:
        verdict = self._policy.by_address(host, port, address)
        if not verdict.allowed:
            return verdict
        if (address, port) == self.listens_at:
            return Verdict(allowed=False, rule=f"{address}:{port} is this proxy")
        if self._policy.private_range(address) is None and address in _own_addresses(
            int(time.monotonic() // _ADDRESSES_SECONDS)
        ):
            return Verdict(allowed=False, rule=f"{address} is the worker's own")
        return verdict

    def _check_peer(self, sock: socket.socket, allowed: list[str]) -> None:
        """Raise OSError for a connection that leads to another address than those, or to this machine."""
        peer, own = (place[0].partition("%")[0] for place in (sock.getpeername(), sock.getsockname()))
        elsewhere = ipaddress.ip_address(peer) not in map(ipaddress.ip_address, allowed)
        if elsewhere or (peer == own and self._policy.private_range(peer) is None):
            log.error("egress_led_elsewhere", peer=peer)
            raise OSError

    def _denied(self, host: str, port: int, verdict: Verdict) -> Refusal:
        self._book.enter(host, port, verdict)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Refusal(
            403,
            f"Denied By The Session's Network Rules ({verdict.rule})",
            f"This session may not connect to {place}: {verdict.rule}. Trying again, or by other ways, does not help. "
            f"If you need it, say so: whoever runs the session can allow it in its network options.",
        )


def _silent(host: str) -> Refusal:
    return Refusal(504, "No Answer From Name Servers", f"The name servers do not answer for {host}: try later.")


async def _connect(addresses: list[str], port: int) -> socket.socket:
    """A connection to whichever address answers first; none is waited for alone (RFC 8305)."""
    infos = [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (address, port),
        )
        for address in addresses
    ]
    async with asyncio.timeout(_CONNECT_SECONDS):
        sock = await start_connection(infos, happy_eyeballs_delay=_STAGGER)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


@lru_cache(maxsize=1)
def _own_addresses(_now: int) -> frozenset[str]:
    """The addresses of this machine's interfaces. Asked again when `_now` changes."""
    return frozenset(
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
    )
