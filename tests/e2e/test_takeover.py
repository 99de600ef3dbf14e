"""Workers that die, freeze, drain: their runs go on elsewhere, no tool runs twice, and no process is left."""

import asyncio
import contextlib
import os
import signal
import time

import psutil
import pytest
import pytest_asyncio

from agentrpc.v1 import event_pb2, run_pb2, session_pb2
from tests.e2e.stacks import followed, own_stack, until
from tests.e2e.talk import bash, create, of, run, state

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TTL, T_KILL = 4.0, 2.0
SETTINGS = {
    "lease_ttl": TTL,
    "kill_timeout": T_KILL,
    "drain_grace": 15,
    "poll_interval": 0.5,
    "max_session_memory": 900 * 2**20,
}
Finished = event_pb2.ToolCallFinished


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running():
    async with own_stack(**SETTINGS) as running:
        yield running


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def begin(client, running, command, then="", **options):
    """A session whose run is in the middle of a Bash call that has written to `file`."""
    session = await create(client, allowed_tools=["Bash"], **options)
    prompt = f"{bash(f'echo one >> file; {command}')}\n[[then]]\n{then}[[text: end]]"
    made = await client.create_run(session, prompt)
    await until(lambda: running.lines(session, "file"))
    return session, made.name


async def events_of(client, session):
    events = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            async for event in client.watch(session, include_deltas=False):
                events.append(event)
                if event.HasField("run_ended"):
                    break
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


async def test_killed_while_idle(client, running):
    session = await create(client)
    await run(client, session, "[[text: one]]")
    assert running.agents(session)
    pid = running.stack.kill_child("worker")
    await until(lambda: not running.agents(session), 10)
    assert not alive(pid)
    events = await run(client, session, "[[text: two]]")
    assert state(events) == "STATE_SUCCEEDED"
    assert of(events, "run_started")[0].process_start == event_pb2.PROCESS_START_RESUMED


async def test_killed_in_the_middle_of_a_tool(client, running):
    session, name = await begin(client, running, "setsid sh -c 'trap \"\" TERM HUP; sleep 8; echo late >> file'")
    killed = time.monotonic()
    running.stack.kill_child("worker")
    await until(lambda: not running.agents(session), T_KILL + 3)
    await followed(client, name, "UNKNOWN_OUTCOME")
    # Proven: nobody has waited for the lease.
    await asyncio.sleep(max(killed + 9 - time.monotonic(), 0))
    assert running.lines(session, "file") == ["one"]


async def test_a_frozen_worker_is_killed_with_all_that_it_had_begun(client, running):
    """While it is stopped its CLI would go on: its parent's watchdog ends both."""
    session, name = await begin(client, running, f"sleep {TTL + T_KILL + 6}; echo late >> file")
    stopped = time.monotonic()
    pid = running.stack.kill_child("worker", signal.SIGSTOP)
    await until(lambda: not alive(pid), TTL + T_KILL + 10)
    await until(lambda: not running.agents(session), T_KILL + 3)
    await followed(client, name, "UNKNOWN_OUTCOME")
    await asyncio.sleep(max(stopped + TTL + T_KILL + 7 - time.monotonic(), 0))
    assert running.lines(session, "file") == ["one"]


async def test_one_that_wakes_up_after_its_runs_were_taken_over_does_nothing_more(client, running):
    """Worker and parent stopped, as when a host freezes, but the CLI goes on until it needs its worker."""
    session, name = await begin(
        client, running, "sleep 1", then=f"{bash('echo two >> file')}\n[[then]]\n",
        recovery_policy=session_pb2.RECOVERY_POLICY_RESUME_ALWAYS,
    )  # fmt: skip
    worker, parent = running.stack.pid("worker"), running.stack.pid("worker-parent")
    old = running.agents(session)
    os.kill(parent, signal.SIGSTOP)
    os.kill(worker, signal.SIGSTOP)
    try:
        with running.another("agentrpc.work.parent"):
            found = await followed(client, name, "SUCCEEDED")
            assert found.attempt == 2
            assert all(process.is_running() for process in old[:1])
            os.kill(worker, signal.SIGCONT)
            await until(lambda: not alive(worker))
            await until(lambda: not [process for process in old if alive(process.pid)])
    finally:
        os.kill(parent, signal.SIGCONT)
    # The model, asked by the new worker, has seen no need for the second call; the old CLI did not get that far.
    assert running.lines(session, "file") == ["one"]
    events = await events_of(client, session)
    assert [done.outcome for done in of(events, "tool_call_finished")] == [Finished.OUTCOME_UNKNOWN]
    assert [started.attempt for started in of(events, "run_started")] == [1, 2]
    again = await run(client, session, "[[text: back]]")
    assert state(again) == "STATE_SUCCEEDED"


async def test_a_killed_parent_takes_everything_with_it_and_the_lease_runs_out(client, running):
    session, name = await begin(client, running, "setsid sh -c 'trap \"\" TERM HUP; sleep 15; echo late >> file'")
    worker = running.stack.pid("worker")
    running.stack.kill_child("worker-parent")
    await until(lambda: not alive(worker) and not running.agents(session), T_KILL + 3)
    await followed(client, name, "UNKNOWN_OUTCOME")
    assert running.lines(session, "file") == ["one"]


async def test_a_killed_scheduler_is_not_missed(client, running):
    """Workers look for lost workers too."""
    session, name = await begin(client, running, "sleep 3")
    old = running.stack.kill_child("scheduler")
    found = await followed(client, name, "SUCCEEDED")
    assert found.attempt == 1
    await until(lambda: running.stack.pid("scheduler") != old)
    assert running.lines(session, "file") == ["one"]


async def test_a_drained_worker_hands_its_run_over_and_no_tool_runs_twice(client, running):
    calls = "".join(f"{bash(f'echo {word} >> file')}\n[[then]]\n" for word in ("two", "three"))
    session, name = await begin(client, running, "sleep 4", then=calls)
    old = running.agents(session)
    worker = running.stack.pid("worker")
    with running.another("agentrpc.work.parent"):
        running.stack.kill_child("worker-parent", signal.SIGTERM)
        found = await followed(client, name, "SUCCEEDED")
        assert found.attempt == 1
        assert running.lines(session, "file") == ["one", "two", "three"]
        await until(lambda: not alive(worker))
        assert not [process for process in old if alive(process.pid)]
    events = await events_of(client, session)
    assert [started.attempt for started in of(events, "run_started")] == [1, 1]
    assert len(of(events, "tool_call_started")) == len(of(events, "tool_call_finished")) == 3
    assert of(events, "run_ended")[0].result.text == "end"


async def test_a_run_that_uses_too_much_memory_fails_and_says_so(client, running):
    session = await create(client, allowed_tools=["Bash"])
    greedy = "python3 -c 'import time; x = b\\\"x\\\" * (1 << 30); time.sleep(60)'"
    events = await run(client, session, f'[[tool: Bash {{"command": "{greedy}"}}]]\n[[then]]\n[[text: end]]')
    error = of(events, "run_ended")[0].error
    assert error.reason == run_pb2.RunError.REASON_OUT_OF_MEMORY
    assert "max_session_memory" in error.message
    assert not running.agents(session)
    assert state(await run(client, session, "[[text: still here]]")) == "STATE_SUCCEEDED"
