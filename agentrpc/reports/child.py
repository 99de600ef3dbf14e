"""The rendering process: `python -m agentrpc.reports.child`. Reads a job on stdin, leaves `report` in its folder.

Templates and what they show are not to be trusted. So it has no network, bounded memory, time and files, and ends with
its parent; it gets neither the environment nor any key. What goes wrong is one line of JSON on stdout and status 1.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SLACK = 1024 * 1024


def _confine(memory: int, cpu_seconds: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Where user namespaces are allowed; elsewhere what fetches for WeasyPrint refuses addresses alone.
    libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, size + _SLACK),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (wanted, wanted))


def _fail(reason: str, message: str) -> NoReturn:
    clean = message.encode(errors="replace").decode()
    print(json.dumps({"reason": reason, "message": clean}), flush=True)  # noqa: T201 - to the parent
    # At once: what is left of memory may not be enough for a clean end.
    os._exit(1)


def main() -> None:
    """Do one job."""
    job = json.load(sys.stdin)
    limits = job["limits"]
    _confine(limits["memory"], limits["cpu_seconds"], limits["size"])
    try:
        from agentrpc.reports.render import RenderError, render  # noqa: PLC0415 - within the limits
    except MemoryError:
        _fail("LIMIT_REACHED", "rendering needs more memory than AGENTRPC_REPORT_MEMORY allows it")
    try:
        data = render(job["report"], job["format"], job["template"])
    except RenderError as error:
        _fail(error.reason, str(error)[:2000])
    except MemoryError:
        _fail("LIMIT_REACHED", f"rendering takes more than {limits['memory']} bytes: make the template smaller")
    if len(data) > limits["size"]:
        _fail("TOO_LARGE", f"the document has {len(data)} bytes, more than {limits['size']}: make the template smaller")
    Path("report").write_bytes(data)
    # Without the interpreter's end, which takes a while after all that was loaded.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
