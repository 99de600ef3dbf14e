"""The system calls that nothing in an agent's process tree may make, as a program for seccomp(2).

Refused is what looks into or writes to other processes, what makes namespaces or mounts, and what reaches far into the
kernel without need: io_uring, bpf, key rings, odd families of sockets. What is refused fails as for want of permission;
a program for another architecture is killed. debuggers, strace and sandboxes inside the sandbox do not work.

Made here, of classic BPF, and not with libseccomp: its Python bindings come with no wheel, or want the library of the
system, and this is all there is to it.
"""

import errno
import platform
import struct

__all__ = ["REFUSED", "seccomp_program"]

# Names and their numbers on x86-64 and arm64.
REFUSED = {
    # Other processes: their memory, registers, descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Namespaces and mounts. clone(2) is below.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    # The kernel. io_uring would do by itself what is refused here.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    # What is in System V's queues is memory that no process shows.
    "msgget": (68, 186),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
}
# clone(2), clone3(2), socket(2), socketpair(2), shmget(2).
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _SHMGET = (56, 220), (435, 435), (41, 198), (53, 199), (29, 194)
# Of one segment, of which there are 4096 at most: nothing shows those that no process has mapped. PostgreSQL needs 56.
_SEGMENT = 64 * 1024
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
# Column of the tables above, AUDIT_ARCH_* and whether it has the numbers of x32 too.
_MACHINES = {"x86_64": (0, 0xC000003E, True), "aarch64": (1, 0xC00000B7, False)}
_X32 = 0x40000000

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Where struct seccomp_data has them: the lower halves of arguments, which are mostly all that the kernel looks at here.
_NUMBER, _ARCHITECTURE = 0, 4
_ARGUMENT = (16, 24, 32)
_UPPER = 4


def _fail(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", code, then, otherwise, value)


def _when(number: int, *steps: bytes) -> bytes:
    """Steps for one system call. They end, or leave its number loaded."""
    return _step(_EQUAL, number, 0, len(steps)) + b"".join(steps)


def seccomp_program(machine: str = "") -> bytes:
    """The filter, as an array of `struct sock_filter`.

    Args:
        machine: As `platform.machine()` has it, which is the default.

    Raises:
        RuntimeError: The machine is none of those for which the numbers are known.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        msg = f"there is no list of system calls for {machine}: agents run on x86_64 and aarch64"
        raise RuntimeError(msg)
    column, architecture, has_x32 = _MACHINES[machine]
    refuse, allow = _fail(errno.EPERM), _step(_RETURN, _ALLOW)
    no_family = _fail(errno.EAFNOSUPPORT)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if has_x32:
        steps += [_step(_GREATER_OR_EQUAL, _X32, 0, 1), _fail(errno.ENOSYS)]
    # Its flags are in memory, which no filter sees; libraries fall back to clone(2).
    steps += [_when(_CLONE3[column], _fail(errno.ENOSYS))]
    steps += [
        _when(_CLONE[column], _step(_LOAD, _ARGUMENT[0]), _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1), refuse, allow),
        _when(
            _SOCKET[column],
            _step(_LOAD, _ARGUMENT[0]),
            _step(_EQUAL, _AF_UNIX, 5, 0),
            _step(_EQUAL, _AF_INET, 4, 0),
            _step(_EQUAL, _AF_INET6, 3, 0),
            _step(_EQUAL, _AF_NETLINK, 0, 3),
            # Of the kernel's own sockets only what name resolution asks.
            _step(_LOAD, _ARGUMENT[2]),
            _step(_EQUAL, _NETLINK_ROUTE, 0, 1),
            allow,
            no_family,
        ),
        _when(
            _SOCKETPAIR[column],
            _step(_LOAD, _ARGUMENT[0]),
            _step(_EQUAL, _AF_UNIX, 0, 1),
            allow,
            no_family,
        ),
    ]
    steps += [
        _when(
            _SHMGET[column],
            _step(_LOAD, _ARGUMENT[1] + _UPPER),
            _step(_EQUAL, 0, 0, 3),
            _step(_LOAD, _ARGUMENT[1]),
            _step(_GREATER_OR_EQUAL, _SEGMENT + 1, 1, 0),
            allow,
            _fail(errno.EINVAL),
        )
    ]
    steps += [_when(numbers[column], refuse) for numbers in REFUSED.values()]
    return b"".join([*steps, allow])
