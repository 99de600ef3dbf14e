"""Gives a sandbox a network of its own: as a script, makes it, and becomes the program that makes the rest.

A listening socket belongs to the network namespace in which it was made, and whoever holds it accepts what comes,
wherever he is. So the script makes a namespace with a loopback device and nothing else, listens there on the two
addresses that lead out, and gives both sockets to the worker (SCM_RIGHTS). No relay is needed, and there is none in the
sandbox that an agent could end. Standard library alone, and started with `python -I -S`: it must be quick.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

__all__ = ["GATEWAY", "PROXY"]

# The model gateway and MCP servers; the egress proxy. Nothing else can have these ports: the namespace is new.
GATEWAY = ("127.0.0.1", 7410)
PROXY = ("127.0.0.1", 7411)

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_BACKLOG = 4096


def _leave_network() -> None:
    """From now on this process is in a network of its own: as root, else in a user namespace of its own as well."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"no network of its own can be made: {os.strerror(number)}")
    # user_namespaces(7): without CAP_SETGID outside, groups can be mapped only once nobody can give them up.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(_BACKLOG)
    return listener


def main() -> None:
    """Run argv[2:] in a network of its own; its ways out go to the descriptor argv[1], where there is one."""
    worker, command = sys.argv[1], sys.argv[2:]
    _leave_network()
    _raise_loopback()
    if worker:
        # Closed here before the command begins: nothing below it ever holds one of the three.
        with socket.socket(fileno=int(worker)) as handover, _listen(GATEWAY) as gateway, _listen(PROXY) as proxy:
            socket.send_fds(handover, [b"."], [gateway.fileno(), proxy.fileno()])
    os.execv(command[0], command)  # noqa: S606 - without a shell, and what the launcher says


if __name__ == "__main__":
    main()
