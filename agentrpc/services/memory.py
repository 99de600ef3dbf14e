"""Memory stores, and people's way to what is in them."""

from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import FailedPrecondition, ResourceExhausted
from agentrpc.names import memory_entry_name, memory_store_name, parse_memory_store, parse_user, user_name
from agentrpc.services import memory_entries
from agentrpc.services.access import require_write
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.memory_entries import Author, readable_store, require_owner
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.validation import Faults, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.memory import (
    STORE_ORDER,
    EntryQuery,
    MemoryStore,
    StoreQuery,
    count_stores,
    find_entries,
    find_stores,
    unknown_users,
)
from agentrpc.store.users import lock_user
from agentrpc.v1 import memory_pb2, memory_service_pb2

__all__ = ["Memory"]

_SETTABLE = ("display_name", "description", "shared", "readers", "limits")
_MAX_READERS = 100
# Of each limit: what it is when nobody says, and the most.
_LIMITS = {"max_entries": (1000, 20_000), "max_bytes": (16 * 1024**2, 256 * 1024**2), "max_versions": (10, 100)}


class Memory:
    """The use cases."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._max_stores = settings.max_memory_stores
        self._pager = Pager(settings.signing_key.get_secret_value())

    # ---- Stores ----

    async def create_store(
        self, principal: Principal, request: memory_service_pb2.CreateMemoryStoreRequest
    ) -> memory_pb2.MemoryStore:
        """CreateMemoryStore."""
        require_write(principal, "memory.create")
        given = request.memory_store
        request_id = request_uuid(request.request_id)
        now = clock.utcnow()
        store = MemoryStore(
            id=clock.uuid7(),
            owner=principal.user_id,
            entry_count=0,
            byte_count=0,
            version_floor=0,
            revision=1,
            create_time=now,
            update_time=now,
        )
        async with self._database.transaction() as tx:
            await _set(tx, store, given)
            key = RequestKey(principal, "CreateMemoryStore", request_id, request_hash(request))
            known = await known_request(tx, key, store.id)
            if known is not None:
                return _message(await readable_store(tx, principal, known))
            await lock_user(tx, principal.user_id)
            if await count_stores(tx, principal.user_id) >= self._max_stores:
                raise ResourceExhausted(
                    f"you have {self._max_stores} memory stores already: delete one",
                    reason="LIMIT_REACHED",
                    metadata={"limit": str(self._max_stores)},
                )
            tx.add(store)
        return _message(store)

    async def get_store(self, principal: Principal, name: str) -> memory_pb2.MemoryStore:
        """GetMemoryStore."""
        store_id = parse_memory_store(name)
        async with self._database.transaction() as tx:
            return _message(await readable_store(tx, principal, store_id))

    async def list_stores(
        self, principal: Principal, request: memory_service_pb2.ListMemoryStoresRequest
    ) -> memory_service_pb2.ListMemoryStoresResponse:
        """ListMemoryStores."""
        size = page_size(request.page_size)
        order = parse_order(request.order_by, STORE_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = StoreQuery(
            reader=None if principal.role is Role.ADMIN else principal.user_id,
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_stores(tx, query)
        stores = fitting([_message(row) for row in rows[:size]])
        response = memory_service_pb2.ListMemoryStoresResponse(memory_stores=stores)
        if len(rows) > len(stores):
            last = rows[len(stores) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update_store(
        self, principal: Principal, request: memory_service_pb2.UpdateMemoryStoreRequest
    ) -> memory_pb2.MemoryStore:
        """UpdateMemoryStore."""
        store_id = parse_memory_store(request.memory_store.name, field="memory_store.name")
        paths = settable_paths(request.update_mask, request.memory_store, _SETTABLE)
        async with self._database.transaction() as tx:
            store = await readable_store(tx, principal, store_id, lock=True)
            require_owner(principal, store, "memory.update")
            check_etag(request.memory_store.etag, store.revision, "memory store")
            wanted = _message(store)
            for path in paths:
                copy_path(request.memory_store, wanted, path)
            if wanted != _message(store):
                await _set(tx, store, wanted)
                store.revision += 1
                store.update_time = clock.utcnow()
            return _message(store)

    async def delete_store(self, principal: Principal, request: memory_service_pb2.DeleteMemoryStoreRequest) -> None:
        """DeleteMemoryStore."""
        store_id = parse_memory_store(request.name)
        async with self._database.transaction() as tx:
            store = await readable_store(tx, principal, store_id, lock=True)
            require_owner(principal, store, "memory.delete")
            check_etag(request.etag, store.revision, "memory store")
            if store.entry_count and not request.force:
                some = await find_entries(tx, EntryQuery(store_id, [("key", False)], limit=10))
                raise FailedPrecondition(
                    f"the store has {store.entry_count} entries: set force to delete them too",
                    reason="IN_USE",
                    metadata={"used_by": ",".join(memory_entry_name(store_id, entry.key) for entry in some)},
                )
            await tx.delete(store)

    # ---- Entries ----

    async def write(
        self, principal: Principal, request: memory_service_pb2.WriteMemoryEntryRequest
    ) -> memory_pb2.MemoryEntry:
        """WriteMemoryEntry."""
        async with self._database.transaction() as tx:
            return await memory_entries.write_entry(tx, Author(principal), request)

    async def read(
        self, principal: Principal, request: memory_service_pb2.GetMemoryEntryRequest
    ) -> memory_pb2.MemoryEntry:
        """GetMemoryEntry."""
        async with self._database.transaction() as tx:
            return await memory_entries.read_entry(tx, principal, request)

    async def list(
        self, principal: Principal, request: memory_service_pb2.ListMemoryEntriesRequest
    ) -> memory_service_pb2.ListMemoryEntriesResponse:
        """ListMemoryEntries."""
        async with self._database.transaction() as tx:
            return await memory_entries.list_entries(tx, principal, self._pager, request)

    async def search(
        self, principal: Principal, request: memory_service_pb2.SearchMemoryEntriesRequest
    ) -> memory_service_pb2.SearchMemoryEntriesResponse:
        """SearchMemoryEntries."""
        async with self._database.transaction() as tx:
            return await memory_entries.search(tx, principal, request)

    async def delete(self, principal: Principal, request: memory_service_pb2.DeleteMemoryEntryRequest) -> None:
        """DeleteMemoryEntry."""
        async with self._database.transaction() as tx:
            await memory_entries.delete_entry(tx, principal, request)

    async def versions(
        self, principal: Principal, request: memory_service_pb2.ListMemoryEntryVersionsRequest
    ) -> memory_service_pb2.ListMemoryEntryVersionsResponse:
        """ListMemoryEntryVersions."""
        async with self._database.transaction() as tx:
            return await memory_entries.list_versions(tx, principal, self._pager, request)


async def _set(tx: Transaction, store: MemoryStore, given: memory_pb2.MemoryStore) -> None:
    """What callers set of a store. Raises FIELD_INVALID or NAME_INVALID."""
    faults = Faults()
    faults.text("memory_store.display_name", given.display_name, 200)
    faults.text("memory_store.description", given.description, 4000)
    for name, (default, most) in _LIMITS.items():
        value = getattr(given.limits, name)
        faults.check(0 <= value <= most, f"memory_store.limits.{name}", f"must be between 1 and {most}; 0: {default}")
    good = len(given.readers) <= _MAX_READERS
    faults.check(good, "memory_store.readers", f"may have at most {_MAX_READERS} entries")
    readers = await _readers(tx, given, faults) if good else []
    faults.done()
    store.display_name, store.description = given.display_name, given.description
    store.shared, store.readers = given.shared, readers
    for name, (default, _) in _LIMITS.items():
        setattr(store, name, getattr(given.limits, name) or default)


async def _readers(tx: Transaction, given: memory_pb2.MemoryStore, faults: Faults) -> list[UUID]:
    readers = list(dict.fromkeys(parse_user(name, field="memory_store.readers") for name in given.readers))
    for user_id in await unknown_users(tx, readers):
        faults.add("memory_store.readers", f"there is no user {user_name(user_id)}")
    return readers


def _message(store: MemoryStore) -> memory_pb2.MemoryStore:
    """`agentrpc.v1.MemoryStore`."""
    message = memory_pb2.MemoryStore(
        name=memory_store_name(store.id),
        display_name=store.display_name,
        description=store.description,
        owner=user_name(store.owner),
        shared=store.shared,
        readers=map(user_name, store.readers),
        limits=memory_pb2.MemoryLimits(**{name: getattr(store, name) for name in _LIMITS}),
        entry_count=store.entry_count,
        byte_count=store.byte_count,
        etag=etag_of(store.revision),
    )
    message.create_time.FromDatetime(store.create_time)
    message.update_time.FromDatetime(store.update_time)
    return message
