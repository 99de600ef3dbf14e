"""The two ways out of a sandbox's own network (`fence.py`), as they come into the worker."""

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["FenceError", "Handover", "Listeners", "WaysOut"]

# Shells give names of one digit to what the launcher's script opens.
_ABOVE = 10


class FenceError(Exception):
    """A sandbox ended before it had a network of its own."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Listening sockets in the network of a sandbox. Whoever gets them closes them.

    Attributes:
        gateway: For the model gateway and MCP servers.
        proxy: For the egress proxy.
    """

    gateway: socket.socket
    proxy: socket.socket

    def close(self) -> None:
        """Close both: what connects from now on is refused."""
        self.gateway.close()
        self.proxy.close()


# Serves them for as long as there is somebody to serve, and closes them.
WaysOut: TypeAlias = Callable[[Listeners], AbstractAsyncContextManager[None]]


class Handover:
    """Takes over the sockets of one sandbox, whose launcher it starts.

    Args:
        needed: Otherwise there are none.
    """

    def __init__(self, *, needed: bool = True) -> None:
        self._ours: socket.socket | None = None
        self._theirs: int | None = None
        if needed:
            self._ours, theirs = socket.socketpair()
            self._ours.setblocking(False)
            with theirs:
                self._theirs = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _ABOVE)

    async def spawn(self, *command: str, **options: Any) -> asyncio.subprocess.Process:  # noqa: ANN401 - of asyncio
        """Start a launcher's script, with nothing in its environment but the way to here."""
        theirs = self._theirs
        environment, inherited = ({}, []) if theirs is None else ({"HANDOVER": str(theirs)}, [theirs])
        try:
            return await asyncio.create_subprocess_exec(*command, env=environment, pass_fds=inherited, **options)
        finally:
            # With theirs closed here the end of the launcher shows as the end of the connection.
            self._give_up_theirs()

    async def listeners(self) -> Listeners | None:
        """Wait for the sockets; None if there are to be none.

        Raises:
            FenceError: The launcher has ended without.
        """
        if self._ours is None:
            return None
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._ours, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._ours)
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionResetError):
            _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if len(descriptors) < 2:
            raise FenceError("the sandbox ended before it had a network of its own")
        gateway, proxy = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        return Listeners(gateway, proxy)

    def close(self) -> None:
        """Give it up."""
        self._give_up_theirs()
        if self._ours is not None:
            self._ours.close()
            self._ours = None

    def _give_up_theirs(self) -> None:
        if self._theirs is not None:
            os.close(self._theirs)
            self._theirs = None
