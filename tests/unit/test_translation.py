"""Real frames of the CLI become the contract's events, each once."""

import json
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.claude.translation import Delta, Fault, Translator, TurnEnded
from agentrpc.v1 import event_pb2

FRAMES = Path(__file__).parent.parent / "frames"


def translate(*frames, translator=None):
    """What frames become where the gate lets every call pass."""
    translator = translator or Translator()
    found = []
    for frame in frames:
        items = translator.translate(frame)
        found += items
        for event in events(items, "assistant_message") if frame.get("type") == "assistant" else ():
            for block in event.blocks:
                if block.HasField("tool_use"):
                    translator.call_started(block.tool_use.tool_use_id, clock.utcnow())
    return found


def load(name):
    return [json.loads(line) for line in (FRAMES / name).read_text().splitlines()]


def events(items, kind):
    return [getattr(item, kind) for item in items if isinstance(item, event_pb2.Event) and item.HasField(kind)]


@pytest.mark.parametrize("name", sorted(path.name for path in FRAMES.glob("*.jsonl")))
def test_no_frame_is_unknown_and_nothing_of_the_host_leaks(name):
    items = translate(*load(name))
    assert not events(items, "raw_frame")
    for item in items:
        if isinstance(item, event_pb2.Event) and not item.HasField("user_message"):
            assert "/tmp/cc-socks" not in str(item)
    assert any(isinstance(item, TurnEnded) for item in items)


@pytest.mark.parametrize("name", ["background-subagent.jsonl", "turns-tools-compaction.jsonl"])
def test_deltas_join_without_a_gap_and_equal_the_durable_block(name):
    previews = {}
    for item in translate(*load(name)):
        if isinstance(item, Delta):
            known = previews.setdefault((item.message_id, item.block_index), "")
            assert item.offset == len(known.encode())
            previews[item.message_id, item.block_index] = known + item.text
        elif item_is(item, "assistant_message"):
            for block in item.assistant_message.blocks:
                preview = previews.get((item.assistant_message.message_id, block.index))
                if preview is not None and block.HasField("text"):
                    assert preview == block.text.text
                elif preview is not None and block.HasField("tool_use") and not block.tool_use.server_side:
                    # The recording's paths were changed in the durable frame alone.
                    assert json.loads(preview)
                    assert block.tool_use.input_json == preview


def item_is(item, kind):
    return isinstance(item, event_pb2.Event) and item.HasField(kind)


def test_blocks_keep_their_index_with_and_without_partial_messages():
    for name in ("background-subagent.jsonl", "background-subagent-no-partials.jsonl"):
        messages = events(translate(*load(name)), "assistant_message")
        first = [m.blocks[0].index for m in messages if m.message_id == "msg_0001"]
        assert first == [0, 1, 2, 3, 4], name


def test_usage_of_a_turn_is_its_own():
    turns = [item for item in translate(*load("turns-tools-compaction.jsonl")) if isinstance(item, TurnEnded)]
    assert [turn.usage.output_tokens for turn in turns[:3]] == [50, 50, 0]
    frames = [{k: v for k, v in frame.items() if k != "model_usage_since_last_result"}
              for frame in load("turns-tools-compaction.jsonl")]  # fmt: skip
    derived = [item for item in translate(*frames) if isinstance(item, TurnEnded)]
    assert [turn.usage for turn in derived] == [turn.usage for turn in turns]


def test_subtasks_are_counted_until_they_report():
    translator = Translator()
    seen = []
    for frame in load("background-subagent.jsonl"):
        translate(frame, translator=translator)
        seen.append(len(translator.active_subtasks))
    assert max(seen) == 1
    assert seen[-1] == 0
    assert translator.open_calls == set()


def start(translator, *blocks):
    frames = [{"type": "stream_event", "event": {"type": "message_start", "message": {"id": "m", "model": "x"}}}]
    for index, block in enumerate(blocks):
        frames.append({"type": "stream_event",
                       "event": {"type": "content_block_start", "index": index, "content_block": block}})  # fmt: skip
    return translate(*frames, translator=translator)


def piece(index, **delta):
    return {"type": "stream_event", "event": {"type": "content_block_delta", "index": index, "delta": delta}}


def test_offsets_are_bytes_and_odd_characters_are_cleaned():
    translator = Translator()
    start(translator, {"type": "text", "text": ""})
    items = translate(
        piece(0, type="text_delta", text="ü☃"),
        piece(0, type="text_delta", text="\ud800x\0"),
        piece(0, type="text_delta", text="y"),
        translator=translator,
    )
    assert [(item.offset, item.text) for item in items] == [(0, "ü☃"), (5, "\ufffdx\ufffd"), (12, "y")]


def test_the_input_of_a_call_is_what_the_model_wrote():
    translator = Translator()
    start(translator, {"type": "tool_use", "id": "t", "name": "N", "input": {}})
    exact = '{"b": 1.0, "a": 9007199254740993, "c": 1e2}'
    translate(*(piece(0, type="input_json_delta", partial_json=part) for part in (exact[:9], exact[9:])),
              translator=translator)  # fmt: skip
    frame = {"type": "assistant", "uuid": "u",
             "message": {"id": "m", "content": [{"type": "tool_use", "id": "t", "name": "N", "input": json.loads(exact)}]}}  # fmt: skip
    (event,) = translate(frame, translator=translator)
    assert event.assistant_message.blocks[0].tool_use.input_json == exact


def result_of(tool_use_id, content="ok", **more):
    block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content, **more}
    return {"type": "user", "message": {"content": [block]}}


def result(translator, tool_use_id, content, **more):
    items = translate(result_of(tool_use_id, content, **more), translator=translator)
    return events(items, "tool_call_finished")[0]


def asks(tool_use_id):
    block = {"type": "tool_use", "id": tool_use_id, "name": "Read", "input": {}}
    return {"type": "assistant", "message": {"id": f"m-{tool_use_id}", "content": [block]}}


def test_outcomes_of_calls():
    translator = Translator()
    for name in ("good", "bad"):
        translator.call_started(name, clock.utcnow())
    assert result(translator, "good", "ok").outcome == event_pb2.ToolCallFinished.OUTCOME_SUCCEEDED
    assert result(translator, "bad", "bad", is_error=True).outcome == event_pb2.ToolCallFinished.OUTCOME_FAILED
    translator.call_denied("denied", "no", "rule")
    denied = result(translator, "denied", "x", is_error=True)
    assert (denied.outcome, denied.denial_reason, denied.denied_by) == (
        event_pb2.ToolCallFinished.OUTCOME_DENIED, "no", "rule",
    )  # fmt: skip


def test_a_result_without_a_call_is_a_fault_and_no_event():
    translator = Translator()
    for claimed in (result_of("forged"), result_of("forged", is_error=True)):
        (fault,) = translate(claimed, translator=translator)
        assert fault == Fault("a result of a tool call that nobody has asked for")
    assert not translate({"type": "tool_progress", "tool_use_id": "forged", "tool_name": "Bash"}, translator=translator)
    assert translator.open_calls == set()


def test_a_block_alone_proves_no_call():
    translator = Translator()
    translator.translate(asks("blocked"))
    assert translator.translate(result_of("blocked")) == [
        Fault("a result of a tool call that the gate has not let pass")
    ]
    translator.call_denied("blocked", "no", "rule")
    assert isinstance(translator.translate(result_of("blocked"))[0], Fault)
    # What the CLI refuses by itself never reaches the gate.
    (event,) = translator.translate(
        result_of("blocked", "<tool_use_error>no such tool</tool_use_error>", is_error=True)
    )
    assert event.tool_call_finished.outcome == event_pb2.ToolCallFinished.OUTCOME_DENIED


def test_a_call_has_one_result():
    translator = Translator()
    (_, done) = translate(asks("t"), result_of("t"), translator=translator)
    assert done.tool_call_finished.outcome == event_pb2.ToolCallFinished.OUTCOME_SUCCEEDED
    for again in (result_of("t"), result_of("t", "other", is_error=True)):
        assert translator.translate(again) == [Fault("a second result of one tool call")]


def test_the_late_result_of_a_call_that_was_given_up_says_nothing_new():
    translator = Translator()
    items = translate(asks("t"), {"type": "result", "subtype": "success"}, translator=translator)
    assert [end.outcome for end in events(items, "tool_call_finished")] == [
        event_pb2.ToolCallFinished.OUTCOME_INTERRUPTED
    ]
    assert list(translator.translate(result_of("t"))) == []


def test_what_is_remembered_of_calls_is_bounded():
    translator = Translator()
    for number in range(10_000):
        translate(asks(str(number)), result_of(str(number)), translator=translator)
    assert len(translator._calls._ended) < 5000
    assert not translator.open_calls


def test_a_big_result_is_left_out_with_size_and_hash():
    translator = Translator()
    translator.call_started("t", clock.utcnow())
    done = result(translator, "t", "x" * 5_000_000)
    text = done.content[0].text
    assert text.omitted.total_bytes == 5_000_000
    assert len(text.omitted.sha256) == 64
    assert done.ByteSize() < 300_000


@pytest.mark.parametrize(
    "frame",
    [{}, {"type": None}, {"type": "new_kind", "cwd": "/secret"}, {"type": "system", "subtype": "new"},
     {"type": "assistant"}, {"type": "stream_event"}, {"type": "user", "message": 7}, {"type": "result", "num_turns": "x"}],
)  # fmt: skip
def test_what_cannot_be_read_becomes_a_raw_frame(frame):
    (event,) = translate(frame)
    assert event.HasField("raw_frame")
    assert "/secret" not in event.raw_frame.frame_json
