"""A stored conversation as the beginning of another session's."""

import json
from collections.abc import Sequence
from uuid import UUID

from agentrpc.claude.transcripts import encode_entry

__all__ = ["fork_transcript"]


def fork_transcript(
    lines: Sequence[tuple[str, bytes]], claude_session_id: UUID, *, until: str = ""
) -> list[tuple[str, bytes]] | None:
    """The lines of a transcript under another id of the CLI's.

    Args:
        lines: (subpath, line) in the order in which they were stored.
        claude_session_id: The CLI's id of the new session.
        until: The uuid of the last message of the main conversation to be kept; empty: all. What subagents had written
            by then is kept with it.

    Returns:
        The lines; None: no message has that uuid.

    Raises:
        ValueError: A line is not an object.
    """
    kept = []
    for subpath, stored in lines:
        line, entry = stored, json.loads(stored)
        if not isinstance(entry, dict):
            msg = "a line is not an object"
            raise ValueError(msg)  # noqa: TRY004 - of the data, not of an argument
        if "sessionId" in entry:
            entry["sessionId"] = str(claude_session_id)
            line = encode_entry(entry)
        kept.append((subpath, line))
        if until and not subpath and entry.get("type") in {"user", "assistant"} and entry.get("uuid") == until:
            return kept
    return None if until else kept
