"""The `agentrpc` command, and the one place that builds and joins the objects of each process."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
import uvloop
from pydantic import ValidationError

from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.launcher import Isolation, IsolationError, choose_isolation
from agentrpc.cli import processes
from agentrpc.cli.main import app
from agentrpc.ending import end_tasks
from agentrpc.errors import AgentRpcError
from agentrpc.gateway.egress import EgressProxy, EgressShare
from agentrpc.gateway.interception import intercepting
from agentrpc.gateway.server import ModelGateway
from agentrpc.handover import environment_for, is_private, take_over
from agentrpc.rpc.agent_methods import agent_service, tool_group_service
from agentrpc.rpc.credential_methods import credential_service
from agentrpc.rpc.file_methods import archive_service, file_service
from agentrpc.rpc.file_streams import FileStreams
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.mcp_server_methods import mcp_server_service
from agentrpc.rpc.memory_methods import memory_service
from agentrpc.rpc.methods import Service, approval_service, auth_service, run_service, session_service
from agentrpc.rpc.report_methods import report_service
from agentrpc.rpc.server import EdgeServer
from agentrpc.rpc.streams import Streams
from agentrpc.rpc.task_methods import task_service
from agentrpc.rpc.webhook_methods import webhook_service
from agentrpc.services.accounts import Accounts
from agentrpc.services.agents import Agents
from agentrpc.services.approvals import Approvals
from agentrpc.services.archives import JOB as ARCHIVES_JOB
from agentrpc.services.archives import Archives
from agentrpc.services.credentials import Credentials
from agentrpc.services.deadlines import Deadlines
from agentrpc.services.files import Files
from agentrpc.services.firing import Firing
from agentrpc.services.mcp_checks import McpChecks
from agentrpc.services.mcp_servers import JOB as MCP_HEALTH_JOB
from agentrpc.services.mcp_servers import McpServers
from agentrpc.services.memory import Memory
from agentrpc.services.outbox import Consumer, Outbox
from agentrpc.services.reaper import Reaper
from agentrpc.services.report_maker import ReportMaker
from agentrpc.services.reports import Reports
from agentrpc.services.run_control import RunControl
from agentrpc.services.runs import Runs
from agentrpc.services.schedules import Schedules
from agentrpc.services.sealing import seal_in_the_background
from agentrpc.services.session_control import SessionControl
from agentrpc.services.session_grants import SessionGrants
from agentrpc.services.sessions import Sessions
from agentrpc.services.signals import Doorbell
from agentrpc.services.task_executions import Executions
from agentrpc.services.task_reports import report_execution
from agentrpc.services.tasks import Tasks
from agentrpc.services.tool_groups import ToolGroups
from agentrpc.services.webhook_delivery import WebhookDeliveries
from agentrpc.services.webhooks import JOB as WEBHOOKS_JOB
from agentrpc.services.webhooks import Webhooks
from agentrpc.settings import Settings, get_settings
from agentrpc.store.database import Database
from agentrpc.store.schema import check_schema, migrate
from agentrpc.telemetry import configure_logging, serve_metrics
from agentrpc.work import parent
from agentrpc.work.broker import Bell
from agentrpc.work.jobs import Drain, Jobs
from agentrpc.work.parent import Report
from agentrpc.work.scheduler import Scheduler
from agentrpc.work.worker import WorkerProcess

__all__ = ["UseCases", "app", "build_edge"]

log = structlog.get_logger()

_STORE_WAIT = 60.0


class UseCases:
    """What callers can do, joined with the store and the bus.

    Args:
        database: The store.
        bus: The live tail and signals.
        doorbell: Is rung when there may be work.
        settings: The settings.
    """

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._settings = settings
        self.accounts = Accounts(database, bus, settings)
        self.sessions = Sessions(database, bus, doorbell, settings)
        self.runs = Runs(database, bus, doorbell, settings)
        self.session_control = SessionControl(database, bus, doorbell, self.sessions, settings)
        self.run_control = RunControl(database, bus, doorbell, settings)
        self.session_grants = SessionGrants(database, bus, settings)
        self.approvals = Approvals(database, bus, doorbell, settings)
        self.schedules = Schedules(database)
        self.executions = Executions(database, bus, doorbell, settings, self.schedules.execution_ended)
        self.firing = Firing(database, bus, doorbell, self.schedules.execution_ended)
        self.tasks = Tasks(database, self.schedules, settings)
        self.agents = Agents(database, settings)
        self.tool_groups = ToolGroups(database, settings)
        self.memory = Memory(database, settings)
        self.files = Files(database, settings)
        self.archives = Archives(database, settings, doorbell)
        self.mcp_servers = McpServers(database, doorbell, settings)
        self.mcp_checks = McpChecks(database, settings, intercepting(EgressProxy))
        self.credentials = Credentials(database, settings)
        self.webhooks = Webhooks(database, doorbell, settings)
        self.webhook_deliveries = WebhookDeliveries(database, settings)
        self.reports = Reports(database, doorbell, settings)
        self.report_maker = ReportMaker(database, settings)

    def services(self, streams: Streams) -> list[Service]:
        """The services of the contract."""
        return [
            auth_service(self.accounts),
            session_service(self.sessions, self.session_control, self.session_grants, streams),
            run_service(self.runs, self.run_control, streams),
            approval_service(self.approvals, streams),
            task_service(self.tasks, self.executions, self.schedules),
            agent_service(self.agents),
            tool_group_service(self.tool_groups),
            memory_service(self.memory),
            file_service(self.files, FileStreams(streams.hub, self.files, self.accounts, self._settings)),
            archive_service(self.archives),
            mcp_server_service(self.mcp_servers),
            credential_service(self.credentials),
            webhook_service(self.webhooks),
            report_service(self.reports, streams),
        ]

    def jobs(self) -> dict[str, Drain]:
        """What workers do besides hosting agents, by kind."""
        return {
            ARCHIVES_JOB: self.archives.drain,
            MCP_HEALTH_JOB: self.mcp_checks.drain,
            "reports": self.report_maker.drain,
            WEBHOOKS_JOB: self.webhook_deliveries.drain,
        }

    def consumers(self) -> list[Consumer]:
        """Who is told what happened."""
        return [self.executions.settle, self.webhooks.consume, report_execution]


def build_edge(settings: Settings, database: Database, bus: Bus, use_cases: UseCases) -> tuple[EdgeServer, Hub]:
    """The gRPC server of an edge, not started, and the hub of its streams."""
    hub = Hub(database, bus, settings.replay_concurrency)
    streams = Streams(hub, use_cases.sessions, use_cases.runs, use_cases.approvals, use_cases.accounts, settings)
    server = EdgeServer(settings, database, bus, use_cases.accounts, hub, use_cases.services(streams))
    return server, hub


class _Process:
    """What every process has: settings, store, bus, bell."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url.get_secret_value())
        self.bus = Bus(settings.redis_url.get_secret_value(), settings.signing_key.get_secret_value())
        self.bell = Bell(settings.redis_url.get_secret_value())
        self.doorbell = Doorbell(self.bus, self.bell.ring, self.bell.ring_job)
        self.use_cases = UseCases(self.database, self.bus, self.doorbell, settings)

    async def open(self) -> None:
        """Wait for the database, which may start later than this process, and check its schema."""
        deadline = asyncio.get_running_loop().time() + _STORE_WAIT
        while True:
            try:
                await check_schema(self.database)
                break
            except AgentRpcError as error:
                if error.reason != "STORE_UNAVAILABLE" or asyncio.get_running_loop().time() > deadline:
                    raise
                log.warning("waiting_for_store")
                await asyncio.sleep(1)
        await self.bell.start()

    async def close(self) -> None:
        """Give everything up."""
        await self.bell.close()
        await self.bus.close()
        await self.database.close()


async def _serve(settings: Settings, stopped: asyncio.Event) -> None:
    process = _Process(settings)
    try:
        await process.open()
        server, _ = build_edge(settings, process.database, process.bus, process.use_cases)
        await server.start()
        await stopped.wait()
        await server.stop(settings.drain_grace)
    finally:
        await process.close()


async def _work(settings: Settings, stopped: asyncio.Event, report: Report) -> None:
    isolation, why = choose_isolation(settings.isolation, uids=settings.agent_uids, minimum=settings.minimum_isolation)
    say = log.info if isolation is Isolation.BUBBLEWRAP else log.warning
    say("isolation", isolation=str(isolation), why=why)
    process = _Process(settings)
    try:
        await process.open()
        key = settings.model_api_key
        gateway = ModelGateway(
            upstream_url=settings.model_url,
            api_key=key.get_secret_value() if key is not None else None,
            auth_style=settings.model_auth,
            betas=settings.agent_betas,
            body_memory=settings.gateway_memory,
        )
        egress = intercepting(partial(EgressProxy, share=EgressShare(settings.max_processes)))
        jobs = Jobs(process.use_cases.jobs())
        worker = WorkerProcess(
            settings, process.database, process.bus, isolation, gateway, egress, process.bell.ring, report, jobs
        )
        await worker.start()
        waiting: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({waiting, worker.fatal}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await worker.stop()
        if worker.fatal.done():
            raise SystemExit(1)
    finally:
        await process.close()


async def _schedule(settings: Settings, stopped: asyncio.Event) -> None:
    process = _Process(settings)
    try:
        await process.open()
        deadlines = Deadlines(process.database, process.bus, process.doorbell, settings)
        outbox = Outbox(process.database, process.use_cases.consumers())
        use_cases = process.use_cases
        scheduler = Scheduler(
            process.database, use_cases.approvals, deadlines, outbox, use_cases.executions, use_cases.firing
        )
        running = [
            asyncio.create_task(scheduler.run(), name="scheduler"),
            asyncio.create_task(scheduler.tell(), name="outbox"),
            asyncio.create_task(process.use_cases.archives.schedule(), name="archives"),
            asyncio.create_task(scheduler.fire(), name="schedules"),
            asyncio.create_task(scheduler.begin(), name="executions"),
            asyncio.create_task(seal_in_the_background(process.database, settings), name="sealing"),
            asyncio.create_task(Reaper(process.database, process.bell.ring, settings).run(), name="reaper"),
        ]
        log.info("scheduling")
        await stopped.wait()
        await end_tasks(running)
    finally:
        await process.close()


def _run(name: str, work: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    """Run a process until SIGTERM or SIGINT."""
    try:
        settings = get_settings()
    except ValidationError as error:
        for fault in error.errors():
            field = "_".join(map(str, fault["loc"])).upper()
            print(f"AGENTRPC_{field.removeprefix('AGENTRPC_')}: {fault['msg']}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    # Nothing that is started later inherits keys. Those of AWS stay: archive storage looks for them when it is used.
    for variable in [name for name in os.environ if is_private(name) and not name.startswith("AWS_")]:
        del os.environ[variable]
    configure_logging(name, level=settings.log_level, style=settings.log_format)
    metrics = serve_metrics(settings.metrics_listen)
    if metrics is not None:
        log.info("metrics", address=metrics[1])

    async def until_stopped() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        await work(settings, stopped)

    try:
        uvloop.run(until_stopped())
    except AgentRpcError as error:
        log.error("cannot_start", reason=error.reason, message=error.message)  # noqa: TRY400 - the message says it
        raise SystemExit(1) from None
    except IsolationError as error:
        log.error("cannot_start", message=str(error))  # noqa: TRY400 - the message says it
        raise SystemExit(1) from None


@app.command(rich_help_panel="Processes")
def serve() -> None:
    """Serve gRPC: the edge. Configure with AGENTRPC_* variables."""
    _run("serve", _serve)


@app.command(rich_help_panel="Processes")
def worker() -> None:
    """Host agent sessions; a worker that ends by itself is started again."""
    # The parent takes this process over, without what was imported here.
    environment, fd = environment_for(os.environ)
    os.set_inheritable(fd, True)
    os.execve(sys.executable, [sys.executable, "-m", parent.__name__], environment)  # noqa: S606


@app.command(parent.WORKER_COMMAND, hidden=True)
def worker_process(pipe: int) -> None:
    """Host agent sessions under a parent, which gets reports by a PIPE."""
    report = parent.reporter(pipe)
    _run("worker", lambda settings, stopped: _work(settings, stopped, report))


@app.command(rich_help_panel="Processes")
def scheduler() -> None:
    """Fire schedules, expire approvals, find lost workers, and keep house."""
    _run("scheduler", _schedule)


@app.command("migrate", rich_help_panel="Processes")
def migrate_command(revision: str = "head") -> None:
    """Bring the database to the schema of this version (or to another REVISION, such as `base`)."""
    migrate(get_settings().database_url.get_secret_value(), revision)


@app.command(rich_help_panel="Processes")
def create_admin(username: str = "admin") -> None:
    """Create the first user and print its one-time password; does nothing when there are users."""
    password = asyncio.run(_create_admin(get_settings(), username))
    print(f"{username} {password}" if password else "there are users already")  # noqa: T201


async def _create_admin(settings: Settings, username: str = "admin") -> str | None:
    process = _Process(settings)
    try:
        return await process.use_cases.accounts.ensure_admin(username)
    finally:
        await process.close()


async def _admin_for(environment: dict[str, str]) -> str | None:
    given = {key.removeprefix("AGENTRPC_").lower(): value for key, value in environment.items()}
    return await _create_admin(Settings.model_validate(given))


processes.register(app, _admin_for)


if __name__ == "__main__":
    take_over()
    app()
