"""The streaming RPCs: replay from Postgres, then the live tail from the hub, each durable event once and in order.

A stream is the RPC's own task and a cursor: no task, timer or copy of its own besides. What it sends is joined from
bytes that other watchers share; only control fields are encoded for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from agentrpc import clock
from agentrpc.bus.live import LiveBatch
from agentrpc.domain.principal import Principal
from agentrpc.errors import InvalidArgument, SequenceAhead, StoreUnavailable
from agentrpc.names import parse_run, parse_session, parse_session_or_wildcard
from agentrpc.rpc.approval_stream import ApprovalStream
from agentrpc.rpc.feed import Feed, Key
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.stream import Ended, Send, Stream
from agentrpc.services.accounts import Accounts
from agentrpc.services.approvals import Approvals
from agentrpc.services.archive_state import require_readable
from agentrpc.services.runs import Runs
from agentrpc.services.sessions import Sessions
from agentrpc.services.validation import event_kinds
from agentrpc.settings import Settings
from agentrpc.store.log import LOOKED_AT, StoredEvent
from agentrpc.telemetry import EVENTS_RELAYED, EVENTS_SHED
from agentrpc.v1 import (
    approval_service_pb2,
    event_pb2,
    run_pb2,
    run_service_pb2,
    session_pb2,
    session_service_pb2,
    stream_pb2,
)

__all__ = ["Streams"]

SetMetadata = Callable[[str, str], None]

_REPLAY_BYTES = 256 * 1024
# A block of an event has at most 256 KiB: a page is bounded in bytes by its rows.
_REPLAY_ROWS = 100
_RUN_ENDED = event_pb2.Event.RUN_ENDED_FIELD_NUMBER
_TERMINAL = run_pb2.Run.STATE_SUCCEEDED

_Response = session_service_pb2.WatchSessionResponse
_End = stream_pb2.StreamEnd


class _SessionStream(Stream):
    """One watcher of a session or a run."""

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        accounts: Accounts,
        principal: Principal,
        send: Send,
        *,
        feed: Feed,
        kinds: frozenset[int] | None,
        run_id: UUID | None,
        deltas: bool,
        after: int,
    ) -> None:
        super().__init__(hub, settings, accounts, principal, send)
        self._feed = feed
        self._kinds = kinds
        self._run_id = run_id
        self._deltas = deltas
        self._key: Key = (kinds, run_id.bytes if run_id else None, deltas)
        self._sent = after
        self._cursor = feed.end
        self._live = feed.live_total(self._key)
        self._shed = 0
        self._run_ended_at = 0

    async def run(self, extra: bytes, last_of_run: int) -> Ended:
        """Send everything until the stream ends; returns why, with nothing sent about it yet.

        Args:
            extra: Encoded fields that go with the first response.
            last_of_run: The number of the watched run's last event, if it has ended.
        """
        self._run_ended_at = last_of_run
        first = _Response(opened=self.opened(self._feed.tip), resume_after_sequence=self._sent)
        await self.write(first.SerializeToString() + extra)
        try:
            await self._replay()
            await self._catch_up()
            while True:
                await self._next()
        except Ended as ended:
            return ended

    @property
    def resume_after(self) -> int:
        return self._sent

    async def _replay(self) -> None:
        """From Postgres up to the tip, page by page."""
        cursor, live = self._feed.end, self._feed.live_total(self._key)
        target = self._feed.tip
        while self._sent < target and not self._over():
            end = target
            if self._kinds is not None or self._run_id is not None:
                # Slice by slice: others have their turns in between, however little passes the filter.
                end = min(target, self._sent + LOOKED_AT)
            rows = await self._page(end)
            at = 0
            while True:
                if at < len(rows):
                    at = await self._send_rows(rows, at)
                if await self.check():
                    await self.write(
                        _Response(resume_after_sequence=self._sent, heartbeat=self.heartbeat()).SerializeToString()
                    )
                if at >= len(rows) or self._over():
                    break
            if len(rows) < _REPLAY_ROWS:
                self._sent = max(self._sent, end)
        self._cursor, self._live = cursor, live

    async def _page(self, target: int) -> list[StoredEvent]:
        # The end of a run must be seen even where its kind is filtered out.
        kinds = None if self._run_id is not None else self._kinds
        while True:
            try:
                session_id = self._feed.session_id
                rows = await self._hub.read(
                    session_id, self._sent, target, kinds=kinds, limit=_REPLAY_ROWS, run_id=self._run_id,
                    reader=self._principal.user_id,
                )  # fmt: skip
                if len(rows) < _REPLAY_ROWS and (not rows or rows[-1].sequence < target):
                    # The filter leaves the rest out; or the log has gone to archive storage meanwhile.
                    await self._hub.require_here(session_id)
                return list(rows)
            except StoreUnavailable:
                await self.check()
                await asyncio.sleep(clock.jitter(0.5))

    async def _send_rows(self, rows: Sequence[StoredEvent], at: int) -> int:
        chosen = []
        size = 0
        while at < len(rows) and size < _REPLAY_BYTES:
            row = rows[at]
            at += 1
            self._sent = row.sequence
            if self._run_id is None or row.run_id == self._run_id:
                if self._kinds is None or row.kind in self._kinds:
                    chosen.append((row.sequence, row.kind, row.run_id, row.data))
                    size += len(row.data)
                if row.kind == _RUN_ENDED and self._run_id is not None:
                    self._run_ended_at = row.sequence
                    break
        if chosen:
            body, count, _ = LiveBatch.of(0, chosen).select(None, None, deltas=True)
            await self.write(body + _Response(resume_after_sequence=self._sent).SerializeToString())
            EVENTS_RELAYED.inc(count)
        return at

    async def _catch_up(self) -> None:
        response = _Response(
            resume_after_sequence=self._sent, caught_up=stream_pb2.CaughtUp(last_sequence=self._feed.tip)
        )
        if self._deltas:
            # What the open blocks hold so far; the pieces that follow join on to it.
            for event in self._feed.preview(self._key[1]):
                if self._kinds is None or event.DESCRIPTOR.fields_by_name[str(event.WhichOneof("payload"))].number in (
                    self._kinds
                ):
                    response.events.append(event)
            if self._sent >= self._feed.tip:
                # Behind the live-only batches that the preview has told; durable ones would still be to be sent.
                self._cursor, self._live = self._feed.end, self._feed.live_total(self._key)
        await self.write(response.SerializeToString())

    async def _next(self) -> None:
        feed = self._feed
        if self._over():
            raise Ended(_End.REASON_RUN_ENDED)
        # Before the first look: what comes between a look and the rest is not slept through.
        self._woken = False
        news = feed.wait()
        # Here, and not only when there is nothing to send: a stream that is always behind has to end too.
        heartbeat_due = await self.check()
        if self._cursor < feed.base:
            # Too slow for the ring: live events are gone, durable ones come from Postgres.
            lost = feed.live_total(self._key) - self._live
            if lost > 0:
                self._shed += lost
                EVENTS_SHED.inc(lost)
            await self._replay()
            await self.write(_Response(resume_after_sequence=self._sent, shed_count=self._shed).SerializeToString())
            return
        if self._cursor < feed.end:
            chosen = feed.select(self._cursor, self._key, self._sent)
            self._cursor = chosen.cursor
            self._live += chosen.live
            self._sent = max(self._sent, chosen.last)
            self._run_ended_at = chosen.run_ended or self._run_ended_at
            if chosen.count:
                await self.write(chosen.body + _resume(self._sent, self._shed))
                EVENTS_RELAYED.inc(chosen.count)
            return
        if feed.closed and self._sent >= feed.tip:
            raise Ended(_End.REASON_SESSION_CLOSED)
        if heartbeat_due:
            await self.write(
                _Response(
                    resume_after_sequence=self._sent, shed_count=self._shed, heartbeat=self.heartbeat()
                ).SerializeToString()
            )
            return
        # Woken by news of the session, which all its watchers share, or by what is due for this one alone.
        news.add_done_callback(self._on_news)
        try:
            await self.rest()
        finally:
            news.remove_done_callback(self._on_news)

    def _on_news(self, _: object) -> None:
        self.wake()

    def _over(self) -> bool:
        return bool(self._run_ended_at) and self._sent >= self._run_ended_at


class Streams:
    """The streaming use cases of the edge."""

    def __init__(
        self,
        hub: Hub,
        sessions: Sessions,
        runs: Runs,
        approvals: Approvals,
        accounts: Accounts,
        settings: Settings,
    ) -> None:
        self.hub = self._hub = hub
        self._sessions = sessions
        self._runs = runs
        self._approvals = approvals
        self._accounts = accounts
        self._settings = settings

    @property
    def parts(self) -> tuple[Hub, Settings, Accounts]:
        """What every stream needs besides its caller."""
        return self._hub, self._settings, self._accounts

    async def watch_session(
        self, principal: Principal, request: session_service_pb2.WatchSessionRequest, send: Send
    ) -> None:
        """WatchSession."""
        session_id = parse_session(request.name)
        kinds = event_kinds(request.event_types)
        run_id = _run_of(request.run, session_id)
        run = await self._runs.get(principal, request.run) if request.run else None
        session = await self._sessions.get(principal, session_id)
        require_readable(session)
        # Before the run's first event there is nothing of it.
        after = max(request.after_sequence, run.first_sequence - 1) if run is not None else request.after_sequence
        await self._watch(principal, send, session_id, kinds, run_id, request.include_deltas, after,
                          session=session, run=run, with_run=False)  # fmt: skip

    async def stream_run(
        self,
        principal: Principal,
        request: run_service_pb2.StreamRunRequest,
        send: Send,
        set_metadata: SetMetadata,
    ) -> None:
        """StreamRun: the run is stored before anything is sent; leaving never stops it."""
        kinds = event_kinds(request.event_types)
        if request.after_sequence < 0:
            raise InvalidArgument.field("after_sequence", "must not be negative")
        run, begin = await self._runs.stream(principal, request)
        session_id, run_id = parse_run(run.name)
        set_metadata("agentrpc-run", run.name)
        if run.state >= _TERMINAL:
            require_readable(await self._sessions.get(principal, session_id))
        try:
            await self._watch(principal, send, session_id, kinds, run_id, request.include_deltas,
                              request.after_sequence or begin, session=None, run=run, with_run=True)  # fmt: skip
        except StoreUnavailable:
            # The run is there.
            raise StoreUnavailable(unsure=True) from None

    async def _watch(
        self,
        principal: Principal,
        send: Send,
        session_id: UUID,
        kinds: frozenset[int] | None,
        run_id: UUID | None,
        deltas: bool,
        after: int,
        *,
        session: session_pb2.Session | None,
        run: run_pb2.Run | None,
        with_run: bool,
    ) -> None:
        if after < 0:
            raise InvalidArgument.field("after_sequence", "must not be negative")
        feed = await self._hub.join(session_id)
        stream: _SessionStream | None = None
        try:
            if after > feed.tip and after > (end := await self._hub.measure(feed)):
                raise SequenceAhead(after, end)
            stream = _SessionStream(
                self._hub, self._settings, self._accounts, principal, send,
                feed=feed, kinds=kinds, run_id=run_id, deltas=deltas, after=after,
            )  # fmt: skip
            self._hub.add(stream)
            extra = _Response(session=session) if session is not None else run_service_pb2.StreamRunResponse(run=run)
            ended_run = run if run is not None and run.state >= _TERMINAL else None
            ended = await stream.run(extra.SerializeToString(), ended_run.last_sequence if ended_run is not None else 0)
            last = _Response(resume_after_sequence=stream.resume_after, end=stream.end(ended)).SerializeToString()
            if with_run and run is not None and ended.reason == _End.REASON_RUN_ENDED:
                finished = await self._runs.get(principal, run.name)
                last += run_service_pb2.StreamRunResponse(run=finished).SerializeToString()
            await stream.write(last)
        finally:
            if stream is not None:
                self._hub.remove(stream)
            self._hub.leave(feed)

    async def watch_approvals(
        self, principal: Principal, request: approval_service_pb2.WatchApprovalsRequest, send: Send
    ) -> None:
        """WatchApprovals."""
        session_id = parse_session_or_wildcard(request.parent)
        if session_id is not None:
            await self._sessions.get(principal, session_id)
        stream = ApprovalStream(
            self._hub, self._settings, self._accounts, principal, send, approvals=self._approvals, parent=request.parent
        )
        self._hub.add(stream)
        try:
            await stream.run()
        finally:
            self._hub.remove(stream)


def _run_of(name: str, session_id: UUID) -> UUID | None:
    if not name:
        return None
    of_session, run_id = parse_run(name, field="run")
    if of_session != session_id:
        raise InvalidArgument.field("run", "belongs to another session")
    return run_id


def _resume(sent: int, shed: int) -> bytes:
    """Fields 2 and 6 of a response, encoded."""
    out = bytearray(b"\x10")
    _varint(out, sent)
    if shed:
        out.append(0x30)
        _varint(out, shed)
    return bytes(out)


def _varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
