"""Blocks of messages and tool results, from the CLI's JSON to the contract's messages. Large content is left out."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from agentrpc.v1 import common_pb2, content_pb2

__all__ = ["INLINE_LIMIT", "add_block", "clean", "compact_json", "omission", "result_blocks", "too_large"]

INLINE_LIMIT = 256 * 1024
_HEAD = 4096


def clean(text: object) -> str:
    """Text without NUL and lone surrogates, which protobuf or Postgres refuse: U+FFFD stands for them."""
    if not isinstance(text, str):
        return "" if text is None else str(text)
    if text.isascii():
        return text.replace("\0", "�") if "\0" in text else text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "�")


def compact_json(value: object) -> str:
    """JSON text of a value, keys in their order."""
    return clean(json.dumps(value, ensure_ascii=False))


def omission(data: bytes) -> common_pb2.Omission:
    """Size and hash of what was left out."""
    return common_pb2.Omission(total_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def too_large(text: str) -> bytes | None:
    """The bytes of a text that may not travel inline; None when it may."""
    if len(text) * 4 <= INLINE_LIMIT:
        return None
    data = text.encode()
    return data if len(data) > INLINE_LIMIT else None


def add_block(block: content_pb2.ContentBlock, raw: dict[str, Any], exact_input: str | None = None) -> None:
    """Fill a block.

    Args:
        block: Where to.
        raw: The CLI's block.
        exact_input: For a tool call: its input as the model wrote it.
    """
    kind = raw.get("type")
    if kind == "text":
        _text(block.text, clean(raw.get("text")))
    elif kind in {"thinking", "redacted_thinking"}:
        block.thinking.thinking = clean(raw.get("thinking"))
        block.thinking.redacted = kind == "redacted_thinking"
    elif kind in {"tool_use", "server_tool_use"}:
        use = block.tool_use
        use.tool_use_id = clean(raw.get("id"))
        use.tool_name = clean(raw.get("name"))
        use.server_side = kind == "server_tool_use"
        text = exact_input if exact_input is not None else compact_json(raw.get("input") or {})
        if (data := too_large(text)) is not None:
            use.omitted.CopyFrom(omission(data))
        else:
            use.input_json = text
    elif isinstance(kind, str) and kind.endswith("_tool_result"):
        result = block.server_tool_result
        result.tool_use_id = clean(raw.get("tool_use_id"))
        text = compact_json(raw.get("content"))
        if (data := too_large(text)) is not None:
            result.omitted.CopyFrom(omission(data))
        else:
            result.content_json = text
    elif kind in {"image", "document"} and isinstance(raw.get("source"), dict):
        _media(block.image if kind == "image" else block.document, raw["source"])
    else:
        block.raw.type = clean(kind)
        text = compact_json(raw)
        block.raw.block_json = "" if too_large(text) is not None else text


def result_blocks(content: object) -> Iterable[content_pb2.ContentBlock]:
    """The blocks of a tool's result, which is text or a list of blocks."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for index, raw in enumerate(blocks if isinstance(blocks, list) else []):
        if isinstance(raw, dict):
            block = content_pb2.ContentBlock(index=index)
            add_block(block, raw)
            yield block


def _text(block: content_pb2.TextBlock, text: str) -> None:
    if (data := too_large(text)) is not None:
        block.omitted.CopyFrom(omission(data))
        block.text = data[:_HEAD].decode(errors="ignore")
    else:
        block.text = text
        # Present even when empty: the field says what kind of block it is.
        block.SetInParent()


def _media(media: content_pb2.MediaBlock, source: dict[str, Any]) -> None:
    media.media_type = clean(source.get("media_type"))
    if source.get("type") == "url":
        media.url = clean(source.get("url"))
        return
    try:
        data = base64.b64decode(source.get("data") or "", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) > INLINE_LIMIT:
        media.omitted.CopyFrom(omission(data))
    else:
        media.data = data
