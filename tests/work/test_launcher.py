"""Promise 5 for process trees: whatever children do, nothing of a tree is left."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation, SessionPaths, _lives, stop_tree, write_launcher
from tests.isolations import bubblewrap, isolations

HOSTILE = (
    "setsid sh -c 'trap \"\" TERM; echo $$ >> pids; exec sleep 300' & "
    "(sh -c 'echo $$ >> pids; kill -STOP $$; sleep 300' &) ; "
    "sh -c 'echo $$ >> pids; exec sleep 300'"
)


def script(tmp_path, isolation, environment=None):
    paths = SessionPaths.under(tmp_path, clock.uuid7(), tmp_path / "workspace")
    paths.create()
    paths.workspace.mkdir(exist_ok=True)
    path = write_launcher(paths, isolation, Path("/bin/sh").resolve(), environment or {"PATH": "/usr/bin:/bin"})
    return paths, path


def tree(pid):
    with_root = psutil.Process(pid)
    return [with_root, *with_root.children(recursive=True)]


async def until_started(pid, count):
    for _ in range(200):
        found = tree(pid)
        if sum(_name(process) in {"sleep", "sh"} for process in found) >= count:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError([process.cmdline() for process in tree(pid)])


def _name(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def alive(processes):
    return [process for process in processes if _lives(process)]


@pytest.mark.parametrize("isolation", isolations())
async def test_stop_ends_children_that_resist(tmp_path, isolation):
    _, path = script(tmp_path, isolation)
    process = subprocess.Popen([path, "-c", HOSTILE], stdin=subprocess.DEVNULL)
    try:
        found = await until_started(process.pid, 3)
        receipt = await stop_tree(process.pid)
        assert receipt.confirmed
        assert receipt.processes >= 4
        assert receipt.elapsed < 3
        assert alive(found) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("isolation", isolations())
async def test_the_tree_dies_with_a_killed_worker(tmp_path, isolation):
    _, path = script(tmp_path, isolation)
    code = f"import subprocess,time; subprocess.Popen([{str(path)!r}, '-c', {HOSTILE!r}]); time.sleep(300)"
    worker = subprocess.Popen([sys.executable, "-c", code])
    try:
        found = await until_started(worker.pid, 3)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    killed = time.monotonic()
    while left := alive(found[1:]):
        assert time.monotonic() - killed < 3, [process.cmdline() for process in left]
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("isolation", isolations())
async def test_the_environment_is_what_was_given_and_nothing_more(tmp_path, isolation):
    _, path = script(tmp_path, isolation, {"PATH": "/usr/bin:/bin", "TOKEN": "t"})
    done = subprocess.run(
        [path, "-c", "env; cat /proc/$PPID/environ"],
        env={**os.environ, "AGENTRPC_SIGNING_KEY": "very-secret"},
        capture_output=True,
        check=True,
    )
    assert b"TOKEN=t" in done.stdout
    assert b"very-secret" not in done.stdout


@bubblewrap
async def test_in_the_sandbox_nothing_else_is_visible_or_writable(tmp_path):
    (tmp_path / "neighbour").write_text("x")
    paths, path = script(tmp_path, Isolation.BUBBLEWRAP)
    command = f"cat {tmp_path}/neighbour; touch /usr/x; ls {paths.launch}; echo ok > file; ps -e | wc -l; pwd"
    done = subprocess.run([path, "-c", command], capture_output=True, check=False, text=True)
    assert (paths.workspace / "file").read_text() == "ok\n"
    assert "No such file" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "bwrap.args" not in done.stdout
    assert str(paths.workspace) in done.stdout
