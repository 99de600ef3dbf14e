"""Frames that stand for themselves: what each kind means does not depend on what came before.

Each rule gives the events of one frame; an empty list for what is known and of no interest, with the reason beside it.
"""

from collections.abc import Callable
from typing import Any

from agentrpc.claude.content import clean
from agentrpc.v1 import common_pb2, event_pb2

__all__ = ["SYSTEM", "TOP_LEVEL", "agent_initialized"]

Rule = Callable[[dict[str, Any]], list[event_pb2.Event]]

_MODES = {
    "default": common_pb2.PERMISSION_MODE_DEFAULT,
    "acceptEdits": common_pb2.PERMISSION_MODE_ACCEPT_EDITS,
    "plan": common_pb2.PERMISSION_MODE_PLAN,
    "dontAsk": common_pb2.PERMISSION_MODE_DONT_ASK,
}
_OUTPUT_LIVE = 4096
_OUTPUT_KEPT = 64 * 1024


def agent_initialized(out: event_pb2.AgentInitialized, frame: dict[str, Any]) -> None:
    """From an allow-list of fields: the frame also holds paths and a socket of the worker."""
    out.model = clean(frame.get("model"))
    out.permission_mode = _MODES.get(frame.get("permissionMode", ""), common_pb2.PERMISSION_MODE_UNSPECIFIED)
    out.tools.extend(map(clean, frame.get("tools") or []))
    for server in frame.get("mcp_servers") or []:
        out.mcp_servers.add(name=clean(server.get("name")), status=clean(server.get("status")))
    out.subagents.extend(map(clean, frame.get("agents") or []))
    out.slash_commands.extend(map(clean, frame.get("slash_commands") or []))
    out.skills.extend(map(clean, frame.get("skills") or []))
    out.agent_version = clean(frame.get("claude_code_version"))
    out.claude_session_id = clean(frame.get("session_id"))


def _nothing(_: dict[str, Any]) -> list[event_pb2.Event]:
    return []


def _status(frame: dict[str, Any]) -> list[event_pb2.Event]:
    activities = {
        "requesting": event_pb2.ActivityChanged.ACTIVITY_WAITING_FOR_MODEL,
        "compacting": event_pb2.ActivityChanged.ACTIVITY_COMPACTING,
    }
    activity = activities.get(frame.get("status") or "", event_pb2.ActivityChanged.ACTIVITY_UNSPECIFIED)
    return [event_pb2.Event(activity_changed=event_pb2.ActivityChanged(activity=activity))]


def _thinking(frame: dict[str, Any]) -> list[event_pb2.Event]:
    tokens = int(frame.get("estimated_tokens") or 0)
    return [event_pb2.Event(thinking_progress=event_pb2.ThinkingProgress(estimated_tokens=tokens))]


def _compacted(frame: dict[str, Any]) -> list[event_pb2.Event]:
    meta = frame.get("compact_metadata") or {}
    event = event_pb2.Event()
    out = event.context_compacted
    out.manual = meta.get("trigger") == "manual"
    out.tokens_before = int(meta.get("pre_tokens") or 0)
    out.tokens_after = int(meta.get("post_tokens") or 0)
    out.duration.FromMilliseconds(int(meta.get("duration_ms") or 0))
    return [event]


def _retried(frame: dict[str, Any]) -> list[event_pb2.Event]:
    event = event_pb2.Event()
    out = event.model_call_retried
    out.attempt = int(frame.get("attempt") or 0)
    out.max_attempts = int(frame.get("max_retries") or 0)
    out.retry_delay.FromMilliseconds(int(frame.get("retry_delay_ms") or 0))
    out.http_status = int(frame.get("error_status") or 0)
    out.error = clean(frame.get("error"))
    return [event]


def _task_started(frame: dict[str, Any]) -> list[event_pb2.Event]:
    return [
        event_pb2.Event(
            subtask_started=event_pb2.SubtaskStarted(
                subtask_id=clean(frame.get("task_id")),
                tool_use_id=clean(frame.get("tool_use_id")),
                type=clean(frame.get("task_type")),
                subagent=clean(frame.get("subagent_type")),
                description=clean(frame.get("description")),
                background=bool(frame.get("is_backgrounded")),
                parent_subtask_id=clean(frame.get("parent_task_id")),
            )
        )
    ]


def _task_updated(frame: dict[str, Any]) -> list[event_pb2.Event]:
    patch = frame.get("patch") or {}
    # A terminal status comes again with the report, in task_notification.
    if patch.get("status") in {"completed", "failed", "killed", "stopped"}:
        return []
    updated = event_pb2.SubtaskUpdated(
        subtask_id=clean(frame.get("task_id")),
        status=clean(patch.get("status")),
        background=bool(patch.get("is_backgrounded")),
    )
    return [event_pb2.Event(subtask_updated=updated)]


def _task_usage(out: event_pb2.SubtaskUsage, raw: dict[str, Any]) -> None:
    out.total_tokens = int(raw.get("total_tokens") or 0)
    out.tool_call_count = int(raw.get("tool_uses") or 0)
    out.duration.FromMilliseconds(int(raw.get("duration_ms") or 0))


def _task_progress(frame: dict[str, Any]) -> list[event_pb2.Event]:
    event = event_pb2.Event()
    out = event.subtask_progress
    out.subtask_id = clean(frame.get("task_id"))
    out.description = clean(frame.get("description"))
    out.last_tool_name = clean(frame.get("last_tool_name"))
    _task_usage(out.usage, frame.get("usage") or {})
    return [event]


def _task_ended(frame: dict[str, Any]) -> list[event_pb2.Event]:
    outcomes = {
        "completed": event_pb2.SubtaskEnded.OUTCOME_COMPLETED,
        "failed": event_pb2.SubtaskEnded.OUTCOME_FAILED,
    }
    event = event_pb2.Event()
    out = event.subtask_ended
    out.subtask_id = clean(frame.get("task_id"))
    out.outcome = outcomes.get(frame.get("status", ""), event_pb2.SubtaskEnded.OUTCOME_STOPPED)
    out.summary = clean(frame.get("summary"))[:_OUTPUT_KEPT]
    _task_usage(out.usage, frame.get("usage") or {})
    return [event]


def _hook_started(frame: dict[str, Any]) -> list[event_pb2.Event]:
    started = event_pb2.HookStarted(
        hook_id=clean(frame.get("hook_id")),
        hook_name=clean(frame.get("hook_name")),
        hook_event=clean(frame.get("hook_event")),
    )
    return [event_pb2.Event(hook_started=started)]


def _hook_progress(frame: dict[str, Any]) -> list[event_pb2.Event]:
    output = clean(frame.get("output") or frame.get("stdout"))[-_OUTPUT_LIVE:]
    progress = event_pb2.HookProgress(hook_id=clean(frame.get("hook_id")), output=output)
    return [event_pb2.Event(hook_progress=progress)]


def _hook_finished(frame: dict[str, Any]) -> list[event_pb2.Event]:
    event = event_pb2.Event()
    out = event.hook_finished
    out.hook_id = clean(frame.get("hook_id"))
    out.hook_name = clean(frame.get("hook_name"))
    out.hook_event = clean(frame.get("hook_event"))
    out.outcome = clean(frame.get("outcome"))
    if isinstance(frame.get("exit_code"), int):
        out.exit_code = frame["exit_code"]
    out.output = clean(frame.get("output"))[:_OUTPUT_KEPT]
    return [event]


def _mirror_error(_: dict[str, Any]) -> list[event_pb2.Event]:
    notice = event_pb2.Notice(
        level=event_pb2.Notice.LEVEL_WARNING,
        code="transcript_mirror_failed",
        text="A part of the transcript was not stored: after a loss of the worker the agent will not remember it.",
    )
    return [event_pb2.Event(notice=notice)]


def _informational(frame: dict[str, Any]) -> list[event_pb2.Event]:
    text = clean(frame.get("content") or frame.get("text") or frame.get("message"))[:_OUTPUT_LIVE]
    warning = frame.get("level") in {"warning", "error"}
    level = event_pb2.Notice.LEVEL_WARNING if warning else event_pb2.Notice.LEVEL_INFO
    return [event_pb2.Event(notice=event_pb2.Notice(level=level, code="cli", text=text))] if text else []


def _model_changed(frame: dict[str, Any]) -> list[event_pb2.Event]:
    changed = event_pb2.ModelChanged(
        previous_model=clean(frame.get("from_model") or frame.get("original_model")),
        model=clean(frame.get("to_model") or frame.get("fallback_model")),
        reason=clean(frame.get("trigger") or frame.get("reason")),
    )
    return [event_pb2.Event(model_changed=changed)]


SYSTEM: dict[str, Rule] = {
    "status": _status,
    "thinking_tokens": _thinking,
    "compact_boundary": _compacted,
    "api_retry": _retried,
    "task_started": _task_started,
    "task_updated": _task_updated,
    "task_progress": _task_progress,
    "task_notification": _task_ended,
    "hook_started": _hook_started,
    "hook_progress": _hook_progress,
    "hook_response": _hook_finished,
    "mirror_error": _mirror_error,
    "informational": _informational,
    "model_fallback": _model_changed,
    # The same as task_started and task_notification, as a list.
    "background_tasks_changed": _nothing,
    # Idle or running as the CLI sees it: the service has states of its own.
    "session_state_changed": _nothing,
    # Files of a remote host, and the prompt's way through the CLI's queue.
    "files_persisted": _nothing,
    "commands_changed": _nothing,
}


def _tool_progress(frame: dict[str, Any]) -> list[event_pb2.Event]:
    event = event_pb2.Event()
    out = event.tool_call_progress
    out.tool_use_id = clean(frame.get("tool_use_id"))
    out.tool_name = clean(frame.get("tool_name"))
    out.elapsed.FromMilliseconds(int(float(frame.get("elapsed_time_seconds") or 0) * 1000))
    return [event]


def _rate_limit(frame: dict[str, Any]) -> list[event_pb2.Event]:
    raw = frame.get("rate_limit_info") or {}
    event = event_pb2.Event()
    out = event.rate_limit_changed
    out.status = clean(raw.get("status"))
    out.window = clean(raw.get("rateLimitType"))
    if isinstance(raw.get("utilization"), (int, float)):
        out.utilization = float(raw["utilization"])
    if isinstance(raw.get("resetsAt"), (int, float)):
        out.reset_time.FromSeconds(int(raw["resetsAt"]))
    return [event]


def _conversation_reset(frame: dict[str, Any]) -> list[event_pb2.Event]:
    reset = event_pb2.ConversationReset(claude_session_id=clean(frame.get("new_session_id") or frame.get("session_id")))
    return [event_pb2.Event(conversation_reset=reset)]


TOP_LEVEL: dict[str, Rule] = {
    "tool_progress": _tool_progress,
    "rate_limit_event": _rate_limit,
    "conversation_reset": _conversation_reset,
    # The way of a prompt through the CLI's queue, which has one place here.
    "command_lifecycle": _nothing,
    # For people at the CLI's own screen.
    "tool_use_summary": _nothing,
    "prompt_suggestion": _nothing,
    "keep_alive": _nothing,
}
