"""What an agent may throw at its way out: each costs little, has a clear answer, and keeps nobody else from anything."""

import asyncio
import contextlib
import random

import pytest

from agentrpc.domain.network import Verdict
from agentrpc.gateway import egress, egress_dial
from agentrpc.gateway.egress import EgressShare, Waits
from agentrpc.gateway.egress_dial import Lookups
from tests.egress import WORKERS_LOOP, Names, descriptors, echo, policy, saying, server, until
from tests.egress import egress as proxy

LOOPS = WORKERS_LOOP

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(answer):
    return answer.split(b" ", 2)[1] if answer.startswith(b"HTTP/1.1 ") else answer[:20]


async def works(door, port):
    """Whether the proxy still does what it is for."""
    answer = await door.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert answer.endswith(b"\r\n\r\nok"), answer


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b""),
        (b"\r\n\r\n", b"400"),
        (b"\0\0\0\0", b"400"),
        (b"hello\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/2.0\r\nHost: a\r\n\r\n", b"505"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/\x80 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/#x HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET https://127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http:127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http:/127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http:///127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http://a@127.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1\\@a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"CONNECT http://127.0.0.1:80/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), b"400"),
        (b"\4\1\0\x50\x7f\0\0\1\0", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n", b"431"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 170_000 + b"\r\n", b"431"),
        (b"GET http://127.0.0.1/" + b"x" * 1_000_000, b"431"),
        (b"x" * 1_000_000, b"431"),
    ],
)  # fmt: skip
async def test_garbage(data, answer):
    async with server(saying(OK)) as port, proxy() as door:
        got = await asyncio.wait_for(door.ask(data, end=True), 60)
        assert status(got) == answer
        assert bool(got.partition(b"\r\n\r\n")[2]) == bool(answer)
        await works(door, port)
        assert [access for access in door.reports if access.port != port] == []


@pytest.mark.parametrize(
    "authority",
    ["localhost:80", "LocalHost:80", "a.localhost:80", "0x7f.1:80", "0x7f000001:80", "2130706433:80", "127.1:80", "0177.0.0.1:80",
     "017700000001:80", "127.0.0.1.:80", "localhost.:80", "[::ffff:127.0.0.1]:80", "[::ffff:7f00:1]:80", "[::1%lo]:80",
     "[::1%25lo]:80", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:080", "127.0.0.1:-1", "127.0.0.1:80:80", "[127.0.0.1]:80",
     ":80", "a..b:80", "-a.b:80", "a%00.test:80", "%31.0.0.1:80", "127.0.0.1%2f:80", "a_%.test:80", "*.test:80", "a,b:80",
     "a;b:80", "\u0661:80", "\uff11:80", "b\u00fccher.test:80", "a" * 64 + ".test:80", "a." * 130 + "test:80"],
)  # fmt: skip
async def test_hosts_that_are_not_written_as_what_they_are_are_not_looked_up(authority):
    names = Names()
    raw = authority.encode()
    host = raw.rpartition(b":")[0].strip(b"[]")
    async with proxy(names=names) as door:
        for request in (b"CONNECT " + raw, b"GET http://" + raw + b"/"):
            assert status(await door.ask(request + b" HTTP/1.1\r\nHost: a\r\n\r\n", end=True)) == b"400"
        if (
            len(host) < 256
            and not authority.startswith("[127")
            and authority.rpartition(":")[2] == "80"
            and "80:80" not in authority
        ):
            answer = await door.ask(b"\5\1\0\5\1\0\3" + bytes([len(host)]) + host + b"\0\x50", end=True)
            assert answer == b"\5\0\5\x08\0\1" + bytes(6)
        assert names.asked == []
        assert door.reports == []


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\5", b""),
        (b"\5\0", b"\5\xff"),
        (b"\5\1\2", b"\5\xff"),
        (b"\5\xff" + b"\2" * 255, b"\5\xff"),
        (b"\5\1\0", b"\5\0"),
        (b"\5\1\0\5\1\0", b"\5\0"),
        (b"\5\1\0\4\1\0\1\x7f\0\0\1\0\x50", b"\5\0\5\1"),
        (b"\5\1\0\5\2\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7"),
        (b"\5\1\0\5\3\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7"),
        (b"\5\1\0\5\1\0\2\x7f\0\0\1\0\x50", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\1\x7f\0\0\1\0\0", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\3\0\0\x50", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\3\x06a\0.com\0\x50", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\3\x0e127.0.0.1\0.com\0\x50", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\3\xff" + b"a" * 255 + b"\0\x50", b"\5\0\5\x08"),
        (b"\5\1\0\5\1\0\4" + bytes(10) + b"\xff\xff\x7f\0\0\1\0\x50", b"\5\0\5\x08"),
    ],
)  # fmt: skip
async def test_socks_that_is_none(data, answer):
    async with proxy() as door:
        got = await door.ask(data, end=True)
        assert got[: len(answer)] == answer
        assert len(got) in {len(answer), len(answer) + 8}
        assert door.reports == []


SMUGGLING = [
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 5, 6",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 0x5",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\x0bchunked",
    "Transfer-Encoding: \x0cchunked",
    "X: y\rTransfer-Encoding: chunked",
    "Content-Length : 5",
    "Content-Length: 9" + "9" * 30,
]


@pytest.mark.parametrize("headers", SMUGGLING)
async def test_a_request_that_two_servers_would_end_at_different_places_goes_to_none(headers):
    heads = []
    async with server(saying(OK, heads)) as port, proxy() as door:
        body = "0\r\n\r\nGET http://smuggled.test/ HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = await door.ask(
            f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}".encode(), end=True
        )
    assert status(answer) in {b"400", b"501"}
    assert answer.count(b"HTTP/1.1 ") == 1 or b"HTTP/1.1 that" in answer
    assert heads == []


async def test_what_follows_a_body_is_a_request_of_its_own_and_is_judged():
    heads = []

    async def handle(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        length = 5 if b"Content-Length" in heads[-1] else 0
        heads.append(await reader.readexactly(length))
        writer.write(OK)

    async with server(handle) as port, proxy(policy(denied=["smuggled.test"])) as door:
        second = "GET http://smuggled.test/ HTTP/1.1\r\nHost: a\r\n\r\n"
        # An option of the connection takes neither the length nor the host away.
        first = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\nConnection: Content-Length, Host\r\nContent-Length: 5\r\n\r\nhello"
        answer = await door.ask((first + second).encode(), end=True)
    assert heads == [
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 5\r\nConnection: close\r\n\r\n".encode(),
        b"hello",
    ]
    assert answer.startswith(OK + b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 999999 OK\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000,
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\0" * 1000],
)  # fmt: skip
async def test_servers_that_answer_nonsense(answer):
    async with server(saying(answer)) as port, proxy() as door:
        got = await door.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b" 502 " in got
        assert b"127.0.0.1" in got.rpartition(b"\r\n\r\n")[2]


async def test_heads_and_trailers_of_many_lines_are_not_read():
    """They would keep the loop of the whole worker for as long as it takes to parse them."""
    heads = []
    lines = b"a:\r\n" * 15_000
    async with server(saying(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", heads)) as port, proxy() as door:
        url = f"http://127.0.0.1:{port}/".encode()
        assert status(await door.ask(b"GET " + url + b" HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n", end=True)) == b"431"
        assert heads == []
        answer = await door.ask(b"GET " + url + b" HTTP/1.1\r\nHost: a\r\n\r\n", end=True)
        assert status(answer) == b"502"
        assert b"200 lines" in answer

    async def never(reader, _writer):
        await reader.read()

    async with server(never) as port, proxy() as door:
        head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        assert status(await door.ask(head + b"1\r\nx\r\n0\r\n" + lines + b"\r\n", end=True)) == b"431"


async def test_chunks_that_are_none_end_the_request():
    heads = []
    async with server(saying(b"", heads)) as port, proxy() as door:
        for chunk in (b"zz\r\n", b"-1\r\n", b"5\nhello", b"5\r\nhelloXX", b"f" * 100 + b"\r\n"):
            head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert status(await door.ask(head.encode() + chunk, end=True)) in {b"400", b"502"}


async def test_who_says_nothing_or_half_is_not_waited_for():
    async with server(saying(OK)) as port, proxy(waits=Waits(head=0.3)) as door:
        assert await door.ask(b"") == b""
        assert status(await door.ask(b"GET http://127.0.0.1/ HTTP/1.1\r\nHost:")) == b"408"
        assert await door.ask(b"\5\1") == b""
        assert await door.ask(b"\5\1\0\5\1\0\3\x20abc") == b"\5\0"
        # Not a byte at a time either.
        reader, writer = await door.connect()
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"G")
                await asyncio.sleep(0.02)
                if reader._buffer:
                    break
        assert status(await reader.read()) == b"408"
        writer.close()
        # Between two requests it is no fault.
        reader, writer = await door.connect()
        writer.write(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert await reader.read() == OK
        writer.close()


async def test_a_server_that_never_answers_and_one_that_never_ends():
    gone = asyncio.Event()

    async def never(reader, _writer):
        await reader.read()
        gone.set()

    async def ever(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
        gone.set()

    async with server(never) as port, proxy(waits=Waits(exchange=0.3)) as door:
        answer = await door.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert status(answer) == b"504"
        await asyncio.wait_for(gone.wait(), 30)
        gone.clear()
        # An upload that stops is the client's fault.
        head = f"PUT http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
        assert status(await door.ask(head.encode() + b"x")) in {b"408", b"504"}
    gone.clear()
    async with server(ever) as port, proxy() as door:
        reader, writer = await door.connect()
        writer.write(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readexactly(1_000_000)
        writer.transport.abort()
        # Whoever has gone is told to the server by the end of its connection.
        await asyncio.wait_for(gone.wait(), 30)
        await until(lambda: len(door.proxy._tasks) == 1)


async def test_tunnels_in_which_nothing_moves_end():
    async with server(echo) as port, proxy(waits=Waits(tunnel=0.3)) as door:
        reader, writer = await door.tunnel("127.0.0.1", port)
        for _ in range(5):
            await asyncio.sleep(0.15)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_names_that_lie_or_have_two_hundred_addresses(monkeypatch):
    tried = []

    async def start_connection(infos, **_):
        tried.extend(info[4][0] for info in infos)
        raise ConnectionRefusedError(111, "")

    monkeypatch.setattr(egress_dial, "start_connection", start_connection)
    names = Names({
        "many.test": [f"8.8.8.{number}" for number in range(200)],
        "mostly-private.test": [f"10.0.0.{number}" for number in range(199)] + ["8.8.8.8"],
        "none.test": [],
        "odd.test": ["fe80::1%lo", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1"],
    })  # fmt: skip
    async with proxy(policy(private=[]), names) as door:
        ask = "CONNECT {}:443 HTTP/1.1\r\nHost: a\r\n\r\n"
        assert status(await door.ask(ask.format("many.test").encode())) == b"502"
        assert tried == [f"8.8.8.{number}" for number in range(8)]
        assert status(await door.ask(ask.format("mostly-private.test").encode())) == b"502"
        assert tried[8:] == ["8.8.8.8"]
        assert status(await door.ask(ask.format("none.test").encode())) == b"502"
        assert status(await door.ask(ask.format("odd.test").encode())) == b"403"
        assert len(tried) == 9


async def test_slow_names_get_an_answer_and_keep_their_places_until_they_are_done(monkeypatch):
    monkeypatch.setattr(egress_dial, "_LOOKUP_SECONDS", 0.2)
    names = Names({"slow.test": ["127.0.0.1"]}, held=asyncio.Event())
    async with server(saying(OK)) as port, proxy(names=names) as door:
        request = f"GET http://slow.test:{port}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        answers = await asyncio.gather(*(door.ask(request) for _ in range(20)))
        assert {status(answer) for answer in answers} == {b"504"}
        assert len(names.asked) == egress_dial._LOOKUPS_OF_A_SESSION
        await works(door, port)
        names.held.set()
        await until(lambda: len(names.asked) == 20)
        assert status(await door.ask(request)) == b"200"


async def test_a_crowd_of_connections_waits_and_takes_no_place_of_another_session():
    share = EgressShare(4, Lookups(Names()))
    share.turns._limit, share.turns._per_key = 32, 8
    async with server(saying(OK)) as port, proxy(share=share) as crowd, proxy(share=share) as other:
        before = descriptors()
        held = []
        for _ in range(300):
            reader, writer = await crowd.connect()
            writer.write(b"GET ")
            held.append((reader, writer))
        await until(lambda: share.turns._held[crowd.proxy] == 8)
        # 300 of the clients' own; of the proxy's those that have a place, and the one that is next.
        assert descriptors() - before <= 300 + 8 + 2
        await works(other, port)
        for _, writer in held:
            writer.close()
        await works(crowd, port)
        await until(lambda: not share.turns._held)


async def test_running_out_of_descriptors_is_got_over(monkeypatch):
    failures = 3

    class Listener:
        """Fails as one does when there are no descriptors."""

        def __init__(self, listener):
            self._listener = listener

        def accept(self):
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(24, "Too many open files")
            return self._listener.accept()

        def __getattr__(self, name):
            return getattr(self._listener, name)

    monkeypatch.setattr(egress, "_NO_DESCRIPTORS_SECONDS", 0.01)
    async with server(saying(OK)) as port, proxy(wrap=Listener) as door:
        await works(door, port)
        assert not failures


async def test_millions_of_hosts_are_a_bounded_list():
    async with proxy(policy("NONE")) as door:
        book = door.proxy._book
        for number in range(5000):
            book.enter(f"host{number}.test", 443, Verdict(number % 2 == 0, "x"))
        assert len(door.proxy.totals()) == len(door.reports) == egress_dial._MAX_DESTINATIONS + 2
        assert sum(access.connections for access in door.proxy.totals()) == 5000
        assert {(one.host, one.port, one.allowed) for one in door.proxy.totals()[-2:]} == {
            ("*", 0, True),
            ("*", 0, False),
        }


async def test_first_bytes_of_any_kind(monkeypatch):
    """Whatever comes first is answered, or the connection ends, and nothing is left over."""

    async def start_connection(*_, **__):
        raise ConnectionRefusedError(111, "")

    monkeypatch.setattr(egress_dial, "start_connection", start_connection)
    random.seed(20261128)
    seeds = [
        b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\5\1\0\5\1\0\3\x09127.0.0.1\0\1", b"\5\1\0\5\1\0\1\x7f\0\0\1\0\1", b"\4\1\0\1\x7f\0\0\1\0",
        b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]  # fmt: skip

    def mutated():
        data = bytearray(random.choice(seeds))
        for _ in range(random.randint(0, 4)):
            place = random.randrange(len(data) + 1)
            match random.randrange(4):
                case 0:
                    data[place:place] = random.randbytes(random.randint(1, 8))
                case 1:
                    del data[place : place + random.randint(1, 8)]
                case 2:
                    data[place : place + 1] = bytes([random.randrange(256)])
                case _:
                    data[place:] = b""
        return bytes(data)

    async with proxy(policy(private=[])) as door:
        # What is opened once, such as by the resolver.
        await asyncio.gather(*(door.ask(seed, end=True) for seed in seeds))
        before = descriptors()
        for _ in range(40):
            inputs = [mutated() for _ in range(20)]
            asked = asyncio.gather(*(door.ask(data, end=True) for data in inputs), return_exceptions=True)
            answers = await asyncio.wait_for(asked, 60)
            for data, answer in zip(inputs, answers, strict=True):
                assert answer == b"" or (
                    isinstance(answer, bytes) and answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 50", b"\5\xff", b"\5\0"))
                ), (
                    data,
                    answer,
                )
        for number in range(256):
            await door.ask(bytes([number]) + random.randbytes(40), end=True)
        assert not [access for access in door.proxy.totals() if access.allowed and access.host == "127.0.0.1"]
        await until(lambda: descriptors() <= before)


async def test_a_refusal_of_much_that_was_sent_is_read_by_the_client():
    """The connection is not reset under the answer because there were bytes that nobody wanted."""
    async with proxy(policy("NONE")) as door:
        head = b"POST http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n"
        assert status(await door.ask(head + bytes(3_000_000), end=True)) == b"403"
