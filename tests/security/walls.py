"""Tries to get through the walls of a sandbox, from inside: the script that tests have an agent run.

    python3 walls.py TARGETS.json

Every try is a line of JSON: its group, its name, and what it got; null is what it should get. It is for Linux's plain
Python and needs nothing else. No try does harm where it gets through: signals are number 0, files that are written are
those that the test has named, and what is opened is closed again.
"""

import ctypes
import glob
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
WAIT = 2.0
X86 = os.uname().machine == "x86_64"
TRIES = []
with open(sys.argv[1]) as given:
    TARGETS = json.load(given)


def attempt(group, name):
    def keep(function):
        TRIES.append((group, name, function))
        return function

    return keep


def attempts(group, named):
    for name, function in named:
        TRIES.append((group, name, function))


def syscall(x86, arm, *arguments):
    """What a system call returns, or minus its error."""
    found = LIBC.syscall(x86 if X86 else arm, *arguments)
    return -ctypes.get_errno() if found < 0 else found


def taken(number):
    """A descriptor that a call gave is evidence."""
    if number >= 0:
        os.close(number)
        return f"descriptor {number}"
    return None


def joined(address):
    return socket.create_connection(tuple(address), timeout=WAIT)


def exchange(address, data):
    """What comes back for some bytes, until the other side has done or is silent."""
    said = b""
    with joined(address) as peer:
        peer.sendall(data)
        try:
            while (chunk := peer.recv(65536)) and len(said) < 1_000_000:
                said += chunk
        except TimeoutError:
            pass
    return said


def request(method, url, host):
    return f"{method} {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogateescape")


def witness(said):
    """The canary's words in an answer."""
    return said.decode(errors="replace")[:200] if b"CANARY" in said else None


def connected(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as peer:
        peer.settimeout(WAIT)
        peer.connect((address, port))
        return f"connected to {address}:{port}"


def through(proxy, host, port, data):
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    first = f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode("utf-8", "surrogateescape")
    said = b""
    with joined(proxy) as peer:
        peer.sendall(first)
        while b"\r\n\r\n" not in said and (chunk := peer.recv(65536)):
            said += chunk
        if b" 200" not in said.split(b"\r\n")[0]:
            return None
        peer.sendall(data)
        while chunk := peer.recv(65536):
            said += chunk
    return witness(said)


def tunnel(proxy, host, port):
    """Anything but a refusal of the proxy is a way through."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    first = f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode("utf-8", "surrogateescape")
    with joined(proxy) as peer:
        peer.sendall(first)
        said = peer.recv(65536)
    return said.decode(errors="replace")[:100] if said.split(b"\r\n")[0].split(b" ")[1:2] == [b"200"] else None


def fetched(proxy, host, port):
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return witness(exchange(proxy, request("GET", f"http://{name}:{port}/", f"{name}:{port}")))


def socks(proxy, host, port):
    with joined(proxy) as peer:
        peer.sendall(b"\x05\x01\x00")
        if peer.recv(2) != b"\x05\x00":
            return None
        try:
            where = b"\x01" + socket.inet_pton(socket.AF_INET, host)
        except (OSError, ValueError):
            try:
                where = b"\x04" + socket.inet_pton(socket.AF_INET6, host)
            except (OSError, ValueError):
                name = host.encode("utf-8", "surrogateescape")
                where = b"\x03" + bytes([len(name)]) + name
        peer.sendall(b"\x05\x01\x00" + where + struct.pack(">H", port))
        said = peer.recv(10)
    return said.hex() if said[1:2] == b"\x00" else None


def socks_command(proxy, number):
    """What another command than CONNECT gets."""
    with joined(proxy) as peer:
        peer.sendall(b"\x05\x01\x00")
        peer.recv(2)
        peer.sendall(bytes([5, number, 0, 1]) + bytes(6))
        said = peer.recv(10)
        return said.hex() if said[1:2] == b"\x00" else None


def unix(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT)
        peer.connect("\0" + path[1:] if path.startswith("@") else path)
        return "connected"


def worked(number):
    return f"returned {number}" if number >= 0 else None


def opened(path, flags):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    return "opened"


def theirs(pid):
    """Whether the number is the process that it was outside: here it may be another's."""
    with open(f"/proc/{pid}/cmdline", "rb") as line:
        return b"agentrpc" in line.read()


def signalled(pid):
    if not theirs(pid):
        return None
    os.kill(pid, 0)
    return "may be signalled"


def read(path, mark):
    with open(path, "rb") as file:
        text = file.read(1_000_000)
    mark = mark.encode() if isinstance(mark, str) else mark
    return f"{len(text)} bytes" if text and mark in text else None


def listed(folder, name=""):
    """What is in a folder, if the name is among it."""
    found = os.listdir(folder)
    return " ".join(found[:5]) if not name or name in found else None


def written(path):
    with open(path, "wb") as file:
        file.write(b"walls")
    return "written"


def descriptors(pid):
    if not theirs(pid):
        return None
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK))
        except OSError:
            continue
        return f"descriptor {number}"
    pidfd = syscall(434, 434, pid, 0)
    return next((got for number in range(64) if (got := taken(syscall(438, 438, pidfd, number, 0)))), None)


def entered(pid):
    number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    return worked(syscall(308, 268, number, 0))


def traced(pid):
    if not theirs(pid):
        return None
    # PTRACE_SEIZE, which does not stop what it is about.
    found = worked(syscall(101, 117, 0x4206, pid, 0, 0))
    if found:
        syscall(101, 117, 17, pid, 0, 0)
    return found


def peeked(pid):
    if not theirs(pid):
        return None
    room = ctypes.create_string_buffer(8)
    with open(f"/proc/{pid}/maps") as maps:
        start = int(maps.readline().split("-")[0], 16)
    local = struct.pack("=QQ", ctypes.addressof(room), 8)
    remote = struct.pack("=QQ", start, 8)
    return worked(syscall(310, 270, pid, local, 1, remote, 1, 0))


def gave_up(*_):
    raise TimeoutError


# ---- The worker's network, directly ----
for service, port in TARGETS["ports"].items():
    for address in TARGETS["addresses"]:
        attempts(
            "the worker's network, directly",
            [
                (f"{service} at {address}", lambda address=address, port=port: connected(address, port)),
            ],
        )
for address in TARGETS["metadata"]:
    attempts(
        "the worker's network, directly",
        [
            (f"metadata at {address}", lambda address=address: connected(address, 80)),
        ],
    )


@attempt("the worker's network, directly", "a datagram")
def _():
    for address in TARGETS["addresses"]:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(WAIT)
            try:
                sender.sendto(b"walls", (address, TARGETS["datagrams"]))
                return sender.recv(100).decode()
            except OSError:
                pass
    return None


@attempt("the worker's network, directly", "a name server")
def _():
    try:
        return str(socket.getaddrinfo("example.com", 443))
    except OSError:
        return None


# ---- Through the proxy ----
proxy, port = TARGETS["proxy"], TARGETS["ports"]["canary"]
if proxy:
    for host in TARGETS["odd_hosts"]:
        attempts(
            "through the proxy",
            [
                (f"CONNECT {host!r}", lambda host=host: tunnel(proxy, host, port)),
                (f"GET http://{host!r}", lambda host=host: fetched(proxy, host, port)),
            ],
        )
    for host in TARGETS["socks_hosts"]:
        attempts("through the proxy", [(f"SOCKS5 {host!r}", lambda host=host: socks(proxy, host, port))])
    for service, number in TARGETS["ports"].items():
        attempts(
            "through the proxy",
            [
                (f"CONNECT to {service}", lambda number=number: tunnel(proxy, "127.0.0.1", number)),
            ],
        )
    for host in TARGETS["metadata_hosts"]:
        attempts("through the proxy", [(f"metadata {host!r}", lambda host=host: tunnel(proxy, host, 80))])
    allowed = TARGETS["allowed"]

    attempts(
        "what is allowed",
        [
            ("CONNECT", lambda: tunnel(proxy, *allowed)),
            (
                "GET",
                lambda: b"ALLOWED" in exchange(proxy, request("GET", f"http://{allowed[0]}:{allowed[1]}/", allowed[0])),
            ),
            ("SOCKS5", lambda: socks(proxy, *allowed)),
        ],
    )

    @attempt("through the proxy", "a redirect from a server that may be reached")
    def _():
        said = exchange(proxy, request("GET", f"http://{allowed[0]}:{allowed[1]}/redirect", allowed[0]))
        where = said.partition(b"location: ")[2].partition(b"\r\n")[0].decode()
        host, _, rest = where.removeprefix("http://").partition(":")
        return fetched(proxy, host, int(rest.split("/")[0])) if where else None

    @attempt("through the proxy", "CONNECT inside a tunnel to the proxy itself")
    def _():
        inner = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        return through(proxy, "127.0.0.1", proxy[1], inner + b"GET / HTTP/1.0\r\n\r\n")

    @attempt("through the proxy", "another host in the Host field")
    def _():
        text = f"GET http://{allowed[0]}:{allowed[1]}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        return witness(exchange(proxy, text.encode()))

    @attempt("through the proxy", "a second request hidden in the first one's body")
    def _():
        hidden = request("GET", f"http://127.0.0.1:{port}/", "127.0.0.1")
        text = (
            f"POST http://{allowed[0]}:{allowed[1]}/ HTTP/1.1\r\nHost: {allowed[0]}:{allowed[1]}\r\n"
            f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        return witness(exchange(proxy, text.encode() + hidden))

    @attempt("through the proxy", "a second request behind the first one")
    def _():
        first = f"GET http://{allowed[0]}:{allowed[1]}/ HTTP/1.1\r\nHost: {allowed[0]}:{allowed[1]}\r\n\r\n".encode()
        return witness(exchange(proxy, first + request("GET", f"http://127.0.0.1:{port}/", "127.0.0.1")))

    @attempt("through the proxy", "an upgrade to HTTP/2")
    def _():
        return witness(exchange(proxy, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)))

    @attempt("through the proxy", "a NUL in the name")
    def _():
        return socks(proxy, f"{allowed[0]}\0.127.0.0.1", port) or tunnel(proxy, f"127.0.0.1\0.{allowed[0]}", port)

    @attempt("through the proxy", "a UDP association by SOCKS5")
    def _():
        return socks_command(proxy, 3)

    @attempt("through the proxy", "a port that listens, by SOCKS5 BIND")
    def _():
        return socks_command(proxy, 2)


# ---- The model gateway ----
@attempt("the gateway of another session", "its token at our gateway")
def _():
    base = os.environ.get("ANTHROPIC_BASE_URL", "http://127.0.0.1:1").removeprefix("http://").split(":")
    text = (
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {TARGETS['other_token']}\r\n\r\n"
    )
    said = exchange((base[0], int(base[1])), text.encode())
    return said.decode(errors="replace")[:100] if said.startswith(b"HTTP/1.1 200") else None


# ---- Sockets of other kinds ----
kinds = {
    "AF_VSOCK": (40, socket.SOCK_STREAM, 0), "AF_PACKET": (17, socket.SOCK_RAW, 0),
    "raw IPv4": (2, socket.SOCK_RAW, 1), "raw IPv6": (10, socket.SOCK_RAW, 58), "AF_ALG": (38, 5, 0),
    "AF_XDP": (44, socket.SOCK_RAW, 0), "AF_TIPC": (30, socket.SOCK_STREAM, 0),
    "AF_BLUETOOTH": (31, socket.SOCK_RAW, 1), "AF_CAN": (29, socket.SOCK_RAW, 1), "AF_KEY": (15, socket.SOCK_RAW, 2),
    "AF_RDS": (21, 5, 0), "AF_KCM": (41, socket.SOCK_DGRAM, 0), "AF_SMC": (43, socket.SOCK_STREAM, 0),
    "netlink audit": (16, socket.SOCK_RAW, 9), "netlink netfilter": (16, socket.SOCK_RAW, 12),
    "netlink uevent": (16, socket.SOCK_RAW, 15), "netlink socket diagnosis": (16, socket.SOCK_RAW, 4),
    "netlink connector": (16, socket.SOCK_RAW, 11), "netlink generic": (16, socket.SOCK_RAW, 16),
}  # fmt: skip
for name, (family, kind, protocol) in kinds.items():
    attempts(
        "sockets of other kinds",
        [
            (name, lambda numbers=(family, kind, protocol): taken(syscall(41, 198, *numbers))),
        ],
    )
attempts("sockets of other kinds", [(f"AF_UNIX {path!r}", lambda path=path: unix(path)) for path in TARGETS["unix"]])


@attempt("sockets of other kinds", "netlink: a device made or raised")
def _():
    with socket.socket(16, socket.SOCK_RAW, 0) as link:
        body = (
            struct.pack("=BxHiII", 0, 0, 0, 0, 0)
            + struct.pack("=HH", 18 + 4 + 12, 18)
            + b"\x0a\0\x01\0dummy\0"
            + bytes(8)
        )
        link.send(struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        said = link.recv(4096)
        return "made" if said[4:6] == b"\x02\0" and said[16:20] == bytes(4) else None


# ---- The kernel ----
calls = {
    "io_uring_setup": (425, 425, 4, ctypes.create_string_buffer(200)), "bpf": (321, 280, 0, None, 0),
    "userfaultfd": (323, 282, 0), "perf_event_open": (298, 241, None, 0, -1, -1, 0),
    "keyctl": (250, 219, 0, -3, 1), "add_key": (248, 217, b"user", b"walls", b"x", 1, -2),
    "unshare user": (272, 97, 0x10000000), "unshare net": (272, 97, 0x40000000),
    "unshare mount": (272, 97, 0x20000), "mount": (165, 40, b"none", b"/tmp", b"tmpfs", 0, None),
    "umount": (166, 39, b"/usr", 2), "pivot_root": (155, 41, b"/", b"/tmp"), "chroot": (161, 51, b"/tmp"),
    "open_tree": (428, 428, -100, b"/", 1), "fsopen": (430, 430, b"tmpfs", 0), "swapon": (167, 224, b"/tmp", 0),
    "open_by_handle_at": (304, 265, -100, ctypes.create_string_buffer(200), 0), "setns": (308, 268, 0, 0),
    "kexec_load": (246, 104, 0, 0, None, 0), "init_module": (175, 105, b"", 0, b""),
    "syslog": (103, 116, 3, ctypes.create_string_buffer(100), 100), "reboot": (169, 142, 1, 2, 3, None),
    # To what it is.
    "sethostname": (170, 161, os.uname().nodename.encode(), len(os.uname().nodename)),
    "setuid 0": (105, 146, 0), "setgid 0": (106, 144, 0), "iopl": (172, 9999, 3),
    "mknod of a disk": (259, 33, -100, b"disk", 0o60600, 0x800), "acct": (163, 89, b"acct"),
    "capset of all": (126, 91, struct.pack("=II", 0x20080522, 0), struct.pack("=6I", *[0xFFFFFFFF] * 6)),
}  # fmt: skip
for name, call in calls.items():
    attempts("the kernel", [(name, lambda call=call: worked(syscall(*call)))])


@attempt("the kernel", "a user namespace by clone3")
def _():
    arguments = struct.pack("=8Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    made = syscall(435, 435, arguments, len(arguments))
    if made == 0:
        os._exit(0)
    return worked(made)


@attempt("the kernel", "capabilities")
def _():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    held = [name for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb") if int(status[name], 16)]
    return " ".join(held) or None


@attempt("the kernel", "a program that is set to another user")
def _():
    for program in ("su", "sudo", "passwd", "mount", "newgrp"):
        path = shutil.which(program)
        if path and os.stat(path).st_mode & 0o4000:
            text = f"exec {path} -h >/dev/null 2>&1 & grep ^CapEff /proc/$!/status; wait"
            said = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False).stdout
            if said and int(said.split()[1], 16):
                return f"{path} {said}"
    return None


for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/1/mem",
             "/proc/self/oom_score_adj", "/proc/1/oom_score_adj", "/sys/kernel/uevent_helper", "/dev/mem", "/dev/kmsg",
             "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/sys/fs/cgroup/cgroup.procs"):  # fmt: skip
    attempts("the kernel", [(f"write to {path}", lambda path=path: opened(path, os.O_WRONLY))])

# ---- Other processes ----
for name, pid in TARGETS["pids"].items():
    attempts(
        "other processes",
        [
            (f"a signal to {name}", lambda pid=pid: signalled(pid)),
            (f"the environment of {name}", lambda pid=pid: read(f"/proc/{pid}/environ", TARGETS["mark"])),
            (f"the arguments of {name}", lambda pid=pid: read(f"/proc/{pid}/cmdline", b"agentrpc")),
            (f"memory of {name}", lambda pid=pid: opened(f"/proc/{pid}/mem", os.O_RDWR) if theirs(pid) else None),
            (f"descriptors of {name}", lambda pid=pid: descriptors(pid)),
            (f"the root of {name}", lambda pid=pid: theirs(pid) and listed(f"/proc/{pid}/root/")),
            (f"the network of {name}", lambda pid=pid: theirs(pid) and entered(pid)),
            (f"a trace of {name}", lambda pid=pid: traced(pid)),
            (f"memory of {name} by a system call", lambda pid=pid: peeked(pid)),
        ],
    )


@attempt("other processes", "all that /proc lists")
def _():
    marks = (b"agentrpc serve", b"agentrpc\0serve", b"worker-process", b"postgres", b"valkey", b"redis")
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            line = open(path, "rb").read()
        except OSError:
            continue
        if any(mark in line for mark in marks):
            return line[:80].decode(errors="replace")
    return None


@attempt("other processes", "shared memory and queues")
def _():
    found = [
        line.split()[0] for name in ("shm", "msg", "sem") for line in open(f"/proc/sysvipc/{name}").readlines()[1:]
    ]
    return " ".join(found) or None


# ---- Files ----
for name, path in TARGETS["files"].items():
    attempts(
        "files of others",
        [
            (f"read {name}", lambda path=path: read(path, b"")),
            (f"list the folder of {name}", lambda path=path: listed(*os.path.split(path))),
        ],
    )
for path in TARGETS["places"]:
    attempts("files of others", [(f"write to {path}", lambda path=path: written(path))])


@attempt("files of others", "the machine's passwords")
def _():
    return read("/etc/shadow", b":")


@attempt("files of others", "through inherited descriptors")
def _():
    for number in range(3, 1024):
        try:
            where = os.readlink(f"/proc/self/fd/{number}")
            os.stat(f"/proc/self/fd/{number}/..")
        except OSError:
            continue
        return where
    return None


@attempt("files of others", "a worker's secret anywhere in sight")
def _():
    with open("/proc/self/environ", "rb") as own:
        if TARGETS["mark"].encode() in own.read():
            return "in the environment"
    return None


signal.signal(signal.SIGALRM, gave_up)
only = set(sys.argv[2:])
for group, name, function in TRIES:
    if only and group not in only:
        continue
    signal.alarm(20)
    try:
        got = function()
    except (OSError, ValueError, TimeoutError, IndexError, UnicodeError):
        got = None
    except Exception as error:  # noqa: BLE001 - a fault of this script is none of the walls
        got = f"!{type(error).__name__}: {error}"
    signal.alarm(0)
    print(json.dumps([group, name, got or None]), flush=True)
