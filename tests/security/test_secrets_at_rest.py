"""Secrets of inline MCP servers: never in the clear in the store, whole where they are used."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.errors import FailedPrecondition
from agentrpc.names import parse_session
from agentrpc.services.registered_mcp import resolve_registered
from agentrpc.services.sealing import seal_stored_options
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_host.lifecycle import load_options
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

SECRETS = ("ENV-SECRET", "HEADER-SECRET", "URL-SECRET", "USER-SECRET")
URL = "https://me:USER-SECRET@example.org/mcp?key=URL-SECRET"


def options(**more):
    return session_pb2.SessionOptions(
        mcp_servers=[
            session_pb2.McpServer(name="a", stdio=session_pb2.McpStdio(command="x", env={"TOKEN": "ENV-SECRET"})),
            session_pb2.McpServer(name="b", http=session_pb2.McpRemote(url=URL, headers={"Auth": "HEADER-SECRET"})),
        ],
        **more,
    )


def box(edge):
    return SecretBox(edge.settings.secret_keys)


async def stored(edge):
    """Everything that the tables of options hold."""
    statement = (
        "SELECT options FROM sessions UNION ALL SELECT options FROM agent_versions UNION ALL SELECT spec FROM tasks"
    )
    async with edge.database.connection() as connection:
        return [bytes(row[0]) for row in await connection.fetch(statement)]


async def used(edge, session):
    """The options as a process is started with them."""
    session_id = parse_session(session.name)
    found = session_pb2.SessionOptions.FromString(await load_options(edge.database, session_id))
    await resolve_registered(edge.database, box(edge), session_id, found)
    return found


def update(client, session, *paths):
    request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=paths))
    return client.call(client.sessions.UpdateSession, request)


def create_agent(client, **more):
    request = agent_service_pb2.CreateAgentRequest(
        agent=agent_pb2.Agent(display_name="agent", shared=True),
        version=agent_pb2.AgentVersion(options=options(**more)),
    )
    return client.call(client.agents.CreateAgent, request)


def shows_nothing(message):
    assert not [secret for secret in SECRETS if secret in str(message)], message
    assert "sealed:" not in str(message)


async def test_nothing_is_stored_in_the_clear_and_all_of_it_is_used(client, edge):
    session = await client.create_session(session_pb2.Session(options=options()))
    agent = await create_agent(client)
    await client.create_session(session_pb2.Session(agent=agent.name))
    task = task_pb2.Task(display_name="t", prompt_template="x", options=options())
    task = await client.call(client.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=task))
    for message in (session, agent, task):
        shows_nothing(message)
    assert session.options.mcp_servers[1].http.url == "https://REDACTED@example.org/mcp?key=REDACTED"
    rows = await stored(edge)
    assert len(rows) == 4
    for row in rows:
        assert not [secret for secret in SECRETS if secret.encode() in row]
    assert await used(edge, session) == options()
    # What comes back as it was read stays as it is; what is new is sealed too.
    session.options.mcp_servers[0].stdio.env["TOKEN"] = "NEW-SECRET"
    session.options.model = "other"
    session = await update(client, session, "options")
    found = await used(edge, session)
    assert found.mcp_servers[0].stdio.env["TOKEN"] == "NEW-SECRET"
    assert found.mcp_servers[1] == options().mcp_servers[1]
    assert not [row for row in await stored(edge) if b"NEW-SECRET" in row]
    task.options.model = "other"
    task.etag = ""
    task = await client.call(client.tasks.UpdateTask, task_service_pb2.UpdateTaskRequest(task=task))
    shows_nothing(task)
    request = agent_service_pb2.CreateAgentVersionRequest(
        parent=agent.name, version=agent_pb2.AgentVersion(options=session.options), make_default=True
    )
    shows_nothing(await client.call(client.agents.CreateAgentVersion, request))
    made = await client.create_session(session_pb2.Session(agent=agent.name))
    assert (await used(edge, made)).mcp_servers[1] == options().mcp_servers[1]


async def test_a_change_of_something_else_leaves_what_is_sealed_as_it_is(client, edge):
    session = await client.create_session(session_pb2.Session(options=options()))
    before = await stored(edge)
    session.display_name = "other"
    session.options.mcp_servers[0].stdio.env["TOKEN"] = ""
    await update(client, session, "display_name", "options")
    # The process goes on: its options are the same, to the letter.
    assert await stored(edge) == before


async def test_nobody_writes_what_is_sealed_himself(client, edge):
    await client.create_session(session_pb2.Session(options=options()))
    [row] = await stored(edge)
    taken = session_pb2.SessionOptions.FromString(row)
    with pytest.raises(RpcError) as caught:
        await client.create_session(session_pb2.Session(options=taken))
    assert caught.value.reason == "FIELD_INVALID"


async def test_without_a_key_options_have_no_secrets(client, edge, monkeypatch):
    monkeypatch.setattr(edge.sessions, "_box", SecretBox(()))
    with pytest.raises(RpcError) as caught:
        await client.create_session(session_pb2.Session(options=options()))
    assert caught.value.reason == "NOT_CONFIGURED"
    plain = session_pb2.McpServer(name="r", http=session_pb2.McpRemote(url="https://example.org/mcp"))
    await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(mcp_servers=[plain])))


async def test_what_was_stored_in_the_clear_is_sealed_once(client, edge):
    session = await client.create_session(session_pb2.Session(options=options()))
    agent = await create_agent(client)
    task = task_pb2.Task(display_name="t", prompt_template="x", options=options())
    await client.call(client.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=task))
    # As it was before.
    clear = options().SerializeToString()
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE sessions SET options = $1", clear)
        await connection.execute("UPDATE agent_versions SET options = $1", clear)
        await connection.execute("UPDATE tasks SET spec = $1", task_pb2.Task(options=options()).SerializeToString())
    # It works as it is, until it is sealed.
    assert await used(edge, session) == options()
    assert await seal_stored_options(edge.database, edge.settings.model_copy(update={"secret_keys": ()})) == 0
    assert await seal_stored_options(edge.database, edge.settings) == 3
    rows = await stored(edge)
    assert not [row for row in rows for secret in SECRETS if secret.encode() in row]
    assert await used(edge, session) == options()
    made = await client.create_session(session_pb2.Session(agent=agent.name))
    assert await used(edge, made) == options()
    # A pass that finds nothing is the last.
    assert await seal_stored_options(edge.database, edge.settings) == 0
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE sessions SET options = $1", clear)
    assert await seal_stored_options(edge.database, edge.settings) == 0


# ---- Shared servers ----


def register(client, command, **more):
    config = session_pb2.McpServer(stdio=session_pb2.McpStdio(command=command))
    given = mcp_server_pb2.RegisteredMcpServer(display_name="shared", shared=True, config=config, **more)
    request = mcp_server_service_pb2.CreateMcpServerRequest(mcp_server=given)
    return client.call(client.mcp_servers.CreateMcpServer, request)


def change(client, server, *paths):
    server.etag = ""
    request = mcp_server_service_pb2.UpdateMcpServerRequest(mcp_server=server, update_mask=FieldMask(paths=paths))
    return client.call(client.mcp_servers.UpdateMcpServer, request)


def naming(server, **more):
    named = session_pb2.McpServer(name="s", registered=server.name, **more)
    return session_pb2.Session(options=session_pb2.SessionOptions(mcp_servers=[named]))


async def test_a_server_that_its_owner_changes_is_accepted_anew_by_others(client, edge):
    server = await register(client, "good")
    assert server.config_revision == 1
    async with edge.client("bob") as bob:
        theirs = await bob.create_session(naming(server))
        own = await client.create_session(naming(server))
        assert theirs.options.mcp_servers[0].accepted_revision == 1
        server.description = "what it is called changes nothing"
        server = await change(client, server, "description")
        assert (await used(edge, theirs)).mcp_servers[0].stdio.command == "good"
        server.config.stdio.command = "evil"
        server = await change(client, server, "config")
        assert server.config_revision == 2
        with pytest.raises(FailedPrecondition, match="was changed since revision 1 was accepted") as caught:
            await used(edge, theirs)
        assert caught.value.reason == "STATE_INVALID"
        # Its owner has changed it himself.
        assert (await used(edge, own)).mcp_servers[0].stdio.command == "evil"
        # A change of something else accepts nothing.
        theirs.options.model = "other"
        theirs = await update(bob, theirs, "options")
        with pytest.raises(FailedPrecondition):
            await used(edge, theirs)
        theirs.options.mcp_servers[0].accepted_revision = 3
        with pytest.raises(RpcError) as wrong:
            await update(bob, theirs, "options")
        assert wrong.value.reason == "FIELD_INVALID"
        theirs.options.mcp_servers[0].accepted_revision = 2
        theirs = await update(bob, theirs, "options")
        assert (await used(edge, theirs)).mcp_servers[0].stdio.command == "evil"
        server.config.stdio.env["LD_PRELOAD"] = "x"
        server = await change(client, server, "config")
        with pytest.raises(FailedPrecondition):
            await used(edge, theirs)
        theirs.options.mcp_servers[0].accepted_revision = 0
        theirs = await update(bob, theirs, "options")
        assert theirs.options.mcp_servers[0].accepted_revision == 3


async def test_agents_accept_for_the_sessions_that_are_made_from_them(client, edge):
    server = await register(client, "good")
    async with edge.client("bob") as bob:
        request = agent_service_pb2.CreateAgentRequest(
            agent=agent_pb2.Agent(display_name="a"), version=agent_pb2.AgentVersion(options=naming(server).options)
        )
        agent = await bob.call(bob.agents.CreateAgent, request)
        server.config.stdio.command = "evil"
        await change(client, server, "config")
        session = await bob.create_session(session_pb2.Session(agent=agent.name))
        with pytest.raises(FailedPrecondition, match="was changed"):
            await used(edge, session)
