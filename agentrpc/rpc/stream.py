"""What all streams share: ticks, stalls, heartbeats, and the reasons to end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.rpc.hub import TICK, Hub
from agentrpc.services.accounts import Accounts
from agentrpc.settings import Settings
from agentrpc.v1 import stream_pb2

__all__ = ["Ended", "Send", "StalledError", "Stream"]

Send = Callable[[bytes], Awaitable[None]]

_RECHECK = 60.0
_STORE_PATIENCE = 10.0
# So much longer a write that has stalled may still go through, so that the stream ends with `end`. Then it is cut.
_LAST_CHANCE = 5.0

_End = stream_pb2.StreamEnd


class StalledError(Exception):
    """Nobody read the stream for too long; it is cut, and the client resumes from what it has."""


@dataclass(slots=True)
class Ended(Exception):
    """The stream ends with this reason."""

    reason: int
    retry_delay: float = 0.0


class Stream:
    """One stream: the task of its RPC, looked at once a second by the hub."""

    def __init__(self, hub: Hub, settings: Settings, accounts: Accounts, principal: Principal, send: Send) -> None:
        now = time.monotonic()
        self._hub = hub
        self._settings = settings
        self._accounts = accounts
        self._principal = principal
        self._send = send
        self._task = asyncio.current_task()
        self._writing_since = 0.0
        self._slow = False
        self._cut = False
        # A tick early: something is to arrive at least as often as promised.
        self._silence = max(settings.heartbeat_interval - TICK, settings.heartbeat_interval / 2)
        self._heartbeat_at = now + self._silence
        self._rotate_at = now + clock.jitter(settings.stream_max_age, 0.1)
        self._expire_at = now + (principal.expire_time - clock.utcnow()).total_seconds()
        self._recheck_at = now + clock.jitter(_RECHECK, 0.3)
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False

    def tick(self, now: float) -> None:
        """Once a second: note a stalled write, in the end cut it, and wake for what is due."""
        if self._writing_since:
            late = now - self._writing_since - self._settings.stream_stall_timeout
            self._slow = self._slow or late > 0
            if late > _LAST_CHANCE and self._task is not None:
                self._cut = True
                self._task.cancel()
        elif now >= min(self._heartbeat_at, self._rotate_at, self._expire_at, self._recheck_at) or self._hub.store_away:
            self.wake()

    def wake(self) -> None:
        """Look now for something to send, or a reason to end."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def write(self, data: bytes) -> None:
        """Send a response. Raises StalledError when it is not read for too long."""
        self._writing_since = time.monotonic()
        try:
            await self._send(data)
        except asyncio.CancelledError:
            if self._cut:
                raise StalledError from None
            raise
        finally:
            self._writing_since = 0.0
        self._heartbeat_at = time.monotonic() + self._silence

    async def check(self) -> bool:
        """Raise Ended if the stream has to end. True: a heartbeat is due."""
        now = time.monotonic()
        if self._hub.draining:
            raise Ended(_End.REASON_DRAINING, clock.jitter(1.0))
        if self._slow:
            raise Ended(_End.REASON_SLOW_CONSUMER)
        if now >= self._rotate_at:
            raise Ended(_End.REASON_ROTATED)
        if now >= self._expire_at:
            raise Ended(_End.REASON_CREDENTIALS_EXPIRED)
        if self._hub.store_away > _STORE_PATIENCE:
            raise Ended(_End.REASON_UNAVAILABLE, clock.jitter(2.0))
        if now >= self._recheck_at:
            self._recheck_at = now + _RECHECK
            if not await self._accounts.still_allowed(self._principal):
                raise Ended(_End.REASON_ACCESS_REVOKED)
        return now >= self._heartbeat_at

    async def rest(self) -> None:
        """Until something wakes it; at once, if that was since `_woken` was reset, which goes before any look."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def opened(self, last_sequence: int) -> stream_pb2.StreamOpened:
        """For the first response."""
        message = stream_pb2.StreamOpened(last_sequence=last_sequence)
        message.heartbeat_interval.FromMilliseconds(int(self._settings.heartbeat_interval * 1000))
        return message

    @staticmethod
    def heartbeat() -> stream_pb2.Heartbeat:
        """For a response that says only that the stream is alive."""
        message = stream_pb2.Heartbeat()
        message.time.FromDatetime(clock.utcnow())
        return message

    @staticmethod
    def end(ended: Ended) -> stream_pb2.StreamEnd:
        """For the last response."""
        message = stream_pb2.StreamEnd(reason=ended.reason)  # type: ignore[arg-type]  # a value of the enum
        if ended.retry_delay:
            message.retry_delay.FromMilliseconds(int(ended.retry_delay * 1000))
        return message
