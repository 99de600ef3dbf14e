"""Cgroups of sessions: where they are made, how they are bounded, and that nothing is left of them.

A folder stands for the kernel's tree, with the rules that Documentation/admin-guide/cgroup-v2.rst states: whoever writes a
pid to `cgroup.procs` moves a process, and a cgroup with processes can give no controllers to those below it. The last tests
use the kernel's own where root may.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agentrpc.claude.cgroups import Cgroups, Events, Group
from agentrpc.claude.launcher import Isolation, SessionPaths, write_launcher
from agentrpc.claude.limits import Limits

LIMITS = Limits(memory=512 * 1024**2, processes=100, cpus=1.5)
FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "memory.swap.max", "memory.events", "pids.events")


class Kernel:
    """A tree of cgroups below `top`."""

    def __init__(self, top, patch):
        self.top = top
        self._mkdir, self._write, self._rmdir = Path.mkdir, Path.write_text, Path.rmdir
        patch.setattr(Path, "mkdir", lambda path, *args, **more: self.mkdir(path, *args, **more))
        patch.setattr(Path, "write_text", lambda path, text, *args: self.write(path, text, *args))
        patch.setattr(Path, "rmdir", lambda path: self.rmdir(path))

    def make(self, name="", controllers="cpu io memory pids", procs=(), real_root=False):
        folder = self.top / name
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - Path.mkdir is ours here
        for file in FILES:
            self._write(folder / file, "")
        self._write(folder / "cgroup.controllers", controllers)
        self._write(folder / "cgroup.procs", "".join(f"{pid}\n" for pid in procs))
        self._write(folder / "cgroup.events", "populated 0\nfrozen 0\n")
        if not real_root:
            self._write(folder / "cgroup.type", "domain\n")
        return folder

    def mkdir(self, path, *args, **more):
        if not path.is_relative_to(self.top) or path.is_dir():
            return self._mkdir(path, *args, **more)
        return self.make(path.relative_to(self.top), (path.parent / "cgroup.subtree_control").read_text())

    def write(self, path, text, *args):
        if path.is_relative_to(self.top):
            if path.name == "cgroup.procs":
                for other in self.top.rglob("cgroup.procs"):
                    pids = other.read_text().split()
                    self._write(other, "".join(f"{pid}\n" for pid in pids if pid != text))
                text = path.read_text() + f"{text}\n"
            elif path.name == "cgroup.subtree_control":
                folder = path.parent
                if (folder / "cgroup.type").exists() and (folder / "cgroup.procs").read_text():
                    raise OSError(errno.EBUSY, "busy")
                if text[1:] not in (folder / "cgroup.controllers").read_text().split():
                    raise OSError(errno.ENOENT, "no such controller")
                text = f"{path.read_text()} {text[1:]}".strip()
            elif path.name == "cgroup.kill":
                self._write(path.parent / "cgroup.procs", "")
        return self._write(path, text, *args)

    def rmdir(self, path):
        if not path.is_relative_to(self.top):
            return self._rmdir(path)
        if (path / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "busy")
        return shutil.rmtree(path)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    return Kernel(tmp_path / "cgroup", monkeypatch)


@pytest.fixture
def proc(tmp_path, kernel):
    """The folder of a process in /proc, in this cgroup."""
    folder = tmp_path / "proc"
    folder.mkdir()

    def make(path, root="/"):
        (folder / "cgroup").write_text(f"4:memory:/elsewhere\n0::{path}\n")
        mount = f"30 24 0:26 {root} {kernel.top} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
        (folder / "mountinfo").write_text(f"24 1 254:0 / / rw - ext4 /dev/vda rw\n{mount}")
        return folder

    return make


def test_a_delegated_cgroup_is_divided(kernel, proc):
    kernel.make(real_root=True)
    unit = kernel.make("system.slice/agentrpc.service", procs=[11, 12])
    cgroups = Cgroups.find(proc=proc("/system.slice/agentrpc.service"), root=False)
    assert cgroups.base == unit
    cgroups.prepare()
    assert (unit / "cgroup.procs").read_text() == ""
    assert (unit / "agentrpc-worker" / "cgroup.procs").read_text().split() == ["11", "12"]
    assert cgroups.controllers == {"memory", "pids", "cpu"}
    assert int((unit / "agentrpc-worker" / "cpu.weight").read_text()) > 100
    group = cgroups.make("s", LIMITS)
    values = {
        "pids.max": "100", "memory.max": str(512 * 1024**2), "memory.oom.group": "1", "memory.swap.max": "0",
        "cpu.max": "150000 100000",
    }  # fmt: skip
    assert {name: (group.folder / name).read_text() for name in values} == values
    assert "cgroup v2 for memory, pids, cpu" in cgroups.text
    # The next worker of the same parent is in the leaf, and uses the same place.
    again = Cgroups.find(proc=proc("/system.slice/agentrpc.service/agentrpc-worker"), root=False)
    assert again.base == unit
    again.prepare()
    assert again.controllers == {"memory", "pids", "cpu"}


def test_a_container_s_own_cgroup_is_divided_also_by_root(kernel, proc):
    top = kernel.make(procs=[1, 7])
    cgroups = Cgroups.find(proc=proc("/"), root=True)
    assert cgroups.base == top
    cgroups.prepare()
    assert cgroups.controllers == {"memory", "pids", "cpu"}
    assert (top / "agentrpc-worker" / "cgroup.procs").read_text().split() == ["1", "7"]


def test_root_moves_nothing_that_is_not_its_own(kernel, proc):
    top = kernel.make(real_root=True, procs=[1])
    kernel.make("user.slice")
    login = kernel.make("user.slice/session-1.scope", procs=[50, 51])
    cgroups = Cgroups.find(proc=proc("/user.slice/session-1.scope"), root=True)
    assert cgroups.base == top
    cgroups.prepare()
    assert (login / "cgroup.procs").read_text().split() == ["50", "51"]
    assert cgroups.make("s", LIMITS).folder.parent == top


def test_nothing_is_made_where_nothing_is_delegated(kernel, proc, monkeypatch):
    kernel.make(real_root=True)
    kernel.make("user.slice", procs=[50])
    monkeypatch.setattr(os, "access", lambda *_: False)
    cgroups = Cgroups.find(proc=proc("/user.slice"), root=False)
    assert cgroups.base is None
    assert "Delegate=yes" in cgroups.text
    cgroups.prepare()
    assert cgroups.make("s", LIMITS) is None
    # A path that leads out of what is mounted.
    monkeypatch.undo()
    assert Cgroups.find(proc=proc("/../other"), root=False).base is None


def test_what_cannot_be_enabled_is_left_to_the_watcher(kernel, proc):
    unit = kernel.make("unit", controllers="memory pids", procs=[11])
    cgroups = Cgroups.find(proc=proc("/unit"), root=False)
    assert "cpu" in cgroups.why
    # Somebody's process that does not move.
    write = kernel.write
    kernel.write = lambda path, text, *args: None if path.name == "cgroup.procs" else write(path, text, *args)
    cgroups.prepare()
    assert cgroups.controllers == frozenset()
    assert cgroups.text.startswith("resource limits and a watcher")
    group = cgroups.make("s", LIMITS)
    assert not (group.folder / "pids.max").exists()
    assert unit == group.folder.parent


def test_what_the_kernel_says_is_read(kernel):
    group = Group(kernel.make("g"), frozenset({"memory", "pids"}))
    assert group.events() == Events()
    (group.folder / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 2\n")
    (group.folder / "pids.events").write_text("max 7\n")
    assert group.events() == Events(out_of_memory=2, refused_processes=7)
    assert Group(group.folder / "gone", frozenset()).events() == Events()


def test_what_workers_left_that_are_gone_is_removed(kernel, proc):
    unit = kernel.make("unit")
    dead, living, fresh = (unit / f"agentrpc-session-{pid}-s-1" for pid in (2**22 + 1, os.getpid(), 2**22 + 2))
    for folder in (dead, living, fresh):
        folder.mkdir()
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    Cgroups.find(proc=proc("/unit"), root=False).prepare()
    assert [folder.exists() for folder in (dead, living, fresh)] == [False, True, True]


# ---- The kernel's own ----


@pytest.fixture
def cgroups():
    found = Cgroups.find()
    if found.base is None:
        pytest.skip(f"no cgroups can be made here: {found.why}")
    found.prepare()
    return found


def populated(group):
    return "populated 1\n" in (group.folder / "cgroup.events").read_text()


@pytest.mark.parametrize("isolation", [Isolation.SUBREAPER])
def test_all_of_a_cgroup_ends_at_once(cgroups, tmp_path, isolation):
    paths = SessionPaths.under(tmp_path, "s", tmp_path / "workspace")
    paths.create()
    paths.workspace.mkdir()
    group = cgroups.make("test", Limits())
    assert not populated(group)
    script = write_launcher(
        paths, isolation, Path("/bin/sh").resolve(), {"PATH": "/usr/bin:/bin"}, Limits(), group.folder
    )
    process = subprocess.Popen(
        [script, "-c", "setsid sh -c 'trap \"\" TERM; echo up; sleep 60; :' & wait"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    assert populated(group)
    assert len((group.folder / "cgroup.procs").read_text().split()) >= 3
    assert group.kill()
    assert process.wait(10) == -9
    process.stdout.close()
    assert group.remove()
    assert not group.folder.exists()
    # Nothing begins where there is no cgroup to begin in.
    assert subprocess.run([script, "-c", "echo up"], capture_output=True, text=True, check=False).stdout == ""
