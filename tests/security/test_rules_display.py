"""People decide on the whole of what is asked, as it is: no part hidden, none that the terminal obeys."""

import io
import json

import pytest
from rich.console import Console

from agentrpc.cli.approvals import print_question
from agentrpc.cli.terminal import print_lines, shown
from agentrpc.v1 import approval_pb2


def printed(given, *, width=60, rules=(), **more):
    out = io.StringIO()
    approval = approval_pb2.Approval(
        name="sessions/s/approvals/a", title="Claude wants to run: x", reason="no rule allows it", session_rules=rules,
        input_json=given if isinstance(given, str) else json.dumps(given), **more,
    )  # fmt: skip
    print_question(Console(file=out, width=width, force_terminal=True, color_system=None), approval)
    return out.getvalue()


def test_the_end_of_a_long_command_is_seen():
    command = f"echo {'a' * 500} ; touch TAIL"
    assert f"  command: {command}\n" in printed({"command": command})


def test_all_that_would_be_written_is_seen():
    text = printed({"file_path": "a.sh", "content": "rm -rf build\n\n  x\n"})
    assert "content: 3 lines\n  │ rm -rf build⏎\n  │ ⏎\n  │   x⏎\n" in text
    assert "  │ b\n" in printed({"content": "a\nb"})


def test_a_second_line_is_seen_as_one_with_the_rules_that_would_be_added():
    text = printed({"command": "ls # list\ntouch a"}, rules=["Bash(ls)", "Bash(touch a)"])
    assert "command: 2 lines\n  │ ls # list⏎\n  │ touch a\n" in text
    assert "  for the session it would add Bash(ls)\n  for the session it would add Bash(touch a)\n" in text


@pytest.mark.parametrize(
    "text", ["sed 's/[/]/_/g' x", "rm -rf [a-c]*.txt", "[wip] :smile: [/red]", "a\\[b]", "  two  blanks "]
)
def test_brackets_and_blanks_are_what_they_are(text):
    assert f"  command: {text}\n" in printed({"command": text})
    assert f"│ {text}" in printed({"command": f"{text}\nx"})


@pytest.mark.parametrize(
    ("letter", "code"),
    [("\x1b", "\\x1b"), ("\r", "\\x0d"), ("\x08", "\\x08"), ("\x9b", "\\x9b"), ("\u202e", "\\u202e"), ("\u2066", "\\u2066"),
     ("\u200b", "\\u200b"), ("\u2028", "\\u2028"), ("\xa0", "\\xa0"), ("\ufeff", "\\ufeff"), ("\U000e0041", "\\U000e0041")],
)  # fmt: skip
def test_what_cannot_be_seen_is_seen_as_a_code(letter, code):
    for given in ({"command": f"a{letter}b"}, {"command": f"a{letter}b\nc"}, {f"a{letter}b": 1}):
        text = printed(given)
        assert letter not in text
        assert f"a{code}b" in text
    assert letter not in printed({"nested": [f"a{letter}b"]})
    assert shown(f"a{letter}b").plain == f"a{code}b"


def test_letters_of_all_scripts_stay_as_they_are():
    assert "naïve 日本語 שלום 👍" in printed({"command": "naïve 日本語 שלום 👍"}, width=200)


def test_an_input_that_is_too_large_or_none_is_said_to_be_so():
    assert "has 300000 bytes" in printed("", omitted={"total_bytes": 300000, "sha256": "x"})
    assert "not json [/]" in printed("not json [/]")
    assert "[1, 2]" in printed("[1, 2]")


def test_lines_end_at_line_feeds_alone():
    out = io.StringIO()
    print_lines(Console(file=out, width=20, color_system=None), "a\x0bb\x85c d\n")
    assert out.getvalue() == "  │ a\\x0bb\\x85c d⏎\n"
