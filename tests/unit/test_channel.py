"""The CLI's output: every frame once and in order, whatever else is in it and however it ends."""

import json
import os
import shlex
import signal
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import uvloop
from claude_agent_sdk import ClaudeAgentOptions, ProcessError

from agentrpc.claude import channel
from agentrpc.claude.channel import BrokenFrameError, Channel, frames_of

ROOT = Path(__file__).parent.parent.parent


def delta(number, text="x"):
    return {"type": "stream_event", "event": {"number": number, "text": text}}


def line(frame):
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False) + "\n"


class Output:
    """What a CLI has written: `messages` are those that the SDK gets, `error` is how it ended."""

    def __init__(self):
        self.messages = []
        self.error = None

    @property
    def frames(self):
        return [frame for message in self.messages for frame in frames_of(message)]


@pytest.fixture
def cli(tmp_path):
    """Run a shell script in place of the CLI, in the worker's kind of loop; `$OUTPUT` holds what is given."""

    def run(script="cat $OUTPUT", written="", limit=1024 * 1024, slow=0.0):
        (tmp_path / "output").write_text(written)
        path = tmp_path / "cli"
        found = Output()

        async def read():
            given = shlex.quote(str(tmp_path / "output"))
            path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nOUTPUT={given}\n{script}\n")
            path.chmod(0o700)
            agent = Channel(ClaudeAgentOptions(cli_path=path, max_buffer_size=limit))
            await agent.connect()
            try:
                async for message in agent.read_messages():
                    found.messages.append(message)
                    time.sleep(slow)  # noqa: ASYNC251 - nothing is read meanwhile, that is the point
            except (BrokenFrameError, ProcessError) as error:
                found.error = error
            finally:
                await agent.close()

        uvloop.run(read())
        return found

    return run


def test_frames_keep_their_order_and_only_passed_on_ones_travel_together(cli):
    others = [
        {"type": "control_request", "request_id": "1", "request": {"subtype": "can_use_tool"}},
        {"type": "transcript_mirror", "filePath": "f", "entries": []},
        {"type": "result", "subtype": "success"},
    ]
    written = []
    for number in range(2000):
        written.append(delta(number))
        if number % 100 == 50:
            written.append({"type": "system", "subtype": "thinking_tokens", "tokens": number})
        if number % 300 == 299:
            written += others
    found = cli(written="".join(map(line, written)))
    assert found.error is None
    assert found.frames == written
    alone = [message for message in found.messages if "lines" not in message]
    assert alone == [frame for frame in written if frame in others]
    assert len(found.messages) < len(written) / 5


def test_a_type_that_is_not_first_makes_no_difference(cli):
    frame = {"event": {}, "type": "stream_event"}
    assert cli(written=line(delta(1)) + line(frame) + line(delta(2))).frames == [delta(1), frame, delta(2)]


@pytest.mark.parametrize("kind", ["stream_event", "assistant"])
def test_lines_longer_than_what_is_read_at_once(cli, kind):
    written = [delta(1), {"type": kind, "text": "ä€𝄞 \u2028" * 200_000}, delta(2)]
    assert cli(written="".join(map(line, written)), limit=16 * 1024 * 1024).frames == written


def test_what_is_no_frame_is_skipped(cli):
    written = f"[SandboxDebug] x\n\n{line(delta(1))}warning: y\n  \r\n{line({'type': 'result'})}"
    assert cli(written=written).frames == [delta(1), {"type": "result"}]


@pytest.mark.parametrize("stray", ["{ debug: true }", "{\n  a: 1,\n}", "{}", '{"debug":true}', '{"type":7}', "{"])
def test_what_parts_of_the_cli_print_costs_no_frame(cli, stray, capsys):
    found = cli(written=line(delta(1)) + f"{stray}\n" * 3 + line({"type": "result"}))
    assert found.error is None
    assert found.frames == [delta(1), {"type": "result"}]
    said = capsys.readouterr().out
    assert said.count("agent_stray_output") == 2
    assert f"lines={3 * len(stray.splitlines())}" in said


def test_a_broken_frame_ends_the_output_after_those_before_it(cli):
    found = cli(written=line({"type": "user"}) + '{"type":\n' + line({"type": "result"}))
    assert found.frames == [{"type": "user"}]
    assert isinstance(found.error, BrokenFrameError)
    batch = cli(written=line(delta(1)) + '{"type":"stream_event",\n')
    with pytest.raises(BrokenFrameError):
        _ = batch.frames


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_has_a_limit(cli, end):
    written = line(delta(1, "x" * 90_000))
    assert cli(written=written, limit=100_000).frames == [delta(1, "x" * 90_000)]
    found = cli(written=line(delta(1)) * 2 + '{"type":"assistant","text":"' + "x" * 200_000 + end, limit=100_000)
    assert isinstance(found.error, BrokenFrameError)


def test_last_words_come_though_the_reader_is_behind(cli, monkeypatch):
    monkeypatch.setattr(channel, "_LAST_WORDS", 0.02)
    written = [{"type": "user", "number": number, "text": "x" * 5000} for number in range(60)]
    found = cli(written="".join(map(line, written)), slow=0.005)
    assert found.error is None
    assert found.frames == written


def test_the_last_frame_needs_no_end_of_line_but_has_to_be_whole(cli):
    assert cli(written=line(delta(1)) + line(delta(2)).strip()).frames == [delta(1), delta(2)]
    assert cli(written=line(delta(1)) + '{"type":"stream_ev').frames == [delta(1)]


def test_a_child_that_holds_the_output_open_does_not_keep_it_from_ending(cli, monkeypatch):
    monkeypatch.setattr(channel, "_LAST_WORDS", 0.1)
    began = time.monotonic()
    found = cli('sleep 60 &\necho "{\\"type\\":\\"system\\",\\"pid\\":$!}"\ncat $OUTPUT; exit 3', line(delta(1)))
    os.kill(found.frames[0]["pid"], signal.SIGKILL)
    assert time.monotonic() - began < 10
    assert found.frames[1:] == [delta(1)]
    assert isinstance(found.error, ProcessError)
    assert found.error.exit_code == 3


@pytest.mark.parametrize(("end", "code"), [("exit 7", 7), ("kill -9 $$", -9)])
def test_the_status_comes_after_all_frames(cli, end, code):
    found = cli(f"cat $OUTPUT\n{end}", "".join(line(delta(number)) for number in range(1000)))
    assert len(found.frames) == 1000
    assert isinstance(found.error, ProcessError)
    assert found.error.exit_code == code


def test_the_sdk_is_the_one_that_this_was_written_for():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"claude-agent-sdk=={version('claude-agent-sdk')}" in dependencies
