"""Calls, subtasks and turns end once each, and say truly how: frames of the real CLI, recorded with the scripted model."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.claude.translation import Delta, Translator, TurnEnded
from agentrpc.v1 import event_pb2

FRAMES = Path(__file__).parent.parent / "frames"
Outcome = event_pb2.ToolCallFinished.Outcome


@pytest.fixture(scope="module")
def items():
    """All that the recording says, in order: seven turns, each with the reason for which it was recorded."""
    translator = Translator()
    found = []
    for line in (FRAMES / "denials-interrupts-errors.jsonl").read_text().splitlines():
        items = translator.translate(json.loads(line))
        found += items
        for event in events(items, "assistant_message"):
            for block in event.assistant_message.blocks:
                if block.HasField("tool_use"):
                    translator.call_started(block.tool_use.tool_use_id, clock.utcnow())
    return found


def events(items, kind):
    return [item for item in items if isinstance(item, event_pb2.Event) and item.HasField(kind)]


def turns(items):
    """The items of each turn, the end of it last."""
    parts = [[]]
    for item in items:
        parts[-1].append(item)
        if isinstance(item, TurnEnded):
            parts.append([])
    return parts[:-1]


def one(kind, **fields):
    return {"type": "system", "subtype": kind, **fields}


def translate(*frames, translator=None):
    translator = translator or Translator()
    return [item for frame in frames for item in translator.translate(frame)]


def test_every_call_that_was_asked_for_ends_once(items):
    asked = [
        block.tool_use.tool_use_id
        for event in events(items, "assistant_message")
        for block in event.assistant_message.blocks
        if block.HasField("tool_use")
    ]
    ended = [event.tool_call_finished.tool_use_id for event in events(items, "tool_call_finished")]
    assert sorted(asked) == sorted(ended)
    assert len(asked) == 9


def test_denied_and_failed_calls_differ(items):
    done = {event.tool_call_finished.content[0].text.text[:30]: event.tool_call_finished
            for event in events(turns(items)[0], "tool_call_finished")}  # fmt: skip
    assert [(Outcome.Name(one.outcome), one.denied_by) for one in done.values()] == [
        ("OUTCOME_FAILED", ""),
        ("OUTCOME_DENIED", "hook"),
        ("OUTCOME_FAILED", ""),
        ("OUTCOME_FAILED", ""),
    ]
    assert turns(items)[0][-1].denial_count == 1


def test_a_background_agent_reports_in_a_turn_that_answers_no_prompt(items):
    _, asked, reported, *_ = turns(items)
    assert len(events(asked, "subtask_started")) == 1
    assert events(asked, "subtask_started")[0].subtask_started.background
    assert not events(asked, "subtask_ended")
    assert (asked[-1].text, len(asked[-1].prompt_uuids), asked[-1].origin) == ("done", 1, "")
    (ended,) = events(reported, "subtask_ended")
    assert (ended.subtask_ended.summary, ended.subtask_ended.usage.tool_call_count) == ("report", 1)
    assert (reported[-1].prompt_uuids, reported[-1].origin) == (frozenset(), "task-notification")


def test_a_turn_does_not_close_the_calls_of_an_agent_that_goes_on(items):
    _, asked, reported, *_ = turns(items)
    call = events(asked, "subtask_started")[0].subtask_started.tool_use_id
    (done,) = [event for event in events(reported, "tool_call_finished") if event.parent_tool_use_id == call]
    assert done.tool_call_finished.outcome == Outcome.OUTCOME_SUCCEEDED


def test_an_interrupt_in_a_call(items):
    turn = turns(items)[3]
    (done,) = events(turn, "tool_call_finished")
    assert done.tool_call_finished.outcome == Outcome.OUTCOME_INTERRUPTED
    end = turn[-1]
    assert (end.is_error, end.subtype, end.terminal_reason) == (True, "error_during_execution", "aborted_tools")
    assert (end.text, end.errors) == ("", []), "diagnostics of the CLI are for its developers"


def test_an_interrupt_in_a_text_keeps_what_was_written(items):
    turn = turns(items)[4]
    (said,) = events(turn, "assistant_message")
    preview = "".join(item.text for item in turn if isinstance(item, Delta))
    assert said.assistant_message.interrupted
    assert said.assistant_message.blocks[0].text.text == preview == "a long "
    assert turn[-1].terminal_reason == "aborted_streaming"


def test_an_error_of_the_provider_is_a_synthetic_message_and_a_failed_turn(items):
    turn = turns(items)[5]
    (said,) = events(turn, "assistant_message")
    assert said.assistant_message.synthetic
    assert said.assistant_message.error == "unknown"
    assert (turn[-1].is_error, turn[-1].http_status) == (True, 400)


def test_an_interrupt_ends_the_calls_of_a_foreground_agent_too(items):
    turn = turns(items)[6]
    done = events(turn, "tool_call_finished")
    agent, inner = (event.tool_call_finished for event in done)
    assert (agent.tool_name, inner.tool_name) == ("Agent", "Bash")
    assert agent.outcome == inner.outcome == Outcome.OUTCOME_INTERRUPTED
    assert done[1].parent_tool_use_id == agent.tool_use_id
    assert not inner.content, "the CLI has sent no result for it"
    (ended,) = events(turn, "subtask_ended")
    assert ended.subtask_ended.outcome == event_pb2.SubtaskEnded.OUTCOME_STOPPED


def test_a_retried_call_to_the_model_is_told(items):
    (retried,) = events(turns(items)[7], "model_call_retried")
    assert (retried.model_call_retried.http_status, retried.model_call_retried.error) == (529, "overloaded")


def test_model_time_is_of_the_turn_alone():
    lines = (FRAMES / "turns-tools-compaction.jsonl").read_text().splitlines()
    ends = [item for item in translate(*map(json.loads, lines)) if isinstance(item, TurnEnded)]
    assert [end.model_duration // timedelta(milliseconds=1) for end in ends] == [103, 35, 0, 0]
    assert all(end.model_duration <= end.duration for end in ends)


def test_words_of_a_tool_do_not_make_it_interrupted():
    block = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": "stopped: interrupted by user"}
    marks = [{"id": "t", "permission_decision": {"decision": "accept", "source": "hook"}}]
    translator = Translator()
    translator.call_started("t", clock.utcnow())
    frame = {"type": "user", "message": {"content": [block]}, "tool_result_meta": marks}
    (event,) = translate(frame, translator=translator)
    assert event.tool_call_finished.outcome == Outcome.OUTCOME_FAILED


def test_the_gates_reason_counts_and_the_clis_own_refusal_is_known():
    translator = Translator()
    translator.call_denied("ours", "ask first", "approval")
    for tool_use_id in ("ours", "its"):
        frame = one(
            "permission_denied", tool_use_id=tool_use_id, decision_reason="plan mode", decision_reason_type="mode"
        )
        assert translate(frame, translator=translator) == []
    results = [
        {"type": "tool_result", "tool_use_id": name, "is_error": True, "content": "no"} for name in ("ours", "its")
    ]
    done = translate({"type": "user", "message": {"content": results}}, translator=translator)
    said = [
        (e.tool_call_finished.outcome, e.tool_call_finished.denial_reason, e.tool_call_finished.denied_by) for e in done
    ]
    assert said == [(Outcome.OUTCOME_DENIED, "ask first", "approval"), (Outcome.OUTCOME_DENIED, "plan mode", "mode")]


def test_only_agents_and_workflows_are_waited_for():
    translator = Translator()
    kinds = {"a": "local_agent", "w": "local_workflow", "b": "local_bash", "m": "monitor_mcp"}
    for task_id, kind in kinds.items():
        translate(one("task_started", task_id=task_id, task_type=kind, tool_use_id=task_id), translator=translator)
    hidden = one("task_started", task_id="h", task_type="local_agent", ambient=True)
    assert translate(hidden, one("task_notification", task_id="h", status="completed"), translator=translator) == []
    assert translator.active_subtasks == {"a", "w"}
    assert translator.parent_of("a") == "a"
    translator.reset_process()
    assert translator.active_subtasks == set()
    assert translator.parent_of("a") == ""


def test_a_subtask_ends_once_even_when_its_report_is_missing_or_late():
    translator = Translator()
    start = one("task_started", task_id="a", task_type="local_agent", tool_use_id="t", is_backgrounded=True)
    killed = one("task_updated", task_id="a", patch={"status": "killed"})
    gone = one("background_tasks_changed", tasks=[])
    report = one("task_notification", task_id="a", status="stopped")
    items = translate(start, killed, gone, report, gone, translator=translator)
    assert [item.WhichOneof("payload") for item in items] == ["subtask_started", "subtask_ended"]
    assert translator.active_subtasks == set()


def test_a_subtask_that_moves_to_the_background_says_so_and_stays_there():
    moved = translate(
        one("task_started", task_id="a", task_type="local_agent", is_backgrounded=False),
        one("task_updated", task_id="a", patch={"is_backgrounded": True}),
        one("task_updated", task_id="a", patch={"status": "paused"}),
        one("task_updated", task_id="a", patch={"description": "x"}),
    )[1:]
    assert [(e.subtask_updated.status, e.subtask_updated.background) for e in moved] == [
        ("running", True),
        ("paused", True),
    ]


def test_a_refused_answer_is_struck_out_and_the_model_changes():
    frame = one("model_refusal_fallback", trigger="refusal", original_model="a", fallback_model="b",
                retracted_message_uuids=["u1", "u2"])  # fmt: skip
    retracted, changed = translate(frame)
    assert list(retracted.messages_retracted.transcript_uuids) == ["u1", "u2"]
    assert (changed.model_changed.previous_model, changed.model_changed.model, changed.model_changed.reason) == (
        "a", "b", "refusal",
    )  # fmt: skip
    (only,) = translate({**frame, "scope": "local"})
    assert only.HasField("messages_retracted")


def test_a_reset_conversation_has_a_new_id():
    (event,) = translate({"type": "conversation_reset", "new_conversation_id": "new", "session_id": "old"})
    assert event.conversation_reset.claude_session_id == "new"


def test_a_subagents_retry_belongs_to_the_subagent():
    retry = {"agent_id": "a", "attempt": 2, "max_retries": 10, "retry_delay_ms": 500, "error_status": 529,
             "error_category": "overloaded"}  # fmt: skip
    translator = Translator()
    translator.call_started("t", clock.utcnow())
    frame = {"type": "tool_progress", "tool_use_id": "t", "tool_name": "Agent", "subagent_retry": retry}
    (event,) = translate(frame, translator=translator)
    assert (event.parent_tool_use_id, event.model_call_retried.attempt) == ("t", 2)
    assert event.model_call_retried.error == "overloaded"


def test_an_input_that_was_cut_is_taken_from_the_finished_block():
    translator = Translator()

    def stream(**event):
        return {"type": "stream_event", "event": event}

    block = {"type": "tool_use", "id": "t", "name": "N", "input": {}}
    *_, event = translate(
        stream(type="message_start", message={"id": "m"}),
        stream(type="content_block_start", index=0, content_block=block),
        stream(type="content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a": '}),
        {"type": "assistant", "message": {"id": "m", "content": [{**block, "input": {"a": 1}}]}},
        translator=translator,
    )
    assert json.loads(event.assistant_message.blocks[0].tool_use.input_json) == {"a": 1}


def test_paths_of_the_worker_are_hidden_in_raw_frames_and_notices_but_not_in_what_tools_say():
    translator = Translator(host_paths=["/data/sessions/1"])
    frame = {"type": "new", "inner": [{"cwd": "/x/secret", "say": "see /data/sessions/1/home"}]}
    notice = one("informational", level="warning", content="cannot read /data/sessions/1/config")
    raw, told = translate(frame, notice, translator=translator)
    assert json.loads(raw.raw_frame.frame_json) == {"type": "new", "inner": [{"say": "see [path]/home"}]}
    assert told.notice.text == "cannot read [path]/config"
    translator.call_started("t", clock.utcnow())
    result = {"type": "tool_result", "tool_use_id": "t", "content": "/data/sessions/1"}
    (done,) = translate({"type": "user", "message": {"content": [result]}}, translator=translator)
    assert done.tool_call_finished.content[0].text.text == "/data/sessions/1"


def test_duration_of_a_call_is_from_its_start():
    translator = Translator()
    translator.call_started("t", clock.utcnow() - timedelta(seconds=5))
    result = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}
    (done,) = translate({"type": "user", "message": {"content": [result]}}, translator=translator)
    assert 5 <= done.tool_call_finished.duration.ToTimedelta().total_seconds() < 10
