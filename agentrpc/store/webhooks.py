"""Webhooks, and what is on its way to them.

A delivery is worked on by whoever has its lease; a lease that has passed is anybody's. What comes of an attempt counts
only under the lease it was made with, a success always.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ForeignKey, Index, Integer, and_, any_, delete, func, or_, select, text, update
from sqlalchemy.orm import Mapped, aliased, mapped_column

from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base, Session, User
from agentrpc.store.users import lock_user

__all__ = [
    "WEBHOOK_ORDER",
    "DeliveryQuery",
    "DeliveryRow",
    "WebhookQuery",
    "WebhookRow",
    "claim_deliveries",
    "count_webhooks",
    "fail_deliveries",
    "find_deliveries",
    "find_webhooks",
    "forget_deliveries",
    "give_back",
    "lock_delivery",
    "lock_webhook",
    "matching_webhooks",
    "send_again",
    "webhooks_for",
]


class WebhookRow(Base):
    """An endpoint that is told what happens."""

    __tablename__ = "webhooks"
    __table_args__ = (
        Index("webhooks_by_owner", "owner", text("create_time DESC")),
        Index("webhooks_of_all", "id", postgresql_where=text("all_users AND disable_reason IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    session_labels: Mapped[dict[str, str]]
    all_users: Mapped[bool] = mapped_column(Boolean)
    revision: Mapped[int] = mapped_column(Integer)
    secret: Mapped[bytes]
    previous_secret: Mapped[bytes | None]
    previous_expire_time: Mapped[datetime | None]
    disable_reason: Mapped[str | None]
    consecutive_failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failing_since: Mapped[datetime | None]
    last_success_time: Mapped[datetime | None]
    hold_time: Mapped[datetime | None]  # until when the endpoint has asked to be left alone
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


class DeliveryRow(Base):
    """One event for one webhook."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("webhook_deliveries_by_webhook", "webhook_id", "id"),
        Index("webhook_deliveries_due", "webhook_id", "due_time", postgresql_where=text("state = 'PENDING'")),
        Index("webhook_deliveries_leased", "webhook_id", "lease_time", postgresql_where=text("lease IS NOT NULL")),
        Index("webhook_deliveries_ended", "end_time", postgresql_where=text("end_time IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_type: Mapped[str]
    subject: Mapped[str]
    payload: Mapped[str]
    state: Mapped[str]
    attempts: Mapped[bytes]  # a WebhookDelivery with the newest attempts
    attempt_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))  # since it was sent, or sent again
    due_time: Mapped[datetime]
    give_up_time: Mapped[datetime]
    lease: Mapped[UUID | None]
    lease_time: Mapped[datetime | None]
    create_time: Mapped[datetime]
    end_time: Mapped[datetime | None]


_WEBHOOK_COLUMNS: dict[str, Any] = {
    "create_time": WebhookRow.create_time,
    "update_time": WebhookRow.update_time,
    "display_name": WebhookRow.display_name,
    "id": WebhookRow.id,
}
WEBHOOK_ORDER = frozenset(_WEBHOOK_COLUMNS) - {"id"}
_DELIVERY_COLUMNS: dict[str, Any] = {"create_time": DeliveryRow.create_time, "id": DeliveryRow.id}


@dataclass(frozen=True, slots=True)
class WebhookQuery:
    """What to find: of all these owners at once (none: anyone's), disabled or not (None: both)."""

    owners: Sequence[UUID]
    disabled: bool | None
    order: Sequence[tuple[str, bool]]
    after: Sequence[Any] | None
    limit: int


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """What to find: of one webhook, in these states and of these types (none: all)."""

    webhook_id: UUID
    states: Sequence[str]
    event_types: Sequence[str]
    order: Sequence[tuple[str, bool]]
    after: Sequence[Any] | None
    limit: int


async def find_webhooks(tx: Transaction, query: WebhookQuery) -> list[WebhookRow]:
    """Webhooks. Index webhooks_by_owner for one owner's newest."""
    wanted = [WebhookRow.owner == owner for owner in query.owners]
    if query.disabled is not None:
        wanted.append(WebhookRow.disable_reason.is_not(None) if query.disabled else WebhookRow.disable_reason.is_(None))
    if query.after is not None:
        wanted.append(beyond(_WEBHOOK_COLUMNS, query.order, query.after))
    statement = select(WebhookRow).where(*wanted).order_by(*in_order(_WEBHOOK_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def find_deliveries(tx: Transaction, query: DeliveryQuery) -> list[DeliveryRow]:
    """Deliveries. Index webhook_deliveries_by_webhook."""
    wanted = [DeliveryRow.webhook_id == query.webhook_id]
    if query.states:
        wanted.append(DeliveryRow.state.in_(query.states))
    if query.event_types:
        wanted.append(DeliveryRow.event_type.in_(query.event_types))
    if query.after is not None:
        wanted.append(beyond(_DELIVERY_COLUMNS, query.order, query.after))
    statement = (
        select(DeliveryRow).where(*wanted).order_by(*in_order(_DELIVERY_COLUMNS, query.order)).limit(query.limit)
    )
    return list(await tx.scalars(statement))


async def count_webhooks(tx: Transaction, owner: UUID) -> int:
    """How many webhooks a user has. The user's row stays locked, so that two at once count each other."""
    await lock_user(tx, owner)
    return await tx.scalar(select(func.count()).select_from(WebhookRow).where(WebhookRow.owner == owner)) or 0


async def lock_webhook(tx: Transaction, webhook_id: UUID) -> WebhookRow | None:
    """A webhook that nobody else changes meanwhile. Lock it before its deliveries."""
    # Not so hard that deliveries cannot be added meanwhile, whose foreign key looks at it.
    return await tx.get(WebhookRow, webhook_id, with_for_update={"key_share": True}, populate_existing=True)


async def lock_delivery(tx: Transaction, delivery_id: UUID) -> DeliveryRow | None:
    """A delivery that nobody else changes meanwhile."""
    return await tx.get(DeliveryRow, delivery_id, with_for_update=True, populate_existing=True)


async def webhooks_for(tx: Transaction, user_id: UUID, webhook_ids: Sequence[UUID]) -> list[UUID]:
    """Of these webhooks those that are on and whose owner may see what is a user's. Primary key."""
    owner = aliased(User)
    statement = (
        select(WebhookRow.id)
        .join(owner, and_(owner.id == WebhookRow.owner, owner.disable_time.is_(None)))
        .where(
            WebhookRow.id.in_(webhook_ids),
            WebhookRow.disable_reason.is_(None),
            or_(WebhookRow.owner == user_id, owner.role == "ADMIN"),
        )
    )
    return list(await tx.scalars(statement))


async def matching_webhooks(tx: Transaction, topic: str, tenant: UUID, session_id: UUID | None) -> list[UUID]:
    """The webhooks that want to be told. Indexes webhooks_by_owner and webhooks_of_all."""
    owner = aliased(User)
    of_session = (
        select(Session.id)
        .where(Session.id == session_id, Session.labels.op("@>")(WebhookRow.session_labels))
        .correlate(WebhookRow)
        .exists()
    )
    statement = (
        select(WebhookRow.id)
        .join(owner, and_(owner.id == WebhookRow.owner, owner.disable_time.is_(None)))
        .where(
            or_(WebhookRow.owner == tenant, and_(WebhookRow.all_users, owner.role == "ADMIN")),
            WebhookRow.disable_reason.is_(None),
            or_(WebhookRow.event_types == text("'{}'::text[]"), any_(WebhookRow.event_types) == topic),
            or_(WebhookRow.session_labels == text("'{}'::jsonb"), of_session),
        )
    )
    return list(await tx.scalars(statement))


# One look at each webhook that is on, by webhook_deliveries_due, takes no more of it than it may have under way
# (webhook_deliveries_leased). Those that have failed lately come last, and one at a time: what hangs holds nobody up.
_CLAIM = """
WITH due AS (
    SELECT d.id
    FROM webhooks w
    CROSS JOIN LATERAL (
        SELECT id, due_time FROM webhook_deliveries
        WHERE webhook_id = w.id AND state = 'PENDING' AND due_time <= now()
          AND (lease IS NULL OR lease_time <= now())
        ORDER BY due_time
        LIMIT greatest(0, CASE WHEN w.consecutive_failures >= 3 THEN 1 ELSE $2::int END - (
            SELECT count(*) FROM webhook_deliveries l
            WHERE l.webhook_id = w.id AND l.lease IS NOT NULL AND l.lease_time > now()
        ))
        FOR UPDATE SKIP LOCKED
    ) d
    WHERE w.disable_reason IS NULL AND (w.hold_time IS NULL OR w.hold_time <= now())
    ORDER BY w.consecutive_failures >= 3, d.due_time
    LIMIT $1
)
UPDATE webhook_deliveries SET lease = gen_random_uuid(), lease_time = now() + $3
FROM due WHERE webhook_deliveries.id = due.id
RETURNING webhook_deliveries.id, webhook_deliveries.lease
"""


async def claim_deliveries(
    database: Database, limit: int, *, per_webhook: int, lease: timedelta
) -> list[tuple[UUID, UUID]]:
    """Take what is due: (delivery, lease).

    Args:
        database: The store.
        limit: At most so many.
        per_webhook: So many of one webhook may be under way, by whomever. Two that claim at once may overshoot it.
        lease: How long they are the caller's.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(_CLAIM, limit, per_webhook, lease)
    return [(row["id"], row["lease"]) for row in rows]


async def give_back(database: Database, lease: UUID) -> None:
    """Let others have at once what was not tried to its end."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE webhook_deliveries SET lease = NULL, lease_time = NULL WHERE lease = $1", lease
        )


async def fail_deliveries(tx: Transaction, webhook_id: UUID, now: datetime) -> None:
    """Give up all that waits for a webhook."""
    await tx.execute(
        update(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == "PENDING")
        .values(state="FAILED", end_time=now, lease=None, lease_time=None)
    )


async def send_again(
    tx: Transaction,
    webhook_id: UUID,
    delivery_id: UUID | None,
    since: datetime | None,
    *,
    now: datetime,
    until: datetime,
) -> int:
    """Begin again with one delivery, or with all that have failed; how many there were.

    What somebody is trying at this moment stays his.
    """
    wanted = [DeliveryRow.webhook_id == webhook_id]
    wanted.append(DeliveryRow.state == "FAILED" if delivery_id is None else DeliveryRow.id == delivery_id)
    if delivery_id is None and since is not None:
        wanted.append(DeliveryRow.create_time >= since)
    done = await tx.execute(
        update(DeliveryRow)
        .where(*wanted)
        .values(state="PENDING", tries=0, due_time=now, give_up_time=until, end_time=None)
        .returning(DeliveryRow.id)
    )
    return len(done.all())


async def forget_deliveries(database: Database, before: datetime, *, limit: int = 1000) -> int:
    """Delete deliveries that ended before a time; how many. Index webhook_deliveries_ended."""
    old = select(DeliveryRow.id).where(DeliveryRow.end_time < before).limit(limit).with_for_update(skip_locked=True)
    async with database.transaction() as tx:
        done = await tx.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(old)).returning(DeliveryRow.id))
        return len(done.all())
