"""The parent of a worker: sees it end, ends whatever it has left behind, and says so in the store.

Keeps promises 3 and 5 when a worker is killed, stopped or hangs. Every process below the worker becomes a child of this
one when the worker is gone, so that its death is proven: once /proc shows none of them, the worker is declared dead and
others take its runs over at once. The worker tells by a pipe who it is and until when it may live; one that is still
there after that cannot end itself, and is killed. When this process itself is killed the worker dies with it, and the
agents with the worker; then its lease has to run out.

Small: nothing beyond the standard library is imported here. What speaks to the store is a child for just that long.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from agentrpc import clock
from agentrpc.claude.supervisor import become_subreaper, dying_with_parent, kill_descendants
from agentrpc.handover import environment_for, take_over

__all__ = ["WORKER_COMMAND", "reporter"]

# The command that this process runs again and again, with the number of the pipe behind it.
WORKER_COMMAND = "worker-process"

_LOOK_INTERVAL = 1.0
_KILL_PATIENCE = 10.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0
# A worker that has lived for so long was a good one: the next pause is the first again.
_GOOD_LIFE = 60.0
_LAST_WORDS = 10.0

Report = Callable[[UUID, float], None]


def reporter(pipe: int) -> Report:
    """How a worker tells its parent who it is and when it has to be killed, by `clock.boottime`. Never blocks."""
    os.set_inheritable(pipe, False)
    os.set_blocking(pipe, False)

    def report(worker_id: UUID, kill_time: float) -> None:
        try:
            os.write(pipe, f"{worker_id} {kill_time}\n".encode())
        except OSError:
            # A parent that is stopped, or gone: then it cannot help anyway.
            return

    return report


class _Parent:
    """Runs worker after worker, until it is asked to stop.

    Args:
        command: Runs a worker; gets the number of the pipe as one more argument.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._environment, handed_over = environment_for(os.environ)
        os.set_inheritable(handed_over, True)
        self._asked: int | None = None
        self._stopping = False
        self._worker: int | None = None
        self._status = 0
        self._undertaker: int | None = None
        self._dead: set[str] = set()
        self._woken, waking = os.pipe()
        for end in (self._woken, waking):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def run(self) -> int:
        """Until asked to stop, or until the first worker has not even begun. Returns the exit status."""
        pause = _FIRST_PAUSE
        first = True
        while True:
            began = time.monotonic()
            life = self._live()
            self._bury(life)
            if self._stopping or (first and life.worker_id is None):
                self._wait_for_undertaker()
                return self._status if self._status >= 0 else 128 - self._status
            first = False
            if time.monotonic() - began > _GOOD_LIFE:
                pause = _FIRST_PAUSE
            _say("worker_ended", status=self._status, worker=life.worker_id, next_in=pause)
            if self._rest(pause):
                self._wait_for_undertaker()
                return 0
            pause = min(pause * 2, _LONGEST_PAUSE)

    # ---- A worker ----

    def _live(self) -> "_Life":
        """Start a worker and wait for its end."""
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        command = dying_with_parent(*self._command, str(writing), number=signal.SIGKILL)
        # A session of its own: Ctrl-C at a terminal is for this process, which hands it on.
        self._worker = os.posix_spawn(
            command[0], command, self._environment, setsid=True, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
        )
        os.close(writing)
        life = _Life(reading)
        try:
            while self._worker is not None:
                if clock.boottime() >= life.kill_time:
                    _say("worker_overdue", worker=life.worker_id)
                    os.kill(self._worker, signal.SIGKILL)
                    life.kill_time = float("inf")
                if self._asked is not None:
                    os.kill(self._worker, self._asked)
                    self._asked = None
                self._wait(min(_LOOK_INTERVAL, life.kill_time - clock.boottime()), life)
                self._reap()
            life.read()
        finally:
            os.close(reading)
        return life

    def _wait(self, seconds: float, life: "_Life | None" = None) -> None:
        """Wait for a signal, the end of a child or a report."""
        watched = [self._woken, *([life.pipe] if life is not None and not life.silent else [])]
        select.select(watched, [], [], max(seconds, 0))
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)
        if life is not None:
            life.read()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._worker:
                self._worker = None
                self._status = os.waitstatus_to_exitcode(status)
            elif pid == self._undertaker:
                self._undertaker = None
                if status == 0:
                    self._dead.clear()

    def _ask(self, number: int, _: object) -> None:
        self._asked = number
        self._stopping = True

    def _rest(self, seconds: float) -> bool:
        """Wait before the next worker. True: asked to stop meanwhile."""
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            self._wait(until - time.monotonic())
            self._reap()
        return self._stopping

    # ---- Its death ----

    def _bury(self, life: "_Life") -> None:
        """End what the worker has left. It is declared dead only when nothing of it is left."""
        gone = kill_descendants(_KILL_PATIENCE)
        # With all others went the child that had not yet got through to the store.
        self._undertaker = None
        if not gone:
            _say("processes_left", worker=life.worker_id)
        elif life.worker_id is not None and self._status != 0:
            # With status 0 it has given everything back itself.
            self._dead.add(life.worker_id)
        if self._dead:
            self._undertaker = _declare(self._dead)

    def _wait_for_undertaker(self) -> None:
        until = time.monotonic() + _LAST_WORDS
        while self._undertaker is not None and time.monotonic() < until:
            self._wait(until - time.monotonic())
            self._reap()


class _Life:
    """What a worker has said of itself."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self.pipe = pipe
        self.silent = False
        self.worker_id: str | None = None
        self.kill_time = float("inf")
        self._rest = b""

    def read(self) -> None:
        """Take in its reports; the newest counts."""
        while not self.silent:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                return
            self.silent = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                worker_id, kill_time = lines[-1].decode().split()
                self.worker_id, self.kill_time = worker_id, float(kill_time)


def _declare(worker_ids: set[str]) -> int:
    """Begin to say in the store, by a child, that these workers are dead; its pid.

    It goes on until it has said so, or until this process is gone and the store is not there.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # Only here: this memory goes with the child.
        import asyncio  # noqa: PLC0415

        asyncio.run(_tell_store([UUID(worker_id) for worker_id in worker_ids]))
        status = 0
    except Exception as error:  # noqa: BLE001 - whatever it is, the lease runs out
        # Not the error itself: it may quote the environment.
        _say("not_declared_dead", workers=sorted(worker_ids), error=type(error).__name__)
    finally:
        os._exit(status)


async def _tell_store(worker_ids: list[UUID]) -> int:
    import asyncio  # noqa: PLC0415

    from agentrpc.errors import StoreUnavailable  # noqa: PLC0415
    from agentrpc.settings import get_settings  # noqa: PLC0415
    from agentrpc.store.database import Database  # noqa: PLC0415
    from agentrpc.store.leases import declare_dead  # noqa: PLC0415

    database = Database(get_settings().database_url.get_secret_value(), pool_size=1)
    parent, patience = os.getppid(), time.monotonic() + _LAST_WORDS
    while True:
        try:
            return await declare_dead(database, worker_ids)
        except StoreUnavailable:
            # Left alone it does not stay: a reaper will find that the lease has run out.
            if os.getppid() != parent and time.monotonic() > patience:
                raise
            await asyncio.sleep(clock.jitter(0.5))


def _say(event: str, **values: object) -> None:
    line = {"event": event, **values, "process": "worker-parent", "level": "warning"}
    print(json.dumps({**line, "timestamp": datetime.now(UTC).isoformat()}), file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    take_over()
    become_subreaper()
    sys.exit(_Parent([sys.executable, "-m", "agentrpc", WORKER_COMMAND]).run())
