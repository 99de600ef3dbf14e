"""Credentials, which of them a session may use at this moment, and the certificate authority of this deployment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, Integer, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from agentrpc import clock
from agentrpc.store.database import Database, Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base
from agentrpc.store.users import lock_user

__all__ = [
    "CREDENTIAL_ORDER",
    "AuthorityRow",
    "CredentialQuery",
    "CredentialRow",
    "UsableCredential",
    "count_credentials",
    "find_credentials",
    "keep_authority",
    "lock_credential",
    "note_use",
    "usable_credentials",
]


class CredentialRow(Base):
    """A credential."""

    __tablename__ = "credentials"
    __table_args__ = (Index("credentials_by_owner", "owner", text("create_time DESC")),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    shared: Mapped[bool] = mapped_column(Boolean)
    hosts: Mapped[list[str]]
    kind: Mapped[bytes]  # a Credential with its kind and nothing else, without the value
    secret: Mapped[bytes]  # the value, sealed
    revision: Mapped[int] = mapped_column(Integer)
    last_used_time: Mapped[datetime | None]
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


class AuthorityRow(Base):
    """The one certificate authority of a deployment."""

    __tablename__ = "certificate_authority"
    __table_args__ = (CheckConstraint("id = 1"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    certificate: Mapped[bytes]  # DER
    key: Mapped[bytes]  # PKCS #8, DER, sealed
    create_time: Mapped[datetime]


_COLUMNS: dict[str, Any] = {
    "create_time": CredentialRow.create_time,
    "update_time": CredentialRow.update_time,
    "display_name": CredentialRow.display_name,
    "id": CredentialRow.id,
}
CREDENTIAL_ORDER = frozenset(_COLUMNS) - {"id"}


@dataclass(frozen=True, slots=True)
class CredentialQuery:
    """What to find.

    Attributes:
        reader: Only what this user has, or others share; None: everything.
        owner: Only this user's.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    reader: UUID | None
    owner: UUID | None
    order: Sequence[tuple[str, bool]]
    after: Sequence[Any] | None
    limit: int


async def find_credentials(tx: Transaction, query: CredentialQuery) -> list[CredentialRow]:
    """Credentials. Index credentials_by_owner for one owner's newest."""
    wanted = []
    if query.reader is not None:
        wanted.append(or_(CredentialRow.owner == query.reader, CredentialRow.shared))
    if query.owner is not None:
        wanted.append(CredentialRow.owner == query.owner)
    if query.after is not None:
        wanted.append(beyond(_COLUMNS, query.order, query.after))
    statement = select(CredentialRow).where(*wanted).order_by(*in_order(_COLUMNS, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def lock_credential(tx: Transaction, credential_id: UUID) -> CredentialRow | None:
    """A credential that nobody else changes meanwhile."""
    return await tx.get(CredentialRow, credential_id, with_for_update=True, populate_existing=True)


async def count_credentials(tx: Transaction, owner: UUID) -> int:
    """How many a user has. The user's row stays locked, so that two at once know of each other."""
    await lock_user(tx, owner)
    count = await tx.scalar(select(func.count()).select_from(CredentialRow).where(CredentialRow.owner == owner))
    return count or 0


# ---- What sessions use ----


@dataclass(frozen=True, slots=True)
class UsableCredential:
    """A credential that a session may use at this moment.

    Attributes:
        id: Its id.
        hosts: Where.
        kind: As in CredentialRow.
        secret: The value, sealed.
        unnoted: Whether its last use was noted more than a minute ago, or never.
    """

    id: UUID
    hosts: list[str]
    kind: bytes
    secret: bytes
    unnoted: bool


# By primary keys only.
_USABLE = """
SELECT c.id, c.hosts, c.kind, c.secret,
    coalesce(c.last_used_time < clock_timestamp() - interval '1 minute', TRUE) AS unnoted
FROM sessions s
JOIN session_heads h ON h.session_id = s.id AND h.epoch = $3
JOIN users u ON u.id = s.owner AND u.disable_time IS NULL
JOIN credentials c ON c.id = ANY($2) AND (c.shared OR c.owner = u.id OR u.role = 'ADMIN')
WHERE s.id = $1
"""
_NOTE_USE = """
UPDATE credentials SET last_used_time = clock_timestamp()
WHERE id = $1 AND coalesce(last_used_time < clock_timestamp() - interval '1 minute', TRUE)
"""


async def usable_credentials(
    database: Database, session_id: UUID, epoch: int, wanted: Sequence[UUID]
) -> dict[UUID, UsableCredential]:
    """Those among `wanted` that the owner of a session may use at this moment; none under another epoch."""
    async with database.connection() as connection:
        rows = await connection.fetch(_USABLE, session_id, list(wanted), epoch)
    return {row["id"]: UsableCredential(**dict(row)) for row in rows}


async def note_use(database: Database, credential_id: UUID) -> None:
    """A credential is being used; written at most once a minute."""
    async with database.connection() as connection:
        await connection.execute(_NOTE_USE, credential_id)


# ---- The certificate authority ----


async def keep_authority(tx: Transaction, certificate: bytes, key: bytes) -> AuthorityRow:
    """Store a new authority unless there is one; the one that is stored. Of several at once one wins."""
    values = {"id": 1, "certificate": certificate, "key": key, "create_time": clock.utcnow()}
    await tx.execute(insert(AuthorityRow).values(values).on_conflict_do_nothing())
    return await tx.get_one(AuthorityRow, 1)
