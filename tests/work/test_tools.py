"""Tools that the worker runs itself, called by the real CLI: slow, hanging, failing and talkative ones, and at the gate."""

import asyncio
import contextlib
import json

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.agent import AgentProcess, AgentSpec
from agentrpc.claude.launcher import SessionPaths, choose_isolation
from agentrpc.claude.tools import Tool, schema
from agentrpc.domain.gate import Verdict
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.v1 import session_pb2

WORD = schema({"word": {"type": "string"}}, required=["word"])


@pytest.fixture
async def model():
    model = ScriptedModel()
    await model.start()
    yield model
    await model.stop()


class Talk:
    """A process with the tools of one server `own`, and what its tool calls answer."""

    def __init__(self, agent, asked):
        self.agent = agent
        self.asked = asked

    async def results(self, *lines):
        """Let the model make calls: (tool_use_id, text, whether it failed) for each."""
        found = []
        await self.agent.send_prompt("\n".join([*lines, "[[then]]", "[[text: done]]"]), uuid=str(clock.uuid7()))
        async with asyncio.timeout(60):
            async for frames in self.agent.frames():
                for frame in frames:
                    if frame["type"] == "user":
                        for block in frame["message"]["content"]:
                            if block["type"] == "tool_result":
                                content = block["content"]
                                text = content if isinstance(content, str) else "".join(p["text"] for p in content)
                                found.append((text, block.get("is_error", False)))
                    elif frame["type"] == "result":
                        return found
        return found


@pytest.fixture
async def talk(tmp_path, model):
    """Starts a process with these tools: `await talk([Tool(...)], gate=...)`."""
    started = []

    async def start(tools, gate=None):
        asked = []

        async def judge(call):
            asked.append(call)
            return await gate(call) if gate is not None else Verdict(allow=True)

        session_id = clock.uuid7()
        paths = SessionPaths.under(tmp_path, session_id, tmp_path / "workspace")
        paths.create()
        paths.workspace.mkdir(exist_ok=True)
        options = session_pb2.SessionOptions(
            model="claude-sonnet-5",
            mcp_servers=[
                session_pb2.McpServer(name="own", builtin=session_pb2.BuiltinServer(system={})),
                session_pb2.McpServer(
                    name="far", http=session_pb2.McpRemote(url="http://127.0.0.1:9", headers={"authorization": "hush"})
                ),
            ],
        )
        spec = AgentSpec(
            session_id=session_id, claude_session_id=str(session_id), resume=False, options=options, paths=paths,
            gateway_url=model.url, token="t", isolation=choose_isolation("auto")[0], gate=judge,
            on_transcript=lambda *_: None, tools={"own": tools},
        )  # fmt: skip
        agent = await AgentProcess.start(spec, timeout=60)
        started.append(agent)
        return Talk(agent, asked)

    yield start
    for agent in started:
        await agent.stop(grace=0)


def call(name, **arguments):
    return f"[[tool: mcp__own__{name} {json.dumps(arguments)}]]"


async def echo(arguments):
    return f"you said {arguments['word']}"


async def test_the_cli_calls_a_tool_of_this_process_after_the_gate(talk):
    process = await talk([Tool("echo", "Says it again.", WORD, echo)])
    assert await process.results(call("echo", word="héllo")) == [("you said héllo", False)]
    assert [(asked.tool_name, asked.input) for asked in process.asked] == [("mcp__own__echo", {"word": "héllo"})]
    lines = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(one.cmdline()))
    assert any("--mcp-config" in line for line in lines)
    assert not any("hush" in line or '"sdk"' in line for line in lines)
