"""Reads a line of shell text as bash does: which simple commands it holds, wherever in the line they stand."""

from dataclasses import dataclass

__all__ = ["Assignment", "Command", "Redirect", "Script", "Word", "read_shell"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command.

    Attributes:
        text: What the program gets, quotes removed; a glob as it is written. None when an expansion makes it unknown.
        source: As it is written.
        prefix: The letters that it begins with for certain.
        glob: Names of files may take its place.
        splits: It may become no word or several.
    """

    text: str | None
    source: str
    prefix: str
    glob: bool = False
    splits: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirection from or to a file; those between descriptors and here-documents are left out."""

    operator: str
    target: Word

    @property
    def writes(self) -> bool:
        """Whether the file is opened for writing."""
        return ">" in self.operator

    @property
    def reads(self) -> bool:
        """Whether the file is opened for reading."""
        return "<" in self.operator


@dataclass(frozen=True, slots=True)
class Assignment:
    """A variable that is set; `name` holds an index as it is written."""

    name: str
    value: Word


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command, or what a compound command redirects: then it has no words.

    Attributes:
        words: The program and its arguments.
        assignments: What stands before the program.
        redirects: Files that are opened for it.
        source: As it is written, without redirections.
        folder: The folder it runs in, relative to where the shell starts unless absolute; None when a `cd` makes that unknown.
    """

    words: tuple[Word, ...]
    assignments: tuple[Assignment, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    source: str = ""
    folder: str | None = ""


@dataclass(frozen=True, slots=True)
class Script:
    """What a line holds.

    Attributes:
        line: The line.
        certain: Bash runs these commands and no others, as far as the line itself says. Words may still be unknown.
        why: Why it is not certain.
        commands: Every simple command that was found, also those in substitutions, bodies and functions.
        changes: What in the line changes what later words mean: functions, variables, options of the shell.
    """

    line: str
    certain: bool
    why: str = ""
    commands: tuple[Command, ...] = ()
    changes: tuple[str, ...] = ()


def read_shell(line: str) -> Script:
    """Read a line, which may hold several lines of text. Never raises."""
    return Script(line, certain=False, why="it is not read yet")
