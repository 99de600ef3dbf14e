"""Tools of the service in a session's options, and in whose name they act once its worker or its owner has changed."""

from uuid import UUID

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from pydantic import SecretStr, ValidationError

from agentrpc import clock
from agentrpc.claude.tools import ToolServers
from agentrpc.client import RpcError
from agentrpc.services.tool_callers import Caller
from agentrpc.services.tool_servers import Toolbox
from agentrpc.settings import Settings
from agentrpc.store.tables import SessionHead, User
from agentrpc.v1 import memory_pb2, session_pb2, session_service_pb2
from agentrpc.v1 import memory_service_pb2 as pb

NOWHERE = "memoryStores/00000000-0000-7000-8000-000000000000"
MemoryTools = session_pb2.MemoryTools


def options(name="own", **builtin):
    server = session_pb2.McpServer(name=name, builtin=session_pb2.BuiltinServer(**builtin))
    return session_pb2.SessionOptions(mcp_servers=[server])


async def create(client, **builtin):
    return await client.create_session(session_pb2.Session(options=options(**builtin)))


async def new_store(client, **fields):
    request = pb.CreateMemoryStoreRequest(memory_store=memory_pb2.MemoryStore(**fields))
    return (await client.call(client.memory.CreateMemoryStore, request)).name


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.reason


@pytest.mark.parametrize(
    "builtin",
    [{}, {"memory": {}}, {"memory": {"store": "x"}}, {"memory": {"store": NOWHERE.upper()}}, {"database": {}},
     {"database": {"database": "postgresql://host/x"}}, {"database": {"database": "x", "max_rows": -1}},
     {"database": {"database": "x", "max_rows": 10_001}}, {"database": {"database": "x", "max_bytes": 1}},
     {"database": {"database": "x", "statement_timeout": {"seconds": 51}}},
     {"database": {"database": "x", "statement_timeout": {"seconds": -1}}},
     {"kubernetes": {"namespaces": ["Bad_Name"]}}, {"kubernetes": {"context": "x" * 254}}],
)  # fmt: skip
async def test_bad_options_name_the_field(client, builtin):
    assert await failure(create(client, **builtin)) == "FIELD_INVALID"


async def test_what_is_named_has_to_be_there_and_the_callers(edge, client):
    edge.settings.tool_databases["shop"] = SecretStr("postgresql://nowhere")
    mine, shared = await new_store(client), await new_store(client, shared=True)
    made = await create(client, memory=MemoryTools(store=mine, writable=True))
    assert made.options.mcp_servers[0].builtin.memory.store == mine
    assert await failure(create(client, memory=MemoryTools(store=NOWHERE))) == "NOT_FOUND"
    assert await failure(create(client, database={"database": "other"})) == "NOT_CONFIGURED"
    async with edge.client("bob") as bob:
        assert await failure(create(bob, memory=MemoryTools(store=mine))) == "NOT_FOUND"
        assert await failure(create(bob, memory=MemoryTools(store=shared, writable=True))) == "PERMISSION_DENIED"
        assert await create(bob, memory=MemoryTools(store=shared))
    assert await create(client, database={"database": "shop"})

    async def update(**fields):
        session = session_pb2.Session(name=made.name, **fields)
        request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=list(fields)))
        return await client.call(client.sessions.UpdateSession, request)

    assert await failure(update(options=options(memory=MemoryTools(store=NOWHERE)))) == "NOT_FOUND"
    await client.call(client.memory.DeleteMemoryStore, pb.DeleteMemoryStoreRequest(name=mine))
    # What does not change the tools goes on.
    assert (await update(display_name="b")).display_name == "b"
    assert (await update(options=options(system={}))).options.mcp_servers[0].builtin.HasField("system")


class Tools:
    """A session's tools as its worker has them."""

    def __init__(self, edge, session, epoch=1):
        self.caller = Caller(edge.database, UUID(session.name.removeprefix("sessions/")), epoch)
        found = Toolbox(edge.settings).tools(session.options, self.caller)
        self.servers = ToolServers(found, lambda *_: True)
        self.found = {tool.name: tool for tools in found.values() for tool in tools}

    async def __call__(self, name, **arguments):
        return await self.servers._call("own", self.found[name], arguments)


async def set_epoch(edge, session, epoch):
    async with edge.database.transaction() as tx:
        head = await tx.get_one(SessionHead, UUID(session.name.removeprefix("sessions/")))
        head.epoch, head.active_run = epoch, head.active_run or clock.uuid7()


async def entry(client, store, key):
    request = pb.GetMemoryEntryRequest(name=f"{store}/entries/{key}")
    return await client.call(client.memory.GetMemoryEntry, request)


async def test_a_worker_that_has_lost_the_session_reads_and_writes_nothing(edge, client, monkeypatch):
    store = await new_store(client)
    session = await create(client, memory=MemoryTools(store=store, writable=True))
    await set_epoch(edge, session, 1)
    tools = Tools(edge, session)
    text, failed = await tools("memory_write", key="a", content="one")
    assert not failed, text
    written = await entry(client, store, "a")
    assert (written.author.session, written.version) == (session.name, 1)
    assert written.author.run.startswith(session.name)
    # It is lost between the beginning of the write and its end.
    owner = Caller.owner

    async def lose(self, tx):
        found = await owner(self, tx)
        await set_epoch(edge, session, 2)
        return found

    monkeypatch.setattr(Caller, "owner", lose)
    for name, arguments in [("memory_write", {"key": "a", "content": "two"}), ("memory_delete", {"key": "a"})]:
        await set_epoch(edge, session, 1)
        text, failed = await tools(name, **arguments)
        assert failed
        assert "has lost the session" in text
    assert await entry(client, store, "a") == written
    monkeypatch.setattr(Caller, "owner", owner)
    assert (await tools("memory_read", key="a"))[1]


async def test_tools_see_what_the_owner_may_see_now(edge, client):
    async with edge.client("bob") as bob:
        store = await new_store(bob, shared=True)
        session = await create(client, memory=MemoryTools(store=store))
        await set_epoch(edge, session, 1)
        tools = Tools(edge, session)
        assert set(tools.found) == {"memory_list", "memory_read", "memory_search"}
        assert await tools("memory_list") == ("there are no such entries", False)
        request = pb.UpdateMemoryStoreRequest(
            memory_store=memory_pb2.MemoryStore(name=store), update_mask=FieldMask(paths=["shared"])
        )
        await bob.call(bob.memory.UpdateMemoryStore, request)
        text, failed = await tools("memory_list")
        assert failed
        assert text.startswith("NOT_FOUND")
    own = await create(client, memory=MemoryTools(store=await new_store(client), writable=True))
    await set_epoch(edge, own, 1)
    async with edge.database.transaction() as tx:
        (await tx.get_one(User, UUID(own.owner.removeprefix("users/")))).disable_time = clock.utcnow()
    text, failed = await Tools(edge, own)("memory_write", key="a", content="x")
    assert failed
    assert text.startswith("PERMISSION_DENIED")


def test_a_tool_database_is_not_the_services_own():
    given = {"database_url": "postgresql://a:b@host/own", "redis_url": "redis://x", "signing_key": "k" * 32}
    assert Settings(**given, tool_databases={"shop": "postgresql://c:hush@host/shop"}).tool_databases
    for databases in ({"own": "postgresql://reader@host:5432/own"}, {"Bad Name": "postgresql://x"}, {"x": "mysql://x"}):
        with pytest.raises(ValidationError) as caught:
            Settings(**given, tool_databases=databases)
        assert "hush" not in str(caught.value)
