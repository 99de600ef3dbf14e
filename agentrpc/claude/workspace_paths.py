"""Paths in a workspace, as callers write them, and the one way from there to a descriptor.

An agent runs at the same time and may put links in the place of folders between a check and a use. So nothing is
checked by its path: a path is resolved once, by the kernel, to a descriptor that is no link and was reached through
none (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; where the kernel has no such call, name by name with
O_NOFOLLOW). It is an O_PATH descriptor, which opens nothing: a pipe does not block and a device does not notice. Only
what turns out to be a file or a folder is opened, through the descriptor.

Hard links. bubblewrap mounts the workspace by itself, and link(2) does not cross mounts: an agent cannot link a file
from elsewhere. Without bubblewrap it can link what its user may read and write anyway; files of another user that have
several names are refused here, for hosts on which it could link those too (fs.protected_hardlinks = 0).
"""

import ctypes
import errno
import os
import stat
from collections.abc import Sequence

from agentrpc.errors import FailedPrecondition, InvalidArgument, NotFound

__all__ = [
    "MAX_DEPTH",
    "MAX_PATH",
    "check_letters",
    "find",
    "missing",
    "open_beneath",
    "open_file",
    "open_folder",
    "parse_path",
    "path_invalid",
    "reopen",
    "shown",
    "unreadable",
]

# Folders within folders; each costs a file descriptor while it is walked.
MAX_DEPTH = 200
_MAX_NAME = 255
MAX_PATH = 4095
_FIND = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_OPENAT2 = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_TRIES = 8


class _OpenHow(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
# None until the kernel was asked.
_has_openat2: bool | None = None


def path_invalid(path: str, why: str) -> InvalidArgument:
    """PATH_INVALID."""
    return InvalidArgument(f"{shown(path)[:200]!r} {why}", reason="PATH_INVALID", metadata={"path": shown(path)})


def missing(path: str) -> NotFound:
    """NOT_FOUND of something in a workspace."""
    return NotFound("File", shown(path)[:200])


def unreadable(path: str, error: OSError) -> FailedPrecondition:
    """STATE_INVALID: the file system does not let it be."""
    return FailedPrecondition(
        f"{shown(path)[:200]!r} cannot be read or written: {os.strerror(error.errno or 0)}",
        reason="STATE_INVALID",
        metadata={"state": errno.errorcode.get(error.errno or 0, "UNKNOWN")},
    )


def shown(path: str) -> str:
    """A path as text that every decoder takes: U+FFFD for bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def parse_path(path: str, raw: bytes = b"", *, new: bool = False, root: bool = False) -> str:
    """A caller's path, with single slashes and without `.`; bytes that are not UTF-8 as Python has them in names.

    Args:
        path: As the caller wrote it.
        raw: In its place, bytes.
        new: Whether it may be made: then without control characters.
        root: Whether it may be the workspace itself.

    Raises:
        InvalidArgument: PATH_INVALID, or FIELD_INVALID for both at once.
    """
    if path and raw:
        raise InvalidArgument.field("raw_path", "goes in place of path: leave one of them empty")
    text = os.fsdecode(raw) if raw else path
    if "\0" in text:
        raise path_invalid(text, "holds a NUL character")
    if text.startswith("/"):
        raise path_invalid(text, "is absolute: write it relative to the workspace")
    if len(os.fsencode(text)) > MAX_PATH:
        raise path_invalid(text, f"has more than {MAX_PATH} bytes")
    names = [name for name in text.split("/") if name not in {"", "."}]
    if ".." in names:
        raise path_invalid(text, "leads up: write it relative to the workspace, without `..`")
    if len(names) > MAX_DEPTH:
        raise path_invalid(text, f"has more than {MAX_DEPTH} names")
    if any(len(os.fsencode(name)) > _MAX_NAME for name in names):
        raise path_invalid(text, f"has a name of more than {_MAX_NAME} bytes")
    if not names and not root:
        raise path_invalid(text, "is the workspace itself: name something in it")
    if new:
        check_letters(text)
    return "/".join(names)


def check_letters(path: str) -> None:
    """Raise PATH_INVALID for control characters."""
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in path):
        raise path_invalid(path, "holds a control character")


# ---- From a path to a descriptor ----


def open_beneath(folder: int, path: str) -> int:
    """An O_PATH descriptor of what is at a path below a folder: of any kind, also of a link; none was followed.

    Args:
        folder: A descriptor of the folder.
        path: From `parse_path`; empty: the folder itself.

    Raises:
        NotFound: There is nothing.
        InvalidArgument: PATH_INVALID: it leads through a link.
    """
    try:
        return find(folder, path or ".")
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EXDEV}:
            raise path_invalid(path, "leads through a symbolic link, and none is followed: name its target") from error
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise missing(path) from error
        raise unreadable(path, error) from error


def find(folder: int, path: str) -> int:
    """As `open_beneath`, of names as the file system has them; `.` is the folder itself. Raises OSError."""
    global _has_openat2
    if _has_openat2 is not False:
        try:
            found = _openat2(folder, path)
        except OSError as error:
            # EPERM: from a seccomp filter that does not know the call.
            if error.errno not in {errno.ENOSYS, errno.EPERM} or _has_openat2:
                raise
            _has_openat2 = False
        else:
            _has_openat2 = True
            return found
    return _step_by_step(folder, path.split("/"))


def _openat2(folder: int, path: str) -> int:
    number = errno.EAGAIN
    how = _OpenHow(_FIND, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_TRIES):
        found = int(_libc.syscall(_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        # EAGAIN: something was renamed meanwhile, so that the kernel could not be sure.
        if number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number))


def _step_by_step(folder: int, names: Sequence[str]) -> int:
    at = os.dup(folder)
    try:
        for name in names:
            if not stat.S_ISDIR(os.fstat(at).st_mode):
                number = errno.ELOOP if stat.S_ISLNK(os.fstat(at).st_mode) else errno.ENOTDIR
                raise OSError(number, os.strerror(number))
            below = os.open(name, _FIND, dir_fd=at)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def reopen(found: int, flags: int) -> int:
    """What an O_PATH descriptor stands for, opened: exactly that, whatever has become of its path."""
    return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC | os.O_NONBLOCK)


def open_file(folder: int, path: str) -> int:
    """A regular file below a folder, for reading. Raises as `open_beneath`; PATH_INVALID for what is none."""
    found = open_beneath(folder, path)
    try:
        info = os.fstat(found)
        if stat.S_ISLNK(info.st_mode):
            target = os.readlink("", dir_fd=found)
            raise path_invalid(
                path, f"is a symbolic link, and none is followed: name its target, {shown(target)[:200]!r}"
            )
        if stat.S_ISDIR(info.st_mode):
            raise path_invalid(path, "is a folder: list it, or download it as an archive")
        if not stat.S_ISREG(info.st_mode):
            raise path_invalid(path, "is a pipe, a socket or a device")
        if info.st_nlink > 1 and info.st_uid != os.fstat(folder).st_uid:
            raise path_invalid(path, "is another user's and has several names")
        return reopen(found, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(found)


def open_folder(folder: int, path: str) -> int:
    """A folder below a folder, for listing. Raises as `open_file`."""
    found = open_beneath(folder, path)
    try:
        mode = os.fstat(found).st_mode
        if stat.S_ISLNK(mode):
            raise path_invalid(path, "is a symbolic link, and none is followed: name its target")
        if not stat.S_ISDIR(mode):
            raise path_invalid(path, "is not a folder")
        return reopen(found, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(found)
