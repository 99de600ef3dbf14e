"""What was read from a line of shell text: its simple commands, and the folder that each runs in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import tree_sitter

from agentrpc.domain.shell_words import Redirect, Word

__all__ = ["Assignment", "Command", "Script", "in_folders"]

_FOLDER_CHANGERS = frozenset({"cd", "popd", "pushd"})
_MAY_CHANGE_FOLDER = frozenset({".", "builtin", "command", "eval", "source", "trap"})


@dataclass(frozen=True, slots=True)
class Assignment:
    """A variable that is set; `name` holds an index, and `+`, as they are written."""

    name: str
    value: Word


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """A simple command, or what a compound command redirects: then it has no words.

    Attributes:
        words: The program and its arguments.
        assignments: What stands before the program.
        redirects: Files that are opened for it.
        source: As it is written, with its redirections.
        folder: Where it runs, relative to where the shell starts unless absolute; None when a `cd` makes that unknown.
        depth: How many programs run texts around it.
    """

    words: tuple[Word, ...]
    assignments: tuple[Assignment, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    source: str = ""
    folder: str | None = ""
    depth: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """What a line holds.

    Attributes:
        line: The line.
        certain: Bash runs these commands and no others, as far as the line itself says. Words may still be unknown.
        why: Why it is not certain.
        commands: Every simple command that was found, also those in substitutions, bodies and functions.
        changes: What in the line changes what later words mean: functions and variables.
        calculates: It has arithmetic with variables, whose values bash reads as expressions once more.
    """

    line: str
    certain: bool
    why: str = ""
    commands: tuple[Command, ...] = ()
    changes: tuple[str, ...] = ()
    calculates: bool = False


def in_folders(
    commands: list[tuple[int, Command]], repeated: list[tuple[int, int]], root: tree_sitter.Node | None
) -> Iterator[Command]:
    """The commands in the order of the line, each with the folder that it runs in.

    Args:
        commands: The commands and where they begin.
        repeated: Stretches of the line whose commands may run again, or in another order.
        root: The tree of the line; None when that is not certain.
    """
    found = sorted(commands, key=lambda pair: pair[0])
    moves = [(start, command) for start, command in found if _moves(command)]
    if any(start <= place < end for place, _ in moves for start, end in repeated):
        yield from (_placed(command, None) for _, command in found)
        return
    first = _first_move(moves, root)
    for start, command in found:
        before = [place for place, _ in moves if place < start]
        if not before:
            yield command
        elif first is not None and before == [first[0]] and start < first[1]:
            yield _placed(command, first[2])
        else:
            yield _placed(command, None)


def _first_move(moves: list[tuple[int, Command]], root: tree_sitter.Node | None) -> tuple[int, int, str] | None:
    """A leading `cd FOLDER && …`: where it stands, where what runs only behind it ends, and the folder."""
    if not moves or root is None:
        return None
    place, command = moves[0]
    words = command.words
    statement = next((child for child in root.children if child.type != "comment"), None)
    if statement is None or statement.start_byte != place or command.assignments or len(words) != 2:
        return None
    target = words[1]
    if words[0].text != "cd" or not target.text or target.text.startswith("-") or target.glob or target.tilde:
        return None
    node = statement
    end = node.end_byte
    while node.type == "redirected_statement" and node.children:
        node = node.children[0]
    while node.type == "list":
        if any(not child.is_named and child.type != "&&" for child in node.children):
            end = node.children[0].end_byte
        node = node.children[0]
    if node.type != "command":
        return None
    return place, end, target.text


def _moves(command: Command) -> bool:
    """Whether a command may change the folder of those behind it."""
    if not command.words:
        return False
    name = command.words[0].text
    return name is None or name in _FOLDER_CHANGERS or name in _MAY_CHANGE_FOLDER


def _placed(command: Command, folder: str | None) -> Command:
    return replace(command, folder=folder)
