"""The batching writer of one session: everything the agent does goes through it, in order, once.

Keeps promise 1: a durable event is committed before anyone sees it. Paced for each session, never for the process: the
first batch leaves at once, later ones at most every 4 ms while events wait. So it is quick when little happens and
makes large batches when much does. Deltas are not stored; while they wait, neighbours of one block are merged.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.live import LiveBatch
from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.translation import Delta
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.names import run_name
from agentrpc.store.database import Database
from agentrpc.store.log import Batch, LogEvent, StartedCall, StoredEvent, append, number_events
from agentrpc.telemetry import EVENTS_APPENDED
from agentrpc.v1 import event_pb2

__all__ = ["SessionWriter"]

log = structlog.get_logger()

_PACE = 0.004
_LIVE_BATCH = 64 * 1024
_DURABLE_EVENTS = 500
_DURABLE_BYTES = 1024 * 1024
_SHED_ABOVE = 8 * 1024 * 1024
_ROOM_BELOW = 32 * 1024 * 1024

_TEXT = event_pb2.Event.TEXT_DELTA_FIELD_NUMBER
_THINKING = event_pb2.Event.THINKING_DELTA_FIELD_NUMBER
_TOOL_INPUT = event_pb2.Event.TOOL_INPUT_DELTA_FIELD_NUMBER
_FIRST_DURABLE = event_pb2.Event.RUN_STARTED_FIELD_NUMBER
_FINISHED = event_pb2.Event.TOOL_CALL_FINISHED_FIELD_NUMBER
_KINDS = {field.name: field.number for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}


@dataclass(slots=True)
class _Durable:
    event: LogEvent
    started: StartedCall | None
    finished: tuple[str, int] | None


@dataclass(slots=True)
class _Live:
    run_id: UUID | None
    kind: int
    data: bytes


class _Pieces:
    """Adjacent deltas of one block that wait together."""

    __slots__ = ("end", "first", "run_id", "texts")

    def __init__(self, delta: Delta, run_id: UUID | None, end: int) -> None:
        self.first = delta
        self.run_id = run_id
        self.texts = [delta.text]
        self.end = end


class SessionWriter:
    """Writes one session under one epoch.

    Args:
        database: The store.
        bus: The live tail.
        session_id: The session.
        epoch: The epoch under which this worker holds it.
        batch: The number of the newest append in that epoch.
        last_sequence: The newest event.
    """

    def __init__(
        self, database: Database, bus: Bus, session_id: UUID, *, epoch: int, batch: int, last_sequence: int
    ) -> None:
        self._database = database
        self._bus = bus
        self._session_id = session_id
        self._epoch = epoch
        self._batch = batch
        self._last_sequence = last_sequence
        self._items: list[_Durable | _Live | _Pieces] = []
        self._transcript: list[tuple[str, bytes]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._error: BaseException | None = None
        self._names: dict[UUID, str] = {}
        self.run_id: UUID | None = None
        self.deltas = True
        self.shed = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"writer-{session_id}")

    def put(self, event: event_pb2.Event) -> None:
        """Queue an event that leaves with the next batch. Sets its run; its time, if it has none."""
        payload = event.WhichOneof("payload")
        assert payload is not None
        kind = _KINDS[payload]
        if kind < _FIRST_DURABLE and not self._wants_live():
            return
        data = self._serialize(event)
        if kind < _FIRST_DURABLE:
            self._add(_Live(self.run_id, kind, data), len(data))
            return
        finished = None
        if kind == _FINISHED:
            finished = (event.tool_call_finished.tool_use_id, event.tool_call_finished.outcome)
        self._add(_Durable(LogEvent(self.run_id, kind, data), None, finished), len(data))

    def put_delta(self, delta: Delta) -> None:
        """Queue a delta, or join it to the one before it."""
        if not self._wants_live():
            return
        size = len(delta.text) if delta.text.isascii() else len(delta.text.encode())
        end = delta.offset + size
        last = self._items[-1] if self._items else None
        if (
            type(last) is _Pieces
            and last.end == delta.offset
            and last.first.block_index == delta.block_index
            and last.first.message_id == delta.message_id
            and last.first.kind == delta.kind
        ):
            last.texts.append(delta.text)
            last.end = end
            self._bytes += size
            self._wake.set()
            return
        self._add(_Pieces(delta, self.run_id, end), size)

    def put_transcript(self, subpath: str, lines: Sequence[bytes]) -> None:
        """Queue lines of the CLI's transcript; they are committed with the events of the moment."""
        self._transcript += [(subpath, line) for line in lines]
        self._bytes += sum(map(len, lines))
        self._wake.set()

    async def commit(self, event: event_pb2.Event, *, started: StartedCall | None = None) -> None:
        """Queue an event and wait until it is committed.

        Args:
            event: The event.
            started: A call that begins, for the ledger.

        Raises:
            LeaseLostError: This worker does not hold the session any more.
        """
        payload = event.WhichOneof("payload")
        assert payload is not None
        data = self._serialize(event)
        self._add(_Durable(LogEvent(self.run_id, _KINDS[payload], data), started, None), len(data))
        await self.flush()

    async def flush(self) -> None:
        """Wait until everything queued so far is committed. Raises LeaseLostError."""
        if self._error is not None:
            raise LeaseLostError from self._error
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(done)
        self._wake.set()
        await done

    async def room(self) -> None:
        """Wait while far too much is queued, as when Postgres is away."""
        await self._room.wait()

    def committed(self, sequence: int) -> None:
        """Note that control events up to `sequence` were committed beside this writer."""
        self._last_sequence = max(self._last_sequence, sequence)

    async def close(self) -> None:
        """Flush what can be flushed, then end."""
        if self._error is None and not self._task.done():
            try:
                async with asyncio.timeout(5):
                    await self.flush()
            except (TimeoutError, LeaseLostError):
                log.warning("writer_closed_with_rest", session=str(self._session_id), items=len(self._items))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail(LeaseLostError("the writer is closed"))

    def _wants_live(self) -> bool:
        if not self.deltas:
            return False
        if self._bytes > _SHED_ABOVE:
            self.shed += 1
            return False
        return True

    def _add(self, item: _Durable | _Live | _Pieces, size: int) -> None:
        self._items.append(item)
        self._bytes += size
        if self._bytes > _ROOM_BELOW:
            self._room.clear()
        self._wake.set()

    def _serialize(self, event: event_pb2.Event) -> bytes:
        if self.run_id is not None:
            event.run = self._run_name(self.run_id)
        if not event.HasField("time"):
            event.time.FromDatetime(clock.utcnow())
        return event.SerializeToString()

    def _run_name(self, run_id: UUID) -> str:
        name = self._names.get(run_id)
        if name is None:
            self._names = {run_id: run_name(self._session_id, run_id)}
            name = self._names[run_id]
        return name

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                began = time.monotonic()
                await self._drain()
                # More may have come meanwhile: let it gather for the rest of the pace.
                pause = _PACE - (time.monotonic() - began)
                if pause > 0:
                    await asyncio.sleep(pause)
        except asyncio.CancelledError:
            raise
        except LeaseLostError as error:
            log.warning("lease_lost", session=str(self._session_id), epoch=self._epoch, detail=str(error))
            self._fail(error)
        except BaseException as error:
            log.exception("writer_failed", session=str(self._session_id))
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(LeaseLostError("the session's writer has stopped"))
        self._room.set()
        if not self.lost.done():
            self.lost.set_result(None)

    async def _drain(self) -> None:
        items, self._items = self._items, []
        transcript, self._transcript = self._transcript, []
        waiters, self._waiters = self._waiters, []
        self._bytes = 0
        try:
            at = 0
            while at < len(items) or transcript:
                end = _cut(items, at)
                await self._write(items[at:end], transcript)
                at, transcript = end, []
        except BaseException:
            # What was not committed is lost with the lease; whoever waits for it must not go on.
            self._waiters = waiters + self._waiters
            raise
        self._room.set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _write(self, items: list[_Durable | _Live | _Pieces], transcript: list[tuple[str, bytes]]) -> None:
        durable = [item for item in items if type(item) is _Durable]
        numbered: Iterator[StoredEvent] = iter(())
        if durable or transcript:
            batch = Batch(
                events=[item.event for item in durable],
                transcript=transcript,
                started=[item.started for item in durable if item.started],
                finished=[item.finished for item in durable if item.finished],
                time=clock.utcnow(),
            )
            base = await self._append(batch)
            numbered = iter(number_events(batch.events, base))
            self._last_sequence = max(self._last_sequence, base + len(durable))
            EVENTS_APPENDED.inc(len(durable))
        events: list[tuple[int, int, UUID | None, bytes]] = []
        size = 0
        for item in items:
            if type(item) is _Durable:
                stored = next(numbered)
                events.append((stored.sequence, stored.kind, stored.run_id, stored.data))
            elif type(item) is _Pieces:
                events.append((0, *self._delta_event(item)))
            else:
                assert type(item) is _Live
                events.append((0, item.kind, item.run_id, item.data))
            size += len(events[-1][3])
            if size > _LIVE_BATCH:
                await self._publish(events)
                events, size = [], 0
        await self._publish(events)

    async def _publish(self, events: list[tuple[int, int, UUID | None, bytes]]) -> None:
        if events:
            await self._bus.publish(self._session_id, LiveBatch.of(self._last_sequence, events).encode())

    async def _append(self, batch: Batch) -> int:
        self._batch += 1
        delay = 0.05
        while True:
            try:
                return await append(self._database, self._session_id, self._epoch, self._batch, batch)
            except StoreUnavailable:
                # The same number and the same batch again: whether it was committed, the store knows.
                await asyncio.sleep(clock.jitter(delay))
                delay = min(delay * 2, 1.0)

    def _delta_event(self, pieces: _Pieces) -> tuple[int, UUID | None, bytes]:
        first = pieces.first
        text = "".join(pieces.texts)
        event = event_pb2.Event()
        event.time.FromDatetime(_now())
        if pieces.run_id is not None:
            event.run = self._run_name(pieces.run_id)
        if first.parent_tool_use_id:
            event.parent_tool_use_id = first.parent_tool_use_id
        if first.kind == "text":
            kind = _TEXT
            delta = event.text_delta
            delta.text = text
        elif first.kind == "thinking":
            kind = _THINKING
            thinking = event.thinking_delta
            thinking.thinking = text
            thinking.message_id, thinking.block_index, thinking.offset = (
                first.message_id,
                first.block_index,
                first.offset,
            )
            return kind, pieces.run_id, event.SerializeToString()
        else:
            kind = _TOOL_INPUT
            tool = event.tool_input_delta
            tool.partial_json = text
            tool.tool_use_id = first.tool_use_id
            tool.message_id, tool.block_index, tool.offset = first.message_id, first.block_index, first.offset
            if first.offset == 0:
                tool.tool_name = first.tool_name
            return kind, pieces.run_id, event.SerializeToString()
        delta.message_id, delta.block_index, delta.offset = first.message_id, first.block_index, first.offset
        return kind, pieces.run_id, event.SerializeToString()


def _now() -> datetime:
    return clock.utcnow()


def _cut(items: list[_Durable | _Live | _Pieces], at: int) -> int:
    """Where the batch that begins at `at` has to end, by count and bytes of durable events."""
    count = size = 0
    for end in range(at, len(items)):
        item = items[end]
        if type(item) is _Durable:
            count += 1
            size += len(item.event.data)
            if count > 1 and (count > _DURABLE_EVENTS or size > _DURABLE_BYTES):
                return end
    return len(items)
