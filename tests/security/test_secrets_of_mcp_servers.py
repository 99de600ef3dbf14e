"""Secrets of MCP servers: not in the sandbox, not of use past the gate, and delivered exactly as they were stored."""

import contextlib
import json

from aiohttp import web

from agentrpc.v1 import session_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import bash, create, of, outputs, run, state

# Tells what it was given. It needs nothing but the Python of the system, which a sandbox sees.
TELLING = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "telling", "version": "1"}}
    elif asked.get("method") == "tools/list":
        result = {"tools": [{"name": "tell", "description": "t", "inputSchema": {"type": "object"}}]}
    elif asked.get("method") == "tools/call":
        env = {k: v[::-1] for k, v in os.environ.items()}
        told = {"argv": sys.argv[1:], "env": env, "cwd": sorted(os.listdir(".")), "given": asked["params"]}
        result = {"content": [{"type": "text", "text": json.dumps(told)}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
WORDS = ["${HOME}", "${ANTHROPIC_AUTH_TOKEN}", "$(id)", "${X:-y}", "a 'b\" c", "", "\\$HOME", "ü\n☃"]
ENV = {"PASSWORD": "pa${ss}w$ord", "TOKEN": "ENVSECRET", "B": "${HOME}", "C": "qu\"o'te\nline"}


@contextlib.asynccontextmanager
async def remote():
    """A server at an address, and the requests that it got."""
    seen = []

    async def handle(request):
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        seen.append((asked.get("method"), dict(request.headers), str(request.rel_url), asked.get("params")))
        match asked.get("method"):
            case "initialize":
                result = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "remote", "version": "1"},
                }
            case "tools/list":
                schema = {"type": "object"}
                result = {
                    "tools": [{"name": name, "description": "d", "inputSchema": schema} for name in ("get", "drop")]
                }
            case "tools/call":
                result = {"content": [{"type": "text", "text": "done " + asked["params"]["name"]}]}
            case _:
                return web.Response(status=202)
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        return web.json_response(answer, headers={"mcp-session-id": "s1"} if asked["method"] == "initialize" else {})

    app = web.Application()
    app.router.add_route("*", "/mcp", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp?key=URLSECRET", seen
    finally:
        await runner.cleanup()


def told(output):
    return json.loads(output)


# Speaks to the address that the CLI has, as the CLI does.
PAST_THE_GATE = """
import json, os, urllib.request, glob
[path] = glob.glob(os.environ["CLAUDE_CONFIG_DIR"] + "/../launch/options/mcp.json")
servers = json.load(open(path))["mcpServers"]
def ask(server, method, /, **params):
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()
    request = urllib.request.Request(servers[server]["url"], body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return response.read().decode()
print(ask("remote", "tools/list"))
print(ask("remote", "tools/call", name="drop", arguments={}))
print(ask("remote", "tools/call", name="get", arguments={"what": "all"}))
print(ask("envy", "tools/call", name="tell", arguments={}))
print(ask("remote", "resources/read", uri="file:///x"))
"""


async def test_secrets_are_delivered_as_they_are_and_are_nowhere_in_the_sandbox():
    async with (
        remote() as (url, seen),
        own_stack(allow_private_addresses="true") as stack,
        stack.client() as client,
    ):
        argv = ["-c", TELLING, *WORDS]
        servers = [
            session_pb2.McpServer(name="envy", stdio=session_pb2.McpStdio(command="python3", args=argv, env=ENV)),
            session_pb2.McpServer(name="plain", stdio=session_pb2.McpStdio(command="python3", args=argv)),
            session_pb2.McpServer(
                name="remote", http=session_pb2.McpRemote(url=url, headers={"Authorization": "Bearer ${HEADERSECRET}"})
            ),
        ]
        session = await create(
            client,
            mcp_servers=servers,
            allowed_tools=["Bash", "mcp__envy__*", "mcp__plain__*", "mcp__remote__*"],
            disallowed_tools=["mcp__remote__drop"],
        )
        arguments = {"n": 1.0, "big": 12345678901, "list": [1, 2.5, {"ü": None}], "text": 'a"b\\n'}
        events = await run(
            client,
            session,
            "\n[[then]]\n".join(
                [
                    bash("touch here"),
                    "[[tool: mcp__envy__tell {}]]",
                    f"[[tool: mcp__plain__tell {json.dumps(arguments)}]]",
                    f"[[tool: mcp__remote__get {json.dumps(arguments)}]]",
                    "[[tool: mcp__remote__drop {}]]",
                    bash(f"cat > past.py <<'EOF'\n{PAST_THE_GATE}\nEOF\npython3 past.py"),
                    bash(
                        "cat $CLAUDE_CONFIG_DIR/../launch/options/* ~/* 2>/dev/null; env; cat /proc/[0-9]*/environ"
                        " /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; grep -rs SECRET $CLAUDE_CONFIG_DIR/.. | head -5"
                    ),
                    "[[text: done]]",
                ]
            ),
            timeout=120,
        )
        assert state(events) == "STATE_SUCCEEDED", of(events, "run_ended")
        _, envy, plain, got, _, past, looked = outputs(events)
        assert told(envy)["argv"] == WORDS
        # Backwards: what a server itself tells is in the conversation.
        assert {key: told(envy)["env"].get(key, "")[::-1] for key in ENV} == ENV
        # Beside the sandbox: nothing that an agent writes is there, nor is the token.
        assert told(envy)["cwd"] == []
        assert not [name for name in told(envy)["env"] if name.startswith("ANTHROPIC")]
        assert told(plain)["argv"] == WORDS
        assert "here" in told(plain)["cwd"]
        assert told(plain)["given"]["arguments"] == arguments
        assert got == "done get"
        # The server got both secrets, and the calls that passed the gate.
        assert all(headers["Authorization"] == "Bearer ${HEADERSECRET}" for _, headers, _, _ in seen)
        assert all(path == "/mcp?key=URLSECRET" for _, _, path, _ in seen)
        assert [params["name"] for method, _, _, params in seen if method == "tools/call"] == ["get"]
        assert [params["arguments"] for method, _, _, params in seen if method == "tools/call"] == [arguments]
        # What there is anybody may ask; nothing is called past the gate.
        first, *others = past.replace("event: message\n", "").split("data: ")[1:]
        assert "drop" in first
        assert len(others) == 4, past
        assert all("did not pass the gate" in other for other in others)
        for secret in ("URLSECRET", "HEADERSECRET", "ENVSECRET", "pa${ss}"):
            assert secret not in looked
            assert secret not in past


async def test_a_server_at_a_private_address_is_not_called_for_an_agent():
    async with remote() as (url, seen), own_stack() as stack, stack.client() as client:
        server = session_pb2.McpServer(name="remote", http=session_pb2.McpRemote(url=url))
        session = await create(client, mcp_servers=[server], allowed_tools=["mcp__remote__*"])
        events = await run(client, session, "[[tool: mcp__remote__get {}]]\n[[then]]\n[[text: done]]")
        assert state(events) == "STATE_SUCCEEDED"
        assert "done get" not in str(outputs(events))
        assert seen == []
