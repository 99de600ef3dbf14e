"""Whether what a session's options name, such as tools of this service and networks, is there and is for its owner."""

from agentrpc.domain.principal import Principal
from agentrpc.errors import FailedPrecondition
from agentrpc.names import parse_memory_store
from agentrpc.services.memory_entries import readable_store, require_owner
from agentrpc.services.network import NetworkRules
from agentrpc.services.registered_mcp import check_registered
from agentrpc.services.session_credentials import check_credentials
from agentrpc.settings import Settings
from agentrpc.store.database import Transaction
from agentrpc.v1 import session_pb2

__all__ = ["check_tools"]


async def check_tools(
    tx: Transaction,
    principal: Principal,
    options: session_pb2.SessionOptions,
    settings: Settings,
    *,
    path: str = "session.options",
) -> None:
    """Check what `check_session` cannot see. The tools check it again whenever they are called.

    Raises:
        InvalidArgument: FIELD_INVALID, for a registered server or a credential that is not there, or not the caller's
            to use, for two credentials of one host, and for a network that is more than the operator allows.
        NotFound: A memory store that the caller may not read.
        PermissionDenied: One that the agent is to write to, and the caller may not.
        FailedPrecondition: NOT_CONFIGURED, for a database that the operator has not configured.
    """
    NetworkRules(settings).check(options.network, f"{path}.network")
    await check_registered(tx, principal, options, path)
    await check_credentials(tx, principal, options, path)
    for server in options.mcp_servers:
        which = server.builtin.WhichOneof("tools")
        if which == "memory":
            store = await readable_store(tx, principal, parse_memory_store(server.builtin.memory.store))
            if server.builtin.memory.writable:
                require_owner(principal, store, "memory.write")
        elif which == "database" and server.builtin.database.database not in settings.tool_databases:
            raise FailedPrecondition(
                f"the operator has configured no database {server.builtin.database.database!r}: "
                "ask for it in the setting tool_databases",
                reason="NOT_CONFIGURED",
                metadata={"setting": "tool_databases"},
            )
