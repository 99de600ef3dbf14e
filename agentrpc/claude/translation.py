"""Raw frames of the CLI to events of the contract, each once.

Never raises: what cannot be translated becomes a `raw_frame`. Deltas are the hot path and leave as plain objects, which
the writer merges before it makes events of them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from agentrpc import clock
from agentrpc.claude.content import add_block, clean, compact_json, omission, too_large
from agentrpc.claude.frames import SYSTEM, TOP_LEVEL, agent_initialized
from agentrpc.claude.translation_calls import Calls
from agentrpc.claude.translation_subtasks import Subtasks
from agentrpc.claude.translation_turns import Totals, TurnEnded
from agentrpc.v1 import common_pb2, event_pb2

__all__ = ["Delta", "Fault", "Item", "Translator", "TurnEnded"]

log = structlog.get_logger()

_PROGRESS_INTERVAL = 0.25
_SUMMARY = "This session is being continued from a previous conversation"
_Said = event_pb2.UserMessage
_ORIGINS = {
    "task-notification": _Said.ORIGIN_SUBTASK,
    "peer": _Said.ORIGIN_RELAYED,
    "channel": _Said.ORIGIN_RELAYED,
    "coordinator": _Said.ORIGIN_RELAYED,
}


class Delta:
    """A piece of a block that is being written. `offset` is in bytes of UTF-8 from the start of the block."""

    __slots__ = (
        "block_index", "kind", "message_id", "offset", "parent_tool_use_id", "text", "tool_name", "tool_use_id",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        message_id: str,
        block_index: int,
        offset: int,
        text: str,
        parent_tool_use_id: str,
        tool_use_id: str,
        tool_name: str,
    ) -> None:
        self.kind = kind
        self.message_id = message_id
        self.block_index = block_index
        self.offset = offset
        self.text = text
        self.parent_tool_use_id = parent_tool_use_id
        self.tool_use_id = tool_use_id
        self.tool_name = tool_name


@dataclass(frozen=True, slots=True)
class Fault:
    """A frame that says what no CLI says. No event comes of it."""

    what: str


Item = event_pb2.Event | Delta | TurnEnded | Fault


class _Block:
    """A block that is open."""

    __slots__ = ("kind", "offset", "parts", "tool_name", "tool_use_id")

    def __init__(self, kind: str, tool_use_id: str, tool_name: str) -> None:
        self.kind = kind
        self.offset = 0
        self.parts: list[str] = []
        self.tool_use_id = tool_use_id
        self.tool_name = tool_name


@dataclass(slots=True)
class _Message:
    """The message that one conversation (the main one or a subagent's) is writing."""

    message_id: str
    model: str
    index: int = -1
    finished: int = 0
    blocks: dict[int, _Block] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    stop_reason: str = ""
    began: float = 0.0
    ttft_ms: int = 0


class Translator:
    """Holds what later frames refer to: open messages, calls and subtasks, totals for differences.

    Args:
        host_paths: Paths of the worker, such as the session's folder, that notices and raw frames must not show. What
            models and tools say is left as it is: they say it to the model too.
    """

    def __init__(self, host_paths: Sequence[str] = ()) -> None:
        self._host_paths = sorted((path for path in host_paths if path), key=len, reverse=True)
        self._messages: dict[str, _Message] = {}
        self._calls = Calls()
        self._subtasks = Subtasks()
        self._totals = Totals()
        self._initialized = b""
        self._state = ""
        self._progress = 0.0
        self._summary_due = False

    # ---- What the gate tells and asks ----

    def call_carried(self, tool_use_id: str, tool_name: str) -> None:
        """A call whose block was seen by another process is taken up again."""
        self._calls.asked(tool_use_id, tool_name, "")

    def call_started(self, tool_use_id: str, at: datetime) -> None:
        """A call is being carried out from `at` on."""
        self._calls.started(tool_use_id, at)

    def call_denied(self, tool_use_id: str, reason: str, by: str) -> None:
        """A call was denied; its result frame will say so only in prose."""
        self._calls.denied(tool_use_id, reason, by)

    def parent_of(self, agent_id: str | None) -> str:
        """The tool call that started a subagent; empty for the main conversation."""
        return self._subtasks.parent_of(agent_id) if agent_id else ""

    @property
    def open_calls(self) -> set[str]:
        """Calls that were seen and have not ended."""
        return self._calls.open

    @property
    def calls_run(self) -> bool:
        """Whether a call is being carried out."""
        return self._calls.running

    @property
    def active_subtasks(self) -> set[str]:
        """Agents and workflows that have not ended. Shells do not count."""
        return self._subtasks.active

    @property
    def idle(self) -> bool:
        """Whether the CLI has said that it has nothing left to do."""
        return self._state == "idle"

    @property
    def reports_due(self) -> bool:
        """Whether an agent or workflow has worked in the background, and the CLI may still have its report to answer.

        It begins a turn of its own for that, which nothing announces but that it does not become idle.
        """
        return self._subtasks.reporting and self._state not in {"", "idle"}

    def forget_reports(self) -> None:
        """What agents did before now is of no interest."""
        self._subtasks.reporting = False

    def abandon(self) -> list[event_pb2.Event]:
        """The process is gone and will not be replaced: the ends of calls for which no result will come."""
        return self._calls.abandoned(())

    def reset_process(self) -> None:
        """A new process: open messages, calls, subtasks and totals are those of the old one."""
        self._messages.clear()
        self._calls.clear()
        self._subtasks.clear()
        self._totals = Totals()
        self._summary_due = False
        self._state = ""

    # ---- Frames ----

    def translate(self, frame: dict[str, Any]) -> Sequence[Item]:
        """What a frame means; nothing for frames that say nothing of interest."""
        try:
            kind = frame["type"]
            if kind == "stream_event":
                return self._stream_event(frame)
            handler = _HANDLERS.get(kind)
            if handler is not None:
                return handler(self, frame)
            rule = TOP_LEVEL.get(kind)
            if rule is not None:
                return self._stamped(rule(frame), frame)
        except Exception as error:
            log.warning(
                "frame_not_translated", type=str(frame.get("type"))[:50], error=f"{type(error).__name__}: {error}"
            )
        return [self._raw(frame)]

    def _stream_event(self, frame: dict[str, Any]) -> Sequence[Item]:
        event = frame["event"]
        kind = event["type"]
        parent = frame.get("parent_tool_use_id") or ""
        message = self._messages.get(parent)
        if kind == "content_block_delta":
            return () if message is None else self._delta(message, event, parent)
        if kind == "message_start":
            return self._message_start(frame, event["message"], parent)
        if message is None:
            return ()
        if kind == "content_block_start":
            block = event["content_block"]
            message.index = event["index"]
            message.blocks[message.index] = _Block(
                block.get("type", ""), clean(block.get("id")), clean(block.get("name"))
            )
        elif kind == "message_delta":
            message.usage |= {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
            message.stop_reason = clean((event.get("delta") or {}).get("stop_reason"))
        elif kind == "message_stop":
            # Kept: should a block come late, it still gets its index.
            message.blocks.clear()
            return [self._message_completed(message, frame)] if not parent else ()
        return ()

    def _delta(self, message: _Message, event: dict[str, Any], parent: str) -> Sequence[Item]:
        delta = event["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            name, text = "text", delta["text"]
        elif kind == "input_json_delta":
            name, text = "tool_input", delta["partial_json"]
        elif kind == "thinking_delta":
            name, text = "thinking", delta["thinking"]
        else:
            return ()
        index = event["index"]
        block = message.blocks.get(index)
        if block is None or not text:
            return ()
        if text.isascii() and "\0" not in text:
            size = len(text)
        else:
            text = clean(text)
            size = len(text.encode())
        if name == "tool_input":
            block.parts.append(text)
            if block.kind == "server_tool_use":
                return ()
        piece = Delta(name, message.message_id, index, block.offset, text, parent, block.tool_use_id, block.tool_name)
        block.offset += size
        return (piece,)

    def _message_start(self, frame: dict[str, Any], raw: dict[str, Any], parent: str) -> Sequence[Item]:
        message = _Message(clean(raw["id"]), clean(raw.get("model")), began=clock.monotonic())
        message.usage = dict(raw.get("usage") or {})
        message.ttft_ms = int(frame.get("ttft_ms") or 0)
        self._summary_due = False
        self._messages[parent] = message
        event = _event(frame)
        event.message_started.message_id = message.message_id
        event.message_started.model = message.model
        return [event]

    def _message_completed(self, message: _Message, frame: dict[str, Any]) -> event_pb2.Event:
        event = _event(frame)
        done = event.message_completed
        done.message_id = message.message_id
        done.model = message.model
        done.stop_reason = message.stop_reason
        _usage(done.usage, message.usage)
        done.time_to_first_token.FromMilliseconds(message.ttft_ms)
        done.duration.FromMilliseconds(message.ttft_ms + int((clock.monotonic() - message.began) * 1000))
        return event

    def _assistant(self, frame: dict[str, Any]) -> Sequence[Item]:
        raw = frame["message"]
        parent = frame.get("parent_tool_use_id") or ""
        message = self._messages.get(parent)
        if message is None or message.message_id != raw.get("id"):
            # Without partial messages, as for subagents, there is no stream of it: blocks are counted here.
            message = self._messages[parent] = _Message(clean(raw.get("id")), clean(raw.get("model")))
        if agent_id := frame.get("agent_id"):
            self._subtasks.note_agent(clean(agent_id), clean(parent))
        event = _event(frame)
        out = event.assistant_message
        out.message_id = message.message_id
        out.transcript_uuid = clean(frame.get("uuid"))
        out.model = clean(raw.get("model"))
        out.synthetic = out.model == "<synthetic>"
        out.error = clean(frame.get("error"))
        out.interrupted = bool(frame.get("aborted"))
        for content in raw.get("content") or []:
            index = max(message.index, message.finished)
            exact = self._note_call(message, index, content, parent)
            block = out.blocks.add(index=index)
            add_block(block, content, exact)
            message.blocks.pop(index, None)
            message.finished = index + 1
        events: list[Item] = [event]
        if frame.get("supersedes"):
            events.insert(0, _retracted(frame, frame["supersedes"], "superseded"))
        return events

    def _note_call(self, message: _Message, index: int, content: dict[str, Any], parent: str) -> str | None:
        if content.get("type") not in {"tool_use", "server_tool_use"}:
            return None
        block = message.blocks.get(index)
        # The SDK has parsed the JSON already, which rounds numbers: the pieces are what the model wrote.
        exact = "".join(block.parts) if block is not None and block.tool_use_id == content.get("id") else ""
        if not _is_object(exact):
            exact = compact_json(content.get("input") or {})
        if content["type"] == "tool_use":
            self._calls.asked(clean(content.get("id")), clean(content.get("name")), clean(parent))
        return exact

    def _user(self, frame: dict[str, Any]) -> Sequence[Item]:
        content = frame["message"].get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else (content or [])
        events: list[Item] = []
        rest = []
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "tool_result":
                events += self._tool_result(frame, block)
            else:
                rest.append(block)
        kind = clean((frame.get("origin") or {}).get("kind"))
        # Echoes of what the actor itself has said, and markers for the CLI's own screen.
        if not rest or frame.get("isReplay") or kind == "human":
            return events
        event = _event(frame)
        said = event.user_message
        said.transcript_uuid = clean(frame.get("uuid"))
        # The prompt of a subagent is the agent's too.
        said.origin = _ORIGINS.get(kind, _Said.ORIGIN_AGENT)
        if frame.get("isCompactSummary") or (self._summary_due and _begins(rest, _SUMMARY)):
            said.origin = _Said.ORIGIN_COMPACTION
            self._summary_due = False
        for index, block in enumerate(rest):
            add_block(said.blocks.add(index=index), block)
        return [*events, event]

    def _tool_result(self, frame: dict[str, Any], block: dict[str, Any]) -> Sequence[Item]:
        if fault := self._calls.fault_of(block):
            return [Fault(fault)]
        if not self._calls.is_open(block):
            return ()
        event = _event(frame)
        self._calls.finish(event.tool_call_finished, frame, block)
        return [event]

    def _tool_progress(self, frame: dict[str, Any]) -> Sequence[Item]:
        if not self._calls.is_known(clean(frame.get("tool_use_id"))):
            # No event: it claims that a call runs. No fault either: it says nothing that lasts.
            return ()
        return self._stamped(TOP_LEVEL["tool_progress"](frame), frame)

    def _system(self, frame: dict[str, Any]) -> Sequence[Item]:
        subtype = frame.get("subtype") or ""
        if subtype == "init":
            event = _event(frame)
            agent_initialized(event.agent_initialized, frame)
            said = event.agent_initialized.SerializeToString(deterministic=True)
            if said == self._initialized:
                return ()
            self._initialized = said
            return [event]
        if subtype == "thinking_tokens":
            now = clock.monotonic()
            if now - self._progress < _PROGRESS_INTERVAL:
                return ()
            self._progress = now
        if subtype == "permission_denied":
            # The CLI's own refusal; the result of the call follows and says it.
            reason = clean(frame.get("decision_reason") or frame.get("message"))
            self._calls.denied(clean(frame.get("tool_use_id")), reason, clean(frame.get("decision_reason_type")))
            return ()
        if subtype == "compact_boundary":
            self._summary_due = True
        if subtype == "session_state_changed":
            self._state = clean(frame.get("state"))
            return ()
        rule = _SUBTASKS.get(subtype)
        if rule is not None:
            return self._stamped(rule(self._subtasks, frame), frame)
        stateless = SYSTEM.get(subtype)
        return [self._raw(frame)] if stateless is None else self._stamped(stateless(frame), frame)

    def _result(self, frame: dict[str, Any]) -> Sequence[Item]:
        left = self._stamped(self._calls.abandoned(self._subtasks.busy_calls), frame)
        return [*left, self._totals.turn_ended(frame)]

    # ---- Events ----

    def _stamped(self, events: list[event_pb2.Event], frame: dict[str, Any]) -> list[event_pb2.Event]:
        for event in events:
            _stamp(event, frame)
            if event.HasField("notice"):
                event.notice.text = self._scrub(event.notice.text)
        return events

    def _scrub(self, text: str) -> str:
        for path in self._host_paths:
            text = text.replace(path, _HIDDEN)
        return text

    def _raw(self, frame: dict[str, Any]) -> event_pb2.Event:
        event = event_pb2.Event()
        event.time.FromDatetime(clock.utcnow())
        raw = event.raw_frame
        raw.type = clean(frame.get("type"))[:200]
        raw.subtype = clean(frame.get("subtype"))[:200]
        try:
            text = self._scrub(compact_json(_without_host_fields(frame)))
        except (TypeError, ValueError, RecursionError):
            return event
        if (data := too_large(text)) is not None:
            raw.omitted.CopyFrom(omission(data))
        else:
            raw.frame_json = text
        return event


_SUBTASKS: dict[str, Callable[[Subtasks, dict[str, Any]], list[event_pb2.Event]]] = {
    "task_started": Subtasks.started,
    "task_updated": Subtasks.updated,
    "task_progress": Subtasks.progress,
    "task_notification": Subtasks.notified,
    "background_tasks_changed": Subtasks.listed,
}

_HANDLERS: dict[str, Callable[[Translator, dict[str, Any]], Sequence[Item]]] = {
    "assistant": Translator._assistant,
    "user": Translator._user,
    "system": Translator._system,
    "tool_progress": Translator._tool_progress,
    "result": Translator._result,
}


def _event(frame: dict[str, Any]) -> event_pb2.Event:
    return _stamp(event_pb2.Event(), frame)


def _stamp(event: event_pb2.Event, frame: dict[str, Any]) -> event_pb2.Event:
    event.time.FromDatetime(clock.utcnow())
    if parent := frame.get("parent_tool_use_id"):
        event.parent_tool_use_id = clean(parent)
    return event


def _retracted(frame: dict[str, Any], uuids: list[str], reason: str) -> event_pb2.Event:
    event = _event(frame)
    event.messages_retracted.transcript_uuids.extend(clean(uuid) for uuid in uuids)
    event.messages_retracted.reason = reason
    return event


def _usage(out: common_pb2.Usage, raw: dict[str, Any]) -> None:
    out.input_tokens = int(raw.get("input_tokens") or 0)
    out.output_tokens = int(raw.get("output_tokens") or 0)
    out.cache_write_tokens = int(raw.get("cache_creation_input_tokens") or 0)
    out.cache_read_tokens = int(raw.get("cache_read_input_tokens") or 0)


def _begins(blocks: list[Any], text: str) -> bool:
    first = blocks[0]
    return isinstance(first, dict) and str(first.get("text", "")).startswith(text)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# Metadata of the worker's host: never in a raw frame.
_HOST_FIELDS = frozenset(
    {
        "additional_directories", "cwd", "memory_paths", "messaging_socket_path", "original_cwd", "output_file", "path",
        "plugins", "transcript_path",
    }
)  # fmt: skip
_HIDDEN = "[path]"


def _without_host_fields(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_host_fields(inner) for key, inner in value.items() if key not in _HOST_FIELDS}
    if isinstance(value, list):
        return [_without_host_fields(inner) for inner in value]
    return value
