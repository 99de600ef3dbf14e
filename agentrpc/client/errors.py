"""Errors of calls, with what the service says about them in their details."""

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

__all__ = ["RpcError", "decode"]


class RpcError(Exception):
    """A call failed.

    Attributes:
        code: The canonical code, such as `NOT_FOUND`.
        reason: A value of `agentrpc.v1.ErrorReason` without its prefix; empty if the service did not get to say.
        message: What to do, in words.
        metadata: As the reason's comment in errors.proto says.
        request_id: For the operator of the service.
        retry_after: Seconds after which to try again, if the service said so.
    """

    def __init__(
        self,
        code: str,
        reason: str,
        message: str,
        metadata: dict[str, str] | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.request_id = request_id
        self.retry_after = retry_after


def decode(error: grpc.aio.AioRpcError) -> RpcError:
    """An error of the transport as an RpcError."""
    code = error.code().name
    message = (error.details() or "").strip()
    reason, metadata, request_id, retry_after = "", {}, "", None
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what a call has
    except ValueError:
        status = None
    for detail in status.details if status is not None else ():
        info, request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RequestInfo(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            request_id = request.request_id
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return RpcError(code, reason, message.removeprefix(f"{reason}: "), metadata, request_id, retry_after)
