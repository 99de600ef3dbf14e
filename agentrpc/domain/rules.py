"""Rules for tool calls, and the decision that the gate takes by them. `docs/rules.md` is the reference for people.

A rule is the name of a tool, or the name with a pattern in parentheses, and means what it means in Claude Code's
settings (https://code.claude.com/docs/en/permissions):

    Read, Edit, Bash                 every call of all that reads, of all that edits, of the shell
    mcp__github, mcp__github__get_*  tools of an MCP server
    Bash(git log:*)                  commands, see `shell_rules.py`
    Edit(src/**), Read(//etc/**)     files, see `path_rules.py`
    WebFetch(domain:example.com)     hosts, see `url_rules.py`
    Agent(Explore), Skill(deploy)    a subagent, a skill
    Agent(model:opus)                an input by its name, in rules that deny

Deny wins over everything; it holds for what a call may be, and allowing for what it is for certain. What is between the
two is asked, and what nobody answers is denied. Protected names are never written without a question
(`protected_paths.py`).
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from agentrpc.domain.calls import (
    EDITORS,
    EXIT_PLAN,
    HARMLESS,
    PERSONAL,
    READERS,
    SHELLS,
    Call,
    Own,
    Spot,
    Target,
    read_call,
)
from agentrpc.domain.path_rules import Places, is_below, may_fit_below, path_fits, path_pattern
from agentrpc.domain.protected_paths import protected_name
from agentrpc.domain.rule_syntax import JUDGED_INPUTS, Kind, Rule, parse_rule, read_rules
from agentrpc.domain.shell import Script
from agentrpc.domain.shell_files import File
from agentrpc.domain.shell_rules import allowed_by, denied_by, may_be_denied, session_patterns
from agentrpc.domain.url_rules import domain_fits

__all__ = ["EXIT_PLAN", "Decision", "Outcome", "Own", "Rule", "Target", "decide", "parse_rule", "session_rules"]

_WILDCARD = re.compile(r"(?<!\\)[*?\[]")
_BEGINNING = re.compile(r"^(~|\.)?/+")
_UNESCAPED = re.compile(r"\\(?=.)")
_INTERPRETERS = frozenset({".", "bash", "dash", "eval", "sh", "source", "zsh"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Outcome(StrEnum):
    """What is to be done with a call."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, why, and what decided: `rule`, `mode` or `default`."""

    outcome: Outcome
    reason: str
    decided_by: str
    blocked_path: str = ""


# ---- The decision ----


def decide(
    tool: str,
    tool_input: Mapping[str, Any],
    *,
    workspace: str,
    mode: str,
    allowed: Iterable[Rule],
    disallowed: Iterable[Rule],
    own: Own | None = None,
    home: str | None = None,
    folder: str | None = None,
    resolve: Callable[[str], Target] | None = None,
) -> Decision:
    """Decide about one call.

    Args:
        tool: Its tool.
        tool_input: Its input.
        workspace: The absolute path of the workspace.
        mode: The permission mode, `DEFAULT`, `ACCEPT_EDITS`, `PLAN` or `DONT_ASK`.
        allowed: Rules that allow: those of the session's options and those that answers added.
        disallowed: Rules that deny.
        own: Where the agent has files of its own.
        home: The agent's home. None: not known.
        folder: The folder that the agent is in, at which relative paths begin. None: the workspace.
        resolve: Where an absolute path leads, links resolved, as the agent's processes see it. None: nothing is a link.
    """
    call = read_call(tool, tool_input, Places(workspace, home), folder=folder, resolve=resolve)
    denied = _denied(call, list(disallowed))
    if isinstance(denied, Rule):
        return Decision(Outcome.DENY, f"the rule {denied.text} denies it", "rule")
    if call.tool in PERSONAL:
        if mode == "DONT_ASK":
            return Decision(Outcome.DENY, "in this permission mode nobody is asked", "mode")
        return Decision(Outcome.ASK, "only a person can answer it", "default")
    if not denied and own is not None and _is_own(call, own):
        return Decision(Outcome.ALLOW, "it is a file of the agent's own", "default")
    if mode == "PLAN" and call.tool not in HARMLESS and call.tool not in READERS:
        return Decision(Outcome.DENY, "the agent is in plan mode and may change nothing: present the plan", "mode")
    allow = list(allowed)
    asked = denied or _must_be_asked(call, allow)
    if not asked:
        texts = _allowing(call, allow, mode)
        if texts:
            return Decision(Outcome.ALLOW, f"the rule {', '.join(texts)} allows it", "rule")
        default = _by_default(call, mode)
        if default is not None:
            return default
    if mode == "DONT_ASK":
        why = asked or "no rule allows it"
        return Decision(Outcome.DENY, f"{why}, and in this permission mode nobody is asked", "mode")
    blocked = _outside(call)
    reason = asked or (f"{blocked} is outside the workspace" if blocked else "no rule allows it")
    return Decision(Outcome.ASK, reason, "default", blocked_path=blocked)


def _is_own(call: Call, own: Own) -> bool:
    """Whether a file tool is used on files of the agent's own."""
    spots = call.spots if call.script is None else ()
    return bool(spots) and all(spot.known and all(own.may(call.tool, path) for path in spot.paths) for spot in spots)


def _by_default(call: Call, mode: str) -> Decision | None:
    if call.tool in HARMLESS:
        return Decision(Outcome.ALLOW, "it has no effect outside the agent", "default")
    inside = bool(call.spots) and all(spot.within(call.places.workspace) for spot in call.spots)
    if call.tool in READERS and inside:
        return Decision(Outcome.ALLOW, "it reads in the workspace", "default")
    if call.tool in EDITORS and mode == "ACCEPT_EDITS" and inside:
        return Decision(Outcome.ALLOW, "this permission mode accepts edits in the workspace", "mode")
    return None


def _outside(call: Call) -> str:
    """The path outside the workspace that a file tool wants; empty when there is none."""
    if call.script is not None:
        return ""
    for spot in call.spots:
        if spot.paths and not spot.within(call.places.workspace):
            return next((path for path in spot.paths if not is_below(path, call.places.workspace)), spot.paths[0])
    return ""


# ---- Denying ----


def _denied(call: Call, rules: Sequence[Rule]) -> Rule | str | None:
    """The rule that denies a call; why it cannot be told that none does, in words; None when none does."""
    doubts: list[str] = []
    commands: list[str] = []
    for rule in rules:
        found = _denies(rule, call)
        if found is True:
            return rule
        if found is None:
            doubts.append(f"it cannot be told whether the rule {rule.text} denies it")
        if rule.kind is Kind.COMMAND and _is_tool(rule.tool, call.tool, allows=False):
            commands.append(rule.pattern)
    if call.script is not None and commands:
        pattern = denied_by(call.script, commands)
        if pattern is not None:
            return next(rule for rule in rules if rule.kind is Kind.COMMAND and rule.pattern == pattern)
        why = may_be_denied(call.script, commands)
        if why is not None:
            doubts.append(f"it cannot be told whether a rule denies it: {why}")
    return doubts[0] if doubts else None


def _denies(rule: Rule, call: Call) -> bool | None:
    """Whether a rule denies a call, but for patterns of commands; None when that cannot be told."""
    spots = [spot for spot in call.spots if _is_about(rule, call, spot)]
    unclear = call.script is not None and rule.tool in {"Read", "Edit"} and _runs_anything(call.script)
    if rule.kind is Kind.ALL:
        return _is_tool(rule.tool, call.tool, allows=False) or bool(spots) or (None if unclear else False)
    if rule.kind is Kind.PATH:
        found = [_denies_path(rule, call, spot) for spot in spots]
        return True if True in found else None if unclear or None in found else False
    if not _is_tool(rule.tool, call.tool, allows=False):
        return False
    if rule.kind is Kind.UNREADABLE:
        return None
    if rule.kind is Kind.DOMAIN:
        assert call.address is not None
        return not call.address.plain or call.address.host is None or domain_fits(rule.pattern, call.address.host)
    if rule.kind is Kind.NAME:
        return _name_fits(rule, call, denies=True)
    if rule.kind is Kind.INPUT:
        return _input_fits(rule, call)
    return False


def _runs_anything(script: Script) -> bool:
    """Whether it cannot be told which programs a line runs."""
    return not script.certain or any(
        command.words[0].text is None
        or (command.words[0].text in _INTERPRETERS and any(word.text is None for word in command.words))
        for command in script.commands
        if command.words
    )


def _is_about(rule: Rule, call: Call, spot: Spot) -> bool:
    """Whether a rule that denies files is about this one: Edit about all that is written, Read about all that is read.

    A pattern of Read is about what is written too: a secret that may not be read may not be replaced either.
    """
    if rule.tool == "Edit":
        return spot.writes
    if rule.tool == "Read":
        return not spot.writes or rule.kind is Kind.PATH
    if rule.tool in EDITORS:
        return rule.tool == call.tool or (call.script is not None and spot.writes and rule.kind is Kind.PATH)
    return rule.tool in READERS and rule.tool == call.tool


def _denies_path(rule: Rule, call: Call, spot: Spot) -> bool | None:
    if any(path_fits(rule.pattern, path, call.places, denies=True, folder=spot.folder) for path in spot.paths):
        return True
    below = spot.folder and any(may_fit_below(rule.pattern, path, call.places) for path in spot.paths)
    return None if below or not spot.known or spot.several_names else False


def _name_fits(rule: Rule, call: Call, *, denies: bool) -> bool | None:
    # Left out, it is the general one.
    name = call.given.get(JUDGED_INPUTS[call.tool], "general-purpose" if call.tool == "Task" else None)
    if not isinstance(name, str):
        return None
    pattern = rule.pattern.strip()
    bare = pattern.removesuffix(":*").removesuffix(" *")
    if denies:
        name, pattern, bare = name.strip().casefold(), pattern.casefold(), bare.casefold()
    return name == bare or _glob(pattern).fullmatch(name) is not None


def _input_fits(rule: Rule, call: Call) -> bool | None:
    if rule.input not in call.given:
        return False
    value = call.given[rule.input]
    if isinstance(value, bool) or value is None:
        value = {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (dict, list)):
        return None
    return _glob(rule.pattern).fullmatch(str(value)) is not None


# ---- What is asked in any mode and under any rule ----


def _must_be_asked(call: Call, allowed: Sequence[Rule]) -> str | None:
    for spot in call.spots:
        if not spot.writes:
            continue
        name = spot.protected
        named = bool(spot.paths) and all(_names_literally(allowed, call, path) for path in spot.paths)
        if name is not None and not (named and spot.named is None):
            return f"{name} decides what programs do, so that it is never written without a question"
        if call.script is None and not spot.known:
            return "it cannot be told what is written: a link leads where nobody can look"
        if call.script is None and spot.several_names:
            return "the file has further names, and what else is written with it cannot be told"
    name = _copied(call)
    if name is not None:
        return f"{name} decides what programs do, so that it is not copied into a folder without a question"
    if call.address is not None and not call.address.plain:
        return f"the address is not written plainly: {call.address.why}"
    return None


def _copied(call: Call) -> str | None:
    """A protected name that shell text perhaps puts into a folder: `cp x/.mcp.json .` writes `.mcp.json`."""
    if call.script is None or not any(spot.writes and spot.folder for spot in call.spots):
        return None
    names = (protected_name(f"/{posixpath.basename(path)}") for spot in call.spots for path in spot.paths)
    return next((name for name in (*names, *(spot.named for spot in call.spots)) if name is not None), None)


def _names_literally(allowed: Sequence[Rule], call: Call, path: str) -> bool:
    """Whether a rule names this very file, without wildcards."""
    for rule in allowed:
        if rule.kind is not Kind.PATH or not _may_edit(rule, call) or _WILDCARD.search(rule.pattern):
            continue
        named = _BEGINNING.sub("", rule.pattern)
        if path.endswith(f"/{_UNESCAPED.sub('', named)}") and path_fits(rule.pattern, path, call.places, denies=False):
            return True
    return False


# ---- Allowing ----


def _allowing(call: Call, rules: Sequence[Rule], mode: str) -> list[str]:
    """The texts of the rules that together allow the call; none when they do not."""
    named = [rule for rule in rules if _is_named(rule, call)]
    for rule in named:
        if rule.kind is Kind.ALL:
            return [rule.text]
    if call.script is not None:
        return _allowing_commands(call, rules, mode)
    if call.spots:
        return _allowing_files(call, [rule for rule in named if rule.kind is Kind.PATH])
    for rule in named:
        if rule.kind is Kind.DOMAIN:
            address = call.address
            if address is not None and address.host is not None and domain_fits(rule.pattern, address.host):
                return [rule.text]
        elif rule.kind is Kind.NAME and _name_fits(rule, call, denies=False):
            return [rule.text]
    return []


def _is_named(rule: Rule, call: Call) -> bool:
    """Whether a rule that allows is about this tool: Edit about all that edit files, Read about all that read them."""
    if rule.tool in {"Edit", "Read"} and rule.kind in {Kind.ALL, Kind.PATH}:
        return call.tool in (EDITORS if rule.tool == "Edit" else READERS)
    return rule.kind is not Kind.UNREADABLE and _is_tool(rule.tool, call.tool, allows=True)


def _allowing_files(call: Call, rules: Sequence[Rule]) -> list[str]:
    texts: dict[str, None] = {}
    for spot in call.spots:
        if not spot.known:
            return []
        for path in spot.paths:
            rule = next((rule for rule in rules if _fits(rule, path, call.places, folder=spot.folder)), None)
            if rule is None:
                return []
            texts[rule.text] = None
    return list(texts)


def _fits(rule: Rule, path: str, places: Places, *, folder: bool) -> bool:
    return path_fits(rule.pattern, path, places, denies=False, folder=folder)


def _allowing_commands(call: Call, rules: Sequence[Rule], mode: str) -> list[str]:
    assert call.script is not None
    commands = [rule for rule in rules if rule.kind is Kind.COMMAND and _is_named(rule, call)]

    def may(file: File, *, writes: bool) -> bool:
        return _may_open(call, rules, mode, file, writes=writes)

    patterns = allowed_by(
        call.script,
        [rule.pattern for rule in commands],
        may_read=lambda file: may(file, writes=False),
        may_write=lambda file: may(file, writes=True),
    )
    return [next(rule.text for rule in commands if rule.pattern == pattern) for pattern in patterns or ()]


def _may_open(call: Call, rules: Sequence[Rule], mode: str, file: File, *, writes: bool) -> bool:
    """Whether a file may be opened that shell text names, beside what its commands may."""
    if call.is_device(file):
        return True
    spot = call.spot_of(file, writes=writes)
    if not spot.known or not spot.paths or (writes and spot.several_names):
        return False
    if spot.within(call.places.workspace) and (not writes or mode == "ACCEPT_EDITS"):
        return True
    about = [rule for rule in rules if rule.tool == ("Edit" if writes else "Read")]
    if any(rule.kind is Kind.ALL for rule in about):
        return True
    paths = [rule for rule in about if rule.kind is Kind.PATH]
    return all(any(_fits(rule, path, call.places, folder=spot.folder) for rule in paths) for path in spot.paths)


def _may_edit(rule: Rule, call: Call) -> bool:
    return rule.tool == "Edit" or rule.tool == call.tool


def _is_tool(pattern: str, tool: str, *, allows: bool) -> bool:
    """Whether the name of a tool in a rule means this tool."""
    if tool in SHELLS and pattern == "Bash":
        return True
    if pattern == tool:
        return True
    if not allows:
        return _glob(pattern).fullmatch(tool) is not None or (
            pattern.startswith("mcp__") and tool.startswith(f"{pattern.removesuffix('__')}__")
        )
    if pattern == "*":
        return True
    if not pattern.startswith("mcp__") or not tool.startswith("mcp__"):
        return False
    server, _, rest = pattern.removeprefix("mcp__").partition("__")
    wanted = f"mcp__{server}__"
    if not tool.startswith(wanted):
        return False
    inner = tool.removeprefix(wanted)
    # `mcp__a__b__c` is a tool of the server `a`, or of one named `a__b`: then only a rule that says more means it.
    unclear = inner.startswith("_") or "__" in inner
    if not rest:
        return not unclear
    if unclear and "__" not in rest.split("*", 1)[0]:
        return False
    return _glob(rest).fullmatch(inner) is not None


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    """`*` is any text; every other letter is itself."""
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


# ---- For the rest of the session ----


def session_rules(
    tool: str,
    tool_input: Mapping[str, Any],
    workspace: str,
    *,
    home: str | None = None,
    folder: str | None = None,
    resolve: Callable[[str], Target] | None = None,
) -> list[str]:
    """The rules that an answer "for the session" would add, none wider than what the person sees of this call.

    There are none where no rule would do: for what only people can answer, for programs that run others, for tools that
    may have an effect outside, for whole trees such as the workspace, the home and the root, for protected names, for
    what leads through links, and where these rules would not allow the very call.
    """
    places = Places(workspace, home)
    call = read_call(tool, tool_input, places, folder=folder, resolve=resolve)
    found: list[str] = []
    if call.script is not None:
        found = [f"Bash({pattern})" for pattern in session_patterns(call.script)]
    elif call.tool in READERS or call.tool in EDITORS:
        found = _session_files(call)
    elif call.address is not None and call.address.plain and call.address.host is not None:
        found = [f"WebFetch(domain:{call.address.host})"]
    rules = [rule for rule in read_rules(found, allow=True) if rule.kind is not Kind.UNREADABLE]
    if len(rules) < len(found) or any(_CONTROL.search(text) for text in found):
        return []
    again = decide(
        tool,
        tool_input,
        workspace=workspace,
        mode="DEFAULT",
        allowed=rules,
        disallowed=[],
        home=home,
        folder=folder,
        resolve=resolve,
    )
    return list(dict.fromkeys(found)) if again.outcome is Outcome.ALLOW else []


def _session_files(call: Call) -> list[str]:
    if len(call.spots) != 1 or not call.spots[0].known or len(call.spots[0].paths) != 1:
        return []
    spot, places = call.spots[0], call.places
    path = spot.paths[0]
    if spot.protected is not None:
        return []
    roots = {"/", places.workspace, places.home}
    if path in roots or (spot.folder and any(root and is_below(root, path) for root in roots)):
        return []
    return [f"{call.tool}({path_pattern(path, places, below=spot.folder)})"]
