"""What the CLI writes into its transcript, on the way to the store. The way back is in `revival.py`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["TranscriptMirror", "encode_entry"]


def encode_entry(entry: Mapping[str, Any]) -> bytes:
    """An entry as the line that the CLI writes for it: JSON in UTF-8, without its newline.

    A lone surrogate has no UTF-8 and stays escaped, as does NUL. What is not UTF-8 the CLI would read as U+FFFD.
    """
    # Python's name of a lone surrogate, \udc00, is JSON's too.
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class TranscriptMirror:
    """The SDK's SessionStore as far as a live process needs it: what the CLI writes is handed on, line by line.

    Args:
        on_lines: Gets the subpath ("" for the main conversation) and encoded lines; must only enqueue.
    """

    def __init__(self, on_lines: Callable[[str, list[bytes]], None]) -> None:
        self._on_lines = on_lines

    async def append(self, key: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
        """Hand on what the CLI has written."""
        self._on_lines(key.get("subpath", ""), [encode_entry(entry) for entry in entries])

    async def load(self, key: dict[str, Any]) -> None:  # noqa: ARG002 - the SDK's signature
        """Nothing: the CLI resumes from the file that `Conversation.write` has written."""
        return
