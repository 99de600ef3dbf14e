"""A credential in a session of the real CLI: servers get it, and nothing in the sandbox or of the log ever has it."""

import asyncio
import base64
import contextlib
import ipaddress
import os
import re
import shutil
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.egress import EgressProxy, EgressShare
from agentrpc.gateway.egress_dial import Lookups
from agentrpc.gateway.interception import intercepting
from agentrpc.gateway.server import ModelGateway
from agentrpc.services.session_host.host import SessionHost
from agentrpc.v1 import credential_pb2, credential_service_pb2, session_pb2, session_service_pb2
from tests.e2e.talk import bash, of, outputs, run, state
from tests.isolations import bubblewrap, usable_isolation
from tests.origins import Origin, new_authority, server_context

HOST, OTHER = "git.example.test", "other.example.test"
TOKEN = "ghp_TheRealTokenWhichNoAgentHas00"
BASIC = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"],
}  # fmt: skip
PACKAGE = b'{"name": "simple-thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"version": "1.0.0"}}}'
WHEEL = "simple_thing-1.0-py3-none-any.whl"


def wheel(folder):
    """The smallest package that pip installs."""
    file = folder / WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("simple_thing.py", "WORD = 'installed'\n")
        archive.writestr(
            "simple_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: simple-thing\nVersion: 1.0\n"
        )
        archive.writestr(
            "simple_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("simple_thing-1.0.dist-info/RECORD", "")
    return file.read_bytes()


def plain(body, *headers, status="200 OK"):
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


class GitServer:
    """git over https for whoever has the token, an index for pip, and what echoes."""

    def __init__(self, folder, authority):
        self.root = folder / "repositories"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.root / "r.git"], check=True, env=GIT)
        subprocess.run(["git", "-C", self.root / "r.git", "config", "http.receivepack", "true"], check=True, env=GIT)
        self.wheel = wheel(folder)
        self.origin = Origin(server_context(authority, HOST), self.answer)
        self.elsewhere = Origin(server_context(authority, OTHER))

    async def answer(self, request, _):
        if request.values("authorization") != [f"Basic {BASIC}"]:
            return plain(b"who are you?\n", 'WWW-Authenticate: Basic realm="r"', status="401 Unauthorized")
        path, _, query = request.target.partition("?")
        if path == "/headers":
            return plain("".join(f"{key}: {value}\n" for key, value in request.headers).encode())
        if path == "/redirect":
            return plain(b"", f"Location: https://{OTHER}:{self.elsewhere.port}/", status="302 Found")
        if path == "/simple/simple-thing/":
            return plain(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "Content-Type: text/html")
        if path == "/npm/simple-thing":
            return plain(PACKAGE, "Content-Type: application/json")
        if path == f"/files/{WHEEL}":
            return plain(self.wheel)
        return await self.git(request, path, query)

    async def git(self, request, path, query):
        headers = dict(request.headers)
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": request.method, "REMOTE_USER": "agent",
            "CONTENT_TYPE": headers.get("content-type", ""), "CONTENT_LENGTH": str(len(request.body)),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(request.body)
        head, _, body = out.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = next((line[8:] for line in lines if line.startswith("Status: ")), "200 OK")
        return plain(body, *[line for line in lines if line and not line.startswith("Status: ")], status=status)


@pytest.fixture
async def server(tmp_path):
    authority = new_authority()
    (tmp_path / "theirs.pem").write_text(authority.pem)
    server = GitServer(tmp_path, authority)
    async with server.origin, server.elsewhere:
        yield server


@pytest.fixture
async def host(settings, database, bus, edge, server, tmp_path):
    """A worker with the real CLI, for which names lead to loopback."""

    async def resolve(_host, _port):
        return ["127.0.0.1"]

    changed = settings.model_copy(
        update={"egress_ca": tmp_path / "theirs.pem", "network_private": (ipaddress.ip_network("127.0.0.0/8"),)}
    )
    async with ScriptedModel() as model, contextlib.AsyncExitStack() as stack:
        gateway = ModelGateway(upstream_url=model.url, api_key="sk")
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        egress = intercepting(partial(EgressProxy, share=EgressShare(8, Lookups(resolve))))
        host = SessionHost(database, bus, changed, gateway, egress, usable_isolation())
        await host.start()
        stack.push_async_callback(host.stop, 0.1)
        yield host
        await stack.aclose()
        await asyncio.sleep(0.05)


async def credential_for(client, *hosts, **more):
    given = credential_pb2.Credential(
        display_name="git", hosts=hosts, git=credential_pb2.GitCredential(token=TOKEN), **more
    )
    request = credential_service_pb2.CreateCredentialRequest(credential=given)
    return await client.call(client.credentials.CreateCredential, request)


async def session_with(client, *credentials):
    options = session_pb2.SessionOptions(
        allowed_tools=["Bash"], credentials=[credential.name for credential in credentials]
    )
    return (await client.create_session(session_pb2.Session(options=options))).name


async def stored(database):
    """Everything that the database holds."""
    async with database.connection() as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = []
        for table in tables:
            rows += [str(dict(row)) for row in await connection.fetch(f'SELECT * FROM "{table["tablename"]}"')]
        return rows


def files_with(folder, *needles):
    """Files that hold one of these."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [path for needle in needles if needle in data]
    return found


def memory_with(process, *needles):
    """Which of these the memory of a process holds, as far as any of it is in use; and how many bytes were looked at."""
    found, looked = set(), 0
    folder = Path("/proc", str(process.pid))
    with (folder / "mem").open("rb", 0) as memory, (folder / "pagemap").open("rb", 0) as pages:
        for line in (folder / "maps").read_text().splitlines():
            place, mode, *_ = line.split()
            if not mode.startswith("r") or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            begin, end = (int(part, 16) for part in place.split("-"))
            # Reserved space of gigabytes, of which little is used.
            for at in range(begin, end, 1 << 30):
                count = (min(end, at + (1 << 30)) - at) // 4096
                pages.seek(at // 4096 * 8)
                entries = np.frombuffer(pages.read(count * 8), dtype=np.uint64)
                used = np.flatnonzero(entries >> np.uint64(62))
                for run_of in np.split(used, np.flatnonzero(np.diff(used) != 1) + 1) if len(used) else ():
                    with contextlib.suppress(OSError, ValueError):
                        memory.seek(at + int(run_of[0]) * 4096)
                        data = memory.read(len(run_of) * 4096)
                        looked += len(data)
                        found |= {needle for needle in needles if needle in data}
    return found, looked


async def until_file(path):
    async with asyncio.timeout(120):
        while not path.exists():  # noqa: ASYNC110 - files ring no bell
            await asyncio.sleep(0.05)


@bubblewrap
async def test_git_works_and_the_token_is_nowhere_in_the_sandbox(client, host, server, database, settings, capfd):
    place = f"{HOST}:{server.origin.port}"
    credential = await credential_for(client, place)
    session = await session_with(client, credential)
    workspace = settings.workspaces / session.removeprefix("sessions/") / "files"
    root = settings.data_dir / "sessions" / session.removeprefix("sessions/")
    holder = (
        "import os, time, urllib.request\n"
        f"answer = urllib.request.urlopen('https://{place}/headers')\n"
        "kept = answer.read() + b'canary-' + b'of-this-process'\n"
        "open('ready', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "print(kept.decode())\n"
    )
    command = (
        f"export GIT_TRACE_CURL=$PWD/trace GIT_TRACE_REDACT=0; git clone -q https://{place}/r.git r 2>&1 && cd r"
        " && git config user.name a && git config user.email a@example.com"
        " && echo hello > file && git add file && git commit -qm first && git push -q origin HEAD:main 2>&1"
        f" && cd .. && git clone -q https://{place}/r.git again 2>&1 && cat again/file"
        f" && cat > holder.py <<'EOF'\n{holder}EOF\npython3 holder.py"
    )
    running = asyncio.create_task(run(client, session, bash(command), timeout=170))
    ready = asyncio.create_task(until_file(workspace / "ready"))
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.done(), outputs(await running)
    needles = (TOKEN.encode(), BASIC.encode())
    canary = b"canary-of-this-process"
    tree = _sandbox(workspace)
    assert len(tree) >= 2
    seen = set()
    for process in tree:
        # Not every process lets another user than root look into it.
        with contextlib.suppress(PermissionError) if os.geteuid() else contextlib.nullcontext():
            found, looked = memory_with(process, *needles, canary)
            assert looked
            seen |= found
        words = [*process.cmdline(), *process.environ().values()]
        assert not [needle for needle in needles if needle.decode() in " ".join(words)]
    # The search finds what is there.
    assert seen == {canary}
    (workspace / "go").touch()
    events = await running
    [output] = outputs(events)
    assert state(events) == "STATE_SUCCEEDED", output
    assert "hello\n" in output
    assert re.search(r"authorization: Basic \*+\n", output), output
    got = [request for request in server.origin.requests if request.values("authorization") == [f"Basic {BASIC}"]]
    # No request went without: git was never asked who it is.
    assert len(got) == len(server.origin.requests) > 5
    assert "git-receive-pack" in "".join(request.target for request in got)
    assert (workspace / "trace").stat().st_size > 1000
    assert not files_with(root, *needles)
    assert not files_with(workspace, *needles)
    assert not files_with(settings.workspaces, *needles)
    assert not [row for row in await stored(database) if TOKEN in row or BASIC in row]
    assert not [event for event in events if TOKEN in str(event) or BASIC in str(event)]
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    assert BASIC not in said.out + said.err
    accesses = of(events, "network_access")
    assert {(access.host, access.credential) for access in accesses if access.credential} == {(HOST, credential.name)}
    assert accesses[-1].credential == credential.name
    found = await client.call(
        client.credentials.GetCredential, credential_service_pb2.GetCredentialRequest(name=credential.name)
    )
    assert found.HasField("last_used_time")


def _sandbox(workspace):
    """All processes that work in a workspace."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if Path(f"/proc/{process.pid}/cwd").readlink() == workspace:
                found.append(process)
    return found


ATTACKS = {
    # What is done, and what it says: the status, or the end of its output.
    "its own header": ("curl -s -H 'Authorization: Basic bWluZQ==' https://$GIT/headers", "authorization: Basic ****"),
    "another Host": ("curl -s -o /dev/null -w %{http_code} -H 'Host: evil.example' https://$GIT/headers", "421"),
    "two Hosts": (
        "curl -s -o /dev/null -w %{http_code} -H 'Host: evil.example' -H 'host: evil.example' https://$GIT/", "421",
    ),
    "an absolute target": (
        "curl -s -o /dev/null -w %{http_code} --request-target https://evil.example/ https://$GIT/", "421",
    ),
    "TRACE": ("curl -s -o /dev/null -w %{http_code} -X TRACE https://$GIT/", "405"),
    "a line break": (
        "curl -s -o /dev/null -w %{http_code} -H $'X: a\\r\\nHost: evil.example' https://$GIT/headers", "400",
    ),
    "HTTP/2": ("curl -s --http2 https://$GIT/headers", "authorization: Basic ****"),
    "plain http": ("curl -s -o /dev/null -w %{http_code} http://$GIT/headers", "403"),
    "a redirect": ("curl -s -L -o /dev/null -w %{http_code} https://$GIT/redirect", "200"),
    "its address": (
        'curl -s -k -o /dev/null -w %{http_code} --noproxy none.example -H "Host: $GIT" https://127.0.0.1:$PORT/headers', "401",
    ),
    "another name for it": (
        'curl -s -k -o /dev/null -w %{http_code} -H "Host: $GIT" https://else.example.test:$PORT/headers', "401",
    ),
    "its name in the hello only": (
        "curl -s -k -o /dev/null -w %{http_code} --connect-to $GIT:else.example.test:$PORT https://$GIT/headers", "401",
    ),
    "another name in the hello": (
        "curl -s -k -o /dev/null -w %{http_code} --connect-to else.example.test:$PORT:$GIT https://else.example.test:$PORT/",
        "000",
    ),
    "compressed": ("curl -s --compressed https://$GIT/headers", "authorization: Basic ****"),
}  # fmt: skip


@bubblewrap
async def test_no_request_of_an_agent_leads_the_credential_elsewhere_or_back(client, host, server):
    place = f"{HOST}:{server.origin.port}"
    session = await session_with(client, await credential_for(client, place))
    lines = [f"export GIT={place} PORT={server.origin.port}"]
    for name, (command, _) in ATTACKS.items():
        lines.append(f"echo '=== {name}'; {command} 2>&1; echo")
    events = await run(client, session, bash("\n".join(lines)), timeout=170)
    [output] = outputs(events)
    assert TOKEN not in output
    assert BASIC not in output
    said = dict(part.split("\n", 1) for part in output.split("=== ")[1:])
    for name, (_, wanted) in ATTACKS.items():
        assert wanted in said[name], (name, said[name])
    # At the address, and under another name, whoever asks is nobody; nothing of it went to another server.
    assert server.elsewhere.requests
    assert not [request for request in server.elsewhere.requests if request.values("authorization")]
    assert TOKEN.encode() not in server.elsewhere.bytes
    for request in server.origin.requests:
        authorized = request.values("authorization") == [f"Basic {BASIC}"]
        assert not authorized or request.values("host") == [place], request


@bubblewrap
async def test_pip_and_npm_get_what_the_credential_opens(client, host, server):
    place = f"{HOST}:{server.origin.port}"
    session = await session_with(client, await credential_for(client, place))
    pip = (
        f"python3 -m pip install -q --no-deps --break-system-packages --target lib --index-url https://{place}/simple/"
        " simple-thing 2>&1; PYTHONPATH=lib python3 -c 'import simple_thing; print(simple_thing.WORD)'"
    )
    npm = f"npm view simple-thing version --registry https://{place}/npm/ 2>&1"
    wanted = {pip: "installed"}
    if shutil.which("npm", path="/usr/local/bin:/usr/bin"):
        wanted[npm] = "1.0.0"
    events = await run(client, session, "\n[[then]]\n".join([*map(bash, wanted), "[[text: done]]"]), timeout=170)
    said = outputs(events)
    assert [text.strip().splitlines()[-1] for text in said] == list(wanted.values()), said


@bubblewrap
async def test_a_session_without_the_credential_gets_nothing_of_it(client, host, server, edge):
    place = f"{HOST}:{server.origin.port}"
    await credential_for(client, place)
    options = session_pb2.SessionOptions(allowed_tools=["Bash"])
    session = (await client.create_session(session_pb2.Session(options=options))).name
    ask = bash(f"env | grep -c authorities.pem; curl -s -k -o /dev/null -w %{{http_code}} https://{place}/headers")
    events = await run(client, session, ask, timeout=120)
    assert outputs(events)[0].split() == ["0", "401"]
    assert not [request for request in server.origin.requests if request.values("authorization")]
    assert not any(access.credential for access in of(events, "network_access"))


@bubblewrap
async def test_one_that_was_taken_back_ends_with_the_next_request_and_fails_the_next_start(client, host, server, edge):
    place = f"{HOST}:{server.origin.port}"
    credential = await credential_for(client, place, shared=True)
    async with edge.client("bob") as bob:
        session = await session_with(bob, credential)
        ask = bash(f"curl -s -o /dev/null -w %{{http_code}} https://{place}/headers")
        assert outputs(await run(bob, session, ask, timeout=120)) == ["200"]
        credential.shared = False
        request = credential_service_pb2.UpdateCredentialRequest(credential=credential)
        request.update_mask.paths.append("shared")
        await client.call(client.credentials.UpdateCredential, request)
        # The same process: now it is any host, whose certificate is not of an authority that it trusts.
        ask = bash(f"curl -s -k -o /dev/null -w %{{http_code}} https://{place}/headers")
        assert outputs(await run(bob, session, ask, timeout=120)) == ["401"]
        other = await session_with(client, credential)
        assert outputs(await run(client, other, ask, timeout=120)) == ["200"]
        # Another process does not start.
        changed = session_pb2.Session(name=session, options=session_pb2.SessionOptions(max_turns=5))
        again = session_service_pb2.UpdateSessionRequest(session=changed)
        again.update_mask.paths.append("options.max_turns")
        with pytest.raises(Exception, match="there is no credential"):
            await bob.call(bob.sessions.UpdateSession, again)
