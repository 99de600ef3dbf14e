"""Runs that outlive their processes: parked approvals, stops of the whole stack, lost workers."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
import pytest_asyncio

from agentrpc.app import _admin_for
from agentrpc.embedded.stack import Stack, _processes
from agentrpc.v1 import event_pb2
from tests.e2e.conftest import Running
from tests.e2e.talk import ALLOW, DENY, bash, create, of, outputs, state

pytestmark = pytest.mark.asyncio(loop_scope="module")

Finished = event_pb2.ToolCallFinished
SETTINGS = {"AGENTRPC_APPROVAL_HOLD": "0.5"}


class Restartable(Running):
    """A stack that can be stopped and started again in its data dir."""

    async def start(self):
        self.stack = Stack(self.folder, listen="127.0.0.1:0")
        await self.stack.start()
        self._keeping = asyncio.create_task(self.stack.run_until(asyncio.Event()))

    async def stop(self):
        self._keeping.cancel()
        await self.stack.stop()

    async def restart(self):
        await self.stop()
        await self.start()

    def agents(self, session):
        """What runs in the workspace of a session."""
        return _processes(lambda process: process.cwd().startswith(str(self.workspace(session))))

    async def until_parked(self, session):
        """Until no CLI is alive."""
        async with asyncio.timeout(20):
            while self.agents(session):  # noqa: ASYNC110 - processes tell nobody when they end
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    folder = Path(tempfile.mkdtemp(prefix="agentrpc-e2e-"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        running = Restartable.__new__(Restartable)
        running.folder = folder
        await running.start()
        running.password = await _admin_for(running.stack.environment)
        try:
            yield running
        finally:
            await running.stop()
            shutil.rmtree(folder, ignore_errors=True)


async def ask(stack, prompt, approvals=1, **options):
    """A session, its run and its approvals, once they wait and no process is left."""
    async with stack.client() as client:
        session = await create(client, **options)
        made = await client.create_run(session, prompt)
        asked = []
        async with asyncio.timeout(30):
            async for event in client.watch(session, include_deltas=False):
                if event.HasField("approval_requested"):
                    asked.append(event.approval_requested.approval.name)
                    if len(asked) == approvals:
                        break
    await stack.until_parked(session)
    return session, made.name, asked


async def rest(stack, session, run):
    """All events of a run that ends."""
    events = []
    async with stack.client() as client, asyncio.timeout(60):
        async for event in client.watch(session, include_deltas=False):
            events.append(event)
            if event.HasField("run_ended") and event.run == run:
                break
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


def count(stack, session, name="count"):
    path = stack.workspace(session) / name
    return len(path.read_text().splitlines()) if path.exists() else 0


CALL = f"[[text: may I?]]\n{bash('echo ran | tee -a count')}\n[[then]]\n[[text: thank you]]"


@pytest.mark.parametrize("restart", [False, True])
async def test_an_allowed_call_runs_once_after_its_process_has_gone(stack, restart):
    session, run, [approval] = await ask(stack, CALL)
    if restart:
        await stack.restart()
    async with stack.client() as client:
        await client.resolve(approval, ALLOW)
    events = await rest(stack, session, run)
    assert state(events) == "STATE_SUCCEEDED"
    assert count(stack, session) == 1
    assert outputs(events) == ["ran"]
    assert [started.attempt for started in of(events, "run_started")] == [1, 1]
    assert "".join(b.text.text for m in of(events, "assistant_message") for b in m.blocks).endswith("thank you")
    assert len(of(events, "tool_call_started")) == len(of(events, "tool_call_finished")) == 1
    # What the process used that never told it is counted too.
    [ended] = of(events, "run_ended")
    assert ended.usage.output_tokens == sum(done.usage.output_tokens for done in of(events, "message_completed")) > 0
    assert [used.usage.output_tokens for used in ended.model_usage] == [ended.usage.output_tokens]


async def test_a_denied_call_never_runs(stack):
    session, run, [approval] = await ask(stack, CALL)
    await stack.restart()
    async with stack.client() as client:
        await client.resolve(approval, DENY)
    events = await rest(stack, session, run)
    assert state(events) == "STATE_SUCCEEDED"
    assert count(stack, session) == 0
    [finished] = of(events, "tool_call_finished")
    assert (finished.outcome, finished.denial_reason) == (Finished.OUTCOME_DENIED, "not today")
    assert of(events, "tool_call_started") == []


async def test_calls_of_one_message_that_wait_together_are_each_decided(stack):
    files = ["/etc/hostname", "/etc/os-release", "/etc/passwd"]
    calls = [f'[[tool: Read {{"file_path": "{path}"}}]]' for path in files]
    session, run, asked = await ask(stack, "\n".join(calls) + "\n[[then]]\n[[text: all told]]", approvals=3)
    await stack.restart()
    async with stack.client() as client:
        for approval, answer in zip(asked, [ALLOW, DENY, ALLOW], strict=True):
            await client.resolve(approval, answer)
    events = await rest(stack, session, run)
    assert state(events) == "STATE_SUCCEEDED"
    assert len(of(events, "approval_requested")) == 3
    assert len(of(events, "tool_call_started")) == 2
    outcomes = sorted(done.outcome for done in of(events, "tool_call_finished"))
    assert outcomes == [Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_DENIED]
    assert of(events, "run_ended")[0].result.text == "all told"


async def test_calls_of_one_message_that_are_made_one_after_the_other(stack):
    calls = [bash(f"echo {name} | tee -a {name}") for name in "abc"]
    session, _, [first] = await ask(stack, "\n".join(calls) + "\n[[then]]\n[[text: all told]]")
    answers = {first: ALLOW}
    events = []
    async with stack.client() as client, asyncio.timeout(90):
        await client.resolve(first, ALLOW)
        async for event in client.watch(session, include_deltas=False):
            events.append(event)
            if event.HasField("run_ended"):
                break
            name = event.approval_requested.approval.name
            if name and name not in answers:
                await stack.until_parked(session)
                answers[name] = [ALLOW, DENY, ALLOW][len(answers)]
                await client.resolve(name, answers[name])
    assert state(events) == "STATE_SUCCEEDED"
    assert [count(stack, session, name) for name in "abc"] == [1, 0, 1]
    assert len(answers) == len(of(events, "tool_call_finished")) == 3


async def test_a_worker_killed_while_an_approval_waits(stack):
    async with stack.client() as client:
        session = await create(client)
        made = await client.create_run(session, CALL)
        async with asyncio.timeout(60):
            async for event in client.watch(session, include_deltas=False):
                if event.HasField("approval_requested"):
                    approval = event.approval_requested.approval.name
                    stack.stack.kill_child("worker")
                    break
        await asyncio.sleep(1)
        await client.resolve(approval, ALLOW)
    events = await rest(stack, session, made.name)
    assert state(events) == "STATE_SUCCEEDED"
    assert count(stack, session) == 1
