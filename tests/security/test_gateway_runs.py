"""The token of a run in the hands of what the agent runs: real CLI, real calls from its shell."""

import json

from agentrpc.v1 import session_service_pb2
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import bash, create, of, outputs, run, state

# One call past the CLI, as any tool can make it: its status goes to a file.
CALL = """
import json, os, sys, urllib.error, urllib.request
def call(model="claude-sonnet-5", **more):
    body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "[[text: hi]]"}], **more}
    request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
        {"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"], "content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
"""


def python(code):
    return bash(f"cat > call.py <<'EOF'\n{CALL}{code}\nEOF\npython3 call.py")


async def test_a_tool_asks_no_more_than_its_run_may_and_is_counted():
    async with own_stack() as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Bash"], max_turns=2)
        code = (
            "print([call() for _ in range(51)], call('claude-opus-4-7'), call(tools=[{'type': 'web_fetch_20250910'}]))"
        )
        events = await run(client, session, python(code) + "\n[[then]]\n[[text: done]]")
        [output] = outputs(events)
        statuses, _, other = output.partition("]")
        statuses = json.loads(statuses + "]")
        assert set(statuses) == {200, 429}
        # The turns of the CLI itself are among them.
        assert statuses.count(200) <= 7
        assert other.split() == ["404", "400"]
        # The run has no answer left of its own, and says why.
        error = of(events, "run_ended")[0].error
        assert error.message.startswith("max_turns was reached"), error
        # What the calls have used is told, though the CLI knows nothing of them.
        used = of(events, "run_ended")[0].usage
        assert used.output_tokens >= statuses.count(200)
        request = session_service_pb2.GetSessionRequest(name=session)
        assert (await client.call(client.sessions.GetSession, request)).usage.output_tokens == used.output_tokens


async def test_a_process_that_outlives_its_run_asks_nothing():
    async with own_stack() as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Bash"])
        loop = (
            "import time\nwhile True:\n"
            "    with open('statuses', 'a') as file: print(call(), file=file)\n"
            "    time.sleep(0.05)"
        )
        start = bash(
            f"cat > call.py <<'EOF'\n{CALL}{loop}\nEOF\n"
            "setsid python3 call.py >/dev/null 2>&1 &\nwhile ! grep -q 200 statuses 2>/dev/null; do sleep 0.05; done"
        )
        events = await run(client, session, start + "\n[[then]]\n[[text: done]]")
        assert state(events) == "STATE_SUCCEEDED"
        at_the_end = len(stack.lines(session, "statuses"))
        lines = await until(
            lambda: (found := stack.lines(session, "statuses")) and len(found) > at_the_end + 5 and found
        )
        assert "200" in lines
        # One may have been under way.
        assert set(lines[at_the_end + 1 :]) == {"401"}
        # The CLI itself goes on, and so does what it has left behind, while a run is under way.
        events = await run(client, session, bash("sleep 0.5") + "\n[[then]]\n[[text: again]]")
        assert state(events) == "STATE_SUCCEEDED"
        assert "200" in stack.lines(session, "statuses")[len(lines) :]


async def test_subagents_and_searches_have_what_they_need():
    async with own_stack() as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Agent", "Task", "Bash", "WebSearch"], max_turns=8)
        agent = json.dumps({
            "description": "x", "subagent_type": "general-purpose", "model": "opus", "run_in_background": False,
            "prompt": "\n[[then]]\n".join([bash("echo one")] * 20 + ["[[text: sub done]]"]),
        })  # fmt: skip
        prompt = f'[[tool: Agent {agent}]]\n[[then]]\n[[tool: WebSearch {{"query": "cats"}}]]\n[[then]]\n[[text: done]]'
        events = await run(client, session, prompt, timeout=120)
        assert state(events) == "STATE_SUCCEEDED", of(events, "run_ended")
        finished = of(events, "tool_call_finished")
        assert sum(done.outcome == done.OUTCOME_SUCCEEDED for done in finished) == len(finished) >= 22
        # An alias of a model that the session may not ask is its own model.
        assert {used.model for used in of(events, "run_ended")[0].model_usage} == {"claude-sonnet-5"}
