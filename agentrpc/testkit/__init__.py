"""The test kit: a Claude CLI that does what its prompt says, for tests that must not need a model, and for faults.

`write_cli` makes an executable file; `AGENTRPC_CLI_PATH` (`Settings.cli_path`) is where a worker is told of it. It runs
through the worker's launcher, in either kind of isolation, as the real CLI does: the file has all that it needs, as a
sandbox shows it no other. `agentrpc.testkit.fake_cli.script` is the list of directives.
"""

import subprocess
import sys
from pathlib import Path

from agentrpc.testkit.fake_cli.script import parse_start

__all__ = ["find_interpreter", "write_cli"]

# Of the system bubblewrap shows these and no home folder; see `agentrpc.claude.launcher`.
_VISIBLE = ("/usr/", "/opt/")
_USUAL = ("/usr/bin/python3", "/usr/local/bin/python3")


def write_cli(path: Path, start: str = "", *, interpreter: Path | None = None) -> Path:
    """Write the fake CLI.

    Args:
        path: The file to make; one that is there is replaced, and what runs goes on with the old one.
        start: Directives for the start of each process, for example `[[crash: initialize status=3]]`. A session may
            have more of them, in a file `fake-cli` in its HOME.
        interpreter: A Python, 3.11 or later; by default `find_interpreter()`.

    Raises:
        ValueError: `start` has a directive that does not exist.
    """
    parse_start(start)
    fresh = path.with_name(f".{path.name}.new")
    pack = Path(__file__).with_name("pack.py")
    command = [str(interpreter or find_interpreter()), "-I", "-S", str(pack), str(fresh)]
    subprocess.run(command, input=start.encode(), check=True)  # noqa: S603 - a Python of this machine
    return fresh.replace(path)


def find_interpreter() -> Path:
    """A Python that a sandboxed process can see.

    Where there is none, it is the one that runs this: it does for `AGENTRPC_ISOLATION=subreaper`.
    """
    own = Path(sys.executable).resolve()
    if str(own).startswith(_VISIBLE):
        return own
    for usual in map(Path, _USUAL):
        if usual.exists() and _recent(usual):
            return usual.resolve()
    return own


def _recent(python: Path) -> bool:
    question = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([str(python), "-I", "-S", "-c", question], check=False).returncode == 0  # noqa: S603
