"""The files of sessions: listed, read, uploaded and deleted by callers, at any time.

Whoever may see a session may read its files; who may write, may change them until the session is closed. The edge
touches the files itself, through `claude/workspace_files.py`. What changes a workspace does so under the head row's
lock, which orders it among closing, going back and archiving; bytes are moved before that.
"""

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from agentrpc import clock
from agentrpc.claude.workspace_archives import IncomingArchive, unpack
from agentrpc.claude.workspace_files import Incoming, checksum, delete, inspect, place_tree
from agentrpc.claude.workspace_lists import FileEntry, TooManyNames, Usage, list_entries, look_at_tree, used_space
from agentrpc.claude.workspace_paths import missing, open_folder, parse_path, unreadable
from agentrpc.claude.workspace_trees import WorkspaceError, remove_tree
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.domain.principal import Principal
from agentrpc.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from agentrpc.names import parse_session
from agentrpc.services.access import require_write
from agentrpc.services.archive_state import require_here
from agentrpc.services.pages import Pager, page_size
from agentrpc.services.sessions import load_session, not_active
from agentrpc.services.threads import in_thread, while_wanted
from agentrpc.services.validation import Faults
from agentrpc.services.views import file_message
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.housekeeping import newest_workspaces
from agentrpc.store.leases import lock_head
from agentrpc.turns import Turns
from agentrpc.v1 import file_pb2, file_service_pb2

__all__ = ["Files"]

_T = TypeVar("_T")

_PAGE_BYTES = 1024 * 1024
_MAX_PART = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# Walks, checksums and unpacking at once: each takes a thread from everything else that this process does. Of these one
# user has at most so many, and so many calls that wait.
_HEAVY, _HEAVY_EACH, _WAITING = 3, 2, 100
# Names that one call to list looks at: those of a folder are in no order.
_MAX_NAMES = 500_000
# How long a call that deletes a folder removes what was in it; workers do the rest.
_REMOVE_SECONDS = 10.0
_SEEN = 3


class Files:
    """The use cases."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._store = WorkspaceStore(
            settings.workspaces,
            checkpoint_limit=settings.checkpoint_limit,
            checkpoints_kept=settings.checkpoints_kept,
        )
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._heavy = Turns(_HEAVY, per_key=_HEAVY_EACH, waiting=_WAITING)

    # ---- Reading ----

    async def list(
        self, principal: Principal, request: file_service_pb2.ListFilesRequest
    ) -> file_service_pb2.ListFilesResponse:
        """ListFiles."""
        session_id = parse_session(request.parent, field="parent")
        path = parse_path(request.path, request.raw_path, root=True)
        size = page_size(request.page_size, default=100, limit=1000)
        after = self._pager.read(request, principal.user_id) or []
        response = file_service_pb2.ListFilesResponse()
        if not await self._made(principal, session_id):
            if path:
                raise missing(path)
            return response
        # The place comes first: a call that waits holds no descriptor.
        async with self.heavy(principal), self.folder(session_id, path) as folder:
            entries, more = await in_thread(_page, folder, path, request.recursive, after, size)
        response.files.extend(file_message(session_id, entry) for entry in entries)
        if more:
            names = entries[-1].path.removeprefix(f"{path}/" if path else "").split("/")
            response.next_page_token = self._pager.issue(request, principal.user_id, names)
        return response

    async def get(self, principal: Principal, request: file_service_pb2.GetFileRequest) -> file_pb2.File:
        """GetFile."""
        session_id = parse_session(request.parent, field="parent")
        path = parse_path(request.path, request.raw_path)
        if not await self._made(principal, session_id):
            raise missing(path)
        async with self.folder(session_id) as folder:
            message = file_message(session_id, await in_thread(inspect, folder, path))
        if not request.checksum or message.type != file_pb2.File.TYPE_FILE:
            return message
        if message.size > self._settings.max_file_size:
            raise _too_large("checksum", message.size, self._settings.max_file_size)
        async with self.heavy(principal), self.folder(session_id) as folder:
            info, digest = await while_wanted(partial(checksum, folder, path, message.etag))
        return file_message(session_id, FileEntry(path, info), digest)

    def heavy(self, principal: Principal, *, going_on: bool = False) -> AbstractAsyncContextManager[None]:
        """A place for work that reads much, when it is the caller's turn, as `Turns.take`."""
        return self._heavy.take(principal.user_id, going_on=going_on)

    async def readable(self, principal: Principal, parent: str, path: str) -> UUID:
        """The session whose files are to be read. Raises NOT_FOUND when it has none yet."""
        session_id = parse_session(parent, field="parent")
        if not await self._made(principal, session_id):
            raise missing(path)
        return session_id

    async def look(self, principal: Principal, session_id: UUID, path: str, *, again: bool = False) -> str:
        """The etag of a folder, for a download. Raises as `folder`, TOO_LARGE, LIMIT_REACHED, RATE_LIMITED."""
        most = self._settings.max_workspace_entries
        async with self.heavy(principal, going_on=again), self.folder(session_id, path) as folder:
            try:
                look = await while_wanted(partial(look_at_tree, folder, most=most))
            except (TooManyNames, WorkspaceError) as error:
                raise _too_many("the folder holds", most, "download what is in it by itself") from error
        if look.size > self._settings.max_workspace_size:
            raise _too_large("path", look.size, self._settings.max_workspace_size)
        return look.etag

    def folder(self, session_id: UUID, path: str = "") -> AbstractAsyncContextManager[int]:
        """A descriptor of the workspace, or of a folder in it, while it is used.

        Raises:
            FailedPrecondition: STATE_INVALID, NOT_CONFIGURED.
            NotFound: There is no such folder.
        """
        return self._folder(session_id, path)

    @asynccontextmanager
    async def _folder(self, session_id: UUID, path: str) -> AsyncIterator[int]:
        folder = await in_thread(self._open, session_id, path)
        try:
            yield folder
        finally:
            os.close(folder)

    def _open(self, session_id: UUID, path: str) -> int:
        try:
            top = self._store.find(session_id)
        except WorkspaceError as error:
            if not self._settings.workspaces.is_dir():
                raise _not_configured() from error
            raise FailedPrecondition(
                str(error), reason="STATE_INVALID", metadata={"state": "WORKSPACE_UNAVAILABLE"}
            ) from error
        if not path:
            return top
        try:
            return open_folder(top, path)
        finally:
            os.close(top)

    async def _made(self, principal: Principal, session_id: UUID) -> bool:
        """Whether the session, which the caller may see, has a workspace yet."""
        async with self._database.transaction() as tx:
            session, _ = await load_session(tx, principal, session_id)
            await require_here(tx, session_id)
            if session.clean_time is not None:
                raise FailedPrecondition(
                    "the files went with the session when it was closed: nothing is left to be read",
                    reason="STATE_INVALID",
                    metadata={"state": "WORKSPACE_REMOVED"},
                )
            return session.workspace_time is not None

    # ---- Uploading ----

    async def upload(self, principal: Principal, requests: AsyncIterator[Any]) -> file_pb2.File:
        """UploadFile."""
        start = await _first(requests)
        require_write(principal, "files.write")
        path = parse_path(start.path, new=True)
        faults = Faults()
        _check_sha256(faults, start.sha256)
        faults.check(start.size >= 0, "start.size", "must not be negative")
        faults.check(not start.etag or start.overwrite, "start.etag", "goes with overwrite: set both")
        faults.done()
        session_id = parse_session(start.parent, field="start.parent")
        await self._make(principal, session_id)
        limit = self._settings.max_file_size
        if start.size > limit:
            raise _too_large("start.size", start.size, limit)
        room = await self._room(principal, session_id, path)
        if start.size > room.size:
            raise self._full()
        incoming = await self._incoming(Incoming, session_id)
        try:
            async for data in _parts(requests):
                size = incoming.size + len(data)
                if size > limit:
                    raise _too_large("data", size, limit)
                if size > room.size:
                    raise self._full()
                if start.HasField("size") and size > start.size:
                    raise _mismatch("size", start.size, f"{size} or more")
                await self._write(incoming, data)
            if start.HasField("size") and incoming.size != start.size:
                raise _mismatch("size", start.size, incoming.size)
            _check_digest(start.sha256, incoming.sha256)
            await in_thread(incoming.sync)
            self._check_room(Usage(incoming.size, 1), await self._room(principal, session_id, path, incoming))
            info = await self._change(
                principal,
                session_id,
                lambda folder: incoming.place(
                    folder,
                    path,
                    overwrite=start.overwrite,
                    executable=start.executable,
                    etag=start.etag,
                    sha256=start.sha256.lower(),
                ),
            )
            return file_message(session_id, FileEntry(path, info), incoming.sha256)
        finally:
            await in_thread(incoming.close)

    async def upload_archive(
        self, principal: Principal, requests: AsyncIterator[Any]
    ) -> file_service_pb2.UploadArchiveResponse:
        """UploadArchive."""
        start = await _first(requests)
        require_write(principal, "files.write")
        path = parse_path(start.path, new=True, root=True)
        faults = Faults()
        _check_sha256(faults, start.sha256)
        faults.done()
        session_id = parse_session(start.parent, field="start.parent")
        await self._make(principal, session_id)
        room = await self._room(principal, session_id, "")
        incoming = await self._incoming(lambda beside: IncomingArchive(beside, room.size), session_id)
        fresh = _tree(incoming)
        try:
            async for data in _parts(requests):
                await self._write(incoming, data)
            incoming.finish()
            _check_digest(start.sha256, incoming.sha256)
            async with self.heavy(principal, going_on=True):
                files, size = await while_wanted(partial(self._unpack, incoming.path, fresh, room.size - incoming.size))
                needed = await in_thread(used_space, fresh, most=self._settings.max_workspace_entries)
            self._check_room(needed, await self._room(principal, session_id, "", incoming))
            await self._change(
                principal, session_id, lambda folder: place_tree(fresh, folder, path, overwrite=start.overwrite)
            )
            return file_service_pb2.UploadArchiveResponse(file_count=files, size=size)
        finally:
            await in_thread(incoming.close)
            await in_thread(remove_tree, fresh)

    def _unpack(self, archive: Path, fresh: Path, room: int, wanted: Callable[[], bool]) -> tuple[int, int]:
        members = self._settings.max_archive_members
        try:
            fresh.mkdir(mode=0o700)
            with archive.open("rb") as file:
                return unpack(file, fresh, max_members=members, room=room, wanted=wanted)
        except OSError as error:
            raise unreadable("the archive", error) from error

    async def _incoming(self, make: Callable[[Path], _T], session_id: UUID) -> _T:
        beside = self._store.incoming(session_id)
        try:
            return await in_thread(make, beside)
        except OSError as error:
            raise unreadable("the workspace", error) from error

    @staticmethod
    async def _write(incoming: Incoming, data: bytes) -> None:
        try:
            await in_thread(incoming.write, data)
        except OSError as error:
            raise unreadable("the workspace", error) from error

    async def _room(self, principal: Principal, session_id: UUID, path: str, own: Incoming | None = None) -> Usage:
        """How much the workspace may still take; a file that is replaced gives its own back.

        What is on its way in counts too, so each upload looks twice: before its bytes come, and when they are all on
        the disk. Of several at once, by any servers, the last to look sees all the others. It takes no lock for that:
        a large workspace would keep the session's run waiting.

        Args:
            principal: Whose call it is.
            session_id: The session.
            path: The file that may be replaced; empty: none.
            own: What the caller itself has on its way in: it does not count.

        Raises:
            ResourceExhausted: LIMIT_REACHED: it takes no further file. RATE_LIMITED.
        """
        limit = Usage(self._settings.max_workspace_size, self._settings.max_workspace_entries)

        def measure() -> Usage:
            # In this order: what gets its place meanwhile counts twice, rather than not at all.
            incoming, files = self._store.incoming(session_id), self._store.path(session_id)
            used = used_space(incoming, files, most=limit.entries + self._settings.max_archive_members)
            if own is not None:
                tree = used_space(_tree(own), most=limit.entries)
                # The folder that it is unpacked in is an entry too.
                used -= Usage(own.path.stat().st_blocks * 512 + tree.size, 1 + tree.entries + bool(tree.entries))
            if path:
                top = self._open(session_id, "")
                try:
                    with suppress(Exception):
                        used -= Usage(inspect(top, path).info.st_blocks * 512, 1)
                finally:
                    os.close(top)
            return limit - used

        async with self.heavy(principal, going_on=own is not None):
            room = await in_thread(measure)
        self._check_room(Usage(0, 1), room)
        return Usage(max(room.size, 0), room.entries)

    def _check_room(self, needed: Usage, room: Usage) -> None:
        if needed.size > room.size:
            raise self._full()
        if needed.entries > room.entries:
            most = self._settings.max_workspace_entries
            raise _too_many("with this the workspace would hold", most, "delete what is not needed")

    def _full(self) -> ResourceExhausted:
        limit = self._settings.max_workspace_size
        return ResourceExhausted(
            f"the workspace may have {limit} bytes, and this would be more: delete files that are not needed",
            reason="LIMIT_REACHED",
            metadata={"limit": str(limit)},
        )

    # ---- Changing ----

    async def delete(self, principal: Principal, request: file_service_pb2.DeleteFileRequest) -> None:
        """DeleteFile."""
        session_id = parse_session(request.parent, field="parent")
        require_write(principal, "files.delete")
        path = parse_path(request.path, request.raw_path)
        if not await self._made(principal, session_id):
            raise missing(path)
        make_aside = partial(self._store.make_aside, session_id)
        gone = await self._change(
            principal,
            session_id,
            lambda folder: delete(folder, path, make_aside, recursive=request.recursive, etag=request.etag),
        )
        if gone is not None:
            async with self.heavy(principal, going_on=True):
                await in_thread(self._store.discard, gone, seconds=_REMOVE_SECONDS)

    async def _change(self, principal: Principal, session_id: UUID, work: Callable[[int], _T]) -> _T:
        """Change the workspace of a session that is open, while nobody closes it."""
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            await load_session(tx, principal, session_id)
            assert head is not None
            if head.closed is not None:
                raise not_active(head)
            async with self.folder(session_id) as folder:
                return await in_thread(work, folder)

    async def _make(self, principal: Principal, session_id: UUID) -> None:
        """Make sure that an open session has a workspace, before its first run too."""
        async with self._database.transaction() as tx:
            session, head = await load_session(tx, principal, session_id)
            if head.closed is not None:
                raise not_active(head)
            if session.workspace_time is not None:
                return
            others = await newest_workspaces(tx, _SEEN)
        # Made where no worker sees it, it would be missed by every run.
        if others and not await in_thread(lambda: any(self._store.has(other) for other in others)):
            raise _not_configured()
        async with self._database.transaction() as tx:
            await lock_head(tx, session_id)
            session, head = await load_session(tx, principal, session_id)
            if head.closed is not None:
                raise not_active(head)
            try:
                await in_thread(self._store.create, session_id)
            except WorkspaceError as error:
                raise FailedPrecondition(
                    str(error), reason="STATE_INVALID", metadata={"state": "WORKSPACE_UNAVAILABLE"}
                ) from error
            session.workspace_time = session.workspace_time or clock.utcnow()


def _tree(incoming: Incoming) -> Path:
    """Where an archive is unpacked."""
    return incoming.path.with_name(f"{incoming.path.name}.tree")


def _page(folder: int, path: str, recursive: bool, after: list[str], size: int) -> tuple[list[FileEntry], bool]:
    """So many entries, or fewer so that they stay below a page's bytes, and whether there are more."""
    entries: list[FileEntry] = []
    left = _PAGE_BYTES
    walk = list_entries(folder, path, recursive=recursive, after=after, page=size, most=_MAX_NAMES)
    try:
        for entry in walk:
            # Shown and raw, with as much again for what is not text.
            left -= 4 * (len(entry.path) + len(entry.target)) + 200
            if len(entries) == size or (entries and left < 0):
                return entries, True
            entries.append(entry)
    except TooManyNames as error:
        if not entries:
            raise _too_many("the folder holds", _MAX_NAMES, "list what is in it by itself, or delete some") from error
        return entries, True
    return entries, False


def _too_many(what: str, most: int, remedy: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"{what} more than {most} files, folders and links: {remedy}",
        reason="LIMIT_REACHED",
        metadata={"limit": str(most)},
    )


async def _first(requests: AsyncIterator[Any]) -> Any:  # noqa: ANN401 - of either upload
    """The message that says what comes. Raises FIELD_INVALID."""
    async for request in requests:
        if request.WhichOneof("part") == "start":
            return request.start
        break
    raise InvalidArgument.field("start", "has to be the first message: say where the data go")


async def _parts(requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The data. Raises FIELD_INVALID, TOO_LARGE."""
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidArgument.field("data", "has to be in all messages after the first, and nothing else")
        if len(request.data) > _MAX_PART:
            raise _too_large("data", len(request.data), _MAX_PART)
        yield request.data


def _check_sha256(faults: Faults, text: str) -> None:
    faults.check(not text or bool(_SHA256.fullmatch(text)), "start.sha256", "must be 64 hexadecimal digits")


def _check_digest(expected: str, actual: str) -> None:
    if expected and expected.lower() != actual:
        raise _mismatch("sha256", expected.lower(), actual)


def _mismatch(what: str, expected: object, actual: object) -> InvalidArgument:
    return InvalidArgument(
        f"the {what} of what came is {actual}, not {expected}: nothing was written, send it again",
        reason="CHECKSUM_MISMATCH",
        metadata={"expected": str(expected), "actual": str(actual)},
    )


def _too_large(field: str, actual: int, limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {actual} bytes, at most {limit} are taken: use smaller pieces, or ask your operator",
        reason="TOO_LARGE",
        metadata={"field": field, "limit": str(limit), "actual": str(actual)},
    )


def _not_configured() -> FailedPrecondition:
    return FailedPrecondition(
        "this server does not see the folder of workspaces: its operator has to set AGENTRPC_WORKSPACE_DIR to the one "
        "that all workers and edges share",
        reason="NOT_CONFIGURED",
        metadata={"setting": "AGENTRPC_WORKSPACE_DIR"},
    )
