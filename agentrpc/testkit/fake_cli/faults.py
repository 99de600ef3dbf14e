"""What goes wrong on purpose."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrpc.testkit.fake_cli.wire import Wire

__all__ = ["crash", "leave_child", "sleep_for_ever", "take_memory"]

_DEAF = 'trap "" TERM; exec sleep 3600'
_STOPPED = "kill -STOP $$; exec sleep 3600"
_taken: list[bytes] = []


def crash(wire: Wire, options: dict[str, str]) -> None:
    """End at once, with a signal or with a status."""
    wire.flush()
    if "signal" in options:
        os.kill(os.getpid(), int(options["signal"]))
        time.sleep(10)
    os._exit(int(options.get("status", "1")))


def sleep_for_ever() -> None:
    """Hang without reading."""
    while True:
        time.sleep(3600)


def leave_child(kind: str) -> None:
    """Start a child that nobody ends: `setsid`, `term` or `stop`."""
    with open(os.devnull, "r+b") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), fd) for fd in (0, 1, 2)]
        command = _STOPPED if kind == "stop" else _DEAF
        os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", command],
            os.environ,
            file_actions=actions,
            setsid=kind == "setsid",
            setsigdef=[signal.SIGTERM],
        )


def take_memory(mebibytes: int) -> None:
    """Hold memory that is really there."""
    _taken.append(os.urandom(4096) * (mebibytes * 256))
