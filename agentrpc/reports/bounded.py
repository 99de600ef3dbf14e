"""What keeps a report small, however long the log is: times that lie close are joined, points thinned, lists cut."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc.reports.document import Growth

__all__ = ["Curve", "Ends", "Spans", "clip", "cut", "instant", "seconds_of"]

_T = TypeVar("_T")

# Input, output, cache write, cache read.
_Used: TypeAlias = tuple[int, int, int, int]

_MAX_SPANS = 300
_MAX_POINTS = 1000


def instant(time: Timestamp | float) -> str:
    """A moment as RFC 3339 text in UTC, to the millisecond; empty for none."""
    seconds = time if isinstance(time, float) else seconds_of(time)
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(time: Timestamp) -> float:
    """Seconds since 1970; 0 for none."""
    return time.seconds + time.nanos / 1e9


def cut(text: str, limit: int) -> tuple[str, bool]:
    """The text, or its beginning, and whether it was cut."""
    return (text, False) if len(text) <= limit else (text[: limit - 1].rstrip() + "…", True)


def clip(text: str, limit: int) -> str:
    """The text on one line, or its beginning."""
    return cut(" ".join(text[: limit * 4].split()), limit)[0]


class Spans:
    """When something was going on; the closest are joined when there are too many."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._gap = 0.001
        self.total = 0.0

    def add(self, begin: float, end: float) -> None:
        """One more, in any order."""
        end = max(begin, end)
        self.total += end - begin
        self._spans.append((begin, end))
        while len(self._spans) > 2 * _MAX_SPANS:
            self._spans = self.joined(self._gap)
            self._gap *= 2

    def merge(self, other: "Spans") -> None:
        """Those of another, too."""
        for begin, end in other.joined(0.0):
            self.add(begin, end)

    def joined(self, gap: float) -> list[tuple[float, float]]:
        """In order, those with at most `gap` seconds between them as one."""
        found: list[tuple[float, float]] = []
        for begin, end in sorted(self._spans):
            if found and begin - found[-1][1] <= gap:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            else:
                found.append((begin, end))
        return found


@dataclass(slots=True)
class _Point:
    time: float
    run: str
    input: int
    output: int
    cache: int
    weight: float
    cost: float


class Curve:
    """What had been used by when. A call's tokens are known when it ends, the cost only when its run does.

    Until then calls are weighed: what a run has cost is shared out among its calls by their tokens, as dear as they are
    in proportion (output 5, cache write 1.25, cache read 0.1 times as much as input).
    """

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._every = 1
        self._skipped = 0
        self._sum = _Point(0.0, "", 0, 0, 0, 0.0, 0.0)
        self._of_run: dict[str, list[float]] = {}

    def call(self, time: float, run: str, used: _Used) -> None:
        """A call of the model ended."""
        known = self._of_run.setdefault(run, [0.0, 0.0, 0.0, 0.0, 0.0])
        for at, count in enumerate(used):
            known[at] += count
        known[4] += _weight(used)
        self._grow(time, run, used, known[4])

    def run_ended(self, time: float, run: str, used: _Used, cost: float) -> None:
        """A run ended: what it used in all, subagents included, and what that cost."""
        known = self._of_run.pop(run, [0.0, 0.0, 0.0, 0.0, 0.0])
        rest = (
            max(0, used[0] - int(known[0])),
            max(0, used[1] - int(known[1])),
            max(0, used[2] - int(known[2])),
            max(0, used[3] - int(known[3])),
        )
        weight = known[4] + _weight(rest)
        for point in reversed(self._points):
            if point.run != run or not weight:
                break
            point.cost = self._sum.cost + cost * point.weight / weight
        self._sum.cost += cost
        self._grow(time, run, rest, weight, always=True)

    def _grow(self, time: float, run: str, used: _Used, weight: float, *, always: bool = False) -> None:
        total = self._sum
        total.time = max(total.time, time)
        total.input += used[0]
        total.output += used[1]
        total.cache += used[2] + used[3]
        self._skipped += 1
        if self._skipped < self._every and not always:
            return
        self._skipped = 0
        self._points.append(_Point(total.time, run, total.input, total.output, total.cache, weight, total.cost))
        if len(self._points) > 2 * _MAX_POINTS:
            # The newest stays.
            self._points = self._points[::-2][::-1]
            self._every *= 2

    def growth(self, origin: float) -> Growth:
        """The curve, from `origin` on."""
        growth = Growth()
        for point in self._points:
            growth.seconds.append(round(point.time - origin, 3))
            growth.input.append(point.input)
            growth.output.append(point.output)
            growth.cache.append(point.cache)
            growth.cost_usd.append(round(point.cost, 8))
        return growth


def _weight(used: _Used) -> float:
    return used[0] + 5 * used[1] + 1.25 * used[2] + 0.1 * used[3]


@dataclass(slots=True)
class Ends(Generic[_T]):
    """The first and the newest of a long list.

    Attributes:
        first: How many of the first are kept.
        newest: How many of the newest.
    """

    first: int
    newest: int
    _head: list[_T] = field(default_factory=list)
    _tail: deque[_T] = field(default_factory=deque)
    _count: int = 0

    def add(self, entry: _T) -> None:
        """One more at the end."""
        self._count += 1
        if len(self._head) < self.first:
            self._head.append(entry)
            return
        self._tail.append(entry)
        if len(self._tail) > self.newest:
            self._tail.popleft()

    def remove(self, unwanted: Callable[[_T], bool]) -> None:
        """Take out those that are unwanted."""
        before = len(self._head) + len(self._tail)
        self._head = [entry for entry in self._head if not unwanted(entry)]
        self._tail = deque(entry for entry in self._tail if not unwanted(entry))
        self._count -= before - len(self._head) - len(self._tail)

    def __iter__(self) -> Iterator[_T]:
        yield from self._head
        yield from self._tail

    @property
    def gap(self) -> int:
        """After how many entries those that are left out would stand."""
        return len(self._head)

    @property
    def left_out(self) -> int:
        """How many are missing."""
        return self._count - len(self._head) - len(self._tail)
