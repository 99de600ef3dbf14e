"""Patterns of paths in rules, as gitignore has them, with the four beginnings that Claude Code's settings know.

    //etc/**       from the root of the file system
    ~/.ssh/**      from the agent's home
    /src/**        from the workspace
    src/*.py       the same; a name without a slash is meant at any depth: `.env` is `**/.env`

A pattern that fits a folder fits everything below it. `./x` is `/x` where it allows and `x` where it denies. A rule
that denies `name/**` means that folder at any depth, and one that denies `/x` also the path from the root: denied is
what was perhaps meant, allowed is only what was said.
"""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

__all__ = ["Places", "check_pattern", "is_below", "may_fit_below", "path_fits", "path_pattern"]

_WILD = frozenset("*?[\\")
_ONE_FOLDER = re.compile(r"[^/]+/\*\*?")


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that patterns begin at: absolute paths.

    Attributes:
        workspace: The session's files, where the agent begins to work.
        home: The agent's home. None: not known; a pattern of it then allows nothing, and denies below any folder.
    """

    workspace: str
    home: str | None = None


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A pattern from one of its beginnings on.

    Attributes:
        anchor: `/`, `~` or `.`, the workspace; `?` in place of a home that is not known.
        expression: For the path relative to that.
        literal: The folders that it begins with, wildcards excluded.
    """

    anchor: str
    expression: re.Pattern[str]
    literal: str


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with a remedy, for what is no pattern of a path or can match none."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in pattern):
        raise ValueError("a pattern of a path has no control characters")
    if pattern.startswith("!"):
        raise ValueError("a rule cannot take something out of another one: write \\! for a name that begins with !")
    if pattern.startswith("#"):
        raise ValueError("a pattern that begins with # is a comment: write \\# for a name that begins with it")
    if ".." in pattern.split("/"):
        raise ValueError("a pattern of a path has no `..`: write //absolute/path for what is outside the workspace")
    for denies in (False, True):
        _compiled(pattern, denies)


def path_fits(pattern: str, path: str, places: Places, *, denies: bool, folder: bool = False) -> bool:
    """Whether a pattern fits a path.

    Args:
        pattern: One that `check_pattern` takes.
        path: An absolute path, normalized.
        places: What it is relative to.
        denies: Whether it is part of a rule that denies.
        folder: Whether everything below the path is meant as well.
    """
    for anchored in _compiled(pattern, denies):
        relative = _relative(anchored, path, places)
        if relative is None:
            continue
        if (relative and anchored.expression.search(relative)) or (
            folder and anchored.expression.search(f"{relative}/")
        ):
            return True
    return False


def may_fit_below(pattern: str, folder: str, places: Places) -> bool:
    """Whether a rule that denies may fit something below a folder, for all that can be told from the pattern."""
    for anchored in _compiled(pattern, denies=True):
        base = _base(anchored, places)
        if base is None:
            continue
        begins = posixpath.join(base, anchored.literal) if anchored.literal else base
        if is_below(begins, folder) or is_below(folder, begins):
            return True
    return False


def path_pattern(path: str, places: Places, *, below: bool = False) -> str:
    """The pattern that fits this path, every letter taken as it is, and what is below it."""
    if is_below(path, places.workspace):
        shown = f"/{path[len(places.workspace.rstrip('/')) :].strip('/')}"
    else:
        shown = f"/{path}"
    escaped = GitIgnoreSpecPattern.escape(shown)
    # Blanks at the end of a line are no part of a pattern of gitignore, unless escaped.
    escaped = re.sub(r"(\s+)$", lambda found: "".join(f"\\{blank}" for blank in found[1]), escaped)
    return f"{escaped.rstrip('/')}/**" if below else escaped


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder, or in it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _base(anchored: _Anchored, places: Places) -> str | None:
    if anchored.anchor == "?":
        return "/" if places.home is None else None
    return {"/": "/", ".": places.workspace, "~": places.home}[anchored.anchor]


def _relative(anchored: _Anchored, path: str, places: Places) -> str | None:
    base = _base(anchored, places)
    if base is None or not is_below(path, base):
        return None
    return path[len(base.rstrip("/")) :].lstrip("/")


@lru_cache(maxsize=4096)
def _compiled(pattern: str, denies: bool) -> tuple[_Anchored, ...]:
    return tuple(_anchored(anchor, text) for anchor, text in _beginnings(pattern, denies=denies))


def _beginnings(pattern: str, *, denies: bool) -> Iterable[tuple[str, str]]:
    if pattern.startswith("//"):
        yield "/", f"/{pattern.lstrip('/')}"
    elif pattern == "~" or pattern.startswith("~/"):
        # With the slash: in the home, and not at any depth of it.
        yield "~", f"/{pattern[2:]}" if pattern[2:] else "**"
        if denies:
            yield "?", f"**/{pattern[2:]}"
    elif pattern.startswith("/"):
        yield ".", pattern
        if denies:
            yield "/", pattern
    elif pattern in {".", "./"}:
        yield ".", "**"
    elif pattern.startswith("./"):
        yield from _beginnings(pattern[2:] if denies else f"/{pattern[2:].lstrip('/')}", denies=denies)
    elif denies and _ONE_FOLDER.fullmatch(pattern):
        yield ".", f"**/{pattern}"
    else:
        yield ".", pattern


def _anchored(anchor: str, pattern: str) -> _Anchored:
    try:
        expression, _ = GitIgnoreSpecPattern.pattern_to_regex(pattern)
    except ValueError:
        expression = None
    if expression is None:
        raise ValueError(f"{pattern!r} can match no path: look at its brackets, and at what it begins and ends with")
    # `$` also fits before a line break at the end, and `.` no line break: a name may hold any.
    compiled = re.compile(expression.replace("|$)", r"|\Z)"), re.DOTALL)
    if anchor == "~" and pattern == "**":
        compiled = re.compile("", re.DOTALL)
    literal: list[str] = []
    inner = pattern.strip("/").split("/")
    if "/" in pattern.rstrip("/"):
        for name in inner:
            if _WILD.intersection(name):
                break
            literal.append(name)
    return _Anchored(anchor, compiled, "/".join(literal))
