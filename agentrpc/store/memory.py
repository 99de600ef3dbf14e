"""Memory stores, their entries, and the versions of these.

Whatever writes to a store locks its row first: so its counts and limits hold, and versions come one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, defer, mapped_column

from agentrpc.store.database import Transaction
from agentrpc.store.keyset import beyond, in_order
from agentrpc.store.tables import Base, User

__all__ = [
    "ENTRY_ORDER",
    "STORE_ORDER",
    "EntryQuery",
    "MemoryEntry",
    "MemoryStore",
    "MemoryVersion",
    "StoreQuery",
    "count_stores",
    "find_entries",
    "find_entry",
    "find_stores",
    "find_version",
    "find_versions",
    "load_store",
    "prune_versions",
    "search_entries",
    "search_vector",
    "unknown_users",
]

_SIMPLE: ColumnElement[Any] = literal_column("'simple'::regconfig")
# Ranks below 1, and lower for long texts (PostgreSQL, section 12.3.3: 1 and 32).
_BY_LENGTH = 33


class MemoryStore(Base):
    """A store. `version_floor` is the greatest version of what was deleted in it: no number is used again for a key."""

    __tablename__ = "memory_stores"
    __table_args__ = (Index("memory_stores_by_owner", "owner", "create_time", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    shared: Mapped[bool]
    readers: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid()))
    max_entries: Mapped[int] = mapped_column(Integer)
    max_bytes: Mapped[int] = mapped_column(BigInteger)
    max_versions: Mapped[int] = mapped_column(Integer)
    entry_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    byte_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    version_floor: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]


class MemoryEntry(Base):
    """An entry as it is now: what is read and searched.

    `search` has no index of its own: a search looks through one store, whose size is limited, for fragments too.
    """

    __tablename__ = "memory_entries"
    __table_args__ = (UniqueConstraint("store_id", "key", name="memory_entries_by_key"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    store_id: Mapped[UUID] = mapped_column(ForeignKey("memory_stores.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(Text(collation="C"))
    content: Mapped[str]
    labels: Mapped[dict[str, str]]
    byte_count: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(BigInteger)
    author: Mapped[UUID]
    session_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]
    search: Mapped[Any] = mapped_column(TSVECTOR, deferred=True)


class MemoryVersion(Base):
    """A version of an entry that is kept, the newest one too."""

    __tablename__ = "memory_versions"
    __table_args__ = (UniqueConstraint("entry_id", "version", name="memory_versions_by_number"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    entry_id: Mapped[UUID] = mapped_column(ForeignKey("memory_entries.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[str]
    labels: Mapped[dict[str, str]]
    byte_count: Mapped[int] = mapped_column(Integer)
    author: Mapped[UUID]
    session_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    update_time: Mapped[datetime]


_STORES: dict[str, Any] = {
    "create_time": MemoryStore.create_time,
    "update_time": MemoryStore.update_time,
    "display_name": MemoryStore.display_name,
    "id": MemoryStore.id,
}
STORE_ORDER = frozenset(_STORES) - {"id"}
_ENTRIES: dict[str, Any] = {
    "key": MemoryEntry.key,
    "create_time": MemoryEntry.create_time,
    "update_time": MemoryEntry.update_time,
    "id": MemoryEntry.id,
}
ENTRY_ORDER = frozenset(_ENTRIES) - {"id"}


@dataclass(frozen=True, slots=True)
class StoreQuery:
    """Which stores to find.

    Attributes:
        reader: Only what this user may read; None: everyone's.
        owner: Only this user's.
        order: (column, descending), the last of which is `id`.
        after: The values of the order's columns in the last row of the page before.
        limit: At most so many.
    """

    reader: UUID | None
    owner: UUID | None
    order: Sequence[tuple[str, bool]]
    after: Sequence[Any] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class EntryQuery:
    """Which entries of a store to find; `order`, `after` and `limit` as for stores."""

    store_id: UUID
    order: Sequence[tuple[str, bool]]
    key_prefix: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[Any] | None = None
    limit: int = 50


async def count_stores(tx: Transaction, owner: UUID) -> int:
    """How many stores a user owns."""
    return await tx.scalar(select(func.count()).select_from(MemoryStore).where(MemoryStore.owner == owner)) or 0


async def unknown_users(tx: Transaction, ids: Sequence[UUID]) -> set[UUID]:
    """Those of the ids that are no user's."""
    return set(ids) - set(await tx.scalars(select(User.id).where(User.id.in_(ids)))) if ids else set()


async def load_store(tx: Transaction, store_id: UUID, *, lock: bool = False) -> MemoryStore | None:
    """A store; with `lock` nobody else writes to it before the transaction ends."""
    statement = select(MemoryStore).where(MemoryStore.id == store_id)
    store: MemoryStore | None = await tx.scalar(statement.with_for_update() if lock else statement)
    return store


async def find_stores(tx: Transaction, query: StoreQuery) -> list[MemoryStore]:
    """A page of stores."""
    wanted: list[ColumnElement[bool]] = [true()]
    if query.reader is not None:
        mine = MemoryStore.owner == query.reader
        wanted.append(or_(mine, MemoryStore.shared, MemoryStore.readers.any_() == query.reader))
    if query.owner is not None:
        wanted.append(MemoryStore.owner == query.owner)
    if query.after is not None:
        wanted.append(beyond(_STORES, query.order, query.after))
    statement = select(MemoryStore).where(*wanted).order_by(*in_order(_STORES, query.order)).limit(query.limit)
    return list(await tx.scalars(statement))


async def find_entry(tx: Transaction, store_id: UUID, key: str) -> MemoryEntry | None:
    """An entry. Index memory_entries_by_key."""
    statement = select(MemoryEntry).where(MemoryEntry.store_id == store_id, MemoryEntry.key == key)
    entry: MemoryEntry | None = await tx.scalar(statement)
    return entry


async def find_entries(tx: Transaction, query: EntryQuery) -> list[MemoryEntry]:
    """A page of entries; their contents are not loaded."""
    wanted = [MemoryEntry.store_id == query.store_id]
    if query.key_prefix:
        wanted.append(_begins(query.key_prefix))
    if query.labels:
        wanted.append(MemoryEntry.labels.contains(dict(query.labels)))
    if query.after is not None:
        wanted.append(beyond(_ENTRIES, query.order, query.after))
    statement = (
        select(MemoryEntry)
        .options(defer(MemoryEntry.content, raiseload=True))
        .where(*wanted)
        .order_by(*in_order(_ENTRIES, query.order))
        .limit(query.limit)
    )
    return list(await tx.scalars(statement))


async def search_entries(
    tx: Transaction, store_id: UUID, words: str, *, key_prefix: str, limit: int
) -> list[tuple[MemoryEntry, float]]:
    """Entries that have all words, whole or as fragments, with their ranks; the best first.

    Whole words rank by PostgreSQL's full-text search (`simple`: no language is assumed), below 1; what is in the key
    comes before what is in the content alone.
    """
    asked = func.websearch_to_tsquery(_SIMPLE, words)
    patterns = [f"%{_escape(word)}%" for word in words.split()]
    in_key = and_(*(MemoryEntry.key.ilike(pattern) for pattern in patterns))
    in_all = and_(*((MemoryEntry.key + " " + MemoryEntry.content).ilike(pattern) for pattern in patterns))
    rank = func.ts_rank(MemoryEntry.search, asked, _BY_LENGTH) + case((in_key, 1.0), else_=0.0)
    statement = (
        select(MemoryEntry, rank)
        .where(
            MemoryEntry.store_id == store_id,
            _begins(key_prefix) if key_prefix else true(),
            or_(MemoryEntry.search.op("@@")(asked), in_all),
        )
        .order_by(rank.desc(), MemoryEntry.key)
        .limit(limit)
    )
    return [(row[0], float(row[1])) for row in await tx.execute(statement)]


def search_vector(key: str, content: str) -> ColumnElement[Any]:
    """What of an entry is searched. Keys are paths, which the parser would take for one word each."""
    return func.to_tsvector(_SIMPLE, f"{key.translate(str.maketrans('/._-', '    '))} {content}")


async def find_version(
    tx: Transaction, *, entry_id: UUID | None = None, version: int = 0, version_id: UUID | None = None
) -> MemoryVersion | None:
    """A version that is kept, by its entry and number, or by its id."""
    if version_id is not None:
        return await tx.get(MemoryVersion, version_id)
    statement = select(MemoryVersion).where(MemoryVersion.entry_id == entry_id, MemoryVersion.version == version)
    found: MemoryVersion | None = await tx.scalar(statement)
    return found


async def find_versions(tx: Transaction, entry_id: UUID, *, before: int | None, limit: int) -> list[MemoryVersion]:
    """A page of versions, newest first; their contents are not loaded."""
    statement = select(MemoryVersion).options(defer(MemoryVersion.content, raiseload=True))
    statement = statement.where(MemoryVersion.entry_id == entry_id)
    if before is not None:
        statement = statement.where(MemoryVersion.version < before)
    return list(await tx.scalars(statement.order_by(MemoryVersion.version.desc()).limit(limit)))


async def prune_versions(tx: Transaction, entry_id: UUID, keep: int) -> None:
    """Remove all versions but the newest so many."""
    newest = (
        select(MemoryVersion.id)
        .where(MemoryVersion.entry_id == entry_id)
        .order_by(MemoryVersion.version.desc())
        .offset(keep)
    )
    await tx.execute(delete(MemoryVersion).where(MemoryVersion.id.in_(newest)))


def _begins(prefix: str) -> ColumnElement[bool]:
    return MemoryEntry.key.like(f"{_escape(prefix)}%")


def _escape(text: str) -> str:
    """For LIKE, whose escape character is the backslash."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
