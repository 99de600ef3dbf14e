"""The gate's decision for each command of the corpus."""

import tomllib
from pathlib import Path

import pytest

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
