"""request_id: the same id with the same request gives the same resource (AIP-155)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from agentrpc.store.tables import Request

__all__ = ["find_request", "remember_request"]


async def find_request(
    tx: AsyncSession, *, principal: UUID, method: str, request_id: UUID
) -> tuple[UUID, bytes] | None:
    """The resource and the hash of the body for which a request_id was used within 24 hours."""
    row = (
        await tx.execute(
            select(Request.resource_id, Request.body_hash).where(
                Request.principal == principal,
                Request.method == method,
                Request.request_id == request_id,
                Request.create_time >= text("now() - interval '24 hours'"),
            )
        )
    ).one_or_none()
    return None if row is None else (row[0], row[1])


async def remember_request(
    tx: AsyncSession,
    *,
    principal: UUID,
    method: str,
    request_id: UUID,
    body_hash: bytes,
    resource_id: UUID,
    now: datetime,
) -> tuple[UUID, bytes]:
    """Note that a request_id makes a resource; if it was used within 24 hours, say for what (AIP-155).

    Of many at once with one id the first wins: the others wait for its transaction at the unique key.

    Returns:
        The resource and the hash of the body that the id stands for: the caller's own when it is new.
    """
    day_ago = text("now() - interval '24 hours'")
    values = {
        "principal": principal,
        "method": method,
        "request_id": request_id,
        "body_hash": body_hash,
        "resource_id": resource_id,
        "create_time": now,
    }
    statement = insert(Request).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["principal", "method", "request_id"],
        set_={key: statement.excluded[key] for key in ("body_hash", "resource_id", "create_time")},
        where=Request.create_time < day_ago,
    )
    await tx.execute(statement)
    row = (
        await tx.execute(
            select(Request.resource_id, Request.body_hash).where(
                Request.principal == principal, Request.method == method, Request.request_id == request_id
            )
        )
    ).one()
    return row[0], row[1]
