"""Sessions: what callers set, list and close. Their runs are in `runs.py`, their process on a worker."""

from uuid import UUID, uuid4

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.isolation import Level, needed_level
from agentrpc.domain.mcp_config import keep_url
from agentrpc.domain.principal import Principal
from agentrpc.domain.rule_checks import rule_warnings
from agentrpc.errors import FailedPrecondition, InvalidArgument, SequenceAhead
from agentrpc.names import parse_agent_or_version, parse_run, parse_session, parse_user, run_name, session_name
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.agent_options import ResolvedOptions, resolve_options
from agentrpc.services.approvals import session_state_event
from agentrpc.services.archive_state import require_readable
from agentrpc.services.fields import check_etag, copy_path, settable_paths
from agentrpc.services.idempotency import check_same, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_limits import check_limits
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.tool_options import check_tools
from agentrpc.services.validation import Faults, check_enums, check_session, event_kinds, request_uuid
from agentrpc.services.views import head_state, session_message
from agentrpc.settings import Settings
from agentrpc.store.agents import count_use
from agentrpc.store.approvals import pending_of_sessions
from agentrpc.store.archives import archives_of
from agentrpc.store.database import Database, Lane, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LOOKED_AT, StoredEvent, append_control, read_events
from agentrpc.store.requests import remember_request
from agentrpc.store.sessions import SESSION_ORDER, SessionQuery, find_sessions
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import event_pb2, session_pb2, session_service_pb2

__all__ = [
    "Sessions",
    "add_session",
    "busy",
    "close",
    "disown",
    "keep_secrets",
    "load_session",
    "new_session",
    "not_active",
]

_PAGE_BYTES = 1024 * 1024
_SETTABLE = ("display_name", "description", "labels", "options")


class Sessions:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._settings = settings
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._box = SecretBox(settings.secret_keys)

    async def create(
        self, principal: Principal, request: session_service_pb2.CreateSessionRequest
    ) -> session_pb2.Session:
        """CreateSession."""
        require_write(principal, "sessions.create")
        check_session(request.session)
        request_id = request_uuid(request.request_id)
        given, session_id = request.session, clock.uuid7()
        async with self._database.transaction() as tx:
            if request_id is not None and not request.validate_only:
                body = request_hash(request)
                resource, stored = await remember_request(
                    tx,
                    principal=principal.user_id,
                    method="CreateSession",
                    request_id=request_id,
                    body_hash=body,
                    resource_id=session_id,
                    now=clock.utcnow(),
                )
                check_same(body, stored, request.request_id)
                if resource != session_id:
                    return await self._message(tx, *(await load_session(tx, principal, resource)))
            resolved = await resolve_options(tx, principal, given.agent, given.options)
            check_limits(resolved.options, self._settings)
            await check_tools(tx, principal, resolved.options, self._settings)
            self._box.seal_options(resolved.options)
            session, head = new_session(session_id, principal.user_id, given, resolved)
            if not request.validate_only:
                await add_session(tx, session, head)
        return _warned(session_message(session, head))

    async def get(self, principal: Principal, session_id: UUID) -> session_pb2.Session:
        """GetSession."""
        async with self._database.transaction() as tx:
            return _warned(await self._message(tx, *(await load_session(tx, principal, session_id))))

    async def list(
        self, principal: Principal, request: session_service_pb2.ListSessionsRequest
    ) -> session_service_pb2.ListSessionsResponse:
        """ListSessions."""
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        faults.filter_labels("labels", request.labels.items())
        created_from = faults.time(request, "create_time_from")
        created_before = faults.time(request, "create_time_before")
        faults.done()
        order = parse_order(request.order_by, SESSION_ORDER)
        after = self._pager.read(request, principal.user_id)
        mine = visible_owner(principal)
        # Another's sessions look as if there were none: the owner has to be both.
        owners = [parse_user(request.owner, field="owner")] if request.owner else []
        query = SessionQuery(
            owners=[*owners, *([mine] if mine is not None else [])],
            states=frozenset(session_pb2.Session.State.Name(state).removeprefix("STATE_") for state in request.states),
            labels=request.labels,
            created_from=created_from,
            created_before=created_before,
            show_deleted=request.show_deleted,
            agent=parse_agent_or_version(request.agent) if request.agent else None,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_sessions(tx, query)
            pending = await pending_of_sessions(tx, [session.id for session, head in rows if head.pending_approvals])
            archives = await archives_of(tx, [session.id for session, head in rows if head.closed is not None])
        sessions = fitting(
            [
                session_message(session, head, pending.get(session.id, ()), archives.get(session.id))
                for session, head in rows[:size]
            ]
        )
        response = session_service_pb2.ListSessionsResponse(sessions=sessions)
        if len(rows) > len(sessions):
            last = rows[len(sessions) - 1][0]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(
        self, principal: Principal, request: session_service_pb2.UpdateSessionRequest
    ) -> session_pb2.Session:
        """UpdateSession."""
        session_id = parse_session(request.session.name, field="session.name")
        require_write(principal, "sessions.update")
        paths = settable_paths(request.update_mask, request.session, _SETTABLE)
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            session, _ = await load_session(tx, principal, session_id)
            assert head is not None
            check_etag(request.session.etag, session.revision, "session")
            _require_active(head)
            wanted = session_pb2.Session(
                display_name=session.display_name,
                description=session.description,
                labels=session.labels,
                options=session_pb2.SessionOptions.FromString(session.options),
            )
            self._box.open_options(wanted.options)
            stored = session_pb2.SessionOptions()
            stored.CopyFrom(wanted.options)
            for path in paths:
                copy_path(request.session, wanted, path)
            keep_secrets(stored, wanted.options)
            check_session(wanted)
            options = session.options
            if wanted.options != stored:
                check_limits(wanted.options, self._settings)
                await check_tools(tx, principal, wanted.options, self._settings)
                self._box.seal_options(wanted.options)
                options = wanted.options.SerializeToString(deterministic=True)
            before = (session.display_name, session.description, session.labels, session.options)
            after = (wanted.display_name, wanted.description, dict(wanted.labels), options)
            if before != after:
                if options != session.options:
                    session.rules_revision += 1
                    # Also of runs that wait. A worker that has less gives the session back.
                    head.needed_level = needed_level(wanted.options, Level.named(self._settings.minimum_isolation))
                session.display_name, session.description, session.labels, session.options = after
                session.revision += 1
                session.update_time = clock.utcnow()
            return _warned(await self._message(tx, session, head))

    async def archive(self, principal: Principal, name: str, etag: str) -> session_pb2.Session:
        """ArchiveSession."""
        return await self._close(principal, parse_session(name), etag, delete=False)

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteSession."""
        await self._close(principal, parse_session(name), etag, delete=True)

    async def _close(self, principal: Principal, session_id: UUID, etag: str, *, delete: bool) -> session_pb2.Session:
        require_write(principal, "sessions.delete" if delete else "sessions.archive")
        events: list[StoredEvent] = []
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            session, _ = await load_session(tx, principal, session_id)
            assert head is not None
            check_etag(etag, session.revision, "session")
            if head.closed is None:
                if head.active_run is not None or head.queued:
                    raise busy(head)
                before = head_state(head)
                close(head, session)
                await tx.flush()
                events = await append_control(tx, session_id, session_state_event(before, head_state(head)))
            if delete:
                session.delete_time = clock.utcnow()
            worker = head.worker
            await tx.flush()
            await tx.refresh(head)
            message = await self._message(tx, session, head)
        await publish(self._bus, session_id, events)
        if worker is not None:
            await self._bus.signal_worker(worker, session_id)
        return message

    async def list_events(
        self, principal: Principal, request: session_service_pb2.ListSessionEventsRequest
    ) -> session_service_pb2.ListSessionEventsResponse:
        """ListSessionEvents."""
        session_id = parse_session(request.parent, field="parent")
        size = page_size(request.page_size, default=100, limit=1000)
        kinds = event_kinds(request.event_types)
        run_id = parse_run(request.run, field="run")[1] if request.run else None
        if request.order_by.strip() not in {"", "sequence", "sequence desc", "sequence asc"}:
            raise InvalidArgument.field("order_by", "must be `sequence` or `sequence desc`")
        descending = request.order_by.strip().endswith("desc")
        if request.after_sequence < 0:
            raise InvalidArgument.field("after_sequence", "must not be negative")
        session = await self.get(principal, session_id)
        require_readable(session)
        if request.after_sequence > session.last_sequence:
            raise SequenceAhead(request.after_sequence, session.last_sequence)
        page = self._pager.read(request, principal.user_id)
        # `before` is beyond the newest event that may be on the page.
        after, before = request.after_sequence, session.last_sequence + 1
        if page is not None:
            after, before = (after, page[0]) if descending else (page[0], before)
        if run_id is not None:
            first, beyond = await self._range_of_run(session_id, run_id)
            after, before = max(after, first - 1), min(before, beyond)
        low, high = after, before
        if kinds is not None or run_id is not None:
            low, high = (
                (max(after, before - LOOKED_AT), before) if descending else (after, min(before, after + LOOKED_AT))
            )
        rows = await read_events(
            self._database,
            session_id,
            after=low,
            up_to=high if descending else high - 1,
            kinds=None if kinds is None else sorted(kinds),
            run_id=run_id,
            limit=size + 1,
            descending=descending,
            lane=Lane.LIST,
        )
        if len(rows) <= size and session.state == session_pb2.Session.STATE_ARCHIVED:
            # Behind the last page nothing may be missing because it has gone to archive storage meanwhile.
            require_readable(await self.get(principal, session_id))
        response = session_service_pb2.ListSessionEventsResponse()
        size_left = _PAGE_BYTES
        for row in rows[:size]:
            if response.events and len(row.data) > size_left:
                break
            response.events.append(event_pb2.Event.FromString(row.data))
            size_left -= len(row.data)
        following = None
        if len(rows) > len(response.events):
            following = response.events[-1].sequence
        elif (low, high) != (after, before):
            # Not all of it was looked at.
            following = low + 1 if descending else high - 1
        if following is not None:
            response.next_page_token = self._pager.issue(request, principal.user_id, [following])
        return response

    async def _range_of_run(self, session_id: UUID, run_id: UUID) -> tuple[int, int]:
        """The number of a run's first event, and one beyond that of its last; an empty range: there is no such run."""
        async with self._database.transaction() as tx:
            run = await tx.get(Run, run_id)
        if run is None or run.session_id != session_id:
            return 1, 1
        return run.first_sequence, run.last_sequence + 1 if run.last_sequence else 2**62

    async def _message(self, tx: Transaction, session: Session, head: SessionHead) -> session_pb2.Session:
        pending = await pending_of_sessions(tx, [session.id]) if head.pending_approvals else {}
        archives = await archives_of(tx, [session.id]) if head.closed is not None else {}
        return session_message(session, head, pending.get(session.id, ()), archives.get(session.id))


def new_session(
    session_id: UUID, owner: UUID, given: session_pb2.Session, resolved: ResolvedOptions
) -> tuple[Session, SessionHead]:
    """A session and its head as `add_session` stores them: of what is given, all but agent and options, checked."""
    now = clock.utcnow()
    session = Session(
        id=session_id,
        owner=owner,
        display_name=given.display_name,
        description=given.description,
        labels=dict(given.labels),
        options=resolved.options.SerializeToString(deterministic=True),
        revision=1,
        claude_session_id=uuid4(),
        usage=b"",
        create_time=now,
        update_time=now,
        agent_id=resolved.agent_id,
        agent_number=resolved.agent_number,
        imposed_rules=resolved.imposed,
        rules_revision=0,
    )
    head = SessionHead(
        session_id=session_id,
        tenant=owner,
        last_sequence=0,
        queued=0,
        pending_approvals=0,
        run_count=0,
        tool_call_count=0,
    )
    return session, head


def _warned(message: session_pb2.Session) -> session_pb2.Session:
    """With what is odd about its rules."""
    denying = [*message.imposed_rules, *message.options.disallowed_tools]
    message.rule_warnings.extend(rule_warnings(message.options.allowed_tools, denying))
    return message


async def add_session(tx: Transaction, session: Session, head: SessionHead) -> None:
    """Store a new session, and count that its agent was used."""
    tx.add(session)
    await tx.flush()
    tx.add(head)
    if session.agent_id is not None:
        await count_use(tx, session.agent_id)


async def load_session(tx: Transaction, principal: Principal, session_id: UUID) -> tuple[Session, SessionHead]:
    """A session that the caller may see, with its head. Raises NotFound."""
    session = await tx.get(Session, session_id)
    owner = session.owner if session is not None and session.delete_time is None else None
    require_visible(principal, owner, "Session", session_name(session_id))
    assert session is not None
    return session, await tx.get_one(SessionHead, session_id)


def close(head: SessionHead, session: Session) -> None:
    """Close a session that nobody has closed before. It is ARCHIVED as soon as no run is under way or waits."""
    head.closed = "ARCHIVED"
    session.archive_time = clock.utcnow()
    if head.active_run is None:
        disown(head)


def disown(head: SessionHead) -> None:
    """Take an idle session from the process that a worker keeps warm for it: from now on that can append nothing.

    The worker stays the owner until it has seen this and ended the process; until then nobody else begins a run.
    """
    if head.worker is not None:
        head.epoch += 1


def busy(head: SessionHead) -> FailedPrecondition:
    """SESSION_BUSY."""
    active = run_name(head.session_id, head.active_run) if head.active_run else ""
    return FailedPrecondition(
        "a run is under way or waits: wait for its end, or interrupt it",
        reason="SESSION_BUSY",
        metadata={"active_run": active},
    )


def _require_active(head: SessionHead) -> None:
    if head.closed is not None:
        raise not_active(head)


def not_active(head: SessionHead) -> FailedPrecondition:
    """SESSION_NOT_ACTIVE."""
    return FailedPrecondition(
        f"the session is {str(head.closed).lower()}: create a new one",
        reason="SESSION_NOT_ACTIVE",
        metadata={"state": f"STATE_{head.closed}"},
    )


def keep_secrets(stored: session_pb2.SessionOptions, wanted: session_pb2.SessionOptions) -> None:
    """A secret that comes back as it was read, empty or in a URL as REDACTED, keeps its stored value."""
    known = {server.name: server for server in stored.mcp_servers}
    for server in wanted.mcp_servers:
        transport = server.WhichOneof("transport")
        before = known.get(server.name)
        if (
            before is None
            or transport in {None, "registered", "builtin"}
            or before.WhichOneof("transport") != transport
        ):
            continue
        keep_url(before, server)
        field = "env" if transport == "stdio" else "headers"
        old, new = getattr(getattr(before, transport), field), getattr(getattr(server, transport), field)
        for key, value in list(new.items()):
            if not value and key in old:
                new[key] = old[key]
