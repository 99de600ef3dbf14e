"""Cgroups of sessions, where this process may make some: version 2, as Documentation/admin-guide/cgroup-v2.rst has it.

A delegated cgroup (systemd's `Delegate=`, a container with its own that it may write to) is divided in two levels: one
leaf for what was in it, this worker among that, and one for each session, because a cgroup that has controllers for
those below it may hold no processes itself. Root without a delegation makes those of sessions at the top of the
hierarchy, where that rule does not hold, and moves nothing.

Not all controllers have to be there. Even without any a cgroup holds a process tree together, and ends it at once.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from agentrpc.claude.limits import Limits

__all__ = ["Cgroups", "Events", "Group", "machine_memory"]

log = structlog.get_logger()

# What sessions' are bounded by. Without the processor's they get shares as the kernel gives them.
CONTROLLERS = ("memory", "pids", "cpu")
_LEAF = "agentrpc-worker"
_PREFIX = "agentrpc-session-"
_OURS = re.compile(rf"{_PREFIX}(\d+)-")
_ROUNDS = 20
_PERIOD = 100_000
# Of 100, what a session has: the worker relays for all of them.
_WORKER_WEIGHT = 500
_REMOVE_SECONDS = 5.0
_OLD = 60.0
_FOLDER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Events:
    """What the kernel has refused to a cgroup's processes, or done to them.

    Attributes:
        out_of_memory: How often it has killed some of them for memory.
        refused_processes: How often it has refused to make another.
    """

    out_of_memory: int = 0
    refused_processes: int = 0


class Group:
    """The cgroup of one session's processes.

    Args:
        folder: Where it is.
        controllers: What bounds it.
    """

    def __init__(self, folder: Path, controllers: frozenset[str]) -> None:
        self.folder = folder
        self._controllers = controllers

    @property
    def shares_processors(self) -> bool:
        """Whether the kernel gives it a share of the processors, whatever is in it."""
        return "cpu" in self._controllers

    def events(self) -> Events:
        """What has happened in it."""
        memory, pids = self._counts("memory.events"), self._counts("pids.events")
        return Events(max(memory.get("oom_kill", 0), memory.get("oom_group_kill", 0)), pids.get("max", 0))

    def _counts(self, name: str) -> dict[str, int]:
        found = {}
        with contextlib.suppress(OSError, ValueError):
            for line in (self.folder / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                found[key] = int(value)
        return found

    def kill(self) -> bool:
        """Kill all that is in it. False: this kernel (before 5.14) has no such thing."""
        try:
            (self.folder / "cgroup.kill").write_text("1")
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        """End what is left in it, and it. Blocks: call it in a thread. Returns whether nothing is left."""
        until = time.monotonic() + _REMOVE_SECONDS
        while True:
            self.kill()
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return True
            except OSError:
                if time.monotonic() > until:
                    log.warning("cgroup_not_removed", cgroup=self.folder.name)
                    return False
                time.sleep(0.005)
            else:
                return True


@dataclass(slots=True)
class Cgroups:
    """Where this process may make cgroups.

    Attributes:
        base: The cgroup below which they are; None: nowhere.
        controllers: What can be bounded in them.
        why: For people.
    """

    base: Path | None = None
    controllers: frozenset[str] = frozenset()
    why: str = ""
    _count: int = field(default=0, init=False)

    @classmethod
    def find(cls, *, proc: Path = Path("/proc/self"), root: bool | None = None) -> "Cgroups":
        """Look where some can be made, and change nothing.

        Args:
            proc: The folder of this process.
            root: Whether it is root's. None: as it is.
        """
        mount = _mount_of(proc)
        if mount is None:
            return cls(why="there are no cgroups of version 2")
        folder, top = mount
        own = _own_cgroup(proc, folder, top)
        is_root = os.geteuid() == 0 if root is None else root
        if own is not None and _may_divide(own, is_root=is_root):
            where, what = own, "its cgroup is delegated to it"
        elif is_root and top == "/" and not (folder / "cgroup.type").exists() and _writable(folder):
            where, what = folder, "it is root of the machine"
        else:
            return cls(why="no cgroup is delegated to it (systemd: Delegate=yes)")
        try:
            there = frozenset((where / "cgroup.controllers").read_text().split())
        except OSError as error:
            return cls(why=f"its cgroup cannot be read ({os.strerror(error.errno or 0)})")
        usable = there & frozenset(CONTROLLERS)
        missing = ", ".join(name for name in CONTROLLERS if name not in usable)
        return cls(where, usable, f"{what}, but has no controllers for {missing}" if missing else what)

    @property
    def text(self) -> str:
        """What keeps sessions to their limits, for people."""
        kept = [name for name in CONTROLLERS if name in self.controllers]
        if not kept:
            return f"resource limits and a watcher, without the kernel's help: {self.why}"
        rest = ", a watcher for the rest" if len(kept) < len(CONTROLLERS) else ", a watcher for files"
        return f"cgroup v2 for {', '.join(kept)} ({self.why}){rest}"

    def prepare(self) -> None:
        """Divide the cgroup. What cannot be bounded then is not in `controllers` any more. Blocks."""
        if self.base is None:
            return
        if self.controllers and (self.base / "cgroup.type").exists() and not _empty(self.base):
            self._make_leaf(self.base)
        self.controllers = frozenset(name for name in self.controllers if self._enable(self.base, name))
        _sweep(self.base)

    def _make_leaf(self, base: Path) -> None:
        leaf = base / _LEAF
        with contextlib.suppress(OSError):
            leaf.mkdir(exist_ok=True)
        for _ in range(_ROUNDS):
            for pid in (base / "cgroup.procs").read_text().split():
                # One that has just ended, or is not ours to move: then there are no controllers.
                with contextlib.suppress(OSError):
                    (leaf / "cgroup.procs").write_text(pid)
            if _empty(base):
                return

    def _enable(self, base: Path, name: str) -> bool:
        try:
            (base / "cgroup.subtree_control").write_text(f"+{name}")
            if name == "cpu" and (base / _LEAF).exists():
                (base / _LEAF / "cpu.weight").write_text(str(_WORKER_WEIGHT))
        except OSError as error:
            self.why = f"the controller {name} cannot be used ({os.strerror(error.errno or 0)})"
            return False
        return True

    def make(self, name: str, limits: Limits) -> Group | None:
        """A new cgroup with these limits; None: there can be none, and the watcher has to do. Blocks.

        Args:
            name: Of whom, for people who look.
            limits: How it is bounded.
        """
        if self.base is None:
            return None
        self._count += 1
        folder = self.base / f"{_PREFIX}{os.getpid()}-{name}-{self._count}"
        try:
            folder.mkdir()
        except OSError as error:
            log.warning("cgroup_not_made", error=os.strerror(error.errno or 0))
            return None
        group = Group(folder, self.controllers)
        try:
            for file, value in _values(limits, self.controllers).items():
                (folder / file).write_text(value)
            # Kernels without swap accounting have no such file.
            if "memory" in self.controllers and (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
        except OSError as error:
            log.warning("cgroup_not_made", error=os.strerror(error.errno or 0))
            group.remove()
            return None
        return group


def _values(limits: Limits, controllers: frozenset[str]) -> Mapping[str, str]:
    values = {}
    if "pids" in controllers:
        values["pids.max"] = str(limits.processes)
    if "memory" in controllers and limits.memory is not None:
        # Together: half a session is worth nothing, and what is left of it would go on.
        values |= {"memory.max": str(limits.memory), "memory.oom.group": "1"}
    if "cpu" in controllers and limits.cpus is not None:
        # The kernel takes no odd numbers; with as many as the machine has it is not bounded.
        share = min(limits.cpus, os.cpu_count() or 1)
        values["cpu.max"] = f"{max(int(share * _PERIOD), 1000)} {_PERIOD}"
    return values


# ---- Where ----


def _mount_of(proc: Path) -> tuple[Path, str] | None:
    """Where the hierarchy is mounted, and which cgroup of it that shows (proc_pid_mountinfo(5))."""
    with contextlib.suppress(OSError):
        for line in (proc / "mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            fields = left.split()
            if right.startswith("cgroup2 "):
                return Path(_unescaped(fields[4])), _unescaped(fields[3])
    return None


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _own_cgroup(proc: Path, folder: Path, top: str) -> Path | None:
    """The folder of this process's cgroup, or of the one that has it as its leaf."""
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" or controllers or ".." in path.split("/"):
                continue
            inside = os.path.relpath(path, top)
            own = folder if inside.startswith("..") else folder / inside
            return own.parent if own.name == _LEAF else own
    return None


def _may_divide(own: Path, *, is_root: bool) -> bool:
    """Whether a cgroup is ours to divide: what others keep in theirs, and root could move, is not."""
    if not _writable(own) or not (own / "cgroup.type").exists():
        return False
    if not is_root:
        return True
    # A namespace's, or one that systemd has marked.
    return not (own.parent / "cgroup.procs").exists() or any(
        _marked(own, name) for name in ("trusted.delegate", "user.delegate")
    )


def _marked(own: Path, name: str) -> bool:
    try:
        return os.getxattr(own, name) == b"1"
    except OSError:
        return False


def _writable(folder: Path) -> bool:
    names = ("", "cgroup.procs", "cgroup.subtree_control")
    return all(os.access(folder / name, os.W_OK) for name in names)


def _empty(folder: Path) -> bool:
    return not (folder / "cgroup.procs").read_text().split()


def _sweep(base: Path) -> None:
    """Remove what workers have left that ended in a hurry."""
    for folder in base.glob(f"{_PREFIX}*"):
        found = _OURS.match(folder.name)
        with contextlib.suppress(OSError):
            if found and not Path(f"/proc/{found[1]}").exists() and time.time() - folder.stat().st_mtime > _OLD:
                folder.rmdir()


def machine_memory() -> int:
    """Bytes that this process and its children may use: what the machine has, or less where a cgroup says so."""
    limits = [int(psutil.virtual_memory().total)]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _FOLDER, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _FOLDER / "memory", "memory.limit_in_bytes"
        else:
            continue
        limits += _limits_of(root, Path(path.lstrip("/")), name)
    return min(limits)


def _limits_of(root: Path, group: Path, name: str) -> Iterable[int]:
    # In a container the path may be that of the host: then only the root is there, and is the container's own.
    for folder in (group, *group.parents):
        file = root / folder / name
        if file.exists() and (text := file.read_text().strip()).isdecimal():
            yield int(text)
