"""Text of others on a terminal: as it is, byte for byte, and without power over the terminal or the look of the rest.

What agents, tools and other users have written is printed on a `Terminal`, styled by `shown`: never through markup,
which reads brackets, and never raw, which lets escape sequences through.
"""

import sys
from collections.abc import Iterable

from rich.console import Console, JustifyMethod, OverflowMethod
from rich.style import Style
from rich.text import Text

from agentrpc.domain.visible_text import visible, visible_lines

__all__ = ["Terminal", "print_lines", "print_warnings", "printable", "shown"]


class Terminal(Console):
    """A console on which each string, also in a cell of a table, is only a text in one line, as of `shown`."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        **_: object,
    ) -> Text:
        """A string as it is printed."""
        return Text(visible(text), style=style, justify=justify, overflow=overflow)


def printable(text: str) -> str:
    """Text of many lines for standard output: what cannot be seen in it as codes on a terminal, as it is elsewhere."""
    return visible(text, keep="\n\t") if _on_terminal() else text


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def shown(text: str, style: str = "") -> Text:
    """A text in one line, with what cannot be seen in it as codes."""
    return Text(visible(text), style=style)


def print_lines(console: Console, text: str, *, indent: str = "  ", style: str = "") -> None:
    """All lines of a text, each as long as it is; `⏎` marks where one ends."""
    lines = visible_lines(text)
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line:
            return
        whole = Text.assemble((f"{indent}│ ", "dim"), (line, style), ("" if last else "⏎", "dim"))
        console.print(whole, soft_wrap=True, highlight=False)


def print_warnings(warnings: Iterable[str]) -> None:
    """What is odd about rules that were stored, to standard error."""
    notes = Terminal(stderr=True)
    for warning in warnings:
        notes.print(Text.assemble(("! ", "yellow"), visible(warning)), soft_wrap=True, highlight=False)
