"""When crons fire: five fields, in a time zone, with a stated rule for changes of the clock. No I/O.

The rule is that of Vixie cron as Debian has it. A cron with `*` in its minute or hour, steps such as `*/5` included,
fires whenever a clock on the wall shows a time that it names: twice in an hour that the clock repeats, never in one
that the clock leaves out. Any other cron names times of the day: one that the clock leaves out fires at the first
instant after the gap, one that the clock shows twice fires the first time.

croniter reads the fields. It does not compute the times: it knows no such rule, and searches for years.
"""

import calendar
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterError

__all__ = ["Cron", "Timetable", "parse_cron", "parse_zone"]

_FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of month", "1 to 31 or L, the last"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of week", "0 to 7 or SUN to SAT, with #2 the second of the month"),
)
_FORM = "a cron has five fields: minute, hour, day of month, month and day of week, such as `30 2 * * MON-FRI`"
_LONGEST = 200
# Less than croniter takes: to it `h` and `r` are a value of its own choice, `15w` is the nearest working day, and `5-5`
# is all.
_VALUE = r"(?:\*|l|\d{1,2}|[a-z]{3})"
_ITEM = re.compile(
    rf"(?!(\w+)-\1\b){_VALUE}(?:-{_VALUE})?(?:/\d{{1,2}})?|(?:\d|[a-z]{{3}})#\d|l\d", re.ASCII | re.IGNORECASE
)
_DAY = 86_400
# Of crons that fire often shorter pieces are made: most callers want the first slots only.
_OFTEN, _SHORT = 48, 7_200
# 29 February as the fifth of its weekday comes after 40 years at the longest, when 2100 lies between.
_SEARCHED_YEARS = 41
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron that was read.

    Attributes:
        times: Minutes of the day, sorted.
        months: 1 to 12.
        days: Days of the month, 0 for the last one; None for all.
        weekdays: (day, which), with Sunday as 0; which of the month's: 1 to 5, -1 for the last, 0 for each. None for
            all. When both `days` and `weekdays` are given a day that either names is one.
        by_clock: It has `*` in minute or hour.
    """

    times: tuple[int, ...]
    months: frozenset[int]
    days: frozenset[int] | None
    weekdays: frozenset[tuple[int, int]] | None
    by_clock: bool

    def next_date(self, day: date, last: date | None = None) -> date | None:
        """The first day from `day` on that it names, in so many years; it need not look beyond the month of `last`."""
        year, month, least = day.year, day.month, day.day
        for _ in range(_SEARCHED_YEARS * 12):
            if last is not None and (year, month) > (last.year, last.month):
                return None
            if month in self.months:
                for found in _days(year, month, self.days, self.weekdays):
                    if found >= least:
                        return date(year, month, found)
            year, month, least = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
        return None

    def within(self, begin: datetime, end: datetime) -> Iterator[tuple[date, Sequence[int]]]:
        """Local times from `begin` to before `end`, without zones: days, each with its minutes."""
        until = end.date()
        day = self.next_date(begin.date(), until)
        while day is not None and day <= until:
            first = _minutes(begin) if day == begin.date() else 0
            last = _minutes(end) if day == until else _DAY
            if times := self.times[bisect_left(self.times, first) : bisect_left(self.times, last)]:
                yield day, times
            day = self.next_date(day + timedelta(days=1), until)


@lru_cache(4096)
def _days(
    year: int, month: int, days: frozenset[int] | None, weekdays: frozenset[tuple[int, int]] | None
) -> tuple[int, ...]:
    """The days of a month that a cron names, as in `Cron`."""
    before, length = calendar.monthrange(year, month)
    if days is None and weekdays is None:
        return tuple(range(1, length + 1))
    found = {day or length for day in days or () if day <= length}
    for weekday, which in weekdays or ():
        # Python's Monday is 0, a cron's is 1.
        same = range((weekday - 1 - before) % 7 + 1, length + 1, 7)
        if which == 0:
            found.update(same)
        elif which <= len(same):
            found.add(same[which - 1 if which > 0 else -1])
    return tuple(sorted(found))


def _minutes(local: datetime) -> float:
    return local.hour * 60 + local.minute + (local.second + local.microsecond / 1e6) / 60


@lru_cache(4096)
def parse_cron(text: str) -> Cron:
    """Read a cron.

    Raises:
        ValueError: It is none, or it never fires; the message says why.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"may have at most {_LONGEST} characters")
    if text.strip().startswith("@"):
        raise ValueError(f"{text[:40]!r} is a short name, which is not taken: {_FORM}")
    fields = re.findall(r"[^ \t]+", text)
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{text[:80]!r} has {len(fields)} fields: {_FORM}")
    expanded, nth = _expand(fields)
    minutes, hours, days, months, weekdays = expanded
    cron = Cron(
        times=tuple(60 * hour + minute for hour in _numbers(hours, 0, 23) for minute in _numbers(minutes, 0, 59)),
        months=frozenset(_numbers(months, 1, 12)),
        days=None if fields[2] == "*" else frozenset(_numbers([0 if day == "l" else day for day in days], 1, 31)),
        weekdays=None if fields[4] == "*" else frozenset(_weekdays(weekdays, nth)),
        by_clock="*" in fields[0] or "*" in fields[1],
    )
    if cron.next_date(date(2000, 1, 1)) is None:
        raise ValueError(f"{text!r} never fires: no month that it names has such a day")
    return cron


def _expand(fields: Sequence[str]) -> tuple[list[list[object]], dict[object, set[object]]]:
    """The fields, read. Raises ValueError, which names the first that is wrong."""
    try:
        return _read(fields)
    except CroniterError:
        for at, (name, values) in enumerate(_FIELDS):
            try:
                _read([field if at == other else "*" for other, field in enumerate(fields)])
            except CroniterError:
                what = f"use {values}, `*`, ranges (`1-5`), lists (`1,3`) and steps (`*/2`)"
                raise ValueError(f"the {name} cannot be {fields[at][:80]!r}: {what}") from None
    raise ValueError(f"{' '.join(fields)!r} has fields that do not go together: {_FORM}")


def _read(fields: Sequence[str]) -> tuple[list[list[object]], dict[object, set[object]]]:
    if not all(_ITEM.fullmatch(item) for field in fields for item in field.split(",")):
        raise CroniterError
    expanded, nth = croniter.expand(" ".join(fields))
    return expanded, nth


def _numbers(values: Iterable[object], least: int, most: int) -> list[int]:
    if "*" in (listed := list(values)):
        return list(range(least, most + 1))
    return sorted({int(str(value)) for value in listed})


def _weekdays(values: Iterable[object], nth: dict[object, set[object]]) -> Iterator[tuple[int, int]]:
    for day, which in nth.items():
        for one in which:
            yield int(str(day)), -1 if one == "l" else int(str(one))
    if not nth:
        for day in _numbers(values, 0, 6):
            yield day, 0


@lru_cache(1024)
def parse_zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name; UTC when that is empty. Raises ValueError."""
    # Of a machine's own files there are others, such as `localtime` or `right/UTC`, which counts leap seconds.
    if name and name not in _zones():
        raise ValueError(f"{name[:80]!r} is not an IANA time zone: use such as Europe/Berlin, or UTC")
    return ZoneInfo(name or "UTC")


@cache
def _zones() -> frozenset[str]:
    """The names of the tzdata package, which are the same on every machine."""
    return frozenset((files("tzdata") / "zones").read_text().split()) - {"Factory"}


@dataclass(frozen=True, slots=True)
class Timetable:
    """The slots of a schedule: instants in UTC, each once, in order.

    Attributes:
        crons: A slot is one of any.
        zone: Of the crons.
        start: No slot before.
        end: No slot at or after.
    """

    crons: tuple[Cron, ...]
    zone: ZoneInfo
    start: datetime | None = None
    end: datetime | None = None

    def after(self, instant: datetime, count: int) -> list[datetime]:
        """The first slots after an instant, at most `count`."""
        return list(islice(self._slots(instant + timedelta(microseconds=1)), count))

    def next(self, instant: datetime) -> datetime | None:
        """The first slot after an instant."""
        return next(iter(self.after(instant, 1)), None)

    def between(self, begin: datetime, before: datetime) -> Iterator[datetime]:
        """The slots from `begin` to before `before`."""
        for slot in self._slots(begin):
            if slot >= before:
                return
            yield slot

    def pieces(self, begin: datetime) -> Iterator[list[int]]:
        """The slots from `begin` on in pieces of a day at most, as seconds since 1970: quick to count."""
        at = max(begin, _FIRST, self.start or _FIRST)
        seconds, last = _ceiling(at), _ceiling(min(_LAST, self.end or _LAST))
        span = _SHORT if any(len(cron.times) > _OFTEN for cron in self.crons) else _DAY
        dates: list[date | None] = [date.min] * len(self.crons)
        while seconds < last:
            offset = self._offset(seconds)
            day = _naive(seconds + offset).date()
            # Two days earlier, so that nothing the clock does in between is passed over. To find a date may take a walk
            # through many years: once for each.
            least = day - timedelta(days=2)
            dates = [
                cron.next_date(least) if found is not None and found < least else found
                for cron, found in zip(self.crons, dates, strict=True)
            ]
            coming = [found for found in dates if found is not None]
            if not coming:
                return
            if min(coming) - day > timedelta(days=4):
                seconds = _seconds(min(coming) - timedelta(days=2))
                continue
            until = self._steady(seconds, offset, span)
            slots = self._piece(seconds, until, offset)
            if within := slots[: bisect_left(slots, last)]:
                yield within
            seconds = until

    def _slots(self, begin: datetime) -> Iterator[datetime]:
        for piece in self.pieces(begin):
            for seconds in piece:
                yield datetime.fromtimestamp(seconds, UTC)

    def _piece(self, begin: int, until: int, offset: int) -> list[int]:
        """The slots from `begin` to before `until`, between which the clock does not change."""
        found: set[int] = set()
        left_out = offset - self._offset(begin - 1)
        start, end = _naive(begin + offset), _naive(until + offset)
        # What the clock repeats begins with a change, and so with a piece.
        repeated = self._fold(begin)
        for cron in self.crons:
            slots = [
                midnight + 60 * minute
                for day, times in cron.within(start, end)
                for midnight in [_seconds(day) - offset]
                for minute in times
            ]
            if repeated and not cron.by_clock:
                slots = [slot for slot in slots if not self._fold(slot)]
            if left_out > 0 and not cron.by_clock and any(cron.within(start - timedelta(seconds=left_out), start)):
                slots.append(begin)
            found.update(slots)
        return sorted(found)

    def _steady(self, seconds: int, offset: int, span: int) -> int:
        """Until when the clock keeps its offset, `span` later at most."""
        until = seconds + span
        if self._offset(until) == offset:
            return until
        known = seconds
        while until - known > 1:
            middle = (known + until) // 2
            if self._offset(middle) == offset:
                known = middle
            else:
                until = middle
        return until

    def _offset(self, seconds: int) -> int:
        offset = datetime.fromtimestamp(seconds, self.zone).utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0

    def _fold(self, seconds: int) -> int:
        """1 when the clock shows a time for the second time."""
        return datetime.fromtimestamp(seconds, self.zone).fold


def _naive(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _ceiling(instant: datetime) -> int:
    return int(instant.timestamp()) + bool(instant.microsecond)


def _seconds(day: date) -> int:
    return calendar.timegm(day.timetuple())
