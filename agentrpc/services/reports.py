"""Reports: accepting them, reading them. `report_maker.py` makes them."""

import asyncio
import re
from datetime import timedelta
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from agentrpc.names import parse_execution, parse_report, parse_run, parse_session, parse_user, report_name, user_name
from agentrpc.reports.render import CONTENT_TYPES
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.archive_state import require_here
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.runs import load_run
from agentrpc.services.sessions import load_session
from agentrpc.services.signals import Doorbell
from agentrpc.services.task_executions import load_execution
from agentrpc.services.validation import Faults, check_enums, check_report_template, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.reports import REPORT_ORDER, ReportQuery, ReportRow, count_reports, find_reports, read_chunk
from agentrpc.store.tables import User
from agentrpc.v1 import report_pb2, report_service_pb2

__all__ = ["Reports", "check_room", "file_name", "new_report"]

_MAX_TEMPLATE = 256 * 1024
_MAX_OPEN = 50
_MAX_REPORTS = 5000
_LONGEST = timedelta(days=366)
_SUFFIX = {"JSON": "json", "MARKDOWN": "md", "HTML": "html", "PDF": "pdf"}


class Reports:
    """The use cases."""

    def __init__(self, database: Database, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._doorbell = doorbell
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def create(self, principal: Principal, request: report_service_pb2.CreateReportRequest) -> report_pb2.Report:
        """CreateReport: the row is the job."""
        require_write(principal, "reports.create")
        given = request.report
        await asyncio.to_thread(_check, given)
        key = RequestKey(principal, "CreateReport", request_uuid(request.request_id), request_hash(request))
        async with self._database.transaction() as tx:
            usage_owner = await self._check_subject(tx, principal, given)
            row = new_report(principal.user_id, given, usage_owner)
            if request.validate_only:
                return _message(row)
            if known := await known_request(tx, key, row.id):
                return _message(await _visible(tx, principal, known))
            await check_room(tx, principal.user_id)
            tx.add(row)
        await self._doorbell.ring_job("reports")
        return _message(row)

    async def get(self, principal: Principal, name: str) -> report_pb2.Report:
        """GetReport."""
        report_id = parse_report(name)
        async with self._database.transaction() as tx:
            return _message(await _visible(tx, principal, report_id))

    async def list(
        self, principal: Principal, request: report_service_pb2.ListReportsRequest
    ) -> report_service_pb2.ListReportsResponse:
        """ListReports."""
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        faults.no_nul("subject", request.subject)
        faults.labels("labels", request.labels.items())
        created_from = faults.time(request, "create_time_from")
        created_before = faults.time(request, "create_time_before")
        faults.done()
        order = parse_order(request.order_by, REPORT_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = ReportQuery(
            visible_to=visible_owner(principal),
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            states=[report_pb2.Report.State.Name(state).removeprefix("STATE_") for state in request.states],
            formats=[report_pb2.Report.Format.Name(form).removeprefix("FORMAT_") for form in request.formats],
            subject=request.subject,
            labels=request.labels,
            created_from=created_from,
            created_before=created_before,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_reports(tx, query)
        reports = fitting([_message(row, in_list=True) for row in rows[:size]])
        response = report_service_pb2.ListReportsResponse(reports=reports)
        if len(rows) > len(reports):
            last = rows[len(reports) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def delete(self, principal: Principal, name: str) -> None:
        """DeleteReport. Whoever makes it notices and stops."""
        report_id = parse_report(name)
        require_write(principal, "reports.delete")
        async with self._database.transaction() as tx:
            row = await _visible(tx, principal, report_id)
            if visible_owner(principal) not in (None, row.owner):
                # Shared with the caller: it may be read, and no more.
                require_visible(principal, None, "Report", name)
            await tx.delete(row)

    async def downloadable(
        self, principal: Principal, request: report_service_pb2.DownloadReportRequest
    ) -> report_pb2.Report:
        """A report whose document can be sent from this offset on. Raises STATE_INVALID or FIELD_INVALID."""
        report = await self.get(principal, request.name)
        if report.state != report_pb2.Report.STATE_SUCCEEDED:
            state = report_pb2.Report.State.Name(report.state)
            raise FailedPrecondition(
                f"the report is {state.removeprefix('STATE_').lower()}: "
                + (f"{report.error.message}" if report.HasField("error") else "wait for its end with WatchReport"),
                reason="STATE_INVALID",
                metadata={"state": state},
            )
        if not 0 <= request.offset <= report.size_bytes:
            raise InvalidArgument.field("offset", f"must be from 0 to {report.size_bytes}, the size of the document")
        return report

    async def chunk(self, name: str, position: int) -> bytes:
        """A piece of a document. Raises NotFound when it was deleted meanwhile."""
        data = await read_chunk(self._database, parse_report(name), position)
        if data is None:
            raise NotFound("Report", name)
        return data

    async def _check_subject(self, tx: Transaction, principal: Principal, given: report_pb2.Report) -> UUID | None:
        """Raise NotFound unless the caller may see what it is about; whose usage it is."""
        if given.subject:
            if given.subject.startswith("tasks/"):
                found = await load_execution(tx, principal, *parse_execution(given.subject, field="report.subject"))
                session_id = found.execution.session_id
            elif "/runs/" in given.subject:
                session_id, run_id = parse_run(given.subject, field="report.subject")
                await load_run(tx, principal, session_id, run_id)
            else:
                session_id = parse_session(given.subject, field="report.subject")
                await load_session(tx, principal, session_id)
            if session_id is None:
                raise FailedPrecondition(
                    "the execution has not begun: there is nothing to report yet",
                    reason="STATE_INVALID",
                    metadata={"state": "STATE_QUEUED"},
                )
            await require_here(tx, session_id)
            return None
        if not given.usage.owner:
            return visible_owner(principal)
        owner = parse_user(given.usage.owner, field="report.usage.owner")
        user = await tx.get(User, owner)
        require_visible(principal, user.id if user is not None else None, "User", given.usage.owner)
        return owner


async def _visible(tx: Transaction, principal: Principal, report_id: UUID) -> ReportRow:
    row = await tx.get(ReportRow, report_id)
    if row is None or not row.shared:
        require_visible(principal, row.owner if row is not None else None, "Report", report_name(report_id))
    assert row is not None
    return row


def new_report(owner: UUID, given: report_pb2.Report, usage_owner: UUID | None = None) -> ReportRow:
    """A report that waits to be made, of what was checked."""
    return ReportRow(
        id=clock.uuid7(),
        owner=owner,
        display_name=given.display_name,
        labels=dict(given.labels),
        subject=given.subject,
        format=report_pb2.Report.Format.Name(given.format or report_pb2.Report.FORMAT_HTML).removeprefix("FORMAT_"),
        shared=given.shared,
        given=_settable(given).SerializeToString(deterministic=True),
        usage_owner=usage_owner,
        state="PENDING",
        progress=0,
        attempt=0,
        size=0,
        sha256="",
        create_time=clock.utcnow(),
    )


async def check_room(tx: Transaction, owner: UUID) -> None:
    """Raise LIMIT_REACHED if somebody has too many reports."""
    unfinished, stored = await count_reports(tx, owner)
    for count, limit, what in (
        (unfinished, _MAX_OPEN, "reports that are not finished: wait for some"),
        (stored, _MAX_REPORTS, "reports: delete some"),
    ):
        if count >= limit:
            raise ResourceExhausted(f"you have {count} {what}", reason="LIMIT_REACHED", metadata={"limit": str(limit)})


def _check(given: report_pb2.Report) -> None:
    """All that callers set. Raises FIELD_INVALID, NAME_INVALID or TEMPLATE_INVALID."""
    faults = Faults()
    check_enums(given, faults, "report.")
    faults.text("report.display_name", given.display_name, 200)
    faults.labels("report.labels", given.labels.items())
    faults.bytes("report.template", given.template, _MAX_TEMPLATE)
    plain = given.format == report_pb2.Report.FORMAT_JSON
    faults.check(not (given.template and plain), "report.template", "JSON takes no template: leave it empty")
    one = bool(given.subject) != given.HasField("usage")
    faults.check(one, "report.subject", "either this or report.usage is required, and not both")
    if given.HasField("usage"):
        _check_period(given.usage, faults)
    faults.done()
    if given.template:
        check_report_template("report.template", given.template)


def _check_period(usage: report_pb2.UsagePeriod, faults: Faults) -> None:
    begin = faults.time(usage, "start_time", "report.usage.start_time")
    end = faults.time(usage, "end_time", "report.usage.end_time")
    faults.check(usage.HasField("start_time"), "report.usage.start_time", "is required")
    faults.check(usage.HasField("end_time"), "report.usage.end_time", "is required")
    if begin is not None and end is not None:
        good = timedelta(0) < end - begin <= _LONGEST
        faults.check(good, "report.usage.end_time", f"must be after start_time, at most {_LONGEST.days} days")


def _settable(given: report_pb2.Report) -> report_pb2.Report:
    """What the caller set, without what the server does."""
    kept = report_pb2.Report(subject=given.subject, template=given.template)
    if given.HasField("usage"):
        kept.usage.CopyFrom(given.usage)
    return kept


def _message(row: ReportRow, *, in_list: bool = False) -> report_pb2.Report:
    """`agentrpc.v1.Report`."""
    message = report_pb2.Report.FromString(row.given)
    if in_list:
        message.ClearField("template")
    message.name = report_name(row.id)
    message.display_name = row.display_name
    message.labels.update(row.labels)
    message.owner = user_name(row.owner)
    message.shared = row.shared
    message.MergeFrom(report_pb2.Report(format=f"FORMAT_{row.format}", state=f"STATE_{row.state}"))
    message.progress_percent = row.progress
    message.attempt = row.attempt
    message.create_time.FromDatetime(row.create_time)
    if row.start_time is not None:
        message.start_time.FromDatetime(row.start_time)
    if row.end_time is not None:
        message.end_time.FromDatetime(row.end_time)
    if row.error is not None:
        message.error.ParseFromString(row.error)
    if row.state == "SUCCEEDED":
        message.size_bytes = row.size
        message.sha256 = row.sha256
        message.content_type = CONTENT_TYPES[row.format]
    return message


def file_name(report: report_pb2.Report) -> str:
    """A name for a file, of letters, digits, dots and hyphens: `nightly-audit.pdf`."""
    words = "-".join(re.findall(r"[a-z0-9]+", report.display_name.lower()))[:60].strip("-")
    suffix = _SUFFIX[report_pb2.Report.Format.Name(report.format).removeprefix("FORMAT_")]
    return f"{words or 'report-' + report.name[-12:]}.{suffix}"
