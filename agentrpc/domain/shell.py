"""Reads a line of shell text as bash does: which simple commands it holds, wherever in the line they stand."""

import unicodedata

from agentrpc.domain.shell_reader import Reader
from agentrpc.domain.shell_script import Assignment, Command, Script
from agentrpc.domain.shell_words import Redirect, Unsure, Word

__all__ = ["MAX_LINE", "Assignment", "Command", "Redirect", "Script", "Word", "read_shell"]

# Longer lines are not read.
MAX_LINE = 10_000
# Far more than people write; the grammar takes long for a line of nothing else.
_MAX_OPENINGS = 1000


def read_shell(line: str) -> Script:
    """Read a line, which may hold several lines of text. Never raises."""
    if len(line) > MAX_LINE:
        return Script(line, certain=False, why=f"it has more than {MAX_LINE} characters")
    if not line.isascii() or not line.isprintable():
        odd = next((letter for letter in line if _is_odd(letter)), None)
        if odd is not None:
            return Script(line, certain=False, why=f"it holds the character U+{ord(odd):04X}")
    if sum(line.count(letter) for letter in "(<`") > _MAX_OPENINGS:
        return Script(line, certain=False, why="it is nested too deeply")
    reader = Reader(line)
    try:
        reader.read()
    except Unsure as doubt:
        reader.doubt(str(doubt))
    except RecursionError:
        reader.doubt("it is nested too deeply")
    except Exception:  # noqa: BLE001 - the gate must answer
        # Whatever was not foreseen is for a person to judge.
        return Script(line, certain=False, why="it could not be read")
    return reader.script()


def _is_odd(letter: str) -> bool:
    """Whether a character is invisible, or a blank for the grammar or for some locale but not for bash."""
    return letter not in " \t\n" and unicodedata.category(letter) in {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
