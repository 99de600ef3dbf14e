"""Runs that outlive their processes: parked approvals, stops of the whole stack, lost workers."""

import asyncio
import os
import shutil
import signal

import pytest
import pytest_asyncio

from agentrpc.services.doubt import UNKNOWN_RESULT
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2
from tests.e2e.stacks import begin, followed, log, own_stack, run_state, until
from tests.e2e.talk import ALLOW, DENY, bash, create, of, outputs, run, state

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

Finished = event_pb2.ToolCallFinished
Decision = run_service_pb2.ResolveRunRequest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with own_stack(approval_hold=0.5, poll_interval=0.5) as stack:
        yield stack


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
    return len(stack.lines(session, name))


# The CLI puts an answer of its own before a prompt that follows the result of a call: the model is a step further then.
AGAIN = "[[repeat: 2]]"
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


# ---- While it is parked ----


@pytest.mark.parametrize("stop", ["cancel", "interrupt"])
async def test_a_parked_run_that_is_stopped_ends_with_the_request(stack, stop):
    session, name, _ = await ask(stack, CALL)
    async with stack.client() as client:
        found = await getattr(client, stop)(name)
        assert run_state(found) == "CANCELLED"
        assert not found.pending_approvals
        assert found.HasField("stop_receipt") == (stop == "cancel")
        assert found.stop_receipt.process_count == 0
        assert state(await run(client, session, "[[text: next]]")) == "STATE_SUCCEEDED"
    assert count(stack, session) == 0


async def test_a_parked_run_that_is_rolled_back(stack):
    session, name, _ = await ask(stack, f"iota\n{CALL}")
    async with stack.client() as client:
        instead = await begin(client, session, "[[heard: iota]]", conflict_policy=run_pb2.Run.CONFLICT_POLICY_ROLLBACK)
        assert run_state(await followed(client, name)) == "CANCELLED"
        assert (await followed(client, instead)).result.text == "heard 0"
    assert count(stack, session) == 0


async def test_a_parked_run_whose_time_is_over(stack):
    async with stack.client() as client:
        session = await create(client)
        name = await begin(client, session, CALL, timeout=4)
        found = await followed(client, name)
        assert run_state(found) == "EXPIRED"
        assert not found.pending_approvals
        assert not stack.agents(session)
        assert state(await run(client, session, "[[text: next]]")) == "STATE_SUCCEEDED"
    assert count(stack, session) == 0


async def test_an_approval_that_nobody_answers_while_it_is_parked(stack):
    session, name, _ = await ask(stack, f"{CALL}\n{AGAIN}", approval_timeout={"seconds": 6})
    events = await rest(stack, session, name)
    assert state(events) == "STATE_SUCCEEDED"
    assert of(events, "run_ended")[0].result.text == "thank you"
    [finished] = of(events, "tool_call_finished")
    assert (finished.outcome, finished.denied_by) == (Finished.OUTCOME_DENIED, "approval")
    assert count(stack, session) == 0


async def test_a_call_that_is_changed_while_it_is_parked(stack):
    session, name, [approval] = await ask(stack, CALL)
    changed = approval_pb2.Resolution(
        decision=approval_pb2.Resolution.DECISION_ALLOW,
        updated_input_json='{"command": "echo changed | tee -a count"}',
    )
    async with stack.client() as client:
        await client.resolve(approval, changed)
    events = await rest(stack, session, name)
    assert state(events) == "STATE_SUCCEEDED"
    assert stack.lines(session) == outputs(events) == ["changed"]
    assert of(events, "tool_call_started")[0].changed_input_json == changed.updated_input_json


async def test_an_answer_for_the_session_while_it_is_parked(stack):
    again = bash("echo ran again | tee -a count")
    session, name, [approval] = await ask(
        stack, f"{bash('echo ran | tee -a count')}\n[[then]]\n{again}\n[[then]]\n[[text: end]]"
    )
    allow = approval_pb2.Resolution(
        decision=approval_pb2.Resolution.DECISION_ALLOW, scope=approval_pb2.Resolution.SCOPE_SESSION
    )
    async with stack.client() as client:
        await client.resolve(approval, allow)
        events = await rest(stack, session, name)
        assert state(events) == "STATE_SUCCEEDED"
        assert len(of(events, "approval_requested")) == 1
        assert state(await run(client, session, again)) == "STATE_SUCCEEDED"
    assert stack.lines(session) == ["ran", "ran", "again", "ran", "again"]


async def test_what_is_said_to_a_parked_run_is_heard(stack):
    session, name, [approval] = await ask(stack, CALL)
    async with stack.client() as client:
        await client.steer(name, "theta")
        await client.resolve(approval, ALLOW)
        events = await rest(stack, session, name)
        assert state(events) == "STATE_SUCCEEDED"
        heard = await run(client, session, "[[heard: theta]]")
        assert of(heard, "run_ended")[0].result.text == "heard 1"
    assert count(stack, session) == 1


@pytest.mark.parametrize("parked", [True, False])
async def test_what_is_said_to_a_turn_that_took_up_a_call_lets_it_end(stack, parked):
    """The CLI takes the message into that turn, whose end names it then, and not the call."""
    look = '[[tool: Read {"file_path": "count"}]]'
    slow = f"[[deltas: 40]]\n[[slow: 50]]\n{look}"
    steps = [bash("echo ran >> count"), slow, look, "[[heard: iota]]"]
    session, name, [approval] = await ask(stack, "\n[[then]]\n".join(steps), allowed_tools=["Read"])
    async with stack.client() as client:
        if parked:
            await client.steer(name, "iota")
        await client.resolve(approval, ALLOW)
        if not parked:
            await until(lambda: count(stack, session))
            await asyncio.sleep(0.5)
            await client.steer(name, "iota")
        events = await rest(stack, session, name)
        assert state(events) == "STATE_SUCCEEDED"
        assert of(events, "run_ended")[0].result.text == "heard 1"
        assert count(stack, session) == 1


# ---- A worker lost in a tool call ----


async def in_a_call(stack, client, command="sleep 60", then="[[text: end]]", **options):
    """A session whose run is in the middle of a call that has had an effect."""
    session = await create(client, allowed_tools=["Bash"], **options)
    name = await begin(client, session, f"{bash(f'echo one >> count; {command}')}\n[[then]]\n{then}\n{AGAIN}")
    await until(lambda: count(stack, session))
    return session, name


async def test_recovery_policies(stack):
    async with stack.client() as client:
        told = "[[heard: so its outcome is unknown]]"
        always, first = await in_a_call(
            stack, client, then=told, recovery_policy=session_pb2.RECOVERY_POLICY_RESUME_ALWAYS
        )
        fail, second = await in_a_call(stack, client, recovery_policy=session_pb2.RECOVERY_POLICY_FAIL)
        stack.stack.kill_child("worker")
        found = await followed(client, first)
        assert (run_state(found), found.attempt, found.result.text) == ("SUCCEEDED", 2, "heard 1")
        found = await followed(client, second)
        assert (run_state(found), found.error.reason) == ("FAILED", run_pb2.RunError.REASON_WORKER_LOST)
        for session in (always, fail):
            assert stack.lines(session) == ["one"]
            [finished] = of(await log(client, session), "tool_call_finished")
            assert (finished.outcome, finished.content[0].text.text) == (Finished.OUTCOME_UNKNOWN, UNKNOWN_RESULT)
            assert state(await run(client, session, "[[text: next]]")) == "STATE_SUCCEEDED"


async def test_three_workers_lost_in_a_row(stack):
    async with stack.client() as client:
        session = await create(
            client, allowed_tools=["Bash"], recovery_policy=session_pb2.RECOVERY_POLICY_RESUME_ALWAYS
        )
        name = await begin(client, session, f"{bash('echo one >> count; sleep 60')}\n[[repeat: 9]]")
        for losses in (1, 2, 3):
            await until(lambda losses=losses: count(stack, session) == losses)
            stack.stack.kill_child("worker")
        found = await followed(client, name)
        assert (run_state(found), found.error.reason) == ("FAILED", run_pb2.RunError.REASON_POISON_RUN)
        assert not stack.agents(session)
        started = [event.time.ToNanoseconds() for event in await log(client, session) if event.HasField("run_started")]
        assert started[2] - started[1] > 5e9
        assert state(await run(client, session, "[[text: next]]")) == "STATE_SUCCEEDED"
    assert count(stack, session) == 3


async def test_decisions_after_a_lost_worker(stack):
    """Each does what it says, once."""
    once = "[ $(wc -l < count) -gt 1 ] || sleep 60; echo made"
    decisions = {
        Decision.DECISION_RESUME: ("SUCCEEDED", 1, "heard 1\nheard 0\nheard 0"),
        Decision.DECISION_RETRY_CALLS: ("SUCCEEDED", 2, "heard 0\nheard 1\nheard 0"),
        Decision.DECISION_ASSUME_DONE: ("SUCCEEDED", 1, "heard 0\nheard 0\nheard 1"),
        Decision.DECISION_ABANDON: ("CANCELLED", 1, ""),
    }
    # Of what the model knows: that nobody knows, what the call has printed, what somebody says that it has.
    then = "\n".join(f"[[heard: {word}]]" for word in ("its outcome is unknown", '"made', "assumed it"))
    async with stack.client() as client:
        runs = [await in_a_call(stack, client, once, then) for _ in decisions]
        stack.stack.kill_child("worker")
        for (session, name), decision in zip(runs, decisions, strict=True):
            found = await followed(client, name, "UNKNOWN_OUTCOME")
            results = []
            if decision == Decision.DECISION_ASSUME_DONE:
                results = [Decision.CallResult(tool_use_id=found.in_doubt_calls[0].tool_use_id, text="assumed it")]
            assert stack.lines(session) == ["one"]
            await client.resolve_run(name, decision, results)
        for (session, name), (wanted, effects, said) in zip(runs, decisions.values(), strict=True):
            found = await followed(client, name)
            assert run_state(found) == wanted
            texts = [b.text.text for m in of(await log(client, session), "assistant_message") for b in m.blocks]
            assert "\n".join(text for text in texts if text.startswith("heard")) == said
            assert count(stack, session) == effects
            assert state(await run(client, session, "[[text: next]]")) == "STATE_SUCCEEDED"


# ---- Another machine ----


async def test_a_session_goes_on_where_nothing_of_it_is_kept(tmp_path):
    """Of two workers the first goes, and with it all that its machine kept; the files are shared."""
    async with own_stack(poll_interval=0.5) as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Bash"])
        assert state(await run(client, session, f"kappa\n{bash('echo one | tee -a count')}")) == "STATE_SUCCEEDED"
        stack.leave_dead()
        with stack.another("agentrpc.work.parent", AGENTRPC_DATA_DIR=str(tmp_path)):
            os.kill(stack.stack.pid("worker-parent"), signal.SIGTERM)
            await until(lambda: not stack.agents(session))
            shutil.rmtree(stack.local(session))
            name = await begin(client, session, f"{bash('cat count')}\n[[then]]\n[[heard: kappa]]")
            await until(lambda: (tmp_path / "sessions").exists())
            found = await followed(client, name)
            assert (run_state(found), found.result.text) == ("SUCCEEDED", "heard 1")
            assert not stack.local(session).exists()
            assert outputs(await log(client, session)) == ["one", "one"]
