"""Rules for tool calls, and the decision that the gate takes by them.

A rule is the name of a tool, which may hold `*`, or the name with a pattern in parentheses, in the form that users know
from Claude Code's settings (https://code.claude.com/docs/en/permissions):

    Read                     every call of Read
    mcp__github__*           every tool of an MCP server
    Bash(git log:*)          commands that are `git log` or begin with `git log `
    Bash(npm run test)       that command exactly
    Edit(src/**)             files below src in the workspace
    WebFetch(domain:example.com)

Deny wins over everything. A compound shell command is allowed only if each of its parts is, and is denied as soon as
one of them is; whatever cannot be taken apart for certain (substitution, redirection, a broken quote) matches no allow
rule with a pattern. Unknown means ask, and nobody to ask means deny.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["EXIT_PLAN", "Decision", "Outcome", "Own", "Rule", "decide", "parse_rule", "session_rules", "target_path"]


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


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule: a glob over names of tools and, if it has one, the pattern in parentheses."""

    tool: str
    pattern: str | None
    text: str


_RULE = re.compile(r"([A-Za-z0-9_*.-]{1,200})(?:\((.+)\))?", re.DOTALL)
_MAX_RULE = 1000

# The CLI gives some tools two names, by version and place.
_ALIASES = {"Agent": "Task", "MultiEdit": "Edit"}

_PATH_INPUTS = {
    "Read": "file_path",
    "Edit": "file_path",
    "Write": "file_path",
    "NotebookEdit": "notebook_path",
    "Glob": "path",
    "Grep": "path",
    "LS": "path",
}
_READERS = frozenset({"Read", "Glob", "Grep", "LS"})
_EDITORS = frozenset({"Edit", "Write", "NotebookEdit"})

# Tools without an effect outside the agent itself. What a subagent does comes through the gate call by call.
_HARMLESS = frozenset(
    {
        "BashOutput",
        "EnterPlanMode",
        "KillShell",
        "ListAgents",
        "ReportFindings",
        "Skill",
        "StructuredOutput",
        "Task",
        "TaskCreate",
        "TaskGet",
        "TaskList",
        "TaskOutput",
        "TaskStop",
        "TaskUpdate",
        "TodoWrite",
        "ToolSearch",
    }
)

# The call with which an agent presents its plan.
EXIT_PLAN = "ExitPlanMode"

# Only a person can answer these; no rule or mode can.
PERSONAL = frozenset({"AskUserQuestion", EXIT_PLAN})


@dataclass(frozen=True, slots=True)
class Own:
    """Folders that the CLI tells its agent of: absolute paths.

    Attributes:
        plans: Where a plan is written before it is presented.
        results: Where results of calls are that were too long for the conversation.
    """

    plans: str
    results: str

    def may(self, tool: str, path: str) -> bool:
        """Whether a file tool may be used there without a question."""
        if _is_below(path, self.plans):
            return tool in _READERS or tool in _EDITORS
        return tool in _READERS and _is_below(path, self.results)


def parse_rule(text: str) -> Rule:
    """Parse a rule.

    Raises:
        ValueError: It has another form; the message says what a rule looks like.
    """
    found = _RULE.fullmatch(text) if len(text) <= _MAX_RULE else None
    if found is None:
        msg = "a rule is the name of a tool, such as Read or mcp__github__*, or Tool(pattern), such as Bash(git log:*)"
        raise ValueError(msg)
    name = found[1]
    return Rule(_ALIASES.get(name, name), found[2], text)


def decide(
    tool: str,
    tool_input: Mapping[str, Any],
    *,
    workspace: str,
    mode: str,
    allowed: Iterable[Rule],
    disallowed: Iterable[Rule],
    own: Own | None = None,
) -> Decision:
    """Decide about one call.

    Args:
        tool: Its tool.
        tool_input: Its input.
        workspace: The absolute path of the workspace, links resolved.
        mode: The permission mode, `DEFAULT`, `ACCEPT_EDITS`, `PLAN` or `DONT_ASK`.
        allowed: Rules that allow: those of the session's options and those that answers added.
        disallowed: Rules that deny.
        own: Where the agent has files of its own.
    """
    tool = _ALIASES.get(tool, tool)
    for rule in disallowed:
        if _denies(rule, tool, tool_input, workspace):
            return Decision(Outcome.DENY, f"the rule {rule.text} denies it", "rule")
    if tool in PERSONAL:
        if mode == "DONT_ASK":
            return Decision(Outcome.DENY, "in this permission mode nobody is asked", "mode")
        return Decision(Outcome.ASK, "only a person can answer it", "default")
    path = target_path(tool, tool_input, workspace)
    if own is not None and path is not None and own.may(tool, path):
        return Decision(Outcome.ALLOW, "it is a file of the agent's own", "default")
    if mode == "PLAN" and tool not in _HARMLESS and tool not in _READERS:
        return Decision(Outcome.DENY, "the agent is in plan mode and may change nothing: present the plan", "mode")
    rule_texts = _allowing(list(allowed), tool, tool_input, workspace)
    if rule_texts:
        return Decision(Outcome.ALLOW, f"the rule {', '.join(rule_texts)} allows it", "rule")
    return _by_default(tool, path, workspace, mode)


def _by_default(tool: str, path: str | None, workspace: str, mode: str) -> Decision:
    outside = path is not None and not _is_below(path, workspace)
    if tool in _HARMLESS:
        return Decision(Outcome.ALLOW, "it has no effect outside the agent", "default")
    if tool in _READERS and not outside:
        return Decision(Outcome.ALLOW, "it reads in the workspace", "default")
    if tool in _EDITORS and mode == "ACCEPT_EDITS" and not outside:
        return Decision(Outcome.ALLOW, "this permission mode accepts edits in the workspace", "mode")
    if mode == "DONT_ASK":
        return Decision(Outcome.DENY, "no rule allows it and in this permission mode nobody is asked", "mode")
    if outside:
        return Decision(Outcome.ASK, f"{path} is outside the workspace", "default", blocked_path=str(path))
    return Decision(Outcome.ASK, "no rule allows it", "default")


def target_path(tool: str, tool_input: Mapping[str, Any], workspace: str) -> str | None:
    """The absolute path that a call of a file tool is about; None for other tools."""
    key = _PATH_INPUTS.get(tool)
    if key is None:
        return None
    path = tool_input.get(key)
    if not isinstance(path, str) or not path:
        return workspace
    return posixpath.normpath(posixpath.join(workspace, path))


def session_rules(tool: str, tool_input: Mapping[str, Any], workspace: str) -> list[str]:
    """The rules that an answer "for the session" would add; none when no rule would be narrow enough."""
    tool = _ALIASES.get(tool, tool)
    if tool in PERSONAL:
        return []
    if tool == "Bash":
        commands = _commands(tool_input.get("command"))
        if not commands:
            return []
        rules = []
        for words in commands:
            # A program whose first argument is a command of its own (git push) is named with it.
            count = 2 if len(words) > 1 and re.fullmatch(r"[a-z][a-z-]*", words[1]) else 1
            rules.append(f"Bash({shlex.join(words[:count])}:*)")
        return list(dict.fromkeys(rules))
    path = target_path(tool, tool_input, workspace)
    if path is not None:
        if _is_below(path, workspace):
            return [f"{tool}(**)"]
        return [f"{tool}({posixpath.dirname(path)}/**)"]
    if tool == "WebFetch":
        domain = _domain(tool_input)
        return [f"WebFetch(domain:{domain})"] if domain else []
    return [tool]


def _denies(rule: Rule, tool: str, tool_input: Mapping[str, Any], workspace: str) -> bool:
    if not fnmatchcase(tool, rule.tool):
        return False
    if rule.pattern is None or rule.pattern == "*":
        return True
    if tool != "Bash":
        return _matches_input(rule.pattern, tool, tool_input, workspace)
    command = tool_input.get("command")
    commands = _commands(command)
    if commands is None:
        # It cannot be taken apart: the bare text of the pattern must do.
        return not isinstance(command, str) or rule.pattern.removesuffix(":*").split("*", 1)[0].strip() in command
    return any(_matches_words(rule.pattern, words) for words in commands)


def _allowing(rules: Sequence[Rule], tool: str, tool_input: Mapping[str, Any], workspace: str) -> list[str]:
    """The texts of the rules that together allow the call; none when they do not."""
    named = [rule for rule in rules if fnmatchcase(tool, rule.tool)]
    for rule in named:
        if rule.pattern is None or rule.pattern == "*":
            return [rule.text]
        if tool != "Bash" and _matches_input(rule.pattern, tool, tool_input, workspace):
            return [rule.text]
    if tool != "Bash":
        return []
    texts: dict[str, None] = {}
    for words in _commands(tool_input.get("command")) or ():
        text = next((rule.text for rule in named if _matches_words(rule.pattern or "", words)), None)
        if text is None:
            return []
        texts[text] = None
    return list(texts)


def _matches_input(pattern: str, tool: str, tool_input: Mapping[str, Any], workspace: str) -> bool:
    path = target_path(tool, tool_input, workspace)
    if path is not None:
        return _matches_path(pattern, path, workspace)
    if tool == "WebFetch" and pattern.startswith("domain:"):
        domain, wanted = _domain(tool_input), pattern.removeprefix("domain:")
        return domain == wanted or domain.endswith(f".{wanted}")
    # Any other tool: a glob over its first text, as in Skill(name).
    text = next((value for value in tool_input.values() if isinstance(value, str)), None)
    return text is not None and fnmatchcase(text, pattern)


def _matches_words(pattern: str, words: Sequence[str]) -> bool:
    text = " ".join(words)
    if pattern.endswith(":*"):
        prefix = pattern.removesuffix(":*")
        return text == prefix or text.startswith(f"{prefix} ")
    if "*" in pattern:
        return fnmatchcase(text, pattern)
    return text == pattern


_SEPARATORS = frozenset({";", "&", "&&", "|", "||", "\n"})


def _commands(command: object) -> list[list[str]] | None:
    """The simple commands of a shell line as words; None when that is not certain."""
    if not isinstance(command, str) or re.search(r"[`$<>(){}\\]|\n\s*\n", command):
        return None
    try:
        lexer = shlex.shlex(command.replace("\n", " ; "), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError:
        return None
    commands: list[list[str]] = [[]]
    for token in tokens:
        if token in _SEPARATORS:
            commands.append([])
        elif set(token) <= {";", "&", "|"}:
            return None
        else:
            commands[-1].append(token)
    commands = [words for words in commands if words]
    # `X=1 program` runs the program under another name than its first word.
    if any("=" in words[0] for words in commands):
        return None
    return commands


def _matches_path(pattern: str, path: str, workspace: str) -> bool:
    # `//etc/x` and `/etc/x` are absolute, all others lie in the workspace. `**` crosses folders, `*` does not.
    absolute = pattern.replace("//", "/", 1) if pattern.startswith("/") else posixpath.join(workspace, pattern)
    expression = ""
    for part in re.split(r"(\*\*|\*|\?)", absolute):
        expression += {"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.fullmatch(expression, path, re.DOTALL) is not None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _domain(tool_input: Mapping[str, Any]) -> str:
    url = tool_input.get("url")
    found = re.match(r"https?://(?:[^/@]*@)?([^/:?#]+)", url) if isinstance(url, str) else None
    return found[1].lower() if found else ""
