"""What a process tree of an agent may not do to its machine, to other processes, and to its own shells."""

import os
import platform
import shutil
import signal
import stat
import struct
import subprocess
import textwrap
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.claude.launcher import Isolation, IsolationError, SessionPaths, choose_isolation, write_launcher
from agentrpc.claude.mcp_client import Ground, McpConnectError, look
from agentrpc.claude.seccomp import REFUSED, seccomp_program
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.v1 import session_pb2
from tests.isolations import bubblewrap, isolations
from tests.live_cli import live_cli

PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
COMMIT = "git -c user.name=a -c user.email=a@b commit -qm first"
needs_python = pytest.mark.skipif(PYTHON is None, reason="there is no Python that a sandbox can see")


@pytest.fixture
def paths(tmp_path):
    paths = SessionPaths.under(tmp_path, clock.uuid7(), tmp_path / "workspace")
    paths.create()
    paths.workspace.mkdir()
    return paths


def tried(paths, isolation, command, program="/bin/sh"):
    """What a program says and how it ends, launched as a CLI is."""
    script = write_launcher(paths, isolation, Path(program).resolve(), {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    return subprocess.run([script, "-c", command], capture_output=True, text=True, check=False)


@pytest.fixture
async def model():
    model = ScriptedModel()
    await model.start()
    yield model
    await model.stop()


@pytest.fixture
def cli(paths, model):
    """A CLI of the session: `async with cli(isolation) as live`."""

    return lambda isolation: live_cli(paths, isolation, model)


# ---- Privileges ----


@pytest.mark.parametrize("isolation", isolations())
async def test_a_tool_call_has_no_privileges_and_gains_none(cli, isolation):
    async with cli(isolation) as live:
        (seen,) = await live.bash("cat /proc/self/status")
    status = dict(line.split(":\t", 1) for line in seen.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    if isolation is Isolation.BUBBLEWRAP:
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert "0" not in status["Uid"].split()[:1]


@pytest.mark.parametrize("isolation", isolations())
async def test_tools_still_work(cli, isolation, paths):
    commands = ["echo one > file && cat file"]
    wanted = ["one"]
    for program, command, said in (
        ("git", f"git init -q . && git add file && {COMMIT} && git log --format=%s", "first"),
        ("python3", "python3 -c 'import subprocess as s; print(s.run([\"echo\", \"two\"], capture_output=True).stdout)'",
         "b'two\\n'"),
        ("node", "node -e 'require(\"child_process\").exec(\"echo three\", (e, out) => console.log(out.trim()))'", "three"),
    ):  # fmt: skip
        if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin"):
            commands.append(command)
            wanted.append(said)
    async with cli(isolation) as live:
        assert await live.bash(*commands) == wanted
    assert (paths.workspace / "file").read_text() == "one\n"


@bubblewrap
def test_the_machine_cannot_be_written_also_by_root(paths, witness):
    attack = f"mount -o remount,rw,bind /usr; touch {witness}; mount -t tmpfs none /mnt && echo mounted"
    assert tried(paths, Isolation.BUBBLEWRAP, attack).stdout == ""


@bubblewrap
def test_of_etc_an_agent_reads_what_everybody_may(paths):
    private = [
        path
        for path in Path("/etc").iterdir()
        if not path.is_symlink() and path.is_file() and not path.stat().st_mode & stat.S_IROTH
    ]
    assert Path("/etc/shadow") in private
    for path in private:
        done = tried(paths, Isolation.BUBBLEWRAP, f"cat {path}")
        assert (done.stdout, done.returncode != 0) == ("", True), path
    assert "root" in tried(paths, Isolation.BUBBLEWRAP, "cat /etc/passwd").stdout


@bubblewrap
def test_proc_cannot_be_written(paths):
    names = ("self/mem", "self/comm", "self/oom_score_adj", "sys/vm/overcommit_memory")
    done = tried(paths, Isolation.BUBBLEWRAP, "; ".join(f"(: >> /proc/{name}) && echo {name}" for name in names))
    assert done.stdout == ""
    # Of the kernel's settings an ordinary user is refused before that.
    assert done.stderr.count("Read-only file system") >= 3


# ---- System calls ----


CALLS = """
import ctypes, errno, json, mmap, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
said = {}
for name, number in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
    said[name] = errno.errorcode[ctypes.get_errno()] if done == -1 else done
for name, flags in {"clone(NEWUSER)": 0x10000011, "clone(NEWNS)": 0x20011}.items():
    done = libc.syscall(ctypes.c_long(56 if os.uname().machine == "x86_64" else 220), ctypes.c_long(flags), *[ctypes.c_long(0)] * 4)
    if done == 0:
        os._exit(0)
    said[name] = errno.errorcode[ctypes.get_errno()] if done == -1 else "made"
for name, arguments in {"unix": (1, 1), "inet": (2, 1), "inet6": (10, 2), "route": (16, 3), "alg": (38, 5), "vsock": (40, 1),
                        "packet": (17, 3), "uevent": (16, 3, 15), "audit": (16, 3, 9)}.items():
    try:
        socket.socket(*arguments).close()
        said[name] = "made"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
print(json.dumps(said))
"""


@needs_python
@pytest.mark.parametrize("isolation", isolations())
def test_calls_that_no_agent_needs_are_refused(paths, isolation):
    import json

    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    numbers = {name: both[column] for name, both in REFUSED.items()}
    (paths.workspace / "calls.py").write_text(CALLS)
    done = tried(paths, isolation, f"{PYTHON} calls.py '{json.dumps(numbers)}'")
    said = json.loads(done.stdout)
    assert {name for name in numbers if said[name] != "EPERM"} == set()
    assert said["clone(NEWUSER)"] == said["clone(NEWNS)"] == "EPERM"
    assert {said[name] for name in ("alg", "vsock", "packet", "uevent", "audit")} == {"EAFNOSUPPORT"}
    assert {said[name] for name in ("unix", "inet", "route")} == {"made"}


PEEK = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
other = subprocess.Popen(["sleep", "60"])
text = ctypes.create_string_buffer(b"overwritten")
vector = (ctypes.c_void_p * 2)(ctypes.addressof(text), 11)
start = int(open(f"/proc/{other.pid}/maps").readline().split("-")[0], 16)
remote = (ctypes.c_void_p * 2)(start, 11)
for name in ("process_vm_readv", "process_vm_writev"):
    print(name, getattr(libc, name)(other.pid, vector, 1, remote, 1, 0))
print("ptrace", libc.ptrace(16, other.pid, 0, 0))
fd = libc.syscall(ctypes.c_long(434), other.pid, 0)
print("pidfd", fd >= 0, libc.syscall(ctypes.c_long(438), fd, 1, 0))
other.kill()
"""


@needs_python
@pytest.mark.parametrize("isolation", isolations())
def test_no_process_reaches_into_another_of_its_user(paths, isolation):
    (paths.workspace / "peek.py").write_text(PEEK)
    done = tried(paths, isolation, f"{PYTHON} peek.py")
    said = "process_vm_readv -1\nprocess_vm_writev -1\nptrace -1\npidfd True -1\n"
    assert done.stdout == said, done.stderr


# getpid() by `int 0x80`, and by number 39 of x32.
FOREIGN = """
import ctypes, mmap, sys
code = bytes.fromhex(sys.argv[1])
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
print(ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(), flush=True)
"""


@needs_python
@pytest.mark.skipif(platform.machine() != "x86_64", reason="it has no other architecture's calls")
def test_calls_of_other_architectures_are_no_way_around(paths):
    (paths.workspace / "foreign.py").write_text(FOREIGN)
    i386 = tried(paths, Isolation.SUBREAPER, f"exec {PYTHON} foreign.py b814000000cd80c3")
    assert (i386.stdout, i386.returncode) == ("", -signal.SIGSYS & 0xFF)
    x32 = tried(paths, Isolation.SUBREAPER, f"exec {PYTHON} foreign.py b8270000400f05c3")
    assert (x32.stdout, x32.returncode) == ("-38\n", 0)


def judged(program, number, arguments=(0, 0, 0), architecture=0xC000003E):
    """What a filter answers: the few instructions that it is made of, carried out."""
    data = struct.pack("<IIQ", number, architecture, 0) + struct.pack("<6Q", *arguments, 0, 0, 0)
    steps = list(struct.iter_unpack("<HBBI", program))
    at, loaded = 0, 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        if code == 0x20:
            loaded = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            true = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            at += then if true else otherwise


@pytest.mark.parametrize(("machine", "column", "architecture"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)])
def test_the_filter_of_each_machine(machine, column, architecture):
    program = seccomp_program(machine)
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x50000
    clone, clone3, socket, write = [(56, 220), (435, 435), (41, 198), (1, 64)][0:4]

    def judge(both, *arguments):
        return judged(program, both[column], (*arguments, 0, 0, 0)[:3], architecture)

    assert {judge(both) for both in REFUSED.values()} == {refuse | 1}
    assert judge(write) == judge(clone, 17) == judge(socket, 2) == judge(socket, 16, 3, 0) == allow
    assert judge(clone, 0x10000000 | 17) == refuse | 1
    assert judge(clone3) == refuse | 38
    assert judge(socket, 40) == judge(socket, 16, 3, 12) == refuse | 97
    # A segment of System V's memory is small, however its size is written.
    shmget = (29, 194)
    assert judge(shmget, 0, 64 * 1024) == allow
    assert judge(shmget, 0, 64 * 1024 + 1) == judge(shmget, 0, 1 << 32) == refuse | 22
    # What the kernel does not look at cannot hide what it does look at.
    assert judge(socket, 40 | 1 << 32) == refuse | 97
    assert judged(program, write[column], architecture=0x40000003) == kill


def test_a_machine_without_a_list_of_calls_is_refused():
    with pytest.raises(RuntimeError, match="there is no list of system calls for riscv64"):
        seccomp_program("riscv64")


# ---- MCP servers that are checked ----


@pytest.fixture
def witness():
    """A file that only somebody who writes to the system could make."""
    witness = Path(f"/usr/agent-was-here-{os.getpid()}")
    yield witness
    made = witness.exists()
    witness.unlink(missing_ok=True)
    assert not made


@bubblewrap
async def test_a_check_of_a_server_runs_in_the_same_sandbox(tmp_path, witness):
    async def nowhere(host, port):
        raise AssertionError

    attack = (
        f"id >&2; mount -o remount,rw,bind /usr >&2 && touch {witness}; touch {witness}; "
        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status >&2"
    )
    server = session_pb2.McpServer(name="s", stdio=session_pb2.McpStdio(command="sh", args=["-c", attack]))
    with pytest.raises(McpConnectError) as caught:
        await look(server, Ground(tmp_path / "check", Isolation.BUBBLEWRAP, nowhere), timeout=60)
    said = " ".join(str(caught.value).split())
    assert f"CapEff: {'0' * 16} NoNewPrivs: 1 Seccomp: 2" in said
    assert "uid=0" not in said


# ---- Shells ----


PLANT = textwrap.dedent("""
    for name in .bashrc .bash_profile .bash_login .profile .zshenv; do
      echo 'ls() { echo EVIL; }' > ~/$name
      mv ~/$name ~/moved; rm -f ~/$name; ln -sf /tmp/evil ~/$name
      echo 'ls() { echo EVIL; }' > ~/$name
    done
    for folder in shell-snapshots session-env session-env/$CLAUDE_CODE_SESSION_ID; do
      mv $CLAUDE_CONFIG_DIR/$folder /tmp/
      mkdir -p $CLAUDE_CONFIG_DIR/$folder
      for name in sessionstart-hook-1.sh hook-1.sh x.sh; do
        echo 'ls() { echo EVIL; }' > $CLAUDE_CONFIG_DIR/$folder/$name
      done
      for file in $CLAUDE_CONFIG_DIR/$folder/*.sh; do echo 'ls() { echo EVIL; }' >> $file; done
    done
""")


@bubblewrap
async def test_no_shell_reads_what_an_agent_has_written_for_it(cli, paths):
    # What a session of before has left: content, and links in the place of what is closed.
    (paths.home / ".bashrc").write_text("ls() { echo EVIL; }\n")
    (paths.home / "planted").write_text("ls() { echo EVIL; }\n")
    (paths.home / ".profile").symlink_to(paths.home / "planted")
    (paths.config / "shell-snapshots").symlink_to(paths.workspace)
    (paths.workspace / "plain").touch()
    for _ in range(2):
        async with cli(Isolation.BUBBLEWRAP) as live:
            assert (await live.bash("ls", f"{PLANT}\ntrue", "ls", "bash -lc ls; bash -ic ls 2>/dev/null"))[::2] == [
                "plain"
            ] * 2


# ---- Which isolation ----


@pytest.fixture
def broken(monkeypatch):
    """A machine where bubblewrap does not work, and an ordinary user of it."""
    monkeypatch.setattr("agentrpc.claude.launcher._bubblewrap_trouble", lambda: "bubblewrap is not installed")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return monkeypatch


def test_without_bubblewrap_only_what_was_named_is_used(broken):
    for wanted in ("auto", "bubblewrap"):
        with pytest.raises(IsolationError, match=r"not installed.*AGENTRPC_ISOLATION=subreaper"):
            choose_isolation(wanted)
    assert choose_isolation("subreaper")[0] is Isolation.SUBREAPER
    isolation, why = choose_isolation("auto", fall_back=True)
    assert isolation is Isolation.SUBREAPER
    assert "not installed" in why
    assert "keys" in why


def test_root_never_falls_back_to_nothing_unasked(broken):
    broken.setattr(os, "geteuid", lambda: 0)
    broken.setattr("agentrpc.claude.launcher.user_trouble", lambda _: "no process can get a uid")
    with pytest.raises(IsolationError, match="anything to this machine"):
        choose_isolation("auto", fall_back=True)
    assert choose_isolation("subreaper", fall_back=True)[0] is Isolation.SUBREAPER
