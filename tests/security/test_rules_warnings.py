"""Rules that can never match, are part of another or contradict one are taken, and said to be so."""

import pytest

from agentrpc.domain.rule_checks import rule_warnings


@pytest.mark.parametrize(
    ("allow", "deny", "part"),
    [
        (["Read", "Read"], [], "stands there twice"),
        (["Bash"], ["Bash"], "allows nothing, because Bash denies all of it"),
        (["Bash(rm x)"], ["Bash(rm:*)"], "allows nothing, because Bash(rm:*)"),
        (["mcp__shop__buy"], ["mcp__shop"], "allows nothing, because mcp__shop"),
        (["Read(secrets/k)"], ["Read(secrets/**)"], "allows nothing"),
        (["WebFetch(domain:a.example.com)"], ["WebFetch(domain:*.example.com)"], "allows nothing"),
        (["Bash(git log:*)", "Bash"], [], "is part of Bash"),
        (["Bash(git log:*)", "Bash(git:*)"], [], "is part of Bash(git:*)"),
        (["Edit", "Write(x)"], [], "is part of Edit"),
        ([], ["mcp__a__x", "mcp__a__*"], "is part of mcp__a__*"),
        (["*"], [], "allows every call"),
        (["Reed"], [], "no tool of that name"),
        ([], ["Stop"], "no tool of that name"),
        (["Read(/etc/passwd)"], [], "write Read(//etc/passwd)"),
        (["Write(src/**)"], [], "is about Write alone"),
        ([], ["Grep(src/**)"], "is about Grep alone"),
        (["Bash(python3:*)"], [], "it allows nothing"),
        (["Bash(export:*)"], [], "it allows nothing"),
        (["Edit(.git/**)"], [], ".git is not written without a question"),
    ],
)
def test_odd_rules_are_told(allow, deny, part):
    assert any(part in warning for warning in rule_warnings(allow, deny)), rule_warnings(allow, deny)


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        (["Read", "Bash(git log:*)", "Bash(git logs)"], ["Bash(rm:*)", "WebFetch", "mcp__github__*"]),
        (["Edit(src/**)", "Read(~/notes/**)", "Edit(/.mcp.json)"], ["Read(.env)", "Edit(/docs/**)", "Read(//etc/**)"]),
        (["WebFetch(domain:example.com)", "WebFetch(domain:*.example.com)"], ["Agent(Explore)", "Agent(model:opus)"]),
        (["mcp__a__get", "mcp__b"], ["mcp__a__set", "*"][:1]),
        (["Read(a/b)"], ["Read(/x/**)"]),
        (["Bash(tar:*)", "Bash(sed -i:*)", "Bash(npm run test:*)", "Bash(ls *)"], ["Bash(python3:*)"]),
    ],
)
def test_there_is_nothing_to_say_of_good_ones(allow, deny):
    assert rule_warnings(allow, deny) == []


def test_a_thousand_rules_are_looked_at_in_no_time_and_few_warnings_come_of_it():
    assert len(rule_warnings([f"Tool{number}" for number in range(1000)], [f"Bash(x{n}:*)" for n in range(1000)])) == 20
