"""What `agentrpc run` prints."""

from agentrpc.cli.talk import run_once
from agentrpc.v1 import content_pb2, event_pb2, run_pb2


class Client:
    """Tells events."""

    def __init__(self, *events):
        self._events = events

    async def run(self, session, prompt, *, include_deltas, on_run):
        for event in self._events:
            yield event


def text(said):
    return event_pb2.Event(text_delta=event_pb2.TextDelta(message_id="m", text=said))


def call():
    block = content_pb2.ContentBlock(index=1, tool_use=content_pb2.ToolUseBlock(tool_name="Bash", input_json="{}"))
    return event_pb2.Event(assistant_message=event_pb2.AssistantMessage(message_id="m", blocks=[block]))


COMPLETED = event_pb2.Event(message_completed=event_pb2.MessageCompleted())
ENDED = event_pb2.Event(run_ended=event_pb2.RunEnded(state=run_pb2.Run.STATE_SUCCEEDED))


async def printed(capfd, *events):
    assert await run_once(Client(*events), "sessions/x", "hello", approve="none", as_json=False) == 0
    return capfd.readouterr()


async def test_a_tool_call_behind_text_begins_a_line(capfd):
    said = await printed(capfd, text("I look."), call(), COMPLETED, ENDED)
    assert said.out == "I look.\n"
    assert said.err.startswith("● Bash\nSUCCEEDED")


async def test_text_that_ends_its_line_is_followed_by_no_empty_one(capfd):
    assert (await printed(capfd, text("done\n"), COMPLETED, ENDED)).out == "done\n"


async def test_text_alone_ends_with_its_line(capfd):
    assert (await printed(capfd, text("a"), COMPLETED, text("b"), ENDED)).out == "a\nb\n"
