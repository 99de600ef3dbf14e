"""McpServerService: what callers may set, see and use."""

import json
import re
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.errors import FailedPrecondition
from agentrpc.services.mcp_servers import McpServers
from agentrpc.services.registered_mcp import resolve_registered
from agentrpc.services.secrets import SecretBox
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    mcp_server_pb2,
    mcp_server_service_pb2,
    session_pb2,
    session_service_pb2,
    task_pb2,
    task_service_pb2,
)

SECRET = "hunter2-and-more"
STDIO = session_pb2.McpStdio(command="uvx", args=["mcp-server-time"], env={"TOKEN": SECRET})
HTTP = session_pb2.McpRemote(url=f"https://example.org/mcp?key={SECRET}", headers={"Authorization": SECRET})


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


def create(client, display_name="a", request_id="", transport=None, **fields):
    config = session_pb2.McpServer(**(transport or {"stdio": STDIO}))
    given = mcp_server_pb2.RegisteredMcpServer(display_name=display_name, **{"config": config, **fields})
    request = mcp_server_service_pb2.CreateMcpServerRequest(mcp_server=given, request_id=request_id)
    return client.call(client.mcp_servers.CreateMcpServer, request)


def get(client, name):
    return client.call(client.mcp_servers.GetMcpServer, mcp_server_service_pb2.GetMcpServerRequest(name=name))


def update(client, server, *paths):
    request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=server, update_mask=FieldMask(paths=paths))
    return client.call(client.mcp_servers.UpdateMcpServer, request)


def delete(client, name, etag=""):
    request = mcp_server_service_pb2.DeleteMcpServerRequest(name=name, etag=etag)
    return client.call(client.mcp_servers.DeleteMcpServer, request)


async def names(client, **fields):
    response = await client.call(
        client.mcp_servers.ListMcpServers, mcp_server_service_pb2.ListMcpServersRequest(**fields)
    )
    return [server.display_name for server in response.mcp_servers]


def import_file(client, file, **fields):
    text = file if isinstance(file, str) else json.dumps(file)
    request = mcp_server_service_pb2.ImportMcpServersRequest(config_json=text, **fields)
    return client.call(client.mcp_servers.ImportMcpServers, request)


async def export_file(client, *servers):
    request = mcp_server_service_pb2.ExportMcpServersRequest(names=servers)
    return json.loads((await client.call(client.mcp_servers.ExportMcpServers, request)).config_json)


async def full(edge, server):
    """The configuration as a session of the server's owner gets it."""
    async with edge.client("ann") as ann:
        session = await ann.create_session(session_pb2.Session(options=options(server.name)))
    return await resolved(edge, session)


def options(*servers):
    given = [session_pb2.McpServer(name=f"s{at}", registered=name) for at, name in enumerate(servers)]
    return session_pb2.SessionOptions(mcp_servers=given)


async def resolved(edge, session):
    found = session_pb2.SessionOptions()
    found.CopyFrom(session.options)
    box = SecretBox(edge.settings.secret_keys)
    await resolve_registered(edge.database, box, session.name.removeprefix("sessions/"), found)
    return found.mcp_servers[0]


async def test_a_server_is_created_read_listed_changed_and_deleted(client, edge):
    request_id = str(uuid4())
    made = await create(client, "My server", request_id, tags=["x"])
    assert await create(client, "My server", request_id, tags=["x"]) == made
    assert made.config.name == "My-server"
    assert dict(made.config.stdio.env) == {"TOKEN": ""}
    assert made.health.state == mcp_server_pb2.McpServerHealth.STATE_UNKNOWN
    assert await get(client, made.name) == made
    assert await failure(create(client, "My server")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    remote = await create(client, "b", transport={"http": HTTP})
    assert SECRET not in str(remote)
    assert await names(client) == ["b", "My server"]
    assert await names(client, tags=["x", "y"]) == ["My server"]
    assert await names(client, states=[mcp_server_pb2.McpServerHealth.STATE_HEALTHY]) == []
    assert await names(client, order_by="display_name", page_size=1) == ["My server"]
    async with edge.database.connection() as connection:
        for row in await connection.fetch("SELECT config, secrets, extra FROM mcp_servers"):
            assert SECRET.encode() not in row["config"] + row["secrets"] + row["extra"].encode()
    made.config.stdio.args.append("--local-timezone=Etc/UTC")
    changed = await update(client, made, "config", "shared")
    # What was read as empty has stayed what it was.
    assert (await full(edge, changed)).stdio.env["TOKEN"] == SECRET
    assert await failure(update(client, made, "config")) == ("ABORTED", "ETAG_MISMATCH")
    changed.config.stdio.env["TOKEN"] = "other"
    changed = await update(client, changed, "config.stdio.env")
    assert (await full(edge, changed)).stdio.env["TOKEN"] == "other"
    del changed.config.stdio.env["TOKEN"]
    changed = await update(client, changed, "config")
    async with edge.database.connection() as connection:
        assert await connection.fetchval("SELECT secrets FROM mcp_servers WHERE display_name = 'My server'") is None
    remote.config.http.url = "https://other.example/?key=REDACTED"
    assert await failure(update(client, remote, "config")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    remote.display_name = "My server"
    assert await failure(update(client, remote, "display_name")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    await delete(client, made.name)
    assert await failure(get(client, made.name)) == ("NOT_FOUND", "NOT_FOUND")


async def test_all_faults_are_told_at_once(client):
    bad = session_pb2.McpRemote(url="ftp://x", headers={"a": "b\r\nc"})
    with pytest.raises(RpcError) as caught:
        await create(client, "x" * 201, transport={"sse": bad}, tags=["BAD"], description="\0")
    for text in ("display_name", "http://", "line break", "tags", "description"):
        assert text in caught.value.message
    for transport in ({"registered": "mcpServers/00000000-0000-7000-8000-000000000000"}, {"name": "x"}):
        assert await failure(create(client, transport=transport)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    for text in ("[]", r'{"x": "\ud800"}'):
        assert await failure(create(client, extra_json=text)) == ("INVALID_ARGUMENT", "JSON_INVALID")
    assert await failure(create(client, "")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(get(client, "mcpServers/1")) == ("INVALID_ARGUMENT", "NAME_INVALID")


async def test_without_a_key_only_what_has_no_secrets(client, edge):
    servers = edge.use_cases.mcp_servers
    without = edge.settings.model_copy(update={"secret_keys": ()})
    kept, servers._box = servers._box, McpServers(edge.database, servers._doorbell, without)._box
    assert await failure(create(client)) == ("FAILED_PRECONDITION", "NOT_CONFIGURED")
    made = await create(client, transport={"stdio": session_pb2.McpStdio(command="x")})
    servers._box = kept
    made.config.stdio.env["TOKEN"] = SECRET
    made = await update(client, made, "config")
    edge.settings = without
    with pytest.raises(FailedPrecondition, match="AGENTRPC_SECRET_KEYS"):
        await full(edge, made)


async def test_others_see_what_is_shared_and_change_nothing(client, edge):
    own = await create(client, "own")
    shared = await create(client, "shared", shared=True)
    async with edge.client("bob") as bob, edge.client("vic") as vic, edge.client("admin") as admin:
        assert await names(bob) == ["shared"]
        assert await names(bob, owner=own.owner) == ["shared"]
        assert sorted(await names(admin)) == ["own", "shared"]
        for call in (get(bob, own.name), update(bob, own, "shared"), delete(bob, own.name), export_file(bob, own.name)):
            assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
        for call in (update(bob, shared, "shared"), delete(bob, shared.name), create(vic), import_file(vic, {})):
            assert await failure(call) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        check = mcp_server_service_pb2.CheckMcpServerRequest(name=shared.name)
        assert await failure(vic.call(vic.mcp_servers.CheckMcpServer, check)) == (
            "PERMISSION_DENIED",
            "PERMISSION_DENIED",
        )
        await bob.create_session(session_pb2.Session(options=options(shared.name)))
        refused = bob.create_session(session_pb2.Session(options=options(own.name)))
        assert await failure(refused) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_sessions_name_servers_and_are_told_when_they_are_gone(client, edge):
    made = await create(client, "a")
    session = await client.create_session(session_pb2.Session(options=options(made.name)))
    assert session.options.mcp_servers[0].registered == made.name
    found = await resolved(edge, session)
    assert (found.name, found.stdio.command, found.stdio.env["TOKEN"]) == ("s0", "uvx", SECRET)
    bad = session_pb2.Session(options=options("mcpServers/x"))
    assert await failure(client.create_session(bad)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    session.options.model = "other"
    request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=["options"]))
    session = await client.call(client.sessions.UpdateSession, request)
    await delete(client, made.name)
    with pytest.raises(FailedPrecondition, match="deleted or is not shared"):
        await resolved(edge, session)
    session.options.model = "third"
    session.etag = ""
    request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=["options"]))
    assert await failure(client.call(client.sessions.UpdateSession, request)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_what_is_used_is_not_deleted(client):
    made = await create(client)
    options = session_pb2.SessionOptions(mcp_servers=[session_pb2.McpServer(name="s", registered=made.name)])
    agent = await client.call(
        client.agents.CreateAgent,
        agent_service_pb2.CreateAgentRequest(
            agent=agent_pb2.Agent(display_name="a"), version=agent_pb2.AgentVersion(options=options)
        ),
    )
    task = await client.call(
        client.tasks.CreateTask,
        task_service_pb2.CreateTaskRequest(task=task_pb2.Task(display_name="t", prompt_template="x", options=options)),
    )
    with pytest.raises(RpcError) as caught:
        await delete(client, made.name)
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert f"{agent.name}/versions/1" in caught.value.message
    assert task.name in caught.value.message
    await client.call(client.agents.DeleteAgent, agent_service_pb2.DeleteAgentRequest(name=agent.name))
    await client.call(client.tasks.DeleteTask, task_service_pb2.DeleteTaskRequest(name=task.name))
    await delete(client, made.name)


FILE = {
    "mcpServers": {
        "time": {"command": "uvx", "args": ["mcp-server-time"], "disabled": True},
        "git hub": {"type": "http", "url": "https://example.org/mcp?key=k", "headers": {"Authorization": "Bearer t"}},
        "with env": {"command": "npx", "args": [], "env": {"A_TOKEN": "secret", "B": ""}, "alwaysAllow": ["x"]},
    },
    "globalShortcut": "Ctrl+Space",
}


async def test_a_file_goes_in_and_out_and_in_again(client, edge):
    done = await import_file(client, FILE, validate_only=True)
    assert await names(client) == []
    done = await import_file(client, FILE)
    assert [server.display_name for server in done.mcp_servers] == list(FILE["mcpServers"])
    assert (list(done.missing_secrets), list(done.ignored_keys)) == ([], ["globalShortcut"])
    out = await export_file(client)
    assert "secret" not in json.dumps(out)
    assert "Bearer t" not in json.dumps(out)
    wanted = json.loads(json.dumps(FILE["mcpServers"]))
    wanted["git hub"]["url"] = "https://example.org/mcp?key=REDACTED"
    wanted["git hub"]["headers"] = {"Authorization": "${AUTHORIZATION}"}
    wanted["with env"]["env"] = {"A_TOKEN": "${A_TOKEN}", "B": "${B}"}
    assert out == {"mcpServers": wanted}
    # What is stored stays, secrets too.
    out["mcpServers"]["time"]["args"].append("--local-timezone=Etc/UTC")
    again = await import_file(client, out)
    assert [server.name for server in again.mcp_servers] == [server.name for server in done.mcp_servers]
    assert list(again.missing_secrets) == ["with env: env.B"]
    by_name = {server.display_name: server for server in again.mcp_servers}
    assert (await full(edge, by_name["with env"])).stdio.env["A_TOKEN"] == "secret"
    github = (await full(edge, by_name["git hub"])).http
    assert (github.url, dict(github.headers)) == ("https://example.org/mcp?key=k", {"Authorization": "Bearer t"})
    assert await export_file(client) == out
    async with edge.client("bob") as bob:
        # Where nothing is stored a placeholder is only a text, and it is told; a URL without its secret is none.
        del out["mcpServers"]["git hub"]["url"]
        assert await failure(import_file(bob, out)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        out["mcpServers"]["git hub"]["url"] = "https://example.org/mcp?key=REDACTED"
        assert await failure(import_file(bob, out)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert await names(bob) == []
        out["mcpServers"]["git hub"]["url"] = "https://example.org/mcp"
        done = await import_file(bob, out, shared=True)
        assert set(done.missing_secrets) == {
            "git hub: headers.Authorization",
            "with env: env.A_TOKEN",
            "with env: env.B",
        }


async def test_files_that_are_none(client):
    for text in (
        "",
        "[]",
        "{",
        '{"mcpServers": []}',
        '{"a": 1}',
        '{"mcpServers": {"a": 1}}',
        '{"mcpServers": {"": {}}}',
        r'{"mcpServers": {"a": {"command": "\ud800"}}}',
    ):
        assert (await failure(import_file(client, text)))[0] == "INVALID_ARGUMENT", text
    with pytest.raises(RpcError) as caught:
        await import_file(client, {"mcpServers": {"a": {"command": 1}, "b": {"command": "x", "env": {"P": 1}}}})
    assert "mcpServers[a].command" in caught.value.message
    assert "mcpServers[b].env.P" in caught.value.message
    many = {"mcpServers": {str(at): {"command": "x"} for at in range(101)}}
    assert await failure(import_file(client, many)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    for half in range(2):
        await import_file(client, {"mcpServers": {f"{half}-{at}": {"command": "x"} for at in range(100)}})
    assert await failure(create(client, "one more")) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")


async def test_a_file_of_an_editor_that_marks_its_byte_order(client):
    [server] = (await import_file(client, '\ufeff{"mcpServers":{"a":{"command":"npx"}}}')).mcp_servers
    assert server.config.stdio.command == "npx"


async def test_the_place_of_a_fault_is_told(client):
    text = '{\n  "mcpServers": {\n    "files": {\n      "command": "npx",\n      "args": ["-y"],\n    }\n  }\n}\n'
    with pytest.raises(RpcError) as caught:
        await import_file(client, text)
    assert caught.value.reason == "JSON_INVALID"
    assert re.search(r"line [56], column \d+", caught.value.message)


async def test_placeholders_are_named_as_missing_and_do_not_replace_what_is_stored(client, edge):
    env = {"TOKEN": "${MY_TOKEN}", "B": "${X:-}", "C": "${env:X}", "FINE": "$5 {x}"}
    headers = {"Authorization": "Bearer ${API_KEY}"}
    file = {
        "mcpServers": {
            "a": {"command": "npx", "args": ["-y", "${PACKAGE}"], "env": env},
            "b": {"type": "http", "url": "https://${HOST}/mcp?key=${KEY}", "headers": headers},
        }
    }
    made = await import_file(client, file)
    assert list(made.missing_secrets) == [
        "a: env.B", "a: env.C", "a: env.TOKEN", "a: args[1]", "b: headers.Authorization", "b: url",
    ]  # fmt: skip
    first = made.mcp_servers[0]
    first.config.stdio.env["TOKEN"] = SECRET
    await update(client, first, "config")
    again = await import_file(client, file)
    assert "a: env.TOKEN" not in again.missing_secrets
    assert (await full(edge, again.mcp_servers[0])).stdio.env["TOKEN"] == SECRET


async def test_transport_says_what_type_says(client):
    entry = {"url": "https://mcp.example.com/sse", "transport": "sse"}
    [server] = (await import_file(client, {"mcpServers": {"old": entry}})).mcp_servers
    assert server.config.sse.url == entry["url"]
    assert await export_file(client, server.name) == {"mcpServers": {"old": entry}}
    for wrong in (
        {**entry, "transport": "carrier pigeon"},
        {**entry, "type": "http"},
        {"command": "x", "transport": "sse"},
    ):
        assert await failure(import_file(client, {"mcpServers": {"new": wrong}})) == (
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
        )


async def test_the_catalogue_holds_what_can_be_registered(client):
    request = mcp_server_service_pb2.ListMcpServerCatalogueRequest()
    found = (await client.call(client.mcp_servers.ListMcpServerCatalogue, request)).templates
    assert {"time", "github", "builtin-memory"} <= {one.name for one in found}
    assert len({one.name for one in found}) == len(found)
    for one in found:
        if not one.builtin:
            await create(client, one.name, config=one.config)
