"""Subtasks: the agents, workflows and shells that the agent starts, from `task_*` frames. Each ends exactly once."""

from dataclasses import dataclass
from typing import Any

from agentrpc.claude.content import clean
from agentrpc.v1 import event_pb2

__all__ = ["Subtasks"]

# A run waits for these alone: background shells and monitors never end by themselves.
_AWAITED = frozenset({"local_agent", "remote_agent", "local_workflow"})
_SUMMARY_LIMIT = 64 * 1024
_Ended = event_pb2.SubtaskEnded
_OUTCOMES = {"completed": _Ended.OUTCOME_COMPLETED, "failed": _Ended.OUTCOME_FAILED}
_TERMINAL = frozenset({"completed", "failed", "killed", "stopped"})


@dataclass(slots=True)
class _Subtask:
    """A subtask that has not ended."""

    tool_use_id: str
    awaited: bool
    background: bool
    status: str = ""


class Subtasks:
    """The subtasks of one process."""

    def __init__(self) -> None:
        self._open: dict[str, _Subtask] = {}
        self._ended: set[str] = set()
        self._hidden: set[str] = set()
        self._starters: dict[str, str] = {}
        # Whether any that a run waits for has gone on in the background.
        self.reporting = False

    def clear(self) -> None:
        """Forget all: their process is gone."""
        self._open.clear()
        self._ended.clear()
        self._hidden.clear()
        self._starters.clear()
        self.reporting = False

    @property
    def active(self) -> set[str]:
        """Ids of the agents and workflows that have not ended; shells and the CLI's own housekeeping do not count."""
        return {task_id for task_id, task in self._open.items() if task.awaited}

    @property
    def busy_calls(self) -> set[str]:
        """The calls that started subtasks which have not ended."""
        return {task.tool_use_id for task in self._open.values() if task.tool_use_id}

    def parent_of(self, agent_id: str) -> str:
        """The call that started a subagent."""
        return self._starters.get(agent_id, "")

    def note_agent(self, agent_id: str, tool_use_id: str) -> None:
        """A frame of a subagent names the call that started it."""
        self._starters.setdefault(agent_id, tool_use_id)

    def started(self, frame: dict[str, Any]) -> list[event_pb2.Event]:
        """`task_started`."""
        task_id, tool_use_id = clean(frame.get("task_id")), clean(frame.get("tool_use_id"))
        self._starters[task_id] = tool_use_id
        if frame.get("ambient") or frame.get("skip_transcript"):
            self._hidden.add(task_id)
            return []
        kind = clean(frame.get("task_type"))
        # Only agents and shells say so; a workflow always goes on beside the conversation.
        background = bool(frame.get("is_backgrounded", kind not in {"local_agent", "local_bash"}))
        self._open[task_id] = _Subtask(tool_use_id, kind in _AWAITED, background)
        self.reporting |= background and kind in _AWAITED
        self._ended.discard(task_id)
        started = event_pb2.SubtaskStarted(
            subtask_id=task_id,
            tool_use_id=tool_use_id,
            type=kind,
            subagent=clean(frame.get("subagent_type") or frame.get("workflow_name")),
            description=clean(frame.get("description")),
            background=background,
            parent_subtask_id=clean(frame.get("parent_task_id")),
        )
        return [event_pb2.Event(subtask_started=started)]

    def updated(self, frame: dict[str, Any]) -> list[event_pb2.Event]:
        """`task_updated`: a patch of what changed."""
        task_id = clean(frame.get("task_id"))
        task = self._open.get(task_id)
        patch = frame.get("patch") or {}
        if task is None:
            return []
        before = (task.status, task.background)
        task.status = clean(patch.get("status")) or task.status
        task.background = bool(patch.get("is_backgrounded", task.background))
        self.reporting |= task.background and task.awaited
        # Its report follows in task_notification.
        if task.status in _TERMINAL or before == (task.status, task.background):
            return []
        updated = event_pb2.SubtaskUpdated(
            subtask_id=task_id, status=task.status or "running", background=task.background
        )
        return [event_pb2.Event(subtask_updated=updated)]

    def progress(self, frame: dict[str, Any]) -> list[event_pb2.Event]:
        """`task_progress`."""
        task_id = clean(frame.get("task_id"))
        if task_id in self._hidden:
            return []
        event = event_pb2.Event()
        out = event.subtask_progress
        out.subtask_id = task_id
        out.description = clean(frame.get("summary") or frame.get("description"))
        out.last_tool_name = clean(frame.get("last_tool_name"))
        _usage(out.usage, frame.get("usage"))
        return [event]

    def notified(self, frame: dict[str, Any]) -> list[event_pb2.Event]:
        """`task_notification`: the end, with the report."""
        task_id = clean(frame.get("task_id"))
        self._open.pop(task_id, None)
        if task_id in self._hidden or task_id in self._ended:
            return []
        self._ended.add(task_id)
        return [_ended(task_id, clean(frame.get("status")), clean(frame.get("summary")), frame.get("usage"))]

    def listed(self, frame: dict[str, Any]) -> list[event_pb2.Event]:
        """`background_tasks_changed`: all that is in the background now. What is not there any more has ended."""
        there = {clean(task.get("task_id")) for task in frame.get("tasks") or []}
        events = []
        for task_id, task in list(self._open.items()):
            # One that just moved to the background may be listed a moment later; only an end leaves a status.
            if task.background and task_id not in there and task.status in _TERMINAL:
                del self._open[task_id]
                self._ended.add(task_id)
                events.append(_ended(task_id, task.status, "", None))
        return events


def _ended(task_id: str, status: str, summary: str, usage: object) -> event_pb2.Event:
    event = event_pb2.Event()
    out = event.subtask_ended
    out.subtask_id = task_id
    out.outcome = _OUTCOMES.get(status, _Ended.OUTCOME_STOPPED)
    out.summary = summary[:_SUMMARY_LIMIT]
    _usage(out.usage, usage)
    return event


def _usage(out: event_pb2.SubtaskUsage, raw: object) -> None:
    if isinstance(raw, dict):
        out.total_tokens = int(raw.get("total_tokens") or 0)
        out.tool_call_count = int(raw.get("tool_uses") or 0)
        out.duration.FromMilliseconds(int(raw.get("duration_ms") or 0))
