"""The host's runs: one after the other in a session, drained, and left alone by what was known of them before."""

import asyncio
from types import SimpleNamespace

import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation
from agentrpc.services.session_host import host as module
from agentrpc.store.leases import Origin, OwnedSession


class Actor:
    """Stands in for one: notes what it carries out, and ends when it is let go of."""

    def __init__(self, _, claim):
        self.session_id, self.epoch = claim.session.id, claim.epoch
        self.done = []
        self.ends = {}
        self.has_process, self.idle_since = True, 0.0
        self.told = []

    async def carry_out(self, claim):
        self.done.append(("begin", claim.run.id))
        await self.ends.setdefault(claim.run.id, asyncio.Event()).wait()
        self.done.append(("end", claim.run.id))
        return self.ends[claim.run.id].is_set() and getattr(self, "stays", True)

    async def close(self):
        self.told.append("close")

    def drain(self):
        self.told.append("drain")

    def abandon(self):
        self.told.append("abandon")

    def fail(self, reason, _):
        self.told.append(reason)


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


def begin(host):
    [claim] = claims(1)
    host._begin(claim)
    return claim, host._actors[claim.session.id]


async def test_a_run_whose_claim_was_on_its_way_is_drained_too(host, monkeypatch):
    monkeypatch.setattr(host._lease, "valid", lambda: True)
    monkeypatch.setattr(host._lease, "stop", lambda: None)
    claim, first = begin(host)
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(host.stop(30))
    await asyncio.sleep(0.01)
    late, second = begin(host)
    await asyncio.sleep(0.01)
    assert (first.told, second.told) == (["drain"], ["drain"])
    first.ends[claim.run.id].set()
    await asyncio.sleep(0.05)
    assert second.told == ["drain"]
    second.ends[late.run.id].set()
    await stopping
    assert second.told == ["drain", "close"]


async def test_a_session_that_was_claimed_while_the_store_was_asked_is_not_given_up(host, monkeypatch):
    first, actor = begin(host)
    new = []

    async def owned(*_):
        if not new:
            new.append(begin(host))
            [(claim, late)] = new
            late.ends.setdefault(claim.run.id, asyncio.Event()).set()
            await host._runs[claim.session.id]
        # As the store was before.
        return {
            first.session.id: OwnedSession(
                first.session.id, 1, first.run.id, 0, None, None, paused=False, inputs=0, closed=None
            )
        }

    actor.look = lambda _: asyncio.sleep(0)
    monkeypatch.setattr(module, "owned_sessions", owned)
    looking = asyncio.create_task(host._look_loop())
    host._signalled.set()
    await asyncio.sleep(0.1)
    looking.cancel()
    [(claim, late)] = new
    assert host._actors[claim.session.id] is late
    assert late.told == []
    actor.ends[first.run.id].set()


@pytest.mark.parametrize("since", ["ended", "taken"])
async def test_a_warm_process_is_not_given_up_for_a_run_that_has_ended(host, monkeypatch, since):
    claim, actor = begin(host)
    await asyncio.sleep(0.01)
    seen = OwnedSession(claim.session.id, 1, claim.run.id, 0, None, None, paused=False, inputs=0, closed=None)
    actor.ends[claim.run.id].set()
    await host._runs[claim.session.id]
    now = OwnedSession(claim.session.id, 1, None, 0, None, None, paused=False, inputs=0, closed=None)

    async def owned(*_):
        return {claim.session.id: now} if since == "ended" else {}

    monkeypatch.setattr(module, "owned_sessions", owned)
    await host._give_up(seen)
    assert actor.told == []
    assert host._actors[claim.session.id] is actor


async def test_an_idle_process_that_has_to_go_does_not_cost_a_run_that_has_just_begun(host, monkeypatch):
    claim, actor = begin(host)
    await asyncio.sleep(0.01)
    actor.ends[claim.run.id].set()
    await host._runs[claim.session.id]
    excess = [(actor, "too much")]

    async def measure(_):
        return None

    monkeypatch.setattr(host._memory, "measure", measure)
    monkeypatch.setattr(host._memory, "pick_excess", lambda *_: excess.pop() if excess else None)
    async with host._choosing:
        bounding = asyncio.create_task(host._bound_memory())
        await asyncio.sleep(0.01)
        run = SimpleNamespace(id=clock.uuid7())
        host._begin(SimpleNamespace(session=claim.session, run=run, epoch=1, origin=Origin.QUEUED))
    await bounding
    assert actor.told == []
    actor.ends[run.id].set()
    await host._runs[claim.session.id]
