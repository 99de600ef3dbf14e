"""The network of an agent: what it reaches past its worker (nothing), and what through it (what its session may)."""

import asyncio
import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude import fence
from agentrpc.claude.agent import AgentProcess, AgentSpec
from agentrpc.claude.launcher import Isolation, SessionPaths, stop_tree, write_launcher
from agentrpc.claude.listeners import FenceError, Handover
from agentrpc.cli.render import event_line
from agentrpc.client import RpcError
from agentrpc.domain.gate import Verdict
from agentrpc.domain.model_calls import RunAllowance
from agentrpc.domain.network import NetworkMode, NetworkPolicy
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.egress import EgressProxy
from agentrpc.gateway.server import ModelGateway
from agentrpc.testkit import write_cli
from agentrpc.v1 import event_pb2, run_pb2, session_pb2, session_service_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import bash, create, of, outputs, run, state
from tests.isolations import bubblewrap

PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
needs_python = pytest.mark.skipif(PYTHON is None, reason="there is no Python that a sandbox can see")
NOWHERE = NetworkPolicy(NetworkMode.NONE)
ALLOWED, DENIED = event_pb2.NetworkAccess.DECISION_ALLOWED, event_pb2.NetworkAccess.DECISION_DENIED

# Tries each of argv[1], a JSON list, and prints the names of those that did not fail.
TRIES = r"""
import json, os, socket, sys
def connect(family, address):
    with socket.socket(getattr(socket, family), socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(tuple(address) if isinstance(address, list) else address.replace("@", "\0"))
def send(family, address):
    with socket.socket(getattr(socket, family), socket.SOCK_DGRAM) as s:
        s.sendto(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01", tuple(address))
def make(family, kind, protocol=0):
    socket.socket(getattr(socket, family), getattr(socket, kind), protocol).close()
def resolve(name):
    socket.getaddrinfo(name, 80)
def enter(path):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    if libc.setns(fd, 0x40000000): raise OSError(ctypes.get_errno(), "setns")
def interfaces():
    if socket.if_nameindex() == [(1, "lo")]: raise OSError
for name, call, *arguments in json.loads(sys.argv[1]):
    try:
        globals()[call](*arguments)
    except OSError as error:
        continue
    print(name)
"""


def reaching_out(port):
    """Tries to reach a server at this port of each address of the machine, and what is beyond."""
    own = [a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET]
    return [
        *[["tcp", "connect", "AF_INET", [host, port]] for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", *own)],
        ["tcp", "connect", "AF_INET6", ["::1", port]],
        ["mapped", "connect", "AF_INET6", ["::ffff:127.0.0.1", port]],
        ["metadata", "connect", "AF_INET", ["169.254.169.254", 80]],
        ["metadata-decimal", "connect", "AF_INET", ["2852039166", 80]],
        ["metadata-6", "connect", "AF_INET6", ["fd00:ec2::254", 80]],
        ["dns", "send", "AF_INET", ["1.1.1.1", 53]],
        ["resolver", "resolve", "example.com"],
        ["multicast", "send", "AF_INET", ["224.0.0.251", 5353]],
        ["interfaces", "interfaces"],
        ["namespace", "enter", "/proc/1/ns/net"],
    ]


def odd_sockets(abstract, path):
    """Tries with sockets of other kinds."""
    return [
        ["abstract", "connect", "AF_UNIX", f"@{abstract}"],
        ["path", "connect", "AF_UNIX", str(path)],
        ["raw", "make", "AF_INET", "SOCK_RAW", 1],
        ["packet", "make", "AF_PACKET", "SOCK_RAW", 768],
        ["vsock", "make", "AF_VSOCK", "SOCK_STREAM"],
        ["audit", "make", "AF_NETLINK", "SOCK_RAW", 9],
    ]


@pytest.fixture
def paths(tmp_path):
    def make():
        paths = SessionPaths.under(tmp_path, clock.uuid7(), tmp_path / str(clock.uuid7()))
        paths.create()
        paths.workspace.mkdir()
        return paths

    return make


@contextlib.asynccontextmanager
async def fenced(paths, *command, policy=NOWHERE, door=None):
    """A program in a sandbox whose ways out are served: its process."""
    program = await asyncio.to_thread(Path(command[0]).resolve)
    script = write_launcher(paths, Isolation.BUBBLEWRAP, program, {"PATH": "/usr/bin:/bin"})
    proxy = EgressProxy(policy, report=lambda _: None)
    with contextlib.closing(Handover()) as handover:
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        process = await handover.spawn(str(script), *command[1:], **pipes)
        listeners = await handover.listeners()
        await proxy.serve(listeners.proxy)
        if door is not None:
            await door.serve(listeners.gateway)
        try:
            yield process
        finally:
            await stop_tree(process.pid)
            await process.communicate()
            await proxy.close()
            if door is not None:
                await door.close()
            listeners.gateway.close()


async def words(process):
    out, err = await process.communicate()
    assert not err, err.decode()
    return out.decode().split()


# ---- Past the worker ----


@bubblewrap
@needs_python
async def test_nothing_is_reached_past_the_worker(paths, tmp_path):
    name = f"agentrpc-test-{clock.uuid7()}"
    with contextlib.ExitStack() as stack:
        everywhere = stack.enter_context(socket.create_server(("", 0)))
        port = everywhere.getsockname()[1]
        for address in (f"\0{name}", str(tmp_path / "socket")):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        asked = [*reaching_out(port), *odd_sockets(name, tmp_path / "socket")]
        near = json.dumps([each for each in asked if each[0] in {"tcp", "mapped", "abstract", "path"}])
        outside = subprocess.run([PYTHON, "-c", TRIES, near], capture_output=True, text=True, check=True)
        assert set(outside.stdout.split()) == {"tcp", "mapped", "abstract", "path"}, "these tries are none"
        async with fenced(paths(), PYTHON, "-c", TRIES, json.dumps(asked)) as process:
            assert await words(process) == []


@bubblewrap
@needs_python
async def test_a_door_is_for_its_own_session(paths):
    """The same address leads to another door in each network, and a token is good at its own alone."""
    async with ScriptedModel() as model, contextlib.AsyncExitStack() as stack:
        gateway = ModelGateway(upstream_url=model.url, api_key="k")
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        allowance = RunAllowance(("m",))
        doors = [gateway.open(lambda: True, lambda: allowance) for _ in range(2)]
        code = f"""
import json, sys, urllib.error, urllib.request
for token in sys.argv[1:]:
    body = json.dumps({{"model": "m", "max_tokens": 9, "messages": [{{"role": "user", "content": "hi"}}]}}).encode()
    url = "http://{fence.GATEWAY[0]}:{fence.GATEWAY[1]}/v1/messages"
    request = urllib.request.Request(url, body, {{"authorization": "Bearer " + token}})
    try:
        print(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
        for number, door in enumerate(doors):
            tokens = [each.token for each in doors]
            async with fenced(paths(), PYTHON, "-c", code, *tokens, door=door) as process:
                assert await words(process) == (["200", "401"] if number == 0 else ["401", "200"])


@bubblewrap
@needs_python
async def test_nobody_takes_the_place_of_the_ways_out(paths):
    code = f"""
import socket
for port in ({fence.GATEWAY[1]}, {fence.PROXY[1]}):
    for host in ("127.0.0.1", "0.0.0.0"):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            s.bind((host, port))
            s.listen()
            print("taken", host, port)
        except OSError:
            pass
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname())
print("own")
"""
    async with fenced(paths(), PYTHON, "-c", code) as process:
        assert await words(process) == ["own"]


@bubblewrap
def test_a_sandbox_without_a_worker_has_no_way_out(paths):
    script = write_launcher(paths(), Isolation.BUBBLEWRAP, Path("/bin/bash").resolve(), {"PATH": "/usr/bin:/bin"})
    code = f"exec 3<>/dev/tcp/127.0.0.1/{fence.PROXY[1]} && echo open"
    done = subprocess.run([script, "-c", code], capture_output=True, text=True, check=False)
    assert "open" not in done.stdout
    assert "refused" in done.stderr


async def test_a_launcher_that_ends_early_is_told():
    with contextlib.closing(Handover()) as handover:
        process = await handover.spawn("/bin/true")
        with pytest.raises(FenceError):
            await handover.listeners()
        await process.wait()


@bubblewrap
@needs_python
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_others_than_root_are_fenced_in_too(paths):
    """By a user namespace, as workers in containers are."""
    source = Path(fence.__file__).read_text()  # noqa: ASYNC240 - a few lines
    user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", PYTHON, "-I", "-S", "-c"]
    sandbox = [
        shutil.which("bwrap"),
        "--unshare-user",
        "--unshare-pid",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(Handover()) as handover:
        asked = json.dumps(reaching_out(listener.getsockname()[1]))
        process = await handover.spawn(
            *("/bin/sh", "-c", f'exec {" ".join(user)} "$0" "$HANDOVER" "$@"', source),
            *(*sandbox, PYTHON, "-c", TRIES, asked),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        (await handover.listeners()).close()
        assert await words(process) == []


# ---- Through the worker, by the real CLI ----


class Echo(http.server.BaseHTTPRequestHandler):
    """Says where it is."""

    def do_GET(self):
        body = "served by {}:{}".format(*self.server.server_address[:2]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server(host, handler=Echo):
    """An HTTP server that stands for a public one: its `host:port`. Not at 127.0.0.1, for which no proxy is asked."""
    with http.server.ThreadingHTTPServer((host, 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        try:
            yield "{}:{}".format(*served.server_address[:2])
        finally:
            served.shutdown()
            thread.join()


def accesses(events):
    """(host:port, decision) of all destinations, and what came of each."""
    found, traffic = [], {}
    for access in of(events, "network_access"):
        where = f"{access.host}:{access.port}"
        if access.HasField("traffic"):
            traffic[where] = access.traffic
        else:
            found.append((where, access.decision))
    return found, traffic


# What is tried of the service itself: at its real addresses, past the proxy and through it.
SERVICE = r"""
import json, os, socket, sys, urllib.request
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), 2).close()
        print("past", port)
    except OSError:
        pass
    try:
        with socket.create_connection(("127.0.0.1", 7411), 5) as proxy:
            proxy.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
            if proxy.recv(100).split()[1] == b"200":
                print("through", port)
    except OSError:
        pass
print("done")
"""


def listening():
    """All that listens on this machine: the service's PostgreSQL, Redis, edge, metrics, and whatever else."""
    found = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return json.dumps([["127.0.0.1", port] for port in sorted(found)])


@bubblewrap
@needs_python
async def test_a_list_lets_one_of_two_through_and_the_log_says_both():
    with server("127.0.0.2") as one, server("127.0.0.3") as two:
        async with own_stack(network_private='["127.0.0.0/8"]') as stack, stack.client() as client:
            network = session_pb2.NetworkOptions(mode="MODE_LISTED", allowed=[one, "*.example.com"])
            session = await create(client, allowed_tools=["Bash"], network=network)
            ask = bash(
                f"curl -sS -m 30 http://{one}/; echo; curl -s -m 30 -o /dev/null -w '%{{http_code}}' http://{two}/"
            )
            service = bash(f"cat > tries.py <<'EOF'\n{SERVICE}\nEOF\npython3 tries.py '{listening()}'")
            events = await run(client, session, f"{ask}\n[[then]]\n{service}\n[[then]]\n[[text: done]]", timeout=180)
            asked, tried = outputs(events)
            assert asked.split("\n") == [f"served by {one}", "403"]
            assert tried.strip() == "done"
            found, traffic = accesses(events)
            assert found[:2] == [(one, ALLOWED), (two, DENIED)]
            assert {decision for _, decision in found[2:]} == {DENIED}
            assert (traffic[one].connections, traffic[two].connections) == (1, 1)
            assert traffic[one].bytes_received > len(f"served by {one}")
            assert traffic[two].bytes_received == 0
            assert events[-1].HasField("run_ended")
            rules = {access.rule for access in of(events, "network_access")}
            assert rules == {f"allowed {one}", "not listed"}
            lines = "\n".join(str(event_line(event)) for event in events if event.HasField("network_access"))
            assert f"{two} refused: not listed" in lines

            # The process lives on; what another run comes to is its own.
            events = await run(client, session, ask + "\n[[then]]\n[[text: again]]")
            _, traffic = accesses(events)
            assert {where: t.connections for where, t in traffic.items()} == {one: 1, two: 1}

            # Wider by an update, from the next run on.
            network = session_pb2.NetworkOptions(mode="MODE_PUBLIC", denied=[one])
            request = session_service_pb2.UpdateSessionRequest(
                session=session_pb2.Session(name=session, options=session_pb2.SessionOptions(network=network)),
                update_mask={"paths": ["options.network"]},
            )
            await client.call(client.sessions.UpdateSession, request)
            events = await run(client, session, ask + "\n[[then]]\n[[text: again]]")
            assert "served by" not in outputs(events)[0]
            assert outputs(events)[0].endswith("200")


@bubblewrap
async def test_what_is_no_destination_is_refused_at_the_edge():
    settings = {"isolation": "subreaper", "network_mode": "NONE", "network_ceiling": "LISTED"}
    async with own_stack(**settings) as stack, stack.client() as client:
        for field, network in {
            "allowed[0]": {"mode": "MODE_LISTED", "allowed": ["http://example.com"]},
            "denied[1]": {"denied": ["a.example", "a.*.example"]},
            "allowed": {"mode": "MODE_LISTED"},
            "mode": {"mode": "MODE_PUBLIC"},
        }.items():
            with pytest.raises(RpcError) as caught:
                await create(client, network=session_pb2.NetworkOptions(**network))
            assert caught.value.reason == "FIELD_INVALID"
            assert f"session.options.network.{field}:" in str(caught.value)
        # Nothing runs open that must not: what the operator bounds fails, what the options bound waits for a sandbox.
        session = await create(client, allowed_tools=["Bash"])
        events = await run(client, session, bash("echo ran"))
        assert state(events) == "STATE_FAILED"
        assert "cannot keep an agent's network apart" in of(events, "run_ended")[0].error.message
        assert not outputs(events)
        for network in ({"mode": "MODE_NONE"}, {"mode": "MODE_LISTED", "allowed": ["example.com"]}):
            session = await create(client, allowed_tools=["Bash"], network=session_pb2.NetworkOptions(**network))
            queued = await client.create_run(session, bash("echo ran"))
            found = await client.get_run(queued.name)
            assert found.waiting_on.reason == run_pb2.WaitingOn.REASON_ISOLATION


TOOLS = {
    "curl": "curl -sS http://{at}/hello.txt",
    "python": "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://{at}/hello.txt\").read().decode())'",
    "node": "node -e 'fetch(\"http://{at}/hello.txt\").then(r => r.text()).then(console.log)'",
    "git": "git clone -q http://{at}/repository.git cloned && cat cloned/hello.txt",
    "pip": "python3 -m pip download -q --no-deps --trusted-host 127.0.0.2 -i http://{at}/simple -d wheels demo"
    " && python3 -m zipfile -e wheels/demo-1-py3-none-any.whl out && cat out/demo.txt",
    "npm": "mkdir -p n && cd n && npm install --silent --no-audit --no-fund --registry http://{at}/ demo >&2"
    " && cat node_modules/demo/hello.txt",
}


def usable(name):
    program = shutil.which({"python": "python3", "pip": "pip3"}.get(name, name), path="/usr/local/bin:/usr/bin")
    if program is None or name != "node":
        return program is not None
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    # NODE_USE_ENV_PROXY came with this one.
    return [int(part) for part in version.strip().lstrip("v").split(".")] >= [24]


@pytest.fixture
def site(tmp_path):
    """A folder that serves a file, a repository, an index of Python packages and a registry of npm's."""
    folder = tmp_path / "site"
    (folder / "simple/demo").mkdir(parents=True)
    (folder / "hello.txt").write_text("hello\n")
    work = tmp_path / "work"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for command in (
        [*git, "init", "-q", work],
        ["cp", folder / "hello.txt", work],
        [*git, "-C", work, "add", "hello.txt"],
        [*git, "-C", work, "commit", "-qm", "first"],
        [*git, "clone", "-q", "--bare", work, folder / "repository.git"],
        [*git, "-C", folder / "repository.git", "update-server-info"],
    ):
        subprocess.run(command, check=True)
    wheel = folder / "simple/demo/demo-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("demo.txt", "hello\n")
        file.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        file.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("demo-1.dist-info/RECORD", "")
    (folder / "simple/demo/index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "demo", "version": "1.0.0"}')
    shutil.copy(folder / "hello.txt", package)
    with tarfile.open(folder / "demo-1.0.0.tgz", "w:gz") as archive:
        archive.add(package, "package")
    return folder


@bubblewrap
async def test_tools_find_the_way_out(site):
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=site)

        def log_message(self, *_):
            pass

    with server("127.0.0.2", Files) as at:
        version = {"name": "demo", "version": "1.0.0", "dist": {"tarball": f"http://{at}/demo-1.0.0.tgz"}}
        registry = {"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        (site / "demo").write_text(json.dumps(registry))
        names = [name for name in TOOLS if usable(name)]
        async with own_stack(network_private='["127.0.0.2/32"]') as stack, stack.client() as client:
            session = await create(client, allowed_tools=["Bash"])
            prompt = "\n[[then]]\n".join([*(bash(TOOLS[name].format(at=at)) for name in names), "[[text: done]]"])
            events = await run(client, session, prompt, timeout=300)
            assert dict(zip(names, map(str.strip, outputs(events)), strict=True)) == dict.fromkeys(names, "hello")
            assert accesses(events)[0] == [(at, ALLOWED)]
            # Without a word to the proxy there is nothing.
            events = await run(
                client,
                session,
                bash(f"curl -sS --noproxy '*' -m 5 http://{at}/ || echo none") + "\n[[then]]\n[[text: x]]",
            )
            assert "none" in outputs(events)[0]


# An MCP server whose only tool is called after what it has reached.
REACHING = r"""
import json, sys, urllib.request
try:
    reached = urllib.request.urlopen(sys.argv[1], timeout=20).read().decode()
except OSError as error:
    reached = str(getattr(error, "code", error))
name = "served" if reached.startswith("served") else "refused-" + reached[:3]
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif asked.get("method") == "tools/list":
        result = {"tools": [{"name": name, "description": "x", "inputSchema": {"type": "object"}}]}
    elif "id" in asked:
        result = {}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@bubblewrap
@needs_python
async def test_mcp_servers_have_the_network_of_their_session():
    with server("127.0.0.2") as one, server("127.0.0.3") as two:
        async with own_stack(network_private='["127.0.0.0/8"]') as stack, stack.client() as client:
            network = session_pb2.NetworkOptions(mode="MODE_LISTED", allowed=[one])

            def program(name, at, **env):
                args = ["-c", REACHING, f"http://{at}/"]
                return session_pb2.McpServer(
                    name=name, stdio=session_pb2.McpStdio(command="python3", args=args, env=env)
                )

            # With an environment it runs beside the sandbox of the CLI, else in it.
            servers = [
                program("beside", one, K="v"),
                program("besides", two, K="v"),
                program("within", one),
                program("inner", two),
            ]
            session = await create(client, network=network, mcp_servers=servers)
            events = await run(client, session, "[[text: hi]]")
            [ready] = of(events, "agent_initialized")
            tools = {tool for tool in ready.tools if tool.startswith("mcp__")}
            assert tools == {
                "mcp__beside__served", "mcp__besides__refused-403", "mcp__within__served", "mcp__inner__refused-403"
            }  # fmt: skip
            found, _ = accesses(events)
            assert set(found) == {(one, ALLOWED), (two, DENIED)}


# ---- Nothing is left ----


def left():
    """What a start may leave behind. A network of its own is kept by the sockets in it, which are descriptors here."""
    return (
        sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in open_descriptors()),  # noqa: PTH115
        len(psutil.Process().children(recursive=True)),
        len(Path("/proc/self/mountinfo").read_text().splitlines()),
    )


def open_descriptors():
    found = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
        with contextlib.suppress(OSError):
            os.fstat(int(fd))
            found.append(fd)
    return found


@bubblewrap
async def test_two_hundred_starts_leave_nothing(paths, tmp_path):
    cli = write_cli(tmp_path / "cli-under-test")
    async with ScriptedModel() as model:
        gateway = ModelGateway(upstream_url=model.url, api_key="k")
        await gateway.start()

        async def deny(_):
            return Verdict(allow=False)

        async def live(place):
            session_id = clock.uuid7()
            door = gateway.open(lambda: True, lambda: None)
            proxy = EgressProxy(NOWHERE, report=lambda _: None)

            @contextlib.asynccontextmanager
            async def ways_out(listeners):
                await door.serve(listeners.gateway)
                await proxy.serve(listeners.proxy)
                yield
                await proxy.close()

            spec = AgentSpec(
                session_id=session_id, claude_session_id=str(session_id), resume=False, paths=place,
                options=session_pb2.SessionOptions(), gateway_url="http://{}:{}".format(*fence.GATEWAY), token=door.token,
                isolation=Isolation.BUBBLEWRAP, gate=deny, on_transcript=lambda *_: None, cli_path=cli, ways_out=ways_out,
            )  # fmt: skip
            agent = await AgentProcess.start(spec, timeout=60)
            receipt = await agent.stop(grace=0)
            assert receipt.confirmed
            await door.close()
            return agent.pid

        async def often(place, count):
            for _ in range(count):
                await live(place)

        places = [paths() for _ in range(8)]
        await asyncio.gather(*[live(place) for place in places])
        before, files = left(), sorted(map(str, tmp_path.rglob("*")))
        await asyncio.gather(*[often(place, 25) for place in places])
        assert left() == before
        assert sorted(map(str, tmp_path.rglob("*"))) == files
        await gateway.stop()
