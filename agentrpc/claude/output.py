"""The CLI's output, read in batches.

The SDK hands on one frame at a time through a queue that costs several turns of the event loop for each: more than all
else that the worker does for a delta. Here runs of frames that the control protocol has no interest in travel through
the SDK as one, unparsed, and in order with all others.

The output comes through a named pipe that the launcher opens as its standard output, and not through the SDK's own,
which is a socket under uvloop: each small write to a socket costs the CLI twice as much, and a socket holds some
hundred of them, this pipe some thousand.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from claude_agent_sdk import ClaudeAgentOptions, CLIJSONDecodeError, ProcessError
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

__all__ = ["BatchingTransport", "OutputPipe", "frames_of"]

# Frames that the SDK would only pass on; each begins so because the CLI writes the type first. Others go one by one.
_PASSED_ON = (b'{"type":"stream_event",', b'{"type":"system","subtype":"thinking_tokens",')
_BATCH = "agentrpc_batch"
_READ = 64 * 1024
_PIPE = 256 * 1024
# A reader that is woken by each small write takes the CLI's core. After some quick reads in a row it lets more gather.
_PACE = 0.001
_QUICK = 0.003
_QUICK_READS = 4
_LAST_WORDS = 1.0


class OutputPipe:
    """The named pipe of one process. The reading end is open from the beginning, so that a writer never waits for it.

    Args:
        folder: Where to make it; the session's launch folder, which the agent does not see.
    """

    def __init__(self, folder: Path) -> None:
        for old in folder.glob("output-*"):
            old.unlink(missing_ok=True)
        # A name of its own: a launcher that was left behind by a dead worker must not find a newer process's pipe.
        self.path = folder / f"output-{secrets.token_hex(8)}"
        os.mkfifo(self.path, 0o600)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Refused when the user's pipes hold 64 MiB already (pipe(7)): what it has then will do.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def hide(self) -> None:
        """Remove the name; who has it open keeps it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the reading end."""
        self.hide()
        if self.fd >= 0:
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1


class BatchingTransport(SubprocessCLITransport):
    """The SDK's way to the CLI, but for how its output is read.

    Args:
        options: The same as the client's.
        pipe: The CLI's output.
    """

    def __init__(self, options: ClaudeAgentOptions, pipe: OutputPipe) -> None:
        # The SDK asks for permission prompts itself, but not on behalf of a transport that it is given.
        super().__init__(_no_prompt(), replace(options, permission_prompt_tool_name="stdio"))
        self._pipe = pipe
        self._waiter: asyncio.Future[None] | None = None
        self._spawning: asyncio.Task[None] | None = None
        self._exited: asyncio.Task[int] | None = None
        self._left_at = 0.0
        self._read_at = 0.0
        self._quick = 0

    async def connect(self) -> None:
        """Start the CLI. A cancellation does not cut that off: half made, a process has no pid to end it by."""
        self._spawning = asyncio.create_task(super().connect(), name="spawn-agent")
        await asyncio.shield(self._spawning)

    async def spawned(self) -> None:
        """Wait until no process is being made any more."""
        if self._spawning is not None:
            await asyncio.gather(self._spawning, return_exceptions=True)

    async def exited(self) -> None:
        """Wait for the end of that process."""
        if self._process is not None:
            await self._process.wait()

    @property
    def pid(self) -> int | None:
        """The CLI's process, or that of its launcher."""
        return self._process.pid if self._process is not None else None

    async def close(self) -> None:
        """End the process and give up its output."""
        process = self._process
        try:
            await super().close()
        finally:
            if process is not None:
                # anyio has no way to it: the SDK's own pipes stay open as long as a child of the CLI has them.
                cast("Any", process)._process._transport.close()
            if self._exited is not None:
                self._exited.cancel()
            self._pipe.close()

    async def _read_messages_impl(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process is not None
        self._exited = asyncio.create_task(self._process.wait(), name="agent-exit")
        self._exited.add_done_callback(self._on_exit)
        pending: list[bytes] = []
        size = 0
        await self._readable()
        while chunk := await self._read():
            pending.append(chunk)
            size += len(chunk)
            if size > self._max_buffer_size + _READ:
                raise CLIJSONDecodeError("", ValueError(f"a line is longer than {self._max_buffer_size} bytes"))
            if b"\n" not in chunk:
                continue
            *lines, rest = b"".join(pending).split(b"\n")
            pending, size = [rest], len(rest)
            batch: list[bytes] = []
            for line in lines:
                if line.startswith(_PASSED_ON):
                    batch.append(line)
                    continue
                if batch:
                    yield {"type": _BATCH, "lines": batch}
                    batch = []
                frame = _parse(line)
                if frame is not None:
                    # It warns of a CLI that is too old to take prompts as they were written.
                    self._check_claude_version(frame)
                    yield frame
            if batch:
                yield {"type": _BATCH, "lines": batch}
        # What is left was most likely cut off with the process.
        with contextlib.suppress(CLIJSONDecodeError):
            frame = _parse(b"".join(pending))
            if frame is not None:
                yield frame
        exit_code = await self._process.wait()
        if exit_code:
            self._exit_error = ProcessError(f"the CLI ended with status {exit_code}", exit_code=exit_code)
            raise self._exit_error

    async def _read(self) -> bytes:
        """The next bytes; empty at the end."""
        loop = asyncio.get_running_loop()
        if self._quick >= _QUICK_READS:
            await asyncio.sleep(_PACE)
        while True:
            try:
                data = os.read(self._pipe.fd, _READ)
            except BlockingIOError:
                # Somebody has it open. When the process is gone that can only be one that dies with it.
                if self._left_at and loop.time() - self._left_at > _LAST_WORDS:
                    return b""
                await (asyncio.sleep(0.01) if self._left_at else self._readable())
                continue
            now = loop.time()
            self._quick = self._quick + 1 if now - self._read_at < _QUICK else 0
            self._read_at = now
            return data

    async def _readable(self) -> None:
        """Until there is something to read, the other end is closed, or the process has ended."""
        if self._left_at:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_reader(self._pipe.fd, self._wake)
        try:
            await self._waiter
        finally:
            loop.remove_reader(self._pipe.fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_exit(self, _: object) -> None:
        self._left_at = asyncio.get_running_loop().time()
        self._wake()


def frames_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames that a message of the SDK stands for.

    Raises:
        CLIJSONDecodeError: The CLI wrote what is not JSON.
    """
    if message.get("type") != _BATCH:
        return [message]
    lines = message["lines"]
    try:
        frames: list[dict[str, Any]] = json.loads(b"[%b]" % b",".join(lines))
    except ValueError:
        frames = []
    if len(frames) == len(lines):
        return frames
    return [frame for frame in map(_parse, lines) if frame is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line that is a frame. Others, which parts of the CLI print by mistake, are nothing to us."""
    if not line.startswith(b"{"):
        return None
    try:
        frame: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise CLIJSONDecodeError(line[:200].decode(errors="replace"), error) from error
    return frame


async def _no_prompt() -> AsyncIterable[dict[str, Any]]:
    return
    yield
