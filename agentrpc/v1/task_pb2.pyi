import datetime

from agentrpc.v1 import common_pb2 as _common_pb2
from agentrpc.v1 import report_pb2 as _report_pb2
from agentrpc.v1 import run_pb2 as _run_pb2
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

class Task(_message.Message):
    __slots__ = ("name", "display_name", "description", "labels", "owner", "prompt_template", "variables_schema_json", "default_variables_json", "agent", "options", "tool_groups", "timeout", "inactivity_timeout", "retry_policy", "schedule", "schedule_status", "notifications", "shared", "summary", "create_time", "update_time", "delete_time", "etag", "report")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TOOL_GROUPS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    INACTIVITY_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RETRY_POLICY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_STATUS_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    description: str
    labels: _containers.ScalarMap[str, str]
    owner: str
    prompt_template: str
    variables_schema_json: str
    default_variables_json: str
    agent: str
    options: _session_pb2.SessionOptions
    tool_groups: _containers.RepeatedScalarFieldContainer[str]
    timeout: _duration_pb2.Duration
    inactivity_timeout: _duration_pb2.Duration
    retry_policy: RetryPolicy
    schedule: Schedule
    schedule_status: ScheduleStatus
    notifications: _containers.RepeatedCompositeFieldContainer[TaskNotification]
    shared: bool
    summary: ExecutionSummary
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    etag: str
    report: TaskReport
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., prompt_template: _Optional[str] = ..., variables_schema_json: _Optional[str] = ..., default_variables_json: _Optional[str] = ..., agent: _Optional[str] = ..., options: _Optional[_Union[_session_pb2.SessionOptions, _Mapping]] = ..., tool_groups: _Optional[_Iterable[str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., inactivity_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry_policy: _Optional[_Union[RetryPolicy, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., schedule_status: _Optional[_Union[ScheduleStatus, _Mapping]] = ..., notifications: _Optional[_Iterable[_Union[TaskNotification, _Mapping]]] = ..., shared: _Optional[bool] = ..., summary: _Optional[_Union[ExecutionSummary, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., report: _Optional[_Union[TaskReport, _Mapping]] = ...) -> None: ...

class TaskReport(_message.Message):
    __slots__ = ("format", "template", "states")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    format: _report_pb2.Report.Format
    template: str
    states: _containers.RepeatedScalarFieldContainer[_run_pb2.Run.State]
    def __init__(self, format: _Optional[_Union[_report_pb2.Report.Format, str]] = ..., template: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_run_pb2.Run.State, str]]] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("max_attempts", "backoff")
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_FIELD_NUMBER: _ClassVar[int]
    max_attempts: int
    backoff: _duration_pb2.Duration
    def __init__(self, max_attempts: _Optional[int] = ..., backoff: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TaskNotification(_message.Message):
    __slots__ = ("webhook", "states")
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    webhook: str
    states: _containers.RepeatedScalarFieldContainer[_run_pb2.Run.State]
    def __init__(self, webhook: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_run_pb2.Run.State, str]]] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("crons", "time_zone", "overlap_policy", "catchup_window", "jitter", "start_time", "end_time", "paused", "pause_reason", "pause_after_failures", "variables_json")
    class OverlapPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OVERLAP_POLICY_UNSPECIFIED: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_SKIP: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_BUFFER_ONE: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_BUFFER_ALL: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_CANCEL_OTHER: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_TERMINATE_OTHER: _ClassVar[Schedule.OverlapPolicy]
        OVERLAP_POLICY_ALLOW_ALL: _ClassVar[Schedule.OverlapPolicy]
    OVERLAP_POLICY_UNSPECIFIED: Schedule.OverlapPolicy
    OVERLAP_POLICY_SKIP: Schedule.OverlapPolicy
    OVERLAP_POLICY_BUFFER_ONE: Schedule.OverlapPolicy
    OVERLAP_POLICY_BUFFER_ALL: Schedule.OverlapPolicy
    OVERLAP_POLICY_CANCEL_OTHER: Schedule.OverlapPolicy
    OVERLAP_POLICY_TERMINATE_OTHER: Schedule.OverlapPolicy
    OVERLAP_POLICY_ALLOW_ALL: Schedule.OverlapPolicy
    CRONS_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_POLICY_FIELD_NUMBER: _ClassVar[int]
    CATCHUP_WINDOW_FIELD_NUMBER: _ClassVar[int]
    JITTER_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    PAUSE_AFTER_FAILURES_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    crons: _containers.RepeatedScalarFieldContainer[str]
    time_zone: str
    overlap_policy: Schedule.OverlapPolicy
    catchup_window: _duration_pb2.Duration
    jitter: _duration_pb2.Duration
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    paused: bool
    pause_reason: str
    pause_after_failures: int
    variables_json: str
    def __init__(self, crons: _Optional[_Iterable[str]] = ..., time_zone: _Optional[str] = ..., overlap_policy: _Optional[_Union[Schedule.OverlapPolicy, str]] = ..., catchup_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., jitter: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., paused: _Optional[bool] = ..., pause_reason: _Optional[str] = ..., pause_after_failures: _Optional[int] = ..., variables_json: _Optional[str] = ...) -> None: ...

class ScheduleStatus(_message.Message):
    __slots__ = ("next_times", "last_time", "fired_count", "skipped_count", "missed_count", "buffered_count", "failure_count")
    NEXT_TIMES_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    FIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_COUNT_FIELD_NUMBER: _ClassVar[int]
    next_times: _containers.RepeatedCompositeFieldContainer[_timestamp_pb2.Timestamp]
    last_time: _timestamp_pb2.Timestamp
    fired_count: int
    skipped_count: int
    missed_count: int
    buffered_count: int
    failure_count: int
    def __init__(self, next_times: _Optional[_Iterable[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., fired_count: _Optional[int] = ..., skipped_count: _Optional[int] = ..., missed_count: _Optional[int] = ..., buffered_count: _Optional[int] = ..., failure_count: _Optional[int] = ...) -> None: ...

class ExecutionSummary(_message.Message):
    __slots__ = ("total_count", "open_count", "succeeded_count", "failed_count", "cancelled_count", "success_rate", "mean_duration", "last_execution", "last_execution_time", "usage")
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    OPEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_COUNT_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_DURATION_FIELD_NUMBER: _ClassVar[int]
    LAST_EXECUTION_FIELD_NUMBER: _ClassVar[int]
    LAST_EXECUTION_TIME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    total_count: int
    open_count: int
    succeeded_count: int
    failed_count: int
    cancelled_count: int
    success_rate: float
    mean_duration: _duration_pb2.Duration
    last_execution: str
    last_execution_time: _timestamp_pb2.Timestamp
    usage: _common_pb2.Usage
    def __init__(self, total_count: _Optional[int] = ..., open_count: _Optional[int] = ..., succeeded_count: _Optional[int] = ..., failed_count: _Optional[int] = ..., cancelled_count: _Optional[int] = ..., success_rate: _Optional[float] = ..., mean_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_execution: _Optional[str] = ..., last_execution_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class Execution(_message.Message):
    __slots__ = ("name", "trigger", "state", "creator", "variables_json", "slot_time", "due_time", "buffered", "session", "run", "agent", "attempt", "retry_of", "result", "error", "usage", "tool_call_count", "worker", "create_time", "start_time", "end_time")
    class Trigger(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TRIGGER_UNSPECIFIED: _ClassVar[Execution.Trigger]
        TRIGGER_MANUAL: _ClassVar[Execution.Trigger]
        TRIGGER_SCHEDULE: _ClassVar[Execution.Trigger]
        TRIGGER_BACKFILL: _ClassVar[Execution.Trigger]
        TRIGGER_RETRY: _ClassVar[Execution.Trigger]
    TRIGGER_UNSPECIFIED: Execution.Trigger
    TRIGGER_MANUAL: Execution.Trigger
    TRIGGER_SCHEDULE: Execution.Trigger
    TRIGGER_BACKFILL: Execution.Trigger
    TRIGGER_RETRY: Execution.Trigger
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    SLOT_TIME_FIELD_NUMBER: _ClassVar[int]
    DUE_TIME_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    trigger: Execution.Trigger
    state: _run_pb2.Run.State
    creator: str
    variables_json: str
    slot_time: _timestamp_pb2.Timestamp
    due_time: _timestamp_pb2.Timestamp
    buffered: bool
    session: str
    run: str
    agent: str
    attempt: int
    retry_of: str
    result: _run_pb2.RunResult
    error: _run_pb2.RunError
    usage: _common_pb2.Usage
    tool_call_count: int
    worker: str
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., trigger: _Optional[_Union[Execution.Trigger, str]] = ..., state: _Optional[_Union[_run_pb2.Run.State, str]] = ..., creator: _Optional[str] = ..., variables_json: _Optional[str] = ..., slot_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., due_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., buffered: _Optional[bool] = ..., session: _Optional[str] = ..., run: _Optional[str] = ..., agent: _Optional[str] = ..., attempt: _Optional[int] = ..., retry_of: _Optional[str] = ..., result: _Optional[_Union[_run_pb2.RunResult, _Mapping]] = ..., error: _Optional[_Union[_run_pb2.RunError, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., tool_call_count: _Optional[int] = ..., worker: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TaskTemplate(_message.Message):
    __slots__ = ("id", "display_name", "description", "category", "task")
    ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    id: str
    display_name: str
    description: str
    category: str
    task: Task
    def __init__(self, id: _Optional[str] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., category: _Optional[str] = ..., task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...
