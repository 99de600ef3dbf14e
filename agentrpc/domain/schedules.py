"""What a schedule does with its slots: what is late, what overlaps, how much later a run begins. No I/O, no clock."""

import hashlib
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from agentrpc.domain.crons import Timetable
from agentrpc.domain.states import StopKind

__all__ = [
    "BUFFER_LIMIT",
    "CATCH_UP_LIMIT",
    "Action",
    "Decision",
    "Due",
    "OverlapPolicy",
    "decide",
    "decide_each",
    "due",
    "jitter_of",
]

CATCH_UP_LIMIT = 100
BUFFER_LIMIT = 100


class OverlapPolicy(StrEnum):
    """As `Schedule.OverlapPolicy`."""

    SKIP = "SKIP"
    BUFFER_ONE = "BUFFER_ONE"
    BUFFER_ALL = "BUFFER_ALL"
    CANCEL_OTHER = "CANCEL_OTHER"
    TERMINATE_OTHER = "TERMINATE_OTHER"
    ALLOW_ALL = "ALLOW_ALL"


class Action(StrEnum):
    """What becomes of a slot."""

    FIRE = "FIRE"
    SKIP = "SKIP"
    BUFFER = "BUFFER"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a slot, and how executions under way are stopped for it, if at all."""

    action: Action
    stop: StopKind | None = None


_STOPS = {OverlapPolicy.CANCEL_OTHER: StopKind.INTERRUPT, OverlapPolicy.TERMINATE_OTHER: StopKind.CANCEL}


def decide(policy: OverlapPolicy, under_way: int, buffered: int, limit: int = BUFFER_LIMIT) -> Decision:
    """What becomes of a slot.

    Args:
        policy: The overlap policy.
        under_way: Executions of the task that have not ended and wait for no other.
        buffered: Slots of the same schedule or back-fill that wait for the end of one.
        limit: How many may wait with BUFFER_ALL.
    """
    if policy is OverlapPolicy.ALLOW_ALL or not (under_way or buffered):
        return Decision(Action.FIRE)
    waiting = {OverlapPolicy.SKIP: 0, OverlapPolicy.BUFFER_ALL: limit}.get(policy, 1)
    return Decision(Action.BUFFER if buffered < waiting else Action.SKIP, _STOPS.get(policy))


def decide_each(
    policy: OverlapPolicy, count: int, under_way: int, buffered: int, limit: int = BUFFER_LIMIT
) -> list[Decision]:
    """What becomes of so many slots that come one after the other, as `decide`."""
    decisions = []
    for _ in range(count):
        decision = decide(policy, under_way, buffered, limit)
        under_way += decision.action is Action.FIRE
        buffered += decision.action is Action.BUFFER
        decisions.append(decision)
    return decisions


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do for a schedule.

    Attributes:
        slots: Those to deal with now, oldest first.
        missed: How many are too old, or too many.
        last: The newest that has come, missed or not; None when none has.
        next: The first that is still to come; None when there is none.
    """

    slots: tuple[datetime, ...]
    missed: int
    last: datetime | None
    next: datetime | None


def due(timetable: Timetable, since: datetime, now: datetime, window: timedelta) -> Due:
    """The slots from `since` until `now`: those not older than `window` are due, at most the newest 100.

    Args:
        timetable: When there are slots.
        since: The first one that nobody has dealt with, or earlier.
        now: The time of the store.
        window: How late a slot may fire.
    """
    count = 0
    newest: deque[int] = deque(maxlen=CATCH_UP_LIMIT)
    upcoming: datetime | None = None
    for piece in timetable.pieces(since):
        come = bisect_right(piece, now.timestamp())
        count += come
        newest.extend(piece[:come])
        if come < len(piece):
            upcoming = _instant(piece[come])
            break
    slots = tuple(slot for slot in map(_instant, newest) if slot >= now - window)
    return Due(slots, count - len(slots), _instant(newest[-1]) if newest else None, upcoming)


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def jitter_of(task_id: UUID, slot: datetime, jitter: timedelta) -> timedelta:
    """How much later than its slot an execution begins: from 0 to below `jitter`, the same for the same slot."""
    digest = hashlib.sha256(task_id.bytes + int(slot.timestamp()).to_bytes(8, "big", signed=True)).digest()
    return jitter * (int.from_bytes(digest[:6]) / 2**48)
