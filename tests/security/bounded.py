"""What tests of limits share."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

MIB = 1024 * 1024
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
needs_python = pytest.mark.skipif(PYTHON is None, reason="there is no Python that a sandbox can see")


@pytest.fixture(autouse=True)
def harmless():
    """Whatever fails here, the machine keeps its processes: where cgroups of version 1 are, this test has at most so many."""
    top = Path("/sys/fs/cgroup/pids")
    if os.geteuid() != 0 or not (top / "cgroup.procs").exists():
        yield
        return
    own = next(line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line)
    group = top / f"agentrpc-test-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        (group / "pids.max").write_text("2500")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (top / own.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            group.rmdir()
