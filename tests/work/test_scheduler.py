"""The scheduler's housekeeping: what is old goes, a part at a time, and what fails holds up nothing else."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest

from agentrpc import clock
from agentrpc.errors import StoreUnavailable
from agentrpc.store.housekeeping import forget_requests
from agentrpc.store.tables import Request
from agentrpc.work import scheduler as module
from agentrpc.work.scheduler import Scheduler


@pytest.fixture
def add_requests(database):
    """Adds request ids of so long ago."""

    async def add(count, hours):
        time = clock.utcnow() - timedelta(hours=hours)
        async with database.transaction() as tx:
            tx.add_all(
                Request(
                    principal=clock.uuid7(), method="x", request_id=clock.uuid7(), body_hash=b"",
                    resource_id=clock.uuid7(), create_time=time,
                )
                for _ in range(count)
            )  # fmt: skip

    return add


async def left(database):
    async with database.connection() as connection:
        return await connection.fetchval("SELECT count(*) FROM requests")


async def test_old_request_ids_are_dropped_some_at_a_time_by_any_number_of_schedulers(database, add_requests):
    await add_requests(25, 26)
    await add_requests(3, 24)
    assert await forget_requests(database, 10)
    assert await left(database) == 18
    await asyncio.gather(*[forget_requests(database, 10) for _ in range(4)])
    while await forget_requests(database, 10):
        pass
    assert await left(database) == 3


async def test_housekeeping_goes_on_with_what_is_left_and_whatever_fails(database, monkeypatch):
    done = []

    async def forget(_):
        done.append("requests")
        if len(done) == 1:
            raise StoreUnavailable
        return len(done) < 6

    async def forget_slots():
        done.append("slots")

    monkeypatch.setattr(module, "forget_requests", forget)
    scheduler = Scheduler(database, None, None, None, None, SimpleNamespace(forget=forget_slots))
    await scheduler._keep_house()
    assert done == ["requests", "slots"]
    # What has failed is for the next time.
    await scheduler._keep_house()
    assert len(done) == 2
    scheduler._next_housekeeping = 0.0
    for _ in range(4):
        await scheduler._keep_house()
    assert done == ["requests", "slots"] * 4
