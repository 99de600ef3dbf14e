"""The workspaces of sessions: the files that agents work on. They outlive processes and workers.

A session's folder holds

    id              whose it is, so that a wrong mount is noticed
    files/          the workspace; nothing else is visible to an isolated agent
    checkpoints/    {run}.tar: the files as they were when that run began
    incoming/       uploads that are under way

Beside these folders is `removed/`: what was set aside, and is still to be removed.

A workspace is made once. One that was made and is not there is an error and never replaced by an empty one. Everything
here blocks: call it in a thread. Whatever an agent has put into its workspace, and may be changing meanwhile, no link
is followed: folders are walked by descriptor.
"""

import contextlib
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

__all__ = ["CheckpointTooLarge", "Entry", "WorkspaceError", "WorkspaceLost", "WorkspaceStore", "tar_info", "walk_open"]

# Folders within folders; each costs a file descriptor while it is walked.
_MAX_DEPTH = 200
_BUFFER = 1024 * 1024
_EXCHANGE_TRIES, _EXCHANGE_WAIT = 4, 0.05
_TAR_BLOCK = tarfile.BLOCKSIZE
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WorkspaceError(Exception):
    """The files cannot be read, copied or written. The message is for people and holds no path of the host."""


class WorkspaceLost(WorkspaceError):
    """The workspace was made and is not there."""


class CheckpointTooLarge(WorkspaceError):
    """The files are more than a checkpoint may hold."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder, a file (with its content) or a symbolic link (with its target), relative to where the walk began."""

    path: str
    info: os.stat_result
    content: BinaryIO | None = None
    target: str = ""


class WorkspaceStore:
    """All workspaces.

    Args:
        root: Where they are: one path, on all workers and edges when there are several hosts.
        checkpoint_limit: Bytes that one checkpoint may have.
        checkpoints_kept: How many checkpoints of a session are kept, the newest.
    """

    def __init__(self, root: Path, *, checkpoint_limit: int, checkpoints_kept: int) -> None:
        self._root = root.resolve()
        self._limit = checkpoint_limit
        self._kept = checkpoints_kept

    def path(self, session_id: UUID) -> Path:
        """Where a session's files are, or will be."""
        return self._folder(session_id) / "files"

    def _folder(self, session_id: UUID) -> Path:
        return self._root / str(session_id)

    def _checkpoint(self, session_id: UUID, run_id: UUID) -> Path:
        return self._folder(session_id) / "checkpoints" / f"{run_id}.tar"

    # ---- Made once, opened ever after ----

    def create(self, session_id: UUID) -> None:
        """Make an empty workspace, or find the one that was made before this could be noted. Raises WorkspaceError."""
        folder = self._folder(session_id)
        with _told("make the workspace"):
            self.path(session_id).mkdir(mode=0o700, parents=True, exist_ok=True)
            _mark(folder, session_id)

    def open(self, session_id: UUID) -> None:
        """Make sure that a workspace which was made is there. Raises WorkspaceLost."""
        try:
            marked = (self._folder(session_id) / "id").read_text().strip() == str(session_id)
            if marked:
                self._recover(session_id)
        except OSError:
            marked = False
        if not marked or not self.path(session_id).is_dir():
            raise WorkspaceLost(
                "the files of the session are gone, or this machine does not see them: restore them, or use another "
                "session"
            )

    def find(self, session_id: UUID) -> int:
        """A descriptor of the folder with the files, for reading. Raises WorkspaceLost.

        Unlike `open` it mends nothing, so that it may be called at any time from anywhere.
        """
        for _ in range(_EXCHANGE_TRIES):
            with contextlib.suppress(OSError):
                if (self._folder(session_id) / "id").read_text().strip() == str(session_id):
                    return os.open(self.path(session_id), _OPEN | os.O_DIRECTORY)
            # Between two renames of an exchange there is none for a moment.
            time.sleep(_EXCHANGE_WAIT)
        raise WorkspaceLost("the files of the session are gone, or this server does not see them")

    def has(self, session_id: UUID) -> bool:
        """Whether this machine sees a workspace."""
        return (self._folder(session_id) / "id").is_file()

    def incoming(self, session_id: UUID) -> Path:
        """Where uploads are until they are whole: on the same file system, and not visible to an isolated agent."""
        return self._folder(session_id) / "incoming"

    def replace(self, session_id: UUID, fresh: Path) -> None:
        """Make the workspace of a session from a folder of `make_fresh`, whatever there was. Raises WorkspaceError."""
        with _told("restore the workspace"):
            self._recover(session_id)
            if self.path(session_id).exists():
                self.exchange(session_id, fresh)
            else:
                fresh.rename(self.path(session_id))
            _mark(self._folder(session_id), session_id)

    def make_fresh(self, session_id: UUID) -> Path:
        """An empty folder beside the files, for `replace` or `discard`. Raises WorkspaceError."""
        # A name of its own for each: of two at once neither takes the other's.
        fresh = self._folder(session_id) / f"files.{os.urandom(8).hex()}"
        with _told("make the workspace"):
            fresh.mkdir(mode=0o700, parents=True)
        return fresh

    def remove(self, session_id: UUID) -> None:
        """Remove a workspace and its checkpoints."""
        _remove(self._folder(session_id))
        self.remove_aside(session_id)

    def set_aside(self, session_id: UUID) -> None:
        """Take a workspace and its checkpoints away, if there are any, by one rename. Raises WorkspaceError.

        `remove_aside` goes after it: that takes its time, and harms no workspace that is made meanwhile.
        """
        with _told("remove the workspace"), contextlib.suppress(FileNotFoundError):
            self._removed.mkdir(mode=0o700, exist_ok=True)
            # A name of its own: what is left of an earlier time is not in its way.
            self._folder(session_id).rename(self._removed / f"{session_id}.{os.urandom(8).hex()}")

    def remove_aside(self, session_id: UUID | None = None) -> None:
        """Remove what was set aside, of a session or of all."""
        for folder in list(self._removed.glob(f"{session_id or ''}*")):
            _remove(folder)

    @property
    def _removed(self) -> Path:
        return self._root / "removed"

    # ---- Checkpoints ----

    def checkpoint(self, session_id: UUID, run_id: UUID, *, wanted: Callable[[], bool] = lambda: True) -> None:
        """Keep the files as they are now, before a run; one that is there already stays.

        Args:
            session_id: The session.
            run_id: The run that begins.
            wanted: False: give it up.

        Raises:
            CheckpointTooLarge: The files are more than the limit allows. There is no checkpoint.
            WorkspaceError: They could not be read or written. There is no checkpoint.
        """
        path = self._checkpoint(session_id, run_id)
        fresh = path.with_suffix(".new")
        with _told("keep a checkpoint"):
            if path.exists():
                return
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                self._write(self.path(session_id), fresh, wanted)
                fresh.rename(path)
            finally:
                fresh.unlink(missing_ok=True)
            # Ids of runs are UUIDv7: in order of creation.
            for old in sorted(path.parent.glob("*.tar"))[: -self._kept]:
                old.unlink(missing_ok=True)

    def _write(self, files: Path, fresh: Path, wanted: Callable[[], bool]) -> None:
        size = 0
        with fresh.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in _walk(files):
                length = entry.info.st_size if entry.content is not None else 0
                size += 2 * _TAR_BLOCK + length
                if size > self._limit:
                    raise CheckpointTooLarge(f"the workspace has more than {self._limit} bytes")
                if not wanted():
                    raise WorkspaceError("given up")
                tar.addfile(tar_info(entry, length), entry.content)

    def has_checkpoint(self, session_id: UUID, run_id: UUID) -> bool:
        """Whether the files can go back to the beginning of a run."""
        return self._checkpoint(session_id, run_id).is_file()

    def unpack(self, session_id: UUID, run_id: UUID) -> Path:
        """The files of a checkpoint in a fresh folder, for `exchange` and then `discard`. Raises WorkspaceError."""
        fresh = self.make_fresh(session_id)
        with _told("restore the checkpoint"):
            try:
                with tarfile.open(self._checkpoint(session_id, run_id)) as tar:
                    tar.extractall(fresh, filter=_only_plain)  # noqa: S202 - that is what the filter is for
            except BaseException:
                _remove(fresh)
                raise
        return fresh

    def exchange(self, session_id: UUID, fresh: Path) -> None:
        """Let a fresh folder and the files change places; done again, they change back. Raises WorkspaceError."""
        files, old = self.path(session_id), self._old(session_id)
        with _told("restore the checkpoint"):
            self._recover(session_id)
            for source, target in ((files, old), (fresh, files), (old, fresh)):
                if source.exists():
                    source.rename(target)

    def _old(self, session_id: UUID) -> Path:
        return self._folder(session_id) / "files.old"

    def _recover(self, session_id: UUID) -> None:
        """What an exchange that was cut short has left."""
        files, old = self.path(session_id), self._old(session_id)
        if files.exists():
            _remove(old)
        elif old.exists():
            old.rename(files)

    def discard(self, fresh: Path) -> None:
        """Remove what `unpack` has made, or what an exchange has put there."""
        _remove(fresh)

    # ---- Copies ----

    def copy(self, session_id: UUID, to: UUID) -> None:
        """Make the workspace of a new session as a copy of another's.

        Raises:
            WorkspaceLost: There is none to be copied.
            WorkspaceError: It could not be copied. Nothing is left of the copy.
        """
        self.open(session_id)
        with _told("copy the workspace"):
            try:
                files = self.path(to)
                files.mkdir(mode=0o700, parents=True)
                _copy(self.path(session_id), files)
                _mark(self._folder(to), to)
            except BaseException:
                self.remove(to)
                raise


def _mark(folder: Path, session_id: UUID) -> None:
    # Last, and at once: whoever sees it sees a whole workspace.
    fresh = folder / "id.new"
    fresh.write_text(f"{session_id}\n")
    fresh.rename(folder / "id")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the file system as WorkspaceError, without the host's paths."""
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise WorkspaceError(f"could not {what}: {why}") from error


def _walk(folder: Path) -> Iterator[Entry]:
    """Everything below a folder: folders before what is in them. Sockets, pipes and devices are left out."""
    top = os.open(folder, _OPEN | os.O_DIRECTORY)
    try:
        yield from walk_open(top, "", 0)
    finally:
        os.close(top)


def walk_open(folder: int, path: str = "", depth: int = 0) -> Iterator[Entry]:
    """As `_walk`, of a folder that is open. `path` begins the entries' paths: empty, or with a slash at its end."""
    if depth > _MAX_DEPTH:
        raise WorkspaceError(f"folders are nested more than {_MAX_DEPTH} deep")
    for name in sorted(os.listdir(folder)):
        # An agent's background process may remove what was listed.
        with contextlib.suppress(FileNotFoundError):
            yield from _walk_entry(folder, name, f"{path}{name}", depth)


def _walk_entry(folder: int, name: str, path: str, depth: int) -> Iterator[Entry]:
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(info.st_mode):
        yield Entry(path, info, target=os.readlink(name, dir_fd=folder))
        return
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        return
    number = os.open(name, _OPEN, dir_fd=folder)
    try:
        # Again, of what was really opened.
        info = os.fstat(number)
        if stat.S_ISDIR(info.st_mode):
            yield Entry(path, info)
            yield from walk_open(number, f"{path}/", depth + 1)
        elif stat.S_ISREG(info.st_mode):
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


def _only_plain(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
    """Files, folders and links as links, all below the destination; no owners, no set-uid."""
    if not (member.isreg() or member.isdir() or member.issym()):
        return None
    # It refuses names that lead out, through links too, and would change the mode.
    safe = tarfile.tar_filter(member, destination)
    return safe.replace(mode=member.mode & 0o777, uid=None, gid=None, uname=None, gname=None, deep=False)  # type: ignore[arg-type]


def _copy(source: Path, target: Path) -> None:
    folders: list[tuple[Path, Entry]] = []
    for entry in _walk(source):
        path = target / entry.path
        if entry.content is not None:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:  # noqa: PTH123
                shutil.copyfileobj(entry.content, out, _BUFFER)
                os.fchmod(out.fileno(), entry.info.st_mode & 0o777)
            os.utime(path, ns=(entry.info.st_atime_ns, entry.info.st_mtime_ns))
        elif stat.S_ISDIR(entry.info.st_mode):
            path.mkdir(mode=0o700)
            folders.append((path, entry))
        else:
            path.symlink_to(entry.target)
    # Last and from within: a folder may be read-only.
    for path, entry in reversed(folders):
        os.utime(path, ns=(entry.info.st_atime_ns, entry.info.st_mtime_ns))
        path.chmod(entry.info.st_mode & 0o777)


def _remove(folder: Path) -> None:
    """Remove a folder, also one in which folders may not be written."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path, folders, _ in os.walk(folder):
            for name in folders:
                if not (below := Path(path, name)).is_symlink():
                    with contextlib.suppress(OSError):
                        below.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
