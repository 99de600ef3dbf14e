"""Rules that answers "for the session" have added: seen and taken back."""

from datetime import datetime
from uuid import UUID

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.principal import Principal
from agentrpc.errors import NotFound
from agentrpc.names import approval_name, grant_name, parse_grant, parse_session, session_name, user_name
from agentrpc.services.access import require_visible, require_write
from agentrpc.services.pages import Pager, fitting, page_size
from agentrpc.services.signals import publish
from agentrpc.settings import Settings
from agentrpc.store.approvals import find_grants, rules_changed
from agentrpc.store.database import Database
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LogEvent, append_control
from agentrpc.store.tables import SessionGrant, SessionHead
from agentrpc.v1 import event_pb2, session_pb2, session_service_pb2

__all__ = ["SessionGrants"]


class SessionGrants:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def list(
        self, principal: Principal, request: session_service_pb2.ListSessionGrantsRequest
    ) -> session_service_pb2.ListSessionGrantsResponse:
        """ListSessionGrants, oldest first."""
        session_id = parse_session(request.parent, field="parent")
        size = page_size(request.page_size)
        page = self._pager.read(request, principal.user_id)
        after = None if page is None else (datetime.fromisoformat(page[0]), UUID(page[1]))
        async with self._database.transaction() as tx:
            head = await tx.get(SessionHead, session_id)
            require_visible(principal, head.tenant if head else None, "Session", request.parent)
            rows = await find_grants(tx, session_id, after, size + 1)
        grants = fitting([_message(row) for row in rows[:size]])
        response = session_service_pb2.ListSessionGrantsResponse(grants=grants)
        if len(rows) > len(grants):
            last = rows[len(grants) - 1]
            key = [last.create_time.isoformat(), str(last.id)]
            response.next_page_token = self._pager.issue(request, principal.user_id, key)
        return response

    async def revoke(self, principal: Principal, name: str) -> None:
        """RevokeSessionGrant."""
        session_id, grant_id = parse_grant(name)
        require_write(principal, "sessions.update")
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            require_visible(principal, head.tenant if head else None, "Session", session_name(session_id))
            row = next((row for row in await find_grants(tx, session_id, None, None) if row.id == grant_id), None)
            if row is None:
                raise NotFound("SessionGrant", name)
            revoked = event_pb2.SessionGrantRevoked(grant=_message(row), revoker=user_name(principal.user_id))
            event = event_pb2.Event(session_grant_revoked=revoked)
            event.time.FromDatetime(clock.utcnow())
            await tx.delete(row)
            await rules_changed(tx, session_id)
            await tx.flush()
            events = await append_control(tx, session_id, [LogEvent.of(event, None)])
        await publish(self._bus, session_id, events)


def _message(row: SessionGrant) -> session_pb2.SessionGrant:
    """`agentrpc.v1.SessionGrant`."""
    message = session_pb2.SessionGrant(
        name=grant_name(row.session_id, row.id),
        rule=row.rule,
        approval=approval_name(row.session_id, row.approval_id),
        creator=user_name(row.creator) if row.creator is not None else "",
    )
    message.create_time.FromDatetime(row.create_time)
    return message
