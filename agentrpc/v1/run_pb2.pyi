import datetime

from agentrpc.v1 import common_pb2 as _common_pb2
from agentrpc.v1 import session_pb2 as _session_pb2
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
    __slots__ = ("name", "prompt", "conflict_policy", "timeout", "labels", "state", "creator", "attempt", "pending_approvals", "first_sequence", "last_sequence", "create_time", "start_time", "end_time", "result", "error", "usage", "model_usage", "prompt_omitted", "inactivity_timeout", "waiting_on", "worker", "last_event_time", "in_doubt_calls", "retry_of", "stop_receipt")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Run.State]
        STATE_QUEUED: _ClassVar[Run.State]
        STATE_RUNNING: _ClassVar[Run.State]
        STATE_REQUIRES_ACTION: _ClassVar[Run.State]
        STATE_UNKNOWN_OUTCOME: _ClassVar[Run.State]
        STATE_SUCCEEDED: _ClassVar[Run.State]
        STATE_FAILED: _ClassVar[Run.State]
        STATE_CANCELLED: _ClassVar[Run.State]
        STATE_EXPIRED: _ClassVar[Run.State]
    STATE_UNSPECIFIED: Run.State
    STATE_QUEUED: Run.State
    STATE_RUNNING: Run.State
    STATE_REQUIRES_ACTION: Run.State
    STATE_UNKNOWN_OUTCOME: Run.State
    STATE_SUCCEEDED: Run.State
    STATE_FAILED: Run.State
    STATE_CANCELLED: Run.State
    STATE_EXPIRED: Run.State
    class ConflictPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CONFLICT_POLICY_UNSPECIFIED: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_ENQUEUE: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_REJECT: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_INTERRUPT: _ClassVar[Run.ConflictPolicy]
        CONFLICT_POLICY_ROLLBACK: _ClassVar[Run.ConflictPolicy]
    CONFLICT_POLICY_UNSPECIFIED: Run.ConflictPolicy
    CONFLICT_POLICY_ENQUEUE: Run.ConflictPolicy
    CONFLICT_POLICY_REJECT: Run.ConflictPolicy
    CONFLICT_POLICY_INTERRUPT: Run.ConflictPolicy
    CONFLICT_POLICY_ROLLBACK: Run.ConflictPolicy
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
    INACTIVITY_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    WAITING_ON_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_CALLS_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    STOP_RECEIPT_FIELD_NUMBER: _ClassVar[int]
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
    inactivity_timeout: _duration_pb2.Duration
    waiting_on: WaitingOn
    worker: str
    last_event_time: _timestamp_pb2.Timestamp
    in_doubt_calls: _containers.RepeatedCompositeFieldContainer[CallInDoubt]
    retry_of: str
    stop_receipt: StopReceipt
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[str] = ..., conflict_policy: _Optional[_Union[Run.ConflictPolicy, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[Run.State, str]] = ..., creator: _Optional[str] = ..., attempt: _Optional[int] = ..., pending_approvals: _Optional[_Iterable[str]] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., result: _Optional[_Union[RunResult, _Mapping]] = ..., error: _Optional[_Union[RunError, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model_usage: _Optional[_Iterable[_Union[_common_pb2.ModelUsage, _Mapping]]] = ..., prompt_omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ..., inactivity_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., waiting_on: _Optional[_Union[WaitingOn, _Mapping]] = ..., worker: _Optional[str] = ..., last_event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., in_doubt_calls: _Optional[_Iterable[_Union[CallInDoubt, _Mapping]]] = ..., retry_of: _Optional[str] = ..., stop_receipt: _Optional[_Union[StopReceipt, _Mapping]] = ...) -> None: ...

class WaitingOn(_message.Message):
    __slots__ = ("reason", "since", "subject", "needed_isolation_level", "worker_isolation_levels")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[WaitingOn.Reason]
        REASON_QUEUE: _ClassVar[WaitingOn.Reason]
        REASON_CAPACITY: _ClassVar[WaitingOn.Reason]
        REASON_LEASE: _ClassVar[WaitingOn.Reason]
        REASON_PAUSE: _ClassVar[WaitingOn.Reason]
        REASON_APPROVAL: _ClassVar[WaitingOn.Reason]
        REASON_MODEL: _ClassVar[WaitingOn.Reason]
        REASON_TOOL: _ClassVar[WaitingOn.Reason]
        REASON_DECISION: _ClassVar[WaitingOn.Reason]
        REASON_ISOLATION: _ClassVar[WaitingOn.Reason]
    REASON_UNSPECIFIED: WaitingOn.Reason
    REASON_QUEUE: WaitingOn.Reason
    REASON_CAPACITY: WaitingOn.Reason
    REASON_LEASE: WaitingOn.Reason
    REASON_PAUSE: WaitingOn.Reason
    REASON_APPROVAL: WaitingOn.Reason
    REASON_MODEL: WaitingOn.Reason
    REASON_TOOL: WaitingOn.Reason
    REASON_DECISION: WaitingOn.Reason
    REASON_ISOLATION: WaitingOn.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NEEDED_ISOLATION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    WORKER_ISOLATION_LEVELS_FIELD_NUMBER: _ClassVar[int]
    reason: WaitingOn.Reason
    since: _timestamp_pb2.Timestamp
    subject: str
    needed_isolation_level: _session_pb2.Session.IsolationLevel
    worker_isolation_levels: _containers.RepeatedScalarFieldContainer[_session_pb2.Session.IsolationLevel]
    def __init__(self, reason: _Optional[_Union[WaitingOn.Reason, str]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., subject: _Optional[str] = ..., needed_isolation_level: _Optional[_Union[_session_pb2.Session.IsolationLevel, str]] = ..., worker_isolation_levels: _Optional[_Iterable[_Union[_session_pb2.Session.IsolationLevel, str]]] = ...) -> None: ...

class CallInDoubt(_message.Message):
    __slots__ = ("tool_use_id", "tool_name", "start_time")
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    tool_name: str
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StopReceipt(_message.Message):
    __slots__ = ("process_count", "confirmed", "elapsed", "cost_usd")
    PROCESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    process_count: int
    confirmed: bool
    elapsed: _duration_pb2.Duration
    cost_usd: float
    def __init__(self, process_count: _Optional[int] = ..., confirmed: _Optional[bool] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cost_usd: _Optional[float] = ...) -> None: ...

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
        REASON_POISON_RUN: _ClassVar[RunError.Reason]
        REASON_WORKSPACE_LOST: _ClassVar[RunError.Reason]
        REASON_INACTIVE: _ClassVar[RunError.Reason]
        REASON_UNDECIDED: _ClassVar[RunError.Reason]
        REASON_TASK_INVALID: _ClassVar[RunError.Reason]
        REASON_AGENT_MISBEHAVED: _ClassVar[RunError.Reason]
        REASON_MCP_SERVER_CHANGED: _ClassVar[RunError.Reason]
        REASON_TOO_MANY_PROCESSES: _ClassVar[RunError.Reason]
        REASON_WORKSPACE_FULL: _ClassVar[RunError.Reason]
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
    REASON_POISON_RUN: RunError.Reason
    REASON_WORKSPACE_LOST: RunError.Reason
    REASON_INACTIVE: RunError.Reason
    REASON_UNDECIDED: RunError.Reason
    REASON_TASK_INVALID: RunError.Reason
    REASON_AGENT_MISBEHAVED: RunError.Reason
    REASON_MCP_SERVER_CHANGED: RunError.Reason
    REASON_TOO_MANY_PROCESSES: RunError.Reason
    REASON_WORKSPACE_FULL: RunError.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    reason: RunError.Reason
    message: str
    retryable: bool
    http_status: int
    def __init__(self, reason: _Optional[_Union[RunError.Reason, str]] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., http_status: _Optional[int] = ...) -> None: ...
