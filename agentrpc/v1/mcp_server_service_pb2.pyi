import datetime

from agentrpc.v1 import mcp_server_pb2 as _mcp_server_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateMcpServerRequest(_message.Message):
    __slots__ = ("mcp_server", "request_id")
    MCP_SERVER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    mcp_server: _mcp_server_pb2.RegisteredMcpServer
    request_id: str
    def __init__(self, mcp_server: _Optional[_Union[_mcp_server_pb2.RegisteredMcpServer, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetMcpServerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListMcpServersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "order_by", "owner", "tags", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    order_by: str
    owner: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    states: _containers.RepeatedScalarFieldContainer[_mcp_server_pb2.McpServerHealth.State]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., order_by: _Optional[str] = ..., owner: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., states: _Optional[_Iterable[_Union[_mcp_server_pb2.McpServerHealth.State, str]]] = ...) -> None: ...

class ListMcpServersResponse(_message.Message):
    __slots__ = ("mcp_servers", "next_page_token")
    MCP_SERVERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    mcp_servers: _containers.RepeatedCompositeFieldContainer[_mcp_server_pb2.RegisteredMcpServer]
    next_page_token: str
    def __init__(self, mcp_servers: _Optional[_Iterable[_Union[_mcp_server_pb2.RegisteredMcpServer, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateMcpServerRequest(_message.Message):
    __slots__ = ("mcp_server", "update_mask")
    MCP_SERVER_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    mcp_server: _mcp_server_pb2.RegisteredMcpServer
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, mcp_server: _Optional[_Union[_mcp_server_pb2.RegisteredMcpServer, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class DeleteMcpServerRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class CheckMcpServerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListMcpServerToolsRequest(_message.Message):
    __slots__ = ("parent", "cached")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    parent: str
    cached: bool
    def __init__(self, parent: _Optional[str] = ..., cached: _Optional[bool] = ...) -> None: ...

class ListMcpServerToolsResponse(_message.Message):
    __slots__ = ("tools", "cut", "check_time")
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    CHECK_TIME_FIELD_NUMBER: _ClassVar[int]
    tools: _containers.RepeatedCompositeFieldContainer[_mcp_server_pb2.McpTool]
    cut: bool
    check_time: _timestamp_pb2.Timestamp
    def __init__(self, tools: _Optional[_Iterable[_Union[_mcp_server_pb2.McpTool, _Mapping]]] = ..., cut: _Optional[bool] = ..., check_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ImportMcpServersRequest(_message.Message):
    __slots__ = ("config_json", "shared", "validate_only")
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    config_json: str
    shared: bool
    validate_only: bool
    def __init__(self, config_json: _Optional[str] = ..., shared: _Optional[bool] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class ImportMcpServersResponse(_message.Message):
    __slots__ = ("mcp_servers", "missing_secrets", "ignored_keys")
    MCP_SERVERS_FIELD_NUMBER: _ClassVar[int]
    MISSING_SECRETS_FIELD_NUMBER: _ClassVar[int]
    IGNORED_KEYS_FIELD_NUMBER: _ClassVar[int]
    mcp_servers: _containers.RepeatedCompositeFieldContainer[_mcp_server_pb2.RegisteredMcpServer]
    missing_secrets: _containers.RepeatedScalarFieldContainer[str]
    ignored_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, mcp_servers: _Optional[_Iterable[_Union[_mcp_server_pb2.RegisteredMcpServer, _Mapping]]] = ..., missing_secrets: _Optional[_Iterable[str]] = ..., ignored_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportMcpServersRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportMcpServersResponse(_message.Message):
    __slots__ = ("config_json",)
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    config_json: str
    def __init__(self, config_json: _Optional[str] = ...) -> None: ...

class ListMcpServerCatalogueRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMcpServerCatalogueResponse(_message.Message):
    __slots__ = ("templates",)
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedCompositeFieldContainer[_mcp_server_pb2.McpServerTemplate]
    def __init__(self, templates: _Optional[_Iterable[_Union[_mcp_server_pb2.McpServerTemplate, _Mapping]]] = ...) -> None: ...
