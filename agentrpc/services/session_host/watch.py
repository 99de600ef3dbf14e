"""Looks after the limits of a worker's sessions, where the kernel does not, and ends what has passed one.

Signals that cost next to nothing are read ten times a second: how many tasks the machine has, and how much memory is
left. Only when they have moved, and now and then, process trees are looked at; and only when a look leaves room for it
that a session's files have become too many, they are added up, by a process of its own. So a fork bomb or a memory hog
is seen within a tenth of a second, quiet sessions cost nothing to speak of, and what is found is ended at once.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import structlog

from agentrpc.claude.limits import Limits
from agentrpc.claude.process_usage import Look
from agentrpc.errors import StoreUnavailable
from agentrpc.services.session_host.actor import SessionActor
from agentrpc.services.session_host.bounds import Bounded, Breach
from agentrpc.services.session_host.usage import Disk, Usage, measure
from agentrpc.settings import Settings

__all__ = ["LimitWatch"]

log = structlog.get_logger()

_TICK = 0.1
# Between two looks, when nothing has moved.
_LOOK_INTERVAL = 1.0
_MORE_TASKS = 64
_LESS_MEMORY = 64 * 1024**2
# Of the machine's files in memory, until those without a name are looked for.
_MORE_IN_FILES = 16 * 1024**2
# Seconds of a processor since the last look, after which the next one comes sooner.
_BUSY = 0.2
_BUSY_INTERVAL = 0.3
# Processors of which a session uses so many: its tools go behind others. And how long until it is asked again.
_MUCH = 0.7
_MUCH_INTERVAL = 1.0
# Between two times that files are added up: at least so long, and so many times as long as it took.
_FILES_INTERVAL = 60.0
# The first time waits until a process has started, unless that writes so much.
_FILES_FIRST, _FILES_MUCH = 1.5, 16 * 1024**2
_FILES_SHARE = 50
_FILES_URGENT_SHARE = 4
_FILES_AT_ONCE = 2
_MIB = 1024**2


@dataclass(slots=True)
class _Session:
    """What is known of one session.

    Attributes:
        look: The last one.
        since: When the first one was.
        held: Bytes of memory in files without a name, when the machine's files in memory had grown last.
        busy: Whether its tools go behind others.
        used: When that was decided, and how much of the processors it had used then.
        recent: Seconds of processor time since the one before.
        written: Bytes written since then.
        run: The run under way when its files were added up last.
        began: What they took when that run began, if it was too much.
        usage: What its files took then; None: not known yet.
        then: The disk then, and what it had written and done.
        next_files: When they may be added up again if that is urgent, and when if not.
    """

    look: Look
    since: float
    busy: bool
    used: tuple[float, float]
    held: int = 0
    recent: float = 0.0
    written: int = 0
    run: UUID | None = None
    began: Usage | None = None
    usage: Usage | None = None
    then: tuple[Disk, Look] | None = None
    next_files: tuple[float, float] = (0.0, 0.0)


class LimitWatch:
    """Looks after the sessions of one worker.

    Args:
        settings: `min_free_space`.
        actors: The worker's sessions, as they are at any time.
        end: Ends a session's processes for a breach: its run fails.
        together: How much memory all may use, and what to do when that is more.
    """

    def __init__(
        self,
        settings: Settings,
        actors: Mapping[UUID, SessionActor],
        end: Callable[[SessionActor, Breach], Coroutine[Any, Any, None]],
        together: tuple[int, Callable[[], Coroutine[Any, Any, None]]],
    ) -> None:
        self._floor = settings.min_free_space
        self._actors = actors
        self._end = end
        self._together, self._bound_all = together
        self._sessions: dict[UUID, _Session] = {}
        self._files: dict[UUID, asyncio.Task[None]] = {}
        self._endings: dict[UUID, asyncio.Task[None]] = {}
        self._adding = asyncio.Semaphore(_FILES_AT_ONCE)
        self._next_look = 0.0
        self._machine = _Machine(0, 0, 0)
        self._in_files = 0

    async def run(self) -> None:
        """Until cancelled."""
        with ThreadPoolExecutor(1, "limits") as thread:
            try:
                while True:
                    await asyncio.sleep(_TICK)
                    live = {key: bounded for key, each in self._actors.items() if (bounded := each.bounded) is not None}
                    # Of those without a process it is known for the next one what their files took.
                    for key in self._sessions.keys() - self._actors.keys():
                        del self._sessions[key]
                    if live and (self._moved(now := _machine()) or time.monotonic() >= self._next_look):
                        await self._look(thread, live, now)
            finally:
                tasks = [*self._files.values(), *self._endings.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _moved(self, now: "_Machine") -> bool:
        """Whether the machine has many more tasks, or much less memory, than at the last look."""
        then = self._machine
        return now.tasks > then.tasks + _MORE_TASKS or now.memory < then.memory - _LESS_MEMORY

    async def _look(self, thread: ThreadPoolExecutor, live: Mapping[UUID, Bounded], machine: "_Machine") -> None:
        self._machine = machine
        grown = machine.in_files > self._in_files + _MORE_IN_FILES
        self._in_files = machine.in_files if grown else min(self._in_files, machine.in_files)
        held = {key: None if grown else self._held(key) for key in live}
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(thread, _look_at_all, live, held)
        busy = False
        for key, (look, disk, breach, in_files) in found.items():
            if (actor := self._actors.get(key)) is None:
                continue
            session = self._note(key, look, actor, live[key].limits)
            session.held = in_files
            busy = busy or session.recent > _BUSY
            await self._share(thread, session, live[key])
            if breach is not None:
                self._break_off(actor, live[key], breach)
            elif self._files_due(actor, session, live[key].limits, disk) and key not in self._files:
                self._files[key] = asyncio.create_task(self._add_up(actor, session, live[key]), name=f"files-{key}")
                self._files[key].add_done_callback(lambda _, key=key: self._files.pop(key))  # type: ignore[misc]
        self._keep_space(live, found)
        if sum(look.memory + held for look, _, _, held in found.values()) > self._together:
            await self._bound_all()
        self._next_look = time.monotonic() + (_BUSY_INTERVAL if busy else _LOOK_INTERVAL)

    def _held(self, key: UUID) -> int | None:
        session = self._sessions.get(key)
        return None if session is None else session.held

    def _note(self, key: UUID, look: Look, actor: SessionActor, limits: Limits) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            now = time.monotonic()
            session = self._sessions[key] = _Session(look, now, busy=False, used=(now, look.cpu))
        if look.cpu < session.look.cpu and session.then is not None:
            # A new process begins at 0.
            session.then = (session.then[0], Look())
        session.recent = max(look.cpu - session.look.cpu, 0.0)
        session.written = max(look.written - session.look.written, 0)
        session.look = look
        if session.usage is not None and session.usage.within(limits):
            # Whatever this run adds, it began with less.
            session.run, session.began = _run_of(actor), None
        return session

    def _break_off(self, actor: SessionActor, bounded: Bounded, breach: Breach) -> None:
        """Begin to end a session's processes. Meanwhile others are looked after."""
        key = actor.session_id
        if key in self._endings:
            return
        log.warning("limit_passed", session=str(key), reason=breach.reason, what=breach.message)
        self._endings[key] = asyncio.create_task(self._break(actor, bounded, breach), name=f"limit-{key}")
        self._endings[key].add_done_callback(lambda _: self._endings.pop(key))

    async def _break(self, actor: SessionActor, bounded: Bounded, breach: Breach) -> None:
        if bounded.leaving:
            await asyncio.to_thread(bounded.strike)
            return
        # The reason first: the end of the processes is not to be taken for a crash.
        ending = asyncio.create_task(self._end(actor, breach))
        await asyncio.sleep(0)
        await asyncio.to_thread(bounded.strike)
        # Whether or not the store is there: the processes are not any more.
        with contextlib.suppress(StoreUnavailable):
            await ending

    async def _share(self, thread: ThreadPoolExecutor, session: _Session, bounded: Bounded) -> None:
        now, (then, used) = time.monotonic(), session.used
        if now - then < _MUCH_INTERVAL:
            return
        busy, was = (session.look.cpu - used) / (now - then) > _MUCH, session.busy
        session.busy, session.used = busy, (now, session.look.cpu)
        if busy or was:
            # Also when it was so before: there may be new processes.
            await asyncio.get_running_loop().run_in_executor(thread, lambda: bounded.give_way(busy=busy))

    # ---- Files ----

    def _files_due(self, actor: SessionActor, session: _Session, limits: Limits, disk: Disk) -> bool:
        now, usage = time.monotonic(), session.usage
        if usage is None or session.then is None:
            return now >= session.since + _FILES_FIRST or session.look.written > _FILES_MUCH
        if _run_of(actor) != session.run:
            # It had too much. Perhaps somebody has removed some.
            return True
        (before, look), (urgent, later) = session.then, session.next_files
        more = max(disk.used - before.used, session.look.written - look.written)
        possible = Usage(usage.bytes + more, usage.files + max(disk.files - before.files, 0), usage.too_deep)
        if not possible.within(limits, session.began):
            return now >= urgent
        return now >= later and session.look.cpu - look.cpu > _BUSY

    async def _add_up(self, actor: SessionActor, session: _Session, bounded: Bounded) -> None:
        run = _run_of(actor)
        async with self._adding:
            began, disk, look = time.monotonic(), await asyncio.to_thread(Disk.of, bounded.folders), session.look
            usage = await measure(bounded)
        took = time.monotonic() - began
        now = time.monotonic()
        session.next_files = (now + _FILES_URGENT_SHARE * took, now + max(_FILES_INTERVAL, _FILES_SHARE * took))
        if usage is None:
            return
        if run != session.run or session.usage is None:
            session.run, session.began = run, None if usage.within(bounded.limits) else usage
            if session.began is not None and run is not None:
                actor.say_full(usage.breach(bounded.limits).message)
        session.usage, session.then = usage, (disk, look)
        # One that began meanwhile is another's matter: it is looked at by itself.
        if not usage.within(bounded.limits, session.began) and run == _run_of(actor):
            self._break_off(actor, bounded, usage.breach(bounded.limits))

    def _keep_space(self, live: Mapping[UUID, Bounded], found: Mapping[UUID, "_Found"]) -> None:
        """Where a file system is nearly full, who writes most to it has to stop."""
        writing = [key for key, each in found.items() if each.disk.free < self._floor and key in self._sessions]
        most = max(writing, key=lambda key: self._sessions[key].written, default=None)
        if most is None or most not in self._actors or self._sessions[most].written < _MIB:
            return
        breach = Breach(
            "REASON_WORKSPACE_FULL",
            f"the file system of its files had less than {self._floor // _MIB} MiB left, and it wrote most: remove "
            "files, or have the operator make room (min_free_space)",
        )
        self._break_off(self._actors[most], live[most], breach)


def _run_of(actor: SessionActor) -> UUID | None:
    return actor.run.id if actor.run is not None else None


class _Found(NamedTuple):
    """What was found of one session."""

    look: Look
    disk: Disk
    breach: Breach | None
    held: int


def _look_at_all(live: Mapping[UUID, Bounded], held: Mapping[UUID, int | None]) -> dict[UUID, _Found]:
    """Look at all sessions.

    Args:
        live: The sessions.
        held: Bytes of memory in files without a name, where these are not to be looked for.
    """
    found = {}
    for key, bounded in live.items():
        look, known = bounded.look(), held[key]
        in_files = bounded.held() if known is None else known
        found[key] = _Found(look, Disk.of(bounded.folders), bounded.breach(look, in_files), in_files)
    return found


class _Machine(NamedTuple):
    """What the whole machine has: tasks, bytes of memory that are left, bytes of memory in files."""

    tasks: int
    memory: int
    in_files: int


def _machine() -> _Machine:
    """Tasks as proc_loadavg(5) says."""
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    memory = psutil.virtual_memory()
    return _Machine(tasks, memory.available, memory.shared)
