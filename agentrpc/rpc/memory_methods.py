"""MemoryService."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.memory import Memory
from agentrpc.v1 import memory_service_pb2

__all__ = ["memory_service"]


def memory_service(memory: Memory) -> Service:
    """MemoryService."""
    return Service(
        memory_service_pb2.DESCRIPTOR.services_by_name["MemoryService"],
        {
            "CreateMemoryStore": lambda call, r: memory.create_store(call.principal, r),
            "GetMemoryStore": lambda call, r: memory.get_store(call.principal, r.name),
            "ListMemoryStores": lambda call, r: memory.list_stores(call.principal, r),
            "UpdateMemoryStore": lambda call, r: memory.update_store(call.principal, r),
            "DeleteMemoryStore": emptied(lambda call, r: memory.delete_store(call.principal, r)),
            "WriteMemoryEntry": lambda call, r: memory.write(call.principal, r),
            "GetMemoryEntry": lambda call, r: memory.read(call.principal, r),
            "ListMemoryEntries": lambda call, r: memory.list(call.principal, r),
            "SearchMemoryEntries": lambda call, r: memory.search(call.principal, r),
            "DeleteMemoryEntry": emptied(lambda call, r: memory.delete(call.principal, r)),
            "ListMemoryEntryVersions": lambda call, r: memory.versions(call.principal, r),
        },
    )
