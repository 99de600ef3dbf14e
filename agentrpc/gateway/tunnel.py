"""Bytes between two sockets, with as little Python as possible.

What one side does not take is not read from the other: memory is one piece for each direction. A side that shuts down
its sending still gets what the other sends.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

__all__ = ["Pace", "Source", "Stream", "Tally", "abort", "linger", "tunnel"]

_PIECE = 256 * 1024
_READ = 64 * 1024
# Of all tunnels of a session in one turn of the loop, each read counting as so many bytes at least.
_OF_A_TURN = 512 * 1024
_LEAST = 4096
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 * 1024 * 1024
# SO_LINGER with no time: closing sends a reset, so that the other side sees a broken stream and not an end.
_RESET = struct.pack("ii", 1, 0)


class Tally(Protocol):
    """What counts the bytes of a connection."""

    sent: int
    received: int


class Source(Protocol):
    """What bytes come from."""

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        ...

    def unread(self, data: bytes) -> None:
        """Put bytes back."""
        ...


class Stream:
    """A socket of which some bytes may have been read already.

    Args:
        sock: Non-blocking, connected.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._early = b""
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        if self._early:
            return self.take()
        return await self._loop.sock_recv(self.sock, _READ)

    async def exactly(self, count: int) -> bytes:
        """So many bytes. Raises EOFError if there are fewer."""
        data = b""
        while len(data) < count:
            piece = await self.read()
            if not piece:
                raise EOFError
            data += piece
        self.unread(data[count:])
        return data[:count]

    def unread(self, data: bytes) -> None:
        """Put bytes back."""
        self._early = data + self._early

    def take(self) -> bytes:
        """The bytes that have been read already."""
        data, self._early = self._early, b""
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when the kernel has them."""
        if data:
            await self._loop.sock_sendall(self.sock, data)


def abort(sock: socket.socket) -> None:
    """Close a socket so that the other side sees that something is missing."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


async def linger(sock: socket.socket) -> None:
    """Let a client read its answer before the connection is closed: unread bytes would make that a reset."""
    loop = asyncio.get_running_loop()
    left = _LINGER_BYTES
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0 and (data := await loop.sock_recv(sock, 64 * 1024)):
                left -= len(data)


class Pace:
    """What the tunnels of one session may move in one turn of the loop, which is everybody's."""

    def __init__(self) -> None:
        self._left = _OF_A_TURN

    @property
    def spent(self) -> bool:
        """Whether the rest has to wait."""
        return self._left <= 0

    def spend(self, count: int) -> None:
        """So many bytes have moved."""
        if self._left == _OF_A_TURN:
            asyncio.get_running_loop().call_soon(self._renew)
        self._left -= max(count, _LEAST)

    def _renew(self) -> None:
        self._left = _OF_A_TURN


async def tunnel(client: Stream, server: Stream, tally: Tally, *, idle: float, pace: Pace) -> None:
    """Move bytes both ways until both sides have ended. Closes neither socket.

    Args:
        client: Whose bytes count as sent.
        server: The other side.
        tally: Counts as bytes move.
        idle: Seconds without a byte in either direction after which it ends.
        pace: Of all tunnels of the session.

    Raises:
        OSError: A side broke off.
        TimeoutError: Nothing moved for too long.
    """
    early = client.take()
    await server.write(early)
    tally.sent += len(early)
    await _Tunnel(client.sock, server.sock, tally, idle, pace).run()


class _Tunnel:
    """Both directions, and the end of them."""

    def __init__(self, client: socket.socket, server: socket.socket, tally: Tally, idle: float, pace: Pace) -> None:
        self._loop = asyncio.get_running_loop()
        self._tally = tally
        self._idle = idle
        self._active = self._loop.time()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._ways = (
            _Way(client, server, pace, self._sent, self._end),
            _Way(server, client, pace, self._received, self._end),
        )

    async def run(self) -> None:
        self._timer = self._loop.call_later(self._idle, self._look)
        try:
            for way in self._ways:
                way.start()
            await self._done
        finally:
            self._timer.cancel()
            for way in self._ways:
                way.stop()

    def _look(self) -> None:
        left = self._active + self._idle - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._end(TimeoutError("nothing moved"))

    def _sent(self, count: int) -> None:
        self._active = self._loop.time()
        self._tally.sent += count

    def _received(self, count: int) -> None:
        self._active = self._loop.time()
        self._tally.received += count

    def _end(self, error: Exception | None) -> None:
        """A direction has ended, or broken off."""
        if self._done.done():
            return
        if error is not None:
            self._done.set_exception(error)
        elif all(way.ended for way in self._ways):
            self._done.set_result(None)


class _Way:
    """One direction."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        pace: Pace,
        moved: Callable[[int], None],
        end: Callable[[Exception | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._pace = pace
        self._moved = moved
        self._end = end
        self._left = b""
        self.ended = False

    def start(self) -> None:
        self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        if self._pace.spent:
            # The loop calls again in its next turn.
            return
        try:
            buffer = _buffer()
            count = self._source.recv_into(buffer)
            self._pace.spend(count)
            if not count:
                self._loop.remove_reader(self._source)
                self._sink.shutdown(socket.SHUT_WR)
                self.ended = True
                self._end(None)
                return
            self._moved(count)
            sent = self._send(buffer[:count])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if sent < count:
            self._left = bytes(buffer[sent:count])
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._write)

    def _write(self) -> None:
        try:
            self._left = self._left[self._send(self._left) :]
        except OSError as error:
            self._end(error)
            return
        if not self._left:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._read)

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0


_THREAD = threading.local()


def _buffer() -> memoryview:
    """One for all tunnels of a loop: nothing stays in it."""
    try:
        found: memoryview = _THREAD.buffer
    except AttributeError:
        found = _THREAD.buffer = memoryview(bytearray(_PIECE))
    return found
