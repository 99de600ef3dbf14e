"""When crons fire: against a year looked at minute by minute, against croniter where the clock is steady, and bad ones."""

import json
import random
import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from agentrpc import domain
from agentrpc.domain.crons import Timetable, parse_cron, parse_zone
from tests.unit.cron_oracle import CRONS, GOLDEN, YEAR, ZONES, entry, golden

BEGIN, END = datetime(YEAR, 1, 1, tzinfo=UTC), datetime(YEAR + 1, 1, 1, tzinfo=UTC)
TOLD = json.loads(GOLDEN.read_text())


def changes_of(zone):
    return [datetime.fromisoformat(change) for change in TOLD[zone]["changes"]]


def table(*crons, zone="UTC", **limits):
    return Timetable(tuple(map(parse_cron, crons)), parse_zone(zone), **limits)


def local(slots, zone):
    return [slot.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for slot in slots]


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_is_as_a_look_at_every_minute_of_it_says(zone):
    for cron in CRONS:
        slots = list(table(cron, zone=zone).between(BEGIN, END))
        assert entry(slots, zone, changes_of(zone)) == TOLD[zone]["crons"][cron], cron


@pytest.mark.parametrize("zone", ["America/Santiago", "Australia/Lord_Howe"])
def test_the_golden_file_is_what_that_look_says(zone):
    """Some seconds for each: of those whose clocks do the oddest things."""
    assert golden(zone) == TOLD[zone]


@pytest.mark.parametrize("zone", ZONES)
def test_the_next_slot_is_the_next_wherever_one_begins(zone):
    dice = random.Random(zone)
    crons = ["*/20 2 * * *", "0,15,45 1-3 * * *", "0 0 * * *", "0 * * * *"]
    for some in [*([cron] for cron in crons), crons]:
        timetable = table(*some, zone=zone)
        slots = list(timetable.between(BEGIN, END))
        assert slots == sorted(set(slots))
        singles = {slot for cron in some for slot in table(cron, zone=zone).between(BEGIN, END)}
        assert set(slots) == singles
        # Around changes of the clock, and anywhere.
        places = [
            change + timedelta(minutes=dice.randrange(-200, 200)) for change in changes_of(zone) for _ in range(20)
        ]
        places += [BEGIN + timedelta(seconds=dice.randrange(360 * 86400)) for _ in range(20)]
        for place in places:
            assert timetable.next(place) == next(slot for slot in slots if slot > place)
        for before, after in list(pairwise(slots))[:50]:
            assert timetable.next(before) == after
            assert timetable.next(after - timedelta(microseconds=1)) == after


def random_field(dice, least, most, extra=()):
    def item():
        low, high = sorted(dice.sample(range(least, most + 1), 2))
        return dice.choice(
            [str(low), f"{low}-{high}", f"{low}-{high}/{dice.randint(1, 9)}", f"*/{dice.randint(2, 9)}", *extra]
        )

    return dice.choice(["*", ",".join(item() for _ in range(dice.randint(1, 3)))])


def test_where_the_clock_is_steady_it_is_as_croniter_says():
    dice = random.Random(7)
    for _ in range(300):
        day, weekday = random_field(dice, 1, 28, ("L", "31")), dice.choice([random_field(dice, 0, 6), "MON-FRI"])
        if dice.random() < 0.3:
            # With those croniter takes days that both fields name, and not either.
            day, weekday = "*", dice.choice([f"{dice.randint(0, 6)}#{dice.randint(1, 4)}", f"L{dice.randint(0, 6)}"])
        cron = f"{random_field(dice, 0, 59)} {random_field(dice, 0, 23)} {day} {random_field(dice, 1, 12)} {weekday}"
        begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(400 * 86400))
        theirs = croniter(cron, begin)
        assert table(cron).after(begin, 30) == [theirs.get_next(datetime) for _ in range(30)], cron


def test_times_that_the_clock_leaves_out_or_repeats():
    berlin = {"zone": "Europe/Berlin"}
    gap = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert local(table("30 2 * * *", **berlin).after(gap, 2), "Europe/Berlin") == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]
    # Several that are left out are one slot, which another cron may have too.
    both = table("0,30 2 * * *", "0 3 * * *", **berlin)
    assert local(both.after(gap, 2), "Europe/Berlin") == ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]
    fold = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert local(table("30 2 * * *", **berlin).after(fold, 2), "Europe/Berlin") == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    hourly = local(
        table("0 * * * *", **berlin).between(fold + timedelta(hours=11), fold + timedelta(hours=15)), "Europe/Berlin"
    )
    assert hourly == [
        "2026-10-25T01:00+02:00",
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]
    # From the instant at which the clock is changed on.
    change = datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert table("30 2 * * *", **berlin).next(change - timedelta(seconds=1)) == change
    assert table("30 2 * * *", **berlin).next(change) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    # A day that was left out altogether.
    samoa = table("0 12 30 12 *", zone="Pacific/Apia").after(datetime(2011, 12, 1, tzinfo=UTC), 1)
    assert local(samoa, "Pacific/Apia") == ["2011-12-31T00:00+14:00"]


def test_start_and_end():
    day = timedelta(days=1)
    timetable = table("0 0 * * *", start=BEGIN + day, end=BEGIN + 3 * day)
    assert list(timetable.between(BEGIN, END)) == [BEGIN + day, BEGIN + 2 * day]
    assert timetable.next(BEGIN + 2 * day) is None
    just_after = table("0 0 * * *", end=BEGIN + 2 * day + timedelta(microseconds=1))
    assert list(just_after.between(BEGIN, END)) == [BEGIN, BEGIN + day, BEGIN + 2 * day]
    assert list(table("* * * * *", end=BEGIN + timedelta(seconds=30)).pieces(BEGIN + timedelta(seconds=1))) == []
    assert table("0 0 1 1 *").after(datetime(9998, 1, 1, tzinfo=UTC), 5) == []
    assert table("0 0 1 1 *").next(datetime(1, 1, 1, tzinfo=UTC)) == datetime(1971, 1, 1, tzinfo=UTC)


def test_rare_ones_are_found():
    assert table("0 0 29 2 *").next(datetime(2096, 3, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)
    # A fifth Monday in February.
    assert table("0 0 * 2 MON#5").next(datetime(2072, 3, 1, tzinfo=UTC)) == datetime(2112, 2, 29, tzinfo=UTC)


def test_years_are_searched_once_for_each_cron(monkeypatch):
    looked, original = [], domain.crons._days
    monkeypatch.setattr(domain.crons, "_days", lambda *month: looked.append(month) or original(*month))
    days = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
    rare = table(*[f"{at} 3 * 2 {day}#5" for at, day in enumerate(days)])
    slots = rare.after(datetime(2026, 1, 1, tzinfo=UTC), 100)
    years = slots[-1].year - 2026 + 28
    assert len(slots) == 100
    # Once each, and the days around the slots.
    assert len(looked) < len(days) * (years + 10 * len(slots))


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("0 * * * * *", "has 6 fields"),
        ("0 0 1 1 * 2027", "has 6 fields"),
        ("@reboot", "short name"),
        ("@daily", "short name"),
        ("60 * * * *", "the minute cannot be '60': use 0 to 59"),
        ("0 24 * * *", "the hour cannot be '24'"),
        ("0 0 0 * *", "the day of month cannot be '0'"),
        ("0 0 32 * *", "the day of month"),
        ("0 0 * 13 *", "the month cannot be '13': use 1 to 12"),
        ("0 0 * * 8", "the day of week"),
        ("0 0 * * MON#6", "the day of week"),
        ("0 0 15W * *", "the day of month"),
        ("0 0 ? * *", "the day of month"),
        ("H * * * *", "the minute"),
        ("R(0-5) * * * *", "the minute"),
        ("5-5 * * * *", "the minute"),
        ("*/0 * * * *", "the minute"),
        ("-1 * * * *", "the minute"),
        ("1.5 * * * *", "the minute"),
        ("\N{ARABIC-INDIC DIGIT ONE} * * * *", "the minute"),
        ("0\N{NO-BREAK SPACE}0 * * *", "has 4 fields"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
        ("* * * * *" + " " * 300, "at most 200"),
    ],
)
def test_what_is_no_cron(cron, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_cron(cron)


def test_any_text_is_a_cron_or_says_why_not():
    dice = random.Random(3)
    parts = [
        "/",
        "-",
        ",",
        "#",
        "L",
        "l",
        "W",
        "?",
        "H",
        "h(0-3)",
        "R",
        "MON",
        "jan",
        "0",
        "31",
        "9" * 20,
        "\0",
        "@",
        "\n",
    ]
    simple = ["*", "1", "5", "*/2", "1-4"]
    taken = 0
    for _ in range(3000):
        fields = dice.choices(simple, k=5)
        for _ in range(dice.randint(1, 2)):
            fields[dice.randrange(5)] = "".join(dice.choices(parts + simple, k=dice.randint(1, 4)))
        text = " ".join(fields)
        try:
            cron = parse_cron(text)
        except ValueError:
            continue
        taken += 1
        assert Timetable((cron,), parse_zone("Europe/Berlin")).next(BEGIN) is not None, text
    assert taken > 100


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", "localtime", "Europe", "CET-1CEST", "a\0b", "x" * 500]
)
def test_what_is_no_zone(zone):
    with pytest.raises(ValueError, match="is not an IANA time zone"):
        parse_zone(zone)


@pytest.mark.parametrize(
    "name", ["right/Europe/Berlin", "posix/UTC", "right/UTC", "localtime", "Factory", "../UTC", "\0"]
)
def test_zones_are_those_that_every_machine_has(name, monkeypatch, tmp_path):
    # This one has others as well.
    (tmp_path / "right" / "Europe").mkdir(parents=True)
    for there in ("right/Europe/Berlin", "right/UTC", "localtime"):
        (tmp_path / there).write_bytes((files("tzdata") / "zoneinfo" / "UTC").read_bytes())
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=[tmp_path, *before])
    try:
        with pytest.raises(ValueError, match="is not an IANA time zone"):
            parse_zone(name)
    finally:
        zoneinfo.reset_tzpath(to=before)
