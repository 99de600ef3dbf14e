"""Text of agents as people can see it: letters without a look of their own, or that change that of others, as codes."""

import unicodedata

__all__ = ["visible", "visible_lines"]

# Controls, formats (those of direction among them), surrogates, private ones, separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with what cannot be seen in it written as `\x1b` or `\u202e`; letters in `keep` stay as they are."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter in keep or not _is_unseen(letter) else _code(letter) for letter in text)


def visible_lines(text: str) -> list[str]:
    """The lines of a text, as a shell or an editor divides it: at line feeds alone. Tabs stay."""
    return [visible(line, keep="\t") for line in text.split("\n")]


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSEEN or (letter.isspace() and letter != " ")


def _code(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
