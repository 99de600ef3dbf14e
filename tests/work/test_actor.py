"""Runs in a worker whose agent is the fake CLI: what becomes of a process when its run has ended or could not go on."""

import asyncio
import json
import re

import pytest

from agentrpc.claude.agent import AgentCrashedError
from agentrpc.claude.revival import Conversation
from agentrpc.embedded import scripted_model
from agentrpc.errors import StoreUnavailable
from agentrpc.services.session_host import actor as actor_module
from agentrpc.services.session_host import process as process_module
from agentrpc.services.session_host.gate import SessionGate
from agentrpc.services.session_host.process import SessionProcess
from agentrpc.v1 import approval_pb2, common_pb2, run_pb2, session_pb2, session_service_pb2

State = run_pb2.Run.State
ALLOW = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)


def bash(command):
    return f"[[tool: Bash {json.dumps({'command': command})}]]"


@pytest.fixture
async def session(worker, client):
    """Makes a session, with a worker for it."""
    await worker(True)

    async def make(**options):
        options = session_pb2.SessionOptions(allowed_tools=["Bash"], **options)
        return (await client.create_session(session_pb2.Session(options=options))).name

    return make


async def played(client, session, prompt, on=None):
    """The durable events of a run; `on` is called with each call that starts."""
    events = []
    async with asyncio.timeout(60):
        async for event in client.run(session, prompt):
            events += [event] if event.sequence else []
            if on is not None and event.HasField("tool_call_started"):
                await on(event)
    return events


def ended(events):
    return State.Name(events[-1].run_ended.state).removeprefix("STATE_"), events[-1].run_ended.result.text


def lines(settings, session, name):
    path = settings.workspaces / session.removeprefix("sessions/") / "files" / name
    return path.read_text().split() if path.exists() else []


async def test_what_still_waits_in_the_cli_when_a_run_fails_is_not_done_under_the_next(client, session, settings):
    name = await session(max_turns=1)
    stray = f"[[delay: 1]]\n{bash('echo stray >> stray')}"
    failed = await played(client, name, bash("sleep 1"), lambda event: client.steer(event.run, stray))
    assert ended(failed)[0] == "FAILED"
    following = await played(client, name, "[[text: next]]")
    assert ended(following) == ("SUCCEEDED", "next")
    assert not any(event.HasField("tool_call_started") for event in following)
    assert lines(settings, name, "stray") == []


async def test_an_agent_that_does_not_listen_is_ended_with_its_run(client, session, settings, monkeypatch):
    async def deaf(process, text, *, uuid, original=SessionProcess.send_prompt):
        if text == "louder":
            process.turns.put_nowait(AgentCrashedError(None, "it does not read what it is told"))
        else:
            await original(process, text, uuid=uuid)

    monkeypatch.setattr(SessionProcess, "send_prompt", deaf)
    name = await session(recovery_policy=session_pb2.RECOVERY_POLICY_FAIL)
    failed = await played(
        client, name, bash("sleep 2; echo late >> late"), lambda event: client.steer(event.run, "louder")
    )
    assert failed[-1].run_ended.error.reason == run_pb2.RunError.REASON_AGENT_CRASHED
    await asyncio.sleep(2.5)
    assert lines(settings, name, "late") == []


async def test_a_run_begins_although_the_store_is_away_while_its_process_starts(client, session, monkeypatch):
    away = 2

    async def resolve(*arguments, original=process_module.resolve_registered):
        nonlocal away
        away -= 1
        if away >= 0:
            raise StoreUnavailable
        await original(*arguments)

    monkeypatch.setattr(process_module, "resolve_registered", resolve)
    assert ended(await played(client, await session(), "[[text: hello]]")) == ("SUCCEEDED", "hello")
    assert away < 0


async def test_the_next_process_knows_what_the_one_before_has_said_at_its_end(client, session, monkeypatch):
    name = await session()
    await played(client, name, "[[text: first]]")
    line = b'{"type":"user","uuid":"0d4c7f50-0000-4000-8000-000000000000","message":{"role":"user","content":"last"}}'
    known = []

    async def stop(process, *, original=SessionProcess.stop, **options):
        receipt = await original(process, **options)
        process._writer.put_transcript("", [line])
        return receipt

    async def load(hold, original=actor_module.load_conversation):
        known.append(await original(hold))
        return known[-1]

    monkeypatch.setattr(SessionProcess, "stop", stop)
    monkeypatch.setattr(actor_module, "load_conversation", load)
    changed = session_pb2.Session(name=name, options=session_pb2.SessionOptions(max_turns=5))
    request = session_service_pb2.UpdateSessionRequest(session=changed, update_mask={"paths": ["options.max_turns"]})
    await client.call(client.sessions.UpdateSession, request)
    assert ended(await played(client, name, "[[text: second]]"))[0] == "SUCCEEDED"
    [conversation] = known
    assert isinstance(conversation, Conversation)
    assert "0d4c7f50-0000-4000-8000-000000000000" in conversation


async def test_a_question_that_the_cli_takes_back_is_not_waited_for(client, session, monkeypatch):
    """As when the message that asks is cut off and written again: nobody has to answer twice."""
    tasks = []

    async def noting(gate, call, original=SessionGate.__call__):
        tasks.append(asyncio.current_task())
        return await original(gate, call)

    monkeypatch.setattr(SessionGate, "__call__", noting)
    options = session_pb2.SessionOptions()
    name = (await client.create_session(session_pb2.Session(options=options))).name
    states = []
    async with asyncio.timeout(30):
        async for event in client.run(name, bash("echo x")):
            if event.HasField("approval_requested"):
                tasks[0].cancel()
            if event.HasField("approval_resolved"):
                states.append(event.approval_resolved.state)
                assert not (await client.get_run(event.run)).pending_approvals
                await client.cancel(event.run)
    assert states == [approval_pb2.Approval.STATE_CANCELLED]


# ---- Plans, with the real CLI ----


@pytest.fixture
def plan_file(monkeypatch):
    """Where the CLI has told the model to write its plan."""
    found = []

    def due(asked, original=scripted_model._due_step):
        found.extend(re.findall(r"/[^\s\"\\\\]+/plans/[^\s\"\\\\]+\.md", json.dumps(asked)))
        return original(asked)

    monkeypatch.setattr(scripted_model, "_due_step", due)
    return lambda: found[-1]


def plan_of(path):
    written = json.dumps({"file_path": path, "content": "the whole plan"})
    return f"[[tool: Write {written}]]\n[[then]]\n[[tool: ExitPlanMode {{}}]]"


async def answered(client, session, prompt, parked=None):
    """The events of a run whose approvals are all given, after `parked`, and their inputs."""
    events, inputs = [], []
    async with asyncio.timeout(60):
        async for event in client.run(session, prompt):
            events += [event] if event.sequence else []
            if event.HasField("approval_requested"):
                inputs.append(event.approval_requested.approval.input_json)
                if parked is not None:
                    await parked()
                await client.resolve(event.approval_requested.approval.name, ALLOW)
    return events, inputs


@pytest.mark.parametrize("hold", [60, 0.3])
async def test_a_plan_is_written_shown_and_carried_out(worker, client, settings, plan_file, hold):
    """Also when its process is gone before the answer comes, and in each run of a session anew."""
    host = await worker(False, approval_hold=hold)

    async def gone():
        while any(actor.has_process for actor in host._actors.values()):  # noqa: ASYNC110 - of the host's own
            await asyncio.sleep(0.05)

    options = session_pb2.SessionOptions(permission_mode=common_pb2.PERMISSION_MODE_PLAN, allowed_tools=["Bash"])
    name = (await client.create_session(session_pb2.Session(options=options))).name
    await played(client, name, "[[text: hello]]")
    for word in ("first", "second"):
        early, late = bash(f"echo early >> {word}"), bash(f"echo late >> {word}")
        prompt = f"{early}\n[[then]]\n{plan_of(plan_file())}\n[[then]]\n{late}\n[[then]]\n[[text: carried out]]"
        events, inputs = await answered(client, name, prompt, gone if hold < 1 else None)
        assert ended(events) == ("SUCCEEDED", "carried out")
        assert [json.loads(given).get("plan") for given in inputs] == ["the whole plan"]
        assert lines(settings, name, word) == ["late"]
