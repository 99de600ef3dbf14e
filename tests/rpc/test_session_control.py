"""Sessions as a whole: pause, resume, terminate, fork, rewind; the worker is played by the test."""

import asyncio
import json
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy

from agentrpc import clock
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.client import RpcError
from agentrpc.client.errors import decode
from agentrpc.domain.states import RunState
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.names import parse_run, parse_session
from agentrpc.services import session_control as module
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.beginnings import first_events
from agentrpc.store.housekeeping import sessions_to_clean
from agentrpc.store.leases import claim_next, declare_dead, owned_sessions, register_worker, release
from agentrpc.store.log import Batch, LogEvent, append, read_transcript
from agentrpc.store.tables import Session
from agentrpc.v1 import event_pb2, run_pb2, session_pb2, session_service_pb2, stream_pb2

State = session_pb2.Session


class Worker:
    """Claims runs and writes what a CLI would."""

    def __init__(self, edge):
        self.edge = edge
        self.id = clock.uuid7()
        self.claims = {}
        self.batches = {}

    async def start(self):
        await register_worker(self.edge.database, self.id, host="test", pid=1, version="0", ttl=60)
        return self

    async def claim(self):
        claim = await claim_next(
            self.edge.database, self.id, may_take_new=True,
            begin=lambda session, run, origin: first_events(session, run, origin=origin, warm=False),
        )  # fmt: skip
        if claim is not None:
            self.claims[claim.session.id] = claim
            self.batches[claim.session.id] = claim.batch
        return claim

    async def write(self, claim, *lines, subpath="", events=()):
        session_id = claim.session.id
        self.batches[session_id] += 1
        batch = Batch(
            events=[LogEvent.of(event, claim.run.id) for event in events],
            transcript=[(subpath, json.dumps(line, separators=(",", ":")).encode()) for line in lines],
        )
        await append(self.edge.database, session_id, claim.epoch, self.batches[session_id], batch)

    async def talk(self, claim, answer):
        """The prompt and the answer, as the CLI writes them; the uuid of the answer."""
        asked, said = str(claim.run.id), str(uuid4())
        of = {"sessionId": str(claim.session.claude_session_id), "cwd": "/w"}
        prompt = {"role": "user", "content": claim.run.prompt}
        await self.write(claim, {"type": "user", "uuid": asked, "parentUuid": None, "message": prompt, **of})
        message = {"role": "assistant", "id": "msg", "content": [{"type": "text", "text": answer}]}
        await self.write(claim, {"type": "assistant", "uuid": said, "parentUuid": asked, "message": message, **of})
        return said

    async def end(self, claim, state=RunState.SUCCEEDED):
        receipt = run_pb2.StopReceipt(confirmed=True) if state is RunState.CANCELLED else None
        ending = Ending(state, receipt=receipt)
        return await lifecycle.end_run(self.edge.database, claim.session.id, claim.run.id, claim.epoch, ending)

    async def carry_out(self, client, session, prompt):
        """A whole run: its name and the uuid of the answer."""
        run = await client.create_run(session.name, prompt)
        claim = await self.claim()
        said = await self.talk(claim, f"answer to {prompt}")
        await self.end(claim)
        return run, said

    async def owns(self, session):
        return (await owned_sessions(self.edge.database, self.id)).get(parse_session(session.name))


@pytest.fixture
async def worker(edge):
    return await Worker(edge).start()


@pytest.fixture
async def session(client):
    labels = {"team": "a"}
    options = session_pb2.SessionOptions(model="m", checkpoints=True)
    return await client.create_session(
        session_pb2.Session(display_name="first", description="d", labels=labels, options=options)
    )


async def events_of(client, name):
    request = session_service_pb2.ListSessionEventsRequest(parent=name, page_size=1000)
    return list((await client.call(client.sessions.ListSessionEvents, request)).events)


async def kinds_of(client, name):
    return [event.WhichOneof("payload") for event in await events_of(client, name)]


async def conversation(edge, session):
    return [
        (path, json.loads(line)) for path, line in await read_transcript(edge.database, parse_session(session.name))
    ]


async def refused(call, reason):
    with pytest.raises(RpcError) as caught:
        await call
    assert caught.value.reason == reason, caught.value
    return caught.value


def workspaces_of(edge):
    return WorkspaceStore(edge.settings.workspaces, checkpoint_limit=10**6, checkpoints_kept=5)


def make_files(edge, session, **contents):
    """The workspace as its worker would have made it."""
    store = workspaces_of(edge)
    session_id = parse_session(session.name)
    store.create(session_id)
    for name, text in contents.items():
        (store.path(session_id) / name).write_text(text)


async def note_files(edge, session):
    async with edge.database.transaction() as tx:
        (await tx.get_one(Session, parse_session(session.name))).workspace_time = clock.utcnow()


# ---- Pausing ----


async def test_a_paused_session_begins_nothing_until_it_goes_on(client, session, worker):
    paused = await client.pause_session(session.name, "lunch")
    assert paused.HasField("pause_time")
    again = await client.pause_session(session.name, "another")
    assert again.pause_time == paused.pause_time
    run = await client.create_run(session.name, "hi")
    assert await worker.claim() is None
    resumed = await client.resume_session(session.name)
    assert not resumed.HasField("pause_time")
    await client.resume_session(session.name)
    assert (await worker.claim()).run.id == parse_run(run.name)[1]
    changes = [
        e.session_pause_changed for e in await events_of(client, session.name) if e.HasField("session_pause_changed")
    ]
    assert [(change.paused, change.reason) for change in changes] == [(True, "lunch"), (False, "")]


async def test_its_owner_learns_of_a_pause_and_may_give_it_back(client, session, worker):
    run = await client.create_run(session.name, "hi")
    claim = await worker.claim()
    await client.pause_session(session.name)
    assert (await worker.owns(session)).paused
    assert await lifecycle.hand_over(worker.edge.database, claim.session.id, claim.run.id, claim.epoch, clean=True)
    assert await worker.claim() is None
    assert (await client.get_run(run.name)).state == run_pb2.Run.STATE_RUNNING
    await client.resume_session(session.name)
    again = await worker.claim()
    assert again.run.id == claim.run.id
    assert again.run.attempt == 1


async def test_a_warm_process_of_a_paused_session_goes_though_runs_wait(client, session, worker):
    await worker.carry_out(client, session, "one")
    await client.pause_session(session.name)
    await client.create_run(session.name, "two")
    head = await worker.owns(session)
    assert await release(worker.edge.database, parse_session(session.name), head.epoch)
    assert await worker.owns(session) is None
    other = await Worker(worker.edge).start()
    await client.resume_session(session.name)
    assert (await other.claim()).run.prompt == "two"


# ---- Ending ----


async def test_terminate_ends_what_waits_and_closes(client, session, worker):
    runs = [await client.create_run(session.name, str(number)) for number in range(3)]
    ended = await client.terminate_session(session.name, "enough")
    assert ended.state == State.STATE_ARCHIVED
    assert ended.HasField("archive_time")
    stopped = [await client.get_run(run.name) for run in runs]
    assert {run.state for run in stopped} == {run_pb2.Run.STATE_CANCELLED}
    assert all(run.stop_receipt.confirmed for run in stopped)
    assert (await kinds_of(client, session.name))[-4:] == ["run_ended"] * 3 + ["session_state_changed"]
    length = ended.last_sequence
    assert (await client.terminate_session(session.name)).last_sequence == length
    await refused(client.create_run(session.name, "x"), "SESSION_NOT_ACTIVE")
    await refused(client.pause_session(session.name), "SESSION_NOT_ACTIVE")
    await refused(client.resume_session(session.name), "SESSION_NOT_ACTIVE")
    assert await worker.claim() is None


async def test_an_idle_session_is_archived_at_once_and_its_warm_process_appends_nothing_more(client, session, worker):
    run = await client.create_run(session.name, "one")
    claim = await worker.claim()
    await worker.end(claim)
    ended = await client.terminate_session(session.name)
    assert ended.state == State.STATE_ARCHIVED
    change = (await events_of(client, session.name))[-1].session_state_changed
    assert (change.previous_state, change.state) == (State.STATE_IDLE, State.STATE_ARCHIVED)
    with pytest.raises(LeaseLostError):
        await worker.write(claim, events=[event_pb2.Event(notice=event_pb2.Notice(text="late"))])
    # Its files stay until the worker has given it back.
    session_id = parse_session(session.name)
    assert await sessions_to_clean(worker.edge.database, 10) == []
    head = await worker.owns(session)
    assert head.epoch != claim.epoch
    await release(worker.edge.database, session_id, head.epoch)
    assert await sessions_to_clean(worker.edge.database, 10) == [session_id]
    assert (await client.get_run(run.name)).state == run_pb2.Run.STATE_SUCCEEDED


@pytest.mark.parametrize("state", [RunState.CANCELLED, RunState.FAILED])
async def test_a_watcher_sees_the_end_of_a_run_that_its_worker_has_to_stop(client, session, worker, state):
    run = await client.create_run(session.name, "one")
    waiting = await client.create_run(session.name, "two")
    claim = await worker.claim()
    responses = []

    async def watch():
        request = session_service_pb2.WatchSessionRequest(name=session.name)
        async for response in client.watch_responses(client.sessions.WatchSession, request):
            responses.append(response)

    watching = asyncio.create_task(watch())
    stopping = await client.terminate_session(session.name, "enough")
    assert stopping.state == State.STATE_RUNNING
    assert (await client.get_run(waiting.name)).state == run_pb2.Run.STATE_CANCELLED
    head = await worker.owns(session)
    assert (head.stop_run, head.stop_kind, head.closed) == (claim.run.id, "CANCEL", "ARCHIVED")
    await refused(client.create_run(session.name, "x"), "SESSION_NOT_ACTIVE")
    listed = session_service_pb2.ListSessionsRequest(states=[State.STATE_ARCHIVED])
    assert not (await client.call(client.sessions.ListSessions, listed)).sessions
    # The hub has looked between two heartbeats, and must not take it for closed.
    async with asyncio.timeout(30):
        while sum(response.HasField("heartbeat") for response in responses) < 2:
            assert not watching.done()
            await asyncio.sleep(0.05)
    await worker.write(claim, events=[event_pb2.Event(notice=event_pb2.Notice(text="stopping"))])
    await worker.end(claim, state)
    async with asyncio.timeout(10):
        await watching
    assert responses[-1].end.reason == stream_pb2.StreamEnd.REASON_SESSION_CLOSED
    seen = [event for response in responses for event in response.events]
    assert [event.WhichOneof("payload") for event in seen[-3:]] == ["notice", "run_ended", "session_state_changed"]
    assert seen[-1].session_state_changed.state == State.STATE_ARCHIVED
    assert seen[-2].run == run.name
    assert [found.name for found in (await client.call(client.sessions.ListSessions, listed)).sessions] == [
        session.name
    ]
    with pytest.raises(LeaseLostError):
        await worker.write(claim, events=[event_pb2.Event(notice=event_pb2.Notice(text="late"))])


@pytest.mark.parametrize("how", ["paused", "dead"])
async def test_a_run_that_nobody_drives_ends_with_its_session(client, session, worker, how):
    run = await client.create_run(session.name, "one")
    claim = await worker.claim()
    if how == "paused":
        await client.pause_session(session.name)
        await lifecycle.hand_over(worker.edge.database, claim.session.id, claim.run.id, claim.epoch, clean=True)
    else:
        await declare_dead(worker.edge.database, [worker.id])
    ended = await client.terminate_session(session.name)
    assert ended.state == State.STATE_ARCHIVED
    found = await client.get_run(run.name)
    assert found.state == run_pb2.Run.STATE_CANCELLED
    assert (await kinds_of(client, session.name))[-2:] == ["run_ended", "session_state_changed"]


# ---- Forking ----


async def test_a_fork_begins_with_the_conversation(client, edge, session, worker):
    await worker.carry_out(client, session, "one")
    claim_lines = await conversation(edge, session)
    fork = await client.fork_session(session.name)
    assert (fork.forked_from, fork.display_name, fork.description) == (session.name, "first", "d")
    assert fork.labels == session.labels
    assert fork.options == session.options
    assert fork.claude_session_id != session.claude_session_id
    assert (fork.last_sequence, fork.run_count, fork.state) == (0, 0, State.STATE_IDLE)
    lines = await conversation(edge, fork)
    assert {entry.pop("sessionId") for _, entry in lines} == {fork.claude_session_id}
    for _, entry in claim_lines:
        del entry["sessionId"]
    assert lines == claim_lines
    # It is a session like any other, and the two go on apart.
    await worker.carry_out(client, fork, "two")
    assert len(await conversation(edge, fork)) == 4
    assert len(await conversation(edge, session)) == 2
    named = await client.fork_session(fork.name, display_name="second")
    assert (named.display_name, named.forked_from) == ("second", fork.name)


async def test_a_fork_at_a_message_has_nothing_that_came_later(client, edge, session, worker):
    run = await client.create_run(session.name, "one")
    claim = await worker.claim()
    await worker.write(claim, {"type": "user", "uuid": "early", "sessionId": "s"}, subpath="subagents/agent-1")
    said = await worker.talk(claim, "1")
    await worker.write(claim, {"type": "user", "uuid": "late", "sessionId": "s"}, subpath="subagents/agent-1")
    await worker.end(claim)
    await worker.carry_out(client, session, "two")
    fork = await client.fork_session(session.name, transcript_uuid=said)
    lines = await conversation(edge, fork)
    assert [(path, entry["uuid"]) for path, entry in lines] == [
        ("subagents/agent-1", "early"), ("", str(parse_run(run.name)[1])), ("", said)
    ]  # fmt: skip
    await refused(client.fork_session(session.name, transcript_uuid=str(uuid4())), "FIELD_INVALID")
    await refused(client.fork_session(session.name, transcript_uuid="early"), "FIELD_INVALID")


async def test_a_fork_copies_files_only_when_asked(client, edge, session, worker):
    await worker.carry_out(client, session, "one")
    make_files(edge, session, a="one")
    await note_files(edge, session)
    with_files = await client.fork_session(session.name, copy_workspace=True)
    without = await client.fork_session(session.name)
    path = workspaces_of(edge).path
    assert (path(parse_session(with_files.name)) / "a").read_text() == "one"
    workspaces_of(edge).open(parse_session(with_files.name))
    assert not path(parse_session(without.name)).exists()
    async with edge.database.transaction() as tx:
        times = [(await tx.get_one(Session, parse_session(s.name))).workspace_time for s in (with_files, without)]
    assert times[0] is not None
    assert times[1] is None


async def test_files_that_are_gone_cannot_be_copied(client, edge, session, worker):
    await worker.carry_out(client, session, "one")
    make_files(edge, session, a="one")
    await note_files(edge, session)
    workspaces_of(edge).remove(parse_session(session.name))
    await refused(client.fork_session(session.name, copy_workspace=True), "STATE_INVALID")
    assert not list(edge.settings.workspaces.iterdir())
    assert (await client.fork_session(session.name)).forked_from == session.name


async def test_a_request_id_forks_once(client, edge, session, worker):
    await worker.carry_out(client, session, "one")
    make_files(edge, session, a="one")
    await note_files(edge, session)
    request_id = str(uuid4())
    forks = await asyncio.gather(
        *(client.fork_session(session.name, copy_workspace=True, request_id=request_id) for _ in range(4))
    )
    assert len({fork.name for fork in forks}) == 1
    assert len(list(edge.settings.workspaces.iterdir())) == 2
    await refused(client.fork_session(session.name, request_id=request_id), "REQUEST_ID_REUSED")
    # Also when the source has moved on.
    await client.create_run(session.name, "two")
    again = await client.fork_session(session.name, copy_workspace=True, request_id=request_id)
    assert again.name == forks[0].name


async def test_a_busy_session_is_neither_forked_nor_rewound(client, session, worker):
    run = await client.create_run(session.name, "one")
    await refused(client.fork_session(session.name), "SESSION_BUSY")
    await worker.claim()
    error = await refused(client.fork_session(session.name), "SESSION_BUSY")
    assert error.metadata["active_run"] == run.name
    await refused(client.rewind_session(run.name), "SESSION_BUSY")


async def test_a_closed_session_can_be_forked_but_not_rewound(client, session, worker):
    run, _ = await worker.carry_out(client, session, "one")
    await client.terminate_session(session.name)
    await refused(client.rewind_session(run.name), "SESSION_NOT_ACTIVE")
    assert (await client.fork_session(session.name)).state == State.STATE_IDLE


# ---- Going back ----


async def test_rewind_takes_the_conversation_back_to_before_a_run(client, edge, session, worker):
    await worker.carry_out(client, session, "one")
    second, _ = await worker.carry_out(client, session, "two")
    third, _ = await worker.carry_out(client, session, "three")
    claim = worker.claims[parse_session(session.name)]
    await client.rewind_session(second.name)
    prompts = [e["message"]["content"] for _, e in await conversation(edge, session) if e["type"] == "user"]
    assert prompts == ["one"]
    rewound = (await events_of(client, session.name))[-1]
    assert rewound.conversation_rewound.to_sequence == (await client.get_run(second.name)).first_sequence - 1
    assert not rewound.conversation_rewound.workspace_restored
    # The process that knows the old conversation can add nothing to it.
    with pytest.raises(LeaseLostError):
        await worker.write(claim, {"type": "user", "uuid": "x"})
    # Nobody else begins a run before its worker has given the session back.
    run = await client.create_run(session.name, "four")
    other = await Worker(edge).start()
    assert await other.claim() is None
    claim = await worker.claim()
    await worker.talk(claim, "4")
    await worker.end(claim)
    prompts = [e["message"]["content"] for _, e in await conversation(edge, session) if e["type"] == "user"]
    assert prompts == ["one", "four"]
    await refused(client.rewind_session(third.name), "STATE_INVALID")
    await client.rewind_session(run.name)


async def test_rewinding_again_changes_nothing(client, session, worker):
    run, _ = await worker.carry_out(client, session, "one")
    before = (await client.rewind_session(run.name)).last_sequence
    assert (await client.rewind_session(run.name)).last_sequence == before


async def test_runs_that_wait_come_after_the_rewind(client, edge, session, worker):
    run, _ = await worker.carry_out(client, session, "one")
    await client.pause_session(session.name)
    await client.create_run(session.name, "two")
    await client.rewind_session(run.name)
    await client.resume_session(session.name)
    claim = await worker.claim()
    await worker.talk(claim, "2")
    prompts = [e["message"]["content"] for _, e in await conversation(edge, session) if e["type"] == "user"]
    assert prompts == ["two"]


async def test_rewind_brings_the_files_back(client, edge, session, worker):
    make_files(edge, session, a="one")
    await note_files(edge, session)
    session_id = parse_session(session.name)
    run = await client.create_run(session.name, "one")
    claim = await worker.claim()
    workspaces_of(edge).checkpoint(session_id, claim.run.id)
    files = workspaces_of(edge).path(session_id)
    (files / "a").write_text("two")
    await worker.talk(claim, "1")
    await worker.end(claim)
    later, _ = await worker.carry_out(client, session, "two")
    await refused(client.rewind_session(later.name, restore_workspace=True), "STATE_INVALID")
    assert len(await conversation(edge, session)) == 4
    # First the conversation alone, then the files too.
    await client.rewind_session(run.name)
    assert (files / "a").read_text() == "two"
    await client.rewind_session(run.name, restore_workspace=True)
    assert (files / "a").read_text() == "one"
    assert (await events_of(client, session.name))[-1].conversation_rewound.workspace_restored
    assert sorted(path.name for path in files.parent.iterdir()) == ["checkpoints", "files", "id"]


# ---- A COMMIT that is not answered ----


@pytest.fixture
def unanswered(edge, monkeypatch):
    """Cuts the next transaction that calls this function of the module: after its COMMIT, or just before it.

    The client, told that this is not known, says it again by itself.
    """

    def cut(name, *, committed):
        whole, called = edge.database.transaction, getattr(module, name)
        due = []

        def mark(*args):
            due.append(name)
            monkeypatch.setattr(module, name, called)
            return called(*args)

        @asynccontextmanager
        async def transaction():
            async with whole() as tx:
                yield tx
                if due and not committed:
                    due.clear()
                    raise StoreUnavailable(unsure=True)
            if due:
                due.clear()
                raise StoreUnavailable(unsure=True)

        monkeypatch.setattr(module, name, mark)
        monkeypatch.setattr(edge.database, "transaction", transaction)

    return cut


@pytest.mark.parametrize("committed", [True, False])
async def test_a_fork_has_its_files_or_is_not_there(client, edge, session, worker, unanswered, committed):
    await worker.carry_out(client, session, "one")
    make_files(edge, session, a="one")
    await note_files(edge, session)
    unanswered("copy_transcript", committed=committed)
    fork = await client.fork_session(session.name, copy_workspace=True)
    workspaces_of(edge).open(parse_session(fork.name))
    assert len(list(edge.settings.workspaces.iterdir())) == 2


@pytest.mark.parametrize("committed", [True, False])
async def test_files_go_back_with_the_conversation(client, edge, session, worker, unanswered, committed):
    make_files(edge, session, a="one")
    await note_files(edge, session)
    run = await client.create_run(session.name, "one")
    claim = await worker.claim()
    workspaces_of(edge).checkpoint(parse_session(session.name), claim.run.id)
    files = workspaces_of(edge).path(parse_session(session.name))
    (files / "a").write_text("two")
    await worker.talk(claim, "1")
    await worker.end(claim)
    unanswered("disown", committed=committed)
    await client.rewind_session(run.name, restore_workspace=True)
    # Exchanged once, or there and back and there.
    assert (files / "a").read_text() == "one"
    assert await conversation(edge, session) == []
    rewinds = [event for event in await events_of(client, session.name) if event.HasField("conversation_rewound")]
    assert len(rewinds) == 1
    assert sorted(path.name for path in files.parent.iterdir()) == ["checkpoints", "files", "id"]


# ---- Who and what ----


async def test_a_run_that_never_began_or_is_anothers_is_refused(client, session, worker):
    await worker.carry_out(client, session, "one")
    run = await client.create_run(session.name, "two")
    await client.interrupt(run.name)
    await refused(client.rewind_session(run.name), "STATE_INVALID")
    await refused(client.rewind_session(f"{session.name}/runs/{uuid4()}"), "NOT_FOUND")
    request = session_service_pb2.RewindSessionRequest(name=f"sessions/{UUID(int=1)}", run=run.name)
    await refused(client.call(client.sessions.RewindSession, request), "FIELD_INVALID")
    await refused(client.rewind_session("x"), "NAME_INVALID")


@pytest.mark.parametrize("call", ["pause", "resume", "terminate", "fork", "rewind"])
async def test_others_do_not_see_it_and_viewers_may_not(client, edge, session, worker, call):
    run, _ = await worker.carry_out(client, session, "one")
    for user, reason in (("bob", "NOT_FOUND"), ("vic", "PERMISSION_DENIED")):
        async with edge.client(user) as other:
            name = run.name if call == "rewind" else session.name
            await refused(getattr(other, f"{call}_session")(name), reason)


async def test_reasons_and_names_have_limits(client, session):
    await refused(client.pause_session(session.name, "x" * 1001), "FIELD_INVALID")
    await refused(client.terminate_session(session.name, "\0"), "FIELD_INVALID")
    await refused(client.fork_session(session.name, display_name="x" * 201), "FIELD_INVALID")
    await refused(client.fork_session(session.name, request_id="x"), "FIELD_INVALID")
    await refused(client.pause_session(f"sessions/{UUID(int=1)}"), "NOT_FOUND")


async def test_a_rewind_does_not_wait_for_a_database_that_takes_no_changes(client, edge, session, worker):
    run, _ = await worker.carry_out(client, session, "one")
    async with edge.database.transaction() as tx:
        name = await tx.scalar(sqlalchemy.text("SELECT current_database()"))
        await tx.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    # The next connections are those to which this applies.
    await edge.database._engine.dispose()
    request = session_service_pb2.RewindSessionRequest(name=session.name, run=run.name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.sessions.RewindSession(request, metadata=await client._metadata(), timeout=30)
    assert decode(caught.value).reason == "STORE_UNAVAILABLE"
    assert len(await conversation(edge, session)) == 2
