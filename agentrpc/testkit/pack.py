"""Packs the fake CLI into an archive of compiled modules: `python -I -S pack.py FILE`, the start's directives as input.

Run by the interpreter that the file is for: compiled modules are of one version, and a process that had to compile them
would take twice as long to start. Standard library alone.
"""

import os
import py_compile
import sys
import tempfile
import zipfile
from pathlib import Path

__all__: list[str] = []

_SOURCE = Path(__file__).with_name("fake_cli")
_PACKAGE = "agentrpc/testkit/fake_cli"


def main() -> None:
    """Write the archive, with a first line that names this interpreter."""
    start = sys.stdin.read()
    with tempfile.TemporaryDirectory() as folder, open(sys.argv[1], "wb") as file:  # noqa: PTH123 - quick
        file.write(f"#!{sys.executable} -IS\n".encode())
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("agentrpc", "agentrpc/testkit"):
                archive.writestr(f"{name}/__init__.py", "")
            for source in sorted(_SOURCE.glob("*.py")):
                text = source.read_text("utf-8")
                if source.name == "start.py":
                    text = text.replace('START = ""', f"START = {start!r}")
                plain, compiled = Path(folder, source.name), Path(folder, f"{source.name}c")
                plain.write_text(text, "utf-8")
                target = "__main__.pyc" if source.stem == "__main__" else f"{_PACKAGE}/{compiled.name}"
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(str(plain), str(compiled), f"fake-cli/{source.name}", doraise=True, optimize=2,
                                   invalidation_mode=mode)  # fmt: skip
                archive.write(compiled, target)
    os.chmod(sys.argv[1], 0o755)  # noqa: PTH101, S103 - a program for all, as the real one is


if __name__ == "__main__":
    main()
