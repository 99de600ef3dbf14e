"""Patterns of paths mean what they mean to gitignore, and rules of files bind every tool that opens one."""

import subprocess

import pytest

from agentrpc.domain.path_rules import Places, may_fit_below, path_fits, path_pattern
from agentrpc.domain.protected_paths import protected_name
from agentrpc.domain.rules import Outcome, decide, parse_rule

PLACES = Places("/w", "/home/agent")


def outcome(tool, tool_input, *, allow=(), deny=(), mode="DEFAULT", **more):
    return decide(
        tool, tool_input, workspace="/w", home="/home/agent", mode=mode, **more,
        allowed=[parse_rule(rule) for rule in allow], disallowed=[parse_rule(rule) for rule in deny],
    ).outcome  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "path", "allows", "denies"),
    [
        (".env", "/w/.env", True, True),
        (".env", "/w/a/b/.env", True, True),
        (".env", "/w/.env.local", False, False),
        (".env", "/other/.env", False, False),
        ("./.env", "/w/.env", True, True),
        ("./.env", "/w/a/.env", False, True),
        ("**/.env", "/w/.env", True, True),
        ("//**/.env", "/other/.env", True, True),
        ("secrets", "/w/secrets/k", True, True),
        ("secrets/", "/w/a/secrets/k", True, True),
        ("secrets/**", "/w/secrets/a/k", True, True),
        ("secrets/**", "/w/a/secrets/k", False, True),
        ("src/**/*.ts", "/w/src/a.ts", True, True),
        ("src/**/*.ts", "/w/src/x/y/a.ts", True, True),
        ("src/**/*.ts", "/w/src/a.tsx", False, False),
        ("/docs/**", "/w/docs/a", True, True),
        ("/docs/**", "/w/x/docs/a", False, False),
        ("/etc/**", "/etc/passwd", False, True),
        ("//etc/**", "/etc/passwd", True, True),
        ("//etc/**", "/w/etc/passwd", False, False),
        ("~/.ssh/**", "/home/agent/.ssh/id_rsa", True, True),
        ("~/.ssh/**", "/w/~/.ssh/id_rsa", False, False),
        ("~/x", "/home/agent/a/x", False, False),
        ("~", "/home/agent/a", True, True),
        (".", "/w/a", True, True),
        ("*.p?m", "/w/k.pem", True, True),
        ("k[0-9].pem", "/w/k1.pem", True, True),
        ("k[!0-9].pem", "/w/k1.pem", False, False),
        ("a\\*b", "/w/a*b", True, True),
        ("a\\*b", "/w/axb", False, False),
        ("x*", "/w/x/y", True, True),
        ("a.ts", "/w/a.ts\n", False, False),
        ("secrets/**", "/w/a\nb/secrets/k", False, True),
    ],
)
def test_what_a_pattern_fits(pattern, path, allows, denies):
    assert path_fits(pattern, path, PLACES, denies=False) is allows
    assert path_fits(pattern, path, PLACES, denies=True) is denies


@pytest.mark.parametrize("pattern", [".env", "src/*.py", "/a/b", "doc/", "**/x/*.md", "a/**/b", "*.[ch]", "!", "x/**"])
def test_git_says_the_same_of_relative_patterns(pattern, tmp_path):
    if pattern == "!":
        pattern = "\\!important"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text(f"{pattern}\n")
    paths = [".env", "q/.env", "src/a.py", "src/x/a.py", "a/b", "a/b/c", "x/a/b", "doc/a", "q/doc/a", "doc", "x/r.md",
             "q/x/r.md", "a/x/y/b", "m.c", "q/m.h", "m.cc", "!important", "x/y/z"]  # fmt: skip
    for path in paths:
        asked = ["git", "-C", tmp_path, "check-ignore", "-q", "--no-index", path]
        ignored = subprocess.run(asked, check=False).returncode == 0
        assert path_fits(pattern, f"/w/{path}", PLACES, denies=False) is ignored, path


@pytest.mark.parametrize("path", ["/w/a", "/w/a*b?[c]", "/data/a*/f", "/w/ x ", "/w/#a", "/w/!a", "/w/a\\b", "/x/~/y"])
def test_the_pattern_of_a_path_fits_it_and_nothing_beside_it(path):
    pattern = path_pattern(path, PLACES)
    parse_rule(f"Read({pattern})")
    assert path_fits(pattern, path, PLACES, denies=False)
    for other in (
        f"{path}x",
        path.replace("*", "z"),
        path.replace("?", "z"),
        path.rstrip(" "),
        path.replace("\\b", "b"),
    ):
        assert other == path or not path_fits(pattern, other, PLACES, denies=False)


def test_without_a_home_its_patterns_deny_everywhere_and_allow_nothing():
    nowhere = Places("/w")
    assert path_fits("~/.ssh/**", "/root/.ssh/id", nowhere, denies=True)
    assert not path_fits("~/.ssh/**", "/root/.ssh/id", nowhere, denies=False)
    assert may_fit_below("~/.ssh/**", "/root", nowhere)


def test_edit_is_about_all_that_edits_and_read_about_all_that_reads():
    for tool, key in [
        ("Edit", "file_path"),
        ("MultiEdit", "file_path"),
        ("Write", "file_path"),
        ("NotebookEdit", "notebook_path"),
    ]:
        given = {key: "/w/a.ipynb"}
        for rule in ("Edit(a.ipynb)", "Edit", "Read(a.ipynb)"):
            assert outcome(tool, given, mode="ACCEPT_EDITS", deny=[rule]) is Outcome.DENY
        for rule in ("Edit(a.ipynb)", "Edit"):
            assert outcome(tool, given, allow=[rule]) is Outcome.ALLOW
        assert outcome(tool, given, mode="ACCEPT_EDITS", deny=["Edit(b.ipynb)", "Read"]) is Outcome.ALLOW
    for tool, given in [
        ("Read", {"file_path": "secrets/k"}),
        ("Grep", {"pattern": "x", "path": "secrets"}),
        ("Grep", {"pattern": "x", "path": "secrets/k"}),
        ("Glob", {"pattern": "*", "path": "secrets"}),
        ("Glob", {"pattern": "secrets/*"}),
        ("Glob", {"pattern": "./secrets/**/*"}),
        ("LS", {"path": "/w/secrets"}),
        ("NotebookRead", {"notebook_path": "secrets/k"}),
    ]:
        assert outcome(tool, given, allow=["Read"], deny=["Read(secrets/**)"]) is Outcome.DENY
        assert outcome(tool, given, deny=["Read"]) is Outcome.DENY
    assert outcome("Write", {"file_path": "x"}, mode="ACCEPT_EDITS", deny=["Write(x)"]) is Outcome.DENY
    assert outcome("Edit", {"file_path": "x"}, mode="ACCEPT_EDITS", deny=["Write(x)"]) is Outcome.ALLOW


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cat .env", Outcome.DENY),
        ("cat ./a/../.env", Outcome.DENY),
        ("head -1 app/.env | sort", Outcome.DENY),
        ("sort < .env", Outcome.DENY),
        ("echo x > .env", Outcome.DENY),
        ("cp x .env", Outcome.DENY),
        ("cat *", Outcome.ASK),
        ("cat $F", Outcome.ASK),
        ("grep -r KEY .", Outcome.ASK),
        ("cat readme", Outcome.ALLOW),
        ("echo hello 2>/dev/null", Outcome.ALLOW),
    ],
)
def test_read_rules_bind_shell_text_as_far_as_it_is_known(command, expected):
    assert outcome("Bash", {"command": command}, allow=["Bash"], deny=["Read(.env)"]) is expected


@pytest.mark.parametrize(
    "command", ["echo x > gen/a", "tee gen/a", "rm -r gen", "mv x gen/a", "cd gen && touch a", "sed -i s/a/b/ gen/a"]
)
def test_edit_rules_bind_shell_text_that_writes(command):
    assert outcome("Bash", {"command": command}, allow=["Bash"], deny=["Edit(gen/**)"]) is Outcome.DENY
    assert outcome("Bash", {"command": command}, allow=["Bash"], deny=["Edit(/other/**)"]) is Outcome.ALLOW


def test_relative_paths_begin_in_the_folder_the_agent_is_in():
    deny = ["Read(/sub/secret)"]
    assert outcome("Bash", {"command": "cat secret"}, allow=["Bash"], deny=deny, folder="/w/sub") is Outcome.DENY
    assert outcome("Bash", {"command": "cat secret"}, allow=["Bash"], deny=deny) is Outcome.ALLOW
    assert outcome("Read", {"file_path": "secret"}, deny=deny, folder="/w/sub") is Outcome.DENY
    assert outcome("Grep", {"pattern": "x"}, folder="/etc") is Outcome.ASK


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"pattern": "**/*.py"}, Outcome.ALLOW),
        ({"pattern": "src/{a,b}.py"}, Outcome.ALLOW),
        ({"pattern": "/etc/host*"}, Outcome.ASK),
        ({"pattern": "../*"}, Outcome.ASK),
        ({"pattern": "a/*/../../../etc/*"}, Outcome.ASK),
        ({"pattern": "{/etc,b}/*"}, Outcome.ASK),
        ({"pattern": "{a,../..}/*"}, Outcome.ASK),
        ({"pattern": "~/.ssh/*"}, Outcome.ASK),
        ({"pattern": "*", "path": "/etc"}, Outcome.ASK),
        ({"pattern": "*", "path": ".."}, Outcome.ASK),
        ({"pattern": ["*"]}, Outcome.ASK),
        ({"pattern": "*", "path": ["a"]}, Outcome.ASK),
    ],
)
def test_the_pattern_of_glob_does_not_leave_the_workspace_without_a_question(given, expected):
    assert outcome("Glob", given) is expected


def test_a_search_through_a_folder_that_may_hold_what_is_denied_is_asked():
    assert outcome("Grep", {"pattern": "KEY"}, allow=["Read"], deny=["Read(.env)"]) is Outcome.ASK
    assert outcome("Grep", {"pattern": "KEY", "path": "src"}, deny=["Read(/config/**)"]) is Outcome.ALLOW
    assert (
        outcome("Grep", {"pattern": "KEY", "path": "/w/a.txt"}, deny=["Read(//etc/**)", "Read(~/.ssh/**)"])
        is Outcome.ALLOW
    )


@pytest.mark.parametrize("given", [{}, {"file_path": ""}, {"file_path": None}, {"file_path": ["a"]}, {"file_path": 3}])
def test_a_call_that_names_no_file_is_asked(given):
    assert outcome("Read", given) is Outcome.ASK
    assert outcome("Write", given, mode="ACCEPT_EDITS", allow=["Edit(**)"]) is Outcome.ASK


PROTECTED = [
    ".git/config", ".git/hooks/pre-commit", ".git", "a/.git/config", ".GIT/config", ".git./config", ".gi\u200bt/config",
    "git~1/config", "x.git/hooks/post-update", "HEAD", ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".profile",
    ".zshrc", ".mcp.json", ".claude/settings.json", ".claude/hooks/x.sh", ".claude.json", ".gitconfig", ".gitmodules",
    ".gitattributes", ".config/git/config", ".npmrc", ".envrc", ".vscode/tasks.json", ".idea/x", ".husky/pre-push",
    ".ssh/config", "\uff0egit/config",
]  # fmt: skip


@pytest.mark.parametrize("path", PROTECTED)
def test_protected_names_are_never_written_without_a_question(path):
    for tool, key in [("Write", "file_path"), ("Edit", "file_path"), ("NotebookEdit", "notebook_path")]:
        for allow in (
            [],
            ["Edit"],
            ["*"],
            ["Edit(**)"],
            ["Edit(.git/**)", "Edit(.claude)", "Edit(//**)"],
            ["Write(*)"],
        ):
            assert outcome(tool, {key: f"/w/{path}"}, mode="ACCEPT_EDITS", allow=allow) is Outcome.ASK
    assert outcome("Write", {"file_path": path}, mode="DONT_ASK", allow=["Edit"]) is Outcome.DENY


def test_only_a_rule_that_names_the_very_file_allows_a_protected_name():
    assert outcome("Write", {"file_path": "/w/.mcp.json"}, allow=["Edit(/.mcp.json)"]) is Outcome.ALLOW
    assert outcome("Write", {"file_path": "/w/.mcp.json"}, allow=["Write(.mcp.json)"]) is Outcome.ALLOW
    assert outcome("Write", {"file_path": "/w/.git/config"}, allow=["Edit(.git/config)"]) is Outcome.ALLOW
    assert outcome("Write", {"file_path": "/w/.git/hooks/x"}, allow=["Edit(.git/config)"]) is Outcome.ASK
    assert outcome("Write", {"file_path": "/home/agent/.bashrc"}, allow=["Edit(~/.bashrc)"]) is Outcome.ALLOW
    assert outcome("Write", {"file_path": "/w/.git/config"}, allow=["Edit(.git)"]) is Outcome.ASK


@pytest.mark.parametrize(
    "command",
    ["echo x > .git/config", "echo x >> ~/.bashrc", "cd .claude && tee hooks.json", "cp x .mcp.json", "ln -s x .envrc",
     "echo a | sed s/a/b/ > .claude/settings.json", "mv x .git/hooks/pre-commit",
     "cp payload/.mcp.json .", "cp -r payload/.git .", "mv payload/.bashrc ~"],
)  # fmt: skip
def test_nor_does_shell_text_write_them(command):
    for allow in (
        ["Bash"],
        ["Bash(echo:*)", "Bash(tee:*)", "Bash(cp:*)", "Bash(ln:*)", "Bash(mv:*)", "Bash(sed:*)", "Bash(cd:*)"],
    ):
        assert outcome("Bash", {"command": command}, mode="ACCEPT_EDITS", allow=allow) is Outcome.ASK


@pytest.mark.parametrize(
    "path", ["/w/.gitignore", "/w/src/git/config", "/w/git", "/w/head", "/w/.github/x.yml", "/w/a.bashrc"]
)
def test_other_names_are_not_protected(path):
    assert protected_name(path) is None
