"""Which addresses this service calls because a caller named them: public ones, unless settings allow more.

A name is resolved once, all its addresses are judged, and the connection is made to one that was judged: a name that
resolves to something else a moment later (DNS rebinding) changes nothing.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

from agentrpc.domain.network import is_public
from agentrpc.errors import InvalidArgument
from agentrpc.services.validation import Faults

__all__ = ["Resolver", "any_addresses", "check_url", "public_addresses", "resolver"]

Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

_MAX_URL = 2048
# Apart from the event loop's, of which two do all look-ups (libuv): a slow name server of one caller would keep the
# whole process from its own database.
_THREADS = ThreadPoolExecutor(32, thread_name_prefix="names")


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
