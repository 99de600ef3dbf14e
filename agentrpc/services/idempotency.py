"""What makes two requests the same (AIP-155)."""

import hashlib
from dataclasses import dataclass
from uuid import UUID

from google.protobuf.message import Message

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.errors import InvalidArgument
from agentrpc.store.database import Transaction
from agentrpc.store.requests import remember_request

__all__ = ["RequestKey", "check_same", "known_request", "request_hash"]

# What says how to be answered, and not what to do.
_NOT_CONTENT = ("request_id", "after_sequence", "include_deltas", "event_types", "validate_only")


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request_id is remembered by.

    Attributes:
        principal: The caller.
        method: Whose ids it is one of.
        request_id: The caller's own; None when there is none.
        body: The hash of the request.
    """

    principal: Principal
    method: str
    request_id: UUID | None
    body: bytes


def request_hash(request: Message) -> bytes:
    """A hash over the known fields that say what to do."""
    content = type(request)()
    content.CopyFrom(request)
    content.DiscardUnknownFields()
    for name in _NOT_CONTENT:
        if name in content.DESCRIPTOR.fields_by_name:
            content.ClearField(name)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def check_same(body: bytes, stored: bytes, request_id: str) -> None:
    """Raise REQUEST_ID_REUSED unless the hashes are equal."""
    if body != stored:
        raise InvalidArgument(
            "this request_id was used with another request within 24 hours: use a new UUID for a new request",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request_id},
        )


async def known_request(tx: Transaction, key: RequestKey, resource_id: UUID) -> UUID | None:
    """What a request_id has made before; None when it is new: from now on it stands for `resource_id`.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED.
    """
    if key.request_id is None:
        return None
    resource, stored = await remember_request(
        tx,
        principal=key.principal.user_id,
        method=key.method,
        request_id=key.request_id,
        body_hash=key.body,
        resource_id=resource_id,
        now=clock.utcnow(),
    )
    check_same(key.body, stored, str(key.request_id))
    return resource if resource != resource_id else None
