"""The doorbell: whatever becomes of Redis or its client, bells are heard again."""

import asyncio

from taskiq_redis import RedisStreamBroker

from agentrpc.work.broker import Bell, answer_bell


async def test_what_no_client_should_raise_does_not_silence_the_doorbell(monkeypatch, settings):
    url = settings.redis_url.get_secret_value()
    failures = 0

    async def listen(broker, original=RedisStreamBroker.listen):
        nonlocal failures
        async for message in original(broker):
            yield message
            failures += 1
            # As a transport that closes in the middle of a command, or a pending entry that was trimmed.
            raise RuntimeError if failures % 2 else TypeError

    monkeypatch.setattr(RedisStreamBroker, "listen", listen)
    heard, jobs = asyncio.Event(), asyncio.Event()
    answering = asyncio.create_task(answer_bell(url, heard.set, lambda _: jobs.set()))
    bell = Bell(url)
    await bell.start()
    try:
        async with asyncio.timeout(20):
            for event, ring in [(heard, bell.ring), (jobs, lambda: bell.ring_job("x")), (heard, bell.ring)]:
                event.clear()
                await ring()
                await event.wait()
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await bell.close()
    assert failures >= 2
