"""The stored conversation of a session, made ready for a new process that goes on from it.

What the CLI does on resume was tried with the pinned version: a call whose block is the last thing in the file, with a
`hook_deferred_tool` entry behind it, is taken up again without a prompt; of several such calls only the last. So calls
that are to be made are carried one by one: the blocks of those that come later are left out of the file until it is
their turn. Calls that are not to be made get the result that the model is told.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from claude_agent_sdk import project_key_for_directory

from agentrpc import clock
from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.transcripts import encode_entry
from agentrpc.claude.workspace_paths import parse_path
from agentrpc.claude.workspace_trees import enter, new_file, own_folder, remove_at, remove_tree
from agentrpc.domain.rules import Own
from agentrpc.errors import InvalidArgument

__all__ = ["CONTINUATION", "CallResult", "Conversation", "OpenCall", "UnknownTranscriptFormat", "own_folders"]

# What the CLI says to itself when it takes a call up again.
CONTINUATION = "Continue from where you left off."

# Beside a conversation: results that were too long for it, to which it refers.
_RESULTS = "tool-results"
# Beside what the agent sees: what is being removed.
_ASIDE, _TIDY_SECONDS = "aside", 5.0
# Fields of an entry that say where it was written, and not what.
_FRAME = ("isSidechain", "userType", "entrypoint", "cwd", "sessionId", "version", "gitBranch")

# What the conversation is made of. Other entries are notes beside it, which have no uuid.
_CONVERSATION = frozenset({"user", "assistant", "attachment", "system", "progress"})
# What is text in a block, by its type.
_TEXTS = {"text": ("text",), "tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}


class UnknownTranscriptFormat(Exception):
    """The stored transcript is not one that this version can resume from."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call of the main conversation's last message that has no result."""

    tool_use_id: str
    tool_name: str
    input: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallResult:
    """What the model is told about a call that this process is not going to make."""

    tool_use_id: str
    text: str
    is_error: bool = True


class Conversation:
    """A session's transcript.

    Args:
        lines: (subpath, line) in the order in which they were stored.

    Raises:
        UnknownTranscriptFormat: A line is not what this version of the CLI writes.
    """

    def __init__(self, lines: Iterable[tuple[str, bytes]]) -> None:
        self._main: list[dict[str, Any]] = []
        self._others: dict[str, list[bytes]] = {}
        # What the CLI keeps beside a subagent's conversation, in a file of its own.
        self._metadata: dict[str, dict[str, Any]] = {}
        for subpath, line in lines:
            entry = _parse(line)
            if subpath and entry["type"] == "agent_metadata":
                self._metadata[subpath] = {key: value for key, value in entry.items() if key != "type"}
            elif subpath:
                self._others.setdefault(subpath, []).append(line)
            else:
                self._main.append(entry)
        self._uuids = {entry["uuid"] for entry in self._main if "uuid" in entry} | _absorbed(self._main)
        for entry in self._main:
            # Messages that were said together are one, under the id of the last.
            self._uuids.update(map(str, entry.get("mergedSendUuids") or ()))
        self._calls: dict[str, OpenCall] = {}
        # Where the message begins whose calls these are.
        self._tail = len(self._main)
        self._find_calls()

    def __bool__(self) -> bool:
        # Of notes about a queue alone, as a rewind to the first run leaves them, the CLI cannot resume.
        return any(entry["type"] in {"user", "assistant"} for entry in self._main)

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._uuids

    @property
    def open_calls(self) -> list[OpenCall]:
        """The calls of the last message that have no result, in order."""
        return list(self._calls.values())

    def result_of(self, tool_use_id: str) -> CallResult | None:
        """What the model was told about a call, if it has a result. Of subagents' calls only whether."""
        mark = f'"tool_use_id":"{tool_use_id}"'.encode()
        for lines in self._others.values():
            for line in lines:
                if mark in line and b'"type":"user"' in line:
                    return CallResult(tool_use_id, "", is_error=b'"is_error":true' in line)
        for entry in reversed(self._main):
            if entry["type"] == "user":
                for block in _blocks(entry):
                    if block.get("type") == "tool_result" and block.get("tool_use_id") == tool_use_id:
                        return CallResult(tool_use_id, _text(block), is_error=bool(block.get("is_error")))
        return None

    def _find_calls(self) -> None:
        message_id = None
        for index, entry in enumerate(self._main):
            kind = entry["type"]
            if kind == "assistant" and not entry.get("isSidechain"):
                message = entry["message"]
                if message.get("id") != message_id:
                    message_id = message.get("id")
                    self._calls.clear()
                    self._tail = index
                for block in _blocks(entry):
                    if block.get("type") == "tool_use":
                        call = OpenCall(block["id"], block["name"], block.get("input") or {})
                        self._calls[call.tool_use_id] = call
            elif kind == "user" and not entry.get("isSidechain"):
                results = _results(entry)
                for tool_use_id in results:
                    self._calls.pop(tool_use_id, None)
                if not results and not _is_continuation(entry):
                    self._calls.clear()

    def settle(self, results: Sequence[CallResult]) -> list[bytes]:
        """Give open calls their results.

        Returns:
            The new lines of the main conversation, to be stored.
        """
        lines = []
        for result in results:
            call = self._calls.pop(result.tool_use_id)
            entry = self._result_entry(call, result)
            self._main.append(entry)
            lines.append(encode_entry(entry))
        return lines

    def _result_entry(self, call: OpenCall, result: CallResult) -> dict[str, Any]:
        asked = self._entry_of(call)
        block = {
            "type": "tool_result",
            "tool_use_id": call.tool_use_id,
            "content": result.text,
            "is_error": result.is_error,
        }
        return {
            **_stamp(asked, parent=asked["uuid"]),
            "type": "user",
            "message": {"role": "user", "content": [block]},
            "toolUseResult": f"Error: {result.text}" if result.is_error else result.text,
            "sourceToolAssistantUUID": asked["uuid"],
        }

    def _entry_of(self, call: OpenCall) -> dict[str, Any]:
        for entry in reversed(self._main):
            if entry["type"] == "assistant" and any(b.get("id") == call.tool_use_id for b in _blocks(entry)):
                return dict(entry)
        raise KeyError(call.tool_use_id)

    # ---- The files ----

    def write(self, paths: SessionPaths, claude_session_id: str, *, carry: OpenCall | None = None) -> None:
        """Write the conversation where the CLI looks for it; of an empty one nothing is left there. Blocking.

        The agent writes to these folders too. Whatever it has put in the place of one of them, or of a file, goes, and
        no link of its is followed; results of tools that were too long for the conversation stay.

        Args:
            paths: The session's folders.
            claude_session_id: The CLI's id of the session.
            carry: The call that the CLI is to take up; other open calls are left out for now.

        Raises:
            UnknownTranscriptFormat: A subpath leads out of the folder.
            OSError: The disk is full, or the like.
        """
        name = f"{claude_session_id}.jsonl"
        files = {name: [encode_entry(entry) for entry in self._chained(carry)]} if self else {}
        if self:
            for subpath, lines in self._others.items():
                files[_inside(claude_session_id, f"{subpath}.jsonl")] = lines
            for subpath, metadata in self._metadata.items():
                files[_inside(claude_session_id, f"{subpath}.meta.json")] = [encode_entry(metadata)]
        paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            _folder(paths.root, *_project(paths).relative_to(paths.root).parts) as project,
            _folder(paths.root, _ASIDE) as aside,
        ):
            # What a lost process has left was not stored, and the CLI refuses an id that it knows.
            _set_aside(project, name, aside)
            if (left := _set_aside(project, claude_session_id, aside)) is not None:
                _bring_back_results(aside, left, project, claude_session_id)
            for path, lines in files.items():
                _write(project, path, b"\n".join(lines) + b"\n")
        # What takes longer is left to the next start, and in the end to the removal of the session.
        remove_tree(paths.root / _ASIDE, seconds=_TIDY_SECONDS)

    def _chained(self, carry: OpenCall | None) -> list[dict[str, Any]]:
        """The entries of the main conversation, each with a parent that is in the file."""
        known: set[str] = set()
        last = None
        entries = []
        for entry in [*self._main[: self._tail], *self._ending(carry)]:
            if "uuid" in entry:
                parent = entry.get("parentUuid")
                known.add(entry["uuid"])
                if parent is not None and parent not in known:
                    entries.append({**entry, "parentUuid": last})
                else:
                    entries.append(entry)
                last = entry["uuid"]
            else:
                entries.append(entry)
        return entries

    def _ending(self, carry: OpenCall | None) -> list[dict[str, Any]]:
        """The last message and what follows. While a call is carried: one chain of blocks, results and the mark."""
        tail = self._main[self._tail :]
        if carry is None:
            return tail
        hidden = self._calls.keys() - {carry.tool_use_id}
        blocks, results = [], []
        for entry in tail:
            if entry["type"] == "assistant":
                content = [block for block in _blocks(entry) if block.get("id") not in hidden]
                if content:
                    blocks.append({**entry, "message": {**entry["message"], "content": content}})
            elif entry["type"] == "user" and _results(entry):
                results.append(dict(entry))
        mark = {
            **_stamp(self._entry_of(carry), parent=None),
            "type": "attachment",
            "attachment": {
                "type": "hook_deferred_tool",
                "toolUseID": carry.tool_use_id,
                "toolName": carry.tool_name,
                "toolInput": carry.input,
                "hookName": "settings",
                "hookEvent": "PreToolUse",
                "permissionMode": "default",
            },
        }
        chain = [*blocks, *results, mark]
        for entry, before in zip(chain[1:], chain, strict=False):
            entry["parentUuid"] = before["uuid"]
        return chain


def own_folders(paths: SessionPaths, claude_session_id: str) -> Own:
    """Where the agent has files of its own."""
    return Own(str(paths.config / "plans"), str(_project(paths) / claude_session_id / _RESULTS))


def _project(paths: SessionPaths) -> Path:
    """Where the CLI keeps conversations."""
    return paths.config / "projects" / project_key_for_directory(paths.workspace)


def _inside(folder: str, name: str) -> str:
    try:
        return f"{folder}/{parse_path(name)}"
    except InvalidArgument as error:
        raise UnknownTranscriptFormat("a subpath leads out of the folder") from error


@contextmanager
def _folder(root: Path, *names: str) -> Iterator[int]:
    """A descriptor of a folder below one of ours, made anew where something else is on the way."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            below = own_folder(at, name)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _set_aside(folder: int, name: str, aside: int) -> str | None:
    """Take whatever has a name out of the agent's reach, at once however much it is; its new name."""
    if (opened := enter(folder, name)) is not None:
        # One that its owner may not write to cannot be moved.
        os.close(opened)
    left = os.urandom(8).hex()
    try:
        os.rename(name, left, src_dir_fd=folder, dst_dir_fd=aside)
    except FileNotFoundError:
        return None
    return left


def _bring_back_results(aside: int, left: str, project: int, claude_session_id: str) -> None:
    if (folder := enter(aside, left)) is None:
        return
    try:
        if (results := enter(folder, _RESULTS)) is not None:
            os.close(results)
            with _folder(Path(f"/proc/self/fd/{project}"), claude_session_id) as to:
                os.rename(_RESULTS, _RESULTS, src_dir_fd=folder, dst_dir_fd=to)
    finally:
        os.close(folder)


def _write(project: int, path: str, data: bytes) -> None:
    *folders, name = path.split("/")
    with _folder(Path(f"/proc/self/fd/{project}"), *folders) as parent:
        remove_at(parent, name, seconds=_TIDY_SECONDS)
        with os.fdopen(new_file(parent, name), "wb") as file:
            file.write(data)


def _absorbed(entries: Iterable[dict[str, Any]]) -> set[str]:
    """Messages that came in the middle of a turn: the CLI writes them as attachments with other ids."""
    attachments = [entry["attachment"] for entry in entries if isinstance(entry.get("attachment"), dict)]
    return {str(found.get("source_uuid")) for found in attachments if found.get("type") == "queued_command"}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry: Any = json.loads(line)
        kind = entry["type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnknownTranscriptFormat("a line is not an object with a type") from error
    if not isinstance(entry, dict) or not isinstance(kind, str):
        raise UnknownTranscriptFormat("the type of a line is not text")
    if "uuid" in entry:
        if kind not in _CONVERSATION:
            raise UnknownTranscriptFormat(f"a line of the conversation is of the unknown type {kind[:50]!r}")
        if not isinstance(entry["uuid"], str) or not isinstance(entry.get("parentUuid"), str | None):
            raise UnknownTranscriptFormat(f"the uuid or the parentUuid of a line of type {kind} is no text")
    if kind in {"user", "assistant"}:
        message = entry.get("message")
        if "uuid" not in entry or not isinstance(message, dict):
            raise UnknownTranscriptFormat(f"a line of type {kind} has no uuid or no message")
        content = message.get("content")
        if not isinstance(content, str | list):
            raise UnknownTranscriptFormat(f"the content of a line of type {kind} is neither text nor blocks")
        for block in _blocks(entry):
            _check_block(block)
    return dict(entry)


def _check_block(block: dict[str, Any]) -> None:
    kind = block.get("type")
    for field in _TEXTS.get(kind, ()) if isinstance(kind, str) else ("type",):
        if not isinstance(block.get(field), str):
            raise UnknownTranscriptFormat(f"the {field} of a block of type {kind} is no text")
    if kind == "tool_use" and not isinstance(block.get("input"), dict | None):
        raise UnknownTranscriptFormat("the input of a call is no object")


def _blocks(entry: dict[str, Any]) -> list[dict[str, Any]]:
    content = entry["message"]["content"]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _results(entry: dict[str, Any]) -> list[str]:
    return [block["tool_use_id"] for block in _blocks(entry) if block.get("type") == "tool_result"]


def _text(block: dict[str, Any]) -> str:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _is_continuation(entry: dict[str, Any]) -> bool:
    if entry.get("isMeta"):
        return True
    content = entry["message"]["content"]
    if isinstance(content, list):
        content = "".join(block.get("text", "") for block in _blocks(entry))
    return bool(content == CONTINUATION)


def _stamp(like: dict[str, Any], *, parent: str | None) -> dict[str, Any]:
    return {
        "parentUuid": parent,
        **{key: like[key] for key in _FRAME if key in like},
        "uuid": str(uuid4()),
        "timestamp": clock.utcnow().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
