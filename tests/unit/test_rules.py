"""The gate's rules: deny wins, compound commands count part by part, the unknown is asked."""

import pytest

from agentrpc.domain.rules import Outcome, Own, decide, parse_rule, session_rules

WORKSPACE = "/srv/w"


OWN = Own("/srv/config/plans", "/srv/config/projects/p/s/tool-results")


def outcome(tool, tool_input, *, allow=(), deny=(), mode="DEFAULT"):
    return decide(
        tool,
        tool_input,
        workspace=WORKSPACE,
        mode=mode,
        allowed=[parse_rule(rule) for rule in allow],
        disallowed=[parse_rule(rule) for rule in deny],
        own=OWN,
    ).outcome


def bash(command, **options):
    return outcome("Bash", {"command": command}, **options)


@pytest.mark.parametrize(
    ("command", "rule", "expected"),
    [
        ("git log --oneline", "Bash(git log:*)", Outcome.ALLOW),
        ("git log", "Bash(git log:*)", Outcome.ALLOW),
        ("git logs", "Bash(git log:*)", Outcome.ASK),
        ("git log && rm -rf /", "Bash(git log:*)", Outcome.ASK),
        ("git log; git log -1 | git log", "Bash(git log:*)", Outcome.ALLOW),
        ("git log $(rm x)", "Bash(git log:*)", Outcome.ASK),
        ("git log `rm x`", "Bash(git log:*)", Outcome.ASK),
        ("git log > /etc/passwd", "Bash(git log:*)", Outcome.ASK),
        ("git log\nrm x", "Bash(git log:*)", Outcome.ASK),
        ("git log 'unclosed", "Bash(git log:*)", Outcome.ASK),
        ("GIT_PAGER=evil git log", "Bash(git log:*)", Outcome.ASK),
        ("npm run test", "Bash(npm run test)", Outcome.ALLOW),
        ("npm run test2", "Bash(npm run test)", Outcome.ASK),
        ("anything at all", "Bash", Outcome.ALLOW),
        ("anything at all", "*", Outcome.ALLOW),
    ],
)
def test_allow_rules_for_commands(command, rule, expected):
    assert bash(command, allow=[rule]) is expected


@pytest.mark.parametrize("command", ["rm -rf x", "ls && rm -rf x", "echo $(rm -rf x)", "ls\nrm x"])
def test_a_deny_rule_wins_wherever_its_command_stands(command):
    assert bash(command, allow=["Bash"], deny=["Bash(rm:*)"]) is Outcome.DENY


def test_modes():
    edit = {"file_path": "/srv/w/a.py"}
    assert outcome("Edit", edit) is Outcome.ASK
    assert outcome("Edit", edit, mode="ACCEPT_EDITS") is Outcome.ALLOW
    assert outcome("Edit", {"file_path": "/srv/w/../x"}, mode="ACCEPT_EDITS") is Outcome.ASK
    assert outcome("Edit", edit, mode="PLAN", allow=["Edit"]) is Outcome.DENY
    assert outcome("Edit", edit, mode="DONT_ASK") is Outcome.DENY
    assert outcome("ExitPlanMode", {"plan": "x"}, mode="PLAN") is Outcome.ASK
    assert outcome("AskUserQuestion", {}, mode="DONT_ASK") is Outcome.DENY


def test_reading_in_the_workspace_is_not_asked_but_outside_it_is():
    assert outcome("Read", {"file_path": "a.txt"}) is Outcome.ALLOW
    assert outcome("Read", {"file_path": "/etc/passwd"}) is Outcome.ASK
    assert outcome("Glob", {"pattern": "*"}) is Outcome.ALLOW
    assert outcome("Read", {"file_path": "/etc/passwd"}, allow=["Read(/etc/**)"]) is Outcome.ALLOW
    assert outcome("Read", {"file_path": "secret/a"}, deny=["Read(secret/**)"]) is Outcome.DENY


def test_names_with_globs_and_unknown_tools():
    assert outcome("mcp__github__issues", {}, allow=["mcp__github__*"]) is Outcome.ALLOW
    assert outcome("mcp__other__x", {}, allow=["mcp__github__*"]) is Outcome.ASK
    assert outcome("SomethingNew", {}) is Outcome.ASK


def test_domains():
    fetch = {"url": "https://user@docs.example.com:443/x"}
    assert outcome("WebFetch", fetch, allow=["WebFetch(domain:example.com)"]) is Outcome.ALLOW
    assert (
        outcome("WebFetch", {"url": "https://evilexample.com"}, allow=["WebFetch(domain:example.com)"]) is Outcome.ASK
    )


def test_rules_for_the_session_allow_the_call_they_were_made_from():
    for tool, tool_input in [
        ("Bash", {"command": "git push origin main && ls -l"}),
        ("Edit", {"file_path": "/srv/w/a"}),
        ("Write", {"file_path": "/srv/other/a"}),
        ("mcp__a__b", {"x": 1}),
        ("WebFetch", {"url": "https://example.com/a"}),
    ]:
        rules = session_rules(tool, tool_input, WORKSPACE)
        assert rules
        assert outcome(tool, tool_input, allow=rules) is Outcome.ALLOW
    assert session_rules("Bash", {"command": "echo $(id)"}, WORKSPACE) == []


@pytest.mark.parametrize("text", ["", "Bash(", "Bash()", "a b", "Bash(x", "x" * 2000])
def test_a_rule_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="a rule is"):
        parse_rule(text)


def test_the_agent_has_files_of_its_own():
    plan, result = f"{OWN.plans}/a plan.md", f"{OWN.results}/toolu_1.txt"
    for mode in ("PLAN", "DEFAULT", "DONT_ASK"):
        for tool in ("Read", "Write", "Edit"):
            assert outcome(tool, {"file_path": plan}, mode=mode) is Outcome.ALLOW
        assert outcome("Read", {"file_path": result}, mode=mode) is Outcome.ALLOW
        assert outcome("Write", {"file_path": result}, mode=mode) is not Outcome.ALLOW
        assert outcome("Write", {"file_path": f"{OWN.plans}/../x"}, mode=mode) is not Outcome.ALLOW
        assert outcome("Bash", {"command": f"rm {plan}"}, mode=mode) is not Outcome.ALLOW
    assert outcome("Write", {"file_path": plan}, mode="PLAN", deny=["Write"]) is Outcome.DENY
