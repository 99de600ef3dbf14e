"""In whose name the tools of a session act."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import LeaseLostError, PermissionDenied
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import find_owner

__all__ = ["Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A session, as the worker that holds it knows it.

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

    async def owner(self, tx: Transaction) -> tuple[Principal, UUID | None]:
        """The session's owner as it is now, and the run that is under way.

        Raises:
            LeaseLostError: The session is another worker's.
            PermissionDenied: The owner may not use the service any more.
        """
        return await self._find(tx, lock=False)

    async def fence(self, tx: Transaction) -> None:
        """Ask again, as the last thing before a commit: until then nobody else takes the session over.

        The session's writer waits for it too, so it must not last. Raises as `owner`.
        """
        await self._find(tx, lock=True)

    async def check(self) -> Principal:
        """The owner, for a tool whose work is not done in the store: to be asked right before it. Raises as `owner`."""
        async with self.database.transaction() as tx:
            return (await self.owner(tx))[0]

    async def _find(self, tx: Transaction, *, lock: bool) -> tuple[Principal, UUID | None]:
        found = await find_owner(tx, self.session_id, self.epoch, lock=lock) if self.may_begin() else None
        if found is None:
            raise LeaseLostError("the session is another worker's")
        user, run_id = found
        if user.disable_time is not None:
            raise PermissionDenied("tools.call")
        until = clock.utcnow() + timedelta(hours=1)
        return Principal(user.id, Role(user.role), login_id=self.session_id, expire_time=until), run_id
