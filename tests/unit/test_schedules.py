"""What a schedule does with its slots, without a store: what is late, what overlaps, how much later a run begins."""

import random
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from agentrpc import clock
from agentrpc.domain.crons import Timetable, parse_cron, parse_zone
from agentrpc.domain.schedules import Action, OverlapPolicy, decide, decide_each, due, jitter_of
from agentrpc.domain.states import StopKind

NOW = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def table(*crons, **limits):
    return Timetable(tuple(map(parse_cron, crons)), parse_zone("UTC"), **limits)


def test_every_slot_is_due_or_missed_once():
    dice = random.Random(1)
    for _ in range(200):
        cron = dice.choice(["* * * * *", "*/7 * * * *", "5 */3 * * *", "30 2 * * *"])
        since = NOW - timedelta(minutes=dice.randrange(0, 20_000))
        window = timedelta(seconds=dice.randrange(10, 400_000))
        come = due(table(cron), since, NOW, window)
        slots = list(table(cron).between(since, NOW + timedelta(microseconds=1)))
        late = [slot for slot in slots if slot >= NOW - window]
        assert list(come.slots) == late[-100:]
        assert come.missed == len(slots) - len(come.slots)
        assert come.last == (slots[-1] if slots else None)
        assert come.next == table(cron).next(NOW)
        # From where it leaves off there is nothing more to do now.
        assert due(table(cron), come.next, NOW, window).slots == ()


def test_a_slot_is_due_at_its_very_instant_and_not_before():
    slot = NOW.replace(second=0)
    assert due(table("* * * * *"), slot, slot, MINUTE).slots == (slot,)
    before = due(table("* * * * *"), slot, slot - timedelta(microseconds=1), MINUTE)
    assert (before.slots, before.last, before.next) == ((), None, slot)


def test_a_year_without_schedulers_is_counted():
    since = NOW.replace(second=0) - timedelta(days=365)
    come = due(table("* * * * *"), since, NOW, timedelta(days=365))
    assert (len(come.slots), come.missed) == (100, 365 * 1440 + 1 - 100)


def test_a_schedule_that_is_over_has_no_next_slot():
    come = due(table("* * * * *", end=NOW - 2 * MINUTE), NOW - 10 * MINUTE, NOW, timedelta(hours=1))
    assert (len(come.slots), come.next) == (8, None)


@pytest.mark.parametrize("policy", OverlapPolicy)
def test_decisions(policy):
    for under_way, buffered in product(range(4), range(4)):
        decision = decide(policy, under_way, buffered, limit=3)
        if policy is OverlapPolicy.ALLOW_ALL or not (under_way or buffered):
            assert (decision.action, decision.stop) == (Action.FIRE, None)
            continue
        room = {OverlapPolicy.SKIP: 0, OverlapPolicy.BUFFER_ALL: 3}.get(policy, 1)
        assert decision.action is (Action.BUFFER if buffered < room else Action.SKIP)
        stops = {OverlapPolicy.CANCEL_OTHER: StopKind.INTERRUPT, OverlapPolicy.TERMINATE_OTHER: StopKind.CANCEL}
        assert decision.stop is stops.get(policy)


def test_slots_that_come_together_are_decided_one_after_the_other():
    def actions(policy, count, **given):
        return [one.action.value for one in decide_each(policy, count, **{"under_way": 0, "buffered": 0, **given})]

    assert actions(OverlapPolicy.SKIP, 3) == ["FIRE", "SKIP", "SKIP"]
    assert actions(OverlapPolicy.BUFFER_ONE, 3) == ["FIRE", "BUFFER", "SKIP"]
    assert actions(OverlapPolicy.BUFFER_ALL, 102) == ["FIRE", *["BUFFER"] * 100, "SKIP"]
    assert actions(OverlapPolicy.BUFFER_ALL, 2, under_way=1, buffered=99) == ["BUFFER", "SKIP"]
    assert actions(OverlapPolicy.ALLOW_ALL, 2, under_way=5) == ["FIRE", "FIRE"]


def test_jitter_is_within_its_bound_and_of_the_slot():
    task, other = clock.uuid7(), clock.uuid7()
    slots = [NOW.replace(second=0) + MINUTE * at for at in range(500)]
    jitter = timedelta(minutes=10)
    waits = [jitter_of(task, slot, jitter) for slot in slots]
    assert waits == [jitter_of(task, slot, jitter) for slot in slots]
    assert all(timedelta() <= wait < jitter for wait in waits)
    assert abs(sum(waits, timedelta()) / len(waits) - jitter / 2) < MINUTE
    assert waits != [jitter_of(other, slot, jitter) for slot in slots]
    assert jitter_of(task, NOW, timedelta()) == timedelta()
