"""A published batch: what goes in comes out, filtered by slicing; anything else is refused."""

import random
import struct
from uuid import UUID

import pytest

from agentrpc.bus import live
from agentrpc.bus.live import LiveBatch, frame_event
from agentrpc.v1 import event_pb2, run_service_pb2, session_service_pb2

NOTICE = event_pb2.Event.NOTICE_FIELD_NUMBER
TEXT = event_pb2.Event.TEXT_DELTA_FIELD_NUMBER
ONE, TWO = UUID(int=1), UUID(int=2)


def notice(sequence, run=None, size=1):
    event = event_pb2.Event(sequence=sequence, notice=event_pb2.Notice(text="n" * size))
    return sequence, NOTICE, run, event.SerializeToString()


def delta(text, run=None):
    event = event_pb2.Event(text_delta=event_pb2.TextDelta(text=text))
    return 0, TEXT, run, event.SerializeToString()


@pytest.fixture
def batch():
    return LiveBatch.of(9, [notice(7, ONE), delta("a", ONE), notice(8, TWO), delta("b", TWO), notice(9)])


def events(body):
    return session_service_pb2.WatchSessionResponse.FromString(body).events


def told(body):
    return [event.sequence or event.text_delta.text for event in events(body)]


def test_what_goes_in_comes_out(batch):
    again = LiveBatch.decode(batch.encode())
    assert again.entries == batch.entries
    assert (again.last_sequence, again.first, again.last) == (9, 7, 9)
    assert (again.count, again.live, again.size) == (5, 2, sum(len(entry.body) for entry in batch.entries))
    assert again.encode() == batch.encode()


def test_live_events_alone_and_nothing_at_all():
    only = LiveBatch.decode(LiveBatch.of(5, [delta("a")]).encode())
    assert (only.last_sequence, only.first, only.last, only.live) == (5, 0, 0, 1)
    nothing = LiveBatch.decode(LiveBatch.of(5, []).encode())
    assert (nothing.last_sequence, nothing.count, nothing.size) == (5, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 2**14, 2**21 + 5])
def test_framed_events_are_responses_of_any_size(size):
    event = event_pb2.Event(notice=event_pb2.Notice(text="n" * size))
    body = frame_event(event.SerializeToString()) * 2
    for response in (session_service_pb2.WatchSessionResponse, run_service_pb2.StreamRunResponse):
        assert list(response.FromString(body).events) == [event, event]


@pytest.mark.parametrize(
    ("kinds", "run", "deltas", "expected"),
    [
        (None, None, True, [7, "a", 8, "b", 9]),
        (None, None, False, [7, 8, 9]),
        (frozenset({TEXT}), None, True, ["a", "b"]),
        (frozenset({TEXT}), None, False, []),
        (frozenset({NOTICE}), ONE.bytes, True, [7]),
        (None, TWO.bytes, True, [8, "b"]),
        (frozenset(), None, True, []),
    ],
)
def test_a_filter_slices(batch, kinds, run, deltas, expected):
    for source in (batch, LiveBatch.decode(batch.encode())):
        body, count, of_them_live = source.select(kinds, run, deltas=deltas)
        assert told(body) == expected
        assert count == len(expected)
        assert of_them_live == sum(isinstance(one, str) for one in expected)


def test_watchers_with_one_filter_share_its_bytes_and_many_filters_take_little_memory(batch):
    shared, _, _ = batch.select(None, None, deltas=True)
    assert batch.select(None, None, deltas=True)[0] is shared
    for n in range(1000):
        assert told(batch.select(None, UUID(int=n).bytes, deltas=False)[0]) == {0: [9], 1: [7], 2: [8]}.get(n, [])
    assert len(batch._selected) <= live._KEPT
    assert told(batch.select(None, None, deltas=True)[0]) == [7, "a", 8, "b", 9]


def test_behind_a_number_only_newer_durable_events_are_left(batch):
    assert batch.after(6) is batch
    behind = batch.after(8)
    assert told(behind.select(None, None, deltas=True)[0]) == ["a", "b", 9]
    assert (behind.first, behind.last, behind.last_sequence) == (9, 9, 9)
    assert (batch.after(9).first, batch.after(9).count) == (0, 2)
    only = LiveBatch.of(3, [delta("a")])
    assert only.after(100) is only


def test_whatever_is_cut_off_or_put_on_is_refused(batch):
    frame = batch.encode()
    for size in range(len(frame)):
        with pytest.raises(ValueError, match="not a live batch"):
            LiveBatch.decode(frame[:size])
    with pytest.raises(ValueError, match="not a live batch"):
        LiveBatch.decode(frame + b"\0")


def test_lengths_that_lie_are_refused():
    for count in (1, 2, 2**32 - 1):
        with pytest.raises(ValueError, match="not a live batch"):
            LiveBatch.decode(struct.pack("<QI", 1, count))
    with pytest.raises(ValueError, match="not a live batch"):
        LiveBatch.decode(struct.pack("<QIQHI16s", 1, 1, 1, 1, 2**32 - 1, bytes(16)) + b"\x0a\0")


def test_garbage_is_refused_and_never_breaks_anything(batch):
    chance = random.Random(7)
    frame = batch.encode()
    refused = 0
    for _ in range(3000):
        garbage = bytearray(frame if chance.random() < 0.5 else chance.randbytes(chance.randrange(200)))
        for _ in range(chance.randrange(4) if garbage else 0):
            garbage[chance.randrange(len(garbage))] = chance.randrange(256)
        try:
            decoded = LiveBatch.decode(bytes(garbage))
        except ValueError:
            refused += 1
        else:
            # Only what says of itself how long it is.
            assert decoded.encode() == bytes(garbage)
            decoded.select(None, ONE.bytes, deltas=True)
    assert 1500 < refused < 3000
