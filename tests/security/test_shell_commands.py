"""The gate's decision for each command of the corpus."""

import tomllib
from pathlib import Path

import pytest

from agentrpc.domain import shell
from agentrpc.domain.rules import decide, parse_rule

CASES = tomllib.loads((Path(__file__).parent / "commands.toml").read_text(encoding="utf-8"))["case"]


def outcome(case):
    return decide(
        "Bash",
        {"command": case["command"]},
        workspace="/srv/w",
        home="/srv/home",
        mode=case.get("mode", "DEFAULT"),
        allowed=[parse_rule(rule) for rule in case.get("allow", [])],
        disallowed=[parse_rule(rule) for rule in case.get("deny", [])],
    ).outcome.value


@pytest.mark.parametrize("case", CASES, ids=[f"{at}-{case['command'][:40]!r}" for at, case in enumerate(CASES)])
def test_a_command_comes_to_its_outcome(case):
    assert outcome(case) == case["outcome"], case["why"]


def test_commands_are_given_once():
    keys = [(case["command"], *case.get("allow", []), "-", *case.get("deny", [])) for case in CASES]
    assert len(keys) == len(set(keys))
    assert len(keys) >= 300


@pytest.mark.parametrize("rules", [["Bash"], ["Bash(tee:*)"]])
@pytest.mark.parametrize("command", ["tee ~/.bashrc", "tee ~root/.bashrc", 'tee "$HOME"/.bashrc', "cd; tee .bashrc"])
def test_protected_names_are_known_where_the_home_is_not(command, rules):
    decided = decide(
        "Bash", {"command": command}, workspace="/srv/w", mode="DEFAULT",
        allowed=[parse_rule(rule) for rule in [*rules, "Bash(cd:*)"]], disallowed=[],
    )  # fmt: skip
    assert decided.outcome.value == "ask"


def test_a_line_that_cannot_be_read_is_not_certain(monkeypatch):
    def fail(_):
        raise ValueError("not foreseen")

    monkeypatch.setattr(shell.Reader, "read", fail)
    assert not shell.read_shell("ls").certain
