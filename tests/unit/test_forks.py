"""A transcript under another id: everything else stays as it was, to the byte."""

from uuid import UUID

import pytest

from agentrpc.claude.forks import fork_transcript

NEW = UUID(int=7)


def line(uuid, kind="user", text="x"):
    return f'{{"type":"{kind}","uuid":"{uuid}","sessionId":"old","message":{{"content":"{text}","sessionId":"old"}}}}'.encode()


def test_only_the_id_of_the_session_changes():
    odd = line("a", text="\\ud800 \\u0000 ü")
    other = b'{"type":"summary", "spaced": 1.0}'
    lines = fork_transcript([("", odd), ("", other)], NEW)
    assert lines == [("", odd.replace(b'"sessionId":"old"', f'"sessionId":"{NEW}"'.encode(), 1)), ("", other)]


def test_it_ends_with_the_message_that_is_named():
    stored = [("", line("a")), ("sub", line("s")), ("", line("b", "assistant")), ("sub", line("t")), ("", line("c"))]
    kept = fork_transcript(stored, NEW, until="b")
    assert [(path, b'"uuid":"%b"' % uuid in text) for (path, text), uuid in zip(kept, (b"a", b"s", b"b"), strict=True)] == [
        ("", True), ("sub", True), ("", True)
    ]  # fmt: skip
    assert fork_transcript(stored, NEW, until="s") is None
    assert fork_transcript([], NEW) == []
    assert fork_transcript([], NEW, until="a") is None


@pytest.mark.parametrize("bad", [b"[]", b"{", b'"x"'])
def test_what_is_no_object_is_refused(bad):
    with pytest.raises(ValueError, match=r"object|Expecting"):
        fork_transcript([("", bad)], NEW)
