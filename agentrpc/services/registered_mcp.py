"""Registered MCP servers in the options of sessions, agents and tasks: accepted when stored, looked up when used."""

from uuid import UUID

from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import FailedPrecondition, NotFound
from agentrpc.names import parse_mcp_server
from agentrpc.services.mcp_servers import full_config, load_mcp_server
from agentrpc.services.secrets import SecretBox
from agentrpc.services.validation import Faults
from agentrpc.store.database import Database, Transaction
from agentrpc.store.mcp_servers import McpServerRow
from agentrpc.store.tables import Session, User
from agentrpc.v1 import session_pb2

__all__ = ["check_registered", "resolve_registered"]


async def check_registered(
    tx: Transaction, principal: Principal, options: session_pb2.SessionOptions, path: str = "session.options"
) -> None:
    """Note which revisions of registered servers are accepted by these options, which are about to be stored.

    Raises:
        InvalidArgument: FIELD_INVALID: the caller may not use one of them, or there is no such revision yet.
    """
    faults = Faults()
    for server in options.mcp_servers:
        if server.HasField("registered"):
            where = f"{path}.mcp_servers[{server.name}].registered"
            try:
                row = await load_mcp_server(tx, principal, parse_mcp_server(server.registered, field=where))
            except NotFound as error:
                faults.add(where, error.message)
                continue
            accepted = server.accepted_revision or row.config_revision
            told = f"is not a revision that {server.registered} has had: it is at {row.config_revision}"
            faults.check(
                1 <= accepted <= row.config_revision, f"{path}.mcp_servers[{server.name}].accepted_revision", told
            )
            server.accepted_revision = accepted
        elif server.accepted_revision:
            faults.add(f"{path}.mcp_servers[{server.name}].accepted_revision", "goes with registered only")
    faults.done()


async def resolve_registered(
    database: Database, box: SecretBox, session_id: UUID, options: session_pb2.SessionOptions
) -> None:
    """Put the configurations of registered servers in the place of their names, and open all secrets.

    Raises:
        FailedPrecondition: NOT_FOUND or NOT_CONFIGURED: one is gone, not the owner's to use, or does not open.
            STATE_INVALID: another user has changed it since it was accepted.
    """
    box.open_options(options)
    wanted = [server for server in options.mcp_servers if server.HasField("registered")]
    if not wanted:
        return
    async with database.transaction() as tx:
        session = await tx.get_one(Session, session_id)
        user = await tx.get_one(User, session.owner)
        for server in wanted:
            name = server.name
            row = await tx.get(McpServerRow, parse_mcp_server(server.registered))
            if row is None or not (row.shared or row.owner == user.id or user.role == Role.ADMIN):
                raise FailedPrecondition(
                    f"the MCP server {name!r} of the session is {server.registered}, which was deleted or is not "
                    f"shared with its owner any more: change the session's mcp_servers",
                    reason="NOT_FOUND",
                )
            if row.owner != user.id and server.accepted_revision not in {0, row.config_revision}:
                raise FailedPrecondition(
                    f"{server.registered}, the MCP server {name!r} of the session, was changed since revision "
                    f"{server.accepted_revision} was accepted: look at it, and set accepted_revision to "
                    f"{row.config_revision}",
                    reason="STATE_INVALID",
                    metadata={"accepted_revision": str(server.accepted_revision)},
                )
            server.CopyFrom(full_config(box, row))
            server.name = name
