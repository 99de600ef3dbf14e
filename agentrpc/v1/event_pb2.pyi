import datetime

from agentrpc.v1 import approval_pb2 as _approval_pb2
from agentrpc.v1 import common_pb2 as _common_pb2
from agentrpc.v1 import content_pb2 as _content_pb2
from agentrpc.v1 import run_pb2 as _run_pb2
from agentrpc.v1 import session_pb2 as _session_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProcessStart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESS_START_UNSPECIFIED: _ClassVar[ProcessStart]
    PROCESS_START_WARM: _ClassVar[ProcessStart]
    PROCESS_START_COLD: _ClassVar[ProcessStart]
    PROCESS_START_RESUMED: _ClassVar[ProcessStart]
PROCESS_START_UNSPECIFIED: ProcessStart
PROCESS_START_WARM: ProcessStart
PROCESS_START_COLD: ProcessStart
PROCESS_START_RESUMED: ProcessStart

class Event(_message.Message):
    __slots__ = ("sequence", "time", "run", "parent_tool_use_id", "text_delta", "thinking_delta", "tool_input_delta", "message_started", "thinking_progress", "tool_call_progress", "subtask_progress", "activity_changed", "hook_progress", "run_started", "run_state_changed", "run_ended", "session_pause_changed", "user_message", "assistant_message", "message_completed", "messages_retracted", "conversation_rewound", "tool_call_started", "tool_call_finished", "approval_requested", "approval_resolved", "session_grant_revoked", "agent_initialized", "session_state_changed", "context_compacted", "conversation_reset", "model_changed", "model_call_retried", "rate_limit_changed", "notice", "network_access", "subtask_started", "subtask_updated", "subtask_ended", "hook_started", "hook_finished", "raw_frame")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    PARENT_TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    THINKING_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOOL_INPUT_DELTA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_STARTED_FIELD_NUMBER: _ClassVar[int]
    THINKING_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUBTASK_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    HOOK_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RUN_STARTED_FIELD_NUMBER: _ClassVar[int]
    RUN_STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    RUN_ENDED_FIELD_NUMBER: _ClassVar[int]
    SESSION_PAUSE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    USER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_RETRACTED_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_REWOUND_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_STARTED_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_FINISHED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_RESOLVED_FIELD_NUMBER: _ClassVar[int]
    SESSION_GRANT_REVOKED_FIELD_NUMBER: _ClassVar[int]
    AGENT_INITIALIZED_FIELD_NUMBER: _ClassVar[int]
    SESSION_STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_COMPACTED_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_RESET_FIELD_NUMBER: _ClassVar[int]
    MODEL_CHANGED_FIELD_NUMBER: _ClassVar[int]
    MODEL_CALL_RETRIED_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMIT_CHANGED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_ACCESS_FIELD_NUMBER: _ClassVar[int]
    SUBTASK_STARTED_FIELD_NUMBER: _ClassVar[int]
    SUBTASK_UPDATED_FIELD_NUMBER: _ClassVar[int]
    SUBTASK_ENDED_FIELD_NUMBER: _ClassVar[int]
    HOOK_STARTED_FIELD_NUMBER: _ClassVar[int]
    HOOK_FINISHED_FIELD_NUMBER: _ClassVar[int]
    RAW_FRAME_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    run: str
    parent_tool_use_id: str
    text_delta: TextDelta
    thinking_delta: ThinkingDelta
    tool_input_delta: ToolInputDelta
    message_started: MessageStarted
    thinking_progress: ThinkingProgress
    tool_call_progress: ToolCallProgress
    subtask_progress: SubtaskProgress
    activity_changed: ActivityChanged
    hook_progress: HookProgress
    run_started: RunStarted
    run_state_changed: RunStateChanged
    run_ended: RunEnded
    session_pause_changed: SessionPauseChanged
    user_message: UserMessage
    assistant_message: AssistantMessage
    message_completed: MessageCompleted
    messages_retracted: MessagesRetracted
    conversation_rewound: ConversationRewound
    tool_call_started: ToolCallStarted
    tool_call_finished: ToolCallFinished
    approval_requested: ApprovalRequested
    approval_resolved: ApprovalResolved
    session_grant_revoked: SessionGrantRevoked
    agent_initialized: AgentInitialized
    session_state_changed: SessionStateChanged
    context_compacted: ContextCompacted
    conversation_reset: ConversationReset
    model_changed: ModelChanged
    model_call_retried: ModelCallRetried
    rate_limit_changed: RateLimitChanged
    notice: Notice
    network_access: NetworkAccess
    subtask_started: SubtaskStarted
    subtask_updated: SubtaskUpdated
    subtask_ended: SubtaskEnded
    hook_started: HookStarted
    hook_finished: HookFinished
    raw_frame: RawFrame
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., run: _Optional[str] = ..., parent_tool_use_id: _Optional[str] = ..., text_delta: _Optional[_Union[TextDelta, _Mapping]] = ..., thinking_delta: _Optional[_Union[ThinkingDelta, _Mapping]] = ..., tool_input_delta: _Optional[_Union[ToolInputDelta, _Mapping]] = ..., message_started: _Optional[_Union[MessageStarted, _Mapping]] = ..., thinking_progress: _Optional[_Union[ThinkingProgress, _Mapping]] = ..., tool_call_progress: _Optional[_Union[ToolCallProgress, _Mapping]] = ..., subtask_progress: _Optional[_Union[SubtaskProgress, _Mapping]] = ..., activity_changed: _Optional[_Union[ActivityChanged, _Mapping]] = ..., hook_progress: _Optional[_Union[HookProgress, _Mapping]] = ..., run_started: _Optional[_Union[RunStarted, _Mapping]] = ..., run_state_changed: _Optional[_Union[RunStateChanged, _Mapping]] = ..., run_ended: _Optional[_Union[RunEnded, _Mapping]] = ..., session_pause_changed: _Optional[_Union[SessionPauseChanged, _Mapping]] = ..., user_message: _Optional[_Union[UserMessage, _Mapping]] = ..., assistant_message: _Optional[_Union[AssistantMessage, _Mapping]] = ..., message_completed: _Optional[_Union[MessageCompleted, _Mapping]] = ..., messages_retracted: _Optional[_Union[MessagesRetracted, _Mapping]] = ..., conversation_rewound: _Optional[_Union[ConversationRewound, _Mapping]] = ..., tool_call_started: _Optional[_Union[ToolCallStarted, _Mapping]] = ..., tool_call_finished: _Optional[_Union[ToolCallFinished, _Mapping]] = ..., approval_requested: _Optional[_Union[ApprovalRequested, _Mapping]] = ..., approval_resolved: _Optional[_Union[ApprovalResolved, _Mapping]] = ..., session_grant_revoked: _Optional[_Union[SessionGrantRevoked, _Mapping]] = ..., agent_initialized: _Optional[_Union[AgentInitialized, _Mapping]] = ..., session_state_changed: _Optional[_Union[SessionStateChanged, _Mapping]] = ..., context_compacted: _Optional[_Union[ContextCompacted, _Mapping]] = ..., conversation_reset: _Optional[_Union[ConversationReset, _Mapping]] = ..., model_changed: _Optional[_Union[ModelChanged, _Mapping]] = ..., model_call_retried: _Optional[_Union[ModelCallRetried, _Mapping]] = ..., rate_limit_changed: _Optional[_Union[RateLimitChanged, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., network_access: _Optional[_Union[NetworkAccess, _Mapping]] = ..., subtask_started: _Optional[_Union[SubtaskStarted, _Mapping]] = ..., subtask_updated: _Optional[_Union[SubtaskUpdated, _Mapping]] = ..., subtask_ended: _Optional[_Union[SubtaskEnded, _Mapping]] = ..., hook_started: _Optional[_Union[HookStarted, _Mapping]] = ..., hook_finished: _Optional[_Union[HookFinished, _Mapping]] = ..., raw_frame: _Optional[_Union[RawFrame, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("message_id", "block_index", "offset", "text")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    block_index: int
    offset: int
    text: str
    def __init__(self, message_id: _Optional[str] = ..., block_index: _Optional[int] = ..., offset: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ThinkingDelta(_message.Message):
    __slots__ = ("message_id", "block_index", "offset", "thinking")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    block_index: int
    offset: int
    thinking: str
    def __init__(self, message_id: _Optional[str] = ..., block_index: _Optional[int] = ..., offset: _Optional[int] = ..., thinking: _Optional[str] = ...) -> None: ...

class ToolInputDelta(_message.Message):
    __slots__ = ("message_id", "block_index", "offset", "partial_json", "tool_use_id", "tool_name")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    block_index: int
    offset: int
    partial_json: str
    tool_use_id: str
    tool_name: str
    def __init__(self, message_id: _Optional[str] = ..., block_index: _Optional[int] = ..., offset: _Optional[int] = ..., partial_json: _Optional[str] = ..., tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ...) -> None: ...

class MessageStarted(_message.Message):
    __slots__ = ("message_id", "model")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    model: str
    def __init__(self, message_id: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ThinkingProgress(_message.Message):
    __slots__ = ("estimated_tokens",)
    ESTIMATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    estimated_tokens: int
    def __init__(self, estimated_tokens: _Optional[int] = ...) -> None: ...

class ToolCallProgress(_message.Message):
    __slots__ = ("tool_use_id", "tool_name", "elapsed")
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    tool_name: str
    elapsed: _duration_pb2.Duration
    def __init__(self, tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SubtaskProgress(_message.Message):
    __slots__ = ("subtask_id", "description", "last_tool_name", "usage")
    SUBTASK_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LAST_TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    subtask_id: str
    description: str
    last_tool_name: str
    usage: SubtaskUsage
    def __init__(self, subtask_id: _Optional[str] = ..., description: _Optional[str] = ..., last_tool_name: _Optional[str] = ..., usage: _Optional[_Union[SubtaskUsage, _Mapping]] = ...) -> None: ...

class ActivityChanged(_message.Message):
    __slots__ = ("activity",)
    class Activity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTIVITY_UNSPECIFIED: _ClassVar[ActivityChanged.Activity]
        ACTIVITY_WAITING_FOR_MODEL: _ClassVar[ActivityChanged.Activity]
        ACTIVITY_COMPACTING: _ClassVar[ActivityChanged.Activity]
    ACTIVITY_UNSPECIFIED: ActivityChanged.Activity
    ACTIVITY_WAITING_FOR_MODEL: ActivityChanged.Activity
    ACTIVITY_COMPACTING: ActivityChanged.Activity
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    activity: ActivityChanged.Activity
    def __init__(self, activity: _Optional[_Union[ActivityChanged.Activity, str]] = ...) -> None: ...

class HookProgress(_message.Message):
    __slots__ = ("hook_id", "output")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    output: str
    def __init__(self, hook_id: _Optional[str] = ..., output: _Optional[str] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("attempt", "process_start")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROCESS_START_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    process_start: ProcessStart
    def __init__(self, attempt: _Optional[int] = ..., process_start: _Optional[_Union[ProcessStart, str]] = ...) -> None: ...

class RunStateChanged(_message.Message):
    __slots__ = ("previous_state", "state", "message", "in_doubt_calls")
    PREVIOUS_STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_CALLS_FIELD_NUMBER: _ClassVar[int]
    previous_state: _run_pb2.Run.State
    state: _run_pb2.Run.State
    message: str
    in_doubt_calls: _containers.RepeatedCompositeFieldContainer[_run_pb2.CallInDoubt]
    def __init__(self, previous_state: _Optional[_Union[_run_pb2.Run.State, str]] = ..., state: _Optional[_Union[_run_pb2.Run.State, str]] = ..., message: _Optional[str] = ..., in_doubt_calls: _Optional[_Iterable[_Union[_run_pb2.CallInDoubt, _Mapping]]] = ...) -> None: ...

class SessionPauseChanged(_message.Message):
    __slots__ = ("paused", "reason")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    reason: str
    def __init__(self, paused: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("state", "result", "error", "usage", "model_usage", "stop_receipt")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_USAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_RECEIPT_FIELD_NUMBER: _ClassVar[int]
    state: _run_pb2.Run.State
    result: _run_pb2.RunResult
    error: _run_pb2.RunError
    usage: _common_pb2.Usage
    model_usage: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelUsage]
    stop_receipt: _run_pb2.StopReceipt
    def __init__(self, state: _Optional[_Union[_run_pb2.Run.State, str]] = ..., result: _Optional[_Union[_run_pb2.RunResult, _Mapping]] = ..., error: _Optional[_Union[_run_pb2.RunError, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., model_usage: _Optional[_Iterable[_Union[_common_pb2.ModelUsage, _Mapping]]] = ..., stop_receipt: _Optional[_Union[_run_pb2.StopReceipt, _Mapping]] = ...) -> None: ...

class UserMessage(_message.Message):
    __slots__ = ("transcript_uuid", "blocks", "origin")
    class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ORIGIN_UNSPECIFIED: _ClassVar[UserMessage.Origin]
        ORIGIN_PROMPT: _ClassVar[UserMessage.Origin]
        ORIGIN_SUBTASK: _ClassVar[UserMessage.Origin]
        ORIGIN_COMPACTION: _ClassVar[UserMessage.Origin]
        ORIGIN_AGENT: _ClassVar[UserMessage.Origin]
        ORIGIN_RELAYED: _ClassVar[UserMessage.Origin]
        ORIGIN_STEER: _ClassVar[UserMessage.Origin]
    ORIGIN_UNSPECIFIED: UserMessage.Origin
    ORIGIN_PROMPT: UserMessage.Origin
    ORIGIN_SUBTASK: UserMessage.Origin
    ORIGIN_COMPACTION: UserMessage.Origin
    ORIGIN_AGENT: UserMessage.Origin
    ORIGIN_RELAYED: UserMessage.Origin
    ORIGIN_STEER: UserMessage.Origin
    TRANSCRIPT_UUID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    transcript_uuid: str
    blocks: _containers.RepeatedCompositeFieldContainer[_content_pb2.ContentBlock]
    origin: UserMessage.Origin
    def __init__(self, transcript_uuid: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[_content_pb2.ContentBlock, _Mapping]]] = ..., origin: _Optional[_Union[UserMessage.Origin, str]] = ...) -> None: ...

class AssistantMessage(_message.Message):
    __slots__ = ("message_id", "transcript_uuid", "model", "blocks", "error", "interrupted", "synthetic")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_UUID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    transcript_uuid: str
    model: str
    blocks: _containers.RepeatedCompositeFieldContainer[_content_pb2.ContentBlock]
    error: str
    interrupted: bool
    synthetic: bool
    def __init__(self, message_id: _Optional[str] = ..., transcript_uuid: _Optional[str] = ..., model: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[_content_pb2.ContentBlock, _Mapping]]] = ..., error: _Optional[str] = ..., interrupted: _Optional[bool] = ..., synthetic: _Optional[bool] = ...) -> None: ...

class MessageCompleted(_message.Message):
    __slots__ = ("message_id", "stop_reason", "usage", "time_to_first_token", "duration", "model")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    stop_reason: str
    usage: _common_pb2.Usage
    time_to_first_token: _duration_pb2.Duration
    duration: _duration_pb2.Duration
    model: str
    def __init__(self, message_id: _Optional[str] = ..., stop_reason: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., time_to_first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model: _Optional[str] = ...) -> None: ...

class MessagesRetracted(_message.Message):
    __slots__ = ("transcript_uuids", "reason")
    TRANSCRIPT_UUIDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    transcript_uuids: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, transcript_uuids: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ConversationRewound(_message.Message):
    __slots__ = ("to_sequence", "workspace_restored")
    TO_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_RESTORED_FIELD_NUMBER: _ClassVar[int]
    to_sequence: int
    workspace_restored: bool
    def __init__(self, to_sequence: _Optional[int] = ..., workspace_restored: _Optional[bool] = ...) -> None: ...

class ToolCallStarted(_message.Message):
    __slots__ = ("tool_use_id", "tool_name", "changed_input_json")
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    CHANGED_INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    tool_name: str
    changed_input_json: str
    def __init__(self, tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., changed_input_json: _Optional[str] = ...) -> None: ...

class ToolCallFinished(_message.Message):
    __slots__ = ("tool_use_id", "tool_name", "outcome", "content", "result_json", "result_omitted", "duration", "denial_reason", "denied_by")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[ToolCallFinished.Outcome]
        OUTCOME_SUCCEEDED: _ClassVar[ToolCallFinished.Outcome]
        OUTCOME_FAILED: _ClassVar[ToolCallFinished.Outcome]
        OUTCOME_DENIED: _ClassVar[ToolCallFinished.Outcome]
        OUTCOME_INTERRUPTED: _ClassVar[ToolCallFinished.Outcome]
        OUTCOME_UNKNOWN: _ClassVar[ToolCallFinished.Outcome]
    OUTCOME_UNSPECIFIED: ToolCallFinished.Outcome
    OUTCOME_SUCCEEDED: ToolCallFinished.Outcome
    OUTCOME_FAILED: ToolCallFinished.Outcome
    OUTCOME_DENIED: ToolCallFinished.Outcome
    OUTCOME_INTERRUPTED: ToolCallFinished.Outcome
    OUTCOME_UNKNOWN: ToolCallFinished.Outcome
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    RESULT_OMITTED_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    DENIAL_REASON_FIELD_NUMBER: _ClassVar[int]
    DENIED_BY_FIELD_NUMBER: _ClassVar[int]
    tool_use_id: str
    tool_name: str
    outcome: ToolCallFinished.Outcome
    content: _containers.RepeatedCompositeFieldContainer[_content_pb2.ContentBlock]
    result_json: str
    result_omitted: _common_pb2.Omission
    duration: _duration_pb2.Duration
    denial_reason: str
    denied_by: str
    def __init__(self, tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., outcome: _Optional[_Union[ToolCallFinished.Outcome, str]] = ..., content: _Optional[_Iterable[_Union[_content_pb2.ContentBlock, _Mapping]]] = ..., result_json: _Optional[str] = ..., result_omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., denial_reason: _Optional[str] = ..., denied_by: _Optional[str] = ...) -> None: ...

class ApprovalRequested(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: _approval_pb2.Approval
    def __init__(self, approval: _Optional[_Union[_approval_pb2.Approval, _Mapping]] = ...) -> None: ...

class ApprovalResolved(_message.Message):
    __slots__ = ("approval", "tool_use_id", "state", "resolution")
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    approval: str
    tool_use_id: str
    state: _approval_pb2.Approval.State
    resolution: _approval_pb2.Resolution
    def __init__(self, approval: _Optional[str] = ..., tool_use_id: _Optional[str] = ..., state: _Optional[_Union[_approval_pb2.Approval.State, str]] = ..., resolution: _Optional[_Union[_approval_pb2.Resolution, _Mapping]] = ...) -> None: ...

class SessionGrantRevoked(_message.Message):
    __slots__ = ("grant", "revoker")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    REVOKER_FIELD_NUMBER: _ClassVar[int]
    grant: _session_pb2.SessionGrant
    revoker: str
    def __init__(self, grant: _Optional[_Union[_session_pb2.SessionGrant, _Mapping]] = ..., revoker: _Optional[str] = ...) -> None: ...

class AgentInitialized(_message.Message):
    __slots__ = ("model", "permission_mode", "tools", "mcp_servers", "subagents", "slash_commands", "skills", "agent_version", "claude_session_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PERMISSION_MODE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    MCP_SERVERS_FIELD_NUMBER: _ClassVar[int]
    SUBAGENTS_FIELD_NUMBER: _ClassVar[int]
    SLASH_COMMANDS_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLAUDE_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    permission_mode: _common_pb2.PermissionMode
    tools: _containers.RepeatedScalarFieldContainer[str]
    mcp_servers: _containers.RepeatedCompositeFieldContainer[McpServerStatus]
    subagents: _containers.RepeatedScalarFieldContainer[str]
    slash_commands: _containers.RepeatedScalarFieldContainer[str]
    skills: _containers.RepeatedScalarFieldContainer[str]
    agent_version: str
    claude_session_id: str
    def __init__(self, model: _Optional[str] = ..., permission_mode: _Optional[_Union[_common_pb2.PermissionMode, str]] = ..., tools: _Optional[_Iterable[str]] = ..., mcp_servers: _Optional[_Iterable[_Union[McpServerStatus, _Mapping]]] = ..., subagents: _Optional[_Iterable[str]] = ..., slash_commands: _Optional[_Iterable[str]] = ..., skills: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ..., claude_session_id: _Optional[str] = ...) -> None: ...

class McpServerStatus(_message.Message):
    __slots__ = ("name", "status")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class SessionStateChanged(_message.Message):
    __slots__ = ("previous_state", "state")
    PREVIOUS_STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    previous_state: _session_pb2.Session.State
    state: _session_pb2.Session.State
    def __init__(self, previous_state: _Optional[_Union[_session_pb2.Session.State, str]] = ..., state: _Optional[_Union[_session_pb2.Session.State, str]] = ...) -> None: ...

class ContextCompacted(_message.Message):
    __slots__ = ("manual", "tokens_before", "tokens_after", "duration")
    MANUAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_AFTER_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    manual: bool
    tokens_before: int
    tokens_after: int
    duration: _duration_pb2.Duration
    def __init__(self, manual: _Optional[bool] = ..., tokens_before: _Optional[int] = ..., tokens_after: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ConversationReset(_message.Message):
    __slots__ = ("claude_session_id",)
    CLAUDE_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    claude_session_id: str
    def __init__(self, claude_session_id: _Optional[str] = ...) -> None: ...

class ModelChanged(_message.Message):
    __slots__ = ("previous_model", "model", "reason")
    PREVIOUS_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    previous_model: str
    model: str
    reason: str
    def __init__(self, previous_model: _Optional[str] = ..., model: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ModelCallRetried(_message.Message):
    __slots__ = ("attempt", "max_attempts", "retry_delay", "http_status", "error")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    max_attempts: int
    retry_delay: _duration_pb2.Duration
    http_status: int
    error: str
    def __init__(self, attempt: _Optional[int] = ..., max_attempts: _Optional[int] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., http_status: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class RateLimitChanged(_message.Message):
    __slots__ = ("status", "window", "utilization", "reset_time")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    status: str
    window: str
    utilization: float
    reset_time: _timestamp_pb2.Timestamp
    def __init__(self, status: _Optional[str] = ..., window: _Optional[str] = ..., utilization: _Optional[float] = ..., reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("level", "code", "text")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Notice.Level]
        LEVEL_INFO: _ClassVar[Notice.Level]
        LEVEL_WARNING: _ClassVar[Notice.Level]
    LEVEL_UNSPECIFIED: Notice.Level
    LEVEL_INFO: Notice.Level
    LEVEL_WARNING: Notice.Level
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    level: Notice.Level
    code: str
    text: str
    def __init__(self, level: _Optional[_Union[Notice.Level, str]] = ..., code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class NetworkAccess(_message.Message):
    __slots__ = ("host", "port", "decision", "rule", "traffic", "further_destinations", "credential")
    class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DECISION_UNSPECIFIED: _ClassVar[NetworkAccess.Decision]
        DECISION_ALLOWED: _ClassVar[NetworkAccess.Decision]
        DECISION_DENIED: _ClassVar[NetworkAccess.Decision]
    DECISION_UNSPECIFIED: NetworkAccess.Decision
    DECISION_ALLOWED: NetworkAccess.Decision
    DECISION_DENIED: NetworkAccess.Decision
    class Traffic(_message.Message):
        __slots__ = ("connections", "bytes_sent", "bytes_received")
        CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
        BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
        BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
        connections: int
        bytes_sent: int
        bytes_received: int
        def __init__(self, connections: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ...) -> None: ...
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    FURTHER_DESTINATIONS_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    decision: NetworkAccess.Decision
    rule: str
    traffic: NetworkAccess.Traffic
    further_destinations: int
    credential: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., decision: _Optional[_Union[NetworkAccess.Decision, str]] = ..., rule: _Optional[str] = ..., traffic: _Optional[_Union[NetworkAccess.Traffic, _Mapping]] = ..., further_destinations: _Optional[int] = ..., credential: _Optional[str] = ...) -> None: ...

class SubtaskStarted(_message.Message):
    __slots__ = ("subtask_id", "tool_use_id", "type", "subagent", "description", "background", "parent_subtask_id")
    SUBTASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SUBAGENT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_SUBTASK_ID_FIELD_NUMBER: _ClassVar[int]
    subtask_id: str
    tool_use_id: str
    type: str
    subagent: str
    description: str
    background: bool
    parent_subtask_id: str
    def __init__(self, subtask_id: _Optional[str] = ..., tool_use_id: _Optional[str] = ..., type: _Optional[str] = ..., subagent: _Optional[str] = ..., description: _Optional[str] = ..., background: _Optional[bool] = ..., parent_subtask_id: _Optional[str] = ...) -> None: ...

class SubtaskUpdated(_message.Message):
    __slots__ = ("subtask_id", "status", "background")
    SUBTASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    subtask_id: str
    status: str
    background: bool
    def __init__(self, subtask_id: _Optional[str] = ..., status: _Optional[str] = ..., background: _Optional[bool] = ...) -> None: ...

class SubtaskEnded(_message.Message):
    __slots__ = ("subtask_id", "outcome", "summary", "usage")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[SubtaskEnded.Outcome]
        OUTCOME_COMPLETED: _ClassVar[SubtaskEnded.Outcome]
        OUTCOME_FAILED: _ClassVar[SubtaskEnded.Outcome]
        OUTCOME_STOPPED: _ClassVar[SubtaskEnded.Outcome]
    OUTCOME_UNSPECIFIED: SubtaskEnded.Outcome
    OUTCOME_COMPLETED: SubtaskEnded.Outcome
    OUTCOME_FAILED: SubtaskEnded.Outcome
    OUTCOME_STOPPED: SubtaskEnded.Outcome
    SUBTASK_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    subtask_id: str
    outcome: SubtaskEnded.Outcome
    summary: str
    usage: SubtaskUsage
    def __init__(self, subtask_id: _Optional[str] = ..., outcome: _Optional[_Union[SubtaskEnded.Outcome, str]] = ..., summary: _Optional[str] = ..., usage: _Optional[_Union[SubtaskUsage, _Mapping]] = ...) -> None: ...

class SubtaskUsage(_message.Message):
    __slots__ = ("total_tokens", "tool_call_count", "duration")
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    total_tokens: int
    tool_call_count: int
    duration: _duration_pb2.Duration
    def __init__(self, total_tokens: _Optional[int] = ..., tool_call_count: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class HookStarted(_message.Message):
    __slots__ = ("hook_id", "hook_name", "hook_event")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    HOOK_NAME_FIELD_NUMBER: _ClassVar[int]
    HOOK_EVENT_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    hook_name: str
    hook_event: str
    def __init__(self, hook_id: _Optional[str] = ..., hook_name: _Optional[str] = ..., hook_event: _Optional[str] = ...) -> None: ...

class HookFinished(_message.Message):
    __slots__ = ("hook_id", "hook_name", "hook_event", "outcome", "exit_code", "output")
    HOOK_ID_FIELD_NUMBER: _ClassVar[int]
    HOOK_NAME_FIELD_NUMBER: _ClassVar[int]
    HOOK_EVENT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    hook_id: str
    hook_name: str
    hook_event: str
    outcome: str
    exit_code: int
    output: str
    def __init__(self, hook_id: _Optional[str] = ..., hook_name: _Optional[str] = ..., hook_event: _Optional[str] = ..., outcome: _Optional[str] = ..., exit_code: _Optional[int] = ..., output: _Optional[str] = ...) -> None: ...

class RawFrame(_message.Message):
    __slots__ = ("type", "subtype", "frame_json", "omitted")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SUBTYPE_FIELD_NUMBER: _ClassVar[int]
    FRAME_JSON_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    type: str
    subtype: str
    frame_json: str
    omitted: _common_pb2.Omission
    def __init__(self, type: _Optional[str] = ..., subtype: _Optional[str] = ..., frame_json: _Optional[str] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...
