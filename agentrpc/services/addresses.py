"""Which addresses this service calls because a caller named them: public ones, unless settings allow more.

A name is resolved once, all its addresses are judged, and the connection is made to one that was judged: a name that
resolves to something else a moment later (DNS rebinding) changes nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

from agentrpc.errors import InvalidArgument
from agentrpc.services.validation import Faults

__all__ = ["Resolver", "any_addresses", "check_url", "is_public", "public_addresses", "resolver"]

Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

_MAX_URL = 2048
# Apart from the event loop's, of which two do all look-ups (libuv): a slow name server of one caller would keep the
# whole process from its own database.
_THREADS = ThreadPoolExecutor(32, thread_name_prefix="names")
# RFC 6052: IPv4 addresses behind a NAT64.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
# RFC 6890: some of it counts as global.
_PROTOCOL_ASSIGNMENTS = ipaddress.IPv4Network("192.0.0.0/24")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    It does not if it is private, loopback, link-local (where clouds have their metadata), shared, reserved or
    multicast, or one of those in the clothes of IPv6.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is None:
            return ip.is_global and ip in _GLOBAL_UNICAST and ip not in _SIX_TO_FOUR
        ip = embedded
    return ip.is_global and not ip.is_multicast and ip not in _PROTOCOL_ASSIGNMENTS


async def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises ADDRESS_REFUSED if one of them is not public, OSError if there are none."""
    addresses = await any_addresses(host, port)
    for address in addresses:
        if not is_public(address):
            raise _refused(host, address)
    return addresses


async def any_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises OSError if there are none."""
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(_THREADS, look)
    except UnicodeError as error:
        raise OSError("the host has a name that nobody can have") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def resolver(*, allow_private: bool) -> Resolver:
    """What finds the addresses of hosts that callers name. With `allow_private` all of them count."""
    return any_addresses if allow_private else public_addresses


def check_url(field: str, url: str, faults: Faults, *, allow_private: bool) -> None:
    """What can be said of a caller's URL without asking anybody. Its name is judged again at each call.

    Raises:
        InvalidArgument: ADDRESS_REFUSED, for the literal address of a private host.
    """
    faults.check(len(url) <= _MAX_URL, field, f"may have at most {_MAX_URL} characters")
    faults.check(url.isascii() and url.isprintable() and " " not in url, field, "holds blanks, or other than ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        faults.add(field, "is not a URL")
        return
    faults.check(parts.scheme in {"http", "https"}, field, "must begin with http:// or https://")
    faults.check(bool(host), field, "has no host")
    faults.check(port != 0, field, "has no port that one can call")
    faults.check(not parts.fragment, field, "must have no fragment")
    if allow_private:
        return
    try:
        refused = not is_public(host)
    except ValueError:
        refused = host == "localhost" or host.endswith(".localhost")
    if refused:
        raise _refused(host, host)


def _refused(host: str, address: str) -> InvalidArgument:
    return InvalidArgument(
        f"{host} is, or resolves to, an address that is not public: "
        f"the operator may allow them (AGENTRPC_ALLOW_PRIVATE_ADDRESSES)",
        reason="ADDRESS_REFUSED",
        metadata={"address": address[:100]},
    )
