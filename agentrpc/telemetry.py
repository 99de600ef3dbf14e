"""Logs and metrics: structlog as JSON or for a console, and a Prometheus endpoint for each process.

Request, session and run ids are bound with `structlog.contextvars.bind_contextvars` where they become known and appear
on every line. Metrics that belong to one module are declared here too, so that their names are one list.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

__all__ = [
    "AGENT_MEMORY",
    "AGENT_PROCESSES",
    "BUS_REFUSED",
    "EVENTS_APPENDED",
    "EVENTS_RELAYED",
    "EVENTS_SHED",
    "MODEL_COST",
    "OPEN_STREAMS",
    "QUEUE_AGE",
    "RPC_LATENCY",
    "RUNS",
    "RUNS_ENDED",
    "TAKEOVERS",
    "WORKERS_DECLARED_DEAD",
    "configure_logging",
    "serve_metrics",
]

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

RPC_LATENCY = Histogram(
    "agentrpc_rpc_seconds", "Unary RPCs and the opening of streams.", ("method", "code"), buckets=_FAST
)
OPEN_STREAMS = Gauge("agentrpc_open_streams", "Streams that are open now.", ("method",))
BUS_REFUSED = Counter(
    "agentrpc_bus_refused_total",
    "Messages through Redis that were dropped: FORGED, not made by this service; NOT_UNDERSTOOD.",
    ("why",),
)
EVENTS_APPENDED = Counter("agentrpc_events_appended_total", "Durable events committed by this process.")
EVENTS_RELAYED = Counter("agentrpc_events_relayed_total", "Events sent to watchers.")
EVENTS_SHED = Counter("agentrpc_events_shed_total", "Live events left out for slow readers.")
RUNS = Gauge("agentrpc_runs", "Runs that have not ended, by state, in the whole service.", ("state",))
RUNS_ENDED = Counter("agentrpc_runs_ended_total", "Runs that this worker ended.", ("state",))
QUEUE_AGE = Gauge("agentrpc_queue_age_seconds", "Age of the oldest run that waits for a worker.")
TAKEOVERS = Counter("agentrpc_takeovers_total", "Runs that this worker took over from one that was lost.")
WORKERS_DECLARED_DEAD = Counter(
    "agentrpc_workers_declared_dead_total", "Workers that this process has declared dead because they did not answer."
)
AGENT_PROCESSES = Gauge("agentrpc_agent_processes", "Live CLI processes of this worker.")
AGENT_MEMORY = Gauge("agentrpc_agent_memory_bytes", "Proportional set size of all CLI process trees of this worker.")
MODEL_COST = Counter("agentrpc_model_cost_usd_total", "Estimated cost at list price.", ("model",))


def configure_logging(process: str, *, level: str = "info", style: str = "json") -> None:
    """Send structlog and the standard library's logging to stderr in one form.

    Args:
        process: `serve`, `worker` …; stands on every line.
        level: `debug`, `info`, `warning` or `error`.
        style: `json`, or `console` for people.
    """

    def add_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
        event["process"] = process
        return event

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_process,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.types.Processor
    if style == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        # Plain tracebacks: richer ones print the values of locals, which may be prompts and secrets.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # httpx tells of every request with its URL, which may hold a secret.
    for chatty in ("aiohttp.access", "claude_agent_sdk", "taskiq", "asyncio", "httpx", "httpcore", "httpx2"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # It writes what callers' servers send into the log; what came of it is in the check's result.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)


def serve_metrics(listen: str) -> tuple[WSGIServer, str] | None:
    """Start the Prometheus endpoint on its own thread.

    Args:
        listen: host:port; port 0 takes a free one. Empty: no endpoint.

    Returns:
        The server (call `shutdown()` to end it) and its address, or None.
    """
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    server, _thread = start_http_server(int(port), addr=host)
    return server, f"{host}:{server.server_port}"
