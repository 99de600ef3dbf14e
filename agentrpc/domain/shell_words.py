"""Words of shell text: where they end and what bash passes on once it has removed their quotes."""

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Redirect", "Unsure", "Word", "Words"]


class Unsure(Exception):
    """Bash may read this otherwise."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command.

    Attributes:
        text: What the program gets, quotes removed; a glob, or `~/` at the beginning, as it is written. None when an
            expansion makes it unknown.
        source: As it is written.
        prefix: The letters that it begins with for certain.
        glob: Names of files may take its place.
        splits: It may become no word or several.
        tilde: It begins with the shell's home folder, `~`.
    """

    text: str | None
    source: str
    prefix: str
    glob: bool = False
    splits: bool = False
    tilde: bool = False


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


# What ends a word where it is not quoted.
_END = frozenset(" \t\n;&|()<>")
_PLAIN = re.compile(r"[^ \t\n;&|()<>'\"\\$`*?\[{},.~#=:]+")
_QUOTED = re.compile(r"[^\"\\$`]+")
_DESCRIPTOR = re.compile(r"[0-9]+|\{[A-Za-z_][A-Za-z0-9_]*\}")
_REDIRECT = re.compile(r"([0-9]*)(&>>|&>|<<<|<>|>>|>\||>&|<&|>|<)(?!\()")
_PLAIN_TARGET = re.compile(r"[\w./@%+,:-]+", re.ASCII)
_NAMED = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#?$!-])")
_ASSIGNS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\[[^\]]*\])?\+?=")
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "?": "?",
}  # fmt: skip
_ANSI_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|(.))", re.DOTALL
)
_ASCII_END = 0x80


class _Part:
    """A word as it is being put together."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.prefix: str | None = None
        self.known = True
        self.glob = self.splits = self.tilde = False
        self.brace = False

    def stop_prefix(self) -> None:
        if self.prefix is None:
            self.prefix = "".join(self.text)

    def unknown(self, *, splits: bool) -> None:
        self.stop_prefix()
        self.known = False
        self.splits = self.splits or splits

    def word(self, source: str) -> Word:
        text = "".join(self.text)
        prefix = text if self.prefix is None else self.prefix
        return Word(text if self.known else None, source, prefix, self.glob, self.splits or self.glob, self.tilde)


class Words:
    """Takes words and redirections off a text, between operators of the shell.

    Args:
        text: The whole line.
        expansions: Where an expansion or substitution begins -> where it ends, as the grammar has it.
        look_into: Called with the beginning of each of them that is passed.
    """

    def __init__(self, text: str, expansions: dict[int, int], look_into: Callable[[int], None]) -> None:
        self._text = text
        self._expansions = expansions
        self._look_into = look_into

    def read(self, start: int, end: int, *, lines: bool = False) -> list[Word | Redirect]:
        """The words and redirections of a stretch that holds nothing else.

        Args:
            start: Where it begins.
            end: Where it ends.
            lines: Whether newlines separate words there, as in arrays.

        Raises:
            Unsure: It holds something else, or bash may read it otherwise.
        """
        items: list[Word | Redirect] = []
        at = start
        while True:
            following = self._skip(at, end, lines=lines)
            if following == end:
                return items
            found = _REDIRECT.match(self._text, following, end)
            if at == following != start and not found:
                raise Unsure("two words without a blank between them")
            if found:
                at, redirect = self._redirect(found, end)
                items += [redirect] if redirect else []
            else:
                at, word = self.word(following, end)
                if _DESCRIPTOR.fullmatch(word.source) and self._text[at : at + 1] in ("<", ">"):
                    # One that sets a variable, or that the grammar has torn apart.
                    raise Unsure("a word that bash may read as the descriptor of a redirection")
                items.append(word)

    def _skip(self, at: int, end: int, *, lines: bool) -> int:
        while at < end:
            letter = self._text[at]
            if letter in " \t" or (lines and letter == "\n"):
                at += 1
            elif letter == "\\" and self._text.startswith("\\\n", at) and (at == 0 or self._text[at - 1] in " \t\n"):
                at += 2
            else:
                break
        return at

    def _redirect(self, found: re.Match[str], end: int) -> tuple[int, Redirect | None]:
        operator = found[2]
        at = self._skip(found.end(), end, lines=False)
        if operator in (">&", "<&") and self._text.startswith("-", at):
            after = at + 1
            if after < end and self._text[after] not in _END:
                raise Unsure("a word behind a closed descriptor")
            return after, None
        at, word = self.word(at, end)
        if operator == "<<<" or word.source.startswith(("<(", ">(")):
            return at, None
        if operator in (">&", "<&") and word.text is not None and re.fullmatch(r"[0-9]+-?", word.text):
            return at, None
        if operator in (">&", "<&") and (word.text is None or not _PLAIN_TARGET.fullmatch(word.text)):
            # Bash (5.2 at least) expands it twice, so that it runs what stands there in quotes.
            raise Unsure("a descriptor that is expanded twice")
        return at, Redirect("&>" if operator == ">&" else operator, word)

    def word(self, start: int, end: int) -> tuple[int, Word]:
        """The word that begins at `start`: where it ends, and the word.

        Raises:
            Unsure: None begins there, or bash may read it otherwise.
        """
        text, part, at = self._text, _Part(), start
        if text.startswith("#", start):
            raise Unsure("a comment where a word should be")
        while at < end:
            plain = _PLAIN.match(text, at, end)
            if plain:
                part.text.append(plain[0])
                at = plain.end()
                continue
            letter = text[at]
            if letter in "<>" and at in self._expansions and at == start:
                at = self._pass(at, end)
                part.unknown(splits=False)
            elif letter in _END:
                if letter == "(" and at in self._expansions and _ASSIGNS.fullmatch(text, start, at):
                    at = self._pass(at, end)
                    part.unknown(splits=False)
                    continue
                break
            elif letter == "'":
                at = self._single(at, end, part)
            elif letter == '"':
                at = self._double(at, end, part)
            elif letter == "\\":
                at = self._escaped(at, end, part)
            elif letter in "$`":
                at = self._dollar(at, end, part)
            else:
                self._special(letter, at, start, part)
                at += 1
        if at == start:
            raise Unsure("an operator where a word should be")
        if part.tilde and text[start + 1 : at] and text[start + 1] != "/":
            # Another user's home.
            part.known, part.prefix = False, ""
        return at, part.word(text[start:at])

    @staticmethod
    def _special(letter: str, at: int, start: int, part: _Part) -> None:
        """An unquoted letter that means something in some places."""
        if letter in "*?[":
            part.stop_prefix()
            part.glob = True
        elif letter == "{":
            part.stop_prefix()
            part.brace = True
        elif (letter == "," and part.brace) or (letter == "." and part.brace and part.text and part.text[-1] == "."):
            part.unknown(splits=True)
        elif letter == "~":
            if at == start:
                part.tilde = True
            elif "=" in part.text:
                # Where a word looks like an assignment, homes are put in behind `=` and `:`.
                part.unknown(splits=False)
        part.text.append(letter)

    def _pass(self, at: int, end: int) -> int:
        after = self._expansions[at]
        if after > end:
            raise Unsure("an expansion that reaches too far")
        self._look_into(at)
        return after

    def _single(self, at: int, end: int, part: _Part) -> int:
        close = self._text.find("'", at + 1, end)
        if close < 0:
            raise Unsure("an unclosed quote")
        part.text.append(self._text[at + 1 : close])
        return close + 1

    def _double(self, at: int, end: int, part: _Part) -> int:
        text = self._text
        part.text.append("")
        at += 1
        while at < end:
            plain = _QUOTED.match(text, at, end)
            if plain:
                part.text.append(plain[0])
                at = plain.end()
                continue
            letter = text[at]
            if letter == '"':
                return at + 1
            if letter == "\\":
                following = text[at + 1 : at + 2]
                if following != "\n":
                    part.text.append(following if following and following in '$`"\\' else f"\\{following}")
                at += 2
            else:
                at = self._dollar(at, end, part, quoted=True)
        raise Unsure("an unclosed quote")

    def _escaped(self, at: int, end: int, part: _Part) -> int:
        if at + 1 >= end:
            raise Unsure("a backslash at the end")
        following = self._text[at + 1]
        if following != "\n":
            part.text.append(following)
        return at + 2

    def _dollar(self, at: int, end: int, part: _Part, *, quoted: bool = False) -> int:
        text = self._text
        following = text[at + 1 : at + 2] if at + 1 < end else ""
        if text[at] == "$" and not quoted and following == "'":
            return self._ansi(at, end, part)
        if text[at] == "$" and not quoted and following == '"':
            return self._double(at + 1, end, part)
        if at in self._expansions:
            after = self._pass(at, end)
            passed = text[at:after]
            if following not in "({" and text[at] == "$" and not _NAMED.fullmatch(passed):
                raise Unsure("an expansion of an unknown form")
            part.unknown(splits=not quoted or "@" in passed)
            return after
        if text[at] == "`" or (following and (following.isalnum() or following in "_({[@*#?$!-")):
            raise Unsure("an expansion that the grammar does not show")
        part.text.append("$")
        return at + 1

    def _ansi(self, at: int, end: int, part: _Part) -> int:
        close = at + 2
        while close < end and self._text[close] != "'":
            close += 2 if self._text[close] == "\\" else 1
        if close >= end:
            raise Unsure("an unclosed quote")
        part.text.append(_ANSI_ESCAPE.sub(_unescape, self._text[at + 2 : close]))
        return close + 1


def _unescape(found: re.Match[str]) -> str:
    octal, short, wide, long, letter = found.groups()
    if letter is not None:
        if letter not in _SIMPLE_ESCAPES:
            raise Unsure("an escape of an unknown form")
        return _SIMPLE_ESCAPES[letter]
    code = int(octal, 8) if octal else int(short or wide or long, 16)
    if not 0 < code < _ASCII_END:
        # Bytes that are no letters by themselves, and NUL, which ends the word.
        raise Unsure("an escape for something else than an ASCII letter")
    return chr(code)
