"""A report of a real run with tools, approvals and a subagent, made by the worker of a whole stack; and one killed."""

import asyncio
import json
import os
import signal

import psutil
import pytest

from agentrpc.v1 import report_pb2
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import ALLOW, bash, create, state

Report = report_pb2.Report


def _prompt():
    task = {"description": "Count the files", "subagent_type": "general-purpose", "run_in_background": True}
    task["prompt"] = f"[[delay: 1]]\n{bash('echo from the subagent; sleep 1')}\n[[then]]\n[[text: the report]]"
    steps = [
        f"[[text: I will look around first.]]\n{bash('ls -la; sleep 1')}",
        f"[[text: A subagent counts meanwhile.]]\n[[tool: Agent {json.dumps(task)}]]",
        bash("echo made > result.txt; cat missing.txt"),
        "[[text: All is <b>done</b>: see result.txt.]]",
    ]
    return "\n[[then]]\n".join(steps)


async def _answer(client, session):
    """A run whose questions are answered."""
    events = []
    async with asyncio.timeout(100):
        async for event in client.run(session, _prompt()):
            events.append(event)
            if event.HasField("approval_requested"):
                await client.resolve(event.approval_requested.approval.name, ALLOW)
    return events


async def _finished(client, name):
    async with asyncio.timeout(120):
        return [report async for report in client.watch_report(name)][-1]


async def _made(client, **fields):
    report = await _finished(client, (await client.create_report(Report(**fields))).name)
    if report.state != Report.STATE_SUCCEEDED:
        return report, b""
    return report, b"".join([data async for data in client.download_report(report.name)])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_report_of_a_real_run(running, client):
    session = await create(client, allowed_tools=["Agent"])
    events = await _answer(client, session)
    assert state(events) == "STATE_SUCCEEDED"
    run = events[-1].run
    report, data = await _made(client, subject=run, format=Report.FORMAT_JSON)
    found = json.loads(data)
    assert found["run_states"] == {"SUCCEEDED": 1}
    tools = {tool["tool"]: tool["calls"] for tool in found["tools"]}
    assert tools["Bash"] == 3
    assert found["approvals"]
    assert {approval["resolver"] for approval in found["approvals"]} == {"admin"}
    assert [subagent["outcome"] for subagent in found["subagents"]] == ["COMPLETED"]
    assert {lane["kind"] for lane in found["lanes"]} >= {"model", "tool", "wait", "subagent"}
    assert found["growth"]["output"][-1] == found["tokens"]["output"]
    for subject, form in ((run, Report.FORMAT_HTML), (session, Report.FORMAT_HTML), (run, Report.FORMAT_MARKDOWN)):
        report, data = await _made(client, subject=subject, format=form)
        assert report.state == Report.STATE_SUCCEEDED
        assert b"&lt;b&gt;done" in data or form == Report.FORMAT_MARKDOWN
    report, again = await _made(client, subject=run, format=Report.FORMAT_MARKDOWN)
    assert again == data
    report, data = await _made(client, subject=run, format=Report.FORMAT_PDF)
    if report.error.reason != report_pb2.ReportError.REASON_NOT_CONFIGURED:
        assert data.startswith(b"%PDF")


@pytest.mark.timeout(240)
async def test_a_report_outlives_the_worker_that_makes_it():
    async with own_stack(lease_ttl=5) as stack, stack.client() as client:
        session = await create(client)
        # Some seconds of work for the template; the first time it is killed in it.
        slow = "{% for a in range(1000) %}{% for b in range(20000) %}{% endfor %}{% endfor %}slept"
        report = await client.create_report(Report(subject=session, template=slow))
        rendering = await until(
            lambda: [
                process
                for process in psutil.process_iter(["cmdline", "cwd"])
                if "agentrpc.reports.child" in (process.info["cmdline"] or [])
                and str(stack.folder) in (process.info["cwd"] or "")
            ]
        )
        worker = rendering[0].parent()
        os.kill(worker.pid, signal.SIGKILL)
        seen = await _finished(client, report.name)
        assert (seen.state, seen.attempt) == (Report.STATE_SUCCEEDED, 2), seen
        # What it had begun is gone with it.
        assert not rendering[0].is_running()
