"""TLS over a connection that is open already, on either side of it."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["TlsStream"]

_T = TypeVar("_T")

_READ = 64 * 1024


class TlsStream:
    """A TLS connection over a pair of streams, which it neither reads nor writes ahead of what is asked of it.

    One task may read while another one writes. The streams' `start_tls` does the same only where nothing was read
    before, and on Python 3.11 loses the back-pressure of its reader.

    Args:
        reader: What the peer sends.
        writer: What it is sent.
        context: For this side.
        server_hostname: Of a client: whom the certificate has to name.
        server_side: Whether the peer is the client.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        server_side: bool = False,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )

    async def handshake(self) -> None:
        """Begin. Raises ssl.SSLError, also when the peer's certificate is not good, and OSError."""
        await self._run(self._tls.do_handshake)

    async def read(self) -> bytes:
        """The next bytes of the peer; none when it has ended the connection.

        Raises:
            OSError: It was cut off: there may have been more.
        """
        try:
            return await self._run(self._tls.read, _READ)
        except ssl.SSLZeroReturnError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when there is room for more. Raises OSError."""
        # All at once: the memory it goes through has no bound, and without renegotiation writing never has to read.
        self._tls.write(data)
        await self._flush()

    async def end(self) -> None:
        """Tell the peer that nothing more comes."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            # It has not said the same yet, and need not.
            pass
        await self._flush()

    async def _run(self, step: Callable[..., _T], *given: Any) -> _T:  # noqa: ANN401 - of the step
        while True:
            try:
                return step(*given)
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._reader.read(_READ)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                if self._outgoing.pending:
                    await self._flush()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            self._writer.write(data)
        await self._writer.drain()
