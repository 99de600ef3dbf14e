"""What a session's files take on disk, and what is left there."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agentrpc.claude import disk_usage
from agentrpc.claude.limits import Limits
from agentrpc.services.session_host.bounds import Bounded, Breach, breach_of

__all__ = ["Disk", "Usage", "measure"]

log = structlog.get_logger()

_SECONDS = 120.0
_SCRIPT = Path(disk_usage.__file__)
_MIB = 1024**2
_LITTLE = 16


@dataclass(frozen=True, slots=True)
class Usage:
    """What a session's files take on disk.

    Attributes:
        bytes: On disk.
        files: Files, folders and links.
        too_deep: Whether folders are nested so deep that nobody adds up what is in them.
    """

    bytes: int = 0
    files: int = 0
    too_deep: bool = False

    def within(self, limits: Limits, began: "Usage | None" = None) -> bool:
        """Whether it is not too much.

        Args:
            limits: The limits.
            began: What it was when the run began, if that was too much: it may remove some, and add little.
        """
        if began is None:
            return not self.too_deep and self.bytes <= limits.disk_bytes and self.files <= limits.disk_files
        return (
            self.too_deep <= began.too_deep
            and self.bytes <= max(began.bytes, limits.disk_bytes) + limits.disk_bytes // _LITTLE
            and self.files <= max(began.files, limits.disk_files) + limits.disk_files // _LITTLE
        )

    def breach(self, limits: Limits) -> Breach:
        """What is told when it is too much."""
        if self.too_deep:
            return breach_of("workspace_files", "folders of its files are nested too deep")
        if self.bytes > limits.disk_bytes:
            return breach_of("workspace_bytes", f"its files take more than {limits.disk_bytes // _MIB} MiB on disk")
        return breach_of("workspace_files", f"it has more than {limits.disk_files} files and folders")


async def measure(bounded: Bounded) -> Usage | None:
    """Add up what a session's folders take, and its files that are in none any more; None: not done in time."""
    held = await asyncio.to_thread(bounded.held_on_disk)
    command = [sys.executable, "-I", "-S", str(_SCRIPT), *map(str, bounded.folders)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env={})
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
        found = Usage(**json.loads(output))
        return replace(found, bytes=found.bytes + held.bytes, files=found.files + held.files)
    except (TimeoutError, ValueError):
        log.warning("files_not_measured")
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Disk:
    """The file systems of a session's files.

    Attributes:
        used: Bytes that are taken there, by whomever.
        files: Files, likewise.
        free: Bytes that are left on the fullest.
    """

    used: int
    files: int
    free: int

    @classmethod
    def of(cls, folders: Iterable[Path]) -> "Disk":
        """Those of some folders. Blocks."""
        seen: dict[int, os.statvfs_result] = {}
        for folder in folders:
            with contextlib.suppress(OSError):
                seen.setdefault(os.stat(folder).st_dev, os.statvfs(folder))  # noqa: PTH116 - one call
        found = seen.values()
        return cls(
            sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in found),
            sum(each.f_files - each.f_ffree for each in found),
            min((each.f_bavail * each.f_frsize for each in found), default=2**62),
        )
