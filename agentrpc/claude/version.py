"""Which CLI a worker has."""

import subprocess
from pathlib import Path

from claude_agent_sdk._cli_version import __cli_version__

__all__ = ["cli_version"]

_TIMEOUT = 20.0


def cli_version(cli_path: Path | None) -> tuple[int, ...]:
    """The version of a CLI; () when it does not tell. Blocking.

    Args:
        cli_path: Another CLI than the bundled one.
    """
    told = __cli_version__
    if cli_path is not None:
        try:
            done = subprocess.run(  # noqa: S603
                [str(cli_path), "--version"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ()
        told = done.stdout.split(maxsplit=1)[0] if done.stdout.strip() else ""
    parts = told.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) else ()
