"""A reader that stops is cut or told to leave, loses nothing durable, and harms nobody."""

import asyncio

import grpc
import pytest

from agentrpc.client.errors import decode
from agentrpc.rpc import stream as streams
from agentrpc.v1 import session_service_pb2, stream_pb2

# More than the buffers between server and client take.
EVENTS = 400
SIZE = 40_000


async def flood(source):
    for _ in range(EVENTS // 10):
        await source.write(*("x" * SIZE for _ in range(10)))


async def watch(client, source, **fields):
    request = session_service_pb2.WatchSessionRequest(name=source.name, **fields)
    return client.sessions.WatchSession(request, metadata=await client._metadata())


async def drained(call):
    """What is left of a stream, and the error that it ends with."""
    responses = []
    try:
        async with asyncio.timeout(30):
            while (response := await call.read()) is not grpc.aio.EOF:
                responses.append(response)
    except grpc.aio.AioRpcError as error:
        return responses, decode(error)
    return responses, None


@pytest.fixture
def quick(edge, monkeypatch):
    """A stall is noticed after a second, and cut at the same time unless the test says otherwise."""
    edge.settings.stream_stall_timeout = 1.0
    monkeypatch.setattr(streams, "_LAST_CHANCE", 0.0)


async def test_a_stuck_stream_is_cut_with_a_reason(edge, client, source, quick, ended):
    call = await watch(client, source)
    await call.read()
    await flood(source)
    await asyncio.wait_for(ended.wait(), 30)
    assert not edge.hub._streams
    responses, failure = await drained(call)
    seen = [event.sequence for response in responses for event in response.events]
    assert seen == list(range(1, responses[-1].resume_after_sequence + 1))
    assert 0 < len(seen) < EVENTS
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "SLOW_CONSUMER")


async def test_a_stuck_client_resumes_without_a_gap(client, source, quick, ended):
    await source.write("1")
    found = []
    async with asyncio.timeout(60):
        async for event in client.watch(source.name):
            found.append(event.sequence)
            if len(found) == 1:
                await flood(source)
                await ended.wait()
            if event.sequence == EVENTS + 1:
                break
    assert found == list(range(1, EVENTS + 2))


async def test_a_stall_that_dissolves_ends_the_stream_with_its_resume_point(edge, client, source, quick, monkeypatch):
    monkeypatch.setattr(streams, "_LAST_CHANCE", 3600.0)
    noticed = asyncio.Event()

    def tick(stream, now, original=streams.Stream.tick):
        original(stream, now)
        if stream._slow:
            noticed.set()

    monkeypatch.setattr(streams.Stream, "tick", tick)
    call = await watch(client, source)
    await call.read()
    await flood(source)
    await asyncio.wait_for(noticed.wait(), 30)
    responses, failure = await drained(call)
    assert failure is None
    last = responses[-1]
    assert last.end.reason == stream_pb2.StreamEnd.REASON_SLOW_CONSUMER
    seen = [event.sequence for response in responses for event in response.events]
    assert seen == list(range(1, last.resume_after_sequence + 1))


async def test_a_stuck_stream_counts_until_its_memory_is_free(edge, client, source, quick, ended):
    edge.settings.max_streams_per_user = 1
    call = await watch(client, source)
    await call.read()
    await flood(source)
    await asyncio.wait_for(ended.wait(), 30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await watch(client, source)).read()
    assert decode(caught.value).reason == "TOO_MANY_STREAMS"
    await drained(call)
    async with asyncio.timeout(30):
        async for event in client.watch(source.name):
            assert event.sequence == 1
            break


async def test_others_get_everything_beside_a_stuck_one(client, source, quick, ended):
    stuck = await watch(client, source)
    await stuck.read()
    found = []

    async def read():
        async for event in client.watch(source.name):
            found.append(event.sequence)
            if len(found) == EVENTS:
                return

    reading = asyncio.create_task(read())
    await flood(source)
    await asyncio.wait_for(reading, 60)
    assert found == list(range(1, EVENTS + 1))
    stuck.cancel()
