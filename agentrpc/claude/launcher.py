"""How a CLI's process tree is launched apart from everything else, and ended.

Keeps promises 5 and 6. The SDK runs a small script as its CLI. The script sets limits (`limits.py`), clears the
environment, leaves the network (`fence.py`) and enters a bubblewrap sandbox: namespaces of its own for users, processes
and IPC, no capabilities, system folders and /proc read-only, only the session's folders writable, nothing else of the
host visible. Where an operator has chosen so, a child subreaper (`supervisor.py`) takes its place: it holds the tree
together, so that nothing of it survives, and keeps nothing apart, unless the tree has a user of its own
(`agent_users.py`). In all of them a filter refuses system calls that no agent needs (`seccomp.py`). Whatever is secret
goes by files with mode 0600, never by argv.
"""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from pydantic import ValidationError

from agentrpc.claude.agent_users import AgentUser, IsolationError, hand_over, processes_of, take_back, user_trouble
from agentrpc.claude.limits import NICE, Limits, in_memory, limited, setup_lines
from agentrpc.claude.seccomp import seccomp_program
from agentrpc.claude.supervisor import descendants, has_landlock
from agentrpc.domain.isolation import Level
from agentrpc.settings import DEFAULT_UIDS, SYSTEM_FOLDERS, IsolationSettings

__all__ = [
    "Isolation",
    "IsolationError",
    "SessionPaths",
    "StopReceipt",
    "choose_isolation",
    "isolation_of",
    "stop_tree",
    "write_launcher",
]

_PROBE_TIMEOUT = 10.0
_NOTHING_APART = "agents run as the worker's own user, and can read its files, its keys, and one another's sessions"
_USERS_APART = (
    "each session has a uid of its own, which keeps its files and processes from others; it sees the machine's "
    "network, its processes and "
)
_USERS_APART += "system folders (Landlock)" if has_landlock() else "whatever everybody may read (there is no Landlock)"
_NAMESPACES = (
    *("--die-with-parent", "--new-session", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--cap-drop", "ALL"),
)
# Read-only: through /proc/PID/mem a process would write to another one of its user, and root to settings of the kernel.
_DEVICES = ("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev")
# What shells read when they start, below HOME, and what the CLI has them read, below its config folder: a snapshot of a
# shell, made by one process and read for every command, and what hooks leave. Without a snapshot it uses login shells.
_SHELL_FILES = (
    *(".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".profile", ".kshrc", ".mkshrc"),
    *(".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout"),
)
_SHELL_FOLDERS = ("shell-snapshots", "session-env")
# In every system's list of users: some programs refuse to work for an unknown one.
_NOBODY = "65534"
_FENCE, _SUPERVISOR = Path(__file__).with_name("fence.py"), Path(__file__).with_name("supervisor.py")


class Isolation(StrEnum):
    """How a process tree is kept apart."""

    BUBBLEWRAP = "bubblewrap"
    USER = "user"
    SUBREAPER = "subreaper"

    @property
    def level(self) -> Level:
        """How much that keeps apart."""
        return _LEVELS[self]

    @property
    def fenced(self) -> bool:
        """Whether a process tree has a network of its own, with two ways out (`listeners.py`)."""
        return self is Isolation.BUBBLEWRAP


_LEVELS = {Isolation.BUBBLEWRAP: Level.SANDBOX, Isolation.USER: Level.USER, Isolation.SUBREAPER: Level.NONE}


@dataclass(frozen=True, slots=True)
class SessionPaths:
    """The folders of one session; all of mode 0700.

    Attributes:
        root: What this machine keeps of it; lost, it is made again.
        workspace: Where the agent works (see `workspaces.py`).
        user: Whose its processes are; None: the worker's own.
    """

    root: Path
    workspace: Path
    user: AgentUser | None = None

    @classmethod
    def under(cls, data_dir: Path, session_id: UUID, workspace: Path) -> "SessionPaths":
        """Where the files of a session are."""
        return cls(data_dir.resolve() / "sessions" / str(session_id), workspace)

    @property
    def home(self) -> Path:
        """The agent's HOME."""
        return self.root / "home"

    @property
    def config(self) -> Path:
        """The CLI's CLAUDE_CONFIG_DIR."""
        return self.root / "config"

    @property
    def launch(self) -> Path:
        """What the launcher reads. Not visible to the agent, except `options`."""
        return self.root / "launch"

    @property
    def options(self) -> Path:
        """Big or secret options that the CLI reads."""
        return self.launch / "options"

    @property
    def mcp(self) -> Path:
        """Folders of MCP servers that run beside the agent. Not visible to it, and not in what is its user's."""
        return self.root.parent.parent / "mcp" / self.root.name

    def create(self) -> None:
        """Make what is missing, but the workspace: that is not made twice."""
        self.root.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in (self.root, self.home, self.config, self.launch, self.options):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An agent may have closed its own. It cannot put anything else there: what is above them is not its.
            folder.chmod(0o700)

    def write_option(self, name: str, text: str) -> Path:
        """Write a file that only the service and the session's user may read, and return its path."""
        path = _write_private(self.options / name, text.encode())
        if self.user is not None:
            os.chown(path, -1, self.user.uid)
            path.chmod(0o640)
        return path


def choose_isolation(
    wanted: str, *, fall_back: bool = False, uids: str = DEFAULT_UIDS, minimum: str = "none"
) -> tuple[Isolation, str]:
    """The isolation to use, and why.

    Args:
        wanted: `auto`, `bubblewrap`, `user` or `subreaper`.
        fall_back: Whether `auto` may mean less where bubblewrap does not work: as root a user for each session, else
            the subreaper. Never that as root: agents would be able to do anything to this machine.
        uids: The range of the operator for such users.
        minimum: The least level that the operator allows, in small letters.

    Raises:
        IsolationError: What was named does not work here, or is not enough; or bubblewrap does not work, and nothing
            else was named.
    """
    isolation, why = _choose(wanted, fall_back=fall_back, uids=uids)
    if isolation.level < Level.named(minimum):
        raise IsolationError(
            f"agents would be kept apart at the level {isolation.level.name} ({isolation}), and "
            f"AGENTRPC_MINIMUM_ISOLATION demands {minimum.upper()}: set AGENTRPC_ISOLATION to what has it ({why})"
        )
    return isolation, why


def isolation_of(environment: Mapping[str, str]) -> tuple[Isolation, str]:
    """As `choose_isolation` with `fall_back`, of the variables of an environment; those that are empty do not count."""
    given = {name.removeprefix("AGENTRPC_").lower(): value for name, value in environment.items() if value}
    try:
        settings = IsolationSettings(_env_ignore_empty=True, **given)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = [f"AGENTRPC_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
        raise IsolationError("; ".join(faults)) from None
    return choose_isolation(
        settings.isolation, fall_back=True, uids=settings.agent_uids, minimum=settings.minimum_isolation
    )


def _choose(wanted: str, *, fall_back: bool, uids: str) -> tuple[Isolation, str]:
    if wanted == Isolation.SUBREAPER:
        return Isolation.SUBREAPER, f"as configured: {_NOTHING_APART}"
    if wanted == Isolation.USER:
        if (missing := user_trouble(uids)) is not None:
            raise IsolationError(f"{missing}. Mend that, or choose another AGENTRPC_ISOLATION")
        return Isolation.USER, f"as configured: {_USERS_APART}"
    trouble = _bubblewrap_trouble()
    if trouble is None:
        return Isolation.BUBBLEWRAP, "bubblewrap works"
    root = os.geteuid() == 0
    has_users = root and user_trouble(uids) is None
    if wanted == "auto" and fall_back and has_users:
        return Isolation.USER, f"{trouble}: {_USERS_APART}"
    if wanted == "auto" and fall_back and not root:
        return Isolation.SUBREAPER, f"{trouble}: {_NOTHING_APART}"
    who = "as root they can do anything to this machine" if root else _NOTHING_APART
    users = f"set AGENTRPC_ISOLATION=user ({_USERS_APART}), or " if has_users else ""
    raise IsolationError(
        f"{trouble}. Mend that, or {users}set AGENTRPC_ISOLATION=subreaper to let agents run without a sandbox: {who}"
    )


@lru_cache
def _bubblewrap_trouble() -> str | None:
    """What keeps bubblewrap from working here; None when it works."""
    binary = shutil.which("bwrap")
    if binary is None:
        return "bubblewrap is not installed (`apt-get install bubblewrap`)"
    try:
        program = seccomp_program()
    except RuntimeError as error:
        return str(error)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(program)
            file.seek(0)
            # bubblewrap 0.7 brought --size.
            command = [*_apart(), "", binary, *_NAMESPACES, *_identity(), "--ro-bind", "/", "/"]
            command += [*_DEVICES, *in_memory(Limits())]
            done = subprocess.run(  # noqa: S603
                [*command, "--seccomp", str(file.fileno()), "true"],
                capture_output=True,
                timeout=_PROBE_TIMEOUT,
                check=False,
                pass_fds=[file.fileno()],
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start ({type(error).__name__})"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:200]
        return f"bubblewrap does not work here ({said}; in a container it needs the options of docker-compose.yml)"
    return None


def _apart() -> list[str]:
    """What leaves the network, before a descriptor for its ways out, and a command."""
    return [sys.executable, "-I", "-S", str(_FENCE)]


def _identity() -> list[str]:
    # What root's agents make belongs to root outside, as if there were no namespace. Inside they are nobody.
    return ["--uid", _NOBODY, "--gid", _NOBODY] if os.geteuid() == 0 else []


def write_launcher(
    paths: SessionPaths,
    isolation: Isolation,
    cli: Path,
    environment: Mapping[str, str],
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    group: Path | None = None,
) -> Path:
    """Write the script that the SDK runs as its CLI. A fenced one is started with a `Handover`, or nothing leads out.

    Args:
        paths: The session's folders.
        isolation: How the tree is kept apart.
        cli: The real CLI.
        environment: All that the agent's environment will hold.
        limits: How it is bounded.
        group: The folder of the cgroup that it is to be in; None: it stays in the worker's.

    Raises:
        IsolationError: The paths have no user, and the isolation is that.
        OSError, WorkspaceError: The files could not be written, or given to it.
    """
    if (isolation is Isolation.USER) is not (paths.user is not None):
        raise IsolationError("a user goes with the isolation `user`, and only with that")
    program = seccomp_program()
    if isolation is Isolation.USER:
        hand_over(paths)
    else:
        take_back(paths)
    if isolation is Isolation.BUBBLEWRAP:
        arguments = _bubblewrap_arguments(paths, cli, environment, limits)
        secret = _write_private(paths.launch / "bwrap.args", b"\0".join(map(os.fsencode, arguments)))
        seccomp = _write_private(paths.launch / "seccomp", program)
        bwrap = shutil.which("bwrap") or "bwrap"
        # `env -i` first: in /proc the wrapper must not show the environment of the worker.
        head = shlex.join(["env", "-i", *NICE, *_apart()])
        tail = shlex.join([bwrap, "--args", "9", "--seccomp", "7", "--", *limited(limits, [str(cli)])])
        body = f'exec 9<{shlex.quote(str(secret))} 7<{shlex.quote(str(seccomp))}\nexec {head} "$HANDOVER" {tail} "$@"\n'
    else:
        plan: dict[str, Any] = {
            "cli": str(cli),
            "cwd": str(paths.workspace),
            "env": dict(environment),
            "seccomp": base64.b64encode(program).decode(),
        }
        if paths.user is not None:
            plan["user"], plan["processes"] = paths.user.uid, limits.most_processes
            plan["read"], plan["write"] = _reach(paths, cli)
            plan["env"] |= {"TMPDIR": str(paths.user.tmp), "CLAUDE_CODE_TMPDIR": str(paths.user.tmp)}
        secret = _write_private(paths.launch / "plan.json", json.dumps(plan).encode())
        command = shlex.join(["env", "-i", *NICE, sys.executable, "-I", "-S", str(_SUPERVISOR), str(secret)])
        body = f'exec {command} "$@"\n'
    script = paths.launch / "cli"
    head = f"#!/bin/sh\nPATH=/usr/bin:/bin\nulimit -c 0\n{setup_lines(limits, group, sandboxed=isolation.fenced)}"
    _write_private(script, f"{head}{body}".encode(), mode=0o700)
    return script


def _reach(paths: SessionPaths, cli: Path) -> tuple[list[str], list[str]]:
    """What an agent with a user of its own may read, and what it may write too, where the kernel has Landlock.

    Of /proc it may write nothing, as in a sandbox: through /proc/PID/mem a tool would write to the CLI.
    """
    system = [path for path in (*SYSTEM_FOLDERS, "/proc", "/etc/resolv.conf") if Path(path).exists()]
    shared = [path for path in ("/dev", "/tmp", "/var/tmp") if Path(path).is_dir()]  # noqa: S108
    assert paths.user is not None
    own = map(str, (paths.home, paths.config, paths.workspace, paths.user.tmp))
    return [*system, str(cli), str(paths.options)], [*own, *shared]


def _bubblewrap_arguments(paths: SessionPaths, cli: Path, environment: Mapping[str, str], limits: Limits) -> list[str]:
    arguments = [*_NAMESPACES, *_identity()]
    for path in map(Path, SYSTEM_FOLDERS):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for entry in _private_entries("/etc"):
        hidden = ["--tmpfs", entry.path, "--remount-ro", entry.path]
        arguments += hidden if entry.is_dir(follow_symlinks=False) else ["--ro-bind", "/dev/null", entry.path]
    arguments += [*_DEVICES, *in_memory(limits), "--tmpfs", "/run"]
    arguments += ["--ro-bind", str(cli), str(cli)]
    for folder in (paths.home, paths.config, paths.workspace):
        arguments += ["--bind", str(folder), str(folder)]
    arguments += _closed_to_agents(paths)
    arguments += ["--ro-bind", str(paths.options), str(paths.options)]
    # Last: nothing more is mounted below. Files there would be memory that nothing bounds.
    arguments += ["--remount-ro", "/run", "--remount-ro", "/", "--chdir", str(paths.workspace), "--clearenv"]
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    return arguments


def _closed_to_agents(paths: SessionPaths) -> list[str]:
    """Mounts over what shells read when they start: an agent can write none of it, and put nothing in its place."""
    _set_aside(paths.home, _SHELL_FILES, stat.S_ISREG)
    _set_aside(paths.config, _SHELL_FOLDERS, stat.S_ISDIR)
    empty = str(_write_private(paths.launch / "empty", b"", mode=0o400))
    arguments: list[str] = []
    for name in _SHELL_FILES:
        arguments += ["--ro-bind", empty, str(paths.home / name)]
    for name in _SHELL_FOLDERS:
        arguments += ["--tmpfs", str(paths.config / name), "--remount-ro", str(paths.config / name)]
    return arguments


def _set_aside(folder: Path, names: Sequence[str], fits: Callable[[int], bool]) -> None:
    """Give other names to what cannot be mounted on; a link would lead the mount elsewhere. No agent runs meanwhile."""
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if not fits(os.lstat(name, dir_fd=opened).st_mode):
                    os.rename(name, f"{name}.{secrets.token_hex(4)}", src_dir_fd=opened, dst_dir_fd=opened)
    finally:
        os.close(opened)


def _private_entries(folder: str) -> Iterator["os.DirEntry[str]"]:
    """What not everybody may read, and a worker perhaps can: /etc/shadow, private keys of other services."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            is_dir = stat.S_ISDIR(mode)
            if not mode & (stat.S_IXOTH if is_dir else stat.S_IROTH):
                yield entry
            elif is_dir:
                yield from _private_entries(entry.path)


def _write_private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    # A new file each time: one that is being executed cannot be written to, and an old one may have another mode.
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    fresh.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class StopReceipt:
    """What became of a process tree.

    Attributes:
        processes: How many were seen in it.
        elapsed: Seconds that it took.
        confirmed: Whether /proc shows none of them any more.
    """

    processes: int
    elapsed: float
    confirmed: bool


async def stop_tree(pid: int | None, *, user: AgentUser | None = None, timeout: float = 10.0) -> StopReceipt:
    """End a process and everything below it, and whatever has its user; repeat until /proc shows nothing of it.

    Children are killed before the root: in each kind of isolation the root, or the namespace's init below it, is where
    orphans go, so that what a child leaves behind is still found below it.
    """
    began = time.monotonic()
    seen: dict[int, psutil.Process] = {}
    if pid is None:
        return StopReceipt(0, 0.0, confirmed=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        seen[pid] = root
        # What is just starting must not fork behind the last look.
        root.suspend()
        empty = 0
        # Twice none: the first of these looks may have missed one beside another that was just going.
        while root.is_running() and empty < 2 and time.monotonic() - began < timeout:
            below = _below(pid)
            seen.update({process.pid: process for process in below})
            living = [process for process in below if _lives(process)]
            empty = 0 if living else empty + 1
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.sleep(0.01)
        with contextlib.suppress(psutil.NoSuchProcess):
            root.kill()
    while True:
        if user is not None and (others := processes_of(user.uid)):
            seen.update({process.pid: process for process in _processes(others)})
            # Where there is no room for one more process, those that were seen are killed one by one, which makes some.
            with contextlib.suppress(OSError):
                await _end_user(user)
        left = [process for process in seen.values() if _lives(process)]
        if not left or time.monotonic() - began > timeout:
            return StopReceipt(len(seen), time.monotonic() - began, confirmed=not left)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.sleep(0.01)


async def _end_user(user: AgentUser) -> None:
    command = [sys.executable, "-I", "-S", str(_SUPERVISOR), "--end", str(user.uid)]
    process = await asyncio.create_subprocess_exec(*command, env={}, stdin=asyncio.subprocess.DEVNULL)
    await process.wait()


def _below(pid: int) -> list[psutil.Process]:
    return _processes(descendants(pid))


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for each in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(each))
    return found


def _lives(process: psutil.Process) -> bool:
    # A zombie holds nothing but its number, which its parent has yet to collect.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
