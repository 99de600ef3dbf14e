"""Sessions with the real CLI: tools, approvals, questions, plans, interrupts, faults."""

import asyncio
import contextlib
import json
import time

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from agentrpc.claude.launcher import Isolation
from agentrpc.client import RpcError
from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2
from tests.e2e.talk import ALLOW, DENY, bash, create, of, outputs, run, state
from tests.isolations import usable_isolation

pytestmark = pytest.mark.asyncio(loop_scope="module")

Finished = event_pb2.ToolCallFinished


async def test_a_tool_runs_after_an_approval_and_the_log_tells_it_in_order(client):
    session = await create(client)
    events = await run(client, session, f"[[text: hi]]\n{bash('echo $((6*7))')}\n[[then]]\n[[text: done]]", ALLOW)
    assert state(events) == "STATE_SUCCEEDED"
    assert outputs(events) == ["42"]
    kinds = [event.WhichOneof("payload") for event in events if event.sequence]
    order = ["run_started", "user_message", "agent_initialized", "assistant_message", "approval_requested",
             "approval_resolved", "tool_call_started", "tool_call_finished", "message_completed", "run_ended"]  # fmt: skip
    positions = [kinds.index(kind) for kind in order[:8]]
    assert positions == sorted(positions), kinds
    assert kinds[-1] == "run_ended"
    result = of(events, "run_ended")[0].result
    assert result.text == "done"
    assert result.stop_reason == "end_turn"
    assert of(events, "run_ended")[0].usage.output_tokens > 0
    numbers = [event.sequence for event in events if event.sequence]
    assert numbers == sorted(set(numbers))


async def test_a_second_run_reuses_the_process_and_remembers(client):
    session = await create(client, allowed_tools=["Bash(echo:*)"])
    await run(client, session, "[[text: one]]")
    events = await run(client, session, f"{bash('echo two')}\n[[then]]\n[[text: two]]")
    assert of(events, "run_started")[0].process_start == event_pb2.PROCESS_START_WARM
    assert outputs(events) == ["two"]
    assert not of(events, "approval_requested")
    totals = await client.get_session(session)
    assert totals.run_count == 2
    assert totals.tool_call_count == 1
    assert totals.state == session_pb2.Session.STATE_IDLE


async def test_deny_tells_the_model_why_and_nothing_ran(client, running):
    session = await create(client)
    events = await run(client, session, f"{bash('touch ran')}\n[[then]]\n[[text: ok]]", DENY)
    done = of(events, "tool_call_finished")[0]
    assert done.outcome == Finished.OUTCOME_DENIED
    assert (done.denied_by, done.denial_reason) == ("approval", "not today")
    assert not of(events, "tool_call_started")
    assert state(events) == "STATE_SUCCEEDED"
    assert not (running.workspace(session) / "ran").exists()


async def test_rules_and_modes_decide_without_asking(client):
    session = await create(
        client, allowed_tools=["Bash"], disallowed_tools=["Bash(rm:*)"],
        permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK,
    )  # fmt: skip
    prompt = f'{bash("echo ok")}\n{bash("echo a && rm -rf x")}\n[[tool: WebFetch {{"url": "http://x", "prompt": "y"}}]]'
    events = await run(client, session, f"{prompt}\n[[then]]\n[[text: ok]]")
    found = {done.tool_use_id: done for done in of(events, "tool_call_finished")}
    assert sorted(done.outcome for done in found.values()) == sorted(
        [Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_DENIED, Finished.OUTCOME_DENIED]
    )
    assert sorted(done.denied_by for done in found.values()) == ["", "mode", "rule"]


async def test_changed_input_and_grants_for_the_session(client):
    session = await create(client)
    changed = approval_pb2.Resolution(
        decision=approval_pb2.Resolution.DECISION_ALLOW, updated_input_json='{"command": "echo changed"}'
    )
    events = await run(client, session, f"{bash('echo original')}\n[[then]]\n[[text: x]]", changed)
    assert outputs(events) == ["changed"]
    assert json.loads(of(events, "tool_call_started")[0].changed_input_json) == {"command": "echo changed"}
    forever = approval_pb2.Resolution(
        decision=approval_pb2.Resolution.DECISION_ALLOW, scope=approval_pb2.Resolution.SCOPE_SESSION
    )
    prompt = f"{bash('git --version')}\n[[then]]\n{bash('git --version')}\n[[then]]\n[[text: x]]"
    events = await run(client, session, prompt, forever)
    assert len(of(events, "approval_requested")) == 1
    assert len(of(events, "tool_call_started")) == 2


async def test_an_approval_expires_and_cannot_be_answered_twice_or_late(client):
    session = await create(client, approval_timeout=Duration(seconds=1))
    events = []
    async with asyncio.timeout(30):
        async for event in client.run(session, f"{bash('touch x')}\n[[then]]\n[[text: x]]"):
            events.append(event)
    resolved = of(events, "approval_resolved")[0]
    assert resolved.state == approval_pb2.Approval.STATE_EXPIRED
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_DENIED
    with pytest.raises(RpcError) as caught:
        await client.resolve(resolved.approval, ALLOW)
    assert caught.value.reason in {"APPROVAL_NOT_PENDING", "APPROVAL_EXPIRED"}
    other = await create(client)
    events = await run(client, other, f"{bash('echo x')}\n[[then]]\n[[text: x]]", ALLOW)
    name = of(events, "approval_resolved")[0].approval
    assert (await client.resolve(name, ALLOW)).state == approval_pb2.Approval.STATE_ALLOWED
    with pytest.raises(RpcError) as caught:
        await client.resolve(name, DENY)
    assert caught.value.reason == "APPROVAL_NOT_PENDING"


async def test_questions_and_plans_are_approvals(client):
    session = await create(client)
    question = {"question": "Colour?", "header": "c", "multiSelect": False,
                "options": [{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}]}  # fmt: skip
    answer = approval_pb2.Resolution(
        decision=approval_pb2.Resolution.DECISION_ALLOW,
        updated_input_json=json.dumps({"questions": [question], "answers": {"Colour?": "Blue"}}),
    )
    prompt = f"[[tool: AskUserQuestion {json.dumps({'questions': [question]})}]]\n[[then]]\n[[text: ok]]"
    events = await run(client, session, prompt, answer)
    assert of(events, "approval_requested")[0].approval.kind == approval_pb2.Approval.KIND_QUESTION
    assert "Blue" in outputs(events)[0]
    planner = await create(client, permission_mode=common_pb2.PERMISSION_MODE_PLAN)
    prompt = (
        f'{bash("touch early")}\n[[then]]\n[[tool: ExitPlanMode {{"plan": "do it"}}]]\n[[then]]\n'
        f"{bash('echo late')}\n[[then]]\n[[text: ok]]"
    )
    events = await run(client, planner, prompt, ALLOW)
    assert [approval.approval.kind for approval in of(events, "approval_requested")] == [
        approval_pb2.Approval.KIND_PLAN,
        approval_pb2.Approval.KIND_TOOL,
    ]
    assert [done.outcome for done in of(events, "tool_call_finished")] == [
        Finished.OUTCOME_DENIED,
        Finished.OUTCOME_SUCCEEDED,
        Finished.OUTCOME_SUCCEEDED,
    ]


async def test_parallel_calls_are_each_decided(client):
    session = await create(client, allowed_tools=["Bash(echo:*)"])
    events = await run(client, session, "\n".join(bash(f"echo {n}") for n in range(4)) + "\n[[then]]\n[[text: ok]]")
    assert sorted(outputs(events)) == ["0", "1", "2", "3"]


async def test_interrupting_a_tool_keeps_the_session(client):
    session = await create(client, allowed_tools=["Bash"])
    events, name = [], []
    async with asyncio.timeout(30):
        async for event in client.run(session, bash("sh -c 'exec sleep 60'"), on_run=lambda run: name.append(run.name)):
            events.append(event)
            if event.HasField("tool_call_started"):
                await client.interrupt(name[0], "enough")
    assert state(events) == "STATE_CANCELLED"
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_INTERRUPTED
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "60"]]
    again = await run(client, session, "[[text: still here]]")
    assert of(again, "run_ended")[0].result.text == "still here"


async def test_interrupting_while_an_approval_waits(client):
    session = await create(client)
    events, name = [], []
    async with asyncio.timeout(30):
        async for event in client.run(session, bash("touch x"), on_run=lambda run: name.append(run.name)):
            events.append(event)
            if event.HasField("approval_requested"):
                await client.interrupt(name[0])
    assert state(events) == "STATE_CANCELLED"
    assert of(events, "approval_resolved")[0].state == approval_pb2.Approval.STATE_CANCELLED


async def test_time_outs_and_errors_of_the_provider(client):
    session = await create(client, allowed_tools=["Bash"])
    from agentrpc.v1 import run_service_pb2

    made = await client.call(
        client.runs.CreateRun,
        run_service_pb2.CreateRunRequest(
            parent=session, run=run_pb2.Run(prompt=bash("sh -c 'exec sleep 60'"), timeout=Duration(seconds=2))
        ),
    )
    async with asyncio.timeout(20):
        async for _ in client.watch(session, run=made.name):
            pass
    assert (await client.get_run(made.name)).state == run_pb2.Run.STATE_EXPIRED
    events = await run(client, session, "[[error: 400]]")
    error = of(events, "run_ended")[0].error
    assert error.reason == run_pb2.RunError.REASON_PROVIDER_INVALID_REQUEST
    assert error.http_status == 400
    limited = await create(client, allowed_tools=["Bash"], max_turns=2)
    events = await run(client, limited, f"[[repeat: 9]]\n{bash('echo x')}")
    assert of(events, "run_ended")[0].error.reason == run_pb2.RunError.REASON_MAX_TURNS


ANSWER = "[[delay: 3]]\n[[text: the whole answer]]"


async def test_a_background_agent_belongs_to_its_run_and_a_background_shell_does_not(client):
    session = await create(client, allowed_tools=["Bash", "Agent"])
    task = {"description": "look", "subagent_type": "general-purpose", "run_in_background": True}
    task["prompt"] = f"[[delay: 1]]\n{bash('echo from the subagent')}\n[[then]]\n[[text: the report]]"
    agent = f"[[tool: Agent {json.dumps(task)}]]"
    events = await run(client, session, f"{agent}\n[[then]]\n[[text: it is on its way]]\n[[then]]\n{ANSWER}")
    assert state(events) == "STATE_SUCCEEDED"
    assert "from the subagent" in outputs(events)
    assert of(events, "subtask_ended")
    # The CLI takes up the report in a turn of its own, which takes a while.
    assert of(events, "run_ended")[0].result.text == "the whole answer"
    # The report is there before the turn has ended.
    task["prompt"] = "[[text: the report]]"
    agent = f"[[tool: Agent {json.dumps(task)}]]"
    slow = "[[delay: 2]]\n[[text: it is on its way]]"
    events = await run(client, session, f"{agent}\n[[then]]\n{slow}\n[[then]]\n{ANSWER}")
    assert of(events, "run_ended")[0].result.text == "the whole answer"

    shell = bash("sh -c 'exec sleep 1; echo x'", run_in_background=True)
    events = await run(client, session, f"{shell}\n[[then]]\n[[text: shell started]]")
    assert of(events, "run_ended")[0].result.text == "shell started"
    # The shell reports in the middle of this run: that turn of the CLI's own is not the answer.
    events = await run(client, session, "[[delay: 3]]\n[[text: the answer]]")
    assert of(events, "run_ended")[0].result.text == "the answer"


async def test_structured_answers(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    session = await create(client, output_schema_json=json.dumps(schema))
    events = await run(client, session, '[[tool: StructuredOutput {"n": 7}]]\n[[then]]\n[[text: ok]]')
    assert json.loads(of(events, "run_ended")[0].result.structured_json) == {"n": 7}


async def test_a_big_result_and_odd_bytes_arrive(client):
    session = await create(client, allowed_tools=["Bash"])
    command = "head -c 5000000 /dev/zero | tr '\\\\0' x; printf '\\\\0 \\\\xff \\\\xed\\\\xa0\\\\x80'"
    events = await run(client, session, f"{bash(command)}\n[[then]]\n[[text: ok]]")
    assert state(events) == "STATE_SUCCEEDED"
    assert not of(events, "raw_frame")


async def test_an_agent_sees_no_secret_and_no_neighbour(client, running):
    first = await create(client, allowed_tools=["Bash"])
    await run(client, first, f"{bash('echo neighbour > secret.txt')}\n[[then]]\n[[text: ok]]")
    second = await create(client, allowed_tools=["Bash"])
    look = f"env; cat /proc/*/environ /proc/*/cmdline | tr '\\\\0' '\\\\n'; ls -R {running.folder} / 2>/dev/null | head -c 20000"
    events = await run(client, second, f"{bash(look)}\n[[then]]\n[[text: ok]]")
    seen = outputs(events)[0]
    environment = running.stack.environment
    secrets = [environment["AGENTRPC_SIGNING_KEY"], environment["AGENTRPC_DATABASE_URL"],
               environment["AGENTRPC_REDIS_URL"], "AGENTRPC_MODEL_API_KEY", "AGENTRPC_SIGNING_KEY"]  # fmt: skip
    assert "ANTHROPIC_AUTH_TOKEN=run-" in seen
    for secret in secrets:
        assert secret not in seen
    if usable_isolation() is Isolation.BUBBLEWRAP:
        assert first.removeprefix("sessions/") not in seen
        assert "secret.txt" not in seen


async def test_nothing_secret_is_in_any_argv(client):
    server = session_pb2.McpServer(
        name="s", http=session_pb2.McpRemote(url="http://127.0.0.1:9/", headers={"authorization": "Bearer hush-hush"})
    )
    session = await create(
        client, allowed_tools=["Bash"], mcp_servers=[server],
        system_prompt=session_pb2.SystemPrompt(custom="very private instructions"),
    )  # fmt: skip
    lines = []
    async with asyncio.timeout(30):
        async for event in client.run(session, f"{bash('sleep 0.5')}\n[[then]]\n[[text: ok]]"):
            if event.HasField("tool_call_started"):
                for process in psutil.process_iter():
                    with contextlib.suppress(psutil.Error):
                        lines.append(" ".join(process.cmdline()))
    everything = "\n".join(lines)
    assert "claude" in everything
    for secret in ("hush-hush", "very private", "run-"):
        assert secret not in everything.replace("run-as", "")


async def test_a_killed_worker_leaves_no_process_and_its_run_is_taken_up(client, running):
    session = await create(client, allowed_tools=["Bash"])
    marker = "sleep 61"
    events = []
    async with asyncio.timeout(60):
        async for event in client.run(session, bash(f"setsid sh -c 'trap \"\" TERM; {marker}'")):
            events.append(event)
            if event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
                # The call began and nobody saw its end: it is not repeated, and the run says so and waits.
                [call] = event.run_state_changed.in_doubt_calls
                assert call.tool_name == "Bash"
                await client.resolve_run(event.run, run_service_pb2.ResolveRunRequest.DECISION_RESUME)
            if event.HasField("tool_call_started"):
                await asyncio.sleep(0.3)
                running.stack.kill_child("worker")
                killed = time.monotonic()
                while [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == marker.split()]:
                    assert time.monotonic() - killed < 3
                    await asyncio.sleep(0.05)
    assert state(events) == "STATE_SUCCEEDED"
    assert of(events, "tool_call_finished")[-1].outcome == Finished.OUTCOME_UNKNOWN
    assert of(events, "run_started")[-1].process_start == event_pb2.PROCESS_START_RESUMED


async def test_a_killed_worker_between_calls_and_the_run_goes_on(client, running):
    session = await create(client)
    events, kills = [], 0
    async with asyncio.timeout(60):
        async for event in client.run(session, "[[delay: 3]]\n[[text: finally]]"):
            events.append(event)
            if event.HasField("agent_initialized") and not kills:
                kills += 1
                await asyncio.sleep(0.3)
                running.stack.kill_child("worker")
    assert state(events) == "STATE_SUCCEEDED"
    assert [started.attempt for started in of(events, "run_started")] == [1, 2]


async def test_a_killed_edge_and_the_watch_goes_on(client, running):
    session = await create(client, allowed_tools=["Bash"])
    prompt = f"[[repeat: 30]]\n[[deltas: 300]]\n{bash('true')}\n[[then]]\n[[text: end]]"
    made = await client.create_run(session, prompt)
    seen, killed = [], False
    async with asyncio.timeout(90):
        async for event in client.watch(session, run=made.name, include_deltas=True):
            if event.sequence:
                seen.append(event.sequence)
            if len(seen) == 20 and not killed:
                killed = True
                running.stack.kill_child("serve")
    assert seen == sorted(set(seen))
    assert (await client.get_run(made.name)).state == run_pb2.Run.STATE_SUCCEEDED
    everything = [event.sequence async for event in client.watch(session, run=made.name)]
    assert seen == everything
