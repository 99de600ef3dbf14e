"""Starts the rendering process, waits for it no longer than it may take, and leaves nothing behind."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from agentrpc.reports.document import Document
from agentrpc.reports.render import RenderError

__all__ = ["Limits", "rendered"]

log = structlog.get_logger()

_PREFIX = "report-"
_STALE = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What rendering may use: bytes of memory and of the document, seconds of time."""

    memory: int
    seconds: float
    size: int


@asynccontextmanager
async def rendered(document: Document, form: str, template: str, limits: Limits, folder: Path) -> AsyncIterator[Path]:
    """The file with the written report; gone at the end of the block, and so is the process.

    Args:
        document: What it says.
        form: `JSON`, `MARKDOWN`, `HTML` or `PDF`.
        template: In place of ours; empty: ours.
        limits: What it may use.
        folder: Where the process gets an empty folder of its own.

    Raises:
        RenderError: It cannot be rendered.
    """
    home = await asyncio.to_thread(_make_home, folder)
    try:
        job = {
            "report": asdict(document),
            "format": form,
            "template": template,
            "limits": {"memory": limits.memory, "cpu_seconds": int(limits.seconds) + 1, "size": limits.size},
        }
        await _run(json.dumps(job).encode(), home, limits)
        yield home / "report"
    finally:
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


def _make_home(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Of workers that were killed.
    for left in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))


async def _run(job: bytes, home: Path, limits: Limits) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "agentrpc.reports.child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        # Threads of the numeric library take address space and do nothing here.
        env={
            "HOME": str(home),
            "TMPDIR": str(home),
            "LANG": "C.UTF-8",
            "MPLCONFIGDIR": str(home),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limits.seconds):
            out, errors = await process.communicate(job)
    except TimeoutError:
        message = f"rendering took longer than {limits.seconds:g} s: make the template simpler"
        raise RenderError("LIMIT_REACHED", message) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise _failure(process.returncode, out, errors)


def _failure(status: int, out: bytes, errors: bytes) -> RenderError:
    with suppress(ValueError, KeyError, IndexError, TypeError):
        told = json.loads(out.splitlines()[-1])
        return RenderError(str(told["reason"]), str(told["message"]))
    log.warning("rendering_failed", status=status, errors=errors[-4000:].decode(errors="replace"))
    if -status in {signal.SIGXCPU, signal.SIGKILL}:
        return RenderError("LIMIT_REACHED", "rendering took more processor time or memory than it may")
    if -status in {signal.SIGABRT, signal.SIGTRAP, signal.SIGSEGV} or b"MemoryError" in errors:
        # How the libraries below end when they get no more memory.
        return RenderError("LIMIT_REACHED", "rendering ended by itself, most likely for want of memory")
    return RenderError("INTERNAL", "rendering failed; the log of the worker says more")
