"""What all benches share: a stack, figures with targets, medians."""

import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentrpc.app import _admin_for
from agentrpc.client import AgentRpcClient
from agentrpc.embedded.stack import Stack


@dataclass(frozen=True)
class Figure:
    """One result. `better` is `less` or `more`."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: str = "less"

    @property
    def ok(self) -> bool:
        if self.target is None:
            return True
        return self.value <= self.target if self.better == "less" else self.value >= self.target


@dataclass
class Outcome:
    figures: list[Figure]
    baseline: dict[str, float]


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def medians(outcomes: list[Outcome]) -> Outcome:
    """The median of each figure; the worst of those that may not be anything but 0."""
    figures = []
    for index, figure in enumerate(outcomes[0].figures):
        values = [outcome.figures[index].value for outcome in outcomes]
        value = max(values) if figure.target == 0 else statistics.median(values)
        figures.append(Figure(figure.name, value, figure.unit, figure.target, figure.better))
    keys = outcomes[0].baseline
    return Outcome(figures, {key: statistics.median(outcome.baseline[key] for outcome in outcomes) for key in keys})


@dataclass
class Running:
    stack: Stack
    password: str

    def client(self) -> AgentRpcClient:
        return AgentRpcClient(self.stack.address, username="admin", password=self.password)

    def pid(self, name: str) -> int:
        return self.stack.pid(name)


@asynccontextmanager
async def running(**environment: str) -> AsyncIterator[Running]:
    """A whole stack in processes of its own, as `agentrpc up` starts it."""
    os.environ.update(environment)
    with tempfile.TemporaryDirectory(prefix="agentrpc-bench-") as folder:
        stack = Stack(Path(folder), listen="127.0.0.1:0")
        await stack.start()
        try:
            password = await _admin_for(stack.environment)
            assert password is not None
            yield Running(stack, password)
        finally:
            await stack.stop()
            for key in environment:
                os.environ.pop(key, None)
    await asyncio.sleep(0)
