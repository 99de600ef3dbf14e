"""Removes the files of archived and deleted sessions."""

import asyncio
import time
from collections.abc import Container
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.claude.workspaces import WorkspaceError, WorkspaceStore
from agentrpc.services.threads import in_thread
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.housekeeping import cleaned_sessions, note_cleaned, sessions_to_clean

__all__ = ["Cleaner"]

log = structlog.get_logger()

_CLEAN_INTERVAL, _CLEANED_AT_ONCE = 10.0, 20
# For what one session has left here; more is left to the next time.
_REMOVE_SECONDS = 60.0
# Between two looks at what workers have set aside and not removed before they ended.
_SWEEP_INTERVAL = 600.0
_UUID = "-".join("?" * length for length in (8, 4, 4, 4, 12))


class Cleaner:
    """That of one worker.

    Args:
        database: The store.
        settings: `keep_closed_files`, and where this machine keeps files.
        workspaces: Those of all workers.
        closing: Sessions whose processes are just ending here.
    """

    def __init__(
        self, database: Database, settings: Settings, workspaces: WorkspaceStore, closing: Container[UUID]
    ) -> None:
        self._database = database
        self._settings = settings
        self._workspaces = workspaces
        self._closing = closing

    async def run(self) -> None:
        """Until cancelled."""
        next_sweep = 0.0
        while True:
            await asyncio.sleep(clock.jitter(_CLEAN_INTERVAL, 0.2))
            await self._clean_closed()
            if time.monotonic() > next_sweep:
                next_sweep = time.monotonic() + clock.jitter(_SWEEP_INTERVAL)
                await asyncio.to_thread(self._workspaces.remove_aside)

    async def _clean_closed(self) -> None:
        """Remove the files of archived and deleted sessions that nobody holds: workspaces once, what is here each."""
        keep = self._settings.keep_closed_files
        more = True
        while more:
            found = await sessions_to_clean(self._database, _CLEANED_AT_ONCE, keep=keep)
            cleaned = [await self._clean_workspace(session_id) for session_id in found]
            more = len(found) == _CLEANED_AT_ONCE and all(cleaned)
        for folder in (self._settings.data_dir / "sessions", self._settings.data_dir / "mcp"):
            here = [UUID(path.name) for path in await asyncio.to_thread(list, folder.glob(_UUID))]
            for session_id in await cleaned_sessions(self._database, here):
                if session_id not in self._closing:
                    await asyncio.to_thread(remove_tree, folder / str(session_id), seconds=_REMOVE_SECONDS)

    async def _clean_workspace(self, session_id: UUID) -> bool:
        try:
            async with self._database.transaction() as tx:
                if not await note_cleaned(tx, session_id, keep=self._settings.keep_closed_files):
                    return False
                # Whoever ends after this has left nothing that the sweep does not find.
                await in_thread(self._workspaces.set_aside, session_id)
        except WorkspaceError as error:
            log.warning("workspace_not_removed", session=str(session_id), error=str(error))
            return False
        await asyncio.to_thread(self._workspaces.remove_aside, session_id)
        return True
