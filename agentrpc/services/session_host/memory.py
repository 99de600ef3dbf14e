"""How much memory the process trees of one worker may use, together and each, and which of them has to go.

Measured, since what tools use is nobody's to foresee. A process that has just begun counts as what it will soon use.
"""

import asyncio
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import psutil

from agentrpc.services.session_host.actor import SessionActor
from agentrpc.settings import Settings
from agentrpc.telemetry import AGENT_MEMORY

__all__ = ["MemoryBound", "machine_memory"]

# What a CLI process uses before it has done anything.
_FRESH = 200 * 1024 * 1024
_SHARE = 0.75
_CGROUPS = Path("/sys/fs/cgroup")


class MemoryBound:
    """The bound of one worker.

    Args:
        settings: `max_agent_memory`, `max_session_memory`.
    """

    def __init__(self, settings: Settings) -> None:
        self._together = settings.max_agent_memory or int(machine_memory() * _SHARE)
        self._each = settings.max_session_memory or self._together
        self._used: dict[UUID, int] = {}

    async def measure(self, actors: Mapping[UUID, SessionActor]) -> None:
        """Look at all process trees."""
        trees = list(actors.items())
        self._used = await asyncio.to_thread(lambda: {session_id: actor.memory() for session_id, actor in trees})
        AGENT_MEMORY.set(sum(self._used.values()))

    def has_room(self, session_ids: Sequence[UUID]) -> bool:
        """Whether one more process fits beside those of these sessions. The first one always does."""
        used = sum(max(self._used.get(session_id, 0), _FRESH) for session_id in session_ids)
        return not session_ids or used + _FRESH <= self._together

    def pick_excess(
        self, actors: Mapping[UUID, SessionActor], running: Container[UUID]
    ) -> tuple[SessionActor, str] | None:
        """A session whose process tree has to go, and why; it does not count any more. None: all is within bounds.

        Those that are too large themselves go first, then those that have been idle for longest, and then the largest.
        """
        used = {session_id: size for session_id, size in self._used.items() if session_id in actors}
        large = [session_id for session_id, size in used.items() if size > self._each]
        idle = [session_id for session_id in used if session_id not in running]
        if large:
            chosen = large[0]
            why = (
                f"its processes used {_gib(used[chosen])}, more than the {_gib(self._each)} of one session: let it do "
                "less at once, or have the operator raise max_session_memory"
            )
        elif sum(used.values()) > self._together:
            chosen = min(idle, key=lambda each: actors[each].idle_since) if idle else max(used, key=used.__getitem__)
            why = (
                f"the agents of its worker used more than their {_gib(self._together)}, and its own the most: create "
                "it again, or have the operator raise max_agent_memory"
            )
        else:
            return None
        del self._used[chosen]
        return actors[chosen], why


def machine_memory() -> int:
    """Bytes that this process and its children may use: what the machine has, or less where a cgroup says so."""
    limits = [int(psutil.virtual_memory().total)]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container the path may be that of the host: then only the root is there, and is the container's own.
        for folder in (group, *group.parents):
            file = root / folder / name
            if file.exists() and (text := file.read_text().strip()).isdecimal():
                limits.append(int(text))
    return min(limits)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
