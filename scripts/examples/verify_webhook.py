"""How a receiver of webhooks verifies a request (Standard Webhooks, version 1.0.0). Standard library alone."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

TOLERANCE = 300


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raise ValueError unless the request is the service's and no older than five minutes.

    Call it with the body as it came, before it is parsed; then answer 2xx soon, and drop what has a `webhook-id` that
    you have seen.

    Args:
        secret: As CreateWebhook returned it, `whsec_…`.
        headers: Of the request, by names in lower case, or in any mapping that does not care.
        body: The bytes of the request.
    """
    try:
        message_id, timestamp = headers["webhook-id"], int(headers["webhook-timestamp"])
        found = [base64.b64decode(s[3:]) for s in headers["webhook-signature"].split() if s.startswith("v1,")]
        key = base64.b64decode(secret.removeprefix("whsec_"))
    except (KeyError, binascii.Error) as error:
        raise ValueError("not a signed webhook") from error
    if abs(time.time() - timestamp) > TOLERANCE:
        raise ValueError("too old, or sent by a wrong clock: a replay?")
    wanted = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    if not any(hmac.compare_digest(wanted, signature) for signature in found):
        raise ValueError("the signature is wrong")
