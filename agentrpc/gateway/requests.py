"""What agents may ask of the provider: models, betas, tools that the provider runs, and fields of a request.

A body is read only as far as these need it, without a copy of its parts and whatever it holds. It is passed on as it
was read: of a name that stands twice the last one counts, here and there.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agentrpc.domain.model_calls import RunAllowance

__all__ = ["Asked", "Forbidden", "check_betas", "read_body"]

# Betas that change how the CLI's own conversation is carried, by their names without the date. What reaches other
# models, files, servers or prices through one header is not here.
_BETAS = frozenset({
    "advanced-tool-use", "cache-diagnosis", "claude-code", "claude-code-side-query", "context-hint",
    "context-management", "effort", "extended-cache-ttl", "fine-grained-tool-streaming",
    "interleaved-thinking", "mid-conversation-system", "mid-conversation-system-clear-at",
    "mid-conversation-tool-changes", "per-turn-control", "prompt-caching-evict", "prompt-caching-scope",
    "redact-thinking", "request-tags", "resumption", "structured-outputs", "task-budgets",
    "thinking-binding-controls", "thinking-display-updates", "thinking-resumption", "thinking-token-count",
    "timing", "token-counting", "token-efficient-tools", "tool-provenance", "tool-search-tool", "web-search",
    "web-search-results-only",
})  # fmt: skip
_LONG_CONTEXT = "context-1m"
_DATE = re.compile(r"-20\d{2}-?\d{2}-?\d{2}$")

# Tools that are described by a type and run by whoever asked, or search among the tools that stand beside them.
_OWN_TOOLS = ("bash_", "text_editor_", "memory_", "tool_search_tool_")
_SERVER_TOOLS = {"web_search_": "web_search"}
# Other servers, other models, other prices.
_FIELDS = frozenset(
    {"mcp_servers", "container", "fallbacks", "fallback_model", "fallback_models", "speed", "service_tier"}
)
_PLAIN_TIERS = frozenset({b'"auto"', b'"standard_only"'})
# Of a body without its messages, system prompt and tools.
_MAX_REST = 256 * 1024
_MAX_TOOLS = 4 * 1024 * 1024
_MAX_TOOL_COUNT = 5000
_MAX_LOOKED_INTO = 8 * 1024 * 1024
# A document or a picture that the provider fetches. Text cannot hold this: its quotes are escaped.
_FETCHED = re.compile(
    rb'"(?:t|\\u0074)(?:y|\\u0079)(?:p|\\u0070)(?:e|\\u0065)"\s*:\s*"(?:u|\\u0075)(?:r|\\u0072)(?:l|\\u006[cC])"'
)


class Forbidden(Exception):
    """A request that is not passed on. The message is for whoever asked.

    Attributes:
        status: The HTTP status.
        kind: The provider's type of error.
    """

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is passed on.

    Attributes:
        body: What is sent.
        model: The model.
        max_tokens: Of its answer.
        server_tools: Names of the tools in it that the provider runs.
    """

    body: bytes
    model: str
    max_tokens: int
    server_tools: tuple[str, ...]


class _Big(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")


_read_big = msgspec.json.Decoder(_Big).decode
_read_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_text = msgspec.json.Decoder(str).decode
_read_number = msgspec.json.Decoder(int).decode


def check_betas(values: Iterable[str], allowance: RunAllowance, more: Iterable[str]) -> None:
    """Raise Forbidden for a beta that agents may not ask for, in words that the CLI understands.

    Args:
        values: Those of all `anthropic-beta` headers.
        allowance: The run's.
        more: Further ones that the operator allows, by their names without the date.
    """
    allowed = {*_BETAS, *more, *([_LONG_CONTEXT] if allowance.long_context else [])}
    wrong = [
        beta for value in values for beta in map(str.strip, value.split(",")) if beta and _name(beta) not in allowed
    ]
    if wrong:
        named = ", ".join(f"`{beta[:100]}`" for beta in wrong[:10])
        raise Forbidden(f"Unexpected value(s) {named} for the `anthropic-beta` header: agents may not use them")


def _name(beta: str) -> str:
    return _DATE.sub("", beta)


def read_body(body: bytes, allowance: RunAllowance) -> Asked:
    """Judge the body of a request for messages or for their count.

    Raises:
        Forbidden: It is no JSON object, or asks what this run may not.
    """
    try:
        big = _read_big(body)
        if len(body) - sum(map(_size, (big.messages, big.system, big.tools))) > _MAX_REST:
            raise Forbidden("the request holds too much besides its messages, or one of them twice")
        fields = _read_fields(body)
        model = _read_text(fields.get("model", msgspec.Raw(b'""')))
        max_tokens = _read_number(fields.get("max_tokens", msgspec.Raw(b"0")))
        tools, server_tools = _tools(fields["tools"]) if "tools" in fields else (b"", ())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Forbidden(f"the request is no Messages request: {error}"[:300]) from None
    for name in _FIELDS & fields.keys():
        if name != "service_tier" or bytes(fields[name]) not in _PLAIN_TIERS:
            raise Forbidden(f"{name}: agents may not use this field")
    if not allowance.permits(model):
        raise Forbidden(f"model: {model[:200]}: agents of this session may not use it", 404, "not_found_error")
    if _FETCHED.search(body):
        _refuse_fetched(fields)
    if tools:
        fields["tools"] = msgspec.Raw(tools)
    return Asked(msgspec.json.encode(fields), model, max_tokens, server_tools)


def _size(raw: msgspec.Raw) -> int:
    return memoryview(raw).nbytes


def _tools(raw: msgspec.Raw) -> tuple[bytes, tuple[str, ...]]:
    """The tools as they are passed on, and the names of those that the provider runs."""
    if _size(raw) > _MAX_TOOLS:
        raise Forbidden(f"tools: may have at most {_MAX_TOOLS} bytes")
    if bytes(raw) == b"null":
        return b"null", ()
    entries = _read_list(raw)
    if len(entries) > _MAX_TOOL_COUNT:
        raise Forbidden(f"tools: may have at most {_MAX_TOOL_COUNT} entries")
    tools, run_there = [], []
    for entry in entries:
        tool = _read_fields(entry)
        kind = _read_text(tool["type"]) if "type" in tool and bytes(tool["type"]) != b"null" else "custom"
        named = [name for prefix, name in _SERVER_TOOLS.items() if kind.startswith(prefix)]
        run_there += named
        if not named and kind != "custom" and not kind.startswith(_OWN_TOOLS):
            raise Forbidden(f"tools: agents may not use {kind[:100]}, which the provider runs")
        tools.append(tool)
    return msgspec.json.encode(tools), tuple(run_there)


def _refuse_fetched(fields: Mapping[str, msgspec.Raw]) -> None:
    """Raise Forbidden if a block of content has a URL for its source; arguments of a tool may look like one."""
    for name in ("messages", "system"):
        if name not in fields:
            continue
        if _size(fields[name]) > _MAX_LOOKED_INTO:
            raise Forbidden("messages: with a source that is, or looks like, a URL they are too long")
        todo: list[Any] = [msgspec.json.decode(fields[name])]
        while todo:
            item = todo.pop()
            if isinstance(item, list):
                todo += item
            elif isinstance(item, dict):
                source = item.get("source")
                if isinstance(source, dict) and source.get("type") == "url":
                    raise Forbidden("messages: agents may not have the provider fetch a URL: send what it holds")
                # The arguments of a call are nothing that the provider looks into.
                todo += [value for key, value in item.items() if key != "input"]
