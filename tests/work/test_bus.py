"""Subscriptions: whatever becomes of the connection, what is wanted is heard again."""

import asyncio
import contextlib
import random
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError


async def test_channels_are_wanted_and_given_up_while_the_connection_breaks_all_the_time(bus, settings):
    heard = set()
    subscriptions = bus.event_subscriptions(lambda key, _: heard.add(key))
    dice = random.Random(1)
    wanted = set()
    breaking = True

    async def breaks():
        async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
            while breaking:
                with contextlib.suppress(RedisError):
                    await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(dice.random() * 0.02)

    async def joins():
        while breaking:
            key = uuid4()
            wanted.add(key)
            await subscriptions.subscribe(key, timeout=0.005)
            if dice.random() < 0.7:
                wanted.discard(key)
                subscriptions.unsubscribe(key)

    tasks = [asyncio.create_task(breaks()), *(asyncio.create_task(joins()) for _ in range(20))]
    await asyncio.sleep(4)
    breaking = False
    await asyncio.gather(*tasks)
    try:
        async with asyncio.timeout(20):
            while not wanted <= heard:
                for key in wanted - heard:
                    await bus.publish(key, b"x")
                await asyncio.sleep(0.1)
    finally:
        await subscriptions.close()
