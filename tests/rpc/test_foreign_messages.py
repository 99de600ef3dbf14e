"""Whoever reaches Redis shows watchers nothing that has not happened, hides nothing that has, and silences nobody."""

import asyncio
import random
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from agentrpc.bus.live import LiveBatch
from agentrpc.bus.redis_bus import Bus
from agentrpc.telemetry import BUS_REFUSED
from agentrpc.v1 import event_pb2, session_service_pb2
from agentrpc.work.broker import Bell, answer_bell

EVENTS, WORKER = b"agentrpc:events:", b"agentrpc:worker:"
NOTICE = event_pb2.Event.NOTICE_FIELD_NUMBER


def notice(sequence, text):
    event = event_pb2.Event(sequence=sequence, notice=event_pb2.Notice(text=text))
    return LiveBatch.of(sequence, [(sequence, NOTICE, None, event.SerializeToString())]).encode()


def refused():
    return BUS_REFUSED.labels("FORGED")._value.get()


@pytest.fixture
async def intruder(settings):
    """Somebody who reaches Redis, and has no key of the service."""
    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        yield redis


@pytest.fixture
async def watcher(client, source, until):
    """A stream of the session that is caught up."""
    request = session_service_pb2.WatchSessionRequest(name=source.name, include_deltas=True)
    call = client.sessions.WatchSession(request, metadata=await client._metadata())
    await until(call, lambda response: response.HasField("caught_up"))
    yield call
    call.cancel()


async def texts(call, until, last):
    """The events of the stream up to a text."""
    found = []

    def seen(response):
        found.extend((event.sequence, event.notice.text or event.text_delta.text) for event in response.events)
        return bool(found) and found[-1][1] == last

    await until(call, seen)
    return found


async def test_a_made_up_event_reaches_nobody_and_takes_no_real_ones_place(source, intruder, watcher, until):
    channel = EVENTS + source.session_id.bytes
    await source.write("one")
    before = refused()
    forged = [notice(2, "FORGED"), notice(9, "FORGED"), bytes(16) + notice(2, "FORGED"), b"", b"x"]
    for message in forged:
        assert await intruder.publish(channel, message) >= 1
    await source.write("two")
    await source.write("three")
    assert await texts(watcher, until, "three") == [(1, "one"), (2, "two"), (3, "three")]
    assert refused() - before == len(forged)


async def test_a_batch_of_one_session_is_none_of_another(edge, client, source, new_source, intruder, watcher, until):
    other = await new_source(client)
    heard = asyncio.get_running_loop().create_future()

    async def overhear():
        async with intruder.pubsub() as pubsub:
            await pubsub.subscribe(EVENTS + other.session_id.bytes)
            ready.set()
            async for message in pubsub.listen():
                if message["type"] == "message":
                    heard.set_result(message["data"])
                    return

    ready = asyncio.Event()
    listening = asyncio.create_task(overhear())
    await ready.wait()
    await other.write("another's")
    sealed = await asyncio.wait_for(heard, 10)
    await listening
    assert b"another's" in sealed
    before = refused()
    await intruder.publish(EVENTS + source.session_id.bytes, sealed)
    await source.write("mine")
    assert await texts(watcher, until, "mine") == [(1, "mine")]
    assert refused() - before == 1


async def test_a_copy_of_what_was_published_is_not_shown_twice(source, intruder, watcher, until):
    channel = EVENTS + source.session_id.bytes
    async with intruder.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        await source.write("one")
        async for message in pubsub.listen():
            if message["type"] == "message":
                break
    for _ in range(3):
        await intruder.publish(channel, message["data"])
    await source.write("two")
    assert await texts(watcher, until, "two") == [(1, "one"), (2, "two")]


async def test_another_services_key_seals_nothing_here(settings, source, watcher, until):
    stranger = Bus(settings.redis_url.get_secret_value(), "another signing key of 32 bytes..")
    try:
        assert await stranger.publish(source.session_id, notice(1, "FORGED"))
    finally:
        await stranger.close()
    await source.write("one")
    assert await texts(watcher, until, "one") == [(1, "one")]


async def test_whatever_is_sent_to_a_worker_it_goes_on_to_hear_signals(bus, intruder):
    worker, session = uuid4(), uuid4()
    heard = asyncio.Queue()
    subscription = bus.worker_subscription(heard.put_nowait)
    try:
        assert await subscription.subscribe(worker, timeout=10)
        dice = random.Random(3)
        for size in [0, 1, 15, 16, 17, 32, *(dice.randrange(4000) for _ in range(300))]:
            await intruder.publish(WORKER + worker.bytes, dice.randbytes(size))
        await intruder.publish(WORKER + worker.bytes, session.bytes)
        # Sealed as it should be, and yet no id of a session.
        await bus._send(WORKER + worker.bytes, b"seven")
        await bus.signal_worker(worker, session)
        assert await asyncio.wait_for(heard.get(), 10) == session
        assert heard.empty()
    finally:
        await subscription.close()


async def test_whatever_is_sent_to_an_edge_it_goes_on_to_hear_batches(edge, source, intruder, watcher, until):
    channel = EVENTS + source.session_id.bytes
    dice = random.Random(4)
    real = edge.bus._seal.put(channel, notice(1, "damaged"))
    for _ in range(300):
        damaged = bytearray(real if dice.random() < 0.5 else dice.randbytes(dice.randrange(300)))
        for _ in range(dice.randrange(1, 4) if damaged else 0):
            damaged[dice.randrange(len(damaged))] ^= dice.randrange(1, 256)
        await intruder.publish(channel, bytes(damaged))
    # Sealed by a process of another version, and not understood here.
    await edge.bus.publish(source.session_id, b"of another version")
    await source.write("one")
    assert await texts(watcher, until, "one") == [(1, "one")]


async def test_foreign_messages_are_told_once_in_a_while_and_counted_all(bus, intruder, log_output):
    key = uuid4()
    got = asyncio.Event()
    subscription = bus.event_subscriptions(lambda *_: got.set())
    try:
        assert await subscription.subscribe(key, timeout=10)
        before = refused()
        for _ in range(50):
            await intruder.publish(EVENTS + key.bytes, b"x" * 40)
        await bus.publish(key, b"real")
        await asyncio.wait_for(got.wait(), 10)
        assert refused() - before == 50
        assert [entry["why"] for entry in log_output if entry["event"] == "message_refused"] == ["FORGED"]
    finally:
        await subscription.close()


@pytest.fixture
def log_output():
    """What is logged."""
    import structlog

    with structlog.testing.capture_logs() as captured:
        yield captured


async def test_whatever_is_rung_the_bell_is_heard(settings, redis_server, intruder):
    url = settings.redis_url.get_secret_value()
    rung, jobs = asyncio.Event(), []
    answering = asyncio.create_task(answer_bell(url, rung.set, jobs.append))
    bell = Bell(url)
    await bell.start()
    try:
        dice = random.Random(5)
        for _ in range(20):
            await intruder.xadd("agentrpc:doorbell", {dice.choice(["data", "x"]): dice.randbytes(dice.randrange(80))})
        await intruder.publish("agentrpc:doorbell", b"x")
        async with asyncio.timeout(60):
            while not rung.is_set():
                await bell.ring()
                await asyncio.sleep(0.2)
        assert not jobs
    finally:
        await bell.close()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
