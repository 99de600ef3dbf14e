"""What a real bash runs, the reader of shell text has seen."""

import os

import pytest

from tests.security.fuzz_shell import Bash, fuzz, misses_of

LINES = int(os.environ.get("FUZZ_LINES", "10000"))
SEED = int(os.environ.get("FUZZ_SEED", "20261128"))


@pytest.mark.timeout(1800)
def test_whatever_bash_runs_was_read():
    misses, counts = fuzz(LINES, SEED)
    print(f"seed {SEED}: {counts}")
    assert [f"{miss.promise}: {miss.line!r}" for miss in misses] == []
    # Most lines say nothing if they do not run, or are not certain.
    assert counts["ran"] > LINES / 3
    assert counts["certain"] > LINES / 4
    assert counts["allowed"] > LINES / 200


# Lines in which bash runs something else than its grammar shows, or which were read wrongly once.
FOUND = [
    "env A{=1 $(echo cc)",
    "env A*=1 cc",
    "aa >&2'a[$(cc)]'",
    "aa >&'a[$(cc)]'",
    "x='$(cc)'; aa >& \"$x\"",
    "x='a[$(cc)]' bb ] ]]1> ok$x && aa",
    "cc $'a' -- -<<E\nE\n&> no d'd'",
    "cc -<<-E\nE\ndd",
    'cc -l<< "E" && dd\nE\n',
    "cc -3<<E\nE\ndd",
    "time bb >|\\\n ok |\ncc a:b~c",
    "bb &>>\\\n ok; cc &\\\n> ok dd",
    "dd {fd}> ok",
    "aa {fd}>ok x",
    "time ! aa 2>&1 {1..3} >&2 a.b",
    "! cc 2>&- x=~",
    "coproc N { cc; aa x | bb; }",
    "dd cc >> ok <&-'a'\"b\"c",
    "time -p x+=cc cc -l x",
    "eval time -p x+=cc $'\\x63c' -l x",
    "{ :;\n{bb,x} y\nbb; }",
    "aa && bb 2>&1 push",
    "[ a > cc ]",
    "[ a && cc ]",
    "((cc) || (aa))",
    "x='a[$(cc)]'; echo $((x))",
    "cat <<E\n`cc`\nE",
    "aa > ok bb; cc",
    "echo \"${x:-'$(cc)'}\"",
    "aa <<'E' 2>&1 | cc\nE\n",
    "case x in esac\ncc\n",
    "aa\u2003cc",
    "aa #\rcc",
    "i\\\nf cc; then aa; fi",
    "aa &\\\n& cc",
    "alias aa=cc\naa",
    "aa() { cc; }; aa",
    "timeout 1 env A=1 nice cc",
    "echo 'cc x' | xargs -n 2 timeout 1",
    "sh -c 'eval \"cc\"'",
    "$(echo cc)",
    "trap cc EXIT",
    "sh -c -c 'cc x'",
    "bash -c -- 'cc x'",
    "time PATH=/nowhere /stubs/bb {1..3} --opt=v |\n2>&- \\\na''a x",
    'set -- cc; "$@"',
    "declare -a 'a=($(cc))'",
    "test -v 'a[$(cc)]'",
    "printf -v 'a[$(cc)]' x",
    "[[ 'a[$(cc)]' -eq 0 ]]",
    "PS4='$(cc)'; set -x; aa",
    "mapfile -C cc -c 1 a <<< x",
    "compgen -C cc x",
    "BASH_ENV=/dev/fd/3 bash -c : 3<<< cc",
    "a=cc; ${a@P}; x='$(cc)'; echo ${x@P}",
    "unset 'a[$(cc)]'",
    "let 'a[$(cc)]=1'",
    "read 'a[$(cc)]' <<< x",
    "local 'a[$(cc)]=1'",
    "f() { local -i x='a[$(cc)]'; }; f",
    "declare -n r='a[$(cc)]'; echo $r",
    "x='a[$(cc)]'; [[ $x -eq 0 ]]",
    "x='a[$(cc)]'; echo ${y:x}",
    "x='a[$(cc)]'; echo ${!x}",
    "wait -p 'a[$(cc)]' -n",
    "getopts x 'a[$(cc)]'",
    "export x='a[$(cc)]'; ((x))",
    "read x <<< 'a[$(cc)]'; ((x))",
    "for x in 'a[$(cc)]'; do ((x)); done",
    "case $((x='a[$(cc)]')) in *) ;; esac",
    "a=('a[$(cc)]'); ((a[0]))",
    "set -- 'a[$(cc)]'; (($1))",
    "coproc cc",
    "cc() { aa; }; unset -f cc; cc",
    "command -p -- cc",
    "exec -a aa cc",
    "{ cc; } 2> ok",
    "if aa; then cc; fi > ok",
    "aa | while read x; do cc; done",
    "aa<(cc)",
    "aa ${x:-<(cc)}",
    "aa $(<ok cc)",
    "<<E cc\nE",
    '$\\\n"bb" =',
    "cc <\\\n /dev/null -l + ${x:-y}",
    "env --  -  cc",
    "env -- - A=1 cc",
    '\\dd 1|& IF\\\nS=c $"bb" exact',
    "A\\\nB='x' cc",
    "env \u00e9A=1e $xdd cc",
    'env A= $"aa"= $"aa"',
    "env 'A=1' cc",
    "env \\A=1 cc",
    "env '1=2' -x=y cc",
    "cc x|<&- aa |& cc\n# note\n2>f aa x exact + &>> ok",
    'git "$@" cc',
    "for f in a.b\ndo coproc d''d done\ndone;aa",
    "dd\\\n 2>&- x",
    "bash -c 'dd\\\n 2>&- x'",
    "aa /stubs/aa x/stubs/bb",
    "sh -c \"bb ~ $'' ''\"",
    "sh -c \"aa $'a b'\"",
    "sh -c \"aa $'x\\\\' ; cc #'\"",
    "sh -c '[[ a && cc ]]'",
    "sh -c 'aa &>f cc'",
    "sh -c '((cc))'",
    "sh -c \"aa # it's\n[[ a && cc ]] # '\"",
    "sh -c '! (aa) && [ -n \"x$\" ] && cc'",
    "find . -exec sh -c '[[ a && cc ]]' \\;",
    "echo 1 | xargs sh -c '[[ a && cc ]]'",
    "<<< x cc",
    "> ok cc",
]


@pytest.fixture(scope="module")
def ran():
    with Bash() as bash:
        return dict(zip(FOUND, bash.run(FOUND), strict=True))


@pytest.mark.parametrize("line", FOUND)
def test_lines_that_were_read_wrongly_once_or_might_be(line, ran):
    assert list(misses_of(line, *ran[line])) == []
