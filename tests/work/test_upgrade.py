"""What has to hold with every new CLI: `scripts/upgrade-cli` runs this against it.

Sessions of older CLIs go on, those of newer ones are left alone, a hook that fails blocks, a call that was put off is
carried out once, and what the CLI would allow by itself is asked about all the same.
"""

import json

import psutil
import pytest
from claude_agent_sdk._cli_version import __cli_version__

from agentrpc import clock
from agentrpc.claude.revival import Conversation
from agentrpc.claude.translation import Translator, TurnEnded
from agentrpc.claude.version import cli_version
from agentrpc.domain.gate import Verdict
from agentrpc.store.housekeeping import has_waiting
from agentrpc.store.leases import claim_next, declare_dead, register_worker
from agentrpc.store.tables import Session
from agentrpc.v1 import event_pb2
from tests.work.recording import RECORDED, SCENARIOS, ListeningModel, Recorder, bash, golden, golden_lines

OLDER = sorted(folder.name for folder in golden().parent.iterdir() if folder.name != __cli_version__)
PARTS = tuple(map(int, __cli_version__.split(".")))


# ---- Conversations of older versions ----


def first_prompt(lines):
    entries = [json.loads(line) for subpath, line in lines if not subpath]
    return next(entry["message"]["content"] for entry in entries if entry["type"] == "user")


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("version", OLDER)
async def test_a_session_of_an_older_cli_goes_on(version, name, tmp_path):
    stored = golden_lines(name, version)
    conversation = Conversation(stored)
    assert conversation
    async with ListeningModel() as model, Recorder(tmp_path, model.url, stored=stored) as live:
        result = await live.say("[[text: and on]]")
    assert (result["subtype"], result["result"]) == ("success", "and on")
    said = json.dumps(model.asked["messages"])
    if name == "compacted":
        assert "This session is being continued from a previous conversation" in said
    else:
        assert json.dumps(first_prompt(stored))[1:-1] in said
    # What it adds is of the new version, and follows what there was.
    added = [json.loads(line) for _, line in live.lines]
    assert {entry["version"] for entry in added if "version" in entry} == {__cli_version__}
    assert Conversation([*stored, *live.lines]).open_calls == []


@pytest.mark.parametrize("version", [*OLDER, __cli_version__])
async def test_a_call_that_was_put_off_is_carried_out_once(version, tmp_path):
    """Also one of an older CLI; and nothing else of its message."""
    stored = [
        (subpath, line.replace(b"echo > began; sleep 60", b"echo ran >> witness; cat witness"))
        for subpath, line in golden_lines("killed", version)
    ]
    call, other = Conversation(stored).open_calls
    async with ListeningModel() as model, Recorder(tmp_path, model.url, stored=stored, carry=call) as live:
        await live.result()
        ran = (live.paths.workspace / "witness").read_text()
    assert ran == "ran\n"
    assert [each.tool_use_id for each in live.judged] == [call.tool_use_id]
    found = Conversation([*stored, *live.lines]).result_of(call.tool_use_id)
    assert (found.text, found.is_error) == ("ran", False)
    assert other.tool_use_id not in json.dumps(model.asked["messages"])


# ---- Whose sessions a worker takes ----


@pytest.fixture
async def worker(database):
    worker_id = clock.uuid7()
    await register_worker(database, worker_id, host="h", pid=1, version="0", ttl=300)
    return worker_id


@pytest.fixture
def written_by(database, add_session):
    """A session with a run that waits, and with a transcript of this CLI."""

    async def add(version):
        session_id = await add_session(queued=1)
        async with database.transaction() as tx:
            (await tx.get_one(Session, session_id)).agent_version = version
        return session_id

    return add


async def claim(database, worker, cli):
    return await claim_next(database, worker, may_take_new=True, cli=cli, begin=lambda *_: [])


@pytest.mark.parametrize(
    ("version", "cli", "takes"),
    [
        (None, (2, 1, 329), True),
        ("2.1.329", (2, 1, 332), True),
        ("2.1.332", (2, 1, 332), True),
        ("2.1.332", (2, 1, 329), False),
        ("2.1.1000", (2, 1, 332), False),
        ("2.1.99", (2, 1, 332), True),
        ("3.0", (2, 1, 332), False),
        ("2.2", (10, 0, 1), True),
        # A worker whose CLI does not tell its version takes what no CLI has written in.
        (None, (), True),
        ("2.1.329", (), False),
        # What is no version was not told by a CLI, and stops nobody.
        ("two'); --", (2, 1, 332), True),
        ("9999999999.1", (2, 1, 332), True),
    ],
)
async def test_an_older_cli_takes_nothing_of_a_newer_one(database, worker, written_by, version, cli, takes):
    session_id = await written_by(version)
    assert await has_waiting(database, worker, cli) == takes
    taken = await claim(database, worker, cli)
    assert (taken is not None) == takes
    if not takes:
        assert (await claim(database, worker, (99,))).session.id == session_id


async def test_nor_when_its_worker_is_lost_or_gives_it_up(database, worker, written_by):
    session_id = await written_by(None)
    assert await claim(database, worker, PARTS)
    async with database.transaction() as tx:
        (await tx.get_one(Session, session_id)).agent_version = __cli_version__
    await declare_dead(database, [worker])
    old, new = clock.uuid7(), clock.uuid7()
    for each in (old, new):
        await register_worker(database, each, host="h", pid=1, version="0", ttl=300)
    before = (*PARTS[:-1], PARTS[-1] - 1)
    assert not await has_waiting(database, old, before)
    assert await claim(database, old, before) is None
    assert (await claim(database, new, PARTS)).session.id == session_id


async def test_one_session_of_a_newer_cli_does_not_hold_up_the_others(database, worker, written_by):
    await written_by("99.0.0")
    other = await written_by("2.1.329")
    assert (await claim(database, worker, PARTS)).session.id == other


def test_a_cli_tells_its_version(tmp_path):
    assert cli_version(None) == PARTS
    assert cli_version(tmp_path / "missing") == ()
    for text, version in [("9.8.7 (Claude Code)", (9, 8, 7)), ("unknown", ()), ("", ()), ("1.x", ()), ("1..2", ())]:
        cli = tmp_path / "cli"
        cli.write_text(f"#!/bin/sh\necho '{text}'\n")
        cli.chmod(0o755)
        assert cli_version(cli) == version


# ---- Defaults ----


async def test_a_hook_that_fails_blocks(tmp_path):
    async def fails(_):
        raise RuntimeError("the gate is broken")

    async with ListeningModel() as model, Recorder(tmp_path, model.url) as live:
        live.gate = dict.fromkeys(("Bash", "Write", "Read"), fails)
        write = f"[[tool: Write {json.dumps({'file_path': str(live.paths.workspace / 'file'), 'content': 'x'})}]]"
        await live.say(f"{bash('touch witness')}\n{write}\n[[then]]\n[[text: done]]")
        assert list(live.paths.workspace.iterdir()) == []
    assert {call.tool_name for call in live.judged} == {"Bash", "Write"}


async def test_the_gate_is_asked_about_what_the_cli_would_allow_by_itself(tmp_path):
    """Reading, harmless commands, its own notes: nothing is carried out that the gate has not judged."""
    async with ListeningModel() as model, Recorder(tmp_path, model.url) as live:
        (live.paths.workspace / "file").write_text("secret of the file")
        live.gate = dict.fromkeys(("Bash", "Read", "Agent", "TaskStop"), Verdict(allow=False, message="not today"))
        read = f"[[tool: Read {json.dumps({'file_path': str(live.paths.workspace / 'file')})}]]"
        await live.say(f"{bash('cat file')}\n{bash('pwd')}\n{read}\n[[then]]\n[[text: done]]")
    assert [call.tool_name for call in live.judged] == ["Bash", "Bash", "Read"]
    assert "secret of the file" not in json.dumps(model.asked["messages"])
    assert json.dumps(model.asked["messages"]).count("not today") == 3
    init = next(frame for frame in live.frames if frame.get("subtype") == "init")
    assert init["permissionMode"] == "default"
    assert not init.get("sandbox_enabled")


async def test_what_has_had_other_defaults_is_set(tmp_path):
    async with ListeningModel() as model, Recorder(tmp_path, model.url) as live:
        await live.say("[[text: hello]]")
        processes = psutil.Process(live.pid).children(recursive=True)
        cli = next(each for each in processes if "--settings" in each.cmdline() and "--args" not in each.cmdline())
        command, environment = cli.cmdline(), cli.environ()
    for name, value in {
        "CLAUDE_CODE_DISABLE_DEFERRED_TOOL_RESUME": "0",
        "CLAUDE_CODE_DISABLE_RESPONSE_COMPRESSION": "1",
        "CLAUDE_CODE_MAX_CONCURRENT_SUBAGENTS": "20",
        "CLAUDE_CODE_MAX_SUBAGENT_SPAWN_DEPTH": "3",
    }.items():
        assert environment.get(name) == value
    assert command[command.index("--permission-mode") + 1] == "default"
    assert json.loads(command[command.index("--settings") + 1]) == {
        "sandbox": {"enabled": False, "autoAllowBashIfSandboxed": False},
        "skipWebFetchPreflight": True,
        "permissions": {"defaultMode": "default", "ask": []},
    }


# ---- Frames ----


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("version", [*OLDER, __cli_version__])
def test_every_frame_is_known(version, name):
    translator = Translator()
    frames = [json.loads(line) for line in (RECORDED / version / f"{name}.jsonl").read_bytes().splitlines()]
    items = [item for frame in frames for item in translator.translate(frame)]
    assert not [item for item in items if isinstance(item, event_pb2.Event) and item.HasField("raw_frame")]
    assert sum(isinstance(item, TurnEnded) for item in items) == sum(frame["type"] == "result" for frame in frames)
