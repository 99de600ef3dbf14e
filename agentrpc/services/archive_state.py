"""What archive storage means for the reader of a session: its data are here, or have to be brought back first."""

from uuid import UUID

from agentrpc.errors import FailedPrecondition
from agentrpc.store.archives import archives_of
from agentrpc.store.database import Transaction
from agentrpc.v1 import archive_pb2, session_pb2

__all__ = ["require_here", "require_readable"]


async def require_here(tx: Transaction, session_id: UUID) -> None:
    """Raise STATE_INVALID if events, transcript and files of a session are only in archive storage."""
    row = (await archives_of(tx, [session_id])).get(session_id)
    if row is not None and row.dropped:
        raise _restore_first(f"STATE_{row.state}")


def require_readable(session: session_pb2.Session) -> None:
    """The same of a session that was read."""
    if session.restore_needed:
        raise _restore_first(archive_pb2.Archive.State.Name(session.archive_storage_state))


def _restore_first(state: str) -> FailedPrecondition:
    return FailedPrecondition(
        "the session is in archive storage: bring it back with RestoreSession, and wait for STATE_RESTORED",
        reason="STATE_INVALID",
        metadata={"state": state},
    )
