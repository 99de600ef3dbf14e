"""Differential fuzz of the reader of shell text: lines of a grammar are run by a real bash, and what ran is compared.

    python -m tests.security.fuzz_shell --lines 1000000 --seed 7

Each line runs in an empty folder, under bubblewrap where it is installed, with a PATH that holds nothing but stubs, which
note their arguments, and wrappers such as `env` and `xargs`. Some lines fork for as long as they may: root, whom nothing
bounds, runs them as nobody. Three promises are checked:

- what the reader is certain about holds every program that ran, with its very arguments where words are known;
- a line that patterns allow runs nothing that no pattern allows, and writes no file that may not be written;
- a line of which it is known that no denying pattern matches runs nothing that one of them is about.
"""

import argparse
import contextlib
import fnmatch
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agentrpc.domain.shell import read_shell
from agentrpc.domain.shell_rules import allowed_by, denied_by, forms_of, may_be_denied, unseen_of

STUBS = ("aa", "bb", "cc", "dd")
WRAPPERS = ("env", "timeout", "nice", "nohup", "stdbuf", "xargs", "setsid", "sh", "bash", "find", "flock", "ionice")
ALLOWED = ("aa:*", "bb x *", "dd exact 'a b'")
DENIED = ("cc:*", "bb push:*")
WRITABLE = "ok"
BATCH = 500
_NOBODY = 65534


@dataclass(frozen=True)
class Miss:
    """A line of which something ran that the reader did not say."""

    line: str
    promise: str
    ran: list[list[str]]


class Grammar:
    """Makes lines of shell text. Everything that they may run is a stub, a wrapper or a builtin."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def line(self) -> str:
        """One line."""
        text = self._list(self._random.choice((0, 1, 1, 2, 2)))
        # Loops that a mutation makes endless would only cost time.
        while self._random.random() < 0.3 and not re.search(r"while|until|\(\(i", text):
            text = self._mutated(text)
        return text

    def _one(self, *options: object) -> str:
        option = self._random.choice(options)
        return option() if callable(option) else str(option)

    def _list(self, depth: int) -> str:
        text = self._statement(depth)
        while self._random.random() < 0.35:
            text += self._one(
                " && ",
                " || ",
                "; ",
                "\n",
                " | ",
                " & ",
                ";",
                "|",
                "&&",
                " |& ",
                " && \\\n ",
                "\n\n",
                " # note\n",
                "\n# note\n",
                " |\n",
            ) + self._statement(depth)
        return text

    def _statement(self, depth: int) -> str:
        if depth <= 0 or self._random.random() < 0.5:
            return self._command(depth)
        inner = lambda: self._list(depth - 1)  # noqa: E731
        return self._one(
            lambda: f"({inner()})",
            lambda: f"{{ {inner()}; }}",
            lambda: f"! {inner()}",
            lambda: f"if {inner()}; then {inner()}; fi",
            lambda: f"if {inner()}; then {inner()}; elif {inner()}; then {inner()}; else {inner()}; fi",
            lambda: f"if {inner()}\nthen\n{inner()}\nfi",
            lambda: f"for f in {self._words(depth)}; do {inner()}; done",
            lambda: f"for f in {self._words(depth)}\ndo {inner()}\ndone",
            lambda: f"for ((i=0; i<2; i++)); do {inner()}; done",
            lambda: f"while {inner()}; do {inner()}; break; done",
            lambda: f"until {inner()}; do {inner()}; break; done",
            lambda: f"case {self._word(depth)} in {self._pattern()}) {inner()};; *) {inner()};; esac",
            lambda: f"case a in\n({self._pattern()}|a) {inner()} ;;\nesac",
            lambda: (
                f"{self._one('f', 'g', 'aa', 'ff')}() {{ {inner()}; }}; {self._one('f', 'g', 'aa')} {self._words(depth)}"
            ),
            lambda: f"function f {{ {inner()}; }}; f",
            lambda: f"f() ({inner()}); f",
            lambda: f"time {inner()}",
            lambda: f"time -p {inner()}",
            lambda: f"coproc {inner()}",
            lambda: f"coproc N {{ {inner()}; }}",
            lambda: f"[[ {self._test(depth)} ]] {self._one('&&', '||', ';')} {inner()}",
            lambda: f"[ {self._test_word(depth)} = {self._test_word(depth)} ] && {inner()}",
            lambda: f"(( {self._arithmetic(depth)} )); {inner()}",
            lambda: f"{{ {inner()}; }} > {self._file()}",
            lambda: f"({inner()}) 2>&1 | {inner()}",
            lambda: f"cd {self._one('.', 'sub', '..', '/')} && {inner()}",
            lambda: f"{self._assignment(depth)}; {inner()}",
            lambda: (
                f"{self._one('export', 'declare', 'local', 'readonly', 'declare -i', 'declare -a')} {self._assignment(depth)}; {inner()}"
            ),
            lambda: f"{inner()} & wait",
            lambda: f'set -- {self._words(depth)}; "$@"',
            lambda: f"eval {self._quoted_text(inner())}",
            lambda: f"eval {inner()}",
            lambda: f"{self._one('sh', 'bash', 'bash -e', 'env bash')} -c {self._quoted_text(inner())}",
            lambda: f"trap {self._quoted_text(inner())} EXIT",
            lambda: f"alias zz={self._quoted_text(inner())}\nzz",
            lambda: f"echo {self._quoted_text(inner())} | {self._one('sh', 'bash', 'xargs', 'xargs -n1', 'read x')}",
            lambda: f"read x <<< {self._word(depth)}; $x",
            lambda: f". /dev/stdin <<< {self._quoted_text(inner())}",
        )

    def _command(self, depth: int) -> str:
        parts = []
        if self._random.random() < 0.1:
            parts.append(self._assignment(depth))
        if self._random.random() < 0.05:
            parts.append(self._redirect(depth))
        if self._random.random() < 0.2:
            parts.append(self._wrapper())
        parts.append(self._program(depth))
        parts += [self._word(depth) for _ in range(self._random.choice((0, 1, 1, 2, 3)))]
        while self._random.random() < 0.15:
            parts.insert(self._random.randrange(1, len(parts) + 1), self._redirect(depth))
        if self._random.random() < 0.06:
            return self._document(parts, depth)
        blank = self._one(" ", " ", " ", " ", "  ", "\t", " \\\n") if self._random.random() < 0.3 else " "
        return blank.join(parts)

    def _document(self, parts: list[str], depth: int) -> str:
        operator, delimiter, end = (
            self._one("<<", "<<", "<<-", "<< "),
            *self._random.choice((("E", "E"), ("'E'", "E"), ('"E"', "E"), ("\\E", "E"), ("E", "E"))),
        )
        body = "\n".join(
            self._one(
                "text",
                "$(cc in)",
                "`cc in`",
                "\\$(cc)",
                "${x:-$(cc)}",
                "E ",
                " E",
                "\tE",
                "# c",
                "'",
                '"',
                "$x",
                "\\",
                "E)",
            )
            for _ in range(self._random.choice((0, 1, 2)))
        )
        tail = self._one(
            "", "", "", " | cc y", " && cc", " > ok", " cc", " 2>&1", " 2>&1 | cc", "; cc", " & cc", " # c"
        )
        body = body + "\n" if body else ""
        return f"{' '.join(parts)} {operator}{delimiter}{tail}\n{body}{end}" + self._one(
            "\n", "\n", f"\n{self._command(0)}"
        )

    def _program(self, depth: int) -> str:
        name = self._random.choice(STUBS)
        return self._one(
            name, name, name, name, name, name, name,
            f"{name[0]}'{name[1]}'", f'"{name}"', f"\\{name}", f"{name[0]}\\{name[1]}", f"'{name}'", f"$'\\x{ord(name[0]):x}{name[1]}'",
            f"/stubs/{name}", f"{name[0]}''{name[1]}", f"{name[0]}\\\n{name[1]}", f"{name[0]}$@{name[1]}", f"${{x:-{name}}}", f"$(echo {name})",
            f"`echo {name}`", f"{{{name},x}}", f"{name[0]}?", f"/stubs/{name[0]}*", f"$'{name}'", f'$"{name}"', f"{name[0]}${{u}}{name[1]}",
            "echo", "true", ":", f"$x{name}", "test", "printf",
        )  # fmt: skip

    def _wrapper(self) -> str:
        return self._one(
            "timeout 1", "timeout -k 1 1", "timeout --signal=KILL 1", "nice", "nice -n 5", "nohup", "command", "builtin", "exec", "env", "env -i",
            "env A=1", "time", "stdbuf -o0", "xargs", "xargs -n 1", "xargs -I{}", "setsid", "command -p", "exec -a zz", "command -v", "env -u A",
            "!", "coproc", "env -S", "flock f", "ionice -c 3", "time -p", "env -- ", "timeout -- 1", "A=1", "command command", "builtin command",
        )  # fmt: skip

    def _word(self, depth: int) -> str:
        plain = self._one(
            "x",
            "-l",
            "push",
            "a b",
            "exact",
            "1",
            "--opt=v",
            "a.b",
            "#",
            "a#b",
            "cc",
            "=",
            "x=1",
            "]",
            "{}",
            "done",
            "fi",
            "é",
            "-",
            "--",
        )
        if plain == "a b":
            plain = self._one("'a b'", '"a b"', "a\\ b", "$'a b'")
        if plain == "#":
            plain = self._one("\\#", "'#'", "a#", "#")
        if self._random.random() < 0.6:
            return plain
        return self._one(
            "$x", '"$x"', "${x}", "$1", "$@", '"$@"', "$?", "${#x}", "${x:-y}", "${x%y}", "${x/a/b}", "${x@Q}", "${x@P}", "${!x}", "$((1+2))", "$$",
            "*", "?", "[ab]", "a*", "~", "~/x", "{a,b}", "{1..3}", "a{b,c}d", "'{a,b}'", "$'\\n'", "$'a\\'b'", '"a\'b"', "'a\"b'", '"\\$x"', '"\\`"', '"$"', "$",
            '"a\\b"', "\\\\", "\\'", "\\\n", "x\\\ny", "''", '""', "$''", "!x", "a!b", "@(a|b)", "%", "^", "+", "a:b~c", "x=~", "'a[$(cc)]'", "'$(cc)'", "'cc y'", "$[1+1]", "a\\\tb", "$x$y", "'a'\"b\"c",
            lambda: f"$({self._list(depth - 1)})" if depth > 0 else "$(cc)",
            lambda: f'"$({self._list(depth - 1)})"' if depth > 0 else '"$(cc)"',
            lambda: f"`{self._list(depth - 1)}`" if depth > 0 else "`cc`",
            lambda: f'"`{self._command(0)}`"',
            lambda: f"<({self._list(depth - 1)})" if depth > 0 else "<(cc)",
            lambda: f">({self._command(0)})",
            lambda: f"${{x:-$({self._command(0)})}}",
            lambda: f'"${{x:-`{self._command(0)}`}}"',
            lambda: f'"${{x:-\'$({self._command(0)})\'}}"',
            lambda: f"${{x:-{self._word(0)}}}",
            lambda: f"$(( 1 + $({self._command(0)}) ))",
            lambda: f"a$({self._command(0)})b",
            lambda: f"$(< {self._file()})",
            lambda: f"${{x[$({self._command(0)})]}}",
            lambda: f"$'{self._one('a', 'x')}'",
        )  # fmt: skip

    def _words(self, depth: int) -> str:
        return " ".join(self._word(depth) for _ in range(self._random.choice((1, 2))))

    def _pattern(self) -> str:
        return self._one("a", "*", "x|y", "'a'", "[ab]", "a*", '"x"', "$x", "$(cc)", "a|b", "?", "esac", "~")

    def _redirect(self, depth: int) -> str:
        return self._one(
            lambda: f"> {self._file()}", lambda: f">{self._file()}", lambda: f">> {self._file()}", lambda: f"2>{self._file()}", lambda: f"&> {self._file()}",
            lambda: f">| {self._file()}", lambda: f">& {self._file()}", "2>&1", ">&2", "2>&-", "< /dev/null", "2>/dev/null", lambda: f"< {self._file()}",
            lambda: f"<> {self._file()}", lambda: f"<<< {self._word(depth)}", lambda: f"> >({self._command(0)})", lambda: f"< <({self._command(0)})",
            "3>&1", lambda: f"&>> {self._file()}", lambda: f"> $({self._command(0)})", lambda: f"{{fd}}> {self._file()}", lambda: f"1> {self._file()}", "<&-",
        )  # fmt: skip

    def _file(self) -> str:
        return self._one(
            "ok", "ok", "ok", "no", '"ok"', "'no'", "o\\k", "$x", "no$x", "./ok", "ok ", "no ", "sub/../no"
        )

    def _assignment(self, depth: int) -> str:
        return self._one(
            "A=1",
            "x=aa",
            "x=cc",
            "x='cc y'",
            lambda: f"A={self._word(depth)}",
            "PATH=/nowhere",
            "IFS=c",
            "a=(1 2)",
            "a[1]=2",
            "x+=cc",
            "x=",
            lambda: f"a=($({self._command(0)}))",
            "x='a[$(cc)]'",
            "PS4='$(cc)'",
        )

    def _test(self, depth: int) -> str:
        return self._one(
            "-f x",
            "a == a",
            "a = b",
            "a < b",
            "$x =~ ^a",
            "-n $x && a == a",
            "! -e x",
            lambda: f"-n $({self._command(0)})",
            "x -eq 1",
            "( a == a )",
            "a == a || b == b",
            '"a" == a*',
            "-v x",
            "$x -eq 0",
            "'a[$(cc)]' -eq 0",
            "$1 -lt 1",
            "$(echo 1) -eq 1",
            "$x =~ (a|b)",
        )

    def _test_word(self, depth: int) -> str:
        return self._one("a", '"$x"', "'b'", lambda: self._word(depth))

    def _arithmetic(self, depth: int) -> str:
        return self._one(
            "1",
            "x",
            "x=1",
            "1+1",
            lambda: f"$({self._command(0)})",
            "i++",
            "1 < 2",
            "(1)",
            "a[1]",
            "x ? 1 : 2",
            "$1",
            "a[x]",
            "aa",
            "$x + 1",
            "1 )) && cc; (( 1",
        )

    def _quoted_text(self, text: str) -> str:
        return self._one(
            lambda: "'" + text.replace("'", "'\\''") + "'",
            lambda: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"',
            lambda: "'" + text.replace("'", "") + "'",
        )

    def _mutated(self, text: str) -> str:
        """One or two letters more, less or doubled: most of what comes of it is no shell text, and the rest is odd."""
        at = self._random.randrange(len(text) + 1)
        letters = [
            *list(" \n\t;&|<>()'\"\\$`#{}[]!*?~=-aex1"),
            "cc",
            " cc ",
            "\ncc\n",
            "; cc",
            "\\\n",
            "&&",
            "<<E",
            "$(",
            "))",
            "#",
            " #",
            "\u00a0",
            "\u2003",
            "\u0085",
            "é",
            "\r",
            "\x0b",
            "\x0c",
            "``",
            "$'",
            "done",
            "esac",
            ";;",
            "then",
            "((",
            "]]",
            "<(cc)",
            "$(cc)",
            "`cc`",
        ]
        kind = self._random.random()
        if kind < 0.6:
            return text[:at] + self._random.choice(letters) + text[at:]
        if kind < 0.85:
            return text[:at] + text[at + self._random.choice((1, 1, 2)) :]
        other = self._random.randrange(len(text) + 1)
        first, last = min(at, other), max(at, other)
        return text[:last] + text[first:last][:30] + text[last:]


# Every descendant of a line holds a pipe, so that the end of the last is seen; whatever goes on for too long is ended.
_DRIVER = r"""
shopt -s expand_aliases
ulimit -t 1 -f 2000 -u 400
_n=0
while IFS= read -r -d '' _line; do
  cd "$1/work/$_n" || exit 9
  exec 7< <(
    exec 6>&1 9>"$1/log/$_n" </dev/null >/dev/null 2>&1
    export FUNCNEST=3
    unset _n x y f i u
    set --
    eval "$_line"
  )
  read -r -t 3 -u 7
  if (( $? > 128 )); then
    if [[ $2 ]]; then kill -9 -1; else kill -9 $!; fi
  fi
  exec 7<&-
  _n=$((_n+1))
done
: > "$1/done"
"""
_STUB = '#!/bin/sh\nprintf \'%s\\0\' "$#" "${0##*/}" "$@" >&9\n'


class Bash(contextlib.AbstractContextManager["Bash"]):
    """Runs lines and tells what ran."""

    def __init__(self) -> None:
        # Not below a folder of pytest's, which nobody but its owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-shell-"))
        self._as_nobody: list[str] = []
        if os.geteuid() == 0 and (setpriv := shutil.which("setpriv")):
            self._as_nobody = [setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        self._give(self._folder)
        self._stubs = self._folder / "stubs"
        self._stubs.mkdir()
        for name in STUBS:
            stub = self._stubs / name
            stub.write_text(_STUB)
            stub.chmod(0o755)
        for name in WRAPPERS:
            if found := shutil.which(name):
                (self._stubs / name).symlink_to(found)
        self._stubs.chmod(0o755)
        self._sandboxed = shutil.which("bwrap") is not None and self._sandbox_works()

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)

    def _give(self, *paths: Path) -> None:
        if self._as_nobody:
            for path in paths:
                os.chown(path, _NOBODY, _NOBODY)

    def _sandbox(self, folder: Path) -> list[str]:
        return [
            str(shutil.which("bwrap")), "--die-with-parent", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--ro-bind", "/", "/", "--dev", "/dev",
            "--proc", "/proc", "--tmpfs", "/home", "--bind", str(folder), str(folder),
        ]  # fmt: skip

    def _sandbox_works(self) -> bool:
        command = [*self._as_nobody, *self._sandbox(self._folder), "/bin/true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def run(self, lines: list[str]) -> list[tuple[list[list[str]], set[str]]]:
        """The arguments of each program that ran, and the files that are there afterwards, for each line."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        self._give(folder)
        for name in ("work", "log", *(f"work/{index}" for index in range(len(lines)))):
            (folder / name).mkdir()
            self._give(folder / name)
        given = "".join(f"{line.replace('/stubs/', f'{self._stubs}/')}\0" for line in lines)
        (folder / "lines").write_text(given, encoding="utf-8", errors="surrogateescape")
        command = [
            *self._as_nobody,
            *(self._sandbox(folder) if self._sandboxed else []),
            shutil.which("bash") or "bash",
            "--norc",
            "-c",
            _DRIVER,
            "bash",
            str(folder),
            "1" if self._sandboxed else "",
        ]
        environment = {"PATH": str(self._stubs), "HOME": "/home", "LC_ALL": "C.UTF-8"}
        with (folder / "lines").open("rb") as given_lines:
            subprocess.run(
                command,
                stdin=given_lines,
                env=environment,
                capture_output=True,
                timeout=600,
                check=False,
                start_new_session=True,
            )
        if not (folder / "done").exists():
            msg = f"bash did not run all lines; the last was {max((int(x.name) for x in (folder / 'log').iterdir()), default=-1)}"
            raise RuntimeError(msg)
        results = [
            (list(self._logged(folder / "log" / str(index))), _files(folder / "work" / str(index)))
            for index in range(len(lines))
        ]
        shutil.rmtree(folder)
        return results

    def _logged(self, path: Path) -> Iterator[list[str]]:
        said = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
        parts = said.replace(f"{self._stubs}/", "/stubs/").split("\0")
        at = 0
        while at < len(parts) - 1:
            count = int(parts[at])
            yield parts[at + 1 : at + 2 + count]
            at += 2 + count


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def misses_of(line: str, ran: list[list[str]], files: set[str]) -> Iterator[str]:
    """The promises that a line breaks."""
    script = read_shell(line)
    unseen = next((why for command in script.commands if (why := unseen_of(command, calculates=script.calculates))), "")
    if script.certain and not unseen:
        forms = [form for command in script.commands for form in forms_of(command)]
        for argv in ran:
            if not any(_fits(form, argv) for form in forms):
                yield f"certain, and yet {argv} ran"
    if denied_by(script, DENIED) is None and may_be_denied(script, DENIED) is None:
        for argv in ran:
            if argv[0] == "cc" or argv[:2] == ["bb", "push"]:
                yield f"not denied, and yet {argv} ran"
    allowed = allowed_by(
        script,
        ALLOWED,
        may_read=lambda _: True,
        may_write=lambda file: file.path in {WRITABLE, f"./{WRITABLE}"} and not file.glob,
    )
    if allowed:
        for argv in ran:
            if not (argv[0] == "aa" or argv[:2] == ["bb", "x"] or argv == ["dd", "exact", "a b"]):
                yield f"allowed, and yet {argv} ran"
        if files - {WRITABLE}:
            yield f"allowed, and yet {files} were written"


def _fits(form: tuple, argv: list[str]) -> bool:
    """Whether a command as it was read may be what ran."""
    if not form:
        return not argv
    word, rest = form[0], form[1:]
    if word.splits or (word.text is None and word.source.startswith("$(")):
        return any(_fits(rest, argv[count:]) and (word.text is None or word.glob) for count in range(len(argv) + 1))
    if not argv:
        return False
    if word.text is None:
        return argv[0].startswith(word.prefix) and _fits(rest, argv[1:])
    same = (
        word.text == argv[0]
        or (word.tilde and argv[0].startswith("/"))
        or (word.glob and fnmatch.fnmatchcase(argv[0], word.text))
    )
    return (same or word.text.rpartition("/")[2] == argv[0]) and _fits(rest, argv[1:])


def fuzz(lines: int, seed: int) -> tuple[list[Miss], dict[str, int]]:
    """Run so many lines; returns what was missed, and how many lines were certain, allowed, and ran something."""
    grammar = Grammar(seed)
    misses: list[Miss] = []
    counts = {"lines": 0, "certain": 0, "allowed": 0, "ran": 0}
    with Bash() as bash, ThreadPoolExecutor(2) as pool:
        while counts["lines"] < lines:
            batches = []
            while len(batches) < 8 and (left := lines - counts["lines"]) > 0:
                batches.append([grammar.line() for _ in range(min(BATCH, left))])
                counts["lines"] += len(batches[-1])
            for batch, results in zip(batches, pool.map(bash.run, batches), strict=True):
                for line, (ran, files) in zip(batch, results, strict=True):
                    script = read_shell(line)
                    counts["certain"] += script.certain
                    counts["ran"] += bool(ran)
                    counts["allowed"] += (
                        bool(ran) and allowed_by(script, ALLOWED, may_read=_yes, may_write=_yes) is not None
                    )
                    misses += [Miss(line, promise, ran) for promise in misses_of(line, ran, files)]
    return misses, counts


def _yes(_: object) -> bool:
    return True


def main() -> int:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description="Fuzz the reader of shell text against a real bash.")
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    began = time.monotonic()
    misses, counts = fuzz(given.lines, given.seed)
    for miss in misses[:40]:
        print(f"{miss.promise}\n    {miss.line!r}\n    ran: {miss.ran}")
    kinds = {re.sub(r"[\[{].*", "", miss.promise) for miss in misses}
    print(f"seed {given.seed}: {counts}, {len(misses)} misses {sorted(kinds)}, {time.monotonic() - began:.0f} s")
    return bool(misses)


if __name__ == "__main__":
    sys.exit(main())
