"""The process: reads its arguments and begins the session."""

from __future__ import annotations

import sys

from agentrpc.testkit.fake_cli.session import VERSION, Arguments, Session

__all__: list[str] = []

if __name__ == "__main__":
    if "--version" in sys.argv or "-v" in sys.argv:
        sys.stdout.write(f"{VERSION} (Claude Code)\n")
    else:
        Session(Arguments(sys.argv[1:])).run()
