"""What differs between two CLIs by themselves: `python -m scripts.compare_clis OLD NEW`.

Options are those of `--help`; environment switches and release notes are read out of the binaries.
"""

import difflib
import re
import subprocess
import sys
from pathlib import Path

# Names as the CLI gives them to its own.
_SWITCH = re.compile(rb"\b(?:ANTHROPIC|BASH|CLAUDE|DISABLE|ENABLE|MCP|SANDBOX)_[A-Z0-9_]{3,}[A-Z0-9]\b")
_VERSION = re.compile(rb"## (\d+\.\d+\.\d+)\\n\\n(.*?)(?=\\n\\n## )", re.DOTALL)
# Notes about what sessions of ours do not have.
_ELSEWHERE = re.compile(r"^- (\[VSCode\]|Windows:|Self-hosted runner:|Remote Control:|macOS:)")
_TOLD = re.compile(
    r"^- (Changed|Removed|Reverted|Deprecated)|default|CLAUDE_CODE_|hook|permission|sandbox|transcript|resume|--\w"
)


def main(old: Path, new: Path) -> None:
    """Print it."""
    print("== Options")
    helps = [
        subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout.splitlines()
        for path in (old, new)
    ]
    _tell(line for line in difflib.unified_diff(*helps, lineterm="", n=0) if line[:2] not in {"--", "++", "@@"})
    binaries = [path.read_bytes() for path in (old, new)]
    print("== Environment switches")
    before, after = ({found.group().decode() for found in _SWITCH.finditer(binary)} for binary in binaries)
    _tell([*(f"+{name}" for name in sorted(after - before)), *(f"-{name}" for name in sorted(before - after))])
    print("== Release notes that may matter here (the newest version is often not among them)")
    known, noted = map(_notes, binaries)
    for version in sorted(noted.keys() - known.keys(), key=lambda text: [int(part) for part in text.split(".")]):
        print(f"-- {version}")
        _tell(note for note in noted[version] if _TOLD.search(note) and not _ELSEWHERE.match(note))


def _notes(binary: bytes) -> dict[str, list[str]]:
    """Notes by version."""
    return {
        found.group(1).decode(): found.group(2).decode(errors="replace").replace('\\"', '"').split("\\n")
        for found in _VERSION.finditer(binary)
        if len(found.group(2)) < 200_000
    }


def _tell(lines) -> None:  # noqa: ANN001
    print("\n".join(lines) or "nothing")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
