import datetime

from agentrpc.v1 import common_pb2 as _common_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Run(_message.Message):
    __slots__ = ("name", "prompt", "conflict_policy", "timeout", "labels", "state", "creator", "attempt", "pending_approvals", "first_sequence", "last_sequence", "create_time", "start_time", "end_time", "result", "error", "usage", "model_usage", "prompt_omitted")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Run.State]
        STATE_QUEUED: _ClassVar[Run.State]
        STATE_RUNNING: _ClassVar[Run.State]
        STATE_REQUIRES_ACTION: _ClassVar[Run.State]
        STATE_SUCCEEDED: _ClassVar[Run.State]
        STATE_FAILED: _ClassVar[Run.State]
        STATE_CANCELLED: _ClassVar[Run.State]
        STATE_EXPIRED: _ClassVar[Run.State]
        STATE_UNKNOWN_OUTCOME: _ClassVar[Run.State]
    STATE_UNSPECIFIED: Run.State
    STATE_QUEUED: Run.State
    STATE_RUNNING: Run.State
    STATE_REQUIRES_ACTION: Run.State
    STATE_SUCCEEDED: Run.State
    STATE_FAILED: Run.State
    STATE_CANCELLED: Run.State
    STATE_EXPIRED: Run.State
    STATE_UNKNOWN_OUTCOME: Run.State
    class ConflictPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CONFLICT_POLICY_UNSPECIFIED: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_ENQUEUE: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_REJECT: _ClassVar[Run.ConflictPolicy]
    CONFLICT_POLICY_UNSPECIFIED: Run.ConflictPolicy
    CONFLICT_POLICY_ENQUEUE: Run.ConflictPolicy
    CONFLICT_POLICY_REJECT: Run.ConflictPolicy
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PENDING_APPROVALS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_USAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_OMITTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompt: str
    conflict_policy: Run.ConflictPolicy
    timeout: _duration_pb2.Duration
    labels: _containers.ScalarMap[str, str]
    state: Run.State
    creator: str
    attempt: int
    pending_approvals: _containers.RepeatedScalarFieldContainer[str]
    first_sequence: int
    last_sequence: int
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    result: RunResult
    error: RunError
    usage: _common_pb2.Usage
    model_usage: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelUsage]
    prompt_omitted: _common_pb2.Omission
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[str] = ..., conflict_policy: _Optional[_Union[Run.ConflictPolicy, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[Run.State, str]] = ..., creator: _Optional[str] = ..., attempt: _Optional[int] = ..., pending_approvals: _Optional[_Iterable[str]] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., result: _Optional[_Union[RunResult, _Mapping]] = ..., error: _Optional[_Union[RunError, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model_usage: _Optional[_Iterable[_Union[_common_pb2.ModelUsage, _Mapping]]] = ..., prompt_omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class RunResult(_message.Message):
    __slots__ = ("text", "structured_json", "stop_reason", "terminal_reason", "turn_count", "denial_count", "duration", "model_duration", "omitted")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_JSON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_REASON_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DENIAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DURATION_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    text: str
    structured_json: str
    stop_reason: str
    terminal_reason: str
    turn_count: int
    denial_count: int
    duration: _duration_pb2.Duration
    model_duration: _duration_pb2.Duration
    omitted: _common_pb2.Omission
    def __init__(self, text: _Optional[str] = ..., structured_json: _Optional[str] = ..., stop_reason: _Optional[str] = ..., terminal_reason: _Optional[str] = ..., turn_count: _Optional[int] = ..., denial_count: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class RunError(_message.Message):
    __slots__ = ("reason", "message", "retryable", "http_status")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[RunError.Reason]
        REASON_INTERNAL: _ClassVar[RunError.Reason]
        REASON_AGENT_START_FAILED: _ClassVar[RunError.Reason]
        REASON_AGENT_CRASHED: _ClassVar[RunError.Reason]
        REASON_OUT_OF_MEMORY: _ClassVar[RunError.Reason]
        REASON_WORKER_LOST: _ClassVar[RunError.Reason]
        REASON_MAX_TURNS: _ClassVar[RunError.Reason]
        REASON_MAX_COST: _ClassVar[RunError.Reason]
        REASON_OUTPUT_INVALID: _ClassVar[RunError.Reason]
        REASON_CONTEXT_TOO_LONG: _ClassVar[RunError.Reason]
        REASON_PROVIDER_AUTHENTICATION: _ClassVar[RunError.Reason]
        REASON_PROVIDER_BILLING: _ClassVar[RunError.Reason]
        REASON_PROVIDER_RATE_LIMITED: _ClassVar[RunError.Reason]
        REASON_PROVIDER_UNAVAILABLE: _ClassVar[RunError.Reason]
        REASON_PROVIDER_INVALID_REQUEST: _ClassVar[RunError.Reason]
        REASON_MODEL_NOT_FOUND: _ClassVar[RunError.Reason]
    REASON_UNSPECIFIED: RunError.Reason
    REASON_INTERNAL: RunError.Reason
    REASON_AGENT_START_FAILED: RunError.Reason
    REASON_AGENT_CRASHED: RunError.Reason
    REASON_OUT_OF_MEMORY: RunError.Reason
    REASON_WORKER_LOST: RunError.Reason
    REASON_MAX_TURNS: RunError.Reason
    REASON_MAX_COST: RunError.Reason
    REASON_OUTPUT_INVALID: RunError.Reason
    REASON_CONTEXT_TOO_LONG: RunError.Reason
    REASON_PROVIDER_AUTHENTICATION: RunError.Reason
    REASON_PROVIDER_BILLING: RunError.Reason
    REASON_PROVIDER_RATE_LIMITED: RunError.Reason
    REASON_PROVIDER_UNAVAILABLE: RunError.Reason
    REASON_PROVIDER_INVALID_REQUEST: RunError.Reason
    REASON_MODEL_NOT_FOUND: RunError.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    reason: RunError.Reason
    message: str
    retryable: bool
    http_status: int
    def __init__(self, reason: _Optional[_Union[RunError.Reason, str]] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., http_status: _Optional[int] = ...) -> None: ...
