"""The live tail of one session as one edge process has it: a bounded ring of batches that all its watchers share.

Keeps promise 1 on the live side: `tip` is the newest durable number up to which nothing is missing. A batch that does
not join on to it, because a publish was lost or two publishers overtook each other, is held until what lies between
has come, or Postgres has given it.
"""

import asyncio
from bisect import insort
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from uuid import UUID

import structlog

from agentrpc.bus.live import LiveBatch
from agentrpc.ending import end_tasks
from agentrpc.errors import StoreUnavailable
from agentrpc.store.log import StoredEvent
from agentrpc.v1 import event_pb2

__all__ = ["Feed", "Selection"]

log = structlog.get_logger()

_RING_BYTES = 1024 * 1024
_RESPONSE_BYTES = 256 * 1024
_HELD_BYTES = 1024 * 1024
# Selections that are kept for other watchers: those of one pace have a few filters between them.
_SELECTIONS = 32
# Runs whose live events are counted apart: of older ones nobody is behind.
_RUNS = 16
_PREVIEW_BYTES = 1024 * 1024
_PAGE = 100
# A response costs its edge some 25 us, whatever it holds: many watchers of one session each get fewer, larger ones.
_RESPONSES_PER_SECOND = 8000

_ASSISTANT = event_pb2.Event.ASSISTANT_MESSAGE_FIELD_NUMBER
_DELTAS = frozenset(
    {
        event_pb2.Event.TEXT_DELTA_FIELD_NUMBER,
        event_pb2.Event.THINKING_DELTA_FIELD_NUMBER,
        event_pb2.Event.TOOL_INPUT_DELTA_FIELD_NUMBER,
    }
)
_RUN_ENDED = event_pb2.Event.RUN_ENDED_FIELD_NUMBER

Key = tuple[frozenset[int] | None, bytes | None, bool]


class Selection:
    """What a watcher with certain filters gets next.

    Attributes:
        body: Framed events, joined.
        count: How many they are.
        live: How many of them are live.
        cursor: Where to go on.
        last: The newest durable number in the batches, filtered out or not; 0 if there was none.
        run_ended: The number of the watched run's `run_ended`, 0 if it was not among them.
    """

    __slots__ = ("body", "count", "cursor", "last", "live", "run_ended")

    def __init__(self, body: bytes, count: int, live: int, cursor: int, last: int, run_ended: int) -> None:
        self.body = body
        self.count = count
        self.live = live
        self.cursor = cursor
        self.last = last
        self.run_ended = run_ended


class Feed:
    """One session's ring.

    Args:
        session_id: The session.
        read: Durable events after a number, at most so many: `read(after, limit)`.
    """

    def __init__(self, session_id: UUID, read: Callable[[int, int], Awaitable[list[StoredEvent]]]) -> None:
        self.session_id = session_id
        self._read = read
        self.tip = -1
        self.closed = False
        self.watchers = 0
        self._ring: deque[LiveBatch] = deque()
        self._bytes = 0
        self.base = 0
        self.end = 0
        self._live: dict[bytes, Counter[int]] = {}
        self._live_before: Counter[int] = Counter()
        self._held: list[LiveBatch] = []
        self._held_bytes = 0
        self._filling: asyncio.Task[None] | None = None
        self._read_again = False
        self._selections: dict[tuple[int, Key, int], Selection] = {}
        self._preview: list[LiveBatch] = []
        self._preview_bytes = 0
        self._announced = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- In ----

    def begin(self, tip: int) -> None:
        """The log was `tip` long after the subscription was confirmed: from here on nothing may be missed."""
        if self.tip < 0:
            self.tip = tip
            self._accept_held()
            if self._read_again:
                self._fill()

    def offer(self, batch: LiveBatch) -> None:
        """A batch came through Redis."""
        if _needs(batch) > self.tip:
            self._hold(batch)
            self._fill()
            return
        self._accept(batch)
        self._accept_held()

    def committed(self, last_sequence: int, closed: str | None) -> None:
        """What Postgres says of the log, once a second."""
        if last_sequence > self.tip >= 0:
            self._fill()
        elif closed is not None and not self.closed:
            # Only when all of the log is here: its watchers end at the tip.
            self.closed = True
            self.wake()

    def _accept(self, batch: LiveBatch) -> None:
        if batch.first and batch.first <= self.tip:
            batch = batch.after(self.tip)
        if not batch.count:
            return
        if batch.first:
            self.tip = batch.last
        self._ring.append(batch)
        self._bytes += batch.size
        self.end += 1
        while self._bytes > _RING_BYTES and len(self._ring) > 1:
            self._bytes -= self._ring.popleft().size
            self.base += 1
        self._selections.clear()
        self._count(batch)
        self._remember(batch)
        self._announce()

    def _announce(self) -> None:
        """Wake the watchers, now or when the pace of so many allows it."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        due = self._announced + self.watchers / _RESPONSES_PER_SECOND
        if loop.time() >= due:
            self._announced = loop.time()
            self.wake()
        else:
            self._timer = loop.call_at(due, self._announce_late)

    def _announce_late(self) -> None:
        self._timer = None
        self._announced = asyncio.get_running_loop().time()
        self.wake()

    def _hold(self, batch: LiveBatch) -> None:
        """Keep a batch until what lies before it is here. Of too many none is kept: they are in Postgres."""
        insort(self._held, batch, key=_needs)
        self._held_bytes += batch.size
        if self._held_bytes > _HELD_BYTES:
            self._held.clear()
            self._held_bytes = 0

    def _accept_held(self) -> None:
        at = 0
        while at < len(self._held) and _needs(self._held[at]) <= self.tip:
            self._accept(self._held[at])
            self._held_bytes -= self._held[at].size
            at += 1
        del self._held[:at]

    def _fill(self) -> None:
        """Read what is missing: once more if a read is under way, which may have begun too early."""
        self._read_again = True
        if self.tip >= 0 and self._filling is None:
            self._filling = asyncio.create_task(self._fill_from_store(), name=f"fill-{self.session_id}")

    async def _fill_from_store(self) -> None:
        try:
            while self._read_again:
                self._read_again = False
                rows = await self._read(self.tip, _PAGE)
                for batch in _batches(rows):
                    self._accept(batch)
                self._accept_held()
                self._read_again = self._read_again or len(rows) == _PAGE
        except StoreUnavailable:
            # The tick tries again; what was held waits with it.
            pass
        except Exception:
            log.exception("fill_failed", session=str(self.session_id))
        finally:
            self._filling = None

    async def close(self) -> None:
        """No watcher is left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._filling is not None:
            await end_tasks([self._filling])

    # ---- Out ----

    def live_total(self, key: Key) -> int:
        """How many live events there have been that pass a filter."""
        kinds, run, deltas = key
        if not deltas:
            return 0
        counters = [self._live_before, *self._live.values()] if run is None else [self._live.get(run, Counter())]
        return sum(count for counter in counters for kind, count in counter.items() if kinds is None or kind in kinds)

    def _count(self, batch: LiveBatch) -> None:
        if not batch.live:
            return
        for entry in batch.entries:
            if entry.sequence:
                continue
            if entry.run not in self._live:
                if len(self._live) >= _RUNS:
                    self._live_before.update(self._live.pop(next(iter(self._live))))
                self._live[entry.run] = Counter()
            self._live[entry.run][entry.kind] += 1

    def select(self, cursor: int, key: Key, sent: int) -> Selection:
        """What lies behind `cursor`, which must not be before `base`: shared by watchers with equal filters.

        Args:
            cursor: Index of the first batch.
            key: Kinds, run and whether live events are wanted.
            sent: Durable events up to this one were sent already: all before the cursor, and more where the watcher
                came from an edge that was ahead of this one.
        """
        found = self._selections.get((cursor, key, sent))
        if found is not None:
            return found
        kinds, run, deltas = key
        bodies: list[bytes] = []
        count = live = size = last = run_ended = 0
        at = cursor
        while at < self.end and size < _RESPONSE_BYTES:
            batch = self._ring[at - self.base]
            if batch.first and batch.first <= sent:
                last = max(last, batch.last)
                batch = batch.after(sent)
            body, chosen, chosen_live = batch.select(kinds, run, deltas=deltas)
            bodies.append(body)
            count += chosen
            live += chosen_live
            size += len(body)
            last = max(last, batch.last)
            if run is not None and batch.first:
                for entry in batch.entries:
                    if entry.kind == _RUN_ENDED and entry.run == run:
                        run_ended = entry.sequence
            at += 1
        found = Selection(b"".join(bodies), count, live, at, last, run_ended)
        if len(self._selections) >= _SELECTIONS:
            del self._selections[next(iter(self._selections))]
        self._selections[(cursor, key, sent)] = found
        return found

    def wait(self) -> "asyncio.Future[None]":
        """Done when something has come. All watchers share it: never cancel it."""
        return self._news

    def wake(self) -> None:
        """Wake all watchers."""
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)

    # ---- Late joiners ----

    def _remember(self, batch: LiveBatch) -> None:
        """Keep the deltas of open blocks, as they came: they are decoded only if somebody joins late."""
        finished = [at for at, entry in enumerate(batch.entries) if entry.kind in (_ASSISTANT, _RUN_ENDED)]
        if finished:
            # A block has become durable. What was open beside it, in a subagent, begins anew at its next piece.
            self._preview.clear()
            self._preview_bytes = 0
            batch = LiveBatch(batch.last_sequence, batch.entries[finished[-1] + 1 :])
        if batch.live and self._preview_bytes < _PREVIEW_BYTES:
            self._preview.append(batch)
            self._preview_bytes += batch.size

    def preview(self, run: bytes | None) -> list[event_pb2.Event]:
        """The open blocks so far, each as one delta from offset 0."""
        blocks: dict[tuple[str, int, int], tuple[event_pb2.Event, list[str], int]] = {}
        for batch in self._preview:
            for entry in batch.entries:
                if entry.kind in _DELTAS and (run is None or entry.run == run):
                    _join(blocks, entry.kind, entry.body)
        events = []
        for event, texts, _ in blocks.values():
            delta = getattr(event, event.WhichOneof("payload") or "")
            setattr(delta, _text_field(event), "".join(texts))
            events.append(event)
        return events


def _batches(rows: Sequence[StoredEvent]) -> Iterator[LiveBatch]:
    """Rows of the log, in batches that each fit into a response: a batch is sent whole."""
    part: list[tuple[int, int, UUID | None, bytes]] = []
    size = 0
    for row in rows:
        if part and size + len(row.data) > _RESPONSE_BYTES:
            yield LiveBatch.of(part[-1][0], part)
            part, size = [], 0
        part.append((row.sequence, row.kind, row.run_id, row.data))
        size += len(row.data)
    if part:
        yield LiveBatch.of(part[-1][0], part)


def _needs(batch: LiveBatch) -> int:
    """The newest durable number that must have come before a batch."""
    return batch.first - 1 if batch.first else batch.last_sequence


def _join(blocks: dict[tuple[str, int, int], tuple[event_pb2.Event, list[str], int]], kind: int, framed: bytes) -> None:
    # Behind the tag and the length, which is a varint.
    at = 1
    while framed[at] & 0x80:
        at += 1
    event = event_pb2.Event.FromString(framed[at + 1 :])
    delta = getattr(event, event.WhichOneof("payload") or "")
    key = (delta.message_id, delta.block_index, kind)
    text = getattr(delta, _text_field(event))
    size = len(text.encode())
    known = blocks.get(key)
    if delta.offset == 0:
        blocks[key] = (event, [text], size)
    elif known is not None and known[2] == delta.offset:
        known[1].append(text)
        blocks[key] = (known[0], known[1], known[2] + size)
    else:
        blocks.pop(key, None)


def _text_field(event: event_pb2.Event) -> str:
    return {"text_delta": "text", "thinking_delta": "thinking"}.get(event.WhichOneof("payload") or "", "partial_json")
