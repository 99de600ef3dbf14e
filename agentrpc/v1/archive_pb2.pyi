import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Archive(_message.Message):
    __slots__ = ("name", "state", "restore_needed", "size", "sha256", "event_count", "file_count", "create_time", "store_time", "restore_time", "attempt_count", "error")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Archive.State]
        STATE_STORING: _ClassVar[Archive.State]
        STATE_STORED: _ClassVar[Archive.State]
        STATE_RESTORING: _ClassVar[Archive.State]
        STATE_RESTORED: _ClassVar[Archive.State]
        STATE_FAILED: _ClassVar[Archive.State]
    STATE_UNSPECIFIED: Archive.State
    STATE_STORING: Archive.State
    STATE_STORED: Archive.State
    STATE_RESTORING: Archive.State
    STATE_RESTORED: Archive.State
    STATE_FAILED: Archive.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_NEEDED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STORE_TIME_FIELD_NUMBER: _ClassVar[int]
    RESTORE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Archive.State
    restore_needed: bool
    size: int
    sha256: str
    event_count: int
    file_count: int
    create_time: _timestamp_pb2.Timestamp
    store_time: _timestamp_pb2.Timestamp
    restore_time: _timestamp_pb2.Timestamp
    attempt_count: int
    error: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Archive.State, str]] = ..., restore_needed: _Optional[bool] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., event_count: _Optional[int] = ..., file_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., store_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., restore_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempt_count: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
