"""The record of where a session's sandboxes have led: an event for each new destination, and what came of it.

Bounded: an agent can name as many hosts as it likes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from agentrpc.claude.content import clean
from agentrpc.services.network import Access, Egress
from agentrpc.v1 import event_pb2

__all__ = ["AccessRecord"]

# Destinations of a run that have events of their own.
_NAMED = 200
# In place of a host: destinations that a proxy does not tell apart any more.
_MANY = "*"
_MAX_HOST, _MAX_RULE = 300, 1000

_Key: TypeAlias = tuple[str, int, bool]
_Event = event_pb2.NetworkAccess


@dataclass(frozen=True, slots=True)
class _Count:
    """What came of a destination, and the rule that decided first."""

    rule: str = ""
    connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __add__(self, other: "_Count") -> "_Count":
        return self._with(other, 1)

    def __sub__(self, other: "_Count") -> "_Count":
        return self._with(other, -1)

    def _with(self, other: "_Count", sign: int) -> "_Count":
        return _Count(
            self.rule or other.rule,
            self.connections + sign * other.connections,
            self.bytes_sent + sign * other.bytes_sent,
            self.bytes_received + sign * other.bytes_received,
        )

    def traffic(self) -> _Event.Traffic:
        return _Event.Traffic(
            connections=self.connections, bytes_sent=self.bytes_sent, bytes_received=self.bytes_received
        )


_NOTHING = _Count()


class AccessRecord:
    """The record of one session, run by run.

    Args:
        put: Gets the events.
    """

    def __init__(self, put: Callable[[event_pb2.Event], None]) -> None:
        self._put = put
        self._live: set[Egress] = set()
        self._ended: dict[_Key, _Count] = {}
        self._before: dict[_Key, _Count] = {}
        self._named: set[_Key] = set()
        # What was added there in this run.
        self._credentials: dict[_Key, str] = {}
        # None: of those that have no events of their own.
        self._told: dict[_Key | None, _Count] = {}
        self._held: list[_Event] | None = None

    def add(self, proxy: Egress) -> None:
        """A proxy begins. It gives `note` what it reports."""
        self._live.add(proxy)

    def note(self, access: Access) -> None:
        """Something has asked for a destination, or a credential was added to a request to it."""
        key = _key(access)
        if access.credential and self._credentials.get(key) != access.credential and self._is_named(key):
            self._credentials[key] = access.credential
            self._say(self._event(key, access.rule))
        if key in self._named:
            return
        if self._has_room(key):
            self._named.add(key)
            self._say(self._event(key, access.rule))
        elif None not in self._told:
            self._told[None] = _NOTHING
            self._say(_Event(further_destinations=1))

    def end(self, proxy: Egress) -> None:
        """A proxy has ended."""
        if proxy in self._live:
            self._live.discard(proxy)
            _add(self._ended, [proxy])

    def tell(self) -> None:
        """What came of each destination, where that has changed since it was told last."""
        further, others = _NOTHING, 0
        for key, count in self._counts().items():
            now = count - self._before.get(key, _NOTHING)
            if not now.connections and not now.bytes_sent and not now.bytes_received:
                continue
            if self._has_room(key):
                # A proxy reports what is new to it, and this is from a run before.
                self._named.add(key)
            if key not in self._named:
                further, others = further + now, others + 1
            elif self._told.get(key) != now:
                self._told[key] = now
                access = self._event(key, now.rule)
                access.traffic.CopyFrom(now.traffic())
                self._say(access)
        if others and self._told.get(None) != further:
            self._told[None] = further
            self._say(_Event(further_destinations=others, traffic=further.traffic()))

    def run_begun(self) -> None:
        """A run begins, or goes on after all: what comes now is its."""
        held, self._held = self._held, None
        for access in held or ():
            self._say(access)

    def run_ends(self) -> None:
        """Tell what came of a run. What comes now waits: its last event is about to be written."""
        if self._held is None:
            self.tell()
            self._held = []

    def run_ended(self) -> None:
        """The run is over: what comes now is of no run."""
        self._ended = {}
        self._before = self._counts()
        self._named, self._told, self._credentials = set(), {}, {}
        self.run_begun()

    def _is_named(self, key: _Key) -> bool:
        """Whether a destination has events of its own; from now on it has, where there is room."""
        if self._has_room(key):
            self._named.add(key)
        return key in self._named

    def _has_room(self, key: _Key) -> bool:
        return len(self._named) < _NAMED and key[0] != _MANY

    def _counts(self) -> dict[_Key, _Count]:
        counts = dict(self._ended)
        _add(counts, self._live)
        return counts

    def _event(self, key: _Key, rule: str) -> _Event:
        host, port, allowed = key
        return _Event(
            host=clean(host)[:_MAX_HOST],
            port=port,
            decision=_Event.DECISION_ALLOWED if allowed else _Event.DECISION_DENIED,
            rule=clean(rule)[:_MAX_RULE],
            credential=self._credentials.get(key, ""),
        )

    def _say(self, access: _Event) -> None:
        if self._held is not None:
            self._held.append(access)
        else:
            self._put(event_pb2.Event(network_access=access))


def _key(access: Access) -> _Key:
    return access.host, access.port, access.allowed


def _add(counts: dict[_Key, _Count], proxies: Iterable[Egress]) -> None:
    for proxy in proxies:
        for access in proxy.totals():
            more = _Count(access.rule, access.connections, access.bytes_sent, access.bytes_received)
            counts[_key(access)] = counts.get(_key(access), _NOTHING) + more
