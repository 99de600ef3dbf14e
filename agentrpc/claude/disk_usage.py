"""Adds up what folders take on a disk. A script: an agent can make that long, and the worker has other things to do.

Whatever an agent puts there meanwhile, no link is followed, no pipe or device opened, and a folder that is closed to
its owner is opened up. A file with several names counts once. Standard library alone, and started with `python -I -S`.
"""

import contextlib
import json
import os
import stat
import sys

__all__ = ["main"]

# Each costs two descriptors. What is nested deeper is not added up, and counts as too much.
_MAX_DEPTH = 400
_FIND = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BLOCK = 512


class _Sum:
    """What was found."""

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.too_deep = False
        self._linked: set[tuple[int, int]] = set()

    def walk(self, top: int) -> None:
        """Add what is below a folder, which is closed then."""
        open_folders = [(top, os.scandir(top))]
        try:
            while open_folders:
                folder, entries = open_folders[-1]
                entry = next(entries, None)
                if entry is None:
                    open_folders.pop()
                    entries.close()
                    os.close(folder)
                    continue
                # It was removed meanwhile, or the file system does not let it be seen.
                with contextlib.suppress(OSError):
                    self._add(entry)
                    if entry.is_dir(follow_symlinks=False):
                        if len(open_folders) < _MAX_DEPTH:
                            below = enter(folder, entry.name)
                            open_folders.append((below, os.scandir(below)))
                        else:
                            self.too_deep = True
        finally:
            for folder, entries in open_folders:
                entries.close()
                os.close(folder)

    def _add(self, entry: "os.DirEntry[str]") -> None:
        info = entry.stat(follow_symlinks=False)
        self.files += 1
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            key = (info.st_dev, info.st_ino)
            if key in self._linked:
                return
            self._linked.add(key)
        self.bytes += info.st_blocks * _BLOCK


def enter(parent: "int | None", name: str) -> int:
    """A descriptor of a folder, for reading. Raises OSError."""
    found = os.open(name, _FIND, dir_fd=parent)
    try:
        path = f"/proc/self/fd/{found}"
        mode = os.fstat(found).st_mode
        if mode & 0o500 != 0o500:
            os.chmod(path, mode & 0o7777 | 0o700)  # noqa: PTH101 - quick start
        return os.open(path, _READ)
    finally:
        os.close(found)


def main() -> None:
    """`disk_usage.py FOLDER...`: prints what is there as JSON."""
    os.nice(10)
    found = _Sum()
    for name in sys.argv[1:]:
        try:
            top = enter(None, name)
        except OSError:
            continue
        found.walk(top)
    print(json.dumps({"bytes": found.bytes, "files": found.files, "too_deep": found.too_deep}))  # noqa: T201


if __name__ == "__main__":
    main()
