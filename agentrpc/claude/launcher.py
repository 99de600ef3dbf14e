"""How a CLI's process tree is launched apart from everything else, measured and ended.

Keeps promises 5 and 6. The SDK runs a small script as its CLI. The script sets limits (`limits.py`), clears the
environment and enters a bubblewrap sandbox: namespaces of its own for users, processes and IPC, no capabilities, system
folders and /proc read-only, only the session's folders writable, nothing else of the host visible. Where an operator
has chosen so, a child subreaper (`supervisor.py`) takes its place: it holds the tree together, so that nothing of it
survives, and keeps nothing apart. In both a filter refuses system calls that no agent needs (`seccomp.py`). Whatever is
secret goes by files with mode 0600, never by argv.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import psutil

from agentrpc.claude.limits import NICE, Limits, in_memory, limited, setup_lines
from agentrpc.claude.seccomp import seccomp_program
from agentrpc.claude.supervisor import descendants
from agentrpc.settings import SYSTEM_FOLDERS

__all__ = [
    "Isolation",
    "IsolationError",
    "SessionPaths",
    "StopReceipt",
    "choose_isolation",
    "stop_tree",
    "tree_memory",
    "write_launcher",
]

_PROBE_TIMEOUT = 10.0
_NOTHING_APART = "agents run as the worker's own user, and can read its files, its keys, and one another's sessions"
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
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class IsolationError(RuntimeError):
    """Agents cannot be kept apart here as they should be. The message says what to do."""


class Isolation(StrEnum):
    """How a process tree is kept apart."""

    BUBBLEWRAP = "bubblewrap"
    SUBREAPER = "subreaper"

    @property
    def level(self) -> str:
        """A value of `agentrpc.v1.Session.IsolationLevel` without its prefix."""
        return "SANDBOX" if self is Isolation.BUBBLEWRAP else "NONE"


@dataclass(frozen=True, slots=True)
class SessionPaths:
    """The folders of one session; all of mode 0700.

    Attributes:
        root: What this machine keeps of it; lost, it is made again.
        workspace: Where the agent works (see `workspaces.py`).
    """

    root: Path
    workspace: Path

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
        """Folders of MCP servers that run beside the agent. Not visible to it."""
        return self.root / "mcp"

    def create(self) -> None:
        """Make what is missing, but the workspace: that is not made twice."""
        for folder in (self.root, self.home, self.config, self.launch, self.options):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An agent may have closed its own. It cannot put anything else there: what is above them is not its.
            folder.chmod(0o700)

    def write_option(self, name: str, text: str) -> Path:
        """Write a file that only its owner may read, and return its path."""
        return _write_private(self.options / name, text.encode())


def choose_isolation(wanted: str, *, fall_back: bool = False) -> tuple[Isolation, str]:
    """The isolation to use, and why.

    Args:
        wanted: `auto`, `bubblewrap` or `subreaper`.
        fall_back: Whether `auto` may mean the subreaper where bubblewrap does not work. Never as root: agents would be
            able to do anything to this machine.

    Raises:
        IsolationError: bubblewrap does not work here, and nothing else was named.
    """
    if wanted == Isolation.SUBREAPER:
        return Isolation.SUBREAPER, f"as configured: {_NOTHING_APART}"
    trouble = _bubblewrap_trouble()
    if trouble is None:
        return Isolation.BUBBLEWRAP, "bubblewrap works"
    if wanted == "auto" and fall_back and os.geteuid() != 0:
        return Isolation.SUBREAPER, f"{trouble}: {_NOTHING_APART}"
    who = "as root they can do anything to this machine" if os.geteuid() == 0 else _NOTHING_APART
    raise IsolationError(
        f"{trouble}. Mend that, or set AGENTRPC_ISOLATION=subreaper to let agents run without a sandbox: {who}"
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
            command = [binary, *_NAMESPACES, *_identity(), "--ro-bind", "/", "/", *_DEVICES, *in_memory(Limits())]
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
    """Write the script that the SDK runs as its CLI.

    Args:
        paths: The session's folders.
        isolation: How the tree is kept apart.
        cli: The real CLI.
        environment: All that the agent's environment will hold.
        limits: How it is bounded.
        group: The folder of the cgroup that it is to be in; None: it stays in the worker's.
    """
    program = seccomp_program()
    if isolation is Isolation.BUBBLEWRAP:
        arguments = _bubblewrap_arguments(paths, cli, environment, limits)
        secret = _write_private(paths.launch / "bwrap.args", b"\0".join(map(os.fsencode, arguments)))
        seccomp = _write_private(paths.launch / "seccomp", program)
        bwrap = shutil.which("bwrap") or "bwrap"
        # `env -i` first: in /proc the wrapper must not show the environment of the worker.
        command = shlex.join(
            ["env", "-i", *NICE, bwrap, "--args", "9", "--seccomp", "7", "--", *limited(limits, [str(cli)])]
        )
        body = f'exec 9<{shlex.quote(str(secret))} 7<{shlex.quote(str(seccomp))}\nexec {command} "$@"\n'
    else:
        plan = {
            "cli": str(cli),
            "cwd": str(paths.workspace),
            "env": dict(environment),
            "seccomp": base64.b64encode(program).decode(),
        }
        secret = _write_private(paths.launch / "plan.json", json.dumps(plan).encode())
        command = shlex.join(["env", "-i", *NICE, sys.executable, "-I", "-S", str(_SUPERVISOR), str(secret)])
        body = f'exec {command} "$@"\n'
    script = paths.launch / "cli"
    head = f"#!/bin/sh\nPATH=/usr/bin:/bin\nulimit -c 0\n{setup_lines(limits, group)}"
    _write_private(script, f"{head}{body}".encode(), mode=0o700)
    return script


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
    # The resolver's file is often a link into /run.
    resolver = Path("/etc/resolv.conf").resolve()
    if resolver.is_relative_to("/run") and resolver.exists():
        arguments += ["--ro-bind", str(resolver), str(resolver)]
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


async def stop_tree(pid: int | None, *, timeout: float = 10.0) -> StopReceipt:
    """End a process and everything below it; repeat until /proc shows nothing of it.

    Children are killed before the root: in both kinds of isolation the root, or the namespace's init below it, is where
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
        left = [process for process in seen.values() if _lives(process)]
        if not left or time.monotonic() - began > timeout:
            return StopReceipt(len(seen), time.monotonic() - began, confirmed=not left)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.sleep(0.01)


def _below(pid: int) -> list[psutil.Process]:
    found = []
    for each in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(each))
    return found


def _lives(process: psutil.Process) -> bool:
    # A zombie holds nothing but its number, which its parent has yet to collect.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tree_memory(pid: int) -> int:
    """Bytes that a process tree uses: its proportional set size, which counts shared pages once."""
    total = 0
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):
            total += _process_memory(Path(f"/proc/{each}"))
    return total


def _process_memory(folder: Path) -> int:
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    except PermissionError:
        # A process that has changed its user: all its resident pages then.
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
