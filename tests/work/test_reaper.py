"""Promise 3: a worker that does not answer is declared dead, and never one that does, whatever clocks and servers do."""

import asyncio

import pytest

from agentrpc import clock
from agentrpc.errors import StoreUnavailable
from agentrpc.services import reaper as reapers
from agentrpc.services.reaper import Reaper
from agentrpc.store.database import Database
from agentrpc.store.leases import declare_dead, forget_workers, living_workers, register_worker, renew_lease
from agentrpc.store.tables import SessionHead, Worker

TTL, T_KILL = 6.0, 2.0


class Clock:
    """A monotonic clock that stands still unless it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def now(monkeypatch):
    now = Clock()
    monkeypatch.setattr(reapers.clock, "monotonic", now)
    return now


@pytest.fixture
def short(settings):
    return settings.model_copy(update={"lease_ttl": TTL, "kill_timeout": T_KILL})


@pytest.fixture
def make(database, short):
    def make():
        rung = []

        async def ring():
            rung.append(True)

        reaper = Reaper(database, ring, short)
        reaper.rung = rung
        return reaper

    return make


async def register(database):
    worker_id = clock.uuid7()
    await register_worker(database, worker_id, host="h", pid=1, version="0", ttl=TTL)
    return worker_id


async def look(reaper, now, seconds, step=0.5):
    """Look for so long; the workers that were found dead."""
    dead = []
    for _ in range(int(seconds / step)):
        now.now += step
        dead += await reaper.look()
    return dead


async def test_a_lease_that_nobody_renews(make, database, now):
    worker = await register(database)
    reaper = make()
    assert await look(reaper, now, TTL + T_KILL) == []
    assert await look(reaper, now, 1) == [worker]
    assert reaper.rung == [True]
    assert worker not in await living_workers(database)
    assert not await renew_lease(database, worker, TTL)


async def test_a_lease_that_is_renewed(make, database, now):
    worker = await register(database)
    reaper = make()
    for _ in range(10):
        assert await look(reaper, now, TTL) == []
        assert await renew_lease(database, worker, TTL)


async def test_of_many_reapers_one_declares_it(make, database, now):
    worker = await register(database)
    many = [make() for _ in range(4)]
    found = []
    for _ in range(20):
        now.now += 0.5
        for dead in await asyncio.gather(*(reaper.look() for reaper in many)):
            found += dead
    assert found == [worker]


@pytest.mark.parametrize("step", ["10 years", "-10 years"])
async def test_steps_of_the_databases_clock(make, database, now, step):
    """A lease that ends in ten years, or ended ten years ago, is as good as any."""
    worker = await register(database)
    reaper = make()
    async with database.connection() as connection:
        await connection.execute(f"UPDATE workers SET lease_expire_time = now() + interval '{step}'")
    assert await look(reaper, now, TTL) == []
    assert await renew_lease(database, worker, TTL)
    assert await look(reaper, now, TTL) == []
    async with database.connection() as connection:
        await connection.execute(f"UPDATE workers SET lease_expire_time = now() + interval '{step}'")
    assert await look(reaper, now, TTL + T_KILL) == []
    assert await look(reaper, now, 1) == [worker]


async def test_a_reaper_that_was_stopped_begins_anew(make, database, now):
    worker = await register(database)
    reaper = make()
    assert await look(reaper, now, TTL) == []
    now.now += 60
    assert await reaper.look() == []
    assert await look(reaper, now, TTL + T_KILL) == []
    assert await look(reaper, now, 1) == [worker]


async def test_a_database_that_was_away_says_nothing_about_workers(make, database, now, monkeypatch):
    worker = await register(database)
    reaper = make()
    assert await look(reaper, now, TTL) == []
    away = Database("postgresql://nobody@127.0.0.1:1/nothing", timeout=1)
    monkeypatch.setattr(reaper, "_database", away)
    now.now += 0.5
    with pytest.raises(StoreUnavailable):
        await reaper.look()
    await away.close()
    monkeypatch.setattr(reaper, "_database", database)
    assert await look(reaper, now, TTL + T_KILL) == []
    assert await look(reaper, now, 1) == [worker]


async def test_an_answer_that_took_long_says_nothing_either(make, database, now, monkeypatch):
    await register(database)
    reaper = make()
    assert await look(reaper, now, TTL + T_KILL) == []

    async def slow(database):
        now.now += 30
        return await living_workers(database)

    monkeypatch.setattr(reapers, "living_workers", slow)
    now.now += 0.5
    assert await reaper.look() == []
    monkeypatch.setattr(reapers, "living_workers", living_workers)
    assert await look(reaper, now, TTL) == []


async def test_a_lease_that_is_renewed_in_the_last_moment(make, database, now, monkeypatch):
    """Between the look and the declaration: it counts."""
    worker = await register(database)
    reaper = make()

    async def look_and_renew(database):
        leases = await living_workers(database)
        await renew_lease(database, worker, TTL)
        return leases

    assert await look(reaper, now, TTL + T_KILL) == []
    monkeypatch.setattr(reapers, "living_workers", look_and_renew)
    now.now += 0.5
    assert await reaper.look() == []
    assert worker in await living_workers(database)


async def test_connections_that_the_server_cuts(make, database, now, caplog):
    """As a restart of PostgreSQL does."""
    worker = await register(database)
    reaper = make()
    assert await look(reaper, now, TTL) == []
    async with database.connection() as connection:
        with pytest.raises(Exception, match="terminat"):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " ORDER BY pid = pg_backend_pid()"
            )
    dead = []
    for _ in range(30):
        now.now += 0.5
        try:
            dead += await reaper.look()
        except StoreUnavailable:
            assert dead == []
    assert dead == [worker]


async def test_the_loop_itself(database, settings):
    """With the real clock, and short times."""
    rung = asyncio.Event()

    async def ring():
        rung.set()

    lost, kept = await register(database), await register(database)
    quick = settings.model_copy(update={"lease_ttl": 1.5, "kill_timeout": 0.3})
    running = asyncio.create_task(Reaper(database, ring, quick).run())
    try:
        async with asyncio.timeout(30):
            while not rung.is_set():
                assert await renew_lease(database, kept, TTL)
                await asyncio.sleep(0.1)
        assert set(await living_workers(database)) == {kept}
        assert not await renew_lease(database, lost, TTL)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_old_rows_go_when_nothing_needs_them(database, add_session):
    busy, idle, none, fresh = [await register(database) for _ in range(4)]
    held, free = await add_session(queued=1), await add_session()
    async with database.transaction() as tx:
        head = await tx.get_one(SessionHead, held)
        head.worker, head.active_run = busy, clock.uuid7()
        (await tx.get_one(SessionHead, free)).worker = idle
    await declare_dead(database, [busy, idle, none, fresh])
    async with database.connection() as connection:
        await connection.execute("UPDATE workers SET dead_time = dead_time - interval '2 hours' WHERE id <> $1", fresh)
    await forget_workers(database, reapers._REMEMBERED)
    async with database.transaction() as tx:
        left = [worker for worker in [busy, idle, none, fresh] if await tx.get(Worker, worker)]
        assert left == [busy, fresh]
        assert (await tx.get_one(SessionHead, free)).worker is None
