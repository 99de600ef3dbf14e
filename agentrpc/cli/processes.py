"""`up` and the quickstart: a whole service on this machine."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from agentrpc.cli import talk
from agentrpc.cli.connection import fail
from agentrpc.client import AgentRpcClient, RpcError
from agentrpc.embedded.servers import EmbeddedError
from agentrpc.embedded.stack import Stack
from agentrpc.handover import is_private
from agentrpc.v1 import session_pb2

__all__ = ["register"]

AdminMaker = Callable[[dict[str, str]], Awaitable[str | None]]

console = Console()


def register(app: typer.Typer, make_admin: AdminMaker) -> None:
    """Add the commands.

    Args:
        app: To this.
        make_admin: Makes the first user with the given settings and returns its password, or None if there are users.
    """

    @app.command(rich_help_panel="Processes")
    def up(
        data_dir: Annotated[Path, typer.Option(help="Everything is kept here.")] = Path(".agentrpc"),
        listen: Annotated[str, typer.Option(help="host:port of gRPC.")] = "127.0.0.1:7400",
    ) -> None:
        """Run a whole service on this machine: PostgreSQL, Redis, edge, worker, scheduler."""

        async def work(stack: Stack, stopped: asyncio.Event) -> None:
            password = await make_admin(stack.environment)
            _introduce(stack, password)
            await stack.run_until(stopped)

        _with_stack(Stack(data_dir, listen=listen, console=console, given=_taken()), work)

    @app.command(hidden=True)
    def quickstart(
        leave: Annotated[bool, typer.Option("--exit", help="End after the run.")] = False,
        data_dir: Path | None = None,
    ) -> None:
        """Boot the stack, run one real session with a tool call and an approval, and keep serving."""
        with tempfile.TemporaryDirectory(prefix="agentrpc-") as scratch:
            folder = data_dir or Path(scratch)
            # Logs are for `up`; here they would bury what streams by.
            logs = console if _debugging() else None
            listen = "127.0.0.1:7400" if data_dir else "127.0.0.1:0"
            stack = Stack(folder, listen=listen, console=logs, given=_taken())
            status = 0

            async def work(stack: Stack, stopped: asyncio.Event) -> None:
                nonlocal status
                console.print("[green]✓[/] PostgreSQL, Redis, edge, worker and scheduler are up")
                password = await make_admin(stack.environment)
                status = await _demonstrate(stack, password)
                if not leave:
                    _introduce(stack, password)
                    await stack.run_until(stopped)

            _with_stack(stack, work)
            raise SystemExit(status)


async def _demonstrate(stack: Stack, password: str | None) -> int:
    if password is None:
        raise EmbeddedError("this data dir was used before: start it with `agentrpc up`")
    async with AgentRpcClient(stack.address, username="admin", password=password) as client:
        session = await client.create_session(session_pb2.Session(display_name="quickstart"))
        console.print(f"[green]✓[/] {session.name}; its tool call asks for an approval, which is given here\n")
        prompt = "[[demo]]" if stack.scripted else "Run `uname -sr && date -u` with Bash and say what you see."
        status = await talk.run_once(client, session.name, prompt, approve="all", as_json=False)
        done = await client.get_session(session.name)
        console.print(
            f"\n[green]✓[/] {done.last_sequence} durable events, {done.tool_call_count} tool call", highlight=False
        )
        return status


def _introduce(stack: Stack, password: str | None) -> None:
    lines = [f"gRPC at [b]{stack.address}[/]"]
    if password is not None:
        lines.append(f"user [b]admin[/], one-time password [b]{password}[/]")
    if stack.scripted:
        lines.append("[yellow]no model: the scripted model answers; set ANTHROPIC_API_KEY for a real one[/]")
    login = password or "PASSWORD"
    body = f'{{"username":"admin","password":"{login}"}}'
    console.print(Panel("\n".join(lines), title="AgentRPC", expand=False), highlight=False)
    # Outside of the frame and unbroken, so that they can be copied.
    for command in (
        f"agentrpc --server {stack.address} login",
        f"agentrpc --server {stack.address} chat",
        f"grpcurl -plaintext -d '{body}' {stack.address} agentrpc.v1.AuthService/Login",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _debugging() -> bool:
    return bool(os.environ.get("AGENTRPC_DEBUG"))


def _taken() -> dict[str, str]:
    """Settings and keys of the environment. They are removed from it: PostgreSQL and Redis inherit the rest."""
    return {name: os.environ.pop(name) for name in list(os.environ) if is_private(name) and name != "AGENTRPC_DEBUG"}


def _with_stack(stack: Stack, work: Callable[[Stack, asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        began = time.monotonic()
        await stack.start()
        stack.say("up", f"ready after {time.monotonic() - began:.1f} s")
        if stack.warning:
            console.print(f"[bold red]✗ {escape(stack.warning)}[/]", highlight=False, soft_wrap=True)
        try:
            working = asyncio.ensure_future(work(stack, stopped))
            waiting = asyncio.ensure_future(stopped.wait())
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=1)
            waiting.cancel()
            if working.done():
                working.result()
            else:
                working.cancel()
        finally:
            await stack.stop()

    try:
        asyncio.run(main())
    except (EmbeddedError, RpcError) as error:
        if _debugging():
            raise
        raise fail(str(error)) from None
