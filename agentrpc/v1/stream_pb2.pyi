import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamOpened(_message.Message):
    __slots__ = ("last_sequence", "heartbeat_interval")
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    last_sequence: int
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, last_sequence: _Optional[int] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CaughtUp(_message.Message):
    __slots__ = ("last_sequence",)
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    last_sequence: int
    def __init__(self, last_sequence: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("time",)
    TIME_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("reason", "retry_delay")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[StreamEnd.Reason]
        REASON_RUN_ENDED: _ClassVar[StreamEnd.Reason]
        REASON_SESSION_CLOSED: _ClassVar[StreamEnd.Reason]
        REASON_ROTATED: _ClassVar[StreamEnd.Reason]
        REASON_DRAINING: _ClassVar[StreamEnd.Reason]
        REASON_SLOW_CONSUMER: _ClassVar[StreamEnd.Reason]
        REASON_CREDENTIALS_EXPIRED: _ClassVar[StreamEnd.Reason]
        REASON_UNAVAILABLE: _ClassVar[StreamEnd.Reason]
        REASON_ACCESS_REVOKED: _ClassVar[StreamEnd.Reason]
        REASON_FINISHED: _ClassVar[StreamEnd.Reason]
    REASON_UNSPECIFIED: StreamEnd.Reason
    REASON_RUN_ENDED: StreamEnd.Reason
    REASON_SESSION_CLOSED: StreamEnd.Reason
    REASON_ROTATED: StreamEnd.Reason
    REASON_DRAINING: StreamEnd.Reason
    REASON_SLOW_CONSUMER: StreamEnd.Reason
    REASON_CREDENTIALS_EXPIRED: StreamEnd.Reason
    REASON_UNAVAILABLE: StreamEnd.Reason
    REASON_ACCESS_REVOKED: StreamEnd.Reason
    REASON_FINISHED: StreamEnd.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    reason: StreamEnd.Reason
    retry_delay: _duration_pb2.Duration
    def __init__(self, reason: _Optional[_Union[StreamEnd.Reason, str]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
