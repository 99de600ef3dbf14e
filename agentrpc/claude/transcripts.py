"""The CLI's transcript on its way to the store. The way back to the CLI is in `revival.py`."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

__all__ = ["TranscriptStore", "encode_entry"]


def encode_entry(entry: Mapping[str, Any]) -> bytes:
    """An entry as the line that the CLI writes for it: JSON in UTF-8, without its newline.

    A lone surrogate has no UTF-8 and stays escaped, as does NUL. What is not UTF-8 the CLI would read as U+FFFD.
    """
    # Python's name of a lone surrogate, \udc00, is JSON's too.
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class TranscriptStore:
    """The SDK's SessionStore of one session.

    The session has one conversation, whatever the CLI calls it: of a key only the subpath counts. The CLI resumes from
    the files that `Conversation.write` has written: the SDK, which is given a transport, does not ask for them here.

    Args:
        append: Gets the subpath ("" for the main conversation) and encoded lines; must only enqueue.
        load: All (subpath, line) of the session, in order, with those that were appended before.
    """

    def __init__(
        self,
        append: Callable[[str, list[bytes]], None],
        load: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]],
    ) -> None:
        self._append = append
        self._load = load

    async def append(self, key: Mapping[str, str], entries: Sequence[Mapping[str, Any]]) -> None:
        """Hand on what the CLI has written: all of it or nothing, so that it may be tried again."""
        if entries:
            self._append(key.get("subpath", ""), [encode_entry(entry) for entry in entries])

    async def load(self, key: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """The entries under a subpath; None: nothing was ever appended there."""
        subpath = key.get("subpath", "")
        return [json.loads(line) for path, line in await self._load() if path == subpath] or None

    async def list_subkeys(self, key: Mapping[str, str]) -> list[str]:  # noqa: ARG002 - the SDK's signature
        """The subpaths of what is not the main conversation."""
        return sorted({path for path, _ in await self._load() if path})
