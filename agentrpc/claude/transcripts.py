"""The CLI's transcript: lines of JSON, of which Postgres has the truth and the config dir a copy to resume from."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from claude_agent_sdk import project_key_for_directory

from agentrpc.claude.launcher import SessionPaths

__all__ = ["TranscriptMirror", "UnknownTranscriptFormat", "restore_transcript", "transcript_has"]


class UnknownTranscriptFormat(Exception):
    """The stored transcript is not one that this version can resume from."""


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
        """Nothing: the CLI resumes from the file that `restore_transcript` has written."""
        return


def restore_transcript(paths: SessionPaths, claude_session_id: str, lines: Iterable[tuple[str, bytes]]) -> None:
    """Write the stored transcript where the CLI looks for it.

    Args:
        paths: The session's folders.
        claude_session_id: The CLI's id of the session.
        lines: (subpath, line) in order.

    Raises:
        UnknownTranscriptFormat: A line is not an object with a type.
    """
    folder = paths.config / "projects" / project_key_for_directory(paths.workspace)
    files: dict[str, list[bytes]] = {}
    for subpath, line in lines:
        try:
            kind = json.loads(line)["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnknownTranscriptFormat("a line is not an object with a type") from error
        if not isinstance(kind, str):
            raise UnknownTranscriptFormat("the type of a line is not text")
        files.setdefault(subpath, []).append(line)
    for subpath, content in files.items():
        path = folder / f"{claude_session_id}.jsonl"
        if subpath:
            path = folder / claude_session_id / f"{subpath}.jsonl"
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnknownTranscriptFormat("a subpath leads out of the folder")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(content) + b"\n")


def transcript_has(lines: Iterable[tuple[str, bytes]], uuid: str) -> bool:
    """Whether an entry of the main conversation has this uuid."""
    wanted = f'"uuid":"{uuid}"'.encode()
    return any(not subpath and wanted in line for subpath, line in lines)
