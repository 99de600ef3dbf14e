"""SOCKS5 (RFC 1928) as far as an agent's programs need it: CONNECT, by name or address, without a password."""

import ipaddress
import socket

from agentrpc.domain.network import read_host
from agentrpc.gateway.egress_dial import Dialer, Refusal, Route
from agentrpc.gateway.tunnel import Stream

__all__ = ["VERSION", "answer_socks", "read_socks"]

VERSION = 5
_NO_PASSWORD = 0
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_OK, _FAILED, _NOT_ALLOWED, _UNREACHABLE, _EXPIRED, _BAD_COMMAND, _BAD_ADDRESS = 0, 1, 2, 4, 6, 7, 8
_REPLIES = {403: _NOT_ALLOWED, 502: _UNREACHABLE, 504: _EXPIRED}


async def read_socks(client: Stream) -> tuple[str, int]:
    """The host and the port that a client asks for.

    Raises:
        EOFError: It ended before it had asked.
        Refusal: It asks for what there is not; the client has its answer.
    """
    _version, count = await client.exactly(2)
    if _NO_PASSWORD not in await client.exactly(count):
        await client.write(bytes((VERSION, 0xFF)))
        raise _refusal("no password is asked for here")
    await client.write(bytes((VERSION, _NO_PASSWORD)))
    version, command, _, kind = await client.exactly(4)
    if version != VERSION:
        await _reply(client, _FAILED)
        raise _refusal("not SOCKS5")
    if kind == _NAME:
        raw = await client.exactly((await client.exactly(1))[0])
        name = raw.decode("latin-1")
    elif kind in {_IPV4, _IPV6}:
        name = str(ipaddress.ip_address(await client.exactly(4 if kind == _IPV4 else 16)))
    else:
        await _reply(client, _BAD_ADDRESS)
        raise _refusal("no such kind of address")
    port = int.from_bytes(await client.exactly(2))
    if command != _CONNECT:
        await _reply(client, _BAD_COMMAND)
        raise _refusal("only CONNECT is served")
    try:
        host = read_host(name)
        if not port:
            raise ValueError("the port is missing")
    except ValueError as error:
        await _reply(client, _BAD_ADDRESS)
        raise _refusal(str(error)) from None
    return host, port


async def answer_socks(client: Stream, dialer: Dialer, host: str, port: int) -> Route:
    """Connect, and say so to the client.

    Raises:
        Refusal: It does not work; the client has its answer.
    """
    try:
        route = await dialer.connect(host, port)
    except Refusal as error:
        await _reply(client, _REPLIES[error.status])
        raise
    try:
        await _reply(client, _OK)
    except BaseException:
        route.stream.sock.close()
        raise
    return route


def _refusal(text: str) -> Refusal:
    return Refusal(400, "Bad Request", text)


async def _reply(client: Stream, code: int) -> None:
    # Where the connection is bound to is nobody's business: zeros.
    await client.write(bytes((VERSION, code, 0, _IPV4)) + socket.inet_aton("0.0.0.0") + b"\0\0")  # noqa: S104
