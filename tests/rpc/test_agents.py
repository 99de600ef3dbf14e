"""Agents, their versions and tool groups over a real socket; what sessions get from them."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import text

from agentrpc.client import RpcError
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import NotFound
from agentrpc.names import parse_agent
from agentrpc.services import agent_options
from agentrpc.services.secrets import SecretBox
from agentrpc.store.agents import count_use
from agentrpc.store.tables import Session as SessionRow
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    common_pb2,
    errors_pb2,
    session_pb2,
    session_service_pb2,
    tool_group_pb2,
    tool_group_service_pb2,
)

NOBODY = "00000000-0000-7000-8000-000000000000"
Agent, Version, Options = agent_pb2.Agent, agent_pb2.AgentVersion, session_pb2.SessionOptions
ToolGroup = tool_group_pb2.ToolGroup


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    errors_pb2.ErrorReason.Value(f"ERROR_REASON_{caught.value.reason}")
    return caught.value.reason


async def message_of(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.message


async def create(client, options=None, groups=(), request_id="", **fields):
    request = agent_service_pb2.CreateAgentRequest(
        agent=Agent(**{"display_name": "an agent", **fields}),
        version=Version(options=options or Options(), tool_groups=groups),
        request_id=request_id,
    )
    return await client.call(client.agents.CreateAgent, request)


async def add_version(client, agent, options=None, groups=(), **fields):
    version = Version(options=options or Options(), tool_groups=groups, note=fields.pop("note", ""))
    request = agent_service_pb2.CreateAgentVersionRequest(parent=agent, version=version, **fields)
    return await client.call(client.agents.CreateAgentVersion, request)


async def get(client, name):
    return await client.call(client.agents.GetAgent, agent_service_pb2.GetAgentRequest(name=name))


async def get_version(client, name):
    return await client.call(client.agents.GetAgentVersion, agent_service_pb2.GetAgentVersionRequest(name=name))


async def versions_of(client, name, **fields):
    request = agent_service_pb2.ListAgentVersionsRequest(parent=name, **fields)
    return await client.call(client.agents.ListAgentVersions, request)


async def find(client, **fields):
    found = await client.call(client.agents.ListAgents, agent_service_pb2.ListAgentsRequest(**fields))
    return [agent.display_name for agent in found.agents]


async def update(client, agent, *paths, **fields):
    given = Agent(name=agent if isinstance(agent, str) else agent.name, **fields)
    request = agent_service_pb2.UpdateAgentRequest(agent=given, update_mask=FieldMask(paths=paths) if paths else None)
    return await client.call(client.agents.UpdateAgent, request)


async def delete(client, name, etag=""):
    await client.call(client.agents.DeleteAgent, agent_service_pb2.DeleteAgentRequest(name=name, etag=etag))


async def create_group(client, **fields):
    group = ToolGroup(**{"display_name": "a group", **fields})
    return await client.call(
        client.tool_groups.CreateToolGroup, tool_group_service_pb2.CreateToolGroupRequest(tool_group=group)
    )


async def update_group(client, group, *paths):
    request = tool_group_service_pb2.UpdateToolGroupRequest(
        tool_group=group, update_mask=FieldMask(paths=paths) if paths else None
    )
    return await client.call(client.tool_groups.UpdateToolGroup, request)


async def delete_group(client, name):
    await client.call(client.tool_groups.DeleteToolGroup, tool_group_service_pb2.DeleteToolGroupRequest(name=name))


async def start(client, agent, **options):
    return await client.create_session(session_pb2.Session(agent=agent, options=Options(**options)))


@asynccontextmanager
async def everyone(edge):
    ann, bob, vic, admin = (edge.client(name) for name in ("ann", "bob", "vic", "admin"))
    async with ann, bob, vic, admin:
        yield ann, bob, vic, admin


# ---- Agents and their versions ----


async def test_an_agent_is_created_read_changed_and_deleted(client):
    made = await create(client, Options(model="m"), display_name="Reviewer", category="code", tags=["git"])
    assert made.default_version == made.newest_version == f"{made.name}/versions/1"
    assert made.owner.startswith("users/")
    assert await get(client, made.name) == made
    changed = await update(client, made, display_name="Critic", labels={"team": "x"})
    assert (changed.display_name, changed.category, dict(changed.labels)) == ("Critic", "code", {"team": "x"})
    assert changed.etag != made.etag
    assert changed.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    assert await failure(update(client, made, etag=made.etag, display_name="x")) == "ETAG_MISMATCH"
    assert await failure(delete(client, made.name, made.etag)) == "ETAG_MISMATCH"
    # What is the same changes nothing; output-only fields are passed over; a mask empties what it names.
    assert await update(client, changed, display_name="Critic", usage_count=7, owner="users/x") == changed
    assert not (await update(client, changed, "category")).category
    await delete(client, made.name)
    assert await failure(get(client, made.name)) == "NOT_FOUND"
    assert await failure(delete(client, made.name)) == "NOT_FOUND"
    assert await find(client) == []
    assert await find(client, show_deleted=True) == ["Critic"]


async def test_deleted_agents_are_their_owners_alone_shared_or_not(edge, client):
    made = await create(client, display_name="Critic", shared=True)
    async with edge.client("bob") as bob, edge.client("admin") as admin:
        assert await find(bob, show_deleted=True) == ["Critic"]
        await delete(client, made.name)
        assert await find(bob, show_deleted=True) == []
        for one in (client, admin):
            assert await find(one, show_deleted=True) == ["Critic"]


async def test_versions_are_numbered_and_never_change(client):
    agent = await create(client, Options(model="one"))
    first = await get_version(client, agent.newest_version)
    second = await add_version(client, agent.name, Options(model="two"), note="better")
    assert second.name == f"{agent.name}/versions/2"
    assert (second.note, second.options.model) == ("better", "two")
    assert await get_version(client, agent.newest_version) == first
    after = await get(client, agent.name)
    assert (after.default_version, after.newest_version) == (first.name, second.name)
    assert after.etag != agent.etag
    third = await add_version(client, agent.name, make_default=True, etag=after.etag)
    assert (await get(client, agent.name)).default_version == third.name
    assert await failure(add_version(client, agent.name, etag=after.etag)) == "ETAG_MISMATCH"
    assert (await update(client, agent, default_version=second.name)).default_version == second.name
    assert [version.name[-1] for version in (await versions_of(client, agent.name)).versions] == ["3", "2", "1"]
    page = await versions_of(client, agent.name, page_size=2)
    rest = await versions_of(client, agent.name, page_size=2, page_token=page.next_page_token)
    assert [version.name[-1] for version in [*page.versions, *rest.versions]] == ["3", "2", "1"]
    assert not rest.next_page_token
    names = {method.name for method in agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].methods}
    assert not {"UpdateAgentVersion", "DeleteAgentVersion"} & names


async def test_versions_that_are_created_at_once_get_numbers_without_a_gap(client):
    agent = await create(client)
    made = await asyncio.gather(*(add_version(client, agent.name, make_default=n % 2 == 0) for n in range(20)))
    assert sorted(int(version.name.rpartition("/")[2]) for version in made) == list(range(2, 22))
    assert (await get(client, agent.name)).newest_version == f"{agent.name}/versions/21"


async def test_a_page_of_large_versions_stays_below_a_mebibyte(client):
    prompt = session_pb2.SystemPrompt(custom="x" * 250 * 1024)
    agent = await create(client, Options(system_prompt=prompt))
    for _ in range(5):
        await add_version(client, agent.name, Options(system_prompt=prompt))
    seen, token = [], ""
    while True:
        page = await versions_of(client, agent.name, page_token=token)
        assert page.ByteSize() < 1024 * 1024 + 1000
        seen += [int(version.name[-1]) for version in page.versions]
        token = page.next_page_token
        if not token:
            break
    assert seen == [6, 5, 4, 3, 2, 1]


async def test_a_request_id_makes_one_agent_and_one_version_however_often(client):
    request_id = str(uuid4())
    made = await asyncio.gather(*(create(client, request_id=request_id) for _ in range(50)))
    assert len({agent.name for agent in made}) == 1
    assert await find(client) == ["an agent"]
    assert await failure(create(client, request_id=request_id, display_name="x")) == "REQUEST_ID_REUSED"
    assert await failure(create(client, request_id="x")) == "FIELD_INVALID"
    agent = made[0]
    request_id = str(uuid4())
    # The etag is the one of before, for all of them.
    versions = await asyncio.gather(
        *(add_version(client, agent.name, request_id=request_id, etag=agent.etag) for _ in range(50))
    )
    assert {version.name for version in versions} == {f"{agent.name}/versions/2"}
    assert len((await versions_of(client, agent.name)).versions) == 2
    group = tool_group_service_pb2.CreateToolGroupRequest(
        tool_group=ToolGroup(display_name="g"), request_id=str(uuid4())
    )
    groups = await asyncio.gather(*(client.call(client.tool_groups.CreateToolGroup, group) for _ in range(50)))
    assert len({one.name for one in groups}) == 1


async def test_bad_agents(client):
    agent = await create(client)
    other = await create(client)
    for fields, field in [
        ({"display_name": ""}, "agent.display_name"),
        ({"display_name": "x" * 201}, "agent.display_name"),
        ({"display_name": "a\0b"}, "agent.display_name"),
        ({"description": "x" * 4001}, "agent.description"),
        ({"category": "Code Review"}, "agent.category"),
        ({"tags": ["a", "a"]}, "agent.tags"),
        ({"tags": [str(n) for n in range(65)]}, "agent.tags"),
        ({"tags": ["\0"]}, "agent.tags"),
        ({"labels": {"BAD": "x"}}, "agent.labels"),
        ({"default_version": f"{agent.name}/versions/1"}, "agent.default_version"),
        ({"options": Options(max_turns=0)}, "version.options.max_turns"),
        ({"options": Options(permission_mode=99)}, "version.options.permission_mode"),
    ]:
        assert field in await message_of(create(client, **fields)), field
    everything = await message_of(create(client, Options(allowed_tools=["a b"]), display_name="", category="X"))
    for field in ("agent.display_name", "agent.category", "version.options.allowed_tools"):
        assert field in everything
    assert await failure(create(client, Options(output_schema_json="[1]"))) == "JSON_INVALID"
    assert await failure(add_version(client, agent.name, note="x" * 1001)) == "FIELD_INVALID"
    assert await failure(update(client, agent, "nope")) == "UPDATE_MASK_INVALID"
    assert await failure(update(client, agent, "display_name")) == "FIELD_INVALID"
    for version, reason in [
        ("", "NAME_INVALID"),
        (agent.name, "NAME_INVALID"),
        (f"{agent.name}/versions/0", "NAME_INVALID"),
        (f"{agent.name}/versions/2", "FIELD_INVALID"),
        (f"{other.name}/versions/1", "FIELD_INVALID"),
    ]:
        assert await failure(update(client, agent, "default_version", default_version=version)) == reason
    for name in ["", "agents/1", "agents/x", agent.name.upper(), f"{agent.name}/versions/1"]:
        assert await failure(get(client, name)) == "NAME_INVALID"
    for name in [f"{agent.name}/versions/{n}" for n in ("0", "-1", "01", "x", "99999999999")]:
        assert await failure(get_version(client, name)) == "NAME_INVALID"
    assert await failure(get_version(client, f"{agent.name}/versions/2")) == "NOT_FOUND"
    for call in (get, delete, add_version, versions_of):
        assert await failure(call(client, f"agents/{NOBODY}")) == "NOT_FOUND"
    for fields, reason in [
        ({"page_size": -1}, "FIELD_INVALID"),
        ({"order_by": "owner"}, "FIELD_INVALID"),
        ({"query": "x" * 201}, "FIELD_INVALID"),
        ({"query": "\0", "category": "\0", "tags": ["\0"], "labels": {"\0": "\0"}}, "FIELD_INVALID"),
        ({"owner": "x"}, "NAME_INVALID"),
        ({"page_token": "x"}, "PAGE_TOKEN_INVALID"),
    ]:
        assert await failure(find(client, **fields)) == reason
    assert await failure(versions_of(client, agent.name, page_token="x")) == "PAGE_TOKEN_INVALID"


# ---- Finding ----


async def test_agents_are_searched_by_words_categories_tags_and_labels(client):
    await create(client, display_name="Log Reader", description="Finds 100% of faults", category="ops", tags=["logs"])
    await create(client, display_name="Reviewer", category="code", tags=["git", "python"], labels={"team": "x"})
    await create(client, display_name="Release_Notes", category="code", tags=["git"], labels={"team": "x", "a": "b"})
    by_name = {"order_by": "display_name"}
    assert await find(client, query="LOG", **by_name) == ["Log Reader"]
    assert await find(client, query="re", **by_name) == ["Log Reader", "Release_Notes", "Reviewer"]
    assert await find(client, query="code view") == ["Reviewer"]
    assert await find(client, query="python") == ["Reviewer"]
    # What LIKE knows are plain characters.
    assert await find(client, query="100%") == ["Log Reader"]
    assert await find(client, query="e_N") == ["Release_Notes"]
    assert await find(client, query="g_r") == await find(client, query="\\") == []
    assert await find(client, category="code", **by_name) == ["Release_Notes", "Reviewer"]
    assert await find(client, tags=["git", "python"]) == ["Reviewer"]
    assert await find(client, labels={"team": "x", "a": "b"}) == ["Release_Notes"]
    assert await find(client, category="code", query="logs") == []


async def test_the_most_used_come_first_over_pages(client):
    uses = {"a": 2, "b": 5, "c": 0, "d": 2, "e": 11}
    agents = {name: await create(client, display_name=name) for name in uses}
    for name, count in uses.items():
        await asyncio.gather(*(start(client, agents[name].name) for _ in range(count)))
    seen, token = [], ""
    while True:
        request = agent_service_pb2.ListAgentsRequest(
            page_size=2, order_by="usage_count desc, display_name", page_token=token
        )
        page = await client.call(client.agents.ListAgents, request)
        seen += [(agent.display_name, agent.usage_count) for agent in page.agents]
        token = page.next_page_token
        if not token:
            break
    assert seen == [("e", 11), ("b", 5), ("a", 2), ("d", 2), ("c", 0)]
    used, unused = await get(client, agents["e"].name), await get(client, agents["c"].name)
    assert used.last_used_time.ToNanoseconds() > used.create_time.ToNanoseconds()
    assert not unused.HasField("last_used_time")
    # Use does not move the etag.
    assert used.etag == agents["e"].etag


async def test_uses_at_once_are_all_counted_and_wait_for_nobody(edge, client):
    agent = await create(client)
    await start(client, agent.name)
    async with edge.database.transaction() as slow:
        # One who creates a session and does not come to an end. Whoever waited for it would fail by lock_timeout.
        await slow.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await count_use(slow, parse_agent(agent.name))
        made = await asyncio.gather(*(start(client, agent.name) for _ in range(50)))
        assert len({session.name for session in made}) == 50
        assert (await get(client, agent.name)).usage_count == 51
        await update(client, agent, display_name="x")
    assert (await get(client, agent.name)).usage_count == 52
    request_id = str(uuid4())
    wanted = session_pb2.Session(agent=agent.name)
    again = await asyncio.gather(*(client.create_session(wanted, request_id=request_id) for _ in range(50)))
    assert len({session.name for session in again}) == 1
    checked = session_service_pb2.CreateSessionRequest(session=wanted, validate_only=True)
    assert (await client.call(client.sessions.CreateSession, checked)).agent == agent.default_version
    assert (await get(client, agent.name)).usage_count == 53


# ---- Sessions from agents ----


async def test_a_session_pins_a_version(client):
    agent = await create(client, Options(model="one"))
    session = await start(client, agent.name)
    assert (session.agent, session.options.model) == (agent.default_version, "one")
    second = await add_version(client, agent.name, Options(model="two"), make_default=True)
    assert await client.get_session(session.name) == session
    assert (await start(client, agent.name)).agent == second.name
    old = await start(client, agent.default_version)
    assert (old.agent, old.options.model) == (agent.default_version, "one")
    fork = await client.fork_session(session.name)
    assert (fork.agent, fork.options) == (session.agent, session.options)
    assert (await get(client, agent.name)).usage_count == 3
    request = session_service_pb2.UpdateSessionRequest(
        session=session_pb2.Session(name=session.name, agent=second.name), update_mask=FieldMask(paths=["agent"])
    )
    assert (await client.call(client.sessions.UpdateSession, request)).agent == session.agent

    async def listed(name):
        request = session_service_pb2.ListSessionsRequest(agent=name)
        return {found.name for found in (await client.call(client.sessions.ListSessions, request)).sessions}

    plain = await client.create_session()
    assert not plain.agent
    assert await listed(agent.default_version) == {session.name, old.name, fork.name}
    assert len(await listed(agent.name)) == 4
    assert await listed(f"agents/{NOBODY}") == set()
    await delete(client, agent.name)
    assert await client.get_session(session.name) == session
    assert await failure(start(client, agent.name)) == "NOT_FOUND"
    assert await failure(start(client, agent.default_version)) == "NOT_FOUND"


async def test_what_is_set_for_a_session_wins_over_the_agent(client):
    servers = [session_pb2.McpServer(name=name, stdio=session_pb2.McpStdio(command=name)) for name in ("a", "b")]
    agent = await create(
        client,
        Options(
            model="one",
            system_prompt=session_pb2.SystemPrompt(append="be kind"),
            tools=session_pb2.ToolSet(names=["Read", "Bash"]),
            allowed_tools=["Read", "Grep"],
            disallowed_tools=["WebFetch"],
            permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK,
            max_turns=5,
            deltas=False,
            checkpoints=True,
            mcp_servers=servers,
            thinking=session_pb2.Thinking(budget_tokens=2000, summarized=True),
        ),
    )
    plain = (await start(client, agent.name)).options
    assert plain == (await get_version(client, agent.default_version)).options
    options = (
        await start(
            client,
            agent.name,
            model="two",
            system_prompt=session_pb2.SystemPrompt(custom="be brief"),
            tools=session_pb2.ToolSet(),
            allowed_tools=["Glob"],
            mcp_servers=servers[1:],
            thinking=session_pb2.Thinking(adaptive=True),
            deltas=True,
        )
    ).options
    assert (options.model, options.system_prompt.custom, options.system_prompt.append) == ("two", "be brief", "")
    assert options.HasField("tools")
    assert not options.tools.names
    assert list(options.allowed_tools) == ["Glob"]
    assert [server.name for server in options.mcp_servers] == ["b"]
    assert options.thinking == session_pb2.Thinking(adaptive=True)
    assert options.deltas
    # What is not set is the agent's.
    assert list(options.disallowed_tools) == ["WebFetch"]
    assert (options.max_turns, options.checkpoints) == (5, True)
    assert options.permission_mode == common_pb2.PERMISSION_MODE_DONT_ASK
    assert await failure(start(client, agent.name, max_turns=0)) == "FIELD_INVALID"


async def test_sessions_get_secrets_that_no_read_gives(edge, client):
    url, shown = (
        "http://ann:pass@x.example/mcp?key=pass&a=pass",
        "http://REDACTED@x.example/mcp?key=REDACTED&a=REDACTED",
    )

    def options(**env):
        stdio = session_pb2.McpStdio(command="x", env=env)
        http = session_pb2.McpRemote(url=url, headers={"Authorization": "token"})
        return Options(
            mcp_servers=[session_pb2.McpServer(name="s", stdio=stdio), session_pb2.McpServer(name="h", http=http)]
        )

    async def stored(session):
        async with edge.database.transaction() as tx:
            row = await tx.get_one(SessionRow, session.name.removeprefix("sessions/"))
        options = Options.FromString(row.options)
        SecretBox(edge.settings.secret_keys).open_options(options)
        return options.mcp_servers

    agent = await create(client, options(KEY="secret"))
    read = await get_version(client, agent.default_version)
    assert dict(read.options.mcp_servers[0].stdio.env) == {"KEY": ""}
    assert dict(read.options.mcp_servers[1].http.headers) == {"Authorization": ""}
    assert read.options.mcp_servers[1].http.url == shown
    assert (await versions_of(client, agent.name)).versions[0] == read
    session = await start(client, agent.name)
    assert dict(session.options.mcp_servers[0].stdio.env) == {"KEY": ""}
    assert session.options.mcp_servers[1].http.url == shown
    assert dict((await stored(session))[0].stdio.env) == {"KEY": "secret"}
    assert dict((await stored(session))[1].http.headers) == {"Authorization": "token"}
    # What was read is the beginning of the next version; secrets that came back empty are those of the newest.
    read.options.model = "m"
    second = await add_version(client, agent.name, read.options)
    assert dict(second.options.mcp_servers[0].stdio.env) == {"KEY": ""}
    kept = await stored(await start(client, second.name))
    assert (dict(kept[0].stdio.env), dict(kept[1].http.headers)) == ({"KEY": "secret"}, {"Authorization": "token"})
    assert kept[1].http.url == url
    # Not for one who puts servers of their own in their place.
    own = await stored(await start(client, agent.name, mcp_servers=read.options.mcp_servers[:1]))
    assert dict(own[0].stdio.env) == {"KEY": ""}
    assert await failure(start(client, agent.name, mcp_servers=read.options.mcp_servers)) == "FIELD_INVALID"
    read.options.mcp_servers[1].http.url = shown.replace("x.example", "y.example")
    assert await failure(add_version(client, agent.name, read.options)) == "FIELD_INVALID"
    assert await failure(create(client, read.options)) == "FIELD_INVALID"


async def test_bad_references_to_agents(client):
    agent = await create(client)
    for name in ["x", "agents/x", f"{agent.name}/versions/", f"{agent.name}/versions/0", agent.name.upper()]:
        assert await failure(start(client, name)) == "NAME_INVALID"
        request = session_service_pb2.ListSessionsRequest(agent=name)
        assert await failure(client.call(client.sessions.ListSessions, request)) == "NAME_INVALID"
    for name in [f"agents/{NOBODY}", f"agents/{NOBODY}/versions/1", f"{agent.name}/versions/2"]:
        assert await failure(start(client, name)) == "NOT_FOUND"
    assert (await get(client, agent.name)).usage_count == 0


# ---- Tool groups ----


async def test_a_tool_group_is_created_read_listed_changed_and_deleted(client):
    made = await create_group(client, display_name="only read", allowed_tools=["Read"], disallowed_tools=["mcp__*"])
    request = tool_group_service_pb2.GetToolGroupRequest(name=made.name)
    assert await client.call(client.tool_groups.GetToolGroup, request) == made
    await create_group(client, display_name="no net", disallowed_tools=["WebFetch"])

    async def found(**fields):
        request = tool_group_service_pb2.ListToolGroupsRequest(**fields)
        return [
            group.display_name for group in (await client.call(client.tool_groups.ListToolGroups, request)).tool_groups
        ]

    assert await found() == ["no net", "only read"]
    assert await found(query="READ only") == ["only read"]
    assert await found(order_by="display_name desc", page_size=1) == ["only read"]
    assert await failure(found(order_by="usage_count")) == "FIELD_INVALID"
    assert await failure(found(page_token="x")) == "PAGE_TOKEN_INVALID"
    changed = await update_group(client, ToolGroup(name=made.name, allowed_tools=["Grep", "Glob"]))
    assert list(changed.allowed_tools) == ["Grep", "Glob"]
    assert list(changed.disallowed_tools) == ["mcp__*"]
    stale = ToolGroup(name=made.name, etag=made.etag, description="x")
    assert await failure(update_group(client, stale)) == "ETAG_MISMATCH"
    assert not (await update_group(client, ToolGroup(name=made.name), "allowed_tools")).allowed_tools
    await delete_group(client, made.name)
    assert await failure(delete_group(client, made.name)) == "NOT_FOUND"
    assert await found() == ["no net"]


async def test_bad_tool_groups(client):
    text = await message_of(create_group(client, display_name=" ", allowed_tools=["a b"], disallowed_tools=["Bash("]))
    for field in ("tool_group.display_name", "tool_group.allowed_tools", "tool_group.disallowed_tools"):
        assert field in text
    assert await failure(create_group(client, disallowed_tools=["Read"] * 1001)) == "FIELD_INVALID"
    group = await create_group(client)
    assert await failure(update_group(client, group, "nope")) == "UPDATE_MASK_INVALID"
    assert await failure(update_group(client, ToolGroup(name="toolGroups/x"))) == "NAME_INVALID"
    for call in (create(client, groups=["x"]), create(client, groups=[group.name.upper()])):
        assert await failure(call) == "NAME_INVALID"
    unknown = f"toolGroups/{NOBODY}"
    agent = await create(client)
    for call in (create(client, groups=[group.name, unknown]), add_version(client, agent.name, groups=[unknown])):
        assert unknown in await message_of(call)
    assert await failure(create(client, groups=[group.name, group.name])) == "FIELD_INVALID"
    assert await failure(create(client, groups=[f"toolGroups/{uuid4()}" for _ in range(33)])) == "FIELD_INVALID"
    assert len((await versions_of(client, agent.name)).versions) == 1


async def test_the_rules_of_tool_groups_are_added_as_they_are_then(client):
    one = await create_group(client, allowed_tools=["Read", "Grep"], disallowed_tools=["mcp__github__*"])
    two = await create_group(client, disallowed_tools=["Bash(rm:*)", "mcp__github__*"])
    agent = await create(client, Options(allowed_tools=["Read"]), groups=[one.name, two.name])
    first = await start(client, agent.name)
    assert list(first.options.allowed_tools) == ["Read", "Grep"]
    assert list(first.options.disallowed_tools) == ["mcp__github__*", "Bash(rm:*)"]
    # Whatever one sets for a session, the groups' rules are there.
    other = await start(client, agent.name, allowed_tools=["Bash"], disallowed_tools=["Glob"])
    assert list(other.options.allowed_tools) == ["Bash", "Read", "Grep"]
    assert list(other.options.disallowed_tools) == ["Glob", "mcp__github__*", "Bash(rm:*)"]
    await update_group(client, ToolGroup(name=two.name, disallowed_tools=["Write"]))
    assert await client.get_session(first.name) == first
    assert list((await start(client, agent.name)).options.disallowed_tools) == ["mcp__github__*", "Write"]
    assert list((await get_version(client, agent.default_version)).options.allowed_tools) == ["Read"]


async def test_too_many_rules_are_refused_with_the_reason(client):
    groups = [
        (await create_group(client, disallowed_tools=[f"T{n}_{number}" for number in range(600)])).name for n in (1, 2)
    ]
    agent = await create(client, groups=groups)
    assert "1200 rules" in await message_of(start(client, agent.name))


async def test_a_tool_group_in_use_is_not_deleted(client):
    group = await create_group(client)
    agent = await create(client, groups=[group.name])
    await add_version(client, agent.name, make_default=True)
    with pytest.raises(RpcError) as caught:
        await delete_group(client, group.name)
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert caught.value.metadata["used_by"] == f"{agent.name}/versions/1"
    await delete(client, agent.name)
    await delete_group(client, group.name)


async def test_a_group_that_is_deleted_while_it_is_referred_to_is_gone_or_in_use(client):
    for _ in range(10):
        group = await create_group(client)
        agent, gone = await asyncio.gather(
            create(client, groups=[group.name]), delete_group(client, group.name), return_exceptions=True
        )
        if isinstance(agent, RpcError):
            assert (agent.reason, gone) == ("NOT_FOUND", None)
        else:
            assert gone.reason == "IN_USE"
            await start(client, agent.name)


# ---- Who may do what ----


async def test_what_is_not_shared_looks_as_if_it_did_not_exist(edge):
    async with everyone(edge) as (ann, bob, vic, admin):
        agent = await create(ann)
        group = await create_group(ann)
        for other in (bob, vic):
            assert await failure(get(other, agent.name)) == "NOT_FOUND"
            assert await failure(get_version(other, agent.default_version)) == "NOT_FOUND"
            assert await failure(versions_of(other, agent.name)) == "NOT_FOUND"
            assert await find(other) == await find(other, owner=agent.owner) == []
        for call in [update(bob, agent, display_name="x"), delete(bob, agent.name), add_version(bob, agent.name),
                     start(bob, agent.name), create(bob, groups=[group.name]), delete_group(bob, group.name),
                     update_group(bob, group)]:  # fmt: skip
            assert await failure(call) == "NOT_FOUND"
        assert (await get(admin, agent.name)).name == agent.name
        assert await find(admin) == await find(admin, owner=agent.owner) == ["an agent"]
        assert (await update(admin, agent, display_name="b")).owner == agent.owner
        for call in [
            create(vic),
            create_group(vic),
            update(vic, agent),
            delete(vic, agent.name),
            start(vic, agent.name),
        ]:
            assert await failure(call) == "PERMISSION_DENIED"


async def test_what_is_shared_is_read_and_used_by_all_and_changed_by_its_owner(edge):
    async with everyone(edge) as (ann, bob, vic, _):
        group = await create_group(ann, shared=True, disallowed_tools=["Write"])
        agent = await create(ann, Options(model="m"), groups=[group.name], shared=True)
        for other in (bob, vic):
            assert (await get(other, agent.name)).name == agent.name
            assert (await get_version(other, agent.default_version)).options.model == "m"
            assert await find(other) == await find(other, owner=agent.owner) == ["an agent"]
        session = await start(bob, agent.name)
        assert session.options.model == "m"
        assert session.owner != agent.owner
        assert (await get(ann, agent.name)).usage_count == 1
        for call in [update(bob, agent, display_name="x"), delete(bob, agent.name), add_version(bob, agent.name),
                     update_group(bob, group), delete_group(bob, group.name)]:  # fmt: skip
            assert await failure(call) == "PERMISSION_DENIED"
        own = await create(bob, groups=[group.name], display_name="bob's")
        # Another's agents are not named to the owner of what they use.
        await delete(ann, agent.name)
        with pytest.raises(RpcError) as caught:
            await delete_group(ann, group.name)
        assert (caught.value.reason, caught.value.metadata["used_by"]) == ("IN_USE", "")
        # No longer shared, the group stays where it is referred to: it may be what denies.
        await update_group(ann, ToolGroup(name=group.name), "shared")
        assert list((await start(bob, own.name)).options.disallowed_tools) == ["Write"]
        assert await failure(add_version(bob, own.name, groups=[group.name])) == "NOT_FOUND"
        other = await create(ann, shared=True)
        await start(bob, other.name)
        await update(ann, other, "shared")
        assert await failure(start(bob, other.name)) == "NOT_FOUND"


# ---- What tasks build on ----


async def test_references_and_options_of_tasks(edge, client):
    me = await principal(client)
    group = await create_group(client, disallowed_tools=["Write"])
    more = await create_group(client, allowed_tools=["Read"])
    agent = await create(client, Options(model="m"), groups=[group.name])
    async with edge.database.transaction() as tx:
        await agent_options.refer_to_agent(tx, me, agent.default_version, field="task.agent")
        found = await agent_options.resolve_options(tx, me, agent.name, Options(max_turns=3), [more.name, group.name])
    assert found.agent_version_name == agent.default_version
    assert found.options == Options(model="m", max_turns=3, allowed_tools=["Read"], disallowed_tools=["Write"])
    async with edge.database.transaction() as tx:
        found = await agent_options.resolve_options(tx, me, "", Options(), [more.name])
    assert (found.agent_version_name, list(found.options.allowed_tools)) == ("", ["Read"])
    await delete_group(client, more.name)
    with pytest.raises(NotFound):
        # Not without its rules, which may be what denies.
        async with edge.database.transaction() as tx:
            await agent_options.resolve_options(tx, me, "", Options(), [more.name])


async def principal(client):
    user = (await create(client)).owner
    return Principal(UUID(user.removeprefix("users/")), Role.USER, UUID(int=0), datetime.max.replace(tzinfo=UTC))
