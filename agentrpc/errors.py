"""The one error tree of the service.

AgentRpcError
├── InvalidArgument          FIELD_INVALID, NAME_INVALID, PAGE_TOKEN_INVALID, TOO_LARGE, REQUEST_ID_REUSED …
├── SequenceAhead            after_sequence is beyond the end of the log
├── Unauthenticated          CREDENTIALS_MISSING, CREDENTIALS_INVALID, CREDENTIALS_EXPIRED
├── PermissionDenied         the caller may see it, but not do this
├── NotFound                 it does not exist, or the caller may not see it
├── FailedPrecondition       SESSION_NOT_ACTIVE, SESSION_BUSY, APPROVAL_NOT_PENDING, STATE_INVALID, IN_USE …
├── Aborted                  ETAG_MISMATCH
├── ResourceExhausted        QUEUE_FULL, RATE_LIMITED, TOO_MANY_STREAMS
└── Unavailable              STORE_UNAVAILABLE, DRAINING, SLOW_CONSUMER

Every error has a canonical code (google.rpc.Code by name), a reason (a value of `agentrpc.v1.ErrorReason` without its
prefix), a message that says what to do, and metadata. Only `rpc/` turns one into a gRPC status. Whatever is not in this
tree reaches a caller as INTERNAL with an id to be found in the log, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self
from uuid import UUID

__all__ = [
    "Aborted",
    "AgentRpcError",
    "FailedPrecondition",
    "FieldViolation",
    "InvalidArgument",
    "LeaseLostError",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "SequenceAhead",
    "StoreUnavailable",
    "Unauthenticated",
    "Unavailable",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field.

    Attributes:
        field: Its path in the request, such as `run.prompt`.
        description: What is wrong with it and how to mend it.
    """

    field: str
    description: str


class AgentRpcError(Exception):
    """An error that callers are meant to see.

    Args:
        message: One or two sentences with the remedy. Nothing internal.
        reason: A value of `agentrpc.v1.ErrorReason` without its prefix.
        metadata: What the reason's comment in `errors.proto` lists; short strings.
        violations: The wrong fields, for google.rpc.BadRequest.
        retry_after: Seconds after which the same call may succeed, for google.rpc.RetryInfo.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after


class InvalidArgument(AgentRpcError):
    """The request is wrong, whatever the state of the system."""

    code = "INVALID_ARGUMENT"

    @classmethod
    def fields(cls, *violations: FieldViolation) -> "InvalidArgument":
        """FIELD_INVALID for one or more fields."""
        text = "; ".join(f"{v.field}: {v.description}" for v in violations)
        return cls(text, reason="FIELD_INVALID", violations=violations)

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidArgument":
        """FIELD_INVALID for one field."""
        return cls.fields(FieldViolation(field, description))


class SequenceAhead(AgentRpcError):
    """The log is not that long."""

    code = "OUT_OF_RANGE"

    def __init__(self, after_sequence: int, last_sequence: int) -> None:
        super().__init__(
            f"after_sequence {after_sequence} is beyond the end of the log, which is {last_sequence}: "
            f"use a number that an event or resume_after_sequence gave you",
            reason="SEQUENCE_AHEAD",
            metadata={"last_sequence": str(last_sequence)},
        )


class Unauthenticated(AgentRpcError):
    """Nobody can tell who is calling."""

    code = "UNAUTHENTICATED"


class PermissionDenied(AgentRpcError):
    """The caller may see the resource, but not do this with it."""

    code = "PERMISSION_DENIED"

    def __init__(self, permission: str, message: str = "") -> None:
        super().__init__(
            message or f"your role does not include {permission}: ask an administrator",
            reason="PERMISSION_DENIED",
            metadata={"permission": permission},
        )


class NotFound(AgentRpcError):
    """The resource does not exist, or the caller may not see it: the two look the same from outside."""

    code = "NOT_FOUND"

    def __init__(self, resource_type: str, name: str) -> None:
        super().__init__(
            f"there is no {resource_type.lower()} {name!r}, or you may not see it: check the name, or list them",
            reason="NOT_FOUND",
            metadata={"resource_type": f"agentrpc.dev/{resource_type}", "name": name},
        )


class FailedPrecondition(AgentRpcError):
    """The state of the resource does not allow it; the same call may succeed in another state."""

    code = "FAILED_PRECONDITION"


class Aborted(AgentRpcError):
    """Somebody else was faster: read, change, try again."""

    code = "ABORTED"


class ResourceExhausted(AgentRpcError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(AgentRpcError):
    """The service cannot do it now; nothing was changed."""

    code = "UNAVAILABLE"


class StoreUnavailable(Unavailable):
    """The database cannot be reached, or takes no changes now.

    Args:
        unsure: It could not be any more when all was to be committed: that may have been done, or not.
    """

    def __init__(self, *, unsure: bool = False) -> None:
        told = (
            "it is not known whether this was done: look, or send it again with the same request_id"
            if unsure
            else "nothing was changed: try again shortly"
        )
        super().__init__(f"the database cannot be used now; {told}", reason="STORE_UNAVAILABLE", retry_after=1.0)
        self.unsure = unsure


class LeaseLostError(Exception):
    """This worker does not hold the session any more: its epoch is stale. Never shown to callers.

    The one right reaction is to stop: kill the session's processes and write nothing more.
    """

    @classmethod
    def stale(cls, session_id: UUID, of: str, holder: UUID | None, epoch: int | None) -> Self:
        """`of` is over, an epoch or a batch of one: names the worker that holds the session now, under which epoch."""
        now = f"worker {holder} holds it" if holder else "no worker holds it"
        return cls(f"session {session_id}: {of} is stale; {now}, at epoch {epoch}")
