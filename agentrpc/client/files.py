"""Files of sessions: uploads in pieces, and downloads that go on where they were cut."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, BinaryIO, TypeAlias

import grpc

from agentrpc.client.errors import RpcError, decode
from agentrpc.v1 import file_pb2, file_service_pb2, file_service_pb2_grpc

__all__ = ["FileTransfers"]

_PART = 256 * 1024
_ATTEMPTS = 6
_RETRYABLE = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "UNKNOWN"}

# Methods and messages of one RPC or of its twin.
_Any: TypeAlias = Any
_Metadata: TypeAlias = Callable[..., Awaitable[list[tuple[str, str]]]]


class FileTransfers:
    """The streaming calls of FileService.

    Args:
        files: Its stub.
        metadata: The authorization of a call; `stale` is a token that was refused as expired.
    """

    def __init__(self, files: file_service_pb2_grpc.FileServiceStub, metadata: _Metadata) -> None:
        self._files = files
        self._metadata = metadata

    async def upload_file(
        self,
        session: str,
        path: str,
        content: bytes | BinaryIO,
        *,
        size: int | None = None,
        sha256: str = "",
        overwrite: bool = False,
        executable: bool = False,
        etag: str = "",
    ) -> file_pb2.File:
        """UploadFile.

        Args:
            session: The session.
            path: The file in the workspace.
            content: What it will hold: bytes, or a file that is open for reading.
            size: If known. Of bytes it is.
            sha256: If known. Of bytes it is.
            overwrite: In the place of what is there.
            executable: Whether its owner may run it.
            etag: If set, of what is there.

        Raises:
            RpcError: It failed; nothing was written, unless the connection was lost at the very end.
        """
        if isinstance(content, bytes):
            size, sha256 = len(content), sha256 or hashlib.sha256(content).hexdigest()
        start = file_service_pb2.UploadFileStart(
            parent=session, path=path, size=size, sha256=sha256, overwrite=overwrite, executable=executable, etag=etag
        )
        request = file_service_pb2.UploadFileRequest
        response: file_pb2.File = await self._upload(
            self._files.UploadFile, request(start=start), lambda data: request(data=data), content
        )
        return response

    async def upload_archive(
        self, session: str, path: str, content: bytes | BinaryIO, *, sha256: str = "", overwrite: bool = False
    ) -> file_service_pb2.UploadArchiveResponse:
        """UploadArchive: a tar or tar.gz, into a folder. Raises as `upload_file`."""
        if isinstance(content, bytes):
            sha256 = sha256 or hashlib.sha256(content).hexdigest()
        start = file_service_pb2.UploadArchiveStart(parent=session, path=path, sha256=sha256, overwrite=overwrite)
        request = file_service_pb2.UploadArchiveRequest
        response: file_service_pb2.UploadArchiveResponse = await self._upload(
            self._files.UploadArchive, request(start=start), lambda data: request(data=data), content
        )
        return response

    async def _upload(
        self,
        method: _Any,
        first: _Any,
        part: Callable[[bytes], _Any],
        content: bytes | BinaryIO,
    ) -> _Any:
        async def requests() -> AsyncIterator[_Any]:
            yield first
            if isinstance(content, bytes):
                for data in _pieces(content):
                    yield part(data)
            else:
                while data := await asyncio.to_thread(content.read, _PART):
                    yield part(data)

        call = method(requests(), metadata=await self._metadata())
        told: list[grpc.aio.AioRpcError] = []
        call.add_done_callback(lambda ended: told.append(_status_of(ended)))
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            # A server that refuses does so while this is still sending. grpc.aio puts an error of its own in the place
            # of the status that has come when a write fails after it (github.com/grpc/grpc/issues/36066).
            first = next((status for status in told if status.code() is not grpc.StatusCode.OK), error)
            raise decode(first) from None

    async def download_file(self, session: str, path: str, target: BinaryIO, *, raw_path: bytes = b"") -> file_pb2.File:
        """DownloadFile, over lost connections; compares the checksum.

        Returns:
            The file, with its checksum.

        Raises:
            RpcError: It failed; ETAG_MISMATCH when the file changes meanwhile. What is in `target` is not whole.
        """
        request = file_service_pb2.DownloadFileRequest(parent=session, path=path, raw_path=raw_path)
        found = file_pb2.File()

        def note(response: _Any) -> None:
            if response.HasField("file"):
                found.CopyFrom(response.file)
                request.etag = response.file.etag

        # Of a large file that was resumed the server has no checksum: then its size says that all has come.
        def whole() -> bool:
            return bool(request.etag) and 0 < request.offset == found.size

        found.sha256 = await self._download(self._files.DownloadFile, request, note, target, whole)
        return found

    async def download_archive(self, session: str, path: str, target: BinaryIO) -> str:
        """DownloadArchive: a folder as tar.gz; its checksum. As `download_file`."""
        request = file_service_pb2.DownloadArchiveRequest(parent=session, path=path)

        def note(response: _Any) -> None:
            request.etag = response.etag or request.etag

        return await self._download(self._files.DownloadArchive, request, note, target)

    async def _download(
        self,
        method: _Any,
        request: _Any,
        note: Callable[[_Any], None],
        target: BinaryIO,
        whole: Callable[[], bool] = lambda: False,
    ) -> str:
        digest = hashlib.sha256()
        expected = ""
        attempt = 0
        stale = ""
        while not expected:
            metadata, resumed = await self._metadata(stale=stale), request.offset > 0
            try:
                async for response in method(request, metadata=metadata):
                    note(response)
                    if response.data:
                        attempt, stale = 0, ""
                        digest.update(response.data)
                        await asyncio.to_thread(target.write, response.data)
                        request.offset += len(response.data)
                    expected = response.sha256 or expected
                if not expected and resumed and whole():
                    return digest.hexdigest()
                if not expected:
                    raise RpcError("DATA_LOSS", "", "the download has ended before its end: try again")
            except grpc.aio.AioRpcError as error:
                failure = decode(error)
                if failure.reason == "CREDENTIALS_EXPIRED" and not stale:
                    stale = metadata[0][1].removeprefix("Bearer ")
                    continue
                attempt += 1
                if failure.code not in _RETRYABLE or attempt >= _ATTEMPTS:
                    raise failure from None
                await asyncio.sleep(failure.retry_after or 0.2 * 2**attempt)
        if digest.hexdigest() != expected:
            raise RpcError("DATA_LOSS", "", "what arrived is not what its checksum says: download it again")
        return expected


def _status_of(call: _Any) -> grpc.aio.AioRpcError:
    """The status of a call that has just ended: nothing of it has to be waited for."""
    answers: list[_Any] = []
    for asked in (call.code(), call.initial_metadata(), call.trailing_metadata(), call.details()):
        try:
            asked.send(None)
        except StopIteration as answer:
            answers.append(answer.value)
        else:
            asked.close()
            answers.append(None)
    code, initial, trailing, details = answers
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code or grpc.StatusCode.UNKNOWN, initial or nothing, trailing or nothing, details)


def _pieces(content: bytes) -> Iterable[bytes]:
    view = memoryview(content)
    return (bytes(view[at : at + _PART]) for at in range(0, len(view), _PART))
