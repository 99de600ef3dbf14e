"""The live tail of one session as one edge process has it: a bounded ring of batches that all its watchers share.

Keeps promise 1 on the live side: `tip` is the newest durable number up to which nothing is missing. A batch that does
not join on to it, because a publish was lost or two publishers overtook each other, is held until Postgres has given
what lies between.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog

from agentrpc.bus.live import LiveBatch
from agentrpc.errors import StoreUnavailable
from agentrpc.store.log import StoredEvent
from agentrpc.v1 import event_pb2

__all__ = ["Feed", "Selection"]

log = structlog.get_logger()

_RING_BYTES = 1024 * 1024
_RESPONSE_BYTES = 256 * 1024
_HELD_BATCHES = 1000
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
        cursor: Where to go on.
        last: The newest durable number in the batches, filtered out or not; 0 if there was none.
        run_ended: The number of the watched run's `run_ended`, 0 if it was not among them.
    """

    __slots__ = ("body", "count", "cursor", "last", "run_ended")

    def __init__(self, body: bytes, count: int, cursor: int, last: int, run_ended: int) -> None:
        self.body = body
        self.count = count
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
        self._ring: deque[tuple[LiveBatch, int]] = deque()
        self._bytes = 0
        self.base = 0
        self.end = 0
        self._live_total = 0
        self._held: deque[LiveBatch] = deque(maxlen=_HELD_BATCHES)
        self._filling: asyncio.Task[None] | None = None
        self._selections: dict[tuple[int, Key], Selection] = {}
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
            self._offer_held()

    def offer(self, batch: LiveBatch) -> None:
        """A batch came through Redis."""
        if self.tip < 0 or self._filling is not None:
            self._held.append(batch)
            return
        if max(batch.first - 1, batch.last_sequence if not batch.first else 0) > self.tip:
            self._held.append(batch)
            self._fill()
            return
        self._accept(batch)

    def committed(self, last_sequence: int, closed: str | None) -> None:
        """What Postgres says of the log, once a second."""
        if last_sequence > self.tip >= 0:
            if self._filling is None:
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
        self._ring.append((batch, self._live_total))
        self._live_total += batch.live
        self._bytes += batch.size
        self.end += 1
        while self._bytes > _RING_BYTES and len(self._ring) > 1:
            dropped, _ = self._ring.popleft()
            self._bytes -= dropped.size
            self.base += 1
        self._selections.clear()
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

    def _fill(self) -> None:
        self._filling = asyncio.create_task(self._fill_from_store(), name=f"fill-{self.session_id}")

    async def _fill_from_store(self) -> None:
        try:
            while True:
                rows = await self._read(self.tip, _PAGE)
                if not rows:
                    break
                self._accept(LiveBatch.of(rows[-1].sequence, [(r.sequence, r.kind, r.run_id, r.data) for r in rows]))
        except StoreUnavailable:
            # The tick tries again; what was held waits with it.
            pass
        except Exception:
            log.exception("fill_failed", session=str(self.session_id))
        finally:
            self._filling = None
        self._offer_held()

    def _offer_held(self) -> None:
        held, self._held = self._held, deque(maxlen=_HELD_BATCHES)
        for batch in held:
            if batch.first - 1 > self.tip:
                self._held.append(batch)
            else:
                self._accept(batch)

    async def close(self) -> None:
        """No watcher is left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)

    # ---- Out ----

    def live_at(self, cursor: int) -> int:
        """How many live events had come before the batch at `cursor`."""
        if cursor >= self.end:
            return self._live_total
        return self._ring[max(cursor, self.base) - self.base][1]

    def select(self, cursor: int, key: Key, sent: int) -> Selection:
        """What lies behind `cursor`, which must not be before `base`: shared by watchers with equal filters.

        Args:
            cursor: Index of the first batch.
            key: Kinds, run and whether live events are wanted.
            sent: Durable events up to this one were sent already.
        """
        shared = self._ring[cursor - self.base][0].first > sent or not self._ring[cursor - self.base][0].first
        found = self._selections.get((cursor, key)) if shared else None
        if found is not None:
            return found
        kinds, run, deltas = key
        bodies: list[bytes] = []
        count = size = last = run_ended = 0
        at = cursor
        while at < self.end and size < _RESPONSE_BYTES:
            batch = self._ring[at - self.base][0]
            if batch.first and batch.first <= sent:
                last = max(last, batch.last)
                batch = batch.after(sent)
            body, chosen, _ = batch.select(kinds, run, deltas=deltas)
            bodies.append(body)
            count += chosen
            size += len(body)
            last = max(last, batch.last)
            if run is not None and batch.first:
                for entry in batch.entries:
                    if entry.kind == _RUN_ENDED and entry.run == run:
                        run_ended = entry.sequence
            at += 1
        found = Selection(b"".join(bodies), count, at, last, run_ended)
        if shared:
            self._selections[(cursor, key)] = found
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
