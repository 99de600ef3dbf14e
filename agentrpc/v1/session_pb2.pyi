import datetime

from agentrpc.v1 import archive_pb2 as _archive_pb2
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

class RecoveryPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECOVERY_POLICY_UNSPECIFIED: _ClassVar[RecoveryPolicy]
    RECOVERY_POLICY_RESUME: _ClassVar[RecoveryPolicy]
    RECOVERY_POLICY_RESUME_ALWAYS: _ClassVar[RecoveryPolicy]
    RECOVERY_POLICY_FAIL: _ClassVar[RecoveryPolicy]

class Effort(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EFFORT_UNSPECIFIED: _ClassVar[Effort]
    EFFORT_LOW: _ClassVar[Effort]
    EFFORT_MEDIUM: _ClassVar[Effort]
    EFFORT_HIGH: _ClassVar[Effort]
    EFFORT_XHIGH: _ClassVar[Effort]
    EFFORT_MAX: _ClassVar[Effort]
RECOVERY_POLICY_UNSPECIFIED: RecoveryPolicy
RECOVERY_POLICY_RESUME: RecoveryPolicy
RECOVERY_POLICY_RESUME_ALWAYS: RecoveryPolicy
RECOVERY_POLICY_FAIL: RecoveryPolicy
EFFORT_UNSPECIFIED: Effort
EFFORT_LOW: Effort
EFFORT_MEDIUM: Effort
EFFORT_HIGH: Effort
EFFORT_XHIGH: Effort
EFFORT_MAX: Effort

class Session(_message.Message):
    __slots__ = ("name", "display_name", "description", "labels", "owner", "state", "options", "active_run", "pending_approvals", "last_sequence", "usage", "run_count", "tool_call_count", "claude_session_id", "create_time", "update_time", "archive_time", "delete_time", "etag", "pause_time", "forked_from", "agent", "archive_storage_state", "restore_needed", "isolation_level", "imposed_rules", "rule_warnings")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Session.State]
        STATE_IDLE: _ClassVar[Session.State]
        STATE_RUNNING: _ClassVar[Session.State]
        STATE_REQUIRES_ACTION: _ClassVar[Session.State]
        STATE_ARCHIVED: _ClassVar[Session.State]
        STATE_FAILED: _ClassVar[Session.State]
    STATE_UNSPECIFIED: Session.State
    STATE_IDLE: Session.State
    STATE_RUNNING: Session.State
    STATE_REQUIRES_ACTION: Session.State
    STATE_ARCHIVED: Session.State
    STATE_FAILED: Session.State
    class IsolationLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ISOLATION_LEVEL_UNSPECIFIED: _ClassVar[Session.IsolationLevel]
        ISOLATION_LEVEL_SANDBOX: _ClassVar[Session.IsolationLevel]
        ISOLATION_LEVEL_NONE: _ClassVar[Session.IsolationLevel]
        ISOLATION_LEVEL_USER: _ClassVar[Session.IsolationLevel]
    ISOLATION_LEVEL_UNSPECIFIED: Session.IsolationLevel
    ISOLATION_LEVEL_SANDBOX: Session.IsolationLevel
    ISOLATION_LEVEL_NONE: Session.IsolationLevel
    ISOLATION_LEVEL_USER: Session.IsolationLevel
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
    STATE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_RUN_FIELD_NUMBER: _ClassVar[int]
    PENDING_APPROVALS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLAUDE_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    PAUSE_TIME_FIELD_NUMBER: _ClassVar[int]
    FORKED_FROM_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_STORAGE_STATE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_NEEDED_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    IMPOSED_RULES_FIELD_NUMBER: _ClassVar[int]
    RULE_WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    description: str
    labels: _containers.ScalarMap[str, str]
    owner: str
    state: Session.State
    options: SessionOptions
    active_run: str
    pending_approvals: _containers.RepeatedScalarFieldContainer[str]
    last_sequence: int
    usage: _common_pb2.Usage
    run_count: int
    tool_call_count: int
    claude_session_id: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    archive_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    etag: str
    pause_time: _timestamp_pb2.Timestamp
    forked_from: str
    agent: str
    archive_storage_state: _archive_pb2.Archive.State
    restore_needed: bool
    isolation_level: Session.IsolationLevel
    imposed_rules: _containers.RepeatedScalarFieldContainer[str]
    rule_warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[Session.State, str]] = ..., options: _Optional[_Union[SessionOptions, _Mapping]] = ..., active_run: _Optional[str] = ..., pending_approvals: _Optional[_Iterable[str]] = ..., last_sequence: _Optional[int] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., run_count: _Optional[int] = ..., tool_call_count: _Optional[int] = ..., claude_session_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., archive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., pause_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., forked_from: _Optional[str] = ..., agent: _Optional[str] = ..., archive_storage_state: _Optional[_Union[_archive_pb2.Archive.State, str]] = ..., restore_needed: _Optional[bool] = ..., isolation_level: _Optional[_Union[Session.IsolationLevel, str]] = ..., imposed_rules: _Optional[_Iterable[str]] = ..., rule_warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class SessionGrant(_message.Message):
    __slots__ = ("name", "rule", "approval", "creator", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    rule: str
    approval: str
    creator: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., rule: _Optional[str] = ..., approval: _Optional[str] = ..., creator: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SessionOptions(_message.Message):
    __slots__ = ("model", "system_prompt", "tools", "allowed_tools", "disallowed_tools", "permission_mode", "max_turns", "max_cost_usd", "thinking", "effort", "output_schema_json", "mcp_servers", "deltas", "approval_timeout", "recovery_policy", "checkpoints", "network", "limits", "isolation_level", "credentials")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOOLS_FIELD_NUMBER: _ClassVar[int]
    DISALLOWED_TOOLS_FIELD_NUMBER: _ClassVar[int]
    PERMISSION_MODE_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_USD_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    MCP_SERVERS_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_POLICY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    model: str
    system_prompt: SystemPrompt
    tools: ToolSet
    allowed_tools: _containers.RepeatedScalarFieldContainer[str]
    disallowed_tools: _containers.RepeatedScalarFieldContainer[str]
    permission_mode: _common_pb2.PermissionMode
    max_turns: int
    max_cost_usd: float
    thinking: Thinking
    effort: Effort
    output_schema_json: str
    mcp_servers: _containers.RepeatedCompositeFieldContainer[McpServer]
    deltas: bool
    approval_timeout: _duration_pb2.Duration
    recovery_policy: RecoveryPolicy
    checkpoints: bool
    network: NetworkOptions
    limits: ResourceLimits
    isolation_level: Session.IsolationLevel
    credentials: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., system_prompt: _Optional[_Union[SystemPrompt, _Mapping]] = ..., tools: _Optional[_Union[ToolSet, _Mapping]] = ..., allowed_tools: _Optional[_Iterable[str]] = ..., disallowed_tools: _Optional[_Iterable[str]] = ..., permission_mode: _Optional[_Union[_common_pb2.PermissionMode, str]] = ..., max_turns: _Optional[int] = ..., max_cost_usd: _Optional[float] = ..., thinking: _Optional[_Union[Thinking, _Mapping]] = ..., effort: _Optional[_Union[Effort, str]] = ..., output_schema_json: _Optional[str] = ..., mcp_servers: _Optional[_Iterable[_Union[McpServer, _Mapping]]] = ..., deltas: _Optional[bool] = ..., approval_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., recovery_policy: _Optional[_Union[RecoveryPolicy, str]] = ..., checkpoints: _Optional[bool] = ..., network: _Optional[_Union[NetworkOptions, _Mapping]] = ..., limits: _Optional[_Union[ResourceLimits, _Mapping]] = ..., isolation_level: _Optional[_Union[Session.IsolationLevel, str]] = ..., credentials: _Optional[_Iterable[str]] = ...) -> None: ...

class NetworkOptions(_message.Message):
    __slots__ = ("mode", "allowed", "denied")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[NetworkOptions.Mode]
        MODE_NONE: _ClassVar[NetworkOptions.Mode]
        MODE_LISTED: _ClassVar[NetworkOptions.Mode]
        MODE_PUBLIC: _ClassVar[NetworkOptions.Mode]
    MODE_UNSPECIFIED: NetworkOptions.Mode
    MODE_NONE: NetworkOptions.Mode
    MODE_LISTED: NetworkOptions.Mode
    MODE_PUBLIC: NetworkOptions.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    DENIED_FIELD_NUMBER: _ClassVar[int]
    mode: NetworkOptions.Mode
    allowed: _containers.RepeatedScalarFieldContainer[str]
    denied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, mode: _Optional[_Union[NetworkOptions.Mode, str]] = ..., allowed: _Optional[_Iterable[str]] = ..., denied: _Optional[_Iterable[str]] = ...) -> None: ...

class ResourceLimits(_message.Message):
    __slots__ = ("memory_bytes", "processes", "cpus", "open_files", "workspace_bytes", "workspace_files", "tmp_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FILES_FIELD_NUMBER: _ClassVar[int]
    TMP_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    processes: int
    cpus: float
    open_files: int
    workspace_bytes: int
    workspace_files: int
    tmp_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., processes: _Optional[int] = ..., cpus: _Optional[float] = ..., open_files: _Optional[int] = ..., workspace_bytes: _Optional[int] = ..., workspace_files: _Optional[int] = ..., tmp_bytes: _Optional[int] = ...) -> None: ...

class SystemPrompt(_message.Message):
    __slots__ = ("custom", "append")
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    custom: str
    append: str
    def __init__(self, custom: _Optional[str] = ..., append: _Optional[str] = ...) -> None: ...

class ToolSet(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class Thinking(_message.Message):
    __slots__ = ("adaptive", "budget_tokens", "disabled", "summarized")
    ADAPTIVE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    SUMMARIZED_FIELD_NUMBER: _ClassVar[int]
    adaptive: bool
    budget_tokens: int
    disabled: bool
    summarized: bool
    def __init__(self, adaptive: _Optional[bool] = ..., budget_tokens: _Optional[int] = ..., disabled: _Optional[bool] = ..., summarized: _Optional[bool] = ...) -> None: ...

class McpServer(_message.Message):
    __slots__ = ("name", "stdio", "sse", "http", "registered", "builtin", "accepted_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STDIO_FIELD_NUMBER: _ClassVar[int]
    SSE_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    stdio: McpStdio
    sse: McpRemote
    http: McpRemote
    registered: str
    builtin: BuiltinServer
    accepted_revision: int
    def __init__(self, name: _Optional[str] = ..., stdio: _Optional[_Union[McpStdio, _Mapping]] = ..., sse: _Optional[_Union[McpRemote, _Mapping]] = ..., http: _Optional[_Union[McpRemote, _Mapping]] = ..., registered: _Optional[str] = ..., builtin: _Optional[_Union[BuiltinServer, _Mapping]] = ..., accepted_revision: _Optional[int] = ...) -> None: ...

class BuiltinServer(_message.Message):
    __slots__ = ("memory", "database", "system", "kubernetes")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    KUBERNETES_FIELD_NUMBER: _ClassVar[int]
    memory: MemoryTools
    database: DatabaseTools
    system: SystemTools
    kubernetes: KubernetesTools
    def __init__(self, memory: _Optional[_Union[MemoryTools, _Mapping]] = ..., database: _Optional[_Union[DatabaseTools, _Mapping]] = ..., system: _Optional[_Union[SystemTools, _Mapping]] = ..., kubernetes: _Optional[_Union[KubernetesTools, _Mapping]] = ...) -> None: ...

class MemoryTools(_message.Message):
    __slots__ = ("store", "writable")
    STORE_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    store: str
    writable: bool
    def __init__(self, store: _Optional[str] = ..., writable: _Optional[bool] = ...) -> None: ...

class DatabaseTools(_message.Message):
    __slots__ = ("database", "max_rows", "max_bytes", "statement_timeout")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    database: str
    max_rows: int
    max_bytes: int
    statement_timeout: _duration_pb2.Duration
    def __init__(self, database: _Optional[str] = ..., max_rows: _Optional[int] = ..., max_bytes: _Optional[int] = ..., statement_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SystemTools(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KubernetesTools(_message.Message):
    __slots__ = ("context", "namespaces", "allow_writes")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_WRITES_FIELD_NUMBER: _ClassVar[int]
    context: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    allow_writes: bool
    def __init__(self, context: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., allow_writes: _Optional[bool] = ...) -> None: ...

class McpStdio(_message.Message):
    __slots__ = ("command", "args", "env")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    def __init__(self, command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ...) -> None: ...

class McpRemote(_message.Message):
    __slots__ = ("url", "headers")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    URL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    url: str
    headers: _containers.ScalarMap[str, str]
    def __init__(self, url: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ...) -> None: ...
