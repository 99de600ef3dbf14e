"""Runs: accepting them, reading them, stopping them. A worker carries them out.

A QUEUED row is its own outbox: once it is committed it will be run, whatever becomes of this process or of Redis.
"""

from uuid import UUID

from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.isolation import Level
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import TERMINAL_RUN_STATES, StopKind
from agentrpc.errors import FailedPrecondition, InvalidArgument
from agentrpc.names import parse_run, parse_session, parse_session_or_wildcard, run_name, session_name
from agentrpc.services.acceptance import accept, check_acceptable, new_run
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, page_size
from agentrpc.services.run_end import stop_run
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.validation import Faults, check_enums, check_run, request_uuid
from agentrpc.services.views import run_message
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.progress import progress_of_runs
from agentrpc.store.runs import RunQuery, find_runs
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import run_pb2, run_service_pb2

__all__ = ["Runs", "describe_run", "load_run"]


class Runs:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._settings = settings
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def create(self, principal: Principal, request: run_service_pb2.CreateRunRequest) -> run_pb2.Run:
        """CreateRun: a known request_id gives the run that it made."""
        run, _ = await self.stream(principal, request)
        return run

    async def stream(
        self, principal: Principal, request: run_service_pb2.CreateRunRequest | run_service_pb2.StreamRunRequest
    ) -> tuple[run_pb2.Run, int]:
        """The first half of StreamRun: as `create`, and a place in the log before everything of the run."""
        session_id = parse_session(request.parent, field="parent")
        require_write(principal, "runs.create")
        check_run(request.run)
        request_id = request_uuid(request.request_id)
        only_check = isinstance(request, run_service_pb2.CreateRunRequest) and request.validate_only
        # CreateRun and StreamRun share their ids: the hash is of what they have in common.
        body = request_hash(run_service_pb2.CreateRunRequest(parent=request.parent, run=request.run))
        key = RequestKey(principal, "CreateRun", request_id, body)
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            session = await tx.get(Session, session_id) if head is not None else None
            owner = session.owner if session is not None and session.delete_time is None else None
            require_visible(principal, owner, "Session", session_name(session_id))
            assert head is not None
            run = await new_run(tx, principal, head, request.run)
            if only_check:
                await check_acceptable(tx, head, run, self._settings.max_queued_runs)
                return run_message(run), 0
            if known := await known_request(tx, key, run.id):
                run = await tx.get_one(Run, known)
                begin = run.first_sequence - 1 if run.first_sequence else head.last_sequence
                return await describe_run(tx, run, head), begin
            if isinstance(request, run_service_pb2.StreamRunRequest) and request.after_sequence:
                raise FailedPrecondition(
                    "no run of this request_id is known (any more: it is for 24 hours) with which to go on after "
                    "after_sequence: watch the run with WatchSession, or leave after_sequence out to begin another",
                    reason="STATE_INVALID",
                    metadata={"state": "REQUEST_UNKNOWN"},
                )
            minimum = Level.named(self._settings.minimum_isolation)
            events = await accept(tx, head, run, self._settings.max_queued_runs, minimum)
            message = await describe_run(tx, run, head, changed=True)
            begin, worker = head.last_sequence, head.worker
        await self._doorbell.ring(session_id, worker)
        await publish(self._bus, session_id, events)
        return message, begin

    async def get(self, principal: Principal, name: str) -> run_pb2.Run:
        """GetRun."""
        session_id, run_id = parse_run(name)
        async with self._database.transaction() as tx:
            run, head = await load_run(tx, principal, session_id, run_id)
            return await describe_run(tx, run, head)

    async def list(
        self, principal: Principal, request: run_service_pb2.ListRunsRequest
    ) -> run_service_pb2.ListRunsResponse:
        """ListRuns."""
        session_id = parse_session_or_wildcard(request.parent)
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        faults.filter_labels("labels", request.labels.items())
        created_from = faults.time(request, "create_time_from")
        created_before = faults.time(request, "create_time_before")
        faults.done()
        if request.order_by.strip() not in {"", "create_time", "create_time asc", "create_time desc"}:
            raise InvalidArgument.field("order_by", "must be `create_time` or `create_time desc`")
        descending = request.order_by.strip() in {"", "create_time desc"}
        after = self._pager.read(request, principal.user_id)
        query = RunQuery(
            session_id=session_id,
            owner=visible_owner(principal),
            states=[run_pb2.Run.State.Name(state).removeprefix("STATE_") for state in request.states],
            labels=request.labels,
            created_from=created_from,
            created_before=created_before,
            descending=descending,
            after=UUID(after[0]) if after is not None else None,
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            if session_id is not None:
                session = await tx.get(Session, session_id)
                owner = session.owner if session is not None and session.delete_time is None else None
                require_visible(principal, owner, "Session", request.parent)
            rows = await find_runs(tx, query)
            progress = await progress_of_runs(tx, rows[:size])
        runs = fitting(
            [run_message(run, head=head, progress=progress.get(run.id), in_list=True) for run, head in rows[:size]]
        )
        response = run_service_pb2.ListRunsResponse(runs=runs)
        if len(rows) > len(runs):
            last = rows[len(runs) - 1][0].id
            response.next_page_token = self._pager.issue(request, principal.user_id, [str(last)])
        return response

    async def interrupt(self, principal: Principal, name: str, reason: str) -> run_pb2.Run:
        """InterruptRun."""
        return await self._stop(principal, name, reason, StopKind.INTERRUPT)

    async def cancel(self, principal: Principal, name: str, reason: str) -> run_pb2.Run:
        """CancelRun."""
        return await self._stop(principal, name, reason, StopKind.CANCEL)

    async def _stop(self, principal: Principal, name: str, reason: str, kind: StopKind) -> run_pb2.Run:
        session_id, run_id = parse_run(name)
        require_write(principal, f"runs.{kind.lower()}")
        faults = Faults()
        faults.text("reason", reason, 1000)
        faults.done()
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            run, _ = await load_run(tx, principal, session_id, run_id)
            assert head is not None
            if run.state in TERMINAL_RUN_STATES:
                return await describe_run(tx, run, head)
            run.interrupt_reason = reason
            events = await stop_run(tx, head, run, kind)
            message = await describe_run(tx, run, head, changed=True)
            worker = head.worker
        await self._doorbell.ring(session_id, worker)
        await publish(self._bus, session_id, events)
        return message


async def load_run(tx: Transaction, principal: Principal, session_id: UUID, run_id: UUID) -> tuple[Run, SessionHead]:
    """A run that the caller may see, and the head of its session. Raises NotFound."""
    run = await tx.get(Run, run_id)
    session = await tx.get(Session, session_id)
    known = run is not None and run.session_id == session_id and session is not None and session.delete_time is None
    owner = session.owner if known and session is not None else None
    require_visible(principal, owner, "Run", run_name(session_id, run_id))
    assert run is not None
    return run, await tx.get_one(SessionHead, session_id)


async def describe_run(tx: Transaction, run: Run, head: SessionHead, *, changed: bool = False) -> run_pb2.Run:
    """`agentrpc.v1.Run` as it is now. `changed`: this transaction has changed the run or appended events."""
    if changed:
        await tx.flush()
        await tx.refresh(head)
    progress = await progress_of_runs(tx, [(run, head)])
    return run_message(run, head=head, progress=progress.get(run.id))
