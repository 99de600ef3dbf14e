"""A log as a document, in one pass over its events that keeps what the report shows and no more."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agentrpc.reports.bounded import Curve, Ends, Spans, clip, cut, instant, seconds_of
from agentrpc.reports.document import (
    AgentInfo,
    ApprovalEntry,
    Document,
    Lane,
    ModelEntry,
    Problem,
    RunEntry,
    SubagentEntry,
    Tokens,
    ToolEntry,
    Turn,
)
from agentrpc.v1 import approval_pb2, common_pb2, content_pb2, event_pb2, run_pb2

__all__ = ["Collector", "tokens_of"]

_T = TypeVar("_T")

_MAX_OPEN = 10_000
_MAX_TOOLS = 100
_MAX_MODELS = 50
_MAX_APPROVALS = 200
_MAX_SUBAGENTS = 100
_LANES = 7
_OTHERS = "(other tools)"
_PROMPT, _ANSWER, _TEXT, _LINE = 2000, 12_000, 1500, 300
# Longer ones are not worth being read as JSON.
_LONGEST_INPUT = 64 * 1024
# Spans closer than this part of the whole cannot be told apart in a picture.
_RESOLUTION = 1 / 1500

_Outcome = event_pb2.ToolCallFinished
_OUTCOMES = {
    _Outcome.OUTCOME_SUCCEEDED: "succeeded",
    _Outcome.OUTCOME_FAILED: "failed",
    _Outcome.OUTCOME_DENIED: "denied",
    _Outcome.OUTCOME_INTERRUPTED: "interrupted",
    _Outcome.OUTCOME_UNKNOWN: "unknown",
}
_FROM_PEOPLE = {event_pb2.UserMessage.ORIGIN_PROMPT, event_pb2.UserMessage.ORIGIN_STEER}


@dataclass(slots=True)
class _Call:
    begin: float
    input: str = ""
    tool: str = ""  # set once it has started


@dataclass(slots=True)
class _Tool:
    entry: ToolEntry
    spans: Spans = field(default_factory=Spans)


class Collector:
    """Takes runs, oldest first, and then events, by sequence.

    Args:
        kind: `session` or `run`.
        title: Of the document.
        subject: The name of the session or the run.
        state: Its state.
        complete: Whether it has ended.
    """

    def __init__(self, kind: str, title: str, subject: str, state: str, *, complete: bool) -> None:
        self._document = Document(kind=kind, title=title, subject=subject, state=state, complete=complete)
        self._begin = float("inf")
        self._end = 0.0
        self._runs: Ends[RunEntry] = Ends(0, 100)
        self._models: dict[str, Tokens] = {}
        self._tools: dict[str, _Tool] = {}
        self._calls: dict[str, _Call] = {}
        self._approvals: dict[str, ApprovalEntry] = {}
        self._asked: dict[str, float] = {}
        self._subagents: dict[str, SubagentEntry] = {}
        self._subtasks: dict[str, float] = {}
        self._turns: Ends[tuple[str, Turn]] = Ends(40, 80)
        self._problems: Ends[Problem] = Ends(30, 30)
        self._spans = {label: Spans() for label in ("model", "subagent", "queue", "approval")}
        self._approval_count = 0
        self._subagent_count = 0
        self._curve = Curve()
        self._handlers: Mapping[str, Callable[[event_pb2.Event, float], None]] = {
            "run_started": self._run_started,
            "run_ended": self._run_ended,
            "user_message": self._user_message,
            "assistant_message": self._assistant_message,
            "message_completed": self._message_completed,
            "messages_retracted": self._messages_retracted,
            "conversation_rewound": self._conversation_rewound,
            "tool_call_started": self._tool_call_started,
            "tool_call_finished": self._tool_call_finished,
            "approval_requested": self._approval_requested,
            "approval_resolved": self._approval_resolved,
            "agent_initialized": self._agent_initialized,
            "context_compacted": self._context_compacted,
            "model_changed": self._model_changed,
            "model_call_retried": self._model_call_retried,
            "notice": self._notice,
            "subtask_started": self._subtask_started,
            "subtask_ended": self._subtask_ended,
        }

    # ---- What comes in ----

    def describe(self, text: str) -> None:
        """What the subject is about, in the words of its owner."""
        self._document.description = clip(text, 2 * _LINE)

    def add_run(self, run: run_pb2.Run) -> None:
        """A run, as it is stored now."""
        document = self._document
        state = run_pb2.Run.State.Name(run.state).removeprefix("STATE_")
        document.run_count += 1
        document.run_states[state] = document.run_states.get(state, 0) + 1
        created, started, ended = map(seconds_of, (run.create_time, run.start_time, run.end_time))
        self._see(created)
        self._see(ended)
        if started:
            self._spans["queue"].add(created, started)
            document.busy_seconds += max(0.0, (ended or started) - started)
        tokens = tokens_of(run.usage)
        document.tokens.add(tokens)
        for used in run.model_usage:
            label = used.model if used.model in self._models or len(self._models) < _MAX_MODELS else "(other models)"
            self._models.setdefault(label, Tokens()).add(tokens_of(used.usage))
        document.answer, document.answer_cut = cut(run.result.text, _ANSWER)
        self._runs.add(
            RunEntry(
                name=run.name,
                state=state,
                prompt=clip(run.prompt, _LINE),
                answer=clip(run.result.text, _LINE),
                error=run.error.message,
                created=instant(run.create_time),
                started=instant(run.start_time),
                ended=instant(run.end_time),
                seconds=round(max(0.0, ended - started), 3) if started and ended else 0.0,
                attempt=run.attempt,
                tokens=tokens,
            )
        )

    def add(self, event: event_pb2.Event) -> None:
        """An event, with its sequence."""
        self._document.event_count += 1
        self._document.last_sequence = max(self._document.last_sequence, event.sequence)
        time = seconds_of(event.time)
        self._see(time)
        handler = self._handlers.get(event.WhichOneof("payload") or "")
        if handler is not None:
            handler(event, time)

    # ---- What comes out ----

    def document(self) -> Document:
        """The document, once everything is in."""
        document = self._document
        if self._end:
            document.begin, document.end = instant(self._begin), instant(self._end)
            document.seconds = round(self._end - self._begin, 3)
        for call in self._calls.values():
            if call.tool:
                self._tool(call.tool).spans.add(call.begin, self._end)
        for asked in self._asked.values():
            self._spans["approval"].add(asked, self._end)
        for begun in self._subtasks.values():
            self._spans["subagent"].add(begun, self._end)
        document.busy_seconds = round(document.busy_seconds, 3)
        document.model_seconds = round(self._spans["model"].total, 3)
        document.tool_seconds = round(sum(tool.spans.total for tool in self._tools.values()), 3)
        document.wait_seconds = round(self._spans["approval"].total, 3)
        document.runs = list(self._runs)
        by_cost = sorted(self._models.items(), key=lambda item: (-item[1].cost_usd, -item[1].total, item[0]))
        document.models = [ModelEntry(model, tokens) for model, tokens in by_cost]
        document.tools = sorted((tool.entry for tool in self._tools.values()), key=lambda t: (-t.calls, t.tool))
        for entry in document.tools:
            entry.seconds, entry.longest = round(entry.seconds, 3), round(entry.longest, 3)
        document.approvals = list(self._approvals.values())
        document.subagents = list(self._subagents.values())
        document.conversation = self._conversation()
        document.problems = list(self._problems)
        document.lanes = self._lanes()
        document.growth = self._curve.growth(self._begin if self._end else 0.0)
        missing = {
            "runs": self._runs.left_out,
            "approvals": self._approval_count - len(document.approvals),
            "subagents": self._subagent_count - len(document.subagents),
            "conversation": self._turns.left_out,
            "problems": self._problems.left_out,
        }
        document.left_out = {name: count for name, count in missing.items() if count}
        return document

    def _conversation(self) -> list[Turn]:
        turns = [turn for _, turn in self._turns]
        if self._turns.left_out:
            note = Turn("note", "", f"{self._turns.left_out:,} messages and calls are left out here")
            turns.insert(self._turns.gap, note)
        return turns

    def _lanes(self) -> list[Lane]:
        by_time = sorted(self._tools.values(), key=lambda tool: (-tool.spans.total, tool.entry.tool))
        room = _LANES if len(by_time) <= _LANES else _LANES - 1
        chosen = [(tool.entry.tool, "tool", tool.spans) for tool in by_time[:room]]
        if by_time[room:]:
            rest = Spans()
            for tool in by_time[room:]:
                rest.merge(tool.spans)
            chosen.append(("other tools", "tool", rest))
        everything = [
            ("waiting for a worker", "wait", self._spans["queue"]),
            ("model", "model", self._spans["model"]),
            *chosen,
            ("subagents", "subagent", self._spans["subagent"]),
            ("waiting for a person", "wait", self._spans["approval"]),
        ]
        gap = (self._end - self._begin) * _RESOLUTION if self._end else 0.0
        lanes = []
        for label, kind, spans in everything:
            found = [(round(b - self._begin, 3), round(e - self._begin, 3)) for b, e in spans.joined(gap)]
            if found:
                lanes.append(Lane(clip(label, 60), kind, found))
        return lanes

    def _see(self, time: float) -> None:
        if time:
            self._begin, self._end = min(self._begin, time), max(self._end, time)

    # ---- One method for each type of event ----

    def _run_started(self, event: event_pb2.Event, time: float) -> None:
        if event.run_started.attempt > 1:
            text = f"a worker was lost; another one went on (attempt {event.run_started.attempt})"
            self._problems.add(Problem(instant(time), "worker lost", text))

    def _run_ended(self, event: event_pb2.Event, time: float) -> None:
        ended = event.run_ended
        used = tokens_of(ended.usage)
        self._curve.run_ended(time, event.run, _four(used), ended.usage.cost_usd)
        if ended.HasField("error"):
            reason = run_pb2.RunError.Reason.Name(ended.error.reason).removeprefix("REASON_").lower().replace("_", " ")
            self._problems.add(Problem(instant(time), f"run failed: {reason}", clip(ended.error.message, 2 * _LINE)))

    def _user_message(self, event: event_pb2.Event, time: float) -> None:
        message = event.user_message
        if event.parent_tool_use_id or message.origin not in _FROM_PEOPLE:
            return
        for text, cut_before in _texts(message.blocks):
            shown, was_cut = cut(text, _PROMPT)
            self._turn(message.transcript_uuid, Turn("user", instant(time), shown, was_cut or cut_before))

    def _assistant_message(self, event: event_pb2.Event, time: float) -> None:
        message = event.assistant_message
        for block in message.blocks:
            if block.HasField("tool_use") and not block.tool_use.server_side:
                call = block.tool_use
                self._open(self._calls, call.tool_use_id, _Call(time, _input(call.input_json)))
        if message.error:
            self._problems.add(Problem(instant(time), f"model: {clip(message.error, 60)}", _joined(message.blocks)))
        if event.parent_tool_use_id:
            return
        for text, cut_before in _texts(message.blocks):
            shown, was_cut = cut(text, _TEXT)
            self._turn(message.transcript_uuid, Turn("agent", instant(time), shown, was_cut or cut_before))

    def _message_completed(self, event: event_pb2.Event, time: float) -> None:
        done = event.message_completed
        took = done.duration.seconds + done.duration.nanos / 1e9
        self._spans["model"].add(max(time - took, self._begin), time)
        self._curve.call(time, event.run, _four(tokens_of(done.usage)))

    def _messages_retracted(self, event: event_pb2.Event, time: float) -> None:
        gone = set(event.messages_retracted.transcript_uuids)
        self._turns.remove(lambda entry: entry[0] in gone)

    def _conversation_rewound(self, event: event_pb2.Event, time: float) -> None:
        files = " and the files" if event.conversation_rewound.workspace_restored else ""
        text = f"the conversation{files} went back to before this point: event {event.conversation_rewound.to_sequence}"
        self._turn("", Turn("note", instant(time), text))

    def _tool_call_started(self, event: event_pb2.Event, time: float) -> None:
        started = event.tool_call_started
        call = self._calls.get(started.tool_use_id)
        if call is None:
            call = self._open(self._calls, started.tool_use_id, _Call(time))
        call.begin, call.tool = time, started.tool_name
        if started.changed_input_json:
            call.input = _input(started.changed_input_json)
        self._tool(started.tool_name).entry.open += 1

    def _tool_call_finished(self, event: event_pb2.Event, time: float) -> None:
        done = event.tool_call_finished
        call = self._calls.pop(done.tool_use_id, None) or _Call(time)
        tool = self._tool(done.tool_name)
        entry = tool.entry
        outcome = _OUTCOMES.get(done.outcome, "unknown")
        seconds = 0.0
        if call.tool:
            entry.open -= 1
            seconds = max(0.0, time - call.begin)
            tool.spans.add(call.begin, time)
        entry.calls += 1
        setattr(entry, outcome, getattr(entry, outcome) + 1)
        entry.seconds += seconds
        entry.longest = max(entry.longest, seconds)
        if outcome != "succeeded":
            told = done.denial_reason or _joined(done.content)
            self._problems.add(Problem(instant(time), f"{clip(done.tool_name, 60)} {outcome}", clip(told, _LINE)))
        if not event.parent_tool_use_id:
            name = clip(done.tool_name, 80)
            turn = Turn("tool", instant(time), call.input, tool=name, outcome=outcome, seconds=round(seconds, 3))
            self._turn("", turn)

    def _approval_requested(self, event: event_pb2.Event, time: float) -> None:
        asked = event.approval_requested.approval
        self._approval_count += 1
        self._open(self._asked, asked.name, time)
        if len(self._approvals) < _MAX_APPROVALS:
            self._approvals[asked.name] = ApprovalEntry(
                name=asked.name,
                title=clip(asked.title, _LINE),
                tool=clip(asked.tool_name, 80),
                input=_input(asked.input_json),
                reason=clip(asked.reason, _LINE),
                state="PENDING",
                asked=instant(time),
            )

    def _approval_resolved(self, event: event_pb2.Event, time: float) -> None:
        resolved = event.approval_resolved
        begun = self._asked.pop(resolved.approval, None)
        if begun is not None:
            self._spans["approval"].add(begun, time)
        entry = self._approvals.get(resolved.approval)
        if entry is None:
            return
        entry.state = approval_pb2.Approval.State.Name(resolved.state).removeprefix("STATE_")
        entry.resolved = instant(time)
        entry.waited = round(time - begun, 3) if begun is not None else 0.0
        answer = resolved.resolution
        entry.resolver = answer.resolver
        entry.message = clip(answer.message, _LINE)
        if answer.decision == approval_pb2.Resolution.DECISION_ALLOW:
            whole = answer.scope == approval_pb2.Resolution.SCOPE_SESSION
            entry.scope = "for the session" if whole else "once"

    def _agent_initialized(self, event: event_pb2.Event, time: float) -> None:
        known = event.agent_initialized
        mode = common_pb2.PermissionMode.Name(known.permission_mode).removeprefix("PERMISSION_MODE_")
        servers = [clip(f"{server.name} ({server.status})", 80) for server in known.mcp_servers[:20]]
        self._document.agent = AgentInfo(
            model=clip(known.model, 80),
            permission_mode=mode.lower().replace("_", " "),
            version=clip(known.agent_version, 40),
            tool_count=len(known.tools),
            mcp_servers=servers,
        )

    def _context_compacted(self, event: event_pb2.Event, time: float) -> None:
        text = f"the conversation was summarized to make room ({event.context_compacted.tokens_before:,} tokens before)"
        self._turn("", Turn("note", instant(time), text))

    def _model_changed(self, event: event_pb2.Event, time: float) -> None:
        changed = event.model_changed
        text = f"from here on {changed.model} answers instead of {changed.previous_model} ({changed.reason})"
        self._turn("", Turn("note", instant(time), clip(text, _LINE)))

    def _model_call_retried(self, event: event_pb2.Event, time: float) -> None:
        retried = event.model_call_retried
        text = f"attempt {retried.attempt} failed: {retried.error or retried.http_status}; it was tried again"
        self._problems.add(Problem(instant(time), "model call", clip(text, _LINE)))

    def _notice(self, event: event_pb2.Event, time: float) -> None:
        if event.notice.level == event_pb2.Notice.LEVEL_WARNING:
            kind = f"notice: {clip(event.notice.code, 60)}"
            self._problems.add(Problem(instant(time), kind, clip(event.notice.text, _LINE)))

    def _subtask_started(self, event: event_pb2.Event, time: float) -> None:
        begun = event.subtask_started
        self._subagent_count += 1
        self._open(self._subtasks, begun.subtask_id, time)
        if len(self._subagents) < _MAX_SUBAGENTS:
            self._subagents[begun.subtask_id] = SubagentEntry(
                id=clip(begun.subtask_id, 80),
                kind=clip(begun.subagent or begun.type, 80),
                description=clip(begun.description, _LINE),
                background=begun.background,
                started=instant(time),
            )

    def _subtask_ended(self, event: event_pb2.Event, time: float) -> None:
        ended = event.subtask_ended
        begun = self._subtasks.pop(ended.subtask_id, None)
        if begun is not None:
            self._spans["subagent"].add(begun, time)
        entry = self._subagents.get(ended.subtask_id)
        if entry is None:
            return
        entry.ended = instant(time)
        entry.outcome = event_pb2.SubtaskEnded.Outcome.Name(ended.outcome).removeprefix("OUTCOME_")
        entry.seconds = round(time - begun, 3) if begun is not None else 0.0
        entry.tokens = ended.usage.total_tokens
        entry.tool_calls = ended.usage.tool_call_count
        entry.summary = clip(ended.summary, 2 * _LINE)

    # ---- Helpers ----

    def _tool(self, name: str) -> _Tool:
        label = name if name in self._tools or len(self._tools) < _MAX_TOOLS else _OTHERS
        if label not in self._tools:
            self._tools[label] = _Tool(ToolEntry(clip(label, 80)))
        return self._tools[label]

    def _turn(self, uuid: str, turn: Turn) -> None:
        self._turns.add((uuid, turn))

    @staticmethod
    def _open(known: dict[str, _T], key: str, value: _T) -> _T:
        """Remember what has begun; of very much that never ends the oldest is forgotten."""
        known[key] = value
        if len(known) > _MAX_OPEN:
            del known[next(iter(known))]
        return value


def tokens_of(usage: common_pb2.Usage) -> Tokens:
    """Tokens and cost of a message of the contract."""
    return Tokens(
        input=usage.input_tokens,
        output=usage.output_tokens,
        cache_write=usage.cache_write_tokens,
        cache_read=usage.cache_read_tokens,
        cost_usd=round(usage.cost_usd, 8),
    )


def _four(tokens: Tokens) -> tuple[int, int, int, int]:
    return tokens.input, tokens.output, tokens.cache_write, tokens.cache_read


def _texts(blocks: Iterable[content_pb2.ContentBlock]) -> list[tuple[str, bool]]:
    """The texts, each with whether only its beginning is there."""
    return [(b.text.text, b.text.HasField("omitted")) for b in blocks if b.HasField("text") and b.text.text.strip()]


def _joined(blocks: Iterable[content_pb2.ContentBlock]) -> str:
    return clip(" ".join(text[: 4 * _LINE] for text, _ in _texts(blocks)), _LINE)


def _input(input_json: str) -> str:
    """A call in a few words: the command, the path, or the beginning of its input."""
    if len(input_json) > _LONGEST_INPUT:
        return clip(input_json, _LINE)
    try:
        given = json.loads(input_json or "{}")
    except (ValueError, RecursionError):
        given = {}
    for key in ("command", "file_path", "url", "pattern", "query", "description", "prompt", "plan"):
        if isinstance(given, dict) and isinstance(given.get(key), str):
            return clip(given[key], _LINE)
    return clip(input_json, _LINE) if input_json not in {"", "{}"} else ""
