"""Judges a line of shell text by the patterns of rules for commands: the text between the parentheses of `Bash(…)`.

`*` stands for any text and is the only wildcard. `X:*` is X, or X followed by a blank and anything; `X *` the same when
that is its only wildcard. A pattern without `*` is that command, or that whole line, and no other.
"""

from collections.abc import Callable, Iterable, Sequence

from agentrpc.domain.shell import Script
from agentrpc.domain.shell_files import File

__all__ = ["allowed_by", "denied_by", "may_be_denied", "session_patterns", "warnings_of"]


def denied_by(script: Script, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that one of the line's commands matches; None when none does.

    Matched are programs by base name (`/bin/rm`), behind wrappers (`env`, `timeout 5`, `sh -c`), in every command of the
    line, certain or not, as far as words are known.
    """
    raise NotImplementedError


def may_be_denied(script: Script, patterns: Sequence[str]) -> str | None:
    """Why it cannot be told that none of the patterns matches, in words for a person; None when it can."""
    raise NotImplementedError


def allowed_by(
    script: Script,
    patterns: Sequence[str],
    *,
    may_read: Callable[[File], bool],
    may_write: Callable[[File], bool],
) -> list[str] | None:
    """The patterns that together allow the line; None when they do not.

    Args:
        script: The line.
        patterns: The patterns, none of them `*` (a rule without a pattern needs no look at the command).
        may_read: Whether a file may be read that a redirection names.
        may_write: Whether a file may be written that a redirection names.
    """
    raise NotImplementedError


def session_patterns(script: Script) -> list[str]:
    """The patterns that an answer "for the session" adds, none wider than what a person saw; empty when none would do."""
    raise NotImplementedError


def warnings_of(pattern: str) -> list[str]:
    """What is wrong with a pattern that can never match, in words for who wrote it; empty when it can."""
    raise NotImplementedError
