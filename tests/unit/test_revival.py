"""Stored conversations, as the real CLI has written them, made ready for a new process."""

import json
import random
from pathlib import Path

import pytest

from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.revival import CallResult, Conversation, UnknownTranscriptFormat
from agentrpc.claude.transcripts import encode_entry
from tests.work.recording import SCENARIOS, golden_lines

SESSION = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def paths(tmp_path):
    return SessionPaths(root=tmp_path / "session", workspace=Path("/workspace"))


@pytest.fixture
def written(paths):
    """Writes a conversation and reads back what the CLI finds: bytes by file name."""

    def write(conversation, carry=None):
        conversation.write(paths, SESSION, carry=carry)
        [folder] = (paths.config / "projects").iterdir()
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return write


def main_of(files):
    return [json.loads(line) for line in files[f"{SESSION}.jsonl"].splitlines()]


def assert_chained(entries):
    """Every parent stands before its child."""
    known = {None}
    for entry in entries:
        if "uuid" in entry:
            assert entry["parentUuid"] in known, entry
            known.add(entry["uuid"])


def upto(lines, wanted, times=1):
    """The lines to the one that has `wanted` for so manyth time."""
    at = [index for index, (_, line) in enumerate(lines) if wanted in line][times - 1]
    return lines[: at + 1]


CALL = b'"type":"tool_use"'
RESULT = b'"type":"tool_result"'


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_conversation_is_written_to_the_byte_as_it_was(name, written):
    lines = golden_lines(name)
    files = written(Conversation(lines))
    assert files[f"{SESSION}.jsonl"].splitlines() == [line for subpath, line in lines if not subpath]


def test_what_json_can_only_escape_stays_escaped(written):
    lines = golden_lines("tools")
    files = written(Conversation(lines))
    assert b"\\ud83d \\u0000 \xc3\xbc" in files[f"{SESSION}.jsonl"]
    files[f"{SESSION}.jsonl"].decode()


def test_a_subagent_has_its_conversation_and_its_metadata(written):
    lines = golden_lines("subagent")
    [subpath] = {subpath for subpath, _ in lines if subpath}
    files = written(Conversation(lines))
    stored = [line for path, line in lines if path]
    assert json.loads(files[f"{SESSION}/{subpath}.meta.json"])["agentType"] == "general-purpose"
    kept = files[f"{SESSION}/{subpath}.jsonl"].splitlines()
    assert kept == [line for line in stored if b'"agent_metadata"' not in line]
    inner = next(json.loads(line) for line in kept if CALL in line)["message"]["content"][0]["id"]
    assert not Conversation(lines).result_of(inner).is_error


def test_calls_without_a_result_are_found_in_order():
    lines = golden_lines("killed")
    calls = Conversation(lines).open_calls
    assert [(call.tool_name, call.input["command"]) for call in calls] == [
        ("Bash", "echo > began; sleep 60"), ("Bash", "echo after"),
    ]  # fmt: skip
    assert [len(Conversation(upto(lines, CALL, n)).open_calls) for n in (1, 2)] == [1, 2]


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"killed"}))
def test_calls_with_a_result_are_not_open(name):
    assert Conversation(golden_lines(name)).open_calls == []


def test_of_two_parallel_calls_the_one_without_a_result_is_open(written):
    lines = upto(golden_lines("tools"), RESULT, 2)
    conversation = Conversation(lines)
    [left] = conversation.open_calls
    assert left.input["command"] in {"echo two", "echo three"}
    entries = main_of(written(conversation, carry=left))
    assert_chained(entries)
    assert entries[-1]["attachment"]["toolUseID"] == left.tool_use_id
    assert entries[-1]["parentUuid"] == entries[-2]["uuid"]
    assert entries[-2]["type"] == "user"


def test_results_are_told():
    conversation = Conversation(golden_lines("tools"))
    results = {}
    for _, line in golden_lines("tools"):
        for block in blocks(json.loads(line), "tool_use"):
            results[block["input"].get("command", block["name"])] = conversation.result_of(block["id"])
    assert results["echo one"] == CallResult(results["echo one"].tool_use_id, "one", is_error=False)
    assert results["exit 3"].is_error
    assert results["Write"].is_error
    assert "not today" in results["Write"].text
    assert conversation.result_of("toolu_other") is None


def blocks(entry, kind):
    content = entry.get("message", {}).get("content")
    return [block for block in content if block["type"] == kind] if isinstance(content, list) else []


def test_settled_calls_have_results_that_the_store_gets_too(written):
    lines = golden_lines("killed")
    conversation = Conversation(lines)
    first, second = conversation.open_calls
    new = conversation.settle(
        [CallResult(first.tool_use_id, "half \ud83d"), CallResult(second.tool_use_id, "b", is_error=False)]
    )
    assert conversation.open_calls == []
    assert conversation.result_of(first.tool_use_id) == CallResult(first.tool_use_id, "half \ud83d")
    files = written(conversation)
    assert files[f"{SESSION}.jsonl"].splitlines()[-2:] == new
    assert_chained(main_of(files))
    again = Conversation([*lines, *(("", line) for line in new)])
    assert again.open_calls == []
    assert not again.result_of(second.tool_use_id).is_error
    asked = {block["id"]: entry["uuid"] for entry in main_of(files) for block in blocks(entry, "tool_use")}
    for line, call in zip(new, (first, second), strict=True):
        entry = json.loads(line)
        assert entry["parentUuid"] == entry["sourceToolAssistantUUID"] == asked[call.tool_use_id]
        assert {"cwd", "version", "sessionId", "isSidechain"} <= entry.keys()


@pytest.mark.parametrize("at", [0, 1])
def test_one_of_several_calls_is_carried_and_the_others_wait(at, written):
    conversation = Conversation(golden_lines("killed"))
    carried, other = conversation.open_calls[at], conversation.open_calls[1 - at]
    entries = main_of(written(conversation, carry=carried))
    assert_chained(entries)
    assert [block["id"] for entry in entries for block in blocks(entry, "tool_use")] == [carried.tool_use_id]
    assert entries[-1]["attachment"]["type"] == "hook_deferred_tool"
    assert entries[-1]["attachment"]["toolInput"] == carried.input
    assert entries[-1]["parentUuid"] == entries[-2]["uuid"]
    assert other.tool_use_id in {call.tool_use_id for call in conversation.open_calls}
    # The other one is not lost: it comes when it is its turn.
    conversation.settle([CallResult(carried.tool_use_id, "done", is_error=False)])
    assert conversation.open_calls == [other]
    later = main_of(written(conversation, carry=other))
    assert_chained(later)
    assert len([block for entry in later for block in blocks(entry, "tool_use")]) == 2
    assert later[-1]["attachment"]["toolUseID"] == other.tool_use_id


def test_absorbed_messages_are_known():
    lines = golden_lines("steered")
    [absorbed] = [json.loads(line)["attachment"] for _, line in lines if b'"queued_command"' in line]
    assert absorbed["source_uuid"] in Conversation(lines)
    assert "other" not in Conversation(lines)


def test_an_interrupted_turn_leaves_no_call_open(written):
    lines = golden_lines("interrupted")
    conversation = Conversation(upto(lines, b"[Request interrupted by user"))
    assert conversation.open_calls == []
    # Also when its result was lost, a message that follows ends the wait for it.
    without = [(path, line) for path, line in lines if RESULT not in line]
    conversation = Conversation(without)
    assert conversation.open_calls == []
    assert_chained(main_of(written(conversation)))


def test_a_rewound_conversation(written):
    lines = golden_lines("text")
    prompts = [index for index, (_, line) in enumerate(lines) if b'"type":"user"' in line]
    earlier = Conversation(lines[: prompts[1]])
    assert earlier
    assert_chained(main_of(written(earlier)))
    # To the first message: of notes alone the CLI cannot resume, and nothing is left where it looks.
    empty = Conversation(lines[: prompts[0]])
    assert not empty
    assert written(empty) == {}


def test_what_a_lost_process_has_left_goes(written, paths):
    files = written(Conversation(golden_lines("subagent")))
    assert len(files) == 3
    assert set(written(Conversation(golden_lines("text")))) == {f"{SESSION}.jsonl"}


def test_the_conversation_after_a_compaction_stands_alone(written):
    entries = main_of(written(Conversation(golden_lines("compacted"))))
    assert_chained(entries)
    [boundary] = [entry for entry in entries if entry.get("subtype") == "compact_boundary"]
    assert boundary["parentUuid"] is None


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_prefix_is_a_conversation_without_breaks(name, written):
    """A worker may be lost between any two lines."""
    lines = golden_lines(name)
    for end in range(len(lines) + 1):
        conversation = Conversation(lines[:end])
        if not conversation:
            continue
        assert_chained(main_of(written(conversation)))
        for call in conversation.open_calls:
            entries = main_of(written(conversation, carry=call))
            assert_chained(entries)
            assert entries[-1]["attachment"]["toolUseID"] == call.tool_use_id
        conversation.settle([CallResult(call.tool_use_id, "lost") for call in conversation.open_calls])
        entries = main_of(written(conversation))
        assert_chained(entries)
        asked = {block["id"] for entry in entries for block in blocks(entry, "tool_use")}
        answered = {block["tool_use_id"] for entry in entries for block in blocks(entry, "tool_result")}
        assert answered <= asked
        assert not Conversation([("", encode_entry(entry)) for entry in entries]).open_calls


@pytest.mark.parametrize("seed", range(20))
def test_lost_lines_leave_no_breaks(seed, written):
    """Parents that were never stored are replaced by what stands before."""
    choose = random.Random(seed)
    lines = golden_lines(choose.choice([*SCENARIOS]))
    kept = [line for line in lines if line[0] or choose.random() > 0.2]
    conversation = Conversation(kept)
    if conversation:
        calls = conversation.open_calls
        assert_chained(main_of(written(conversation, carry=choose.choice(calls) if calls else None)))


USER = {"type": "user", "uuid": "u", "parentUuid": None, "message": {"role": "user", "content": "x"}}


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b'"user"', b"7", b"{}", b'{"type":7}', b"\xff", b"[" * 100_000,
        {**USER, "uuid": 7}, {**USER, "uuid": ["u"]}, {**USER, "parentUuid": {}}, {**USER, "message": "x"},
        {**USER, "message": {}}, {**USER, "message": {"content": {}}}, {"type": "user", "message": USER["message"]},
        {**USER, "type": "turn"},
        {**USER, "message": {"content": [{"text": "no type"}]}},
        {**USER, "message": {"content": [{"type": "tool_result", "content": "x"}]}},
        {**USER, "message": {"content": [{"type": "text", "text": 7}]}},
        {**USER, "type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Bash", "input": {}}]}},
        {**USER, "type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t", "name": ["Bash"]}]}},
        {**USER, "type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t", "name": "a", "input": "x"}]}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("subpath", ["", "subagents/agent-1"])
def test_an_unknown_format_is_refused(line, subpath):
    with pytest.raises(UnknownTranscriptFormat):
        Conversation([(subpath, line if isinstance(line, bytes) else encode_entry(line))])


def test_notes_and_blocks_of_unknown_types_are_handed_on(written):
    lines = [
        ("", encode_entry(USER)),
        ("", b'{"type":"new-note","about":{"x":[1,2]}}'),
        (
            "",
            encode_entry(
                {**USER, "uuid": "v", "message": {"content": [{"type": "new", "x": 1}, {"type": "text", "text": "y"}]}}
            ),
        ),
    ]
    assert written(Conversation(lines))[f"{SESSION}.jsonl"].splitlines() == [line for _, line in lines]


@pytest.mark.parametrize("subpath", ["../other", "../../other", "/etc/other", "a/../../other", f"../{SESSION}", "a\0b"])
def test_no_subpath_leads_into_another_conversation(subpath, paths):
    conversation = Conversation([("", encode_entry(USER)), (subpath, encode_entry(USER))])
    with pytest.raises(UnknownTranscriptFormat):
        conversation.write(paths, SESSION)


def test_what_the_conversation_refers_to_stays_and_what_a_lost_process_has_left_goes(paths, written):
    written(Conversation(golden_lines("text")))
    [project] = (paths.config / "projects").iterdir()
    kept = project / SESSION / "tool-results" / "toolu_1.txt"
    lost = project / SESSION / "subagents" / "agent-a.jsonl"
    for path in (kept, lost):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    written(Conversation(golden_lines("text")))
    assert kept.exists()
    assert not lost.exists()


def test_messages_that_were_said_together_are_all_known():
    entry = {
        "type": "user", "uuid": "last", "parentUuid": None, "mergedSendUuids": ["first", "last"],
        "message": {"role": "user", "content": "x"},
    }  # fmt: skip
    conversation = Conversation([("", encode_entry(entry))])
    assert "first" in conversation
    assert "last" in conversation
