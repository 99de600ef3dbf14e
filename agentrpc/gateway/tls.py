"""TLS over a connection that is open already, on either side of it."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from agentrpc.gateway.tunnel import Stream

__all__ = ["TlsStream"]

_T = TypeVar("_T")

# Records have at most 16 KiB: as many at once as have come.
_READ = 16 * 1024
_MOST = 64 * 1024


class TlsStream:
    """A TLS connection, which reads no more than it is asked for.

    One task may read while another one writes. A read that is cancelled loses nothing: half a record would be the end
    of the connection.

    Args:
        stream: What it goes over.
        context: For this side.
        server_hostname: Of a client: whom the certificate has to name.
        server_side: Whether the peer is the client.
    """

    def __init__(
        self, stream: Stream, context: ssl.SSLContext, *, server_hostname: str | None = None, server_side: bool = False
    ) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._receiving: asyncio.Task[bytes] | None = None
        self._early = b""
        self._sending = asyncio.Lock()
        self.received = self.sent = 0

    async def handshake(self) -> None:
        """Begin. Raises OSError, of it ssl.SSLError when the peer speaks no TLS or its certificate is not good."""
        try:
            await self._run(self._tls.do_handshake)
        finally:
            # Of an alert too.
            await self._flush()

    async def read(self) -> bytes:
        """The next bytes of the peer; none when it has ended the connection.

        Raises:
            OSError: It was cut off: there may have been more.
        """
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            data = await self._run(lambda: self._tls.read(_READ))
        except ssl.SSLZeroReturnError:
            return b""
        pieces, size = [data], len(data)
        # What is wrong with what comes behind is told when that is read.
        with suppress(ssl.SSLError):
            while self._incoming.pending and size < _MOST and pieces[-1]:
                pieces.append(self._tls.read(_READ))
                size += len(pieces[-1])
        return b"".join(pieces)

    def unread(self, data: bytes) -> None:
        """Put bytes back."""
        self._early = data + self._early

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when they are on their way. Raises OSError."""
        if data:
            # It takes all at once: the memory below has no bound, and without renegotiation it never has to read first.
            self._tls.write(data)
            await self._flush()

    async def end(self) -> None:
        """Tell the peer that nothing more comes. The connection below stays open."""
        # The peer has not said the same yet, and need not.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()

    async def close(self) -> None:
        """Read nothing more."""
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)

    async def _run(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()

    async def _receive(self) -> None:
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._stream.read(), name="tls-read")
        data = await asyncio.shield(self._receiving)
        self._receiving = None
        self.received += len(data)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        async with self._sending:
            data = self._outgoing.read()
            self.sent += len(data)
            await self._stream.write(data)
