"""Text of others on a terminal: as it is, byte for byte, and without power over the terminal or the look of the rest.

What agents, tools and other users have written goes through `shown`: never through markup, which reads brackets, and
never raw, which lets escape sequences through.
"""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from agentrpc.domain.visible_text import visible, visible_lines

__all__ = ["print_lines", "print_warnings", "shown"]


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
    notes = Console(stderr=True)
    for warning in warnings:
        notes.print(Text.assemble(("! ", "yellow"), visible(warning)), soft_wrap=True, highlight=False)
