"""The tools of this service that a session has switched on, joined with what they need.

They act as the session's owner, as the owner is when a tool is called, and see what the owner may see. What they write
is fenced: a worker that has lost the session changes nothing.
"""

from collections.abc import Sequence

from agentrpc.claude.tools import Tool, ToolError
from agentrpc.claude.tools.database import QueryRows, database_tools
from agentrpc.claude.tools.kubernetes import KubernetesAccess, kubernetes_tools
from agentrpc.claude.tools.memory import memory_tools
from agentrpc.claude.tools.system import system_tools
from agentrpc.services.memory_tools import SessionMemory
from agentrpc.services.pages import Pager
from agentrpc.services.tool_callers import Caller
from agentrpc.settings import Settings
from agentrpc.store.tool_database import QueryError, ToolDatabase
from agentrpc.v1 import session_pb2

__all__ = ["Toolbox"]

# As the comments on DatabaseTools say.
_ROWS = 200
_BYTES = 64 * 1024
_STATEMENT_SECONDS = 15.0


class Toolbox:
    """Makes the tools of sessions; one for each worker.

    Args:
        settings: What the operator has configured for them.
    """

    def __init__(self, settings: Settings) -> None:
        self._workspaces = settings.workspaces
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._databases = {name: ToolDatabase(url.get_secret_value()) for name, url in settings.tool_databases.items()}
        self._kubernetes = KubernetesAccess(settings.kubeconfig, tuple(settings.kubernetes_contexts))

    def tools(self, options: session_pb2.SessionOptions, caller: Caller) -> dict[str, Sequence[Tool]]:
        """The tools of a session's `builtin` servers, by the servers' names."""
        return {
            server.name: self._tools(server.builtin, caller)
            for server in options.mcp_servers
            if server.HasField("builtin")
        }

    def _tools(self, builtin: session_pb2.BuiltinServer, caller: Caller) -> Sequence[Tool]:
        match builtin.WhichOneof("tools"):
            case "memory":
                memory = SessionMemory(caller, builtin.memory.store, self._pager)
                return memory_tools(memory, writable=builtin.memory.writable)
            case "database":
                return self._database(builtin.database, caller)
            case "system":
                return system_tools(self._workspaces)
            case "kubernetes":
                return kubernetes_tools(builtin.kubernetes, self._kubernetes, caller.check)
            case _:
                return []

    def _database(self, given: session_pb2.DatabaseTools, caller: Caller) -> Sequence[Tool]:
        seconds = _STATEMENT_SECONDS
        if given.HasField("statement_timeout"):
            seconds = given.statement_timeout.ToTimedelta().total_seconds()

        async def query(sql: str, arguments: Sequence[str]) -> QueryRows:
            await caller.check()
            database = self._databases.get(given.database)
            if database is None:
                raise ToolError(f"the operator of this worker has configured no database {given.database!r}")
            try:
                return await database.query(
                    sql,
                    *arguments,
                    max_rows=given.max_rows or _ROWS,
                    max_bytes=given.max_bytes or _BYTES,
                    timeout=seconds,
                )
            except QueryError as error:
                raise ToolError(str(error)) from None

        return database_tools(query)
