"""What the tests of streams share: a log's writer, questions, and reading at the pace of the test."""

import asyncio
from datetime import timedelta
from uuid import UUID

import grpc
import pytest

from agentrpc import clock
from agentrpc.bus.live import LiveBatch
from agentrpc.names import approval_name, parse_run
from agentrpc.services.approvals import request_approval
from agentrpc.services.signals import publish
from agentrpc.store.leases import lock_head
from agentrpc.store.log import Batch, LogEvent, append, number_events
from agentrpc.store.tables import Run, SessionHead
from agentrpc.v1 import approval_pb2, event_pb2, session_pb2


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
