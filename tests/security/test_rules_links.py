"""Files are judged by what a call opens: links are followed in the sandbox's view before a rule is matched."""

import os
from pathlib import Path

import pytest

from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.links import SandboxView
from agentrpc.domain.rules import Outcome, decide, parse_rule


class Session:
    """The folders of a session on this disk, and the decision about a call in them."""

    def __init__(self, folder):
        self.paths = SessionPaths(folder / "root", folder / "workspaces" / "w" / "files")
        self.paths.create()
        self.paths.workspace.mkdir(parents=True)
        self.workspace, self.home = self.paths.workspace, self.paths.home
        self.view = SandboxView(self.paths)

    def resolve(self, path):
        return self.view.resolve(str(path)).path

    def judge(self, tool, *, allow=(), deny=(), mode="DEFAULT", **given):
        return decide(
            tool, given, workspace=str(self.workspace), mode=mode, home=str(self.home), resolve=self.view.resolve,
            allowed=[parse_rule(rule) for rule in allow], disallowed=[parse_rule(rule) for rule in deny],
        ).outcome  # fmt: skip


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def test_a_link_out_of_the_workspace_is_not_read_without_a_question(session):
    (session.workspace / "link").symlink_to("/etc/passwd")
    assert session.judge("Read", file_path="link") is Outcome.ASK
    assert session.judge("Read", file_path="link", allow=["Read(link)"]) is Outcome.ASK
    assert session.judge("Read", file_path="link", allow=["Read(link)", "Read(//etc/passwd)"]) is Outcome.ALLOW
    assert session.judge("Read", file_path="link", allow=["Read"]) is Outcome.ALLOW


def test_a_rule_denies_by_the_link_and_by_its_target(session):
    (session.workspace / "secrets").mkdir()
    (session.workspace / "secrets" / "k").write_text("x")
    (session.workspace / "pub").symlink_to("secrets/k")
    (session.workspace / "dir").symlink_to("secrets")
    (session.workspace / "twice").symlink_to("dir")
    for path in ("pub", "dir/k", "twice/k", "./x/../pub"):
        assert session.judge("Read", file_path=path, allow=["Read"], deny=["Read(secrets/**)"]) is Outcome.DENY
    for path in ("dir", "twice"):
        assert session.judge("Grep", pattern="x", path=path, deny=["Read(secrets/**)"]) is Outcome.DENY
        assert session.judge("Glob", pattern=f"{path}/*", deny=["Read(secrets/**)"]) is Outcome.DENY
    assert session.judge("Read", file_path="pub", allow=["Read"], deny=["Read(pub)"]) is Outcome.DENY
    assert session.judge("Write", file_path="pub", mode="ACCEPT_EDITS", deny=["Read(secrets/**)"]) is Outcome.DENY


def test_a_mode_that_accepts_edits_does_not_write_through_a_link_to_the_home(session):
    (session.workspace / "homelink").symlink_to(session.home)
    (session.workspace / "rc").symlink_to(session.home / ".bashrc")
    for path in ("homelink/.bashrc", "homelink/notes", "rc"):
        assert session.judge("Write", file_path=path, content="x", mode="ACCEPT_EDITS") is Outcome.ASK
    assert session.judge("Write", file_path="homelink/.bashrc", allow=["Write"]) is Outcome.ASK
    assert session.judge("Write", file_path="homelink/notes", allow=["Write"]) is Outcome.ALLOW


def test_a_link_to_a_protected_name_is_protected_whatever_it_is_called(session):
    (session.workspace / ".git").mkdir()
    (session.workspace / "notes").symlink_to(".git")
    assert session.judge("Write", file_path="notes/config", mode="ACCEPT_EDITS", allow=["Edit"]) is Outcome.ASK
    (session.workspace / ".git" / "config").write_text("")
    (session.workspace / "hard").hardlink_to(session.workspace / ".git" / "config")
    assert session.judge("Write", file_path="hard", mode="ACCEPT_EDITS", allow=["Edit"]) is Outcome.ASK


def test_what_nobody_can_look_at_is_asked(session, tmp_path):
    (session.workspace / "loop").symlink_to("loop")
    (session.workspace / "tmp").symlink_to("/tmp/x")
    (session.workspace / "self").symlink_to("/proc/self/cwd")
    for path in ("loop", "tmp", "self/x", "/tmp/a", "/run/x/y", "/proc/self/root/etc/passwd", "x\0y", f"/{'a' * 5000}"):
        assert session.judge("Write", file_path=path, mode="ACCEPT_EDITS", allow=["Edit"]) is Outcome.ASK
        assert session.judge("Read", file_path=path) is Outcome.ASK
        assert session.judge("Read", file_path=path, allow=["Read"], deny=["Read(.env)"]) is Outcome.ASK


def test_paths_lead_where_the_kernel_would_go(session):
    workspace = session.workspace
    (workspace / "a" / "b").mkdir(parents=True)
    (workspace / "up").symlink_to("a/b")
    (workspace / "absolute").symlink_to(workspace / "a")
    (workspace / "dangling").symlink_to("not/there")
    assert session.resolve(workspace / "up/../x") == str(workspace / "a/x")
    assert session.resolve(workspace / "absolute/b") == str(workspace / "a/b")
    assert session.resolve(workspace / "dangling") == str(workspace / "not/there")
    assert session.resolve(workspace / "dangling/../x") is None
    assert session.resolve("/bin/sh") == os.path.realpath("/bin/sh")
    assert session.resolve("/srv/nothing/../here") == "/srv/here"
    assert session.resolve(f"{workspace}//./a/") == str(workspace / "a")


def test_it_leaves_no_descriptor_open(session):
    before = len(list(Path("/proc/self/fd").iterdir()))
    (session.workspace / "link").symlink_to("a/b/c")
    for path in ("link", "a/b/c/d", "../../../../../../etc/passwd", "\ud800"):
        session.view.resolve(str(session.workspace / path))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
