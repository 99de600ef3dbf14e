"""The wire between our processes and PostgreSQL: it can be cut, also between a commit and the news of it."""

import asyncio
import contextlib
import re
from collections.abc import Callable

import psutil

__all__ = ["Wire"]

# What a process sends while it appends events, or a control event, of a run.
_EVENTS = b"/runs/"
# A `tool_call_started` in a serialized event: only the gate appends it.
_GATE = re.compile(rb"\xc2\x02.\x0a.toolu_", re.DOTALL)
# ReadyForQuery, idle: no transaction is open any more. Without one of the others what was sent is committed.
_IDLE = b"Z\0\0\0\x05I"
_NOT_DONE = (b"ROLLBACK\0", b"SERROR\0", b"SFATAL\0")

_Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Wire:
    """A TCP port in front of the server's Unix socket.

    Attributes:
        refuses: Nobody gets through for now.
        swallowed: How many answers to commits of events were lost.
    """

    def __init__(self, path: str) -> None:
        self.port = 0
        self.refuses = False
        self.swallowed = 0
        self._path = path
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        # Connections on which events are being committed: is the start of a tool call among them?
        self._under_way: dict[_Pair, bool] = {}
        self._swallow = False
        self._act: Callable[[int], bool] | None = None
        self._only_gate = False
        self._skip = 0
        self._acted = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    @contextlib.contextmanager
    def swallowing(self):
        """Meanwhile the news of a commit of events is not passed on, but breaks its connection."""
        self._swallow = True
        try:
            yield
        finally:
            self._swallow = False

    async def at_commit(self, act: Callable[[int], bool], *, gate: bool, skip: int, timeout: float) -> bool:
        """Act when the server has committed events and nobody knows it yet.

        Args:
            act: Gets the port of the process that is not told. False: it was not the right one, wait for another.
            gate: Only the start of a tool call.
            skip: How many commits pass before.
            timeout: Seconds to wait for it.

        Returns:
            Whether it has acted.
        """
        self._only_gate, self._skip, self._act = gate, skip, act
        self._acted.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._acted.wait()
        except TimeoutError:
            return False
        finally:
            self._act = None
        return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._path, limit=1024 * 1024)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, upstream_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass(reader, upstream_writer, pair), self._back(upstream_reader, writer, pair))
        finally:
            self._pairs.discard(pair)
            self._under_way.pop(pair, None)
            for each in pair:
                each.transport.abort()

    async def _pass(self, reader, writer, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if _EVENTS in data:
                    gate = _GATE.search(data) is not None
                    self._under_way[pair] = self._under_way.get(pair, False) or gate
                writer.write(data)
                await writer.drain()
        for each in pair:
            each.transport.abort()

    async def _back(self, reader, writer, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if pair in self._under_way and _IDLE in data:
                    gate = self._under_way.pop(pair)
                    committed = not any(word in data for word in _NOT_DONE)
                    if committed and self._swallow:
                        self.swallowed += 1
                        break
                    if committed:
                        self._strike(pair, gate=gate)
                writer.write(data)
                await writer.drain()
        for each in pair:
            each.transport.abort()

    def _strike(self, pair: _Pair, *, gate: bool) -> None:
        if self._act is None or (self._only_gate and not gate):
            return
        self._skip -= 1
        if self._skip >= 0:
            return
        with contextlib.suppress(psutil.Error, OSError):
            if self._act(pair[0].get_extra_info("peername")[1]):
                self._act = None
                self._acted.set()
