"""The worker process: the model gateway on loopback, the session host, and the doorbell that wakes it."""

import asyncio
from collections.abc import Callable
from uuid import UUID

from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.launcher import Isolation
from agentrpc.gateway.server import Grant, ModelGateway
from agentrpc.services.session_host.host import SessionHost
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.work.broker import answer_bell

__all__ = ["WorkerProcess"]


class _Tokens:
    """The gateway as the session host sees it."""

    def __init__(self, gateway: ModelGateway) -> None:
        self._gateway = gateway

    @property
    def url(self) -> str:
        return self._gateway.url

    def issue(self, session_id: UUID, may_call: Callable[[], bool]) -> str:
        return self._gateway.issue(Grant(session_id=session_id, may_call=may_call))

    def revoke(self, token: str) -> None:
        self._gateway.revoke(token)


class WorkerProcess:
    """Everything that a worker runs.

    Args:
        settings: The settings.
        database: The store.
        bus: Signals and the live tail.
        isolation: How process trees are kept apart.
    """

    def __init__(self, settings: Settings, database: Database, bus: Bus, isolation: Isolation) -> None:
        self._settings = settings
        key = settings.model_api_key
        self._gateway = ModelGateway(
            upstream_url=settings.model_url,
            api_key=key.get_secret_value() if key is not None else None,
            auth_style=settings.model_auth,
        )
        self._host = SessionHost(database, bus, settings, _Tokens(self._gateway), isolation)
        self._bell: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work."""
        await self._gateway.start()
        await self._host.start()
        self._bell = asyncio.create_task(
            answer_bell(self._settings.redis_url.get_secret_value(), self._host.ring), name="bell"
        )

    @property
    def fatal(self) -> "asyncio.Future[None]":
        """Done when the worker must end because its lease is lost."""
        return self._host.fatal

    async def stop(self) -> None:
        """Stop clean, within the drain grace and the time that process trees take to end."""
        if self._bell is not None:
            self._bell.cancel()
            await asyncio.gather(self._bell, return_exceptions=True)
        await self._host.stop(self._settings.drain_grace if not self.fatal.done() else 0.001)
        await self._gateway.stop()
