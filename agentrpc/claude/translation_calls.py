"""Tool calls from the block that asks for them to their end, joined by tool_use_id.

A frame alone makes no call: none has succeeded that the gate has not let pass, and each has one result. A result that
says otherwise is a fault.
What ran and what did not is read from the CLI's own marks (`tool_result_meta`) and from the gate, and only for want of
marks from the words with which the CLI itself begins a result.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agentrpc import clock
from agentrpc.claude.content import clean, compact_json, omission, result_blocks, too_large
from agentrpc.v1 import event_pb2

__all__ = ["Calls"]

# Their structured result repeats the content.
_OMIT_RESULT = frozenset({"Bash", "Read", "Grep", "Glob"})
_REFUSALS = {
    "permission-rule": "rule",
    "automode-blocked": "classifier",
    "automode-unavailable": "classifier",
    "automode-parsing-error": "classifier",
}
# `user-rejected` is what an interrupt leaves: there is no person at the CLI's own prompt who could reject.
_STOPPED = frozenset({"user-rejected", "interrupted", "cancelled"})
# How the CLI begins the result of a call that an interrupt ended, where it sends no marks.
_STOPPED_TEXT = "The user doesn't want to proceed with this tool use."
_REMEMBERED = 4096
_Finished = event_pb2.ToolCallFinished


@dataclass(slots=True)
class _Call:
    """A call that has not ended."""

    tool_name: str = ""
    parent: str = ""
    start: datetime | None = None
    denial: tuple[str, str] | None = None


class Calls:
    """The calls of one process that have not ended."""

    def __init__(self) -> None:
        self._open: dict[str, _Call] = {}
        # Those that ended last, and whether by a result.
        self._ended: dict[str, bool] = {}

    def clear(self) -> None:
        """Forget all: their process is gone."""
        self._open.clear()
        self._ended.clear()

    @property
    def open(self) -> set[str]:
        """Their ids."""
        return set(self._open)

    @property
    def running(self) -> bool:
        """Whether one of them is being carried out."""
        return any(call.start is not None for call in self._open.values())

    def asked(self, tool_use_id: str, tool_name: str, parent: str) -> None:
        """A block asks for a call, in the conversation of the subagent that `parent` started."""
        call = self._call(tool_use_id)
        call.tool_name, call.parent = tool_name, parent

    def started(self, tool_use_id: str, at: datetime) -> None:
        """The gate let it through."""
        self._call(tool_use_id).start = at

    def denied(self, tool_use_id: str, reason: str, by: str) -> None:
        """The gate, or the CLI after it, denied it. The first one counts."""
        call = self._call(tool_use_id)
        call.denial = call.denial or (reason, by)

    def fault_of(self, block: dict[str, Any]) -> str:
        """What is wrong with a result, in that there is one at all; empty if nothing is."""
        tool_use_id = clean(block.get("tool_use_id"))
        if self._ended.get(tool_use_id):
            return "a second result of one tool call"
        call = self._open.get(tool_use_id)
        if not self.is_known(tool_use_id):
            return "a result of a tool call that nobody has asked for"
        if call is not None and call.start is None and not block.get("is_error"):
            return "a result of a tool call that the gate has not let pass"
        return ""

    def is_known(self, tool_use_id: str) -> bool:
        """Whether the call was asked for by a block of this process, or carried into it."""
        return tool_use_id in self._open or tool_use_id in self._ended

    def is_open(self, block: dict[str, Any]) -> bool:
        """Whether a result is that of a call which has not ended: others were given up at the end of a turn."""
        return clean(block.get("tool_use_id")) in self._open

    def finish(self, out: event_pb2.ToolCallFinished, frame: dict[str, Any], block: dict[str, Any]) -> None:
        """The end of an open call, from its tool_result block and the frame around it."""
        tool_use_id = clean(block.get("tool_use_id"))
        call = self._open.pop(tool_use_id)
        self._note_end(tool_use_id, by_result=True)
        out.content.extend(result_blocks(block.get("content")))
        failed = bool(block.get("is_error"))
        if failed and call.denial is None:
            call.denial = _refusal(frame, block)
        if call.denial is not None:
            outcome = _Finished.OUTCOME_DENIED
        elif not failed:
            outcome = _Finished.OUTCOME_SUCCEEDED
        else:
            outcome = _Finished.OUTCOME_INTERRUPTED if _stopped(frame, block) else _Finished.OUTCOME_FAILED
        _fill(out, tool_use_id, call, outcome)
        result = frame.get("tool_use_result")
        if isinstance(result, dict) and call.tool_name not in _OMIT_RESULT:
            text = compact_json(result)
            if (data := too_large(text)) is not None:
                out.result_omitted.CopyFrom(omission(data))
            else:
                out.result_json = text

    def abandoned(self, busy: Iterable[str]) -> list[event_pb2.Event]:
        """The ends of calls for which no result will come, at the end of a turn.

        An interrupt leaves the calls of a subagent in the foreground without results. Calls of subagents that go on
        stay open: `busy` are the calls that started those.
        """
        alive = set(busy)
        events = []
        for tool_use_id, call in list(self._open.items()):
            if call.parent in alive:
                continue
            del self._open[tool_use_id]
            self._note_end(tool_use_id, by_result=False)
            event = event_pb2.Event(parent_tool_use_id=call.parent)
            denied = call.denial is not None
            outcome = _Finished.OUTCOME_DENIED if denied else _Finished.OUTCOME_INTERRUPTED
            _fill(event.tool_call_finished, tool_use_id, call, outcome)
            events.append(event)
        return events

    def _note_end(self, tool_use_id: str, *, by_result: bool) -> None:
        self._ended[tool_use_id] = by_result
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _call(self, tool_use_id: str) -> _Call:
        return self._open.setdefault(tool_use_id, _Call())


def _fill(
    out: event_pb2.ToolCallFinished, tool_use_id: str, call: _Call, outcome: event_pb2.ToolCallFinished.Outcome
) -> None:
    out.tool_use_id = tool_use_id
    out.tool_name = call.tool_name
    out.outcome = outcome
    if call.denial is not None:
        out.denial_reason, out.denied_by = clean(call.denial[0]), clean(call.denial[1])
    if call.start is not None:
        out.duration.FromTimedelta(max(clock.utcnow() - call.start, timedelta()))


def _mark(frame: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    for mark in frame.get("tool_result_meta") or []:
        if mark.get("id") == block.get("tool_use_id"):
            return dict(mark)
    return {}


def _refusal(frame: dict[str, Any], block: dict[str, Any]) -> tuple[str, str] | None:
    """Why and by what the CLI itself refused a call, if it did."""
    mark = _mark(frame, block)
    decision = mark.get("permission_decision") or {}
    kind = mark.get("non_execution_kind")
    if decision.get("decision") != "reject" and kind not in _REFUSALS:
        return None
    by = decision.get("reason_type") or decision.get("source") or _REFUSALS.get(kind or "", "")
    return _text(block)[:4096], clean(by)


def _stopped(frame: dict[str, Any], block: dict[str, Any]) -> bool:
    mark = _mark(frame, block)
    if mark:
        return mark.get("non_execution_kind") in _STOPPED
    return _text(block).startswith(_STOPPED_TEXT)


def _text(block: dict[str, Any]) -> str:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return clean(content)
