"""The approvals of all sessions as one edge process sees them: one query a second for all its watchers together.

Every state of an approval is offered once to each watcher. What the live tail tells of an approval only hastens the
query: without Redis a watcher lags by a second.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from agentrpc.bus.live import frame_event
from agentrpc.domain.states import ApprovalState
from agentrpc.ending import end_tasks
from agentrpc.errors import StoreUnavailable
from agentrpc.services.views import approval_message
from agentrpc.store.approvals import approvals_by_id, changed_approvals
from agentrpc.store.database import Database, database_time

__all__ = ["ApprovalFeed", "ApprovalNews", "ApprovalWatcher"]

log = structlog.get_logger()

_TICK = 1.0
# However many live events there are, the store is asked at most so often.
_PAUSE = 0.1
_PATIENCE = 2.0
# Covers transactions that commit late.
_OVERLAP = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class ApprovalNews:
    """An approval that was asked or has got a final state.

    Attributes:
        approval_id: Which.
        session_id: Whose.
        tenant: The owner of the session.
        pending: Whether it waits for an answer.
        body: The approval as field 1 of a response, shared by all who get it.
    """

    approval_id: UUID
    session_id: UUID
    tenant: UUID
    pending: bool
    body: bytes


class ApprovalWatcher(Protocol):
    """Who is told."""

    def offer(self, news: ApprovalNews) -> None:
        """Take it, if it is for this one; must neither block nor raise."""
        ...


class ApprovalFeed:
    """What has changed, asked for while anybody watches.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: set[ApprovalWatcher] = set()
        self._seen: set[tuple[UUID, str]] = set()
        self._asked_at: datetime | None = None
        self._asking = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def join(self, watcher: ApprovalWatcher) -> None:
        """Offer a watcher all that is committed from now on; of what was before nothing but what commits late.

        Raises:
            StoreUnavailable: Not known what was before.
        """
        async with self._asking:
            await self._ask()
            self._watchers.add(watcher)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="approvals")

    def leave(self, watcher: ApprovalWatcher) -> None:
        """The reverse."""
        self._watchers.discard(watcher)

    def hasten(self) -> None:
        """Something was asked or answered: look now."""
        self._hurry.set()

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            await end_tasks([self._task])

    async def _run(self) -> None:
        while self._watchers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._hurry.wait()
            self._hurry.clear()
            try:
                async with self._asking:
                    await self._ask()
            except StoreUnavailable:
                # The hub's tick tells the streams.
                pass
            except Exception:
                log.exception("approval_feed_failed")
            await asyncio.sleep(_PAUSE)
        self._task = None
        self._asked_at = None

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE), self._database.transaction() as tx:
                now = await database_time(tx)
                changed = await changed_approvals(tx, (self._asked_at or now) - _OVERLAP)
                new = [approval_id for approval_id, state in changed - self._seen]
                rows = await approvals_by_id(tx, new) if new and self._watchers else []
        except TimeoutError:
            raise StoreUnavailable from None
        self._asked_at = now
        # A row may have moved on between the two queries.
        self._seen = changed | {(row.id, row.state) for row in rows}
        for row in rows:
            body = frame_event(approval_message(row).SerializeToString())
            news = ApprovalNews(row.id, row.session_id, row.tenant, row.state == ApprovalState.PENDING, body)
            for watcher in self._watchers:
                watcher.offer(news)
