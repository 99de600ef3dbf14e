"""Tools of the service with the real CLI: what one session writes to memory another one uses; approvals, lost workers."""

import asyncio
import json

import asyncpg
import pytest
import pytest_asyncio

from agentrpc.v1 import event_pb2, run_pb2, run_service_pb2, session_pb2
from agentrpc.v1 import memory_service_pb2 as pb
from tests.e2e.stacks import own_stack
from tests.e2e.talk import ALLOW, create, of, outputs, run, state

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

Finished = event_pb2.ToolCallFinished
Decision = run_service_pb2.ResolveRunRequest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(postgres):
    async with own_stack(approval_hold=0.5, poll_interval=0.5, tool_databases=json.dumps({"shop": postgres})) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with stack.client() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def store(client):
    return (await client.call(client.memory.CreateMemoryStore, pb.CreateMemoryStoreRequest())).name


def memory(store, *, writable=True):
    given = session_pb2.MemoryTools(store=store, writable=writable)
    return session_pb2.McpServer(name="memory", builtin=session_pb2.BuiltinServer(memory=given))


def database():
    given = session_pb2.DatabaseTools(database="shop")
    return session_pb2.McpServer(name="shop", builtin=session_pb2.BuiltinServer(database=given))


def call(name, **arguments):
    return f"[[tool: mcp__{name} {json.dumps(arguments)}]]"


async def entry(client, store, key):
    request = pb.GetMemoryEntryRequest(name=f"{store}/entries/{key}")
    return await client.call(client.memory.GetMemoryEntry, request)


async def test_what_one_session_stores_another_one_finds_and_uses(client, store):
    first = await create(client, allowed_tools=["mcp__memory__*"], mcp_servers=[memory(store)])
    fact = call(
        "memory__memory_write", key="facts/launch", content="The launch code word is marzipan.", expected_version=0
    )
    events = await run(client, first, f"{fact}\n[[then]]\n[[text: noted]]")
    assert state(events) == "STATE_SUCCEEDED"
    assert outputs(events)[0].startswith("written: facts/launch (version 1, 33 bytes")
    stored = await entry(client, store, "facts/launch")
    assert stored.content == "The launch code word is marzipan."
    assert (stored.author.session, stored.author.run) == (first, events[-1].run)

    second = await create(client, allowed_tools=["mcp__memory__*"], mcp_servers=[memory(store, writable=False)])
    find = call("memory__memory_search", query="launch code")
    read = call("memory__memory_read", key="facts/launch")
    write = call("memory__memory_write", key="facts/launch", content="x")
    events = await run(client, second, f"{find}\n[[then]]\n{read}\n[[then]]\n{write}\n[[then]]\n[[heard: marzipan]]")
    found, text, refused = outputs(events)
    assert "facts/launch" in found
    assert text.endswith("The launch code word is marzipan.")
    assert "No such tool" in refused
    # The model has heard it from both tools that found it.
    assert of(events, "run_ended")[0].result.text == "heard 2"

    third = await create(client, allowed_tools=["mcp__memory__*"], mcp_servers=[memory(store)])
    stale = call("memory__memory_write", key="facts/launch", content="y", expected_version=7)
    listed, gone = call("memory__memory_list", prefix="facts/"), call("memory__memory_delete", key="facts/launch")
    events = await run(client, third, f"{stale}\n[[then]]\n{listed}\n[[then]]\n{gone}\n[[then]]\n[[text: ok]]")
    conflict, keys, deleted = outputs(events)
    assert "has version 1 now, and not version 7" in conflict
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_FAILED
    assert keys.startswith("facts/launch (version 1")
    assert deleted == "deleted: facts/launch"


async def test_a_write_that_is_approved_after_its_process_has_gone_happens_once(client, stack, store):
    session = await create(client, mcp_servers=[memory(store)])
    prompt = f"{call('memory__memory_write', key='late', content='yes')}\n[[then]]\n[[text: ok]]"
    made = await client.create_run(session, prompt)
    events = []
    async with asyncio.timeout(60):
        async for event in client.watch(session, run=made.name):
            events.append(event)
            if event.HasField("approval_requested"):
                await stack.until_parked(session)
                await client.resolve(event.approval_requested.approval.name, ALLOW)
    assert state(events) == "STATE_SUCCEEDED"
    assert [done.outcome for done in of(events, "tool_call_finished")] == [Finished.OUTCOME_SUCCEEDED]
    assert (await entry(client, store, "late")).version == 1


@pytest.mark.parametrize("decision", [Decision.DECISION_RESUME, Decision.DECISION_RETRY_CALLS])
async def test_a_call_in_doubt_is_decided_about_as_any_other(client, stack, postgres, decision):
    session = await create(client, allowed_tools=["mcp__shop__*"], mcp_servers=[database()])
    slow = call("shop__query", sql="SELECT 6 * 7 AS answer, pg_sleep(4)")
    made = await client.create_run(session, f"{slow}\n[[then]]\n[[text: ok]]")
    events = []
    async with asyncio.timeout(100):
        async for event in client.watch(session, run=made.name):
            events.append(event)
            if event.HasField("tool_call_started") and len(of(events, "tool_call_started")) == 1:
                await asyncio.sleep(0.5)
                stack.stack.kill_child("worker")
            elif event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
                [doubt] = event.run_state_changed.in_doubt_calls
                assert doubt.tool_name == "mcp__shop__query"
                await client.resolve_run(event.run, decision)
    assert state(events) == "STATE_SUCCEEDED"
    if decision == Decision.DECISION_RETRY_CALLS:
        assert '["42", ""]' in outputs(events)[-1]
    else:
        assert of(events, "tool_call_finished")[-1].outcome == Finished.OUTCOME_UNKNOWN


async def test_a_cancel_ends_a_query_on_its_server(client, postgres):
    session = await create(client, allowed_tools=["mcp__shop__*"], mcp_servers=[database()])
    made = await client.create_run(session, call("shop__query", sql="SELECT pg_sleep(14), 'cancel me'"))
    async with asyncio.timeout(60):
        async for event in client.watch(session, run=made.name):
            if event.HasField("tool_call_started"):
                await _running(postgres, "cancel me", 1)
                await client.cancel(made.name)
            if event.HasField("run_ended"):
                assert event.run_ended.state == run_pb2.Run.STATE_CANCELLED
    await _running(postgres, "cancel me", 0)


_ACTIVE = """
SELECT count(*) FROM pg_stat_activity
 WHERE state = 'active' AND pid <> pg_backend_pid() AND position($1 IN query) > 0
"""


async def _running(postgres, text, wanted):
    """Wait until so many statements with this text are under way."""
    connection = await asyncpg.connect(postgres)
    try:
        async with asyncio.timeout(8):
            while await connection.fetchval(_ACTIVE, text) != wanted:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def test_tables_are_listed_described_and_read_and_the_machine_measured(client, postgres):
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS things (id int PRIMARY KEY, name text NOT NULL CHECK (name <> ''))"
        )
        system = session_pb2.McpServer(name="sys", builtin=session_pb2.BuiltinServer(system={}))
        session = await create(client, allowed_tools=["mcp__shop__*", "mcp__sys__*"], mcp_servers=[database(), system])
        steps = [
            call("shop__list_tables"), call("shop__describe_table", table="things"),
            call("shop__describe_table", table="pg_authid'; --"), call("shop__query", sql="DELETE FROM things"),
            call("shop__query", sql="SELECT nowhere FROM things"), call("sys__system_metrics"), "[[text: ok]]",
        ]  # fmt: skip
        events = await run(client, session, "\n[[then]]\n".join(steps))
        tables, table, nothing, refused, wrong, metrics = outputs(events)
        assert '["public", "things", "table"' in tables
        assert '["id", "integer", "true"' in table
        assert "PRIMARY KEY (id)" in table
        assert "CHECK" in table
        assert "there is no table" in nothing
        assert "only queries that return rows" in refused
        assert "42703" in wrong
        found = json.loads(metrics)
        assert found["memory"]["total"] > 0
        assert found["cpu"]["count"] >= 1
        assert set(found) == {"cpu", "memory", "swap", "disk", "processes"}
    finally:
        await connection.execute("DROP TABLE IF EXISTS things")
        await connection.close()
