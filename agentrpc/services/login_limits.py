"""How often somebody may try to log in: a password is not guessed, and nobody is kept out by another's guessing.

Failures count, attempts do not: who has the right password gets back what the attempt took. With N attempts a minute
(`login_attempts_per_minute`):

- *An address and a name together* have N failures a minute, and 10 N a day; then they are refused. Neither another name
  at this address nor this name elsewhere is touched by that.
- *A name*, from wherever, and *an address*, whatever the names, have 4 N failures a minute. Beyond them those that have
  not failed together within the hour are still judged, once; others are not. Every answer but success is the same then
  and takes the same time, so that none tells which names there are, and names that there are not cost no hash.
- *An address from which the user has logged in* in the lifetime of a login stands apart from the second rule, as known
  devices do in OWASP's "Slow Down Online Guessing Attacks with Device Cookies".

So one address guesses at one name 10 N times and then more and more slowly, 10 N times a day; all addresses together
4 N times a minute, and once an hour for each further address, which somebody has to have. A lock of the account, the
usual remedy (OWASP Authentication Cheat Sheet, "Account Lockout"), would let anybody keep its owner out. IPv6 addresses
count by their /64. What no limit can tell apart are two people behind one address who use one name; the tokens that one
of them has go on meanwhile.

Counted in Redis for all edges, and in each process for itself while Redis is away.
"""

import hashlib
from dataclasses import dataclass

from agentrpc.bus.redis_bus import Bus
from agentrpc.errors import ResourceExhausted

__all__ = ["Attempt", "LoginLimits", "too_many"]

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


@dataclass(frozen=True, slots=True)
class _Bucket:
    key: str
    rate: float
    burst: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to log in that may be judged.

    Attributes:
        wary: So many have failed that a failure must tell nothing.
    """

    wary: bool
    taken: tuple[_Bucket, ...]


class LoginLimits:
    """The counts.

    Args:
        bus: Keeps them.
        per_minute: N.
    """

    def __init__(self, bus: Bus, per_minute: int) -> None:
        self._bus = bus
        self._per_minute = per_minute

    async def begin(self, name: str, address: str, *, known: bool, exists: bool) -> Attempt:
        """Count an attempt as a failure, until `succeeded` says otherwise.

        Args:
            name: The user name.
            address: Where the attempt comes from.
            known: Whether the user has logged in from there before.
            exists: Whether there is such a user.

        Raises:
            ResourceExhausted: RATE_LIMITED, it is not to be judged. `wary` answers are `too_many(None)`.
        """
        few, many = self._per_minute, 4 * self._per_minute
        taken: list[_Bucket] = []

        async def take(kind: str, rate: float, burst: float, *of: str) -> float:
            bucket = _Bucket(f"login:{kind}:{_hash(*of)}", rate, burst)
            wait = await self._bus.take_token(bucket.key, rate=bucket.rate, burst=bucket.burst)
            if not wait:
                taken.append(bucket)
            return wait

        wary = not known and bool(await take("address", many / _MINUTE, many, address))
        if wary and not exists:
            raise too_many(None)
        wait = await take("minute", few / _MINUTE, few, name, address)
        wait = wait or await take("day", 10 * few / _DAY, 10 * few, name, address)
        if not known and not wait:
            wary = bool(await take("name", many / _MINUTE, many, name)) or wary
            # Also of those that may fail again, so that it is known when they may not.
            failed = await take("hour", 1 / _HOUR, 1, name, address)
            wait = failed if wary else 0.0
        attempt = Attempt(wary, tuple(taken))
        if wait:
            await self.succeeded(attempt)
            raise too_many(None if wary else wait)
        return attempt

    async def succeeded(self, attempt: Attempt) -> None:
        """Give back what an attempt has taken: it was no failure."""
        for bucket in attempt.taken:
            await self._bus.give_token_back(bucket.key, rate=bucket.rate, burst=bucket.burst)


def too_many(wait: float | None) -> ResourceExhausted:
    """The answer to an attempt that was not judged, or, with None, was wrong or not judged: nobody learns which."""
    told = "in a minute" if wait is None else f"in {wait:.0f} s"
    return ResourceExhausted(
        f"too many attempts to log in have failed: try again {told}",
        reason="RATE_LIMITED",
        retry_after=_MINUTE if wait is None else wait,
    )


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
