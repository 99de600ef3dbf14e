"""Many watchers, some of them stuck, and more than one edge."""

import asyncio
import time
from uuid import UUID

import psutil

from agentrpc.bus.live import LiveBatch
from agentrpc.rpc import hub as hubs
from agentrpc.store.log import Batch, LogEvent, append, number_events
from agentrpc.store.tables import SessionHead
from agentrpc.v1 import event_pb2, session_pb2, session_service_pb2


class Writer:
    def __init__(self, edge, session):
        self.edge, self.session_id, self.number = edge, UUID(session.name.removeprefix("sessions/")), 0

    async def open(self):
        async with self.edge.database.transaction() as tx:
            (await tx.get_one(SessionHead, self.session_id)).epoch = 1
        return self

    async def write(self, count, size=200):
        events = []
        for _ in range(count):
            text = f"{time.time():.6f} {'x' * size}"
            events.append(LogEvent.of(event_pb2.Event(notice=event_pb2.Notice(text=text)), None))
        self.number += 1
        base = await append(self.edge.database, self.session_id, 1, self.number, Batch(events=events))
        stored = number_events(events, base)
        batch = LiveBatch.of(stored[-1].sequence, [(e.sequence, e.kind, e.run_id, e.data) for e in stored])
        await self.edge.bus.publish(self.session_id, batch.encode())


async def test_ten_of_a_hundred_read_nothing_and_the_others_lose_nothing(edge, client):
    edge.settings.stream_stall_timeout = 3.0
    session = await client.create_session(session_pb2.Session())
    writer = await Writer(edge, session).open()
    total, lags = 600, []

    async def read():
        seen = 0
        async for event in client.watch(session.name):
            seen += 1
            assert event.sequence == seen
            lags.append(time.time() - float(event.notice.text.split()[0]))
            if seen == total:
                return

    stuck = []
    for _ in range(10):
        request = session_service_pb2.WatchSessionRequest(name=session.name)
        call = client.sessions.WatchSession(request, metadata=await client._metadata())
        await call.read()
        stuck.append(call)
    readers = [asyncio.create_task(read()) for _ in range(90)]
    await asyncio.sleep(1)
    before = psutil.Process().memory_info().rss
    for _ in range(60):
        await writer.write(10, size=20_000)
        await asyncio.sleep(0.05)
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    grown = psutil.Process().memory_info().rss - before
    assert sorted(lags)[len(lags) // 2] < 1.0
    # Client and edge share this process: a copy for each stuck reader alone would be 12 MB for each of ten.
    assert grown < 400 * 1024 * 1024
    for call in stuck:
        call.cancel()


async def test_two_edges_show_the_same(edge, second_edge, client):
    async with second_edge.client("ann") as second:
        session = await client.create_session(session_pb2.Session())
        writer = await Writer(edge, session).open()
        readers = [asyncio.create_task(_collect(which.watch(session.name), 200)) for which in (client, second)]
        await asyncio.sleep(0.3)
        for _ in range(20):
            await writer.write(10)
        one, two = await asyncio.wait_for(asyncio.gather(*readers), 20)
    assert one == two
    assert [event.sequence for event in one] == list(range(1, 201))


async def _first(events, count):
    seen = 0
    async for event in events:
        yield event
        seen += 1
        if seen == count:
            return


async def test_a_position_that_another_edge_told_is_not_refused(edge, client):
    session = await client.create_session(session_pb2.Session())
    writer = await Writer(edge, session).open()
    await writer.write(3)
    watching = asyncio.create_task(asyncio.wait_for(_collect(client.watch(session.name), 5), 10))
    await asyncio.sleep(0.3)
    # Committed and not published, as by a worker whose Redis is away.
    events = [LogEvent.of(event_pb2.Event(notice=event_pb2.Notice(text="1.0 x")), None)] * 2
    await append(edge.database, writer.session_id, 1, writer.number + 1, Batch(events=events))
    later = asyncio.create_task(_collect(client.watch(session.name, after_sequence=5), 1))
    await asyncio.sleep(0.2)
    writer.number += 1
    await writer.write(1)
    assert [event.sequence for event in await asyncio.wait_for(later, 10)] == [6]
    assert [event.sequence for event in await watching] == [1, 2, 3, 4, 5]


async def _collect(events, count):
    return [event async for event in _first(events, count)]


async def test_a_feed_that_is_joined_while_another_is_closed_stays(edge, client, monkeypatch):
    hub = hubs.Hub(edge.database, edge.bus, 1)
    monkeypatch.setattr(hubs, "_KEEP_IDLE", 0.0)
    try:
        first, second = [
            await hub.join(UUID((await client.create_session(session_pb2.Session())).name.removeprefix("sessions/")))
            for _ in range(2)
        ]
        hub.leave(first)
        hub.leave(second)
        original = first.close

        async def close():
            assert await hub.join(second.session_id) is second
            await original()

        monkeypatch.setattr(first, "close", close)
        await asyncio.sleep(0.01)
        await hub._measure()
        assert hub._feeds == {second.session_id: second}
    finally:
        await hub.close()
