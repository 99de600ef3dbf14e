"""Which worker takes a session that demands a level of isolation, also when others are quicker, or are lost."""

import asyncio

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import text

from agentrpc import clock
from agentrpc.claude.launcher import Isolation, IsolationError, choose_isolation, isolation_of
from agentrpc.domain.isolation import Level
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.egress import EgressProxy
from agentrpc.gateway.interception import intercepting
from agentrpc.gateway.server import ModelGateway
from agentrpc.services.session_host.host import SessionHost
from agentrpc.store import leases
from agentrpc.store.housekeeping import has_waiting
from agentrpc.store.leases import Origin, claim_next, declare_dead, owned_sessions, register_worker, release
from agentrpc.store.tables import Run, SessionHead
from agentrpc.testkit import write_cli
from agentrpc.v1 import run_pb2, session_pb2, session_service_pb2
from tests.e2e.stacks import until
from tests.e2e.talk import create
from tests.isolations import bubblewrap

NONE, USER, SANDBOX = Level


@pytest.fixture
def add_worker(database):
    async def add(level):
        worker_id = clock.uuid7()
        await register_worker(database, worker_id, host="h", pid=1, version="0", ttl=300, isolation_level=level)
        return worker_id

    return add


@pytest.fixture
def needing(database, add_session):
    """Adds a session that needs a level, with runs that wait."""

    async def add(level, queued=1):
        session_id = await add_session(queued=queued)
        await need(database, session_id, level)
        return session_id

    return add


async def need(database, session_id, level):
    async with database.transaction() as tx:
        (await tx.get_one(SessionHead, session_id)).needed_level = level


async def claim(database, worker, level):
    return await claim_next(database, worker, may_take_new=True, isolation_level=level, begin=lambda *_: [])


# ---- Who takes what ----


@pytest.mark.parametrize("has", [*Level])
@pytest.mark.parametrize("needs", [*Level])
async def test_a_worker_takes_what_needs_no_more_than_it_has(database, add_worker, needing, needs, has):
    session_id, worker = await needing(needs), await add_worker(has)
    assert await has_waiting(database, worker, (), has) == (has >= needs)
    taken = await claim(database, worker, has)
    assert (taken is not None) == (has >= needs)
    if taken is None:
        other = await add_worker(needs)
        taken = await claim(database, other, needs)
    assert taken.session.id == session_id
    assert Level[taken.session.isolation_level] >= needs


async def test_one_that_needs_more_does_not_hold_up_the_others(database, add_worker, needing):
    await needing(SANDBOX)
    other, worker = await needing(NONE), await add_worker(USER)
    assert (await claim(database, worker, USER)).session.id == other


@pytest.mark.parametrize("origin", [Origin.LOST, Origin.RELEASED])
async def test_a_session_of_a_sandbox_is_not_taken_over_by_a_weaker_worker(database, add_worker, needing, origin):
    session_id, first = await needing(SANDBOX), await add_worker(SANDBOX)
    assert await claim(database, first, SANDBOX)
    if origin is Origin.LOST:
        await declare_dead(database, [first])
    else:
        async with database.transaction() as tx:
            (await tx.get_one(SessionHead, session_id)).worker = None
    weak, strong = await add_worker(USER), await add_worker(SANDBOX)
    assert not await has_waiting(database, weak, (), USER)
    assert await claim(database, weak, USER) is None
    assert await has_waiting(database, strong, (), SANDBOX)
    taken = await claim(database, strong, SANDBOX)
    assert (taken.session.id, taken.origin) == (session_id, origin)


@pytest.mark.parametrize("statement", ["_NEXT", "_RELEASED", "_LOST"])
async def test_a_demand_that_comes_in_the_last_moment_counts(database, add_worker, needing, monkeypatch, statement):
    """It is committed between the worker's look at all rows and its lock of the row."""
    session_id, first, weak = await needing(NONE), await add_worker(NONE), await add_worker(NONE)
    if statement != "_NEXT":
        assert await claim(database, first, NONE)
        await declare_dead(database, [first])
    if statement == "_RELEASED":
        async with database.transaction() as tx:
            (await tx.get_one(SessionHead, session_id)).worker = None
    slow = getattr(leases, statement).text
    last = slow.rindex("h.needed_level <= :level")
    nap = "(SELECT pg_sleep(1)) IS NOT NULL AND "
    monkeypatch.setattr(leases, statement, text(slow[:last] + nap + slow[last:]))
    looking = asyncio.create_task(claim(database, weak, NONE))
    await asyncio.sleep(0.4)
    await need(database, session_id, USER)
    assert await looking is None


async def test_workers_of_all_levels_take_each_session_once_and_none_too_weak(database, add_worker, needing):
    needs = {await needing(level): level for level in Level for _ in range(6)}
    workers = [(await add_worker(level), level) for level in Level for _ in range(2)]

    async def take_all(worker, level):
        taken = []
        while (found := await claim(database, worker, level)) is not None:
            taken.append((found.session.id, level))
        return taken

    taken = [one for some in await asyncio.gather(*(take_all(*worker) for worker in workers)) for one in some]
    assert sorted(session_id for session_id, _ in taken) == sorted(needs)
    assert [level for session_id, level in taken if level < needs[session_id]] == []


async def test_a_session_that_needs_more_than_its_worker_has_is_given_back_with_its_queue(
    database, add_worker, needing
):
    session_id, weak = await needing(NONE, queued=2), await add_worker(NONE)
    taken = await claim(database, weak, NONE)
    async with database.transaction() as tx:
        (await tx.get_one(Run, taken.run.id)).state = "SUCCEEDED"
        (await tx.get_one(SessionHead, session_id)).active_run = None
    assert not await release(database, session_id, taken.epoch)
    await need(database, session_id, SANDBOX)
    assert (await owned_sessions(database, weak))[session_id].needed_level == SANDBOX
    assert await claim(database, weak, NONE) is None
    assert await release(database, session_id, taken.epoch)
    strong = await add_worker(SANDBOX)
    assert (await claim(database, strong, SANDBOX)).session.id == session_id


# ---- Whole workers ----


@pytest.fixture
async def host(settings, database, bus, edge, tmp_path):
    """Start a worker in this process, with the fake CLI and an isolation."""
    hosts = []
    async with ScriptedModel() as model:
        gateway = ModelGateway(upstream_url=model.url, api_key="sk")
        await gateway.start()
        changed = settings.model_copy(update={"cli_path": write_cli(tmp_path / "cli-under-test")})

        async def start(isolation):
            host = SessionHost(database, bus, changed, gateway, intercepting(EgressProxy), isolation)
            await host.start()
            hosts.append(host)
            return host

        yield start
        await asyncio.gather(*(host.stop(0.1) for host in hosts))
        await gateway.stop()


async def ended(client, run):
    """Wait for the end of a run."""
    async with asyncio.timeout(60):
        async for event in client.watch(run.name.partition("/runs/")[0], run=run.name):
            if event.HasField("run_ended"):
                assert event.run_ended.state == run_pb2.Run.STATE_SUCCEEDED


@bubblewrap
async def test_a_raised_demand_takes_a_warm_session_to_a_worker_that_meets_it(host, client):
    weak = await host(Isolation.SUBREAPER)
    session = await create(client)
    await ended(client, await client.create_run(session, "hello"))
    found = await client.get_session(session)
    assert found.isolation_level == session_pb2.Session.ISOLATION_LEVEL_NONE
    (actor,) = weak._actors.values()
    assert actor.has_process
    found.options.isolation_level = session_pb2.Session.ISOLATION_LEVEL_SANDBOX
    request = session_service_pb2.UpdateSessionRequest(session=found, update_mask=FieldMask(paths=["options"]))
    await client.call(client.sessions.UpdateSession, request)
    run = await client.create_run(session, "again")
    await until(lambda: not weak._actors)
    assert not actor.has_process
    waiting = (await client.get_run(run.name)).waiting_on
    assert waiting.reason == run_pb2.WaitingOn.REASON_ISOLATION
    assert list(waiting.worker_isolation_levels) == [session_pb2.Session.ISOLATION_LEVEL_NONE]
    await host(Isolation.BUBBLEWRAP)
    await ended(client, run)
    found = await client.get_session(session)
    assert found.isolation_level == session_pb2.Session.ISOLATION_LEVEL_SANDBOX


# ---- What the operator demands ----


def test_a_worker_below_what_the_operator_demands_does_not_start():
    with pytest.raises(IsolationError, match=r"level NONE \(subreaper\), and AGENTRPC_MINIMUM_ISOLATION demands USER"):
        choose_isolation("subreaper", minimum="user")
    assert choose_isolation("subreaper", minimum="none")[0] is Isolation.SUBREAPER


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AGENTRPC_MINIMUM_ISOLATION", "some", "AGENTRPC_MINIMUM_ISOLATION: Input should be"),
        ("AGENTRPC_ISOLATION", "docker", "AGENTRPC_ISOLATION: Input should be"),
        ("AGENTRPC_AGENT_UIDS", "many", "must be first-last"),
        ("AGENTRPC_AGENT_UIDS", "0-1000", "must be first-last"),
        ("AGENTRPC_AGENT_UIDS", "300000-200000", "must be first-last"),
        ("AGENTRPC_AGENT_UIDS", "200000-200010", "128 numbers or more"),
        ("AGENTRPC_AGENT_UIDS", "60000-70000", "neither 65534 nor 65535"),
        ("AGENTRPC_AGENT_UIDS", "200000-4294967295", "must be first-last"),
    ],
)
def test_what_makes_no_sense_is_told(name, value, said):
    with pytest.raises(IsolationError, match=said):
        isolation_of({name: value})


def test_an_empty_variable_is_as_none(monkeypatch):
    for name in ("AGENTRPC_ISOLATION", "AGENTRPC_MINIMUM_ISOLATION", "AGENTRPC_AGENT_UIDS"):
        monkeypatch.setenv(name, "")
    assert isolation_of({"AGENTRPC_ISOLATION": "subreaper", "AGENTRPC_AGENT_UIDS": ""})[0] is Isolation.SUBREAPER
