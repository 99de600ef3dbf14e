"""The transcript of the fake CLI: a file of JSON lines in CLAUDE_CONFIG_DIR, mirrored to the other side."""

from __future__ import annotations

import json
import os
import re
import time

from agentrpc.testkit.fake_cli.wire import encode, new_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrpc.testkit.fake_cli.wire import Wire

__all__ = ["Transcript", "now"]

_LONGEST_NAME = 200
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def now() -> str:
    """The time as the CLI writes it."""
    seconds = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03d}Z"


class Transcript:
    """What was said. Each entry names the one before it.

    Args:
        wire: Where it is mirrored to, or None.
        session_id: Names the file.
        version: The version that the entries claim.
    """

    def __init__(self, wire: Wire | None, session_id: str, version: str) -> None:
        self._wire = wire
        self._session_id = session_id
        self._pending: list[dict[str, Any]] = []
        cwd = os.path.realpath(".")
        if not cwd.isascii():
            import unicodedata  # noqa: PLC0415 - a megabyte, for few

            cwd = unicodedata.normalize("NFC", cwd)
        config = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(os.environ.get("HOME", "/"), ".claude")
        self.path = os.path.join(config, "projects", _project(cwd), f"{session_id}.jsonl")
        self._common = {
            "userType": "external", "entrypoint": "sdk-py", "cwd": cwd, "sessionId": session_id, "version": version,
            "gitBranch": "HEAD",
        }  # fmt: skip
        self.last: str | None = None

    def load(self) -> list[dict[str, Any]] | None:
        """The entries of an earlier process; None if there is no such conversation."""
        try:
            with open(self.path, "rb") as file:
                entries = [json.loads(line) for line in file if line.strip()]
        except OSError:
            return None
        for entry in reversed(entries):
            if entry.get("uuid") and not entry.get("isSidechain"):
                self.last = entry["uuid"]
                break
        return entries

    def note(self, kind: str, **fields: Any) -> None:
        """An entry that is no part of the conversation."""
        self._pending.append({"type": kind, **fields, "sessionId": self._session_id})

    def add(self, kind: str, uuid: str = "", parent: str = "", **fields: Any) -> str:
        """An entry of the conversation; its uuid."""
        uuid = uuid or new_uuid()
        entry = {"parentUuid": parent or self.last, "isSidechain": False, "type": kind, **fields}
        self._pending.append({**entry, "uuid": uuid, "timestamp": now(), **self._common})
        self.last = uuid
        return uuid

    def flush(self) -> None:
        """Write what was added, to the file and to the mirror."""
        if not self._pending:
            return
        entries, self._pending = self._pending, []
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(b"".join(encode(entry) + b"\n" for entry in entries))
        if self._wire is not None:
            self._wire.send({"type": "transcript_mirror", "filePath": self.path, "entries": entries})


def _project(cwd: str) -> str:
    name = re.sub(r"[^a-zA-Z0-9]", "-", cwd)
    if len(name) <= _LONGEST_NAME:
        return name
    number = 0
    for letter in cwd:
        number = (number * 31 + ord(letter)) & 0xFFFFFFFF
    number = abs(number - (1 << 32) if number >> 31 else number)
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return f"{name[:_LONGEST_NAME]}-{text or '0'}"
