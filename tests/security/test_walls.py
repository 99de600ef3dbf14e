"""What an agent was not given it cannot reach, whatever it runs: tries of every kind by the real CLI, from inside.

What is tried is in walls.py. Servers of the test's own note who has reached them, so that a try that does not see its
success shows all the same. SECURITY.md says what each level keeps; the tests here hold it to that.
"""

import contextlib
import json
import re
import socket
import socketserver
import threading
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from agentrpc.claude.fence import PROXY
from agentrpc.claude.launcher import Isolation
from tests.e2e.stacks import begin, own_stack, until
from tests.e2e.talk import bash, create, run, state
from tests.isolations import isolations, users
from tests.security.test_isolation import needs_python

pytestmark = [pytest.mark.timeout(600), needs_python]

SCRIPT = Path(__file__).with_name("walls.py")
POLICY = Path(__file__).parents[2] / "SECURITY.md"
# Stands for a public server: the operator allows this one address.
ALLOWED = "127.0.0.2"
LOOPBACKS = ["127.0.0.1", "::1", "127.0.0.9"]
# All of them are the worker's loopback, or lead there.
ODD_HOSTS = [
    "127.0.0.1", "::1", "localhost", "LOCALHOST", "localhost.", "ip6-localhost", "127.1", "127.0.1", "0", "0.0.0.0",
    "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "2130706433", "127.0.0.1.", "127.000.000.001", "::",
    "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
    "2001:0:7f00:1::", "::ffff:0:127.0.0.1", "fe80::1%lo", "[::1%25lo]", "127。0。0。1", "①②⑦.⓪.⓪.①",
    "127.0.0.1%00.example.com", "127.0.0.1#@example.com", "example.com@127.0.0.1", "127.0.0.1\t", "::1%lo",
    "127.0.0.1:1@example.com", "localhost\\.example.com", "127%2e0%2e0%2e1", "0:0:0:0:0:0:0:1", "::0:1",
]  # fmt: skip
SOCKS_HOSTS = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "localhost", "127.1", "0x7f000001", "2130706433"]
METADATA = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200"]
METADATA_HOSTS = [
    *METADATA, "metadata.google.internal", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
    "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "169.254.169.254.",
]  # fmt: skip


class Canary:
    """Servers on loopback that nobody may reach, and one that all may: they note who came."""

    def __init__(self):
        self.reached = []
        self._servers = []

    def start(self, folder):
        canary = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                canary.reached.append(self.server.server_address)
                with contextlib.suppress(OSError):
                    self.request.settimeout(5)
                    self.request.recv(65536)
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nCANARY")

        class Allowed(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    self.request.settimeout(5)
                    asked = self.request.recv(65536)
                    if b"/redirect" in asked.split(b"\r\n")[0]:
                        where = f"http://127.0.0.1:{canary.port}/"
                        said = (
                            f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nlocation: {where}\r\nContent-Length: 0\r\n\r\n"
                        )
                        self.request.sendall(said.encode())
                    else:
                        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nALLOWED")

        class Datagrams(socketserver.BaseRequestHandler):
            def handle(self):
                canary.reached.append("a datagram")
                self.request[1].sendto(b"CANARY", self.client_address)

        class Six(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6

        class Unix(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        while not self._servers:
            first = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
            self.port = first.server_address[1]
            try:
                # The same port at each address, unless somebody has it there.
                second = socketserver.ThreadingTCPServer(("127.0.0.9", self.port), Handler)
            except OSError:
                first.server_close()
                continue
            self._serve(first)
            self._serve(second)
        with contextlib.suppress(OSError):
            self._serve(Six(("::1", self.port), Handler))
        self.allowed = self._serve(socketserver.ThreadingTCPServer((ALLOWED, 0), Allowed)).server_address[1]
        self.datagrams = self._serve(socketserver.UDPServer(("127.0.0.1", 0), Datagrams)).server_address[1]
        self.unix = [f"@{folder.name}-canary", str(folder / "canary.sock")]
        for path in self.unix:
            self._serve(Unix("\0" + path[1:] if path[0] == "@" else path, Handler))

    def _serve(self, server):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._servers.append(server)
        return server

    def stop(self):
        for server in self._servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def canary(tmp_path):
    canary = Canary()
    canary.start(tmp_path)
    yield canary
    canary.stop()


def service():
    """The processes of the stack by name."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(child.cmdline())
            for name in ("serve", "scheduler", "worker-process", "postgres", "valkey", "redis"):
                if name in line:
                    found.setdefault(name, child)
    return found


def ports(processes):
    """Where each process listens, by its name."""
    found = {}
    for name, process in processes.items():
        with contextlib.suppress(psutil.Error):
            listening = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
            found.update({f"{name} {number}": port for number, port in enumerate(sorted(listening))})
    return found


async def tried(running, client, canary, isolation, groups=()):
    """What each try got, by group."""
    other = await create(client, allowed_tools=["Bash"])
    wait = "echo $ANTHROPIC_AUTH_TOKEN > t; mv t token; until [ -e stop ]; do sleep 0.1; done"
    await begin(client, other, bash(wait, timeout=600_000))
    token = running.workspace(other) / "token"
    await until(token.exists)
    session = await create(client, allowed_tools=["Bash"])
    await run(client, session, bash("true"))
    processes = service()
    neighbours = running.agents(other)
    folder = running.folder
    keys = sorted(folder.glob("*.key")) or sorted(folder.rglob("*.key"))
    files = {path.name: str(path) for path in keys[:3]}
    files |= {
        "another session's file": str(token),
        "another session's launcher": str(next((running.local(other) / "launch").iterdir())),
        "our own launcher": str(running.local(session) / "launch" / "cli"),
    }
    places = [
        str(folder / "walls"),
        str(running.workspace(other) / "walls"),
        str(running.local(other) / "home" / "walls"),
    ]
    places += [
        str(running.local(session) / "launch" / "walls"),
        str(running.local(session) / "launch" / "options" / "walls"),
    ]
    if isolation is Isolation.BUBBLEWRAP:
        places += [f"/{name}/walls" for name in ("usr", "usr/local/bin", "etc", "opt", "bin", "sys", "proc")] + [
            "/walls"
        ]
    targets = {
        "ports": {"canary": canary.port, **ports(processes)},
        "addresses": LOOPBACKS, "metadata": METADATA, "datagrams": canary.datagrams, "unix": canary.unix,
        "proxy": PROXY if isolation is Isolation.BUBBLEWRAP else None, "allowed": (ALLOWED, canary.allowed),
        "odd_hosts": [*ODD_HOSTS, socket.gethostname()], "socks_hosts": SOCKS_HOSTS, "metadata_hosts": METADATA_HOSTS,
        "other_token": token.read_text().strip(), "mark": running.stack.environment["AGENTRPC_SIGNING_KEY"],
        "pids": {name: process.pid for name, process in processes.items()} | {"another agent": neighbours[-1].pid},
        "files": files, "places": places,
    }  # fmt: skip
    workspace = running.workspace(session)
    await client.transfers.upload_file(session, "walls.py", SCRIPT.read_bytes())
    await client.transfers.upload_file(session, "targets.json", json.dumps(targets).encode())
    command = " ".join(["python3 walls.py targets.json", *(f"'{group}'" for group in groups), "> tried 2> errors"])
    events = await run(client, session, bash(command, timeout=600_000), timeout=500)
    assert state(events) == "STATE_SUCCEEDED"
    (running.workspace(other) / "stop").touch()
    found = defaultdict(dict)
    for line in (workspace / "tried").read_text().splitlines():
        group, name, got = json.loads(line)
        # In the sandbox's own memory one may write what one likes.
        inside = name.startswith("write to ") and not Path(name.removeprefix("write to ")).exists()  # noqa: ASYNC240
        found[group][name] = None if got == "written" and inside else got
    assert (workspace / "errors").read_text() == ""
    return found


def kept(level):
    """The groups that SECURITY.md says a level keeps."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in POLICY.read_text().splitlines()
        if re.match(r"\| *[a-z]", line)
    ]
    column = {"bubblewrap": 1, "user": 2, "subreaper": 3}[level]
    return {row[0] for row in rows if len(row) == 4 and row[column] == "closed"}


@pytest.mark.parametrize("isolation", [*isolations(), pytest.param(Isolation.USER, marks=users)])
async def test_nothing_gets_through_the_walls_that_a_level_keeps(canary, isolation):
    settings = {"isolation": isolation, "network_private": json.dumps([f"{ALLOWED}/32"])}
    async with own_stack(**settings) as running, running.client() as client:
        found = await tried(running, client, canary, isolation)
    walls = kept(str(isolation))
    allowed = found.pop("what is allowed", {})
    print(json.dumps({group: f"{sum(map(bool, t.values()))} of {len(t)}" for group, t in found.items()}, indent=1))
    through = {(group, name): got for group, tries in found.items() for name, got in tries.items() if got}
    assert {key: got for key, got in through.items() if key[0] in walls or str(got).startswith("!")} == {}
    if isolation is Isolation.BUBBLEWRAP:
        assert walls >= set(found)
        assert sum(map(len, found.values())) >= 200
        assert canary.reached == []
        assert all(allowed.values())
    else:
        # The same tries do get through where nothing keeps them out.
        open_to_all = {"the worker's network, directly"}
        assert open_to_all <= {group for group, _ in through}
        assert canary.reached
