"""Raw frames of the CLI to events of the contract, each once.

Never raises: what cannot be translated becomes a `raw_frame`. Deltas are the hot path and leave as plain objects, which
the writer merges before it makes events of them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from agentrpc import clock
from agentrpc.claude.content import add_block, clean, compact_json, omission, result_blocks, too_large
from agentrpc.claude.frames import SYSTEM, TOP_LEVEL, agent_initialized
from agentrpc.v1 import common_pb2, event_pb2

__all__ = ["Delta", "Item", "Translator", "TurnEnded"]

log = structlog.get_logger()

_OMIT_RESULT = frozenset({"Bash", "Read", "Grep", "Glob"})
_PROGRESS_INTERVAL = 0.25
_INTERRUPTED = re.compile(r"stopped while running|interrupted by user|doesn't want to proceed with this tool use")
_Finished = event_pb2.ToolCallFinished


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


@dataclass(slots=True)
class TurnEnded:
    """The result frame of one turn; usage is of this turn alone."""

    subtype: str
    is_error: bool
    text: str
    structured_json: str
    stop_reason: str
    terminal_reason: str
    turn_count: int
    denial_count: int
    duration: timedelta
    model_duration: timedelta
    http_status: int
    usage: common_pb2.Usage
    model_usage: list[common_pb2.ModelUsage]
    errors: list[str]


Item = event_pb2.Event | Delta | TurnEnded


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


@dataclass(slots=True)
class _Call:
    """A tool call that has not ended."""

    tool_name: str
    input_json: str = ""
    start: datetime | None = None
    denial: tuple[str, str] | None = None


class Translator:
    """Holds what later frames refer to: open messages, calls and subtasks, totals for differences."""

    def __init__(self) -> None:
        self._messages: dict[str, _Message] = {}
        self._calls: dict[str, _Call] = {}
        self._agents: dict[str, str] = {}
        self.active_subtasks: set[str] = set()
        self._totals: dict[str, dict[str, float]] = {}
        self._cost = 0.0
        self._initialized = b""
        self._progress = 0.0

    # ---- What the gate tells and asks ----

    def call_started(self, tool_use_id: str, at: datetime) -> None:
        """A call is being carried out from `at` on."""
        self._call(tool_use_id).start = at

    def call_denied(self, tool_use_id: str, reason: str, by: str) -> None:
        """A call was denied; its result frame will say so only in prose."""
        self._call(tool_use_id).denial = (reason, by)

    def parent_of(self, agent_id: str | None) -> str:
        """The tool call that started a subagent; empty for the main conversation."""
        return self._agents.get(agent_id, "") if agent_id else ""

    def input_of(self, tool_use_id: str) -> str | None:
        """The exact input of a call whose block was seen and that has not ended."""
        call = self._calls.get(tool_use_id)
        return call.input_json or None if call is not None else None

    @property
    def open_calls(self) -> set[str]:
        """Calls that were seen and have not ended."""
        return set(self._calls)

    def reset_process(self) -> None:
        """A new process: open messages, calls, subtasks and totals are those of the old one."""
        self._messages.clear()
        self._calls.clear()
        self._agents.clear()
        self.active_subtasks.clear()
        self._totals.clear()
        self._cost = 0.0

    def _call(self, tool_use_id: str) -> _Call:
        return self._calls.setdefault(tool_use_id, _Call(""))

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
                return [_stamp(event, frame) for event in rule(frame)]
        except Exception as error:
            log.warning(
                "frame_not_translated", type=str(frame.get("type"))[:50], error=f"{type(error).__name__}: {error}"
            )
        return [_raw(frame)]

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
            del self._messages[parent]
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
            exact = self._note_call(message, index, content)
            block = out.blocks.add(index=index)
            add_block(block, content, exact)
            message.blocks.pop(index, None)
            message.finished = index + 1
        events: list[Item] = [event]
        if frame.get("supersedes"):
            events.insert(0, _retracted(frame, frame["supersedes"], "superseded"))
        return events

    def _note_call(self, message: _Message, index: int, content: dict[str, Any]) -> str | None:
        if content.get("type") not in {"tool_use", "server_tool_use"}:
            return None
        block = message.blocks.get(index)
        # The SDK has parsed the JSON already, which rounds numbers: the pieces are what the model wrote.
        exact = "".join(block.parts) if block is not None and block.tool_use_id == content.get("id") else ""
        exact = exact or compact_json(content.get("input") or {})
        if content["type"] == "tool_use":
            call = self._call(clean(content.get("id")))
            call.tool_name, call.input_json = clean(content.get("name")), exact
        return exact

    def _user(self, frame: dict[str, Any]) -> Sequence[Item]:
        content = frame["message"].get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else (content or [])
        events: list[Item] = []
        rest = []
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "tool_result":
                events.append(self._tool_result(frame, block))
            else:
                rest.append(block)
        # Echoes of what the actor itself has said, and markers for the CLI's own screen.
        if not rest or frame.get("isReplay"):
            return events
        event = _event(frame)
        said = event.user_message
        said.transcript_uuid = clean(frame.get("uuid"))
        said.origin = event_pb2.UserMessage.ORIGIN_AGENT
        if frame.get("isCompactSummary") or str(blocks[0].get("text", "")).startswith(
            "This session is being continued"
        ):
            said.origin = event_pb2.UserMessage.ORIGIN_COMPACTION
        elif frame.get("parent_tool_use_id"):
            said.origin = event_pb2.UserMessage.ORIGIN_SUBTASK
        for index, block in enumerate(rest):
            add_block(said.blocks.add(index=index), block)
        return [*events, event]

    def _tool_result(self, frame: dict[str, Any], block: dict[str, Any]) -> event_pb2.Event:
        tool_use_id = clean(block.get("tool_use_id"))
        call = self._calls.pop(tool_use_id, None) or _Call("")
        event = _event(frame)
        done = event.tool_call_finished
        done.tool_use_id = tool_use_id
        done.tool_name = call.tool_name
        done.content.extend(result_blocks(block.get("content")))
        done.outcome = _Finished.OUTCOME_FAILED if block.get("is_error") else _Finished.OUTCOME_SUCCEEDED
        if call.denial is not None:
            done.outcome = _Finished.OUTCOME_DENIED
            done.denial_reason, done.denied_by = clean(call.denial[0]), call.denial[1]
        elif block.get("is_error"):
            text = block["content"] if isinstance(block.get("content"), str) else compact_json(block.get("content"))
            if _INTERRUPTED.search(text):
                done.outcome = _Finished.OUTCOME_INTERRUPTED
        if call.start is not None:
            done.duration.FromTimedelta(max(clock.utcnow() - call.start, timedelta()))
        result = frame.get("tool_use_result")
        if isinstance(result, dict) and call.tool_name not in _OMIT_RESULT:
            text = compact_json(result)
            if (data := too_large(text)) is not None:
                done.result_omitted.CopyFrom(omission(data))
            else:
                done.result_json = text
        return event

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
        if subtype == "task_started":
            self._task_started(frame)
        elif subtype == "task_notification":
            self.active_subtasks.discard(clean(frame.get("task_id")))
        rule = SYSTEM.get(subtype)
        if rule is None:
            return [_raw(frame)]
        return [_stamp(event, frame) for event in rule(frame)]

    def _task_started(self, frame: dict[str, Any]) -> None:
        task_id = clean(frame.get("task_id"))
        self._agents[task_id] = clean(frame.get("tool_use_id"))
        # Background shells never end by themselves: a run does not wait for them.
        if frame.get("task_type") != "local_bash":
            self.active_subtasks.add(task_id)

    def _result(self, frame: dict[str, Any]) -> Sequence[Item]:
        usage, by_model = self._turn_usage(frame)
        structured = frame.get("structured_output")
        errors = [clean(text) for text in frame.get("errors") or []]
        return [
            TurnEnded(
                subtype=clean(frame.get("subtype")),
                is_error=bool(frame.get("is_error")),
                text=clean(frame.get("result")) or "\n".join(errors),
                structured_json="" if structured is None else compact_json(structured),
                stop_reason=clean(frame.get("stop_reason")),
                terminal_reason=clean(frame.get("terminal_reason")),
                turn_count=int(frame.get("num_turns") or 0),
                denial_count=len(frame.get("permission_denials") or []),
                duration=timedelta(milliseconds=int(frame.get("duration_ms") or 0)),
                model_duration=timedelta(milliseconds=int(frame.get("duration_api_ms") or 0)),
                http_status=int(frame.get("api_error_status") or 0),
                usage=usage,
                model_usage=by_model,
                errors=errors,
            )
        ]

    def _turn_usage(self, frame: dict[str, Any]) -> tuple[common_pb2.Usage, list[common_pb2.ModelUsage]]:
        total = common_pb2.Usage()
        models = []
        ready = frame.get("model_usage_since_last_result")
        for name, raw in (ready if isinstance(ready, dict) else frame.get("modelUsage") or {}).items():
            figures = {key: raw.get(key) or 0 for key in _MODEL_USAGE}
            if not isinstance(ready, dict):
                # The CLI counts for the life of the process: this turn is the difference.
                before = self._totals.get(name, {})
                figures = {key: max(value - before.get(key, 0), 0) for key, value in figures.items()}
                self._totals[name] = {key: raw.get(key) or 0 for key in _MODEL_USAGE}
            usage = common_pb2.Usage()
            for key, field_name in _MODEL_USAGE.items():
                value = figures[key]
                setattr(usage, field_name, float(value) if field_name == "cost_usd" else int(value))
                setattr(total, field_name, getattr(total, field_name) + getattr(usage, field_name))
            models.append(common_pb2.ModelUsage(model=clean(name), provider=clean(raw.get("provider")), usage=usage))
        return total, models


_MODEL_USAGE = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheCreationInputTokens": "cache_write_tokens",
    "cacheReadInputTokens": "cache_read_tokens",
    "thinkingTokens": "thinking_tokens",
    "webSearchRequests": "web_search_requests",
    "costUSD": "cost_usd",
}

_HANDLERS: dict[str, Callable[[Translator, dict[str, Any]], Sequence[Item]]] = {
    "assistant": Translator._assistant,
    "user": Translator._user,
    "system": Translator._system,
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


# Metadata of the worker's host: never in a raw frame.
_HOST_FIELDS = frozenset(
    {"cwd", "original_cwd", "memory_paths", "messaging_socket_path", "output_file", "transcript_path", "plugins"}
)


def _raw(frame: dict[str, Any]) -> event_pb2.Event:
    event = event_pb2.Event()
    event.time.FromDatetime(clock.utcnow())
    raw = event.raw_frame
    raw.type = clean(frame.get("type"))[:200]
    raw.subtype = clean(frame.get("subtype"))[:200]
    try:
        text = compact_json({key: value for key, value in frame.items() if key not in _HOST_FIELDS})
    except (TypeError, ValueError):
        return event
    if (data := too_large(text)) is not None:
        raw.omitted.CopyFrom(omission(data))
    else:
        raw.frame_json = text
    return event
