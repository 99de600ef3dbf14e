"""Folders of a workspace as tar.gz, and archives of callers as folders.

Out: the same tree gives the same bytes, made as they are wanted, so that a download can go on where it was cut.
In: an archive is anybody's. It is unpacked on the fly into a file of ours, below a limit of bytes and of the ratio, and
from there into a folder of ours, in which nothing is followed; only then it comes near a workspace.
"""

import contextlib
import hashlib
import os
import re
import stat
import tarfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from agentrpc.claude.workspace_files import Incoming, make_folders
from agentrpc.claude.workspace_paths import MAX_PATH, check_letters, open_beneath, parse_path, path_invalid, shown
from agentrpc.claude.workspace_trees import Entry, WorkspaceError, new_file, tar_info, walk_open
from agentrpc.errors import Aborted, InvalidArgument, ResourceExhausted

__all__ = [
    "IncomingArchive",
    "gzipped",
    "take",
    "tar_blocks",
    "tar_end",
    "tar_member",
    "unpack",
]

_T = TypeVar("_T")

_CHUNK = 256 * 1024
# A thread's work between two looks at whether it is still wanted.
_SLICE = 0.05
_STEP = 1024 * 1024
# What is behind the end of a gzip is copied at each: many small ones must not copy much.
_PART = 16 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_MAGIC = b"\x1f\x8b"
# gzip does not get beyond 1032. What is real and above this is small.
_MAX_RATIO, _RATIO_FROM = 200, 64 * 1024 * 1024
_MAX_HEADER, _MAX_GLOBAL = 64 * 1024, 8 * 1024
# More than the name of any file has. Before 3.11.10 and 3.12.6 tarfile takes time by the square of it.
_MAX_DIGITS = 512
_PAX = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_MAX_TARGET = 4095
# What a folder takes at least on most file systems.
_FOLDER_SIZE = 4096


# ---- Out ----


def tar_header(info: tarfile.TarInfo) -> bytes:
    """The blocks before a member."""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(length: int) -> bytes:
    return bytes(-length % tarfile.BLOCKSIZE)


def tar_blocks(folder: int, prefix: str = "", *, most: int = 2**62) -> Generator[bytes, None, None]:
    """A folder as members of a tar, without its end; files of any size in pieces.

    Args:
        folder: A descriptor of it, for reading.
        prefix: Begins their names: empty, or with a slash at its end.
        most: Bytes that the files had at most when they were looked at.

    Raises:
        Aborted: ETAG_MISMATCH: a file has shrunk while it was read, or files have grown beyond that.
        WorkspaceError: Folders are nested too deep, or a path is too long to be unpacked again.
    """
    for entry in walk_open(folder):
        if len(os.fsencode(entry.path)) > MAX_PATH:
            raise WorkspaceError(f"a path has more than {MAX_PATH} bytes: {shown(entry.path)[:200]}…")
        length = entry.info.st_size if entry.content is not None else 0
        most -= length
        if most < 0:
            raise _changed("files have grown")
        info = tar_info(entry, length)
        info.name = prefix + info.name
        yield tar_header(info)
        yield from _content(entry, length)


def _content(entry: Entry, length: int) -> Iterator[bytes]:
    left = length
    while left and entry.content is not None:
        data = entry.content.read(min(left, _CHUNK))
        if not data:
            raise _changed("a file has become shorter")
        left -= len(data)
        yield data
    if length:
        yield _padding(length)


def _changed(what: str) -> Aborted:
    return Aborted(f"{what} meanwhile: try again", reason="ETAG_MISMATCH", metadata={"etag": ""})


def tar_end() -> bytes:
    """The end of a tar."""
    return bytes(2 * tarfile.BLOCKSIZE)


def tar_member(name: str, data: bytes) -> bytes:
    """A small file as a member of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o600
    return tar_header(info) + data + _padding(len(data))


def gzipped(blocks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """Compressed; with a time of 0, so that the same blocks give the same bytes. Something, be it empty, for each."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for block in blocks:
        yield packer.compress(block)
    yield packer.flush()


def take(blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """What comes of a short while's work, at least 256 KiB or nothing more; and whether that was the end."""
    data = bytearray()
    until = time.monotonic() + _SLICE
    for block in blocks:
        data += block
        if len(data) >= _CHUNK or time.monotonic() > until:
            return bytes(data), False
    return bytes(data), True


# ---- In ----


class IncomingArchive(Incoming):
    """A tar on its way in, gzipped or not; what it holds is written to the disk as it comes.

    Args:
        beside: `incoming/` of the session.
        limit: Bytes that it may unpack to.
        max_ratio: How many times its size, once that is much.
    """

    def __init__(self, beside: Path, limit: int, max_ratio: int = _MAX_RATIO) -> None:
        super().__init__(beside)
        self._limit = limit
        self._max_ratio = max_ratio
        self._head = b""
        self._unpacker: zlib._Decompress | None = None
        self._plain = False
        self._outer = hashlib.sha256()
        self._received = 0

    @property
    def sha256(self) -> str:
        """Of what has come."""
        return self._outer.hexdigest()

    def write(self, data: bytes) -> None:
        """Add to it. Raises LIMIT_REACHED when it unpacks to too much, FIELD_INVALID when it is damaged."""
        self._outer.update(data)
        self._received += len(data)
        if self._received > self._limit + _RATIO_FROM:
            # Even where nothing comes out of it.
            raise self._too_much()
        if not self._plain and self._unpacker is None:
            self._head += data
            if len(self._head) < len(_MAGIC):
                return
            data, self._head = self._head, b""
            self._begin(data)
        if self._plain:
            self._store(data)
        else:
            for at in range(0, len(data), _PART):
                self._unpack(data[at : at + _PART])

    def _begin(self, data: bytes) -> None:
        if data.startswith(_MAGIC):
            self._unpacker = zlib.decompressobj(_GZIP)
        else:
            self._plain = True

    def _unpack(self, data: bytes) -> None:
        while data:
            assert self._unpacker is not None
            if self._unpacker.eof:
                # One gzip after another, or zeros up to the end of a block.
                if not data.strip(b"\0"):
                    return
                self._unpacker = zlib.decompressobj(_GZIP)
            try:
                self._store(self._unpacker.decompress(data, _STEP))
            except zlib.error as error:
                raise _no_archive("is damaged, or not gzip") from error
            data = self._unpacker.unused_data if self._unpacker.eof else self._unpacker.unconsumed_tail

    def _store(self, data: bytes) -> None:
        total = self.size + len(data)
        if total > self._limit:
            raise self._too_much()
        if total > _RATIO_FROM and total > self._received * self._max_ratio:
            raise ResourceExhausted(
                f"the archive unpacks to more than {self._max_ratio} times its size: send it as a tar",
                reason="LIMIT_REACHED",
                metadata={"limit": str(self._max_ratio)},
            )
        super().write(data)

    def _too_much(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"the archive unpacks to more than {self._limit} bytes, which is what fits: leave something out",
            reason="LIMIT_REACHED",
            metadata={"limit": str(self._limit)},
        )

    def finish(self) -> None:
        """Everything has come. Raises FIELD_INVALID if that is not a whole archive."""
        if self._head or not self._received:
            raise _no_archive("is empty")
        if self._unpacker is not None and not self._unpacker.eof:
            raise _no_archive("is cut off")


def _no_archive(why: str) -> InvalidArgument:
    return InvalidArgument.field("data", f"{why}: send a tar, or a tar.gz")


class _Guarded:
    """What tarfile reads, within bounds: a header may claim to be of any length, never end, or lead back to itself."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = 2 * os.fstat(file.fileno()).st_size + _STEP
        # The first header is read when the tar is opened.
        self._header_left: int | None = _MAX_HEADER

    def header(self, read: Callable[[], _T]) -> _T:
        """Have the headers before the next member read. Raises FIELD_INVALID when they are too long."""
        self._header_left = _MAX_HEADER
        try:
            return read()
        finally:
            self._header_left = None

    def peek(self, size: int) -> bytes:
        """What comes next."""
        at = self._file.tell()
        data = self._file.read(size)
        self._file.seek(at)
        return data

    def read(self, size: int = -1) -> bytes:
        most = _STEP if self._header_left is None else self._header_left
        if size < 0 or size > most:
            raise _no_archive(f"has a header of more than {_MAX_HEADER} bytes")
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _no_archive("leads back to itself")
        if self._header_left is not None:
            self._header_left -= len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class _Foreign(tarfile.TarInfo):
    """A header of anybody's: pax records are looked at before tarfile does, which takes them as they are."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        # One of another size is refused when it is read.
        if self.type in _PAX and 0 <= self.size <= _MAX_HEADER:
            _check_records(cast("_Guarded", tar.fileobj).peek(self.size))
        return cast("tarfile.TarInfo", super()._proc_member(tar))  # type: ignore[misc]  # it is there to be overridden


def _check_records(data: bytes) -> None:
    """Look at pax records, `length keyword=value` and a new line each. Raises FIELD_INVALID.

    Where they overlap, old versions of tarfile take all that follows for the keyword of each.
    """
    at = 0
    while at < len(data) and data[at]:
        length, space, _ = data[at : at + _MAX_DIGITS].partition(b" ")
        end = at + int(length) if space and length.isdigit() else at
        record = data[at + len(length) + 1 : end]
        if record.find(b"=") < 1 or not record.endswith(b"\n"):
            raise _no_archive("is damaged, or no tar")
        at = end
    if any(len(digits) > _MAX_DIGITS for digits in re.findall(rb"\d+", data)):
        raise _no_archive(f"has a header with a number of more than {_MAX_DIGITS} digits")


class _Bounds:
    """How much an archive may make: a short name implies as many folders as it has slashes.

    Args:
        members: Members, and folders that are none.
        room: Bytes of all folders.
    """

    def __init__(self, members: int, room: int) -> None:
        self._max_members = members
        self._max_folders = room // _FOLDER_SIZE
        self._room = room
        self._members = 0
        self._folders = 0
        self._is_member = False

    def member(self, info: tarfile.TarInfo) -> None:
        """The next member comes. Raises LIMIT_REACHED."""
        self._is_member = info.isdir()
        self._count()

    def folder(self) -> None:
        """A folder was made for it, or is what it is. Raises LIMIT_REACHED."""
        self._folders += 1
        if self._folders > self._max_folders:
            raise ResourceExhausted(
                f"the archive's folders take more than {self._room} bytes, which is what fits: leave something out",
                reason="LIMIT_REACHED",
                metadata={"limit": str(self._room)},
            )
        if self._is_member:
            self._is_member = False
        else:
            self._count()

    def _count(self) -> None:
        self._members += 1
        if self._members > self._max_members:
            raise ResourceExhausted(
                f"the archive has more than {self._max_members} members, with the folders on the way to them: "
                f"send it in parts",
                reason="LIMIT_REACHED",
                metadata={"limit": str(self._max_members)},
            )


def unpack(
    archive: BinaryIO,
    target: Path,
    *,
    max_members: int,
    room: int,
    wanted: Callable[[], bool] = lambda: True,
    prefix: str = "",
    ours: bool = False,
) -> tuple[int, int]:
    """Unpack a tar into an empty folder of ours.

    Args:
        archive: The tar, not compressed, at its beginning.
        target: The folder. Something may be left in it when this raises.
        max_members: How many it may have, with the folders that their names imply.
        room: Bytes that its folders may take.
        wanted: False: give it up.
        prefix: Only members whose names begin so, without it: empty, or with a slash at its end.
        ours: Made by `tar_blocks`: links come back wherever they point, and modes as they were.

    Returns:
        How many files and links there were, and their bytes.

    Raises:
        InvalidArgument: PATH_INVALID for what is no file, folder or link in it, or leads out; FIELD_INVALID for what is
            no archive.
        ResourceExhausted: LIMIT_REACHED: it has too many members, or folders.
    """
    files, size, bounds = 0, 0, _Bounds(max_members, room)
    modes: list[tuple[str, tarfile.TarInfo]] = []
    guarded = _Guarded(archive)
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with tarfile.open(
            fileobj=cast("BinaryIO", guarded),
            mode="r:",
            tarinfo=tarfile.TarInfo if ours else _Foreign,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while wanted() and (member := guarded.header(tar.next)) is not None:
                # It would keep all that it has seen.
                tar.members.clear()  # type: ignore[attr-defined]
                if sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > _MAX_GLOBAL:
                    raise _no_archive(f"has global headers of more than {_MAX_GLOBAL} bytes")
                bounds.member(member)
                if member.name.startswith(prefix):
                    member.name = member.name.removeprefix(prefix)
                    if not member.isdir():
                        files, size = files + 1, size + member.size
                    elif ours:
                        modes.append((member.name, member))
                    _unpack_member(tar, member, folder, bounds, ours=ours)
        # Last and from within: a folder may be read-only, and what is put into it changes its time.
        for path, member in reversed(modes):
            made = make_folders(folder, path)
            os.fchmod(made, member.mode & 0o777)
            os.utime(made, (member.mtime, member.mtime))
            os.close(made)
    except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError, EOFError) as error:
        raise _no_archive("is damaged, or no tar") from error
    finally:
        os.close(folder)
    return files, size


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: int, bounds: _Bounds, *, ours: bool) -> None:
    # As a file that is uploaded by itself: without control characters.
    path = parse_path(member.name, root=member.isdir(), new=not ours)
    if member.size < 0 or member.issparse():
        raise path_invalid(path, "is a sparse file: send it as a plain one")
    if member.isdir():
        made = make_folders(folder, path, bounds.folder)
        os.fchmod(made, member.mode & 0o777 | 0o700)
        os.close(made)
        return
    head, _, name = path.rpartition("/")
    parent = make_folders(folder, head, bounds.folder)
    try:
        if member.isreg():
            _unpack_file(tar, member, parent, name, 0 if ours else 0o600)
        elif member.issym():
            os.symlink(member.linkname if ours else _inner_target(path, member.linkname), name, dir_fd=parent)
            with contextlib.suppress(OverflowError, ValueError, OSError):
                os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            _unpack_link(folder, parse_path(member.linkname), parent, name)
        else:
            raise path_invalid(path, "is neither a file nor a folder nor a link")
    except FileExistsError:
        raise path_invalid(path, "is in the archive twice") from None
    finally:
        os.close(parent)


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, mode: int) -> None:
    number = new_file(parent, name)
    with os.fdopen(number, "wb") as out:
        content = tar.extractfile(member)
        assert content is not None
        left = member.size
        while left:
            data = content.read(min(left, _CHUNK))
            if not data:
                raise _no_archive("is cut off")
            out.write(data)
            left -= len(data)
        out.flush()
        # An agent has to be able to change what it was given.
        os.fchmod(number, member.mode & 0o777 | mode)
        with contextlib.suppress(OverflowError, ValueError, OSError):
            os.utime(number, (member.mtime, member.mtime))


def _unpack_link(folder: int, source: str, parent: int, name: str) -> None:
    """A further name of a file of the archive."""
    found = open_beneath(folder, source)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise path_invalid(source, "is linked to and no file")
        os.link(f"/proc/self/fd/{found}", name, dst_dir_fd=parent)
    finally:
        os.close(found)


def _inner_target(path: str, target: str) -> str:
    """A link's target if it stays in the archive: up only at its beginning, and no further than to the top.

    What comes after the way up may lead through other links of the archive, each of which stays in it too; up again
    behind a link would lead from wherever that points to.
    """
    names = [name for name in target.split("/") if name not in {"", "."}]
    ups = next((at for at, name in enumerate(names) if name != ".."), len(names))
    outward = target.startswith("/") or ups > path.count("/") or ".." in names[ups:]
    check_letters(target)
    if outward or not target or "\0" in target or len(os.fsencode(target)) > _MAX_TARGET:
        raise path_invalid(path, "is a link that leads out of the archive, or may")
    return target
