"""Stop means stopped: whatever a run does just then, nothing of it is left, and its session takes the next one.

With the fake CLI, which can be slow, deaf and hanging on purpose.
"""

import asyncio
import contextlib
import socket

import pytest
import pytest_asyncio

from agentrpc.embedded.servers import free_port
from agentrpc.testkit import write_cli
from agentrpc.v1 import run_pb2
from tests.conftest import RedisServer
from tests.e2e.stacks import NASTY, begin, followed, log, own_stack, run_state, seen, until
from tests.e2e.talk import ALLOW, bash, create, of, run, state

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ASKING = '[[tool: Read {"file_path": "/etc/hostname"}]]\n[[then]]\n[[text: read]]'
LONG = "[[slow: 100]]\n[[text: " + "word " * 600 + "]]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stops")
    redis = RedisServer(folder)
    redis.start()
    try:
        cli = write_cli(folder / "cli")
        async with own_stack(redis_url=redis.url, cli_path=cli, poll_interval=0.5, drain_grace=2) as stack:
            stack.redis = redis
            yield stack
    finally:
        redis.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with stack.client() as client:
        yield client


# ---- What a run does when it is stopped ----


async def starting(stack, client):
    """Its process is there and reads nothing yet."""
    session = await create(client)
    start = stack.local(session) / "home" / "fake-cli"
    start.parent.mkdir(parents=True, mode=0o700)
    start.write_text("[[starts: 1]]\n[[delay: 600]]")
    name = await begin(client, session, "[[text: never]]")
    await until((start.parent / ".fake-cli-starts").exists)
    return session, name


async def in_a_tool(stack, client, prompt=NASTY, **more):
    session = await create(client, allowed_tools=["Bash"])
    name = await begin(client, session, prompt, **more)
    await until(lambda: stack.lines(session))
    return session, name


async def writing(stack, client):
    session = await create(client)
    name = await begin(client, session, LONG)
    await seen(client, session, "message_started")
    return session, name


async def asking(stack, client):
    """An approval waits, and so does the process."""
    session = await create(client)
    name = await begin(client, session, ASKING)
    await seen(client, session, "approval_requested")
    return session, name


async def deaf_and_hanging(stack, client):
    session = await create(client)
    name = await begin(
        client, session, "[[deaf]]\n[[ignore_sigterm]]\n[[children: setsid term stop]]\n[[text: a b]]\n[[hang: end]]"
    )
    await seen(client, session, "assistant_message")
    return session, name


async def between_calls(stack, client):
    """Call after call, so that the stop may come at any moment of one."""
    session = await create(client, allowed_tools=["Bash"])
    name = await begin(client, session, f"{bash('echo one >> count')}\n[[repeat: 500]]")
    await until(lambda: len(stack.lines(session)) > 3)
    return session, name


async def being_told(stack, client):
    """A process that does not read what it is told, which is more than a pipe takes."""
    session = await create(client)
    await run(client, session, "[[text: warm]]")
    for process in stack.agents(session):
        process.suspend()
    name = await begin(client, session, "[[text: never]]\n" + "word " * 190_000)
    await seen(client, session, "run_started", name)
    await asyncio.sleep(0.3)
    return session, name


SITUATIONS = [starting, in_a_tool, writing, asking, deaf_and_hanging, between_calls, being_told]


async def check_stopped(stack, client, session, name, *, receipt, processes=1):
    """The run has ended as it should, nothing of it is left after a cancel, and the next one is carried out."""
    found = await followed(client, name)
    assert run_state(found) == "CANCELLED"
    assert not found.pending_approvals
    assert found.HasField("stop_receipt") == receipt
    if receipt:
        check_receipt(found.stop_receipt, processes)
        await until(lambda: not stack.agents(session), 1)
    events = await log(client, session)
    ends = of([event for event in events if event.run == name], "run_ended")
    assert [ended.state for ended in ends] == [run_pb2.Run.STATE_CANCELLED]
    started = {call.tool_use_id for call in of(events, "tool_call_started")}
    assert started <= {call.tool_use_id for call in of(events, "tool_call_finished")}
    before = stack.lines(session)
    again = await run(client, session, "[[text: still here]]")
    assert state(again) == "STATE_SUCCEEDED"
    assert stack.lines(session) == before


def check_receipt(receipt, processes=1):
    assert receipt.confirmed
    assert receipt.process_count >= processes
    assert (receipt.elapsed.ToTimedelta().total_seconds() > 0) == bool(processes)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_cancelled_run_leaves_nothing(stack, client, situation):
    session, name = await situation(stack, client)
    await client.cancel(name)
    await check_stopped(stack, client, session, name, receipt=True, processes=5 if situation is in_a_tool else 1)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_an_interrupted_run_ends(stack, client, situation):
    session, name = await situation(stack, client)
    await client.interrupt(name)
    await check_stopped(stack, client, session, name, receipt=False)


async def test_a_cancel_in_the_last_moment_of_a_run(stack, client):
    """Either the run has ended by then, and says so, or it ends as cancelled and nothing of it is left."""
    session = await create(client)
    ends = []
    for at in range(30):
        name = await begin(client, session, "[[children: setsid]]\n[[text: a]]")
        await asyncio.sleep(at * 0.003)
        answered = await client.cancel(name)
        found = await followed(client, name)
        ends.append(run_state(found))
        if answered.HasField("end_time"):
            assert found == answered
        else:
            assert run_state(found) == "CANCELLED"
            assert found.stop_receipt.confirmed
            assert not stack.agents(session)
    assert "CANCELLED" in ends


async def test_a_cancel_overtakes_an_interrupt(stack, client):
    """The CLI does not heed the interrupt: the cancel does not wait until the worker has lost patience with it."""
    session, name = await deaf_and_hanging(stack, client)
    await client.interrupt(name)
    await asyncio.sleep(1.5)
    await client.cancel(name)
    await check_stopped(stack, client, session, name, receipt=True, processes=5)


async def test_calls_in_doubt(stack, client):
    """Nobody drives these runs: they end with the request."""
    runs = [await in_a_tool(stack, client) for _ in range(2)]
    stack.stack.kill_child("worker")
    for _, name in runs:
        await followed(client, name, "UNKNOWN_OUTCOME")
    assert not any(stack.agents(session) for session, _ in runs)
    [(_, name), (_, second)] = runs
    found = await client.cancel(name)
    assert run_state(found) == "CANCELLED"
    assert not found.in_doubt_calls
    assert run_state(await client.interrupt(second)) == "CANCELLED"
    assert (found.stop_receipt.process_count, found.stop_receipt.confirmed) == (0, True)
    for session, _ in runs:
        assert state(await run(client, session, "[[text: still here]]")) == "STATE_SUCCEEDED"
        assert stack.lines(session) == ["one"]


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


async def test_from_another_edge_and_without_redis(stack, client):
    port = free_port()
    with stack.another("agentrpc", "serve", AGENTRPC_LISTEN=f"127.0.0.1:{port}"):
        await until(lambda: listens(port))
        async with stack.client(f"127.0.0.1:{port}") as other:
            session, name = await in_a_tool(stack, client)
            await other.cancel(name)
            await check_stopped(stack, client, session, name, receipt=True, processes=5)
            session, name = await in_a_tool(stack, client)
            stack.redis.stop()
            try:
                await other.cancel(name)
                await check_stopped(stack, client, session, name, receipt=True, processes=5)
                session, name = await asking(stack, client)
                await client.interrupt(name)
                await check_stopped(stack, other, session, name, receipt=False)
            finally:
                stack.redis.start()
    session, name = await in_a_tool(stack, client)
    await client.cancel(name)
    await check_stopped(stack, client, session, name, receipt=True)


async def test_a_stop_that_is_asked_for_again_and_again(stack, client):
    session, name = await in_a_tool(stack, client)
    await asyncio.gather(*(stop(name) for stop in [client.interrupt, client.cancel] * 5))
    await check_stopped(stack, client, session, name, receipt=True)
    ended = await client.get_run(name)
    assert await client.cancel(name) == await client.interrupt(name) == ended


async def test_a_queued_run_and_the_one_before_it(stack, client):
    session, first = await in_a_tool(stack, client)
    second, third = [await begin(client, session, f"[[text: {word}]]") for word in ("second", "third")]
    found = await client.cancel(second)
    assert run_state(found) == "CANCELLED"
    assert found.stop_receipt.process_count == 0
    await client.cancel(first)
    check_receipt((await followed(client, first)).stop_receipt, 5)
    found = await followed(client, third)
    assert (run_state(found), found.result.text) == ("SUCCEEDED", "third")


async def test_the_time_of_a_run_is_over(stack, client):
    session, name = await in_a_tool(stack, client, timeout=3)
    other = await create(client)
    hanging = await begin(client, other, "[[deaf]]\n[[hang: text]]", timeout=1)
    found = await followed(client, name)
    assert run_state(found) == "EXPIRED"
    assert not found.HasField("stop_receipt")
    assert run_state(await followed(client, hanging)) == "EXPIRED"
    for each in (session, other):
        await until(lambda each=each: not stack.agents(each), 1)
        assert state(await run(client, each, "[[text: still here]]")) == "STATE_SUCCEEDED"


async def test_a_terminated_session_leaves_nothing(stack, client):
    for situation in (in_a_tool, asking, deaf_and_hanging):
        session, name = await situation(stack, client)
        waits = await begin(client, session, "[[text: never]]")
        await client.terminate_session(session)
        found = await followed(client, name)
        assert run_state(found) == run_state(await followed(client, waits)) == "CANCELLED"
        check_receipt(found.stop_receipt)
        await until(lambda session=session: not stack.agents(session), 1)


async def test_a_hanging_cli_is_found_inactive_but_not_one_that_waits_for_an_answer(stack, client):
    patient = await create(client)
    asked = await begin(client, patient, ASKING, inactivity=10)
    approval = await seen(client, patient, "approval_requested")
    session = await create(client)
    name = await begin(
        client, session, "[[deaf]]\n[[children: setsid term stop]]\n[[text: a b]]\n[[hang: text]]", inactivity=10
    )
    found = await followed(client, name)
    assert (run_state(found), found.error.reason) == ("FAILED", run_pb2.RunError.REASON_INACTIVE)
    await until(lambda: not stack.agents(session), 1)
    assert found.end_time.ToDatetime() - found.start_time.ToDatetime() >= found.inactivity_timeout.ToTimedelta()
    assert state(await run(client, session, "[[text: still here]]")) == "STATE_SUCCEEDED"
    assert run_state(await client.get_run(asked)) == "REQUIRES_ACTION"
    # From the answer on it counts again: this one goes on at once.
    await client.resolve(approval.approval.name, ALLOW)
    assert run_state(await followed(client, asked)) == "SUCCEEDED"


async def test_a_stack_that_is_stopped_leaves_nothing(stack):
    """Runs that were under way go on, or wait for a decision, when it is started again."""
    async with stack.client() as client:
        tool, _ = await in_a_tool(stack, client)
        deaf, _ = await deaf_and_hanging(stack, client)
        waiting, asked = await asking(stack, client)
        approval = (await client.get_run(asked)).pending_approvals[0]
        idle = await create(client)
        await run(client, idle, "[[children: setsid term stop]]\n[[text: idle]]")
    sessions = (tool, deaf, waiting, idle)
    await stack.stop()
    assert not any(stack.agents(session) for session in sessions)
    await stack.start()
    async with stack.client() as client:
        await client.resolve(approval, ALLOW)
        assert run_state(await followed(client, asked)) == "SUCCEEDED"
        assert state(await run(client, idle, "[[text: still here]]")) == "STATE_SUCCEEDED"
