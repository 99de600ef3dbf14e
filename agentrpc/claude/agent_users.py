"""Users for agents: with isolation `user` each process tree has a uid, and a gid of the same number, of its own.

Where a worker is root and no sandbox works, this is what keeps one session from another and from the service. Files of
a session belong to its user while it has one. They lie below two folders of the service, the session's own and that of
its workspace, which let that user's group pass and nobody else: its gates. A gate is closed when the session's
processes have ended, so that whoever gets the uid next finds nothing of it open.

Uids are taken from the operator's range in blocks. A worker holds a block by two locks: one for the machine, because of
processes, and one for the folder of workspaces, because of files. So any number of workers share a range, on one
machine or several. A session gets the uid that it had, if it can. All that is not async blocks: call it in a thread.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import threading
from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentrpc.claude.workspace_trees import give_tree, remove_tree

if TYPE_CHECKING:
    from agentrpc.claude.launcher import SessionPaths

__all__ = ["AgentUser", "AgentUsers", "IsolationError", "hand_over", "processes_of", "take_back", "user_trouble"]

_BLOCK = 64
# So many blocks are taken before a session loses its uid to another one.
_ROOMY = 8
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_PROBE_TIMEOUT = 10.0
_REMOVE_SECONDS, _FORGET_SECONDS = 30.0, 5.0
# Where everybody may leave something, beside an agent's own folders.
_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")  # noqa: S108
_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8}
# What the service has in its data dir besides, above all keys.
_CLOSED = ("*.key", "lock", "processes.json", "postgres*", "redis*")
# The column of the uid in /proc/sysvipc, and the call that removes one.
_SYSV = {"shm": (7, "shmctl"), "msg": (7, "msgctl"), "sem": (4, "semctl")}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class IsolationError(RuntimeError):
    """Agents cannot be kept apart here as they should be. The message says what to do."""


@dataclass(frozen=True, slots=True)
class AgentUser:
    """Whose an agent's processes and files are.

    Attributes:
        uid: Its uid, and the number of its only group.
        tmp: Its TMPDIR.
    """

    uid: int
    tmp: Path


def user_trouble(uids: str) -> str | None:
    """What keeps processes here from getting a uid of their own out of this range; None when it works."""
    if os.geteuid():
        return "only root can give agents users of their own"
    if missing := [name for name, bit in _CAPABILITIES.items() if not _capabilities() >> bit & 1]:
        return f"this process lacks the capabilities {', '.join(missing)}, which users of agents need"
    return _drop_trouble(_parse(uids)[-1])


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


@lru_cache
def _drop_trouble(uid: int) -> str | None:
    command = [sys.executable, "-I", "-S", str(_SUPERVISOR), "--try", str(uid)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_TIMEOUT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a process with the uid {uid} does not start ({type(error).__name__})"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        return f"no process can get the uid {uid} here ({said}): set AGENTRPC_AGENT_UIDS to what this container has"
    return None


def _parse(uids: str) -> range:
    first, _, last = uids.partition("-")
    return range(int(first), int(last) + 1)


class AgentUsers:
    """The users that a worker gives to agents.

    Args:
        uids: The operator's range, `first-last`.
        data_dir: What this machine keeps.
        workspaces: The folder of workspaces.
        machine: For what workers of one machine have to know of each other; no agent can reach it.
    """

    def __init__(self, uids: str, data_dir: Path, workspaces: Path, machine: Path = Path("/run/agentrpc")) -> None:
        self._range = _parse(uids)
        self._data = data_dir.resolve()
        self._workspaces = workspaces.resolve()
        self._machine = machine
        self._lock = threading.Lock()
        self._locks: list[int] = []
        self._blocks: set[int] = set()
        # Uids that no session has had, and those that are some session's, the one used last at the end.
        self._fresh: deque[int] = deque()
        self._kept: dict[Path, int] = {}
        self._held: set[int] = set()

    def prepare(self, program: Path) -> None:
        """Make the folders so that agents can pass to their own ones, and to nothing else.

        Args:
            program: What agents are to run.

        Raises:
            IsolationError: They cannot get there, or files cannot be given to them.
        """
        try:
            self._open_ways()
        except OSError as error:
            raise IsolationError(
                f"{error.filename} cannot be opened to agents with uids of their own: {error}"
            ) from error
        for folder in (self._data, self._workspaces):
            _check_way(folder)
            _check_gift(folder, self._range[0])
        _check_way(program)
        if not program.stat().st_mode & stat.S_IXOTH:
            raise IsolationError(f"{program} may not be run by everybody: chmod o+rx it")
        with self._lock:
            if not self._take_block():
                raise self._none_left()

    def _open_ways(self) -> None:
        ours = {self._data / name for name in ("sessions", "mcp", "mcp-checks", "tmp")} | {self._workspaces}
        for folder in (self._data, *ours):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder.chmod(0o711)
        for entry in (entry for pattern in _CLOSED for entry in self._data.glob(pattern)):
            if not entry.is_symlink():
                entry.chmod(stat.S_IMODE(entry.stat().st_mode) & ~0o007)

    def close(self) -> None:
        """Give all uids up, when no process is left."""
        for number in self._locks:
            os.close(number)
        self._locks.clear()
        self._fresh.clear()
        self._kept.clear()

    # ---- One user ----

    def take(self, paths: "SessionPaths") -> "SessionPaths":
        """The folders of a session, with a user that nobody else has until `give_back`.

        Raises:
            IsolationError: All uids are in use.
        """
        with self._lock:
            uid = self._find(paths)
            self._kept.pop(paths.root, None)
            self._kept[paths.root] = uid
            self._held.add(uid)
        return replace(paths, user=AgentUser(uid, self._data / "tmp" / str(uid)))

    async def taken(self, paths: "SessionPaths") -> "SessionPaths":
        """As `take`, in a thread. What was taken is given back if this is cancelled."""
        taking = asyncio.ensure_future(asyncio.to_thread(self.take, paths))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.give_back, await taking)
            raise

    def give_back(self, paths: "SessionPaths") -> None:
        """The processes of a session have ended: close its folders. Its files stay its user's."""
        assert paths.user is not None
        for gate in _gates(paths):
            _close(gate, range(paths.user.uid, paths.user.uid + 1))
        remove_tree(paths.user.tmp, seconds=_REMOVE_SECONDS)
        with self._lock:
            self._held.discard(paths.user.uid)

    def _find(self, paths: "SessionPaths") -> int:
        if (kept := self._kept.get(paths.root)) is not None and kept not in self._held:
            return kept
        with contextlib.suppress(FileNotFoundError):
            # What its files already are, of a worker before this one.
            before = paths.home.stat().st_uid
            if before in self._fresh:
                self._fresh.remove(before)
                if _forget(before):
                    return before
        while self._fresh or (len(self._blocks) < _ROOMY and self._take_block()):
            if _forget(uid := self._fresh.popleft()):
                return uid
        for root, uid in list(self._kept.items()):
            if uid not in self._held and _forget(uid):
                del self._kept[root]
                return uid
        while self._take_block():
            while self._fresh:
                if _forget(uid := self._fresh.popleft()):
                    return uid
        raise self._none_left()

    def _none_left(self) -> IsolationError:
        uids = f"{self._range[0]}-{self._range[-1]}"
        return IsolationError(f"all uids of AGENTRPC_AGENT_UIDS ({uids}) are in use: give it a larger range")

    # ---- Blocks ----

    def _take_block(self) -> bool:
        """Hold a further block. False: there is none."""
        for number in range(-(-self._range[0] // _BLOCK), (self._range[-1] + 1) // _BLOCK):
            if number in self._blocks:
                continue
            folders = (self._machine / "uids", self._workspaces / "uids")
            with contextlib.ExitStack() as stack:
                locks = [_locked(folder / str(number)) for folder in folders]
                for lock in locks:
                    if lock is not None:
                        stack.callback(os.close, lock)
                if None in locks:
                    continue
                uids = range(number * _BLOCK, (number + 1) * _BLOCK)
                self._close_gates(uids)
                stack.pop_all()
            self._locks += [lock for lock in locks if lock is not None]
            self._blocks.add(number)
            self._fresh.extend(uid for uid in uids if not _is_known(uid))
            return True
        return False

    def _close_gates(self, uids: range) -> None:
        """What a worker that was killed has left open."""
        patterns = {self._data: ("sessions/*", "mcp/*/*", "mcp-checks/*"), self._workspaces: ("*",)}
        for folder, names in patterns.items():
            for gate in (gate for name in names for gate in folder.glob(name)):
                _close(gate, uids)


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _locked(path: Path) -> int | None:
    """A descriptor that holds a lock until it is closed; None: another one has it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    return number


def _check_way(to: Path) -> None:
    for folder in to.resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise IsolationError(
                f"agents with uids of their own cannot get to {to}, because {folder} lets nobody pass: "
                f"chmod o+x {folder}, or choose another place"
            )


def _check_gift(folder: Path, uid: int) -> None:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.fchown(file.fileno(), uid, uid)
            given = os.fstat(file.fileno()).st_uid == uid
        except OSError:
            given = False
    if not given:
        raise IsolationError(
            f"files in {folder} cannot be given to other users, as agents with uids of their own need it: use a file "
            "system that has owners, and on which root may change them (no root_squash)"
        )


# ---- Files ----


def hand_over(paths: "SessionPaths") -> None:
    """Give a session's files to its user, and let it get to them. None of its processes is there yet."""
    assert paths.user is not None
    uid = paths.user.uid
    _give(paths, uid)
    remove_tree(paths.user.tmp, seconds=_REMOVE_SECONDS)
    paths.user.tmp.mkdir(mode=0o700)
    os.chown(paths.user.tmp, uid, uid)
    for folder, mode in ((paths.launch, 0o710), (paths.options, 0o750)):
        os.chown(folder, -1, uid)
        folder.chmod(mode)
    # Of an MCP server: the folder of its session's servers.
    paths.root.parent.chmod(0o711)
    for gate in _gates(paths):
        os.chown(gate, -1, uid)
        gate.chmod(0o710)


def take_back(paths: "SessionPaths") -> None:
    """Have a session's files be the worker's own, also those that agents with other users have left."""
    if os.geteuid() == 0:
        _give(paths, 0)


def _give(paths: "SessionPaths", uid: int) -> None:
    for folder in (paths.home, paths.config, paths.workspace):
        opened = os.open(folder, _FOLDER)
        try:
            give_tree(opened, uid)
        finally:
            os.close(opened)


def _gates(paths: "SessionPaths") -> set[Path]:
    return {paths.root, paths.workspace.parent}


def _close(gate: Path, uids: range) -> None:
    """Close a gate if it is open to one of these: another worker may have opened it to its own meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        if gate.lstat().st_gid in uids:
            gate.chmod(0o700)
            os.chown(gate, -1, 0)


# ---- What a user leaves behind ----


def processes_of(uid: int) -> list[int]:
    """The processes that have this uid, as any of their four, and have not ended. Quick, also where there are many."""
    found = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                # Root's, too: so it looks if a process does not let others look into it.
                if not entry.name.isdecimal() or entry.stat().st_uid not in {uid, 0}:
                    continue
                lines = Path(entry.path, "status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                if str(uid) in status["Uid"].split() and not status["State"].strip().startswith("Z"):
                    found.append(int(entry.name))
    return found


def _forget(uid: int) -> bool:
    """Remove what a user has left where everybody may leave something. False: that, or a process of it, stays."""
    if processes_of(uid):
        return False
    for folder in _SHARED:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    own = entry.stat(follow_symlinks=False).st_uid == uid
                    if own and not remove_tree(Path(entry.path), seconds=_FORGET_SECONDS):
                        return False
    libc = ctypes.CDLL(None)
    for kind, (column, call) in _SYSV.items():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
                if (fields := line.split())[column] == str(uid):
                    getattr(libc, call)(int(fields[1]), 0, 0)
    return True
