"""The worker process: the model gateway, the session host, jobs, the doorbell that wakes them, a reaper."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.launcher import Isolation
from agentrpc.ending import end_tasks
from agentrpc.services.network import EgressMaker
from agentrpc.services.network import Gateway as SessionGateway
from agentrpc.services.reaper import Reaper
from agentrpc.services.session_host.host import SessionHost
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.work.broker import answer_bell
from agentrpc.work.jobs import Jobs
from agentrpc.work.parent import Report

__all__ = ["Gateway", "WorkerProcess"]


class Gateway(SessionGateway, Protocol):
    """The model gateway, as far as the process has to start and stop it."""

    async def start(self) -> None:
        """Be ready."""
        ...

    async def stop(self) -> None:
        """End it, with all calls under way."""
        ...


class WorkerProcess:
    """Everything that a worker runs.

    Args:
        settings: The settings.
        database: The store.
        bus: Signals and the live tail.
        isolation: How process trees are kept apart.
        gateway: The agents' way to a model.
        egress: Makes their way to everything else.
        ring_any: Tells some worker that there may be work.
        report: Tells the worker's parent who it is and when to kill it.
        jobs: What it does besides.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        bus: Bus,
        isolation: Isolation,
        gateway: Gateway,
        egress: EgressMaker,
        ring_any: Callable[[], Awaitable[None]],
        report: Report,
        jobs: Jobs,
    ) -> None:
        self._settings = settings
        self._gateway = gateway
        self._host = SessionHost(database, bus, settings, gateway, egress, isolation, report)
        self._reaper = Reaper(database, ring_any, settings)
        self._jobs = jobs
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to work."""
        await self._gateway.start()
        await self._host.start()
        bell = answer_bell(self._settings.redis_url.get_secret_value(), self._host.ring, self._jobs.ring)
        self._tasks = [
            asyncio.create_task(bell, name="bell"),
            asyncio.create_task(self._reaper.run(), name="reaper"),
        ]
        self._jobs.start()

    @property
    def fatal(self) -> "asyncio.Future[None]":
        """Done when the worker must end because its lease is lost."""
        return self._host.fatal

    async def stop(self) -> None:
        """Stop clean, within the drain grace and the time that process trees take to end."""
        await asyncio.gather(end_tasks(self._tasks), self._jobs.stop())
        await self._host.stop(self._settings.drain_grace if not self.fatal.done() else 0.001)
        await self._gateway.stop()
