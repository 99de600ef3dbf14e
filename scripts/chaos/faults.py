"""Faults of our processes and of agents. Each waits for its moment, does its harm, and heals what does not by itself."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import psutil

from agentrpc.client import RpcError
from agentrpc.ending import end_tasks
from agentrpc.v1 import session_pb2
from scripts.chaos.moment import Moment, Skip, fault
from scripts.chaos.traffic import RunRecord, SessionRecord, bash
from scripts.chaos.world import Child

__all__: list[str] = []

# Longer than TTL and T_kill together.
_PAST_LEASE = 9.5
_START_FAILED = frozenset({"REASON_AGENT_START_FAILED"})
_DISK = "size=64k"


@fault(harmless=True)
async def nothing(moment: Moment) -> tuple[int, str]:
    """No fault: the suite itself has to be sound."""
    return 1, "look"


# ---- Workers that are killed ----


async def _kill(moment: Moment, child: Child) -> int:
    host = moment.world.host_of(child)
    if host is None:
        return 0
    with contextlib.suppress(psutil.Error):
        host.kill()
    return 1


@fault()
async def kill_worker_idle(moment: Moment) -> tuple[int, str]:
    """With warm processes of sessions that wait for nothing; then something comes."""
    await moment.traffic.talked.wait()
    await moment.traffic.until_ended(30)
    count = await _kill(moment, await moment.worker_of(moment.random.choice(moment.traffic.sessions)))
    await moment.traffic.more()
    return count, "kills"


@fault()
async def kill_worker_in_text(moment: Moment) -> tuple[int, str]:
    writing = await moment.traffic.open_session(session_pb2.SessionOptions(), 0)
    run = RunRecord(str(uuid4()), "[[deltas: 100]]\n[[slow: 40]]", [])
    await moment.traffic.ask(writing, run)
    if not await moment.sees(writing, "text_delta"):
        return 0, "kills"
    child = await moment.worker_of(writing)
    await moment.pause(1)
    return (await _kill(moment, child) if run.name in moment.traffic.waiting else 0), "kills"


@fault()
async def kill_worker_in_tool(moment: Moment) -> tuple[int, str]:
    """While a call runs whose start is in the ledger; sometimes a second one, when the run is taken up again."""
    count = 0
    for _ in range(moment.random.choice([1, 1, 2])):
        for _ in range(10):
            session = await moment.wait("tool_call_started")
            if session is None:
                break
            key = session.name.rpartition("/")[2]
            if await moment.fetch(f"SELECT 1 FROM tool_calls WHERE session_id = '{key}' AND outcome IS NULL"):
                count += await _kill(moment, await moment.worker_of(session))
                break
    return count, "kills while a call ran"


@fault()
async def kill_worker_at_approval(moment: Moment) -> tuple[int, str]:
    """While somebody is asked: before the session is parked, or after, or while the answer comes."""
    # Each of its calls is asked for.
    asking = await moment.traffic.open_session(session_pb2.SessionOptions(), 0)
    await moment.traffic.ask(asking, _calls(4))
    session = await moment.wait("approval_requested")
    child = await moment.worker_of(session)
    await moment.pause(2)
    return (await _kill(moment, child) if session else 0), "kills"


async def _kill_at_commit(moment: Moment, *, gate: bool) -> int:
    world = moment.world

    def act(port: int) -> bool:
        for child in world.of_kind("worker"):
            host = world.host_of(child)
            if host and any(end.laddr and end.laddr.port == port for end in host.net_connections("tcp4")):
                host.kill()
                return True
        return False

    keeping = asyncio.create_task(_keep_busy(moment))
    try:
        most = 3 if gate else 20
        return int(await world.wire.at_commit(act, gate=gate, skip=moment.random.randint(0, most), timeout=20))
    finally:
        await end_tasks([keeping])


async def _keep_busy(moment: Moment) -> None:
    while True:
        await asyncio.sleep(0.3)
        await moment.under_way()


@fault()
async def kill_worker_at_commit(moment: Moment) -> tuple[int, str]:
    """Between the commit of events and its worker's knowing, and so its publishing them."""
    return await _kill_at_commit(moment, gate=False), "kills"


@fault()
async def kill_worker_at_gate(moment: Moment) -> tuple[int, str]:
    """Between the commit of a call's start and its worker's letting it begin."""
    return await _kill_at_commit(moment, gate=True), "kills"


@fault()
async def kill_worker_cut_off(moment: Moment) -> tuple[int, str]:
    """A worker that reaches nobody, and so can write nothing down, is killed after a while."""
    session = await moment.wait("assistant_message", "message_started", "tool_call_finished")
    moment.world.wire.refuses = True
    moment.world.wire.cut()
    await asyncio.sleep(0.3 + moment.random.random())
    count = sum([await _kill(moment, child) for child in moment.world.of_kind("worker")])
    moment.world.wire.refuses = False
    return (count if session else 0), "kills"


@fault()
async def kill_worker_parent(moment: Moment) -> tuple[int, str]:
    """Nobody proves its death: the lease has to run out."""
    session = await moment.wait("tool_call_started", "message_started")
    os.kill((await moment.worker_of(session)).pid, signal.SIGKILL)
    return int(session is not None), "kills"


@fault()
async def drain_worker(moment: Moment) -> tuple[int, str]:
    session = await moment.wait("tool_call_started", "message_started")
    os.kill((await moment.worker_of(session)).pid, signal.SIGTERM)
    return int(session is not None), "drains"


# ---- What is stopped and woken ----


def _suspend(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    stopped = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()
            stopped.append(process)
    return stopped


def _resume(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.resume()


@fault(frozen=True)
async def freeze_worker(moment: Moment) -> tuple[int, str]:
    """Stopped for less than its lease and woken, or for longer: then its parent ends it."""
    session = await moment.wait("tool_call_started", "message_started")
    host = moment.world.host_of(await moment.worker_of(session))
    stopped = _suspend([host] if host else [])
    try:
        await asyncio.sleep(moment.random.choice([2, _PAST_LEASE]))
    finally:
        _resume(stopped)
    return len(stopped), "freezes"


@fault(frozen=True)
async def freeze_host(moment: Moment) -> tuple[int, str]:
    """A worker, its parent and its agents are stopped past its lease; when others have its runs, they wake."""
    count = 0
    session = await moment.wait("tool_call_started", "message_started", "text_delta")
    parent = psutil.Process((await moment.worker_of(session)).pid)
    with contextlib.suppress(psutil.Error):
        # From above: none of them sees another one stopped.
        parent.suspend()
        stopped = [parent, *_suspend(parent.children(recursive=True))]
        try:
            await asyncio.sleep(_PAST_LEASE)
            if not await _until_taken_over(moment, parent):
                moment.traffic.failures.append("nobody declared a worker dead whose lease had run out")
            await moment.pause(2)
        finally:
            moment.random.shuffle(stopped)
            # Its parent would end it at once.
            _resume([process for process in stopped if process != parent])
            await asyncio.sleep(moment.random.choice([0.05, 0.5]))
            _resume([parent])
        count = 1
    return count, "freezes"


async def _until_taken_over(moment: Moment, parent: psutil.Process) -> bool:
    pids = ", ".join(str(process.pid) for process in parent.children(recursive=True)) or "0"
    for _ in range(100):
        if not await moment.fetch(f"SELECT 1 FROM workers WHERE pid IN ({pids}) AND dead_time IS NULL"):
            return True
        await asyncio.sleep(0.1)
    return False


def _busy(moment: Moment) -> list[psutil.Process]:
    """The processes of agents that have something to do."""
    busy = {name.split("/")[1] for name in moment.traffic.waiting}
    return [process for key, found in moment.world.agents_by_session().items() if key in busy for process in found]


@fault(reasons=_START_FAILED)
async def kill_cli(moment: Moment) -> tuple[int, str]:
    """An agent's process, or one that it has started."""
    count = 0
    for _ in range(moment.random.choice([1, 2])):
        await moment.wait("message_started", "tool_call_started", "assistant_message")
        if agents := _busy(moment):
            with contextlib.suppress(psutil.Error):
                moment.random.choice(agents).kill()
                count += 1
    return count, "kills"


@fault(reasons=_START_FAILED, frozen=True)
async def hang_cli(moment: Moment) -> tuple[int, str]:
    """Agents that are stopped for some seconds."""
    await moment.wait("message_started", "tool_call_started", "assistant_message")
    agents = _busy(moment)
    stopped = _suspend(agents[:1] + [process for process in agents[1:] if moment.random.random() < 0.5])
    await asyncio.sleep(2 if moment.short else 4)
    _resume(stopped)
    return len(stopped), "processes stopped"


# ---- Edges, schedulers and their clients ----


@fault(harmless=True, blind=True)
async def kill_edge(moment: Moment) -> tuple[int, str]:
    session = await moment.wait("assistant_message", "tool_call_started")
    os.kill(moment.any("serve").pid, signal.SIGKILL)
    return int(session is not None), "kills"


@fault(harmless=True, blind=True)
async def drain_edge(moment: Moment) -> tuple[int, str]:
    session = await moment.wait("assistant_message", "tool_call_started")
    os.kill(moment.any("serve").pid, signal.SIGTERM)
    return int(session is not None), "drains"


@fault(harmless=True)
async def kill_scheduler(moment: Moment) -> tuple[int, str]:
    await moment.wait("approval_requested", "run_started")
    children = moment.world.of_kind("scheduler")
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    return len(children), "kills"


@fault(harmless=True)
async def slow_clients(moment: Moment) -> tuple[int, str]:
    """Readers that stop reading while very much comes, and readers that vanish. Those that stay get everything."""
    session = await moment.traffic.open_session(session_pb2.SessionOptions(allowed_tools=["Bash"]), 0)
    await moment.traffic.ask(session, RunRecord(str(uuid4()), "[[deltas: 60000 size=120]]", []))

    async def slow(number: int) -> None:
        seen = session.watchers.setdefault(f"slow-{number}", [])
        async with moment.world.own_client(number) as client:
            async for event in client.watch(session.name, include_deltas=True):
                if event.sequence:
                    seen.append((event.sequence, event.SerializeToString(deterministic=True)))
                elif len(seen) < 5 and moment.random.random() < 0.01:
                    await asyncio.sleep(3)
                if event.HasField("run_ended"):
                    return

    async def vanishing(number: int) -> None:
        for _ in range(5):
            async with moment.world.own_client(number) as client:
                with contextlib.suppress(TimeoutError, RpcError):
                    async with asyncio.timeout(0.5):
                        async for _ in client.watch(session.name, include_deltas=True):
                            pass

    await asyncio.gather(*(slow(n) for n in range(3)), *(vanishing(n) for n in range(2)))
    rest = await moment.fetch(
        f"SELECT last_sequence FROM session_heads WHERE session_id = '{session.name.rpartition('/')[2]}'"
    )
    for number in range(3):
        # They left at the end of the run: what the session says of itself behind it is not for them.
        session.watchers[f"slow-{number}"].extend(session.watchers["0"][len(session.watchers[f"slow-{number}"]) :])
    return 3 + 10, f"slow or vanishing readers of {rest[0][0]} events"


# ---- Disks ----


def _calls(count: int) -> RunRecord:
    tokens = [uuid4().hex[:12] for _ in range(count)]
    steps = [bash(f"echo {token} $EPOCHREALTIME >> effects") for token in tokens]
    return RunRecord(str(uuid4()), "\n[[then]]\n".join([*steps, "[[text: end]]"]), tokens)


@fault(reasons=_START_FAILED)
async def full_disk(moment: Moment) -> tuple[int, str]:
    """A workspace whose disk an agent fills, with a checkpoint before each run; then there is room again."""
    options = session_pb2.SessionOptions(allowed_tools=["Bash"], checkpoints=True)
    session = await moment.traffic.open_session(options, 0)
    folder = moment.world.workspaces / session.name.rpartition("/")[2]
    folder.mkdir(parents=True)
    _mount(moment, folder, _DISK)
    fill = bash("head -c 100000 /dev/zero > filler; echo full")
    await _ended(moment, session, RunRecord(str(uuid4()), f"{fill}\n[[then]]\n[[text: full]]", []))
    full = _calls(2)
    await _ended(moment, session, full)
    effects = folder / "files" / "effects"
    stored = effects.read_text() if effects.exists() else ""
    lost = sum(token not in stored for token in full.tokens)
    _mount(moment, folder, "remount,size=1m")
    again = _calls(2)
    await _ended(moment, session, again)
    if any(token not in effects.read_text() for token in again.tokens):
        moment.traffic.failures.append(f"{session.name}: a disk that has room again is not written to")
    return lost, "calls without room"


def _mount(moment: Moment, folder: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise Skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    if folder not in moment.world.mounts:
        moment.world.mounts.append(folder)


async def _ended(moment: Moment, session: SessionRecord, run: RunRecord) -> None:
    await moment.traffic.ask(session, run)
    while run.name in moment.traffic.waiting:
        await asyncio.sleep(0.05)


# ---- Clocks ----


@fault(clocks_differ=True)
async def clock_step(moment: Moment) -> tuple[int, str]:
    """The clock of a worker or scheduler is suddenly hours wrong, and right again after a while."""
    clocks = moment.world.clocks
    if clocks.why_not:
        raise Skip(clocks.why_not)
    children = [*moment.world.of_kind("worker"), *moment.world.of_kind("scheduler")]
    chosen = moment.random.sample(children, 2)
    await moment.wait("run_started", "tool_call_started", "approval_requested")
    for child in chosen:
        clocks.step(child.name, moment.random.choice([-7200, -30, 30, 7200]))
    await asyncio.sleep(2 if moment.short else 4)
    for child in chosen:
        clocks.step(child.name, 0)
    return 2 * len(chosen), "steps"
