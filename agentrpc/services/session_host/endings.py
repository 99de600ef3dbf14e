"""How the end of a turn becomes the end of a run."""

import hashlib

from agentrpc.claude.launcher import StopReceipt
from agentrpc.claude.translation import TurnEnded
from agentrpc.domain.model_calls import RunAllowance, plain_model
from agentrpc.domain.prices import cost_of
from agentrpc.domain.states import RunState
from agentrpc.services.run_end import Ending, sum_usage
from agentrpc.v1 import common_pb2, run_pb2

__all__ = ["MISBEHAVED", "add_usage", "failed", "from_turn", "note_metered", "run_receipt", "stopped"]

_INLINE = 256 * 1024

# Subtypes of the CLI's result frame that are not success.
_SUBTYPES = {
    "error_max_turns": ("REASON_MAX_TURNS", "max_turns was reached: raise it, or create a run that goes on", False),
    "error_max_budget_usd": (
        "REASON_MAX_COST",
        "max_cost_usd was reached: raise it, or create a run that goes on",
        False,
    ),
    "error_max_structured_output_retries": (
        "REASON_OUTPUT_INVALID",
        "the answer did not follow output_schema_json: simplify the schema or the task",
        True,
    ),
}

# HTTP statuses of the provider's last refusal.
_STATUSES = {
    400: ("REASON_PROVIDER_INVALID_REQUEST", "the provider refused the request as invalid", False),
    401: ("REASON_PROVIDER_AUTHENTICATION", "the provider refused the key: its operator has to set a good one", False),
    402: ("REASON_PROVIDER_BILLING", "the provider wants billing to be settled", False),
    403: ("REASON_PROVIDER_AUTHENTICATION", "the provider refused the key: its operator has to set a good one", False),
    404: ("REASON_MODEL_NOT_FOUND", "the model does not exist or may not be used: choose another one", False),
    413: ("REASON_CONTEXT_TOO_LONG", "the conversation does not fit the model any more: use a new session", False),
    429: ("REASON_PROVIDER_RATE_LIMITED", "the provider's rate limit is reached: try again later", True),
}
_SERVER_ERROR = 500
_LIMITED = 429
# What the model gateway has refused when a bound of the run was reached.
_BOUNDS = {"turns": "error_max_turns", "cost": "error_max_budget_usd"}
_KINDS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
}

MISBEHAVED = (
    "the agent's process broke its protocol ({}) and was ended: see what its tools have done before you create the run "
    "again"
)


def failed(reason: str, message: str, *, retryable: bool = False, usage: Ending | None = None) -> Ending:
    """A run that failed.

    Args:
        reason: A name of `RunError.Reason`.
        message: One sentence for people, with a remedy, nothing internal.
        retryable: Whether the same prompt may well succeed later.
        usage: Whose usage to keep.
    """
    ending = Ending(
        RunState.FAILED,
        error=run_pb2.RunError(reason=reason, message=message, retryable=retryable),
    )
    if usage is not None:
        ending.usage, ending.model_usage = usage.usage, usage.model_usage
    return ending


def from_turn(turn: TurnEnded, usage: Ending) -> Ending:
    """The end of a run whose last turn ended like this, with the usage gathered so far."""
    result = run_pb2.RunResult(
        structured_json=turn.structured_json,
        stop_reason=turn.stop_reason,
        terminal_reason=turn.terminal_reason,
        turn_count=turn.turn_count,
        denial_count=turn.denial_count,
    )
    data = turn.text.encode()
    if len(data) > _INLINE:
        result.text = data[:1024].decode(errors="ignore")
        result.omitted.total_bytes = len(data)
        result.omitted.sha256 = hashlib.sha256(data).hexdigest()
    else:
        result.text = turn.text
    result.duration.FromTimedelta(turn.duration)
    result.model_duration.FromTimedelta(turn.model_duration)
    ending = Ending(
        RunState.SUCCEEDED,
        result=result,
        usage=usage.usage,
        model_usage=usage.model_usage,
        complete=usage.complete,
    )
    if not turn.is_error and turn.subtype == "success":
        return ending
    ending.state = RunState.FAILED
    ending.error = _error(turn)
    return ending


def stopped(state: RunState, usage: Ending, turn: TurnEnded | None) -> Ending:
    """The end of a run that was stopped; with the result of its last turn, if one had ended."""
    result = from_turn(turn, usage).result if turn is not None else None
    return Ending(state, result, None, usage.usage, usage.model_usage)


def run_receipt(receipt: StopReceipt) -> run_pb2.StopReceipt:
    """What became of the process tree, for the caller. How long it took and what it cost, the store adds."""
    return run_pb2.StopReceipt(process_count=receipt.processes, confirmed=receipt.confirmed)


def add_usage(ending: Ending, turn: TurnEnded) -> None:
    """Add what a turn has used."""
    sum_usage(ending.usage, turn.usage)
    by_model = {(used.model, used.provider): used for used in ending.model_usage}
    for used in turn.model_usage:
        key = (used.model, used.provider)
        sum_usage(
            by_model.setdefault(key, common_pb2.ModelUsage(model=used.model, provider=used.provider)).usage, used.usage
        )
    ending.model_usage = list(by_model.values())


def note_metered(ending: Ending, used: RunAllowance) -> None:
    """Add what the model gateway has counted beyond what the CLI reports: others' calls, and those that were cut off.

    A run that failed because the gateway keeps its bounds says so.
    """
    for model, tokens in used.tokens.items():
        own = [entry for entry in ending.model_usage if plain_model(entry.model) == model]
        more = {
            kind: max(tokens[kind] - sum(getattr(entry.usage, name) for entry in own), 0)
            for kind, name in _KINDS.items()
        }
        if not any(more.values()):
            continue
        added = common_pb2.Usage(**{_KINDS[kind]: count for kind, count in more.items()})
        added.cost_usd = cost_of(model, more)
        if not own:
            own = [common_pb2.ModelUsage(model=model, provider="gateway")]
            ending.model_usage.append(own[0])
        sum_usage(own[0].usage, added)
        sum_usage(ending.usage, added)
    if ending.error is not None and ending.error.http_status == _LIMITED and used.exceeded:
        reason, message, retryable = _SUBTYPES[_BOUNDS[used.exceeded]]
        ending.error.MergeFrom(run_pb2.RunError(reason=reason, message=message))
        ending.error.retryable = retryable


def _error(turn: TurnEnded) -> run_pb2.RunError:
    known = _SUBTYPES.get(turn.subtype) or _STATUSES.get(turn.http_status)
    if known is None and turn.http_status >= _SERVER_ERROR:
        known = ("REASON_PROVIDER_UNAVAILABLE", "the provider is overloaded or failed: try again later", True)
    if known is None and "prompt is too long" in turn.text.lower():
        known = _STATUSES[413]
    if known is None:
        known = ("REASON_INTERNAL", "the agent ended with an error of its own: see the result", True)
    reason, message, retryable = known
    return run_pb2.RunError(
        reason=reason,
        message=message,
        retryable=retryable,
        http_status=turn.http_status,
    )
