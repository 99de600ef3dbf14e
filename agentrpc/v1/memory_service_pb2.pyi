from agentrpc.v1 import memory_pb2 as _memory_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateMemoryStoreRequest(_message.Message):
    __slots__ = ("memory_store", "request_id")
    MEMORY_STORE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    memory_store: _memory_pb2.MemoryStore
    request_id: str
    def __init__(self, memory_store: _Optional[_Union[_memory_pb2.MemoryStore, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetMemoryStoreRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListMemoryStoresRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "order_by", "owner")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    order_by: str
    owner: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., order_by: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class ListMemoryStoresResponse(_message.Message):
    __slots__ = ("memory_stores", "next_page_token")
    MEMORY_STORES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    memory_stores: _containers.RepeatedCompositeFieldContainer[_memory_pb2.MemoryStore]
    next_page_token: str
    def __init__(self, memory_stores: _Optional[_Iterable[_Union[_memory_pb2.MemoryStore, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateMemoryStoreRequest(_message.Message):
    __slots__ = ("memory_store", "update_mask")
    MEMORY_STORE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    memory_store: _memory_pb2.MemoryStore
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, memory_store: _Optional[_Union[_memory_pb2.MemoryStore, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class DeleteMemoryStoreRequest(_message.Message):
    __slots__ = ("name", "etag", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class WriteMemoryEntryRequest(_message.Message):
    __slots__ = ("memory_entry", "expected_version", "request_id")
    MEMORY_ENTRY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    memory_entry: _memory_pb2.MemoryEntry
    expected_version: int
    request_id: str
    def __init__(self, memory_entry: _Optional[_Union[_memory_pb2.MemoryEntry, _Mapping]] = ..., expected_version: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetMemoryEntryRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListMemoryEntriesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "order_by", "key_prefix", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    order_by: str
    key_prefix: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., order_by: _Optional[str] = ..., key_prefix: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListMemoryEntriesResponse(_message.Message):
    __slots__ = ("memory_entries", "next_page_token")
    MEMORY_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    memory_entries: _containers.RepeatedCompositeFieldContainer[_memory_pb2.MemoryEntry]
    next_page_token: str
    def __init__(self, memory_entries: _Optional[_Iterable[_Union[_memory_pb2.MemoryEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SearchMemoryEntriesRequest(_message.Message):
    __slots__ = ("parent", "query", "page_size", "key_prefix")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query: str
    page_size: int
    key_prefix: str
    def __init__(self, parent: _Optional[str] = ..., query: _Optional[str] = ..., page_size: _Optional[int] = ..., key_prefix: _Optional[str] = ...) -> None: ...

class SearchMemoryEntriesResponse(_message.Message):
    __slots__ = ("hits",)
    class Hit(_message.Message):
        __slots__ = ("memory_entry", "snippet", "rank")
        MEMORY_ENTRY_FIELD_NUMBER: _ClassVar[int]
        SNIPPET_FIELD_NUMBER: _ClassVar[int]
        RANK_FIELD_NUMBER: _ClassVar[int]
        memory_entry: _memory_pb2.MemoryEntry
        snippet: str
        rank: float
        def __init__(self, memory_entry: _Optional[_Union[_memory_pb2.MemoryEntry, _Mapping]] = ..., snippet: _Optional[str] = ..., rank: _Optional[float] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchMemoryEntriesResponse.Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchMemoryEntriesResponse.Hit, _Mapping]]] = ...) -> None: ...

class DeleteMemoryEntryRequest(_message.Message):
    __slots__ = ("name", "expected_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    expected_version: int
    def __init__(self, name: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class ListMemoryEntryVersionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMemoryEntryVersionsResponse(_message.Message):
    __slots__ = ("memory_entries", "next_page_token")
    MEMORY_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    memory_entries: _containers.RepeatedCompositeFieldContainer[_memory_pb2.MemoryEntry]
    next_page_token: str
    def __init__(self, memory_entries: _Optional[_Iterable[_Union[_memory_pb2.MemoryEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
