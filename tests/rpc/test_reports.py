"""Reports over the wire: their life, who sees them, downloads that resume, and jobs that are lost."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from google.protobuf.empty_pb2 import Empty

from agentrpc import clock
from agentrpc.client import RpcError
from agentrpc.domain.states import RunState
from agentrpc.store.reports import claim_report, keep_report
from agentrpc.v1 import (
    report_pb2,
    report_service_pb2,
    session_pb2,
    session_service_pb2,
    stream_pb2,
    task_pb2,
    task_service_pb2,
)

Report = report_pb2.Report
NOWHERE = "sessions/00000000-0000-7000-8000-000000000000"


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


async def collected(stream):
    return [item async for item in stream]


async def document(client, report):
    return b"".join(await collected(client.download_report(report.name)))


def usage(begin=None, end=None, **fields):
    wanted = Report(format=Report.FORMAT_JSON, **fields)
    now = datetime.now(UTC)
    wanted.usage.start_time.FromDatetime(begin or now - timedelta(days=2))
    wanted.usage.end_time.FromDatetime(end or now + timedelta(days=1))
    return wanted


@pytest.fixture
async def session(client):
    return await client.create_session(session_pb2.Session(display_name="Audit <b>1</b>"))


@pytest.fixture
def make(edge):
    """Does the jobs, as a worker would."""
    return edge.use_cases.report_maker.drain


@pytest.fixture
async def made(client, session, make):
    """A finished report of ann's, in Markdown."""
    report = await client.create_report(Report(subject=session.name, format=Report.FORMAT_MARKDOWN))
    assert await make() == 1
    return await client.get_report(report.name)


async def test_the_life_of_a_report(client, session, make):
    run = await client.create_run(session.name, "say hello")
    report = await client.create_report(Report(subject=run.name, labels={"team": "x"}))
    assert (report.state, report.format) == (Report.STATE_PENDING, Report.FORMAT_HTML)
    watching = asyncio.create_task(collected(client.watch_report(report.name)))
    assert await make() == 1
    states = [seen.state for seen in await asyncio.wait_for(watching, 10)]
    assert states[-1] == Report.STATE_SUCCEEDED
    assert states == sorted(states)
    report = await client.get_report(report.name)
    assert (report.progress_percent, report.attempt, report.content_type) == (100, 1, "text/html; charset=utf-8")
    data = await document(client, report)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (report.size_bytes, report.sha256)
    assert b"say hello" in data
    assert b"still going on" in data
    listed = await client.call(client.reports.ListReports, report_service_pb2.ListReportsRequest(labels={"team": "x"}))
    assert [found.name for found in listed.reports] == [report.name]
    await client.call(client.reports.DeleteReport, report_service_pb2.DeleteReportRequest(name=report.name))
    assert await failure(client.get_report(report.name)) == ("NOT_FOUND", "NOT_FOUND")
    assert await make() == 0


async def test_a_report_on_nothing(client, session, make):
    reports = [
        await client.create_report(Report(subject=session.name)),
        await client.create_report(usage()),
        await client.create_report(Report(subject=session.name, format=Report.FORMAT_MARKDOWN)),
    ]
    assert await make() == 3
    html, used, markdown = [await document(client, await client.get_report(report.name)) for report in reports]
    assert b"There was no run yet." in html
    # What people wrote is text, wherever it stands.
    assert b"Audit &lt;b&gt;1&lt;/b&gt;" in html
    assert b"<b>1</b>" not in html + markdown
    assert b'"run_count": 0' in used
    assert b"There was no run yet." in markdown


async def test_a_report_of_an_execution(edge, client, hand, make):
    given = task_pb2.Task(display_name="Nightly audit", prompt_template="look")
    task = await client.call(client.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=given))
    execution = await client.call(client.tasks.RunTask, task_service_pb2.RunTaskRequest(name=task.name))
    await edge.use_cases.executions.start_due()
    await hand.end(await hand.claim())
    report = await client.create_report(Report(subject=execution.name, format=Report.FORMAT_MARKDOWN))
    assert await make() == 1
    assert b"Nightly audit" in await document(client, report)
    unknown = f"{task.name}/executions/{uuid4()}"
    assert await failure(client.create_report(Report(subject=unknown))) == ("NOT_FOUND", "NOT_FOUND")


async def test_usage_adds_up_and_is_of_those_whom_one_may_see(edge, client, hand, make):
    for state in (RunState.SUCCEEDED, RunState.FAILED):
        made = await client.create_session(session_pb2.Session(display_name=f"s {state}"))
        await client.create_run(made.name, "x")
        await hand.end(await hand.claim(), state)
    ann = (await client.call(client.auth.GetMe, Empty())).name
    async with edge.client("admin") as admin, edge.client("bob") as bob:
        reports = {
            (client, "ann"): await client.create_report(usage()),
            (admin, "all"): await admin.create_report(usage()),
            (bob, "none"): await bob.create_report(usage()),
            (admin, "before"): await admin.create_report(
                usage(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC))
            ),
        }
        other = usage()
        other.usage.owner = ann
        assert await failure(bob.create_report(other)) == ("NOT_FOUND", "NOT_FOUND")
        assert await make() == 4
        found = {who: json.loads(await document(c, report)) for (c, who), report in reports.items()}
    assert {who: report["run_count"] for who, report in found.items()} == {"ann": 2, "all": 2, "none": 0, "before": 0}
    assert found["ann"]["run_states"] == {"FAILED": 1, "SUCCEEDED": 1}
    assert sorted(share["label"] for share in found["ann"]["sessions"]) == ["s FAILED", "s SUCCEEDED"]
    assert [share["label"] for share in found["all"]["owners"]] == ["ann"]
    assert found["ann"]["owners"] == []
    assert len(found["before"]["days"]) == 31


async def test_what_is_anothers_looks_as_if_it_did_not_exist(edge, client, session, made):
    shared = await client.create_report(Report(subject=session.name, shared=True))
    async with edge.client("bob") as bob, edge.client("vic") as viewer, edge.client("admin") as admin:
        nothing = ("NOT_FOUND", "NOT_FOUND")
        assert await failure(bob.get_report(made.name)) == nothing
        assert await failure(collected(bob.watch_report(made.name))) == nothing
        assert await failure(collected(bob.download_report(made.name))) == nothing
        assert await failure(bob.create_report(Report(subject=session.name))) == nothing
        for name in (made.name, shared.name):
            delete = report_service_pb2.DeleteReportRequest(name=name)
            assert await failure(bob.call(bob.reports.DeleteReport, delete)) == nothing
        listed = await bob.call(bob.reports.ListReports, report_service_pb2.ListReportsRequest())
        assert [found.name for found in listed.reports] == [shared.name]
        assert (await bob.get_report(shared.name)).name == shared.name
        assert (await admin.get_report(made.name)).name == made.name
        denied = ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert await failure(viewer.create_report(Report(subject=session.name))) == denied


async def test_bad_input_is_told_at_once(client, session):
    invalid = ("INVALID_ARGUMENT", "FIELD_INVALID")
    when = datetime(2026, 1, 1, tzinfo=UTC)
    far = usage()
    far.usage.end_time.seconds = 2**50
    both = usage(subject=session.name)
    for wanted in [
        Report(),
        both,
        Report(subject=session.name, format=9),
        Report(subject=session.name, display_name="x" * 201),
        Report(subject=session.name, display_name="a\0b"),
        Report(subject=session.name, template="x" * (256 * 1024 + 1)),
        Report(subject=session.name, template="x", format=Report.FORMAT_JSON),
        Report(usage=report_pb2.UsagePeriod()),
        usage(when, when),
        usage(when, when + timedelta(days=367)),
        far,
    ]:
        assert await failure(client.create_report(wanted)) == invalid, wanted
    for name in ["sessions/1", "tasks/x", f"{session.name}/runs/1", "\0"]:
        assert await failure(client.create_report(Report(subject=name))) == ("INVALID_ARGUMENT", "NAME_INVALID")
    for name in [NOWHERE, f"{session.name}/runs/{uuid4()}"]:
        assert await failure(client.create_report(Report(subject=name))) == ("NOT_FOUND", "NOT_FOUND")
    broken = Report(subject=session.name, template="fine\n{% for x in %}")
    with pytest.raises(RpcError, match="line 2") as caught:
        await client.create_report(broken)
    assert caught.value.reason == "TEMPLATE_INVALID"
    deep = Report(subject=session.name, template="{{" + "(" * 100_000 + "}}")
    assert await failure(client.create_report(deep)) == ("INVALID_ARGUMENT", "TEMPLATE_INVALID")
    with pytest.raises(RpcError) as caught:
        await client.create_report(Report(display_name="x" * 201, format=9, labels={"A": "b"}))
    for field in ("report.display_name", "report.format", "report.labels", "report.subject"):
        assert field in caught.value.message
    for request in [
        report_service_pb2.ListReportsRequest(order_by="size"),
        report_service_pb2.ListReportsRequest(subject="a\0b"),
        report_service_pb2.ListReportsRequest(labels={"a": "\0"}),
        report_service_pb2.ListReportsRequest(states=[7]),
    ]:
        assert await failure(client.call(client.reports.ListReports, request)) == invalid


async def test_a_request_id_makes_one_report(client, session, make):
    wanted, request_id = Report(subject=session.name, format=Report.FORMAT_JSON), str(uuid4())
    made = await asyncio.gather(*(client.create_report(wanted, request_id=request_id) for _ in range(5)))
    assert len({report.name for report in made}) == 1
    wanted.display_name = "other"
    assert (await failure(client.create_report(wanted, request_id=request_id)))[1] == "REQUEST_ID_REUSED"
    assert await make() == 1
    only_checked = report_service_pb2.CreateReportRequest(report=wanted, validate_only=True)
    await client.call(client.reports.CreateReport, only_checked)
    assert await make() == 0


async def test_a_template_that_fails_says_where(client, session, make):
    good = "{% extends 'report.html' %}{% block brand %}Example Corp{% endblock %}"
    wanted = [good, "a\n{{ report.nothing }}", "{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}"]
    reports = [await client.create_report(Report(subject=session.name, template=text)) for text in wanted]
    assert await make() == 4
    reports = [await client.get_report(report.name) for report in reports]
    assert b"Example Corp" in await document(client, reports[0])
    for report in reports[1:]:
        assert (report.state, report.error.reason) == (
            Report.STATE_FAILED,
            report_pb2.ReportError.REASON_TEMPLATE_INVALID,
        )
    assert "line 2" in reports[1].error.message
    assert await failure(document(client, reports[1])) == ("FAILED_PRECONDITION", "STATE_INVALID")
    assert "Example" in (await client.get_report(reports[0].name)).template
    listed = await client.call(client.reports.ListReports, report_service_pb2.ListReportsRequest())
    assert not any(report.template for report in listed.reports)


async def test_a_download_resumes_where_it_was(edge, client, session, make):
    words = "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(10_000))
    report = await client.create_report(
        Report(subject=session.name, template=words[: 256 * 1024], display_name="Ünïted (1)")
    )
    big = await client.create_report(
        Report(subject=session.name, template="{% for n in range(9) %}" + words[:200_000] + "{{ n }}{% endfor %}")
    )
    assert await make() == 2
    for name in (report.name, big.name):
        report = await client.get_report(name)
        whole = await document(client, report)
        assert len(whole) == report.size_bytes
        for offset in (1, 200_000, 262_144, len(whole) - 1, len(whole)):
            if offset <= len(whole):
                rest = b"".join(await collected(client.download_report(name, offset=offset)))
                assert rest == whole[offset:]
        # Broken off in the middle, and taken up from another byte.
        request = report_service_pb2.DownloadReportRequest(name=name)
        call = client.reports.DownloadReport(request, metadata=await client._metadata())
        first = await call.read()
        call.cancel()
        assert (first.size_bytes, first.sha256, first.content_type[:9]) == (
            report.size_bytes,
            report.sha256,
            "text/html",
        )
        rest = b"".join(await collected(client.download_report(name, offset=len(first.data))))
        assert hashlib.sha256(first.data + rest).hexdigest() == report.sha256
    for offset in (-1, report.size_bytes + 1):
        wrong = collected(client.download_report(name, offset=offset))
        assert await failure(wrong) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_a_lost_worker_loses_the_report_and_another_one_makes_it(edge, client, session, make):
    report = await client.create_report(Report(subject=session.name, format=Report.FORMAT_JSON))
    dead = clock.uuid7()
    assert await claim_report(edge.database, dead, 600) is not None
    assert await make() == 0, "it has a lease"
    report_id = report.name.removeprefix("reports/")
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE reports SET lease_expire_time = now() WHERE id = $1", UUID(report_id))
    assert await make() == 1
    done = await client.get_report(report.name)
    assert (done.state, done.attempt) == (Report.STATE_SUCCEEDED, 2)
    # The one that was thought dead wakes up and has nothing to say any more.
    assert not await keep_report(edge.database, UUID(report_id), dead, 600, 50)
    assert await client.get_report(report.name) == done


async def test_a_report_that_kills_its_workers_fails(edge, client, session, make):
    report = await client.create_report(Report(subject=session.name, format=Report.FORMAT_JSON))
    for _ in range(3):
        assert await claim_report(edge.database, clock.uuid7(), 0) is not None
    assert await make() == 1
    done = await client.get_report(report.name)
    assert (done.state, done.error.reason) == (Report.STATE_FAILED, report_pb2.ReportError.REASON_INTERNAL)


async def test_a_worker_that_stops_gives_the_report_back(edge, client, session, make):
    slow = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    report = await client.create_report(Report(subject=session.name, template=slow))
    making = asyncio.create_task(make())
    async for seen in client.watch_report(report.name):
        if seen.progress_percent >= 80:
            break
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    given_back = await client.get_report(report.name)
    assert (given_back.state, given_back.attempt) == (Report.STATE_PENDING, 0)
    assert not list((edge.settings.data_dir / "reports").iterdir()), "its folder is gone"
    # Deleted while it is made: the making stops.
    making = asyncio.create_task(make())
    async for seen in client.watch_report(report.name):
        if seen.progress_percent >= 80:
            break
    await client.call(client.reports.DeleteReport, report_service_pb2.DeleteReportRequest(name=report.name))
    assert await asyncio.wait_for(making, 20) == 1


async def test_a_deleted_subject_and_too_many(edge, client, session, make):
    report = await client.create_report(Report(subject=session.name, format=Report.FORMAT_JSON))
    for _ in range(49):
        await client.create_report(Report(subject=session.name, format=Report.FORMAT_JSON))
    full = client.create_report(Report(subject=session.name))
    assert await failure(full) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    await client.call(client.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(name=session.name))
    assert await make() == 50
    done = await client.get_report(report.name)
    assert done.error.reason == report_pb2.ReportError.REASON_SUBJECT_GONE
    request = report_service_pb2.ListReportsRequest(page_size=20, order_by="create_time")
    names = []
    while True:
        page = await client.call(client.reports.ListReports, request)
        names += [found.name for found in page.reports]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == sorted(set(names))
    assert len(names) == 50


async def test_watching_what_is_finished_or_deleted_ends(client, session, made):
    call = client.reports.WatchReport(
        report_service_pb2.WatchReportRequest(name=made.name), metadata=await client._metadata()
    )
    responses = [response async for response in call]
    assert responses[0].HasField("opened")
    assert responses[0].report == made
    assert responses[-1].end.reason == stream_pb2.StreamEnd.REASON_FINISHED
    pending = await client.create_report(Report(subject=session.name))
    call = client.reports.WatchReport(
        report_service_pb2.WatchReportRequest(name=pending.name), metadata=await client._metadata()
    )
    assert (await call.read()).report.state == Report.STATE_PENDING
    await client.call(client.reports.DeleteReport, report_service_pb2.DeleteReportRequest(name=pending.name))
    while not (response := await call.read()).HasField("end"):
        pass
    assert response.end.reason == stream_pb2.StreamEnd.REASON_FINISHED
