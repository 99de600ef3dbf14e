"""How commands reach a service: address, credentials file, and errors as one line with a remedy."""

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from agentrpc.client import AgentRpcClient, RpcError
from agentrpc.domain.visible_text import visible
from agentrpc.v1 import auth_pb2

__all__ = ["Connection", "CredentialsFile", "connection", "credentials_path", "fail", "run_command"]


def credentials_path() -> Path:
    """Where `login` keeps tokens."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "agentrpc" / "credentials.json"


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """The tokens for one server in the file that all commands share. Implements `TokenStore`."""

    server: str

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """One command at a time."""
        path = credentials_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_suffix(".lock").open("a") as file:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield

    def load(self) -> auth_pb2.Tokens | None:
        """What `login` or the command before has kept."""
        known = _load().get(self.server)
        try:
            return ParseDict(known, auth_pb2.Tokens(), ignore_unknown_fields=True) if known else None
        except ParseError:
            return None

    def store(self, tokens: auth_pb2.Tokens) -> None:
        """Replace them; nobody else can read the file."""
        path = credentials_path()
        everything = _load()
        everything[self.server] = MessageToDict(tokens, preserving_proto_field_name=True)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(everything, file)
        fresh.replace(path)


@dataclass(slots=True)
class Connection:
    """The global options."""

    server: str = "127.0.0.1:7400"
    token: str = ""
    tls: bool = False
    tls_ca: Path | None = None

    def client(self) -> AgentRpcClient:
        """A client with the token given, or with what `login` has stored for this server."""
        ca = self.tls_ca.read_bytes() if self.tls_ca is not None else None
        store = None if self.token else CredentialsFile(self.server)
        return AgentRpcClient(self.server, token=self.token, tls=self.tls, tls_ca=ca, store=store)


def _load() -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(credentials_path().read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


connection = Connection()


def fail(message: str, status: int = 1) -> SystemExit:
    """One line on stderr, and the exit."""
    print(f"agentrpc: {visible(message, keep=chr(10))}", file=sys.stderr)
    return SystemExit(status)


def run_command(work: Callable[[AgentRpcClient], Awaitable[int | None]]) -> None:
    """Run a command that talks to the service; its result is the exit status."""

    async def main() -> int | None:
        async with connection.client() as client:
            return await work(client)

    try:
        status = asyncio.run(main())
    except RpcError as error:
        if os.environ.get("AGENTRPC_DEBUG"):
            raise
        raise fail(_line(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if status:
        raise SystemExit(status)


def _line(error: RpcError) -> str:
    if error.code == "UNAVAILABLE" and not error.reason:
        return f"nobody answers at {connection.server}: start it with `agentrpc up`, or set --server"
    if error.code == "UNAUTHENTICATED":
        return f"{error.message} (`agentrpc --server {connection.server} login`)"
    return f"{error.reason or error.code}: {error.message}" + (
        f" (request {error.request_id})" if error.reason == "INTERNAL" else ""
    )
