"""The host's runs: one after the other in a session, drained, and left alone by what was known of them before."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation
from agentrpc.claude.workspaces import WorkspaceError, WorkspaceStore
from agentrpc.services.session_host import cleaning as cleaning_module
from agentrpc.services.session_host import host as module
from agentrpc.store.housekeeping import sessions_to_clean
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
    return module.SessionHost(database, bus, settings, SimpleNamespace(), None, Isolation.SUBREAPER)


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


# ---- Files of closed sessions ----


@pytest.fixture
async def closed(add_session, database, host):
    """Deleted sessions with files that are still there."""
    made = [await add_session() for _ in range(3)]
    for session_id in made:
        host._env.workspaces.create(session_id)
    async with database.connection() as connection:
        await connection.execute("UPDATE session_heads SET closed = 'ARCHIVED'")
        await connection.execute("UPDATE sessions SET delete_time = now()")
    return made


def cleaner_of(host):
    return cleaning_module.Cleaner(host._database, host._settings, host._env.workspaces, host._closing)


async def there(host, database):
    """How many folders are where sessions have them, and how many sessions are said to have none."""
    folders = [path for path in host._settings.workspaces.iterdir() if path.name != "removed"]
    async with database.connection() as connection:
        return len(folders), await connection.fetchval("SELECT count(*) FROM sessions WHERE clean_time IS NOT NULL")


async def test_a_worker_that_ends_while_it_removes_files_leaves_none_for_ever(host, database, closed, monkeypatch):
    monkeypatch.setattr(cleaning_module, "_CLEAN_INTERVAL", 0.01)
    removing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def remove(_, session_id=None):
        loop.call_soon_threadsafe(removing.set)
        go_on.wait()

    with monkeypatch.context() as patch:
        patch.setattr(WorkspaceStore, "remove_aside", remove)
        cleaning = asyncio.create_task(cleaner_of(host).run())
        await removing.wait()
        cleaning.cancel()
        await asyncio.wait([cleaning])
        go_on.set()
    assert await there(host, database) == (2, 1)
    # The next one does the rest, and finds what was left.
    removed = host._settings.workspaces / "removed"
    assert list(removed.iterdir())
    cleaning = asyncio.create_task(cleaner_of(host).run())
    async with asyncio.timeout(20):
        while await there(host, database) != (0, 3) or list(removed.iterdir()):  # noqa: ASYNC110 - no bell
            await asyncio.sleep(0.01)
    cleaning.cancel()
    await asyncio.wait([cleaning])


async def test_files_that_cannot_be_removed_hold_up_no_others_and_are_tried_again(host, database, closed, monkeypatch):
    set_aside = WorkspaceStore.set_aside

    def refuse(store, session_id):
        if session_id == closed[0]:
            raise WorkspaceError("could not remove the workspace: Input/output error")
        set_aside(store, session_id)

    with monkeypatch.context() as patch:
        patch.setattr(WorkspaceStore, "set_aside", refuse)
        await cleaner_of(host)._clean_closed()
    assert await there(host, database) == (1, 2)
    await cleaner_of(host)._clean_closed()
    assert await there(host, database) == (0, 3)


async def test_a_session_is_cleaned_by_one_worker_and_only_while_nobody_holds_it(host, database, closed):
    assert len(await sessions_to_clean(database, 2)) == 2
    async with database.connection() as connection:
        await connection.execute("UPDATE session_heads SET worker = $1 WHERE session_id = $2", clock.uuid7(), closed[0])
    # What was found before.
    done = await asyncio.gather(*[cleaner_of(host)._clean_workspace(session_id) for session_id in closed * 2])
    assert sum(done) == 2
    assert await there(host, database) == (1, 2)
