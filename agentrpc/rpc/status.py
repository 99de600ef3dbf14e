"""Errors as gRPC statuses (AIP-193): ErrorInfo, RequestInfo, BadRequest, RetryInfo, all together below 6 kB.

They travel in trailing metadata, of which clients refuse more than 8 kB: the message percent-encoded, where a character
may take 12 bytes, and once more within the details, which are base64.
"""

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from agentrpc.errors import AgentRpcError

__all__ = ["internal_error", "to_status"]

_DOMAIN = "agentrpc.dev"
# Bytes: of the message, in UTF-8 and percent-encoded, of one value, and of the details with the message in them.
_MAX_MESSAGE = 1000
_MAX_ENCODED = 2000
_MAX_VALUE = 200
_MAX_DETAILS = 2900
_MAX_VIOLATIONS = 10


def to_status(error: AgentRpcError, request_id: str) -> grpc.Status:
    """The status of an error. The reason stands in the message too: grpcurl and buf curl show details poorly."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.code),
        message=_cut_encoded(_cut(f"{error.reason}: {error.message}", _MAX_MESSAGE)),
    )
    metadata = {key: _cut(value) for key, value in error.metadata.items()}
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=metadata))
    _add(status, error_details_pb2.RequestInfo(request_id=request_id))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        _add(status, retry)
    if error.violations:
        _add(status, _violations(error, _MAX_DETAILS - status.ByteSize()))
    return rpc_status.to_status(status)


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _violations(error: AgentRpcError, room: int) -> error_details_pb2.BadRequest:
    """The first of the wrong fields, as many as there is room for."""
    bad = error_details_pb2.BadRequest()
    for violation in error.violations[:_MAX_VIOLATIONS]:
        bad.field_violations.add(field=_cut(violation.field), description=_cut(violation.description))
        if bad.ByteSize() > room:
            del bad.field_violations[-1]
            break
    return bad


def _cut(text: str, limit: int = _MAX_VALUE) -> str:
    """The beginning of a text: whole characters that have at most so many bytes."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def _cut_encoded(text: str) -> str:
    """The same for a message, by the bytes that it has when it is percent-encoded."""
    left = _MAX_ENCODED
    for at, character in enumerate(text):
        left -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if left < 0:
            return text[:at]
    return text


def internal_error(error_id: str) -> AgentRpcError:
    """What a caller sees of a fault of the service: an id to quote, and nothing else."""
    return AgentRpcError(
        f"a fault of the service: quote {error_id} to its operator",
        reason="INTERNAL",
        metadata={"error_id": error_id},
    )
