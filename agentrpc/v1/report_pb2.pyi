import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Report(_message.Message):
    __slots__ = ("name", "display_name", "labels", "owner", "subject", "usage", "format", "template", "shared", "state", "progress_percent", "error", "size_bytes", "sha256", "content_type", "attempt", "create_time", "start_time", "end_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Report.State]
        STATE_PENDING: _ClassVar[Report.State]
        STATE_RUNNING: _ClassVar[Report.State]
        STATE_SUCCEEDED: _ClassVar[Report.State]
        STATE_FAILED: _ClassVar[Report.State]
    STATE_UNSPECIFIED: Report.State
    STATE_PENDING: Report.State
    STATE_RUNNING: Report.State
    STATE_SUCCEEDED: Report.State
    STATE_FAILED: Report.State
    class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORMAT_UNSPECIFIED: _ClassVar[Report.Format]
        FORMAT_JSON: _ClassVar[Report.Format]
        FORMAT_MARKDOWN: _ClassVar[Report.Format]
        FORMAT_HTML: _ClassVar[Report.Format]
        FORMAT_PDF: _ClassVar[Report.Format]
    FORMAT_UNSPECIFIED: Report.Format
    FORMAT_JSON: Report.Format
    FORMAT_MARKDOWN: Report.Format
    FORMAT_HTML: Report.Format
    FORMAT_PDF: Report.Format
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    labels: _containers.ScalarMap[str, str]
    owner: str
    subject: str
    usage: UsagePeriod
    format: Report.Format
    template: str
    shared: bool
    state: Report.State
    progress_percent: int
    error: ReportError
    size_bytes: int
    sha256: str
    content_type: str
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., subject: _Optional[str] = ..., usage: _Optional[_Union[UsagePeriod, _Mapping]] = ..., format: _Optional[_Union[Report.Format, str]] = ..., template: _Optional[str] = ..., shared: _Optional[bool] = ..., state: _Optional[_Union[Report.State, str]] = ..., progress_percent: _Optional[int] = ..., error: _Optional[_Union[ReportError, _Mapping]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., content_type: _Optional[str] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UsagePeriod(_message.Message):
    __slots__ = ("start_time", "end_time", "owner")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    owner: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., owner: _Optional[str] = ...) -> None: ...

class ReportError(_message.Message):
    __slots__ = ("reason", "message")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[ReportError.Reason]
        REASON_INTERNAL: _ClassVar[ReportError.Reason]
        REASON_TEMPLATE_INVALID: _ClassVar[ReportError.Reason]
        REASON_NOT_CONFIGURED: _ClassVar[ReportError.Reason]
        REASON_LIMIT_REACHED: _ClassVar[ReportError.Reason]
        REASON_TOO_LARGE: _ClassVar[ReportError.Reason]
        REASON_SUBJECT_GONE: _ClassVar[ReportError.Reason]
    REASON_UNSPECIFIED: ReportError.Reason
    REASON_INTERNAL: ReportError.Reason
    REASON_TEMPLATE_INVALID: ReportError.Reason
    REASON_NOT_CONFIGURED: ReportError.Reason
    REASON_LIMIT_REACHED: ReportError.Reason
    REASON_TOO_LARGE: ReportError.Reason
    REASON_SUBJECT_GONE: ReportError.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: ReportError.Reason
    message: str
    def __init__(self, reason: _Optional[_Union[ReportError.Reason, str]] = ..., message: _Optional[str] = ...) -> None: ...
