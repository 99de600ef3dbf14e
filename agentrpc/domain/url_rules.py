"""The host that a URL names, as the WHATWG standard has it and every browser and Node read it (`ada-url`).

    domain:example.com       that host, and none of its subdomains
    domain:*.example.com     its subdomains at any depth, and not itself
    domain:example.*         one name in place of the `*`
    domain:*                 every host

A URL that is not written plainly (user and password, control characters, blanks, backslashes, escapes or letters of
other scripts in the host, a dot at its end, another scheme than http and https) is allowed by no rule, and denied by
every rule that denies a domain: who writes so means another host than one reads.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import ada_url

__all__ = ["Address", "check_domain", "domain_fits", "read_url"]

_ODD = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ufeff]")
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_DOMAIN = re.compile(r"\*|(\*\.)?[a-z0-9_*-]+(\.[a-z0-9_*-]+)*|\[[0-9a-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads.

    Attributes:
        host: In lower case, without a dot at the end; None when there is none.
        plain: Whether the URL is written so that nobody can read another host in it.
        why: Why it is not plain.
    """

    host: str | None
    plain: bool
    why: str = ""


def read_url(text: object) -> Address:
    """Read what is given as a URL. Never raises."""
    if not isinstance(text, str):
        return Address(None, plain=False, why="it is no text")
    try:
        url = ada_url.URL(text)
        scheme, host, with_port = url.protocol.rstrip(":"), url.hostname, url.host
    except ValueError:
        return Address(None, plain=False, why="it is no URL")
    if scheme not in _DEFAULT_PORTS or not host:
        return Address(None, plain=False, why="it is not of http or https")
    bare = host.rstrip(".")
    if _ODD.search(text):
        return Address(bare, plain=False, why="it holds blanks, control characters or backslashes")
    written = _AUTHORITY.match(text)
    if written is None:
        return Address(bare, plain=False, why="it does not begin with http:// or https://")
    if "@" in written[2]:
        return Address(bare, plain=False, why="it holds a user or a password")
    said = written[2].lower().removesuffix(_DEFAULT_PORTS[scheme])
    if said != with_port or bare != host:
        return Address(bare, plain=False, why=f"its host is not written as what it is, {bare}")
    return Address(bare, plain=True)


def check_domain(pattern: str) -> None:
    """Raise ValueError, with a remedy, for what is no pattern of a domain."""
    if _DOMAIN.fullmatch(_normal(pattern)) is None:
        raise ValueError("a domain is a host alone, such as domain:example.com, domain:*.example.com or domain:*")


def domain_fits(pattern: str, host: str) -> bool:
    """Whether a pattern of a domain fits a host of an `Address`."""
    return _expression(pattern).fullmatch(host) is not None


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    text = _normal(pattern)
    if text == "*":
        return re.compile(".*", re.DOTALL)
    below = text.startswith("*.")
    rest = text[2:] if below else text
    expression = "".join("[^.]*" if letter == "*" else re.escape(letter) for letter in rest)
    return re.compile(f"(?:.+\\.)?[^.]+\\.{expression}" if below else expression)


def _normal(pattern: str) -> str:
    text = pattern.strip().rstrip(".").lower()
    if text.isascii():
        return text
    try:
        return str(ada_url.idna_to_ascii(text).decode())
    except ValueError:
        return text
