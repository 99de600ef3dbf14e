"""The host of a worker's sessions: claims runs, keeps actors, looks at intents, evicts what is idle, stops clean.

A doorbell only says that there may be work. What there is, Postgres says: on a doorbell and every two seconds, so that
a queued run needs no Redis.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import ChainMap
from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

import structlog

from agentrpc import __version__, clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.agent import bundled_cli
from agentrpc.claude.agent_users import AgentUsers
from agentrpc.claude.cgroups import Cgroups
from agentrpc.claude.launcher import Isolation
from agentrpc.claude.version import cli_version
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError, LeaseLostError, StoreUnavailable
from agentrpc.services.network import EgressMaker, Gateway
from agentrpc.services.session_host.actor import SessionActor
from agentrpc.services.session_host.beginnings import first_events
from agentrpc.services.session_host.bounds import Breach
from agentrpc.services.session_host.cleaning import Cleaner
from agentrpc.services.session_host.lease import LeaseKeeper
from agentrpc.services.session_host.memory import MemoryBound
from agentrpc.services.session_host.process import Environment
from agentrpc.services.session_host.watch import LimitWatch
from agentrpc.services.tool_servers import Toolbox
from agentrpc.services.vault import Vault
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.housekeeping import has_waiting
from agentrpc.store.leases import (
    Claim,
    Origin,
    OwnedSession,
    claim_next,
    declare_dead,
    give_up,
    owned_sessions,
    register_worker,
    release,
    retire_worker,
)
from agentrpc.telemetry import TAKEOVERS

__all__ = ["SessionHost"]

_Loop = Callable[[], Awaitable[None]]

log = structlog.get_logger()

_LOOK_INTERVAL = 1.0
_MEMORY_INTERVAL = 2.0
_ABANDON_SECONDS = 10.0
# What the database was told last before it could not be reached is done by then, or never.
_UNSURE_SECONDS = 60.0


class SessionHost:
    """One worker's sessions.

    Args:
        database: The store.
        bus: Signals and the live tail.
        settings: How many, how long.
        gateway: The model gateway.
        egress: Makes what leads out of agents' own networks.
        isolation: How process trees are kept apart.
        report: Gets this worker's id, and when its parent has to kill it, by `clock.boottime`.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        settings: Settings,
        gateway: Gateway,
        egress: EgressMaker,
        isolation: Isolation,
        report: Callable[[UUID, float], None] = lambda *_: None,
    ) -> None:
        self.worker_id = clock.uuid7()
        self._database = database
        self._bus = bus
        self._settings = settings
        self._lease = LeaseKeeper(
            settings.database_url.get_secret_value(),
            self.worker_id,
            settings.lease_ttl,
            self._on_lease_lost,
            # Half of T_kill is for the worker to end by itself.
            lambda deadline: report(self.worker_id, deadline + settings.kill_timeout / 2),
        )
        workspaces = WorkspaceStore(
            settings.workspaces,
            checkpoint_limit=settings.checkpoint_limit,
            checkpoints_kept=settings.checkpoints_kept,
        )
        self._toolbox = Toolbox(settings)
        self._users = None
        if isolation is Isolation.USER:
            self._users = AgentUsers(settings.agent_uids, settings.data_dir, settings.workspaces)
        self._env = Environment(
            database,
            bus,
            settings,
            gateway,
            egress,
            isolation,
            workspaces,
            self._toolbox,
            Vault(database, settings),
            self._lease.valid,
            self._users,
            Cgroups.find(),
        )
        self._memory = MemoryBound(settings)
        self._actors: dict[UUID, SessionActor] = {}
        self._leaving: dict[UUID, SessionActor] = {}
        # Those that leave first: until they have, the next ones have no process.
        watched = ChainMap(self._leaving, self._actors)
        self._watch = LimitWatch(settings, watched, self._end_for, (self._memory.together, self._bound_memory))
        self._runs: dict[UUID, asyncio.Task[None]] = {}
        self._closing: dict[UUID, asyncio.Task[None]] = {}
        # Whether this worker may still own sessions for which it has no actor any more.
        self._left_over = False
        self._unsure_until = 0.0
        self._cli: tuple[int, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._signals: set[UUID] = set()
        self._signalled = asyncio.Event()
        self._signal_feed = bus.worker_subscription(self._on_signal)
        self._draining = False
        # No session is claimed while it is being given back: under one epoch there is one writer.
        self._choosing = asyncio.Lock()
        self.fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Register and begin to claim."""
        self._cli = await asyncio.to_thread(cli_version, self._settings.cli_path)
        if self._users is not None:
            await asyncio.to_thread(self._users.prepare, self._settings.cli_path or bundled_cli())
        await register_worker(
            self._database,
            self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            ttl=self._settings.lease_ttl,
            isolation_level=self._env.isolation.level,
        )
        await asyncio.to_thread(self._env.cgroups.prepare)
        self._lease.start()
        await self._signal_feed.subscribe(self.worker_id)
        loops = {
            "claim": self._claim_loop,
            "look": self._look_loop,
            "evict": self._evict_loop,
            "limits": self._watch.run,
            # By itself: to remove large folders takes its time.
            "clean": Cleaner(self._database, self._settings, self._env.workspaces, self._closing).run,
        }
        self._tasks = [asyncio.create_task(self._for_ever(name, loop), name=name) for name, loop in loops.items()]
        log.info(
            "worker_ready",
            worker=str(self.worker_id),
            isolation=str(self._env.isolation),
            limits=self._env.cgroups.text,
            cli=".".join(map(str, self._cli)) or "unknown",
        )

    def ring(self) -> None:
        """The doorbell: there may be work."""
        self._work.set()

    async def stop(self, grace: float) -> None:
        """Stop clean: nothing new is claimed; runs end, or halt at their next tool call and are given back.

        What is still under way after `grace` seconds is given back as it is: another worker takes it up at once.
        """
        self._draining = True
        if self._runs:
            log.info("worker_draining", runs=len(self._runs))
            for actor in self._actors.values():
                actor.drain()
            deadline = time.monotonic() + grace
            # Also for one whose claim was on its way.
            while self._runs and (left := deadline - time.monotonic()) > 0:
                await asyncio.wait(list(self._runs.values()), timeout=left)
        if self._runs and self._lease.valid():
            for actor in self._actors.values():
                actor.abandon()
            await asyncio.wait(list(self._runs.values()), timeout=_ABANDON_SECONDS)
        unfinished = bool(self._runs)
        await end_tasks([*self._tasks, *self._runs.values()])
        for actor in list(self._actors.values()):
            self._close(actor)
        await asyncio.gather(*self._closing.values(), return_exceptions=True)
        await self._signal_feed.close()
        self._lease.stop()
        with contextlib.suppress(AgentRpcError):
            if unfinished:
                # Its last process is gone: whatever it could not give back may be taken.
                await declare_dead(self._database, [self.worker_id])
            else:
                await retire_worker(self._database, self.worker_id)
        if self._users is not None:
            self._users.close()
        log.info("worker_stopped", unfinished=unfinished)

    def _on_signal(self, session_id: UUID) -> None:
        self._signals.add(session_id)
        self._signalled.set()
        self._work.set()

    def _on_lease_lost(self) -> None:
        # Self-fencing: everything ends here before anyone else may begin.
        log.error("lease_lost", worker=str(self.worker_id))
        if not self.fatal.done():
            self.fatal.set_result(None)

    async def _for_ever(self, name: str, loop: _Loop) -> None:
        while True:
            try:
                await loop()
            except asyncio.CancelledError:
                raise
            except AgentRpcError as error:
                log.warning("loop_paused", loop=name, reason=error.reason)
            except Exception:
                log.exception("loop_failed", loop=name)
            await asyncio.sleep(clock.jitter(0.5))

    # ---- Claiming ----

    async def _claim_loop(self) -> None:
        begun_first = False
        while True:
            # Before the claims: a bell that rings during the last of them is not lost.
            self._work.clear()
            while not self._draining and self._lease.valid():
                may_take_new = await self._make_room()
                async with self._choosing:
                    claim = await self._claim(may_take_new=may_take_new, begun_first=begun_first)
                    begun_first = not begun_first
                    if claim is None:
                        break
                    self._begin(claim)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(clock.jitter(self._settings.poll_interval, 0.1)):
                    await self._work.wait()

    async def _claim(self, *, may_take_new: bool, begun_first: bool) -> Claim | None:
        try:
            return await claim_next(
                self._database,
                self.worker_id,
                may_take_new=may_take_new,
                begun_first=begun_first,
                isolation_level=self._env.isolation.level,
                cli=self._cli,
                begin=lambda session, run, origin: first_events(
                    session, run, origin=origin, warm=self._is_warm(session.id)
                ),
            )
        except StoreUnavailable:
            # It may have been committed: then this worker has a run that it does not know of.
            self._unsure_until = time.monotonic() + _UNSURE_SECONDS
            raise

    def _is_warm(self, session_id: UUID) -> bool:
        actor = self._actors.get(session_id)
        return actor is not None and actor.has_process

    async def _make_room(self) -> bool:
        """Whether one more session fits, after idle ones, used least recently, have gone if need be."""
        while True:
            free = self._settings.max_processes - len(self._runs)
            if free <= 0:
                return False
            # A session whose process has ended takes no place: to give it back first would only delay the claim.
            idle = [each for each in self._actors.values() if each.has_process and each.session_id not in self._runs]
            if len(idle) < free and self._memory.has_room([*self._runs, *(actor.session_id for actor in idle)]):
                return True
            # A queue that is empty must not cost a warm process: evict only when the claim has something to gain.
            if not idle or not await has_waiting(self._database, self.worker_id, self._cli, self._env.isolation.level):
                return False
            await self._evict(min(idle, key=lambda actor: actor.idle_since))

    def _begin(self, claim: Claim) -> None:
        session_id = claim.session.id
        if claim.origin is Origin.LOST:
            TAKEOVERS.inc()
        actor = self._actors.get(session_id)
        if actor is not None and actor.epoch != claim.epoch:
            # It was ours, was lost, and is ours again: the old actor has nothing to say any more.
            self._close(actor)
            actor = None
        if actor is None:
            actor = self._actors[session_id] = SessionActor(self._env, claim)
        if self._draining:
            actor.drain()
        before = self._runs.get(session_id)
        task = asyncio.create_task(self._carry_out(actor, claim, before), name=f"run-{claim.run.id}")
        self._runs[session_id] = task

        def done(finished: asyncio.Task[None]) -> None:
            if self._runs.get(session_id) is finished:
                del self._runs[session_id]
            self._work.set()

        task.add_done_callback(done)

    async def _carry_out(self, actor: SessionActor, claim: Claim, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                # Its end is committed, or this run could not have been claimed; it may not have been told so yet.
                await asyncio.wait([before])
                if self._actors.get(actor.session_id) is not actor:
                    # It ended in trouble, and its actor with it: another epoch is to go on.
                    return
            if (closing := self._closing.get(actor.session_id)) is not None:
                # Two processes must not work in the same folders.
                await asyncio.wait([closing])
            if not await actor.carry_out(claim):
                await self._drop(actor)
        except LeaseLostError as error:
            log.warning("session_lost", session=str(actor.session_id), epoch=actor.epoch, detail=str(error))
            await self._drop(actor)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("actor_failed", session=str(actor.session_id))
            await self._drop(actor)

    async def _drop(self, actor: SessionActor) -> None:
        await asyncio.wait([self._close(actor)])

    def _close(self, actor: SessionActor) -> asyncio.Task[None]:
        """End an actor that is not to be used again. The next one of its session begins when this is done."""
        session_id = actor.session_id
        if self._actors.get(session_id) is actor:
            del self._actors[session_id]
        self._leaving[session_id] = actor
        task = self._closing[session_id] = asyncio.create_task(actor.close(), name=f"close-{session_id}")

        def done(finished: asyncio.Task[None]) -> None:
            if self._closing.get(session_id) is finished:
                del self._closing[session_id]
                del self._leaving[session_id]
            self._left_over = True
            self._signalled.set()

        task.add_done_callback(done)
        return task

    # ---- Intents ----

    async def _look_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_INTERVAL):
                    await self._signalled.wait()
            self._signalled.clear()
            self._signals.clear()
            if not self._actors and not self._left_over and time.monotonic() > self._unsure_until:
                continue
            # Before it is asked what the store knows of them: one that comes meanwhile is not in the answer.
            actors = list(self._actors.items())
            heads = await owned_sessions(self._database, self.worker_id)
            for session_id, actor in actors:
                if self._actors.get(session_id) is not actor:
                    continue
                head = heads.get(session_id)
                if head is not None and head.epoch == actor.epoch:
                    await actor.look(head)
                    unfit = head.needed_level > self._env.isolation.level
                    if (head.closed or head.paused or unfit) and session_id not in self._runs:
                        await self._evict(actor)
                elif session_id not in self._runs:
                    self._close(actor)
            await self._give_back(heads)

    async def _give_back(self, heads: Mapping[UUID, OwnedSession]) -> None:
        """Give back what this worker holds in the store and does nothing for.

        Idle sessions whose actors were closed because the epoch was taken from them; and runs whose claim was committed
        without this worker's knowing, or whose actor has failed.
        """
        self._left_over = bool(self._closing)
        for session_id, head in heads.items():
            if session_id in self._runs or session_id in self._closing:
                continue
            if head.active_run is not None:
                await self._give_up(head)
            elif session_id not in self._actors:
                self._left_over = True
                await release(self._database, session_id, head.epoch)

    async def _give_up(self, head: OwnedSession) -> None:
        async with self._choosing:
            # Looked at again: a claim may just have got through to here.
            if head.session_id in self._runs:
                return
            self._left_over = True
            if (actor := self._actors.get(head.session_id)) is not None:
                now = (await owned_sessions(self._database, self.worker_id)).get(head.session_id)
                if now is None or (now.epoch, now.active_run) != (head.epoch, head.active_run):
                    return
                await self._drop(actor)
            if await give_up(self._database, self.worker_id, head):
                log.warning("run_given_up", session=str(head.session_id), run=str(head.active_run))
                self._work.set()

    # ---- Eviction ----

    async def _evict_loop(self) -> None:
        measured = 0.0
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for session_id, actor in list(self._actors.items()):
                if session_id not in self._runs and now - actor.idle_since > self._settings.idle_ttl:
                    await self._evict(actor)
            if now - measured > _MEMORY_INTERVAL:
                measured = now
                await self._bound_memory()

    async def _bound_memory(self) -> None:
        """End what uses too much: an idle process just goes, a run fails and says why."""
        await self._memory.measure(self._actors)
        while excess := self._memory.pick_excess(self._actors, self._runs):
            actor, why = excess
            log.warning("out_of_memory", session=str(actor.session_id))
            await self._end_for(actor, Breach("REASON_OUT_OF_MEMORY", why))

    async def _end_for(self, actor: SessionActor, breach: Breach) -> None:
        if actor.session_id in self._runs:
            actor.fail(breach.reason, breach.message)
        else:
            # A run that begins meanwhile has done nothing yet: it gets another process.
            await self._evict(actor)

    async def _evict(self, actor: SessionActor) -> bool:
        """Let an idle session go: its last transcript line is written before the lease is given back."""
        async with self._choosing:
            if actor.session_id in self._runs:
                return False
            await self._drop(actor)
            await release(self._database, actor.session_id, actor.epoch)
            return True
