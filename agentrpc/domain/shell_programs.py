"""What programs do with their arguments: which others they run.

Wrappers run what follows their own options: some change nothing about it (`timeout 5 ls` is `ls`), others do (`env`,
`sudo`). Shells and their like run a text. What is not known to run others is taken to run none: a rule that denies
binds what a line says, not what a program does by itself.
"""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

from agentrpc.domain.shell import Command, Script, Word, read_shell
from agentrpc.domain.shell_builtins import changes, unseen_by
from agentrpc.domain.shell_dialects import BASHES, POSIX_SHELLS, dialect_doubt
from agentrpc.domain.shell_grammar import HIDES, RESERVED

__all__ = [
    "SHELLS",
    "UNKNOWN",
    "Flags",
    "Runs",
    "flags_of",
    "name_of",
    "runs_of",
    "take",
    "without_globals",
]

_MAX_DEPTH = 4
UNKNOWN = Word(None, "…", "", splits=True)
_RESERVED = frozenset({"[[", "case", "for", "function", "if", "select", "until", "while", "{"})


def name_of(word: Word) -> str | None:
    """The base name of a program; None when it is unknown."""
    if word.text is None or word.glob:
        return None
    return posixpath.basename(word.text) or word.text


@dataclass(frozen=True, slots=True)
class Flags:
    """The options of a program: short ones by letter, long ones by name; those that take a value apart."""

    plain: frozenset[str]
    valued: frozenset[str]


def flags_of(text: str) -> Flags:
    """Options as `-a -b: --long --other:`, where `:` says that a value follows."""
    names = text.split()
    return Flags(
        frozenset(name for name in names if not name.endswith(":")),
        frozenset(name.removesuffix(":") for name in names if name.endswith(":")),
    )


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """A program that runs its arguments behind its own options, operands and, if so, assignments."""

    flags: Flags
    operands: int = 0
    assignments: bool = False
    # It changes nothing about what it runs.
    clear: bool = False


_CLEAR = {
    "builtin": _Wrapper(flags_of(""), clear=True),
    "command": _Wrapper(flags_of("-p"), clear=True),
    "coproc": _Wrapper(flags_of(""), clear=True),
    "exec": _Wrapper(flags_of("-c -l -a:"), clear=True),
    "nice": _Wrapper(flags_of("-n: --adjustment:"), clear=True),
    "nohup": _Wrapper(flags_of(""), clear=True),
    "stdbuf": _Wrapper(flags_of("-i: -o: -e: --input: --output: --error:"), clear=True),
    "time": _Wrapper(flags_of("-p"), clear=True),
    "timeout": _Wrapper(
        flags_of("-k: -s: -v --kill-after: --signal: --foreground --preserve-status --verbose"), 1, clear=True
    ),
    "xargs": _Wrapper(flags_of(""), clear=True),
}
_WRAPPERS = _CLEAR | {
    "chroot": _Wrapper(flags_of("--userspec: --groups: --skip-chdir"), 1),
    "chrt": _Wrapper(flags_of("-b -f -i -o -r -R"), 1),
    "doas": _Wrapper(flags_of("-n -u: -C:")),
    "env": _Wrapper(
        flags_of("-i - --ignore-environment -0 --null -u: --unset: -C: --chdir: -v --debug"), assignments=True
    ),
    "fakeroot": _Wrapper(flags_of("")),
    "flock": _Wrapper(flags_of("-s -x -e -n -u -o -F -w: -E: --shared --exclusive --nonblock --wait: --timeout:"), 1),
    "ionice": _Wrapper(flags_of("-c: -n: -t --class: --classdata: --ignore")),
    "npx": _Wrapper(flags_of("-y --yes -q --quiet --no -p: --package:")),
    "setsid": _Wrapper(flags_of("-c -f -w --ctty --fork --wait")),
    "sudo": _Wrapper(flags_of("-A -b -E -H -k -n -P -S -C: -g: -h: -p: -R: -r: -T: -t: -u: --"), assignments=True),
    "taskset": _Wrapper(flags_of("-a"), 1),
    "unbuffer": _Wrapper(flags_of("-p")),
    "xvfb-run": _Wrapper(flags_of("-a -e: -n: -s: --auto-servernum --server-args:")),
}
_XARGS = flags_of(
    "-0 -o -p -r -t -x -a: -d: -E: -I: -L: -n: -P: -s: --null --no-run-if-empty --verbose --exit --open-tty --interactive"
    " --arg-file: --delimiter: --max-lines: --max-args: --max-procs: --max-chars:"
)
# Words that make another program's next word a program.
_SUBCOMMANDS = {("uv", "run"), ("poetry", "run"), ("pipenv", "run"), ("bundle", "exec"), ("npm", "exec"), ("npm", "x"),
                ("pnpm", "exec"), ("yarn", "exec"), ("direnv", "exec"), ("git", "bisect")}  # fmt: skip

# They run what stands somewhere in their arguments; those of the second kind behind such a word.
_RUNNERS = frozenset({
    "catchsegv", "choom", "dbus-run-session", "faketime", "hyperfine", "linux32", "linux64", "perf", "pkexec", "prlimit",
    "setarch", "sg", "start-stop-daemon", "toybox", "valgrind",
})  # fmt: skip
_RUNNING = {
    "asdf": {"exec"}, "conda": {"run"}, "docker": {"run", "exec"}, "gdb": {"--args"}, "hatch": {"run"}, "kubectl": {"exec", "run"},
    "mamba": {"run"}, "mise": {"exec", "x"}, "nix": {"run", "develop", "shell"}, "nix-shell": {"--run", "--command"}, "pdm": {"run"},
    "pixi": {"run"}, "podman": {"run", "exec"}, "pyenv": {"exec"}, "rbenv": {"exec"}, "rye": {"run"}, "tox": {"--", "exec"},
}  # fmt: skip

_SSH = flags_of(
    "-4 -6 -A -a -C -f -G -g -K -k -M -N -n -q -s -T -t -V -v -X -x -Y -y -B: -b: -c: -D: -E: -e: -F: -I: -i: -J: -L: -l: -m:"
    " -O: -o: -P: -p: -Q: -R: -S: -W: -w:"
)
_WATCH = flags_of("-b -c -d -e -g -n: -p -t -w -x --no-title --interval: --differences")
SHELLS = BASHES | POSIX_SHELLS | {
    "csh", "elvish", "fish", "ksh", "ksh93", "lksh", "mksh", "nu", "oksh", "posh", "pwsh", "tcsh", "xonsh", "yash", "zsh",
}  # fmt: skip
_SHELL_FLAGS = re.compile(r"-[abefhklmnprtuvxBCEHPTi]*c[aefhmux]*|-[efuvxl]+")


@dataclass(frozen=True, slots=True)
class Runs:
    """What a simple command runs.

    Attributes:
        words: Its words, with an unknown one at the end where a program adds arguments.
        programs: Where in the words programs stand: the first, and behind each wrapper the next.
        clear: Those of them before which nothing but wrappers stands that change nothing.
        inner: Commands that it runs besides: those of a text, or of `find -exec`.
        unseen: Why it may run something that is not named here; empty when it may not.
        changes: It changes what later commands mean.
    """

    words: tuple[Word, ...]
    programs: tuple[int, ...]
    clear: tuple[int, ...]
    inner: tuple[Command, ...] = ()
    unseen: str = ""
    changes: bool = False

    @property
    def last(self) -> int:
        """Where the program stands that is no wrapper."""
        return self.programs[-1]


@dataclass(slots=True)
class _Found:
    words: list[Word]
    programs: list[int] = field(default_factory=list)
    clear: list[int] = field(default_factory=list)
    inner: list[Command] = field(default_factory=list)
    unseen: str = ""
    changes: bool = False

    def doubt(self, why: str) -> None:
        self.unseen = self.unseen or why


@lru_cache(4096)
def runs_of(command: Command) -> Runs:
    """What a simple command runs; it must have words."""
    depth = command.depth
    found = _Found(list(command.words))
    at: int | None = 0
    clear = True
    while at is not None and at < len(found.words):
        found.programs.append(at)
        if clear:
            found.clear.append(at)
        if len(found.programs) > _MAX_DEPTH * 2:
            found.doubt("programs that run programs, too deeply")
            break
        name = name_of(found.words[at])
        if name is None:
            found.doubt("it runs a program whose name is unknown")
            break
        if at and found.words[at].source in _RESERVED:
            found.doubt("a word that bash keeps for itself behind a wrapper")
        if name == "coproc" and any(word.source in RESERVED for word in found.words[at:]):
            found.doubt("coproc runs more than a simple command")
        if at and found.words[at].source == "!":
            found.programs.pop()
            at += 1
            continue
        if at and re.match(r"[A-Za-z_][A-Za-z0-9_]*(\[[^]]*\])?\+?=", found.words[at].source):
            # `time A=1 ls`.
            found.programs.pop()
            clear = False
            at += 1
            continue
        wrapper = _WRAPPERS.get(name)
        following = _behind(name, wrapper, found, at) if wrapper else _subcommand(name, found, at)
        if following is None:
            _looks_into(name, found, at, depth)
        clear = clear and wrapper is not None and wrapper.clear and (name != "xargs" or following == at + 1)
        at = following
    if not found.programs:
        found.programs.append(0)
    inner = tuple(
        replace(one, folder=command.folder if not one.folder else None, depth=depth + 1) for one in found.inner
    )
    return Runs(
        tuple(found.words), tuple(found.programs), tuple(found.clear) or (0,), inner, found.unseen, found.changes
    )


def _behind(name: str, wrapper: _Wrapper, found: _Found, at: int) -> int | None:
    """Where the program stands that a wrapper runs; None when it runs none, or that is not certain."""
    words = found.words
    if name == "command" and len(words) > at + 1 and words[at + 1].text in {"-v", "-V"}:
        return None
    place = _options(name, _XARGS if name == "xargs" else wrapper.flags, found, at + 1)
    if place is None:
        return None
    if name == "env" and place < len(words) and words[place].text == "-":
        # Behind `--` too, for some.
        place += 1
    # As the wrapper sees them: its arguments, however they were quoted.
    while wrapper.assignments and place < len(words) and "=" in (given := words[place].text or words[place].prefix):
        if HIDES.fullmatch(given.split("=")[0]):
            found.doubt("it sets a variable that names commands")
        place += 1
    place += wrapper.operands
    if name == "flock" and place < len(words) and words[place].text in {"-c", "--command"}:
        found.doubt("flock runs a text")
        return None
    if name == "xargs":
        _add_arguments(words, at, place)
    return place if place < len(words) else None


def _options(name: str, flags: Flags, found: _Found, place: int) -> int | None:
    """Where the options of a wrapper end; None when that is not certain."""
    words = found.words
    while place < len(words):
        text = words[place].text
        if text is None or words[place].glob:
            found.doubt(f"{name} runs a program whose name is unknown")
            return None
        if text == "--":
            return place + 1
        if not text.startswith("-") or (text == "-" and "-" not in flags.plain):
            return place
        taken = 1 if name == "nice" and re.fullmatch(r"-+[0-9]+", text) else take(text, flags)
        if taken is None:
            found.doubt(f"{name} has an option that is not known here")
            return None
        place += taken
    return place


def _add_arguments(words: list[Word], at: int, place: int) -> None:
    """What `xargs` puts in place of a word, or adds."""
    replaced = ""
    for index in range(at + 1, min(place, len(words))):
        text = words[index].text or ""
        if text.startswith("-I"):
            replaced = text[2:] or ((words[index + 1].text or "") if index + 1 < len(words) else "")
    if replaced:
        words[place:] = [word if replaced not in (word.text or replaced) else UNKNOWN for word in words[place:]]
    else:
        words.append(UNKNOWN)


def take(text: str, flags: Flags) -> int | None:
    """How many words an option takes; None when it is not one of those."""
    if text.startswith("--"):
        name, equals, _ = text.partition("=")
        if name in flags.valued:
            return 1 if equals else 2
        return 1 if name in flags.plain and not equals else None
    if text in flags.plain:
        return 1
    for index, letter in enumerate(text[1:], 1):
        if f"-{letter}" in flags.valued:
            return 1 if index + 1 < len(text) else 2
        if f"-{letter}" not in flags.plain:
            return None
    return 1


def _subcommand(name: str, found: _Found, at: int) -> int | None:
    words = found.words
    if name == "busybox":
        return at + 1
    if at + 1 < len(words) and (name, words[at + 1].text) in _SUBCOMMANDS:
        if name == "git":
            return at + 3 if at + 3 < len(words) and words[at + 2].text == "run" else None
        following = at + 2
        if following < len(words) and (words[following].text or "-").startswith("-"):
            found.doubt(f"{name} has an option that is not known here")
            return None
        return following
    return None


def _looks_into(name: str, found: _Found, at: int, depth: int) -> None:
    """What a program that is no wrapper runs besides."""
    arguments = found.words[at + 1 :]
    if name in SHELLS:
        _shell(name, found, arguments, depth)
    elif name in {"eval", "trap", "watch", "ssh", "su", "runuser", "script", "alias"}:
        _text(name, found, arguments, depth)
    elif name == "find":
        _find(found, arguments)
    elif name in {".", "source"}:
        found.doubt("it runs a file")
    elif name in {"parallel", "entr", "unshare", "nsenter", "bwrap", "setpriv", "systemd-run", "strace", "ltrace"}:
        found.doubt(f"{name} runs its arguments")
        found.inner += [_command(arguments[index:]) for index in range(min(10, len(arguments)))]
    elif name in _RUNNERS or (name in _RUNNING and not _RUNNING[name].isdisjoint(word.text for word in arguments)):
        found.inner += [_command(arguments[index:]) for index in range(min(20, len(arguments)))]
        for word in arguments:
            if word.text is not None and " " in word.text:
                _inner(found, word.text, depth, "sh")
    elif name == "git":
        _git(found, arguments, depth)
    found.doubt(unseen_by(name, arguments))
    found.changes = found.changes or changes(name, arguments)


def _shell(name: str, found: _Found, arguments: list[Word], depth: int) -> None:
    """A shell: its text is the first word behind its options, if `-c` is one of them."""
    takes_text = False
    for word in arguments:
        text = word.text
        if text is None or word.glob:
            break
        if text.startswith("-") and _SHELL_FLAGS.fullmatch(text):
            takes_text = takes_text or "c" in text
        elif not takes_text and text in {"--version", "--help", "-n"}:
            return
        elif text.startswith(("-", "+")):
            if text not in {"--norc", "--noprofile", "--posix"}:
                break
        elif takes_text and name != "fish":
            _inner(found, text, depth, name)
            return
        else:
            break
    found.doubt(f"{name} runs what is not seen here")


def _text(name: str, found: _Found, arguments: list[Word], depth: int) -> None:
    """Programs that run a text, or their arguments as one."""
    if name == "alias":
        _alias(found, arguments, depth)
    elif name == "ssh":
        found.doubt("ssh runs commands elsewhere")
        _joined(name, found, _behind_options(arguments, _SSH)[1:], depth, "sh")
    elif name in {"su", "runuser", "script"}:
        found.doubt(f"{name} runs what is not seen here")
        for word, following in pairwise(arguments):
            if word.text in {"-c", "--command"} and following.text is not None:
                _inner(found, following.text, depth, "sh")
    elif name == "watch":
        _joined(name, found, _behind_options(arguments, _WATCH), depth, "sh")
    else:
        rest = arguments[1:] if arguments and arguments[0].text == "--" else arguments
        if name == "trap":
            if len(rest) == 1 or (rest and (rest[0].text or "").startswith("-")):
                return
            rest = rest[:1]
        _joined(name, found, rest, depth)


def _alias(found: _Found, arguments: list[Word], depth: int) -> None:
    for word in arguments:
        if word.text is None:
            found.doubt("alias with an unknown value")
        elif "=" in word.text:
            _inner(found, word.text.split("=", 1)[1], depth)
            found.doubt("it sets an alias")


def _behind_options(arguments: list[Word], flags: Flags) -> list[Word]:
    rest = arguments
    while rest and (rest[0].text or "").startswith("-"):
        rest = rest[take(str(rest[0].text), flags) or 1 :]
    return rest


def _joined(name: str, found: _Found, words: list[Word], depth: int, shell: str = "bash") -> None:
    """Words that are run as one text."""
    if any(word.text is None or word.glob for word in words):
        found.doubt(f"{name} runs a text that is unknown")
    known = [word.text for word in words if word.text is not None]
    if known:
        _inner(found, " ".join(known), depth, shell)


def _inner(found: _Found, text: str, depth: int, shell: str = "bash") -> None:
    """A text that a shell runs; without a name it is the one that runs the line."""
    if depth >= _MAX_DEPTH:
        found.doubt("shells in shells, too deeply")
        return
    script: Script = read_shell(text)
    if not script.certain:
        found.doubt(f"in the text that it runs: {script.why}")
    if script.calculates:
        found.doubt("in the text that it runs: it calculates with variables")
    found.doubt(dialect_doubt(shell, text))
    found.inner += script.commands


def _command(words: Iterable[Word]) -> Command:
    taken = tuple(words)
    return Command(taken, source=" ".join(word.source for word in taken))


def _find(found: _Found, arguments: list[Word]) -> None:
    index = 0
    while index < len(arguments):
        text = arguments[index].text
        if text is None or arguments[index].splits:
            if text is None:
                found.doubt("find with an unknown argument")
        elif text in {"-exec", "-execdir", "-ok", "-okdir"}:
            end = index + 1
            while end < len(arguments) and arguments[end].text not in {";", "+"}:
                end += 1
            words = [
                word if word.text is None or "{}" not in word.text else UNKNOWN for word in arguments[index + 1 : end]
            ]
            if words:
                found.inner.append(_command(words))
            index = end
        elif text == "-delete":
            found.inner.append(_command([Word("unlink", "unlink", "unlink"), UNKNOWN]))
            found.doubt("find removes files")
        index += 1


# Options of git's subcommands that are followed by a text that it runs.
_GIT_TEXT = re.compile(r"(?:-x|--exec=?|--extcmd=?|--[a-z-]+-filter=?)(.*)", re.DOTALL)


def _git(found: _Found, arguments: list[Word], depth: int) -> None:
    texts = [word.text or "" for word in arguments]
    for text, following in pairwise(texts):
        if text == "-c" and re.match(
            r"(?i)(alias\.|core\.|pager\.|.*\.(cmd|command|textconv|process|clean|smudge))", following
        ):
            found.doubt("git gets a configuration that may name programs")
    if "foreach" in texts:
        behind = [text for text in texts[texts.index("foreach") + 1 :] if not text.startswith("-")]
        for text in dict.fromkeys([*behind, " ".join(behind)]):
            _inner(found, text, depth, "sh")
    for at, text in enumerate(texts):
        value = _GIT_TEXT.match(text)
        if value and not {"rebase", "difftool", "filter-branch"}.isdisjoint(texts):
            _inner(found, value[1] or next(iter(texts[at + 1 :]), ""), depth, "sh")


_GLOBALS = {
    "git": flags_of(
        "-C: -c: -p -P -v -h --git-dir: --work-tree: --namespace: --exec-path: --config-env: --super-prefix: --paginate"
        " --no-pager --bare --no-replace-objects --literal-pathspecs --glob-pathspecs --no-optional-locks --no-lazy-fetch"
    ),
    "docker": flags_of("-c: -D -H: -l: --config: --context: --debug --host: --log-level: --tls"),
    "kubectl": flags_of("-n: -s: -v: --namespace: --context: --cluster: --kubeconfig: --server: --user: --as:"),
    "npm": flags_of("-C: -s -g --prefix: --silent --global --loglevel:"),
}


def without_globals(name: str, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """A command without the options that stand before its subcommand: `git -C x push` is `git push`."""
    flags = _GLOBALS.get(name)
    at = 1
    while flags is not None and at < len(words) and (words[at].text or "").startswith("-"):
        at += take(words[at].text or "", flags) or 1
    return (words[0], *words[at:])
