"""Random clients of the service, and a record of what each of them asked for, was told and saw."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

from agentrpc.client import RpcError
from agentrpc.domain.states import TERMINAL_RUN_STATES
from agentrpc.ending import end_tasks
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2
from scripts.chaos.world import World

__all__ = ["RunRecord", "SessionRecord", "Traffic", "bash"]

_T = TypeVar("_T")

_Resolution = approval_pb2.Resolution
_Decision = run_service_pb2.ResolveRunRequest
# Not an answer: nothing may be concluded, and the same is asked again.
_AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED"}
_CATCH_UP = 20.0
# Seconds: far longer than anybody may leave it there.
_LEFT = 600
_ENDED = {run_pb2.Run.State.Value(f"STATE_{state}") for state in TERMINAL_RUN_STATES}
_POLICIES = [session_pb2.RECOVERY_POLICY_UNSPECIFIED] * 7 + [
    session_pb2.RECOVERY_POLICY_RESUME_ALWAYS,
    session_pb2.RECOVERY_POLICY_RESUME_ALWAYS,
    session_pb2.RECOVERY_POLICY_FAIL,
]


@dataclass
class RunRecord:
    """A run that somebody asked for.

    Attributes:
        tokens: What its calls write into the workspace, one each.
        stops: Why it may end before its turn has: what somebody has asked for, or has begun to ask for.
        stopped: When what is to stop it was accepted, while it had not ended yet, in seconds since 1970.
        steered: Further messages that were accepted.
    """

    request_id: str
    prompt: str
    tokens: list[str]
    name: str = ""
    policy: int = run_pb2.Run.CONFLICT_POLICY_UNSPECIFIED
    timeout: float = 0.0
    stops: set[str] = field(default_factory=set)
    stopped: dict[str, float] = field(default_factory=dict)
    steered: list[str] = field(default_factory=list)


@dataclass
class SessionRecord:
    """A session, its runs, and what its watchers saw: (sequence, bytes) of each durable event.

    Attributes:
        asks: Whether every call waits for an approval.
        answers: What the service has accepted as the answer to an approval.
        decisions: What it was, or may have been, told about calls in doubt, in order.
        ended: The runs whose end was seen.
        closed: Whether somebody has asked for its end.
    """

    name: str
    options: session_pb2.SessionOptions
    runs: list[RunRecord] = field(default_factory=list)
    watchers: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    closed: bool = False

    @property
    def asks(self) -> bool:
        return not self.options.allowed_tools


class Traffic:
    """Clients of one round.

    Args:
        world: The service.
        seed: Decides about everything that clients do.
        short: Little of it.

    Attributes:
        sessions: What was asked for and seen.
        failures: What clients were told, or were not told, against the contract.
        on_event: Sees each event as the first watcher of its session does, live ones too.
        talked: Set when all that clients ask for by themselves has been accepted.
        lag: How late the first watchers saw the end of a run, at most, in seconds.
    """

    def __init__(self, world: World, seed: int, *, short: bool = False) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._short = short
        self._tasks: set[asyncio.Task[None]] = set()
        self.sessions: list[SessionRecord] = []
        self.failures: list[str] = []
        self.on_event: Callable[[SessionRecord, event_pb2.Event], None] = lambda *_: None
        self.lag = 0.0
        self.talked = asyncio.Event()

    # ---- For the trial ----

    async def run(self, sessions: int) -> None:
        """Let clients come, and wait until all that they asked for has been accepted."""
        # Each with a seed of its own: who comes first does not decide about what comes.
        seeds = [self._random.random() for _ in range(sessions)]
        talks = (self._talk(number, random.Random(seed)) for number, seed in enumerate(seeds))
        await self._all(talks)
        self.talked.set()

    async def more(self) -> None:
        """One more run in each session."""
        seeds = [(session, random.Random(self._random.random())) for session in self.sessions if not session.closed]
        await self._all(self.ask(session, _some_run(choose)) for session, choose in seeds)

    @property
    def waiting(self) -> list[str]:
        """The runs whose end no watcher has seen."""
        return [
            run.name for session in self.sessions for run in session.runs if run.name and run.name not in session.ended
        ]

    async def until_ended(self, timeout: float) -> list[str]:
        """Wait until watchers have seen the end of every run; the names of those that have not ended."""
        deadline = time.monotonic() + timeout
        while (waiting := self.waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return waiting

    async def stop(self) -> float:
        """Let all clients go, once watchers have seen all that there is; how many seconds they needed for that."""
        began = time.monotonic()
        while time.monotonic() < began + _CATCH_UP and not await self._caught_up():
            await asyncio.sleep(0.05)
        took = time.monotonic() - began
        await end_tasks(self._tasks)
        return took

    async def _caught_up(self) -> bool:
        ids = ", ".join(f"'{session.name.rpartition('/')[2]}'" for session in self.sessions)
        if not ids:
            return True
        rows = await self._world.execute(
            f"SELECT session_id, last_sequence FROM session_heads WHERE session_id IN ({ids})"
        )
        last = {f"sessions/{row[0]}": row[1] for row in rows}
        return all(
            len(seen) >= last.get(session.name, 0) for session in self.sessions for seen in session.watchers.values()
        )

    # ---- What clients ask for ----

    async def open_session(self, options: session_pb2.SessionOptions, number: int) -> SessionRecord:
        """A session with its watchers."""
        client, request_id = self._world.client(number), str(uuid4())
        made = await self._again(
            lambda: client.create_session(session_pb2.Session(options=options), request_id=request_id)
        )
        session = SessionRecord(made.name, options)
        self.sessions.append(session)
        for watcher in range(2):
            self._spawn(self._watch(session, watcher), f"watch-{watcher}-{made.name}")
        return session

    async def ask(self, session: SessionRecord, run: RunRecord) -> RunRecord:
        """A run, once it is accepted."""
        if run.policy:
            for other in session.runs:
                other.stops.add("superseded")
        session.runs.append(run)
        given = run_pb2.Run(prompt=run.prompt, conflict_policy=run.policy)
        if run.timeout:
            given.timeout.FromTimedelta(timedelta(seconds=run.timeout))
            run.stops.add("timeout")
        request = run_service_pb2.CreateRunRequest(parent=session.name, run=given, request_id=run.request_id)
        client = self._world.client(self._random.randrange(4))
        run.name = (await self._again(lambda: client.call(client.runs.CreateRun, request))).name
        return run

    async def _talk(self, number: int, choose: random.Random) -> None:
        session = await self.open_session(_some_options(choose), number)
        for _ in range(choose.randint(1, 2 if self._short else 3)):
            run = _some_run(choose)
            if session.runs and choose.random() < 0.15:
                run.policy = choose.choice(
                    [run_pb2.Run.CONFLICT_POLICY_INTERRUPT, run_pb2.Run.CONFLICT_POLICY_ROLLBACK]
                )
            if choose.random() < 0.08:
                run.timeout = choose.choice([1.0, 3.0])
            await self.ask(session, run)
            self._disturb(session, run, choose)
            await asyncio.sleep(choose.random() * (1 if self._short else 2))
        if choose.random() < 0.1:
            session.closed = True
            for run in session.runs:
                run.stops.add("terminate")
            client = self._world.client(number)
            await self._again(lambda: client.terminate_session(session.name))
            for run in session.runs:
                run.stopped["terminate"] = time.time()

    def _disturb(self, session: SessionRecord, run: RunRecord, choose: random.Random) -> None:
        """What somebody may do to a run that goes on."""
        delay, client = choose.random() * 3, self._world.client(choose.randrange(4))
        what = choose.random()
        if what < 0.12:
            self._spawn(self._stop_later(run, "cancel", delay, lambda: client.cancel(run.name)), "cancel")
        elif what < 0.22:
            self._spawn(self._stop_later(run, "interrupt", delay, lambda: client.interrupt(run.name)), "interrupt")
        elif what < 0.34:
            self._spawn(self._steer_later(run, choose.randrange(4), delay), "steer")
        elif what < 0.42:
            self._spawn(self._pause_later(session, choose.randrange(4), delay, choose.random() * 2), "pause")

    async def _stop_later(
        self, run: RunRecord, why: str, delay: float, ask: Callable[[], Awaitable[run_pb2.Run]]
    ) -> None:
        await asyncio.sleep(delay)
        run.stops.add(why)
        if (await self._again(ask)).state not in _ENDED:
            run.stopped[why] = time.time()

    async def _steer_later(self, run: RunRecord, number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        client, request_id, text = self._world.client(number), str(uuid4()), f"also {uuid4().hex[:8]}"
        try:
            await self._again(lambda: client.steer(run.name, text, request_id=request_id))
        except RpcError as error:
            if error.reason not in {"STATE_INVALID", "SESSION_NOT_ACTIVE"}:
                raise
            return
        run.steered.append(text)

    async def _pause_later(self, session: SessionRecord, number: int, delay: float, time_out: float) -> None:
        await asyncio.sleep(delay)
        client = self._world.client(number)
        try:
            await self._again(lambda: client.pause_session(session.name))
            await asyncio.sleep(time_out)
            await self._again(lambda: client.resume_session(session.name))
        except RpcError as error:
            if error.reason != "SESSION_NOT_ACTIVE":
                raise

    # ---- What clients see, and do about it ----

    async def _watch(self, session: SessionRecord, number: int) -> None:
        """Read the whole log, and come back after leaving now and then."""
        seen = session.watchers.setdefault(str(number), [])
        choose = random.Random(self._random.random())
        client = self._world.client(number + choose.randrange(2))
        while True:
            after = seen[-1][0] if seen else 0
            try:
                async for event in client.watch(session.name, after_sequence=after, include_deltas=number == 0):
                    if event.sequence:
                        seen.append((event.sequence, event.SerializeToString(deterministic=True)))
                    if number == 0:
                        self._react(session, event)
                    if event.sequence and choose.random() < 0.01:
                        break
                else:
                    return
            except RpcError as error:
                if error.code not in _AGAIN:
                    raise
                await asyncio.sleep(0.2)

    def _react(self, session: SessionRecord, event: event_pb2.Event) -> None:
        self.on_event(session, event)
        if event.HasField("run_ended"):
            session.ended.add(event.run)
            self.lag = max(self.lag, time.time() - event.time.ToNanoseconds() / 1e9)
        elif event.HasField("approval_requested"):
            self._spawn(self._answer(session, event.approval_requested.approval), "answer")
        elif event.HasField("run_state_changed") and event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
            self._spawn(self._decide(session, event), "decide")

    async def _answer(self, session: SessionRecord, approval: approval_pb2.Approval) -> None:
        choose = random.Random(self._random.random())
        if session.options.HasField("approval_timeout") and choose.random() < 0.3:
            return
        # Mostly at once; the last one comes when the process is gone.
        await asyncio.sleep(choose.choice([0.0, 0.2, 0.5, 0.5, 1.0, 1.8]))
        resolution = _Resolution(
            decision=choose.choice([_Resolution.DECISION_ALLOW, _Resolution.DECISION_ALLOW, _Resolution.DECISION_DENY])
        )
        if resolution.decision == _Resolution.DECISION_DENY and choose.random() < 0.3:
            resolution.interrupt = True
            for run in session.runs:
                if approval.run == run.name:
                    run.stops.add("deny")
        client = self._world.client(choose.randrange(4))
        try:
            await self._again(lambda: client.resolve(approval.name, resolution))
            session.answers[approval.name] = resolution.decision
            if resolution.interrupt:
                for run in session.runs:
                    if approval.run == run.name:
                        run.stopped["deny"] = time.time()
        except RpcError as error:
            if error.reason not in {"APPROVAL_NOT_PENDING", "APPROVAL_EXPIRED"}:
                raise

    async def _decide(self, session: SessionRecord, event: event_pb2.Event) -> None:
        choose = random.Random(self._random.random())
        await asyncio.sleep(choose.random() * 0.5)
        calls = event.run_state_changed.in_doubt_calls
        decision = choose.choice(
            [_Decision.DECISION_RESUME, _Decision.DECISION_ASSUME_DONE, _Decision.DECISION_RETRY_CALLS] * 3
            + [_Decision.DECISION_ABANDON]
        )
        if not calls:
            decision = _Decision.DECISION_ABANDON
        request = _Decision(name=event.run, decision=decision)
        for call in calls:
            # Before it is known whether it was accepted: a lost answer may mean that it was.
            session.decisions.setdefault(call.tool_use_id, []).append(decision)
            if decision == _Decision.DECISION_ASSUME_DONE:
                request.results.add(tool_use_id=call.tool_use_id, text="somebody has looked: it was done")
        if decision == _Decision.DECISION_ABANDON:
            for run in session.runs:
                if event.run == run.name:
                    run.stops.add("abandon")
        client = self._world.client(choose.randrange(4))
        try:
            await self._again(lambda: client.call(client.runs.ResolveRun, request))
        except RpcError as error:
            # Decided already, stopped meanwhile, or lost again since: then there is another event.
            if error.reason not in {"STATE_INVALID", "FIELD_INVALID"}:
                raise

    # ---- Tools ----

    async def _again(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until there is an answer."""
        while True:
            try:
                return await call()
            except RpcError as error:
                if error.code not in _AGAIN:
                    raise
                await asyncio.sleep(0.1 + self._random.random() * 0.3)

    async def _all(self, works) -> None:
        for result in await asyncio.gather(*works, return_exceptions=True):
            if isinstance(result, BaseException):
                self.failures.append(f"a client was told: {result!r}")

    def _spawn(self, work, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._tasks.discard(finished)
            if not finished.cancelled() and finished.exception() is not None:
                self.failures.append(f"client {name} was told: {finished.exception()!r}")

        task.add_done_callback(done)


def _some_options(choose: random.Random) -> session_pb2.SessionOptions:
    asks = choose.random() < 0.4
    options = session_pb2.SessionOptions(
        allowed_tools=[] if asks else ["Bash"], recovery_policy=choose.choice(_POLICIES)
    )
    if asks and choose.random() < 0.4:
        options.approval_timeout.FromSeconds(3)
    return options


def _some_run(choose: random.Random) -> RunRecord:
    tokens: list[str] = []

    def call(slow: bool) -> str:
        tokens.append(uuid4().hex[:12])
        effect, rest = f"echo {tokens[-1]} $EPOCHREALTIME >> effects", "sh -c 'exec sleep 0.7'"
        if not slow:
            return bash(effect)
        # Something that outlives its call, and what would come later if the call outlived its run.
        left = f"; setsid -f sleep {_LEFT} > left 2>&1" if choose.random() < 0.3 else ""
        return bash((f"{effect}; {rest}" if choose.random() < 0.5 else f": {tokens[-1]}; {rest}; {effect}") + left)

    kind = choose.choice(["text", "text-slow", "tools", "tools", "parallel", "slow-tool"])
    if kind == "text":
        steps = [f"[[deltas: {choose.randint(10, 2000)}]]"]
    elif kind == "text-slow":
        steps = [f"[[deltas: 60]]\n[[slow: {choose.randint(5, 40)}]]"]
    elif kind == "tools":
        steps = [f"[[text: step]]\n{call(choose.random() < 0.3)}" for _ in range(choose.randint(1, 3))]
    elif kind == "parallel":
        steps = ["\n".join(call(False) for _ in range(3))]
    else:
        steps = [call(True), call(True)]
    return RunRecord(str(uuid4()), "\n[[then]]\n".join([*steps, "[[text: end]]"]), tokens)


def bash(command: str) -> str:
    """A directive of the scripted model."""
    assert '"' not in command
    return f'[[tool: Bash {{"command": "{command}"}}]]'
