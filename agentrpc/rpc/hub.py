"""All that one edge process watches: one Pub/Sub connection, a feed for each session, one tick a second for all.

Pub/Sub is a hint. Once a second one query asks Postgres how long the watched logs are; what a feed lacks it reads. So
without Redis a watcher lags at most two seconds.
"""

import asyncio
import time
from typing import Protocol
from uuid import UUID

import structlog

from agentrpc.bus.live import LiveBatch
from agentrpc.bus.redis_bus import Bus
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError
from agentrpc.rpc.approval_feed import ApprovalFeed
from agentrpc.rpc.feed import Feed
from agentrpc.services.archive_state import require_here
from agentrpc.store.database import Database, Lane
from agentrpc.store.log import StoredEvent, last_sequences, read_events
from agentrpc.turns import Turns
from agentrpc.v1 import event_pb2

__all__ = ["TICK", "Hub", "Ticked"]

log = structlog.get_logger()

TICK = 1.0
_PATIENCE = 2.0
_KEEP_IDLE = 5.0
_OF_APPROVALS = frozenset(
    {event_pb2.Event.APPROVAL_REQUESTED_FIELD_NUMBER, event_pb2.Event.APPROVAL_RESOLVED_FIELD_NUMBER}
)


class Ticked(Protocol):
    """A stream: it is looked at once a second, which costs less than a timer for each."""

    def tick(self, now: float) -> None:
        """Wake up if something is due."""
        ...

    def wake(self) -> None:
        """Look now whether to end."""
        ...


class Hub:
    """The feeds of one edge process.

    Args:
        database: The store.
        bus: The live tail.
        replay_concurrency: How many reads of the store go on at once for all watchers, who take turns by user.

    Attributes:
        approvals: The feed of all approvals.
        draining: Whether all streams are to end.
    """

    def __init__(self, database: Database, bus: Bus, replay_concurrency: int) -> None:
        self._database = database
        self._subscriptions = bus.event_subscriptions(self._on_frame)
        self._feeds: dict[UUID, Feed] = {}
        self._idle: dict[UUID, float] = {}
        self._streams: set[Ticked] = set()
        self._reads = Turns(replay_concurrency, per_key=max(replay_concurrency * 3 // 4, 1))
        self._flights: dict[tuple[object, ...], asyncio.Task[list[StoredEvent]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._answered = time.monotonic()
        self.approvals = ApprovalFeed(database)
        self.draining = False

    def start(self) -> None:
        """Begin to tick."""
        self._task = asyncio.create_task(self._run(), name="hub")

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            await end_tasks([self._task])
        for feed in self._feeds.values():
            await feed.close()
        await self.approvals.close()
        await self._subscriptions.close()

    def drain(self) -> None:
        """All streams are to end."""
        self.draining = True
        for feed in self._feeds.values():
            feed.wake()
        for stream in list(self._streams):
            stream.wake()

    @property
    def store_away(self) -> float:
        """For how many seconds Postgres has not answered."""
        return max(time.monotonic() - self._answered - TICK, 0.0)

    def add(self, stream: Ticked) -> None:
        """Tick a stream from now on."""
        self._streams.add(stream)

    def remove(self, stream: Ticked) -> None:
        """The reverse."""
        self._streams.discard(stream)

    async def join(self, session_id: UUID) -> Feed:
        """The feed of a session, subscribed; give it back with `leave`.

        Raises:
            StoreUnavailable: The length of the log is not known.
        """
        feed = self._feeds.get(session_id)
        if feed is None:
            feed = self._feeds[session_id] = Feed(session_id, lambda after, limit: self._tail(session_id, after, limit))
        feed.watchers += 1
        self._idle.pop(session_id, None)
        try:
            if feed.tip < 0:
                # Confirmed before the log is measured: nothing can fall between the two.
                await self._subscriptions.subscribe(session_id)
                found = await last_sequences(self._database, [session_id])
                last, closed = found.get(session_id, (0, None))
                feed.begin(last)
                feed.committed(last, closed)
        except BaseException:
            self.leave(feed)
            raise
        return feed

    async def measure(self, feed: Feed) -> int:
        """How long the log is now: a feed may lag behind what another replica has told its client."""
        last, closed = (await last_sequences(self._database, [feed.session_id])).get(feed.session_id, (0, None))
        feed.committed(last, closed)
        return last

    def leave(self, feed: Feed) -> None:
        """A watcher has gone. The feed stays for some seconds: it may come back."""
        feed.watchers -= 1
        if not feed.watchers:
            self._idle[feed.session_id] = time.monotonic()

    async def require_here(self, session_id: UUID) -> None:
        """Raise STATE_INVALID if the log is only in archive storage."""
        async with self._database.transaction() as tx:
            await require_here(tx, session_id)

    async def read(
        self,
        session_id: UUID,
        after: int,
        up_to: int,
        *,
        kinds: frozenset[int] | None,
        limit: int,
        reader: UUID,
        run_id: UUID | None = None,
    ) -> list[StoredEvent]:
        """A page of the log. Watchers that ask for the same page share one read, at the turn of the `reader`."""
        key = (session_id, after, up_to, kinds, limit, run_id)
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._page(reader, *key))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return await asyncio.shield(flight)

    async def _page(
        self,
        reader: UUID,
        session_id: UUID,
        after: int,
        up_to: int,
        kinds: frozenset[int] | None,
        limit: int,
        run_id: UUID | None,
    ) -> list[StoredEvent]:
        async with self._reads.take(reader):
            return await read_events(
                self._database,
                session_id,
                after=after,
                up_to=up_to,
                kinds=None if kinds is None else sorted(kinds),
                run_id=run_id,
                limit=limit,
                lane=Lane.REPLAY,
            )

    async def _tail(self, session_id: UUID, after: int, limit: int) -> list[StoredEvent]:
        # For all watchers of the session.
        return await self.read(session_id, after, 2**62, kinds=None, limit=limit, reader=session_id)

    def _on_frame(self, session_id: UUID, frame: bytes) -> None:
        feed = self._feeds.get(session_id)
        if feed is None:
            return
        batch = LiveBatch.decode(frame)
        feed.offer(batch)
        if batch.first and any(entry.kind in _OF_APPROVALS for entry in batch.entries):
            self.approvals.hasten()

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                # Streams are ticked also while Postgres does not answer.
                async with asyncio.timeout(_PATIENCE):
                    await self._measure()
                self._answered = time.monotonic()
            except (AgentRpcError, TimeoutError) as error:
                log.warning("hub_without_store", error=type(error).__name__)
            except Exception:
                log.exception("hub_failed")
            now = time.monotonic()
            for stream in list(self._streams):
                stream.tick(now)
            await asyncio.sleep(max(0.05, TICK - (time.monotonic() - began)))

    async def _measure(self) -> None:
        now = time.monotonic()
        for session_id, since in list(self._idle.items()):
            # While another was closed somebody may have joined this one.
            if now - since > _KEEP_IDLE and self._idle.get(session_id) == since:
                del self._idle[session_id]
                feed = self._feeds.pop(session_id)
                self._subscriptions.unsubscribe(session_id)
                await feed.close()
                if session_id in self._feeds:
                    # Somebody joined a new feed meanwhile.
                    await self._subscriptions.subscribe(session_id)
        if self._feeds or self._streams:
            # Of no session too: streams of other things have to hear that the store is away.
            found = await last_sequences(self._database, list(self._feeds), Lane.PULSE)
            for session_id, (last, closed) in found.items():
                if (watched := self._feeds.get(session_id)) is not None:
                    watched.committed(last, closed)
