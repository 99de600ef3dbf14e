"""The gate's rules: deny wins, compound commands count part by part, the unknown is asked."""

import re

import pytest

from agentrpc.domain.rule_syntax import read_rules
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
    assert outcome("Read", {"file_path": "/etc/passwd"}, allow=["Read(//etc/**)"]) is Outcome.ALLOW
    assert outcome("Read", {"file_path": "secret/a"}, deny=["Read(secret/**)"]) is Outcome.DENY


def test_names_with_globs_and_unknown_tools():
    assert outcome("mcp__github__issues", {}, allow=["mcp__github__*"]) is Outcome.ALLOW
    assert outcome("mcp__other__x", {}, allow=["mcp__github__*"]) is Outcome.ASK
    assert outcome("SomethingNew", {}) is Outcome.ASK


def test_rules_for_the_session_allow_the_call_they_were_made_from_and_say_what_it_is():
    for tool, tool_input, expected in [
        ("Bash", {"command": "git push origin main && date -u"}, ["Bash(git push origin main)", "Bash(date:*)"]),
        ("Edit", {"file_path": "/srv/w/a"}, ["Edit(/a)"]),
        ("MultiEdit", {"file_path": "/srv/w/src/[id].ts "}, ["Edit(/src/\\[id\\].ts\\ )"]),
        ("Write", {"file_path": "/srv/other/a"}, ["Write(//srv/other/a)"]),
        ("Read", {"file_path": "/data/a*/f"}, ["Read(//data/a\\*/f)"]),
        ("Grep", {"pattern": "x", "path": "/usr/share/doc"}, ["Grep(//usr/share/doc/**)"]),
        ("WebFetch", {"url": "https://example.com/a"}, ["WebFetch(domain:example.com)"]),
    ]:
        rules = session_rules(tool, tool_input, WORKSPACE)
        assert rules == expected
        assert outcome(tool, tool_input, allow=rules) is Outcome.ALLOW


@pytest.mark.parametrize(
    ("tool", "tool_input"),
    [
        ("Bash", {"command": "echo $(id)"}),
        ("Bash", {"command": "bash -c 'ls'"}),
        ("Bash", {"command": "python3 x.py"}),
        ("Bash", {"command": "env ls"}),
        ("Bash", {"command": "find . -exec ls {} ;"}),
        ("Bash", {"command": f"touch {'a' * 2000}"}),
        ("mcp__a__b", {"x": 1}),
        ("SomethingNew", {"x": 1}),
        ("WebSearch", {"query": "x"}),
        ("AskUserQuestion", {}),
        ("ExitPlanMode", {"plan": "x"}),
        ("Write", {"file_path": "/srv/w/.git/config"}),
        ("Write", {"file_path": "/srv/w/.mcp.json"}),
        ("Write", {"file_path": "/srv/w/a\nb"}),
        ("Write", {}),
        ("Grep", {"pattern": "x", "path": "/"}),
        ("Grep", {"pattern": "x", "path": "/home/agent"}),
        ("Grep", {"pattern": "x", "path": "/srv"}),
        ("Glob", {"pattern": "/**"}),
        ("WebFetch", {"url": "https://user@example.com/a"}),
    ],
)
def test_there_is_no_rule_for_the_session_where_it_would_be_wider_than_what_one_sees(tool, tool_input):
    assert session_rules(tool, tool_input, WORKSPACE, home="/home/agent") == []


@pytest.mark.parametrize("text", ["", "Bash(", "Bash()", "a b", "Bash(x", "x" * 2000, "Agent( )"])
def test_a_rule_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="a rule is"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Bash(command:rm *)", "write Bash"),
        ("Read(file_path:/etc/x)", "write Read"),
        ("Grep(path:src)", "write Grep"),
        ("WebFetch(url:https://x/*)", "domain:example.com"),
        ("WebFetch(https://example.com)", "domain"),
        ("WebFetch(domain:https://example.com)", "a host alone"),
        ("WebFetch(domain:example.com/x)", "a host alone"),
        ("WebFetch(domain:a.example:8080)", "a host alone"),
        ("Agent(subagent_type:Explore)", "write Agent"),
        ("mcp__db__query(SELECT *)", "has no patterns"),
        ("mcp__db(x)", "has no patterns"),
        ("WebSearch(cats)", "has no patterns"),
        ("Read(!secret)", "take something out"),
        ("Read(#x)", "comment"),
        ("Read(../x)", "`..`"),
        ("Read(a[)", "can match no path"),
        ("Read(a\nb)", "control"),
    ],
)
def test_a_rule_that_could_not_mean_what_it_says_is_refused_with_a_remedy(text, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        parse_rule(text)


@pytest.mark.parametrize(
    "text", ["mcp__*", "B*", "mcp__a*__x", "Bash(run_in_background:true)", "mcp__db__query(sql:SELECT *)"]
)
def test_some_rules_can_only_deny(text):
    parse_rule(text)
    with pytest.raises(ValueError, match="a rule that"):
        parse_rule(text, allows=True)


def test_a_stored_rule_of_an_old_form_allows_nothing_and_what_it_may_deny_is_asked():
    old = read_rules(["mcp__db__query(SELECT *)", "Read(a"], allow=True)
    call = {"sql": "SELECT 1"}
    assert (
        decide("mcp__db__query", call, workspace="/w", mode="DEFAULT", allowed=old, disallowed=[]).outcome
        is Outcome.ASK
    )
    allowed = read_rules(["mcp__db__query", "Read"], allow=True)
    for tool, given in [("mcp__db__query", call), ("Read", {"file_path": "/etc/x"})]:
        found = decide(tool, given, workspace="/w", mode="DEFAULT", allowed=allowed, disallowed=old)
        assert found.outcome is Outcome.ASK


def test_an_input_is_denied_by_its_name_wherever_it_stands():
    deny = ["mcp__db__query(sql:DROP*)"]
    for given, expected in [
        ({"note": "SELECT 1", "sql": "DROP TABLE x"}, Outcome.DENY),
        ({"sql": "SELECT 1", "note": "DROP TABLE x"}, Outcome.ALLOW),
        ({"note": "x"}, Outcome.ALLOW),
        ({"sql": ["DROP TABLE x"]}, Outcome.ASK),
    ]:
        assert outcome("mcp__db__query", given, allow=["mcp__db"], deny=deny) is expected
    background = {"command": "ls", "run_in_background": True}
    assert outcome("Bash", background, allow=["Bash"], deny=["Bash(run_in_background:true)"]) is Outcome.DENY
    assert outcome("Bash", {"command": "ls"}, allow=["Bash"], deny=["Bash(run_in_background:true)"]) is Outcome.ALLOW
    assert outcome("Agent", {"model": "opus"}, deny=["Agent(model: opus)"]) is Outcome.DENY
    assert bash("timeout 5 ls", allow=["Bash"], deny=["Bash(timeout:*)"]) is Outcome.DENY


def test_subagents_and_skills_by_their_names():
    explore = {"description": "Plan", "prompt": "p", "subagent_type": "Explore"}
    for tool in ("Agent", "Task"):
        assert outcome(tool, explore, deny=["Agent(Explore)"]) is Outcome.DENY
        assert outcome(tool, explore, deny=["Task(explore)"]) is Outcome.DENY
        assert outcome(tool, explore, deny=["Agent(Plan)"]) is Outcome.ALLOW
        assert outcome(tool, {"prompt": "p"}, deny=["Agent(general-purpose)"]) is Outcome.DENY
        assert outcome(tool, {"subagent_type": ["Explore"]}, deny=["Agent(Explore)"]) is Outcome.ASK
    assert outcome("Skill", {"args": "x", "skill": "deploy"}, deny=["Skill(deploy)"]) is Outcome.DENY
    assert outcome("Skill", {"skill": "deploy"}, deny=["Skill(deploy *)"]) is Outcome.DENY
    assert outcome("Skill", {"skill": "ops:deploy"}, deny=["Skill(ops:*)"]) is Outcome.DENY
    assert outcome("Skill", {"skill": "other", "args": "deploy"}, deny=["Skill(deploy)"]) is Outcome.ALLOW


def test_the_name_of_a_server_is_all_its_tools_and_no_other_servers():
    for rule in ("mcp__a", "mcp__a__*"):
        assert outcome("mcp__a__x", {}, allow=[rule]) is Outcome.ALLOW
        assert outcome("mcp__a__x", {}, allow=["*"], deny=[rule]) is Outcome.DENY
        assert outcome("mcp__ab__x", {}, allow=["*"], deny=[rule]) is Outcome.ALLOW
        # A tool of `a` or of a server `a__evil`, `a_`: whose it is cannot be told from the name.
        for name in ("mcp__a__evil__x", "mcp__a___x"):
            assert outcome(name, {}, allow=[rule]) is Outcome.ASK
            assert outcome(name, {}, allow=["*"], deny=[rule]) is Outcome.DENY
            assert outcome(name, {}, allow=[name]) is Outcome.ALLOW
    assert outcome("mcp__a__get_x", {}, allow=["mcp__a__get_*"]) is Outcome.ALLOW
    assert outcome("mcp__a__set_x", {}, allow=["mcp__a__get_*"]) is Outcome.ASK
    assert outcome("mcp__a__x", {}, deny=["mcp__*"]) is Outcome.DENY


def test_what_is_not_certain_is_asked_while_a_rule_denies_and_never_denied_for_it():
    for command in ("$(cat x) y", "eval $X", "ls |& (("):
        assert bash(command, allow=["Bash"]) is Outcome.ALLOW
        assert bash(command, allow=["Bash"], deny=["Bash(rm:*)"]) is Outcome.ASK
        assert bash(command, allow=["Bash"], deny=["Read(.env)"]) is Outcome.ASK
        assert bash(command, allow=["Bash"], deny=["WebFetch"]) is Outcome.ALLOW
    assert bash(5, allow=["Bash"], deny=["Bash(rm:*)"]) is Outcome.ASK
    assert outcome("Monitor", {"command": "rm t"}, allow=["Monitor"], deny=["Bash(rm:*)"]) is Outcome.DENY
    assert outcome("Monitor", {"command": "ls -l"}, allow=["Bash(ls:*)"]) is Outcome.ALLOW


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
