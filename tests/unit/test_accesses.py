"""The record of where sandboxes have led: each destination once, what came of it at the end, and no end of them."""

from types import SimpleNamespace

import pytest

from agentrpc.services.session_host.accesses import AccessRecord
from agentrpc.v1 import event_pb2

ALLOWED, DENIED = event_pb2.NetworkAccess.DECISION_ALLOWED, event_pb2.NetworkAccess.DECISION_DENIED


class Proxy:
    """Reports what is new to it and counts, as the real one."""

    def __init__(self, record):
        self.record = record
        self.found = {}
        record.add(self)

    def ask(self, host, *, allowed=True, received=10):
        new = (host, allowed) not in self.found
        access = self.found.setdefault(
            (host, allowed),
            SimpleNamespace(
                host=host,
                port=443,
                allowed=allowed,
                rule="PUBLIC",
                credential="",
                connections=0,
                bytes_sent=0,
                bytes_received=0,
            ),
        )
        access.connections += 1
        access.bytes_received += received
        if new:
            self.record.note(access)

    def totals(self):
        return list(self.found.values())


@pytest.fixture
def events():
    return []


@pytest.fixture
def record(events):
    return AccessRecord(lambda event: events.append(event.network_access))


def told(events):
    """(host, decision) of what was new, and {host: (connections, bytes)} of what came of it."""
    traffic = {e.host: (e.traffic.connections, e.traffic.bytes_received) for e in events if e.HasField("traffic")}
    return [(e.host, e.decision) for e in events if not e.HasField("traffic")], traffic


def test_each_is_told_once_and_at_the_end(record, events):
    record.run_begun()
    proxy = Proxy(record)
    for _ in range(3):
        proxy.ask("one")
        proxy.ask("two", allowed=False, received=0)
    assert told(events) == ([("one", ALLOWED), ("two", DENIED)], {})
    record.run_ends()
    assert told(events)[1] == {"one": (3, 30), "two": (3, 0)}
    record.run_ends()
    assert len(events) == 4


def test_nothing_is_told_between_the_last_word_of_a_run_and_its_end(record, events):
    proxy = Proxy(record)
    record.run_begun()
    record.run_ends()
    proxy.ask("late")
    assert events == []
    record.run_ended()
    assert told(events)[0] == [("late", ALLOWED)]


def test_a_run_that_goes_on_after_all_counts_on(record, events):
    proxy = Proxy(record)
    record.run_begun()
    proxy.ask("one")
    record.run_ends()
    proxy.ask("two")
    record.run_begun()
    proxy.ask("one")
    record.run_ends()
    assert told(events) == ([("one", ALLOWED), ("two", ALLOWED)], {"one": (2, 20), "two": (1, 10)})


def test_another_run_has_counts_of_its_own_whatever_became_of_proxies(record, events):
    proxy, other = Proxy(record), Proxy(record)
    record.run_begun()
    proxy.ask("one")
    other.ask("one")
    record.end(other)
    record.run_ends()
    assert told(events) == ([("one", ALLOWED)], {"one": (2, 20)})
    record.run_ended()
    events.clear()
    record.run_begun()
    proxy.ask("one", received=5)
    record.end(proxy)
    record.tell()
    record.run_ends()
    assert told(events) == ([], {"one": (1, 5)})


def test_two_hundred_have_a_name(record, events):
    record.run_begun()
    proxy = Proxy(record)
    for number in range(1000):
        proxy.ask(f"host-{number}", allowed=False)
    proxy.ask("*", allowed=False)
    named = [e for e in events if e.host]
    assert len(named) == 200
    [more] = [e for e in events if not e.host]
    assert more.further_destinations == 1
    record.run_ends()
    assert len(events) == 402
    assert events[-1].further_destinations == 801
    assert events[-1].traffic.connections == 801


def test_words_of_others_are_short_and_can_be_stored(record, events):
    Proxy(record).ask("a\0\ud800" + "x" * 1000)
    assert events[0].host == "a\ufffd\ufffd" + "x" * 297
    events[0].SerializeToString()
