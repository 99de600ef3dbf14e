"""Random clients of the service, and a record of what each of them asked for, was told and saw."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from agentrpc.client import AgentRpcClient, RpcError
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2
from scripts.chaos.world import World

__all__ = ["History", "RunRecord", "SessionRecord", "Traffic"]

_Resolution = approval_pb2.Resolution
_Decision = run_service_pb2.ResolveRunRequest
# Not an answer: nothing may be concluded, and the same is asked again.
_AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED"}


@dataclass
class RunRecord:
    """A run that somebody asked for."""

    request_id: str
    prompt: str
    tokens: list[str]
    name: str = ""
    told: list[str] = field(default_factory=list)
    cancelled: bool = False
    steered: list[str] = field(default_factory=list)


@dataclass
class SessionRecord:
    """A session, its runs, and what its watchers saw: (sequence, bytes) of each durable event."""

    name: str
    runs: list[RunRecord] = field(default_factory=list)
    watchers: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


@dataclass
class History:
    """Everything of one round."""

    sessions: list[SessionRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Traffic:
    """Clients of one round.

    Args:
        world: The service.
        seed: Decides about everything that clients do.
        on_event: Sees every durable event once, as the first watcher of its session does.
    """

    def __init__(self, world: World, seed: int, on_event: Callable[[SessionRecord, event_pb2.Event], None]) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._on_event = on_event
        self._tasks: set[asyncio.Task[None]] = set()
        self.history = History()
        self.failures: list[str] = []

    def _spawn(self, work, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._tasks.discard(finished)
            if not finished.cancelled() and finished.exception() is not None:
                self.failures.append(f"client {name}: {finished.exception()!r}")

        task.add_done_callback(done)

    async def run(self, sessions: int) -> None:
        """Let clients come, and wait until all that they asked for has been accepted."""
        talkers = [asyncio.create_task(self._talk(number)) for number in range(sessions)]
        for result in await asyncio.gather(*talkers, return_exceptions=True):
            if isinstance(result, BaseException):
                self.failures.append(f"talker: {result!r}")

    async def until_ended(self, timeout: float) -> list[str]:
        """Wait until watchers have seen the end of every run; the names of those that have not ended."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            waiting = [
                run.name
                for session in self.history.sessions
                for run in session.runs
                if run.name and run.name not in session.ended
            ]
            if not waiting or asyncio.get_running_loop().time() > deadline:
                return waiting
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Let all clients go."""
        # What was committed last may be on its way to the watchers, and one may wait to connect again.
        deadline = asyncio.get_running_loop().time() + 20
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(1)
            seen = [{len(seen) for seen in session.watchers.values()} for session in self.history.sessions]
            if all(len(each) == 1 for each in seen):
                break
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- Clients ----

    async def _talk(self, number: int) -> None:
        choose = random.Random(self._random.random())
        async with self._world.client(number) as client:
            asks = choose.random() < 0.4
            options = session_pb2.SessionOptions(allowed_tools=[] if asks else ["Bash"])
            request_id = str(uuid4())
            made = await self._again(
                lambda: client.create_session(session_pb2.Session(options=options), request_id=request_id)
            )
            session = SessionRecord(made.name)
            self.history.sessions.append(session)
            for watcher in range(2):
                self._spawn(self._watch(session, watcher, choose.random()), f"watch-{watcher}-{made.name}")
            for _ in range(choose.randint(1, 3)):
                run = self._new_run(choose)
                session.runs.append(run)
                await self._create(client, session, run)
                if choose.random() < 0.15:
                    self._spawn(self._cancel_later(number, run, choose.random() * 4), f"cancel-{run.name}")
                await asyncio.sleep(choose.random() * 2)

    def _new_run(self, choose: random.Random) -> RunRecord:
        tokens: list[str] = []

        def call(slow: bool) -> str:
            tokens.append(uuid4().hex[:12])
            command = f"echo {tokens[-1]} >> effects"
            return bash(command + ("; sh -c 'exec sleep 0.7'" if slow else ""))

        kind = choose.choice(["text", "text-slow", "tools", "tools", "parallel", "slow-tool"])
        if kind == "text":
            steps = [f"[[deltas: {choose.randint(10, 2000)}]]"]
        elif kind == "text-slow":
            steps = [f"[[deltas: 60]]\n[[slow: {choose.randint(5, 40)}]]"]
        elif kind == "tools":
            steps = [f"[[text: step]]\n{call(choose.random() < 0.3)}" for _ in range(choose.randint(1, 4))]
        elif kind == "parallel":
            steps = ["\n".join(call(False) for _ in range(3))]
        else:
            steps = [call(True), call(True)]
        prompt = "\n[[then]]\n".join([*steps, "[[text: end]]"])
        return RunRecord(str(uuid4()), prompt, tokens)

    async def _create(self, client: AgentRpcClient, session: SessionRecord, run: RunRecord) -> None:
        made = await self._again(lambda: client.create_run(session.name, run.prompt, request_id=run.request_id), run)
        run.name = made.name

    async def _cancel_later(self, number: int, run: RunRecord, delay: float) -> None:
        await asyncio.sleep(delay)
        run.cancelled = True
        async with self._world.client(number + 1) as client:
            request = run_service_pb2.CancelRunRequest(name=run.name)
            await self._again(lambda: client.call(client.runs.CancelRun, request))

    async def _watch(self, session: SessionRecord, number: int, nerves: float) -> None:
        """Read the whole log, and come back after leaving now and then."""
        seen = session.watchers.setdefault(f"{session.name}#{number}", [])
        async with self._world.client(number) as client:
            while True:
                after = seen[-1][0] if seen else 0
                try:
                    async for event in client.watch(session.name, after_sequence=after, include_deltas=number == 0):
                        if not event.sequence:
                            continue
                        seen.append((event.sequence, event.SerializeToString(deterministic=True)))
                        if number == 0:
                            self._react(session, event)
                        if self._random.random() < 0.01 * nerves:
                            break
                    else:
                        return
                except RpcError as error:
                    self.history.notes.append(f"watcher {number} of {session.name}: {error.code} {error.reason}")
                    if error.code not in _AGAIN:
                        raise
                    await asyncio.sleep(0.2)

    def _react(self, session: SessionRecord, event: event_pb2.Event) -> None:
        self._on_event(session, event)
        if event.HasField("run_ended"):
            session.ended.add(event.run)
        elif event.HasField("approval_requested"):
            self._spawn(self._answer(session, event.approval_requested.approval.name), "answer")
        elif event.HasField("run_state_changed") and event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
            self._spawn(self._decide(session, event), "decide")

    async def _answer(self, session: SessionRecord, approval: str) -> None:
        await asyncio.sleep(self._random.random() * 3)
        decision = self._random.choice(
            [_Resolution.DECISION_ALLOW, _Resolution.DECISION_ALLOW, _Resolution.DECISION_DENY]
        )
        resolution = _Resolution(decision=decision)
        async with self._world.client(self._random.randint(0, 1)) as client:
            try:
                await self._again(lambda: client.resolve(approval, resolution))
                session.answers[approval] = decision
            except RpcError as error:
                if error.reason not in {"APPROVAL_NOT_PENDING", "APPROVAL_EXPIRED"}:
                    raise

    async def _decide(self, session: SessionRecord, event: event_pb2.Event) -> None:
        await asyncio.sleep(self._random.random())
        calls = event.run_state_changed.in_doubt_calls
        decision = self._random.choice(
            [_Decision.DECISION_RESUME, _Decision.DECISION_ASSUME_DONE, _Decision.DECISION_RETRY_CALLS]
        )
        if not calls:
            decision = _Decision.DECISION_ABANDON
        request = _Decision(name=event.run, decision=decision)
        if decision == _Decision.DECISION_ASSUME_DONE:
            for call in calls:
                request.results.add(tool_use_id=call.tool_use_id, text="somebody has looked: it was done")
        async with self._world.client(self._random.randint(0, 1)) as client:
            try:
                await self._again(lambda: client.call(client.runs.ResolveRun, request))
                for call in calls:
                    session.decisions[call.tool_use_id] = decision
            except RpcError as error:
                if error.reason != "STATE_INVALID":
                    raise

    async def _again(self, call, run: RunRecord | None = None):
        """Ask until there is an answer."""
        while True:
            try:
                return await call()
            except RpcError as error:
                if run is not None:
                    run.told.append(f"{error.code} {error.reason}")
                if error.code not in _AGAIN:
                    raise
                await asyncio.sleep(0.1 + self._random.random() * 0.3)


def bash(command: str) -> str:
    """A directive of the scripted model."""
    with contextlib.suppress(ValueError):
        assert '"' not in command
    return f'[[tool: Bash {{"command": "{command}"}}]]'
