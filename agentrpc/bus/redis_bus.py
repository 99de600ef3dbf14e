"""The connection to Redis. Nothing here raises because Redis is away: the tail is a hint, Postgres the truth.

Redis is not believed either: what is published carries a MAC over its channel and its payload, by a key that only
processes of the service have. So nobody who reaches Redis can show watchers an event that has not happened, nor put one
in the place of a real one. Of what a process has published it can send a copy again, to the same channel: numbered
events that are known are dropped, a piece of a message names its place in it, and a signal says only "look".
"""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from agentrpc.clock import jitter
from agentrpc.ending import end_tasks
from agentrpc.telemetry import BUS_REFUSED

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

__all__ = ["Bus", "Subscriptions"]

log = structlog.get_logger()

_EVENTS = b"agentrpc:events:"
_WORKER = b"agentrpc:worker:"
# RuntimeError: what uvloop says when the connection was closed in the moment of the call.
_TROUBLE = (RedisError, OSError, TimeoutError, RuntimeError)
# For connections of Pub/Sub: one that the client mended by itself would not know what was just being told to it.
_NEVER = Retry(NoBackoff(), 0, supported_errors=())
_PAUSE = 1.0
_LOG_PAUSE = 10.0
_REFUSED_PAUSE = 60.0
_MAC = 16
# Buckets of a process that has lost Redis; the one that was used longest ago goes first.
_BUCKETS = 100_000

# Takes tokens if there is one, or gives some back. Returns the seconds until the next when there is none.
_TAKE = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1000000
local rate, burst, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local bucket = redis.call('HMGET', KEYS[1], 't', 'n')
local tokens = tonumber(bucket[2]) or burst
tokens = math.min(burst, tokens + (now - (tonumber(bucket[1]) or now)) * rate)
local wait = 0
if count < 0 then tokens = math.min(burst, tokens - count)
elseif tokens >= 1 then tokens = tokens - 1
else wait = (1 - tokens) / rate end
redis.call('HSET', KEYS[1], 't', tostring(now), 'n', tostring(tokens))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return tostring(wait)
"""


class _Seal:
    """Puts a MAC before payloads and checks it: keyed BLAKE2b (RFC 7693), by a key made by HKDF (RFC 5869)."""

    def __init__(self, signing_key: str) -> None:
        key = HKDF(SHA256(), 32, salt=None, info=b"agentrpc: messages through Redis").derive(signing_key.encode())
        self._keyed = hashlib.blake2b(key=key, digest_size=_MAC)

    def put(self, channel: bytes, payload: bytes) -> bytes:
        return self._of(channel, payload) + payload

    def open(self, channel: bytes, message: bytes) -> bytes | None:
        """The payload; None: it was not made by this service for this channel."""
        payload = message[_MAC:]
        return payload if hmac.compare_digest(message[:_MAC], self._of(channel, payload)) else None

    def _of(self, channel: bytes, payload: bytes) -> bytes:
        # All channels are of one length: where one ends and the payload begins is certain.
        mac = self._keyed.copy()
        mac.update(channel)
        mac.update(payload)
        return mac.digest()


class Bus:
    """Publishes batches and signals, and keeps token buckets.

    Args:
        url: `redis://host:port/db`.
        signing_key: The service's.
    """

    def __init__(self, url: str, signing_key: str) -> None:
        self._url = url
        self._seal = _Seal(signing_key)
        self._buckets = _Buckets()
        self._redis = self._connect()
        self._quiet_until = 0.0
        self._take = self._redis.register_script(_TAKE)

    def _connect(self, retry: Retry | None = None) -> "Redis":
        # Short: a writer waits for a Redis that hangs, and its watchers with it.
        return Redis.from_url(
            self._url, socket_timeout=0.5, socket_connect_timeout=0.5, health_check_interval=0, retry=retry
        )

    async def close(self) -> None:
        """Give up the connection."""
        with suppress(*_TROUBLE):
            await self._redis.aclose()

    async def ping(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(await self._redis.ping())
        except _TROUBLE:
            return False

    async def publish(self, session_id: UUID, frame: bytes) -> bool:
        """Publish an encoded batch. False: Redis is away, watchers learn of it from Postgres."""
        return await self._send(_EVENTS + session_id.bytes, frame)

    async def signal_worker(self, worker_id: UUID, session_id: UUID) -> bool:
        """Tell a worker to look at a session's head now, rather than at its next poll."""
        return await self._send(_WORKER + worker_id.bytes, session_id.bytes)

    async def _send(self, channel: bytes, payload: bytes) -> bool:
        # After a failure nothing is tried for a second: a writer must not wait for a dead Redis with every batch.
        if time.monotonic() < self._quiet_until:
            return False
        try:
            await self._redis.publish(channel, self._seal.put(channel, payload))
        except _TROUBLE as error:
            self._quiet_until = time.monotonic() + _PAUSE
            log.warning("redis_unreachable", doing="publish", error=type(error).__name__)
            return False
        return True

    async def take_token(self, key: str, *, rate: float, burst: float) -> float:
        """Take a token from a bucket that all processes share; without Redis, from this process's own.

        Args:
            key: Names the bucket.
            rate: Tokens that are added each second.
            burst: How many it holds.

        Returns:
            0 when there was one; else the seconds until the next.
        """
        return await self._count(key, rate, burst, 1)

    async def give_token_back(self, key: str, *, rate: float, burst: float) -> None:
        """The reverse, with the same arguments."""
        await self._count(key, rate, burst, -1)

    async def _count(self, key: str, rate: float, burst: float, count: int) -> float:
        if time.monotonic() >= self._quiet_until:
            try:
                return float(await self._take(keys=[f"agentrpc:bucket:{key}"], args=[rate, burst, count]))
            except _TROUBLE:
                self._quiet_until = time.monotonic() + _PAUSE
        return self._buckets.take(key, rate, burst, count)

    def event_subscriptions(self, on_frame: Callable[[UUID, bytes], None]) -> "Subscriptions":
        """Subscriptions to sessions' batches."""
        return Subscriptions(self._connect(_NEVER), self._seal, _EVENTS, on_frame)

    def worker_subscription(self, on_signal: Callable[[UUID], None]) -> "Subscriptions":
        """A worker's subscription to its signals: call `subscribe(worker_id)` on it."""
        return Subscriptions(
            self._connect(_NEVER), self._seal, _WORKER, lambda _, payload: on_signal(UUID(bytes=payload))
        )


class _Buckets:
    """What `_TAKE` does, in this process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, rate: float, burst: float, count: int) -> float:
        now = time.monotonic()
        since, tokens = self._kept.pop(key, (now, burst))
        tokens = min(burst, tokens + (now - since) * rate)
        wait = 0.0
        if count < 0:
            tokens = min(burst, tokens - count)
        elif tokens >= 1:
            tokens -= 1
        else:
            wait = (1 - tokens) / rate
        self._kept[key] = (now, tokens)
        if len(self._kept) > _BUCKETS:
            self._kept.popitem(last=False)
        return wait


class Subscriptions:
    """One Pub/Sub connection that subscribes again for ever when it is lost.

    A message that is not the service's, or that nobody here understands, is counted and dropped.

    Args:
        redis: A client of its own.
        seal: Tells which messages are the service's.
        prefix: Of the channels.
        on_message: Gets the id behind the prefix and the payload; must not block.
    """

    def __init__(self, redis: "Redis", seal: _Seal, prefix: bytes, on_message: Callable[[UUID, bytes], None]) -> None:
        self._redis = redis
        self._seal = seal
        self._prefix = prefix
        self._on_message = on_message
        self._wanted: set[UUID] = set()
        self._confirmed: dict[UUID, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._quiet_until = 0.0
        self._refused_until = 0.0

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            await end_tasks([self._task])
        with suppress(*_TROUBLE):
            await self._redis.aclose()

    async def subscribe(self, key: UUID, *, timeout: float = 1.0) -> bool:
        """Subscribe, and wait for the confirmation. False: not confirmed in time; it will be, later."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="subscriptions")
        confirmed = self._confirmed.setdefault(key, asyncio.Event())
        self._wanted.add(key)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                await confirmed.wait()
        except TimeoutError:
            return False
        return True

    def unsubscribe(self, key: UUID) -> None:
        """The reverse."""
        self._wanted.discard(key)
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.set()
            try:
                await self._listen()
            except _TROUBLE as error:
                if time.monotonic() > self._quiet_until:
                    self._quiet_until = time.monotonic() + _LOG_PAUSE
                    log.warning("redis_unreachable", doing="subscribe", error=type(error).__name__)
            finally:
                for confirmed in self._confirmed.values():
                    confirmed.clear()
            await asyncio.sleep(jitter(0.3))

    async def _listen(self) -> None:
        """Hear what is wanted, until the connection is lost.

        Nobody else touches the connection, and nothing is written while something is read: the client is not made for
        two tasks.
        """
        told: set[UUID] = set()
        pubsub = self._redis.pubsub()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                wanted = set(self._wanted)
                for key in self._confirmed.keys() - wanted:
                    del self._confirmed[key]
                if new := wanted - told:
                    await pubsub.subscribe(*(self._prefix + key.bytes for key in new))
                if gone := told - wanted:
                    await pubsub.unsubscribe(*(self._prefix + key.bytes for key in gone))
                told = wanted
                if told:
                    await self._read(pubsub)
        finally:
            with suppress(*_TROUBLE):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _read(self, pubsub: "PubSub") -> None:
        """Hand on what comes, until something else is wanted."""
        reading = asyncio.create_task(self._hand_on(pubsub))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            # What has been read of a message stays with the client, for the next time.
            await end_tasks([reading, changed])

    async def _hand_on(self, pubsub: "PubSub") -> None:
        cut = len(self._prefix)
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            kind, channel = message["type"], message["channel"]
            if kind == "message":
                self._open(channel, message["data"])
            elif kind == "subscribe" and (key := UUID(bytes=channel[cut:])) in self._confirmed:
                self._confirmed[key].set()

    def _open(self, channel: bytes, message: bytes) -> None:
        payload = self._seal.open(channel, message)
        if payload is None:
            self._refuse(channel, "FORGED", len(message))
            return
        try:
            self._on_message(UUID(bytes=channel[len(self._prefix) :]), payload)
        except Exception as error:  # noqa: BLE001 - no message makes this process deaf
            # Of another version of the service, as far as anybody can tell.
            self._refuse(channel, "NOT_UNDERSTOOD", len(message), error)

    def _refuse(self, channel: bytes, why: str, size: int, error: Exception | None = None) -> None:
        BUS_REFUSED.labels(why).inc()
        if time.monotonic() >= self._refused_until:
            self._refused_until = time.monotonic() + _REFUSED_PAUSE
            log.warning("message_refused", why=why, channel=channel.hex(), size=size, exc_info=error)
