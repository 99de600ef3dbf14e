"""A stored conversation in an unknown format: nobody guesses, a caller decides, and nothing is lost."""

import asyncio
import contextlib
from uuid import UUID

import asyncpg
import pytest

from agentrpc.v1 import run_pb2, run_service_pb2, session_pb2
from tests.e2e.stacks import followed
from tests.e2e.talk import ALLOW, bash, create, of, run, state

pytestmark = pytest.mark.asyncio(loop_scope="module")

Decision = run_service_pb2.ResolveRunRequest
UNKNOWN = b'{"type":"user","uuid":"u","turns":[]}'


@contextlib.asynccontextmanager
async def database(running):
    connection = await asyncpg.connect(running.stack.environment["AGENTRPC_DATABASE_URL"])
    try:
        yield connection
    finally:
        await connection.close()


async def exchange(running, session, wanted, line):
    """Put `line` in the place of the session's only line that has `wanted`, once it is there; what stood there."""
    session_id = UUID(session.removeprefix("sessions/"))
    find = (
        "SELECT position, data FROM session_transcripts"
        " WHERE session_id = $1 AND subpath = '' AND position($2::bytea in data) > 0"
    )
    change = "UPDATE session_transcripts SET data = $3 WHERE session_id = $1 AND position = $2"
    async with database(running) as connection, asyncio.timeout(30):
        while not (rows := await connection.fetch(find, session_id, wanted)):  # noqa: ASYNC110 - rows ring no bell
            await asyncio.sleep(0.05)
        [(position, stored)] = rows
        await connection.execute(change, session_id, position, line)
    return stored


async def why(client, session, name):
    """The event that tells of UNKNOWN_OUTCOME."""
    async with asyncio.timeout(20):
        async for event in client.watch(session, include_deltas=False):
            change = event.run_state_changed
            if event.run == name and change.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
                return change
    raise AssertionError


async def new_run(client, running):
    """A run that begins in a session with an unknown transcript: the session, the run, and what the line was."""
    session = await create(client)
    await run(client, session, "[[text: a word]]")
    stored = await exchange(running, session, b'"type":"text","text":"a word"', UNKNOWN)
    running.stack.kill_child("worker")
    made = await client.create_run(session, "[[heard: a word]]")
    await followed(client, made.name, "UNKNOWN_OUTCOME")
    return session, made.name, stored


async def lost_run(client, running, command="echo ran >> file", **options):
    """A run that has lost its worker while it waited, or made a call: the session, the run, and what the line was."""
    session = await create(client, **options)
    made = await client.create_run(session, f"[[text: a word]]\n{bash(command)}\n[[then]]\n[[heard: a word]]")
    async with asyncio.timeout(60):
        async for event in client.watch(session, include_deltas=False):
            if event.HasField("approval_requested") or event.HasField("tool_call_started"):
                break
    stored = await exchange(running, session, b'"type":"text","text":"a word"', UNKNOWN)
    running.stack.kill_child("worker")
    await followed(client, made.name, "UNKNOWN_OUTCOME", "FAILED")
    return session, made.name, stored


async def test_calls_that_were_under_way_are_in_doubt(client, running):
    session, name, _ = await lost_run(client, running, "echo begun >> file; sleep 60", allowed_tools=["Bash"])
    [call] = (await why(client, session, name)).in_doubt_calls
    assert [call] == list((await client.get_run(name)).in_doubt_calls)
    await client.resolve_run(name, Decision.DECISION_ABANDON)
    await followed(client, name, "CANCELLED")


async def test_lost_runs_fail_where_they_are_to_fail(client, running):
    _, name, _ = await lost_run(client, running, recovery_policy=session_pb2.RECOVERY_POLICY_FAIL)
    assert (await client.get_run(name)).error.reason == run_pb2.RunError.REASON_WORKER_LOST


@pytest.mark.parametrize("lost", [False, True])
async def test_the_run_says_why_it_waits_and_abandon_ends_it(client, running, lost):
    session, name, stored = await (lost_run if lost else new_run)(client, running)
    change = await why(client, session, name)
    assert "format" in change.message
    assert not change.in_doubt_calls
    await client.resolve_run(name, Decision.DECISION_ABANDON)
    assert (await followed(client, name, "CANCELLED")).name == name
    assert not (running.workspace(session) / "file").exists()
    # What is wrong with the session stays so until somebody has put it right.
    again = await client.create_run(session, "[[text: x]]")
    await followed(client, again.name, "UNKNOWN_OUTCOME")
    await exchange(running, session, UNKNOWN, stored)
    await client.resolve_run(again.name, Decision.DECISION_RESUME)
    await followed(client, again.name, "SUCCEEDED")


@pytest.mark.parametrize("lost", [False, True])
async def test_it_goes_on_once_the_transcript_was_put_right(client, running, lost):
    session, name, stored = await (lost_run if lost else new_run)(client, running)
    # Too early: it is still unknown, and the run waits again.
    await client.resolve_run(name, Decision.DECISION_RESUME)
    await followed(client, name, "UNKNOWN_OUTCOME")
    await exchange(running, session, UNKNOWN, stored)
    await client.resolve_run(name, Decision.DECISION_RESUME)
    events, answered = [], set()
    async with asyncio.timeout(60):
        async for event in client.watch(session, include_deltas=False):
            events.append(event)
            asked = event.approval_requested.approval.name
            if asked and asked not in answered and len(of(events, "approval_requested")) == 2:
                answered.add(asked)
                await client.resolve(asked, ALLOW)
            if event.HasField("run_ended") and event.run == name:
                break
    assert state([event for event in events if event.run == name]) == "STATE_SUCCEEDED"
    result = (await client.get_run(name)).result.text
    assert result.startswith("heard ")
    assert int(result.removeprefix("heard ")) >= 1
    if lost:
        assert (running.workspace(session) / "file").read_text() == "ran\n"
