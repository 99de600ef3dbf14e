"""The folders of a session's process on this machine, and whose they are while it runs."""

import asyncio
import contextlib
from collections.abc import Iterator

from agentrpc.claude.agent import AgentStartError
from agentrpc.claude.agent_users import AgentUsers, IsolationError
from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.revival import Conversation, OpenCall
from agentrpc.claude.workspaces import WorkspaceError

__all__ = ["Folders", "disk"]


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """A disk that is full, perhaps of what an agent has written to its home, is no fault of the service."""
    try:
        yield
    except (OSError, WorkspaceError) as error:
        raise AgentStartError(
            "the worker could not write the CLI's files: see the space on its disk", str(error)
        ) from error


class Folders:
    """Those of one session.

    Args:
        paths: Where they are.
        users: Has a user for its processes, where the isolation is that.
    """

    def __init__(self, paths: SessionPaths, users: AgentUsers | None) -> None:
        self._paths = paths
        self._users = users
        self._owned: SessionPaths | None = None

    async def write(self, conversation: Conversation, claude_session_id: str, carry: OpenCall | None) -> None:
        """Make what is missing, and write the conversation where the CLI looks for it. Raises AgentStartError."""
        with disk():
            self._paths.create()
            await asyncio.to_thread(conversation.write, self._paths, claude_session_id, carry=carry)

    async def take_user(self) -> SessionPaths:
        """The folders, with a user if processes are to have one, until `give_user_back`. Raises AgentStartError."""
        if self._users is None:
            return self._paths
        try:
            with disk():
                self._owned = await self._users.taken(self._paths)
        except IsolationError as error:
            raise AgentStartError(str(error)) from error
        return self._owned

    async def give_user_back(self) -> None:
        """The process has ended, with all that it has started."""
        owned, self._owned = self._owned, None
        if owned is not None and self._users is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._users.give_back, owned)
