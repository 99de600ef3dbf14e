"""What process trees use: tasks, memory, processor time, and what they keep in files that no folder shows.

A file without a name, as of memfd_create(2) or one that was removed while it is open, takes memory or space on a disk
for as long as a process has it open or mapped. What is queued in sockets and pipes, also descriptors in a message that
nobody has received, is the kernel's: no process shows it.
"""

import contextlib
import os
import random
import stat
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from agentrpc.claude.supervisor import descendants

__all__ = [
    "Held",
    "Look",
    "disk_held",
    "look_at",
    "memory_held",
    "memory_of",
    "processes_below",
    "stat_fields",
]

_BLOCK = 512
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat behind the command's name (proc_pid_stat(5)).
_UTIME, _STIME, _CUTIME, _CSTIME, _THREADS, _RESIDENT = 11, 12, 13, 14, 17, 21
_IN_MEMORY = ("tmp", "dev/shm")
# For one look at what costs more: an agent can make that long, and others are to be looked after.
_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What some process trees use at a moment, as far as a quick look shows it.

    Attributes:
        tasks: Processes and threads.
        descriptors: Open files of all processes; 0 where the kernel (before 6.2) does not count them.
        resident: Bytes of memory; what several processes share counts for each.
        in_files: Bytes of memory in files of /tmp and /dev/shm.
        tmp_files: How many files these are.
        cpu: Seconds of processor time that they and what has ended below them have used.
        written: Bytes that they have written to disks, as far as one can see.
    """

    tasks: int = 0
    descriptors: int = 0
    resident: int = 0
    in_files: int = 0
    tmp_files: int = 0
    cpu: float = 0.0
    written: int = 0

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return self.resident + self.in_files


def look_at(roots: Sequence[int], *, sandboxed: bool) -> Look:
    """Measure process trees. Quick: what costs more, such as what is shared, is left to who has to know.

    Args:
        roots: Their first processes.
        sandboxed: Whether they have a /tmp of their own.
    """
    tasks = open_files = resident = in_files = tmp_files = written = 0
    cpu = 0.0
    for root in roots:
        below = descendants(root)
        for pid in [root, *below]:
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = stat_fields(pid)
                tasks += int(fields[_THREADS])
                resident += int(fields[_RESIDENT]) * _PAGE
                cpu += sum(int(fields[at]) for at in (_UTIME, _STIME, _CUTIME, _CSTIME)) / _TICK
                open_files += os.stat(f"/proc/{pid}/fd").st_size  # noqa: PTH116 - quick
            with contextlib.suppress(OSError, ValueError):
                written += int(Path(f"/proc/{pid}/io").read_text().partition("\nwrite_bytes: ")[2].split()[0])
        if sandboxed and below:
            for name in _IN_MEMORY:
                with contextlib.suppress(OSError):
                    place = f"/proc/{below[0]}/root/{name}"
                    if os.stat(place).st_dev == os.stat(f"/{name}").st_dev:  # noqa: PTH116 - of another's root
                        # It is only being made: that is the machine's.
                        continue
                    found = os.statvfs(place)
                    in_files += (found.f_blocks - found.f_bfree) * found.f_frsize
                    tmp_files += found.f_files - found.f_ffree
    return Look(tasks, open_files, resident, in_files, tmp_files, cpu, written)


def stat_fields(pid: int) -> list[str]:
    """Those of /proc/PID/stat behind the command's name. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def processes_below(roots: Sequence[int]) -> list[int]:
    """These processes and all below them."""
    return [pid for root in roots for pid in (root, *descendants(root))]


# ---- Memory ----


def memory_of(pids: Sequence[int], *, in_files: int, held: int) -> int:
    """Bytes that processes use: their proportional set sizes, which count once what they share.

    Args:
        pids: The processes.
        in_files: What is in files of /tmp and /dev/shm.
        held: What is in files without a name. Where they have mapped any of it, that counts once.
    """
    total = mapped = 0
    until = time.monotonic() + _SECONDS
    for pid in pids:
        with contextlib.suppress(OSError):
            own, of_files = _process_memory(Path(f"/proc/{pid}"), quick=time.monotonic() > until)
            total, mapped = total + own, mapped + of_files
    return total - mapped + max(mapped, in_files + held)


def _process_memory(folder: Path, *, quick: bool) -> tuple[int, int]:
    """What a process uses, and how much of it are files in memory. Quick: all its resident pages."""
    if not quick:
        # None for a process that has changed its user.
        with contextlib.suppress(PermissionError):
            found = dict(line.split()[:2] for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            return int(found.get("Pss:", 0)) * 1024, int(found.get("Pss_Shmem:", 0)) * 1024
    return int((folder / "statm").read_text().split()[1]) * _PAGE, 0


# ---- Files without a name ----


@dataclass(frozen=True, slots=True)
class Held:
    """What processes keep in files without a name.

    Attributes:
        bytes: How much.
        files: How many they are.
    """

    bytes: int = 0
    files: int = 0


def memory_held(pids: Sequence[int]) -> int:
    """Bytes of memory in files without a name. Blocks."""
    return _held(pids, {_memory_device()}).bytes


def disk_held(pids: Sequence[int], folders: Sequence[Path]) -> Held:
    """What files without a name take on the file systems of some folders. Blocks."""
    devices = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            devices.add(folder.stat().st_dev)
    return _held(pids, devices)


def _held(pids: Sequence[int], devices: Collection[int]) -> Held:
    opened: dict[tuple[int, int], int] = {}
    mapped: dict[int, int] = {}
    until = time.monotonic() + _SECONDS
    # Whatever is left out when it takes too long, it is not the same every time.
    for pid in random.sample(pids, len(pids)):
        if time.monotonic() > until:
            break
        # A thread can have descriptors of its own.
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - quick
                _add_opened(opened, f"/proc/{pid}/task/{task}/fd", devices)
        with contextlib.suppress(OSError):
            _add_mapped(opened, mapped, f"/proc/{pid}", devices)
    # Only root sees how large a file is that is mapped and not open: for others it is as large as the mapping, and all
    # together no larger than files in memory are on this machine.
    known = {inode for _, inode in opened}
    unknown = {inode: size for inode, size in mapped.items() if inode not in known}
    more = min(sum(unknown.values()), psutil.virtual_memory().shared) if unknown else 0
    return Held(sum(opened.values()) + more, len(opened) + len(unknown))


def _add_opened(sizes: dict[tuple[int, int], int], folder: str, devices: Collection[int]) -> None:
    for name in os.listdir(folder):  # noqa: PTH208 - quick
        with contextlib.suppress(OSError):
            _add(sizes, os.stat(f"{folder}/{name}"), devices)  # noqa: PTH116 - quick


def _add(sizes: dict[tuple[int, int], int], info: os.stat_result, devices: Collection[int]) -> None:
    if info.st_nlink == 0 and info.st_dev in devices and stat.S_ISREG(info.st_mode):
        sizes[info.st_dev, info.st_ino] = info.st_blocks * _BLOCK


def _add_mapped(
    opened: dict[tuple[int, int], int], mapped: dict[int, int], folder: str, devices: Collection[int]
) -> None:
    for line in Path(f"{folder}/maps").read_bytes().splitlines():
        if not line.endswith(b" (deleted)"):
            continue
        place, _, _, device, inode, _ = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in place.split(b"-"))
        try:
            _add(opened, os.stat(f"{folder}/map_files/{begin:x}-{end:x}"), devices)  # noqa: PTH116 - quick
        except PermissionError:
            major, minor = (int(part, 16) for part in device.split(b":"))
            if os.makedev(major, minor) in devices:
                mapped[int(inode)] = max(mapped.get(int(inode), 0), end - begin)
        except OSError:
            continue


@cache
def _memory_device() -> int:
    """That of memfd_create(2), of memory that processes share, and of System V's."""
    file = os.memfd_create("device")
    try:
        return os.fstat(file).st_dev
    finally:
        os.close(file)
