"""Promise 1 on the wire: every durable event once and in order, whatever becomes of Redis, readers and servers."""

import asyncio
import contextlib

import pytest

from agentrpc import clock
from agentrpc.client import RpcError
from agentrpc.v1 import run_pb2, session_service_pb2, stream_pb2

End = stream_pb2.StreamEnd


def watching(client, source, **fields):
    name = f"sessions/{source.session_id}"
    return client.watch(name, **fields)


async def collect(events, count, timeout=10):
    found = []
    async with asyncio.timeout(timeout):
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


def sequences(events):
    return [event.sequence for event in events]


async def test_replay_then_live_without_a_seam(client, source):
    await source.write(*(f"old{n}" for n in range(1200)))
    reading = asyncio.create_task(collect(watching(client, source), 1500))
    for n in range(300):
        await source.write(f"new{n}")
    assert sequences(await reading) == list(range(1, 1501))


async def test_from_the_middle_and_beyond_the_end(client, source):
    await source.write(*"abcdef")
    assert sequences(await collect(watching(client, source, after_sequence=4), 2)) == [5, 6]
    with pytest.raises(RpcError) as caught:
        await collect(watching(client, source, after_sequence=7), 1)
    assert (caught.value.code, caught.value.reason) == ("OUT_OF_RANGE", "SEQUENCE_AHEAD")


async def test_lost_doubled_and_overtaking_publishes(client, source):
    reading = asyncio.create_task(collect(watching(client, source), 6))
    await asyncio.sleep(0.3)
    await source.write("1")
    lost = await source.write("2", publish=False)
    late = await source.write("3", publish=False)
    last = await source.write("4")
    for batch in (late, lost, last, last):
        await source.edge.bus.publish(source.session_id, batch.encode())
    await source.edge.bus.publish(source.session_id, b"garbage")
    await source.write("5")
    await source.write("6", publish=False)
    assert sequences(await reading) == [1, 2, 3, 4, 5, 6]


async def test_without_redis_a_watcher_lags_at_most_two_seconds(client, source, redis_server):
    await source.write("1")
    reading = asyncio.create_task(collect(watching(client, source), 3))
    await asyncio.sleep(0.3)
    redis_server.stop()
    await source.write("2")
    await asyncio.sleep(0.1)
    began = clock.monotonic()
    await source.write("3")
    assert sequences(await reading) == [1, 2, 3]
    assert clock.monotonic() - began < 2.5
    redis_server.start()
    more = asyncio.create_task(collect(watching(client, source, after_sequence=3), 1))
    await asyncio.sleep(1.5)
    await source.write("4")
    assert sequences(await more) == [4]


async def test_late_joiners_get_the_open_message(client, source):
    first = asyncio.create_task(collect(watching(client, source, include_deltas=True), 3))
    await asyncio.sleep(0.3)
    await source.delta("Hel", 0)
    await source.delta("lo ☃", 3)
    await asyncio.sleep(0.2)
    second = asyncio.create_task(collect(watching(client, source, include_deltas=True), 2))
    await asyncio.sleep(0.3)
    await source.delta("!", 9)
    early, late = await first, await second
    assert [(e.text_delta.offset, e.text_delta.text) for e in early] == [(0, "Hel"), (3, "lo ☃"), (9, "!")]
    assert [(e.text_delta.offset, e.text_delta.text) for e in late] == [(0, "Hello ☃"), (9, "!")]


async def test_deltas_and_types_are_left_out_when_not_wanted(client, source):
    plain = asyncio.create_task(collect(watching(client, source), 1))
    typed = asyncio.create_task(collect(watching(client, source, event_types=["session_state_changed"]), 1))
    await asyncio.sleep(0.3)
    await source.delta("x", 0)
    await source.write("1")
    assert sequences(await plain) == [1]
    await client.create_run(f"sessions/{source.session_id}", "x")
    found = await typed
    assert [event.WhichOneof("payload") for event in found] == ["session_state_changed"]
    with pytest.raises(RpcError) as caught:
        await collect(watching(client, source, event_types=["nope"]), 1)
    assert caught.value.reason == "EVENT_TYPE_UNKNOWN"


async def responses(client, source, count, **fields):
    request = session_service_pb2.WatchSessionRequest(name=f"sessions/{source.session_id}", **fields)
    found = []
    call = client.sessions.WatchSession(request, metadata=await client._metadata())
    async with asyncio.timeout(15):
        async for response in call:
            found.append(response)
            if len(found) == count:
                break
    with contextlib.suppress(Exception):
        call.cancel()
    return found


async def test_opened_caught_up_and_heartbeats(client, source):
    await source.write("1")
    first, second, third, fourth = await responses(client, source, 4)
    assert first.opened.last_sequence == 1
    assert first.session.name
    assert [event.sequence for event in second.events] == [1]
    assert third.caught_up.last_sequence == 1
    assert fourth.HasField("heartbeat")
    assert all(response.resume_after_sequence == 1 for response in (second, third, fourth))


async def test_a_closed_session_ends_its_streams(client, source):
    await source.write("1")
    reading = asyncio.create_task(collect(watching(client, source), 99))
    await asyncio.sleep(0.3)
    name = f"sessions/{source.session_id}"
    await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=name))
    events = await reading
    assert [event.WhichOneof("payload") for event in events] == ["notice", "session_state_changed"]


async def test_rotation_and_drain_name_the_resume_point(edge, client, source):
    edge.settings.stream_max_age = 1.0
    await source.write("1")
    last = (await responses(client, source, 99))[-1]
    assert last.end.reason == End.REASON_ROTATED
    assert last.resume_after_sequence == 1
    edge.settings.stream_max_age = 100.0
    reading = asyncio.create_task(responses(client, source, 99))
    await asyncio.sleep(0.3)
    edge.hub.drain()
    last = (await reading)[-1]
    assert last.end.reason == End.REASON_DRAINING
    assert last.end.HasField("retry_delay")


async def test_a_stream_of_a_run_ends_with_it(edge, client, source):
    name = f"sessions/{source.session_id}"
    run = await client.create_run(name, "x")
    reading = asyncio.create_task(collect(client.watch(name, run=run.name), 99))
    await asyncio.sleep(0.3)
    await client.interrupt(run.name)
    events = await reading
    assert [event.WhichOneof("payload") for event in events] == ["run_ended"]
    assert events[0].run_ended.state == run_pb2.Run.STATE_CANCELLED
    # Of a run that has ended the stream ends at once, also where its end is filtered out.
    assert len(await collect(client.watch(name, run=run.name), 99)) == 1
    assert await collect(client.watch(name, run=run.name, event_types=["notice"]), 99) == []
