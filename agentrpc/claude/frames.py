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
    events = [event_pb2.Event(activity_changed=event_pb2.ActivityChanged(activity=activity))]
    if frame.get("compact_result") == "failed":
        text = f"The conversation could not be summarized: {clean(frame.get('compact_error')) or 'no reason was given'}"
        events += _notice(text, warning=True)
    return events


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


def _notice(text: str, *, warning: bool, code: str = "cli") -> list[event_pb2.Event]:
    level = event_pb2.Notice.LEVEL_WARNING if warning else event_pb2.Notice.LEVEL_INFO
    text = text[:_OUTPUT_LIVE]
    return [event_pb2.Event(notice=event_pb2.Notice(level=level, code=code, text=text))] if text else []


def _mirror_error(_: dict[str, Any]) -> list[event_pb2.Event]:
    text = "A part of the transcript was not stored: after a loss of the worker the agent will not remember it."
    return _notice(text, warning=True, code="transcript_mirror_failed")


def _writes_lost(frame: dict[str, Any]) -> list[event_pb2.Event]:
    text = f"The agent's disk is full ({clean(frame.get('error_code'))}): some of what it wrote is lost."
    return _notice(text, warning=True, code="disk_full")


def _informational(frame: dict[str, Any]) -> list[event_pb2.Event]:
    return _notice(clean(frame.get("content")), warning=frame.get("level") in {"warning", "error"})


def _notification(frame: dict[str, Any]) -> list[event_pb2.Event]:
    return _notice(clean(frame.get("text")), warning=frame.get("color") in {"warning", "error"})


def _warning(frame: dict[str, Any]) -> list[event_pb2.Event]:
    return _notice(clean(frame.get("content")), warning=True)


def _model_changed(frame: dict[str, Any]) -> list[event_pb2.Event]:
    changed = event_pb2.ModelChanged(
        previous_model=clean(frame.get("original_model")),
        model=clean(frame.get("fallback_model")),
        reason=clean(frame.get("trigger") or frame.get("choice")),
    )
    return [event_pb2.Event(model_changed=changed)]


def _refusal_fallback(frame: dict[str, Any]) -> list[event_pb2.Event]:
    events = []
    if uuids := frame.get("retracted_message_uuids"):
        retracted = event_pb2.MessagesRetracted(transcript_uuids=map(clean, uuids), reason="refusal_fallback")
        events.append(event_pb2.Event(messages_retracted=retracted))
    # `local`: one answer of a subagent came from another model, the session's model is as before.
    if frame.get("scope") != "local":
        events += _model_changed(frame)
    return events


SYSTEM: dict[str, Rule] = {
    "status": _status,
    "thinking_tokens": _thinking,
    "compact_boundary": _compacted,
    "api_retry": _retried,
    "hook_started": _hook_started,
    "hook_progress": _hook_progress,
    "hook_response": _hook_finished,
    "mirror_error": _mirror_error,
    "informational": _informational,
    "notification": _notification,
    "local_command_output": _informational,
    "session_writes_lost": _writes_lost,
    "model_fallback": _model_changed,
    "model_consent_fallback": _model_changed,
    "model_refusal_fallback": _refusal_fallback,
    "model_refusal_no_fallback": _warning,
}


def _known(reason: str, *kinds: str) -> dict[str, Rule]:
    """Kinds of frames that say nothing here, with the reason why."""
    assert reason
    return dict.fromkeys(kinds, _nothing)


SYSTEM |= (
    _known("the service has states of its own", "turn_preempted", "worker_shutting_down")
    | _known("api_retry says it", "api_error")
    | _known("thinking arrives in blocks and deltas", "thinking")
    | _known("the next agent_initialized says it", "commands_changed", "per_turn_effort_changed", "plugin_install")
    | _known("summaries for the CLI's own lists", "away_summary", "post_turn_summary", "stop_hook_summary",
             "task_summary", "turn_duration", "session_title_changed", "session_metadata", "task_list_statuses")
    | _known("the tool's result says it", "agents_killed", "code_change_published", "file_snapshot", "shell_cwd",
             "memory_recall", "memory_saved", "vcs_state_changed")
    | _known("the CLI's own permission prompts, which the gate replaces", "inherited_asks_settled",
             "late_allow_not_run", "permission_check_status", "permission_retry")
    | _known("answers to control requests, of which there are none like it", "control_request_progress",
             "elicitation_complete", "file_attachments_missing", "files_persisted", "peer_message_hold",
             "turn_handoff_available", "upgrade_relay_marker")
    | _known("for the screens of other programs", "cloud_session_delta", "dev_intent", "feedback_draft_queued",
             "instruction_size_warning", "scheduled_task_fire", "ui_focus", "ui_invalidate", "ui_log", "ui_notify",
             "ui_notify_cancel", "ui_panes", "ui_placed", "ui_scroll", "ui_status", "ui_toast")
)  # fmt: skip


def _tool_progress(frame: dict[str, Any]) -> list[event_pb2.Event]:
    if isinstance(retry := frame.get("subagent_retry"), dict):
        # A call of a subagent to the model: the frame stands for the tool call that runs the subagent.
        (retried,) = _retried({**retry, "error": retry.get("error_category")})
        retried.parent_tool_use_id = clean(frame.get("tool_use_id"))
        return [retried]
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
    reset = event_pb2.ConversationReset(
        claude_session_id=clean(frame.get("new_conversation_id") or frame.get("session_id"))
    )
    return [event_pb2.Event(conversation_reset=reset)]


def _tombstone(frame: dict[str, Any]) -> list[event_pb2.Event]:
    uuid = clean((frame.get("message") or {}).get("uuid"))
    retracted = event_pb2.MessagesRetracted(transcript_uuids=[uuid], reason="superseded")
    return [event_pb2.Event(messages_retracted=retracted)] if uuid else []


def _auth_status(frame: dict[str, Any]) -> list[event_pb2.Event]:
    return _notice(clean(frame.get("error")), warning=True)


TOP_LEVEL: dict[str, Rule] = {
    "tool_progress": _tool_progress,
    "rate_limit_event": _rate_limit,
    "conversation_reset": _conversation_reset,
    "tombstone": _tombstone,
    "auth_status": _auth_status,
    **_known("the way of a prompt through the CLI's queue, which has one place here", "command_lifecycle"),
    **_known("for people at the CLI's own screen", "active_goal", "prompt_suggestion", "tool_use_summary"),
    **_known("says nothing", "keep_alive"),
}
