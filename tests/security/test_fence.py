"""The network of an agent: what it reaches past its worker (nothing), and what through it (what its session may)."""

import asyncio
import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
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
from agentrpc.v1 import event_pb2, session_pb2
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
    script = write_launcher(paths, Isolation.BUBBLEWRAP, Path(command[0]).resolve(), {"PATH": "/usr/bin:/bin"})
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
            *("/bin/sh", "-c", f'exec {" ".join(user)} "$0" "$HANDOVER" "$@"', Path(fence.__file__).read_text()),
            *(*sandbox, PYTHON, "-c", TRIES, asked),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        (await handover.listeners()).close()
        assert await words(process) == []
