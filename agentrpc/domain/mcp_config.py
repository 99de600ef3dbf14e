"""Configurations of MCP servers: which parts are secret, and how files of Claude Desktop write them.

Secret are the values of env and headers, and in a URL the user, the password and the values of the query. A
configuration is shown without them; when it comes back as it was shown, they are what they were.
"""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from agentrpc.v1 import session_pb2

__all__ = [
    "REDACTED",
    "EntryError",
    "entry_of",
    "keep_secrets",
    "keep_url",
    "missing_secrets",
    "open_secrets",
    "parse_entry",
    "redacted",
    "seal_secrets",
    "secret_values",
    "session_name_of",
    "url_is_redacted",
]

REDACTED = "REDACTED"
# Begins a sealed text, in values that are stored. No caller can write it: values have no NUL.
SEALED = "\0sealed:"

_REMOTE_TYPES = {"sse": "sse", "http": "http", "streamable-http": "http", "streamableHttp": "http"}
_PLACEHOLDER = re.compile(r"\$\{(?:(?:env|input|config):)?[A-Za-z_][A-Za-z0-9_.-]*(?::-[^}]*)?\}")
_QUERY_VALUE = re.compile(r"(?<==)[^&]+")


class EntryError(ValueError):
    """What is wrong with an entry of a file.

    Attributes:
        path: The field below the entry, such as `args`; empty: the entry itself.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def _secrets(config: session_pb2.McpServer) -> Any:  # noqa: ANN401 - a map of a message, which has no type of its own
    kind = config.WhichOneof("transport")
    if kind == "stdio":
        return config.stdio.env
    return getattr(config, kind).headers if kind in {"sse", "http"} else {}


def redacted(config: session_pb2.McpServer) -> session_pb2.McpServer:
    """The same without secrets."""
    shown = session_pb2.McpServer()
    shown.CopyFrom(config)
    values = _secrets(shown)
    # A copy of the keys: a map of protobuf that is written to while it is walked skips some.
    for key in list(values):
        values[key] = ""
    if (remote := _remote(shown)) is not None:
        remote.url = _redacted_url(remote.url)
    return shown


def _remote(config: session_pb2.McpServer) -> session_pb2.McpRemote | None:
    kind = config.WhichOneof("transport")
    return getattr(config, kind) if kind in {"sse", "http"} else None


def seal_secrets(config: session_pb2.McpServer, seal: Callable[[str], str]) -> None:
    """Put sealed texts in the place of secrets. What is sealed stays as it is; a URL still shows what is not secret."""
    values = _secrets(config)
    for key, value in list(values.items()):
        if value and SEALED not in value:
            values[key] = SEALED + seal(value)
    remote = _remote(config)
    if remote is not None and SEALED not in remote.url and _redacted_url(remote.url) != remote.url:
        remote.url = _redacted_url(remote.url) + SEALED + seal(remote.url)


def open_secrets(config: session_pb2.McpServer, unseal: Callable[[str], str]) -> None:
    """Put secrets in the place of their sealed texts."""
    values = _secrets(config)
    for key, value in list(values.items()):
        if SEALED in value:
            values[key] = unseal(value.partition(SEALED)[2])
    remote = _remote(config)
    if remote is not None and SEALED in remote.url:
        remote.url = unseal(remote.url.partition(SEALED)[2])


def _redacted_url(url: str) -> str:
    url = url.partition(SEALED)[0]
    head, question, rest = url.partition("?")
    query, sharp, fragment = rest.partition("#")
    scheme, slashes, path = head.partition("//")
    authority, slash, path = path.partition("/")
    if "@" in authority:
        authority = f"{REDACTED}@{authority.rpartition('@')[2]}"
    return f"{scheme}{slashes}{authority}{slash}{path}{question}{_QUERY_VALUE.sub(REDACTED, query)}{sharp}{fragment}"


def secret_values(config: session_pb2.McpServer) -> list[str]:
    """All that must not be shown, the longest first."""
    found = set(_secrets(config).values())
    if (remote := _remote(config)) is not None:
        parts = urlsplit(remote.url)
        found |= {parts.username or "", parts.password or "", *_QUERY_VALUE.findall(parts.query)}
    return sorted(found - {"", REDACTED}, key=len, reverse=True)


def keep_secrets(stored: session_pb2.McpServer, wanted: session_pb2.McpServer, *, from_file: bool = False) -> None:
    """Fill in what came back as it was shown, or as it was exported; `from_file`: whatever is but a placeholder."""
    before = _secrets(stored) if stored.WhichOneof("transport") == wanted.WhichOneof("transport") else {}
    values = _secrets(wanted)
    for key, value in list(values.items()):
        unknown = value in {"", _placeholder(key)} or (from_file and _PLACEHOLDER.fullmatch(value))
        if unknown and before.get(key):
            values[key] = before[key]
    keep_url(stored, wanted)


def keep_url(stored: session_pb2.McpServer, wanted: session_pb2.McpServer) -> None:
    """Fill in the URL if it came back as it was shown."""
    remote, known = _remote(wanted), _remote(stored)
    if remote is not None and known is not None and remote.url == _redacted_url(known.url):
        remote.url = known.url


def missing_secrets(config: session_pb2.McpServer) -> list[str]:
    """Where a value is expected from a place that only the file's former reader knows, such as `env.KEY` or `url`.

    Nothing here expands such placeholders: `${NAME}`, `${NAME:-default}`, `${env:NAME}`, `${input:NAME}`. Whoever means
    one of them as it stands sets it with UpdateMcpServer.
    """
    field = "env" if config.HasField("stdio") else "headers"
    found = [f"{field}.{key}" for key, value in sorted(_secrets(config).items()) if _PLACEHOLDER.search(value)]
    remote = _remote(config)
    if remote is not None and _PLACEHOLDER.search(remote.url):
        found.append("url")
    if config.HasField("stdio"):
        words = [config.stdio.command, *config.stdio.args]
        found += [
            "command" if at == 0 else f"args[{at - 1}]" for at, word in enumerate(words) if _PLACEHOLDER.search(word)
        ]
    return found


def url_is_redacted(config: session_pb2.McpServer) -> bool:
    """Whether the URL is one that was shown, and not the whole."""
    remote = _remote(config)
    return remote is not None and REDACTED in remote.url and remote.url == _redacted_url(remote.url)


def _placeholder(key: str) -> str:
    return "${" + re.sub(r"[^A-Z0-9]+", "_", key.upper()) + "}"


def session_name_of(text: str) -> str:
    """A name as sessions give it to a server, made of any text."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", text)[:64].strip("-") or "server"


# ---- Files of Claude Desktop ----


def parse_entry(key: str, entry: object) -> tuple[session_pb2.McpServer, str]:
    """A server as a file has it: its configuration, and as JSON what it has besides.

    Raises:
        EntryError: It is none.
    """
    if not isinstance(entry, dict):
        raise EntryError("", "must be an object")
    rest = dict(entry)
    config = session_pb2.McpServer(name=session_name_of(key))
    kind = rest.get("type")
    if ("command" in rest) == ("url" in rest):
        raise EntryError("", "needs either command or url")
    if "command" in rest:
        for field in ("type", "transport"):
            if rest.get(field) not in {None, "stdio"}:
                raise EntryError(field, "must be stdio, beside a command")
        config.stdio.command = _take(rest, "command", str)
        config.stdio.args.extend(_strings(rest, "args"))
        config.stdio.env.update(_pairs(rest, "env"))
    else:
        # Some programs write `transport` for it.
        field = "type" if kind is not None or "transport" not in rest else "transport"
        kind = rest.get(field)
        if kind is not None and (not isinstance(kind, str) or kind not in _REMOTE_TYPES):
            raise EntryError(field, f"must be one of {', '.join(_REMOTE_TYPES)}, beside a url")
        if field == "type" and "transport" in rest and rest["transport"] != kind:
            raise EntryError("transport", "says something else than type")
        remote = getattr(config, _REMOTE_TYPES[kind or "http"])
        remote.url = _take(rest, "url", str)
        remote.headers.update(_pairs(rest, "headers"))
    return config, json.dumps(rest, ensure_ascii=False) if rest else ""


def _take(rest: dict[str, Any], field: str, kind: type) -> Any:  # noqa: ANN401 - of that kind
    if not isinstance(rest[field], kind):
        raise EntryError(field, f"must be a JSON {'string' if kind is str else 'list' if kind is list else 'object'}")
    return rest.pop(field)


def _strings(rest: dict[str, Any], field: str) -> list[str]:
    # What is there and empty stays in the rest, so that it is there again.
    found = _take(rest, field, list) if rest.get(field, []) != [] else []
    if not all(isinstance(text, str) for text in found):
        raise EntryError(field, "must hold strings only")
    return list(found)


def _pairs(rest: dict[str, Any], field: str) -> dict[str, str]:
    found = _take(rest, field, dict) if rest.get(field, {}) != {} else {}
    for key, value in found.items():
        if not isinstance(value, str):
            raise EntryError(f"{field}.{key}", "must be a string: put numbers and such in quotes")
    return dict(found)


def entry_of(shown: session_pb2.McpServer, extra_json: str) -> dict[str, Any]:
    """A server as a file has it.

    Args:
        shown: Its configuration without secrets; stdio, sse or http.
        extra_json: What else there is to its entry.
    """
    extra: dict[str, Any] = json.loads(extra_json) if extra_json else {}
    entry: dict[str, Any] = {}
    if shown.HasField("stdio"):
        entry["command"] = shown.stdio.command
        _add(entry, "args", list(shown.stdio.args))
        _add(entry, "env", {key: _placeholder(key) for key in shown.stdio.env})
    else:
        kind = "sse" if shown.HasField("sse") else "http"
        written = extra.get("type", extra.get("transport"))
        written = written if isinstance(written, str) and _REMOTE_TYPES.get(written) == kind else kind
        if "transport" not in extra or "type" in extra:
            entry["type"] = written
        elif extra["transport"] != written:
            # It was changed since.
            extra = {**extra, "transport": written}
        remote = getattr(shown, kind)
        entry["url"] = remote.url
        _add(entry, "headers", {key: _placeholder(key) for key in remote.headers})
    return {**entry, **{key: value for key, value in extra.items() if key not in entry}}


def _add(entry: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 - JSON
    if value:
        entry[key] = value
