"""The way to the CLI and back: its standard input, output and error, which nobody else can open.

Whatever is written into the CLI's output counts as said by the CLI, and whatever into its input as said by the worker.
All processes of a sandbox are one user's, and such a process may open the pipes of another by /proc/PID/fd, named or
not. A socket has no name there and cannot be opened (ENXIO): hence sockets.

The SDK hands on one frame at a time through a queue that costs several turns of the event loop for each: more than all
else that the worker does for a delta. Here runs of frames that the control protocol has no interest in travel through
the SDK as one, unparsed, and in order with all others.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog
from claude_agent_sdk import ClaudeAgentOptions, CLIConnectionError, ProcessError, Transport
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from agentrpc.claude.listeners import Handover, Listeners

__all__ = ["BrokenFrameError", "Channel", "frames_of"]

log = structlog.get_logger()

# Frames that the SDK would only pass on; each begins so because the CLI writes the type first. Others go one by one.
_PASSED_ON = (b'{"type":"stream_event",', b'{"type":"system","subtype":"thinking_tokens",')
_BATCH = "agentrpc_batch"
_READ = 64 * 1024
_MAX_LINE = 1024 * 1024
# What the CLI may have written before it waits for us. Each small write counts here as about a kilobyte.
_BUFFER = 4 * 1024 * 1024
# A reader that is woken by each small write takes the CLI's core. After some quick reads in a row it lets more gather.
_PACE = 0.001
_QUICK = 0.003
_QUICK_READS = 4
_LAST_WORDS = 1.0
_ERRORS = 8 * 1024


class BrokenFrameError(Exception):
    """The CLI has written a frame that cannot be read. Whatever it said is lost, and with it the order of things."""


class Channel(Transport):
    """The SDK's transport to a CLI.

    Args:
        options: The same as the client's.
        on_listening: Gets what leads out of the CLI's own network. None: it has none, or nothing does.
    """

    def __init__(
        self, options: ClaudeAgentOptions, on_listening: Callable[[Listeners], Awaitable[None]] | None = None
    ) -> None:
        # The SDK asks for permission prompts itself, but not on behalf of a transport that it is given.
        sdk = SubprocessCLITransport(_no_prompt(), replace(options, permission_prompt_tool_name="stdio"))
        self._command = sdk._build_command()
        self._cwd = options.cwd
        self._max_line = options.max_buffer_size or _MAX_LINE
        self._on_listening = on_listening
        self._handover = Handover(needed=False)
        self._process: asyncio.subprocess.Process | None = None
        self._input: asyncio.StreamWriter | None = None
        self._output: socket.socket | None = None
        self._errors: socket.socket | None = None
        self._printed = bytearray()
        self._strays = 0
        self._spawning: asyncio.Task[None] | None = None
        self._exited: asyncio.Task[int] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._left_at = 0.0
        self._read_at = 0.0
        self._quick = 0

    @property
    def pid(self) -> int | None:
        """The CLI's process, or that of its launcher."""
        return self._process.pid if self._process is not None else None

    def errors(self) -> str:
        """The end of what the CLI has printed as errors."""
        self._hear_errors()
        return self._printed.decode(errors="replace").strip()

    async def connect(self) -> None:
        """Start the CLI. A cancellation does not cut that off: half made, a process has no pid to end it by."""
        self._handover = Handover(needed=self._on_listening is not None)
        self._spawning = asyncio.create_task(self._spawn(), name="spawn-agent")
        await asyncio.shield(self._spawning)
        with contextlib.closing(self._handover):
            listeners = await self._handover.listeners()
        if listeners is not None and self._on_listening is not None:
            await self._on_listening(listeners)

    async def _spawn(self) -> None:
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        try:
            for end in ours:
                end.setblocking(False)
            said, self._output, self._errors = ours
            _, self._input = await asyncio.open_unix_connection(sock=said)
            asyncio.get_running_loop().add_reader(self._errors, self._hear_errors)
            theirs[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            self._process = await self._handover.spawn(
                *self._command, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], cwd=self._cwd
            )
        finally:
            for end in theirs:
                end.close()
        self._exited = asyncio.create_task(self._process.wait(), name="agent-exit")
        self._exited.add_done_callback(self._on_exit)

    def _hear_errors(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while self._errors is not None and (data := self._errors.recv(_READ)):
                self._printed += data
                del self._printed[:-_ERRORS]
                if len(data) < _READ:
                    return
            if self._errors is not None:
                asyncio.get_running_loop().remove_reader(self._errors)

    async def spawned(self) -> None:
        """Wait until no process is being made any more."""
        if self._spawning is not None:
            await asyncio.gather(self._spawning, return_exceptions=True)

    async def exited(self) -> None:
        """Wait for the end of that process."""
        if self._process is not None:
            await self._process.wait()

    def is_ready(self) -> bool:
        """Whether it can be written to."""
        return self._input is not None and not self._input.is_closing()

    async def write(self, data: str) -> None:
        """Say something. Raises CLIConnectionError: the CLI does not read any more."""
        if self._input is None or self._input.is_closing():
            raise CLIConnectionError("the CLI's input is closed")
        try:
            self._input.write(data.encode())
            await self._input.drain()
        except (OSError, RuntimeError) as error:
            raise CLIConnectionError("the CLI does not read any more") from error

    async def end_input(self) -> None:
        """Let the CLI know that nothing more will be said."""
        if self._input is not None:
            self._input.close()

    async def close(self) -> None:
        """Give up the process, which is killed if it is still there, and all ways to it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._exited is not None:
            await asyncio.wait({self._exited}, timeout=_LAST_WORDS)
            self._exited.cancel()
        if self._input is not None:
            self._input.transport.abort()
        for end in (self._output, self._errors):
            if end is not None:
                asyncio.get_running_loop().remove_reader(end)
                end.close()
        self._output = self._errors = None
        self._handover.close()
        self._wake()

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """The CLI's frames, some as one."""
        return self._messages()

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process is not None
        pending: list[bytes] = []
        size = 0
        await self._readable()
        while chunk := await self._read():
            pending.append(chunk)
            size += len(chunk)
            if size > self._max_line + _READ:
                raise BrokenFrameError(f"a line of more than {self._max_line} bytes")
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
                if (frame := self._frame(line)) is not None:
                    yield frame
            if batch:
                yield {"type": _BATCH, "lines": batch}
        # What is left was most likely cut off with the process.
        with contextlib.suppress(BrokenFrameError):
            if (frame := self._frame(b"".join(pending))) is not None:
                yield frame
        if self._strays > 1:
            log.warning("agent_stray_output", lines=self._strays)
        exit_code = await self._process.wait()
        if exit_code:
            raise ProcessError(f"the CLI ended with status {exit_code}", exit_code=exit_code)

    def _frame(self, line: bytes) -> dict[str, Any] | None:
        frame = _parse(line)
        if frame is not None and frame["type"] == "control_request" and not _is_request(frame):
            raise BrokenFrameError("a control message that cannot be read")
        if frame is None and line.strip():
            # A part of the CLI, or of a library in it, has printed something: nothing is lost with it.
            self._strays += 1
            if self._strays == 1:
                log.warning("agent_stray_output", lines=1, first=line[:200].decode(errors="replace"))
        return frame

    async def _read(self) -> bytes:
        """The next bytes; empty at the end."""
        loop = asyncio.get_running_loop()
        if self._quick >= _QUICK_READS:
            await asyncio.sleep(_PACE)
        while self._output is not None:
            try:
                data = self._output.recv(_READ)
            except ConnectionResetError:
                return b""
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
        return b""

    async def _readable(self) -> None:
        """Until there is something to read, the other end is closed, or the process has ended."""
        if self._left_at or self._output is None:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        output = self._output
        loop.add_reader(output, self._wake)
        try:
            await self._waiter
        finally:
            if self._output is not None:
                loop.remove_reader(output)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_exit(self, _: object) -> None:
        self._left_at = asyncio.get_running_loop().time()
        self._wake()


def frames_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames that a message of the SDK stands for. Raises BrokenFrameError."""
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
    """A line that is a frame: a JSON object that names its type. None: it is none, and was never meant to be."""
    if not line.startswith(b"{"):
        return None
    try:
        frame: dict[str, Any] = json.loads(line)
    except ValueError as error:
        # No JSON.stringify writes otherwise; `{ debug: true }` is how an object is printed for people.
        if line.startswith(b'{"'):
            raise BrokenFrameError("a frame that is not JSON") from error
        return None
    return frame if isinstance(frame.get("type"), str) else None


def _is_request(frame: dict[str, Any]) -> bool:
    """Whether the SDK can answer a control request: it asks for no more than this before it looks for an answer."""
    request = frame.get("request")
    return (
        isinstance(frame.get("request_id"), str)
        and isinstance(request, dict)
        and isinstance(request.get("subtype"), str)
    )


async def _no_prompt() -> AsyncIterable[dict[str, Any]]:
    return
    yield
