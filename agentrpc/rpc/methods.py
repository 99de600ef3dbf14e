"""What each RPC does: names and tokens out of the request, a use case, its answer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty

from agentrpc.names import parse_session
from agentrpc.rpc.streams import Streams
from agentrpc.services.accounts import Accounts
from agentrpc.services.approvals import Approvals
from agentrpc.services.run_control import RunControl
from agentrpc.services.runs import Runs
from agentrpc.services.session_control import SessionControl
from agentrpc.services.session_grants import SessionGrants
from agentrpc.services.sessions import Sessions
from agentrpc.v1 import approval_service_pb2, auth_service_pb2, run_service_pb2, session_service_pb2

__all__ = ["Method", "Service", "approval_service", "auth_service", "emptied", "run_service", "session_service"]

Method = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the contract, with one method for each of its RPCs.

    Attributes:
        descriptor: The service.
        methods: By name. Unary ones take (call, request) and return a message; those that stream responses (call,
            request, send); those that stream requests (call, requests), an asynchronous iterator, and return a message.
    """

    descriptor: ServiceDescriptor
    methods: Mapping[str, Method]


def emptied(method: Method) -> Method:
    """The same, answering google.protobuf.Empty."""

    async def answer(*given: Any) -> Empty:  # noqa: ANN401 - by the RPC
        await method(*given)
        return Empty()

    return answer


def auth_service(accounts: Accounts) -> Service:
    """AuthService."""
    return Service(
        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
        {
            "Login": lambda call, r: accounts.login(r.username, r.password, call.peer),
            "RefreshToken": lambda _, r: accounts.refresh(r.refresh_token),
            "GetMe": lambda call, _: accounts.me(call.principal),
        },
    )


def session_service(sessions: Sessions, control: SessionControl, grants: SessionGrants, streams: Streams) -> Service:
    """SessionService."""
    return Service(
        session_service_pb2.DESCRIPTOR.services_by_name["SessionService"],
        {
            "CreateSession": lambda call, r: sessions.create(call.principal, r),
            "GetSession": lambda call, r: sessions.get(call.principal, parse_session(r.name)),
            "ListSessions": lambda call, r: sessions.list(call.principal, r),
            "UpdateSession": lambda call, r: sessions.update(call.principal, r),
            "ArchiveSession": lambda call, r: sessions.archive(call.principal, r.name, r.etag),
            "DeleteSession": emptied(lambda call, r: sessions.delete(call.principal, r.name, r.etag)),
            "PauseSession": lambda call, r: control.pause(call.principal, r.name, r.reason),
            "ResumeSession": lambda call, r: control.resume(call.principal, r.name),
            "TerminateSession": lambda call, r: control.terminate(call.principal, r.name, r.reason),
            "ForkSession": lambda call, r: control.fork(call.principal, r),
            "RewindSession": lambda call, r: control.rewind(call.principal, r),
            "ListSessionGrants": lambda call, r: grants.list(call.principal, r),
            "RevokeSessionGrant": emptied(lambda call, r: grants.revoke(call.principal, r.name)),
            "ListSessionEvents": lambda call, r: sessions.list_events(call.principal, r),
            "WatchSession": lambda call, r, send: streams.watch_session(call.principal, r, send),
        },
    )


def run_service(runs: Runs, control: RunControl, streams: Streams) -> Service:
    """RunService."""

    def stream_run(call: Any, request: Any, send: Any) -> Awaitable[None]:  # noqa: ANN401 - by the RPC
        return streams.stream_run(call.principal, request, send, lambda key, value: call.metadata.append((key, value)))

    return Service(
        run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
        {
            "CreateRun": lambda call, r: runs.create(call.principal, r),
            "StreamRun": stream_run,
            "GetRun": lambda call, r: runs.get(call.principal, r.name),
            "ListRuns": lambda call, r: runs.list(call.principal, r),
            "InterruptRun": lambda call, r: runs.interrupt(call.principal, r.name, r.reason),
            "CancelRun": lambda call, r: runs.cancel(call.principal, r.name, r.reason),
            "RetryRun": lambda call, r: control.retry(call.principal, r),
            "ResolveRun": lambda call, r: control.resolve(call.principal, r),
            "SteerRun": lambda call, r: control.steer(call.principal, r),
        },
    )


def approval_service(approvals: Approvals, streams: Streams) -> Service:
    """ApprovalService."""
    return Service(
        approval_service_pb2.DESCRIPTOR.services_by_name["ApprovalService"],
        {
            "GetApproval": lambda call, r: approvals.get(call.principal, r.name),
            "ListApprovals": lambda call, r: approvals.list(call.principal, r),
            "ResolveApproval": lambda call, r: approvals.resolve(call.principal, r.name, r.resolution),
            "WatchApprovals": lambda call, r, send: streams.watch_approvals(call.principal, r, send),
        },
    )
