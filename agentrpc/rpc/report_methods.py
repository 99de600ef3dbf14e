"""What each RPC of ReportService does."""

from collections.abc import Awaitable
from typing import Any

from agentrpc.rpc.methods import Service, emptied
from agentrpc.rpc.report_streams import DownloadStream, WatchStream
from agentrpc.rpc.streams import Streams
from agentrpc.services.reports import Reports
from agentrpc.v1 import report_service_pb2

__all__ = ["report_service"]


def report_service(reports: Reports, streams: Streams) -> Service:
    """ReportService."""

    def watch(call: Any, request: Any, send: Any) -> Awaitable[None]:  # noqa: ANN401 - by the RPC
        return WatchStream(*streams.parts, call.principal, send, reports).run(request.name)

    def download(call: Any, request: Any, send: Any) -> Awaitable[None]:  # noqa: ANN401 - by the RPC
        return DownloadStream(*streams.parts, call.principal, send, reports).run(request)

    return Service(
        report_service_pb2.DESCRIPTOR.services_by_name["ReportService"],
        {
            "CreateReport": lambda call, r: reports.create(call.principal, r),
            "GetReport": lambda call, r: reports.get(call.principal, r.name),
            "ListReports": lambda call, r: reports.list(call.principal, r),
            "DeleteReport": emptied(lambda call, r: reports.delete(call.principal, r.name)),
            "WatchReport": watch,
            "DownloadReport": download,
        },
    )
