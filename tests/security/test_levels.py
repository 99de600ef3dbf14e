"""The isolation `user`: what an agent with a uid of its own cannot reach, by the real CLI from inside."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.agent_users import AgentUsers, IsolationError, processes_of, user_trouble
from agentrpc.claude.launcher import Isolation, SessionPaths, stop_tree, write_launcher
from agentrpc.claude.limits import Limits
from agentrpc.claude.mcp_client import Ground, McpConnectError, look
from agentrpc.claude.supervisor import has_landlock
from agentrpc.claude.workspace_files import Incoming, make_folders, place_tree
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.settings import DEFAULT_UIDS
from agentrpc.v1 import session_pb2
from tests.isolations import passable, users  # noqa: F401 - a fixture
from tests.live_cli import live_cli
from tests.work.test_launcher import HOSTILE, alive, until_started

pytestmark = users
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
SHELL = Path("/bin/sh").resolve()
SECRET = "the-other-ones-secret"


class Worker:
    """What a worker has to give agents users: folders, and the users."""

    def __init__(self, folder, uids=DEFAULT_UIDS, machine=Path("/run/agentrpc")):
        self.data = folder / "data"
        self.store = WorkspaceStore(folder / "workspaces", checkpoint_limit=2**20, checkpoints_kept=2)
        self.users = AgentUsers(uids, self.data, folder / "workspaces", machine)

    def session(self):
        """The folders of a new session, without a user."""
        session_id = clock.uuid7()
        self.store.create(session_id)
        paths = SessionPaths.under(self.data, session_id, self.store.path(session_id))
        paths.create()
        return paths

    @contextlib.contextmanager
    def owned(self, paths=None):
        """The folders of a session with a user, until nothing of it runs any more."""
        owned = self.users.take(paths or self.session())
        yield owned
        self.users.give_back(owned)


@pytest.fixture
def worker(passable):  # noqa: F811
    worker = Worker(passable)
    worker.data.mkdir()
    (worker.data / "signing.key").write_text(SECRET)
    # As careless as an operator may be.
    (worker.data / "signing.key").chmod(0o644)
    (worker.data / "redis").mkdir()
    (worker.data / "redis" / "redis.conf").write_text(SECRET)
    worker.users.prepare(SHELL)
    yield worker
    worker.users.close()


@pytest.fixture
async def model():
    async with ScriptedModel() as model:
        yield model


def launched(paths, command):
    """A shell, launched as a CLI is."""
    script = write_launcher(paths, Isolation.USER, SHELL, {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    return [script, "-c", command]


async def until(look):
    async with asyncio.timeout(60):
        while True:
            if look():
                return
            await asyncio.sleep(0.01)


def tried(paths, command):
    return subprocess.run(launched(paths, command), capture_output=True, text=True, check=False)


# ---- What others have ----


# Each prints something that it must not, or says THROUGH. VICTIM and CLI are processes of another session, WORKER is
# the service's; OTHER are the folders of another session.
ATTACKS = """
cat {other.workspace}/secret
cat {other.home}/secret {other.config}/secret
ls -A {other.workspace} {other.home} {other.config} {other.root} && echo THROUGH
ls -A {other.workspace.parent} {workspaces} {data} {data}/sessions {data}/tmp && echo THROUGH
ls -A {other.user.tmp} && echo THROUGH
cat {other.launch}/plan.json {other.options}/secret
cat {own.launch}/plan.json
(echo x > {own.options}/planted) && echo THROUGH
(echo x > {own.root}/planted) && echo THROUGH
(echo x > {own.workspace.parent}/id) && echo THROUGH
mv {own.home} {own.root}/elsewhere && echo THROUGH
cat {data}/signing.key {data}/redis/redis.conf
cat {data}/*.key
cat {own.workspace}/../checkpoints/* && echo THROUGH
cat {own.workspace}/../incoming/upload
cat {own.workspace}/../../{other.workspace.parent.name}/files/secret
(echo x > {other.workspace}/planted) && echo THROUGH
(echo x >> {other.workspace}/secret) && echo THROUGH
rm -f {other.workspace}/secret; rm -rf {other.home}
ln {other.workspace}/secret linked && cat linked
ln -s {other.workspace}/secret link; cat link
mv {other.workspace} moved && echo THROUGH
chmod -R 777 {other.root} && echo THROUGH
chown -R $(id -u) {other.workspace} && echo THROUGH
kill -9 {victim} && echo THROUGH
kill -STOP {victim} && echo THROUGH
kill -9 {cli} && echo THROUGH
kill -9 {worker} && echo THROUGH
kill -0 {worker} && echo THROUGH
kill -9 {supervisor} && echo THROUGH
tr '\\0' '\\n' < /proc/{victim}/environ
tr '\\0' '\\n' < /proc/{cli}/environ
tr '\\0' '\\n' < /proc/{worker}/environ && echo THROUGH
cat /proc/{cli}/maps && echo THROUGH
head -c 1 /proc/{cli}/mem && echo THROUGH
(echo x > /proc/{cli}/mem) && echo THROUGH
ls -l /proc/{cli}/fd && echo THROUGH
ls -l /proc/{worker}/fd && echo THROUGH
cat /proc/{worker}/fd/* && echo THROUGH
readlink /proc/{cli}/cwd && echo THROUGH
cat /proc/{cli}/cwd/secret
ls /proc/{cli}/root/ && echo THROUGH
cat /proc/{worker}/root{other.workspace}/secret
(echo 1000 > /proc/{cli}/oom_score_adj) && echo THROUGH
(echo 1000 > /proc/{worker}/oom_score_adj) && echo THROUGH
renice -n 19 -p {cli} && echo THROUGH
prlimit --nofile=1 --pid {cli} && echo THROUGH
taskset -p 1 {worker} && echo THROUGH
ionice -c 3 -p {worker} && echo THROUGH
{python} reach.py {cli}
{python} reach.py {worker}
{python} become.py
{setuid} && echo ran
echo {password} | su -c id root && echo THROUGH
newgrp root < /dev/null; id -g | grep -qx 0 && echo THROUGH
mount -t tmpfs none {own.workspace} && echo THROUGH
mount --bind {own.home} {own.workspace} && echo THROUGH
unshare -Ur id -u && echo THROUGH
unshare -m true && echo THROUGH
unshare -p true && echo THROUGH
nsenter -t {worker} -m true && echo THROUGH
chroot / true && echo THROUGH
mknod disk b 254 0 && echo THROUGH
hostname somewhere && echo THROUGH
dmesg && echo THROUGH
(: >> /proc/sys/kernel/core_pattern) && echo THROUGH
(: >> /proc/sysrq-trigger) && echo THROUGH
cat /etc/shadow && echo THROUGH
(echo x >> /etc/passwd) && echo THROUGH
(echo x > /usr/bin/planted) && echo THROUGH
touch /etc/cron.d/planted && echo THROUGH
crontab -l && echo THROUGH
cp /bin/sh shell && chmod 6755 shell && ./shell -c 'id -u; id -g' | grep -qx 0 && echo THROUGH
cat {machine}/uids/* && echo THROUGH
ls {machine}/uids && echo THROUGH
"""
REACH = """
import ctypes, os, resource, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
vector = (ctypes.c_void_p * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
done = {
    "ptrace attach": libc.ptrace(16, pid, 0, 0),
    "ptrace seize": libc.ptrace(0x4206, pid, 0, 0),
    "process_vm_readv": libc.process_vm_readv(pid, vector, 1, vector, 1, 0),
    "process_vm_writev": libc.process_vm_writev(pid, vector, 1, vector, 1, 0),
    "kcmp": libc.syscall(312, os.getpid(), pid, 0, 0, 0),
    "move_pages": libc.syscall(279, pid, 0, 0, 0, 0, 0),
}
fd = libc.syscall(434, pid, 0)
done["pidfd_getfd"] = libc.syscall(438, fd, 1, 0)
done["pidfd_send_signal"] = libc.syscall(424, fd, 9, 0, 0)
for name, result in done.items():
    if result >= 0:
        print("THROUGH", name)
for name, call in {
    "sched": lambda: os.sched_setaffinity(pid, {0}),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
    "limit": lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1)),
}.items():
    try:
        call()
        print("THROUGH", name)
    except OSError:
        pass
"""
BECOME = """
import ctypes, os
for name, arguments in [("setuid", (0,)), ("setgid", (0,)), ("setgroups", ([0],)), ("setresuid", (0, 0, 0)),
                        ("setreuid", (-1, 0)), ("setegid", (0,)), ("seteuid", (0,))]:
    try:
        getattr(os, name)(*arguments)
        print("THROUGH", name)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)) == 0:
    print("THROUGH capset")
if libc.prctl(47, 2, 7, 0, 0) == 0:
    print("THROUGH ambient")
if libc.prctl(38, 0, 0, 0, 0) == 0 or libc.prctl(39, 0, 0, 0, 0) != 1:
    print("THROUGH no_new_privs")
"""


@pytest.mark.skipif(PYTHON is None, reason="there is no Python that agents can run")
async def test_an_agent_reaches_nothing_of_another_session_or_of_the_service(worker, model, passable):  # noqa: F811
    setuid = passable / "cat"
    shutil.copy("/bin/cat", setuid)
    setuid.chmod(0o6755)
    with worker.owned() as other, worker.owned() as own:
        for folder in (other.workspace, other.home, other.config):
            (folder / "secret").write_text(SECRET)
        (own.workspace / "reach.py").write_text(REACH)
        (own.workspace / "become.py").write_text(BECOME)
        (own.workspace.parent / "incoming").mkdir(mode=0o700)
        (own.workspace.parent / "incoming" / "upload").write_text(SECRET)
        async with (
            live_cli(other, Isolation.USER, model, token=SECRET) as theirs,
            live_cli(own, Isolation.USER, model) as live,
        ):
            other.write_option("secret", SECRET)
            said = await theirs.bash(f"chmod 777 . secret; export TOKEN={SECRET}; sleep 600 & echo $!")
            victim = int(said[0].split()[-1])
            cli = min(psutil.Process(theirs.agent.pid).children(), key=lambda process: process.create_time())
            attacks = ATTACKS.format(
                other=other, own=own, data=worker.data, workspaces=passable / "workspaces", victim=victim, cli=cli.pid,
                worker=os.getpid(), supervisor=live.agent.pid, python=PYTHON, password="root", machine="/run/agentrpc",
                setuid=f"{setuid} {other.workspace}/secret",
            ).strip().splitlines()  # fmt: skip
            assert len(attacks) >= 70
            found = []
            for at in range(0, len(attacks), 20):
                found += await live.bash(*[f"({attack}) 2>&1 | head -c 2000" for attack in attacks[at : at + 20]])
            through = [
                (attack, text)
                for attack, text in zip(attacks, found, strict=True)
                if SECRET in text or "THROUGH" in text
            ]
            assert through == []
            assert psutil.pid_exists(victim)
            assert psutil.Process(victim).status() == psutil.STATUS_SLEEPING
            assert (other.workspace / "secret").read_text() == SECRET
            assert sorted(path.name for path in other.workspace.iterdir()) == ["secret"]
            # The other one itself is as it was.
            assert await theirs.bash("cat secret") == [SECRET]


async def test_it_has_a_user_and_nothing_beside_it(worker, model):
    with worker.owned() as paths:
        async with live_cli(paths, Isolation.USER, model) as live:
            status, limits, umask, tmp, fds = await live.bash(
                "cat /proc/self/status", "ulimit -c", "umask", "touch $TMPDIR/x && echo $TMPDIR; stat -c %a $TMPDIR/x",
                f"cat /proc/{live.agent.pid}/stat > /dev/null; ls -l /proc/$PPID/fd",
            )  # fmt: skip
        uid = paths.user.uid
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == fields["Gid"].split() == [str(uid)] * 4
        assert fields["Groups"].strip() == ""
        assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert (limits, umask) == ("0", "0077")
        assert tmp.split() == [str(paths.user.tmp), "600"]
        # Of the worker's descriptors it has none: what is open there is its own, or a way between the two.
        assert str(worker.data / "signing.key") not in fds
        assert "/run/agentrpc" not in fds


async def test_tools_still_work(worker, model):
    with worker.owned() as paths:
        commands = ["echo one > file && cat file"]
        wanted = ["one"]
        commit = "git -c user.name=a -c user.email=a@b commit -qm first"
        for program, command, said in (
            ("git", f"git init -q . && git add file && {commit} && git log --format=%s", "first"),
            ("python3", "python3 -c 'import tempfile; print(tempfile.gettempdir() != \"/tmp\")'", "True"),
            ("node", "node -e 'require(\"child_process\").exec(\"echo two\", (e, out) => console.log(out.trim()))'", "two"),
        ):  # fmt: skip
            if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin"):
                commands.append(command)
                wanted.append(said)
        async with live_cli(paths, Isolation.USER, model) as live:
            assert await live.bash(*commands) == wanted
        assert (paths.workspace / "file").read_text() == "one\n"


# ---- With Landlock ----


# Each prints THROUGH if the way is open. PUBLIC is a file that everybody may read.
CONFINED = """
import ctypes, os, socket, sys
public, abstract, cli = sys.argv[1], sys.argv[2], int(sys.argv[3])
def opens(path, mode):
    try:
        open(path, mode).close()
        print("THROUGH", path, mode)
    except OSError as error:
        assert error.errno == 13, error
opens(public, "rb")
opens(f"/proc/{cli}/mem", "r+b")
opens("/proc/self/mem", "r+b")
opens("/proc/self/oom_score_adj", "r+")
opens("/srv/planted", "w") if os.access("/srv", os.W_OK) else None
opens(os.path.dirname(public) + "/planted", "w")
other = socket.socket(socket.AF_UNIX)
try:
    other.connect("\\0" + abstract)
    print("THROUGH abstract")
except PermissionError:
    pass
try:
    os.rename(public, "stolen")
    print("THROUGH rename")
except OSError:
    pass
print(open("/proc/self/status").readline().split()[0], open("/etc/passwd").readline()[:4])
open("/tmp/" + abstract, "w").close()
os.rename("/tmp/" + abstract, "moved")
"""


@pytest.fixture
def public():
    """A folder for everybody, where nothing but Landlock keeps an agent from what is in it."""
    folder = Path(tempfile.mkdtemp(dir="/var", prefix="agentrpc-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
@pytest.mark.skipif(PYTHON is None, reason="there is no Python that agents can run")
async def test_where_there_is_landlock_it_opens_its_own_files_and_the_systems(worker, model, public):
    (public / "file").write_text(SECRET)
    (public / "file").chmod(0o666)
    name = f"agentrpc-test-{os.getpid()}"
    with worker.owned() as paths, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        (paths.workspace / "confined.py").write_text(CONFINED)
        async with live_cli(paths, Isolation.USER, model) as live:
            cli = min(psutil.Process(live.agent.pid).children(), key=lambda process: process.create_time())
            (said,) = await live.bash(f"{PYTHON} confined.py {public}/file {name} {cli.pid}")
        assert said == "Name: root"
        assert (paths.workspace / "moved").exists()
    assert [path.name for path in public.iterdir()] == ["file"]


# ---- The end ----


LINGER = """
import os, signal, time
for number in range(1, 20):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            if number % 3 == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        os._exit(0)
print("left", flush=True)
"""


@pytest.mark.skipif(PYTHON is None, reason="there is no Python that agents can run")
async def test_nothing_of_a_user_is_left_when_it_is_stopped(worker, model):
    with worker.owned() as paths:
        (paths.workspace / "linger.py").write_text(LINGER)
        async with live_cli(paths, Isolation.USER, model) as live:
            assert await live.bash(f"{PYTHON} linger.py; (setsid nohup sleep 600 > /dev/null 2>&1 &) ; true")
            assert len(processes_of(paths.user.uid)) > 19
            receipt = await live.agent.stop(grace=0)
        assert receipt.confirmed
        assert receipt.processes > 20
        assert processes_of(paths.user.uid) == []


async def test_a_process_that_is_in_no_tree_any_more_is_ended_by_its_user(worker):
    with worker.owned() as paths:
        uid = paths.user.uid
        stray = subprocess.Popen(["sleep", "600"], user=uid, group=uid, extra_groups=[])
        await until(lambda: processes_of(uid))
        root = subprocess.Popen(launched(paths, "exec sleep 600"), stdin=subprocess.DEVNULL)
        bystander = subprocess.Popen(["sleep", "600"])
        try:
            receipt = await stop_tree(root.pid, user=paths.user)
            assert receipt.confirmed
            assert stray.wait(timeout=10) == -signal.SIGKILL
            assert bystander.poll() is None
        finally:
            for process in (root, stray, bystander):
                process.kill()
                process.wait()


async def test_the_tree_dies_with_a_killed_worker(worker):
    with worker.owned() as paths:
        command = [*map(str, launched(paths, HOSTILE))]
        code = f"import subprocess,time; subprocess.Popen({command!r}); time.sleep(600)"
        parent = subprocess.Popen([sys.executable, "-c", code])
        try:
            found = await until_started(parent.pid, 3)
        finally:
            parent.kill()
            parent.wait()
        await until(lambda: not alive(found[1:]))
        assert processes_of(paths.user.uid) == []


def test_the_environment_is_what_was_given_and_a_folder_for_what_passes(worker, monkeypatch):
    monkeypatch.setenv("AGENTRPC_SIGNING_KEY", "very-secret")
    with worker.owned() as paths:
        done = tried(paths, "env; cat /proc/$PPID/environ")
        names = {line.partition("=")[0] for line in done.stdout.splitlines()}
        assert names - {"PWD", "SHLVL", "_"} == {"PATH", "TMPDIR", "CLAUDE_CODE_TMPDIR"}
        assert "very-secret" not in done.stdout


@pytest.mark.parametrize("room", [True, False])
async def test_a_fork_bomb_does_not_outrun_the_end(worker, room, monkeypatch):
    with worker.owned() as paths:
        bomb = "exec bash -c 'ulimit -u 100 && f() { f | f & f; } && f 2> /dev/null'"
        root = subprocess.Popen(launched(paths, bomb), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await until(lambda: len(processes_of(paths.user.uid)) > 50)
            if not room:

                async def refuse(*_, **__):
                    raise BlockingIOError

                monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
            assert (await stop_tree(root.pid, user=paths.user)).confirmed
            assert processes_of(paths.user.uid) == []
        finally:
            root.kill()
            root.wait()


# ---- Where it works ----


def test_what_is_missing_is_told(monkeypatch):
    assert user_trouble(DEFAULT_UIDS) is None
    with monkeypatch.context() as patch:
        patch.setattr("agentrpc.claude.agent_users._capabilities", lambda: 0b1_1101_1011)
        assert user_trouble(DEFAULT_UIDS) == "this process lacks the capabilities KILL, which users of agents need"
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        assert user_trouble(DEFAULT_UIDS) == "only root can give agents users of their own"
    # In a user namespace that has root alone.
    code = f"from agentrpc.claude.agent_users import user_trouble; print(user_trouble('{DEFAULT_UIDS}'))"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        assert "set AGENTRPC_AGENT_UIDS to what this container has" in done.stdout


# ---- Whose uids are ----


def test_a_uid_is_one_sessions_and_stays_it(worker):
    first, second = worker.session(), worker.session()
    with worker.owned(first) as one, worker.owned(second) as other:
        assert one.user.uid != other.user.uid
        uid = one.user.uid
    with worker.owned() as third, worker.owned(first) as again:
        assert again.user.uid == uid
        assert third.user.uid not in {uid, other.user.uid}


def test_workers_of_one_machine_or_with_the_same_workspaces_share_a_range(passable):  # noqa: F811
    # Two blocks of 64 whole ones.
    uids, machines = "300000-300200", [passable / "machine", passable / "another"]
    workers = [Worker(passable / "a", uids, machines[0]), Worker(passable / "b", uids, machines[0])]
    workers.append(Worker(passable / "a", uids, machines[1]))
    taken = []
    for worker in workers[:2]:
        worker.users.prepare(SHELL)
        taken.append(worker.users.take(worker.session()).user.uid // 64)
    assert taken[0] != taken[1]
    # On another machine, but with the workspaces of the first worker: only the other block is left.
    workers[2].users.prepare(SHELL)
    assert workers[2].users.take(workers[2].session()).user.uid // 64 == taken[1]
    for worker in workers:
        worker.users.close()


def test_when_all_uids_are_used_there_is_no_more(passable):  # noqa: F811
    worker = Worker(passable, "300000-300130", passable / "machine")
    worker.users.prepare(SHELL)
    for _ in range(64):
        last = worker.users.take(worker.session())
    with pytest.raises(IsolationError, match=r"all uids of AGENTRPC_AGENT_UIDS \(300000-300130\) are in use"):
        worker.users.take(worker.session())
    worker.users.give_back(last)
    assert worker.users.take(worker.session()).user.uid == last.user.uid
    worker.users.close()


async def test_what_is_taken_while_nobody_waits_for_it_any_more_is_given_back(passable):  # noqa: F811
    worker = Worker(passable, "300000-300130", passable / "machine")
    worker.users.prepare(SHELL)
    session = worker.session()
    taking = asyncio.create_task(worker.users.taken(session))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert worker.users._held == set()
    worker.users.close()


def test_the_kernel_bounds_the_processes_of_one_session_alone(worker):
    with worker.owned() as one, worker.owned() as other:
        for paths in (one, other):
            script = write_launcher(paths, Isolation.USER, SHELL, {"PATH": "/usr/bin:/bin"}, Limits(processes=64))
            loop = "for n in $(seq 300); do sleep 20 & done; echo all; wait"
            done = subprocess.run([script, "-c", loop], capture_output=True, text=True, check=False)
            assert "all" not in done.stdout
            assert "ork" in done.stderr


def test_whoever_gets_a_uid_next_finds_nothing_of_who_had_it(passable):  # noqa: F811
    worker = Worker(passable, "300000-300130", passable / "machine")
    worker.users.prepare(SHELL)
    others = [worker.users.take(worker.session()) for _ in range(63)]
    assert others
    before = worker.session()
    with worker.owned(before) as one:
        shared = Path(f"/tmp/agentrpc-left-{os.getpid()}")
        left = f"mkdir {shared} /dev/shm/{shared.name}; echo {SECRET} > {shared}/file; chmod -R 777 {one.workspace}"
        assert tried(one, f"echo {SECRET} > secret; {left}; ipcmk -M 4096 > /dev/null; ipcs -m | tail -n +4").stdout
    # The folders of before are still the uid's, and nobody gets to them.
    with worker.owned() as next_one:
        assert next_one.user.uid == one.user.uid
        look = f"cat {one.workspace}/secret; ls {one.workspace} {one.home} {one.workspace.parent} {one.root}"
        done = tried(next_one, f"{look}; ls -d {shared} /dev/shm/{shared.name}; ipcs -m | grep -c {one.user.uid}")
        assert done.stdout == "0\n"
        # A stray process: then the uid is nobody's.
        stray = subprocess.Popen(["sleep", "600"], user=one.user.uid, group=one.user.uid, extra_groups=[])
    try:
        with pytest.raises(IsolationError, match="in use"):
            worker.users.take(worker.session())
    finally:
        stray.kill()
        stray.wait()
    # It gets its files back with any uid.
    with worker.owned(before) as again:
        assert tried(again, "cat secret").stdout == f"{SECRET}\n"
    worker.users.close()


def test_what_a_killed_worker_has_left_open_is_closed(passable):  # noqa: F811
    killed = Worker(passable, "300000-300130", passable / "machine")
    killed.users.prepare(SHELL)
    open_still = killed.users.take(killed.session())
    tried(open_still, f"echo {SECRET} > secret")
    killed.users.close()
    worker = Worker(passable, "300000-300130", passable / "machine")
    worker.users.prepare(SHELL)
    taken = [worker.users.take(worker.session()) for _ in range(64)]
    (same,) = [paths for paths in taken if paths.user.uid == open_still.user.uid]
    assert tried(same, f"cat {open_still.workspace}/secret").stdout == ""
    worker.users.close()


def test_a_session_gets_its_uid_from_the_next_worker_too(passable):  # noqa: F811
    first = Worker(passable, "300000-300130", passable / "machine")
    first.users.prepare(SHELL)
    first.users.take(first.session())
    session = first.session()
    with first.owned(session) as paths:
        tried(paths, "touch file")
    first.users.close()
    second = Worker(passable, "300000-300130", passable / "machine")
    second.users.prepare(SHELL)
    with second.owned(session) as again:
        assert again.user.uid == paths.user.uid
    second.users.close()


@pytest.mark.parametrize("closed", ["way", "gift", "program"])
def test_a_worker_says_what_is_in_the_way(passable, closed, monkeypatch):  # noqa: F811
    worker = Worker(passable / "below", DEFAULT_UIDS, passable / "machine")
    program = passable / "cli"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if closed == "way":
        (passable / "below").mkdir(mode=0o700)
        said = rf"cannot get to {passable}/below/data, because {passable}/below lets nobody pass: chmod o\+x"
    elif closed == "program":
        program.chmod(0o700)
        said = "may not be run by everybody"
    else:

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "fchown", refuse)
        said = "cannot be given to other users"
    if closed != "way":
        (passable / "below").mkdir(mode=0o711)
    with pytest.raises(IsolationError, match=said):
        worker.users.prepare(program)


# ---- Whose files are ----


async def test_what_the_edge_puts_into_a_workspace_is_the_agents_to_use(worker, model):
    session = worker.session()
    with worker.owned(session) as paths:
        async with live_cli(paths, Isolation.USER, model) as live:
            folder = os.open(paths.workspace, os.O_RDONLY)
            beside = paths.workspace.parent / "incoming"
            incoming = Incoming(beside)
            incoming.write(b"one\n")
            incoming.place(folder, "new/deep/file", overwrite=False, executable=False, etag="", sha256="")
            incoming.close()
            over = Incoming(beside)
            over.write(b"two\n")
            over.place(folder, "new/deep/file", overwrite=True, executable=True, etag="", sha256="")
            over.close()
            os.close(make_folders(folder, "empty/folder"))
            tree = beside / "tree"
            (tree / "sub").mkdir(parents=True)
            (tree / "sub" / "file").write_text("three\n")
            (tree / "sub" / "link").symlink_to("file")
            os.link(tree / "sub" / "file", tree / "sub" / "second")
            place_tree(tree, folder, "archive", overwrite=False)
            os.close(folder)
            (said,) = await live.bash(
                "cat new/deep/file && echo more >> new/deep/file && touch empty/folder/x && rm -r empty && "
                "echo more >> archive/sub/second && mv archive/sub/link archive/moved && rmdir new/deep 2> /dev/null; "
                "find . ! -uid $(id -u); find . -type f | sort; cat archive/sub/file"
            )
        assert said.split() == ["two", "./archive/sub/file", "./archive/sub/second", "./new/deep/file", "three", "more"]


def test_whatever_is_made_while_no_process_runs_is_the_agents_afterwards(worker):
    session_id, fork_id, run_id = clock.uuid7(), clock.uuid7(), clock.uuid7()
    store = worker.store
    store.create(session_id)

    def owned(which):
        paths = SessionPaths.under(worker.data, which, store.path(which))
        paths.create()
        return worker.owned(paths)

    use = "set -e; cat d/file; echo again >> d/file; touch d/new; rm d/new; find . ! -uid $(id -u)"
    with owned(session_id) as paths:
        assert tried(paths, "mkdir d; echo one > d/file; chmod 500 d; mkdir -p a/$(seq -s / 1 120)").returncode == 0
    store.checkpoint(session_id, run_id)
    with owned(session_id) as paths:
        assert tried(paths, "chmod 700 d; echo two > d/file").returncode == 0
    # Back to the checkpoint; then to a copy; then the copy replaced, as from an archive.
    fresh = store.unpack(session_id, run_id)
    store.exchange(session_id, fresh)
    store.discard(fresh)
    with owned(session_id) as paths:
        done = tried(paths, f"chmod 700 d; {use}")
        assert (done.stdout, done.stderr) == ("one\n", "")
    store.copy(session_id, fork_id)
    with owned(fork_id) as paths:
        done = tried(paths, use)
        assert (done.stdout, done.stderr) == ("one\nagain\n", "")
    restored = store.make_fresh(fork_id)
    (restored / "d").mkdir()
    (restored / "d" / "file").write_text("three\n")
    store.replace(fork_id, restored)
    with owned(fork_id) as paths:
        done = tried(paths, use)
        assert (done.stdout, done.stderr) == ("three\n", "")


def test_nobody_gets_a_file_by_linking_it(worker, passable):  # noqa: F811
    """On a machine where links to others' files can be made, as root makes one here."""
    shadow = passable / "shadow"
    shadow.write_text(SECRET)
    shadow.chmod(0o600)
    session = worker.session()
    with worker.owned(session) as paths:
        tried(paths, "echo mine > own; ln own twice")
        os.link(shadow, paths.workspace / "planted")
        tried(paths, "mkdir half; touch half/way")
    # It begins to get another user, and is cut short.
    os.chown(paths.workspace / "half" / "way", 299999, 299999)
    os.chown(paths.workspace / "half", 299999, 299999)
    worker.users._kept.pop(session.root)
    os.chown(session.home, 0, 0)
    with worker.owned(session) as again:
        assert again.user.uid != paths.user.uid
        assert tried(again, "cat own twice planted; echo x > half/way && echo done").stdout == "mine\nmine\ndone\n"
    assert shadow.stat().st_uid == 0


def test_files_come_back_to_a_worker_that_has_another_isolation(worker):
    session = worker.session()
    with worker.owned(session) as paths:
        tried(paths, "echo one > file; mkdir closed; chmod 0 closed file")
    script = write_launcher(session, Isolation.SUBREAPER, Path("/bin/cat").resolve(), {})
    done = subprocess.run([script, "file"], capture_output=True, text=True, check=False)
    assert done.stdout == "one\n"
    assert {path.stat().st_uid for path in [session.workspace, *session.workspace.iterdir()]} == {0}


# ---- MCP servers ----


async def test_a_server_that_is_checked_has_a_uid_of_its_own(worker):
    async def nowhere(host, port):
        raise AssertionError

    with worker.owned() as session:
        (session.workspace / "secret").write_text(SECRET)
        attack = (
            f"id -u >&2; cat {session.workspace}/secret >&2; (setsid sleep 600 &) ; grep CapEff /proc/self/status >&2"
        )
        server = session_pb2.McpServer(name="s", stdio=session_pb2.McpStdio(command="sh", args=["-c", attack]))
        ground = Ground(worker.data / "mcp-checks" / "one", Isolation.USER, nowhere, users=worker.users)
        with pytest.raises(McpConnectError) as caught:
            await look(server, ground, timeout=60)
        said = str(caught.value)
        uid = next(int(word) for word in said.split() if word.isdecimal() and int(word) > 1000)
        assert uid != session.user.uid
        assert SECRET not in said
        assert "0000000000000000" in said
        assert processes_of(uid) == []
