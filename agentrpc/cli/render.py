"""Events for people: tool calls in a line each, approvals as questions."""

import json

from rich.console import Console
from rich.text import Text

from agentrpc.cli.terminal import shown
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, session_pb2

__all__ = ["event_line", "level_name", "print_line", "state_name", "summary", "wait_name"]

_Outcome = event_pb2.ToolCallFinished
_MARKS = {
    _Outcome.OUTCOME_SUCCEEDED: ("✓", "green"),
    _Outcome.OUTCOME_FAILED: ("✗", "red"),
    _Outcome.OUTCOME_DENIED: ("⊘", "yellow"),
    _Outcome.OUTCOME_INTERRUPTED: ("■", "yellow"),
    _Outcome.OUTCOME_UNKNOWN: ("?", "red"),
}
_WIDTH = 100


def summary(tool: str, input_json: str) -> str:
    """A call in a few words: the command, the path, or the beginning of its input."""
    try:
        given = json.loads(input_json or "{}")
    except ValueError:
        given = {}
    for key in ("command", "file_path", "url", "pattern", "query", "description", "plan"):
        if isinstance(given, dict) and isinstance(given.get(key), str):
            return f"{tool} {_short(given[key])}"
    return f"{tool} {_short(input_json)}" if input_json not in {"", "{}"} else tool


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _WIDTH else f"{flat[: _WIDTH - 1]}…"


def state_name(run: run_pb2.Run) -> str:
    """Such as `SUCCEEDED`."""
    return run_pb2.Run.State.Name(run.state).removeprefix("STATE_")


def wait_name(run: run_pb2.Run) -> str:
    """Such as `APPROVAL`, or `ISOLATION: SANDBOX, workers have USER`; empty when it waits for nothing."""
    if not run.HasField("waiting_on"):
        return ""
    wait = run.waiting_on
    name = run_pb2.WaitingOn.Reason.Name(wait.reason).removeprefix("REASON_")
    if wait.reason != run_pb2.WaitingOn.REASON_ISOLATION:
        return name
    levels = " and ".join(map(level_name, wait.worker_isolation_levels))
    there = f"workers have {levels}" if levels else "there are no workers"
    return f"{name}: {level_name(wait.needed_isolation_level)}, {there}"


def level_name(level: session_pb2.Session.IsolationLevel) -> str:
    """Such as `SANDBOX`; empty for a session that no worker has taken up yet."""
    name = session_pb2.Session.IsolationLevel.Name(level).removeprefix("ISOLATION_LEVEL_")
    return "" if name == "UNSPECIFIED" else name


def event_line(event: event_pb2.Event) -> Text | None:
    """An event as one line; None for those that say nothing to people."""
    kind = event.WhichOneof("payload")
    if kind == "run_started":
        return Text(f"run started (attempt {event.run_started.attempt})", "dim")
    if kind == "run_state_changed" and event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
        unknown = ", ".join(f"{c.tool_name} {c.tool_use_id}" for c in event.run_state_changed.in_doubt_calls)
        return Text.assemble(("? ", "red"), shown(event.run_state_changed.message), " ", shown(unknown, "dim"))
    if kind == "run_ended":
        ended = event.run_ended
        state = run_pb2.Run.State.Name(ended.state).removeprefix("STATE_")
        colour = "green" if ended.state == run_pb2.Run.STATE_SUCCEEDED else "red"
        why = shown(f": {ended.error.message}" if ended.HasField("error") else "")
        return Text.assemble(
            (state, colour), why, (f" {ended.usage.output_tokens} tokens, ${ended.usage.cost_usd:.4f}", "dim")
        )
    if kind == "assistant_message":
        calls = [b.tool_use for b in event.assistant_message.blocks if b.HasField("tool_use")]
        lines = [Text.assemble(("● ", "cyan"), shown(summary(c.tool_name, c.input_json))) for c in calls]
        return Text("\n").join(lines) if lines else None
    if kind == "tool_call_finished":
        done = event.tool_call_finished
        seconds = done.duration.ToTimedelta().total_seconds()
        text = next((b.text.text for b in done.content if b.HasField("text")), "")
        reason = shown(f" {seconds:.1f} s  {_short(done.denial_reason or text)}", "dim")
        return Text.assemble("  ", _MARKS.get(done.outcome, "·"), reason)
    if kind == "approval_resolved":
        state = approval_pb2.Approval.State.Name(event.approval_resolved.state).removeprefix("STATE_")
        return Text(f"  {state.lower()}", "dim")
    if kind == "network_access":
        return _access(event.network_access)
    if said := _said(event):
        mark, text = said
        return Text.assemble((f"{mark} ", "yellow"), shown(text))
    return None


def _access(access: event_pb2.NetworkAccess) -> Text:
    where = f"{access.host}:{access.port}"
    if access.further_destinations:
        where = f"{access.further_destinations} or more further destinations"
    elif access.decision == access.DECISION_DENIED:
        where += f" refused: {access.rule}"
    if access.credential:
        where += f" with {access.credential}"
    if access.HasField("traffic"):
        sent, received = access.traffic.bytes_sent, access.traffic.bytes_received
        where += f", {access.traffic.connections} times, {sent} bytes there, {received} back"
    denied = access.decision == access.DECISION_DENIED
    return Text.assemble(("⊘ " if denied else "↗ ", "yellow" if denied else "dim"), shown(where, "dim"))


def _said(event: event_pb2.Event) -> tuple[str, str] | None:
    """A mark and a text."""
    kind = event.WhichOneof("payload")
    if kind == "approval_requested":
        return "?", event.approval_requested.approval.title
    if kind == "session_grant_revoked":
        return "!", f"no longer allowed: {event.session_grant_revoked.grant.rule}"
    if kind == "notice":
        return "!", event.notice.text
    if kind == "model_call_retried":
        retried = event.model_call_retried
        return "!", f"the model did not answer ({retried.error or retried.http_status}); trying again"
    return None


def print_line(console: Console, event: event_pb2.Event) -> None:
    """Print an event's line, if it has one."""
    if (line := event_line(event)) is not None:
        console.print(line, highlight=False)
