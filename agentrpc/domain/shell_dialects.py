r"""Whether other shells read a text as bash does.

`sh` may be bash or dash, or something smaller still. What POSIX says nothing of they read in ways of their own: to dash
`[[ a && cc ]]` is two programs, `aa &>f cc` is too, and a quote ends elsewhere in `$'x\''`. So a text for `sh` is
certain only where it keeps to what POSIX has (IEEE 1003.1-2024, Shell Command Language); what zsh, ksh, fish and csh
make of a text is never certain.
"""

import re

__all__ = ["BASHES", "POSIX_SHELLS", "dialect_doubt"]

BASHES = frozenset({"bash", "rbash"})
POSIX_SHELLS = frozenset({"ash", "dash", "sh"})
# What bash has and POSIX has not, or not in this meaning. It may stand in the middle of a word: better once too often.
_BEYOND_POSIX = re.compile(
    r"""
    \$['"\[] | \[\[ | (?<!\$)\(\( | &> | >&(?![0-9-]) | <<< | \|& | [<>]\( | ;;?& | [?*+@!]\( | \+= | =\( | ~[+-]
    | \{[^\s{}]*(?:,|\.\.)[^\s{}]*\} | \{\w+\}[<>] | \b(?:function|coproc|select|time|source)\b
    """,
    re.VERBOSE,
)


def dialect_doubt(shell: str, text: str) -> str:
    """Why a shell may read a text otherwise than bash; empty when it does not.

    Args:
        shell: Its name, without a folder.
        text: What it is given to run.
    """
    if shell in BASHES:
        return ""
    if shell not in POSIX_SHELLS:
        return f"{shell} is not bash"
    found = _BEYOND_POSIX.search(_outside_quotes(text))
    return f"{shell} may not be bash, and read {found[0].strip()!r} otherwise" if found else ""


def _outside_quotes(text: str) -> str:
    """A text without what is in quotes, as POSIX has them; all of it where that is not certain."""
    if "#" in text or "<<" in text:
        # A quote in a comment or a here-document is none.
        return text
    outside, at = [], 0
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            outside.append("\\")
            at += 2
        elif letter == "'":
            end = text.find("'", at + 1)
            if end < 0:
                return text
            outside.append("''")
            at = end + 1
        elif letter == '"':
            closed = re.compile(r'(?:[^"\\`$]|\\.|\$(?!\())*"', re.DOTALL).match(text, at + 1)
            if closed is None:
                return text
            outside.append('""')
            at = closed.end()
        else:
            outside.append(letter)
            at += 1
    return "".join(outside)
