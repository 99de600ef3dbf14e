"""What the fake CLI has in common with others stays so."""

import re
from pathlib import Path

import pytest
from claude_agent_sdk import _cli_version, project_key_for_directory

from agentrpc.embedded import scripted_model
from agentrpc.testkit import write_cli
from agentrpc.testkit.fake_cli import script, transcript
from agentrpc.testkit.fake_cli.session import VERSION, Arguments


def documented(module):
    return re.findall(r"^    (\[\[.*?\]\])  ", module.__doc__, re.MULTILINE)


def test_it_claims_to_be_the_pinned_cli():
    assert _cli_version.__cli_version__ == VERSION


def test_the_directives_of_the_scripted_model_are_understood():
    lines = set(documented(scripted_model)) - {"[[cut]]", "[[heard: a word]]"}
    assert lines <= set(documented(script))
    for line in lines:
        assert script.parse(line)


def test_every_directive_that_is_documented_exists():
    turn, _, start = script.__doc__.partition("At the start of the process")
    for line in re.findall(r"^    (\[\[.*?\]\])  ", turn, re.MULTILINE):
        assert script.parse(line)
    for line in re.findall(r"^    (\[\[.*?\]\])  ", start, re.MULTILINE):
        script.parse_start(line)
    assert "tool" in script.parse("[[demo]]")[0].items[1]


@pytest.mark.parametrize("wrong", ["[[cut]]", "[[crash: nowhere]]", "[[tool: Bash {]]", "[[huge: x]]"])
def test_what_is_no_directive_is_refused(wrong):
    with pytest.raises(ValueError, match=r".+"):
        script.parse(wrong)
    with pytest.raises(ValueError, match=r".+"):
        write_cli(Path("/nowhere/cli"), wrong)


@pytest.mark.parametrize("folder", ["/tmp/a b/ü.x", "/" + "long/" * 60 + "z"])
def test_the_transcript_is_where_the_sdk_looks_for_it(folder):
    assert transcript._project(folder) == project_key_for_directory(folder)


def test_the_command_line(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"permissions": {"ask": ["Bash(*)", "Read"]}}')
    given = Arguments(["--verbose", "--model", "m", "--resume=r", "--session-mirror", "--settings", str(file)])
    assert (given.model, given.session_id, given.resume, given.mirror, given.partial) == ("m", "r", "r", True, False)
    assert given.ask == {"Bash", "Read"}
    assert Arguments(["--settings", "{}"]).ask == frozenset()
