"""What the gate is asked and what it answers. The rules by which it decides are in `domain/rules.py`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Gate", "ToolCall", "Verdict", "why_denied"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that the CLI is about to make.

    Attributes:
        tool_use_id: Names the call for its whole life.
        tool_name: The tool, such as `Bash` or `mcp__github__create_issue`.
        input: The input as the CLI parsed it.
        agent_id: The subagent that makes the call; None for the main conversation.
        folder: The folder that the agent is in: absolute; empty: the workspace.
    """

    tool_use_id: str
    tool_name: str
    input: dict[str, Any]
    agent_id: str | None = None
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer.

    Attributes:
        allow: True: the call is made, and its start is committed already. False: it is not made.
        updated_input: With `allow`: the input to use instead. None: as it was.
        message: Without `allow`: what the model is told.
        interrupt: Without `allow`: the whole turn ends too.
    """

    allow: bool
    updated_input: dict[str, Any] | None = None
    message: str = ""
    interrupt: bool = False


Gate = Callable[[ToolCall], Awaitable[Verdict]]


def why_denied(state: str, message: str) -> str:
    """What the model is told of a call that nobody has allowed.

    Args:
        state: Of the approval: DENIED, EXPIRED or CANCELLED.
        message: What the person who denied it has said; may be empty.
    """
    if state == "EXPIRED":
        return "nobody answered before the deadline"
    if state == "CANCELLED":
        return "the run was stopped before anyone answered"
    return message or "the user denied this call"
