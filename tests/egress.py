"""An egress proxy on loopback, names that nobody else knows, and servers that stand for public ones."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from agentrpc.domain.network import NetworkMode, NetworkPolicy, check_destination
from agentrpc.gateway.egress import Access, EgressProxy, EgressShare, Waits
from agentrpc.gateway.egress_dial import Lookups

# The worker's loop, and the other: sockets are used below what they have in common.
BOTH_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
WORKERS_LOOP = {"uvloop": uvloop.new_event_loop}

LOOPBACK = ("127.0.0.0/8", "::1/128")


def policy(
    mode: str = "PUBLIC", allowed: Iterable[str] = (), denied: Iterable[str] = (), private: Iterable[str] = LOOPBACK
) -> NetworkPolicy:
    return NetworkPolicy(
        NetworkMode(mode),
        tuple(map(check_destination, allowed)),
        tuple(map(check_destination, denied)),
        tuple(map(ipaddress.ip_network, private)),
    )


@dataclass
class Names:
    """A name server. What it was asked is in `asked`."""

    addresses: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if self.held is not None:
            await self.held.wait()
        if host not in self.addresses:
            raise OSError("no such name")
        return self.addresses[host]


@dataclass
class Door:
    """A proxy that serves."""

    proxy: EgressProxy
    port: int
    reports: list[Access]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes, *, end: bool = False) -> bytes:
        """All that the proxy answers until it closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    async def tunnel(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head == b"HTTP/1.1 200 Connection established\r\n\r\n", head
        return reader, writer


@asynccontextmanager
async def egress(
    rules: NetworkPolicy | None = None,
    names: Names | None = None,
    *,
    share: EgressShare | None = None,
    waits: Waits | None = None,
    wrap: Callable[[socket.socket], socket.socket] = lambda listener: listener,
    **more: object,
) -> AsyncIterator[Door]:
    reports: list[Access] = []
    share = share or EgressShare(1, Lookups(names or Names()))
    proxy = EgressProxy(rules or policy(), report=reports.append, share=share, waits=waits, **more)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    await proxy.serve(wrap(listener))
    try:
        yield Door(proxy, port, reports)
    finally:
        await proxy.close()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handle: Handler, host: str = "127.0.0.1", **more: object) -> AsyncIterator[int]:
    """Serves TCP, and closes each connection when its handler is done. Yields the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    serving = await asyncio.start_server(answer, host, 0, **more)
    try:
        yield serving.sockets[0].getsockname()[1]
    finally:
        serving.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything back, and then how much it was."""
    count = 0
    while data := await reader.read(65536):
        count += len(data)
        writer.write(data)
        await writer.drain()
    writer.write(b"|%d" % count)


def saying(answer: bytes, heads: list[bytes] | None = None) -> Handler:
    """A server of HTTP that answers whatever head comes, and remembers it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        writer.write(answer)

    return handle


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until(done: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what shows only when one looks."""
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
