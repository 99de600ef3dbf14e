"""Errors as gRPC statuses (AIP-193): ErrorInfo, RequestInfo, BadRequest, RetryInfo, all together below 4 kB.

Details travel in trailing metadata, of which clients refuse more than 8 kB.
"""

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message  # noqa: TC002 - beside its siblings
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from agentrpc.errors import AgentRpcError

__all__ = ["internal_error", "to_status"]

_DOMAIN = "agentrpc.dev"
_MAX_MESSAGE = 1000
_MAX_VIOLATIONS = 10
_MAX_VALUE = 200


def to_status(error: AgentRpcError, request_id: str) -> grpc.Status:
    """The status of an error. The reason stands in the message too: grpcurl and buf curl show details poorly."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=_DOMAIN,
            metadata={key: value[:_MAX_VALUE] for key, value in error.metadata.items()},
        ),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations[:_MAX_VIOLATIONS]:
            bad.field_violations.add(field=violation.field[:_MAX_VALUE], description=violation.description[:_MAX_VALUE])
        details.append(bad)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(retry)
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.code), message=f"{error.reason}: {error.message}"[:_MAX_MESSAGE]
    )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def internal_error(error_id: str) -> AgentRpcError:
    """What a caller sees of a fault of the service: an id to quote, and nothing else."""
    return AgentRpcError(
        f"a fault of the service: quote {error_id} to its operator",
        reason="INTERNAL",
        metadata={"error_id": error_id},
    )
