"""What bounds a program of an agent: the kernel, and the watcher, by itself."""

import asyncio
import contextlib
import os
import subprocess
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation, SessionPaths, write_launcher
from agentrpc.claude.limits import Limits, strike
from agentrpc.claude.listeners import Handover
from agentrpc.claude.process_usage import Look, look_at, memory_held, processes_below
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.services.session_host.bounds import Bounded
from agentrpc.services.session_host.usage import Usage, measure
from agentrpc.services.session_host.watch import LimitWatch
from agentrpc.settings import Settings
from tests.e2e.stacks import until
from tests.isolations import bubblewrap, isolations
from tests.security.bounded import MIB, PYTHON, harmless, needs_python  # noqa: F401 - a fixture
from tests.security.hogs import HOGS
from tests.trees import nested

SHELL = Path("/bin/sh").resolve()
COUNTED = Path("/proc/self/fd").stat().st_size > 0
pytestmark = needs_python


class Actor:
    """A session's actor, as far as the watcher is concerned: a program in the place of the CLI."""

    def __init__(self, process, bounded):
        self.session_id = clock.uuid7()
        self.process, self.live = process, bounded
        self.run = SimpleNamespace(id=clock.uuid7())
        self.full = []

    @property
    def bounded(self):
        return self.live if self.process.poll() is None else None

    def say_full(self, what):
        self.full.append(what)


@pytest.fixture
async def watch(launched, settings_alone):
    """Watches programs: the first breach, once one is there, and whose."""
    tasks = []

    async def begin(*actors, **changes):
        found = asyncio.get_running_loop().create_future()

        async def end(actor, breach):
            if not found.done():
                found.set_result((actor, breach))

        async def together():
            await end(None, None)

        all_memory = changes.pop("together", 2**50)
        settings = settings_alone.model_copy(update=changes)
        by_id = {actor.session_id: actor for actor in actors}
        tasks.append(asyncio.create_task(LimitWatch(settings, by_id, end, (all_memory, together)).run()))
        async with asyncio.timeout(90):
            await asyncio.wait({found, tasks[-1]}, return_when=asyncio.FIRST_COMPLETED)
        return found.result() if found.done() else tasks[-1].result()

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def settings_alone():
    return Settings(database_url="postgresql://x@x/x", redis_url="redis://x", signing_key="k" * 32, min_free_space=0)


def actor_of(launched, isolation, program, **limits):
    process = launched(isolation, program, **limits)
    sandboxed = isolation is Isolation.BUBBLEWRAP
    return Actor(process, Bounded(Limits(**limits), [process.pid], sandboxed, [launched.folder(process)]))


IDLE = "import time; print('up', flush=True); time.sleep(600)"


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.parametrize(
    ("what", "limits", "reason"),
    [
        ("fork", {"processes": 100}, "REASON_TOO_MANY_PROCESSES"),
        ("memory", {"memory": 300 * MIB}, "REASON_OUT_OF_MEMORY"),
        ("disk", {"disk_bytes": 32 * MIB}, "REASON_WORKSPACE_FULL"),
        ("files", {"disk_files": 2000}, "REASON_WORKSPACE_FULL"),
        ("tmp files", {"tmp_bytes": 4 * MIB}, "REASON_WORKSPACE_FULL"),
        ("memfd", {"memory": 300 * MIB}, "REASON_OUT_OF_MEMORY"),
        ("shared memory", {"memory": 300 * MIB}, "REASON_OUT_OF_MEMORY"),
        ("removed files", {"disk_bytes": 32 * MIB}, "REASON_WORKSPACE_FULL"),
        ("many descriptors", {"processes": 64, "open_files": 300}, "REASON_OUT_OF_MEMORY"),
    ],
)
async def test_a_hog_is_found_and_killed_and_what_is_beside_it_stays(launched, watch, isolation, what, limits, reason):
    if what == "tmp files" and isolation is not Isolation.BUBBLEWRAP:
        pytest.skip("its /tmp is the machine's")
    if what == "many descriptors" and not COUNTED:
        pytest.skip("this kernel does not count them")
    quiet = actor_of(launched, isolation, IDLE, **limits)
    assert quiet.process.stdout.readline() == "up\n"
    hog = actor_of(launched, isolation, textwrap.dedent(HOGS[what]), **limits)
    actor, breach = await watch(quiet, hog)
    assert actor is hog
    assert breach.reason == reason
    await asyncio.to_thread(hog.process.wait, 30)
    assert quiet.process.poll() is None
    assert look_at([hog.process.pid], sandboxed=False) == Look()


@bubblewrap
async def test_what_is_written_to_tmp_counts_as_memory(launched, watch):
    program = (
        "import time; out = open('/dev/shm/x', 'wb')\nfor _ in range(300): out.write(bytes(2**20))\ntime.sleep(60)"
    )
    hog = actor_of(launched, Isolation.BUBBLEWRAP, program, memory=200 * MIB)
    _, breach = await watch(hog)
    assert breach.reason == "REASON_OUT_OF_MEMORY"


async def test_what_is_being_ended_anyway_is_watched_until_it_has_and_no_run_fails_for_it(launched, watch):
    hog = actor_of(launched, Isolation.SUBREAPER, textwrap.dedent(HOGS["fork"]), processes=100)
    hog.live = replace(hog.live, leaving=True)
    watching = asyncio.create_task(watch(hog))
    await asyncio.to_thread(hog.process.wait, 60)
    assert not watching.done()
    watching.cancel()


async def test_where_a_disk_is_nearly_full_who_writes_has_to_stop(launched, watch):
    program = "import os, time\nout = open('x', 'wb')\nfor _ in range(60):\n  out.write(os.urandom(2**22)); out.flush(); time.sleep(.1)"
    quiet = actor_of(launched, Isolation.SUBREAPER, IDLE)
    hog = actor_of(launched, Isolation.SUBREAPER, program)
    actor, breach = await watch(quiet, hog, min_free_space=2**60)
    assert actor is hog
    assert breach.reason == "REASON_WORKSPACE_FULL"
    assert "min_free_space" in breach.message


@pytest.mark.parametrize("isolation", isolations())
async def test_tools_that_use_much_of_the_processors_go_behind_others(launched, watch, isolation, monkeypatch):
    """The CLI stands before them: its own Unix session keeps its place."""
    # On a busy machine no program gets much.
    monkeypatch.setattr("agentrpc.services.session_host.watch._MUCH", 0.01)
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n  os.setsid()\n  until = time.time() + 60\n  while time.time() < until: pass\n"
        "print('up', flush=True); time.sleep(600)"
    )
    hog = actor_of(launched, isolation, program)
    assert hog.process.stdout.readline() == "up\n"
    root = psutil.Process(hog.process.pid)
    leads = lambda: [each for each in root.children(recursive=True)[1:] if os.getsid(each.pid) == each.pid]  # noqa: E731
    (burner,) = await until(leads)
    tree = root.children(recursive=True)
    watching = asyncio.create_task(watch(hog))
    await asyncio.sleep(0)
    before = {process.pid: process.nice() for process in tree}
    groups = [Path(f"/proc/{process.pid}/autogroup") for process in (burner, tree[0])]
    if groups[0].exists():
        await until(lambda: groups[0].read_text().split()[-1] == "10")
    await until(lambda: burner.nice() >= 15)
    assert {p.pid: p.nice() for p in tree if p.pid != burner.pid} == {
        pid: nice for pid, nice in before.items() if pid != burner.pid
    }
    if groups[0].exists():
        assert groups[1].read_text().split()[-1] == "0"
        burner.suspend()
        await until(lambda: groups[0].read_text().split()[-1] == "0")
    assert not watching.done()
    watching.cancel()


async def test_when_all_together_use_too_much_the_worker_is_told(launched, watch):
    assert await watch(actor_of(launched, Isolation.SUBREAPER, IDLE), together=MIB) == (None, None)


# ---- What the kernel keeps ----


@pytest.fixture
def launched(tmp_path):
    """Runs a Python program as an agent's is."""
    running = []

    def start(isolation, program, **limits):
        root = tmp_path / str(len(running))
        paths = SessionPaths(root / "session", root / "workspace")
        paths.create()
        paths.workspace.mkdir()
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(paths.home)}
        script = write_launcher(paths, isolation, Path(PYTHON).resolve(), environment, Limits(**limits))
        running.append(
            subprocess.Popen([script, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return running[-1]

    start.folder = lambda process: tmp_path / str(running.index(process)) / "workspace"
    yield start
    for process in running:
        strike([process.pid])
        process.kill()
        process.communicate()


def said(process):
    return process.communicate(timeout=120)[0]


# As many as the kernel gives, and no more than a machine bears.
FORKS = """
import os, time
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        made += 1
    print(made, "made", flush=True)
except OSError as error:
    print(made, error.strerror, flush=True)
time.sleep({})
"""


@bubblewrap
def test_processes_of_one_session_count_and_no_other_s(launched):
    """64 and a quarter more and 32 are what the kernel lets one have, unless it is root's."""
    if os.geteuid() == 0:
        pytest.skip("the kernel does not bound root's")
    first = launched(Isolation.BUBBLEWRAP, FORKS.format(15), processes=64)
    made, why = first.stdout.readline().split(maxsplit=1)
    assert why == "Resource temporarily unavailable\n"
    assert 64 < int(made) <= 112
    second = launched(Isolation.BUBBLEWRAP, FORKS.format(0), processes=64)
    assert second.stdout.readline().split()[0] == made


@bubblewrap
async def test_descriptors_on_their_way_in_one_session_keep_no_other_from_starting(launched, tmp_path):
    """The kernel counts them for each user, and refuses whoever sends more while they are too many."""
    program = textwrap.dedent("""
        import socket, time
        kept, why = [], ""
        with open("/dev/null") as file:
            while not why and len(kept) < 500:
                kept += socket.socketpair()
                kept[-1].setblocking(False)
                try:
                    while True:
                        socket.send_fds(kept[-1], [b"x"], [file.fileno()] * 200)
                except BlockingIOError:
                    pass
                except OSError as error:
                    why = error.strerror
        print(why, flush=True)
        time.sleep(60)
    """)
    hog = launched(Isolation.BUBBLEWRAP, program, open_files=1024)
    assert "Too many references" in hog.stdout.readline() or os.geteuid() == 0
    paths = SessionPaths(tmp_path / "next", tmp_path / "next" / "workspace")
    paths.create()
    paths.workspace.mkdir()
    limits = Limits(open_files=1024)
    script = write_launcher(paths, Isolation.BUBBLEWRAP, SHELL, {"PATH": "/usr/bin:/bin"}, limits)
    with contextlib.closing(Handover()) as handover:
        pipe = asyncio.subprocess.PIPE
        process = await handover.spawn(str(script), "-c", "ulimit -n", stdout=pipe)
        listeners = await handover.listeners()
        listeners.gateway.close()
        listeners.proxy.close()
        assert (await process.communicate())[0] == b"1024\n"


@pytest.mark.parametrize("isolation", isolations())
def test_descriptors_and_large_files(launched, isolation):
    program = textwrap.dedent(HOGS["descriptors"]) + (
        "\n[os.close(n) for n in taken]\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n  out = open('large', 'wb')\n  print([out.write(bytes(2**20)) for _ in range(30)])\n"
        "except OSError as error:\n  print(error.strerror)\n"
    )
    text = said(launched(isolation, program, open_files=300, disk_bytes=16 * MIB))
    assert "Traceback" not in text, text
    count, why = text.splitlines()[0].split(maxsplit=1)
    assert why == "Too many open files"
    assert 250 < int(count) <= 300
    assert text.splitlines()[1] == "File too large"


@bubblewrap
def test_what_is_in_memory_is_bounded_and_nothing_else_is(launched):
    text = said(launched(Isolation.BUBBLEWRAP, textwrap.dedent(HOGS["tmp"]), tmp_bytes=16 * MIB))
    found = {}
    for line in text.splitlines():
        place, written, why = line.split(maxsplit=2)
        found[place] = (int(written), why)
    for place in ("/tmp", "/dev/shm"):
        assert found.pop(place) == (16, "No space left on device")
    assert {written for written, _ in found.values()} == {0}
    assert set(found) == {"/", "/run", "/dev", "/var/tmp", "/etc"}


@pytest.mark.parametrize("isolation", isolations())
def test_agents_go_behind_the_service(launched, isolation):
    program = (
        "import os; print(open('/proc/self/oom_score_adj').read().strip(), os.nice(0))\n"
        "try: open('/proc/self/oom_score_adj', 'w').write('0'); print('lowered')\nexcept OSError as e: print(e.strerror)"
    )
    score, rest = said(launched(isolation, program)).splitlines()
    assert score.split()[0] == "500"
    assert int(score.split()[1]) >= 5
    if isolation is Isolation.BUBBLEWRAP:
        assert rest == "Read-only file system"


# ---- What is measured ----


@pytest.mark.parametrize("isolation", isolations())
def test_a_look_sees_processes_memory_and_what_was_written(launched, isolation):
    program = (
        "import os, threading, time\nkept = bytearray(b'x') * (100 * 2**20)\n"
        "for n in range(3):\n  if os.fork() == 0: time.sleep(60)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "out = open('out', 'wb'); out.write(bytes(8 * 2**20)); out.flush(); os.fsync(out.fileno())\n"
        "place = open('/tmp/tmp', 'wb') if os.path.ismount('/tmp') else open('/dev/null', 'wb')\n"
        "place.write(bytes(4 * 2**20)); place.flush()\nprint('ready', flush=True); time.sleep(60)"
    )
    process = launched(isolation, program)
    assert process.stdout.readline() == "ready\n"
    sandboxed = isolation is Isolation.BUBBLEWRAP
    look = look_at([process.pid], sandboxed=sandboxed)
    assert 6 <= look.tasks <= 14
    assert 100 * MIB < look.resident < 1000 * MIB
    assert look.written >= 8 * MIB
    if sandboxed:
        assert 4 * MIB <= look.in_files < 5 * MIB
        assert 1 <= look.tmp_files < 30
    before = time.monotonic()
    strike([process.pid])
    process.wait(20)
    assert time.monotonic() - before < 20
    assert look_at([process.pid], sandboxed=sandboxed) == Look()


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.parametrize("keep", ["taken.append(file)", "taken.append(mmap.mmap(file, 64 * 2**20)); os.close(file)"])
def test_a_file_in_memory_without_a_name_counts_once_however_it_is_kept(launched, isolation, keep):
    program = (
        "import mmap, os, time\ntaken = []\nfile = os.memfd_create('x')\nos.ftruncate(file, 64 * 2**20)\n"
        "with mmap.mmap(file, 64 * 2**20) as place: place[:] = bytes(64 * 2**20)\n"
        f"{keep}\nfor _ in range(3):\n  if os.fork() == 0: time.sleep(60)\nprint('up', flush=True); time.sleep(60)"
    )
    process = launched(isolation, program)
    assert process.stdout.readline() == "up\n"
    assert 64 * MIB <= memory_held(processes_below([process.pid])) < 66 * MIB
    bounded = Bounded(Limits(), [process.pid], isolation is Isolation.BUBBLEWRAP, [])
    assert 64 * MIB < bounded.memory() < 128 * MIB


async def test_files_are_added_up_whatever_an_agent_makes_of_them(tmp_path):
    limits = Limits(disk_bytes=100 * MIB, disk_files=1000)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "large").write_bytes(os.urandom(2 * MIB))
    (tmp_path / "closed").chmod(0)
    (tmp_path / "twice").write_bytes(os.urandom(MIB))
    for number in range(5):
        os.link(tmp_path / "twice", tmp_path / f"twice-{number}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/usr")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(2**40)
    bounded = Bounded(limits, [], False, [tmp_path, tmp_path / "missing"])
    usage = await measure(bounded)
    assert 3 * MIB <= usage.bytes < 4 * MIB
    assert usage.files == 11
    assert usage.within(limits)
    assert not usage.within(Limits(disk_bytes=MIB))
    assert not usage.within(Limits(disk_files=5))
    with nested(tmp_path, 1000, "deep"):
        pass
    usage = await measure(bounded)
    assert usage.too_deep
    assert not usage.within(limits, Usage())
    assert usage.within(limits, usage)
    assert usage.breach(limits).reason == "REASON_WORKSPACE_FULL"
    assert await asyncio.to_thread(remove_tree, tmp_path / "deep")
