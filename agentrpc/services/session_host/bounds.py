"""The limits of one session's live process: set before it starts, looked after by `watch.py`, gone with it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agentrpc.claude.cgroups import Cgroups, Events, Group
from agentrpc.claude.launcher import Isolation
from agentrpc.claude.limits import Limits, give_way, strike
from agentrpc.claude.process_usage import (
    Held,
    Look,
    disk_held,
    look_at,
    memory_held,
    memory_of,
    processes_below,
)
from agentrpc.services.session_limits import SETTING_OF, limits_of
from agentrpc.settings import Settings
from agentrpc.v1 import session_pb2

__all__ = ["Bounded", "Breach", "SessionBounds", "breach_of"]

_GIB, _MIB = 1024**3, 1024**2


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that was passed.

    Attributes:
        reason: A name of `RunError.Reason`.
        message: For people, with a remedy.
    """

    reason: str
    message: str


def breach_of(field: str, what: str) -> Breach:
    """What is told when a limit was passed.

    Args:
        field: The field of `ResourceLimits`.
        what: What has happened.
    """
    reason, remedy = {
        "memory_bytes": ("REASON_OUT_OF_MEMORY", "let it do less at once"),
        "processes": ("REASON_TOO_MANY_PROCESSES", "let it do less at once"),
        "open_files": ("REASON_OUT_OF_MEMORY", "let it do less at once"),
    }.get(field, ("REASON_WORKSPACE_FULL", "remove files with DeleteFile, or let the next run do it"))
    raised = f"or raise the session's limits.{field}, as far as the operator allows ({SETTING_OF[field]})"
    return Breach(reason, f"{what}: {remedy}, {raised}")


@dataclass(frozen=True, slots=True)
class Bounded:
    """The process trees of a session that is alive, and what they may use.

    Attributes:
        limits: What they may use.
        roots: Their first processes: that of the CLI, and those of MCP servers beside it.
        sandboxed: Whether they have a /tmp of their own.
        folders: What counts as the session's files.
        group: Their cgroup; None: they have none.
        leaving: Whether they are being ended anyway, which takes a moment in which they can do much.
    """

    limits: Limits
    roots: Sequence[int]
    sandboxed: bool
    folders: Sequence[Path]
    group: Group | None = None
    leaving: bool = False

    def look(self) -> Look:
        """What they use. Blocks."""
        return look_at(self.roots, sandboxed=self.sandboxed)

    def held(self) -> int:
        """Bytes of memory that they keep in files without a name. Blocks, and costs more than a look."""
        return memory_held(processes_below(self.roots))

    def held_on_disk(self) -> Held:
        """What files without a name take where their files are. Blocks."""
        return disk_held(processes_below(self.roots), self.folders)

    def memory(self) -> int:
        """Bytes of memory that they use: what processes share counts once. Blocks, and costs more than a look."""
        pids = processes_below(self.roots)
        return memory_of(pids, in_files=self.look().in_files, held=memory_held(pids))

    def breach(self, look: Look, held: int) -> Breach | None:
        """What they have passed by now, but for their files on disk. Blocks.

        Args:
            look: The last one.
            held: Bytes of memory in files without a name.
        """
        limits = self.limits
        if (passed := kernel_breach(self.group, limits)) is not None:
            return passed
        if look.tasks > limits.processes:
            return _too_many(limits)
        if look.tmp_files > 2 * limits.tmp_files:
            return breach_of("tmp_bytes", f"its /tmp has more than {limits.tmp_files} files")
        if look.descriptors > limits.descriptors:
            return breach_of("open_files", f"its processes had more than {limits.descriptors} files open together")
        if limits.memory is None or look.memory + held <= limits.memory:
            return None
        return None if self.memory() <= limits.memory else _too_much(limits)

    def give_way(self, *, busy: bool) -> None:
        """Let its tools go behind others, or not any more. Blocks."""
        if self.group is None or not self.group.shares_processors:
            give_way(self.roots, busy=busy)

    def strike(self) -> None:
        """Kill them at once; who owns them makes sure. Blocks."""
        if self.group is None or not self.group.kill():
            strike(self.roots)


def kernel_breach(group: Group | None, limits: Limits) -> Breach | None:
    """What the kernel says that the processes of a cgroup have passed."""
    events = group.events() if group is not None else Events()
    if events.out_of_memory:
        return _too_much(limits)
    return _too_many(limits) if events.refused_processes else None


def _too_many(limits: Limits) -> Breach:
    return breach_of("processes", f"it had more than {limits.processes} processes and threads")


def _too_much(limits: Limits) -> Breach:
    size = limits.memory or 0
    text = f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"
    return breach_of("memory_bytes", f"its processes used more than {text} of memory")


class SessionBounds:
    """Those of one session, process after process.

    Args:
        settings: The operator's.
        cgroups: Where cgroups can be made.
        isolation: How process trees are kept apart.
        session_id: Whose.
    """

    def __init__(self, settings: Settings, cgroups: Cgroups, isolation: Isolation, session_id: UUID) -> None:
        self._settings = settings
        self._cgroups = cgroups
        self._isolation = isolation
        self._name = str(session_id)
        self._group: Group | None = None
        self.limits = Limits()
        self.breach: Breach | None = None

    @property
    def folder(self) -> Path | None:
        """That of the cgroup in which the process starts; None: there is none."""
        return None if self._group is None else self._group.folder

    async def open(self, options: session_pb2.SessionOptions) -> None:
        """Before a process with these options starts."""
        self.breach = None
        self.limits = limits_of(self._settings, options)
        self._group = await asyncio.to_thread(self._cgroups.make, self._name, self.limits)

    async def close(self) -> bool:
        """End what is left of the process, and note what it had passed. Returns whether nothing is left."""
        group, self._group = self._group, None
        if group is None:
            return True
        self.breach = kernel_breach(group, self.limits)
        return await asyncio.to_thread(group.remove)

    def of(self, roots: Sequence[int], folders: Sequence[Path], *, leaving: bool) -> Bounded:
        """What there is to look at while the process is alive."""
        return Bounded(self.limits, roots, self._isolation is Isolation.BUBBLEWRAP, folders, self._group, leaving)
