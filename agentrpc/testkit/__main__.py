"""`python -m agentrpc.testkit FILE [DIRECTIVES]`: writes the fake CLI, for `AGENTRPC_CLI_PATH`."""

import argparse
import sys
from pathlib import Path

from agentrpc.testkit import write_cli

__all__: list[str] = []


def main() -> None:
    """Write it and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m agentrpc.testkit", description="Write the fake CLI.")
    parser.add_argument("file", type=Path, help="the file to make")
    parser.add_argument("start", nargs="?", default="", help="directives for the start, such as '[[delay: 2]]'")
    given = parser.parse_args()
    sys.stdout.write(f"{write_cli(given.file.absolute(), given.start)}\n")


if __name__ == "__main__":
    main()
