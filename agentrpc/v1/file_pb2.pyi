import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class File(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "type", "size", "modify_time", "executable", "link_target", "sha256", "etag")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[File.Type]
        TYPE_FILE: _ClassVar[File.Type]
        TYPE_FOLDER: _ClassVar[File.Type]
        TYPE_LINK: _ClassVar[File.Type]
        TYPE_OTHER: _ClassVar[File.Type]
    TYPE_UNSPECIFIED: File.Type
    TYPE_FILE: File.Type
    TYPE_FOLDER: File.Type
    TYPE_LINK: File.Type
    TYPE_OTHER: File.Type
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODIFY_TIME_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    LINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    type: File.Type
    size: int
    modify_time: _timestamp_pb2.Timestamp
    executable: bool
    link_target: str
    sha256: str
    etag: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., type: _Optional[_Union[File.Type, str]] = ..., size: _Optional[int] = ..., modify_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., executable: _Optional[bool] = ..., link_target: _Optional[str] = ..., sha256: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...
