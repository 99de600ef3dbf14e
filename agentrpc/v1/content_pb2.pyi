from agentrpc.v1 import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContentBlock(_message.Message):
    __slots__ = ("index", "text", "thinking", "tool_use", "server_tool_result", "image", "document", "raw")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_FIELD_NUMBER: _ClassVar[int]
    SERVER_TOOL_RESULT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: TextBlock
    thinking: ThinkingBlock
    tool_use: ToolUseBlock
    server_tool_result: ServerToolResultBlock
    image: MediaBlock
    document: MediaBlock
    raw: RawBlock
    def __init__(self, index: _Optional[int] = ..., text: _Optional[_Union[TextBlock, _Mapping]] = ..., thinking: _Optional[_Union[ThinkingBlock, _Mapping]] = ..., tool_use: _Optional[_Union[ToolUseBlock, _Mapping]] = ..., server_tool_result: _Optional[_Union[ServerToolResultBlock, _Mapping]] = ..., image: _Optional[_Union[MediaBlock, _Mapping]] = ..., document: _Optional[_Union[MediaBlock, _Mapping]] = ..., raw: _Optional[_Union[RawBlock, _Mapping]] = ...) -> None: ...

class TextBlock(_message.Message):
    __slots__ = ("text", "omitted")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    text: str
    omitted: _common_pb2.Omission
    def __init__(self, text: _Optional[str] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class ThinkingBlock(_message.Message):
    __slots__ = ("thinking", "redacted")
    THINKING_FIELD_NUMBER: _ClassVar[int]
    REDACTED_FIELD_NUMBER: _ClassVar[int]
    thinking: str
    redacted: bool
    def __init__(self, thinking: _Optional[str] = ..., redacted: _Optional[bool] = ...) -> None: ...

class ToolUseBlock(_message.Message):
    __slots__ = ("tool_use_id", "tool_name", "input_json", "server_side", "omitted")
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    SERVER_SIDE_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    tool_name: str
    input_json: str
    server_side: bool
    omitted: _common_pb2.Omission
    def __init__(self, tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., input_json: _Optional[str] = ..., server_side: _Optional[bool] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class ServerToolResultBlock(_message.Message):
    __slots__ = ("tool_use_id", "content_json", "omitted")
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_JSON_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    content_json: str
    omitted: _common_pb2.Omission
    def __init__(self, tool_use_id: _Optional[str] = ..., content_json: _Optional[str] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class MediaBlock(_message.Message):
    __slots__ = ("media_type", "data", "url", "omitted")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    data: bytes
    url: str
    omitted: _common_pb2.Omission
    def __init__(self, media_type: _Optional[str] = ..., data: _Optional[bytes] = ..., url: _Optional[str] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class RawBlock(_message.Message):
    __slots__ = ("type", "block_json")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_JSON_FIELD_NUMBER: _ClassVar[int]
    type: str
    block_json: str
    def __init__(self, type: _Optional[str] = ..., block_json: _Optional[str] = ...) -> None: ...
