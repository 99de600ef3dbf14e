"""What callers demand of the isolation of a session, and what they are told when no worker has it."""

import itertools

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import select

from agentrpc import clock
from agentrpc.domain.isolation import Level, needed_level
from agentrpc.names import parse_run, parse_session
from agentrpc.store.leases import claim_next, declare_dead, register_worker, renew_lease
from agentrpc.store.tables import SessionHead
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    run_pb2,
    session_pb2,
    session_service_pb2,
    task_pb2,
    task_service_pb2,
)
from tests.conftest import edge_of
from tests.e2e.talk import create
from tests.rpc.test_memory import failure

NONE, USER, SANDBOX = (
    session_pb2.Session.ISOLATION_LEVEL_NONE,
    session_pb2.Session.ISOLATION_LEVEL_USER,
    session_pb2.Session.ISOLATION_LEVEL_SANDBOX,
)
Reason = run_pb2.WaitingOn


@pytest.fixture
def add_worker(edge):
    async def add(level):
        worker_id = clock.uuid7()
        await register_worker(edge.database, worker_id, host="host", pid=7, version="0", ttl=600, isolation_level=level)
        return worker_id

    return add


async def claim(edge, worker, level):
    return await claim_next(edge.database, worker, may_take_new=True, isolation_level=level, begin=lambda *_: [])


async def waits(client, run):
    on = (await client.get_run(run.name)).waiting_on
    return Reason.Reason.Name(on.reason), on.needed_isolation_level, list(on.worker_isolation_levels)


async def update(client, session, level):
    request = session_service_pb2.UpdateSessionRequest(
        session=session_pb2.Session(name=session, options=session_pb2.SessionOptions(isolation_level=level)),
        update_mask=FieldMask(paths=["options.isolation_level"]),
    )
    return await client.call(client.sessions.UpdateSession, request)


def test_levels_have_an_order_and_unset_is_the_least():
    options = [session_pb2.SessionOptions(isolation_level=level) for level in (0, NONE, USER, SANDBOX)]
    assert [needed_level(given) for given in options] == [Level.NONE, Level.NONE, Level.USER, Level.SANDBOX]
    assert sorted(Level) == [Level.NONE, Level.USER, Level.SANDBOX]
    assert [needed_level(given, Level.USER).name for given in options] == ["USER", "USER", "USER", "SANDBOX"]
    assert [level.value_in_messages for level in Level] == [NONE, USER, SANDBOX]


async def test_a_run_says_which_level_it_wants_and_which_there_are(edge, client, add_worker):
    session = await create(client, isolation_level=SANDBOX)
    assert (await client.get_session(session)).options.isolation_level == SANDBOX
    run = await client.create_run(session, "x")
    assert run.waiting_on.reason == Reason.REASON_ISOLATION
    assert await waits(client, run) == ("REASON_ISOLATION", SANDBOX, [])
    weak, users, silent = [await add_worker(level) for level in (Level.NONE, Level.USER, Level.SANDBOX)]
    await renew_lease(edge.database, silent, -1)
    assert await waits(client, run) == ("REASON_ISOLATION", SANDBOX, [NONE, USER])
    await add_worker(Level.USER)
    await declare_dead(edge.database, [weak])
    assert await waits(client, run) == ("REASON_ISOLATION", SANDBOX, [USER])
    assert await claim(edge, users, Level.USER) is None
    strong = await add_worker(Level.SANDBOX)
    assert await waits(client, run) == ("REASON_CAPACITY", 0, [])
    assert (await claim(edge, strong, Level.SANDBOX)).run.id == parse_run(run.name)[1]
    assert (await client.get_session(session)).isolation_level == SANDBOX
    # Also when it was under way and nobody drives it any more.
    await declare_dead(edge.database, [strong])
    assert await waits(client, run) == ("REASON_ISOLATION", SANDBOX, [USER])


async def test_what_a_run_waits_for_before_it_matters_comes_first(edge, client, add_worker):
    session = await create(client, isolation_level=USER)
    first, second = await client.create_run(session, "x"), await client.create_run(session, "y")
    assert (await waits(client, first))[0] == "REASON_ISOLATION"
    assert (await waits(client, second))[0] == "REASON_QUEUE"
    await client.pause_session(session)
    assert (await waits(client, first))[0] == "REASON_PAUSE"


async def test_a_demand_is_one_of_three(client):
    assert await failure(create(client, isolation_level=7)) == "FIELD_INVALID"
    session = await create(client)
    assert await failure(update(client, session, 7)) == "FIELD_INVALID"


async def test_a_changed_demand_holds_for_runs_that_wait(edge, client, add_worker):
    worker = await add_worker(Level.NONE)
    session = await create(client)
    await client.create_run(session, "x")
    await update(client, session, USER)
    assert await claim(edge, worker, Level.NONE) is None
    await update(client, session, NONE)
    assert await claim(edge, worker, Level.NONE)


@pytest.mark.parametrize(("agents", "own"), [*itertools.product((0, NONE, SANDBOX), (0, NONE, USER, SANDBOX))])
async def test_of_an_agents_demand_and_a_sessions_the_stricter_counts(client, agents, own):
    options = session_pb2.SessionOptions(isolation_level=agents)
    request = agent_service_pb2.CreateAgentRequest(
        agent=agent_pb2.Agent(display_name="a"), version=agent_pb2.AgentVersion(options=options)
    )
    agent = await client.call(client.agents.CreateAgent, request)
    wanted = session_pb2.Session(agent=agent.name, options=session_pb2.SessionOptions(isolation_level=own))
    made = await client.create_session(wanted)
    assert Level.of(made.options.isolation_level) == max(Level.of(agents), Level.of(own))


async def test_a_fork_demands_what_its_origin_does(edge, client, add_worker):
    worker = await add_worker(Level.USER)
    fork = await client.fork_session(await create(client, isolation_level=SANDBOX))
    run = await client.create_run(fork.name, "x")
    assert await claim(edge, worker, Level.USER) is None
    assert (await waits(client, run))[1] == SANDBOX


async def test_what_the_operator_demands_holds_for_every_run(settings, database, bus, edge, client, add_worker):
    """Also of sessions that were made before, also of tasks; and no longer when it is taken back."""
    worker = await add_worker(Level.NONE)
    before = await create(client)
    strict = edge_of(settings.model_copy(update={"minimum_isolation": "user"}), database, bus)
    strict.port = await strict.server.start()
    async with strict.client("ann") as there:
        run = await there.create_run(before, "x")
        assert await waits(client, run) == ("REASON_ISOLATION", USER, [NONE])
        task = task_pb2.Task(display_name="t", prompt_template="x")
        made = await there.call(there.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=task))
        execution = await there.call(there.tasks.RunTask, task_service_pb2.RunTaskRequest(name=made.name))
        async with database.transaction() as tx:
            heads = await tx.scalars(select(SessionHead.needed_level))
            assert list(heads) == [Level.USER, Level.USER], execution
        # It is no demand of the session's.
        assert (await there.get_session(before)).options.isolation_level == 0
        await update(there, before, SANDBOX)
        await update(there, before, NONE)
        assert await claim(edge, worker, Level.NONE) is None
    await strict.server.stop(0.5)
    await client.cancel(run.name)
    await client.create_run(before, "x")
    assert (await claim(edge, worker, Level.NONE)).session.id == parse_session(before)
