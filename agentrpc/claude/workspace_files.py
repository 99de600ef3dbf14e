"""Files of a workspace: read, written as a whole, and deleted. What is in it: `workspace_lists.py`.

Everything here blocks: call it in a thread. Paths are resolved as `workspace_paths.py` says; `folder` is a descriptor
of the folder with the files. What comes from callers is first written to `incoming/` beside that folder, where no
isolated agent sees it, and gets its place by one rename.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from agentrpc.claude.workspace_lists import FileEntry
from agentrpc.claude.workspace_paths import (
    missing,
    open_beneath,
    open_file,
    path_invalid,
    shown,
    unreadable,
)
from agentrpc.claude.workspace_trees import enter, give_tree, inherit, new_folder, remove_tree
from agentrpc.errors import Aborted, FailedPrecondition

__all__ = [
    "Incoming",
    "check_unchanged",
    "checksum",
    "delete",
    "etag_of_file",
    "inspect",
    "make_folders",
    "place_tree",
]

_CHUNK = 1024 * 1024
_STALE = 86400.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def etag_of_file(info: os.stat_result) -> str:
    """The etag of a file. With the change time, which nobody sets: a write that puts the old time back is noticed."""
    text = f"{info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def check_unchanged(etag: str, info: os.stat_result, path: str) -> None:
    """Raise ETAG_MISMATCH unless the etag is empty or that of the file."""
    current = etag_of_file(info)
    if etag and etag != current:
        raise Aborted(
            f"{shown(path)[:200]!r} was changed meanwhile: read it again",
            reason="ETAG_MISMATCH",
            metadata={"etag": current},
        )


# ---- Reading ----


def inspect(folder: int, path: str) -> FileEntry:
    """What is at a path. Raises as `open_beneath`."""
    found = open_beneath(folder, path)
    try:
        info = os.fstat(found)
        target = os.readlink("", dir_fd=found) if stat.S_ISLNK(info.st_mode) else ""
        return FileEntry(path, info, target)
    finally:
        os.close(found)


def checksum(
    folder: int, path: str, etag: str, wanted: Callable[[], bool] = lambda: True
) -> tuple[os.stat_result, str]:
    """The SHA-256 of a file, and what it was when it was read. Raises as `open_file`; ETAG_MISMATCH if it changes."""
    number = open_file(folder, path)
    try:
        before = os.fstat(number)
        # It may have grown beyond what the caller would have read.
        check_unchanged(etag, before, path)
        digest = hashlib.sha256()
        left = before.st_size
        while left > 0 and wanted() and (data := os.read(number, min(left, _CHUNK))):
            digest.update(data)
            left -= len(data)
        check_unchanged(etag_of_file(before), os.fstat(number), path)
        return before, digest.hexdigest()
    finally:
        os.close(number)


# ---- Writing ----


class Incoming:
    """A file on its way in.

    Args:
        beside: `incoming/` of the session; made if missing.

    Attributes:
        size: What has been written.
        path: Where it is.
    """

    def __init__(self, beside: Path) -> None:
        beside.mkdir(mode=0o700, exist_ok=True)
        _forget_stale(beside)
        self.path = beside / os.urandom(12).hex()
        self.size = 0
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Add to it."""
        self._digest.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    @property
    def sha256(self) -> str:
        """Of what has been written."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Make sure that it outlives the machine: before the rename, which must not be what is left."""
        os.fsync(self._file)

    def place(
        self, folder: int, path: str, *, overwrite: bool, executable: bool, etag: str, sha256: str
    ) -> os.stat_result:
        """Put it into a workspace, at once.

        Args:
            folder: The workspace.
            path: Where.
            overwrite: In the place of what is there.
            executable: Whether its owner may run it.
            etag: If set, of the file that is there.
            sha256: If set: without `overwrite`, a file that is there with this content will do.

        Raises:
            FailedPrecondition: STATE_INVALID: it exists.
            Aborted: ETAG_MISMATCH.
            InvalidArgument: PATH_INVALID: it is a folder, or the path leads through a file or a link.
        """
        os.fchmod(self._file, 0o755 if executable else 0o644)
        head, _, name = path.rpartition("/")
        parent = make_folders(folder, head)
        try:
            inherit(self._file, parent)
            there = _stat_at(parent, name)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise path_invalid(path, "is a folder")
            if etag:
                if there is None:
                    raise missing(path)
                check_unchanged(etag, there, path)
            if overwrite:
                os.rename(self.path, name, dst_dir_fd=parent)
                return os.fstat(self._file)
            try:
                # Unlike a rename it replaces nothing.
                os.link(self.path, name, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                there = os.stat(name, dir_fd=parent, follow_symlinks=False)
                same_size = stat.S_ISREG(there.st_mode) and there.st_size == self.size
                if same_size and sha256 and checksum(parent, name, etag_of_file(there))[1] == sha256:
                    return there
                raise _exists(path) from None
            self.path.unlink()
            return os.fstat(self._file)
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(parent)

    def close(self) -> None:
        """Give it up; what has got its place stays there."""
        os.close(self._file)
        self.path.unlink(missing_ok=True)


def _exists(path: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{shown(path)[:200]!r} exists: set overwrite, or choose another path",
        reason="STATE_INVALID",
        metadata={"state": "EXISTS"},
    )


def _forget_stale(beside: Path) -> None:
    """What uploads have left whose server was killed."""
    now = time.time()
    for entry in os.scandir(beside):
        with contextlib.suppress(OSError):
            if now - entry.stat(follow_symlinks=False).st_mtime > _STALE:
                remove_tree(Path(entry.path))


def _stat_at(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_folders(folder: int, path: str, made: Callable[[], None] = lambda: None) -> int:
    """A descriptor of the folder at a path, which is made, with those on the way; `made` is called for each of them.

    Raises PATH_INVALID, and what `made` raises.
    """
    at = os.dup(folder)
    try:
        for name in path.split("/") if path else ():
            with contextlib.suppress(FileExistsError):
                os.close(new_folder(at, name, 0o755))
                made()
            try:
                below = os.open(name, _FOLDER, dir_fd=at)
            except OSError as error:
                raise path_invalid(path, "leads through a file or a symbolic link") from error
            os.close(at)
            at = below
    except OSError as error:
        os.close(at)
        raise unreadable(path, error) from error
    except BaseException:
        os.close(at)
        raise
    return at


def place_tree(source: Path, folder: int, path: str, *, overwrite: bool) -> None:
    """Move what is in a folder of ours into one of the workspace; folders that are there already get what they lack.

    Args:
        source: The folder of ours.
        folder: The workspace.
        path: Where to.
        overwrite: Files in the place of those that are there.

    Raises:
        FailedPrecondition: STATE_INVALID: something exists, and nothing was moved.
        InvalidArgument: PATH_INVALID: a folder would take the place of a file, or the reverse; nothing was moved.
    """
    target = make_folders(folder, path)
    own = -1
    try:
        own = os.open(source, _FOLDER)
        _merge(own, target, path, overwrite=overwrite, move=False)
        if os.geteuid() == 0:
            give_tree(own, os.fstat(target).st_uid)
        _merge(own, target, path, overwrite=overwrite, move=True)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(target)
        if own >= 0:
            os.close(own)


def _merge(source: int, target: int, path: str, *, overwrite: bool, move: bool) -> None:
    for name in os.listdir(source):
        here = f"{path}/{name}" if path else name
        info, there = os.stat(name, dir_fd=source, follow_symlinks=False), _stat_at(target, name)
        if there is not None and stat.S_ISDIR(info.st_mode) != stat.S_ISDIR(there.st_mode):
            raise path_invalid(here, "is a folder in one place and a file in the other")
        if there is not None and stat.S_ISDIR(info.st_mode):
            below, beside = os.open(name, _FOLDER, dir_fd=source), -1
            try:
                beside = os.open(name, _FOLDER, dir_fd=target)
                _merge(below, beside, here, overwrite=overwrite, move=move)
            finally:
                os.close(below)
                if beside >= 0:
                    os.close(beside)
        elif there is not None and not overwrite:
            raise _exists(here)
        elif move:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


# ---- Deleting ----


def delete(folder: int, path: str, make_aside: Callable[[], Path], *, recursive: bool, etag: str) -> Path | None:
    """Take something out of a workspace, at once.

    Args:
        folder: The workspace.
        path: What.
        make_aside: Names a place where a folder with something in it goes, to be removed without haste.
        recursive: Also a folder with something in it.
        etag: If set, of the file that is there.

    Returns:
        What is left to be removed.

    Raises:
        NotFound: There is nothing.
        FailedPrecondition: STATE_INVALID: the folder is not empty.
        Aborted: ETAG_MISMATCH.
    """
    head, _, name = path.rpartition("/")
    parent = open_beneath(folder, head)
    try:
        mode = os.fstat(parent).st_mode
        if stat.S_ISLNK(mode):
            raise path_invalid(path, "leads through a symbolic link, and none is followed: name its target")
        if not stat.S_ISDIR(mode):
            raise missing(path)
        there = _stat_at(parent, name)
        if there is None:
            raise missing(path)
        check_unchanged(etag, there, path)
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
        elif recursive:
            gone = make_aside()
            if (opened := enter(parent, name)) is not None:
                # One that its owner may not write to cannot be moved.
                os.close(opened)
            os.rename(name, gone, src_dir_fd=parent)
            return gone
        else:
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise FailedPrecondition(
                        f"{shown(path)[:200]!r} is not empty: set recursive",
                        reason="STATE_INVALID",
                        metadata={"state": "NOT_EMPTY"},
                    ) from error
                raise
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(parent)
    return None
