import datetime

from agentrpc.v1 import common_pb2 as _common_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Approval(_message.Message):
    __slots__ = ("name", "run", "kind", "state", "tool_use_id", "tool_name", "input_json", "title", "reason", "blocked_path", "session_rules", "parent_tool_use_id", "create_time", "expire_time", "resolution", "omitted")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Approval.State]
        STATE_PENDING: _ClassVar[Approval.State]
        STATE_ALLOWED: _ClassVar[Approval.State]
        STATE_DENIED: _ClassVar[Approval.State]
        STATE_EXPIRED: _ClassVar[Approval.State]
        STATE_CANCELLED: _ClassVar[Approval.State]
    STATE_UNSPECIFIED: Approval.State
    STATE_PENDING: Approval.State
    STATE_ALLOWED: Approval.State
    STATE_DENIED: Approval.State
    STATE_EXPIRED: Approval.State
    STATE_CANCELLED: Approval.State
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Approval.Kind]
        KIND_TOOL: _ClassVar[Approval.Kind]
        KIND_QUESTION: _ClassVar[Approval.Kind]
        KIND_PLAN: _ClassVar[Approval.Kind]
    KIND_UNSPECIFIED: Approval.Kind
    KIND_TOOL: Approval.Kind
    KIND_QUESTION: Approval.Kind
    KIND_PLAN: Approval.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_PATH_FIELD_NUMBER: _ClassVar[int]
    SESSION_RULES_FIELD_NUMBER: _ClassVar[int]
    PARENT_TOOL_USE_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    run: str
    kind: Approval.Kind
    state: Approval.State
    tool_use_id: str
    tool_name: str
    input_json: str
    title: str
    reason: str
    blocked_path: str
    session_rules: _containers.RepeatedScalarFieldContainer[str]
    parent_tool_use_id: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    resolution: Resolution
    omitted: _common_pb2.Omission
    def __init__(self, name: _Optional[str] = ..., run: _Optional[str] = ..., kind: _Optional[_Union[Approval.Kind, str]] = ..., state: _Optional[_Union[Approval.State, str]] = ..., tool_use_id: _Optional[str] = ..., tool_name: _Optional[str] = ..., input_json: _Optional[str] = ..., title: _Optional[str] = ..., reason: _Optional[str] = ..., blocked_path: _Optional[str] = ..., session_rules: _Optional[_Iterable[str]] = ..., parent_tool_use_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., resolution: _Optional[_Union[Resolution, _Mapping]] = ..., omitted: _Optional[_Union[_common_pb2.Omission, _Mapping]] = ...) -> None: ...

class Resolution(_message.Message):
    __slots__ = ("decision", "scope", "updated_input_json", "message", "interrupt", "resolver", "resolve_time")
    class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DECISION_UNSPECIFIED: _ClassVar[Resolution.Decision]
        DECISION_ALLOW: _ClassVar[Resolution.Decision]
        DECISION_DENY: _ClassVar[Resolution.Decision]
    DECISION_UNSPECIFIED: Resolution.Decision
    DECISION_ALLOW: Resolution.Decision
    DECISION_DENY: Resolution.Decision
    class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCOPE_UNSPECIFIED: _ClassVar[Resolution.Scope]
        SCOPE_ONCE: _ClassVar[Resolution.Scope]
        SCOPE_SESSION: _ClassVar[Resolution.Scope]
    SCOPE_UNSPECIFIED: Resolution.Scope
    SCOPE_ONCE: Resolution.Scope
    SCOPE_SESSION: Resolution.Scope
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    UPDATED_INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    RESOLVER_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_TIME_FIELD_NUMBER: _ClassVar[int]
    decision: Resolution.Decision
    scope: Resolution.Scope
    updated_input_json: str
    message: str
    interrupt: bool
    resolver: str
    resolve_time: _timestamp_pb2.Timestamp
    def __init__(self, decision: _Optional[_Union[Resolution.Decision, str]] = ..., scope: _Optional[_Union[Resolution.Scope, str]] = ..., updated_input_json: _Optional[str] = ..., message: _Optional[str] = ..., interrupt: _Optional[bool] = ..., resolver: _Optional[str] = ..., resolve_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
