"""The tools of this service that a session has switched on, joined with what they need.

They act as the session's owner, as the owner is when a tool is called, and see what the owner may see. What they write
is fenced: a worker that has lost the session changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from agentrpc import clock
from agentrpc.claude.tools import Tool
from agentrpc.claude.tools.kubernetes import KubernetesAccess, kubernetes_tools
from agentrpc.claude.tools.system import system_tools
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import LeaseLostError, PermissionDenied
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import find_owner
from agentrpc.v1 import session_pb2

__all__ = ["Caller", "Toolbox"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The session in whose name tools act.

    Attributes:
        database: The store.
        session_id: The session.
        epoch: The epoch under which this worker holds it.
        may_begin: Whether this worker may still begin anything for it.
    """

    database: Database
    session_id: UUID
    epoch: int
    may_begin: Callable[[], bool] = lambda: True

    async def owner(self, tx: Transaction, *, writes: bool = False) -> tuple[Principal, UUID | None]:
        """The session's owner, and the run that is under way.

        Args:
            tx: The transaction in which the tool does its work.
            writes: Whether it changes something: then nobody takes the session over before the transaction ends.

        Raises:
            LeaseLostError: The session is another worker's.
            PermissionDenied: The owner may not use the service any more.
        """
        found = await find_owner(tx, self.session_id, self.epoch, lock=writes) if self.may_begin() else None
        if found is None:
            raise LeaseLostError("the session is another worker's")
        user, run_id = found
        if user.disable_time is not None:
            raise PermissionDenied("tools.call")
        until = clock.utcnow() + timedelta(hours=1)
        return Principal(user.id, Role(user.role), login_id=self.session_id, expire_time=until), run_id

    async def check(self) -> Principal:
        """The owner, for a tool whose work is not done in the store: asked right before it. Raises as `owner`."""
        async with self.database.transaction() as tx:
            return (await self.owner(tx))[0]


class Toolbox:
    """Makes the tools of sessions; one for each worker.

    Args:
        settings: What the operator has configured for them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
            case "system":
                return system_tools(self._settings.workspaces)
            case "kubernetes":
                return kubernetes_tools(builtin.kubernetes, self._kubernetes, caller.check)
            case _:
                return []
