"""MCP servers that others wrote, registered, checked, and used by the real CLI; what a session is told when one is gone."""

import json
import sys
from pathlib import Path

import pytest

from agentrpc.v1 import mcp_server_pb2, mcp_server_service_pb2, session_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import create, of, outputs, run, state
from tests.work.test_mcp_checks import EVERYTHING, everything

TIME = Path(sys.executable).with_name("mcp-server-time")


@pytest.mark.skipif(not EVERYTHING.exists(), reason="npm install --prefix .npm @modelcontextprotocol/server-everything")
async def test_a_program_and_an_address_are_registered_checked_and_used():
    file = {"mcpServers": {"the time": {"command": str(TIME), "env": {"SOME": "secret"}}}}
    # The program is where a sandbox of bubblewrap sees nothing.
    async with (
        everything("streamableHttp") as port,
        own_stack(isolation="subreaper", allow_private_addresses="true", idle_ttl=1) as stack,
        stack.client() as client,
    ):
        servers = client.mcp_servers
        file["mcpServers"]["everything"] = {"type": "http", "url": f"http://localhost:{port}/mcp"}
        request = mcp_server_service_pb2.ImportMcpServersRequest(config_json=json.dumps(file))
        names = [server.name for server in (await client.call(servers.ImportMcpServers, request)).mcp_servers]
        for name in names:
            request = mcp_server_service_pb2.CheckMcpServerRequest(name=name)
            checked = await client.call(servers.CheckMcpServer, request, timeout=70)
            assert checked.health.state == mcp_server_pb2.McpServerHealth.STATE_HEALTHY, checked
            request = mcp_server_service_pb2.ListMcpServerToolsRequest(parent=name, cached=True)
            assert (await client.call(servers.ListMcpServerTools, request)).tools
        given = [
            session_pb2.McpServer(name=n, registered=name) for n, name in zip(("clock", "all"), names, strict=True)
        ]
        session = await create(client, mcp_servers=given, allowed_tools=["mcp__clock__*", "mcp__all__*"])
        events = await run(
            client,
            session,
            '[[tool: mcp__clock__get_current_time {"timezone": "Etc/UTC"}]]\n[[then]]\n'
            '[[tool: mcp__all__echo {"message": "hello there"}]]\n[[then]]\n[[text: done]]',
            timeout=120,
        )
        assert state(events) == "STATE_SUCCEEDED"
        found = outputs(events)
        assert "Etc/UTC" in found[0]
        assert "hello there" in found[1]
        # Deleted while the session is there: its next process does not start without it, and says why.
        request = mcp_server_service_pb2.DeleteMcpServerRequest(name=names[0])
        await client.call(servers.DeleteMcpServer, request)
        await stack.until_parked(session)
        events = await run(client, session, "[[text: hi]]", timeout=60)
        error = of(events, "run_ended")[0].error
        assert "'clock'" in error.message
        assert "deleted or is not shared" in error.message
