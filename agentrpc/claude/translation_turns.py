"""The end of a turn: the CLI's result frame. It holds totals of the process; what leaves here is of the turn alone."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agentrpc.claude.content import clean, compact_json
from agentrpc.v1 import common_pb2

__all__ = ["Totals", "TurnEnded"]

_MODEL_USAGE = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheCreationInputTokens": "cache_write_tokens",
    "cacheReadInputTokens": "cache_read_tokens",
    "thinkingTokens": "thinking_tokens",
    "webSearchRequests": "web_search_requests",
    "costUSD": "cost_usd",
}
# For the CLI's own developers.
_INTERNAL_ERROR = "[ede_diagnostic]"


@dataclass(slots=True)
class TurnEnded:
    """The result frame of one turn; usage and times are of this turn alone.

    Attributes:
        prompt_uuids: The prompts that the turn answered, by the uuid that they were sent with. Empty for a turn that
            the CLI began by itself, as when a background subtask reports: it is not the answer to any prompt.
        origin: What began the turn, if no prompt did, such as `task-notification`. An open set, the CLI's.
        queued_turn_count: Turns that wait in the CLI and will follow this one.
    """

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
    prompt_uuids: frozenset[str] = frozenset()
    origin: str = ""
    queued_turn_count: int = 0


class Totals:
    """What the process has counted so far."""

    def __init__(self) -> None:
        self._by_model: dict[str, dict[str, float]] = {}
        self._model_ms: int | None = None

    def turn_ended(self, frame: dict[str, Any]) -> TurnEnded:
        """The end of a turn."""
        usage, by_model = self._usage(frame)
        structured = frame.get("structured_output")
        errors = [clean(text) for text in frame.get("errors") or [] if not str(text).startswith(_INTERNAL_ERROR)]
        duration = int(frame.get("duration_ms") or 0)
        prompts = frame.get("user_message_uuids") or [frame.get("user_message_uuid")]
        return TurnEnded(
            subtype=clean(frame.get("subtype")),
            is_error=bool(frame.get("is_error")),
            text=clean(frame.get("result")) or "\n".join(errors),
            structured_json="" if structured is None else compact_json(structured),
            stop_reason=clean(frame.get("stop_reason")),
            terminal_reason=clean(frame.get("terminal_reason")),
            turn_count=int(frame.get("num_turns") or 0),
            denial_count=len(frame.get("permission_denials") or []),
            duration=timedelta(milliseconds=duration),
            model_duration=timedelta(milliseconds=self._model_time(frame, duration)),
            http_status=int(frame.get("api_error_status") or 0),
            usage=usage,
            model_usage=by_model,
            errors=errors,
            prompt_uuids=frozenset(clean(uuid) for uuid in prompts if uuid),
            origin=clean((frame.get("origin") or {}).get("kind")),
            queued_turn_count=int(frame.get("queued_turn_count") or 0),
        )

    def _model_time(self, frame: dict[str, Any], duration: int) -> int:
        total, before = int(frame.get("duration_api_ms") or 0), self._model_ms
        # A local command reports 0, and the next turn counts on.
        if total == 0:
            return 0
        self._model_ms = total
        # A resumed process may begin with the total of the one before it.
        return min(total, duration) if before is None else max(total - before, 0)

    def _usage(self, frame: dict[str, Any]) -> tuple[common_pb2.Usage, list[common_pb2.ModelUsage]]:
        total = common_pb2.Usage()
        models = []
        ready = frame.get("model_usage_since_last_result")
        for name, raw in (ready if isinstance(ready, dict) else frame.get("modelUsage") or {}).items():
            figures = {key: raw.get(key) or 0 for key in _MODEL_USAGE}
            if not isinstance(ready, dict):
                before = self._by_model.get(name, {})
                self._by_model[name] = figures
                figures = {key: max(value - before.get(key, 0), 0) for key, value in figures.items()}
            usage = common_pb2.Usage()
            for key, field_name in _MODEL_USAGE.items():
                value = figures[key]
                setattr(usage, field_name, float(value) if field_name == "cost_usd" else int(value))
                setattr(total, field_name, getattr(total, field_name) + getattr(usage, field_name))
            if usage.ByteSize():
                models.append(
                    common_pb2.ModelUsage(model=clean(name), provider=clean(raw.get("provider")), usage=usage)
                )
        return total, models
