"""A worker that cannot renew its lease is the first to know, and its parent knows until when to wait."""

import asyncio

import pytest

from agentrpc import clock
from agentrpc.services.session_host.lease import LeaseKeeper
from agentrpc.store.leases import declare_dead, living_workers, register_worker

TTL = 3.0


class Kept:
    """A lease and what was said of it."""

    def __init__(self, url):
        self.worker_id = clock.uuid7()
        self.deadlines = []
        self.lost = asyncio.Event()
        self.keeper = LeaseKeeper(url, self.worker_id, TTL, self.lost.set, self.deadlines.append)


@pytest.fixture
async def kept(settings, database):
    kept = Kept(settings.database_url.get_secret_value())
    await register_worker(database, kept.worker_id, host="h", pid=1, version="0", ttl=TTL)
    yield kept
    kept.keeper.stop()


async def test_each_renewal_moves_the_deadline(kept, database):
    assert kept.deadlines[0] - clock.boottime() <= TTL
    kept.keeper.start()
    [first] = (await living_workers(database)).values()
    await asyncio.sleep(TTL)
    assert len(kept.deadlines) > 2
    assert kept.deadlines == sorted(set(kept.deadlines))
    assert (await living_workers(database))[kept.worker_id] > first
    assert kept.keeper.valid()
    assert not kept.lost.is_set()


async def test_one_that_was_declared_dead_has_to_go_at_once(kept, database):
    kept.keeper.start()
    await declare_dead(database, [kept.worker_id])
    async with asyncio.timeout(20):
        await kept.lost.wait()
    assert not kept.keeper.valid()
    assert kept.deadlines[-1] <= clock.boottime()


async def test_one_that_cannot_reach_the_store(settings):
    kept = Kept("postgresql://nobody@127.0.0.1:1/nothing")
    kept.keeper.start()
    async with asyncio.timeout(30):
        await kept.lost.wait()
    assert clock.boottime() >= kept.deadlines[0]
    assert not kept.keeper.valid()
    kept.keeper.stop()


async def test_one_that_wakes_up_too_late_does_not_renew(kept, database, monkeypatch):
    """Though nobody has declared it dead yet: it was to have ended by itself."""
    before = await living_workers(database)
    now = clock.boottime()
    monkeypatch.setattr(clock, "boottime", lambda: now + TTL + 1)
    assert not kept.keeper.valid()
    kept.keeper.start()
    async with asyncio.timeout(20):
        await kept.lost.wait()
    assert await living_workers(database) == before
