"""What each RPC does: names and tokens out of the request, a use case, its answer."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from agentrpc.names import parse_session
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.streams import Streams
from agentrpc.services.accounts import Accounts
from agentrpc.services.approvals import Approvals
from agentrpc.services.run_control import RunControl
from agentrpc.services.runs import Runs
from agentrpc.services.session_control import SessionControl
from agentrpc.services.sessions import Sessions

__all__ = ["ServiceMethods"]


class ServiceMethods:
    """One method for each RPC, found by its name, which is unique in the contract (a test says so).

    Unary ones take (call, request) and return a message; streaming ones take (call, request, send).
    """

    def __init__(
        self,
        accounts: Accounts,
        sessions: Sessions,
        session_control: SessionControl,
        runs: Runs,
        run_control: RunControl,
        approvals: Approvals,
        streams: Streams,
        hub: Hub,
    ) -> None:
        self._hub = hub

        async def delete_session(call: Any, request: Any) -> Empty:  # noqa: ANN401 - by the RPC
            await sessions.delete(call.principal, request.name, request.etag)
            return Empty()

        def stream_run(call: Any, request: Any, send: Any) -> Awaitable[None]:  # noqa: ANN401 - by the RPC
            return streams.stream_run(
                call.principal, request, send, lambda key, value: call.metadata.append((key, value))
            )

        self._methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "Login": lambda call, r: accounts.login(r.username, r.password, call.peer),
            "RefreshToken": lambda _, r: accounts.refresh(r.refresh_token),
            "GetMe": lambda call, _: accounts.me(call.principal),
            "CreateSession": lambda call, r: sessions.create(call.principal, r),
            "GetSession": lambda call, r: sessions.get(call.principal, parse_session(r.name)),
            "ListSessions": lambda call, r: sessions.list(call.principal, r),
            "UpdateSession": lambda call, r: sessions.update(call.principal, r),
            "ArchiveSession": lambda call, r: sessions.archive(call.principal, r.name, r.etag),
            "DeleteSession": delete_session,
            "PauseSession": lambda call, r: session_control.pause(call.principal, r.name, r.reason),
            "ResumeSession": lambda call, r: session_control.resume(call.principal, r.name),
            "TerminateSession": lambda call, r: session_control.terminate(call.principal, r.name, r.reason),
            "ForkSession": lambda call, r: session_control.fork(call.principal, r),
            "RewindSession": lambda call, r: session_control.rewind(call.principal, r),
            "ListSessionEvents": lambda call, r: sessions.list_events(call.principal, r),
            "WatchSession": lambda call, r, send: streams.watch_session(call.principal, r, send),
            "CreateRun": lambda call, r: runs.create(call.principal, r),
            "StreamRun": stream_run,
            "GetRun": lambda call, r: runs.get(call.principal, r.name),
            "ListRuns": lambda call, r: runs.list(call.principal, r),
            "InterruptRun": lambda call, r: runs.interrupt(call.principal, r.name, r.reason),
            "CancelRun": lambda call, r: runs.cancel(call.principal, r.name, r.reason),
            "RetryRun": lambda call, r: run_control.retry(call.principal, r),
            "ResolveRun": lambda call, r: run_control.resolve(call.principal, r),
            "SteerRun": lambda call, r: run_control.steer(call.principal, r),
            "GetApproval": lambda call, r: approvals.get(call.principal, r.name),
            "ListApprovals": lambda call, r: approvals.list(call.principal, r),
            "ResolveApproval": lambda call, r: approvals.resolve(call.principal, r.name, r.resolution),
            "WatchApprovals": lambda call, r, send: streams.watch_approvals(call.principal, r, send),
        }

    def of(self, name: str) -> Callable[..., Awaitable[Any]]:
        """The method of an RPC."""
        return self._methods[name]

    def start(self) -> None:
        """Begin to watch what streams need."""
        self._hub.start()

    def drain(self) -> None:
        """Streams are to end."""
        self._hub.drain()

    async def close(self) -> None:
        """End it."""
        await self._hub.close()
