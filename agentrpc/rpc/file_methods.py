"""What each RPC of FileService and ArchiveService does."""

from agentrpc.names import parse_archive
from agentrpc.rpc.file_streams import FileStreams
from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.archives import Archives
from agentrpc.services.files import Files
from agentrpc.v1 import archive_service_pb2, file_service_pb2

__all__ = ["archive_service", "file_service"]


def file_service(files: Files, streams: FileStreams) -> Service:
    """FileService."""
    return Service(
        file_service_pb2.DESCRIPTOR.services_by_name["FileService"],
        {
            "ListFiles": lambda call, r: files.list(call.principal, r),
            "GetFile": lambda call, r: files.get(call.principal, r),
            "UploadFile": lambda call, requests: files.upload(call.principal, requests),
            "UploadArchive": lambda call, requests: files.upload_archive(call.principal, requests),
            "DownloadFile": lambda call, r, send: streams.download_file(call.principal, r, send),
            "DownloadArchive": lambda call, r, send: streams.download_archive(call.principal, r, send),
            "DeleteFile": emptied(lambda call, r: files.delete(call.principal, r)),
        },
    )


def archive_service(archives: Archives) -> Service:
    """ArchiveService."""
    return Service(
        archive_service_pb2.DESCRIPTOR.services_by_name["ArchiveService"],
        {
            "GetArchive": lambda call, r: archives.get(call.principal, parse_archive(r.name)),
            "StoreSession": lambda call, r: archives.store(call.principal, r.name),
            "RestoreSession": lambda call, r: archives.restore(call.principal, r.name),
        },
    )
