"""What a session may use of its machine: hogs end, or are slowed, in their own runs, and others go on."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pydantic import ValidationError

from agentrpc import clock
from agentrpc.claude.cgroups import Cgroups
from agentrpc.claude.launcher import Isolation, SessionPaths, write_launcher
from agentrpc.claude.limits import Limits, strike
from agentrpc.claude.process_usage import Look, look_at
from agentrpc.claude.mcp_client import Ground, McpConnectError
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.client import RpcError
from agentrpc.services.mcp_checks import _bounded_look
from agentrpc.services.session_host.bounds import Bounded
from agentrpc.services.session_host.usage import Usage, measure
from agentrpc.services.session_host.watch import LimitWatch
from agentrpc.services.session_limits import agent_memory, limits_of
from agentrpc.settings import Settings
from agentrpc.v1 import run_pb2, session_pb2
from agentrpc.v1.session_service_pb2 import TerminateSessionRequest
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import bash, create, of, run, state
from tests.isolations import bubblewrap, isolations
from tests.security.hogs import HOGS, command

MIB = 1024 * 1024
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="there is no Python that a sandbox can see")

LIMITS = session_pb2.ResourceLimits(
    memory_bytes=600 * MIB, processes=150, open_files=300, workspace_bytes=64 * MIB, workspace_files=3000,
    tmp_bytes=16 * MIB,
)  # fmt: skip


def told(events):
    """How a run ended: its state, or the reason why it failed."""
    (ended,) = of(events, "run_ended")
    return run_pb2.RunError.Reason.Name(ended.error.reason) if ended.HasField("error") else state(events)


async def hog(client, session, what):
    return await run(client, session, f"{bash(command(what))}\n[[then]]\n[[text: done]]", timeout=120)


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


@contextlib.asynccontextmanager
async def quiet(client, count):
    """Sessions that answer again and again while something else goes on; what they took longest."""
    sessions = [await create(client) for _ in range(count)]
    for session in sessions:
        await run(client, session, "[[text: warm]]")
    stopped, answers = asyncio.Event(), []

    async def ask(session):
        while not stopped.is_set():
            events = await run(client, session, "[[text: still here]]", timeout=60)
            answers.append(state(events))
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(ask(session)) for session in sessions]
    yield answers
    stopped.set()
    await asyncio.gather(*tasks)


REASONS = {
    "fork": "REASON_TOO_MANY_PROCESSES",
    "memory": "REASON_OUT_OF_MEMORY",
    "disk": "REASON_WORKSPACE_FULL",
    "files": "REASON_WORKSPACE_FULL",
    "home": "REASON_WORKSPACE_FULL",
    "cpu": "STATE_SUCCEEDED",
    "descriptors": "STATE_SUCCEEDED",
}


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.timeout(600)
async def test_hogs_end_in_their_own_runs(isolation):
    async with own_stack(isolation=isolation) as stack, stack.client() as client:
        sessions = [await create(client, allowed_tools=["Bash"], limits=LIMITS) for _ in REASONS]
        async with quiet(client, 2) as answers:
            for session, (what, reason) in zip(sessions, REASONS.items(), strict=True):
                before = len(answers)
                assert told(await hog(client, session, what)) == reason, what
                assert len(answers) > before
        assert set(answers) == {"STATE_SUCCEEDED"}
        for session in sessions:
            events = await run(client, session, f"{bash('true')}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED", told(events)


@pytest.mark.parametrize("isolation", isolations())
async def test_programs_of_mcp_servers_are_bounded_with_their_session(isolation):
    """In its sandbox, and beside it, where those are that have secrets; from their start on."""
    async with own_stack(isolation=isolation) as stack, stack.client() as client:
        for env in ({}, {"TOKEN": "secret"}):
            stdio = session_pb2.McpStdio(command=PYTHON, args=["-c", textwrap.dedent(HOGS["fork"])], env=env)
            servers = [session_pb2.McpServer(name="s", stdio=stdio)]
            session = await create(client, allowed_tools=["Bash"], limits=LIMITS, mcp_servers=servers)
            events = await run(client, session, f"{bash('sleep 30')}\n[[then]]\n[[text: done]]")
            assert told(events) == "REASON_TOO_MANY_PROCESSES"


# ---- Clean up, and the next run ----


async def test_a_run_that_begins_with_too_many_files_can_remove_some_and_add_few():
    fill = command_of("import os; [open(f'big-{n}', 'wb').write(os.urandom(2**20)) for n in range(70)]")
    more = command_of(
        "import os, time; [open(f'more-{n}', 'wb').write(os.urandom(2**20)) for n in range(30)]; time.sleep(60)"
    )
    limits = session_pb2.ResourceLimits(workspace_bytes=64 * MIB)
    async with own_stack() as stack, stack.client() as client:
        session = await create(client, allowed_tools=["Bash"], limits=limits)
        events = await run(client, session, f"{bash(f'{fill}; sleep 60')}\n[[then]]\n[[text: done]]", timeout=120)
        assert told(events) == "REASON_WORKSPACE_FULL"
        (message,) = [ended.error.message for ended in of(events, "run_ended")]
        assert "64 MiB" in message
        assert "DeleteFile" in message
        assert len(list(stack.workspace(session).iterdir())) >= 64
        # Another may do little; when it does much it ends as well.
        events = await run(client, session, f"{bash(f'{more}')}\n[[then]]\n[[text: done]]", timeout=120)
        assert told(events) == "REASON_WORKSPACE_FULL"
        assert "workspace_full" in [notice.code for notice in of(events, "notice")]
        # And one that cleans up goes on, as does what comes after it.
        for path in list(stack.workspace(session).glob("more-*")):
            path.unlink()
        for prompt in ("rm big-*; sleep 2", "sleep 2"):
            events = await run(client, session, f"{bash(prompt)}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED", told(events)
        assert "workspace_full" not in [notice.code for notice in of(events, "notice")]


def command_of(program):
    """A line for Bash."""
    return f"{PYTHON} -c {json.dumps(program)}"


# ---- The watcher alone ----


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
    ],
)
async def test_a_hog_is_found_and_killed_and_what_is_beside_it_stays(launched, watch, isolation, what, limits, reason):
    if what == "tmp files" and isolation is not Isolation.BUBBLEWRAP:
        pytest.skip("its /tmp is the machine's")
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
    usage = await measure([tmp_path, tmp_path / "missing"])
    assert 3 * MIB <= usage.bytes < 4 * MIB
    assert usage.files == 11
    assert usage.within(limits)
    assert not usage.within(Limits(disk_bytes=MIB))
    assert not usage.within(Limits(disk_files=5))
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("deep", dir_fd=folder)
        below = os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    usage = await measure([tmp_path])
    assert usage.too_deep
    assert not usage.within(limits, Usage())
    assert usage.within(limits, usage)
    assert usage.breach(limits).reason == "REASON_WORKSPACE_FULL"
    assert await asyncio.to_thread(remove_tree, tmp_path / "deep")


# ---- What callers ask for ----


async def test_no_session_gets_more_than_the_operator_allows(edge, client):
    fine = session_pb2.ResourceLimits(memory_bytes=2**30, processes=64, cpus=0.5, open_files=256, workspace_bytes=2**20,
                     workspace_files=100, tmp_bytes=2**20)  # fmt: skip
    session = await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(limits=fine)))
    assert session.options.limits == fine
    wrong = {
        "memory_bytes": (2**28 - 1, -1), "processes": (63, 1025, 0), "cpus": (0.0, -1.0, float("nan")),
        "open_files": (255, 4097), "workspace_bytes": (2**20 - 1, 10 * 2**30 + 1), "workspace_files": (99, 1_000_001),
        "tmp_bytes": (2**20 - 1, 2**29 + 1),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            options = session_pb2.SessionOptions(limits=session_pb2.ResourceLimits(**{name: value}))
            with pytest.raises(RpcError) as caught:
                await client.create_session(session_pb2.Session(options=options))
            assert caught.value.reason == "FIELD_INVALID"
            assert f"session.options.limits.{name}" in str(caught.value)
            too_much = value > getattr(fine, name)
            assert ("which the operator sets" if too_much else "or more") in str(caught.value)


def test_limits_are_those_asked_for_then_the_operator_s_and_never_above_the_ceiling(settings):
    own = settings.model_copy(update={"session_limits": {"processes": 200, "memory_bytes": 2**30, "cpus": 2.0}})
    found = limits_of(own)
    assert (found.processes, found.memory, found.cpus, found.open_files) == (200, 2**30, 2.0, 4096)
    asked = session_pb2.SessionOptions(limits=session_pb2.ResourceLimits(processes=900, memory_bytes=2**29))
    assert (limits_of(own, asked).processes, limits_of(own, asked).memory) == (900, 2**29)
    lowered = own.model_copy(update={"max_session_processes": 100, "max_session_memory": 2**28})
    assert (limits_of(lowered, asked).processes, limits_of(lowered, asked).memory) == (100, 2**28)
    assert limits_of(settings).memory == agent_memory(settings)
    for wrong in ({"procs": 1}, {"processes": 0}):
        with pytest.raises(ValidationError, match="session_limits"):
            type(settings).model_validate({**settings.model_dump(), "session_limits": wrong})


def test_doctor_says_what_keeps_the_limits():
    from agentrpc.cli.checks import _limits

    good, text = _limits()
    assert good
    assert Cgroups.find().text in text


# ---- MCP servers ----


@pytest.mark.parametrize("isolation", isolations())
async def test_a_check_of_a_program_that_takes_too_much_ends_and_says_so(tmp_path, isolation):
    async def nowhere(host, port):
        raise AssertionError

    for what, limits, told_of in (
        ("fork", Limits(processes=100), "more than 100 processes"),
        ("memory", Limits(memory=200 * MIB), "more than 200 MiB of memory"),
    ):
        program = textwrap.dedent(HOGS[what])
        stdio = session_pb2.McpStdio(command=PYTHON, args=["-c", program])
        ground = Ground(tmp_path / what, isolation, nowhere, limits=limits)
        with pytest.raises(McpConnectError, match=told_of):
            await _bounded_look(session_pb2.McpServer(name="s", stdio=stdio), ground, timeout=60)


# ---- Nothing is left ----


@pytest.mark.parametrize("isolation", isolations())
@pytest.mark.timeout(900)
async def test_starts_and_stops_leave_nothing(isolation):
    """20 of them, or as many as AGENTRPC_TEST_STARTS says."""
    count = int(os.environ.get("AGENTRPC_TEST_STARTS", "20"))
    async with own_stack(isolation=isolation, idle_ttl=600, max_processes=1) as stack, stack.client() as client:
        sessions = [await create(client, allowed_tools=["Bash"]) for _ in range(2)]
        # With one place each takes that of the other.
        for session in sessions:
            await run(client, session, "[[text: first]]")
        before = await asyncio.to_thread(left_behind, stack)
        for number in range(count):
            call = bash("setsid sleep 600 >/dev/null 2>&1 & echo up")
            events = await run(client, sessions[number % 2], f"{call}\n[[then]]\n[[text: ok]]")
            assert state(events) == "STATE_SUCCEEDED"
        # Some come and go, such as connections: as many as sessions would leave, there are never.
        few = {"processes": 2, "descriptors": 8}
        await until(lambda: all(left_behind(stack)[what] <= before[what] + more for what, more in few.items()))
        after = await asyncio.to_thread(left_behind, stack)
        assert {**after, **dict.fromkeys(few)} == {**before, **dict.fromkeys(few)}
        for session in sessions:
            await client.call(client.sessions.TerminateSession, TerminateSessionRequest(name=session))
        await until(lambda: not left_behind(stack)["processes"])
        assert left_behind(stack)["cgroups"] == []


def left_behind(stack):
    """What a worker's sessions have on this machine."""
    worker = psutil.Process(stack.stack.pid("worker"))
    own = [process for process in [worker, *worker.children()] if "worker-process" in process.cmdline()]
    base = Cgroups.find().base
    files = sorted(
        str(path.relative_to(stack.folder))
        for name in ("launch", "mcp")
        for path in stack.folder.glob(f"sessions/*/{name}/**/*")
    )
    return {
        "processes": sum(len(process.children(recursive=True)) for process in own),
        "cgroups": [] if base is None else sorted(
            path.name.split("-", 3)[2] for path in base.glob(f"agentrpc-session-{own[0].pid}-*")
        ),
        "mounts": Path("/proc/self/mountinfo").read_text().count(str(stack.folder)),
        "descriptors": own[0].num_fds(),
        "files": files,
    }  # fmt: skip
