"""What is odd about rules that are taken all the same: they can never match, are part of another, or contradict one."""

from collections.abc import Iterable, Sequence

from agentrpc.domain.calls import EDITORS, HARMLESS, PERSONAL, READERS, SHELLS
from agentrpc.domain.path_rules import Places, path_fits
from agentrpc.domain.protected_paths import protected_name
from agentrpc.domain.rule_syntax import Kind, Rule, read_rules
from agentrpc.domain.shell_rules import warnings_of
from agentrpc.domain.url_rules import domain_fits

__all__ = ["rule_warnings"]

_MOST = 20
# Beyond this rules are not compared with each other, which takes the square of their number.
_COMPARED = 200
_KNOWN = SHELLS | READERS | EDITORS | HARMLESS | PERSONAL | {"WebFetch", "WebSearch", "KillBash", "Workflow"}
_OUTSIDE = frozenset(
    {"bin", "boot", "dev", "etc", "home", "lib", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys"}
    | {"tmp", "usr", "var", "Users"}
)
# Stands for any workspace: patterns are compared as if they were paths.
_SOMEWHERE = Places("/workspace", "/home/agent")


def rule_warnings(allowed: Sequence[str], disallowed: Sequence[str]) -> list[str]:
    """What is odd about these rules together, in words for who wrote them; at most 20."""
    allow, deny = read_rules(allowed, allow=True), read_rules(disallowed, allow=False)
    found: dict[str, None] = {}
    for rule, allows in [*((rule, True) for rule in allow), *((rule, False) for rule in deny)]:
        found |= dict.fromkeys(f"{rule.text}: {why}" for why in _of_one(rule, allows=allows))
        if len(found) >= _MOST:
            return list(found)[:_MOST]
    found |= dict.fromkeys(_repeated(allowed))
    found |= dict.fromkeys(_repeated(disallowed))
    if len(allow) + len(deny) <= _COMPARED:
        found |= dict.fromkeys(_compared(allow, deny))
    return list(found)[:_MOST]


def _of_one(rule: Rule, *, allows: bool) -> Iterable[str]:
    if rule.kind is Kind.UNREADABLE:
        yield "is not of a form that is known: it allows nothing" if allows else "is not of a form that is known"
        return
    if allows and rule.tool == "*":
        yield "allows every call that no rule denies, those of all MCP servers too"
    if "_" not in rule.tool and "*" not in rule.tool and rule.tool not in _KNOWN:
        yield "no tool of that name is known: is it written as the tool is called?"
    if rule.kind is Kind.COMMAND:
        yield from warnings_of(rule.pattern, allows=allows)
    if rule.kind is not Kind.PATH:
        return
    if rule.pattern.startswith("/") and not rule.pattern.startswith("//") and rule.pattern.split("/")[1] in _OUTSIDE:
        yield f"/ is the workspace: write {rule.tool}(/{rule.pattern}) for a path from the root"
    if rule.tool in EDITORS - {"Edit"}:
        yield f"is about {rule.tool} alone: Edit({rule.pattern}) is about every tool that edits"
    if rule.tool in READERS - {"Read"}:
        yield f"is about {rule.tool} alone: Read({rule.pattern}) is about every tool that reads"
    name = protected_name(f"/{rule.pattern.lstrip('/')}")
    if (
        allows
        and rule.tool in EDITORS
        and name is not None
        and ("*" in rule.pattern or name != rule.pattern.split("/")[-1])
    ):
        yield f"{name} is not written without a question unless a rule names the very file"


def _repeated(rules: Sequence[str]) -> Iterable[str]:
    seen: set[str] = set()
    for text in rules:
        if text in seen:
            yield f"{text}: stands there twice"
        seen.add(text)


def _compared(allow: Sequence[Rule], deny: Sequence[Rule]) -> Iterable[str]:
    for rule in allow:
        against = next((other for other in deny if _covers(other, rule)), None)
        if against is not None:
            yield f"{rule.text}: allows nothing, because {against.text} denies all of it"
            continue
        wider = next((other for other in allow if other.text != rule.text and _covers(other, rule)), None)
        if wider is not None:
            yield f"{rule.text}: is part of {wider.text}, which allows it anyway"
    for rule in deny:
        wider = next((other for other in deny if other.text != rule.text and _covers(other, rule)), None)
        if wider is not None:
            yield f"{rule.text}: is part of {wider.text}, which denies it anyway"


def _covers(wide: Rule, rule: Rule) -> bool:
    """Whether everything that a rule fits is fitted by another one, as far as that is plain to see."""
    if Kind.UNREADABLE in {wide.kind, rule.kind} or not _tool_covers(wide, rule):
        return False
    if wide.kind is Kind.ALL:
        return True
    if wide.kind is not rule.kind or wide.input != rule.input:
        return False
    if wide.pattern == rule.pattern:
        return True
    if wide.kind is Kind.COMMAND:
        stem = _stem(wide.pattern)
        return stem is not None and f"{_stem(rule.pattern) or rule.pattern} ".startswith(f"{stem} ")
    if wide.kind is Kind.DOMAIN:
        return "*" not in rule.pattern and domain_fits(wide.pattern, rule.pattern.lower().rstrip("."))
    if wide.kind is Kind.PATH and not set("*?[\\~") & set(rule.pattern.removesuffix("/**")):
        path = rule.pattern.removeprefix(".").removesuffix("/**")
        whole = path[1:] if path.startswith("//") else f"{_SOMEWHERE.workspace}/{path.lstrip('/')}"
        # A name at any depth is more than a pattern that begins somewhere.
        deep = "/" not in rule.pattern.removesuffix("/**").lstrip("./")
        anchored = "/" in wide.pattern.removesuffix("/**").strip("/")
        return not (deep and anchored) and path_fits(
            wide.pattern, whole, _SOMEWHERE, denies=False, folder=rule.pattern.endswith("/**")
        )
    return False


def _tool_covers(wide: Rule, rule: Rule) -> bool:
    if wide.tool == rule.tool or (wide.tool == "*" and rule.tool != "*"):
        return True
    if wide.tool in {"Edit", "Read"} and wide.kind in {Kind.ALL, Kind.PATH}:
        return rule.tool in (EDITORS if wide.tool == "Edit" else READERS)
    if wide.tool.startswith("mcp__"):
        server = wide.tool.removesuffix("*").removesuffix("__")
        return "*" not in server and "__" not in server.removeprefix("mcp__") and rule.tool.startswith(f"{server}__")
    return False


def _stem(pattern: str) -> str | None:
    """What a pattern of commands begins with, if it is that and anything behind it."""
    for end in (":*", " *"):
        if pattern.endswith(end) and "*" not in pattern.removesuffix(end):
            return pattern.removesuffix(end)
    return None
