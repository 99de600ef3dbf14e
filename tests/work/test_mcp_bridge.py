"""A session's way to an MCP server in the worker: what is kept of it, and what happens when it ends."""

import asyncio
import json
import sys

import pytest

from agentrpc.claude import mcp_bridge
from agentrpc.claude.launcher import Isolation
from agentrpc.claude.mcp_bridge import McpBridge, McpGone
from agentrpc.claude.mcp_client import Ground
from agentrpc.v1 import session_pb2

# Answers nobody who has not greeted it, and ends when it is told to.
STRICT = """
import json, sys
greeted = 0
for line in sys.stdin:
    asked = json.loads(line)
    method = asked.get("method")
    if method == "initialize":
        greeted = 1
        result = {"protocolVersion": asked["params"]["protocolVersion"]}
    elif method == "notifications/initialized":
        greeted = greeted and 2
        continue
    elif asked.get("params", {}).get("name") == "end":
        sys.exit(0)
    elif asked.get("params", {}).get("name") == "talk":
        for number in range(20):
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"n": number, "x": "x" * 100}}
            print(json.dumps(note), flush=True)
        result = {}
    else:
        result = {"greeted": greeted}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
# Says that it is there, and never reads what it is sent.
DEAF = """
import os, sys, time
print('{"jsonrpc": "2.0", "method": "notifications/message", "params": {}}', flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""
HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}}
GREETED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


async def nowhere(_host, _port):
    return []


@pytest.fixture
async def bridge(tmp_path):
    stdio = session_pb2.McpStdio(command=sys.executable, args=["-c", STRICT])
    ends = []
    bridge = McpBridge(
        session_pb2.McpServer(name="s", stdio=stdio), Ground(tmp_path / "g", Isolation.SUBREAPER, nowhere), ends.append
    )
    bridge.ends = ends
    yield bridge
    await bridge.close()


def call(name, number=1):
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name}}


async def begin(bridge):
    await bridge.ask(HELLO, {})
    await bridge.tell(GREETED, {})


async def test_a_server_that_has_ended_is_greeted_again(bridge):
    await begin(bridge)
    assert (await bridge.ask(call("x"), {}))["result"] == {"greeted": 2}
    with pytest.raises(McpGone):
        await bridge.ask(call("end"), {})
    assert len(bridge.ends) == 1
    assert await bridge.ask(call("x", 2), {}) == {"jsonrpc": "2.0", "id": 2, "result": {"greeted": 2}}


async def test_a_server_that_nobody_has_greeted_is_not(bridge):
    assert (await bridge.ask(call("x"), {}))["result"] == {"greeted": 0}


async def test_what_nobody_listens_to_is_bounded(bridge, monkeypatch):
    monkeypatch.setattr(mcp_bridge, "_MAX_KEPT_BYTES", 1000)
    await begin(bridge)
    await bridge.ask(call("talk"), {})
    assert sum(len(json.dumps(message)) for _, message in bridge._kept) == bridge._kept_bytes <= 1000
    heard = []
    async with asyncio.timeout(30):
        async for message in bridge.listen():
            heard.append(message["params"]["n"])
            if heard[-1] == 19:
                break
    # The newest, in their order.
    assert heard == list(range(heard[0], 20))
    assert bridge._kept_bytes == 0


async def test_whoever_waits_to_be_heard_is_told_of_the_end(tmp_path):
    stop = tmp_path / "stop"
    stdio = session_pb2.McpStdio(command=sys.executable, args=["-c", DEAF, str(stop)])
    ground = Ground(tmp_path / "g", Isolation.SUBREAPER, nowhere)
    bridge = McpBridge(session_pb2.McpServer(name="s", stdio=stdio), ground, lambda _: None)
    asking = [
        asyncio.create_task(bridge.ask({**call("x", number), "params": {"name": "x" * 1024 * 1024}}, {}))
        for number in range(4)
    ]
    async with asyncio.timeout(60):
        async for _ in bridge.listen():
            break
        stop.touch()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(end) for end in ends] == [McpGone] * 4
    await bridge.close()
