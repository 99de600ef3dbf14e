"""Ends everything below a process, however it ends itself; as a script, runs the CLI under a child subreaper.

Orphans of any depth become children of the nearest subreaper above them (prctl(2), PR_SET_CHILD_SUBREAPER), whatever
sessions they made. The script is used where bubblewrap does not work. Where the plan names a user, the CLI becomes
that user and loses all privileges; the script itself stays root, so that no agent can end it. Standard library alone,
and started with `python -I -S`: it must be quick.
"""

import base64
import ctypes
import errno
import json
import os
import resource
import signal
import stat
import sys
import time
from pathlib import Path

__all__ = [
    "become_subreaper",
    "confine",
    "descendants",
    "drop_to",
    "dying_with_parent",
    "end_user",
    "has_landlock",
    "kill_descendants",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock: its calls, the same on every architecture, and since which of its versions files can be renamed across
# folders, truncating is a right, and there are scopes.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_LANDLOCK_SINCE, _LANDLOCK_TRUNCATES, _LANDLOCK_SCOPED = 2, 3, 6
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_TO_READ = _EXECUTE | _READ_FILE | _READ_DIR
# All of them up to that; ioctl(2) on devices, which comes after it, is left alone.
_TO_WRITE = (1 << 15) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_SCOPES = 0b11


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - quick start
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        pass
    return found


def descendants(root: int) -> list[int]:
    """The processes below one, the nearest first, without a look at all the others of the machine.

    One whose sibling is collected in the moment of the look can be missing (proc_pid_children(5)): look again.
    """
    found, queue = [], [root]
    while queue:
        below = _children(queue.pop())
        found += below
        queue += below
    return found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def become_subreaper() -> None:
    """From now on orphans below this process become its children."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(timeout: float = 10) -> bool:
    """Kill everything below this process, which is a subreaper, until nothing is left; reap it too.

    What is found is stopped first, so that it cannot fork away from the next look.

    Returns:
        Whether /proc shows none any more. False: some could not be killed within `timeout` seconds.
    """
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
    deadline = time.monotonic() + timeout
    while True:
        _reap()
        left = descendants(os.getpid())
        if not left or time.monotonic() > deadline:
            return not left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)


# An exec keeps PR_SET_PDEATHSIG. Not by preexec_fn: that runs Python between fork and exec, which a process with gRPC's
# threads does not survive for certain.
_WITH_PARENT = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,int(sys.argv[2]),0,0,0);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);os.execv(sys.argv[3],sys.argv[3:])"
)


def dying_with_parent(*command: str, number: int = signal.SIGTERM) -> list[str]:
    """A command that gets a signal, SIGTERM unless told otherwise, when this process dies, however it dies."""
    return [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), str(int(number)), *command]


def drop_to(uid: int) -> None:
    """Become an ordinary user for good, with its own group alone, and without any capability, now or later."""
    if uid <= 0:
        raise ValueError(uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            if ctypes.get_errno() == errno.EINVAL:
                # Beyond the last one that this kernel knows.
                break
            raise OSError(ctypes.get_errno(), "no capability can be dropped for good")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # Also those that programs would inherit.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "the capabilities cannot be given up")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "privileges cannot be given up")
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (uid,) * 3 or os.getgroups():
        raise OSError(errno.EPERM, "the user has not changed")


def has_landlock() -> bool:
    """Whether this kernel has what `confine` needs."""
    return _landlock_version() >= _LANDLOCK_SINCE


def _landlock_version() -> int:
    return int(ctypes.CDLL(None).syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))


def confine(read: list[str], write: list[str]) -> bool:
    """From now on this process and all below it open no file but those below these paths, and those for reading only.

    By Landlock (landlock(7)). Where the kernel has scopes, they also signal nothing outside, and reach no abstract
    socket there. They have to gain no privileges any more.

    Returns:
        False: this kernel has no Landlock, or one that is too old, and nothing was done.
    """
    if not has_landlock():
        return False
    libc, version = ctypes.CDLL(None, use_errno=True), _landlock_version()
    handled = _TO_WRITE if version >= _LANDLOCK_TRUNCATES else _TO_WRITE & ~_TRUNCATE
    fields = (handled, 0, _SCOPES) if version >= _LANDLOCK_SCOPED else (handled,)
    attributes = (ctypes.c_uint64 * len(fields))(*fields)
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock has no rules")
    for paths, rights in ((read, _TO_READ), (write, handled)):
        for path in paths:
            below = os.open(path, os.O_PATH | os.O_CLOEXEC)
            is_folder = stat.S_ISDIR(os.fstat(below).st_mode)
            rule = _PathBeneath(rights if is_folder else rights & _OF_FILES, below)
            if libc.syscall(_LANDLOCK_ADD, rules, _LANDLOCK_PATH_BENEATH, ctypes.byref(rule), 0):
                raise OSError(ctypes.get_errno(), "a rule of Landlock cannot be added", path)
            os.close(below)
    if libc.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), "Landlock cannot be set")
    os.close(rules)
    return True


class _PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("below", ctypes.c_int32))


def end_user(uid: int) -> None:
    """Kill all processes of a user at once, whatever they are just starting. This process becomes that user."""
    drop_to(uid)
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass


class _Program(ctypes.Structure):
    """`struct sock_fprog`: how many steps of 8 bytes, and where."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _filter_calls(steps: bytes) -> None:
    """From now on this process and all below it gain no privileges, and make no system call that the filter refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps) // 8, steps)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the filter of system calls cannot be set")


def main() -> None:
    """Run the CLI of the plan in argv[1] with the arguments behind it; exit as it does.

    Or, with `--try` and `--end`: become the user in argv[2], and end what it runs.
    """
    if sys.argv[1] in {"--try", "--end"}:
        (drop_to if sys.argv[1] == "--try" else end_user)(int(sys.argv[2]))
        return
    plan = json.loads(Path(sys.argv[1]).read_bytes())
    parent = os.getppid()
    become_subreaper()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def stop(*_: object) -> None:
        kill_descendants()
        os._exit(143)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() != parent:
        stop()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(plan["cwd"])
        if plan.get("user") is not None:
            os.umask(0o077)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            drop_to(plan["user"])
            # Counts what this user has, which is this tree.
            resource.setrlimit(resource.RLIMIT_NPROC, (plan["processes"],) * 2)
            confine(plan["read"], plan["write"])
        _filter_calls(base64.b64decode(plan["seccomp"]))
        os.execve(plan["cli"], [plan["cli"], *sys.argv[2:]], plan["env"])  # noqa: S606
    # The pipes belong to the CLI alone: it sees the end of its input when the worker closes it.
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            break
    kill_descendants()
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
