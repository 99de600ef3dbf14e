"""What has to hold, whatever has happened: over what clients saw, the store, the workspaces and the processes.

Each violation is one line that says what, where and what was found. The first promise that a fault may break is looked
at in the log; what the store says beside it (runs, heads, ledger, approvals) has to say the same.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil

from agentrpc.domain.states import TERMINAL_RUN_STATES, RunState, may_follow
from agentrpc.names import parse_session
from agentrpc.store.database import Database
from agentrpc.store.log import read_events, read_transcript
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2
from scripts.chaos.traffic import RunRecord, SessionRecord, Traffic
from scripts.chaos.world import World

__all__ = ["Expected", "check"]

_Finished = event_pb2.ToolCallFinished
_Decision = run_service_pb2.ResolveRunRequest
_Resolution = approval_pb2.Resolution

# Seconds for processes to go that nobody needs any more.
_GONE_WITHIN = 15.0
_LONGEST_CATCH_UP = 10.0
# Far above what is promised (2 s without Redis): the machine may have much else to do.
_LONGEST_LAG = 8.0
_STOPPED_WITHIN = 20.0
# In a row; then a run is given up.
_MOST_LOSSES = 3


@dataclass(frozen=True)
class Expected:
    """What a fault may do.

    Attributes:
        harmless: It ends no run and repeats nothing: runs that nobody stops succeed, at the first attempt.
        blind: Watchers are cut off for a while.
        clocks_differ: Times cannot be compared, and deadlines may pass at any time.
        frozen: Agents may have been stopped and woken.
        reasons: Why runs may fail besides three losses in a row.
    """

    harmless: bool = False
    blind: bool = False
    clocks_differ: bool = False
    frozen: bool = False
    reasons: frozenset[str] = frozenset()


async def check(world: World, traffic: Traffic, waiting: list[str], catching_up: float, may: Expected) -> list[str]:
    """Every promise that was broken.

    Args:
        world: The service.
        traffic: What was asked for and seen.
        waiting: Runs whose end no watcher has seen.
        catching_up: How many seconds watchers needed in the end to see everything.
        may: What the fault excuses.
    """
    violations = [*traffic.failures]
    violations += [f"a run has not ended: {name} {await _where(world, name)}" for name in waiting]
    if catching_up > _LONGEST_CATCH_UP:
        violations.append(f"watchers needed {catching_up:.1f} s to see what there was")
    if may.harmless and not may.blind and traffic.lag > _LONGEST_LAG:
        violations.append(f"a watcher saw the end of a run {traffic.lag:.1f} s late")
    database = Database(world.store_url, pool_size=2)
    try:
        for session in traffic.sessions:
            found = _Case(session, await _load(database, session), _effects(world, session), may).check()
            violations += [f"{session.name}: {line}" for line in found]
    finally:
        await database.close()
    return violations if waiting else violations + await _processes(world, traffic)


async def _where(world: World, name: str) -> str:
    run = name.rpartition("/")[2]
    rows = await world.execute(
        "SELECT r.state, r.attempt, h.worker, h.active_run, h.pending_approvals, h.in_doubt, h.paused, h.queued,"
        f" h.losses, h.epoch, h.stop_kind, w.dead_time FROM runs r JOIN session_heads h USING (session_id)"
        f" LEFT JOIN workers w ON w.id = h.worker WHERE r.id = '{run}'"
    )
    return str(dict(rows[0])) if rows else "and is not in the store"


async def _processes(world: World, traffic: Traffic) -> list[str]:
    """Processes of sessions that nobody holds, second ones of those that somebody holds, and somebody else's."""
    deadline = time.monotonic() + _GONE_WITHIN
    wrong = True
    while wrong and time.monotonic() < deadline:
        rows = await world.execute(
            "SELECT h.session_id, h.closed, w.pid FROM session_heads h"
            " LEFT JOIN workers w ON w.id = h.worker AND w.dead_time IS NULL"
        )
        owners = {str(row["session_id"]): None if row["closed"] else row["pid"] for row in rows}
        wrong = []
        names = {session.name.rpartition("/")[2] for session in traffic.sessions}
        for session_id, agents in world.agents_by_session().items():
            owner = owners.get(session_id)
            strange = agents if owner is None else [agent for agent in agents if not _descends(agent, owner)]
            mains = [agent for agent in agents if _is_cli(agent)]
            if session_id in names and (strange or len(mains) > 1):
                why = "is not its worker's" if strange else "is there beside another one"
                wrong.append(f"sessions/{session_id}: a process {why} ({owner}): {(strange or mains)[:3]}")
        await asyncio.sleep(0.3 if wrong else 0)
    return wrong


def _descends(process: psutil.Process, ancestor: int) -> bool:
    try:
        return any(parent.pid == ancestor for parent in process.parents())
    except psutil.NoSuchProcess:
        return True


def _is_cli(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    # Not its wrapper, which has all of that in its arguments, nor a shell.
    return any("fake-cli" in word for word in command[:3]) or (bool(command) and command[0].endswith("claude"))


def _effects(world: World, session: SessionRecord) -> list[tuple[str, float]]:
    """(token, when) of each call that was really made."""
    path = world.workspaces / session.name.rpartition("/")[2] / "files" / "effects"
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    # A disk that was full may have cut the time off.
    return [(line[0], float(line[1]) if len(line) > 1 and len(line[1]) > 12 else 0.0) for line in lines]


@dataclass
class _Stored:
    """What the store has of a session."""

    events: list[event_pb2.Event]
    rows: list[tuple[int, Any, bytes]]
    head: Any
    runs: dict[str, Any]
    approvals: dict[str, Any]
    ledger: dict[str, list[Any]]
    transcript: list[bytes]


async def _load(database: Database, session: SessionRecord) -> _Stored:
    session_id = parse_session(session.name)
    rows = []
    while page := await read_events(database, session_id, after=rows[-1].sequence if rows else 0, limit=1000):
        rows += page
    async with database.connection() as connection:
        head = await connection.fetchrow("SELECT * FROM session_heads WHERE session_id = $1", session_id)
        runs = await connection.fetch("SELECT * FROM runs WHERE session_id = $1", session_id)
        approvals = await connection.fetch("SELECT * FROM approvals WHERE session_id = $1", session_id)
        calls = await connection.fetch(
            "SELECT * FROM tool_calls WHERE session_id = $1 ORDER BY tool_use_id, attempt", session_id
        )
    ledger = defaultdict(list)
    for call in calls:
        ledger[call["tool_use_id"]].append(call)
    return _Stored(
        [event_pb2.Event.FromString(row.data) for row in rows],
        [(row.sequence, row.run_id, row.data) for row in rows],
        head,
        {f"{session.name}/runs/{row['id']}": row for row in runs},
        {f"{session.name}/approvals/{row['id']}": row for row in approvals},
        ledger,
        [line for subpath, line in await read_transcript(database, session_id) if not subpath],
    )


@dataclass
class _Call:
    """What the log says of a tool call."""

    token: str = ""
    run: str = ""
    started: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    allowed: list[int] = field(default_factory=list)
    asked: int = 0


class _Case:
    """One session."""

    def __init__(
        self, session: SessionRecord, stored: _Stored, effects: list[tuple[str, float]], may: Expected
    ) -> None:
        self._session = session
        self._stored = stored
        # The files of a session that somebody has closed go after a while.
        self._cleaned = session.closed and not effects
        self._effects = Counter(token for token, _ in effects)
        self._effect_times = dict(effects)
        self._may = may
        self._found: list[str] = []
        self._calls: dict[str, _Call] = defaultdict(_Call)

    def check(self) -> list[str]:
        """Every promise that was broken."""
        self._log()
        self._watchers()
        self._read_calls()
        self._runs()
        self._ends()
        self._states()
        self._stops()
        self._told()
        self._tool_calls()
        self._once()
        self._ledger()
        self._approvals()
        self._head()
        if self._may.harmless:
            self._unharmed()
        return self._found

    def _expect(self, good: object, what: str) -> None:
        if not good:
            self._found.append(what)

    # ---- The log ----

    def _log(self) -> None:
        """1, 2, 3 without a gap, and nothing twice."""
        numbers = [number for number, _, _ in self._stored.rows]
        self._expect(numbers == list(range(1, len(numbers) + 1)), f"the log has gaps or doubles: {_odd(numbers)}")
        seen: Counter[tuple[str, str]] = Counter()
        for event in self._stored.events:
            kind = event.WhichOneof("payload") or ""
            payload = getattr(event, kind)
            mark = getattr(payload, "transcript_uuid", "") or (
                payload.message_id if kind == "message_completed" else ""
            )
            if mark:
                seen[kind, mark] += 1
        for (kind, mark), count in seen.items():
            self._expect(count == 1, f"{kind} {mark} is in the log {count} times")

    def _watchers(self) -> None:
        truth = {event.sequence: event.SerializeToString(deterministic=True) for event in self._stored.events}
        for name, seen in self._session.watchers.items():
            numbers = [number for number, _ in seen]
            self._expect(
                numbers == list(range(1, len(numbers) + 1)), f"watcher {name} saw gaps or doubles: {_odd(numbers)}"
            )
            self._expect(len(seen) == len(truth), f"watcher {name} saw {len(seen)} of {len(truth)} events")
            wrong = [number for number, data in seen if truth.get(number) != data]
            self._expect(not wrong, f"watcher {name} saw other events than the store has: {wrong[:5]}")

    # ---- Runs ----

    def _runs(self) -> None:
        """What was accepted is there, once, and has ended."""
        left = dict(self._stored.runs)
        for run in self._session.runs:
            if not run.name:
                continue
            row = left.pop(run.name, None)
            if row is None:
                self._found.append(f"an accepted run is lost: {run.name}")
                continue
            self._expect(row["prompt"] == run.prompt, f"a run has another prompt: {run.name}")
            self._expect(row["state"] in TERMINAL_RUN_STATES, f"a run is {row['state']}: {run.name}")
            self._reason(run, row)
        self._found += [f"a run that was accepted once is there twice: {name}" for name in left]

    def _reason(self, run: RunRecord, row: Any) -> None:
        """A run ends as somebody wanted, or for a reason that this fault may be."""
        state = row["state"]
        wanted = {"CANCELLED": run.stops - {"timeout"}, "EXPIRED": run.stops & {"timeout"}}
        if state in wanted:
            self._expect(wanted[state], f"a run is {state}, and nobody wanted that: {run.name}")
        if state == "FAILED":
            error = run_pb2.RunError.FromString(row["error"] or b"")
            reason = run_pb2.RunError.Reason.Name(error.reason)
            allowed = {"REASON_POISON_RUN", *self._may.reasons}
            if self._session.options.recovery_policy == session_pb2.RECOVERY_POLICY_FAIL:
                allowed |= {"REASON_WORKER_LOST", "REASON_AGENT_CRASHED"}
            if reason == "REASON_POISON_RUN" and row["attempt"] < _MOST_LOSSES:
                allowed.remove(reason)
            good = reason in allowed and not self._may.harmless
            self._expect(good, f"a run failed: {run.name} {reason} {error.message}")
        receipt = run_pb2.StopReceipt.FromString(row["stop_receipt"] or b"")
        self._expect(
            row["stop_receipt"] is None or receipt.confirmed, f"a receipt does not confirm the stop: {run.name}"
        )
        if state == "CANCELLED" and run.stops and run.stops <= {"cancel", "terminate"}:
            self._expect(row["stop_receipt"], f"a cancelled run has no receipt: {run.name}")

    def _stops(self) -> None:
        """What was to be stopped does not succeed afterwards, and ends soon; so does what has run for too long."""
        timely = not (self._may.clocks_differ or self._may.frozen)
        for run in self._session.runs:
            row = self._stored.runs.get(run.name)
            if row is None or row["end_time"] is None:
                continue
            ended = row["end_time"].timestamp()
            for why, when in run.stopped.items():
                if why != "terminate":
                    self._expect(row["state"] != "SUCCEEDED", f"a run succeeded after {why} was accepted: {run.name}")
                late = ended - when
                self._expect(not timely or late < _STOPPED_WITHIN, f"{why} took {late:.1f} s: {run.name}")
            if run.timeout and row["start_time"] is not None:
                late = ended - row["start_time"].timestamp() - run.timeout
                self._expect(not timely or late < _STOPPED_WITHIN, f"a run ended {late:.1f} s late: {run.name}")

    def _told(self) -> None:
        """What was said to the agent is in its own transcript, once: prompts and further messages of what succeeded."""
        for run in self._session.runs:
            row = self._stored.runs.get(run.name)
            if row is None or row["state"] != "SUCCEEDED" or run.stops:
                continue
            mark = f'"uuid":"{row["id"]}"'.encode()
            count = sum(mark in line for line in self._stored.transcript)
            self._expect(count == 1, f"the agent was told a prompt {count} times: {run.name}")
            for text in run.steered:
                said = any(text.encode() in line for line in self._stored.transcript)
                self._expect(said, f"the agent was not told a further message: {run.name}")

    def _ends(self) -> None:
        """One end each, the last of its events, as its row says."""
        ends: dict[str, list[event_pb2.Event]] = defaultdict(list)
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for event in self._stored.events:
            if event.run in ends and not event.HasField("subtask_ended"):
                self._found.append(f"{event.WhichOneof('payload')} {event.sequence} comes after the end of its run")
            if event.HasField("run_ended"):
                ends[event.run].append(event)
            if event.run:
                first.setdefault(event.run, event.sequence)
                last[event.run] = event.sequence
        prompts = Counter(event.run for event in self._stored.events if _is(event, event_pb2.UserMessage.ORIGIN_PROMPT))
        for name, row in self._stored.runs.items():
            self._expect(len(ends[name]) == 1, f"a run ended {len(ends[name])} times: {name}")
            for event in ends[name]:
                state = run_pb2.Run.State.Name(event.run_ended.state).removeprefix("STATE_")
                self._expect(row["state"] == state, f"a run is {row['state']} and ended as {state}: {name}")
            where = (row["first_sequence"], row["last_sequence"])
            known = (first.get(name, 0), last.get(name, 0))
            self._expect(where == known, f"a run has the events {known} and says {where}: {name}")
            begun = row["start_time"] is not None
            self._expect(prompts[name] == int(begun), f"a prompt is in the log {prompts[name]} times: {name}")
        self._steered(ends)

    def _steered(self, ends: dict[str, list[event_pb2.Event]]) -> None:
        said = Counter(
            block.text.text
            for event in self._stored.events
            if _is(event, event_pb2.UserMessage.ORIGIN_STEER)
            for block in event.user_message.blocks
        )
        for run in self._session.runs:
            succeeded = any(event.run_ended.state == run_pb2.Run.STATE_SUCCEEDED for event in ends.get(run.name, []))
            for text in run.steered:
                self._expect(said[text] <= 1, f"a further message is in the log {said[text]} times: {run.name}")
                self._expect(said[text] or not succeeded, f"a further message was not delivered: {run.name}")

    def _states(self) -> None:
        """Each change begins where the one before it has ended, and is one that may be."""
        session = session_pb2.Session.STATE_IDLE
        runs: dict[str, RunState] = {}
        attempts: dict[str, int] = {}
        for event in self._stored.events:
            at = f"at {event.sequence}"
            if event.HasField("session_state_changed"):
                change = event.session_state_changed
                self._expect(change.previous_state == session, f"the session's state does not follow {at}")
                session = change.state
            elif event.HasField("run_started"):
                runs.setdefault(event.run, RunState.RUNNING)
                before, now = attempts.get(event.run, 0), event.run_started.attempt
                self._expect(now >= max(before, 1), f"attempt {now} comes after attempt {before} {at}")
                attempts[event.run] = now
            elif event.HasField("run_state_changed"):
                change = event.run_state_changed
                before, after = _run_state(change.previous_state), _run_state(change.state)
                known = runs.get(event.run, RunState.QUEUED)
                self._expect(
                    before == known and may_follow(before, after), f"a run is {known} and goes {before} > {after} {at}"
                )
                runs[event.run] = after
            elif event.HasField("run_ended"):
                known, after = runs.get(event.run, RunState.QUEUED), _run_state(event.run_ended.state)
                self._expect(may_follow(known, after), f"a run is {known} and ends as {after} {at}")
        for name, attempt in attempts.items():
            row = self._stored.runs.get(name)
            self._expect(row is None or row["attempt"] >= attempt, f"attempt {attempt} is unknown to its run: {name}")

    # ---- Tool calls ----

    def _read_calls(self) -> None:
        for event in self._stored.events:
            if event.HasField("assistant_message"):
                for block in event.assistant_message.blocks:
                    if block.HasField("tool_use"):
                        call = self._calls[block.tool_use.tool_use_id]
                        call.asked += 1
                        call.run = event.run
                        command = json.loads(block.tool_use.input_json or "{}").get("command", "")
                        call.token = command.split()[1].rstrip(";") if command.startswith(("echo ", ": ")) else ""
            elif event.HasField("tool_call_started"):
                self._calls[event.tool_call_started.tool_use_id].started.append(event.sequence)
            elif event.HasField("tool_call_finished"):
                self._calls[event.tool_call_finished.tool_use_id].finished.append(event.tool_call_finished.outcome)
            elif event.approval_resolved.state == approval_pb2.Approval.STATE_ALLOWED:
                self._calls[event.approval_resolved.tool_use_id].allowed.append(event.sequence)

    def _tool_calls(self) -> None:
        """Begun once, unless somebody wanted more; no effect without a beginning, none after the end of the run."""
        made: Counter[str] = Counter()
        for call in self._calls.values():
            made[call.token] += len(call.started)
        for name, call in self._calls.items():
            decisions = self._session.decisions.get(name, [])
            started = len(call.started)
            most = 1 + decisions.count(_Decision.DECISION_RETRY_CALLS)
            self._expect(started <= most, f"call {name} was started {started} times")
            self._expect(call.asked, f"no message asks for call {name}")
            if started:
                finished = len(call.finished)
                self._expect(finished == started, f"call {name} was started {started} times and finished {finished}")
            else:
                ends = {_Finished.Outcome.Name(outcome) for outcome in call.finished}
                good = ends <= {"OUTCOME_DENIED", "OUTCOME_INTERRUPTED"}
                self._expect(good, f"call {name} was not started, and it ended as {ends}")
            if self._session.asks and started:
                asked = bool(call.allowed) and call.allowed[0] < call.started[0]
                self._expect(asked, f"call {name} was started without the answer that it needs")
            if not call.token:
                continue
            count, begun = self._effects[call.token], made[call.token]
            self._expect(count <= begun, f"call {name} had its effect {count} times and was started {begun} times")
            assumed = _Decision.DECISION_ASSUME_DONE in decisions
            succeeded = _Finished.OUTCOME_SUCCEEDED in call.finished and not assumed
            self._expect(count or not succeeded or self._cleaned, f"call {name} succeeded and had no effect")
            self._late(name, call)
        unknown = self._effects.keys() - made.keys()
        self._expect(not unknown, f"calls that no message asks for had effects: {sorted(unknown)[:3]}")

    def _once(self) -> None:
        """What was asked for is done once, also when the agent asks under another id; no doubt is passed over."""
        retries: Counter[str] = Counter()
        starts: Counter[str] = Counter()
        for name, call in self._calls.items():
            decisions = self._session.decisions.get(name, [])
            retries[call.token] += decisions.count(_Decision.DECISION_RETRY_CALLS)
            starts[call.token] += len(call.started)
            run = next((run for run in self._session.runs if run.name == call.run), None)
            row = self._stored.runs.get(call.run)
            if run is None or row is None or row["state"] != "SUCCEEDED":
                continue
            if _Finished.OUTCOME_UNKNOWN in call.finished:
                always = self._session.options.recovery_policy == session_pb2.RECOVERY_POLICY_RESUME_ALWAYS
                self._expect(always or decisions, f"nobody was asked about call {name}, whose outcome is not known")
            if not run.stops and call.allowed:
                self._expect(call.started or decisions, f"call {name} was allowed, and never started")
        for token, count in starts.items():
            most = 1 + retries[token]
            self._expect(not token or count <= most, f"the call for {token} was made {count} times, of {most}")
        if self._session.options.recovery_policy == session_pb2.RECOVERY_POLICY_FAIL:
            again = [
                name for name, row in self._stored.runs.items() if row["state"] == "SUCCEEDED" and row["attempt"] > 1
            ]
            self._expect(not again, f"runs that were to fail at a loss were taken up again: {again}")

    def _late(self, name: str, call: _Call) -> None:
        """Nothing happens after the end of a run: then its processes are gone, or have nothing to do."""
        row = self._stored.runs.get(call.run)
        when = self._effect_times.get(call.token, 0.0)
        if row is None or row["end_time"] is None or self._may.clocks_differ or self._may.frozen:
            return
        late = when - row["end_time"].timestamp()
        self._expect(late < 0.05, f"call {name} had its effect {late:.2f} s after the end of its run")

    def _ledger(self) -> None:
        """The ledger says what the log says."""
        for name in self._calls.keys() | self._stored.ledger.keys():
            rows, call = self._stored.ledger.get(name, []), self._calls.get(name, _Call())
            in_log, in_ledger = len(call.started), len(rows)
            self._expect(in_log == in_ledger, f"call {name} began {in_log} times and {in_ledger} times in the ledger")
            outcomes = [row["outcome"] for row in rows]
            if rows and len(call.finished) == len(rows):
                self._expect(outcomes == call.finished, f"call {name}: ledger {outcomes}, log {call.finished}")
            self._expect(None not in outcomes, f"call {name} has no end in the ledger")
            attempts = [row["attempt"] for row in rows]
            self._expect(attempts == list(range(1, len(rows) + 1)), f"call {name} has the attempts {attempts}")
            epochs = [row["epoch"] for row in rows]
            self._expect(epochs == sorted(epochs), f"call {name} has the epochs {epochs}")

    # ---- Approvals ----

    def _approvals(self) -> None:
        """Asked once, answered once, as the service has told whoever answered."""
        requested: Counter[str] = Counter()
        resolved: dict[str, list[int]] = defaultdict(list)
        for event in self._stored.events:
            if event.HasField("approval_requested"):
                requested[event.approval_requested.approval.name] += 1
            elif event.HasField("approval_resolved"):
                resolved[event.approval_resolved.approval].append(event.approval_resolved.state)
        for name in requested.keys() | self._stored.approvals.keys() | resolved.keys():
            states = [approval_pb2.Approval.State.Name(state).removeprefix("STATE_") for state in resolved[name]]
            row = self._stored.approvals.get(name)
            self._expect(requested[name] == 1, f"an approval was asked for {requested[name]} times: {name}")
            self._expect(len(states) == 1, f"an approval was resolved {len(states)} times: {name}")
            self._expect(
                row and [row["state"]] == states, f"an approval is {row and row['state']}, not {states}: {name}"
            )
        answers = {_Resolution.DECISION_ALLOW: "ALLOWED", _Resolution.DECISION_DENY: "DENIED"}
        for name, decision in self._session.answers.items():
            row = self._stored.approvals.get(name)
            good = row is not None and row["state"] == answers[decision]
            self._expect(good, f"an answer was accepted and is not what counts: {name}")

    # ---- The head ----

    def _head(self) -> None:
        """Nothing is left that waits, and what is counted is there."""
        head = self._stored.head
        if any(row["state"] not in TERMINAL_RUN_STATES for row in self._stored.runs.values()):
            return
        rest = ("active_run", "queued", "queued_since", "pending_approvals", "in_doubt", "inputs", "losses", "stop_run")
        left = {name: head[name] for name in rest if head[name]}
        self._expect(not left, f"the head waits for something when all has ended: {left}")
        counted = {
            "last_sequence": len(self._stored.rows),
            "run_count": len(self._stored.runs),
            "tool_call_count": sum(map(len, self._stored.ledger.values())),
        }
        wrong = {name: (head[name], count) for name, count in counted.items() if head[name] != count}
        self._expect(not wrong, f"the head has other counts than there is: {wrong}")

    # ---- Faults that nothing may notice ----

    def _unharmed(self) -> None:
        """Runs that nobody stops succeed at the first attempt, and each of their calls is made once."""
        for run in self._session.runs:
            row = self._stored.runs.get(run.name)
            if row is None or run.stops:
                continue
            self._expect(
                row["state"] == "SUCCEEDED", f"nothing was wrong with a run that is {row['state']}: {run.name}"
            )
            self._expect(row["attempt"] == 1, f"a run took {row['attempt']} attempts without need: {run.name}")
            if not self._session.asks:
                odd = {token: self._effects[token] for token in run.tokens if self._effects[token] != 1}
                self._expect(not odd, f"calls were not made once each: {odd} {run.name}")


def _odd(numbers: list[int]) -> str:
    return next(
        (f"{after} comes after {before}" for before, after in pairwise([0, *numbers]) if after != before + 1), ""
    )


def _is(event: event_pb2.Event, origin: int) -> bool:
    return event.HasField("user_message") and event.user_message.origin == origin


def _run_state(state: int) -> RunState:
    return RunState(run_pb2.Run.State.Name(state).removeprefix("STATE_"))
