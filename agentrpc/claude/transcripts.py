"""What the CLI writes into its transcript, on the way to the store. The way back is in `revival.py`."""

import json
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["TranscriptMirror"]


class TranscriptMirror:
    """The SDK's SessionStore as far as a live process needs it: what the CLI writes is handed on, line by line.

    Args:
        on_lines: Gets the subpath ("" for the main conversation) and encoded lines; must only enqueue.
    """

    def __init__(self, on_lines: Callable[[str, list[bytes]], None]) -> None:
        self._on_lines = on_lines

    async def append(self, key: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
        """Hand on what the CLI has written."""
        # surrogatepass: a lone surrogate in a tool's output must come back as it was.
        lines = [
            json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
            for entry in entries
        ]
        self._on_lines(key.get("subpath", ""), lines)

    async def load(self, key: dict[str, Any]) -> None:  # noqa: ARG002 - the SDK's signature
        """Nothing: the CLI resumes from the file that `Conversation.write` has written."""
        return
