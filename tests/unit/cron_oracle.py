"""The slots of a year by brute force: every minute of it is looked at, and the rule of `Schedule` applied to it.

Shares nothing with `agentrpc.domain.crons`: what a cron names stands here as a function, what the clock does is seen by
looking. `python -m tests.unit.cron_oracle` writes the golden file anew. The year is a past one, whose zones are settled.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

YEAR = 2025
GOLDEN = Path(__file__).parent / "golden" / f"crons-{YEAR}.json"
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # the gap begins at midnight
    "Australia/Lord_Howe",  # half an hour
    "Africa/Casablanca",  # back in winter, for Ramadan
    "Asia/Kathmandu",  # +05:45
]
# By cron: whether it goes by the clock, and what it names.
CRONS = {
    "* * * * *": (True, lambda _: True),
    "*/15 * * * *": (True, lambda t: t.minute % 15 == 0),
    "0 * * * *": (True, lambda t: t.minute == 0),
    "*/20 2 * * *": (True, lambda t: t.minute % 20 == 0 and t.hour == 2),
    "0 */2 * * *": (True, lambda t: t.minute == 0 and t.hour % 2 == 0),
    "30 2 * * *": (False, lambda t: t.minute == 30 and t.hour == 2),
    "0,15,45 1-3 * * *": (False, lambda t: t.minute in (0, 15, 45) and 1 <= t.hour <= 3),
    "0 0 * * *": (False, lambda t: t.minute == t.hour == 0),
    "30 23 * * *": (False, lambda t: t.minute == 30 and t.hour == 23),
    "10 0-23 * * *": (False, lambda t: t.minute == 10),
    "0 9 * * MON-FRI": (False, lambda t: t.minute == 0 and t.hour == 9 and t.weekday() < 5),
    "5 2 * * SUN": (False, lambda t: t.minute == 5 and t.hour == 2 and t.weekday() == 6),
    "0 12 13 * FRI": (False, lambda t: t.minute == 0 and t.hour == 12 and (t.day == 13 or t.weekday() == 4)),
    "59 23 L * *": (False, lambda t: t.minute == 59 and t.hour == 23 and (t + timedelta(days=1)).day == 1),
    "0 2 * 3,4,9,10,11 SUN#2": (
        False,
        lambda t: t.minute == 0 and t.hour == 2 and t.weekday() == 6 and 8 <= t.day <= 14 and t.month in (3, 4, 9, 10, 11),
    ),
    "45 1 * * L7": (False, lambda t: t.minute == 45 and t.hour == 1 and t.weekday() == 6 and (t + timedelta(7)).month != t.month),
    "0 0 29 2 *": (False, lambda t: t.minute == t.hour == 0 and (t.month, t.day) == (2, 29)),
}  # fmt: skip
MINUTE = timedelta(minutes=1)


def year_of(zone):
    """Every minute of the year: the instant, what the clock shows, whether again, and what it has left out before."""
    zone = ZoneInfo(zone)
    at, shown = datetime(YEAR, 1, 1, tzinfo=UTC), set()
    before = (at - MINUTE).astimezone(zone).replace(tzinfo=None)
    while at.year == YEAR:
        local = at.astimezone(zone).replace(tzinfo=None, fold=0)
        left_out, missing = [], before + MINUTE
        while missing < local:
            left_out.append(missing)
            missing += MINUTE
        yield at, local, local in shown, left_out
        shown.add(local)
        at, before = at + MINUTE, local


def walked(zone):
    """The instants at which the clock is changed, and by cron those at which it fires."""
    changes, found = [], {cron: [] for cron in CRONS}
    before = None
    for at, local, again, left_out in year_of(zone):
        if before is not None and local - before != MINUTE:
            changes.append(at)
        before = local
        for cron, (by_clock, names) in CRONS.items():
            fires = names(local) and (by_clock or not again)
            if left_out and not by_clock:
                fires = fires or any(map(names, left_out))
            if fires:
                found[cron].append(at)
    return changes, found


def entry(slots, zone, changes):
    """What the golden file says of a cron: how many slots, a hash over them, and those around changes of the clock."""
    text = "\n".join(slot.strftime("%Y-%m-%dT%H:%MZ") for slot in slots)
    near = [slot for slot in slots if any(abs(slot - change) <= timedelta(hours=3) for change in changes)]
    shown = [slot.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for slot in near]
    return {
        "count": len(slots),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        **({"around_changes": shown} if 0 < len(shown) <= 40 else {}),
    }


def golden(zone):
    changes, found = walked(zone)
    return {
        "changes": [change.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for change in changes],
        "crons": {cron: entry(slots, zone, changes) for cron, slots in found.items()},
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({zone: golden(zone) for zone in ZONES}, indent=1) + "\n")
