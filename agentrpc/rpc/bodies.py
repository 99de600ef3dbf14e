"""How much of requests is read, and of whom.

Of a unary request gRPC reads the whole body, up to 16 MiB, before its handler begins; of a stream only what the handler
asks for. On the wire they are the same, so all methods are registered as streams of requests: nothing is read of a
caller before it is known who calls, besides the 64 KiB that HTTP/2 lets anybody send. Of those who log in, whom nobody
can know, a few bodies are read at a time, small ones, for a short time; of users some more.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import UUID

from google.protobuf.message import DecodeError, Message

from agentrpc.errors import InvalidArgument, Unavailable
from agentrpc.settings import Settings
from agentrpc.turns import Turns

if TYPE_CHECKING:
    import grpc

__all__ = ["Bodies", "peer_address"]

# What a caller who is not known may send, and how long the rest of it may be on its way: it comes with the call.
_STRANGER_BYTES = 16 * 1024
_STRANGER_PATIENCE = 2.0


class Bodies:
    """Reads requests.

    Args:
        settings: How long a sender may pause.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._strangers = Turns(4, per_key=2, waiting=64, newest_first=True)
        self._known = Turns(256, per_key=16)

    async def one(
        self,
        user: UUID | None,
        address: str,
        request_class: type[Message],
        context: "grpc.aio.ServicerContext[bytes, bytes]",
    ) -> Message:
        """The one request of a call.

        Args:
            user: Who calls; None: not known.
            address: Where the call comes from.
            request_class: What it is.
            context: The call, of which nothing was read before.

        Raises:
            InvalidArgument: FIELD_INVALID, it is missing or no such message; TOO_LARGE of a caller who is not known.
            ResourceExhausted: RATE_LIMITED, too many from this address are on their way.
            Unavailable: SLOW_CONSUMER, nothing came for too long.
        """
        if user is not None:
            async with self._known.take(user):
                data = await _read(context, self._settings.upload_stall_timeout)
        else:
            async with self._strangers.take(address):
                data = await _read(context, _STRANGER_PATIENCE)
            if (size := len(data or b"")) > _STRANGER_BYTES:
                # An error keeps the frames that it came through, and what they hold, until they are collected.
                del data
                raise InvalidArgument(
                    f"the request has {size} bytes, of {_STRANGER_BYTES} at most",
                    reason="TOO_LARGE",
                    metadata={"field": "request", "limit": str(_STRANGER_BYTES), "actual": str(size)},
                )
        if data is None:
            raise InvalidArgument.field("request", "is missing")
        return _decode(request_class, data)

    async def each(
        self, request_class: type[Message], context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> AsyncIterator[Message]:
        """The requests of a stream, each read when the one before is dealt with: the sender waits meanwhile."""
        while (data := await _read(context, self._settings.upload_stall_timeout)) is not None:
            yield _decode(request_class, data)


async def _read(context: "grpc.aio.ServicerContext[bytes, bytes]", patience: float) -> bytes | None:
    """The next request of a call; None at its end."""
    try:
        async with asyncio.timeout(patience):
            data = await context.read()
    except TimeoutError:
        raise Unavailable(
            "nothing came for too long; nothing was changed: send it again", reason="SLOW_CONSUMER", retry_after=1.0
        ) from None
    if not isinstance(data, bytes):
        # grpc.aio.EOF: the sender has said that this is all.
        return None
    return data


def _decode(request_class: type[Message], data: bytes) -> Message:
    try:
        return request_class.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise InvalidArgument.field(
            "request", f"is not a valid {request_class.DESCRIPTOR.name}: strings must be UTF-8 without lone surrogates"
        ) from None


def peer_address(peer: str) -> str:
    """Where a call comes from, of gRPC's `ipv4:127.0.0.1:5000`: the address; of IPv6 its network, which is one site's.

    Somebody who has one IPv6 address has 2**64 of them (RFC 6177).
    """
    address = unquote(peer.rpartition(":")[0])
    if not address.startswith("ipv6:"):
        return address
    with suppress(ValueError):
        found = IPv6Address(address.removeprefix("ipv6:").strip("[]").partition("%")[0])
        if found.ipv4_mapped is not None:
            return f"ipv4:{found.ipv4_mapped}"
        return f"ipv6:{IPv6Network((found, 64), strict=False)}"
    return address
