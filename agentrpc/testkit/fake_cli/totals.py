"""What the fake CLI claims to have used, as its results say it: for the turn, and for the life of the process."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Totals"]

# Dollars for a million tokens.
_INPUT_PRICE = 2
_OUTPUT_PRICE = 10


class Totals:
    """Sums. Times are in milliseconds."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.denials: list[dict[str, Any]] = []
        self._input = self._output = self._model_ms = 0
        self._before = (0, 0)
        self._began = time.monotonic()
        self._turns = 0

    @property
    def cost(self) -> float:
        """Dollars."""
        return _cost(self._input, self._output)

    def begin_turn(self) -> None:
        """A turn begins."""
        self._before = (self._input, self._output)
        self._began = time.monotonic()
        self.denials = []

    def add(self, given: int, written: int, seconds: float) -> None:
        """An answer of the model."""
        self._input += given
        self._output += written
        self._model_ms += int(seconds * 1000) + 1

    def end_turn(self) -> dict[str, Any]:
        """The fields of the result."""
        given, written = self._input - self._before[0], self._output - self._before[1]
        usage = {"input_tokens": given, "output_tokens": written}
        self._turns += 1
        return {
            "duration_ms": int((time.monotonic() - self._began) * 1000),
            "duration_api_ms": self._model_ms,
            "total_cost_usd": self.cost,
            "usage": {**usage, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
            "modelUsage": {self.model: _usage(self._input, self._output)},
            "model_usage_since_last_result": {self.model: _usage(given, written)},
            "permission_denials": self.denials,
            "result_index": self._turns - 1,
        }


def _cost(given: int, written: int) -> float:
    return (given * _INPUT_PRICE + written * _OUTPUT_PRICE) / 1_000_000


def _usage(given: int, written: int) -> dict[str, Any]:
    return {
        "inputTokens": given, "outputTokens": written, "cacheReadInputTokens": 0, "cacheCreationInputTokens": 0,
        "thinkingTokens": 0, "webSearchRequests": 0, "costUSD": _cost(given, written), "provider": "firstParty",
    }  # fmt: skip
