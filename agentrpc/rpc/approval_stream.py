"""WatchApprovals: the pending approvals that the caller may see, then each one that is asked or gets a final state."""

import asyncio
from typing import TYPE_CHECKING

from agentrpc import clock
from agentrpc.bus.live import frame_event
from agentrpc.domain.principal import Principal
from agentrpc.errors import StoreUnavailable
from agentrpc.names import parse_approval, parse_session_or_wildcard
from agentrpc.rpc.approval_feed import ApprovalNews
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.stream import Ended, Send, Stream
from agentrpc.services.access import visible_owner
from agentrpc.services.accounts import Accounts
from agentrpc.services.approvals import Approvals
from agentrpc.settings import Settings
from agentrpc.v1 import approval_pb2, approval_service_pb2

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["ApprovalStream"]

_RESPONSE_BYTES = 256 * 1024
_PAGE = 100
# Of one who reads too slowly no more is kept: the stream ends, and a new one begins with what is pending then.
_NEWS_BYTES = 16 * 1024 * 1024

_Response = approval_service_pb2.WatchApprovalsResponse


class ApprovalStream(Stream):
    """One watcher of approvals; what it was not told yet waits as bytes that all watchers share.

    Args:
        hub: With the feed of approvals.
        settings: Of the process.
        accounts: For the right to go on.
        principal: Who watches.
        send: Sends a response.
        approvals: For those that are pending at the beginning.
        parent: `sessions/{session}`, or `sessions/-` for all that the caller may see.
    """

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        accounts: Accounts,
        principal: Principal,
        send: Send,
        *,
        approvals: Approvals,
        parent: str,
    ) -> None:
        super().__init__(hub, settings, accounts, principal, send)
        self._approvals = approvals
        self._parent = parent
        self._session_id = parse_session_or_wildcard(parent)
        self._owner = visible_owner(principal)
        self._news: dict[UUID, ApprovalNews] = {}
        self._news_bytes = 0
        self._pending: set[UUID] = set()

    def offer(self, news: ApprovalNews) -> None:
        """Keep it, if the caller may see it and it is of the session that is watched."""
        if self._slow or self._owner not in (None, news.tenant) or self._session_id not in (None, news.session_id):
            return
        if (superseded := self._news.get(news.approval_id)) is not None:
            self._news_bytes -= len(superseded.body)
        self._news[news.approval_id] = news
        self._news_bytes += len(news.body)
        self._slow = self._news_bytes > _NEWS_BYTES
        self.wake()

    async def run(self) -> None:
        """Send everything until the stream ends."""
        # Before the pending ones are read: nothing can fall between the two.
        await self._hub.approvals.join(self)
        try:
            await self.write(_Response(opened=self.opened(0)).SerializeToString())
            await self._send_pending()
            while True:
                await self._next()
        except Ended as ended:
            await self.write(_Response(end=self.end(ended)).SerializeToString())
        finally:
            self._hub.approvals.leave(self)

    async def _send_pending(self) -> None:
        request = approval_service_pb2.ListApprovalsRequest(
            parent=self._parent, page_size=_PAGE, states=[approval_pb2.Approval.STATE_PENDING]
        )
        bodies: list[bytes] = []
        size = 0
        while True:
            page = await self._page(request)
            for approval in page.approvals:
                self._pending.add(parse_approval(approval.name)[1])
                bodies.append(frame_event(approval.SerializeToString()))
                size += len(bodies[-1])
                if size >= _RESPONSE_BYTES:
                    await self.write(b"".join(bodies))
                    bodies.clear()
                    size = 0
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        response = _Response()
        response.caught_up.SetInParent()
        await self.write(b"".join(bodies) + response.SerializeToString())

    async def _page(
        self, request: approval_service_pb2.ListApprovalsRequest
    ) -> approval_service_pb2.ListApprovalsResponse:
        while True:
            await self.check()
            try:
                return await self._approvals.list(self._principal, request)
            except StoreUnavailable:
                await asyncio.sleep(clock.jitter(0.5))

    async def _next(self) -> None:
        self._woken = False
        heartbeat_due = await self.check()
        bodies: list[bytes] = []
        size = 0
        while self._news and size < _RESPONSE_BYTES:
            news = self._news.pop(next(iter(self._news)))
            self._news_bytes -= len(news.body)
            if not news.pending:
                self._pending.discard(news.approval_id)
            elif news.approval_id in self._pending:
                continue
            else:
                self._pending.add(news.approval_id)
            bodies.append(news.body)
            size += len(news.body)
        if bodies:
            await self.write(b"".join(bodies))
        elif heartbeat_due:
            await self.write(_Response(heartbeat=self.heartbeat()).SerializeToString())
        elif not self._news:
            await self.rest()
