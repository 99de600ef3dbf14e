"""How much memory the process trees of one worker may use together, and which of them has to go.

Measured, since what tools use is nobody's to foresee. A process that has just begun counts as what it will soon use.
What each of them may use, `watch.py` looks after.
"""

import asyncio
from collections.abc import Container, Mapping, Sequence
from uuid import UUID

from agentrpc.services.session_host.actor import SessionActor
from agentrpc.services.session_limits import agent_memory
from agentrpc.settings import Settings
from agentrpc.telemetry import AGENT_MEMORY

__all__ = ["MemoryBound"]

# What a CLI process uses before it has done anything.
_FRESH = 200 * 1024 * 1024


class MemoryBound:
    """The bound of one worker.

    Args:
        settings: `max_agent_memory`.
    """

    def __init__(self, settings: Settings) -> None:
        self.together = agent_memory(settings)
        self._used: dict[UUID, int] = {}

    async def measure(self, actors: Mapping[UUID, SessionActor]) -> None:
        """Look at all process trees."""
        trees = list(actors.items())
        self._used = await asyncio.to_thread(lambda: {session_id: actor.memory() for session_id, actor in trees})
        AGENT_MEMORY.set(sum(self._used.values()))

    def has_room(self, session_ids: Sequence[UUID]) -> bool:
        """Whether one more process fits beside those of these sessions. The first one always does."""
        used = sum(max(self._used.get(session_id, 0), _FRESH) for session_id in session_ids)
        return not session_ids or used + _FRESH <= self.together

    def pick_excess(
        self, actors: Mapping[UUID, SessionActor], running: Container[UUID]
    ) -> tuple[SessionActor, str] | None:
        """A session whose process tree has to go, and why; it does not count any more. None: all is within bounds.

        Those that have been idle for longest go first, and then the largest.
        """
        used = {session_id: size for session_id, size in self._used.items() if session_id in actors}
        if sum(used.values()) <= self.together:
            return None
        idle = [session_id for session_id in used if session_id not in running]
        chosen = min(idle, key=lambda each: actors[each].idle_since) if idle else max(used, key=used.__getitem__)
        why = (
            f"the agents of its worker used more than their {self.together / 2**30:.1f} GiB, and its own the most: "
            "create it again, or have the operator raise max_agent_memory"
        )
        del self._used[chosen]
        return actors[chosen], why
