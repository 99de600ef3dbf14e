"""Judges a line of shell text by the patterns of rules for commands: the text between the parentheses of `Bash(…)`.

`*` stands for any text and is the only wildcard. `X:*` is X, or X followed by a blank and anything; `X *` the same
when that is its only wildcard. A pattern without `*` is that command, or that whole line, and no other. Quotes in a
pattern are read as in a command, and words are compared one by one.

To deny, a pattern need match one command anywhere in the line, also behind wrappers; the program by its base name, and
`git -C x push` is a `git push`. It binds what the line says, not what a program does by itself: it is no boundary.
To allow, patterns must match every command, all of whose words are known; what a pattern leaves open may not make the
program run another or write elsewhere (`shell_safety`), and nothing in the line may change what its words mean.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentrpc.domain.shell import Command, Script, read_shell
from agentrpc.domain.shell_builtins import sets_expression
from agentrpc.domain.shell_files import File, redirected, writes_unknown
from agentrpc.domain.shell_programs import Runs, name_of, runs_of, without_globals
from agentrpc.domain.shell_safety import PLAIN, consents, has_safe_forms, is_safe
from agentrpc.domain.shell_words import Word

__all__ = [
    "allowed_by",
    "denied_by",
    "forms_of",
    "may_be_denied",
    "session_patterns",
    "unseen_of",
    "warnings_of",
]

_MAX_PATTERN = 900
# A blank inside a word, and text that is unknown, where words are joined.
_BLANK, _UNKNOWN = "\x01", "\x02"
# Builtins that do nothing but steer the line; they need no rule.
_STEERING = frozenset({":", "[", "break", "continue", "exit", "false", "return", "test", "true"})
# For these, "for the session" may leave the arguments open: they show what they are told to, and open no file.
_SHOWING = frozenset({"date", "echo", "hostname", "id", "nproc", "pwd", "uname", "whoami"})
_SHOWING_GIT = frozenset({"diff", "log", "show", "status"})
_PROGRAM = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A pattern, taken apart.

    Attributes:
        text: As it was written.
        words: Its words, assignments first; empty when it is no single command.
        assigns: How many of the words are assignments.
        open: Anything may follow.
        exact: It has no wildcard.
        literal: How many words it begins with have no wildcard.
        joined: What matches the words of a command, joined.
    """

    text: str
    words: tuple[Word, ...]
    assigns: int
    open: bool
    exact: bool
    literal: int
    joined: re.Pattern[str]


@lru_cache(4096)
def _parsed(text: str) -> _Pattern:
    body, is_open = text.strip(), False
    if body.endswith(":*"):
        body, is_open = body[:-2], True
    elif body.endswith(" *") and body.count("*") == 1:
        body, is_open = body[:-2].rstrip(), True
    words, assigns = _words_of(body)
    literal = 0
    while literal < len(words) and "*" not in (words[literal].text or "*"):
        literal += 1
    expression = " ".join(
        ".*".join(re.escape(part) for part in (word.text or _UNKNOWN).replace(" ", _BLANK).split("*")) for word in words
    )
    joined = re.compile(expression + ("(?: .*)?" if is_open else ""), re.DOTALL)
    return _Pattern(text, words, assigns, is_open, not is_open and "*" not in body, literal, joined)


def _words_of(body: str) -> tuple[tuple[Word, ...], int]:
    """The words of a pattern that is one simple command, and how many of them are assignments."""
    script = read_shell(body)
    commands = [command for command in script.commands if command.words or command.assignments]
    if not script.certain or len(commands) != 1 or commands[0].redirects or len(script.commands) != 1:
        return (), 0
    command = commands[0]
    if any(word.text is None for word in command.words):
        return (), 0
    assigned = tuple(_assigned(command))
    if any(word.text is None for word in assigned):
        return (), 0
    return assigned + command.words, len(assigned)


def _assigned(command: Command) -> Iterator[Word]:
    for assignment in command.assignments:
        text = None if assignment.value.text is None else f"{assignment.name}={assignment.value.text}"
        yield Word(text, f"{assignment.name}={assignment.value.source}", f"{assignment.name}={assignment.value.prefix}")


def _joined(words: Iterable[Word]) -> str:
    return " ".join((word.prefix + _UNKNOWN if word.text is None else word.text).replace(" ", _BLANK) for word in words)


def _same(pattern: _Pattern, text: str) -> bool:
    """Whether the pattern is that text, letter by letter."""
    return "*" not in pattern.text and pattern.text.strip() == text.strip()


# To deny.


def denied_by(script: Script, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that one of the line's commands matches; None when none does.

    Matched are programs by base name (`/bin/rm`), behind wrappers (`env`, `timeout 5`, `sh -c`), in every command of
    the line, certain or not, as far as words are known.
    """
    forms = [form for command in script.commands for form in forms_of(command)]
    sources = [script.line, *(command.source for command in script.commands)]
    joined = {_joined(form) for form in forms}
    for text in patterns:
        pattern = _parsed(text)
        if any(_same(pattern, source) for source in sources):
            return text
        if pattern.words and any(pattern.joined.fullmatch(one) for one in joined):
            return text
    return None


def may_be_denied(script: Script, patterns: Sequence[str]) -> str | None:
    """Why it cannot be told that none of the patterns matches, in words for a person; None when it can."""
    if not patterns:
        return None
    if not script.certain:
        return f"it cannot be told for certain what the command runs: {script.why}"
    for command in script.commands:
        unseen = unseen_of(command, calculates=script.calculates)
        if unseen:
            return f"it cannot be told for certain what the command runs: {unseen}"
    for text in patterns:
        pattern = _parsed(text)
        for command in script.commands:
            for form in forms_of(command):
                if _may_match(pattern, form):
                    return f"the rule {text} may be about it: {command.source.strip()[:200]}"
    return None


def unseen_of(command: Command, *, calculates: bool = False) -> str:
    """Why a command may run others than are named in it; empty when it may not.

    Args:
        command: The command.
        calculates: Whether the line has arithmetic with variables.
    """
    if not command.words:
        return ""
    runs = runs_of(command)
    if calculates and sets_expression(name_of(runs.words[runs.last]), runs.words[runs.last + 1 :]):
        return "it calculates with a variable that it sets"
    return runs.unseen or next((why for inner in runs.inner if (why := unseen_of(inner))), "")


def forms_of(command: Command) -> Iterator[tuple[Word, ...]]:
    """The words of a command in each of the ways in which a rule may speak of it."""
    if not command.words:
        return
    runs = runs_of(command)
    assigned = tuple(_assigned(command))
    if assigned:
        yield assigned + runs.words
    for at in runs.programs:
        words = runs.words[at:]
        yield words
        name = name_of(words[0])
        if name is None:
            continue
        if name != words[0].text:
            words = (Word(name, name, name), *words[1:])
            yield words
        if name.startswith("git-"):
            yield (Word("git", "git", "git"), Word(name[4:], name[4:], name[4:]), *words[1:])
        shorter = without_globals(name, words)
        if len(shorter) != len(words):
            yield shorter
    for inner in runs.inner:
        yield from forms_of(inner)


def _may_match(pattern: _Pattern, words: tuple[Word, ...]) -> bool:
    """Whether unknown words stand where the pattern is about them.

    A pattern that begins with a wildcard is not taken to be about whatever is unknown.
    """
    for index, wanted in enumerate(pattern.words[: pattern.literal]):
        if index >= len(words):
            return False
        text = words[index].text
        if text is None or words[index].glob:
            prefix, expected = words[index].prefix, wanted.text or ""
            return prefix.startswith(expected) or expected.startswith(prefix)
        if text != wanted.text:
            return False
    if not pattern.literal or all(word.text is not None for word in words):
        return False
    if pattern.exact:
        return all(word.splits for word in words[len(pattern.words) :])
    return True


# To allow.


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
    parsed = [_parsed(text) for text in patterns]
    for pattern in parsed:
        if _same(pattern, script.line):
            return [pattern.text]
    if not script.certain or script.changes:
        return None
    used: dict[str, None] = {}
    for command in script.commands:
        found = next((pattern for pattern in parsed if _allows(pattern, command)), None)
        if found is None and not _steers(command):
            return None
        if found is not None:
            used[found.text] = None
            if _same(found, command.source):
                continue
        for file, reads, writes in redirected(command):
            if (reads and not may_read(file)) or (writes and not may_write(file)):
                return None
    return list(used) or None


def _steers(command: Command) -> bool:
    if not command.words:
        return bool(command.redirects) and not command.assignments
    if command.assignments or any(word.text is None for word in command.words) or runs_of(command).unseen:
        return False
    return command.words[0].text in _STEERING


def _allows(pattern: _Pattern, command: Command) -> bool:
    """Whether a pattern allows a command, but for its redirections."""
    if not command.words or any(word.text is None for word in command.words):
        return _same(pattern, command.source) and command.folder == "" and bool(command.words)
    if not pattern.words:
        return _same(pattern, command.source)
    runs = runs_of(command)
    name = name_of(runs.words[runs.last])
    if command.folder != "" and name not in PLAIN:
        # Programs read their configuration from the folder that they are in.
        return False
    assigned = tuple(_assigned(command))
    if len(assigned) != pattern.assigns or any(word.text is None for word in assigned):
        return False
    if pattern.exact:
        return any(
            pattern.joined.fullmatch(_joined(assigned + command.words[at:])) is not None
            for at in _clear(runs, assigned)
        )
    if runs.changes or name is None or writes_unknown(command):
        return False
    return any(
        pattern.joined.fullmatch(_joined(assigned + runs.words[at:])) is not None
        and _is_bounded(pattern, runs, name, at)
        for at in _clear(runs, assigned)
    )


def _clear(runs: Runs, assigned: tuple[Word, ...]) -> tuple[int, ...]:
    return (0,) if assigned else runs.clear


def _is_bounded(pattern: _Pattern, runs: Runs, name: str, at: int) -> bool:
    """Whether what the pattern leaves open cannot make the program do something else than the pattern says."""
    literal = max(0, at + pattern.literal - pattern.assigns)
    if runs.last != at and literal <= runs.last:
        return False
    arguments = runs.words[runs.last + 1 :]
    named = max(0, literal - runs.last - 1)
    known = all(word.text is not None for word in arguments)
    if known and consents(name, arguments[:named], arguments[named:]):
        return True
    if runs.unseen or runs.inner:
        return False
    if not known:
        return is_safe(name, ()) and name in PLAIN
    return is_safe(name, arguments, named)


# For the session.


def session_patterns(script: Script) -> list[str]:
    """The patterns that an answer "for the session" adds, none wider than what a person saw; empty when none would do.

    They leave arguments open only for programs that do nothing but show. Others are allowed as that very command; those
    that run what they are given, or a file, are not.
    """
    if not script.certain or script.changes:
        return []
    patterns: dict[str, None] = {}
    for command in script.commands:
        if _steers(command):
            continue
        pattern = _session_pattern(command)
        if pattern is None:
            return []
        patterns[pattern] = None
    found = list(patterns)
    if not found or allowed_by(script, found, may_read=_refuse, may_write=_refuse) is None:
        return []
    return found


def _refuse(_: File) -> bool:
    return False


def _session_pattern(command: Command) -> str | None:
    if command.redirects and list(redirected(command)):
        return None
    if command.assignments or not command.words or command.folder != "":
        return None
    if any(word.text is None for word in command.words):
        return None
    runs = runs_of(command)
    name = name_of(runs.words[runs.last])
    if runs.unseen or runs.inner or runs.changes or name is None or len(runs.words) != len(command.words):
        return None
    words = runs.words[runs.last :] if runs.last in runs.clear else runs.words
    arguments = words[1:]
    if name != words[0].text or not _PROGRAM.fullmatch(name):
        return None
    if not is_safe(name, arguments):
        # Whatever runs others is asked about each time.
        return None
    if name in _SHOWING:
        return f"{name}:*"
    if name == "git" and arguments and arguments[0].text in _SHOWING_GIT:
        return f"git {arguments[0].text}:*"
    return _exact(command)


def _exact(command: Command) -> str | None:
    source = command.source.strip()
    if command.redirects:
        source = shlex.join(str(word.text) for word in command.words)
    if "*" in source or "\n" in source or len(source) > _MAX_PATTERN:
        return None
    return source


# To write rules.


def warnings_of(pattern: str, *, allows: bool = False) -> list[str]:
    """What is wrong with a pattern that can never match, in words for who wrote it; empty when it can.

    Args:
        pattern: The pattern.
        allows: Whether it is of a rule that allows.
    """
    parsed = _parsed(pattern)
    odd = next((letter for letter in pattern if not letter.isprintable() and letter not in "\t\n"), None)
    if odd is not None:
        return [f"it holds the character U+{ord(odd):04X}, with which no command is read"]
    if not pattern.strip().strip("*"):
        return []
    if parsed.exact:
        return [] if read_shell(pattern.strip()).commands else ["it holds no command"]
    if not parsed.words:
        return ["it is no single command that can be read for certain, so that its wildcard never matches"]
    if not allows or parsed.literal < len(parsed.words):
        return []
    words = parsed.words[parsed.assigns :]
    if not words:
        return ["it sets variables only"]
    runs = runs_of(Command(words))
    name = name_of(runs.words[runs.last])
    named = words[runs.last + 1 :]
    safe = name is not None and (
        (has_safe_forms(name) and (not named or name == "sed"))
        or is_safe(name, named, len(named))
        or consents(name, named, ())
    )
    if runs.changes or not safe:
        return [
            (
                "it allows nothing: the program runs others, or changes what follows, by its arguments;"
                " name the script or subcommand, or the very command"
            )
        ]
    return []
