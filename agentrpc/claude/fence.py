"""Gives a sandbox a network of its own: as a script, makes it, and becomes the program that makes the rest.

A listening socket belongs to the network namespace in which it was made, and whoever holds it accepts what comes,
wherever he is. So the script makes a namespace with a loopback device and nothing else, listens there on the two
addresses that lead out, and gives both sockets to the worker (SCM_RIGHTS). No relay is needed, and there is none in the
sandbox that an agent could end.

Standard library alone, and started with `python -I -S`: it must be quick. So no `pathlib`, and `_socket` for `socket`:
each of them takes longer than all the rest.
"""

import _socket as socket
import ctypes
import fcntl
import os
import struct
import sys

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
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    # user_namespaces(7): without CAP_SETGID outside, groups can be mapped only once nobody can give them up.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - quick start
            file.write(text)


def _raise_loopback() -> None:
    any_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(any_socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
    any_socket.close()


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(_BACKLOG)
    return listener


def main() -> None:
    """Run argv[2:] in a network of its own; its ways out go to the descriptor argv[1], where there is one."""
    worker, command = sys.argv[1], sys.argv[2:]
    try:
        _leave_network()
        _raise_loopback()
    except OSError as error:
        sys.exit(f"no network of its own can be made: {error.strerror}")
    if worker:
        gateway, proxy = _listen(GATEWAY), _listen(PROXY)
        handover = socket.socket(fileno=int(worker))
        descriptors = struct.pack("2i", gateway.fileno(), proxy.fileno())
        handover.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        # Closed here before the command begins: nothing below it ever holds one of the three.
        for each in (handover, gateway, proxy):
            each.close()
    os.execv(command[0], command)  # noqa: S606 - without a shell, and what the launcher says


if __name__ == "__main__":
    main()
