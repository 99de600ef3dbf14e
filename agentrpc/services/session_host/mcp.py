"""The MCP servers of a session's process that are not in its sandbox, and which calls they get.

A call of a tool passes only once the gate has let that very call pass, with those arguments, and only once: an agent
that calls the address itself, past the CLI, gets nothing.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from agentrpc.claude.agent_users import AgentUsers
from agentrpc.claude.launcher import Isolation, SessionPaths
from agentrpc.claude.limits import Limits
from agentrpc.domain.mcp_config import secret_values
from agentrpc.services.addresses import resolver
from agentrpc.services.network import McpDoor
from agentrpc.services.session_host.network import SessionNetwork
from agentrpc.settings import Settings
from agentrpc.v1 import session_pb2

if TYPE_CHECKING:
    from agentrpc.claude.mcp_client import Ground

__all__ = ["SessionMcp"]

log = structlog.get_logger()

# What an agent may ask without its gate: what there is, not what is in it.
_FREE = frozenset({
    "initialize", "ping", "server/discover", "tools/list", "resources/list", "resources/templates/list", "prompts/list",
    "logging/setLevel",
})  # fmt: skip
_REFUSED = -32001
_GONE = -32000
_INVALID = -32600
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_NOTIFICATION = "notifications/"
_READ = "ReadMcpResourceTool"
_MAX_WORDS = 500


class SessionMcp:
    """Those of one process.

    Args:
        settings: The settings.
        isolation: How programs are kept apart.
        network: What leads out of where programs are.
        take: Whether a call of a tool with this input may be made now; uses up what the gate has let pass.
        users: Has a user for each, where the isolation is that.
    """

    def __init__(
        self,
        settings: Settings,
        isolation: Isolation,
        network: SessionNetwork,
        take: Callable[[str, Mapping[str, Any]], bool],
        users: AgentUsers | None = None,
    ) -> None:
        self._door: McpDoor | None = None
        self._settings = settings
        self._isolation = isolation
        self._network = network
        self._users = users
        self._take = take
        self._limits = Limits()
        self._group: Path | None = None
        self._endpoints: dict[str, _Endpoint] = {}

    def open(
        self,
        options: session_pb2.SessionOptions,
        paths: SessionPaths,
        door: McpDoor,
        url: str,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        group: Path | None = None,
    ) -> dict[str, str]:
        """Make the addresses, below that of the door, of those servers that the CLI must not reach itself, by name.

        These are all that are somewhere else, and programs that are given secrets: bounded like the CLI, and in the
        same cgroup.
        """
        self._door, urls = door, {}
        self._limits, self._group = limits, group
        for server in options.mcp_servers:
            kind = server.WhichOneof("transport")
            if kind in {"sse", "http"} or (kind == "stdio" and server.stdio.env):
                endpoint = _Endpoint(self, server, paths.mcp / server.name)
                path = door.open_mcp(endpoint)
                urls[server.name] = url + path
                self._endpoints[path] = endpoint
        return urls

    def ground(self, folder: Path) -> "Ground":
        """What a server is run with, or called."""
        # Half a second to load, and most sessions have none.
        from agentrpc.claude.mcp_client import Ground  # noqa: PLC0415

        return Ground(
            folder,
            self._isolation,
            resolver(allow_private=self._settings.allow_private_addresses),
            ways_out=self._network.serving_program,
            users=self._users,
            limits=self._limits,
            group=self._group,
        )

    def roots(self) -> list[int]:
        """The first processes of their programs."""
        return [pid for endpoint in self._endpoints.values() if (pid := endpoint.pid) is not None]

    def may_call(self, server: str, message: Mapping[str, Any]) -> bool:
        """Whether a request may be passed on; uses up what the gate has let pass."""
        method, params = message.get("method"), message.get("params")
        given = params if isinstance(params, dict) else {}
        if method == "tools/call":
            arguments = given.get("arguments") or {}
            tool = _NOT_A_NAME.sub("_", str(given.get("name")))
            return isinstance(arguments, dict) and self._take(f"mcp__{server}__{tool}", arguments)
        if method == "resources/read":
            return self._take(_READ, {"server": server, "uri": given.get("uri")})
        return isinstance(method, str) and method in _FREE

    async def close(self) -> None:
        """End them all, with their programs."""
        endpoints, self._endpoints = self._endpoints, {}
        for path in endpoints:
            if self._door is not None:
                self._door.close_mcp(path)
        await asyncio.gather(*[endpoint.close() for endpoint in endpoints.values()])


class _Endpoint:
    """One server, as the gateway calls it."""

    def __init__(self, session: SessionMcp, server: session_pb2.McpServer, folder: Path) -> None:
        from agentrpc.claude.mcp_bridge import McpBridge, McpGone  # noqa: PLC0415 - as above

        self._session = session
        self._name = server.name
        self._secrets = secret_values(server)
        self._gone = McpGone
        self._bridge = McpBridge(server, session.ground(folder), self._report)

    @property
    def pid(self) -> int | None:
        return self._bridge.pid

    async def ask(self, message: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        try:
            if not self._session.may_call(self._name, message):
                log.warning("mcp_call_refused", server=self._name, method=str(message.get("method"))[:100])
                return _error(message, _REFUSED, "this call did not pass the gate of the session")
            return await self._bridge.ask(message, headers)
        except self._gone as error:
            return _error(message, _GONE, f"the MCP server cannot be reached: {self._words(str(error))}")
        except ValueError:
            return _error(message, _INVALID, "not a message of JSON-RPC")
        except Exception as error:  # noqa: BLE001 - without an answer the CLI waits for one; its words may hold secrets
            log.error("mcp_call_failed", server=self._name, error=type(error).__name__)  # noqa: TRY400
            return _error(message, _GONE, "the call failed: its operator finds the reason in the worker's log")

    async def tell(self, message: dict[str, Any], headers: Mapping[str, str]) -> None:
        # Some servers do what they are asked without an id too.
        method = message.get("method", _NOTIFICATION)
        if not isinstance(method, str) or not method.startswith(_NOTIFICATION):
            log.warning("mcp_call_refused", server=self._name, method=str(method)[:100])
            return
        with contextlib.suppress(self._gone):
            await self._bridge.tell(message, headers)

    def listen(self) -> AsyncIterator[dict[str, Any]]:
        return self._bridge.listen()

    async def close(self) -> None:
        await self._bridge.close()

    def _report(self, why: str) -> None:
        log.warning("mcp_server_ended", server=self._name, why=self._words(why))

    def _words(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_MAX_WORDS]


def _error(message: Mapping[str, Any], code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": code, "message": text}}
