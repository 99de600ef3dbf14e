"""What reaches an MCP server outside of the sandbox: what the gate has let pass, and what is in nobody's way."""

from types import SimpleNamespace

import pytest

from agentrpc.claude.launcher import Isolation
from agentrpc.services.session_host.mcp import SessionMcp
from agentrpc.v1 import session_pb2


class Door:
    """Keeps what was opened."""

    def __init__(self):
        self.endpoint = None

    def open_mcp(self, endpoint):
        self.endpoint = endpoint
        return "/mcp/x"

    def close_mcp(self, path):
        self.endpoint = None


@pytest.fixture
def opened(tmp_path):
    """An endpoint whose server notes what it is sent, what was asked of the gate, and what the gate says."""
    door, sent, taken, allowed = Door(), [], [], [True]

    def take(name, given):
        taken.append((name, given))
        return allowed[0]

    mcp = SessionMcp(
        SimpleNamespace(allow_private_addresses=False), Isolation.SUBREAPER, SimpleNamespace(serving_program=None), take
    )
    server = session_pb2.McpServer(name="s", http=session_pb2.McpRemote(url="http://127.0.0.1:9/"))
    options = session_pb2.SessionOptions(mcp_servers=[server])
    urls = mcp.open(options, SimpleNamespace(mcp=tmp_path), door, "http://127.0.0.1:9")
    assert urls == {"s": "http://127.0.0.1:9/mcp/x"}

    class Bridge:
        async def ask(self, message, headers):
            sent.append(message)
            if message.get("params") == []:
                raise ValueError
            if message.get("params") == {"cursor": "fault"}:
                raise OSError("SECRET")
            return {"jsonrpc": "2.0", "id": message["id"], "result": {}}

        async def tell(self, message, headers):
            sent.append(message)

    door.endpoint._bridge = Bridge()
    return SimpleNamespace(endpoint=door.endpoint, sent=sent, taken=taken, allowed=allowed)


def call(**params):
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def test_calls_are_made_as_the_gate_says(opened):
    assert "result" in await opened.endpoint.ask(call(name="a.b", arguments={"x": 1}), {})
    assert "result" in await opened.endpoint.ask(call(name="none"), {})
    assert opened.taken == [("mcp__s__a_b", {"x": 1}), ("mcp__s__none", {})]
    opened.allowed[0] = False
    assert "error" in await opened.endpoint.ask(call(name="a.b", arguments={"x": 1}), {})
    assert len(opened.sent) == 2


@pytest.mark.parametrize(
    "message",
    [
        call(name="a", arguments=[1]), {"id": 1, "method": "tools/other"}, {"id": 1, "method": []},
        {"id": 1, "method": None}, {"id": 1, "method": {}},
    ],
)  # fmt: skip
async def test_what_is_no_call_is_refused(opened, message):
    assert "error" in await opened.endpoint.ask(message, {})
    assert not opened.sent


async def test_a_message_that_is_none_is_told_so(opened):
    assert "error" in await opened.endpoint.ask({"id": 1, "method": "tools/list", "params": []}, {})


async def test_every_request_is_answered(opened, caplog):
    deep = {}
    for _ in range(2000):
        deep = {"x": deep}
    opened.allowed.clear()
    for message in (call(name="a", arguments=deep), {"id": 1, "method": "tools/list", "params": {"cursor": "fault"}}):
        answer = await opened.endpoint.ask(message, {})
        assert "error" in answer
        assert "SECRET" not in str(answer)
        assert "SECRET" not in caplog.text


@pytest.mark.parametrize("method", ["tools/call", "resources/read", "initialize", "", None, 7])
async def test_nothing_is_asked_without_an_id(opened, method):
    await opened.endpoint.tell({"jsonrpc": "2.0", "method": method, "params": {"name": "a"}}, {})
    assert not opened.sent


async def test_notifications_and_answers_pass(opened):
    await opened.endpoint.tell({"jsonrpc": "2.0", "method": "notifications/initialized"}, {})
    await opened.endpoint.tell({"jsonrpc": "2.0", "id": 1, "result": {}}, {})
    assert len(opened.sent) == 2
