"""Builtins of bash that change what later words mean, or read their arguments once more."""

import re
from collections.abc import Sequence

from agentrpc.domain.shell_grammar import HIDES
from agentrpc.domain.shell_words import Word

__all__ = ["CHANGERS", "changes", "sets_expression", "unseen_by"]

# Builtins that change what later words mean, or run what is not seen here; a rule must be that very command.
CHANGERS = frozenset({
    ".", "alias", "bind", "builtin", "compgen", "complete", "compopt", "declare", "disown", "enable", "eval",
    "exec", "export", "fc", "getopts", "hash", "history", "let", "local", "logout", "mapfile", "popd", "pushd",
    "read", "readarray", "readonly", "select", "set", "shopt", "source", "suspend", "trap", "typeset", "umask",
    "unalias", "unset",
})  # fmt: skip
# Builtins whose arguments bash reads once more: an index, or a whole list of words, in a text.
_READ_AGAIN = frozenset({
    "declare", "export", "getopts", "let", "local", "mapfile", "read", "readarray", "readonly", "typeset",
    "unset", "wait",
})  # fmt: skip
_UNSEEN_FLAGS = {
    "bind": "-x", "compgen": "-CFW", "complete": "-CFW", "enable": "-f", "fc": "", "hash": "-p", "history": "",
    "jobs": "-x",
    "mapfile": "-C", "readarray": "-C",
}  # fmt: skip

_ASSIGNS = re.compile(r"[A-Za-z_]\w*\+?=")
_HARMLESS_OPTIONS = frozenset({"-g", "-gx", "-l", "-r", "-rx", "-u", "-x", "-xg"})


def changes(name: str, arguments: Sequence[Word]) -> bool:
    """Whether a command changes what later ones mean."""
    if name == "printf":
        return bool(arguments) and (arguments[0].text is None or arguments[0].text.startswith("-v"))
    return name in CHANGERS


def sets_expression(name: str | None, arguments: Sequence[Word]) -> bool:
    """Whether a builtin may give a variable, or a parameter, a value that arithmetic takes for an expression."""
    if name is None or name == "cd" or not changes(name, arguments):
        return False
    if name not in {"declare", "export", "local", "readonly", "set", "typeset"}:
        return True
    return not all(word.text is not None and re.fullmatch(r"[A-Za-z0-9_./@%+,:= -]*", word.text) for word in arguments)


def unseen_by(name: str, arguments: Sequence[Word]) -> str:
    """Why a builtin may run what is not seen in the line; empty when it may not."""
    texts = [word.text for word in arguments]
    flags = _UNSEEN_FLAGS.get(name)
    if flags is not None and (
        not flags or any(text is None or (text[:1] == "-" and set(text[1:]) & set(flags[1:])) for text in texts)
    ):
        return f"{name} may run others"
    if name in {"set", "shopt"} and None in texts:
        return f"{name} with an unknown option"
    if name == "printf":
        if texts and (texts[0] or "").startswith("-v") and texts[0] != "-v":
            return "printf sets a variable"
        again = arguments[1:2] if texts and texts[0] == "-v" else ()
    elif name in {"test", "["}:
        again = [arguments[at + 1] for at, text in enumerate(texts[:-1]) if text in {"-v", "-R"}]
    else:
        again = arguments if name in _READ_AGAIN else ()
    if name == "let" and any(re.search(r"[A-Za-z]", text or "a") for text in texts):
        return "it calculates with variables"
    return next((why for word in again if (why := _read_again(name, word, texts))), "")


def _read_again(name: str, word: Word, texts: list[str | None]) -> str:
    """Why an argument may run others that a builtin reads once more."""
    value = word.text
    if value is None and name in {"declare", "export", "local", "readonly", "typeset"}:
        # A value is expanded once; but an array or a number would be read again.
        plain = all(text in _HARMLESS_OPTIONS for text in texts if text is not None and text.startswith("-"))
        return "" if plain and _ASSIGNS.match(word.source) else f"{name} with an unknown name or value"
    if value is None or re.search(r"[$`\[]", value):
        return f"{name} may read its argument once more"
    return f"it sets {value.split('=')[0]}" if HIDES.match(value) else ""
