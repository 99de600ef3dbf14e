"""A call that is made by itself, without a turn around it."""

from asyncio import Future
from dataclasses import dataclass

__all__ = ["Step"]


@dataclass(slots=True)
class Step:
    """Such a call.

    Attributes:
        tool_use_id: Which.
        done: Done when it has ended and its result is on its way to the store.
        ended: Whether the CLI has said that it has ended.
        stored: Whether its result has been given to the writer.
    """

    tool_use_id: str
    done: Future[None]
    ended: bool = False
    stored: bool = False

    def check(self) -> None:
        """Say that it is done, if it is."""
        if self.ended and self.stored and not self.done.done():
            self.done.set_result(None)
