"""How webhooks are signed and tried again.

The signature is that of the Standard Webhooks specification, version 1.0.0
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): HMAC-SHA256 over
`{id}.{timestamp}.{body}` with a key of 24 to 64 bytes, which is shown as `whsec_` and base64.
"""

import base64
import hmac
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["EVENT_TYPES", "KEY_BYTES", "TEST", "longest_wait", "retry_after", "secret_text", "signatures"]

EVENT_TYPES = (
    "run_started",
    "run_state_changed",
    "run_ended",
    "session_state_changed",
    "session_pause_changed",
    "approval_requested",
    "approval_resolved",
    "task_execution_ended",
    "schedule_paused",
)
TEST = "test"
KEY_BYTES = 32

_LONGEST_WAIT = 4 * 3600.0


def secret_text(key: bytes) -> str:
    """A key as callers get it."""
    return "whsec_" + base64.b64encode(key).decode()


def signatures(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key, so that a receiver may know either."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return " ".join("v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys)


def longest_wait(failures: int, delay: float) -> float:
    """Seconds to wait at most after so many failures in a row: twice as long each time, up to four hours.

    The wait itself is anything between 0 and this ("full jitter"), so that what failed together does not come back
    together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    return float(min(_LONGEST_WAIT, delay * 2 ** min(failures - 1, 30)))


def retry_after(value: str, now: datetime) -> timedelta | None:
    """What the header Retry-After asks for (RFC 9110, section 10.2.3), a day at most; None: it makes no sense."""
    text = value.strip()
    if text.isdecimal() and len(text) < 10:
        wait = timedelta(seconds=int(text))
    else:
        try:
            wait = parsedate_to_datetime(text).replace(tzinfo=UTC) - now
        except (ValueError, OverflowError):
            return None
    return max(timedelta(0), min(wait, timedelta(days=1)))
