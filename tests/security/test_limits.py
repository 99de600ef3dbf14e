"""What a session may use of its machine: hogs end, or are slowed, in their own runs, and others go on."""

import asyncio
import contextlib
import json
import math
import os
import textwrap
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from agentrpc.claude.cgroups import Cgroups
from agentrpc.claude.limits import Limits
from agentrpc.claude.mcp_client import Ground, McpConnectError
from agentrpc.client import RpcError
from agentrpc.services.mcp_checks import _bounded_look
from agentrpc.services.session_limits import agent_memory, limits_of
from agentrpc.v1 import run_pb2, session_pb2
from agentrpc.v1.session_service_pb2 import TerminateSessionRequest
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import bash, create, of, run, state
from tests.isolations import isolations
from tests.security.bounded import MIB, PYTHON, harmless, needs_python  # noqa: F401 - a fixture
from tests.security.hogs import HOGS, command

pytestmark = needs_python

LIMITS = session_pb2.ResourceLimits(
    memory_bytes=600 * MIB, processes=150, open_files=300, workspace_bytes=64 * MIB, workspace_files=3000,
    tmp_bytes=16 * MIB,
)  # fmt: skip


def told(events):
    """How a run ended: its state, or the reason why it failed."""
    (ended,) = of(events, "run_ended")
    return run_pb2.RunError.Reason.Name(ended.error.reason) if ended.HasField("error") else state(events)


async def hog(client, session, what):
    return await run(client, session, f"{bash(command(what))}\n[[then]]\n[[text: done]]", timeout=120)


@contextlib.asynccontextmanager
async def quiet(client, count):
    """Sessions that answer again and again while something else goes on; what they took longest."""
    sessions = [await create(client) for _ in range(count)]
    for session in sessions:
        await run(client, session, "[[text: warm]]")
    stopped, answers = asyncio.Event(), []

    async def ask(session):
        while not stopped.is_set():
            events = await run(client, session, "[[text: still here]]", timeout=60)
            answers.append(state(events))
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(ask(session)) for session in sessions]
    yield answers
    stopped.set()
    await asyncio.gather(*tasks)


REASONS = {
    "fork": "REASON_TOO_MANY_PROCESSES",
    "memory": "REASON_OUT_OF_MEMORY",
    "disk": "REASON_WORKSPACE_FULL",
    "files": "REASON_WORKSPACE_FULL",
    "home": "REASON_WORKSPACE_FULL",
    "cpu": "STATE_SUCCEEDED",
    "descriptors": "STATE_SUCCEEDED",
}


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.timeout(600)
async def test_hogs_end_in_their_own_runs(isolation):
    async with own_stack(isolation=isolation) as stack, stack.client() as client:
        sessions = [await create(client, allowed_tools=["Bash"], limits=LIMITS) for _ in REASONS]
        async with quiet(client, 2) as answers:
            for session, (what, reason) in zip(sessions, REASONS.items(), strict=True):
                before = len(answers)
                assert told(await hog(client, session, what)) == reason, what
                assert len(answers) > before
        assert set(answers) == {"STATE_SUCCEEDED"}
        for session in sessions:
            events = await run(client, session, f"{bash('true')}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED", told(events)


@pytest.mark.parametrize("isolation", isolations())
async def test_programs_of_mcp_servers_are_bounded_with_their_session(isolation):
    """In its sandbox, and beside it, where those are that have secrets; from their start on."""
    async with own_stack(isolation=isolation) as stack, stack.client() as client:
        for env in ({}, {"TOKEN": "secret"}):
            stdio = session_pb2.McpStdio(command=PYTHON, args=["-c", textwrap.dedent(HOGS["fork"])], env=env)
            servers = [session_pb2.McpServer(name="s", stdio=stdio)]
            session = await create(client, allowed_tools=["Bash"], limits=LIMITS, mcp_servers=servers)
            events = await run(client, session, f"{bash('sleep 30')}\n[[then]]\n[[text: done]]")
            assert told(events) == "REASON_TOO_MANY_PROCESSES"


# ---- Clean up, and the next run ----


async def test_a_run_that_begins_with_too_many_files_can_remove_some_and_add_few():
    fill = command_of("import os; [open(f'big-{n}', 'wb').write(os.urandom(2**20)) for n in range(70)]")
    more = command_of(
        "import os, time; [open(f'more-{n}', 'wb').write(os.urandom(2**20)) for n in range(30)]; time.sleep(60)"
    )
    limits = session_pb2.ResourceLimits(workspace_bytes=64 * MIB)
    async with own_stack() as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Bash"], limits=limits)
        events = await run(client, session, f"{bash(f'{fill}; sleep 60')}\n[[then]]\n[[text: done]]", timeout=120)
        assert told(events) == "REASON_WORKSPACE_FULL"
        (message,) = [ended.error.message for ended in of(events, "run_ended")]
        assert "64 MiB" in message
        assert "DeleteFile" in message
        assert len(list(stack.workspace(session).iterdir())) >= 64
        # Another may do little; when it does much it ends as well.
        events = await run(client, session, f"{bash(f'{more}')}\n[[then]]\n[[text: done]]", timeout=120)
        assert told(events) == "REASON_WORKSPACE_FULL"
        assert "workspace_full" in [notice.code for notice in of(events, "notice")]
        # And one that cleans up goes on, as does what comes after it.
        for path in list(stack.workspace(session).glob("more-*")):
            path.unlink()
        for prompt in ("rm big-*; sleep 2", "sleep 2"):
            events = await run(client, session, f"{bash(prompt)}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED", told(events)
        assert "workspace_full" not in [notice.code for notice in of(events, "notice")]


def command_of(program):
    """A line for Bash."""
    return f"{PYTHON} -c {json.dumps(program)}"


# ---- What callers ask for ----


async def test_no_session_gets_more_than_the_operator_allows(edge, client):
    fine = session_pb2.ResourceLimits(memory_bytes=2**30, processes=64, cpus=0.5, open_files=256, workspace_bytes=2**20,
                     workspace_files=100, tmp_bytes=2**20)  # fmt: skip
    session = await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(limits=fine)))
    assert session.options.limits == fine
    wrong = {
        "memory_bytes": (2**28 - 1, -1), "processes": (63, 1025, 0), "cpus": (0.0, -1.0, float("nan"), float("inf")),
        "open_files": (255, 4097), "workspace_bytes": (2**20 - 1, 10 * 2**30 + 1), "workspace_files": (99, 1_000_001),
        "tmp_bytes": (2**20 - 1, 2**29 + 1),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            options = session_pb2.SessionOptions(limits=session_pb2.ResourceLimits(**{name: value}))
            with pytest.raises(RpcError) as caught:
                await client.create_session(session_pb2.Session(options=options))
            assert caught.value.reason == "FIELD_INVALID"
            assert f"session.options.limits.{name}" in str(caught.value)
            too_much = getattr(fine, name) < value < float("inf")
            assert ("which the operator sets" if too_much else "or more") in str(caught.value)


def test_limits_are_those_asked_for_then_the_operator_s_and_never_above_the_ceiling(settings):
    own = settings.model_copy(update={"session_limits": {"processes": 200, "memory_bytes": 2**30, "cpus": 2.0}})
    found = limits_of(own)
    assert (found.processes, found.memory, found.cpus, found.open_files) == (200, 2**30, 2.0, 4096)
    asked = session_pb2.SessionOptions(limits=session_pb2.ResourceLimits(processes=900, memory_bytes=2**29))
    assert (limits_of(own, asked).processes, limits_of(own, asked).memory) == (900, 2**29)
    lowered = own.model_copy(update={"max_session_processes": 100, "max_session_memory": 2**28})
    assert (limits_of(lowered, asked).processes, limits_of(lowered, asked).memory) == (100, 2**28)
    assert limits_of(settings).memory == agent_memory(settings)
    # None has more than all of a worker may have together.
    much = session_pb2.SessionOptions(limits=session_pb2.ResourceLimits(memory_bytes=2**63 - 1, cpus=1e300))
    assert limits_of(settings, much).memory == agent_memory(settings)
    for wrong in ({"procs": 1}, {"processes": 0}, {"processes": 63}, {"cpus": math.nan}, {"memory_bytes": math.inf}):
        with pytest.raises(ValidationError, match="session_limits"):
            type(settings).model_validate({**settings.model_dump(), "session_limits": wrong})


def test_doctor_says_what_keeps_the_limits():
    from agentrpc.cli.checks import _limits

    good, text = _limits()
    assert good
    assert Cgroups.find().text in text


# ---- MCP servers ----


@pytest.mark.parametrize("isolation", isolations())
async def test_a_check_of_a_program_that_takes_too_much_ends_and_says_so(tmp_path, isolation):
    async def nowhere(host, port):
        raise AssertionError

    for what, limits, told_of in (
        ("fork", Limits(processes=100), "more than 100 processes"),
        ("memory", Limits(memory=200 * MIB), "more than 200 MiB of memory"),
    ):
        program = textwrap.dedent(HOGS[what])
        stdio = session_pb2.McpStdio(command=PYTHON, args=["-c", program])
        ground = Ground(tmp_path / what, isolation, nowhere, limits=limits)
        with pytest.raises(McpConnectError, match=told_of):
            await _bounded_look(session_pb2.McpServer(name="s", stdio=stdio), ground, timeout=60)


# ---- Nothing is left ----


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.timeout(900)
async def test_starts_and_stops_leave_nothing(isolation):
    """20 of them, or as many as AGENTRPC_TEST_STARTS says."""
    count = int(os.environ.get("AGENTRPC_TEST_STARTS", "20"))
    async with own_stack(isolation=isolation, idle_ttl=600, max_processes=1) as stack, stack.client() as client:
        sessions = [await create(client, allowed_tools=["Bash"]) for _ in range(2)]
        # With one place each takes that of the other.
        for session in sessions:
            await run(client, session, "[[text: first]]")
        before = await asyncio.to_thread(left_behind, stack)
        for number in range(count):
            call = bash("setsid sleep 600 >/dev/null 2>&1 & echo up")
            events = await run(client, sessions[number % 2], f"{call}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED"
        # Some come and go, such as connections: as many as sessions would leave, there are never.
        few = {"processes": 2, "descriptors": 8}
        await until(lambda: all(left_behind(stack)[what] <= before[what] + more for what, more in few.items()))
        after = await asyncio.to_thread(left_behind, stack)
        assert {**after, **dict.fromkeys(few)} == {**before, **dict.fromkeys(few)}
        for session in sessions:
            await client.call(client.sessions.TerminateSession, TerminateSessionRequest(name=session))
        await until(lambda: not left_behind(stack)["processes"])
        assert left_behind(stack)["cgroups"] == []


def left_behind(stack):
    """What a worker's sessions have on this machine."""
    worker = psutil.Process(stack.stack.pid("worker"))
    own = [process for process in [worker, *worker.children()] if "worker-process" in process.cmdline()]
    base = Cgroups.find().base
    files = sorted(
        str(path.relative_to(stack.folder))
        for name in ("launch", "mcp")
        for path in stack.folder.glob(f"sessions/*/{name}/**/*")
    )
    return {
        "processes": sum(len(process.children(recursive=True)) for process in own),
        "cgroups": [] if base is None else sorted(
            path.name.split("-", 3)[2] for path in base.glob(f"agentrpc-session-{own[0].pid}-*")
        ),
        "mounts": Path("/proc/self/mountinfo").read_text().count(str(stack.folder)),
        "descriptors": own[0].num_fds(),
        "files": files,
    }  # fmt: skip
