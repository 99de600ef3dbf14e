"""What is in a workspace, without its content: listed in pages, counted, and compared with what it was.

Everything here blocks: call it in a thread. Folders are walked by descriptor and no link is followed. An agent may make
as many files as it likes, so callers say how many they are willing to look at.
"""

import contextlib
import hashlib
import heapq
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agentrpc.claude.workspace_paths import MAX_DEPTH
from agentrpc.claude.workspace_trees import names_in

__all__ = ["FileEntry", "TooManyNames", "TreeLook", "Usage", "list_entries", "look_at_tree", "used_space"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Something in a workspace.

    Attributes:
        path: Relative to the workspace; names may hold surrogate escapes.
        info: Of itself, also of a link.
        target: Where a link points to.
    """

    path: str
    info: os.stat_result
    target: str = ""


class TooManyNames(Exception):
    """Finding what was asked for takes looking at more names than one call may."""


def list_entries(
    folder: int, path: str, *, recursive: bool, after: Sequence[str] = (), page: int = 0, most: int = 0
) -> Iterator[FileEntry]:
    """What is in a folder, names in order of their bytes, a folder before what is in it.

    Args:
        folder: A descriptor of the folder to be listed, for reading.
        path: Its path, which begins those of the entries.
        recursive: With what is in its folders.
        after: The names on the way to the entry, relative to the folder, behind which to begin.
        page: How many entries will be taken, so that no more names are kept and sorted; 0: all.
        most: How many names may be looked at; 0: any number.

    Raises:
        TooManyNames: There are more.
        WorkspaceError: All of a folder are to be taken, and are too many to be sorted.
    """
    yield from _Listing(recursive, page, most).entries(folder, path, list(after), 0)


class _Listing:
    def __init__(self, recursive: bool, page: int, most: int) -> None:
        self._recursive = recursive
        self._page = page
        self._left = most or float("inf")

    def entries(self, folder: int, path: str, after: list[str], depth: int) -> Iterator[FileEntry]:
        first = os.fsencode(after[0]) if after else b""
        for raw in self._names(folder, first):
            name = os.fsdecode(raw)
            here = f"{path}/{name}" if path else name
            listed = bool(after) and raw == first
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(info.st_mode) else ""
            except OSError:
                # It has gone, or has become something else.
                continue
            if not listed:
                yield FileEntry(here, info, target)
            if self._recursive and stat.S_ISDIR(info.st_mode) and depth < MAX_DEPTH:
                try:
                    below = os.open(name, _FOLDER, dir_fd=folder)
                except OSError:
                    continue
                try:
                    yield from self.entries(below, here, after[1:] if listed else [], depth + 1)
                finally:
                    os.close(below)

    def _names(self, folder: int, first: bytes) -> Iterator[bytes]:
        """Names in order, from a first one on: read again, rather than all kept, when a page needs more."""
        if not self._page:
            names = names_in(folder)
            self._count(len(names))
            yield from sorted(name for name in map(os.fsencode, names) if name >= first)
            return
        # Besides a page: where the last one ended, and the first of the next.
        size = self._page + 2
        while True:
            page = heapq.nsmallest(size, (name for name in map(os.fsencode, self._read(folder)) if name >= first))
            yield from page
            if len(page) < size:
                return
            first = page[-1] + b"\0"

    def _read(self, folder: int) -> Iterator[str]:
        with os.scandir(folder) as found:
            for entry in found:
                self._count(1)
                yield entry.name

    def _count(self, names: int) -> None:
        self._left -= names
        if self._left < 0:
            raise TooManyNames


@dataclass(frozen=True, slots=True)
class Usage:
    """What files take.

    Attributes:
        size: Bytes on the disk.
        entries: How many files, folders and links there are.
    """

    size: int = 0
    entries: int = 0

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.size - other.size, self.entries - other.entries)


def used_space(*folders: Path, most: int) -> Usage:
    """What is below folders. What is nested too deep, or goes meanwhile, does not count.

    Args:
        folders: Of ours.
        most: When there are more entries than this, the rest is not looked at.
    """
    size = entries = 0
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            top = os.open(folder, _FOLDER)
            try:
                for info in islice(_infos(top, 0), max(most + 1 - entries, 0)):
                    size, entries = size + info.st_blocks * 512, entries + 1
            finally:
                os.close(top)
    return Usage(size, entries)


def _infos(folder: int, depth: int) -> Iterator[os.stat_result]:
    with os.scandir(folder) as found:
        for entry in found:
            try:
                yield entry.stat(follow_symlinks=False)
                below = os.open(entry.name, _FOLDER, dir_fd=folder) if entry.is_dir(follow_symlinks=False) else -1
            except OSError:
                continue
            if below >= 0:
                try:
                    if depth < MAX_DEPTH:
                        yield from _infos(below, depth + 1)
                finally:
                    os.close(below)


class TreeLook:
    """What a folder held when it was looked at.

    Attributes:
        etag: Changes when something in it is changed.
        size: Bytes of its files.
        space: Bytes that they take on the disk: fewer, where they have holes.
        file_count: How many.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.size = 0
        self.space = 0
        self.file_count = 0

    def add(self, path: str, info: os.stat_result, target: str) -> None:
        """The next entry."""
        text = f"{path}\0{info.st_mode} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {target}\0"
        self._digest.update(os.fsencode(text))
        if stat.S_ISREG(info.st_mode):
            self.size += info.st_size
            self.space += info.st_blocks * 512
            self.file_count += 1

    @property
    def etag(self) -> str:
        """Of what was added."""
        return f'"{self._digest.hexdigest()[:32]}"'


def look_at_tree(folder: int, wanted: Callable[[], bool] = lambda: True, *, most: int = 0) -> TreeLook:
    """Look at everything in a folder.

    Args:
        folder: A descriptor of it, for reading.
        wanted: False: give it up.
        most: How much may be in it; 0: anything. More raises TooManyNames.
    """
    look = TreeLook()
    for entry in list_entries(folder, "", recursive=True, most=most):
        if not wanted():
            break
        # The size of a folder is the file system's business.
        look.add(entry.path, entry.info, entry.target)
    return look
