"""Checks registered MCP servers on a worker: when they are new or changed, when somebody asks, and now and then."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.agent_users import AgentUsers
from agentrpc.claude.launcher import Isolation, choose_isolation
from agentrpc.claude.listeners import Listeners
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.domain.mcp_config import secret_values
from agentrpc.errors import AgentRpcError
from agentrpc.services.addresses import resolver
from agentrpc.services.mcp_servers import full_config
from agentrpc.services.network import NO_FENCE, NOTHING_ASKED, EgressMaker, NetworkRules
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_host.bounds import Bounded, Breach
from agentrpc.services.session_host.usage import measure
from agentrpc.services.session_limits import limits_of
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.mcp_servers import McpServerRow, claim_check, give_back_check, lock_mcp_server
from agentrpc.v1 import mcp_server_pb2, mcp_server_service_pb2, session_pb2

if TYPE_CHECKING:
    from agentrpc.claude.mcp_client import Found, Ground

__all__ = ["McpChecks"]

log = structlog.get_logger()

_AT_ONCE = 4
_LOOK = 0.5
_MAX_ERROR = 500
_MARGIN = timedelta(seconds=30)
# A worker that was killed leaves the folder of its check: removed by the next that looks.
_OLD = 3600.0
_REMOVE_SECONDS = 30.0
# Between two looks at a program, and how many of them there are between two looks at its files.
_WATCH = 0.1
_FILES_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a look."""

    start: datetime
    latency: float
    found: "Found | None" = None
    error: str = ""


class McpChecks:
    """The job. Any number may run.

    Args:
        database: The store.
        settings: The settings.
        egress: Makes what leads out of where programs are.
    """

    def __init__(self, database: Database, settings: Settings, egress: EgressMaker) -> None:
        self._database = database
        self._settings = settings
        self._box = SecretBox(settings.secret_keys)
        self._users: AgentUsers | None = None
        self._preparing = asyncio.Lock()
        self._folder = settings.data_dir.resolve() / "mcp-checks"
        self._egress = egress
        self._network = NetworkRules(settings)
        self._lease = timedelta(seconds=settings.mcp_check_timeout) + _MARGIN

    async def drain(self) -> int:
        """Check what is due, a few at a time; how many that were."""
        count = 0
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(under_way) < _AT_ONCE and (claimed := await claim_check(self._database, self._lease)):
                    under_way.add(asyncio.create_task(self._check(*claimed), name=f"mcp-check-{claimed[0]}"))
                    count += 1
                if not under_way:
                    return count
                _, under_way = await asyncio.wait(under_way, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _check(self, server_id: UUID, lease: UUID) -> None:
        try:
            async with self._database.transaction() as tx:
                row = await tx.get(McpServerRow, server_id)
            if row is not None and row.lease == lease:
                await self._record(server_id, lease, await self._look(row))
        except asyncio.CancelledError:
            await give_back_check(self._database, lease)
            raise
        except AgentRpcError as error:
            # The lease passes.
            log.warning("mcp_check_not_recorded", server=str(server_id), reason=error.reason)
        except Exception:
            log.exception("mcp_check_failed", server=str(server_id))

    async def _look(self, row: McpServerRow) -> _Outcome:
        # Half a second to load, and most processes never look.
        from agentrpc.claude.mcp_client import McpConnectError  # noqa: PLC0415

        start, began = clock.utcnow(), clock.monotonic()
        secrets: list[str] = []
        try:
            config = full_config(self._box, row)
            secrets = secret_values(config)
            ground = await self._ground()
            if config.HasField("stdio") and self._network.needs_fence(NOTHING_ASKED) and not ground.isolation.fenced:
                raise McpConnectError(NO_FENCE)
            found = await _bounded_look(config, ground, timeout=self._settings.mcp_check_timeout)
            return _Outcome(start, clock.monotonic() - began, found)
        except McpConnectError as error:
            message = str(error)
        except AgentRpcError as error:
            message = error.message
        for secret in secrets:
            message = message.replace(secret, "***")
        return _Outcome(start, clock.monotonic() - began, error=message[:_MAX_ERROR].replace("\0", "�"))

    async def _ground(self) -> "Ground":
        from agentrpc.claude.mcp_client import Ground  # noqa: PLC0415

        uids, minimum = self._settings.agent_uids, self._settings.minimum_isolation
        isolation, _ = await asyncio.to_thread(
            partial(choose_isolation, self._settings.isolation, uids=uids, minimum=minimum)
        )
        async with self._preparing:
            if isolation is Isolation.USER and self._users is None:
                users = AgentUsers(uids, self._settings.data_dir, self._settings.workspaces)
                await asyncio.to_thread(users.prepare, Path("/bin/sh"))
                self._users = users
        await asyncio.to_thread(_clean_up, self._folder)
        resolve = resolver(allow_private=self._settings.allow_private_addresses)
        return Ground(
            self._folder / str(clock.uuid7()),
            isolation,
            resolve,
            ways_out=self._ways_out,
            users=self._users,
            limits=limits_of(self._settings),
        )

    @asynccontextmanager
    async def _ways_out(self, listeners: Listeners) -> AsyncIterator[None]:
        """To what a session may reach whose options do not say it."""
        listeners.gateway.close()
        proxy = self._egress(self._network.policy(NOTHING_ASKED), report=lambda _: None)
        try:
            await proxy.serve(listeners.proxy)
            yield
        finally:
            await proxy.close()

    async def _record(self, server_id: UUID, lease: UUID, outcome: _Outcome) -> None:
        async with self._database.transaction() as tx:
            row = await lock_mcp_server(tx, server_id)
            if row is None or row.lease != lease:
                # It was changed or deleted meanwhile, or another has taken over.
                return
            row.lease = row.lease_time = None
            row.checked_time = row.claim_time
            asked_again = row.due_time is not None and row.claim_time is not None and row.due_time > row.claim_time
            if not asked_again:
                interval = self._settings.mcp_check_interval
                row.due_time = clock.utcnow() + timedelta(seconds=clock.jitter(interval, 0.2)) if interval else None
            health = _health(outcome)
            row.health_state = "HEALTHY" if outcome.found is not None else "UNHEALTHY"
            row.health = health.SerializeToString()
            if outcome.found is not None:
                tools = mcp_server_service_pb2.ListMcpServerToolsResponse(
                    tools=outcome.found.tools, cut=outcome.found.cut, check_time=health.check_time
                )
                row.tools = tools.SerializeToString()


async def _bounded_look(server: session_pb2.McpServer, ground: "Ground", *, timeout: float) -> "Found":
    """As `look`. A program that passes a limit is ended, and that is what is told."""
    from agentrpc.claude.mcp_client import McpConnectError, look  # noqa: PLC0415 - as above

    watching: list[asyncio.Task[Breach]] = []

    def watch(pid: int) -> None:
        sandboxed = ground.isolation is Isolation.BUBBLEWRAP
        bounded = Bounded(ground.limits, [pid], sandboxed, [ground.folder])
        watching.append(asyncio.create_task(_until_breach(bounded), name="mcp-limits"))

    try:
        return await look(server, replace(ground, on_start=watch), timeout=timeout)
    except McpConnectError as error:
        for task in watching:
            if task.done():
                raise McpConnectError(task.result().message) from error
        raise
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _until_breach(bounded: Bounded) -> Breach:
    """Wait until process trees pass a limit, and kill them. To be cancelled when they have ended."""
    rounds = 0
    while True:
        await asyncio.sleep(_WATCH)
        breach = await asyncio.to_thread(lambda: bounded.breach(bounded.look(), bounded.held()))
        rounds += 1
        if breach is None and rounds % _FILES_ROUNDS == 0:
            usage = await measure(bounded)
            if usage is not None and not usage.within(bounded.limits):
                breach = usage.breach(bounded.limits)
        if breach is not None:
            await asyncio.to_thread(bounded.strike)
            return breach


def _health(outcome: _Outcome) -> mcp_server_pb2.McpServerHealth:
    health = mcp_server_pb2.McpServerHealth(error=outcome.error)
    health.check_time.FromDatetime(outcome.start)
    health.latency.FromTimedelta(timedelta(seconds=outcome.latency))
    if outcome.found is not None:
        health.tool_count = len(outcome.found.tools)
        health.server_name = outcome.found.server_name
        health.server_version = outcome.found.server_version
        health.protocol_version = outcome.found.protocol_version
    return health


def _clean_up(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in folder.iterdir():
        try:
            if time.time() - old.lstat().st_mtime > _OLD:
                remove_tree(old, seconds=_REMOVE_SECONDS)
        except FileNotFoundError:
            continue
