"""A COMMIT that went through and was not answered: the worker tries again, and nothing is lost or done twice."""

from contextlib import asynccontextmanager

import pytest

from agentrpc import clock
from agentrpc.errors import StoreUnavailable
from agentrpc.names import approval_name
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.store.leases import claim_next, register_worker
from agentrpc.store.log import Batch, append, read_events
from agentrpc.store.tables import Run, RunInput, SessionHead
from agentrpc.v1 import approval_pb2, event_pb2


@pytest.fixture
async def claim(database, add_session):
    """A run under way."""
    worker = clock.uuid7()
    await register_worker(database, worker, host="h", pid=1, version="0", ttl=300)
    await add_session(queued=1)
    return await claim_next(database, worker, may_take_new=True, begin=lambda *_: [])


@pytest.fixture
async def hold(database, bus, claim):
    writer = SessionWriter(database, bus, claim.session.id, epoch=claim.epoch, batch=0, last_sequence=0)
    yield Hold(database, bus, writer, claim.session.id, claim.epoch)
    await writer.close()


@pytest.fixture
def lose(database, monkeypatch):
    """Lets the answer of the next COMMIT be lost."""

    def lose():
        whole = database.transaction

        @asynccontextmanager
        async def transaction():
            async with whole() as tx:
                yield tx
            monkeypatch.setattr(database, "transaction", whole)
            raise StoreUnavailable(unsure=True)

        monkeypatch.setattr(database, "transaction", transaction)

    return lose


async def change(database, claim, **values):
    async with database.transaction() as tx:
        head = await tx.get_one(SessionHead, claim.session.id)
        for name, value in values.items():
            setattr(head, name, value)


async def rows(database, claim):
    async with database.transaction() as tx:
        return await tx.get_one(SessionHead, claim.session.id), await tx.get_one(Run, claim.run.id)


async def events(database, claim):
    stored = await read_events(database, claim.session.id, after=0)
    return [event_pb2.Event.FromString(event.data).WhichOneof("payload") for event in stored]


async def test_a_further_message_reaches_the_agent(database, claim, hold, lose):
    async with database.transaction() as tx:
        message = RunInput(
            id=clock.uuid7(), session_id=claim.session.id, run_id=claim.run.id, text="hurry", create_time=clock.utcnow()
        )
        tx.add(message)
    await change(database, claim, inputs=1)
    tried = set()

    async def take():
        return await lifecycle.take_inputs(database, claim.session.id, claim.run.id, claim.epoch, tried, 60)

    lose()
    inputs, left, _ = await hold.patiently(take)
    assert (inputs, left) == ([(message.id, "hurry")], 0)
    assert await events(database, claim) == ["user_message"]
    tried.clear()
    assert await take() == ([], 0, [])


async def test_one_loss_counts_once(database, claim, hold, lose):
    attempt = claim.run.attempt
    lose()
    losses, _ = await hold.patiently(
        lambda: lifecycle.note_loss(database, claim.session.id, claim.run.id, claim.epoch, attempt)
    )
    head, run = await rows(database, claim)
    assert (losses, head.losses, run.attempt) == (1, 1, attempt + 1)
    assert await events(database, claim) == ["run_started"]


async def test_what_was_given_back_stays_given_back(database, claim, hold, lose):
    """Though what it waited for has come meanwhile."""
    await change(database, claim, pending_approvals=1)
    lose()
    with pytest.raises(StoreUnavailable):
        await lifecycle.park(database, claim.session.id, claim.run.id, claim.epoch)
    await change(database, claim, pending_approvals=0)
    assert await lifecycle.park(database, claim.session.id, claim.run.id, claim.epoch)


async def test_an_attempt_that_is_cut_off_counts_once(database, claim, hold, lose):
    attempt = claim.run.attempt
    lose()
    assert await hold.patiently(
        lambda: lifecycle.hand_over(database, claim.session.id, claim.run.id, claim.epoch, clean=False)
    )
    assert (await rows(database, claim))[1].attempt == attempt + 1


def question(claim):
    approval = approval_pb2.Approval(name=approval_name(claim.session.id, clock.uuid7()), tool_use_id="toolu_1")
    approval.create_time.FromDatetime(clock.utcnow())
    approval.expire_time.FromDatetime(clock.utcnow())
    return approval


async def test_a_question_is_asked_once(database, claim, hold, lose):
    approval = question(claim)
    lose()
    asked = await hold.patiently(
        lambda: lifecycle.request_approval(database, claim.session.id, claim.run.id, claim.epoch, approval)
    )
    assert asked == []
    head, _ = await rows(database, claim)
    assert head.pending_approvals == 1
    assert (await events(database, claim)).count("approval_requested") == 1


@pytest.mark.parametrize("how", ["ended", "stopping"])
async def test_and_not_for_a_run_that_is_over(database, claim, how):
    await change(database, claim, **({"active_run": None} if how == "ended" else {"stop_run": claim.run.id}))
    args = (database, claim.session.id, claim.run.id, claim.epoch)
    assert await lifecycle.request_approval(*args, question(claim)) is None
    assert await events(database, claim) == []


async def test_a_conversation_goes_back_once(database, claim, hold, lose):
    batch = Batch(events=[], transcript=[("", b'{"a":1}'), ("", b'{"b":2}')])
    await append(database, claim.session.id, claim.epoch, 1, batch)
    lose()
    await hold.patiently(lambda: lifecycle.rewind(database, claim.session.id, claim.run.id, claim.epoch, 1))
    assert await events(database, claim) == ["conversation_rewound"]
