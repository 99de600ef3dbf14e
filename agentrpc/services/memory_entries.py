"""Entries of memory stores, in a transaction of the caller's: people's by way of `memory.py`, agents' by their tools.

Writers of one store come one after the other. So of several that expect the same version one wins, and limits hold.
"""

import re
from dataclasses import dataclass
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import Aborted, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from agentrpc.names import (
    memory_entry_name,
    memory_store_name,
    parse_memory_entry,
    parse_memory_store,
    run_name,
    session_name,
    user_name,
)
from agentrpc.services.access import require_write
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.validation import Faults, request_uuid
from agentrpc.store.database import Transaction
from agentrpc.store.memory import (
    ENTRY_ORDER,
    EntryQuery,
    MemoryEntry,
    MemoryStore,
    MemoryVersion,
    find_entries,
    find_entry,
    find_version,
    find_versions,
    load_store,
    prune_versions,
    search_entries,
    search_vector,
)
from agentrpc.v1 import memory_pb2, memory_service_pb2

__all__ = [
    "Author",
    "delete_entry",
    "list_entries",
    "list_versions",
    "read_entry",
    "readable_store",
    "require_owner",
    "search",
    "write_entry",
]

_KEY = re.compile(r"[a-z0-9._-]+(/[a-z0-9._-]+)*")
_MAX_KEY = 200
_MAX_CONTENT = 64 * 1024
_MAX_QUERY = 500
_SNIPPET = 300
_BEFORE_HIT = 100


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes.

    Attributes:
        principal: The user, of an agent the owner of its session.
        session_id: The session of the agent.
        run_id: Its run.
    """

    principal: Principal
    session_id: UUID | None = None
    run_id: UUID | None = None


async def readable_store(tx: Transaction, principal: Principal, store_id: UUID, *, lock: bool = False) -> MemoryStore:
    """A store that the caller may read, locked if asked. Raises NotFound."""
    store = await load_store(tx, store_id, lock=lock)
    if store is None or not (
        store.shared
        or principal.role is Role.ADMIN
        or store.owner == principal.user_id
        or principal.user_id in store.readers
    ):
        raise NotFound("MemoryStore", memory_store_name(store_id))
    return store


def require_owner(principal: Principal, store: MemoryStore, permission: str) -> None:
    """Raise PermissionDenied for readers of a store that is another's."""
    require_write(principal, permission)
    if store.owner != principal.user_id and principal.role is not Role.ADMIN:
        raise PermissionDenied(permission)


async def write_entry(
    tx: Transaction, author: Author, request: memory_service_pb2.WriteMemoryEntryRequest
) -> memory_pb2.MemoryEntry:
    """WriteMemoryEntry."""
    given = request.memory_entry
    store_id, key = _entry(given.name, "memory_entry.name")
    size = _check_content(request)
    principal = author.principal
    version_id = clock.uuid7()
    request_id = request_uuid(request.request_id)
    store = await readable_store(tx, principal, store_id, lock=True)
    require_owner(principal, store, "memory.write")
    known = RequestKey(principal, "WriteMemoryEntry", request_id, request_hash(request))
    entry = await find_entry(tx, store_id, key)
    if (before := await known_request(tx, known, version_id)) is not None:
        version = await find_version(tx, version_id=before)
        if entry is None:
            raise _missing(store_id, key)
        return _message(entry, version if version is not None else entry)
    if request.HasField("expected_version"):
        _check_version(request.expected_version, entry)
    now = clock.utcnow()
    _take_room(store, entry, size)
    if entry is None:
        entry = MemoryEntry(id=clock.uuid7(), store_id=store_id, key=key, version=store.version_floor, create_time=now)
        tx.add(entry)
    entry.version += 1
    entry.content, entry.labels, entry.byte_count = given.content, dict(given.labels), size
    entry.author, entry.session_id, entry.run_id = principal.user_id, author.session_id, author.run_id
    entry.update_time = now
    entry.search = search_vector(key, given.content)
    await tx.flush()
    tx.add(
        MemoryVersion(
            id=version_id,
            entry_id=entry.id,
            **{
                name: getattr(entry, name)
                for name in (
                    "version", "content", "labels", "byte_count", "author", "session_id", "run_id", "update_time",
                )
            },
        )
    )  # fmt: skip
    await tx.flush()
    await prune_versions(tx, entry.id, store.max_versions)
    return _message(entry, entry)


async def read_entry(
    tx: Transaction, principal: Principal, request: memory_service_pb2.GetMemoryEntryRequest
) -> memory_pb2.MemoryEntry:
    """GetMemoryEntry."""
    store_id, key = _entry(request.name, "name")
    if request.version < 0:
        raise InvalidArgument.field("version", "must not be negative; 0 takes the newest")
    entry = await _find(tx, principal, store_id, key)
    if request.version in {0, entry.version}:
        return _message(entry, entry)
    version = await find_version(tx, entry_id=entry.id, version=request.version)
    if version is None:
        raise NotFound("MemoryEntry", f"{memory_entry_name(store_id, key)} in version {request.version}")
    return _message(entry, version)


async def delete_entry(
    tx: Transaction, principal: Principal, request: memory_service_pb2.DeleteMemoryEntryRequest
) -> None:
    """DeleteMemoryEntry."""
    store_id, key = _entry(request.name, "name")
    if request.expected_version < 0:
        raise InvalidArgument.field("expected_version", "must not be negative; 0 takes whatever there is")
    store = await readable_store(tx, principal, store_id, lock=True)
    require_owner(principal, store, "memory.delete")
    entry = await find_entry(tx, store_id, key)
    if entry is None:
        raise _missing(store_id, key)
    if request.expected_version:
        _check_version(request.expected_version, entry)
    store.entry_count -= 1
    store.byte_count -= entry.byte_count
    store.version_floor = max(store.version_floor, entry.version)
    await tx.delete(entry)


async def list_entries(
    tx: Transaction, principal: Principal, pager: Pager, request: memory_service_pb2.ListMemoryEntriesRequest
) -> memory_service_pb2.ListMemoryEntriesResponse:
    """ListMemoryEntries."""
    store_id = parse_memory_store(request.parent, field="parent")
    size = page_size(request.page_size)
    order = parse_order(request.order_by, ENTRY_ORDER, default="key")
    after = pager.read(request, principal.user_id)
    faults = Faults()
    _check_prefix(faults, request.key_prefix)
    faults.labels("labels", request.labels.items())
    faults.done()
    await readable_store(tx, principal, store_id)
    query = EntryQuery(
        store_id,
        order,
        key_prefix=request.key_prefix,
        labels=request.labels,
        after=None if after is None else order_values(order, after),
        limit=size + 1,
    )
    rows = await find_entries(tx, query)
    entries = fitting([_message(row, row, content=False) for row in rows[:size]])
    response = memory_service_pb2.ListMemoryEntriesResponse(memory_entries=entries)
    if len(rows) > len(entries):
        last = rows[len(entries) - 1]
        response.next_page_token = pager.issue(request, principal.user_id, order_key(last, order))
    return response


async def list_versions(
    tx: Transaction, principal: Principal, pager: Pager, request: memory_service_pb2.ListMemoryEntryVersionsRequest
) -> memory_service_pb2.ListMemoryEntryVersionsResponse:
    """ListMemoryEntryVersions."""
    store_id, key = _entry(request.parent, "parent")
    size = page_size(request.page_size)
    after = pager.read(request, principal.user_id)
    entry = await _find(tx, principal, store_id, key)
    rows = await find_versions(tx, entry.id, before=None if after is None else int(after[0]), limit=size + 1)
    versions = fitting([_message(entry, row, content=False) for row in rows[:size]])
    response = memory_service_pb2.ListMemoryEntryVersionsResponse(memory_entries=versions)
    if len(rows) > len(versions):
        last = rows[len(versions) - 1].version
        response.next_page_token = pager.issue(request, principal.user_id, [last])
    return response


async def search(
    tx: Transaction, principal: Principal, request: memory_service_pb2.SearchMemoryEntriesRequest
) -> memory_service_pb2.SearchMemoryEntriesResponse:
    """SearchMemoryEntries."""
    store_id = parse_memory_store(request.parent, field="parent")
    size = page_size(request.page_size, default=20, limit=100)
    faults = Faults()
    faults.check(bool(request.query.strip()), "query", "is required: give a word, or a part of one")
    faults.text("query", request.query, _MAX_QUERY)
    _check_prefix(faults, request.key_prefix)
    faults.done()
    await readable_store(tx, principal, store_id)
    found = await search_entries(tx, store_id, request.query, key_prefix=request.key_prefix, limit=size)
    hits = [
        memory_service_pb2.SearchMemoryEntriesResponse.Hit(
            memory_entry=_message(entry, entry, content=False),
            snippet=_snippet(entry.content, request.query),
            rank=rank,
        )
        for entry, rank in found
    ]
    return memory_service_pb2.SearchMemoryEntriesResponse(hits=fitting(hits))


async def _find(tx: Transaction, principal: Principal, store_id: UUID, key: str) -> MemoryEntry:
    await readable_store(tx, principal, store_id)
    entry = await find_entry(tx, store_id, key)
    if entry is None:
        raise _missing(store_id, key)
    return entry


def _missing(store_id: UUID, key: str) -> NotFound:
    return NotFound("MemoryEntry", memory_entry_name(store_id, key))


def _entry(name: str, field: str) -> tuple[UUID, str]:
    store_id, key = parse_memory_entry(name, field=field)
    good = len(key) <= _MAX_KEY and _KEY.fullmatch(key) and not {".", ".."} & set(key.split("/"))
    if not good:
        raise InvalidArgument.field(
            field,
            f"the key {key[:80]!r} must be parts of [a-z0-9._-] joined by /, with at most {_MAX_KEY} characters, "
            "none of them . or ..",
        )
    return store_id, key


def _check_content(request: memory_service_pb2.WriteMemoryEntryRequest) -> int:
    """The size of what is to be written."""
    given = request.memory_entry
    size = len(given.content.encode())
    if size > _MAX_CONTENT:
        raise InvalidArgument(
            f"memory_entry.content has {size} bytes, at most {_MAX_CONTENT} are taken: write several entries",
            reason="TOO_LARGE",
            metadata={"field": "memory_entry.content", "limit": str(_MAX_CONTENT), "actual": str(size)},
        )
    faults = Faults()
    faults.no_nul("memory_entry.content", given.content)
    faults.labels("memory_entry.labels", given.labels.items())
    good = not request.HasField("expected_version") or request.expected_version >= 0
    faults.check(good, "expected_version", "must not be negative; 0 means that there is no such entry")
    faults.done()
    return size


def _check_prefix(faults: Faults, prefix: str) -> None:
    good = len(prefix) <= _MAX_KEY and bool(re.fullmatch(r"[a-z0-9._/-]*", prefix))
    faults.check(good, "key_prefix", f"must be of [a-z0-9._/-], with at most {_MAX_KEY} characters")


def _check_version(expected: int, entry: MemoryEntry | None) -> None:
    current = 0 if entry is None else entry.version
    if expected == current:
        return
    now = f"has version {current} now" if current else "does not exist now"
    wanted = f"version {expected}" if expected else "that there is none"
    raise Aborted(
        f"the entry {now}, and not {wanted}: read it, apply your change to it, and write it with "
        f"expected_version {current}",
        reason="ETAG_MISMATCH",
        metadata={"etag": str(current)},
    )


def _take_room(store: MemoryStore, entry: MemoryEntry | None, size: int) -> None:
    """Count what is to be written. Raises LIMIT_REACHED; what makes an entry smaller is always taken."""
    grown = size - (0 if entry is None else entry.byte_count)
    if entry is None and store.entry_count >= store.max_entries:
        raise _full(f"{store.max_entries} entries", store.max_entries)
    if grown > 0 and store.byte_count + grown > store.max_bytes:
        raise _full(f"{store.max_bytes} bytes", store.max_bytes)
    store.entry_count += entry is None
    store.byte_count += grown


def _full(what: str, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"the store takes at most {what}: delete what is not needed, or let its owner raise its limits",
        reason="LIMIT_REACHED",
        metadata={"limit": str(limit)},
    )


def _snippet(content: str, query: str) -> str:
    """The part of a text around the first word of the query that is in it."""
    # Not in a copy in small letters, which may be longer than the text.
    hits = [re.search(re.escape(word), content, re.IGNORECASE) for word in re.findall(r"\w+", query)]
    first = min((hit.start() for hit in hits if hit is not None), default=0)
    begin = max(0, first - _BEFORE_HIT)
    return content[begin : begin + _SNIPPET].strip()


def _message(
    entry: MemoryEntry, version: MemoryEntry | MemoryVersion, *, content: bool = True
) -> memory_pb2.MemoryEntry:
    """`agentrpc.v1.MemoryEntry`: an entry as it is now, or in an older version."""
    message = memory_pb2.MemoryEntry(
        name=memory_entry_name(entry.store_id, entry.key),
        content=version.content if content else "",
        labels=version.labels,
        version=version.version,
        byte_count=version.byte_count,
        author=memory_pb2.MemoryAuthor(user=user_name(version.author)),
    )
    if version.session_id is not None:
        message.author.session = session_name(version.session_id)
        if version.run_id is not None:
            message.author.run = run_name(version.session_id, version.run_id)
    message.create_time.FromDatetime(entry.create_time)
    message.update_time.FromDatetime(version.update_time)
    return message
