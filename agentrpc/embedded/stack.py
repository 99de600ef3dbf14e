"""`agentrpc up`: PostgreSQL, Redis, the scripted model where there is no key, and our processes as children.

Everything dies with this process, but PostgreSQL, which the next start finds again. A start after an unclean stop
first makes sure that nothing of the last life is left, and then says so in the store, so that its runs are taken over.
"""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from agentrpc.claude.launcher import Isolation, IsolationError, isolation_of
from agentrpc.claude.supervisor import dying_with_parent
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.embedded.servers import EmbeddedError, EmbeddedPostgres, EmbeddedRedis, free_port
from agentrpc.handover import environment_for, is_private
from agentrpc.store.database import Database
from agentrpc.store.leases import declare_dead
from agentrpc.store.schema import migrate

__all__ = ["Stack"]

_COLOURS = {"serve": "cyan", "worker": "magenta", "scheduler": "blue", "up": "green"}
_COMMANDS = {
    "serve": ("agentrpc", "serve"),
    # What `agentrpc worker` becomes.
    "worker": ("agentrpc.work.parent",),
    "scheduler": ("agentrpc", "scheduler"),
}
_OF_THE_MODEL = ("ANTHROPIC_", "AGENTRPC_MODEL_")
_READY_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0


@dataclass(slots=True)
class _Child:
    name: str
    process: asyncio.subprocess.Process
    output: asyncio.Task[None]


class Stack:
    """The embedded stack of one data dir.

    Args:
        data_dir: Where everything is kept.
        listen: host:port of gRPC; port 0 takes a free one.
        console: For its own lines and those of its children; None: no output.
        given: Settings and keys of the user's, by the names of their variables. Default: those of the environment.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        listen: str = "127.0.0.1:7400",
        console: Console | None = None,
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._given = dict(given if given is not None else os.environ)
        self._dir = data_dir.resolve()
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)
        self._console = console
        self._postgres = EmbeddedPostgres(self._dir / "postgres")
        self._redis = EmbeddedRedis(self._dir / "redis")
        self._model = ScriptedModel()
        self._children: dict[str, _Child] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._lock: int | None = None
        self._stopping = False
        self.environment: dict[str, str] = {}
        self.scripted = False
        self._isolation = ""
        # What a user has to know of how agents are kept apart; empty: in a sandbox.
        self.warning = ""

    @property
    def address(self) -> str:
        """Where gRPC is."""
        return f"{self._host}:{self._port}"

    def say(self, name: str, line: str) -> None:
        """Print a line of a process."""
        if self._console is not None:
            self._console.print(f"[{_COLOURS[name]}]{name:>9}[/] │ ", end="")
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    async def start(self) -> None:
        """Start everything, or nothing.

        Raises:
            EmbeddedError: What is missing, or does not start, and what to do.
        """
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._kill_leftovers()
        self._choose_isolation()
        database_url = self._given.get("AGENTRPC_DATABASE_URL", "")
        if not database_url:
            database_url = await asyncio.to_thread(self._postgres.start)
        redis_url = self._given.get("AGENTRPC_REDIS_URL") or await self._redis.start()
        await asyncio.to_thread(migrate, database_url)
        # Under the lock of this data dir, and with nothing of its last life running, its workers are dead for certain.
        database = Database(database_url, pool_size=1)
        try:
            lost = await declare_dead(database, host=socket.gethostname()) if self._owns_workers() else 0
        finally:
            await database.close()
        if lost:
            self.say("up", f"{lost} worker(s) of an unclean stop: their runs are taken up again")
        self._check_port()
        self.environment = {
            "AGENTRPC_DATABASE_URL": database_url,
            "AGENTRPC_REDIS_URL": redis_url,
            "AGENTRPC_DATA_DIR": str(self._dir),
            "AGENTRPC_WORKSPACE_DIR": str(self._dir / "workspaces"),
            "AGENTRPC_SIGNING_KEY": self._given.get("AGENTRPC_SIGNING_KEY") or self._key("signing", secrets.token_hex),
            "AGENTRPC_SECRET_KEYS": self._given.get("AGENTRPC_SECRET_KEYS") or self._key("secret", _fernet_key),
            "AGENTRPC_LISTEN": self.address,
            "AGENTRPC_LOG_FORMAT": "console",
            "AGENTRPC_ISOLATION": self._isolation,
            **await self._model_settings(),
        }
        for name in _COMMANDS:
            await self._spawn(name)
        await self._wait_until_served()

    def _choose_isolation(self) -> None:
        """Only here may `auto` mean less than a sandbox: whoever starts this is told so, and has no others' agents."""
        self._isolation = self._given.get("AGENTRPC_ISOLATION") or "auto"
        try:
            isolation, why = isolation_of(self._given)
        except IsolationError as error:
            raise EmbeddedError(str(error)) from None
        if self._isolation == "auto":
            self._isolation = str(isolation)
        if isolation is not Isolation.BUBBLEWRAP:
            self.warning = f"agents run without a sandbox, {why}"
            self.say("up", self.warning)

    async def _model_settings(self) -> dict[str, str]:
        if any(self._given.get(name) for name in ("ANTHROPIC_API_KEY", "AGENTRPC_MODEL_API_KEY", "AGENTRPC_MODEL_URL")):
            return {}
        await self._model.start()
        self.scripted = True
        return {"AGENTRPC_MODEL_URL": self._model.url, "AGENTRPC_MODEL_API_KEY": "scripted"}

    async def run_until(self, stopped: asyncio.Event) -> None:
        """Wait; a child that ends by itself is started again."""
        self._watching = [asyncio.create_task(self._keep(name), name=f"keep-{name}") for name in self._children]
        await stopped.wait()

    async def stop(self) -> None:
        """Stop everything in order: the edge says goodbye, the worker ends its process trees, then the servers."""
        self._stopping = True
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(self._end(child) for child in self._children.values()))
        await self._model.stop()
        await self._redis.stop()
        await asyncio.to_thread(self._postgres.stop)
        (self._dir / "processes.json").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def kill_child(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a process; its pid. `worker` is the one that hosts sessions. For tests of faults."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def pid(self, name: str) -> int:
        """The process id of `serve`, `scheduler`, `worker-parent`, or the `worker` that hosts sessions below it."""
        child = self._children[name.removesuffix("-parent")].process.pid
        if name != "worker":
            return child
        below = psutil.Process(child).children()
        return next(process.pid for process in below if "worker-process" in process.cmdline())

    # ---- Children ----

    def _values(self, name: str) -> dict[str, str]:
        """The environment of a process."""
        values = {
            key: value
            for key, value in {**os.environ, **self._given, **self.environment}.items()
            if key.startswith("LC_") or key in {"PATH", "HOME", "LANG", "TZ", "TMPDIR"} or is_private(key)
        }
        # Only workers speak to a model.
        return {key: value for key, value in values.items() if name == "worker" or not key.startswith(_OF_THE_MODEL)}

    async def _spawn(self, name: str) -> None:
        environment, handed_over = environment_for(self._values(name))
        try:
            process = await asyncio.create_subprocess_exec(
                *dying_with_parent(sys.executable, "-m", *_COMMANDS[name]),
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # Ctrl-C at the terminal is for this process, which stops its children in order.
                start_new_session=True,
                limit=1024 * 1024,
                pass_fds=[handed_over],
            )
        finally:
            os.close(handed_over)
        self._children[name] = _Child(name, process, asyncio.create_task(self._relay(name, process)))
        self._note_processes()

    async def _relay(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):
            async for line in process.stdout:
                self.say(name, line.decode(errors="replace").rstrip())

    async def _keep(self, name: str) -> None:
        delay = 0.2
        while True:
            child = self._children[name]
            status = await child.process.wait()
            self.say("up", f"{name} ended with status {status}; starting it again")
            await asyncio.sleep(delay)
            delay = min(delay * 2, 10.0)
            await self._spawn(name)

    async def _end(self, child: _Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await child.process.wait()
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
        await asyncio.gather(child.output, return_exceptions=True)

    async def _wait_until_served(self) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT
        while asyncio.get_running_loop().time() < deadline:
            for child in self._children.values():
                if child.process.returncode is not None:
                    raise EmbeddedError(f"{child.name} did not start (status {child.process.returncode}): see above")
            try:
                _, writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
        raise EmbeddedError(f"the edge did not answer at {self.address} within {_READY_TIMEOUT:.0f} s")

    # ---- The data dir ----

    def _take_lock(self) -> None:
        self._lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise EmbeddedError(
                f"another `agentrpc up` uses {self._dir}: stop it, or choose another --data-dir"
            ) from None

    def _owns_workers(self) -> bool:
        """Whether all workers of this host in the database are of this data dir: so if the database is its own."""
        return not self._given.get("AGENTRPC_DATABASE_URL")

    def _key(self, name: str, make: Callable[[int], str]) -> str:
        path = self._dir / f"{name}.key"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(make(32))
        return path.read_text()

    def _check_port(self) -> None:
        if self._port:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._host, self._port))
                except OSError:
                    self.say("up", f"{self.address} is taken: using a free port")
                    self._port = 0
        if not self._port:
            self._port = free_port(self._host)

    def _note_processes(self) -> None:
        """Who our children are, for a start after an unclean stop. A pid alone may be another's by then."""
        pids = [child.process.pid for child in self._children.values()]
        if self._redis.pid is not None:
            pids.append(self._redis.pid)
        notes = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                notes.append({"pid": pid, "created": psutil.Process(pid).create_time()})
        (self._dir / "processes.json").write_text(json.dumps(notes))

    def _kill_leftovers(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for note in json.loads((self._dir / "processes.json").read_text()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(note["pid"])
                    if abs(process.create_time() - note["created"]) < 1:
                        # Parents first: that of a worker would start another one.
                        for each in [process, *process.children(recursive=True)]:
                            with contextlib.suppress(psutil.NoSuchProcess):
                                each.kill()
        for process in _agent_processes(self._dir):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _fernet_key(size: int) -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(size)).decode()


def _agent_processes(data_dir: Path) -> list[psutil.Process]:
    """Processes that work in a session's folder of this data dir."""
    folders = tuple(f"{data_dir / name}/" for name in ("sessions", "workspaces"))
    return _processes(lambda process: process.cwd().startswith(folders))


def _processes(wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if wanted(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
