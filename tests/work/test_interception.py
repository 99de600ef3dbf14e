"""Connections that the egress proxy takes over: what reaches the server, and what comes back."""

import asyncio
import contextlib
import hashlib
import ssl

import pytest

from agentrpc.domain.network import NetworkMode, NetworkPolicy
from agentrpc.errors import StoreUnavailable
from agentrpc.gateway.interception import Interceptor, ServerContexts
from agentrpc.services.session_credentials import Injection
from tests.origins import Client, Origin, new_authority, proxy_for, server_context, trusting

HOST = "git.example.test"
TOKEN = "ghp_TheRealTokenWhichNoAgentHas"


class Held:
    """What the store says of a session's credentials: hosts and their injection."""

    def __init__(self, *hosts):
        self.hosts = hosts
        self.token = TOKEN
        self.away = False

    async def covers(self, host, port=None):
        if self.away:
            raise StoreUnavailable
        return any(host == name and port in {None, at} for name, at in self.hosts)

    async def take(self, host, port):
        if not await self.covers(host, port):
            return None
        value = f"Bearer {self.token}"
        return Injection("credentials/x", ("Authorization", value), [value.encode(), self.token.encode()])


@pytest.fixture(scope="module")
def ours():
    return new_authority()


@pytest.fixture(scope="module")
def theirs():
    return new_authority()


class Setting:
    """An origin behind a proxy, and how to get there."""

    def __init__(self, origin, held, port, reported, proxy, ours):
        self.origin, self.held, self.port, self.reported, self.proxy = origin, held, port, reported, proxy
        self.place = f"{HOST}:{origin.port}"
        self.trust = trusting(ours)

    def client(self, context=None, **more):
        return Client(self.port, self.place, context or self.trust, **more)

    def get(self, path="/", *headers):
        lines = [f"GET {path} HTTP/1.1", f"Host: {self.place}", *headers]
        return "\r\n".join([*lines, "", ""])


@pytest.fixture
def setting(ours, theirs):
    """An origin whose certificate is for `name`, with a proxy that adds a credential there."""

    @contextlib.asynccontextmanager
    async def make(answer=None, raw=None, name=HOST, signed_by=None, policy=None, credential=True):
        async with Origin(server_context(signed_by or theirs, name), answer, raw) as origin:
            held = Held(*([(HOST, origin.port)] if credential else []))
            upstream = trusting(theirs)
            intercept = Interceptor(held, ServerContexts(ours), upstream)
            more = {} if policy is None else {"policy": policy}
            async with proxy_for(intercept, **more) as (port, reported, proxy):
                yield Setting(origin, held, port, reported, proxy, ours)

    return make


def answer(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


# ---- What is added, and where ----


async def test_the_credential_takes_the_place_of_what_the_agent_sends(setting):
    async with setting() as at, at.client() as client:
        assert dict(item[0] for item in client.certificate["subject"])["commonName"] == "AgentRPC"
        sent = ("authorization: Bearer mine", "Authorization: Basic bWluZQ==", "X-Other: kept", "Accept-Encoding: gzip")
        status, _, body = await client.ask(at.get("/a?b=c", *sent))
        assert (status, body) == (200, b"ok")
        [request] = at.origin.requests
        assert request.values("authorization") == [f"Bearer {TOKEN}"]
        assert request.values("host") == [at.place]
        assert request.values("x-other") == ["kept"]
        assert request.values("accept-encoding") == ["identity"]
        assert request.target == "/a?b=c"
        assert at.reported[-1].credential == "credentials/x"
        assert at.reported[-1].host == HOST
        await client.__aexit__()
        async with asyncio.timeout(20):
            while not at.proxy.totals()[0].bytes_received:  # noqa: ASYNC110 - the end of a connection rings no bell
                await asyncio.sleep(0.01)
        assert at.proxy.totals()[0].credential == "credentials/x"


async def test_a_header_that_some_servers_take_for_the_same_does_not_pass(setting):
    async with setting() as at:
        at.held.take = lambda *_: _injection("X-Api-Key", "the-real-key-0000")
        async with at.client() as client:
            await client.ask(at.get("/", "X_Api_Key: mine", "x-api_key: mine", "X-API-KEY: mine", "X-Api-Key2: other"))
            [request] = at.origin.requests
            assert [pair for pair in request.headers if pair[0].replace("_", "-") == "x-api-key"] == [
                ("x-api-key", "the-real-key-0000")
            ]
            assert request.values("x-api-key2") == ["other"]


async def _injection(name, value):
    return Injection("credentials/x", (name, value), [value.encode()])


async def test_a_new_value_counts_from_the_next_request_on_and_a_deleted_one_ends_it(setting, theirs):
    async with setting() as at:
        async with at.client() as client:
            await client.ask(at.get())
            at.held.token = "another-token-of-today"
            await client.ask(at.get())
            assert [request.values("authorization") for request in at.origin.requests] == [
                [f"Bearer {TOKEN}"],
                ["Bearer another-token-of-today"],
            ]
            assert at.origin.connections == 1
            at.held.hosts = ()
            status, headers, body = await client.ask(at.get())
            assert status == 403
            assert b"no credential" in body
            assert headers[b"connection"] == b"close"
            assert len(at.origin.requests) == 2
            assert await client.rest() == b""
        # Now it is a tunnel like any other.
        async with at.client(trusting(theirs)) as client:
            await client.ask(at.get("/", "Authorization: mine"))
        assert at.origin.requests[-1].values("authorization") == ["mine"]


async def test_other_hosts_and_ports_are_not_looked_into(setting, theirs):
    async with setting() as at:
        at.held.hosts = ((HOST, at.origin.port + 1), ("example.test", at.origin.port))
        async with at.client(trusting(theirs)) as client:
            await client.ask(at.get("/", "Authorization: mine"))
        with pytest.raises(ssl.SSLCertVerificationError):
            async with at.client():
                pass
        assert [request.values("authorization") for request in at.origin.requests] == [["mine"]]
        assert at.reported[-1].credential == ""


async def test_when_nobody_can_tell_nothing_passes(setting):
    async with setting() as at, at.client() as client:
        at.held.away = True
        assert (await client.ask(at.get()))[0] == 503
        with pytest.raises((OSError, AssertionError)):
            async with at.client():
                pass
        assert at.origin.requests == []


# ---- Requests that are meant for somebody else, or to be misread ----


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET / HTTP/1.1", "Host: evil.example"], 421),
        (["GET / HTTP/1.1", "Host: {host}.evil.example:{port}"], 421),
        (["GET / HTTP/1.1", "Host: {host}"], 421),
        (["GET / HTTP/1.1", "Host: {host}.:{port}"], 421),
        (["GET / HTTP/1.1", "Host: x@{host}:{port}"], 421),
        (["GET / HTTP/1.1", "Host: {host}:{port}, evil.example"], 421),
        (["GET / HTTP/1.1", "Host: {host}:{port}", "Host: evil.example"], 400),
        (["GET / HTTP/1.1"], 400),
        (["GET https://evil.example/ HTTP/1.1", "Host: {host}:{port}"], 421),
        (["GET https://{host}:{port}/ HTTP/1.1", "Host: {host}:{port}"], 421),
        (["GET evil.example:443 HTTP/1.1", "Host: {host}:{port}"], 421),
        (["CONNECT evil.example:443 HTTP/1.1", "Host: {host}:{port}"], 405),
        (["TRACE / HTTP/1.1", "Host: {host}:{port}"], 405),
        (["TRACK / HTTP/1.1", "Host: {host}:{port}"], 405),
        (["PRI * HTTP/2.0", "", "SM"], 405),
        (["GET / HTTP/2.0", "Host: {host}:{port}"], 505),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Content-Length: 5", "Content-Length: 6"], 400),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Content-Length: +5"], 400),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Transfer-Encoding: chunked, identity"], 501),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Transfer-Encoding: xchunked"], 501),
        (["POST / HTTP/1.1", "Host: {host}:{port}", "Transfer-Encoding : chunked"], 400),
        (["POST / HTTP/1.0", "Host: {host}:{port}", "Transfer-Encoding: chunked"], 400),
        (["GET / HTTP/1.1", "Host: {host}:{port}", "X: a\rAuthorization: b"], 400),
        (["GET / HTTP/1.1", "Host: {host}:{port}", "X: a\0b"], 400),
        (["GET / HTTP/1.1", "Host: {host}:{port}", " X: a"], 421),
        (["GET /a b HTTP/1.1", "Host: {host}:{port}"], 400),
        (["GET / HTTP/1.1", "Host: {host}:{port}", "X: " + "a" * 200_000], 431),
    ],
)  # fmt: skip
async def test_what_is_for_another_host_or_misleading_is_refused(setting, lines, status):
    async with setting() as at, at.client() as client:
        text = "\r\n".join(line.replace("{host}", HOST).replace("{port}", str(at.origin.port)) for line in lines)
        found, headers, body = await client.ask(f"{text}\r\n\r\n")
        told = f"{found} {body!r}"
        if status == 405 and lines[0].startswith("PRI"):
            assert found in {400, 405, 505}, told
        else:
            assert found == status, told
        assert TOKEN.encode() not in body
        assert headers[b"connection"] == b"close"
        assert await client.rest() == b""
        assert at.origin.requests == []
        assert at.origin.bytes == b""


async def test_the_end_of_a_line_smuggles_nothing(setting):
    """A body that looks like another request is a body, and lines that end oddly are written anew or refused."""
    inner = "GET /inner HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    async with setting() as at, at.client() as client:
        head = f"POST /outer HTTP/1.1\r\nHost: {at.place}\r\n"
        assert (await client.ask(f"{head}Content-Length: {len(inner)}\r\n\r\n{inner}"))[0] == 200
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(inner):x};x=y\r\n{inner}\r\n0\r\nX-Trailer: a\r\n\r\n"
        assert (await client.ask(chunked))[0] == 200
        assert [(request.target, request.body) for request in at.origin.requests] == [("/outer", inner.encode())] * 2
        assert b"evil.example" in at.origin.bytes
        assert b"X-Trailer" not in at.origin.bytes
        assert b"x=y" not in at.origin.bytes
        bad = await client.ask(f"{head}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n")
        assert bad[0] == 400
    assert len(at.origin.requests) == 2


async def test_requests_that_come_at_once_are_answered_in_their_order(setting):
    async with setting(lambda request, _: answer(request.target.encode())) as at, at.client() as client:
        await client.say(at.get("/1") + at.get("/2") + at.get("/3"))
        for number in b"123":
            await client.until(b"\r\n\r\n")
            assert await client.exactly(2) == bytes([47, number])
        assert all(request.values("authorization") == [f"Bearer {TOKEN}"] for request in at.origin.requests)


async def test_another_name_in_the_hello_is_refused(setting):
    async with setting() as at:
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            async with at.client(server_hostname="evil.example"):
                pass
        assert at.origin.requests == []


async def test_only_http_1_1_is_offered(setting, ours):
    context = trusting(ours)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with setting() as at, at.client(context) as client:
        assert client.tls._tls.selected_alpn_protocol() == "http/1.1"
        await client.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert TOKEN.encode() not in await client.rest()
        assert at.origin.bytes == b""


async def test_what_is_not_tls_gets_nothing(setting):
    async with setting() as at, Client(at.port, at.place, None) as client:
        await client.stream.write(at.get().encode())
        with contextlib.suppress(OSError):
            while await client.stream.read():
                pass
        assert at.origin.requests == []


# ---- Servers that are not who they should be ----


@pytest.mark.parametrize("other", ["name", "authority"])
async def test_a_server_without_a_good_certificate_hears_nothing(setting, ours, theirs, other):
    more = {"name": "other.example"} if other == "name" else {"signed_by": new_authority()}
    async with setting(**more) as at, at.client() as client:
        status, _, body = await client.ask(at.get())
        assert status == 502
        assert b"certificate" in body
        assert at.origin.requests == []


async def test_a_private_address_is_refused_as_without_a_credential(setting):
    async with setting(policy=NetworkPolicy(NetworkMode.PUBLIC)) as at:
        with pytest.raises(AssertionError, match=r"403 .*127\.0\.0\.1 is not public"):
            async with at.client():
                pass
        assert at.origin.connections == 0


async def test_plain_http_is_refused_to_named_hosts_alone(setting):
    async with setting() as at:
        for host, status in ((HOST, b"403"), ("other.example", b"502")):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            writer.write(f"GET http://{host}:1/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            text = await reader.read()
            writer.close()
            assert text.split()[1] == status
        at.held.away = True
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(f"GET http://{HOST}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.read()).split()[1] == b"503"
        writer.close()


# ---- Answers ----


async def test_redirects_are_the_agents_to_follow(setting):
    to_another = answer(b"", "Location: https://evil.example/", status="302 Found")
    async with setting(lambda *_: to_another) as at, at.client() as client:
        status, headers, _ = await client.ask(at.get())
        assert (status, headers[b"location"]) == (302, b"https://evil.example/")
        assert at.origin.connections == 1


async def test_what_a_server_sends_back_of_the_secret_is_masked(setting):
    echo = f'{{"Authorization": "Bearer {TOKEN}", "again": "{TOKEN}{TOKEN}"}}'.encode()

    def answers(request, _):
        if request.target == "/chunked":
            # In pieces of one byte.
            chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in echo) + b"0\r\n\r\n"
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        return answer(echo, f"X-Echo: {TOKEN}", f"Set-Cookie: a={TOKEN}", status=f"200 {TOKEN}")

    async with setting(answers) as at, at.client() as client:
        for path in ("/", "/chunked"):
            _, headers, body = await client.ask(at.get(path))
            assert TOKEN.encode() not in body + b"".join(headers.values())
            assert len(body) == len(echo)
            assert body.startswith(b'{"Authorization": "***')
        await client.say(at.get("/"))
        assert TOKEN.encode() not in await client.until(b"\r\n\r\n")


async def test_lines_of_a_stream_come_at_once(setting):
    going = asyncio.Event()

    async def stream(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for text in (b"data: 1\n\n", b"data: 2\r\n\r\n"):
            writer.write(b"%x\r\n%s\r\n" % (len(text), text))
            await writer.drain()
            await going.wait()
            going.clear()

    async with setting(stream) as at, at.client() as client:
        await client.say(at.get())
        await client.until(b"data: 1\n\n")
        going.set()
        await client.until(b"data: 2\r\n\r\n")
        going.set()
        # It ends without having ended its answer, and so does the agent's.
        with pytest.raises(OSError):  # noqa: PT011 - by what the kernel says
            await client.rest()


@pytest.mark.parametrize("chunked", [False, True])
async def test_much_passes_both_ways_as_it_is(setting, chunked):
    blob = hashlib.shake_128(b"blob").digest(3_000_000)
    async with setting(lambda request, _: answer(request.body)) as at, at.client() as client:
        head = f"PUT /blob HTTP/1.1\r\nHost: {at.place}\r\n"
        if chunked:
            pieces = [blob[place : place + 99_999] for place in range(0, len(blob), 99_999)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            head += "Transfer-Encoding: chunked\r\n\r\n"
        else:
            body = blob
            head += f"Content-Length: {len(blob)}\r\n\r\n"
        for _ in range(2):
            sending = asyncio.create_task(client.say(head.encode() + body))
            await client.until(b"\r\n\r\n")
            assert await client.exactly(len(blob)) == blob
            await sending
        assert [request.body == blob for request in at.origin.requests] == [True, True]
        assert at.origin.connections == 1


async def test_a_server_is_not_read_faster_than_the_agent_takes(setting):
    sent = 0

    async def flood(_, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        writer.transport.set_write_buffer_limits(65536)
        # Until the agent goes away.
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with setting(flood) as at, at.client() as client:
        await client.say(at.get())
        await client.until(b"\r\n\r\n")
        before = -1
        async with asyncio.timeout(60):
            while sent != before:
                before = sent
                await asyncio.sleep(0.5)
        assert sent < 100_000_000
    async with asyncio.timeout(30):
        await at.origin.closed.wait()


async def test_an_agent_that_waits_for_100_continue_gets_it(setting):
    async def raw(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(answer(body))
        await writer.drain()
        await reader.read()

    async with setting(raw=raw) as at, at.client() as client:
        await client.say(f"POST / HTTP/1.1\r\nHost: {at.place}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        await client.say("hello")
        assert (await client.until(b"hello")).startswith(b"HTTP/1.1 200")


async def test_an_answer_before_the_end_of_a_request_arrives(setting):
    async def raw(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"too much", status="413 Content Too Large"))
        await writer.drain()

    async with setting(raw=raw) as at, at.client() as client:
        await client.say(f"POST / HTTP/1.1\r\nHost: {at.place}\r\nContent-Length: 1000000\r\n\r\nbegun")
        assert (await client.until(b"too much")).startswith(b"HTTP/1.1 413")
        assert await client.rest() == b""


async def test_another_protocol_passes_and_nothing_is_added_to_it(setting):
    async def raw(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        while data := await reader.read(65536):
            writer.write(data + (head if data == b"echo" else b""))
            await writer.drain()

    async with setting(raw=raw) as at, at.client() as client:
        await client.say(at.get("/ws", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k"))
        assert b"101" in await client.until(b"\r\n\r\nhi")
        request = at.get("/inner")
        await client.say(request)
        assert await client.exactly(len(request)) == request.encode()
        await client.say("echo")
        head = await client.until(b"\r\n\r\n")
        assert b"Sec-WebSocket-Key: k" in head
        assert TOKEN.encode() not in head
        assert b"Bearer *" not in head
        assert b"Authorization: ****" in head
    async with asyncio.timeout(30):
        await at.origin.closed.wait()


async def test_other_upgrades_are_not_asked_for(setting):
    async with setting() as at, at.client() as client:
        await client.ask(at.get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAAB"))
        [request] = at.origin.requests
        assert not {"upgrade", "http2-settings", "connection"} & {name for name, _ in request.headers}


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: a\r\n" + b"Y: b\r\n" * 20_000 + b"\r\n",
    ],
)
async def test_what_is_no_answer_is_not_passed_on(setting, bad):
    async with setting(lambda *_: bad) as at, at.client() as client:
        status, _, body = await client.ask(at.get())
        assert (status, b"has not answered in HTTP/1.1" in body) == (502, True)


async def test_a_connection_that_the_server_ends_ends_for_the_agent(setting):
    async def once(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"ok"))
        await writer.drain()

    async with setting(raw=once) as at, at.client() as client:
        assert (await client.ask(at.get()))[0] == 200
        assert await client.rest() == b""


async def test_an_agent_that_goes_ends_the_servers_connection(setting):
    asked = asyncio.Event()

    async def never(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.read() == b""

    async with setting(raw=never) as at:
        async with at.client() as client:
            await client.say(at.get())
            await asked.wait()
        async with asyncio.timeout(30):
            await at.origin.closed.wait()
