"""What makes two requests the same (AIP-155)."""

import hashlib

from google.protobuf.message import Message

from agentrpc.errors import InvalidArgument

__all__ = ["check_same", "request_hash"]

# What says how to be answered, and not what to do.
_NOT_CONTENT = ("request_id", "after_sequence", "include_deltas", "event_types", "validate_only")


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
