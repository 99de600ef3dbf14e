"""Credentials: at which hosts they are added, as which header, and what of an answer gives them away."""

import base64
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from agentrpc.domain.network import Destination, check_destination
from agentrpc.v1 import credential_pb2

__all__ = [
    "HTTPS_PORT",
    "KINDS",
    "HostIndex",
    "Mask",
    "check_value",
    "header_of",
    "read_host_pattern",
    "secret_field",
    "secrets_of",
    "without_value",
]

# The kinds, and the field of each that holds the value.
KINDS = {"bearer": "token", "basic": "password", "header": "value", "git": "token"}
HTTPS_PORT = 443

_GIT_USERNAME = "x-access-token"
_MAX_VALUE = 8 * 1024
_TOKEN = re.compile(r"[!-~]+")
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
# What carries HTTP itself, or what a server takes for the address of a caller.
_FRAMING = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "date", "expect", "host", "http2-settings",
    "keep-alive", "origin", "range", "te", "trailer", "transfer-encoding", "upgrade", "via",
})  # fmt: skip
# A shorter one would be found by chance in what has nothing to do with it.
_MIN_MASKED = 8


# ---- Where ----


@lru_cache(maxsize=4096)
def read_host_pattern(text: str) -> Destination:
    """`host` or `*.host`, each with `:port`: 443 without one.

    Raises:
        ValueError: It is none; the text says why.
    """
    found = check_destination(text)
    if found.network is not None:
        raise ValueError("an address has no name that a certificate could prove: write the host's name")
    if found.subdomains and "." not in found.host:
        raise ValueError("that is all of a top-level domain: name the hosts")
    return found if found.port is not None else replace(found, port=HTTPS_PORT)


class HostIndex:
    """Which credential is for which hosts, as far as no two are for the same."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, int | None], str] = {}
        self._subdomains: dict[tuple[str, int | None], str] = {}
        # For each name, one that has a host or subdomains somewhere below it.
        self._below: dict[tuple[str, int | None], str] = {}

    def add(self, credential: str, pattern: Destination) -> str | None:
        """Note where a credential is added. Another one, if that is for one of these hosts already."""
        place, parents = (pattern.host, pattern.port), _parents(pattern)
        others = [self._subdomains.get(parent) for parent in parents]
        if pattern.subdomains:
            others += [self._subdomains.get(place), self._below.get(place)]
            self._subdomains[place] = credential
        else:
            others.append(self._hosts.get(place))
            self._hosts[place] = credential
        for parent in parents:
            self._below[parent] = credential
        return next((other for other in others if other not in {None, credential}), None)


def _parents(pattern: Destination) -> list[tuple[str, int | None]]:
    labels = pattern.host.split(".")
    return [(".".join(labels[at:]), pattern.port) for at in range(1, len(labels))]


# ---- What ----


def secret_field(credential: credential_pb2.Credential) -> tuple[str, str] | None:
    """The kind of a credential, and the name of the field that holds its value. None: it has no kind."""
    kind = credential.WhichOneof("kind")
    return None if kind is None else (kind, KINDS[kind])


def without_value(credential: credential_pb2.Credential) -> credential_pb2.Credential:
    """The kind alone, without the value."""
    shown = credential_pb2.Credential()
    if (found := secret_field(credential)) is not None:
        kind, field = found
        getattr(shown, kind).CopyFrom(getattr(credential, kind))
        getattr(shown, kind).ClearField(field)
    return shown


def check_value(credential: credential_pb2.Credential, value: str) -> Iterable[tuple[str, str]]:
    """What is wrong with a kind and its value: fields and descriptions."""
    found = secret_field(credential)
    if found is None:
        yield "kind", "is required: bearer, basic, header or git"
        return
    kind, field = found
    where = f"{kind}.{field}"
    if not value:
        yield where, "is required"
    elif len(value.encode()) > _MAX_VALUE:
        yield where, f"may have at most {_MAX_VALUE} bytes"
    elif kind in {"bearer", "git"} and not _TOKEN.fullmatch(value):
        yield where, "must be printable ASCII without blanks"
    elif kind == "header" and not _HEADER_VALUE.fullmatch(value):
        yield where, "must be printable ASCII, without blanks at its ends"
    elif kind == "basic" and not value.isprintable():
        yield where, "holds what cannot be printed, such as a line break"
    if kind in {"basic", "git"}:
        username = getattr(credential, kind).username
        if ":" in username or not username.isprintable() or len(username) > 200:
            yield f"{kind}.username", "must have at most 200 printable characters, none of them a colon"
    elif kind == "header":
        name = credential.header.name
        if not _HEADER_NAME.fullmatch(name):
            yield "header.name", "must be the name of a header, such as X-Api-Key"
        elif name.lower() in _FRAMING or name.lower().startswith(("proxy-", "sec-")):
            yield "header.name", f"{name} carries HTTP itself, and is not for credentials"


def header_of(credential: credential_pb2.Credential, value: str) -> tuple[str, str]:
    """The header that a credential, which is valid, adds: name and value."""
    match credential.WhichOneof("kind"):
        case "bearer":
            return "Authorization", f"Bearer {value}"
        case "header":
            return credential.header.name, value
        case "git":
            return "Authorization", _basic(credential.git.username or _GIT_USERNAME, value)
        case _:
            return "Authorization", _basic(credential.basic.username, value)


def _basic(username: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def secrets_of(header_value: str, value: str) -> list[bytes]:
    """What must not come back in an answer: the value, and what was made of it for the header, without its scheme."""
    found = {value, header_value.partition(" ")[2]}
    return sorted((text.encode() for text in found if len(text.encode()) >= _MIN_MASKED), key=len, reverse=True)


class Mask:
    """Puts asterisks in the place of secrets in a stream of bytes, as many, so that no length changes.

    Whatever may be the beginning of a secret waits for what comes behind it: no more bytes than a secret has, and none
    before the end of a line, which no secret holds. The letters of the secret have no part in that: else an agent that
    makes a server send beginnings of its own could try which of them wait.

    Args:
        secrets: What to mask, the longest first.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = [(secret, b"*" * len(secret)) for secret in secrets]
        self._longest = max((len(secret) for secret, _ in self._secrets), default=1)
        self._held = b""

    def whole(self, data: bytes) -> bytes:
        """Mask what stands by itself, such as a header."""
        for secret, stars in self._secrets:
            data = data.replace(secret, stars)
        return data

    def feed(self, data: bytes) -> bytes:
        """The next part of a stream; what can be passed on of it."""
        data = self.whole(self._held + data)
        at = max(0, len(data) - self._longest + 1)
        at = max(at, data.rfind(b"\n", at) + 1)
        self._held = data[at:]
        return data[:at]

    def end(self) -> bytes:
        """What is left at the end of a stream."""
        held, self._held = self._held, b""
        return held
