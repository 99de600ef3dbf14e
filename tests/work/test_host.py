"""The host's runs: one after the other in a session, whatever the end of one still waits for."""

import asyncio
from types import SimpleNamespace

import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation
from agentrpc.services.session_host import host as module
from agentrpc.store.leases import Origin


class Actor:
    """Stands in for one: notes what it carries out, and ends when it is let go of."""

    def __init__(self, _, claim):
        self.session_id, self.epoch = claim.session.id, claim.epoch
        self.done = []
        self.ends = {}

    async def carry_out(self, claim):
        self.done.append(("begin", claim.run.id))
        await self.ends.setdefault(claim.run.id, asyncio.Event()).wait()
        self.done.append(("end", claim.run.id))
        return self.ends[claim.run.id].is_set() and getattr(self, "stays", True)

    async def close(self):
        return None


@pytest.fixture
async def host(database, bus, settings, monkeypatch):
    monkeypatch.setattr(module, "SessionActor", Actor)
    return module.SessionHost(database, bus, settings, SimpleNamespace(), Isolation.SUBREAPER)


def claims(count):
    session = SimpleNamespace(id=clock.uuid7())
    return [
        SimpleNamespace(session=session, run=SimpleNamespace(id=clock.uuid7()), epoch=1, origin=Origin.QUEUED)
        for _ in range(count)
    ]


async def test_a_run_waits_for_the_one_before_it_to_know_its_end(host):
    """The end of the first is committed, or the second could not be claimed; its answer is on its way."""
    first, second = claims(2)
    host._begin(first)
    host._begin(second)
    actor = host._actors[first.session.id]
    await asyncio.sleep(0.05)
    assert actor.done == [("begin", first.run.id)]
    actor.ends[first.run.id].set()
    actor.ends[second.run.id] = asyncio.Event()
    actor.ends[second.run.id].set()
    await host._runs[first.session.id]
    assert actor.done == [(what, claim.run.id) for claim in (first, second) for what in ("begin", "end")]


async def test_it_is_left_when_that_one_ended_in_trouble(host):
    first, second = claims(2)
    host._begin(first)
    host._begin(second)
    actor = host._actors[first.session.id]
    actor.stays = False
    await asyncio.sleep(0.01)
    actor.ends[first.run.id].set()
    await host._runs[first.session.id]
    assert actor.done == [("begin", first.run.id), ("end", first.run.id)]
    # Found as what this worker holds and does nothing for.
    assert host._left_over
