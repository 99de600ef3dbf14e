"""Whole trees that agents write: walked, copied and removed by descriptor.

An agent may put a link, a pipe or a folder in the place of anything, nest folders deeper than any path is long, close
folders to their owner, and go on doing so meanwhile. So nothing here follows a link, opens what is neither a file nor a
folder, or takes more stack or descriptors for a deeper tree than it is allowed. Everything blocks: call it in a thread.

The folder *above* a tree is the service's own: only where that holds is a tree found by its path. Of hard links see
`workspace_paths.py`.
"""

import contextlib
import errno
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from agentrpc.claude.workspace_paths import MAX_DEPTH, find, reopen

__all__ = [
    "Entry",
    "WorkspaceError",
    "copy_tree",
    "enter",
    "give_tree",
    "inherit",
    "names_in",
    "new_file",
    "new_folder",
    "own_folder",
    "remove_at",
    "remove_tree",
    "tar_info",
    "walk_open",
]

# Names of one folder are held at once, to be sorted.
MAX_NAMES = 1_000_000
_BUFFER = 1024 * 1024
_TRIES = 8
_FIND = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY


class WorkspaceError(Exception):
    """The files cannot be read, copied or written. The message is for people and holds no path of the host."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder, a file (with its content) or a symbolic link (with its target), relative to where the walk began."""

    path: str
    info: os.stat_result
    content: BinaryIO | None = None
    target: str = ""


# ---- Walking ----


def names_in(folder: int) -> list[str]:
    """What is in a folder, sorted. Raises WorkspaceError when that is too much to be held at once."""
    with os.scandir(folder) as found:
        names = [entry.name for entry in islice(found, MAX_NAMES + 1)]
    if len(names) > MAX_NAMES:
        raise WorkspaceError(f"a folder holds more than {MAX_NAMES} entries")
    return sorted(names)


def walk_open(folder: int, path: str = "", depth: int = 0) -> Iterator[Entry]:
    """Everything below a folder: folders before what is in them. Sockets, pipes and devices are left out.

    Args:
        folder: A descriptor of it, for reading.
        path: Begins the entries' paths: empty, or with a slash at its end.
        depth: How deep it is.

    Raises:
        WorkspaceError: Folders are nested too deep, or hold too much.
    """
    if depth > MAX_DEPTH:
        raise WorkspaceError(f"folders are nested more than {MAX_DEPTH} deep")
    for name in names_in(folder):
        # An agent's background process may remove what was listed.
        with contextlib.suppress(FileNotFoundError):
            yield from _walk_entry(folder, name, f"{path}{name}", depth)


def _walk_entry(folder: int, name: str, path: str, depth: int) -> Iterator[Entry]:
    found = os.open(name, _FIND, dir_fd=folder)
    try:
        info = os.fstat(found)
        if stat.S_ISLNK(info.st_mode):
            yield Entry(path, info, target=os.readlink("", dir_fd=found))
            return
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            return
        number = reopen(found, os.O_RDONLY)
    finally:
        os.close(found)
    try:
        if stat.S_ISDIR(info.st_mode):
            yield Entry(path, info)
            yield from walk_open(number, f"{path}/", depth + 1)
        else:
            with open(number, "rb", closefd=False) as content:
                yield Entry(path, info, content)
    finally:
        os.close(number)


def tar_info(entry: Entry, length: int) -> tarfile.TarInfo:
    """The header of an entry with so many bytes, without owners."""
    info = tarfile.TarInfo(entry.path)
    info.mode = stat.S_IMODE(entry.info.st_mode)
    info.mtime = int(entry.info.st_mtime)
    info.size = length
    if stat.S_ISDIR(entry.info.st_mode):
        info.type = tarfile.DIRTYPE
    elif entry.content is None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    return info


# ---- Copying ----


def copy_tree(source: int, target: int) -> None:
    """Copy what is in a folder into an empty one; holes of files stay holes. Raises OSError, WorkspaceError.

    Args:
        source: A descriptor of a folder, for reading.
        target: A descriptor of the empty one.
    """
    folders: list[Entry] = []
    for entry in walk_open(source):
        head, _, name = entry.path.rpartition("/")
        parent = find(target, head or ".")
        try:
            if entry.content is not None:
                _copy_file(entry, parent, name)
            elif stat.S_ISDIR(entry.info.st_mode):
                os.close(new_folder(parent, name))
                folders.append(entry)
            else:
                os.symlink(entry.target, name, dir_fd=parent)
        finally:
            os.close(parent)
    # Last and from within: a folder may be read-only.
    for entry in reversed(folders):
        found = find(target, entry.path)
        try:
            made = reopen(found, _FOLDER)
        finally:
            os.close(found)
        _take_over(made, entry.info)
        os.close(made)


def _copy_file(entry: Entry, parent: int, name: str) -> None:
    assert entry.content is not None
    out = new_file(parent, name)
    try:
        os.ftruncate(out, entry.info.st_size)
        for at, length in _pieces(entry.content.fileno(), entry.info.st_size):
            view, to = memoryview(os.pread(entry.content.fileno(), length, at)), at
            while view:
                done = os.pwrite(out, view, to)
                view, to = view[done:], to + done
        _take_over(out, entry.info)
    finally:
        os.close(out)


def _pieces(number: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has bytes: (offset, length) of pieces that fit into memory."""
    end = 0
    while end < size:
        try:
            at = os.lseek(number, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(number, at, os.SEEK_HOLE), size)
        yield from ((piece, min(_BUFFER, end - piece)) for piece in range(at, end, _BUFFER))


def _take_over(number: int, info: os.stat_result) -> None:
    os.fchmod(number, info.st_mode & 0o777)
    os.utime(number, ns=(info.st_atime_ns, info.st_mtime_ns))


# ---- Folders of ours among an agent's files ----


def enter(parent: int, name: str) -> int | None:
    """A descriptor of a folder, for reading, opened up if its owner may not use it; None: there is no folder."""
    try:
        found = os.open(name, _FIND, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISDIR(mode):
            return None
        if mode & 0o700 != 0o700:
            with contextlib.suppress(PermissionError):
                # Of exactly what was found: an O_PATH descriptor has no fchmod.
                Path(f"/proc/self/fd/{found}").chmod(mode & 0o7777 | 0o700)
        return reopen(found, _FOLDER)
    finally:
        os.close(found)


def own_folder(parent: int, name: str) -> int:
    """A descriptor of a folder that has to be there, in one that an agent writes to: whatever else is there goes."""
    for _ in range(_TRIES):
        if (found := enter(parent, name)) is not None:
            return found
        remove_at(parent, name)
        with contextlib.suppress(FileExistsError):
            return new_folder(parent, name)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def new_file(parent: int, name: str) -> int:
    """A descriptor of a new file, for writing; it is whose the folder is. Raises FileExistsError."""
    made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    inherit(made, parent)
    return made


def new_folder(parent: int, name: str, mode: int = 0o700) -> int:
    """A descriptor of a new folder, for reading; it is whose the folder around it is. Raises FileExistsError."""
    os.mkdir(name, mode, dir_fd=parent)
    made = os.open(name, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    inherit(made, parent)
    return made


# ---- Whose files are ----


def inherit(made: int, folder: int) -> None:
    """Let a new file or folder be whose the folder around it is: an agent with a uid of its own has to use it."""
    own, wanted = os.fstat(made), os.fstat(folder)
    if os.geteuid() == 0 and (own.st_uid, own.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.fchown(made, wanted.st_uid, wanted.st_gid)


def give_tree(top: int, uid: int) -> None:
    """Give a folder, and all that is in it, to a user; nobody else is at it meanwhile.

    The folder itself comes last: if it is the user's, so is the rest, and nothing is done; what was cut short is done
    again. A file that has several names and another owner than the folder stays as it is: an agent could have linked
    it from elsewhere. Any depth takes one more descriptor at most.

    Args:
        top: A descriptor of the folder, for reading.
        uid: Whose it is from now on; its group has the same number.
    """
    before = os.fstat(top)
    if before.st_uid == uid:
        return
    at = os.dup(top)
    # Of each folder on the way down: which it is, and what is still to be looked at in it.
    way: list[tuple[os.stat_result, Iterator[str]]] = [(before, iter(names_in(at)))]
    try:
        while way:
            name = next(way[-1][1], None)
            if name is None:
                way.pop()
                if way:
                    at = _moved(at, "..", way[-1][0])
                continue
            info = os.stat(name, dir_fd=at, follow_symlinks=False)
            is_folder = stat.S_ISDIR(info.st_mode)
            if info.st_uid != before.st_uid and not is_folder and info.st_nlink > 1:
                continue
            if not is_folder:
                os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False)
            elif info.st_dev == before.st_dev:
                at = _moved(at, name, info)
                os.fchown(at, uid, uid)
                way.append((info, iter(names_in(at))))
    finally:
        os.close(at)
    os.fchown(top, uid, uid)


def _moved(at: int, name: str, wanted: os.stat_result) -> int:
    """A descriptor of another folder in the place of this one; which it is was seen before."""
    found = os.open(name, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    info = os.fstat(found)
    if (info.st_dev, info.st_ino) != (wanted.st_dev, wanted.st_ino):
        os.close(found)
        raise WorkspaceError("folders were moved while they were given to another user")
    os.close(at)
    return found


# ---- Removing ----


def remove_tree(path: Path, *, seconds: float = float("inf")) -> bool:
    """Remove what is at a path, as `remove_at`; the folder above it is the service's own."""
    try:
        parent = os.open(path.parent, _FOLDER | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return remove_at(parent, path.name, seconds=seconds)
    finally:
        os.close(parent)


def remove_at(parent: int, name: str, *, seconds: float = float("inf")) -> bool:
    """Remove what has a name in a folder: also closed folders, of any depth, with a few descriptors.

    Args:
        parent: A descriptor of the folder.
        name: Of anything in it; a link goes, and what it points to stays.
        seconds: After which it is given up.

    Returns:
        Whether it is gone. What an agent goes on putting there may stay, and what the file system does not let go.
    """
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=parent)
    with contextlib.suppress(OSError):
        if (top := enter(parent, name)) is not None:
            try:
                _Removal(top, time.monotonic() + seconds).run()
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=parent)
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


class _Removal:
    """Empties a folder. Folders in folders are moved up to it first, so that none is ever deep."""

    def __init__(self, top: int, until: float) -> None:
        self._top = top
        self._until = until
        self._prefix = f".{os.urandom(8).hex()}."
        self._moved = 0
        self._left: list[str] = []

    def run(self) -> None:
        self._empty(self._top)
        while self._left and time.monotonic() < self._until:
            name = self._left.pop()
            with contextlib.suppress(OSError):
                if (folder := enter(self._top, name)) is not None:
                    try:
                        self._empty(folder)
                    finally:
                        os.close(folder)
                    os.rmdir(name, dir_fd=self._top)
                else:
                    os.unlink(name, dir_fd=self._top)

    def _empty(self, folder: int) -> None:
        with os.scandir(folder) as found:
            for entry in found:
                if time.monotonic() > self._until:
                    return
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=folder)
                    elif folder == self._top:
                        self._left.append(entry.name)
                    else:
                        self._lift(folder, entry.name)

    def _lift(self, folder: int, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError:
            # One that its owner may not write to cannot be moved.
            if (below := enter(folder, name)) is not None:
                os.close(below)
            self._moved += 1
            lifted = f"{self._prefix}{self._moved}"
            os.rename(name, lifted, src_dir_fd=folder, dst_dir_fd=self._top)
            self._left.append(lifted)
