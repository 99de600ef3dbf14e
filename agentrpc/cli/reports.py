"""`agentrpc reports`: documents about what agents did."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Column, Table
from rich.text import Text

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.terminal import Terminal, shown
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import report_pb2, report_service_pb2

__all__ = ["reports_app"]

reports_app = typer.Typer(help="Documents about what agents did.", no_args_is_help=True)

console = Terminal()
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; - is standard output.")]

_State = report_pb2.Report.State


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


def _name(text: str) -> str:
    return text if text.startswith("reports/") else f"reports/{text}"


@reports_app.command("create")
def create_report(
    session: Annotated[str, typer.Option(help="About this session.")] = "",
    run: Annotated[str, typer.Option(help="About this run, sessions/{session}/runs/{run}.")] = "",
    execution: Annotated[str, typer.Option(help="About tasks/{task}/executions/{execution}.")] = "",
    usage_from: Annotated[datetime | None, typer.Option(help="About usage from this time on (UTC).")] = None,
    usage_to: Annotated[datetime | None, typer.Option(help="Up to this time; now when left out.")] = None,
    usage_owner: Annotated[str, typer.Option(help="Only usage of users/{user}.")] = "",
    form: Annotated[str, typer.Option("--format", help="json, markdown, html or pdf.")] = "html",
    title: Annotated[str, typer.Option(help="The title of the document.")] = "",
    template: Annotated[Path | None, typer.Option(help="A file with a Jinja2 template of your own.")] = None,
    shared: Annotated[bool, typer.Option(help="Everyone may read it.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is finished.")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Have a report made; with --output wait for it and write it to a file."""
    subject = execution or run or (session if session.startswith("sessions/") or not session else f"sessions/{session}")
    if form.lower() not in {"json", "markdown", "html", "pdf"}:
        raise fail("--format must be json, markdown, html or pdf", 2)
    if sum(map(bool, (session, run, execution, usage_from))) != 1:
        raise fail("give one of --session, --run, --execution and --usage-from", 2)
    wanted = report_pb2.Report(subject=subject, display_name=title, shared=shared, format=f"FORMAT_{form.upper()}")
    if template is not None:
        wanted.template = template.read_text()
    if usage_from is not None:
        # To the second: the same command a moment later is the same period.
        end = usage_to or datetime.now(UTC).replace(microsecond=0, tzinfo=None) + timedelta(seconds=1)
        wanted.usage.start_time.FromDatetime(usage_from)
        wanted.usage.end_time.FromDatetime(end)
        wanted.usage.owner = usage_owner

    async def work(client: AgentRpcClient) -> int:
        report = await client.create_report(wanted)
        if wait or output is not None:
            report = await _followed(client, report.name, quiet=as_json)
        if output is not None and report.state == _State.STATE_SUCCEEDED:
            await _write(client, report.name, output)
        if as_json:
            _print(report)
        elif output is None or str(output) != "-":
            _say(report)
        return int(report.state == _State.STATE_FAILED)

    run_command(work)


@reports_app.command("list")
def list_reports(page_size: int = 20, as_json: Json = False) -> None:
    """List reports, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = report_service_pb2.ListReportsRequest(page_size=page_size)
        response = await client.call(client.reports.ListReports, request)
        if as_json:
            _print(response)
            return
        table = Table(
            Column("report", no_wrap=True), "format", Column("state", no_wrap=True), "size", "title", box=None
        )
        for found in response.reports:
            title = found.display_name or found.subject or "usage"
            table.add_row(found.name, _format(found), _state(found), f"{found.size_bytes:,}", title)
        console.print(table)

    run_command(work)


@reports_app.command("get")
def get_report(report: str, wait: Annotated[bool, typer.Option(help="Wait until it is finished.")] = False) -> None:
    """Show a report, without its document."""

    async def work(client: AgentRpcClient) -> None:
        name = _name(report)
        _print(await _followed(client, name, quiet=True) if wait else await client.get_report(name))

    run_command(work)


@reports_app.command("download")
def download_report(report: str, output: Output = None) -> None:
    """Write the document of a report to a file, named after the report when left out."""

    async def work(client: AgentRpcClient) -> None:
        await _write(client, _name(report), output)

    run_command(work)


@reports_app.command("delete")
def delete_report(report: str) -> None:
    """Delete a report with its document."""

    async def work(client: AgentRpcClient) -> None:
        request = report_service_pb2.DeleteReportRequest(name=_name(report))
        await client.call(client.reports.DeleteReport, request)

    run_command(work)


async def _followed(client: AgentRpcClient, name: str, *, quiet: bool) -> report_pb2.Report:
    """The report when it is finished; on the way its progress on a terminal."""
    report = report_pb2.Report(name=name)
    with Terminal(stderr=True).status("waiting for a worker", spinner="dots") as status:
        async for report in client.watch_report(name):
            if not quiet:
                status.update(f"{_state(report).lower()}, {report.progress_percent} %")
    return report


async def _write(client: AgentRpcClient, name: str, output: Path | None) -> None:
    if str(output) == "-":
        async for data in client.download_report(name):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = output
    if path is None:
        path = Path(f"{name.replace('/', '-')}.{_SUFFIXES[(await client.get_report(name)).format]}")
    # Not half a document under the name of a whole one.
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            async for data in client.download_report(name):
                file.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    print(path)


_SUFFIXES = {
    report_pb2.Report.FORMAT_JSON: "json",
    report_pb2.Report.FORMAT_MARKDOWN: "md",
    report_pb2.Report.FORMAT_HTML: "html",
    report_pb2.Report.FORMAT_PDF: "pdf",
}


def _say(report: report_pb2.Report) -> None:
    why = f": {report.error.message}" if report.HasField("error") else ""
    console.print(Text.assemble(shown(report.name), " ", (_state(report), "bold"), shown(why)))


def _state(report: report_pb2.Report) -> str:
    return _State.Name(report.state).removeprefix("STATE_")


def _format(report: report_pb2.Report) -> str:
    return report_pb2.Report.Format.Name(report.format).removeprefix("FORMAT_").lower()
