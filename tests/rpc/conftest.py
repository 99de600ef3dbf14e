"""What the tests share: a log's writer, a worker's hand on the store, questions, and reading at the test's pace."""

import asyncio
from datetime import timedelta
from uuid import UUID

import grpc
import pytest

from agentrpc import clock
from agentrpc.bus.live import LiveBatch
from agentrpc.domain.states import RunState
from agentrpc.names import approval_name, parse_run, run_name
from agentrpc.services.approvals import request_approval
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.beginnings import first_events
from agentrpc.services.signals import publish
from agentrpc.store.leases import claim_next, declare_dead, lock_head, register_worker, renew_lease
from agentrpc.store.log import Batch, LogEvent, StartedCall, append, number_events
from agentrpc.store.runs import ledger_of_run
from agentrpc.store.tables import Run, SessionHead
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, session_pb2, session_service_pb2


class Source:
    """Writes a session's log as a worker would."""

    def __init__(self, edge, session):
        self.edge = edge
        self.name = session.name
        self.session_id = UUID(session.name.removeprefix("sessions/"))
        self.number = 0

    async def open(self):
        async with self.edge.database.transaction() as tx:
            (await tx.get_one(SessionHead, self.session_id)).epoch = 1
        return self

    async def write(self, *texts, publish=True, run=None):
        """Commit a notice for each text, and publish them; the batch."""
        events = [LogEvent.of(event_pb2.Event(notice=event_pb2.Notice(text=text)), run) for text in texts]
        self.number += 1
        base = await append(self.edge.database, self.session_id, 1, self.number, Batch(events=events))
        stored = number_events(events, base)
        batch = LiveBatch.of(stored[-1].sequence, [(e.sequence, e.kind, e.run_id, e.data) for e in stored])
        if publish:
            await self.publish(batch)
        return batch

    async def delta(self, text, offset=0, *, message="m", run=None, thinking=False, last=0):
        """Publish a piece of a message."""
        if thinking:
            piece = event_pb2.ThinkingDelta(message_id=message, block_index=0, offset=offset, thinking=text)
            event, kind = event_pb2.Event(thinking_delta=piece), event_pb2.Event.THINKING_DELTA_FIELD_NUMBER
        else:
            piece = event_pb2.TextDelta(message_id=message, block_index=0, offset=offset, text=text)
            event, kind = event_pb2.Event(text_delta=piece), event_pb2.Event.TEXT_DELTA_FIELD_NUMBER
        await self.publish(LiveBatch.of(last, [(0, kind, run, event.SerializeToString())]))

    async def publish(self, batch):
        await self.edge.bus.publish(self.session_id, batch.encode())


@pytest.fixture
async def source(edge, client):
    """The log of a new session of ann's."""
    return await Source(edge, await client.create_session(session_pb2.Session())).open()


@pytest.fixture
def new_source(edge):
    """Makes more of them: `await new_source(client)`."""

    async def make(client):
        return await Source(edge, await client.create_session(session_pb2.Session())).open()

    return make


class Hand:
    """Changes the store as a worker does, without one."""

    def __init__(self, edge, worker_id):
        self.edge = edge
        self.database = edge.database
        self.worker_id = worker_id
        self.numbers = {}

    async def claim(self):
        """Take the next run."""
        claim = await claim_next(
            self.database,
            self.worker_id,
            may_take_new=True,
            begin=lambda session, run, origin: first_events(session, run, origin=origin, warm=False),
        )
        if claim is not None:
            self.numbers.setdefault((claim.session.id, claim.epoch), claim.batch)
        return claim

    def _of(self, claim):
        return self.database, claim.session.id, claim.run.id, claim.epoch

    async def call(self, claim, *tool_use_ids, tool="Bash"):
        """Begin tool calls, as the gate does."""
        key = (claim.session.id, claim.epoch)
        name = run_name(claim.session.id, claim.run.id)
        for tool_use_id in tool_use_ids:
            started = event_pb2.ToolCallStarted(tool_use_id=tool_use_id, tool_name=tool)
            event = event_pb2.Event(run=name, tool_call_started=started)
            event.time.FromDatetime(clock.utcnow())
            batch = Batch(
                events=[LogEvent.of(event, claim.run.id)],
                started=[StartedCall(tool_use_id, tool, claim.run.id)],
                time=clock.utcnow(),
            )
            self.numbers[key] += 1
            await append(self.database, *key, self.numbers[key], batch)

    async def doubt(self, claim, *tool_use_ids):
        """Lose track of calls: the run becomes UNKNOWN_OUTCOME."""
        await self.call(claim, *tool_use_ids)
        async with self.database.transaction() as tx:
            rows = list((await ledger_of_run(tx, claim.session.id, claim.run.id)).values())
        await lifecycle.await_decision(*self._of(claim), rows, "the outcome of tool calls is unknown")

    async def park(self, claim):
        """Give the session back while the run waits for approvals."""
        assert await lifecycle.park(*self._of(claim))

    async def hand_over(self, claim):
        """Give the session back in the middle of the run."""
        assert await lifecycle.hand_over(*self._of(claim), clean=True)

    async def end(self, claim, state=RunState.SUCCEEDED, receipt=None):
        """End the run as the actor does."""
        error = run_pb2.RunError(reason="REASON_INTERNAL") if state is RunState.FAILED else None
        return await lifecycle.end_run(*self._of(claim), Ending(state, error=error, receipt=receipt))

    async def wanted(self, claim):
        """What the actor reads: the intents."""
        return await lifecycle.intents(self.database, claim.session.id, claim.epoch)

    async def die(self):
        """Be declared dead."""
        await declare_dead(self.database, [self.worker_id])

    async def fall_silent(self):
        """Let the lease pass."""
        await renew_lease(self.database, self.worker_id, -1)


@pytest.fixture
def new_hand(edge):
    """Makes workers' hands: `await new_hand()`."""

    async def make():
        worker_id = clock.uuid7()
        await register_worker(edge.database, worker_id, host="host", pid=7, version="0", ttl=600)
        return Hand(edge, worker_id)

    return make


@pytest.fixture
async def hand(new_hand):
    """A worker's hand."""
    return await new_hand()


@pytest.fixture
async def session(client):
    """A session of ann's."""
    return (await client.create_session(session_pb2.Session())).name


@pytest.fixture
async def begun(client, session, hand):
    """A claimed run: (run, claim)."""
    run = await client.create_run(session, "x")
    return run, await hand.claim()


@pytest.fixture
def events_of(client):
    """All durable events of a run: `await events_of(run)`."""

    async def events_of(run, kind=None):
        request = session_service_pb2.ListSessionEventsRequest(
            parent=run.name.partition("/runs/")[0], run=run.name, page_size=1000
        )
        found = (await client.call(client.sessions.ListSessionEvents, request)).events
        return [getattr(event, kind) for event in found if event.HasField(kind)] if kind else list(found)

    return events_of


@pytest.fixture
def ask(edge):
    """Asks a question of a run as a worker would: `await ask(run, "title")`; its name."""

    async def ask(run, title, *, input_json="{}", show=True):
        session_id, run_id = parse_run(run.name)
        approval = approval_pb2.Approval(
            name=approval_name(session_id, clock.uuid7()),
            run=run.name,
            kind=approval_pb2.Approval.KIND_TOOL,
            state=approval_pb2.Approval.STATE_PENDING,
            tool_use_id="toolu_1",
            tool_name="Bash",
            title=title,
            input_json=input_json,
        )
        now = clock.utcnow()
        approval.create_time.FromDatetime(now)
        approval.expire_time.FromDatetime(now + timedelta(hours=1))
        async with edge.database.transaction() as tx:
            head = await lock_head(tx, session_id)
            events = await request_approval(tx, head, await tx.get_one(Run, run_id), approval)
        if show:
            await publish(edge.bus, session_id, events)
        return approval.name

    return ask


@pytest.fixture
def until():
    """Reads a stream up to the first response that is wanted: `await until(call, wanted)`; all that was read."""

    async def until(call, wanted, timeout=30):
        found = []
        async with asyncio.timeout(timeout):
            while True:
                response = await call.read()
                assert response is not grpc.aio.EOF, "the stream ended before"
                found.append(response)
                if wanted(response):
                    return found

    return until


@pytest.fixture
def ended(edge, monkeypatch):
    """Set when the edge has ended a stream."""
    happened = asyncio.Event()

    def remove(stream, original=edge.hub.remove):
        original(stream)
        happened.set()

    monkeypatch.setattr(edge.hub, "remove", remove)
    return happened
