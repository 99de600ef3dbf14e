"""How commands reach a service: address, credentials file, and errors as one line with a remedy."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentrpc.client import AgentRpcClient, RpcError
from agentrpc.v1 import auth_pb2

__all__ = ["Connection", "connection", "credentials_path", "fail", "run_command"]


def credentials_path() -> Path:
    """Where `login` keeps tokens."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "agentrpc" / "credentials.json"


@dataclass(slots=True)
class Connection:
    """The global options."""

    server: str = "127.0.0.1:7400"
    token: str = ""
    tls: bool = False
    tls_ca: Path | None = None
    stored: dict[str, dict[str, str]] = field(default_factory=dict)

    def client(self) -> AgentRpcClient:
        """A client with the token given, or with what `login` has stored for this server."""
        ca = self.tls_ca.read_bytes() if self.tls_ca is not None else None
        known = {} if self.token else _load().get(self.server, {})
        return AgentRpcClient(
            self.server,
            token=self.token,
            refresh_token=known.get("refresh_token", ""),
            tls=self.tls,
            tls_ca=ca,
            on_tokens=self.store,
        )

    def store(self, tokens: auth_pb2.Tokens) -> None:
        """Keep new tokens: a refresh token is good once."""
        if self.token:
            return
        path = credentials_path()
        everything = _load()
        everything[self.server] = {"refresh_token": tokens.refresh_token}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(everything, file)
        fresh.replace(path)


def _load() -> dict[str, dict[str, str]]:
    try:
        data = json.loads(credentials_path().read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


connection = Connection()


def fail(message: str, status: int = 1) -> SystemExit:
    """One line on stderr, and the exit."""
    print(f"agentrpc: {message}", file=sys.stderr)
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
