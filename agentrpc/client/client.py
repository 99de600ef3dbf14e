"""The client."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from agentrpc.client.errors import RpcError, decode
from agentrpc.client.files import FileTransfers
from agentrpc.v1 import (
    agent_service_pb2_grpc,
    approval_pb2,
    approval_service_pb2,
    approval_service_pb2_grpc,
    archive_service_pb2_grpc,
    auth_pb2,
    auth_service_pb2,
    auth_service_pb2_grpc,
    credential_service_pb2_grpc,
    event_pb2,
    file_service_pb2_grpc,
    mcp_server_service_pb2_grpc,
    memory_service_pb2_grpc,
    report_pb2,
    report_service_pb2,
    report_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    stream_pb2,
    task_service_pb2_grpc,
    tool_group_service_pb2_grpc,
    webhook_service_pb2_grpc,
)

__all__ = ["AgentRpcClient", "TokenStore"]

_T = TypeVar("_T", bound=Message)
_Stream = session_service_pb2.WatchSessionResponse | run_service_pb2.StreamRunResponse
_End = stream_pb2.StreamEnd

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)
# A stream of this age that says nothing is looked at by its heartbeats; before the first response this long.
_OPENING = 20.0
_ATTEMPTS = 6
# Seconds for calls that copy files.
_COPYING = 600.0
# Seconds without a piece of a download after which it is asked for anew.
_SILENCE = 60.0
_RETRYABLE = {"UNAVAILABLE", "CANCELLED"}
_FINAL = {
    _End.REASON_RUN_ENDED,
    _End.REASON_SESSION_CLOSED,
    _End.REASON_ACCESS_REVOKED,
    _End.REASON_FINISHED,
}
_REFRESH_BEFORE = 30.0
_RENEW_TIMEOUT = 10.0


class TokenStore(Protocol):
    """Keeps the tokens of one login for several processes: a refresh token is good once, its reuse ends the login."""

    def locked(self) -> AbstractAsyncContextManager[None]:
        """Nobody else renews the tokens meanwhile."""

    def load(self) -> auth_pb2.Tokens | None:
        """The newest tokens. None: there are none."""

    def store(self, tokens: auth_pb2.Tokens) -> None:
        """Keep new ones in their place."""


class AgentRpcClient:
    """One connection to the service; use it as an async context manager.

    Args:
        target: host:port.
        token: An access token. Or:
        username: To log in with, when the first call is made.
        password: With it.
        refresh_token: Instead of a password.
        tls_ca: PEM of the certificate authority; with it, or with `tls`, the connection is encrypted.
        tls: Encrypt and trust the system's authorities.
        store: Where the tokens of a login are kept, for other processes too.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str = "",
        username: str = "",
        password: str = "",
        refresh_token: str = "",
        tls: bool = False,
        tls_ca: bytes | None = None,
        store: "TokenStore | None" = None,
    ) -> None:
        if tls or tls_ca is not None:
            credentials = grpc.ssl_channel_credentials(root_certificates=tls_ca)
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self._channel)
        self.runs = run_service_pb2_grpc.RunServiceStub(self._channel)
        self.approvals = approval_service_pb2_grpc.ApprovalServiceStub(self._channel)
        self.tasks = task_service_pb2_grpc.TaskServiceStub(self._channel)
        self.agents = agent_service_pb2_grpc.AgentServiceStub(self._channel)
        self.tool_groups = tool_group_service_pb2_grpc.ToolGroupServiceStub(self._channel)
        self.memory = memory_service_pb2_grpc.MemoryServiceStub(self._channel)
        self.files = file_service_pb2_grpc.FileServiceStub(self._channel)
        self.archives = archive_service_pb2_grpc.ArchiveServiceStub(self._channel)
        self.reports = report_service_pb2_grpc.ReportServiceStub(self._channel)
        self.auth = auth_service_pb2_grpc.AuthServiceStub(self._channel)
        self.transfers = FileTransfers(self.files, self._metadata)
        self.mcp_servers = mcp_server_service_pb2_grpc.McpServerServiceStub(self._channel)
        self.credentials = credential_service_pb2_grpc.CredentialServiceStub(self._channel)
        self.webhooks = webhook_service_pb2_grpc.WebhookServiceStub(self._channel)
        self._token = token
        self._expires = float("inf") if token else 0.0
        self._refresh_token = refresh_token
        self._login = (username, password) if username else None
        self._store = store
        self._refreshing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    # ---- Tokens ----

    async def login(self, username: str, password: str) -> auth_pb2.User:
        """Log in and keep the tokens."""
        try:
            response = await self.auth.Login(auth_service_pb2.LoginRequest(username=username, password=password))
        except grpc.aio.AioRpcError as error:
            raise decode(error) from None
        self._keep(response.tokens)
        return response.user

    def _take(self, tokens: auth_pb2.Tokens) -> None:
        self._token = tokens.access_token
        left = tokens.access_expire_time.ToDatetime().timestamp() - _utc()
        self._expires = time.monotonic() + left
        self._refresh_token = tokens.refresh_token

    def _keep(self, tokens: auth_pb2.Tokens) -> None:
        self._take(tokens)
        if self._store is not None:
            self._store.store(tokens)

    async def _metadata(self, *, stale: str = "") -> list[tuple[str, str]]:
        """The authorization of a call; a token that is nearly over, or was refused, is renewed first, once for all."""
        async with self._refreshing:
            if self._is_worn(stale):
                async with self._store.locked() if self._store is not None else nullcontext():
                    if self._store is not None and (tokens := self._store.load()) is not None:
                        # Somebody else may have renewed them.
                        self._take(tokens)
                    if self._is_worn(stale):
                        await self._renew(required=not self._token or self._token == stale)
            return [("authorization", f"Bearer {self._token}")]

    def _is_worn(self, stale: str) -> bool:
        return not self._token or self._token == stale or time.monotonic() > self._expires - _REFRESH_BEFORE

    async def _renew(self, *, required: bool) -> None:
        if self._refresh_token:
            try:
                request = auth_service_pb2.RefreshTokenRequest(refresh_token=self._refresh_token)
                self._keep((await self.auth.RefreshToken(request, timeout=_RENEW_TIMEOUT)).tokens)
            except grpc.aio.AioRpcError as error:
                failure = decode(error)
                if failure.code != "UNAUTHENTICATED":
                    # Nobody answers, or not now: the token is as good as before.
                    if required:
                        raise failure from None
                    return
                self._refresh_token = ""
                if not self._login:
                    raise failure from None
            else:
                return
        if self._login:
            await self.login(*self._login)
        elif required:
            raise RpcError("UNAUTHENTICATED", "CREDENTIALS_MISSING", "log in first: `agentrpc login`")

    # ---- Calls ----

    async def call(self, method: Callable[..., Awaitable[_T]], request: Message, *, timeout: float = 30.0) -> _T:
        """Make a unary call, again if that is safe and may help.

        Safe are reads, what may be said twice (answers to approvals, decisions, interrupts, cancels), and requests with
        a request_id, which is set when it is empty.

        Raises:
            RpcError: It failed for good.
        """
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:  # type: ignore[attr-defined]
            request.request_id = str(uuid4())  # type: ignore[attr-defined]
        stale = ""
        attempt = 0
        while True:
            try:
                metadata = await self._metadata(stale=stale)
                return await method(request, metadata=metadata, timeout=timeout)
            except (grpc.aio.AioRpcError, RpcError) as error:
                failure = error if isinstance(error, RpcError) else decode(error)
                attempt += 1
                if failure.reason == "CREDENTIALS_EXPIRED" and not stale:
                    stale = self._token
                    continue
                limited = failure.reason == "RATE_LIMITED"
                if attempt >= _ATTEMPTS or (failure.code not in _RETRYABLE and not limited):
                    raise failure from None
                await asyncio.sleep(failure.retry_after or _backoff(attempt))

    async def create_session(
        self, session: session_pb2.Session | None = None, *, request_id: str = ""
    ) -> session_pb2.Session:
        """CreateSession."""
        request = session_service_pb2.CreateSessionRequest(session=session, request_id=request_id)
        return await self.call(self.sessions.CreateSession, request)

    async def get_session(self, name: str) -> session_pb2.Session:
        """GetSession."""
        return await self.call(self.sessions.GetSession, session_service_pb2.GetSessionRequest(name=name))

    async def pause_session(self, name: str, reason: str = "") -> session_pb2.Session:
        """PauseSession."""
        request = session_service_pb2.PauseSessionRequest(name=name, reason=reason)
        return await self.call(self.sessions.PauseSession, request)

    async def resume_session(self, name: str) -> session_pb2.Session:
        """ResumeSession."""
        return await self.call(self.sessions.ResumeSession, session_service_pb2.ResumeSessionRequest(name=name))

    async def terminate_session(self, name: str, reason: str = "") -> session_pb2.Session:
        """TerminateSession."""
        request = session_service_pb2.TerminateSessionRequest(name=name, reason=reason)
        return await self.call(self.sessions.TerminateSession, request)

    async def fork_session(
        self,
        name: str,
        *,
        transcript_uuid: str = "",
        copy_workspace: bool = False,
        display_name: str = "",
        request_id: str = "",
    ) -> session_pb2.Session:
        """ForkSession. Copying many files takes its time."""
        request = session_service_pb2.ForkSessionRequest(
            name=name,
            transcript_uuid=transcript_uuid,
            copy_workspace=copy_workspace,
            display_name=display_name,
            request_id=request_id,
        )
        return await self.call(self.sessions.ForkSession, request, timeout=_COPYING)

    async def rewind_session(self, run: str, *, restore_workspace: bool = False) -> session_pb2.Session:
        """RewindSession, to before this run of the session."""
        request = session_service_pb2.RewindSessionRequest(
            name=run.partition("/runs/")[0], run=run, restore_workspace=restore_workspace
        )
        return await self.call(self.sessions.RewindSession, request, timeout=_COPYING)

    async def create_run(self, session: str, prompt: str, *, request_id: str = "") -> run_pb2.Run:
        """CreateRun."""
        request = run_service_pb2.CreateRunRequest(
            parent=session, run=run_pb2.Run(prompt=prompt), request_id=request_id
        )
        return await self.call(self.runs.CreateRun, request)

    async def get_run(self, name: str) -> run_pb2.Run:
        """GetRun."""
        return await self.call(self.runs.GetRun, run_service_pb2.GetRunRequest(name=name))

    async def interrupt(self, run: str, reason: str = "") -> run_pb2.Run:
        """InterruptRun."""
        return await self.call(self.runs.InterruptRun, run_service_pb2.InterruptRunRequest(name=run, reason=reason))

    async def cancel(self, run: str, reason: str = "") -> run_pb2.Run:
        """CancelRun."""
        return await self.call(self.runs.CancelRun, run_service_pb2.CancelRunRequest(name=run, reason=reason))

    async def retry(self, run: str, *, request_id: str = "") -> run_pb2.Run:
        """RetryRun."""
        return await self.call(self.runs.RetryRun, run_service_pb2.RetryRunRequest(name=run, request_id=request_id))

    async def resolve_run(
        self,
        run: str,
        decision: run_service_pb2.ResolveRunRequest.Decision,
        results: Iterable[run_service_pb2.ResolveRunRequest.CallResult] = (),
    ) -> run_pb2.Run:
        """ResolveRun."""
        request = run_service_pb2.ResolveRunRequest(name=run, decision=decision, results=results)
        return await self.call(self.runs.ResolveRun, request)

    async def steer(self, run: str, text: str, *, request_id: str = "") -> run_pb2.Run:
        """SteerRun."""
        request = run_service_pb2.SteerRunRequest(name=run, text=text, request_id=request_id)
        return await self.call(self.runs.SteerRun, request)

    async def resolve(self, approval: str, resolution: approval_pb2.Resolution) -> approval_pb2.Approval:
        """ResolveApproval."""
        request = approval_service_pb2.ResolveApprovalRequest(name=approval, resolution=resolution)
        return await self.call(self.approvals.ResolveApproval, request)

    # ---- Reports ----

    async def create_report(self, report: report_pb2.Report, *, request_id: str = "") -> report_pb2.Report:
        """CreateReport."""
        request = report_service_pb2.CreateReportRequest(report=report, request_id=request_id)
        return await self.call(self.reports.CreateReport, request)

    async def get_report(self, name: str) -> report_pb2.Report:
        """GetReport."""
        return await self.call(self.reports.GetReport, report_service_pb2.GetReportRequest(name=name))

    async def watch_report(self, name: str) -> AsyncIterator[report_pb2.Report]:
        """A report whenever it has changed, until it is finished."""
        request = report_service_pb2.WatchReportRequest(name=name)
        async for response in self.watch_responses(self.reports.WatchReport, request):
            if response.HasField("report"):
                yield response.report

    async def download_report(self, name: str, *, offset: int = 0) -> AsyncIterator[bytes]:
        """The document of a report in pieces, from `offset` on; goes on after a lost connection.

        Raises:
            RpcError: There is no such document, or what arrived is not what its checksum says (from offset 0 only).
        """
        whole = hashlib.sha256() if offset == 0 else None
        size: int | None = None
        digest = ""
        attempt = 0
        stale = ""
        while size != offset:
            request = report_service_pb2.DownloadReportRequest(name=name, offset=offset)
            call: Any = self.reports.DownloadReport(request, metadata=await self._metadata(stale=stale))
            try:
                while (response := await asyncio.wait_for(call.read(), _SILENCE)) is not grpc.aio.EOF:
                    attempt, stale = 0, ""
                    if size is None:
                        size, digest = response.size_bytes, response.sha256
                    offset += len(response.data)
                    if whole is not None:
                        whole.update(response.data)
                    yield response.data
            except grpc.aio.AioRpcError as error:
                failure = decode(error)
                if failure.reason == "CREDENTIALS_EXPIRED" and not stale:
                    stale = self._token
                    continue
                attempt += 1
                if failure.code not in _RETRYABLE or attempt >= _ATTEMPTS:
                    raise failure from None
                await asyncio.sleep(failure.retry_after or _backoff(attempt))
            except TimeoutError:
                attempt += 1
                if attempt >= _ATTEMPTS:
                    raise RpcError("UNAVAILABLE", "", "nothing arrives any more: try again later") from None
            finally:
                call.cancel()
        if whole is not None and whole.hexdigest() != digest:
            raise RpcError("DATA_LOSS", "CHECKSUM_MISMATCH", "what arrived is not the document: download it again")

    # ---- Streams ----

    async def watch(
        self,
        session: str,
        *,
        after_sequence: int = 0,
        include_deltas: bool = False,
        event_types: Iterable[str] = (),
        run: str = "",
    ) -> AsyncIterator[event_pb2.Event]:
        """Every durable event after `after_sequence`, in order, each once, and live ones between if wanted.

        Connects again from its resume point, with jitter, until the session is closed, the run (if one is named) has
        ended, or access is gone.

        Raises:
            RpcError: The session does not exist, or the arguments are wrong.
        """
        request = session_service_pb2.WatchSessionRequest(
            name=session,
            after_sequence=after_sequence,
            include_deltas=include_deltas,
            event_types=event_types,
            run=run,
        )
        async for response in self.watch_responses(self.sessions.WatchSession, request):
            for event in response.events:
                yield event

    async def run(
        self,
        session: str,
        prompt: str,
        *,
        include_deltas: bool = False,
        event_types: Iterable[str] = (),
        on_run: Callable[[run_pb2.Run], None] | None = None,
    ) -> AsyncIterator[event_pb2.Event]:
        """Start a run and give its events to its end, over lost connections too. Leaving does not stop it.

        Args:
            session: The session.
            prompt: What the agent is to do.
            include_deltas: Live events too.
            event_types: Only these.
            on_run: Called with the run as it is accepted, and as it ended.
        """
        request = run_service_pb2.StreamRunRequest(
            parent=session,
            run=run_pb2.Run(prompt=prompt),
            request_id=str(uuid4()),
            include_deltas=include_deltas,
            event_types=event_types,
        )
        name = ""

        def watch_it(response: Any) -> tuple[Callable[..., Any], Any] | None:  # noqa: ANN401
            # A request_id is good for a day, and a run may take longer: from now on it has a name.
            nonlocal name
            if name or not response.HasField("run"):
                return None
            name = response.run.name
            return self.sessions.WatchSession, session_service_pb2.WatchSessionRequest(
                name=session, run=name, include_deltas=include_deltas, event_types=request.event_types
            )

        untold = False
        async for response in self.watch_responses(self.runs.StreamRun, request, then=watch_it):
            untold = response.end.reason == _End.REASON_RUN_ENDED
            if isinstance(response, run_service_pb2.StreamRunResponse) and response.HasField("run"):
                untold = False
                if on_run is not None:
                    on_run(response.run)
            for event in response.events:
                yield event
        if on_run is not None and untold:
            on_run(await self.get_run(name))

    async def watch_responses(
        self,
        method: Callable[..., Any],
        request: Any,  # noqa: ANN401 - of whichever stream
        *,
        then: Callable[[Any], tuple[Callable[..., Any], Any] | None] = lambda _: None,
    ) -> AsyncIterator[Any]:
        """The responses of a stream, resumed until a final end.

        Args:
            method: The stub's method.
            request: `after_sequence`, if it has one, moves on.
            then: Gets each response; may give another method and request with which to resume.
        """
        stale = ""
        attempt = 0
        while True:
            try:
                metadata = await self._metadata(stale=stale)
                call = method(request, metadata=metadata)
                try:
                    async for response in _alive(call):
                        attempt = 0
                        stale = ""
                        method, request = then(response) or (method, request)
                        if hasattr(request, "after_sequence"):
                            request.after_sequence = max(request.after_sequence, response.resume_after_sequence)
                        yield response
                        if response.HasField("end"):
                            if response.end.reason in _FINAL:
                                return
                            await asyncio.sleep(response.end.retry_delay.ToTimedelta().total_seconds())
                            if response.end.reason == _End.REASON_CREDENTIALS_EXPIRED:
                                stale = self._token
                            break
                    else:
                        attempt += 1
                        await asyncio.sleep(_backoff(attempt))
                finally:
                    call.cancel()
            except grpc.aio.AioRpcError as error:
                failure = decode(error)
                if failure.reason == "CREDENTIALS_EXPIRED" and not stale:
                    stale = self._token
                    continue
                if failure.code not in _RETRYABLE | {"UNKNOWN", "DEADLINE_EXCEEDED"}:
                    raise failure from None
                attempt += 1
                await asyncio.sleep(failure.retry_after or _backoff(attempt))
            except TimeoutError:
                attempt += 1
            except RpcError as failure:
                # The token could not be renewed because nobody answers.
                if failure.code not in _RETRYABLE:
                    raise
                attempt += 1
                await asyncio.sleep(_backoff(attempt))

    async def watch_approvals(self, parent: str = "sessions/-") -> AsyncIterator[approval_pb2.Approval]:
        """Pending approvals, then each one that is asked or answered; begins anew after a lost connection."""
        request = approval_service_pb2.WatchApprovalsRequest(parent=parent)
        pending: set[str] = set()
        async for response in self.watch_responses(self.approvals.WatchApprovals, request):
            for approval in response.approvals:
                if approval.state != approval_pb2.Approval.STATE_PENDING:
                    pending.discard(approval.name)
                elif approval.name in pending:
                    continue
                else:
                    pending.add(approval.name)
                yield approval


async def _alive(call: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - a streaming call
    """Responses of a stream; one that is silent for twice its heartbeat is dead. Raises TimeoutError then."""
    patience = _OPENING
    try:
        while True:
            async with asyncio.timeout(patience):
                response = await call.read()
            if response is grpc.aio.EOF:
                # OK without `end` is not ours: something on the way closed it. The status says if it was an error.
                return
            if response.HasField("opened"):
                patience = 2 * response.opened.heartbeat_interval.ToTimedelta().total_seconds() or _OPENING
            yield response
    finally:
        call.cancel()


def _backoff(attempt: int) -> float:
    """Full jitter below a ceiling that doubles, from 0.2 s to 5 s."""
    return random.uniform(0.05, min(5.0, 0.2 * 2**attempt))  # noqa: S311 - not a secret


def _utc() -> float:
    from datetime import UTC, datetime  # noqa: PLC0415 - for one number

    return datetime.now(UTC).replace(tzinfo=None).timestamp()
