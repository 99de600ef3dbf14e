"""Pages of lists (AIP-158) and their order (AIP-132): a token is the key of the last row, signed with the query."""

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from agentrpc.errors import InvalidArgument

__all__ = ["Order", "Pager", "fitting", "order_key", "order_values", "page_size", "parse_order"]

Order: TypeAlias = Sequence[tuple[str, bool]]

_M = TypeVar("_M", bound=Message)

_MAC = 16
_PAGE_BYTES = 1024 * 1024


def page_size(wanted: int, *, default: int = 50, limit: int = 500) -> int:
    """The size of a page: 0 is the default, more than the limit is the limit. Raises FIELD_INVALID below 0."""
    if wanted < 0:
        raise InvalidArgument.field("page_size", "must not be negative; 0 takes the default")
    return min(wanted or default, limit)


def fitting(messages: Sequence[_M]) -> list[_M]:
    """The first of these messages that fit into a page, which ends at 1 MiB; at least one."""
    left = _PAGE_BYTES
    page: list[_M] = []
    for message in messages:
        left -= message.ByteSize()
        if page and left < 0:
            break
        page.append(message)
    return page


def parse_order(text: str, known: Collection[str], default: str = "create_time desc") -> Order:
    """An order_by: fields, each with whether it descends; the id decides among equals.

    Args:
        text: As the caller wrote it; empty: the default.
        known: The fields that can be ordered by.
        default: Such as `create_time desc`.

    Raises:
        InvalidArgument: FIELD_INVALID.
    """
    order: list[tuple[str, bool]] = []
    for part in (text if text.strip() else default).split(","):
        name, _, direction = part.strip().partition(" ")
        if name not in known or direction.strip() not in {"", "asc", "desc"} or name in dict(order):
            raise InvalidArgument.field(
                "order_by", f"{part.strip()[:80]!r}: use {', '.join(sorted(known))}, each with ` desc`"
            )
        order.append((name, direction.strip() == "desc"))
    order.append(("id", order[0][1]))
    return order


def order_key(row: object, order: Order) -> list[str]:
    """The place of a row in an order, for a page token."""
    values = [getattr(row, name) for name, _ in order]
    return [value.isoformat() if isinstance(value, datetime) else str(value) for value in values]


def order_values(order: Order, key: Sequence[str]) -> list[object]:
    """The values in a key that `order_key` has made."""
    return [_value(name, text) for (name, _), text in zip(order, key, strict=True)]


def _value(name: str, text: str) -> object:
    if name == "id":
        return UUID(text)
    if name.endswith("_count"):
        return int(text)
    return datetime.fromisoformat(text) if name.endswith("_time") else text


class Pager:
    """Makes and reads tokens.

    Args:
        key: The signing key of the service.
    """

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(b"page token\0" + key.encode()).digest()

    def issue(self, request: Message, user_id: UUID, keyset: list[Any]) -> str:
        """A token for what follows `keyset` in this query of this caller."""
        body = json.dumps(keyset).encode()
        return base64.urlsafe_b64encode(self._mac(request, user_id, body) + body).decode().rstrip("=")

    def read(self, request: Message, user_id: UUID) -> list[Any] | None:
        """The keyset in the request's page_token; None for the first page.

        Raises:
            InvalidArgument: PAGE_TOKEN_INVALID.
        """
        token: str = request.page_token  # type: ignore[attr-defined]  # every list request has one
        if not token:
            return None
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            if hmac.compare_digest(data[:_MAC], self._mac(request, user_id, data[_MAC:])):
                keyset = json.loads(data[_MAC:])
                if isinstance(keyset, list):
                    return keyset
        except ValueError:
            pass
        raise InvalidArgument(
            "the page token is damaged or belongs to another query: leave it empty to begin anew, "
            "and change no other field between pages",
            reason="PAGE_TOKEN_INVALID",
        )

    def _mac(self, request: Message, user_id: UUID, body: bytes) -> bytes:
        query = type(request)()
        query.CopyFrom(request)
        for name in ("page_token", "page_size"):
            query.ClearField(name)
        text = b"\0".join(
            [type(request).__name__.encode(), user_id.bytes, query.SerializeToString(deterministic=True), body]
        )
        return hmac.digest(self._key, text, "sha256")[:_MAC]
