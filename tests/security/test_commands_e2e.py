"""What must not run does not run: forms of the corpus once through the real CLI, each with a file as its witness.

The dangerous program of a form is replaced by one that leaves a file named after the case. Only forms are tried that do
leave it when nothing judges them, in a bash of the test's own.
"""

import os
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from agentrpc.domain.rules import decide, parse_rule
from agentrpc.v1 import common_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import bash, create, of, outputs, run, state

pytestmark = pytest.mark.timeout(600)

CASES = tomllib.loads((Path(__file__).parent / "commands.toml").read_text(encoding="utf-8"))["case"]
# They reach beyond the folder, wait, or ask for what a machine may not have.
ELSEWHERE = re.compile(
    r"\b(?:sudo|doas|su|ssh|docker|chroot|npx|uv|watch|nix|parallel|entr|select|script|screen|tmux|vi|tcpdump|daemon"
    r"|perf|setarch|linux32|linux64|prlimit|choom|pkexec|faketime|busybox|runuser|python3|node|perl|npm|pip|at|crontab|systemd-run|kill|curl -|wget -|instaweb|send-email|until|man)\b"
    r"|/dev/|/proc|~|\$HOME|/bin/\*|\?\?|\.\./"
)
# A form whose program is written in pieces.
PIECES = re.compile(r"""\br(\\\n|\\|''|""|\$'|'|\$@|\$\*|\$\{u\}|\$\(true\)|"|'')?m\b""")


def substituted(number, case):
    """The command with a witness in place of what it does, and its rules; None for forms that have no place for one."""
    witness, hit = f"w-{number}", f"./hit-{number}"
    rules = [*case.get("allow", [])], [*case.get("deny", [])]
    text = case["command"]
    if ELSEWHERE.search(text) or len(text) > 500 or not text.isascii():
        return None
    if rules[1] in (["Bash(rm:*)"], ["Bash(curl:*)"], ["Bash(curl:*)", "Bash(wget:*)"]):
        rules = rules[0], ["Bash(touch:*)"]
    elif rules[1]:
        return None
    text = PIECES.sub(lambda found: f"t{found[1] or ''}ouch", text)
    text = text.replace(r"\x72m", r"\x74ouch").replace(r"\162m", r"\164ouch").replace("[r]m", "[t]ouch")
    text = re.sub(r"\b(curl|wget)\b", "touch", text).replace("{rm,", "{touch,")
    text = re.sub(r"/(?:usr/)?bin/touch", "/usr/bin/touch", text)
    text = re.sub(r"""(ouch['"]?[ \t]+)(?:-r?f[ \t]+)?(?:[\w$/{}.]+|\$PWD/t|"\$\w")""", rf"\1{witness}", text)
    text = re.sub(r"/etc/\w+", witness, text)
    if not rules[1] and rules[0] != ["Bash(* --version)"]:
        text = re.sub(r"(?<![\w./-])(?:sh|id|evil)(?![\w.])", hit, text)
    text = text.replace("/tmp/x", hit).replace("/tmp", f"$PWD/bin-{number}")
    return text, tuple(rules[0]), tuple(rules[1])


def refused(text, allow, deny):
    found = decide(
        "Bash", {"command": text}, workspace="/srv/w", home="/srv/home", mode="DONT_ASK",
        allowed=[parse_rule(rule) for rule in allow], disallowed=[parse_rule(rule) for rule in deny],
    )  # fmt: skip
    return found.outcome.value == "deny"


def prepare(folder, numbers):
    """What forms need, and a witness for each: a program that leaves its file."""
    subprocess.run(["git", "init", "-q", "--template=", folder], check=True)
    who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", *who, "-C", folder, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    for name in "ftxy":
        (folder / name).write_text("a\nb\n")
    add_programs(folder, numbers)


def add_programs(folder, numbers):
    for number in numbers:
        hit = folder / f"hit-{number}"
        hit.write_text(f'#!/bin/sh\n: > "{folder}/w-{number}"\n')
        hit.chmod(0o755)
        programs = folder / f"bin-{number}"
        programs.mkdir()
        for name in ("ls", "git", "npm", "log"):
            (programs / name).symlink_to(hit)


def witnesses(folder):
    return {int(path.name.removeprefix("w-")) for path in folder.glob("w-*")}


def really(folder, text):
    """Run a text in a bash that nothing judges."""
    process = subprocess.Popen(
        ["bash", "-c", text], cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(folder), "PAGER": "cat"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with suppress(subprocess.TimeoutExpired):
        process.wait(3)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The forms that do leave their witness: number -> command, rules that allow, rules that deny."""
    found = {}
    root = tmp_path_factory.mktemp("really")
    prepare(root / "template", [])
    for number, case in enumerate(CASES):
        form = substituted(number, case) if case["outcome"] != "allow" else None
        if form is not None and re.search(rf"(?:w|hit|bin)-{number}\b", form[0]):
            folder = root / str(number)
            shutil.copytree(root / "template", folder)
            add_programs(folder, [number])
            really(folder, form[0])
            if witnesses(folder):
                found[number] = form
            shutil.rmtree(folder, ignore_errors=True)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with own_stack() as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack):
    async with stack.client() as client:
        yield client


async def conduct(stack, client, forms, allow, deny):
    """Run commands in one session where nobody is asked: the session's folder and what the calls said."""
    session = await create(
        client,
        allowed_tools=allow,
        disallowed_tools=deny,
        permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK,
    )
    await run(client, session, "[[text: makes the workspace]]")
    folder = stack.workspace(session)
    prepare(folder, forms)
    commands = list(forms.values())
    steps = [commands[at : at + 40] for at in range(0, len(commands), 40)]
    prompt = "\n[[then]]\n".join("\n".join(map(bash, step)) for step in steps)
    events = await run(client, session, f"{prompt}\n[[then]]\n[[text: done]]", timeout=200)
    assert state(events) == "STATE_SUCCEEDED"
    return folder, events


@pytest.mark.asyncio(loop_scope="module")
async def test_no_form_of_what_must_not_run_leaves_a_witness(stack, client, forms):
    assert len(forms) >= 100
    groups = defaultdict(list)
    for number, (_, allow, deny) in forms.items():
        groups[allow, deny].append(number)
    # A session for each form alone would take long: rules of few forms stand together where that allows none of them.
    few = [key for key, members in groups.items() if len(members) < 4 and not key[1]]
    together = tuple(rule for allow, _ in few for rule in allow)
    for key in few:
        for number in [number for number in groups[key] if refused(forms[number][0], together, ())]:
            groups[key].remove(number)
            groups[together, ()].append(number)
    for (allow, deny), members in groups.items():
        if not members:
            continue
        tried = {number: forms[number][0] for number in members}
        folder, events = await conduct(stack, client, tried, allow, deny)
        assert [tried.get(number) for number in witnesses(folder)] == []
        ends = of(events, "tool_call_finished")
        assert len(ends) == len(members)
        assert all(end.denied_by for end in ends)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_forms_run_where_all_is_allowed(stack, client, forms):
    some = {number: forms[number][0] for number in sorted(forms)[::5]}
    folder, _ = await conduct(stack, client, some, ["Bash"], [])
    assert set(some) - witnesses(folder) == set()


ALLOWED = [
    ("touch w-0", ["Bash(touch:*)"]),
    ("true && timeout 5 touch w-1 # rm x", ["Bash(touch:*)"]),
    ("ls | tee w-2", ["Bash(ls:*)", "Bash(tee:*)"]),
    ("git log --oneline > w-3", ["Bash(git log:*)", "Edit"]),
    ("if true; then touch 'w-4'; fi", ["Bash(touch w-*)"]),
    ("sh -c 'touch w-5'", ["Bash(sh -c 'touch w-5')"]),
]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_allowed_runs(stack, client):
    for number, (command, allow) in enumerate(ALLOWED[:3]):
        folder, _ = await conduct(stack, client, {number: command}, allow, [])
        assert witnesses(folder) == {number}, command
    rest = dict(enumerate(command for command, _ in ALLOWED[3:]))
    folder, _ = await conduct(stack, client, rest, [rule for _, allow in ALLOWED[3:] for rule in allow], [])
    assert witnesses(folder) == {3, 4, 5}


# What the reader of shell text takes for granted about the shell that the CLI runs commands in.
SHELL = r"""
case $- in *i*|*H*) echo interactive or with a history;; esac
shopt -q expand_aliases && alias
declare -F
shopt -q dotglob && echo dotglob
shopt -q nullglob && echo nullglob
shopt -q globstar && echo globstar
shopt -q sourcepath || echo no sourcepath
shopt -q extglob && echo extglob
set -o | grep -E '^(posix|noglob|braceexpand|keyword|allexport) ' | tr -s ' \t' ' '
echo "$BASH_ENV$ENV$PROMPT_COMMAND"
echo "$BASH"
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_the_shell_of_the_cli_is_the_one_that_is_read(stack, client):
    _, events = await conduct(stack, client, {0: SHELL}, ["Bash"], [])
    assert outputs(events)[0].split("\n") == [
        "allexport off", "braceexpand on", "keyword off", "noglob off", "posix off", "", "/bin/bash",
    ]  # fmt: skip


def test_forms_are_refused_by_the_decision_too(forms):
    assert [text for text, allow, deny in forms.values() if not refused(text, allow, deny)] == []
