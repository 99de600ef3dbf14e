"""What a tool call is about, read from its input: the files that it opens, its shell text, its address, its subagent.

Every rule is matched against this, so that a tool is read in one place only.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from agentrpc.domain.path_rules import Places, is_below
from agentrpc.domain.protected_paths import may_be_protected, protected_name
from agentrpc.domain.shell import Script, read_shell
from agentrpc.domain.shell_files import File, files_of
from agentrpc.domain.url_rules import Address, read_url

__all__ = [
    "EDITORS",
    "EXIT_PLAN",
    "HARMLESS",
    "INPUTS",
    "PERSONAL",
    "READERS",
    "SHELLS",
    "Call",
    "Own",
    "Spot",
    "Target",
    "canonical_tool",
    "read_call",
]

# The CLI gives some tools two names, by version and place.
_ALIASES = {"Agent": "Task", "MultiEdit": "Edit"}

_PATH_INPUTS = {
    "Read": "file_path",
    "Edit": "file_path",
    "Write": "file_path",
    "NotebookEdit": "notebook_path",
    "NotebookRead": "notebook_path",
    "Glob": "path",
    "Grep": "path",
    "LS": "path",
}
READERS = frozenset({"Read", "NotebookRead", "Glob", "Grep", "LS"})
EDITORS = frozenset({"Edit", "Write", "NotebookEdit"})
# Those that look through a folder, which is the one they begin in when they name none.
_SEARCHERS = frozenset({"Glob", "Grep", "LS"})
# Tools that run the shell text in their input.
SHELLS = frozenset({"Bash", "Monitor"})

# Tools without an effect outside the agent itself. What a subagent does comes through the gate call by call.
HARMLESS = frozenset(
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

# The inputs that a rule such as `Bash(run_in_background:true)` may name, of tools whose patterns mean something else.
INPUTS: Mapping[str, frozenset[str]] = {
    "Bash": frozenset({"dangerouslyDisableSandbox", "description", "run_in_background", "timeout"}),
    "Monitor": frozenset({"description", "persistent", "timeout_ms"}),
    "Read": frozenset({"limit", "offset", "pages"}),
    "Edit": frozenset({"new_string", "old_string", "replace_all"}),
    "Write": frozenset({"content"}),
    "NotebookEdit": frozenset({"cell_id", "cell_type", "edit_mode", "new_source"}),
    "NotebookRead": frozenset(),
    "Glob": frozenset(),
    "Grep": frozenset({"glob", "head_limit", "multiline", "output_mode", "type"}),
    "LS": frozenset({"ignore"}),
    "WebFetch": frozenset({"prompt"}),
    "Task": frozenset({"description", "isolation", "mode", "model", "name", "prompt", "run_in_background"}),
    "Skill": frozenset({"args"}),
}

# What is always there and holds nothing.
_DEVICES = frozenset({"/dev/null", "/dev/stderr", "/dev/stdin", "/dev/stdout", "/dev/tty", "/dev/zero"})
_WILD = re.compile(r"[*?\[{]")
# What of a glob may lead elsewhere than the folder that it begins with.
_LEADS_AWAY = re.compile(r"\.\.|[{(|,]\s*/|/[^/{}()]*[)}|,]|[{(|,][^})]*/")


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
        if is_below(path, self.plans):
            return tool in READERS or tool in EDITORS
        return tool in READERS and is_below(path, self.results)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path leads to.

    Attributes:
        path: The absolute path of what is opened, links resolved; None: it cannot be told.
        several_names: It is a file that has further names (hard links).
    """

    path: str | None
    several_names: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """A file or folder that a call opens.

    Attributes:
        paths: The absolute paths that it has, as written and links resolved.
        known: Whether these are all.
        writes: Whether it is made, changed, moved or removed.
        folder: Everything below it too.
        source: As it is written.
        several_names: It is a file that has further names.
        named: The protected name that it has, or may have, as it is written.
    """

    paths: tuple[str, ...]
    known: bool
    writes: bool
    folder: bool = False
    source: str = ""
    several_names: bool = False
    named: str | None = None

    @property
    def protected(self) -> str | None:
        """The name in it that is never written without a question; None when there is none, or nothing is written."""
        found = (self.named, *map(protected_name, self.paths)) if self.writes else ()
        return next((name for name in found if name is not None), None)

    def within(self, folder: str) -> bool:
        """Whether all of it is known to be below a folder."""
        return self.known and all(is_below(path, folder) for path in self.paths)


@dataclass(frozen=True)
class Call:
    """A tool call, read.

    Attributes:
        tool: The one name of its tool.
        given: Its input.
        places: The folders that patterns begin at.
        folder: The folder that relative paths begin at: absolute.
        resolve: Where a path leads.
    """

    tool: str
    given: Mapping[str, Any]
    places: Places
    folder: str
    resolve: Callable[[str], Target] = field(repr=False)

    @cached_property
    def script(self) -> Script | None:
        """The shell text that it runs; None for other tools."""
        if self.tool not in SHELLS:
            return None
        command = self.given.get("command")
        return read_shell(command) if isinstance(command, str) else Script("", certain=False, why="it is no text")

    @cached_property
    def address(self) -> Address | None:
        """Where it goes; None for other tools."""
        return read_url(self.given.get("url")) if self.tool == "WebFetch" else None

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """The files and folders that it opens, as far as its input says."""
        if self.script is not None:
            files = files_of(self.script)
            found = [(file, False) for file in files.reads] + [(file, True) for file in files.writes]
            return tuple(self.spot_of(file, writes=writes) for file, writes in found if file.path not in _DEVICES)
        key = _PATH_INPUTS.get(self.tool)
        return () if key is None else tuple(self._named(key))

    @property
    def path(self) -> str | None:
        """The absolute path that a file tool is about, as it is written; None for other tools, or if it names none."""
        if self.tool not in _PATH_INPUTS:
            return None
        return next((spot.paths[0] for spot in self.spots if spot.paths), None)

    def spot_of(self, file: File, *, writes: bool) -> Spot:
        """What a file is that shell text names."""
        path, folder = file.path, file.tree
        elsewhere = (
            path is not None and path.startswith("~") and (self.places.home is None or path[1:2] not in {"", "/"})
        )
        if path is None or elsewhere or "\0" in path:
            # Wherever that is: its name may be plain to see, as in `~/.bashrc` and `"$HOME"/.bashrc`.
            name = may_be_protected("/" + (file.source if path is None else path).replace('"', "").replace("'", ""))
            return Spot((), known=False, writes=writes, source=file.source, named=name)
        name = None
        if file.glob:
            # Names of files take the place of the wildcards: anything in the folder that the path begins with.
            name = may_be_protected(path)
            path, folder = _before_wildcards(path), True
        return replace(self._spot(path, writes=writes, folder=folder, source=file.source), named=name)

    def is_device(self, file: File) -> bool:
        """Whether a file that shell text names is one that is always there and holds nothing."""
        return file.path in _DEVICES

    def _named(self, key: str) -> Iterable[Spot]:
        path, writes, searches = self.given.get(key), self.tool in EDITORS, self.tool in _SEARCHERS
        if searches and (path is None or path == ""):
            path = self.folder
        if not isinstance(path, str) or not path or "\0" in path:
            yield Spot((), known=False, writes=writes, folder=searches, source=str(path))
            return
        pattern = self.given.get("pattern")
        if self.tool != "Glob" or pattern is None or pattern == "":
            yield self._spot(path, writes=writes, folder=searches, source=path)
        elif not isinstance(pattern, str):
            yield Spot((), known=False, writes=False, folder=True, source=str(pattern))
        else:
            begins = _before_wildcards(pattern)
            whole = posixpath.join(self._expanded(path), self._expanded(begins))
            spot = self._spot(whole, writes=False, folder=True, source=pattern)
            away = _LEADS_AWAY.search(pattern[len(begins) :]) is not None
            yield Spot(spot.paths, spot.known and not away, writes=False, folder=True, source=pattern)

    def _spot(self, path: str, *, writes: bool, folder: bool, source: str) -> Spot:
        whole = posixpath.join(self.folder, self._expanded(path))
        plain = posixpath.normpath(whole)
        plain = f"/{plain.lstrip('/')}"
        # With `..` behind a link the kernel goes up from its target, and Node from the link: both may be meant.
        targets = [self.resolve(way) for way in dict.fromkeys([plain, whole])]
        known = all(target.path is not None for target in targets)
        paths = dict.fromkeys([plain, *(target.path for target in targets if target.path is not None)])
        several = any(target.several_names for target in targets)
        return Spot(tuple(paths), known, writes=writes, folder=folder, source=source, several_names=several)

    def _expanded(self, path: str) -> str:
        home = self.places.home
        if home is not None and (path == "~" or path.startswith("~/")):
            return home + path[1:]
        return path


def canonical_tool(name: str) -> str:
    """The one name of a tool."""
    return _ALIASES.get(name, name)


def read_call(
    tool: str,
    given: Mapping[str, Any],
    places: Places,
    *,
    folder: str | None = None,
    resolve: Callable[[str], Target] | None = None,
) -> Call:
    """Read a call. Never raises.

    Args:
        tool: Its tool.
        given: Its input.
        places: The folders that patterns begin at.
        folder: The folder that relative paths begin at. None: the workspace.
        resolve: Where an absolute path leads. None: nothing is a link.
    """
    begins = folder if folder and folder.startswith("/") else places.workspace
    return Call(canonical_tool(tool), given, places, begins, resolve or (lambda path: Target(posixpath.normpath(path))))


def _before_wildcards(pattern: str) -> str:
    """The folder that a glob begins with; the whole of it when it has no wildcards."""
    found = _WILD.search(pattern)
    if found is None:
        return pattern
    folder, slash, _ = pattern[: found.start()].rpartition("/")
    return folder or slash or "."
