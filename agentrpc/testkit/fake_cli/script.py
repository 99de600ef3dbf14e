r"""The directives with which a prompt tells the fake CLI what to do.

Those of `agentrpc.embedded.scripted_model` mean the same here, but `[[cut]]`, as there is no connection to cut, and
`[[heard: a word]]`, as there is no model that is told the conversation:

    [[text: Hello *world*]]                     a block of text; \n is a line break
    [[deltas: 20000 size=4]]                    a block of so many pieces of text, sent as fast as can be
    [[thinking: let me see]]                    a block of thinking
    [[redacted: abc]]                           a block of thinking that the provider withholds
    [[tool: Bash {"command": "ls"}]]            a call of a tool; several in one step are parallel calls
    [[search: cats]]                            a web search that the provider runs
    [[then]]                                    ends a step: the next one answers the results of its calls
    [[repeat: 200]]                             this step is played so often
    [[delay: 2.5]]                              seconds before the answer
    [[slow: 50]]                                milliseconds between the pieces of this step
    [[stall: 30]]                               seconds of silence in the middle
    [[error: 529 times=2]]                      the provider's error; with `times` it is tried again so often
    [[stop_reason: max_tokens]]                 why it stopped
    [[usage: input=10 output=20]]               what it claims to have used
    [[demo]]                                    a Bash call and a closing text

Faults. `start` is before the first piece of the step's answer, `text` in its middle, `tool` while its first call runs,
`end` when the turn is done but its result not sent:

    [[crash: text status=3]]                    the process ends; signal=9 instead of status= kills it
    [[hang: text]]                              nothing happens any more until an interrupt
    [[deaf]]                                    from now on interrupts get no answer and have no effect
    [[flood: 10000 kind=progress size=100]]     so many frames as fast as can be: delta, message, progress, unknown
    [[huge: 2000000 kind=text]]                 one line of so many bytes: text, unknown
    [[frame: {"type": "mystery"}]]              this frame
    [[line: not JSON]]                          this line
    [[control: mystery]]                        a control request of this kind; the next text says what came back
    [[stderr: some words]]                      a line to standard error
    [[children: setsid term stop]]              children are left, each deaf to SIGTERM: in a session of its own, in
                                                that of the CLI, stopped
    [[ignore_sigterm]]                          from now on
    [[stay]]                                    does not leave at the end of its input
    [[memory: 100]]                             takes so many MiB and keeps them
    [[exit: 0]]                                 ends in good order without a result
    [[no_result]]                               the turn ends, and no result says so
    [[duplicate_result]]                        two results for one turn

At the start of the process (see `agentrpc.testkit.write_cli`) there are also:

    [[crash: initialize]]                       when it is asked to initialize; plain `[[crash]]` is at once
    [[hang: initialize]]                        the same; plain `[[hang]]` reads nothing at all
    [[delay: 2]]                                seconds before it reads its input
    [[starts: 2]]                               all of this is for the first two starts in one HOME only
    [[no_hooks]]                                claims that it cannot keep hooks
    [[deferred: unhooked]]                      takes a deferred call up before the hooks are in force, as the real CLI
                                                does most of the time: what only reads runs without a question, for
                                                the rest it asks for a permission
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Start", "Step", "has_directives", "parse", "parse_start", "pieces"]

_LINE = re.compile(r"^\s*\[\[(\w+)(?::\s*(.*?))?\]\]\s*$", re.MULTILINE)
_OPTION = re.compile(r"\b(\w+)=(\S+)")
_DEMO = r"""
[[text: I will look at where I am.]]
[[tool: Bash {"command": "uname -sr && echo hello from a real tool | tee hello.txt", "description": "Look around"}]]
[[then]]
[[text: The tool really ran; `hello.txt` is in the workspace. I am the **fake CLI**: no model was asked.]]
"""
_FLAGS = frozenset({"deaf", "ignore_sigterm", "stay", "no_result", "duplicate_result", "no_hooks"})
_CONTENT = frozenset({"thinking", "redacted", "search", "line", "control", "stderr"})
_WHERE = frozenset({"start", "text", "tool", "end", "initialize"})


class Step:
    """One answer of the model that is not there, and what goes wrong with it.

    Attributes:
        items: What to emit in order: (kind, value).
        points: Where it crashes or hangs: name of the point to ("crash" or "hang", options).
        flags: What is switched on.
    """

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self.points: dict[str, tuple[str, dict[str, str]]] = {}
        self.flags: set[str] = set()
        self.delay = self.slow = self.stall = 0.0
        self.error: tuple[int, int] | None = None
        self.exit: int | None = None
        self.stop_reason = ""
        self.usage: dict[str, int] = {}


class Start(Step):
    """What happens at the start of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: int | None = None
        self.deferred = ""


def has_directives(text: str) -> bool:
    """Whether a prompt directs anything."""
    return _LINE.search(text) is not None


def parse(text: str) -> list[Step]:
    """The steps of a prompt. Raises ValueError for what is no directive."""
    steps: list[Step] = []
    step, repeat = Step(), 1
    for name, rest in _LINE.findall(text.replace("[[demo]]", _DEMO)):
        if name == "then":
            steps += [step] * repeat
            step, repeat = Step(), 1
        elif name == "repeat":
            repeat = int(rest)
        else:
            _direct(step, name, rest)
    return steps + [step] * repeat


def parse_start(text: str) -> Start:
    """The directives of a start. Raises ValueError for what is no directive."""
    start = Start()
    for name, rest in _LINE.findall(text):
        if name == "starts":
            start.starts = int(rest)
        elif name == "deferred":
            start.deferred = rest
        else:
            _direct(start, name, rest)
    return start


def pieces(text: str) -> list[str]:
    """The pieces in which a text is streamed: its words."""
    return re.findall(r"\s*\S+\s*", text) or [text]


def _direct(step: Step, name: str, rest: str) -> None:
    options: dict[str, str] = dict(_OPTION.findall(rest))
    first = rest.split(maxsplit=1)[0] if rest else ""
    if name == "text":
        step.items.append(("text", rest.replace("\\n", "\n")))
    elif name in _CONTENT:
        step.items.append((name, rest))
    elif name in _FLAGS:
        step.flags.add(name)
    elif name in {"crash", "hang"}:
        where = first if first and "=" not in first else ("text" if type(step) is Step else "start")
        if where not in _WHERE:
            msg = f"there is no {name} at {where}"
            raise ValueError(msg)
        step.points[where] = (name, options)
    elif name in {"delay", "stall", "slow"}:
        setattr(step, name, float(rest) / (1000 if name == "slow" else 1))
    elif name == "stop_reason":
        step.stop_reason = rest
    elif name == "usage":
        step.usage = {key: int(value) for key, value in options.items()}
    elif name == "exit":
        step.exit = int(rest or "0")
    elif name == "error":
        step.error = (int(first), int(options.get("times", "1000000")))
    else:
        step.items.append((name, _value(name, rest, first, options)))


def _value(name: str, rest: str, first: str, options: dict[str, str]) -> object:
    if name == "deltas":
        return int(first), int(options.get("size", "4"))
    if name == "flood":
        return int(first), options.get("kind", "progress"), int(options.get("size", "100"))
    if name == "huge":
        return int(first), options.get("kind", "text")
    if name == "memory":
        return int(rest)
    if name == "children":
        return rest.split()
    if name == "frame":
        return json.loads(rest)
    if name == "tool":
        tool, _, arguments = rest.partition(" ")
        return tool, arguments or "{}", json.loads(arguments or "{}")
    msg = f"there is no directive {name}"
    raise ValueError(msg)
