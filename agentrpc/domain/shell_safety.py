"""Which programs may be allowed by a pattern that leaves their arguments open.

Programs that can run others, or write, by their arguments are safe with the flags that are named here and with no others:
an abbreviated or unknown flag is not safe. Interpreters and their like are never safe: a rule for one must name the
script, the module or the subcommand. A program that stands in no table does with its arguments what the writer of a rule
for it thinks it does.
"""

import re
from collections.abc import Iterable

from agentrpc.domain.shell_builtins import CHANGERS
from agentrpc.domain.shell_programs import SHELLS, UNKNOWN, Flags, flags_of, take, without_globals
from agentrpc.domain.shell_words import Word

__all__ = ["PLAIN", "consents", "has_safe_forms", "is_safe"]

# Programs that run a text or file that they are given, or commands of a file in the folder. A rule must name the script,
# the module or the subcommand itself.
_INTERPRETERS = frozenset({
    "ansible", "ansible-playbook", "ant", "ash", "awk", "bash", "bpython", "bun", "busybox", "catchsegv", "choom", "dbus-run-session", "dc", "faketime", "hyperfine", "ipython", "linux32", "linux64", "perf", "pdb", "pkexec", "prlimit", "pypy", "pypy3", "run-parts", "setarch", "sg", "start-stop-daemon", "toybox", "valgrind", "bundle", "bunx", "cargo", "clisp",
    "cmake", "composer", "csh", "dash", "deno", "docker", "docker-compose", "dotnet", "ed", "elixir", "emacs",
    "erl", "ex", "expect", "fish", "gawk", "gdb", "ghci", "go", "gradle", "gradlew", "groovy", "guile", "helm",
    "hg", "invoke", "irb", "java", "jshell", "julia", "just", "kotlin", "ksh", "kubectl", "lein", "lldb",
    "ltrace", "lua", "make", "gmake", "mawk", "meson", "mix", "mksh", "mvn", "mysql", "nano", "nawk", "nc",
    "ncat", "ninja", "nix", "nix-shell", "node", "nodejs", "nox", "npm", "npx", "nvim", "octave", "osascript",
    "parallel", "perl", "php", "pip", "pip3", "pipenv", "pipx", "pnpm", "podman", "poetry", "psql", "puppet",
    "pwsh", "python", "python2", "python3", "R", "rake", "rbash", "Rscript", "ruby", "runuser", "rust-gdb", "sbt",
    "scala", "scp", "screen", "script", "sftp", "sh", "socat", "sqlite3", "ssh", "strace", "su", "svn", "swift",
    "systemctl", "systemd-run", "task", "tclsh", "telnet", "terraform", "tmux", "tox", "ts-node", "tsx", "uv",
    "uvx", "vi", "view", "vim", "watch", "wish", "xonsh", "yarn", "zsh",
})  # fmt: skip
_VERSIONED = re.compile(r"(python|perl|ruby|lua|php|node|pip|tclsh|guile)[0-9.]+")

# Programs that neither run others nor read a configuration from the folder they are in.
PLAIN = frozenset({
    "[", "basename", "cat", "cd", "chmod", "cksum", "cmp", "comm", "cp", "cut", "date", "df", "diff", "dirname",
    "du", "echo", "egrep", "expr", "false", "fgrep", "file", "fold", "grep", "head", "hexdump", "hostname", "id",
    "install", "join", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nl", "nproc", "od", "paste", "printenv",
    "printf", "ps", "pwd", "readlink", "realpath", "rev", "rm", "rmdir", "seq", "sha1sum", "sha256sum",
    "sha512sum", "shuf", "sleep", "stat", "strings", "sum", "tac", "tail", "tee", "test", "touch", "tr", "true",
    "truncate", "tty", "uname", "uniq", "unlink", "wc", "which", "whoami", "xxd", "yes", ":",
})  # fmt: skip

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
    " --connect-timeout: --compressed -A: --user-agent: -X: --request: -H: --header: --get --retry: -w:",
    "cp": "-a -b -d -f -i -l -n -p -r -s -t: -u -v -x -H -L -P -R -T --archive --attributes-only --backup --backup:"
    " --dereference --force --interactive --link --no-clobber --no-dereference --no-target-directory --preserve"
    " --preserve: --no-preserve: --recursive --reflink --reflink: --remove-destination --sparse: --strip-trailing-slashes"
    " --symbolic-link --target-directory: --update --verbose",
    "date": "-u -R -I -Id -Is -Ins -Iseconds -Iminutes -Ihours -Idate -d: --date: --utc --universal --rfc-email --iso-8601 --iso-8601: --rfc-3339:",
    "file": "-b -i -k -L -h -N -r -z -Z -0 -E -F: --brief --mime --mime-type --mime-encoding --dereference --no-dereference --keep-going",
    "hostname": "-a -A -d -f -i -I -s -y --alias --all-fqdns --all-ip-addresses --domain --fqdn --ip-address --long --short",
    "install": "-b -C -c -d -D -g: -m: -o: -p -t: -T -v --compare --directory --group: --mode: --owner:"
    " --preserve-timestamps --target-directory: --no-target-directory --verbose",
    "ln": "-b -f -i -L -n -P -r -s -t: -T -v --force --interactive --logical --no-dereference --physical --relative"
    " --symbolic --target-directory: --no-target-directory --verbose",
    "mv": "-b -f -i -n -t: -T -u -v --backup --backup: --force --interactive --no-clobber --strip-trailing-slashes"
    " --target-directory: --no-target-directory --update --verbose",
    "shuf": "-e -i: -n: -r -z --echo --input-range: --head-count: --repeat --zero-terminated",
    "uniq": "-c -d -D -i -u -z -f: -s: -w: --count --repeated --ignore-case --unique --skip-fields: --skip-chars: --check-chars: --zero-terminated",
    "patch": "", "dd": "", "dmesg": "", "fd": "-a -e: -E: -g -H -I -i -L -l -p -s -t: -u -0 --type: --extension: --exclude: --hidden --no-ignore"
    " --max-depth: --glob --absolute-path --full-path",
    "find": "", "gcc": "", "g++": "", "cc": "", "clang": "", "ld": "",
    "info": "", "journalctl": "-u: -n: -f -b -k -r -e -x -p: -o: --unit: --lines: --since: --until: --no-pager --priority:",
    "jq": "-c -r -j -s -e -n -S -C -M -a --compact-output --raw-output --slurp --sort-keys --exit-status --null-input --tab --indent: --join-output",
    "yq": "-r -P -o: -p: -c -e", "less": "-N -S -R -F -X -E -i -I -n -s -M", "more": "", "most": "", "lynx": "", "links": "", "w3m": "",
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
    "wget": "", "at": "", "batch": "", "crontab": "-l", "xxd": "-a -b -c: -e -g: -i -l: -o: -p -ps -plain -s: -u", "openssl": "", "gpg": "", "logger": "", "ctags": "", "pdflatex": "",
}  # fmt: skip
_SAFE_FLAGS = {name: flags_of(text) for name, text in _SAFE.items()}
_GIT_FLAGS = {name: flags_of(text) for name, text in _GIT.items()}
_NPM_FLAGS = flags_of(_NPM)
_NPM_SAFE = frozenset({"ls", "list", "outdated", "view", "audit", "-v", "--version"})
_MAKE_FLAGS = flags_of(
    "-B -i -j -j: -k -n -s -S -w -q -t --always-make --dry-run --jobs --jobs: --keep-going --silent --no-print-directory --quiet"
)
# Of these nothing but the flags is safe: an operand is a file that they write, a text that they run, or a host.
_NO_OPERANDS = frozenset({
    "7z", "apt", "apt-get", "at", "batch", "bzip2", "cc", "clang", "cpio", "csplit", "ctags", "dd", "g++", "gcc",
    "gpg", "info", "ld", "links", "logger", "lynx", "mail", "more", "patch", "most", "openssl", "pdflatex", "rsync",
    "split", "tcpdump", "tshark", "w3m", "wget", "wireshark", "zip", "crontab", "gzip", "xz",
})  # fmt: skip
_FIND_WORDS = frozenset({
    "!", "(", ")", ",", "-a", "-and", "-amin", "-anewer", "-atime", "-cmin", "-cnewer", "-ctime", "-daystart",
    "-depth", "-empty", "-executable", "-false", "-follow", "-fstype", "-gid", "-group", "-ilname", "-iname",
    "-inum", "-ipath", "-iregex", "-links", "-lname", "-ls", "-maxdepth", "-mindepth", "-mmin", "-mount",
    "-mtime", "-name", "-newer", "-newermt", "-nogroup", "-not", "-nouser", "-o", "-or", "-path", "-perm",
    "-print", "-print0", "-printf", "-prune", "-quit", "-readable", "-regex", "-regextype", "-samefile", "-size",
    "-true", "-type", "-uid", "-user", "-wholename", "-writable", "-xdev", "-xtype", "-H", "-L", "-P",
})  # fmt: skip
_SED_SCRIPT = re.compile(
    r"(?:\s*(?:(?:[0-9]+|\$|/(?:[^/\\\n]|\\.)*/I?)(?:~[0-9]+)?(?:,\s*[+~]?(?:[0-9]+|\$|/(?:[^/\\\n]|\\.)*/I?))?)?\s*!?\s*"
    r"(?:[pdDPhHgGxnNq=]|s([/|#,:@])(?:(?!\1)[^\\\n]|\\.)*\1(?:(?!\1)[^\\\n]|\\.)*\1[gpiI0-9]*|y/[^/\\\n]*/[^/\\\n]*/)?\s*(?:;|\n|$))+"
)


# Without a scheme curl takes HTTP; it puts in for braces and brackets what they stand for.
_ADDRESS = re.compile(r"https?://.*|[A-Za-z0-9.-]+(?::[0-9]+)?(?:[/?].*)?", re.IGNORECASE | re.DOTALL)
_CURL_FILES = re.compile(r"^(?:-[A-Za-z0-9]*|--[a-z-]+=)@|^@|%output\{")
_UNZIP_SHOWS = re.compile(r"-[a-z]*[lptv][a-z]*")


def is_safe(name: str, arguments: tuple[Word, ...], literal: int = 0) -> bool:
    """Whether a program runs no other and writes nothing but what is its purpose, whatever a rule leaves open.

    Args:
        name: The program; one of no table is safe: what it does is known to who wrote the rule.
        arguments: All of its arguments.
        literal: How many of them the rule names letter by letter; flags among those are meant.
    """
    if name == "git":
        return _git_is_safe(arguments, literal)
    if name in CHANGERS or name in SHELLS or _VERSIONED.fullmatch(name):
        return False
    if name == "npm":
        return bool(arguments) and arguments[0].text in _NPM_SAFE and consents(name, arguments[:1], arguments[1:])
    if name in _INTERPRETERS:
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
    return _operands_are_safe(name, arguments, judged, operands)


def has_safe_forms(name: str) -> bool:
    """Whether a program that can run others, or write, by its arguments is safe with some of them."""
    return name in {"git", "npm"} or name in _SAFE_FLAGS


def _operands_are_safe(name: str, arguments: tuple[Word, ...], judged: tuple[Word, ...], operands: list[Word]) -> bool:
    if name in {"less", "man", "bat"} and any((word.text or "+").startswith("+") for word in operands):
        return False
    if name == "sed":
        return _sed_is_safe(judged, operands)
    if name == "tar":
        # A name with a colon is another machine, that a program is started for.
        return _lists((arguments[0].text or "") if arguments else "") and not any(
            ":" in (w.text or ":") for w in judged
        )
    if name == "curl":
        return all(_ADDRESS.fullmatch(word.text or "") for word in operands) and not any(
            _CURL_FILES.search(word.text or "") for word in judged
        )
    if name in {"shuf", "uniq", "xxd", "hostname"}:
        # Further ones are written.
        most = {"hostname": 0}.get(name, 1)
        return (len(operands) <= most and not any(word.splits for word in operands)) or (
            name == "shuf" and not {"-e", "--echo"}.isdisjoint(word.text or "" for word in judged)
        )
    if name == "unzip":
        return any(_UNZIP_SHOWS.fullmatch(word.text or "") for word in judged)
    return True


def _lists(text: str) -> bool:
    return text == "--list" or (text.startswith("-") and not text.startswith("--") and "t" in text)


def _may_be_flag(word: Word) -> bool:
    return word.glob and (not word.prefix or word.prefix.startswith("-"))


def _operands(arguments: Iterable[Word], flags: Flags) -> list[Word] | None:
    """The arguments that are no options; None when one of the options is not among the flags."""
    operands: list[Word] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        text = word.text
        if text is None or _may_be_flag(word):
            return None
        if text == "--":
            return operands + left
        if text.startswith("-") and text != "-":
            taken = take(text, flags)
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
    behind = without_globals("git", (UNKNOWN, *arguments[:literal]))
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


def consents(name: str, literal: tuple[Word, ...], open_: tuple[Word, ...]) -> bool:
    """Whether the literal words of a rule are consent for a program that is not safe in itself.

    A script, a module or a subcommand must be named: `python3 tool.py`, `python3 -m pytest`, `npm run`, `make test`.

    Args:
        name: The program.
        literal: Its arguments that the rule names letter by letter.
        open_: Those that the rule leaves open.
    """
    if name in CHANGERS or name in _SAFE_FLAGS or name == "git":
        return False
    if not (name in _INTERPRETERS or _VERSIONED.fullmatch(name)):
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
