"""The levels of isolation in the commands: what they say, and what they take."""

import os

import pytest
from typer.testing import CliRunner

from agentrpc.cli.checks import _isolation
from agentrpc.cli.main import app
from agentrpc.cli.render import level_name, wait_name
from agentrpc.v1 import run_pb2, session_pb2

NONE, USER, SANDBOX = (
    session_pb2.Session.ISOLATION_LEVEL_NONE,
    session_pb2.Session.ISOLATION_LEVEL_USER,
    session_pb2.Session.ISOLATION_LEVEL_SANDBOX,
)


@pytest.mark.parametrize(
    ("levels", "said"),
    [([NONE, USER], "workers have NONE and USER"), ([USER], "workers have USER"), ([], "there are no workers")],
)
def test_a_wait_for_a_level_says_what_is_wanted_and_what_there_is(levels, said):
    waiting = run_pb2.WaitingOn(
        reason=run_pb2.WaitingOn.REASON_ISOLATION, needed_isolation_level=SANDBOX, worker_isolation_levels=levels
    )
    assert wait_name(run_pb2.Run(waiting_on=waiting)) == f"ISOLATION: SANDBOX, {said}"


def test_other_waits_are_a_word():
    waiting = run_pb2.WaitingOn(reason=run_pb2.WaitingOn.REASON_CAPACITY)
    assert wait_name(run_pb2.Run(waiting_on=waiting)) == "CAPACITY"
    assert [level_name(level) for level in (0, NONE, USER, SANDBOX)] == ["", "NONE", "USER", "SANDBOX"]


def test_a_level_that_is_none_is_refused():
    done = CliRunner().invoke(app, ["sessions", "create", "--isolation-level", "high"])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("environment", "root", "good", "said"),
    [
        ({}, False, False, "level NONE (subreaper): bubblewrap is missing"),
        ({}, True, False, "level USER (user): bubblewrap is missing: each session has a uid of its own"),
        ({"AGENTRPC_ISOLATION": "user"}, True, True, "level USER (user): as configured"),
        ({"AGENTRPC_ISOLATION": "user"}, False, False, "only root can"),
        ({"AGENTRPC_ISOLATION": "subreaper"}, True, False, "level NONE (subreaper): as configured"),
        ({"AGENTRPC_MINIMUM_ISOLATION": "sandbox"}, True, False, "AGENTRPC_MINIMUM_ISOLATION demands SANDBOX"),
        ({"AGENTRPC_MINIMUM_ISOLATION": "most"}, True, False, "AGENTRPC_MINIMUM_ISOLATION: Input should be"),
    ],
)
def test_the_doctor_says_which_level_there_is(monkeypatch, environment, root, good, said):
    for name in ("AGENTRPC_ISOLATION", "AGENTRPC_MINIMUM_ISOLATION", "AGENTRPC_AGENT_UIDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("agentrpc.claude.launcher._bubblewrap_trouble", lambda: "bubblewrap is missing")
    monkeypatch.setattr("agentrpc.claude.launcher.user_trouble", lambda _: None if root else "only root can")
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    found, text = _isolation()
    assert (found, said in text) == (good, True), text
