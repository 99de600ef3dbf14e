"""Time, ids and randomness: the only place that asks the machine for them, so that tests can control them.

Ids are UUIDv7 (RFC 9562, section 5.7), made here because PostgreSQL has `uuidv7()` only from version 18 on. Within one
process they are strictly increasing: the 12 bits beside the millisecond count up (section 6.2, method 1).
"""

import os
import random
import threading
import time
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["boottime", "jitter", "monotonic", "utcnow", "uuid7"]

_lock = threading.Lock()
_last_stamp = 0

monotonic = time.monotonic


def boottime() -> float:
    """Seconds by a clock that is the same for all processes of this machine and goes on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utcnow() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def uuid7() -> UUID:
    """A new UUIDv7, greater than every one that this process made before."""
    global _last_stamp
    with _lock:
        stamp = (time.time_ns() // 1_000_000) << 12
        _last_stamp = stamp if stamp > _last_stamp else _last_stamp + 1
        stamp = _last_stamp
    milliseconds, counter = stamp >> 12, stamp & 0xFFF
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=(milliseconds << 80) | (0x7 << 76) | (counter << 64) | (0x2 << 62) | tail)


def follow(other: UUID) -> None:
    """Let every UUIDv7 that this process makes from now on be greater than one that it was shown."""
    global _last_stamp
    stamp = other.int >> 80 << 12 | other.int >> 64 & 0xFFF
    with _lock:
        _last_stamp = max(_last_stamp, stamp)


def jitter(seconds: float, spread: float = 0.5) -> float:
    """`seconds` more or less: uniform in `seconds * (1 ± spread)`, so that many clients do not come back at once."""
    return seconds * (1 + random.uniform(-spread, spread))  # noqa: S311 - not a secret
