"""Calls whose outcome nobody knows: what the log says of them, and what the model is told."""

from agentrpc import clock
from agentrpc.v1 import event_pb2

__all__ = ["UNKNOWN_RESULT", "finished", "told"]

UNKNOWN_RESULT = (
    "The process that made this call was lost before the call had ended, so its outcome is unknown. It may have had "
    "effects. Find out before you make it again."
)


def finished(
    tool_use_id: str,
    tool_name: str,
    outcome: event_pb2.ToolCallFinished.Outcome,
    text: str,
    *,
    denied_by: str = "",
) -> event_pb2.Event:
    """`tool_call_finished` of a call whose end no process has told.

    Args:
        tool_use_id: The call.
        tool_name: Its tool.
        outcome: What is known of it.
        text: What the model is told.
        denied_by: What has denied it, if it was denied.
    """
    end = event_pb2.ToolCallFinished(tool_use_id=tool_use_id, tool_name=tool_name, outcome=outcome)
    if outcome == event_pb2.ToolCallFinished.OUTCOME_DENIED:
        end.denial_reason, end.denied_by = text, denied_by
    elif text:
        end.content.add().text.text = text
    event = event_pb2.Event(tool_call_finished=end)
    event.time.FromDatetime(clock.utcnow())
    return event


def told(end: event_pb2.ToolCallFinished) -> tuple[str, bool]:
    """What the model is told of a call that the log knows to have ended, and whether as an error."""
    text = "\n".join(block.text.text for block in end.content if block.HasField("text"))
    return text or end.denial_reason, end.outcome != event_pb2.ToolCallFinished.OUTCOME_SUCCEEDED
