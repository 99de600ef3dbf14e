"""The reader of shell text: what it finds, what it is not certain about, which files are opened, what patterns mean."""

import random

import pytest

from agentrpc.domain.shell import MAX_LINE, read_shell
from agentrpc.domain.shell_files import files_of
from agentrpc.domain.shell_rules import allowed_by, denied_by, may_be_denied, session_patterns, warnings_of


def words(line):
    return [[word.text for word in command.words] for command in read_shell(line).commands]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a b | c; d && e &", [["a", "b"], ["c"], ["d"], ["e"]]),
        ("r\\m 'a b'\"c\" $'\\x41\\n'", [["rm", "a bc", "A\n"]]),
        ("x a#b # c\nd", [["x", "a#b"], ["d"]]),
        ("> out a x", [["a", "x"]]),
        ("echo > a b", [["echo", "b"]]),
        ('x=1 a "$b" c$d', [["a", None, None]]),
        ("if a; then b; elif c; then d; else e; fi", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("case x in a|b) c;; *) d;; esac", [["c"], ["d"]]),
        ('a "$(b `c`)" <(d)', [["a", None, None], ["b", None], ["c"], ["d"]]),
        ("a <<'E' | b\n$(c)\nE\nd", [["a"], ["b"], ["d"]]),
        ("a <<E\n$(c)\nE", [["a"], ["c"]]),
        ("a \\\n  b", [["a", "b"]]),
        ("ls *.c ~/x HEAD@{1} {a,b}", [["ls", "*.c", "~/x", "HEAD@{1}", None]]),
        ("# only a comment", []),
        ("", []),
    ],
)
def test_every_simple_command_is_found(line, found):
    assert words(line) == found
    assert read_shell(line).certain


@pytest.mark.parametrize(
    "line",
    [
        "a 'b", "a $(b", "a <<E\nb", "a \x07", "a\rb", "a\u00a0b", "a\u200bb", "a\ufeff", "a" * (MAX_LINE + 1), "(" * 5000,
        "a <<E\n`b`\nE", "${x@P}", "select x in a; do b; done", "a {fd}> b", "a @(b|c)", "x='a[$(b)]'; ((x))", "a \ud800",
    ],
)  # fmt: skip
def test_what_bash_may_read_otherwise_is_not_certain(line):
    script = read_shell(line)
    assert not script.certain
    assert script.why


def test_no_text_makes_the_reader_raise():
    letters = " \n\t;&|<>()'\"\\$`#{}[]!*?~=-aE\u00e9\x00\r"
    pieces = [
        *letters,
        "if ",
        "then ",
        "fi",
        "<<E",
        "$(",
        "${x",
        "((",
        "[[ ",
        " ]]",
        "case x in ",
        "esac",
        "f() {",
        "done",
        "$'",
    ]
    dice = random.Random(11)
    for _ in range(3000):
        line = "".join(dice.choice(pieces) for _ in range(dice.randrange(1, 40)))
        script = read_shell(line)
        denied_by(script, ["rm:*"])
        may_be_denied(script, ["rm:*"])
        allowed_by(script, ["a:*"], may_read=lambda _: True, may_write=lambda _: True)
        session_patterns(script)
        files_of(script)


@pytest.mark.parametrize(
    "nested", ["$(", "(", "`", "{ ", "if ", "((", "${a:-", "<(", "eval ", "time ", "env ", "find . -exec ", "a=("]
)
def test_deep_nesting_ends(nested):
    script = read_shell((nested * MAX_LINE)[: MAX_LINE - 3] + "rm")
    assert denied_by(script, ["rm:*"]) or may_be_denied(script, ["rm:*"]) or script.certain


def test_folders_are_followed_as_far_as_they_are_known():
    def folders(line):
        return [command.folder for command in read_shell(line).commands]

    assert folders("cd a && b > c; d") == ["", "a", None]
    assert folders("cd a; b") == ["", None]
    assert folders("a && b") == ["", ""]
    assert folders("for x in 1; do a; cd b; done") == [None, None]


@pytest.mark.parametrize(
    ("line", "reads", "writes"),
    [
        ("cat a 'b c' > d", ["a", "b c"], ["d"]),
        ("cd x && tee y < z", ["x/z"], ["x/y"]),
        ("cp a b c/", ["a", "b"], ["c/"]),
        ("mv a b", ["a"], ["a", "b"]),
        ("grep -r x a", ["a"], []),
        ("sed -i s/a/b/ f", ["f"], ["f"]),
        ("rm -rf ~/x '~/y'", [], ["~/x", "./~/y"]),
        ("dd if=a of=b", ["a"], ["b"]),
        ("cat $x", [None], []),
        ("timeout 5 cat a 2>/dev/null", ["a"], []),
        ("bash -c 'cat a > b'", ["a"], ["b"]),
        ("find . -exec rm {} +", ["."], [None]),
        ("echo a >&2", [], []),
    ],
)
def test_files_that_a_line_opens(line, reads, writes):
    files = files_of(read_shell(line))
    assert [file.path for file in files.reads] == reads
    assert [file.path for file in files.writes] == writes


def test_a_program_that_is_not_known_may_open_other_files():
    assert files_of(read_shell("python3 x.py")).writes_more
    assert files_of(read_shell("awk 1 f")).writes_more
    assert files_of(read_shell("cat 'x")).reads_more
    assert not files_of(read_shell("cat x; echo y")).writes_more


def test_redirections_are_judged_by_the_caller():
    asked = []

    def judge(file):
        asked.append(file.path)
        return file.path == "ok"

    line = "echo a > ok; echo b < ok"
    assert allowed_by(read_shell(line), ["echo:*"], may_read=judge, may_write=judge) == ["echo:*"]
    assert asked == ["ok", "ok"]
    assert allowed_by(read_shell("echo a > no"), ["echo:*"], may_read=judge, may_write=judge) is None


@pytest.mark.parametrize(
    ("line", "patterns"),
    [
        ("git log --oneline | head -5", ["git log:*", "head -5"]),
        ("echo " + "a" * 1200, ["echo:*"]),
        ("ls # list\ntouch a", ["ls", "touch a"]),
        ("rm x.tmp", ["rm x.tmp"]),
        ("git push origin main && ls -l", ["git push origin main", "ls -l"]),
        ("timeout 5 ls", ["timeout 5 ls"]),
        ("cat 'a b'", ["cat 'a b'"]),
        ("true; pwd", ["pwd:*"]),
    ],
)
def test_for_the_session_no_more_is_allowed_than_was_seen(line, patterns):
    assert session_patterns(read_shell(line)) == patterns


@pytest.mark.parametrize(
    "line",
    [
        "bash -c ls", "bash x.sh", "python3 x.py", "env ls", "xargs ls", "find . -delete", "sed -i s/a/b/ f", "sudo ls", "npm test",
        "make", "ls *", "echo $x", "echo a > f", "A=1 ls", "cd x && ls", "f() { ls; }; f", "ls 'x", "'my tools/x' --a", "./x",
        "git -c core.pager=sh log", "eval ls", "cat " + "a" * 1000, "", "# x", "tar xf a", "source x", "export A=1",
    ],
)  # fmt: skip
def test_for_the_session_nothing_is_offered_that_runs_others_or_is_not_known(line):
    assert session_patterns(read_shell(line)) == []


@pytest.mark.parametrize("pattern", ["ls\x07", "ls && rm *", "echo 'a *", ":*", "# x", "$(x) *"])
def test_patterns_that_never_match_are_warned_of(pattern):
    assert warnings_of(pattern)


@pytest.mark.parametrize("pattern", ["python3:*", "bash *", "export:*", "python3 -c:*", "make:*", "npm exec:*"])
def test_patterns_that_allow_nothing_are_warned_of(pattern):
    assert warnings_of(pattern, allows=True)
    assert not warnings_of(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "ls",
        "ls *",
        "git log:*",
        "* --force",
        "git * main",
        "npm run test:*",
        "python3 x.py:*",
        "ls && rm x",
        "A=1 ls *",
    ],
)
def test_patterns_that_can_match_are_not_warned_of(pattern):
    assert not warnings_of(pattern, allows=True)
