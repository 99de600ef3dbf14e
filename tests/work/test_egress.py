"""What passes the egress proxy, where to, and what is said of it."""

import asyncio
import socket
import time

import pytest

from agentrpc.gateway import egress_dial
from agentrpc.gateway.egress import Access, EgressShare
from agentrpc.gateway.egress_dial import Lookups
from agentrpc.gateway.tunnel import Pace
from tests.egress import BOTH_LOOPS, Names, echo, egress, policy, saying, server, until

LOOPS = BOTH_LOOPS

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_a_tunnel_moves_bytes_both_ways_and_counts_them():
    async with server(echo) as port, egress() as door:
        reader, writer = await door.tunnel("127.0.0.1", port)
        data = bytes(range(256)) * 20_000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        # The other direction goes on after the end of this one.
        writer.write_eof()
        assert await reader.read() == b"|%d" % len(data)
        writer.close()
        again, second = await door.tunnel("127.0.0.1", port)
        second.close()
        await again.read()
        totals = [Access("127.0.0.1", port, True, "private 127.0.0.0/8", 2, len(data), len(data) + 8 + 2)]
        await until(lambda: door.proxy.totals() == totals)
        assert door.reports == [Access("127.0.0.1", port, True, "private 127.0.0.0/8", 1, 0, 0)]


async def test_what_a_client_sends_with_its_connect_is_not_lost():
    async with server(echo) as port, egress() as door:
        for length in (1, 70_000):
            data = b"x" * length
            head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            answer = await door.ask(head + data, end=True)
            assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n" + data + b"|%d" % length


async def test_a_side_that_breaks_off_breaks_the_other_off():
    async def reset(reader, writer):
        await reader.readexactly(1)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with server(reset) as port, egress() as door:
        reader, writer = await door.tunnel("127.0.0.1", port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_reader_that_does_not_read_stops_the_sender():
    sent = 0
    stuck = asyncio.Event()

    async def flood(_reader, writer):
        nonlocal sent
        while True:
            writer.write(bytes(65536))
            sent += 65536
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except TimeoutError:
                stuck.set()
                await writer.drain()

    async with server(flood) as port, egress() as door:
        reader, writer = await door.tunnel("127.0.0.1", port)
        await asyncio.wait_for(stuck.wait(), 60)
        # What the buffers of the kernel take, and nothing of it in this process but one piece.
        so_far = sent
        assert so_far < 64 * 1024 * 1024
        await reader.readexactly(2 * so_far)
        writer.close()


async def test_tunnels_of_a_session_move_so_much_in_one_turn_of_the_loop():
    pace = Pace()
    while not pace.spent:
        pace.spend(1)
    await asyncio.sleep(0)
    assert not pace.spent
    pace.spend(2**40)
    assert pace.spent
    await asyncio.sleep(0)
    assert not pace.spent


async def test_plain_http_keeps_the_clients_connection_for_requests_to_any_host():
    heads = []
    async with server(saying(OK, heads)) as one, server(saying(OK, heads)) as two:
        names = Names({"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"]})
        async with egress(names=names) as door:
            reader, writer = await door.connect()
            for host, port in (("one.test", one), ("two.test", two), ("ONE.test", one)):
                writer.write(
                    f"GET http://{host}:{port}/a?b=c HTTP/1.1\r\nHost: other.test\r\nUser-Agent: me\r\n"
                    "Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\n"
                    "Upgrade: h2c\r\nProxy-Connection: keep-alive\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n".encode()
                )
                assert await reader.readuntil(b"ok") == OK
            writer.close()
    assert heads == [
        f"GET /a?b=c HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: me\r\nCookie: a=b\r\nCookie: c=d\r\n"
        "Connection: close\r\n\r\n".encode()
        for host, port in (("one.test", one), ("two.test", two), ("one.test", one))
    ]
    assert names.asked == ["one.test", "two.test", "one.test"]


@pytest.mark.parametrize(
    ("url", "path"),
    [("", "/"), ("/", "/"), ("?x", "/?x"), ("/%2e%2e/a//b", "/%2e%2e/a//b"), ("/a?http://b/", "/a?http://b/")],
)
async def test_the_path_is_passed_on_as_it_is(url, path):
    heads = []
    async with server(saying(OK, heads)) as port, egress() as door:
        await door.ask(f"GET HTTP://127.0.0.1:{port}{url} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert heads[0].startswith(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())


async def test_bodies_of_requests_with_a_length_and_in_chunks():
    async def handle(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        if b"chunked" in head:
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        else:
            body = await reader.readexactly(300_000)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for begin in range(0, len(body), 100_000):
            piece = body[begin : begin + 100_000]
            writer.write(b"%x;ext=1\r\n" % len(piece) + piece + b"\r\n")
        writer.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    data = bytes(range(250)) * 1200
    chunks = b"".join(b"%X\r\n%s\r\n" % (1000, data[begin : begin + 4096]) for begin in range(0))
    for begin in range(0, len(data), 4096):
        piece = data[begin : begin + 4096]
        chunks += b"%X\r\n%s\r\n" % (len(piece), piece)
    async with server(handle) as port, egress() as door:
        url = f"http://127.0.0.1:{port}/"
        answers = [
            await door.ask(f"POST {url} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n".encode() + body)
            for framing, body in (
                ("Content-Length: 300000", data),
                ("Transfer-Encoding: chunked", chunks + b"0\r\nX-Trailer: 1\r\n\r\n"),
            )
        ]
        # Who speaks HTTP/1.0 gets no chunks, and the end of the connection as the end.
        answers.append(await door.ask(f"POST {url} HTTP/1.0\r\nContent-Length: 300000\r\n\r\n".encode() + data))
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            pieces, rest = b"", body
            while True:
                size, _, rest = rest.partition(b"\r\n")
                if not int(size, 16):
                    break
                pieces, rest = pieces + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            body = pieces
        assert body == data
    assert b"chunked" not in answers[2].partition(b"\r\n\r\n")[0].lower()


async def test_lines_of_a_body_are_no_lines_of_a_head():
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(200_000)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n" + b"X: y\r\n" * 150 + b"\r\n" + body)

    async with server(handle) as port, egress() as door:
        head = (
            f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n"
        )
        answer = await door.ask(head.encode() + b"\r\n" * 100_000)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n" + b"\r\n" * 100_000)


async def test_a_client_that_waits_for_100_gets_it_from_the_server():
    async def handle(reader, writer):
        assert b"Expect: 100-continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(4) == b"body"
        writer.write(OK)

    async with server(handle) as port, egress() as door:
        reader, writer = await door.connect()
        head = f"PUT http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"body")
        assert await reader.readuntil(b"ok") == OK
        writer.close()


async def test_a_server_may_answer_before_it_has_the_whole_request():
    async with server(saying(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")) as port, egress() as door:
        head = f"PUT http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        answer = await door.ask(head.encode() + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413 Too Large\r\n")
    assert answer.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize(
    ("method", "answer", "passed"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nETag: x\r\n\r\n", b"HTTP/1.1 204 No Content\r\nETag: x\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 Fine\r\nConnection: close, a\r\nA: 1\r\nKeep-Alive: 5\r\nB: 1\r\n\r\nto the end",
         b"HTTP/1.1 200 Fine\r\nB: 1\r\nTransfer-Encoding: chunked\r\n\r\na\r\nto the end\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nold", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nold\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
         b"HTTP/1.1 103 \r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)  # fmt: skip
async def test_answers_with_and_without_a_body(method, answer, passed):
    async with server(saying(answer)) as port, egress() as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(f"{method} http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            got = await reader.readexactly(len(passed))
            assert got.lower() == passed.lower()
        writer.close()


async def test_an_answer_that_breaks_off_does_not_look_whole():
    async with server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")) as port, egress() as door:
        with pytest.raises(ConnectionResetError):
            await door.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())


async def test_socks_by_name_and_address():
    names = Names({"host.test": ["127.0.0.1"]})
    async with server(echo) as port, egress(names=names) as door:
        for place in (b"\1\x7f\0\0\1", b"\3\x09host.test", b"\3\x09127.0.0.1"):
            greeting = b"\5\2\0\2" + b"\5\1\0" + place + port.to_bytes(2)
            answer = await door.ask(greeting + b"hello", end=True)
            assert answer == b"\5\0" + b"\5\0\0\1" + bytes(6) + b"hello|5"
    assert [access.host for access in door.reports] == ["127.0.0.1", "host.test"]


async def test_socks_to_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    probe.close()
    async with server(echo, "::1") as port, egress() as door:
        answer = await door.ask(b"\5\1\0\5\1\0\4" + bytes(15) + b"\1" + port.to_bytes(2) + b"a", end=True)
        assert answer.endswith(b"a|1")
        reader, writer = await door.tunnel("[::1]", port)
        writer.write_eof()
        assert await reader.read() == b"|0"
        writer.close()


async def test_a_session_reaches_one_of_two_hosts_and_both_are_told():
    names = Names({"good.test": ["127.0.0.1"], "bad.test": ["127.0.0.1"]})
    async with server(saying(OK)) as port, egress(policy("LISTED", ["good.test"]), names) as door:
        for host, status in (("good.test", 200), ("bad.test", 403), ("good.test", 200), ("bad.test", 403)):
            request = f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            assert (await door.ask(request.encode())).startswith(b"HTTP/1.1 %d " % status)
    assert [(one.host, one.allowed, one.rule) for one in door.reports] == [
        ("good.test", True, "allowed good.test"),
        ("bad.test", False, "not listed"),
    ]
    assert [(one.host, one.connections) for one in door.proxy.totals()] == [("good.test", 2), ("bad.test", 2)]
    assert names.asked == ["good.test"] * 2


async def test_the_text_of_a_refusal_names_the_rule_and_what_to_do():
    async with egress(policy(denied=["*.evil.test"])) as door:
        answer = (await door.ask(b"CONNECT a.evil.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")).decode()
    head, _, text = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 403 Denied By The Session's Network Rules (denied *.evil.test)\r\n")
    assert "text/plain" in head
    assert "a.evil.test:443: denied *.evil.test." in text
    assert "say so" in text


@pytest.mark.parametrize("mode", ["PUBLIC", "LISTED"])
async def test_a_name_that_resolves_to_somewhere_private_leads_nowhere(mode):
    accepted = []

    async def handle(_reader, writer):
        accepted.append(1)

    async with server(handle) as port:
        names = Names({"rebind.test": ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "10.0.0.1"]})
        async with egress(policy(mode, ["rebind.test"], private=[]), names) as door:
            answer = await door.ask(f"CONNECT rebind.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"127.0.0.1 is not public" in answer
            assert await door.ask(b"\5\1\0\5\1\0\3\x0brebind.test" + port.to_bytes(2)) == b"\5\0\5\2\0\1" + bytes(6)
    assert not accepted


async def test_of_several_addresses_only_those_that_are_allowed_are_tried():
    async with server(echo) as port:
        # 127.0.0.2 is in the range, and there nobody listens; 10.255.255.1 would never answer.
        names = Names({"mixed.test": ["10.255.255.1", "127.0.0.2", "127.0.0.1"]})
        async with egress(names=names) as door:
            reader, writer = await door.tunnel("mixed.test", port)
            writer.write_eof()
            assert await reader.read() == b"|0"
            writer.close()
    assert names.asked == ["mixed.test"]


async def test_a_connection_goes_to_what_was_judged_whatever_the_name_says_later():
    class Changing(Names):
        async def __call__(self, host, port):
            found = await super().__call__(host, port)
            self.addresses[host] = ["127.0.0.1"]
            return found

    async with server(echo) as port:
        names = Changing({"change.test": ["127.0.0.2"]})
        async with egress(policy(private=["127.0.0.2/32"]), names) as door:
            for status in (b"502", b"403"):
                answer = await door.ask(f"CONNECT change.test:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                assert answer.startswith(b"HTTP/1.1 %s " % status)
    assert names.asked == ["change.test"] * 2


async def test_the_workers_own_public_addresses_and_the_proxy_itself_are_out_of_reach(monkeypatch):
    monkeypatch.setattr(egress_dial, "_own_addresses", lambda _: frozenset({"8.8.4.4"}))
    async with egress() as door:
        answer = await door.ask(b"CONNECT 8.8.4.4:443 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"403 " in answer
        assert b"8.8.4.4 is the worker's own" in answer
        answer = await door.ask(f"CONNECT 127.0.0.1:{door.port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b"is this proxy" in answer


def test_the_addresses_of_this_machine_are_known():
    assert "127.0.0.1" in egress_dial._own_addresses(int(time.monotonic()))


async def test_slow_names_of_one_session_keep_no_other_from_its_hosts():
    slow, quick = Names(held=asyncio.Event()), Names({"quick.test": ["127.0.0.1"]})

    async def resolve(host, port):
        return await (quick if host == "quick.test" else slow)(host, port)

    share = EgressShare(2, Lookups(resolve))
    async with server(echo) as port, egress(share=share) as crowd, egress(share=share) as other:
        waiting = [
            asyncio.create_task(crowd.ask(f"CONNECT slow{number}.test:1 HTTP/1.1\r\nHost: a\r\n\r\n".encode()))
            for number in range(60)
        ]
        await until(lambda: len(slow.asked) >= egress_dial._LOOKUPS_OF_A_SESSION)
        _, writer = await other.tunnel("quick.test", port)
        writer.close()
        assert len(slow.asked) == egress_dial._LOOKUPS_OF_A_SESSION
        slow.held.set()
        assert all(b" 502 Unknown Host" in answer for answer in await asyncio.gather(*waiting))


async def test_a_relay_may_take_a_tunnel_over():
    async def relay(client, route):
        await client.write(b"taken:" + client.take())
        route.tally.sent += 3

    class Interceptor:
        async def relay(self, host, _):
            return relay if host == "named.test" else None

        async def check_plain(self, host):
            assert host

    names = Names({"named.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    async with server(echo) as port, egress(names=names, intercept=Interceptor()) as door:
        for host, answer in (("named.test", b"taken:abc"), ("other.test", b"abc|3")):
            request = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: a\r\n\r\nabc"
            assert (await door.ask(request.encode(), end=True)).endswith(b"\r\n\r\n" + answer)
        assert [access.bytes_sent for access in door.proxy.totals()] == [3, 3]


async def test_a_listener_may_be_a_unix_socket(tmp_path):
    from agentrpc.gateway.egress import EgressProxy

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "egress"))
    listener.listen()
    proxy = EgressProxy(policy(), report=lambda _: None)
    await proxy.serve(listener)
    async with server(echo) as port:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "egress")
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: a\r\n\r\nhello".encode())
        writer.write_eof()
        assert (await reader.read()).endswith(b"hello|5")
        writer.close()
    await proxy.close()


async def test_closing_ends_everything():
    async with server(echo) as port:
        async with egress() as door:
            streams = [await door.tunnel("127.0.0.1", port) for _ in range(5)]
            streams.append(await door.connect())
        for reader, writer in streams:
            assert await reader.read() == b""
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await door.connect()
