"""Checks of MCP servers: others' programs and addresses, and those that hang, flood, lie or leave something behind."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from agentrpc.claude.launcher import Isolation
from agentrpc.claude.mcp_client import Ground, McpConnectError, look
from agentrpc.client import RpcError
from agentrpc.embedded.servers import free_port
from agentrpc.gateway.egress import EgressProxy
from agentrpc.services.addresses import any_addresses, public_addresses
from agentrpc.services.mcp_checks import McpChecks
from agentrpc.store.mcp_servers import claim_check
from agentrpc.v1 import mcp_server_pb2, mcp_server_service_pb2, session_pb2
from tests.isolations import bubblewrap, isolations

ROOT = Path(__file__).parent.parent.parent
TIME = Path(sys.executable).with_name("mcp-server-time")
# Installed by .ci/run: npm install --prefix .npm @modelcontextprotocol/server-everything
EVERYTHING = ROOT / ".npm/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
HEALTH = mcp_server_pb2.McpServerHealth

needs_npm = pytest.mark.skipif(
    not EVERYTHING.exists(), reason="npm install --prefix .npm @modelcontextprotocol/server-everything"
)
# An MCP server of a few lines, for the Python of the system, which a sandbox sees. It tells its environment as tools.
SMALL = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "small", "version": "1"}}
    elif asked.get("method") == "tools/list":
        result = {"tools": [{"name": f"{k}", "description": v, "inputSchema": {"type": "object"}}
                            for k, v in os.environ.items()]}
    elif "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "no"}}), flush=True)
        continue
    else:
        continue
    print("not a message")
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def program(code, *args):
    return session_pb2.McpStdio(command="python3", args=["-c", code, *args])


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path / "check", Isolation.SUBREAPER, any_addresses)


def left_behind(folder):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def test_a_program_that_others_wrote(ground):
    found = await look(session_pb2.McpServer(stdio=session_pb2.McpStdio(command=str(TIME))), ground, timeout=60)
    assert found.server_name == "mcp-time"
    assert {tool.name for tool in found.tools} == {"get_current_time", "convert_time"}
    assert json.loads(found.tools[0].input_schema_json)["type"] == "object"
    assert not ground.folder.exists()


@needs_npm
async def test_an_address_that_others_serve(ground):
    async with everything("streamableHttp") as port:
        remote = session_pb2.McpRemote(url=f"http://localhost:{port}/mcp", headers={"X-Key": "k"})
        found = await look(session_pb2.McpServer(http=remote), ground, timeout=60)
        assert "echo" in {tool.name for tool in found.tools}
        refusing = Ground(ground.folder, ground.isolation, public_addresses)
        with pytest.raises(McpConnectError, match="not public"):
            await look(session_pb2.McpServer(http=remote), refusing, timeout=60)
    async with everything("sse") as port:
        remote = session_pb2.McpRemote(url=f"http://localhost:{port}/sse")
        found = await look(session_pb2.McpServer(sse=remote), ground, timeout=60)
        assert "echo" in {tool.name for tool in found.tools}


@contextlib.asynccontextmanager
async def everything(kind):
    port = free_port()
    with subprocess.Popen(
        ["node", EVERYTHING, kind],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    await asyncio.sleep(0.05)
            yield port
        finally:
            process.kill()


@pytest.mark.parametrize("isolation", isolations())
async def test_a_program_sees_nothing_of_this_service(ground, isolation, monkeypatch):
    monkeypatch.setenv("AGENTRPC_DATABASE_URL", "postgresql://secret")
    server = session_pb2.McpServer(stdio=program(SMALL))
    server.stdio.env["GIVEN"] = "yes"
    found = await look(server, Ground(ground.folder, isolation, any_addresses), timeout=60)
    environment = {tool.name: tool.description for tool in found.tools}
    assert environment["GIVEN"] == "yes"
    assert environment["HOME"].startswith(str(ground.folder))
    assert not [name for name in environment if name.startswith(("AGENTRPC", "ANTHROPIC", "TEST"))]


@pytest.mark.parametrize("isolation", isolations())
async def test_what_hangs_is_ended_with_all_that_it_has_started(ground, isolation):
    script = "trap '' TERM; setsid sleep 600 & sleep 601 & echo me >&2; wait"
    server = session_pb2.McpServer(stdio=session_pb2.McpStdio(command="sh", args=["-c", script]))
    with pytest.raises(McpConnectError, match=r"within 1 s; it said: me"):
        await look(server, Ground(ground.folder, isolation, any_addresses), timeout=1)
    assert left_behind(ground.folder) == []
    assert not ground.folder.exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "import sys; print('bad key', file=sys.stderr); sys.exit(3)",
            "ended before it had answered; it said: bad key",
        ),
        ("print('x' * 10_000_000, flush=True); input()", "ended before"),
        ("import sys\nwhile True: sys.stdout.write('{}\\n' * 10000)", "ended before"),
        ("input(); print('[]', flush=True)", "ended before"),
        (SMALL.replace('"2025-06-18"', '"1999-01-01"'), "version"),
        (SMALL.replace('{"tools": [', '{"tools": 1, "x": ['), "tools"),
    ],
)
async def test_programs_that_are_none(ground, code, error):
    with pytest.raises(McpConnectError, match=error):
        await look(session_pb2.McpServer(stdio=program(code)), ground, timeout=30)
    assert left_behind(ground.folder) == []


async def test_a_program_that_is_missing(ground):
    with pytest.raises(McpConnectError, match="not found"):
        await look(session_pb2.McpServer(stdio=session_pb2.McpStdio(command="nonesuch")), ground, timeout=30)


async def _flood(request):
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 1_000_000)
    return response


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda r: web.Response(status=500), "."),
        (lambda r: web.Response(status=302, headers={"location": "http://169.254.169.254/"}), "."),
        (lambda r: web.Response(text="hello"), "."),
        (lambda r: web.Response(body=b"x", headers={"content-encoding": "gzip"}), "compresses"),
        (_flood, "."),
        (lambda r: asyncio.sleep(60), "within 3 s"),
        (lambda r: r.transport.abort(), "."),
    ],
)
@pytest.mark.parametrize("kind", ["http", "sse"])
async def test_addresses_that_are_none(ground, kind, answer, error):
    async def handle(request):
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found

    app = web.Application()
    app.router.add_route("*", "/mcp", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        server = session_pb2.McpServer(**{kind: session_pb2.McpRemote(url=f"http://127.0.0.1:{port}/mcp")})
        with pytest.raises(McpConnectError, match=error) as caught:
            await look(server, ground, timeout=3)
        assert str(caught.value)
    finally:
        await runner.cleanup()


# ---- As a job ----


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"isolation": "subreaper", "mcp_check_timeout": 60.0})


def create(client, display_name, **fields):
    config = session_pb2.McpServer(**fields)
    given = mcp_server_pb2.RegisteredMcpServer(display_name=display_name, config=config)
    request = mcp_server_service_pb2.CreateMcpServerRequest(mcp_server=given)
    return client.call(client.mcp_servers.CreateMcpServer, request)


def get(client, name):
    return client.call(client.mcp_servers.GetMcpServer, mcp_server_service_pb2.GetMcpServerRequest(name=name))


@contextlib.asynccontextmanager
async def working(edge, **changes):
    """A worker's loop over the job."""

    async def loop():
        while True:
            await McpChecks(edge.database, edge.settings.model_copy(update=changes), EgressProxy).drain()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


REACHING = """
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=20)
    sys.exit("reached")
except OSError as error:
    sys.exit(f"refused: {error}")
"""


@bubblewrap
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "refused: HTTP Error 403"),
        ({"network_mode": "NONE", "network_private": (IPv4Network("127.0.0.2"),)}, "refused: HTTP Error 403"),
        ({"network_private": (IPv4Network("127.0.0.2"),)}, "reached"),
        ({"isolation": "subreaper"}, "reached"),
        ({"isolation": "subreaper", "network_mode": "NONE"}, "cannot keep an agent's network apart"),
    ],
)
async def test_a_program_reaches_what_the_operator_lets_everybody(client, edge, changes, said):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.2") as server:
        port = server.sockets[0].getsockname()[1]
        made = await create(client, "reaching", stdio=program(REACHING, f"http://127.0.0.2:{port}/"))
        settings = edge.settings.model_copy(update={"isolation": "auto", **changes})
        assert await McpChecks(edge.database, settings, EgressProxy).drain() == 1
        assert said in (await get(client, made.name)).health.error


async def test_a_new_server_is_checked_and_its_tools_are_listed(client, edge):
    made = await create(client, "time", stdio=session_pb2.McpStdio(command=str(TIME)))
    assert await McpChecks(edge.database, edge.settings, EgressProxy).drain() == 1
    health = (await get(client, made.name)).health
    assert (health.state, health.tool_count, health.server_name) == (HEALTH.STATE_HEALTHY, 2, "mcp-time")
    assert health.latency.ToTimedelta() > timedelta(0)
    request = mcp_server_service_pb2.ListMcpServerToolsRequest(parent=made.name, cached=True)
    found = await client.call(client.mcp_servers.ListMcpServerTools, request)
    assert {tool.name for tool in found.tools} == {"get_current_time", "convert_time"}
    # Not again before its time.
    assert await McpChecks(edge.database, edge.settings, EgressProxy).drain() == 0
    request.cached = False
    check = mcp_server_service_pb2.CheckMcpServerRequest(name=made.name)
    async with working(edge):
        listed, checked = await asyncio.gather(
            client.call(client.mcp_servers.ListMcpServerTools, request, timeout=60),
            client.call(client.mcp_servers.CheckMcpServer, check, timeout=60),
        )
    assert len(listed.tools) == 2
    assert checked.health.check_time.ToDatetime() > health.check_time.ToDatetime()


async def test_what_goes_wrong_is_told_without_secrets(client, edge):
    secret = "hunter2-and-more"
    code = "import os, sys; sys.exit('no good: ' + os.environ['KEY'])"
    stdio = program(code)
    stdio.env["KEY"] = secret
    made = await create(client, "bad", stdio=stdio)
    await McpChecks(edge.database, edge.settings, EgressProxy).drain()
    health = (await get(client, made.name)).health
    assert health.state == HEALTH.STATE_UNHEALTHY
    assert "no good: ***" in health.error
    request = mcp_server_service_pb2.ListMcpServerToolsRequest(parent=made.name, cached=True)
    with pytest.raises(RpcError, match="no good") as caught:
        await client.call(client.mcp_servers.ListMcpServerTools, request)
    assert caught.value.reason == "STATE_INVALID"


async def test_a_check_of_what_was_before_does_not_count(client, edge):
    made = await create(client, "slow", stdio=program("input(); import time; time.sleep(60)"))
    checking = asyncio.create_task(McpChecks(edge.database, edge.settings, EgressProxy).drain())
    async with asyncio.timeout(30):
        await leased(edge)
    made.config.stdio.CopyFrom(program(SMALL))
    request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=made)
    await client.call(client.mcp_servers.UpdateMcpServer, request)
    await McpChecks(edge.database, edge.settings, EgressProxy).drain()
    assert (await get(client, made.name)).health.state == HEALTH.STATE_HEALTHY
    checking.cancel()
    await asyncio.gather(checking, return_exceptions=True)
    assert (await get(client, made.name)).health.state == HEALTH.STATE_HEALTHY
    assert left_behind(edge.settings.data_dir) == []


async def leased(edge):
    """Until a check is under way."""
    found = 0
    while not found:
        async with edge.database.connection() as connection:
            found = await connection.fetchval("SELECT count(*) FROM mcp_servers WHERE lease IS NOT NULL")


async def test_a_worker_that_stops_gives_back_and_one_that_dies_loses_its_lease(client, edge):
    await create(client, "slow", stdio=program("input(); import time; time.sleep(60)"))
    checking = asyncio.create_task(McpChecks(edge.database, edge.settings, EgressProxy).drain())
    async with asyncio.timeout(30):
        await leased(edge)
    assert await claim_check(edge.database, timedelta(seconds=60)) is None
    checking.cancel()
    await asyncio.gather(checking, return_exceptions=True)
    # As a worker that is killed.
    assert await claim_check(edge.database, timedelta(seconds=0.3)) is not None
    found = None
    async with asyncio.timeout(30):
        while found is None:
            found = await claim_check(edge.database, timedelta(seconds=60))


async def test_two_workers_check_each_once(client, edge):
    for number in range(6):
        await create(client, str(number), stdio=program(SMALL))
    counts = await asyncio.gather(*[McpChecks(edge.database, edge.settings, EgressProxy).drain() for _ in range(2)])
    assert sum(counts) == 6
    request = mcp_server_service_pb2.ListMcpServersRequest(states=[HEALTH.STATE_HEALTHY])
    assert len((await client.call(client.mcp_servers.ListMcpServers, request)).mcp_servers) == 6


async def test_private_addresses_are_refused_by_checks(client, edge):
    made = await create(client, "here", http=session_pb2.McpRemote(url="http://localhost:1/mcp"))
    settings = edge.settings.model_copy(update={"allow_private_addresses": False})
    await McpChecks(edge.database, settings, EgressProxy).drain()
    assert "not public" in (await get(client, made.name)).health.error


async def test_a_run_says_that_a_server_was_changed(client, edge, worker):
    server = await create(client, "good", stdio=session_pb2.McpStdio(command="good"))
    server.shared = True
    request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=server)
    server = await client.call(client.mcp_servers.UpdateMcpServer, request)
    async with edge.client("bob") as bob:
        named = session_pb2.McpServer(name="s", registered=server.name)
        given = session_pb2.SessionOptions(mcp_servers=[named])
        session = await bob.create_session(session_pb2.Session(options=given))
        server.config.stdio.command = "evil"
        request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=server)
        await client.call(client.mcp_servers.UpdateMcpServer, request)
        await worker(fake=True)
        ended = [event.run_ended async for event in bob.run(session.name, "x") if event.HasField("run_ended")]
        assert ended[0].error.reason == ended[0].error.REASON_MCP_SERVER_CHANGED
        assert not ended[0].error.retryable
        assert "accepted_revision" in ended[0].error.message
