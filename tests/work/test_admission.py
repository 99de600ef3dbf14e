"""Who is served next, and how much fits: fair among tenants, bounded by memory."""

import asyncio

import psutil
import pytest
from sqlalchemy import text

from agentrpc import clock
from agentrpc.claude.cgroups import machine_memory
from agentrpc.services.session_host.memory import MemoryBound
from agentrpc.store import leases
from agentrpc.store.leases import claim_next, declare_dead, register_worker
from agentrpc.store.tables import Run, SessionHead


@pytest.fixture
async def worker(database):
    worker_id = clock.uuid7()
    await register_worker(database, worker_id, host="h", pid=1, version="0", ttl=300)
    return worker_id


async def claim(database, worker):
    return await claim_next(database, worker, may_take_new=True, begin=lambda *_: [])


async def end(database, claim):
    async with database.transaction() as tx:
        (await tx.get_one(Run, claim.run.id)).state = "SUCCEEDED"
        (await tx.get_one(SessionHead, claim.session.id)).active_run = None


async def test_a_tenant_with_many_sessions_does_not_keep_others_waiting(database, worker, add_session):
    greedy, modest = clock.uuid7(), clock.uuid7()
    for _ in range(50):
        await add_session(greedy, queued=1)
    await add_session(modest, queued=1)
    served = [(await claim(database, worker)).session.owner for _ in range(3)]
    assert served == [greedy, modest, greedy]


async def test_nor_does_one_with_a_long_queue_on_a_worker_with_one_place(database, worker, add_session):
    """Though the worker holds the greedy session, and its process is warm."""
    greedy, modest = clock.uuid7(), clock.uuid7()
    await add_session(greedy, queued=50)
    await add_session(modest, queued=2)
    served = []
    for _ in range(6):
        taken = await claim(database, worker)
        served.append(taken.session.owner)
        await end(database, taken)
    assert served == [greedy, modest, greedy, modest, greedy, greedy]


async def test_of_one_tenant_what_the_worker_holds_comes_first(database, worker, add_session):
    tenant = clock.uuid7()
    held = await add_session(tenant, queued=3)
    other = await add_session(tenant, queued=1)
    served = []
    for _ in range(4):
        taken = await claim(database, worker)
        served.append(taken.session.id)
        await end(database, taken)
    assert served == [held, held, held, other]


async def test_who_looks_for_lost_runs_does_not_take_one_that_another_worker_has_just_taken_up(
    database, worker, add_session, monkeypatch
):
    """The other one commits between this one's look at all rows and its lock of the row."""
    await add_session(queued=1)
    await claim(database, worker)
    await declare_dead(database, [worker])
    quick, slow = clock.uuid7(), clock.uuid7()
    for each in (quick, slow):
        await register_worker(database, each, host="h", pid=1, version="0", ttl=300)
    statement = leases._LOST
    nap = "  AND (SELECT pg_sleep(1)) IS NOT NULL\nLIMIT 1"
    monkeypatch.setattr(leases, "_LOST", text(statement.text.replace("LIMIT 1", nap)))
    looking = asyncio.create_task(claim(database, slow))
    await asyncio.sleep(0.4)
    monkeypatch.setattr(leases, "_LOST", statement)
    assert (await claim(database, quick)).losses == 1
    assert await looking is None


async def test_each_run_is_claimed_once_by_many_workers(database, add_session):
    sessions = {await add_session(queued=1) for _ in range(12)}
    workers = [clock.uuid7() for _ in range(4)]
    for worker in workers:
        await register_worker(database, worker, host="h", pid=1, version="0", ttl=300)

    async def take_all(worker):
        taken = []
        while (found := await claim(database, worker)) is not None:
            taken.append(found.session.id)
        return taken

    taken = [one for some in await asyncio.gather(*map(take_all, workers)) for one in some]
    assert sorted(taken) == sorted(sessions)


# ---- Memory ----

MIB = 1024 * 1024


class Tree:
    """An actor, as far as the bound is concerned."""

    def __init__(self, size, idle_since=0.0):
        self.session_id = clock.uuid7()
        self.size = size * MIB
        self.idle_since = idle_since

    def memory(self):
        return self.size


async def excess(settings, trees, running=()):
    """Which of the trees have to go, in order."""
    actors = {tree.session_id: tree for tree in trees}
    bound = MemoryBound(settings)
    await bound.measure(actors)
    gone = []
    while found := bound.pick_excess(actors, {tree.session_id for tree in running}):
        gone.append(found[0])
    return gone


async def test_idle_trees_go_first_and_the_oldest_of_them(settings):
    bounded = settings.model_copy(update={"max_agent_memory": 1000 * MIB})
    old, new, busy = Tree(300, 1.0), Tree(300, 2.0), Tree(600)
    assert await excess(bounded, [new, busy, old], running=[busy]) == [old]
    busy.size = 800 * MIB
    assert await excess(bounded, [new, busy, old], running=[busy]) == [old, new]


async def test_when_none_is_idle_the_largest_goes(settings):
    bounded = settings.model_copy(update={"max_agent_memory": 1000 * MIB})
    trees = [Tree(300), Tree(500), Tree(400)]
    assert await excess(bounded, trees, running=trees) == [trees[1]]
    assert await excess(bounded, trees[:2], running=trees) == []


async def test_room_is_for_what_a_new_process_will_use(settings):
    bound = MemoryBound(settings.model_copy(update={"max_agent_memory": 700 * MIB}))
    sessions = []
    for fits in (True, True, True, False):
        assert bound.has_room(sessions) == fits
        sessions.append(clock.uuid7())
    small = MemoryBound(settings.model_copy(update={"max_agent_memory": MIB}))
    assert small.has_room([])


def test_the_default_is_what_the_machine_has():
    assert 0 < machine_memory() <= psutil.virtual_memory().total
