"""The files that a line of shell text opens, as far as redirections and the arguments of known programs say."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from agentrpc.domain.shell import Command, Script
from agentrpc.domain.shell_programs import name_of, runs_of
from agentrpc.domain.shell_words import Word

__all__ = ["File", "Files", "files_of", "redirected", "writes_unknown"]


@dataclass(frozen=True, slots=True)
class File:
    """A file or folder that is opened.

    Attributes:
        path: Absolute, beginning with `~` for the home folder, or relative to where the shell starts; None when it is
            unknown: an expansion, or a `cd` before it.
        source: The word as it is written.
        glob: `path` holds shell wildcards, which names of files take the place of.
        redirect: The shell itself opens it, for a redirection.
        tree: Everything below it may be meant (`rm -r`, `grep -r`).
    """

    path: str | None
    source: str
    glob: bool = False
    redirect: bool = False
    tree: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """What a line reads and writes.

    Attributes:
        reads: Files whose content, or names, are read; a few words that are no files may stand among them.
        writes: Files that are made, changed, moved or removed.
        reads_more: It may read files that are not named here.
        writes_more: It may write files that are not named here.
    """

    reads: tuple[File, ...]
    writes: tuple[File, ...]
    reads_more: bool
    writes_more: bool


# Neither read nor write files by their arguments.
_NO_FILES = frozenset({
    ":", "[", "basename", "break", "cd", "continue", "date", "dirname", "echo", "exit", "expr", "false",
    "hostname", "id", "kill", "nproc", "printenv", "printf", "ps", "pwd", "return", "seq", "sleep", "test", "tr",
    "true", "tty", "type", "uname", "wait", "which", "whoami", "yes",
})  # fmt: skip
# Every operand is read.
_READERS = frozenset({
    "base64", "bat", "cat", "cksum", "cmp", "column", "comm", "cut", "df", "diff", "du", "file", "find", "fold",
    "head", "hexdump", "join", "less", "ls", "md5sum", "more", "nl", "od", "paste", "readlink", "realpath", "rev",
    "sha1sum", "sha256sum", "sha512sum", "shuf", "sort", "stat", "strings", "sum", "tac", "tail", "tree", "uniq",
    "wc", "xxd",
})  # fmt: skip
# The first operand is a text: a pattern or a script.
_SEARCHERS = frozenset({"ack", "ag", "awk", "egrep", "fgrep", "gawk", "grep", "jq", "mawk", "rg", "sed"})
# Every operand is written.
_WRITERS = frozenset({
    "chgrp", "chmod", "chown", "mkdir", "mkfifo", "mknod", "mktemp", "rm", "rmdir", "shred", "tee", "touch",
    "truncate", "unlink",
})  # fmt: skip
# The last operand is written, the others are read.
_COPIERS = frozenset({"cp", "install", "ln", "mv", "rsync", "scp"})
# They go through folders.
_TREES = frozenset({"ack", "ag", "du", "find", "rg", "tree"})
# Subcommands of git that put other content, or nothing, in the place of the files that they are given.
_GIT_WRITERS = frozenset({"checkout", "mv", "restore", "rm"})
# Options that name the file that is written.
_SAVES = {"curl": re.compile(r"-[a-zA-Z]*o|--output"), "wget": re.compile(r"-[a-zA-Z]*O|--output-document")}
_GIT_MAGIC = re.compile(r":(?:\([a-z,]*\)|/)")
_WILD = re.compile(r"[*?\[]")
# A value behind the letters of short options that looks like a path.
_ATTACHED = re.compile(r"-[A-Za-z]+([./~].*)", re.DOTALL)
_STREAMS = frozenset({"/dev/null", "/dev/stdin", "/dev/stdout", "/dev/stderr"})


def files_of(script: Script) -> Files:
    """The files that a line opens."""
    found = _Found()
    for command in script.commands:
        found.command(command)
    more = not script.certain
    return Files(
        tuple(dict.fromkeys(found.reads)),
        tuple(dict.fromkeys(found.writes)),
        reads_more=more or found.reads_more,
        writes_more=more or found.writes_more,
    )


def writes_unknown(command: Command) -> bool:
    """Whether a known program writes files whose names the command does not show: those below a folder, too."""
    found = _Found()
    found.command(replace(command, redirects=()))
    return found.copies_trees or any(file.path is None for file in found.writes)


def redirected(command: Command) -> Iterator[tuple[File, bool, bool]]:
    """The files that a command's redirections open: the file, whether it is read, whether it is written."""
    for redirect in command.redirects:
        if redirect.target.text not in _STREAMS:
            yield _file(redirect.target, command.folder, redirect=True), redirect.reads, redirect.writes


def _file(word: Word, folder: str | None, *, redirect: bool = False, tree: bool = False) -> File:
    path = word.text
    if path is not None and not word.tilde:
        if path.startswith("~"):
            path = f"./{path}"
        if not path.startswith("/"):
            path = None if folder is None else posixpath.join(folder, path)
    return File(path, word.source, word.glob, redirect, tree)


class _Found:
    def __init__(self) -> None:
        self.reads: list[File] = []
        self.writes: list[File] = []
        self.reads_more = self.writes_more = self.copies_trees = False

    def command(self, command: Command) -> None:
        for file, reads, writes in redirected(command):
            self.reads += [file] if reads else []
            self.writes += [file] if writes else []
        if not command.words:
            return
        runs = runs_of(command)
        if runs.unseen:
            self.reads_more = self.writes_more = True
        for inner in runs.inner:
            self.command(inner)
        name = name_of(runs.words[runs.last])
        if not (runs.inner and name in {"eval", "sh", "bash", "dash", "zsh", "trap"}):
            self._program(name, runs.words[runs.last + 1 :], command.folder)

    def _program(self, name: str | None, arguments: tuple[Word, ...], folder: str | None) -> None:
        if name in _NO_FILES:
            return
        end = next((at for at, word in enumerate(arguments) if word.text == "--"), len(arguments))
        flags = [
            word.text
            for word in arguments[:end]
            if word.text is not None and word.text.startswith("-") and word.text != "-"
        ]
        operands = [word for word in arguments[:end] if word.text is None or not word.text.startswith("-")]
        operands += arguments[end + 1 :]
        tree = name in _TREES or any(
            (not flag.startswith("--") and set(flag) & set("rRa")) or flag in {"--recursive", "--archive"}
            for flag in flags
        )
        # `--file=x`, `-fx`: a value that may be a file.
        values = [Word(flag.partition("=")[2], flag, "") for flag in flags if "=" in flag]
        values += [Word(found[1], flag, "") for flag in flags if (found := _ATTACHED.match(flag))]
        if name in _READERS or name in _SEARCHERS:
            self._reader(str(name), arguments, operands, flags, folder, tree=tree)
            self._read(values, folder, tree=tree)
        elif name in _WRITERS:
            self._write([*operands, *values], folder, tree=tree)
        elif name in _COPIERS:
            links = name == "ln" or (name == "cp" and any(_has_letter(flag, "ls") for flag in flags))
            # What is written through a link later on is what it leads to.
            self._copy(operands, values, flags, folder, moves=name == "mv" or links)
            self.copies_trees = self.copies_trees or (name in {"cp", "rsync", "scp"} and tree)
        elif name == "git":
            self._git(operands, folder)
        elif name in _SAVES:
            self.reads_more = self.writes_more = True
            named = [word for before, word in pairwise(arguments) if _SAVES[name].fullmatch(before.text or "")]
            self._write([*named, *values], folder)
        elif name == "dd":
            self._dd(operands, folder)
        else:
            self.reads_more = self.writes_more = True

    def _reader(
        self,
        name: str,
        arguments: tuple[Word, ...],
        operands: list[Word],
        flags: list[str],
        folder: str | None,
        *,
        tree: bool,
    ) -> None:
        if name in _SEARCHERS and operands and not _has_text(flags):
            operands = operands[1:]
        if name == "find":
            # Its expression begins at the first option.
            operands = list(takewhile(lambda word: (word.text or "x")[0] not in "-(!", arguments))
        self._read(operands, folder, tree=tree)
        if tree and not operands:
            self.reads.append(_file(Word(".", ".", "."), folder, tree=True))
        if name == "sort" and any(flag.startswith(("-o", "--o")) for flag in flags):
            self._write(arguments, folder)
        if name == "shuf" and any(_has_letter(flag, "o") or flag.startswith("--o") for flag in flags):
            self._write(arguments, folder)
        if name in {"uniq", "xxd"}:
            self._write(operands[1:], folder)
        if name == "find" and set(flags) & {"-delete", "-fls", "-fprint", "-fprint0", "-fprintf"}:
            self._write(operands, folder, tree=True)
        if name == "sed" and any(_in_place(flag) for flag in flags):
            self._write(operands, folder)
        if name in {"awk", "gawk", "mawk", "sed"}:
            # Their scripts name files too.
            self.reads_more = self.writes_more = True

    def _git(self, operands: list[Word], folder: str | None) -> None:
        self.reads_more = self.writes_more = True
        if operands and operands[0].text in _GIT_WRITERS:
            # Revisions and branches stand among the files.
            names = [word.text for word in operands[1:] if word.text and posixpath.basename(word.text) != "HEAD"]
            # Git has wildcards of its own, also quoted, and a beginning that says how a name is meant.
            plain = [(_GIT_MAGIC.sub("", name), name) for name in names]
            self._write([Word(name, source, "", glob=_WILD.search(name) is not None) for name, source in plain], folder)

    def _dd(self, operands: list[Word], folder: str | None) -> None:
        for word in operands:
            key, _, value = (word.text or "").partition("=")
            target = Word(value if word.text is not None else None, word.source, "", tilde=value.startswith("~"))
            if key in {"if", ""}:
                self._read([target], folder)
            if key in {"of", ""}:
                self._write([target], folder)

    def _copy(
        self, operands: list[Word], values: list[Word], flags: list[str], folder: str | None, *, moves: bool
    ) -> None:
        targets = [flag for flag in flags if _has_letter(flag, "t") or flag.startswith("--t")]
        if targets:
            values = values + [Word(flag.partition("t")[2], flag, "") for flag in targets if not flag.endswith("t")]
            self._write([*operands, *values], folder, tree=True)
            self._read(operands, folder, tree=True)
            return
        self._write(operands if moves else operands[-1:], folder, tree=True)
        self._read(operands[:-1], folder, tree=True)

    def _read(self, words: Iterable[Word], folder: str | None, *, tree: bool = False) -> None:
        self.reads += [_file(word, folder, tree=tree) for word in words if word.text not in {"-", *_STREAMS}]

    def _write(self, words: Iterable[Word], folder: str | None, *, tree: bool = False) -> None:
        self.writes += [_file(word, folder, tree=tree) for word in words if word.text not in {"-", *_STREAMS}]


def _has_letter(flag: str, letters: str) -> bool:
    return not flag.startswith("--") and not set(letters).isdisjoint(flag)


def _has_text(flags: list[str]) -> bool:
    return any(
        flag.startswith(("--regexp", "--expression", "--file", "--from-file"))
        or (not flag.startswith("--") and set(flag) & {"e", "f"})
        for flag in flags
    )


def _in_place(flag: str) -> bool:
    return flag.startswith("--i") or (not flag.startswith("--") and "i" in flag)
