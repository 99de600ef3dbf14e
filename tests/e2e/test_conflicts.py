"""Runs that come or say more while another one is under way: conflict policies and SteerRun, with the real CLI.

`[[heard: word]]` tells how many other messages of the conversation have a word: what the model knows.
"""

import asyncio
import random

import pytest
import pytest_asyncio

from agentrpc.client import RpcError
from agentrpc.v1 import event_pb2, run_pb2, session_pb2
from tests.e2e.stacks import NASTY, begin, followed, log, own_stack, run_state, seen, until
from tests.e2e.talk import ALLOW, bash, create, of, run, state

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

INTERRUPT, ROLLBACK = run_pb2.Run.CONFLICT_POLICY_INTERRUPT, run_pb2.Run.CONFLICT_POLICY_ROLLBACK
# Until the test lets it end.
WAITING = bash("echo one >> count; while [ ! -e go ]; do sleep 0.05; done; rm go")
SLOW = "[[slow: 50]]\n[[text: " + "word " * 90 + "]]"
TOLD = event_pb2.UserMessage.ORIGIN_STEER


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with own_stack(poll_interval=0.5) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with stack.client() as client:
        yield client


async def in_a_tool(stack, client, words="", then="[[text: end]]", **options):
    session = await create(client, allowed_tools=["Bash"], **options)
    name = await begin(client, session, f"{words}\n{WAITING}\n[[then]]\n{then}")
    await until(lambda: stack.lines(session))
    return session, name


async def writing(stack, client, words="", prompt=SLOW):
    session = await create(client)
    name = await begin(client, session, f"{words}\n{prompt}")
    await seen(client, session, "text_delta")
    return session, name


async def asking(stack, client, words="", then="[[text: end]]"):
    session = await create(client)
    name = await begin(client, session, f"{words}\n{bash('echo one >> count')}\n[[then]]\n{then}")
    await seen(client, session, "approval_requested")
    return session, name


def let_go(stack, session):
    (stack.workspace(session) / "go").touch()


async def heard(client, session, *words):
    """How many messages of the conversation have each of these words."""
    events = await run(client, session, "\n".join(f"[[heard: {word}]]" for word in words))
    assert state(events) == "STATE_SUCCEEDED"
    said = [block.text.text for message in of(events, "assistant_message") for block in message.blocks]
    return [int(text.removeprefix("heard ")) for text in said]


# ---- Conflict policies ----


@pytest.mark.parametrize("situation", [in_a_tool, writing, asking])
@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_a_run_that_cannot_wait(stack, client, situation, policy):
    session, first = await situation(stack, client, words="alpha")
    behind = await begin(client, session, "[[text: behind]]")
    urgent = await begin(client, session, "[[text: beta]]", conflict_policy=policy)
    ends = [await followed(client, name) for name in (first, urgent, behind)]
    assert [run_state(end) for end in ends] == ["CANCELLED", "SUCCEEDED", "SUCCEEDED"]
    assert not ends[0].pending_approvals
    assert ends[1].last_sequence < ends[2].first_sequence
    # To the model a prompt that was cut off before any answer, and the next one, are one message.
    assert await heard(client, session, "alpha") == [int(policy == INTERRUPT)]
    rewound = of(await log(client, session), "conversation_rewound")
    assert [each.to_sequence for each in rewound] == ([ends[0].first_sequence - 1] if policy == ROLLBACK else [])
    # The workspace stays as it is.
    assert stack.lines(session) == (["one"] if situation is in_a_tool else [])


async def test_of_an_interrupted_run_only_the_cli_is_left(stack, client):
    session = await create(client, allowed_tools=["Bash"])
    name = await begin(client, session, NASTY)
    await until(lambda: stack.lines(session))
    tools = [process for process in stack.agents(session) if process.name() in {"bash", "sh", "sleep"}]
    assert len(tools) > 3
    urgent = await begin(client, session, "[[text: urgent]]", conflict_policy=INTERRUPT)
    assert [run_state(await followed(client, run)) for run in (name, urgent)] == ["CANCELLED", "SUCCEEDED"]
    await until(lambda: not {*tools} & {*stack.agents(session)})
    assert stack.agents(session)


async def test_a_rollback_keeps_what_was_before(stack, client):
    session = await create(client, allowed_tools=["Bash"])
    assert state(await run(client, session, "gamma\n[[text: kept]]")) == "STATE_SUCCEEDED"
    for word in ("alpha", "beta"):
        name = await begin(
            client, session, f"{word}\n{bash(f'echo {word} >> count; sleep 60')}", conflict_policy=ROLLBACK
        )
        await until(lambda word=word: word in stack.lines(session))
    await begin(client, session, "[[text: omega]]", conflict_policy=ROLLBACK)
    assert run_state(await followed(client, name)) == "CANCELLED"
    assert await heard(client, session, "gamma", "kept", "alpha", "beta", "omega") == [1, 2, 0, 0, 2]


@pytest.mark.parametrize("at_once", [True, False])
async def test_of_several_that_cannot_wait_the_newest_wins(stack, client, at_once):
    session, first = await in_a_tool(stack, client)
    made = [begin(client, session, WAITING, conflict_policy=INTERRUPT) for _ in range(5)]
    names = await asyncio.gather(*made) if at_once else [await one for one in made]
    # Ids are given in the order in which runs are accepted.
    *others, newest = sorted(names)
    for name in (first, *others):
        assert run_state(await followed(client, name)) == "CANCELLED"
    # A prompt that was cut off before any answer and the next one are one message to the model, which plays both.
    while not (found := await client.get_run(newest)).HasField("end_time"):
        let_go(stack, session)
        await asyncio.sleep(0.1)
    assert run_state(found) == "SUCCEEDED"


# ---- SteerRun ----


async def told(client, session):
    """What was said to runs under way, as the log has it."""
    said = of(await log(client, session), "user_message")
    return [message.blocks[0].text.text for message in said if message.origin == TOLD]


async def test_in_a_tool_it_is_taken_up_in_the_same_turn(stack, client):
    session, name = await in_a_tool(stack, client, then="[[heard: delta]]")
    await client.steer(name, "also delta")
    await until_told(client, session, 1)
    await asyncio.sleep(1)
    let_go(stack, session)
    found = await followed(client, name)
    assert (run_state(found), found.result.text) == ("SUCCEEDED", "heard 1")
    assert await told(client, session) == ["also delta"]


async def test_in_a_text_a_further_turn_answers_it(stack, client):
    session, name = await writing(stack, client)
    await client.steer(name, "[[text: answered]]")
    found = await followed(client, name)
    assert (run_state(found), found.result.text) == ("SUCCEEDED", "answered")
    assert await told(client, session) == ["[[text: answered]]"]


@pytest.mark.parametrize("situation", [in_a_tool, writing])
async def test_several_at_once(stack, client, situation):
    session, name = await situation(stack, client)
    words = [f"mark{n}" for n in range(6)]
    await asyncio.gather(*(client.steer(name, word) for word in words))
    if situation is in_a_tool:
        await until_told(client, session, len(words))
        let_go(stack, session)
    assert run_state(await followed(client, name)) == "SUCCEEDED"
    assert sorted(await told(client, session)) == words
    assert await heard(client, session, *words) == [1] * len(words)


async def test_more_at_once_than_the_end_of_a_turn_can_name(stack, client):
    session, name = await in_a_tool(stack, client)
    words = [f"mark{n:02}" for n in range(80)]
    await asyncio.gather(*(client.steer(name, word) for word in words))
    await until_told(client, session, 50)
    let_go(stack, session)
    assert run_state(await followed(client, name)) == "SUCCEEDED"
    assert sorted(await told(client, session)) == sorted(words)
    assert await heard(client, session, *words) == [1] * len(words)


async def test_while_an_approval_waits(stack, client):
    session, name = await asking(stack, client, then="[[heard: epsilon]]")
    await client.steer(name, "epsilon")
    await until_told(client, session, 1)
    [approval] = (await client.get_run(name)).pending_approvals
    await client.resolve(approval, ALLOW)
    assert run_state(await followed(client, name)) == "SUCCEEDED"
    assert stack.lines(session) == ["one"]
    assert await heard(client, session, "epsilon") == [2]


async def test_in_the_last_moment_of_a_run(stack, client):
    """Either the run is over, and the caller is told so, or the run does not end before it has answered."""
    session = await create(client)
    await run(client, session, "[[text: warm]]")
    answered = []
    for attempt in range(30):
        name = await begin(client, session, f"[[text: first{attempt}]]")
        await asyncio.sleep(random.uniform(0, 0.3))
        text = f"[[text: answer{attempt}]]"
        try:
            await client.steer(name, text)
        except RpcError as error:
            if error.reason != "STATE_INVALID":
                raise
            continue
        found = await followed(client, name)
        assert (run_state(found), found.result.text) == ("SUCCEEDED", f"answer{attempt}")
        answered.append(text)
    assert await told(client, session) == answered


@pytest.mark.parametrize("moment", [0, 0.3, 1])
async def test_a_worker_killed_right_after(stack, client, moment):
    runs = [
        await writing(stack, client),
        await in_a_tool(stack, client, recovery_policy=session_pb2.RECOVERY_POLICY_RESUME_ALWAYS),
    ]
    for _, name in runs:
        await client.steer(name, "zeta")
    await asyncio.sleep(moment)
    stack.stack.kill_child("worker")
    for session, name in runs:
        found = await followed(client, name)
        assert (run_state(found), found.attempt) == ("SUCCEEDED", 2)
        assert await told(client, session) == ["zeta"]
        assert await heard(client, session, "zeta") == [1]
        assert stack.lines(session) in ([], ["one"])


async def until_told(client, session, count):
    async with asyncio.timeout(30):
        while len(await told(client, session)) < count:  # noqa: ASYNC110 - it is in the log before it is in the CLI
            await asyncio.sleep(0.1)
