"""The workspace of a session, opened for a run: made at the first one, checkpointed if the session asks for it."""

import asyncio
import threading
from uuid import UUID

import structlog

from agentrpc.claude.workspaces import CheckpointTooLarge, WorkspaceError, WorkspaceLost, WorkspaceStore
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.endings import failed
from agentrpc.services.session_host.hold import Hold
from agentrpc.v1 import event_pb2

__all__ = ["open_workspace"]

log = structlog.get_logger()


async def open_workspace(store: WorkspaceStore, hold: Hold, run_id: UUID, *, checkpoint: bool) -> Ending | None:
    """Make sure that the files are there before an agent works on them.

    Args:
        store: All workspaces.
        hold: The session.
        run_id: Its run.
        checkpoint: Whether to keep the files as they are now. That this cannot be done does not stop the run.

    Returns:
        How the run ends, if it cannot go on.

    Raises:
        LeaseLostError: Another worker has the session.
    """
    try:
        if await hold.patiently(lambda: lifecycle.has_workspace(hold.database, hold.session_id)):
            await asyncio.to_thread(store.open, hold.session_id)
        else:
            await asyncio.to_thread(store.create, hold.session_id)
            await hold.patiently(lambda: lifecycle.note_workspace(hold.database, hold.session_id, hold.epoch))
    except WorkspaceLost as error:
        log.error("workspace_lost")  # noqa: TRY400 - there is nothing more to be told
        return failed("REASON_WORKSPACE_LOST", str(error))
    except WorkspaceError as error:
        return failed("REASON_AGENT_START_FAILED", f"the worker {error}: its operator has to mend that", retryable=True)
    if checkpoint:
        await _keep_checkpoint(store, hold, run_id)
    return None


async def _keep_checkpoint(store: WorkspaceStore, hold: Hold, run_id: UUID) -> None:
    given_up = threading.Event()
    try:
        await asyncio.to_thread(store.checkpoint, hold.session_id, run_id, wanted=lambda: not given_up.is_set())
    except WorkspaceError as error:
        log.warning("checkpoint_skipped", detail=str(error))
        code = "checkpoint_too_large" if isinstance(error, CheckpointTooLarge) else "checkpoint_failed"
        notice = event_pb2.Notice(
            level=event_pb2.Notice.LEVEL_WARNING,
            code=code,
            text=f"The files cannot go back to the beginning of this run: {error}.",
        )
        hold.writer.put(event_pb2.Event(notice=notice))
    finally:
        # A thread cannot be cancelled.
        given_up.set()
