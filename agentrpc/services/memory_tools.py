"""A session's way to a memory store: as its owner, and fenced."""

from agentrpc.names import memory_entry_name, memory_store_name, parse_memory_store
from agentrpc.services import memory_entries
from agentrpc.services.memory_entries import Author
from agentrpc.services.pages import Pager
from agentrpc.services.tool_callers import Caller
from agentrpc.v1 import memory_pb2
from agentrpc.v1 import memory_service_pb2 as pb

__all__ = ["SessionMemory"]


class SessionMemory:
    """`agentrpc.claude.tools.memory.MemoryAccess`.

    Args:
        caller: The session.
        store: `memoryStores/{store}`.
        pager: Makes page tokens.
    """

    def __init__(self, caller: Caller, store: str, pager: Pager) -> None:
        self._caller = caller
        self._store = parse_memory_store(store)
        self._pager = pager

    async def list(self, request: pb.ListMemoryEntriesRequest) -> pb.ListMemoryEntriesResponse:
        """ListMemoryEntries."""
        request.parent = memory_store_name(self._store)
        async with self._caller.database.transaction() as tx:
            owner, _ = await self._caller.owner(tx)
            return await memory_entries.list_entries(tx, owner, self._pager, request)

    async def read(self, key: str, version: int) -> memory_pb2.MemoryEntry:
        """GetMemoryEntry."""
        request = pb.GetMemoryEntryRequest(name=memory_entry_name(self._store, key), version=version)
        async with self._caller.database.transaction() as tx:
            owner, _ = await self._caller.owner(tx)
            return await memory_entries.read_entry(tx, owner, request)

    async def search(self, request: pb.SearchMemoryEntriesRequest) -> pb.SearchMemoryEntriesResponse:
        """SearchMemoryEntries."""
        request.parent = memory_store_name(self._store)
        async with self._caller.database.transaction() as tx:
            owner, _ = await self._caller.owner(tx)
            return await memory_entries.search(tx, owner, request)

    async def write(
        self, key: str, content: str, labels: dict[str, str], expected_version: int | None
    ) -> memory_pb2.MemoryEntry:
        """WriteMemoryEntry."""
        entry = memory_pb2.MemoryEntry(name=memory_entry_name(self._store, key), content=content, labels=labels)
        request = pb.WriteMemoryEntryRequest(memory_entry=entry, expected_version=expected_version)
        async with self._caller.database.transaction() as tx:
            owner, run_id = await self._caller.owner(tx)
            written = await memory_entries.write_entry(tx, Author(owner, self._caller.session_id, run_id), request)
            await self._caller.fence(tx)
        return written

    async def delete(self, key: str, expected_version: int) -> None:
        """DeleteMemoryEntry."""
        request = pb.DeleteMemoryEntryRequest(
            name=memory_entry_name(self._store, key), expected_version=expected_version
        )
        async with self._caller.database.transaction() as tx:
            owner, _ = await self._caller.owner(tx)
            await memory_entries.delete_entry(tx, owner, request)
            await self._caller.fence(tx)
