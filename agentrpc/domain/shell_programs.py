"""What programs do with their arguments: which other programs they run, and which flags keep them from running any.

Three tables. Wrappers run what follows their own options: some change nothing about it (`timeout 5 ls` is `ls`), others do
(`env`, `sudo`). Shells and their like run a text. And programs that can run others, or write, by their arguments are safe
with the flags that are named here, with no others: an abbreviated or unknown flag is not safe. A program that stands in
no table does with its arguments what the writer of a rule for it thinks it does.
"""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agentrpc.domain.shell import Command, Script, Word, read_shell

__all__ = ["PLAIN", "Runs", "consents", "is_safe", "name_of", "runs_of", "without_globals"]

_MAX_DEPTH = 4
_UNKNOWN = Word(None, "…", "", splits=True)
_RESERVED = frozenset({"[[", "case", "for", "function", "if", "select", "until", "while", "{"})


def name_of(word: Word) -> str | None:
    """The base name of a program; None when it is unknown."""
    if word.text is None or word.glob:
        return None
    return posixpath.basename(word.text) or word.text


@dataclass(frozen=True, slots=True)
class _Flags:
    """The options of a program: short ones by letter, long ones by name; those that take a value apart."""

    plain: frozenset[str]
    valued: frozenset[str]


def _flags(text: str) -> _Flags:
    """Options as `-a -b: --long --other:`, where `:` says that a value follows."""
    names = text.split()
    return _Flags(
        frozenset(name for name in names if not name.endswith(":")),
        frozenset(name.removesuffix(":") for name in names if name.endswith(":")),
    )


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """A program that runs its arguments behind its own options, operands and, if so, assignments."""

    flags: _Flags
    operands: int = 0
    assignments: bool = False
    # It changes nothing about what it runs.
    clear: bool = False


_CLEAR = {
    "builtin": _Wrapper(_flags(""), clear=True),
    "command": _Wrapper(_flags("-p"), clear=True),
    "coproc": _Wrapper(_flags(""), clear=True),
    "exec": _Wrapper(_flags("-c -l -a:"), clear=True),
    "nice": _Wrapper(_flags("-n: --adjustment:"), clear=True),
    "nohup": _Wrapper(_flags(""), clear=True),
    "stdbuf": _Wrapper(_flags("-i: -o: -e: --input: --output: --error:"), clear=True),
    "time": _Wrapper(_flags("-p"), clear=True),
    "timeout": _Wrapper(
        _flags("-k: -s: -v --kill-after: --signal: --foreground --preserve-status --verbose"), 1, clear=True
    ),
    "xargs": _Wrapper(_flags(""), clear=True),
}
_WRAPPERS = _CLEAR | {
    "chroot": _Wrapper(_flags("--userspec: --groups: --skip-chdir"), 1),
    "chrt": _Wrapper(_flags("-b -f -i -o -r -R"), 1),
    "doas": _Wrapper(_flags("-n -u: -C:")),
    "env": _Wrapper(
        _flags("-i - --ignore-environment -0 --null -u: --unset: -C: --chdir: -v --debug"), assignments=True
    ),
    "fakeroot": _Wrapper(_flags("")),
    "flock": _Wrapper(_flags("-s -x -e -n -u -o -F -w: -E: --shared --exclusive --nonblock --wait: --timeout:"), 1),
    "ionice": _Wrapper(_flags("-c: -n: -t --class: --classdata: --ignore")),
    "npx": _Wrapper(_flags("-y --yes -q --quiet --no -p: --package:")),
    "setsid": _Wrapper(_flags("-c -f -w --ctty --fork --wait")),
    "sudo": _Wrapper(_flags("-A -b -E -H -k -n -P -S -C: -g: -h: -p: -R: -r: -T: -t: -u: --"), assignments=True),
    "taskset": _Wrapper(_flags("-a"), 1),
    "unbuffer": _Wrapper(_flags("-p")),
    "xvfb-run": _Wrapper(_flags("-a -e: -n: -s: --auto-servernum --server-args:")),
}
_XARGS = _flags(
    "-0 -o -p -r -t -x -a: -d: -E: -I: -L: -n: -P: -s: --null --no-run-if-empty --verbose --exit --open-tty --interactive"
    " --arg-file: --delimiter: --max-lines: --max-args: --max-procs: --max-chars:"
)
# Words that make another program's next word a program.
_SUBCOMMANDS = {("uv", "run"), ("poetry", "run"), ("pipenv", "run"), ("bundle", "exec"), ("npm", "exec"), ("npm", "x"),
                ("pnpm", "exec"), ("yarn", "exec"), ("direnv", "exec"), ("git", "bisect")}  # fmt: skip

_SHELLS = frozenset({"ash", "bash", "dash", "fish", "ksh", "mksh", "rbash", "sh", "zsh"})
_SHELL_FLAGS = re.compile(r"-[abefhklmnprtuvxBCEHPTi]*c[aefhmux]*|-[efuvxl]+")

# Programs that run a text or file that they are given, or commands of a file in the folder. A rule must name the script,
# the module or the subcommand itself.
INTERPRETERS = frozenset({
    "ansible", "ansible-playbook", "ant", "ash", "awk", "bash", "bun", "bundle", "bunx", "cargo", "clisp", "cmake",
    "composer", "csh", "dash", "deno", "docker", "docker-compose", "dotnet", "ed", "elixir", "emacs", "erl", "ex",
    "expect", "fish", "gawk", "gdb", "ghci", "go", "gradle", "gradlew", "groovy", "guile", "helm", "hg", "invoke", "irb",
    "java", "jshell", "julia", "just", "kotlin", "ksh", "kubectl", "lein", "lldb", "ltrace", "lua", "make", "gmake",
    "mawk", "meson", "mix", "mksh", "mvn", "mysql", "nano", "nawk", "nc", "ncat", "ninja", "nix", "nix-shell", "node",
    "nodejs", "nox", "npm", "npx", "nvim", "octave", "osascript", "parallel", "perl", "php", "pip", "pip3", "pipenv",
    "pipx", "pnpm", "podman", "poetry", "psql", "puppet", "pwsh", "python", "python2", "python3", "R", "rake", "rbash",
    "Rscript", "ruby", "runuser", "rust-gdb", "sbt", "scala", "scp", "screen", "script", "sftp", "sh", "socat", "sqlite3",
    "ssh", "strace", "su", "svn", "swift", "systemctl", "systemd-run", "task", "tclsh", "telnet", "terraform", "tmux",
    "tox", "ts-node", "tsx", "uv", "uvx", "vi", "view", "vim", "watch", "wish", "xonsh", "yarn", "zsh",
})  # fmt: skip
_VERSIONED = re.compile(r"(python|perl|ruby|lua|php|node|pip|tclsh|guile)[0-9.]+")

# Programs that neither run others nor read a configuration from the folder they are in.
PLAIN = frozenset({
    "[", "basename", "cat", "cd", "chmod", "cksum", "cmp", "comm", "cp", "cut", "date", "df", "diff", "dirname", "du",
    "echo", "egrep", "expr", "false", "fgrep", "file", "fold", "grep", "head", "hexdump", "hostname", "id", "install",
    "join", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nl", "nproc", "od", "paste", "printenv", "printf", "ps", "pwd",
    "readlink", "realpath", "rev", "rm", "rmdir", "seq", "sha1sum", "sha256sum", "sha512sum", "shuf", "sleep", "stat",
    "strings", "sum", "tac", "tail", "tee", "test", "touch", "tr", "true", "truncate", "tty", "uname", "uniq", "unlink",
    "wc", "which", "whoami", "xxd", "yes", ":",
})  # fmt: skip

# Builtins that change what later words mean, or run what is not seen here; a rule must be that very command.
_CHANGERS = frozenset({
    ".", "alias", "bind", "builtin", "compgen", "complete", "compopt", "declare", "disown", "enable", "eval", "exec",
    "export", "fc", "getopts", "hash", "history", "let", "local", "logout", "mapfile", "popd", "pushd", "read",
    "readarray", "readonly", "select", "set", "shopt", "source", "suspend", "trap", "typeset", "umask", "unalias",
    "unset",
})  # fmt: skip
# Builtins whose arguments bash reads once more: an index, or a whole list of words, in a text.
_READ_AGAIN = frozenset({
    "declare", "export", "getopts", "let", "local", "mapfile", "read", "readarray", "readonly", "typeset", "unset", "wait",
})  # fmt: skip
_UNSEEN_FLAGS = {
    "bind": "-x", "compgen": "-CFW", "complete": "-CFW", "enable": "-f", "fc": "", "hash": "-p", "history": "", "jobs": "-x",
    "mapfile": "-C", "readarray": "-C",
}  # fmt: skip
_HIDDEN_BY_NAME = re.compile(r"(BASH_ENV|ENV|PS[0-9]|PROMPT_COMMAND|BASH_FUNC.*|SHELLOPTS|BASHOPTS)\+?")


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


def runs_of(command: Command, depth: int = 0) -> Runs:
    """What a simple command runs; it must have words."""
    found = _Found(list(command.words))
    for assignment in command.assignments:
        if _HIDDEN_BY_NAME.fullmatch(assignment.name):
            found.doubt(f"it sets {assignment.name}")
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
        if at and found.words[at].source == "!":
            found.programs.pop()
            at += 1
            continue
        if at and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", name, re.DOTALL):
            # `time A=1 ls`.
            found.programs.pop()
            clear = False
            at += 1
            continue
        wrapper = _WRAPPERS.get(name)
        following = _behind(name, wrapper, found, at) if wrapper else _subcommand(name, found, at)
        if following is None:
            _looks_into(name, found, at, command, depth)
        clear = clear and wrapper is not None and wrapper.clear and (name != "xargs" or following == at + 1)
        at = following
    if not found.programs:
        found.programs.append(0)
    inner = tuple(replace(one, folder=command.folder if not one.folder else None) for one in found.inner)
    return Runs(
        tuple(found.words), tuple(found.programs), tuple(found.clear) or (0,), inner, found.unseen, found.changes
    )


def _behind(name: str, wrapper: _Wrapper, found: _Found, at: int) -> int | None:
    """Where the program stands that a wrapper runs; None when it runs none, or that is not certain."""
    words = found.words
    if name == "command" and len(words) > at + 1 and words[at + 1].text in {"-v", "-V"}:
        return None
    flags = _XARGS if name == "xargs" else wrapper.flags
    place, replaced = at + 1, ""
    while place < len(words):
        text = words[place].text
        if text is None or words[place].glob:
            found.doubt(f"{name} runs a program whose name is unknown")
            return None
        if text == "--":
            place += 1
            break
        if not text.startswith("-") or text == "-":
            if text == "-" and "-" in flags.plain:
                place += 1
                continue
            break
        if name == "nice" and re.fullmatch(r"-+[0-9]+", text):
            place += 1
            continue
        taken = _take(text, flags)
        if taken is None:
            found.doubt(f"{name} has an option that is not known here")
            return None
        if name == "xargs" and text.startswith("-I"):
            replaced = text[2:] or ((words[place + 1].text or "") if place + 1 < len(words) else "")
        place += taken
    while wrapper.assignments and place < len(words) and re.match(r"[A-Za-z_]\w*=", words[place].source):
        if _HIDDEN_BY_NAME.fullmatch(words[place].source.split("=")[0]):
            found.doubt("it sets a variable that names commands")
        place += 1
    place += wrapper.operands
    if name == "flock" and place < len(words) and words[place].text in {"-c", "--command"}:
        found.doubt("flock runs a text")
        return None
    if name == "xargs":
        if replaced:
            found.words[place:] = [
                word if word.text is None or replaced not in word.text else _UNKNOWN for word in found.words[place:]
            ]
        else:
            found.words.append(_UNKNOWN)
    return place if place < len(words) else None


def _take(text: str, flags: _Flags) -> int | None:
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


def _looks_into(name: str, found: _Found, at: int, command: Command, depth: int) -> None:
    """What a program that is no wrapper runs besides."""
    arguments = found.words[at + 1 :]
    if name in _SHELLS:
        _shell(name, found, arguments, command, depth)
    elif name in {"eval", "trap", "watch", "ssh", "su", "runuser", "script", "alias"}:
        _text(name, found, arguments, depth)
    elif name == "find":
        _find(found, arguments)
    elif name in {".", "source"}:
        found.doubt("it runs a file")
    elif name in {"parallel", "entr", "unshare", "nsenter", "bwrap", "setpriv", "systemd-run", "strace", "ltrace"}:
        found.doubt(f"{name} runs its arguments")
        found.inner += [_command(arguments[index:]) for index in range(len(arguments))][:20]
    elif name == "git":
        _git(found, arguments, depth)
    if name in _UNSEEN_FLAGS:
        wanted = _UNSEEN_FLAGS[name]
        texts = [word.text for word in arguments]
        if not wanted or any(text is None or (text[:1] == "-" and set(text[1:]) & set(wanted[1:])) for text in texts):
            found.doubt(f"{name} may run others")
    if name in {"set", "shopt"} and any(word.text is None for word in arguments):
        found.doubt(f"{name} with an unknown option")
    _read_again(name, found, arguments)
    if name in _CHANGERS or (name == "printf" and (not arguments or arguments[0].text != "-v")) is None:
        found.changes = True
    if name == "printf" and arguments and (arguments[0].text is None or arguments[0].text.startswith("-v")):
        found.changes = True


def _read_again(name: str, found: _Found, arguments: list[Word]) -> None:
    if name == "printf":
        again = arguments[1:2] if arguments and arguments[0].text == "-v" else []
        if arguments and (arguments[0].text or "").startswith("-v") and arguments[0].text != "-v":
            found.doubt("printf sets a variable")
    elif name in {"test", "["}:
        places = [index for index, word in enumerate(arguments) if word.text in {"-v", "-R"}]
        again = [arguments[index + 1] for index in places if index + 1 < len(arguments)]
    elif name in _READ_AGAIN:
        again = arguments
    else:
        return
    for word in again:
        value = word.text
        if name in {"declare", "export", "local", "readonly", "typeset"} and value is None:
            # The value is expanded once; an array or an integer may be read again.
            if re.match(r"[A-Za-z_]\w*\+?=", word.source) and not any(
                (one.text or "-").startswith("-") for one in again
            ):
                continue
            if re.match(r"[A-Za-z_]\w*\+?=", word.source) and all(
                one.text in {"-x", "-g", "-r", "-l", "-u", "-xg", "-gx", "-rx"}
                for one in again
                if (one.text or "").startswith("-")
            ):
                continue
            found.doubt(f"{name} with an unknown name or value")
        elif value is None or re.search(r"[$`\[]", value):
            found.doubt(f"{name} may read its argument once more")
        elif _HIDDEN_BY_NAME.match(value):
            found.doubt(f"it sets {value.split('=')[0]}")
    if name == "let" and any(re.search(r"[A-Za-z]", word.text or "a") for word in again):
        found.doubt("it calculates with variables")


def _shell(name: str, found: _Found, arguments: list[Word], command: Command, depth: int) -> None:
    for index, word in enumerate(arguments):
        text = word.text
        if text is None:
            break
        if text.startswith("-") and "c" in text and not text.startswith("--"):
            if not _SHELL_FLAGS.fullmatch(text) or index + 1 >= len(arguments):
                break
            script_text = arguments[index + 1].text
            if script_text is None or arguments[index + 1].glob or name == "fish":
                break
            _inner(found, script_text, depth)
            return
        if text in {"--version", "--help", "-n"}:
            return
        if not (text.startswith("-") and _SHELL_FLAGS.fullmatch(text)) and text not in {
            "--norc",
            "--noprofile",
            "--posix",
        }:
            break
    found.doubt(f"{name} runs what is not seen here")


def _text(name: str, found: _Found, arguments: list[Word], depth: int) -> None:
    """Programs that run a text, or their arguments as one."""
    if name == "alias":
        for word in arguments:
            if word.text is None:
                found.doubt("alias with an unknown value")
            elif "=" in word.text:
                _inner(found, word.text.split("=", 1)[1], depth)
                found.doubt("it sets an alias")
        return
    if name in {"su", "runuser", "script"}:
        found.doubt(f"{name} runs what is not seen here")
        for word, following in zip(arguments, arguments[1:], strict=False):
            if word.text in {"-c", "--command"} and following.text is not None:
                _inner(found, following.text, depth)
        return
    if name == "ssh":
        found.doubt("ssh runs commands elsewhere")
        for index in range(1, len(arguments)):
            if all(word.text is not None for word in arguments[index:]):
                _inner(found, " ".join(str(word.text) for word in arguments[index:]), depth)
                return
        return
    rest = arguments
    while name == "watch" and rest and (rest[0].text or "").startswith("-"):
        taken = _take(str(rest[0].text), _flags("-b -c -d -e -g -n: -p -t -w -x --no-title --interval: --differences"))
        if taken is None:
            found.doubt("watch has an option that is not known here")
            return
        rest = rest[taken:]
    while name in {"eval", "trap"} and rest and rest[0].text in {"--"}:
        rest = rest[1:]
    if name == "trap":
        if len(rest) == 1 or (rest and (rest[0].text or "").startswith("-")):
            return
        rest = rest[:1]
    if any(word.text is None or word.glob for word in rest):
        found.doubt(f"{name} runs a text that is unknown")
        known = [word.text for word in rest if word.text is not None]
        if known:
            _inner(found, " ".join(known), depth)
    elif rest:
        _inner(found, " ".join(str(word.text) for word in rest), depth)


def _inner(found: _Found, text: str, depth: int) -> None:
    """A text that is run as shell text."""
    if depth >= _MAX_DEPTH:
        found.doubt("shells in shells, too deeply")
        return
    script: Script = read_shell(text)
    if not script.certain:
        found.doubt(f"in the text that it runs: {script.why}")
    if script.calculates:
        found.doubt("in the text that it runs: it calculates with variables")
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
                word if word.text is None or "{}" not in word.text else _UNKNOWN for word in arguments[index + 1 : end]
            ]
            if words:
                found.inner.append(_command(words))
            index = end
        elif text == "-delete":
            found.inner.append(_command([Word("unlink", "unlink", "unlink"), _UNKNOWN]))
            found.doubt("find removes files")
        index += 1


def _git(found: _Found, arguments: list[Word], depth: int) -> None:
    texts = [word.text or "" for word in arguments]
    for text, following in zip(texts, texts[1:], strict=False):
        if text == "-c" and re.match(
            r"(?i)(alias\.|core\.|pager\.|.*\.(cmd|command|textconv|process|clean|smudge))", following
        ):
            found.doubt("git gets a configuration that may name programs")
    if "foreach" in texts:
        for word in arguments[texts.index("foreach") + 1 :]:
            if word.text is not None and not word.text.startswith("-"):
                _inner(found, word.text, depth)
    for flag in ("-x", "--exec"):
        if "rebase" in texts and flag in texts and texts.index(flag) + 1 < len(texts):
            _inner(found, texts[texts.index(flag) + 1], depth)


# Programs that can run others, or write where no redirection shows it, by their arguments.

_DIFF = (
    " -p -u -s -U: -M -C -B -D -R -a -b -w -W -z -S: -G: -O: --patch --no-patch --unified: --raw --stat --stat: --numstat"
    " --shortstat --dirstat --summary --name-only --name-status --color --color: --no-color --word-diff --word-diff:"
    " --no-renames --find-renames --check --full-index --binary --abbrev --abbrev: --diff-filter: --pickaxe-regex"
    " --text --ignore-space-change --ignore-all-space --ignore-blank-lines --minimal --patience --histogram --exit-code"
    " --quiet --no-ext-diff --no-textconv --cached --staged --merge-base --relative --relative: --function-context"
)
_LOG = (
    " -n: -i -E -F -P -L: -g -c -m -0 -1 -2 -3 -4 -5 -6 -7 -8 -9 --oneline --graph --decorate --decorate: --no-decorate"
    " --all --branches --branches: --tags --tags: --remotes --max-count: --skip: --since: --after: --until: --before:"
    " --author: --committer: --grep: --invert-grep --merges --no-merges --first-parent --reverse --follow --date: --format:"
    " --pretty --pretty: --abbrev-commit --no-abbrev-commit --show-signature --left-right --cherry-pick --cherry-mark --boundary --simplify-by-decoration"
    " --topo-order --date-order --walk-reflogs --source --count --not --ancestry-path --full-history --notes --no-notes"
)
_GIT = {
    "add": "-A -u -n -v -f -N --all --update --dry-run --verbose --force --intent-to-add --ignore-removal",
    "blame": "-L: -w -M -C -s -e -l -t --date: --show-email --porcelain --line-porcelain --since:",
    "branch": "-a -r -v -d -D -m -M -c -C -f -q -u: --all --remotes --verbose --list --delete --move --copy --force"
    " --show-current --contains: --no-contains: --merged --merged: --no-merged --sort: --format: --points-at: --track"
    " --no-track --set-upstream-to: --unset-upstream --column --no-column --color --no-color --quiet",
    "cat-file": "-t -s -e -p",
    "checkout": "-b: -B: -f -q -t -d --force --quiet --track --no-track --detach --ours --theirs --orphan:",
    "cherry-pick": "-n -x -m: --abort --continue --skip --quit --no-commit",
    "clean": "-n --dry-run",
    "commit": "-m: -a -q -v -n -s --message: --all --amend --no-edit --allow-empty --quiet --verbose --signoff --no-verify"
    " --author: --date: --fixup: --squash: --dry-run --reset-author --allow-empty-message",
    "describe": "--tags --all --long --always --dirty --abbrev: --match: --exact-match --contains",
    "diff": _DIFF,
    "diff-tree": _DIFF + " -r --no-commit-id",
    "fetch": "-a -p -q -v -t -f -n --all --prune --tags --quiet --verbose --depth: --unshallow --force --no-tags --dry-run",
    "grep": "-a -c -e: -E -F -G -h -H -i -I -l -L -n -o -P -q -v -w -W -z -A: -B: -C: -p --cached --untracked --count"
    " --ignore-case --line-number --files-with-matches --name-only --word-regexp --extended-regexp --fixed-strings"
    " --perl-regexp --and --or --not --heading --break --color --no-color --max-depth: --show-function",
    "log": _DIFF + _LOG,
    "ls-files": "-c -d -m -o -i -s -u -k -z -t -v -x: --cached --deleted --modified --others --ignored --stage --unmerged"
    " --exclude-standard --exclude: --full-name --error-unmatch",
    "ls-remote": "-h -t -q --heads --branches --tags --refs --quiet --exit-code --sort: --symref --get-url",
    "ls-tree": "-d -r -t -l -z --long --name-only --name-status --full-name --full-tree --abbrev",
    "merge": "-m: -q -v --no-ff --ff --ff-only --squash --no-commit --commit --abort --continue --quit --no-edit --stat",
    "merge-base": "-a --all --is-ancestor --fork-point --octopus --independent",
    "mv": "-f -k -n -v --force --dry-run --verbose",
    "pull": "-q -v -r -t --rebase --no-rebase --ff --ff-only --no-ff --no-edit --quiet --verbose --all --tags --prune --autostash",
    "push": "-u -f -n -q -v -d --set-upstream --force --force-with-lease --force-with-lease: --tags --follow-tags --all"
    " --delete --dry-run --no-verify --quiet --verbose --atomic --prune",
    "rebase": "-q -v --abort --continue --skip --quit --onto: --autostash --no-autostash --keep-base --root",
    "reflog": _LOG,
    "remote": "-v --verbose",
    "reset": "-q --soft --mixed --hard --keep --merge --quiet",
    "restore": "-s: -S -W -q --source: --staged --worktree --quiet --ours --theirs",
    "rev-list": _LOG + " --objects",
    "rev-parse": "-q --verify --short --short: --abbrev-ref --symbolic-full-name --show-toplevel --show-prefix --show-cdup"
    " --git-dir --git-common-dir --absolute-git-dir --is-inside-work-tree --is-bare-repository --all --branches --tags",
    "revert": "-n -m: --no-edit --no-commit --abort --continue --skip --quit",
    "rm": "-r -f -n -q --cached --force --dry-run --quiet --ignore-unmatch",
    "shortlog": "-n -s -e --numbered --summary --email --no-merges --since: --until: --group:",
    "show": _DIFF + _LOG,
    "show-ref": "-d -s -q --heads --tags --head --verify --hash --quiet",
    "stash": "-u -a -k -q -m: -p -S --include-untracked --all --keep-index --quiet --message: --staged --index --patch --stat",
    "status": "-s -b -u -uno -uall -unormal -v -z --short --branch --porcelain --porcelain: --long --show-stash --ignored --ignored:"
    " --untracked-files --untracked-files: --verbose --ahead-behind --no-ahead-behind --renames --no-renames",
    "switch": "-c: -C: -d -f -q -t --create: --force-create: --detach --discard-changes --track --no-track --orphan: --quiet",
    "tag": "-a -d -f -l -m: -n -v --annotate --delete --force --list --message: --sort: --contains: --merged --points-at: --format:",
    "whatchanged": _DIFF + _LOG,
    "worktree": "-v --verbose --porcelain",
}  # fmt: skip
# `git config NAME` reads; anything else writes.
_NPM = (
    "-s -w: -ws --silent --if-present --workspace: --workspaces --include-workspace-root --no-audit --no-fund --dry-run --json"
    " --depth: --long --all --prod --production -D --save-dev -g --help -v --version"
)
_SAFE = {
    "bat": "-n -p -A -r: -l: -H: --number --plain --style: --color: --language: --line-range: --paging=never --theme:",
    "bzip2": "", "gzip": "-c -d -k -l -t -v -1 -9", "xz": "-c -d -k -l -t -v", "zip": "", "unzip": "-l -v -p -t", "7z": "",
    "cpio": "", "rsync": "", "dpkg": "-l -L -S -s --list --listfiles --search --status", "apt": "", "apt-get": "",
    "column": "-t -s: -o: -n -x -c:",
    "curl": "-f -i -I -k -L -s -S -v -4 -6 -G -m: --fail --include --head --location --silent --show-error --verbose --max-time:"
    " --connect-timeout: --compressed -A: --user-agent: -X: --request: -H: --header: --get --retry: -w: --url:",
    "dd": "", "dmesg": "", "fd": "-a -e: -E: -g -H -I -i -L -l -p -s -t: -u -0 --type: --extension: --exclude: --hidden --no-ignore"
    " --max-depth: --glob --absolute-path --full-path",
    "find": "", "gcc": "", "g++": "", "cc": "", "clang": "", "ld": "",
    "info": "", "journalctl": "-u: -n: -f -b -k -r -e -x -p: -o: --unit: --lines: --since: --until: --no-pager --priority:",
    "jq": "-c -r -j -s -e -n -S -C -M -a --compact-output --raw-output --slurp --sort-keys --exit-status --null-input --tab --indent: --join-output",
    "yq": "-r -P -o: -p: -c -e -s", "less": "-N -S -R -F -X -E -i -I -n -s -M", "more": "", "most": "", "lynx": "", "links": "", "w3m": "",
    "man": "-k -f -w -a --apropos --whatis --where --all", "mail": "", "split": "", "csplit": "", "tcpdump": "", "wireshark": "", "tshark": "",
    "rg": "-0 -a -c -F -H -h -i -I -l -L -n -N -o -p -P -q -s -S -U -v -w -x -. -A: -B: -C: -d: -e: -E: -g: -j: -m: -M: -r: -t: -T: -u -uu -uuu"
    " --after-context: --before-context: --context: --count --count-matches --files --files-with-matches --files-without-match"
    " --fixed-strings --follow --glob: --glob-case-sensitive --heading --hidden --iglob: --ignore-case --invert-match --json --line-number"
    " --max-count: --max-depth: --multiline --multiline-dotall --no-filename --no-heading --no-ignore --no-line-number --no-messages"
    " --only-matching --passthru --pcre2 --pretty --regexp: --replace: --smart-case --sort: --sortr: --stats --text --trim"
    " --type: --type-list --type-not: --unrestricted --vimgrep --with-filename --word-regexp --color: --null --encoding: --max-columns:",
    "ag": "-i -l -n -v -w -Q -c -A: -B: -C: --hidden --nocolor", "ack": "-i -l -n -v -w -c",
    "sed": "-n -E -r -s -z -u -e: --quiet --silent --expression: --regexp-extended --separate --null-data --unbuffered --posix",
    "sort": "-b -d -f -g -h -i -M -n -R -r -V -c -C -m -s -u -z -k: -t: -S: --ignore-leading-blanks --dictionary-order --ignore-case"
    " --general-numeric-sort --human-numeric-sort --month-sort --numeric-sort --random-sort --reverse --version-sort --check --merge"
    " --key: --stable --field-separator: --unique --zero-terminated --parallel: --sort:",
    "tar": "-t -v -z -j -J -f: --list --verbose --gzip --bzip2 --xz --zstd --file: --exclude: --wildcards --no-recursion --numeric-owner",
    "tree": "-a -d -f -i -l -C -n -p -s -h -D -L: -I: -P: --dirsfirst --noreport --gitignore --du --prune",
    "wget": "", "at": "", "batch": "", "crontab": "-l", "xxd": "", "openssl": "", "gpg": "", "logger": "", "ctags": "", "pdflatex": "",
}  # fmt: skip
_SAFE_FLAGS = {name: _flags(text) for name, text in _SAFE.items()}
_GIT_FLAGS = {name: _flags(text) for name, text in _GIT.items()}
_NPM_FLAGS = _flags(_NPM)
_NPM_SAFE = frozenset({"ls", "list", "outdated", "view", "audit", "-v", "--version"})
_MAKE_FLAGS = _flags(
    "-B -i -j -j: -k -n -s -S -w -q -t --always-make --dry-run --jobs --jobs: --keep-going --silent --no-print-directory --quiet"
)
# Of these nothing but the flags is safe: an operand is a file that they write, a text that they run, or a host.
_NO_OPERANDS = frozenset({
    "7z", "apt", "apt-get", "at", "batch", "bzip2", "cc", "clang", "cpio", "csplit", "ctags", "dd", "g++", "gcc", "gpg", "info",
    "ld", "links", "logger", "lynx", "mail", "more", "most", "openssl", "pdflatex", "rsync", "split", "tcpdump", "tshark", "w3m",
    "wget", "wireshark", "zip", "crontab", "gzip", "xz",
})  # fmt: skip
_FIND_WORDS = frozenset({
    "!", "(", ")", ",", "-a", "-and", "-amin", "-anewer", "-atime", "-cmin", "-cnewer", "-ctime", "-daystart", "-depth", "-empty",
    "-executable", "-false", "-follow", "-fstype", "-gid", "-group", "-ilname", "-iname", "-inum", "-ipath", "-iregex", "-links",
    "-lname", "-ls", "-maxdepth", "-mindepth", "-mmin", "-mount", "-mtime", "-name", "-newer", "-newermt", "-nogroup", "-not",
    "-nouser", "-o", "-or", "-path", "-perm", "-print", "-print0", "-printf", "-prune", "-quit", "-readable", "-regex",
    "-regextype", "-samefile", "-size", "-true", "-type", "-uid", "-user", "-wholename", "-writable", "-xdev", "-xtype",
    "-H", "-L", "-P",
})  # fmt: skip
_SED_SCRIPT = re.compile(
    r"(?:\s*(?:(?:[0-9]+|\$|/(?:[^/\\\n]|\\.)*/I?)(?:~[0-9]+)?(?:,\s*[+~]?(?:[0-9]+|\$|/(?:[^/\\\n]|\\.)*/I?))?)?\s*!?\s*"
    r"(?:[pdDPhHgGxnNq=]|s([/|#,:@])(?:(?!\1)[^\\\n]|\\.)*\1(?:(?!\1)[^\\\n]|\\.)*\1[gpiI0-9]*|y/[^/\\\n]*/[^/\\\n]*/)?\s*(?:;|\n|$))+"
)


def is_safe(name: str, arguments: tuple[Word, ...], literal: int = 0) -> bool:
    """Whether a program runs no other and writes nothing but what is its purpose, whatever a rule leaves open.

    Args:
        name: The program; one of no table is safe: what it does is known to who wrote the rule.
        arguments: All of its arguments.
        literal: How many of them the rule names letter by letter; flags among those are meant.
    """
    if name == "git":
        return _git_is_safe(arguments, literal)
    if name in _CHANGERS or name in _SHELLS or _VERSIONED.fullmatch(name):
        return False
    if name == "npm":
        return bool(arguments) and arguments[0].text in _NPM_SAFE and consents(name, arguments[:1], arguments[1:])
    if name in INTERPRETERS:
        return len(arguments) == 1 and arguments[0].text in {"--version", "-version", "-V"}
    flags = _SAFE_FLAGS.get(name)
    if flags is None:
        return True
    judged = tuple(word for at, word in enumerate(arguments) if at >= literal or not (word.text or "-").startswith("-"))
    if name == "find":
        return all(
            word.text in _FIND_WORDS if (word.text or "-").startswith("-") else not _may_be_flag(word)
            for word in judged
        )
    operands = _operands(judged, flags)
    if operands is None or (operands and name in _NO_OPERANDS):
        return False
    if name in {"less", "man", "bat"} and any((word.text or "+").startswith("+") for word in operands):
        return False
    if name == "sed":
        return _sed_is_safe(judged, operands)
    if name == "tar":
        return bool(arguments) and _lists(arguments[0].text or "")
    if name == "curl":
        return not any((word.text or "").startswith(("@", "file:")) for word in judged)
    return True


def _lists(text: str) -> bool:
    return text == "--list" or (text.startswith("-") and not text.startswith("--") and "t" in text)


def _may_be_flag(word: Word) -> bool:
    return word.glob and (not word.prefix or word.prefix.startswith("-"))


def _operands(arguments: Iterable[Word], flags: _Flags) -> list[Word] | None:
    """The arguments that are no options; None when one of the options is not among the flags."""
    operands, left = [], list(arguments)
    while left:
        word = left.pop(0)
        text = word.text
        if text is None or _may_be_flag(word):
            return None
        if text == "--":
            return operands + left
        if text.startswith("-") and text != "-":
            taken = _take(text, flags)
            if taken is None:
                return None
            if taken > 1 and left:
                value = left.pop(0)
                if value.text is None or value.splits:
                    return None
        else:
            operands.append(word)
    return operands


def _sed_is_safe(arguments: tuple[Word, ...], operands: list[Word]) -> bool:
    scripts, left = [], list(arguments)
    while left:
        text = left.pop(0).text or ""
        if text in {"-e", "--expression"} and left:
            scripts.append(left.pop(0).text or "")
        elif text.startswith("--expression="):
            scripts.append(text.partition("=")[2])
        elif re.match(r"-[nErszu]*e", text):
            # A cluster that ends in -e, or has its script in it.
            rest = text[text.index("e") + 1 :]
            scripts.append(rest or (left.pop(0).text or "" if left else ""))
    if not scripts:
        if not operands or operands[0].glob:
            return False
        scripts.append(operands[0].text or "")
    return all(_SED_SCRIPT.fullmatch(script) for script in scripts)


def _git_is_safe(arguments: tuple[Word, ...], literal: int) -> bool:
    left = list(arguments)
    behind = without_globals("git", (_UNKNOWN, *arguments[:literal]))
    meant = len(arguments[:literal]) + 1 - len(behind)
    left, literal = left[meant:], literal - meant
    while left and left[0].text in {"--no-pager", "--literal-pathspecs", "--no-optional-locks"}:
        left, literal = left[1:], literal - 1
    if not left:
        return True
    name = left[0].text or ""
    if name == "--version":
        return len(left) == 1
    left = [
        left[0],
        *(word for at, word in enumerate(left[1:], 1) if at >= literal or not (word.text or "-").startswith("-")),
    ]
    if name == "config":
        texts = [word.text or "-" for word in left[1:]]
        return (
            bool(texts)
            and texts[0] in {"--get", "--list", "-l", "get", "list"}
            and not any(text.startswith("-") for text in texts[1:])
        )
    flags = _GIT_FLAGS.get(name)
    if flags is None:
        return False
    operands = _operands(left[1:], flags)
    if operands is None:
        return False
    texts = [word.text or "" for word in operands]
    if name in {"fetch", "pull", "push", "ls-remote"} and any("::" in text for text in texts):
        return False
    if name in {"remote", "worktree", "stash", "reflog"} and texts:
        safe = {
            "remote": {"show", "get-url"},
            "worktree": {"list"},
            "stash": {"list", "show", "push", "pop", "apply", "save", "drop", "clear", "branch"},
            "reflog": {"show", "exists"},
        }
        return texts[0] in safe[name]
    return True


_GLOBALS = {
    "git": _flags(
        "-C: -c: -p -P -v -h --git-dir: --work-tree: --namespace: --exec-path: --config-env: --super-prefix: --paginate"
        " --no-pager --bare --no-replace-objects --literal-pathspecs --glob-pathspecs --no-optional-locks --no-lazy-fetch"
    ),
    "docker": _flags("-c: -D -H: -l: --config: --context: --debug --host: --log-level: --tls"),
    "kubectl": _flags("-n: -s: -v: --namespace: --context: --cluster: --kubeconfig: --server: --user: --as:"),
    "npm": _flags("-C: -s -g --prefix: --silent --global --loglevel:"),
}


def without_globals(name: str, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """A command without the options that stand before its subcommand: `git -C x push` is `git push`."""
    flags = _GLOBALS.get(name)
    at = 1
    while flags is not None and at < len(words) and (words[at].text or "").startswith("-"):
        at += _take(words[at].text or "", flags) or 1
    return (words[0], *words[at:])


def consents(name: str, literal: tuple[Word, ...], open_: tuple[Word, ...]) -> bool:
    """Whether the literal words of a rule are consent for a program that is not safe in itself.

    A script, a module or a subcommand must be named: `python3 tool.py`, `python3 -m pytest`, `npm run`, `make test`.

    Args:
        name: The program.
        literal: Its arguments that the rule names letter by letter.
        open_: Those that the rule leaves open.
    """
    if name in _CHANGERS or name in _SAFE_FLAGS or name == "git":
        return False
    if not (name in INTERPRETERS or _VERSIONED.fullmatch(name)):
        return False
    texts = [word.text or "" for word in literal]
    if not texts:
        return False
    if name in {"make", "gmake"}:
        if texts[0].startswith("-"):
            return False
        operands = _operands(open_, _MAKE_FLAGS)
        return operands is not None and not any("=" in (word.text or "=") for word in operands)
    if name in {"npm", "pnpm", "yarn"}:
        if texts[0].startswith("-"):
            return False
        if texts[0] in {"exec", "x", "dlx", "explore"}:
            return len(texts) > 1 and not texts[1].startswith("-")
        left = list(open_)
        names = [word.text for word in left]
        return "--" in texts or _operands(left[: names.index("--")] if "--" in names else left, _NPM_FLAGS) is not None
    if texts[0] == "-m":
        return len(texts) > 1
    if name in {"ssh", "su", "runuser", "parallel", "watch", "script", "strace", "ltrace", "screen", "tmux"}:
        return len(texts) > 1 and not any(text.startswith("-") for text in texts[:2])
    if name in {"uv", "poetry", "pipenv", "bundle", "docker", "podman", "kubectl"} and texts[0] in {"run", "exec"}:
        return len(texts) > 1 and not texts[1].startswith("-")
    return not texts[0].startswith("-")
