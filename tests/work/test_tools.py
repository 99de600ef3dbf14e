"""Tools that the worker runs itself, called by the real CLI: slow, hanging, failing and talkative ones, and at the gate."""

import asyncio
import contextlib
import json

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.agent import AgentProcess, AgentSpec
from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.tools import MAX_RESULT, Tool, ToolError, ToolServers, schema
from agentrpc.domain.gate import Verdict
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.v1 import session_pb2
from tests.isolations import reaching

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
            token="t", gate=judge, **reaching(model.url),
            on_transcript=lambda *_: None, on_fault=pytest.fail, tools={"own": tools},
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


async def test_a_hanging_tool_a_failing_one_and_a_talkative_one_leave_the_process_alive(talk, monkeypatch):
    monkeypatch.setattr(ToolServers.__init__, "__kwdefaults__", {"timeout": 1.0})
    ended = []

    async def hang(_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("hang")

    async def deaf(_):
        while not ended or ended[-1] != "stop":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    async def fail(_):
        raise RuntimeError("postgresql://user:password@host")

    async def refuse(_):
        raise ToolError("take another word")

    async def flood(_):
        return "é" * MAX_RESULT

    async def dirty(_):
        return "a\0b\ud800c"

    nothing = schema({})
    process = await talk([
        Tool("echo", "", WORD, echo), Tool("hang", "", nothing, hang), Tool("deaf", "", nothing, deaf),
        Tool("fail", "", nothing, fail), Tool("refuse", "", nothing, refuse), Tool("flood", "", nothing, flood),
        Tool("dirty", "", nothing, dirty),
    ])  # fmt: skip
    try:
        for name in ("hang", "deaf"):
            [(text, failed)] = await process.results(call(name))
            assert failed
            assert "did not answer within 1 s" in text
        assert ended == ["hang"]
    finally:
        ended.append("stop")
    [(text, failed)] = await process.results(call("fail"))
    assert failed
    assert "password" not in text
    [(text, failed)] = await process.results(call("refuse"))
    assert failed
    assert text.startswith("take another word")
    assert await process.results(call("dirty")) == [("a\N{REPLACEMENT CHARACTER}b?c", False)]
    [(text, failed)] = await process.results(call("flood"))
    assert not failed
    assert len(text.encode()) <= MAX_RESULT
    for bad in ({}, {"word": 1}, {"word": "x", "more": 1}):
        [(text, failed)] = await process.results(call("echo", **bad))
        assert failed
        assert "validation" in text
    for bad in ("a\0", "\ud800"):
        [(text, failed)] = await process.results(call("echo", word=bad))
        assert failed
    assert await process.results(call("echo", word="still here")) == [("you said still here", False)]


async def test_what_the_gate_denies_is_not_called(talk):
    called = []

    async def note(arguments):
        called.append(arguments)
        return "noted"

    async def deny(_):
        return Verdict(allow=False, message="not today")

    process = await talk([Tool("note", "", WORD, note)], gate=deny)
    [(text, failed)] = await process.results(call("note", word="x"))
    assert failed
    assert "not today" in text
    assert not called


async def test_a_call_ends_with_its_process(talk):
    begun, ended = asyncio.Event(), []

    async def hang(_):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("hang")

    process = await talk([Tool("hang", "", schema({}), hang)])
    results = asyncio.create_task(process.results(call("hang")))
    async with asyncio.timeout(30):
        await begun.wait()
    receipt = await process.agent.stop(grace=0)
    assert ended == ["hang"]
    assert receipt.confirmed
    await asyncio.gather(results, return_exceptions=True)
