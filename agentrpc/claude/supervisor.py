"""Runs the CLI as a child subreaper and ends everything below it when it or the worker ends.

Used where bubblewrap does not work. Standard library alone, and started with `python -I -S`: it must be quick. Orphans
of any depth become children of this process (prctl(2), PR_SET_CHILD_SUBREAPER), whatever sessions they made.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - quick start
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        pass
    return found


def _descendants() -> list[int]:
    found, queue = [], [os.getpid()]
    while queue:
        below = _children(queue.pop())
        found += below
        queue += below
    return found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _kill_all() -> None:
    """Kill until nothing is left: what is found is stopped first, so that it cannot fork away from the next look."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in _descendants():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        _reap()
        left = _descendants()
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)


def main() -> None:
    """Run the CLI of the plan in argv[1] with the arguments behind it; exit as it does."""
    plan = json.loads(Path(sys.argv[1]).read_bytes())
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def stop(*_: object) -> None:
        _kill_all()
        os._exit(143)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() != parent:
        stop()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(plan["cwd"])
        os.execve(plan["cli"], [plan["cli"], *sys.argv[2:]], plan["env"])  # noqa: S606
    # The pipes belong to the CLI alone: it sees the end of its input when the worker closes it.
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            break
    _kill_all()
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
