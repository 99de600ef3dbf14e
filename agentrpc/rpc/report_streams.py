"""WatchReport and DownloadReport."""

import asyncio
from contextlib import suppress

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.errors import AgentRpcError, NotFound, StoreUnavailable, Unauthenticated, Unavailable
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.stream import Ended, Send, StalledError, Stream
from agentrpc.services.accounts import Accounts
from agentrpc.services.reports import Reports, file_name
from agentrpc.settings import Settings
from agentrpc.store.reports import CHUNK
from agentrpc.v1 import report_pb2, report_service_pb2, stream_pb2

__all__ = ["DownloadStream", "WatchStream"]

_POLL = 0.5
_FINAL = report_pb2.Report.STATE_SUCCEEDED

_End = stream_pb2.StreamEnd
_Response = report_service_pb2.WatchReportResponse


class WatchStream(Stream):
    """One watcher of one report, which asks the store twice a second: a report takes seconds, and few are watched."""

    def __init__(
        self, hub: Hub, settings: Settings, accounts: Accounts, principal: Principal, send: Send, reports: Reports
    ) -> None:
        super().__init__(hub, settings, accounts, principal, send)
        self._reports = reports

    async def run(self, name: str) -> None:
        """Send the report until it is finished, or the stream has to end."""
        report = await self._reports.get(self._principal, name)
        self._hub.add(self)
        try:
            await self.write(_Response(opened=self.opened(0), report=report).SerializeToString())
            while report.state < _FINAL:
                report = await self._next(name, report)
            ended = Ended(_End.REASON_FINISHED)
        except Ended as reason:
            ended = reason
        except NotFound:
            # Deleted while it was watched.
            ended = Ended(_End.REASON_FINISHED)
        finally:
            self._hub.remove(self)
        await self.write(_Response(end=self.end(ended)).SerializeToString())

    async def _next(self, name: str, known: report_pb2.Report) -> report_pb2.Report:
        self._woken = False
        heartbeat_due = await self.check()
        with suppress(StoreUnavailable):
            report = await self._reports.get(self._principal, name)
            if report != known:
                await self.write(_Response(report=report).SerializeToString())
                return report
        if heartbeat_due:
            await self.write(_Response(heartbeat=self.heartbeat()).SerializeToString())
        with suppress(TimeoutError):
            async with asyncio.timeout(clock.jitter(_POLL, 0.2)):
                await self.rest()
        return known


class DownloadStream(Stream):
    """One download. Nobody waits for a reader that does not read: it is cut, and resumes where it was."""

    def __init__(
        self, hub: Hub, settings: Settings, accounts: Accounts, principal: Principal, send: Send, reports: Reports
    ) -> None:
        super().__init__(hub, settings, accounts, principal, send)
        self._reports = reports

    async def run(self, request: report_service_pb2.DownloadReportRequest) -> None:
        """Send the document from the offset on."""
        report = await self._reports.downloadable(self._principal, request)
        response = report_service_pb2.DownloadReportResponse(
            size_bytes=report.size_bytes,
            sha256=report.sha256,
            content_type=report.content_type,
            file_name=file_name(report),
            offset=request.offset,
        )
        at = request.offset
        self._hub.add(self)
        try:
            while True:
                if at < report.size_bytes:
                    position, skip = divmod(at, CHUNK)
                    response.data = (await self._reports.chunk(request.name, position))[skip:]
                await self.write(response.SerializeToString())
                at += len(response.data)
                if at >= report.size_bytes:
                    return
                await self._go_on()
                response = report_service_pb2.DownloadReportResponse(offset=at)
        finally:
            self._hub.remove(self)

    async def _go_on(self) -> None:
        try:
            await self.check()
        except Ended as ended:
            raise _as_error(ended) from None


def _as_error(ended: Ended) -> AgentRpcError | StalledError:
    """A download has no `end`: its client knows how much is missing, and resumes."""
    if ended.reason == _End.REASON_SLOW_CONSUMER:
        return StalledError()
    if ended.reason in {_End.REASON_CREDENTIALS_EXPIRED, _End.REASON_ACCESS_REVOKED}:
        return Unauthenticated("your token has expired: refresh it, and resume", reason="CREDENTIALS_EXPIRED")
    if ended.reason == _End.REASON_UNAVAILABLE:
        return StoreUnavailable()
    return Unavailable(
        "the server ends this download: resume it, another one answers", reason="DRAINING", retry_after=1.0
    )
