"""Whatever becomes of a worker, nothing of it is left, and what it held may be taken at once."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from agentrpc import clock
from agentrpc.store.leases import register_worker
from agentrpc.store.tables import Worker

# Stands in for a worker: registers nothing itself, but has a tree that does not want to end.
FAKE = """
import os, signal, subprocess, sys, time
from uuid import UUID
from agentrpc import clock
from agentrpc.work.parent import reporter
worker, lives, kill_in, status = sys.argv[1:5]
signal.signal(signal.SIGTERM, lambda *_: os._exit(int(status)))
with open("lives", "a") as file:
    file.write("x")
tree = (
    "setsid sh -c 'trap \\"\\" TERM HUP; echo $$ >> pids; exec sleep 300' & "
    "(sh -c 'echo $$ >> pids; kill -STOP $$; sleep 300' &) ; "
    "sh -c 'echo $$ >> pids; exec sleep 300'"
)
subprocess.Popen(["sh", "-c", tree])
while len(open("pids").read().split() if os.path.exists("pids") else []) < 3:
    time.sleep(0.01)
reporter(int(sys.argv[5]))(UUID(worker), clock.boottime() + float(kill_in))
open("ready", "w").close()
time.sleep(float(lives))
os._exit(int(status))
"""
PARENT = """
import sys
from agentrpc.claude.supervisor import become_subreaper
from agentrpc.work.parent import _Parent
become_subreaper()
sys.exit(_Parent(sys.argv[1:]).run())
"""


def environment(settings):
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"secret_keys"})
    secrets = {key: getattr(settings, key).get_secret_value() for key in ("database_url", "redis_url", "signing_key")}
    ours = {f"AGENTRPC_{key.upper()}": str(value) for key, value in (given | secrets).items()}
    return {key: value for key, value in os.environ.items() if not key.startswith("AGENTRPC_")} | ours


class Parent:
    """A parent with a worker that is not one."""

    def __init__(self, settings, folder):
        self.folder, self._settings = folder, settings
        self.worker_id = clock.uuid7()

    def start(self, lives=300.0, kill_in=300.0, status=1, **changed):
        worker = [sys.executable, "-c", FAKE, str(self.worker_id), str(lives), str(kill_in), str(status)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, *worker], cwd=self.folder, env=environment(self._settings) | changed
        )

    def file(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def tree(self):
        """The processes below the first worker, by what they wrote down."""
        return [pid for pid in map(int, (self.file("pids") or "").split()[:3]) if alive(pid)]

    @property
    def worker(self):
        return psutil.Process(self.process.pid).children()[0].pid


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def until(what, timeout=30.0):
    """The first true value of `what`, which may be a coroutine function."""
    async with asyncio.timeout(timeout):
        while True:
            found = what()
            found = await found if asyncio.iscoroutine(found) else found
            if found:
                return found
            await asyncio.sleep(0.02)


@pytest.fixture
async def parent(settings, database, tmp_path):
    parent = Parent(settings, tmp_path)
    await register_worker(database, parent.worker_id, host="h", pid=1, version="0", ttl=300)
    yield parent
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(parent.process.pid).children(recursive=True):
            process.kill()
    parent.process.kill()
    parent.process.wait()


def is_dead(database, worker_id):
    async def look():
        async with database.transaction() as tx:
            return (await tx.get_one(Worker, worker_id)).dead_time

    return look


async def test_a_killed_worker_is_declared_dead_when_nothing_of_it_is_left(parent, database):
    parent.start()
    await until(lambda: parent.file("ready") is not None)
    assert len(parent.tree()) == 3
    os.kill(parent.worker, signal.SIGKILL)
    await until(is_dead(database, parent.worker_id))
    assert parent.tree() == []
    await until(lambda: len(parent.file("lives")) == 2)


async def test_a_stopped_worker_is_killed_at_its_deadline(parent, database):
    parent.start(kill_in=2)
    await until(lambda: parent.file("ready") is not None)
    worker = parent.worker
    os.kill(worker, signal.SIGSTOP)
    await until(is_dead(database, parent.worker_id))
    assert parent.tree() == []
    assert not alive(worker)


async def test_a_worker_dies_with_its_parent(parent, database):
    parent.start()
    await until(lambda: parent.file("ready") is not None)
    worker = parent.worker
    os.kill(worker, signal.SIGSTOP)
    parent.process.kill()
    await until(lambda: not alive(worker))
    # Nobody has proven it.
    assert not await is_dead(database, parent.worker_id)()
    # What the fake has started is not under a supervisor of its own, as agents are.
    for pid in parent.tree():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("status", [0, 3])
async def test_asked_to_stop_it_ends_as_its_worker_does(parent, database, status):
    parent.start(status=status)
    await until(lambda: parent.file("ready") is not None)
    parent.process.terminate()
    assert await asyncio.to_thread(parent.process.wait, 30) == status
    assert parent.tree() == []
    assert len(parent.file("lives")) == 1
    # With status 0 a worker has given everything back itself.
    assert bool(await is_dead(database, parent.worker_id)()) == (status != 0)


async def test_a_first_worker_that_cannot_begin_ends_its_parent(settings, tmp_path):
    command = [sys.executable, "-m", "agentrpc.work.parent"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment(settings) | {"AGENTRPC_SIGNING_KEY": "short"}, capture_output=True
    )
    assert done.returncode == 2
    assert b"AGENTRPC_SIGNING_KEY: " in done.stderr


async def test_workers_that_end_again_and_again_are_started_with_pauses(parent):
    parent.start(lives=0.0)
    await until(lambda: len(parent.file("lives") or "") >= 3)
    began = time.monotonic()
    lives = len(parent.file("lives"))
    await until(lambda: len(parent.file("lives")) > lives)
    assert time.monotonic() - began > 0.2
    parent.process.terminate()
    assert await asyncio.to_thread(parent.process.wait, 30) in {0, 1, 143}


async def test_a_death_is_told_when_the_database_is_back(parent, database, settings, tmp_path):
    """The parent's way to the database leads through a door that opens later."""
    address = settings.database_url.get_secret_value()
    door = tmp_path / "door"
    door.mkdir()
    # A socket folder that is empty at first: asyncpg finds no server there.
    parent.start(AGENTRPC_DATABASE_URL=f"{address.split('?')[0]}?host={door}")
    await until(lambda: parent.file("ready") is not None)
    os.kill(parent.worker, signal.SIGKILL)
    await until(lambda: len(parent.file("lives")) == 2)
    assert not await is_dead(database, parent.worker_id)()
    for socket in _socket_folder(address).glob(".s.PGSQL.*"):
        (door / socket.name).symlink_to(socket)
    await until(is_dead(database, parent.worker_id))


def _socket_folder(address):
    from pathlib import Path
    from urllib.parse import parse_qs, unquote, urlsplit

    parts = urlsplit(address)
    folder = parse_qs(parts.query).get("host", [unquote(parts.hostname or "")])[0]
    if not folder.startswith("/"):
        pytest.skip("the database has no Unix socket")
    return Path(folder)


async def test_the_parent_is_small(parent):
    parent.start()
    await until(lambda: parent.file("ready") is not None)
    assert psutil.Process(parent.process.pid).memory_info().rss < 32 * 1024 * 1024


# ---- The real worker ----


@pytest.fixture
async def worker(settings, tmp_path):
    """`agentrpc worker` in a process, as an operator starts it."""
    process = subprocess.Popen([sys.executable, "-m", "agentrpc", "worker"], env=environment(settings))
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        for below in psutil.Process(process.pid).children(recursive=True):
            below.kill()
    process.kill()
    process.wait()


def rows(database):
    async def look():
        async with database.connection() as connection:
            found = await connection.fetch("SELECT id, pid, dead_time FROM workers ORDER BY id")
            return [tuple(row) for row in found]

    return look


async def test_agentrpc_worker_gives_itself_back_on_sigterm(worker, database):
    [(_, pid, _)] = await until(rows(database), 60)
    assert pid != worker.pid
    assert psutil.Process(pid).ppid() == worker.pid
    worker.terminate()
    assert await asyncio.to_thread(worker.wait, 30) == 0
    assert await rows(database)() == []
    assert not alive(pid)


async def test_agentrpc_worker_is_declared_dead_and_followed(worker, database):
    [(first, pid, _)] = await until(rows(database), 60)
    os.kill(pid, signal.SIGKILL)

    async def followed():
        found = await rows(database)()
        return len(found) == 2 and found

    [dead, living] = await until(followed, 60)
    assert dead[0] == first
    await until(is_dead(database, first))
    assert living[2] is None
