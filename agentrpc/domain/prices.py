"""What the provider asks for its models: list prices as of November 2026, in US dollars for a million tokens.

They bound what a run may spend; a bill they are not. A model that is not in the table counts as the dearest one that
is: what nobody knows the price of must not be free.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KINDS", "Price", "cost_of", "price_of"]

# Kinds of tokens, as the provider's `usage` names them. The last are among those that the cache was written with.
KINDS = (
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    "ephemeral_1h_input_tokens",
)  # fmt: skip

_MILLION = 1_000_000
_DATE = re.compile(r"-20\d{6}$")


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one model. To write to the cache costs a quarter more than the input, and twice as much for an hour."""

    input: float
    output: float
    cache_read: float

    def of(self, tokens: Mapping[str, int]) -> float:
        """Dollars for tokens by their kinds."""
        prices = (self.input, self.output, 1.25 * self.input, self.cache_read, 0.75 * self.input)
        return sum(tokens.get(kind, 0) * price for kind, price in zip(KINDS, prices, strict=True)) / _MILLION


_TABLE = {
    "claude-3-5-haiku": Price(0.8, 4, 0.08),
    "claude-haiku-4-5": Price(1, 5, 0.1),
    # For its long prompts; short ones cost a fifth.
    "claude-haiku-5-5": Price(0.5, 2.5, 0.05),
    "claude-sonnet-4-0": Price(3, 15, 0.3),
    "claude-sonnet-4-5": Price(3, 15, 0.3),
    "claude-sonnet-4-6": Price(3, 15, 0.3),
    "claude-sonnet-5": Price(2, 10, 0.2),
    "claude-sonnet-5-5": Price(2, 10, 0.1),
    "claude-opus-4-0": Price(15, 75, 1.5),
    "claude-opus-4-1": Price(15, 75, 1.5),
    "claude-opus-4-5": Price(5, 25, 0.5),
    "claude-opus-4-6": Price(5, 25, 0.5),
    "claude-opus-4-7": Price(5, 25, 0.5),
    "claude-opus-4-8": Price(5, 25, 0.5),
    "claude-opus-5": Price(5, 25, 0.5),
    "claude-opus-5-5": Price(4, 20, 0.2),
    "claude-fable-5": Price(10, 50, 1),
    "claude-fable-5-1": Price(10, 50, 0.25),
    "claude-fable-5-2": Price(8, 40, 0.2),
}
_DEAREST = max(_TABLE.values(), key=lambda price: price.output)


def price_of(model: str) -> Price:
    """The price of a model, with or without the date in its name."""
    return _TABLE.get(_DATE.sub("", model), _DEAREST)


def cost_of(model: str, tokens: Mapping[str, int]) -> float:
    """Dollars for tokens of a model by their kinds."""
    return price_of(model).of(tokens)
