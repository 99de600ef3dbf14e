"""A feed joins what Redis brings, in whatever order, with what Postgres has; here both come when the test says so."""

import asyncio
from uuid import UUID, uuid4

import pytest

from agentrpc.bus.live import LiveBatch
from agentrpc.rpc import feed as feeds
from agentrpc.rpc.feed import Feed
from agentrpc.store.log import StoredEvent, with_sequence
from agentrpc.v1 import event_pb2, session_service_pb2

NOTICE = event_pb2.Event.NOTICE_FIELD_NUMBER
TEXT = event_pb2.Event.TEXT_DELTA_FIELD_NUMBER
THINKING = event_pb2.Event.THINKING_DELTA_FIELD_NUMBER
ALL = (None, None, True)


class Log:
    """A log that answers a read only when it may. What it answers is what it held when the read began."""

    def __init__(self):
        self.rows = []
        self.reads = 0
        self.began = asyncio.Event()
        self.may_answer = asyncio.Event()

    def commit(self, count, size=1):
        """The batches of so many new events, one each."""
        batches = []
        for _ in range(count):
            sequence = len(self.rows) + 1
            event = event_pb2.Event(notice=event_pb2.Notice(text="x" * size))
            row = StoredEvent(sequence, None, NOTICE, with_sequence(event.SerializeToString(), sequence))
            self.rows.append(row)
            batches.append(LiveBatch.of(sequence, [(row.sequence, row.kind, row.run_id, row.data)]))
        return batches

    async def read(self, after, limit):
        self.reads += 1
        answer = self.rows[after : after + limit]
        self.began.set()
        await self.may_answer.wait()
        return answer


def live(kind=TEXT, run=None, text="x", last=0):
    delta = event_pb2.TextDelta(text=text) if kind == TEXT else event_pb2.ThinkingDelta(thinking=text)
    event = event_pb2.Event(**{"text_delta" if kind == TEXT else "thinking_delta": delta})
    return LiveBatch.of(last, [(0, kind, run, event.SerializeToString())])


def delivered(feed, key=ALL):
    """The sequences that a watcher from the beginning gets, 0 for live events."""
    found, cursor, sent = [], feed.base, 0
    while cursor < feed.end:
        selection = feed.select(cursor, key, sent)
        found += [e.sequence for e in session_service_pb2.WatchSessionResponse.FromString(selection.body).events]
        cursor, sent = selection.cursor, max(sent, selection.last)
    return found


async def reached(feed, tip):
    async with asyncio.timeout(20):
        while feed.tip < tip:
            await feed.wait()


@pytest.fixture
def log():
    return Log()


@pytest.fixture
async def feed(log):
    feed = Feed(uuid4(), log.read)
    feed.begin(0)
    yield feed
    await feed.close()


async def test_what_becomes_contiguous_is_delivered_at_once(feed, log):
    one, two, three, four = log.commit(4)
    for batch in (four, three, two):
        feed.offer(batch)
    await log.began.wait()
    assert delivered(feed) == []
    # Postgres has not answered, and need not.
    feed.offer(one)
    assert delivered(feed) == [1, 2, 3, 4]
    log.may_answer.set()
    feed.offer(*log.commit(1))
    assert delivered(feed) == [1, 2, 3, 4, 5]


async def test_what_the_read_under_way_began_too_early_for_is_read_again(feed, log):
    feed.committed(1, None)
    await log.began.wait()
    # The first of these is lost; the read under way knows neither.
    feed.offer(log.commit(2)[1])
    log.may_answer.set()
    await reached(feed, 2)
    assert delivered(feed) == [1, 2]


async def test_what_is_held_is_bounded_in_bytes_and_comes_from_postgres(feed, log):
    batches = log.commit(40, size=100_000)
    for batch in batches[1:]:
        feed.offer(batch)
        assert sum(held.size for held in feed._held) == feed._held_bytes <= feeds._HELD_BYTES
    log.may_answer.set()
    await reached(feed, 40)
    assert not feed._held
    assert feed._held_bytes == 0


async def test_before_the_log_is_measured_too_much_may_come(log):
    feed = Feed(uuid4(), log.read)
    log.may_answer.set()
    for batch in log.commit(40, size=100_000):
        feed.offer(batch)
    feed.begin(3)
    await reached(feed, 40)
    await feed.close()


async def test_a_live_event_does_not_overtake_durable_ones(feed, log):
    one, two = log.commit(2)
    feed.offer(live(last=2))
    feed.offer(two)
    assert delivered(feed) == []
    feed.offer(one)
    assert delivered(feed) == [1, 2, 0]


async def test_a_number_that_is_nowhere_costs_one_read(feed, log):
    log.may_answer.set()
    feed.offer(LiveBatch.of(2**40, [(2**40, NOTICE, None, b"")]))
    await log.began.wait()
    while feed._filling is not None:
        await feed._filling
    assert log.reads == 1
    feed.offer(*log.commit(1))
    assert delivered(feed) == [1]


async def test_live_events_are_counted_by_filter(feed, monkeypatch):
    monkeypatch.setattr(feeds, "_RUNS", 2)
    runs = [uuid4() for _ in range(5)]
    for run in runs:
        feed.offer(live(TEXT, run))
        feed.offer(live(TEXT, run))
        feed.offer(live(THINKING, run))
    assert feed.live_total(ALL) == 15
    assert feed.live_total((frozenset({TEXT}), None, True)) == 10
    assert feed.live_total((frozenset({TEXT}), runs[-1].bytes, True)) == 2
    assert feed.live_total((None, runs[-1].bytes, True)) == 3
    assert feed.live_total((None, None, False)) == 0
    assert len(feed._live) == 2


async def test_many_filters_take_little_memory(feed, log):
    feed.offer(*log.commit(1))
    for n in range(1000):
        assert delivered(feed, (None, UUID(int=n).bytes, True)) == ([] if n else [1])
    assert len(feed._selections) <= feeds._SELECTIONS


async def test_a_watcher_that_is_ahead_takes_nothing_from_the_others(feed, log):
    one, two = log.commit(2)
    feed.offer(live())
    feed.offer(one)
    feed.offer(two)
    for sent, expected in ((1, [0, 2]), (0, [0, 1, 2]), (2, [0])):
        body = feed.select(0, ALL, sent).body
        assert [e.sequence for e in session_service_pb2.WatchSessionResponse.FromString(body).events] == expected


async def test_much_that_was_missed_comes_in_responses_of_a_bounded_size(log):
    log.may_answer.set()
    feed = Feed(uuid4(), log.read)
    feed.begin(0)
    log.commit(40, size=200_000)
    feed.committed(40, None)
    await reached(feed, 40)
    await feed.close()
    bodies = [feed.select(cursor, ALL, 0).body for cursor in range(feed.base, feed.end)]
    assert bodies
    assert max(len(body) for body in bodies) < 1024 * 1024
