"""Sessions from agents with the real CLI: the options and the tool groups of their version decide at the gate."""

import asyncio
import os
import subprocess
import sys

import pytest

from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    common_pb2,
    event_pb2,
    session_pb2,
    tool_group_pb2,
    tool_group_service_pb2,
)
from tests.e2e.talk import bash, of, outputs, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

Finished = event_pb2.ToolCallFinished


async def create_agent(client, name, *, denied, **options):
    group = tool_group_service_pb2.CreateToolGroupRequest(
        tool_group=tool_group_pb2.ToolGroup(display_name=name, disallowed_tools=denied)
    )
    group = await client.call(client.tool_groups.CreateToolGroup, group)
    version = agent_pb2.AgentVersion(options=session_pb2.SessionOptions(**options), tool_groups=[group.name])
    request = agent_service_pb2.CreateAgentRequest(agent=agent_pb2.Agent(display_name=name), version=version)
    return await client.call(client.agents.CreateAgent, request)


async def test_a_tool_group_denies_what_the_session_allows(client, running):
    agent = await create_agent(client, "careful", denied=["Write", "Bash(rm:*)"], allowed_tools=["Bash(echo:*)"])
    # Deny wins, also over what the caller allows for this session.
    options = session_pb2.SessionOptions(
        allowed_tools=["Bash", "Write"], permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK
    )
    session = (await client.create_session(session_pb2.Session(agent=agent.name, options=options))).name
    events = await run(client, session, f"{bash('echo hi > f; echo ok')}\n[[then]]\n{bash('rm -f f')}")
    allowed, denied = of(events, "tool_call_finished")
    assert (allowed.outcome, outputs(events)[0]) == (Finished.OUTCOME_SUCCEEDED, "ok")
    assert (denied.outcome, denied.denied_by) == (Finished.OUTCOME_DENIED, "rule")
    assert "Bash(rm:*)" in denied.denial_reason
    assert (running.workspace(session) / "f").exists()
    events = await run(client, session, '[[tool: Write {"file_path": "g", "content": "x"}]]')
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_DENIED
    assert not (running.workspace(session) / "g").exists()


async def test_a_session_from_the_command_line_is_an_agents(client, running):
    await create_agent(
        client,
        "by name",
        denied=["Bash(rm:*)"],
        allowed_tools=["Bash"],
        permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK,
    )
    token = (await client._metadata())[0][1].removeprefix("Bearer ")
    environment = {**os.environ, "AGENTRPC_SERVER": running.stack.address, "AGENTRPC_TOKEN": token}

    def agentrpc(*arguments):
        command = [sys.executable, "-m", "agentrpc", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    prompt = f"{bash('rm -rf x')}\n[[then]]\n{bash('echo from $((40+2))')}\n[[then]]\n[[text: done]]"
    done = await asyncio.to_thread(agentrpc, "run", prompt, "--agent", "by name", "--approve", "none")
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    assert "Bash(rm:*)" in done.stderr
    assert "from 42" in done.stderr
    listed = await asyncio.to_thread(agentrpc, "agents", "list", "--most-used", "--json")
    assert '"usage_count": "1"' in listed.stdout
    missing = await asyncio.to_thread(agentrpc, "run", "x", "--agent", "nobody")
    assert missing.returncode == 1
    assert missing.stderr.strip() == "agentrpc: there is no agent 'nobody', or you may not see it"
