"""What has to hold, whatever has happened: over what clients saw, the store, and the workspaces.

Each violation is one line that says what, where and what was found.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

from agentrpc.names import parse_session
from agentrpc.store.database import Database
from agentrpc.store.log import read_events
from agentrpc.v1 import event_pb2, run_service_pb2
from scripts.chaos.traffic import History, SessionRecord
from scripts.chaos.world import World

__all__ = ["check"]

_Finished = event_pb2.ToolCallFinished
_TERMINAL = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}


async def check(world: World, history: History, waiting: list[str]) -> list[str]:
    """Every promise that was broken."""
    violations = [f"a run has not ended: {name} {await _where(world, name)}" for name in waiting]
    effects = Counter(
        line for path in Path(world.folder / "data").rglob("effects") for line in path.read_text().split()
    )
    database = Database(world.store_url, pool_size=2)
    try:
        for session in history.sessions:
            violations += [f"{session.name}: {found}" for found in await _session(database, session, effects)]
    finally:
        await database.close()
    return violations


async def _where(world: World, name: str) -> str:
    run = name.rpartition("/")[2]
    rows = await world.execute(
        "SELECT r.state, r.attempt, h.worker, h.active_run, h.pending_approvals, h.in_doubt, h.paused, h.queued,"
        f" h.losses, h.epoch, w.dead_time FROM runs r JOIN session_heads h USING (session_id)"
        f" LEFT JOIN workers w ON w.id = h.worker WHERE r.id = '{run}'"
    )
    return str(dict(rows[0])) if rows else "and is not in the store"


async def _session(database: Database, session: SessionRecord, effects: Counter[str]) -> list[str]:
    session_id = parse_session(session.name)
    stored = []
    while rows := await read_events(database, session_id, after=stored[-1].sequence if stored else 0, limit=1000):
        stored += rows
    found = []
    numbers = [row.sequence for row in stored]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"the log has gaps or doubles: {_odd(numbers)}")
    truth = {row.sequence: event_pb2.Event.FromString(row.data).SerializeToString(deterministic=True) for row in stored}
    for name, seen in session.watchers.items():
        found += _watcher(name.rpartition("#")[2], seen, truth)
    events = [event_pb2.Event.FromString(row.data) for row in stored]
    found += await _runs(database, session, events)
    return found + _calls(session, events, effects)


def _odd(numbers: list[int]) -> str:
    for at, number in enumerate(numbers, 1):
        if number != at:
            return f"at {at} comes {number}"
    return ""


def _watcher(name: str, seen: list[tuple[int, bytes]], truth: dict[int, bytes]) -> list[str]:
    found = []
    numbers = [number for number, _ in seen]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"watcher {name} saw gaps or doubles: {_odd(numbers)}")
    if len(seen) != len(truth):
        found.append(f"watcher {name} saw {len(seen)} of {len(truth)} events")
    wrong = [number for number, data in seen if truth.get(number) != data]
    if wrong:
        found.append(f"watcher {name} saw other events than the store has: {wrong[:5]}")
    return found


async def _runs(database: Database, session: SessionRecord, events: list[event_pb2.Event]) -> list[str]:
    found = []
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT id, state, prompt FROM runs WHERE session_id = $1", parse_session(session.name)
        )
    by_name = {f"{session.name}/runs/{row['id']}": row for row in rows}
    accepted = [run for run in session.runs if run.name]
    for run in accepted:
        row = by_name.pop(run.name, None)
        if row is None:
            found.append(f"an accepted run is lost: {run.name}")
        elif row["prompt"] != run.prompt:
            found.append(f"a run has another prompt: {run.name}")
        elif row["state"] not in _TERMINAL:
            found.append(f"a run is {row['state']}: {run.name}")
    found += [f"a run that was accepted once is there twice: {name}" for name in by_name]
    ends = Counter(event.run for event in events if event.HasField("run_ended"))
    found += [f"a run ended {count} times: {name}" for name, count in ends.items() if count > 1]
    over: set[str] = set()
    for event in events:
        if event.run in over and not event.HasField("subtask_ended"):
            found.append(f"{event.WhichOneof('payload')} {event.sequence} comes after the end of its run")
        if event.HasField("run_ended"):
            over.add(event.run)
    prompts = Counter(
        event.run
        for event in events
        if event.HasField("user_message") and event.user_message.origin == event_pb2.UserMessage.ORIGIN_PROMPT
    )
    found += [f"a prompt is in the log {count} times: {name}" for name, count in prompts.items() if count > 1]
    return found


def _calls(session: SessionRecord, events: list[event_pb2.Event], effects: Counter[str]) -> list[str]:
    found = []
    tokens: dict[str, str] = {}
    started: Counter[str] = Counter()
    finished: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.HasField("assistant_message"):
            for block in event.assistant_message.blocks:
                if block.HasField("tool_use"):
                    command = json.loads(block.tool_use.input_json or "{}").get("command", "")
                    tokens[block.tool_use.tool_use_id] = command.split()[1] if command.startswith("echo ") else ""
        elif event.HasField("tool_call_started"):
            started[event.tool_call_started.tool_use_id] += 1
        elif event.HasField("tool_call_finished"):
            finished[event.tool_call_finished.tool_use_id].append(event.tool_call_finished.outcome)
    made: Counter[str] = Counter()
    for tool_use_id, token in tokens.items():
        made[token] += started[tool_use_id]
    for tool_use_id, count in started.items():
        retried = session.decisions.get(tool_use_id) == run_service_pb2.ResolveRunRequest.DECISION_RETRY_CALLS
        if count > (2 if retried else 1):
            found.append(f"call {tool_use_id} was started {count} times")
        if tool_use_id not in tokens:
            found.append(f"call {tool_use_id} was started, and no message asks for it")
        if len(finished[tool_use_id]) != count:
            found.append(f"call {tool_use_id} was started {count} times and finished {len(finished[tool_use_id])}")
    for tool_use_id, token in tokens.items():
        outcomes = finished[tool_use_id]
        if not token:
            continue
        if effects[token] > made[token]:
            found.append(
                f"call {tool_use_id} had its effect {effects[token]} times and was started {made[token]} times"
            )
        assumed = session.decisions.get(tool_use_id) == run_service_pb2.ResolveRunRequest.DECISION_ASSUME_DONE
        if _Finished.OUTCOME_SUCCEEDED in outcomes and not effects[token] and not assumed:
            found.append(f"call {tool_use_id} succeeded and had no effect")
    return found
