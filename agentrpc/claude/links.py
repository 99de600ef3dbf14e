"""Where a path leads, as the processes of an agent see it.

The gate judges what will be opened, not what is written. Links that an agent can make are in its workspace, its home
and the CLI's config folder, which have the same paths for it as here; those of the system folders are the host's.
`/tmp`, `/run`, `/proc` and `/dev` are the sandbox's own: nobody can look there. All else does not exist for an agent.

A path is walked name by name from descriptor to descriptor, and nothing is opened but as a place to walk on from.
Between this look and the tool's an agent's own processes may change it: that is for the sandbox to bound.
"""

import contextlib
import os
import stat
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.workspace_paths import MAX_DEPTH, MAX_PATH
from agentrpc.domain.rules import Target
from agentrpc.settings import SYSTEM_FOLDERS

__all__ = ["SandboxView"]

# As many as the kernel follows.
_MAX_LINKS = 40
_PRIVATE = frozenset({"/tmp", "/run", "/proc", "/dev", "/sys"})  # noqa: S108 - of the sandbox
# In the place of a descriptor: what is there only the sandbox knows; there is nothing, or nothing for us to look at.
_HIDDEN, _NOTHING = -1, -2
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOWHERE = Target(None)


class SandboxView:
    """The file system of one session's agent.

    Args:
        paths: The session's folders.
    """

    def __init__(self, paths: SessionPaths) -> None:
        # A mount point is no link, whatever leads to it here.
        self._mounts = frozenset(map(str, (paths.workspace, paths.home, paths.config)))

    def resolve(self, path: str) -> Target:
        """Where an absolute path leads. Its `path` is None where that cannot be told: many links, or hidden from us."""
        try:
            if len(os.fsencode(path)) > MAX_PATH or "\0" in path:
                return _NOWHERE
            return self._walk(path)
        except (OSError, ValueError):
            return _NOWHERE

    def _walk(self, path: str) -> Target:
        names = deque(_names(path))
        done: list[str] = []
        links = 0
        missing = False
        with contextlib.ExitStack() as stack:
            # The descriptors of what has been walked, the newest last.
            opened = [_NOTHING]
            while names:
                name = names.popleft()
                if name == "..":
                    if missing:
                        return _NOWHERE
                    if done:
                        done.pop()
                        opened.pop()
                    continue
                if len(done) >= MAX_DEPTH:
                    return _NOWHERE
                done.append(name)
                if missing:
                    continue
                here = "/" + "/".join(done)
                found = self._step(here, name, opened[-1], stack)
                if isinstance(found, str):
                    links += 1
                    if links > _MAX_LINKS:
                        return _NOWHERE
                    done.pop()
                    if found.startswith("/"):
                        done, opened = [], [_NOTHING]
                    names.extendleft(reversed(_names(found)))
                    continue
                missing = found == _NOTHING and self._is_ours(here)
                opened.append(found)
            if opened[-1] == _HIDDEN:
                return _NOWHERE
            return self._target(done, _NOTHING if missing else opened[-1])

    def _step(self, here: str, name: str, above: int, stack: contextlib.ExitStack) -> int | str:
        """A descriptor of what is there, or what stands in its place, or the target of a link."""
        if here in self._mounts or here in SYSTEM_FOLDERS:
            if here in SYSTEM_FOLDERS and Path(here).is_symlink():
                return str(Path(here).readlink())
            found = os.open(here, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        elif here in _PRIVATE or above == _HIDDEN:
            return _HIDDEN
        elif above == _NOTHING:
            return _NOTHING
        else:
            try:
                found = os.open(name, _WALK, dir_fd=above)
            except (FileNotFoundError, NotADirectoryError):
                return _NOTHING
        stack.callback(os.close, found)
        if stat.S_ISLNK(os.fstat(found).st_mode):
            return os.readlink("", dir_fd=found)
        return found

    def _is_ours(self, path: str) -> bool:
        """Whether a path is one where we can look: what we do not find there is not there."""
        return any(path.startswith(f"{folder}/") for folder in (*self._mounts, *SYSTEM_FOLDERS))

    def _target(self, names: Sequence[str], found: int) -> Target:
        several = False
        if found != _NOTHING:
            info = os.fstat(found)
            several = stat.S_ISREG(info.st_mode) and info.st_nlink > 1
        return Target("/" + "/".join(names), several)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]
