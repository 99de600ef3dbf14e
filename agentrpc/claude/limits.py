"""What the processes of one session may use.

Two ways keep them to it. Where this worker may divide its cgroup (`cgroups.py`), the kernel bounds memory, processes
and processor time. Everywhere, the launcher sets resource limits, which each process has for itself, and somebody has
to look and to end what is too much: `services/session_host/watch.py` does.

Of resource limits only RLIMIT_NPROC counts processes together: those of a user within a user namespace (Linux 5.14).
It is set inside bubblewrap's, and where a session has a user of its own: there only the session is counted. Elsewhere
it would count all sessions of the worker's user. Processes of the machine's root it does not bound, whatever they are
inside (copy_process() in kernel/fork.c).
"""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrpc.claude.process_usage import stat_fields
from agentrpc.claude.supervisor import descendants

__all__ = ["NICE", "Limits", "give_way", "in_memory", "limited", "setup_lines", "strike"]

# The service goes before its agents: runs a command so.
NICE = ("nice", "-n", "5")
# Above the worker's own: the kernel's OOM killer takes agents first.
_OOM_SCORE = 500
_BLOCK = 512
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STRIKE_SECONDS = 5.0
# A field of /proc/PID/stat behind the command's name (proc_pid_stat(5)).
_SESSION = 3
# Of what a busy session's tools are: as groups of the scheduler, and as processes.
_BUSY_GROUP, _BUSY_NICE = 10, 15
# Finishes inside the sandbox: only there RLIMIT_NPROC counts the session alone. bash calls it -u, other shells -p.
_INSIDE = 'ulimit -u "$0" 2>/dev/null || ulimit -p "$0" || exit 1; ulimit -n "$1" 2>/dev/null || :; shift 1; exec "$@"'


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one session.

    Attributes:
        memory: Bytes of all its processes and of what they keep in memory as files. None: no limit.
        processes: Processes and threads.
        cpus: Processors. None: a share like that of others.
        open_files: Of one process.
        disk_bytes: Of its workspace and its home together.
        disk_files: Files, folders and links there.
        tmp_bytes: Of /tmp in a sandbox, and of /dev/shm.
    """

    memory: int | None = None
    processes: int = 1024
    cpus: float | None = None
    open_files: int = 4096
    disk_bytes: int = 10 * 1024**3
    disk_files: int = 1_000_000
    tmp_bytes: int = 512 * 1024**2

    @property
    def most_processes(self) -> int:
        """The watcher ends what has more than it may; this is what the kernel never lets it get beyond."""
        return self.processes + self.processes // 4 + 32

    @property
    def descriptors(self) -> int:
        """Open files of all processes: each takes memory of the kernel that nothing else bounds."""
        return 64 * self.processes + 4 * self.open_files

    @property
    def tmp_files(self) -> int:
        """Files in /tmp, which take memory of the kernel that nothing else bounds."""
        return self.tmp_bytes // _PAGE


# ---- At the launch ----


def setup_lines(limits: Limits, group: Path | None, *, sandboxed: bool) -> str:
    """Lines of a shell script that bound it, and whatever it runs.

    Args:
        limits: How.
        group: The folder of a cgroup to join first. Nothing is run when that does not work.
        sandboxed: Whether `limited` is run later.
    """
    # Nobody sends descriptors while those that all processes of the user have sent, and nobody received, are more than
    # its limit of open files (unix(7), ETOOMANYREFS). So what makes the sandbox, and sends some, has more than agents.
    files = '-S -n "$(ulimit -H -n)"' if sandboxed else f"-n {limits.open_files}"
    join = "" if group is None else f"echo 0 > {shlex.quote(str(group / 'cgroup.procs'))} || exit 1\n"
    return (
        f"{join}"
        f"{{ echo {_OOM_SCORE} > /proc/self/oom_score_adj; }} 2>/dev/null\n"
        # Where the machine allows less, that holds.
        f"ulimit {files} 2>/dev/null\n"
        f"ulimit -f {-(-limits.disk_bytes // _BLOCK)} 2>/dev/null\n"
    )


def limited(limits: Limits, command: Sequence[str]) -> list[str]:
    """A command that bounds the processes of the user namespace in which it is run, and runs another."""
    return ["/bin/sh", "-c", _INSIDE, str(limits.most_processes), str(limits.open_files), *command]


def in_memory(limits: Limits) -> list[str]:
    """Bubblewrap's arguments for /tmp and /dev/shm, and for no other file in memory; behind --dev."""
    size = ["--size", str(limits.tmp_bytes), "--tmpfs"]
    return [*size, "/tmp", *size, "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108


# ---- Going behind others ----


def give_way(roots: Sequence[int], *, busy: bool) -> None:
    """Let tools of a session that uses much of the processors go behind others, or not any more.

    The kernel shares processors among Unix sessions first (sched(7), autogroup), of which each call of Bash is one, and
    whatever it runs may make more; and where cgroups share them, among processes. The CLI stays as it is.
    """
    for root in roots:
        below = descendants(root)
        with contextlib.suppress(OSError, IndexError):
            own = stat_fields(below[0])[_SESSION]
            _yield(below, own, busy=busy)


def _yield(pids: Sequence[int], own: str, *, busy: bool) -> None:
    seen = {own}
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            session = stat_fields(pid)[_SESSION]
            if session not in seen:
                seen.add(session)
                Path(f"/proc/{pid}/autogroup").write_text(str(_BUSY_GROUP if busy else 0))
            if busy and session != own and os.getpriority(os.PRIO_PROCESS, pid) < _BUSY_NICE:
                os.setpriority(os.PRIO_PROCESS, pid, _BUSY_NICE)


# ---- Ending ----


def strike(roots: Sequence[int]) -> None:
    """Kill what is below these processes before anything else is done with it. Who owns them makes sure, later.

    With the first process of a PID namespace all of it goes at once. Elsewhere it is a race with what forks, run for a
    while.
    """
    until = time.monotonic() + _STRIKE_SECONDS
    for root in roots:
        while time.monotonic() < until:
            below = descendants(root)
            for pid in below:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not below:
                break
            time.sleep(0.002)
