"""Keys come to a process in its environment, and leave it before others can look.

/proc/PID/environ shows what a process was started with for as long as it lives, whatever it deletes. So a process that
was given private variables starts itself again without them, and takes them over from a file in memory; children get
theirs in that way from the beginning. From then on its own user cannot look into it from outside, so that neither that
file nor its memory shows them. Small and of the standard library: this comes before everything else.
"""

import ctypes
import json
import os
import sys
from collections.abc import Mapping

__all__ = ["environment_for", "is_private", "take_over"]

_VARIABLE = "AGENTRPC_ENVIRONMENT_FD"
_PRIVATE = ("AGENTRPC_", "ANTHROPIC_", "AWS_")
_PR_SET_DUMPABLE = 4


def is_private(name: str) -> bool:
    """Whether a variable may hold a key, by its name."""
    return name.startswith(_PRIVATE)


def environment_for(values: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """An environment for a process that begins with `take_over`, and a descriptor that it has to inherit.

    The descriptor is not inheritable yet. Any number of processes may take over what it holds.
    """
    private = {name: value for name, value in values.items() if is_private(name)}
    fd = os.memfd_create("environment", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(private).encode())
    return {name: value for name, value in values.items() if name not in private} | {_VARIABLE: str(fd)}, fd


def take_over() -> None:
    """Take over what was handed to this process, once, as the first thing that it does.

    Private variables are in `os.environ` afterwards, and nowhere that others could read them. Starts this process again
    if it was given them in the plain way.
    """
    if not hasattr(os, "memfd_create"):
        # Not Linux: a client.
        return
    handed_over = os.environ.pop(_VARIABLE, None)
    if handed_over is None and any(map(is_private, os.environ)):
        environment, fd = environment_for(os.environ)
        os.set_inheritable(fd, True)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if handed_over is not None:
        fd = int(handed_over)
        os.environ.update(json.loads(os.pread(fd, os.fstat(fd).st_size, 0)))
        os.close(fd)
