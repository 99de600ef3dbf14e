"""The forms of rules: what a rule that somebody writes is about, or what is wrong with it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from agentrpc.domain.calls import EDITORS, INPUTS, READERS, SHELLS, canonical_tool
from agentrpc.domain.path_rules import check_pattern
from agentrpc.domain.url_rules import check_domain

__all__ = ["JUDGED_INPUTS", "MAX_RULE", "Kind", "Rule", "parse_rule", "read_rules"]

MAX_RULE = 1000


class Kind(Enum):
    """What the pattern of a rule is about."""

    ALL = "all"  # there is none
    COMMAND = "command"
    PATH = "path"
    DOMAIN = "domain"
    NAME = "name"  # of a subagent or a skill
    INPUT = "input"
    UNREADABLE = "unreadable"  # of a form that was taken once: it allows nothing, and what it may deny is asked


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule.

    Attributes:
        tool: A name of a tool, in which `*` is any text.
        kind: What its pattern is about.
        pattern: The pattern; of an input, that of its value.
        text: As it is written.
        input: The name of an input.
    """

    tool: str
    kind: Kind
    pattern: str
    text: str
    input: str = ""


_RULE = re.compile(r"([A-Za-z0-9_*.-]{1,200})(?:\((.+)\))?", re.DOTALL)
_INPUT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.-]{0,100})\s*:(.*)", re.DOTALL)
_SERVER_GLOB = re.compile(r"mcp__(?!.*__.*__)[A-Za-z0-9_.-]+?__[A-Za-z0-9_.*-]+")
_FORM = "a rule is the name of a tool, such as Read or mcp__github__*, or Tool(pattern), such as Bash(git log:*)"
# The input that a tool's own patterns are about.
JUDGED_INPUTS = {"Bash": "command", "Monitor": "command", "WebFetch": "url", "Task": "subagent_type", "Skill": "skill"}
JUDGED_INPUTS |= dict.fromkeys(READERS | EDITORS, "path")
_PATHS = frozenset({"path", "file_path", "notebook_path"})


def parse_rule(text: str, *, allows: bool = False) -> Rule:
    """Parse a rule.

    Args:
        text: The rule.
        allows: Whether it is to allow: some forms can only deny.

    Raises:
        ValueError: It has another form, or can match nothing; the message says what to write instead.
    """
    found = _RULE.fullmatch(text) if len(text) <= MAX_RULE else None
    if found is None:
        raise ValueError(_FORM)
    tool, pattern = canonical_tool(found[1]), found[2]
    if allows and "*" in tool and tool != "*" and not _SERVER_GLOB.fullmatch(tool):
        raise ValueError("a rule that allows may have * in a tool's name only behind its server, as in mcp__github__*")
    if pattern is None or pattern == "*":
        return Rule(tool, Kind.ALL, "", text)
    named = _INPUT.fullmatch(pattern)
    if named is not None and _names_input(tool, named[1], named[2]):
        if named[1] == JUDGED_INPUTS.get(tool) or (JUDGED_INPUTS.get(tool) == "path" and named[1] in _PATHS):
            raise ValueError(f"{named[1]} is not compared as text: {_instead(tool)}")
        if allows:
            raise ValueError("a rule that names an input can only deny: the rest of the call may be anything")
        return Rule(tool, Kind.INPUT, named[2].strip(), text, named[1])
    kind = _kind(tool)
    if kind is None:
        raise ValueError(f"{tool} has no patterns: write the name alone, or {tool}(input:value) in a rule that denies")
    if kind is Kind.PATH:
        check_pattern(pattern)
    elif kind is Kind.DOMAIN:
        if not pattern.startswith("domain:"):
            raise ValueError("write WebFetch(domain:example.com)")
        pattern = pattern.removeprefix("domain:")
        check_domain(pattern)
    elif not pattern.strip():
        raise ValueError(_FORM)
    return Rule(tool, kind, pattern, text)


def read_rules(texts: Iterable[str], *, allow: bool) -> list[Rule]:
    """Rules that are stored. Those of a form that was taken once and is not any more are UNREADABLE."""
    return [_stored(text, allow) for text in texts]


@lru_cache(maxsize=8192)
def _stored(text: str, allow: bool) -> Rule:
    try:
        return parse_rule(text, allows=allow)
    except ValueError:
        tool = text.split("(", 1)[0]
        return Rule(canonical_tool(tool) if re.fullmatch(r"[\w*.-]+", tool) else "*", Kind.UNREADABLE, "", text)


def _names_input(tool: str, name: str, value: str) -> bool:
    """Whether `name:value` in parentheses means an input of that name."""
    if tool in SHELLS:
        # `timeout:*` is the program timeout.
        return value.strip() != "*" and (name in INPUTS[tool] or name == "command")
    if name == JUDGED_INPUTS.get(tool) or (JUDGED_INPUTS.get(tool) == "path" and name in _PATHS):
        return True
    return name in INPUTS[tool] if tool in INPUTS else True


def _instead(tool: str) -> str:
    if tool in SHELLS:
        return "write Bash(rm:*)"
    return {
        "WebFetch": "write WebFetch(domain:example.com)",
        "Task": "write Agent(name)",
        "Skill": "write Skill(name)",
    }.get(tool, f"write {tool}(pattern)")


def _kind(tool: str) -> Kind | None:
    if tool in SHELLS:
        return Kind.COMMAND
    if tool in READERS or tool in EDITORS:
        return Kind.PATH
    return {"WebFetch": Kind.DOMAIN, "Task": Kind.NAME, "Skill": Kind.NAME}.get(tool)
