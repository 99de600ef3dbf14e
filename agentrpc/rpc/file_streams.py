"""Downloads: bytes of a file or of an archive as a stream, at the pace of its reader, from any offset."""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import NoReturn

from agentrpc.claude.workspace_archives import gzipped, take, tar_blocks, tar_end
from agentrpc.claude.workspace_files import check_unchanged, etag_of_file
from agentrpc.claude.workspace_lists import FileEntry
from agentrpc.claude.workspace_paths import open_file, parse_path, unreadable
from agentrpc.claude.workspaces import WorkspaceError
from agentrpc.domain.principal import Principal
from agentrpc.errors import Aborted, FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from agentrpc.rpc.hub import Hub
from agentrpc.rpc.stream import Ended, Send, Stream
from agentrpc.services.accounts import Accounts
from agentrpc.services.files import Files
from agentrpc.services.threads import in_thread
from agentrpc.services.validation import Faults
from agentrpc.services.views import file_message
from agentrpc.settings import Settings
from agentrpc.v1 import file_service_pb2, stream_pb2

__all__ = ["FileStreams"]

_CHUNK = 256 * 1024

_End = stream_pb2.StreamEnd


class FileStreams:
    """The streaming use cases of files."""

    def __init__(self, hub: Hub, files: Files, accounts: Accounts, settings: Settings) -> None:
        self._hub = hub
        self._files = files
        self._accounts = accounts
        self._settings = settings

    @asynccontextmanager
    async def _stream(self, principal: Principal, send: Send) -> AsyncIterator[Stream]:
        stream = Stream(self._hub, self._settings, self._accounts, principal, send)
        self._hub.add(stream)
        try:
            yield stream
        except Ended as ended:
            _cut(ended.reason)
        finally:
            self._hub.remove(stream)

    async def download_file(
        self, principal: Principal, request: file_service_pb2.DownloadFileRequest, send: Send
    ) -> None:
        """DownloadFile."""
        path = parse_path(request.path, request.raw_path)
        faults = Faults()
        faults.check(request.offset >= 0, "offset", "must not be negative")
        faults.check(request.limit >= 0, "limit", "must not be negative; 0 sends all")
        faults.done()
        session_id = await self._files.readable(principal, request.parent, path)
        async with self._files.folder(session_id) as folder:
            number = await in_thread(open_file, folder, path)
        try:
            info = os.fstat(number)
            check_unchanged(request.etag, info, path)
            if request.offset > info.st_size:
                raise InvalidArgument.field("offset", f"is beyond the end of the file, which has {info.st_size} bytes")
            end = min(request.offset + request.limit, info.st_size) if request.limit else info.st_size
            if end - request.offset > self._settings.max_workspace_size:
                raise _too_much(end - request.offset, self._settings.max_workspace_size)
            # What was sent before is read again for the checksum of the whole, where that is not too much to be read.
            digest = None
            if end == info.st_size and (not request.offset or info.st_size <= self._settings.max_file_size):
                digest = hashlib.sha256()
            async with self._stream(principal, send) as stream:
                first = file_service_pb2.DownloadFileResponse(file=file_message(session_id, FileEntry(path, info)))
                await stream.write(first.SerializeToString())
                if digest is not None and request.offset:
                    async with self._files.heavy(principal):
                        async for data in _pieces(stream, number, 0, request.offset, path):
                            digest.update(data)
                async for data in _pieces(stream, number, request.offset, end, path):
                    if digest is not None:
                        digest.update(data)
                    await stream.write(file_service_pb2.DownloadFileResponse(data=data).SerializeToString())
                check_unchanged(etag_of_file(info), os.fstat(number), path)
                if digest is not None:
                    last = file_service_pb2.DownloadFileResponse(sha256=digest.hexdigest())
                    await stream.write(last.SerializeToString())
        finally:
            os.close(number)

    async def download_archive(
        self, principal: Principal, request: file_service_pb2.DownloadArchiveRequest, send: Send
    ) -> None:
        """DownloadArchive."""
        path = parse_path(request.path, request.raw_path, root=True)
        faults = Faults()
        faults.check(request.offset >= 0, "offset", "must not be negative")
        faults.check(
            not request.offset or bool(request.etag), "etag", "is required with offset: see the first response"
        )
        faults.done()
        session_id = await self._files.readable(principal, request.parent, path)
        etag = await self._files.look(principal, session_id, path)
        if request.etag and request.etag != etag:
            raise _tree_changed(etag)
        async with self._files.folder(session_id, path) as folder, self._stream(principal, send) as stream:
            await stream.write(file_service_pb2.DownloadArchiveResponse(etag=etag).SerializeToString())
            digest = hashlib.sha256()
            skip = request.offset
            with closing(gzipped(_tar(folder, self._settings.max_workspace_size))) as blocks:
                while data := await self._next(principal, stream, blocks):
                    digest.update(data)
                    rest = data[skip:]
                    skip = max(skip - len(data), 0)
                    for at in range(0, len(rest), _CHUNK):
                        part = file_service_pb2.DownloadArchiveResponse(data=rest[at : at + _CHUNK])
                        await stream.write(part.SerializeToString())
            if skip:
                raise InvalidArgument.field("offset", "is beyond the end of the archive")
            if request.offset and await self._files.look(principal, session_id, path, again=True) != etag:
                # What was sent before and this do not fit together.
                raise _tree_changed(etag)
            last = file_service_pb2.DownloadArchiveResponse(sha256=digest.hexdigest())
            await stream.write(last.SerializeToString())

    async def _next(self, principal: Principal, stream: Stream, blocks: Iterator[bytes]) -> bytes:
        """The next bytes of an archive; none at its end."""
        while True:
            await stream.check()
            async with self._files.heavy(principal, going_on=True):
                data, ended = await in_thread(_some, blocks)
            if data or ended:
                return data


def _tar(folder: int, most: int) -> Iterator[bytes]:
    yield from tar_blocks(folder, most=most)
    yield tar_end()


def _some(blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """What comes of a short while's work, and whether that was the end."""
    try:
        return take(blocks)
    except WorkspaceError as error:
        raise FailedPrecondition(str(error), reason="STATE_INVALID", metadata={"state": "TOO_DEEP"}) from error
    except OSError as error:
        raise unreadable("the folder", error) from error


async def _pieces(stream: Stream, number: int, at: int, end: int, path: str) -> AsyncIterator[bytes]:
    while at < end:
        await stream.check()
        data = await in_thread(_read, number, at, min(_CHUNK, end - at), path)
        if not data:
            return
        yield data
        at += len(data)


def _read(number: int, at: int, size: int, path: str) -> bytes:
    try:
        return os.pread(number, size, at)
    except OSError as error:
        raise unreadable(path, error) from error


def _too_much(actual: int, limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"this would send {actual} bytes, and one call sends at most {limit}: set limit, and go on at offset",
        reason="TOO_LARGE",
        metadata={"field": "limit", "limit": str(limit), "actual": str(actual)},
    )


def _tree_changed(etag: str) -> Aborted:
    return Aborted(
        "something in the folder was changed meanwhile: begin anew, without offset",
        reason="ETAG_MISMATCH",
        metadata={"etag": etag},
    )


def _cut(reason: int) -> NoReturn:
    """A stream of events ends with a message; a download, whose bytes are half, with a status."""
    if reason == _End.REASON_CREDENTIALS_EXPIRED:
        raise Unauthenticated("the token has expired: refresh it, and go on at offset", reason="CREDENTIALS_EXPIRED")
    if reason == _End.REASON_ACCESS_REVOKED:
        raise Unauthenticated("access was revoked", reason="CREDENTIALS_INVALID")
    told = "SLOW_CONSUMER" if reason == _End.REASON_SLOW_CONSUMER else "DRAINING"
    raise Unavailable("the download was cut: go on at offset", reason=told, retry_after=1.0)
