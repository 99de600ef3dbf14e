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
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from agentrpc.claude.workspace_archives import unpack
from agentrpc.claude.workspace_trees import WorkspaceError, copy_tree, remove_tree, tar_info, walk_open
from agentrpc.errors import AgentRpcError

__all__ = ["CheckpointTooLarge", "WorkspaceError", "WorkspaceLost", "WorkspaceStore"]

_EXCHANGE_TRIES, _EXCHANGE_WAIT = 4, 0.05
# What other sessions have left waits behind it.
_REMOVE_SECONDS = 60.0
_TAR_BLOCK = tarfile.BLOCKSIZE
_EVERYTHING = 2**62
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class WorkspaceLost(WorkspaceError):
    """The workspace was made and is not there."""


class CheckpointTooLarge(WorkspaceError):
    """The files are more than a checkpoint may hold."""


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

    def _make_folder(self, session_id: UUID) -> None:
        """Whom a worker lets in besides is its business: see `agent_users.py`."""
        self._folder(session_id).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _checkpoint(self, session_id: UUID, run_id: UUID) -> Path:
        return self._folder(session_id) / "checkpoints" / f"{run_id}.tar"

    # ---- Made once, opened ever after ----

    def create(self, session_id: UUID) -> None:
        """Make an empty workspace, or find the one that was made before this could be noted. Raises WorkspaceError."""
        folder = self._folder(session_id)
        with _told("make the workspace"):
            self._make_folder(session_id)
            self.path(session_id).mkdir(mode=0o700, exist_ok=True)
            _mark(folder, session_id)

    def open(self, session_id: UUID) -> None:
        """Make sure that a workspace which was made is there. Raises WorkspaceLost."""
        try:
            marked = (self._folder(session_id) / "id").read_text().strip() == str(session_id)
            if marked:
                self._recover(session_id)
                # An agent may have closed it.
                self.path(session_id).chmod(0o700)
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
                    return os.open(self.path(session_id), _FOLDER)
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
            self._make_folder(session_id)
            fresh.mkdir(mode=0o700)
        return fresh

    def remove(self, session_id: UUID) -> None:
        """Remove a workspace and its checkpoints."""
        remove_tree(self._folder(session_id))
        self.remove_aside(session_id)

    def set_aside(self, session_id: UUID) -> None:
        """Take a workspace and its checkpoints away, if there are any, by one rename. Raises WorkspaceError.

        `remove_aside` goes after it: that takes its time, and harms no workspace that is made meanwhile.
        """
        with _told("remove the workspace"), contextlib.suppress(FileNotFoundError):
            self._folder(session_id).rename(self.make_aside(session_id))

    def remove_aside(self, session_id: UUID | None = None) -> None:
        """Remove what was set aside, of a session or of all; what takes very long is left to the next time."""
        for folder in list(self._removed.glob(f"{session_id or ''}*")):
            remove_tree(folder, seconds=_REMOVE_SECONDS)

    def make_aside(self, session_id: UUID) -> Path:
        """A new name for something of a workspace that is to be removed, where no agent is. Raises OSError."""
        self._removed.mkdir(mode=0o700, exist_ok=True)
        # A name of its own: what is left of an earlier time is not in its way.
        return self._removed / f"{session_id}.{os.urandom(8).hex()}"

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
        with (
            _opened(files) as top,
            fresh.open("wb") as out,
            tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for entry in walk_open(top):
                length = entry.info.st_size if entry.content is not None else 0
                size += 2 * _TAR_BLOCK + length
                if size > self._limit:
                    raise CheckpointTooLarge(f"the workspace has more than {self._limit} bytes")
                if not wanted():
                    raise WorkspaceError("given up")
                tar.addfile(tar_info(entry, length), entry.content)
                # It would keep all that it has written.
                tar.members.clear()  # type: ignore[attr-defined]

    def has_checkpoint(self, session_id: UUID, run_id: UUID) -> bool:
        """Whether the files can go back to the beginning of a run."""
        return self._checkpoint(session_id, run_id).is_file()

    def unpack(self, session_id: UUID, run_id: UUID) -> Path:
        """The files of a checkpoint in a fresh folder, for `exchange` and then `discard`. Raises WorkspaceError."""
        fresh = self.make_fresh(session_id)
        with _told("restore the checkpoint"):
            try:
                with self._checkpoint(session_id, run_id).open("rb") as tar:
                    unpack(tar, fresh, max_members=_EVERYTHING, room=_EVERYTHING, ours=True)
            except BaseException:
                remove_tree(fresh)
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
            remove_tree(old)
        elif old.exists():
            old.rename(files)

    def discard(self, fresh: Path, *, seconds: float = float("inf")) -> None:
        """Remove what `unpack` has made, an exchange has put there, or `make_aside` has named: for so long."""
        remove_tree(fresh, seconds=seconds)

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
                self._make_folder(to)
                files = self.path(to)
                files.mkdir(mode=0o700)
                with _opened(self.path(session_id)) as source, _opened(files) as target:
                    copy_tree(source, target)
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
def _opened(folder: Path) -> Iterator[int]:
    number = os.open(folder, _FOLDER)
    try:
        yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the file system as WorkspaceError, without the host's paths."""
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise WorkspaceError(f"could not {what}: {why}") from error
    except AgentRpcError as error:
        # Of a checkpoint that is damaged, or leads out.
        raise WorkspaceError(f"could not {what}: {error.message}") from error
