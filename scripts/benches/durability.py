"""recover, cancel, sessions: runs that outlive their workers, trees that do not outlive a cancel, many open sessions.

The times are those of starting and ending processes: whatever else the machine does shows in them. Hence `load before`,
the machine's load average.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from agentrpc.client import AgentRpcClient
from agentrpc.embedded.stack import _agent_processes
from agentrpc.ending import end_tasks
from agentrpc.store.database import Database
from agentrpc.store.leases import living_workers
from agentrpc.testkit import write_cli
from agentrpc.v1 import event_pb2, run_pb2, session_pb2
from scripts.benches.frame import Figure, Outcome, Running, quantile, running

# Of the default, 30 s and 5 s, only so much that a bench ends in reasonable time.
_TTL, _T_KILL = 6, 2
_TIMES = f"TTL {_TTL} s, T_kill {_T_KILL} s"
_SLACK = 5
_LOAD = "load before"
_AT_ONCE = 2
_CANCELLED = 50
_SESSIONS, _LIVE = 1000, 8
_PATIENCE = 120


@asynccontextmanager
async def _fake_cli() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="agentrpc-cli-") as folder:
        yield str(await asyncio.to_thread(write_cli, Path(folder) / "fake-claude"))


async def _create(client: AgentRpcClient, **options: object) -> str:
    return (await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(**options)))).name


async def _until_tool_runs(client: AgentRpcClient, run: run_pb2.Run) -> float:
    session = run.name.partition("/runs/")[0]
    async for event in client.watch(session, run=run.name, event_types=["tool_call_started", "run_ended"]):
        if event.HasField("run_ended"):
            raise AssertionError(f"{run.name} ended too early: {event.run_ended}")
        break
    return time.monotonic()


def _by_session(folder: Path) -> dict[str, list[psutil.Process]]:
    """What works in the sessions' folders of a data dir."""
    found: dict[str, list[psutil.Process]] = {}
    for process in _agent_processes(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.setdefault(Path(process.cwd()).relative_to(folder).parts[1], []).append(process)
    return found


# ---- recover ----


class _Workers:
    """The workers of a stack, and what becomes of runs when something befalls one of them.

    `begun` has the seconds from the creation of runs to the beginning of their tool call: a start without a loss.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.begun: list[float] = []

    async def until_living(self, count: int) -> None:
        async with asyncio.timeout(_PATIENCE):
            while True:
                if len(await living_workers(self._database)) == count:
                    return
                await asyncio.sleep(0.1)

    async def lose(
        self, client: AgentRpcClient, count: int, befall: Callable[[psutil.Process], None]
    ) -> tuple[list[float], psutil.Process]:
        """Seconds until each of the runs of a worker that something has befallen goes on; that worker.

        Each run is in the middle of a tool call. It goes on when the next attempt's model has said something.
        """
        await self.until_living(count)
        prompt = '[[tool: Bash {"command": "tail -f /dev/null"}]]\n[[then]]\n[[text: it goes on]]'
        always = session_pb2.RECOVERY_POLICY_RESUME_ALWAYS
        made = [await _create(client, allowed_tools=["Bash"], recovery_policy=always) for _ in range(_AT_ONCE)]
        created = time.monotonic()
        runs = [await client.create_run(session, prompt) for session in made]
        moments = await asyncio.gather(*(_until_tool_runs(client, run) for run in runs))
        self.begun += [moment - created for moment in moments]
        places = [(await client.get_run(run.name)).worker for run in runs]
        victim = psutil.Process(int(places[0].rpartition(":")[2]))
        affected = [run for run, place in zip(runs, places, strict=True) if place == places[0]]
        others = [run for run in runs if run not in affected]
        watching = [asyncio.create_task(_goes_on(client, run)) for run in affected]
        # The watchers have caught up by then.
        await asyncio.sleep(1)
        began = time.monotonic()
        befall(victim)
        async with asyncio.timeout(_PATIENCE):
            times = [moment - began for moment in await asyncio.gather(*watching)]
        for run in others:
            await client.cancel(run.name)
        return times, victim


async def _goes_on(client: AgentRpcClient, run: run_pb2.Run) -> float:
    session = run.name.partition("/runs/")[0]
    moment = attempt = 0
    async for event in client.watch(
        session, run=run.name, event_types=["run_started", "assistant_message", "run_ended"]
    ):
        if event.HasField("run_started"):
            attempt = event.run_started.attempt
        elif event.HasField("assistant_message") and attempt > 1:
            moment = moment or time.monotonic()
        elif event.HasField("run_ended") and event.run_ended.state != run_pb2.Run.STATE_SUCCEEDED:
            raise AssertionError(f"{run.name} did not go on: {event.run_ended}")
    return moment


@asynccontextmanager
async def _workers(stack: Running) -> AsyncIterator[_Workers]:
    database = Database(stack.stack.environment["AGENTRPC_DATABASE_URL"], pool_size=1)
    try:
        yield _Workers(database)
    finally:
        await database.close()


@asynccontextmanager
async def _another_worker(stack: Running) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentrpc.work.parent",
        env={**os.environ, **stack.stack.environment}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def _kill(worker: psutil.Process) -> None:
    worker.kill()


def _freeze(worker: psutil.Process) -> None:
    worker.suspend()


def _freeze_with_parent(worker: psutil.Process) -> None:
    # First the parent, which would kill it.
    worker.parent().suspend()
    worker.suspend()


async def recover() -> Outcome:
    alone, beside, frozen, vanished = [], [], [], []
    baseline = {_LOAD: os.getloadavg()[0]}
    async with running() as stack, stack.client() as client, _workers(stack) as workers:
        for _ in range(3):
            alone += (await workers.lose(client, 1, _kill))[0]
        baseline["s to the first tool call of a new run, p50"] = quantile(workers.begun, 0.5)
    settings = {"AGENTRPC_LEASE_TTL": str(_TTL), "AGENTRPC_KILL_TIMEOUT": str(_T_KILL)}
    async with (
        running(**settings) as stack,
        stack.client() as client,
        _workers(stack) as workers,
        _another_worker(stack),
    ):
        for _ in range(3):
            beside += (await workers.lose(client, 2, _kill))[0]
        for _ in range(2):
            frozen += (await workers.lose(client, 2, _freeze))[0]
        for _ in range(2):
            times, worker = await workers.lose(client, 2, _freeze_with_parent)
            vanished += times
            parent = worker.parent()
            for process in (worker, parent):
                process.resume()
            # It has lost its lease, and ends by itself; two living ones are waited for next.
            await asyncio.to_thread(worker.wait, _PATIENCE)
    return Outcome(
        [
            Figure("only worker killed, to its runs going on, p50", quantile(alone, 0.5), "s"),
            Figure("only worker killed, to its runs going on, max", max(alone), "s", 5),
            Figure("one of two workers killed, p50", quantile(beside, 0.5), "s"),
            Figure("one of two workers killed, max", max(beside), "s", 5),
            Figure(f"worker frozen, {_TIMES}, p50", quantile(frozen, 0.5), "s"),
            Figure(f"worker frozen, {_TIMES}, max", max(frozen), "s", _TTL + _T_KILL + _SLACK),
            Figure(f"worker frozen with its parent, {_TIMES}, p50", quantile(vanished, 0.5), "s"),
            Figure(f"worker frozen with its parent, {_TIMES}, max", max(vanished), "s", _TTL + _T_KILL + _SLACK),
        ],
        baseline,
    )


# ---- cancel ----


def _living(processes: list[psutil.Process]) -> int:
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            count += process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return count


async def _cancel(
    client: AgentRpcClient, run: run_pb2.Run, tree: list[psutil.Process]
) -> tuple[float, event_pb2.RunEnded, int]:
    """Seconds from the request to the receipt at the client, the end, and how many of the tree were there then."""
    began = time.monotonic()
    await client.cancel(run.name)
    session = run.name.partition("/runs/")[0]
    async for event in client.watch(session, run=run.name, event_types=["run_ended"]):
        return time.monotonic() - began, event.run_ended, _living(tree)
    raise AssertionError(f"{run.name} has no end")


async def cancel() -> Outcome:
    load = os.getloadavg()[0]
    # A CLI that does not heed SIGTERM, a tool at work, and three that want to be overlooked.
    prompt = '[[ignore_sigterm]]\n[[children: setsid term stop]]\n[[tool: Bash {"command": "tail -f /dev/null"}]]'
    async with (
        _fake_cli() as cli,
        running(AGENTRPC_CLI_PATH=cli, AGENTRPC_MAX_PROCESSES=str(_CANCELLED)) as stack,
        stack.client() as client,
    ):
        folder = Path(stack.stack.environment["AGENTRPC_DATA_DIR"])
        runs = [
            await client.create_run(await _create(client, allowed_tools=["Bash"]), prompt) for _ in range(_CANCELLED)
        ]
        await asyncio.gather(*(_until_tool_runs(client, run) for run in runs))
        trees: dict[str, list[psutil.Process]] = {run.name: [] for run in runs}
        for session, processes in _by_session(folder).items():
            next(tree for name, tree in trees.items() if session in name).extend(processes)
        worker = psutil.Process(stack.pid("worker"))
        used = sum(worker.cpu_times()[:2])
        found = await asyncio.gather(*(_cancel(client, run, trees[run.name]) for run in runs))
        used = sum(worker.cpu_times()[:2]) - used
        after = len(_agent_processes(folder))
    receipts = [ended.stop_receipt for _, ended, _ in found]
    elapsed = [receipt.elapsed.ToTimedelta().total_seconds() for receipt in receipts]
    seen = [seconds for seconds, _, _ in found]
    return Outcome(
        [
            Figure("50 cancels at once, to the receipt at the client, p50", quantile(seen, 0.5), "s"),
            Figure("50 cancels at once, to the receipt at the client, p99", quantile(seen, 0.99), "s", 3),
            Figure("the same as the receipts say, p99", quantile(elapsed, 0.99), "s", 3),
            Figure("receipts that are not confirmed", sum(not receipt.confirmed for receipt in receipts), "runs", 0),
            Figure("processes there at the receipt, or after all", sum(left for _, _, left in found) + after, "", 0),
            Figure("processes ended for one run, p50", quantile([r.process_count for r in receipts], 0.5), ""),
            Figure("CPU of the worker for all of it", used, "s"),
        ],
        {_LOAD: load},
    )


# ---- sessions ----


async def _turn(client: AgentRpcClient, session: str, text: str) -> int | None:
    """One turn; how its process came to be (`ProcessStart`), or None if it was not answered as asked."""
    start, ended = 0, event_pb2.RunEnded()
    async for event in client.run(session, f"[[text: {text}]]", event_types=["run_started", "run_ended"]):
        if event.HasField("run_started"):
            start = event.run_started.process_start
        else:
            ended = event.run_ended
    return start if ended.state == run_pb2.Run.STATE_SUCCEEDED and ended.result.text == text else None


async def _turns(client: AgentRpcClient, names: list[str], which: str) -> tuple[list[int | None], float]:
    """A turn of every session, twice as many at once as may have processes; how each began, and turns a second."""
    began = time.monotonic()
    gate = asyncio.Semaphore(2 * _LIVE)

    async def one(session: str) -> int | None:
        async with gate:
            return await _turn(client, session, f"{which} of {session}")

    starts = await asyncio.gather(*map(one, names))
    return starts, len(names) / (time.monotonic() - began)


async def sessions() -> Outcome:
    baseline = {_LOAD: os.getloadavg()[0]}
    async with (
        _fake_cli() as cli,
        running(AGENTRPC_CLI_PATH=cli, AGENTRPC_MAX_PROCESSES=str(_LIVE)) as stack,
        stack.client() as client,
    ):
        names = [await _create(client) for _ in range(_SESSIONS)]
        servers = {name: psutil.Process(stack.pid(name)) for name in ("serve", "worker")}

        def sizes() -> dict[str, float]:
            return {name: process.memory_info().rss / 1e6 for name, process in servers.items()}

        live = 0

        async def count() -> None:
            nonlocal live
            while True:
                live = max(live, len(_by_session(Path(stack.stack.environment["AGENTRPC_DATA_DIR"]))))
                await asyncio.sleep(1)

        counting = asyncio.create_task(count())
        start = sizes()
        first, opened = await _turns(client, names, "first")
        warm = sizes()
        second, revived = await _turns(client, names, "second")
        end = sizes()
        await end_tasks([counting])
    for name in servers:
        baseline |= {f"MB of {name} at start": start[name], f"MB of {name} after first turns": warm[name]}
    resumed = second.count(event_pb2.PROCESS_START_RESUMED)
    return Outcome(
        [
            Figure("sessions that did not answer their first turn", first.count(None), "of 1,000", 0),
            Figure("sessions that did not answer their next turn", second.count(None), "of 1,000", 0),
            Figure("next turns by revival", resumed, "of 1,000", _SESSIONS - _LIVE, "more"),
            Figure("sessions with processes, at most", live, "", _LIVE),
            *(Figure(f"growth of {name} by 1,000 next turns", end[name] - warm[name], "MB", 5) for name in servers),
            Figure("first turns", opened, "turns/s"),
            Figure("next turns", revived, "turns/s"),
        ],
        baseline,
    )
