"""Sessions as a whole: pausing, ending, forking and going back.

Forking and going back copy files where they are asked to. That may take long, so that it is done before the transaction
that changes the session; if the session has moved on meanwhile, the copy is thrown away.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID, uuid4

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.forks import fork_transcript
from agentrpc.claude.workspaces import WorkspaceError, WorkspaceStore
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import StopKind
from agentrpc.errors import FailedPrecondition, InvalidArgument, StoreUnavailable
from agentrpc.names import parse_run, parse_session
from agentrpc.services.access import require_visible, require_write
from agentrpc.services.approvals import session_state_event
from agentrpc.services.archive_state import require_here
from agentrpc.services.idempotency import check_same, request_hash
from agentrpc.services.run_end import stop_run
from agentrpc.services.sessions import Sessions, busy, close, disown, load_session, not_active
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.validation import Faults, request_uuid
from agentrpc.services.views import head_state
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import (
    LogEvent,
    StoredEvent,
    append_control,
    copy_transcript,
    drop_transcript,
    read_events,
    read_transcript,
    transcript_place,
)
from agentrpc.store.requests import find_request, remember_request
from agentrpc.store.runs import RunQuery, find_runs
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import event_pb2, session_pb2, session_service_pb2

__all__ = ["SessionControl"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FORK = "ForkSession"
# So many at once: they take disk and threads from everything else that this process does.
_COPIES = 2
_REWOUND = event_pb2.Event.CONVERSATION_REWOUND_FIELD_NUMBER


class SessionControl:
    """The use cases."""

    def __init__(
        self, database: Database, bus: Bus, doorbell: Doorbell, sessions: Sessions, settings: Settings
    ) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._sessions = sessions
        self._workspaces = WorkspaceStore(
            settings.workspaces,
            checkpoint_limit=settings.checkpoint_limit,
            checkpoints_kept=settings.checkpoints_kept,
        )
        self._working: set[asyncio.Task[Any]] = set()
        self._copying = asyncio.Semaphore(_COPIES)

    # ---- Pausing ----

    async def pause(self, principal: Principal, name: str, reason: str) -> session_pb2.Session:
        """PauseSession."""
        _check_reason(reason)
        return await self._set_paused(principal, parse_session(name), reason, paused=True)

    async def resume(self, principal: Principal, name: str) -> session_pb2.Session:
        """ResumeSession."""
        return await self._set_paused(principal, parse_session(name), "", paused=False)

    async def _set_paused(
        self, principal: Principal, session_id: UUID, reason: str, *, paused: bool
    ) -> session_pb2.Session:
        require_write(principal, "sessions.pause")
        events: list[StoredEvent] = []
        async with self._database.transaction() as tx:
            head, session = await _lock(tx, principal, session_id)
            if head.closed is not None:
                raise not_active(head)
            if head.paused != paused:
                head.paused = paused
                session.pause_time = clock.utcnow() if paused else None
                changed = event_pb2.Event(
                    session_pause_changed=event_pb2.SessionPauseChanged(paused=paused, reason=reason)
                )
                changed.time.FromDatetime(clock.utcnow())
                await tx.flush()
                events = await append_control(tx, session_id, [LogEvent.of(changed, None)])
            worker = head.worker
        await publish(self._bus, session_id, events)
        if paused:
            await self._signal(session_id, worker)
        else:
            await self._doorbell.ring(session_id, worker)
        return await self._changed(principal, session_id)

    async def _signal(self, session_id: UUID, worker: UUID | None) -> None:
        if worker is not None:
            await self._bus.signal_worker(worker, session_id)

    # ---- Ending ----

    async def terminate(self, principal: Principal, name: str, reason: str) -> session_pb2.Session:
        """TerminateSession: what its worker still has to stop ends after this; the session's last state comes then."""
        session_id = parse_session(name)
        require_write(principal, "sessions.terminate")
        _check_reason(reason)
        events: list[StoredEvent] = []
        async with self._database.transaction() as tx:
            head, session = await _lock(tx, principal, session_id)
            before = head_state(head)
            queued = RunQuery(session_id=session_id, states=["QUEUED"], limit=head.queued)
            runs = [run for run, _ in await find_runs(tx, queued)]
            if head.active_run is not None:
                runs.append(await tx.get_one(Run, head.active_run))
            if head.closed is None:
                close(head, session)
            for run in runs:
                run.interrupt_reason = reason
                events += await stop_run(tx, head, run, StopKind.CANCEL)
                await tx.refresh(head)
            if not runs and (changed := session_state_event(before, head_state(head))):
                await tx.flush()
                events = await append_control(tx, session_id, changed)
            worker = head.worker
        await publish(self._bus, session_id, events)
        await self._signal(session_id, worker)
        return await self._changed(principal, session_id)

    async def _changed(self, principal: Principal, session_id: UUID) -> session_pb2.Session:
        """The session after a change that was committed."""
        try:
            return await self._sessions.get(principal, session_id)
        except StoreUnavailable:
            raise StoreUnavailable(unsure=True) from None

    # ---- Forking ----

    async def fork(self, principal: Principal, request: session_service_pb2.ForkSessionRequest) -> session_pb2.Session:
        """ForkSession. Goes on when the caller has gone: the same request_id gives what it has made."""
        parse_session(request.name)
        require_write(principal, "sessions.create")
        faults = Faults()
        faults.text("display_name", request.display_name, 200)
        faults.text("transcript_uuid", request.transcript_uuid, 100)
        faults.done()
        made = await self._to_the_end(self._fork(principal, request))
        return await self._changed(principal, made)

    async def _fork(self, principal: Principal, request: session_service_pb2.ForkSessionRequest) -> UUID:
        source_id, fork_id, claude_session_id = parse_session(request.name), clock.uuid7(), uuid4()
        request_id = request_uuid(request.request_id)
        async with self._database.transaction() as tx:
            if request_id is not None:
                known = await find_request(tx, principal=principal.user_id, method=_FORK, request_id=request_id)
                if known is not None:
                    check_same(request_hash(request), known[1], request.request_id)
                    return known[0]
            source, head = await load_session(tx, principal, source_id)
            if head.active_run is not None or head.queued:
                raise busy(head)
            await require_here(tx, source_id)
        lines = await self._forked_lines(source_id, claude_session_id, request.transcript_uuid)
        copies = request.copy_workspace and source.workspace_time is not None
        if copies:
            async with self._copying:
                await _with_files(self._workspaces.copy, source_id, fork_id)
        now = clock.utcnow()
        fork = Session(
            id=fork_id,
            owner=principal.user_id,
            display_name=request.display_name or source.display_name,
            description=source.description,
            labels=source.labels,
            options=source.options,
            claude_session_id=claude_session_id,
            agent_version=source.agent_version,
            create_time=now,
            update_time=now,
            workspace_time=now if copies else None,
            forked_from=source_id,
            agent_id=source.agent_id,
            agent_number=source.agent_number,
            imposed_rules=source.imposed_rules,
            rules_revision=0,
        )
        made: UUID | None = None
        try:
            made = await self._store_fork(principal, request, request_id, fork, lines, head.last_sequence)
        except StoreUnavailable as error:
            if not error.unsure or not await self._settled(source_id, lambda: self._exists(fork_id)):
                raise
            made = fork_id
        finally:
            if copies and made != fork_id:
                await asyncio.to_thread(self._workspaces.remove, fork_id)
        return made

    async def _store_fork(
        self,
        principal: Principal,
        request: session_service_pb2.ForkSessionRequest,
        request_id: UUID | None,
        fork: Session,
        lines: list[tuple[str, bytes]],
        last_sequence: int,
    ) -> UUID:
        async with self._database.transaction() as tx:
            if request_id is not None:
                body = request_hash(request)
                made, stored = await remember_request(
                    tx,
                    principal=principal.user_id,
                    method=_FORK,
                    request_id=request_id,
                    body_hash=body,
                    resource_id=fork.id,
                    now=fork.create_time,
                )
                check_same(body, stored, request.request_id)
                if made != fork.id:
                    return made
            source, _ = await _lock(tx, principal, parse_session(request.name))
            _check_same_place(source, last_sequence)
            tx.add(fork)
            await tx.flush()
            tx.add(SessionHead(session_id=fork.id, tenant=fork.owner, transcript_position=len(lines)))
            await tx.flush()
            await copy_transcript(tx, fork.id, lines)
        return fork.id

    async def _exists(self, session_id: UUID) -> bool:
        async with self._database.transaction() as tx:
            return await tx.get(Session, session_id) is not None

    async def _settled(self, session_id: UUID, look: Callable[[], Awaitable[_T]]) -> _T:
        """Look at what became of a transaction of this session whose COMMIT was not answered, when that is settled.

        With the lock of the head row, which that transaction had, nothing of it is under way any more. Takes as long as
        the database is away.
        """
        while True:
            try:
                async with self._database.transaction() as tx:
                    await lock_head(tx, session_id)
                    return await look()
            except StoreUnavailable:
                await asyncio.sleep(clock.jitter(0.5))

    async def _forked_lines(self, session_id: UUID, claude_session_id: UUID, until: str) -> list[tuple[str, bytes]]:
        stored = await read_transcript(self._database, session_id)
        try:
            lines = await asyncio.to_thread(fork_transcript, stored, claude_session_id, until=until)
        except ValueError:
            raise _state_invalid(
                "the conversation is in a format that this server does not know: upgrade it", "TRANSCRIPT_UNKNOWN"
            ) from None
        if lines is None:
            raise InvalidArgument.field(
                "transcript_uuid", "no message of the conversation has it: take it from an event of the session"
            )
        return lines

    # ---- Going back ----

    async def rewind(
        self, principal: Principal, request: session_service_pb2.RewindSessionRequest
    ) -> session_pb2.Session:
        """RewindSession. Goes on when the caller has gone; said again, it changes nothing."""
        session_id = parse_session(request.name)
        of_session, run_id = parse_run(request.run, field="run")
        if of_session != session_id:
            raise InvalidArgument.field("run", "belongs to another session")
        require_write(principal, "sessions.rewind")
        await self._to_the_end(self._rewind(principal, session_id, run_id, restore=request.restore_workspace))
        return await self._changed(principal, session_id)

    async def _rewind(self, principal: Principal, session_id: UUID, run_id: UUID, *, restore: bool) -> None:
        async with self._database.transaction() as tx:
            _, head = await load_session(tx, principal, session_id)
            run = await tx.get(Run, run_id)
            if run is None or run.session_id != session_id:
                require_visible(principal, None, "Run", f"sessions/{session_id}/runs/{run_id}")
            assert run is not None
            _check_open_and_idle(head)
        position = await transcript_place(self._database, session_id, str(run_id))
        if position is None and not await self._gone_back(session_id, run, head.last_sequence):
            raise _state_invalid("the conversation does not hold the run (any more): choose another one", run.state)
        if position is None and not restore:
            return
        fresh: Path | None = None
        if restore:
            fresh = await self._unpacked(session_id, run_id)
        try:
            await self._go_back(principal, session_id, run, position, fresh, head.last_sequence)
        finally:
            if fresh is not None:
                await asyncio.to_thread(self._workspaces.discard, fresh)

    async def _gone_back(self, session_id: UUID, run: Run, last_sequence: int) -> bool:
        """Whether the newest event says that the conversation went back to before this run."""
        newest = await read_events(self._database, session_id, after=last_sequence - 1, kinds=[_REWOUND], limit=1)
        back_to = [event_pb2.Event.FromString(event.data).conversation_rewound.to_sequence for event in newest]
        return back_to == [run.first_sequence - 1]

    async def _unpacked(self, session_id: UUID, run_id: UUID) -> Path:
        if not await asyncio.to_thread(self._workspaces.has_checkpoint, session_id, run_id):
            raise _state_invalid(
                "there is no checkpoint of the run: set options.checkpoints before the next one, or go back without "
                "the files",
                "CHECKPOINT_MISSING",
            )
        async with self._copying:
            return await _with_files(self._workspaces.unpack, session_id, run_id)

    async def _go_back(
        self,
        principal: Principal,
        session_id: UUID,
        run: Run,
        position: int | None,
        fresh: Path | None,
        last_sequence: int,
    ) -> None:
        exchanged: Path | None = None
        events: list[StoredEvent] = []
        worker: UUID | None = None

        async def take_back() -> None:
            if exchanged is not None:
                await _with_files(self._workspaces.exchange, session_id, exchanged)

        async def undone() -> bool:
            """Take the files back, unless it was done after all."""
            newest = await read_events(self._database, session_id, after=last_sequence, kinds=[_REWOUND], limit=1)
            if events and [event.data for event in newest] == [events[0].data]:
                return False
            await take_back()
            return True

        try:
            async with self._database.transaction() as tx:
                head, _ = await _lock(tx, principal, session_id)
                _check_open_and_idle(head)
                _check_same_place(head, last_sequence)
                if position is not None:
                    await drop_transcript(tx, session_id, position)
                disown(head)
                await tx.flush()
                event = _rewound(run, workspace_restored=fresh is not None)
                events += await append_control(tx, session_id, [event])
                worker = head.worker
                if fresh is not None:
                    # Under the lock: nobody begins a run between the files and the conversation.
                    await _with_files(self._workspaces.exchange, session_id, fresh)
                    exchanged = fresh
        except StoreUnavailable as error:
            nothing_done = not error.unsure and exchanged is None
            if nothing_done or await self._settled(session_id, undone):
                raise
        except BaseException:
            await take_back()
            raise
        await publish(self._bus, session_id, events)
        await self._doorbell.ring(session_id, worker)

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do work that the end of its RPC does not stop half-way."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            # Looked at, also when nobody waits for it any more.
            task.exception()


def _rewound(run: Run, *, workspace_restored: bool) -> LogEvent:
    """The conversation went back to before a run."""
    rewound = event_pb2.ConversationRewound(to_sequence=run.first_sequence - 1, workspace_restored=workspace_restored)
    event = event_pb2.Event(conversation_rewound=rewound)
    event.time.FromDatetime(clock.utcnow())
    return LogEvent.of(event, None)


async def _lock(tx: Transaction, principal: Principal, session_id: UUID) -> tuple[SessionHead, Session]:
    head = await lock_head(tx, session_id)
    session, _ = await load_session(tx, principal, session_id)
    assert head is not None
    return head, session


async def _with_files(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Let the store of workspaces do something, in a thread; what it cannot do is STATE_INVALID."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except WorkspaceError as error:
        raise _state_invalid(str(error), "WORKSPACE_UNAVAILABLE") from error


def _check_reason(reason: str) -> None:
    faults = Faults()
    faults.text("reason", reason, 1000)
    faults.done()


def _check_open_and_idle(head: SessionHead) -> None:
    if head.closed is not None:
        raise not_active(head)
    if head.active_run is not None:
        raise busy(head)


def _check_same_place(head: SessionHead, last_sequence: int) -> None:
    # Whatever ran since the copy was begun has left events.
    if head.active_run is not None or head.last_sequence != last_sequence:
        raise busy(head)


def _state_invalid(message: str, state: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="STATE_INVALID", metadata={"state": state})
