"""What a run may ask of models, whoever asks: the CLI, or a tool that has read the CLI's token.

Nobody can tell these two apart, so that everything counts which is asked with the token of a session. The bounds are
therefore those of the run's options with some room for what the CLI does besides its turns; what the gate has let pass
widens them (a subagent has turns of its own, a web search is a request of its own).
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentrpc.domain.prices import KINDS, cost_of, price_of
from agentrpc.v1 import session_pb2

__all__ = ["FAMILIES", "Refusal", "RunAllowance", "allowance", "family_models", "models_of", "plain_model"]

# Aliases of the CLI for its newest models.
FAMILIES = ("haiku", "sonnet", "opus", "fable")
# What is asked besides a turn: the conversation made shorter, an answer that was cut gone on with.
_SPARE = 4
_FOR_A_TURN = 2
# What the subagents of a call may ask.
_SUBAGENTS = {"Agent": 100, "Task": 100, "SendMessage": 100, "Workflow": 1000}
# Beside a request of the CLI's own that asks a small model about what came.
_HELPED = frozenset({"WebFetch", "WebSearch"})
_SERVER_TOOLS = {"WebSearch": "web_search"}
# A guess at an answer that is under way.
_ANSWER_TOKENS = 2048


class Refusal(Exception):
    """Why a request is not passed on.

    Attributes:
        reason: `turns`, `cost` or `busy`; the last is over when what is under way has ended.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class RunAllowance:
    """What one run may still ask, and what it has used. It outlives the processes and tokens of the run.

    Attributes:
        models: Patterns of the models that may be asked.
        long_context: Whether the contexts of a million tokens may be asked for.
        max_turns: The run's; None: no limit.
        max_cost: The run's, in dollars; None: no limit.
        tokens: What was used by model and kind.
        cost: What that costs by list price, in dollars.
        exceeded: The reason of the first refusal that will not pass: `turns` or `cost`.
    """

    models: tuple[str, ...]
    long_context: bool = False
    max_turns: int | None = None
    max_cost: float | None = None
    tokens: dict[str, Counter[str]] = field(default_factory=dict)
    cost: float = 0.0
    exceeded: str = ""
    _prompts: int = 0
    _granted: int = 0
    _asked: int = 0
    _reserved: float = 0.0
    _server_tools: Counter[str] = field(default_factory=Counter)

    def bound_by(self, other: "RunAllowance") -> None:
        """Go on under the bounds of another, which are those of the session's options now."""
        self.models, self.long_context = other.models, other.long_context
        self.max_turns, self.max_cost, self.exceeded = other.max_turns, other.max_cost, ""

    # ---- What widens it ----

    def prompt_given(self) -> None:
        """The CLI was told something by a caller: it has max_turns for that."""
        self._prompts += 1

    def call_begun(self, tool_name: str) -> None:
        """The gate has let a call of a tool pass."""
        self._granted += _SUBAGENTS.get(tool_name, int(tool_name in _HELPED))
        if tool_name in _SERVER_TOOLS:
            self._server_tools[_SERVER_TOOLS[tool_name]] += 1

    # ---- What uses it ----

    def permits(self, model: str) -> bool:
        """Whether a model may be asked."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)

    def take_server_tool(self, name: str) -> bool:
        """Use up one of the requests with a tool that the provider runs, such as `web_search`: one for each call."""
        if self._server_tools[name] <= 0:
            return False
        self._server_tools[name] -= 1
        return True

    def give_back_server_tool(self, name: str) -> None:
        """Such a request was not answered."""
        self._server_tools[name] += 1

    def reserve(self, model: str, size: int, max_tokens: int) -> float:
        """Begin a request. The amount has to be given back by `settle`.

        Args:
            model: The model that is asked.
            size: Bytes of the request.
            max_tokens: Of its answer.

        Raises:
            Refusal: It would be beyond the bounds.
        """
        if self.max_turns is not None:
            bound = max(self._prompts, 1) * (_FOR_A_TURN * self.max_turns + _SPARE) + self._granted
            if self._asked >= bound:
                self.exceeded = self.exceeded or "turns"
                raise Refusal("turns", f"the run may ask the model {bound} times (max_turns), and has done so")
        amount = 0.0
        if self.max_cost is not None:
            if self.cost >= self.max_cost:
                self.exceeded = self.exceeded or "cost"
                raise Refusal("cost", f"the run has used its max_cost_usd of {self.max_cost:g}")
            guess = {"input_tokens": size // 4, "output_tokens": min(max_tokens, _ANSWER_TOKENS)}
            amount = cost_of(model, guess)
            if self._reserved and self.cost + self._reserved + amount > self.max_cost:
                raise Refusal(
                    "busy", "what is under way may use up the run's max_cost_usd: try again when it has ended"
                )
        self._asked += 1
        self._reserved += amount
        return amount

    def too_dear(self, model: str, output_tokens: int) -> bool:
        """Whether an answer that has so many tokens by now has used up what was left."""
        return self.max_cost is not None and (
            self.cost + price_of(model).of({"output_tokens": output_tokens}) > self.max_cost
        )

    def settle(self, amount: float, model: str, tokens: Mapping[str, int], *, answered: bool) -> None:
        """End a request.

        Args:
            amount: What was reserved.
            model: The model that was asked.
            tokens: What it has used, by kind.
            answered: Whether there was an answer: errors of the provider are not turns.
        """
        self._reserved = max(self._reserved - amount, 0.0)
        if not answered:
            self._asked -= 1
            return
        counted = self.tokens.setdefault(model, Counter())
        counted.update({kind: tokens.get(kind, 0) for kind in KINDS})
        self.cost += cost_of(model, tokens)


def plain_model(model: str) -> str:
    """A model without what the CLI appends for its context, as it is asked for."""
    return model.removesuffix("[1m]")


def models_of(model: str, more: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the models that a session may ask.

    Args:
        model: The session's own: a name, or an alias that the CLI resolves.
        more: Patterns of what the operator allows besides.
    """
    own = plain_model(model)
    if own == "opusplan":
        return "claude-opus-*", "claude-sonnet-*", *more
    if own in FAMILIES:
        return f"claude-{own}-*", *more
    if own in {"default", "best"}:
        return "claude-*", *more
    return own, *more


def family_models(model: str, more: Iterable[str]) -> dict[str, str]:
    """What the CLI is to take for its aliases, which agents choose for their subagents, by alias.

    One of which the session may ask no model stands for the session's own model.
    """
    own = plain_model(model)
    if own in {*FAMILIES, "opusplan", "default", "best"}:
        return {}
    found = {}
    for family in FAMILIES:
        named = [pattern for pattern in more if family in pattern or pattern.startswith("*") or pattern == "claude-*"]
        if not named:
            found[family] = model
        elif not any(letter in named[0] for letter in "*?["):
            found[family] = named[0]
    return found


def allowance(options: session_pb2.SessionOptions, more: Iterable[str]) -> RunAllowance:
    """What a run with these options, its model set, may ask."""
    return RunAllowance(
        models_of(options.model, more),
        options.model.endswith("[1m]"),
        options.max_turns if options.HasField("max_turns") else None,
        options.max_cost_usd if options.HasField("max_cost_usd") else None,
    )
