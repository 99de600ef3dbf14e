"""The installed CLI writes the transcript that `agentrpc/claude/revival.py` knows."""

import json

import pytest
from claude_agent_sdk._cli_version import __cli_version__

from agentrpc.claude.revival import Conversation
from tests.work.recording import SCENARIOS, Shapes, golden, record

# What `revival.py` reads, by paths as in shapes.json. What else an entry has it hands on as it is.
RELIED = frozenset({
    "type", "uuid", "parentUuid", "isSidechain", "isMeta", "userType", "entrypoint", "cwd", "sessionId", "version",
    "message", "message.id", "message.content", "message.content[text].text",
    "message.content[tool_use].id", "message.content[tool_use].name", "message.content[tool_use].input",
    "message.content[tool_result].tool_use_id", "message.content[tool_result].content",
    "message.content[tool_result].is_error", "attachment", "attachment.type", "attachment.source_uuid",
})  # fmt: skip
ADVICE = f"""
CLI {__cli_version__} writes another transcript than the golden files of {golden().name} say:
  {{}}
What to do when the CLI was upgraded: read `revival.py` with this in mind (how open calls are found, what `_parse`
refuses, what `_ending` writes for a call that is carried), mend it, record the golden files with
`python -m tests.work.recording`, remove those of the old version, read the difference of shapes.json, and run
tests/unit/test_revival.py, tests/e2e/test_recovery.py and tests/e2e/test_takeover.py."""


def differences(known, told):
    """Where a recording is not as it is known, as far as it matters."""
    types = {kind.rpartition("'s ")[2].split()[0] for kind in known}
    found = []
    for kind, fields in told.items():
        if kind.rpartition("'s ")[2].split()[0] not in types:
            found.append(f"unknown type of entry: {kind}, of {sorted(fields)}")
            continue
        # A new kind of attachment or of system entry is of no matter: its frame is that of the others.
        known_fields = known.get(kind, {})
        for path in sorted(RELIED & (fields.keys() | known_fields.keys())) if known_fields else ():
            was, now = known_fields.get(path, "missing?"), fields.get(path, "missing?")
            less = {*was.rstrip("?").split("|")} >= {*now.rstrip("?").split("|")} or now == "missing?"
            if not less or (now.endswith("?") and not was.endswith("?") and "[" not in path):
                found.append(f"{kind}, {path}: was {was}, is {now}")
    return found


def test_there_are_golden_files_of_the_installed_cli():
    assert golden().name == __cli_version__, ADVICE.format("(there are none of this version)")


@pytest.mark.parametrize("name", SCENARIOS)
async def test_what_the_cli_writes_is_as_it_was(name, tmp_path):
    lines = await record(name, tmp_path)
    known = json.loads((golden() / "shapes.json").read_text())
    found = differences(known, Shapes().add(lines).told())
    assert not found, ADVICE.format("\n  ".join(found))
    assert Conversation(lines), ADVICE.format("no message was found")
    broken = list(breaks(lines))
    assert not broken, ADVICE.format(f"entries whose parent does not stand before them: {broken}")


def breaks(lines):
    """Entries whose parent is not written before them."""
    known = {None}
    for subpath, line in lines:
        entry = json.loads(line)
        if "uuid" in entry:
            if entry["parentUuid"] not in known:
                yield subpath, entry["type"], entry["uuid"]
            known.add(entry["uuid"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"turn": {"type": "text"}}, "unknown type of entry: turn"),
        ({"assistant": {"message.id": "number"}}, "message.id: was text, is number"),
        ({"assistant": {"message.content[tool_use].id": "missing?"}}, None),
        ({"user": {"uuid": "text?"}}, "user, uuid: was text, is text?"),
        ({"user": {"isMeta": "text"}}, "user, isMeta: was missing?, is text"),
        ({"attachment new": {"type": "text"}}, None),
        ({"user": {"more": "text"}}, None),
    ],
)
def test_a_difference_is_told_when_it_matters(changed, said):
    known = json.loads((golden() / "shapes.json").read_text())
    told = {kind: dict(fields) for kind, fields in known.items()}
    for kind, fields in changed.items():
        told.setdefault(kind, {}).update(fields)
    found = differences(known, told)
    assert len(found) == bool(said)
    assert not said or said in found[0]
