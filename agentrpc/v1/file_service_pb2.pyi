from agentrpc.v1 import file_pb2 as _file_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListFilesRequest(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "recursive", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    recursive: bool
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., recursive: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFilesResponse(_message.Message):
    __slots__ = ("files", "next_page_token")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[_file_pb2.File]
    next_page_token: str
    def __init__(self, files: _Optional[_Iterable[_Union[_file_pb2.File, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetFileRequest(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "checksum")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    checksum: bool
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., checksum: _Optional[bool] = ...) -> None: ...

class UploadFileRequest(_message.Message):
    __slots__ = ("start", "data")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    start: UploadFileStart
    data: bytes
    def __init__(self, start: _Optional[_Union[UploadFileStart, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadFileStart(_message.Message):
    __slots__ = ("parent", "path", "size", "sha256", "overwrite", "executable", "etag")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    size: int
    sha256: str
    overwrite: bool
    executable: bool
    etag: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., overwrite: _Optional[bool] = ..., executable: _Optional[bool] = ..., etag: _Optional[str] = ...) -> None: ...

class UploadArchiveRequest(_message.Message):
    __slots__ = ("start", "data")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    start: UploadArchiveStart
    data: bytes
    def __init__(self, start: _Optional[_Union[UploadArchiveStart, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadArchiveStart(_message.Message):
    __slots__ = ("parent", "path", "sha256", "overwrite")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    sha256: str
    overwrite: bool
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., sha256: _Optional[str] = ..., overwrite: _Optional[bool] = ...) -> None: ...

class UploadArchiveResponse(_message.Message):
    __slots__ = ("file_count", "size")
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    file_count: int
    size: int
    def __init__(self, file_count: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class DownloadFileRequest(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "offset", "limit", "etag")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    offset: int
    limit: int
    etag: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., offset: _Optional[int] = ..., limit: _Optional[int] = ..., etag: _Optional[str] = ...) -> None: ...

class DownloadFileResponse(_message.Message):
    __slots__ = ("file", "data", "sha256")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    file: _file_pb2.File
    data: bytes
    sha256: str
    def __init__(self, file: _Optional[_Union[_file_pb2.File, _Mapping]] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class DownloadArchiveRequest(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "offset", "etag")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    offset: int
    etag: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., offset: _Optional[int] = ..., etag: _Optional[str] = ...) -> None: ...

class DownloadArchiveResponse(_message.Message):
    __slots__ = ("etag", "data", "sha256")
    ETAG_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    etag: str
    data: bytes
    sha256: str
    def __init__(self, etag: _Optional[str] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class DeleteFileRequest(_message.Message):
    __slots__ = ("parent", "path", "raw_path", "recursive", "etag")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    parent: str
    path: str
    raw_path: bytes
    recursive: bool
    etag: str
    def __init__(self, parent: _Optional[str] = ..., path: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., recursive: _Optional[bool] = ..., etag: _Optional[str] = ...) -> None: ...
