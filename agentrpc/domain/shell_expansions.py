"""Checks of what stands in expansions, arithmetic and here-documents: whether bash reads it as the grammar does."""

import re
from dataclasses import dataclass

from agentrpc.domain.shell_grammar import PLAIN_VALUE
from agentrpc.domain.shell_words import Unsure, Word

__all__ = [
    "EXPANDED",
    "NUMBER",
    "Effect",
    "check_arithmetic",
    "check_content",
    "check_document",
    "check_parameter",
    "may_be_expression",
]

# What stands for an expansion, and for one that gives a number, in the texts that are checked.
EXPANDED, NUMBER = "_", "1"

_DELIMITER = re.compile(r"(['\"\\]?)([A-Za-z0-9_]+)(['\"]?)")
_CLOSING = {"'": "'", '"': '"', "\\": "", "": ""}
_ARITHMETIC = re.compile(r"[A-Za-z0-9_ \t\n+*/%<>=!&|^~?:,;()-]*")
_NAME = re.compile(r"(?<![0-9A-Za-z_#])[A-Za-z_]")
_SETS = re.compile(r"(?<![=!<>])=(?!=)|(?:<<|>>)=|\+\+|--")
# `${name}`, `${#name}`, `${name[1]}`, `${name op text}` with nothing quoted in the text.
_PARAMETER = re.compile(
    r"\$\{(?:#?(?:[A-Za-z_][A-Za-z0-9_]*(?:\[(?:@|\*|[0-9]+)\])?|[0-9]+|[@*#?$!-])"
    r"|(?:[A-Za-z_][A-Za-z0-9_]*(?:\[(?:@|\*|[0-9]+)\])?|[0-9]+|[@*])(?P<op>:?[-=?+]|##?|%%?|//?[#%]?|\^\^?|,,?|:)(?P<text>[^{}\"'\\`]*))\}"
)


@dataclass(frozen=True, slots=True)
class Effect:
    """What an expression does: it takes the values of variables for expressions; it sets variables."""

    calculates: bool
    sets: bool


def check_parameter(shown: str) -> Effect:
    """Check `${…}`, in which other expansions are replaced.

    Raises:
        Unsure: Bash may find more in it.
    """
    found = _PARAMETER.fullmatch(shown)
    if found is None or (found["text"] and re.search(r"[$<>]\(|\$", found["text"])):
        raise Unsure("an expansion of an unknown form")
    return Effect(
        calculates=found["op"] == ":" and _NAME.search(found["text"]) is not None, sets=found["op"] in {"=", ":="}
    )


def check_arithmetic(shown: str) -> Effect:
    """Check an arithmetic expression, in which expansions are replaced.

    Raises:
        Unsure: Bash may find more in it, or end it elsewhere.
    """
    depth = 0
    for letter in shown:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            break
    if depth or not _ARITHMETIC.fullmatch(shown):
        raise Unsure("arithmetic of an unknown form")
    return Effect(calculates=_NAME.search(shown) is not None, sets=_SETS.search(shown) is not None)


def check_document(line: str, delimiter: tuple[int, int], end: tuple[int, int], *, tabs: bool) -> int:
    """Check a here-document, and return where its content begins.

    Args:
        line: The whole line.
        delimiter: Where the delimiter stands that begins it.
        end: Where the grammar says that it ends: the line with the delimiter.
        tabs: Whether tabs at the beginning of its lines are left out.

    Raises:
        Unsure: Bash may end it elsewhere, or finds more in it than the grammar shows.
    """
    found = _DELIMITER.fullmatch(line[slice(*delimiter)])
    if found is None or found[3] != _CLOSING[found[1]]:
        raise Unsure("a here-document with an odd delimiter")
    begin = line.find("\n", delimiter[1]) + 1
    content = line[begin : end[0]]
    lines = [text.lstrip("\t") if tabs else text for text in content.split("\n")]
    last = lines.pop()
    ends_there = line[slice(*end)].strip("\t") == found[2] and line[end[1] : end[1] + 1] in {"", "\n"}
    if not 0 < begin <= end[0] or last or found[2] in lines or not ends_there:
        raise Unsure("a here-document that bash may end elsewhere")
    if not found[1] and ("`" in content or re.search(r"\\[\n$\\]", content)):
        raise Unsure("a here-document with substitutions that the grammar does not show")
    return begin


def check_content(shown: str) -> None:
    """Check the content of a here-document with expansions, in which they are replaced.

    Raises:
        Unsure: It holds others than the grammar shows.
    """
    if re.search(r"\$[\w({\[@*#?!-]", shown):
        raise Unsure("a here-document with substitutions that the grammar does not show")


_VARIABLE = re.compile(r"\"?\$(?:[A-Za-z_][A-Za-z0-9_]*|\{#?[A-Za-z_][A-Za-z0-9_]*\}|[#?])\"?")


def may_be_expression(word: Word) -> bool:
    """Whether a word is more, as arithmetic, than a number or a variable."""
    if word.text is None:
        return not _VARIABLE.fullmatch(word.source)
    return not PLAIN_VALUE.fullmatch(word.text)
