"""The gate's hold: what is about to leave begins nothing, in whichever moment a call comes."""

import asyncio
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation
from agentrpc.domain.gate import ToolCall
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.services.session_host import actor as actor_module
from agentrpc.services.session_host import gate as gate_module
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.actor import SessionActor
from agentrpc.services.session_host.gate import SessionGate
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.lifecycle import SessionRules
from agentrpc.services.session_host.process import Environment
from agentrpc.store.leases import OwnedSession
from agentrpc.store.tables import Session
from agentrpc.v1 import approval_pb2, session_pb2

OPTIONS = session_pb2.SessionOptions(allowed_tools=["Bash"])


class Writer:
    """Stands in for the session's writer: keeps what began."""

    def __init__(self):
        self.started = []

    async def commit(self, _, started):
        self.started.append(started.tool_use_id)

    async def flush(self):
        return None

    def committed(self, _):
        return None


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
async def gate(writer, tmp_path):
    writer.lost = asyncio.get_running_loop().create_future()
    hold = Hold(None, None, writer, clock.uuid7(), 1)
    translator = MagicMock(**{"parent_of.return_value": ""})
    gate = SessionGate(hold, translator, workspace=str(tmp_path), may_begin=lambda: True)
    gate.begin_run(clock.uuid7(), OPTIONS)
    return gate


def call(gate, tool_use_id="toolu_1", command="date"):
    gate.saw_block(tool_use_id)
    return asyncio.create_task(gate(ToolCall(tool_use_id, "Bash", {"command": command})))


async def settle():
    for _ in range(10):
        await asyncio.sleep(0.002)


async def test_a_call_that_waited_for_its_line_when_the_hold_came_waits_on(gate, writer):
    lines = set()
    gate.in_transcript = lines.__contains__
    task = call(gate)
    await settle()
    gate.hold(held=True)
    lines.add("toolu_1")
    await settle()
    assert gate.at_gate == {"toolu_1"}
    assert (gate.starting, writer.started) == (0, [])
    gate.hold(held=False)
    assert (await task).allow
    assert writer.started == ["toolu_1"]


async def test_a_call_that_was_held_begins_by_the_rules_of_then(gate, writer, monkeypatch):
    """Paused, given a rule that denies, and resumed: the call had passed the old rules."""
    monkeypatch.setattr(gate_module, "_MOMENT", 0.0)
    rules = [SessionRules(1, ["Bash"], [])]

    async def since(revision):
        return None if revision == rules[-1].revision else rules[-1]

    gate.rules_since = since
    lines = set()
    gate.in_transcript = lines.__contains__
    tasks = [call(gate), call(gate, "toolu_2", command="pwd")]
    await settle()
    gate.hold(held=True)
    lines.update({"toolu_1", "toolu_2"})
    await settle()
    rules.append(SessionRules(2, ["Bash"], ["Bash(date:*)"]))
    gate.hold(held=False)
    verdicts = [await task for task in tasks]
    assert [verdict.allow for verdict in verdicts] == [False, True]
    assert "Bash(date:*)" in verdicts[0].message
    assert writer.started == ["toolu_2"]


async def test_a_seal_outlasts_the_hold_and_ends_with_the_run(gate, writer):
    gate.hold(held=True)
    task = call(gate)
    await settle()
    gate.seal()
    gate.hold(held=False)
    await settle()
    assert (gate.at_gate, writer.started) == ({"toolu_1"}, [])
    gate.end_run()
    assert not (await task).allow
    assert writer.started == []
    gate.begin_run(clock.uuid7(), OPTIONS)
    assert (await call(gate, "toolu_2")).allow
    assert writer.started == ["toolu_2"]


async def test_an_answer_that_came_in_time_counts_though_nobody_has_looked(gate, writer, monkeypatch):
    """Nor does it matter that the store was away when it was asked."""
    asked = []

    async def request(*args):
        asked.append(args[-1].name)
        if len(asked) == 1:
            raise StoreUnavailable(unsure=True)
        return []

    async def resolutions(_, __, approval_ids):
        return {approval_id: ("ALLOWED", approval_pb2.Resolution()) for approval_id in approval_ids}

    monkeypatch.setattr(lifecycle, "request_approval", request)
    monkeypatch.setattr(lifecycle, "resolutions", resolutions)
    options = session_pb2.SessionOptions()
    options.approval_timeout.FromMilliseconds(1)
    gate.begin_run(clock.uuid7(), options)
    assert (await call(gate)).allow
    assert writer.started == ["toolu_1"]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("odd", ["\ud800", "\0"])
async def test_a_call_with_half_a_character_is_asked_about(gate, writer, monkeypatch, odd):
    asked = []

    async def request(*args):
        asked.append(args[-1])
        return []

    async def resolutions(*_):
        return {}

    monkeypatch.setattr(lifecycle, "request_approval", request)
    monkeypatch.setattr(lifecycle, "resolutions", resolutions)
    options = session_pb2.SessionOptions()
    options.approval_timeout.FromMilliseconds(1)
    gate.begin_run(clock.uuid7(), options)
    assert not (await call(gate, command=f"date {odd}")).allow
    assert not (await call(gate, "toolu_2", command=f"date{odd} -u")).allow
    assert [approval.title for approval in asked] == ["Claude wants to run: date �", "Claude wants to run: date� -u"]
    assert [list(approval.session_rules) for approval in asked] == [[], []]


async def test_what_is_remembered_of_blocks_goes_with_their_calls(gate):
    for number in range(100):
        gate.saw_block(str(number))
        gate.call_ended(str(number))
    assert not gate._blocks
    # Refused by the CLI itself, and never ended: gone with the next run.
    gate.saw_block("left")
    gate.begin_run(clock.uuid7(), OPTIONS)
    assert not gate._blocks


async def test_a_worker_that_has_lost_the_session_notes_nothing_of_its_cli(database, add_session):
    session = await add_session()
    with pytest.raises(LeaseLostError):
        await lifecycle.mark_agent(database, session, 0, clock.uuid7(), "stale")
    async with database.transaction() as tx:
        assert (await tx.get_one(Session, session)).agent_version != "stale"
    await lifecycle.mark_agent(database, session, 1, clock.uuid7(), "mine")
    async with database.transaction() as tx:
        assert (await tx.get_one(Session, session)).agent_version == "mine"


class Leaving:
    """Stands in for a process that takes its time to end; meanwhile somebody resumes the session."""

    halted = True

    def __init__(self, resume):
        self._resume = resume
        self.stopped = False

    async def stop(self, *, grace):
        assert grace == 0
        await self._resume()
        self.stopped = True


async def test_a_session_that_is_resumed_while_its_process_goes_begins_nothing(
    database, bus, settings, monkeypatch, tmp_path
):
    session, run = SimpleNamespace(id=clock.uuid7(), claude_session_id=clock.uuid7()), SimpleNamespace(id=clock.uuid7())
    claim = SimpleNamespace(session=session, run=run, epoch=1, batch=0, last_sequence=0)
    workspaces = SimpleNamespace(path=lambda _: tmp_path)
    actor = SessionActor(
        Environment(database, bus, settings, None, None, Isolation.SUBREAPER, workspaces, None, None, lambda: True),
        claim,
    )
    actor.run, actor._writer, gate = run, MagicMock(lost=actor.lost), actor._gate
    gate._writer, gate.in_transcript = Writer(), lambda _: True

    async def flush():
        return None

    async def stays(*_, **__):
        return False

    async def resume():
        await actor.look(OwnedSession(session.id, 1, run.id, 0, None, None, paused=False, inputs=0, closed=None))
        await settle()

    actor._writer.flush = flush
    monkeypatch.setattr(actor_module.lifecycle, "park", stays)
    monkeypatch.setattr(actor_module.lifecycle, "hand_over", stays)
    actor._process = Leaving(resume)
    gate.begin_run(run.id, OPTIONS)
    await actor.look(OwnedSession(session.id, 1, run.id, 0, None, None, paused=True, inputs=0, closed=None))
    task = call(gate)
    await settle()
    assert gate.at_gate
    await actor._leave(run)
    assert actor._process.stopped
    assert gate._writer.started == []
    assert not (await task).allow
