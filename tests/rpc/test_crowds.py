"""One caller's crowd costs others nothing but a moment: the edge stays healthy, streams live, lists answer."""

import asyncio
import contextlib
import random
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agentrpc.client.errors import decode
from agentrpc.errors import ResourceExhausted
from agentrpc.store import log
from agentrpc.turns import Turns
from agentrpc.v1 import auth_service_pb2, event_pb2, run_pb2, run_service_pb2, session_pb2, session_service_pb2

ROWS = 100_000
TEXT = event_pb2.Event.ASSISTANT_MESSAGE_FIELD_NUMBER
NOTICE = event_pb2.Event.NOTICE_FIELD_NUMBER


async def long_log(edge, client, rows=ROWS, notices=()):
    """A session of ann's whose log has so many events, of which these numbers are notices."""
    session = await client.create_session(session_pb2.Session())
    session_id = UUID(session.name.removeprefix("sessions/"))
    text = event_pb2.Event(assistant_message=event_pb2.AssistantMessage(message_id="m")).SerializeToString()
    notice = event_pb2.Event(notice=event_pb2.Notice(text="rare")).SerializeToString()
    async with edge.database.connection() as connection:
        await connection.execute(
            "INSERT INTO session_events (session_id, sequence, run_id, kind, data)"
            " SELECT $1, n, NULL, CASE WHEN n = ANY ($2::bigint[]) THEN $3::smallint ELSE $4::smallint END,"
            " CASE WHEN n = ANY ($2::bigint[]) THEN $5::bytea ELSE $6::bytea END FROM generate_series(1, $7::bigint) n",
            session_id, list(notices), NOTICE, TEXT, notice, text, rows, timeout=120,
        )  # fmt: skip
        await connection.execute("UPDATE session_heads SET last_sequence = $2 WHERE session_id = $1", session_id, rows)
    return session.name


def rare(name, **fields):
    return session_service_pb2.ListSessionEventsRequest(parent=name, event_types=["notice"], **fields)


async def pages(client, request):
    """The numbers on all pages of a list, and whether one was empty."""
    found, empty = [], False
    while True:
        page = await client.call(client.sessions.ListSessionEvents, request)
        found += [event.sequence for event in page.events]
        empty = empty or not page.events
        if not page.next_page_token:
            return found, empty
        request.page_token = page.next_page_token


async def test_who_reads_a_long_log_for_what_is_rare_stops_nobody(edge, client, channel, monkeypatch):
    name = await long_log(edge, client)
    health = health_pb2_grpc.HealthStub(channel)
    stop = False
    outcomes = set()

    async def reads():
        request = rare(name)
        metadata = await client._metadata()
        while not stop:
            try:
                page = await client.sessions.ListSessionEvents(request, metadata=metadata)
                request.page_token = page.next_page_token
                outcomes.add("OK")
            except grpc.aio.AioRpcError as error:
                outcomes.add(decode(error).reason)
                await asyncio.sleep(0.05)

    async with edge.client("bob") as bob:
        session = await bob.create_session(session_pb2.Session())
        watching = bob.sessions.WatchSession(
            session_service_pb2.WatchSessionRequest(name=session.name), metadata=await bob._metadata()
        )
        await watching.read()
        crowd = [asyncio.create_task(reads()) for _ in range(120)]
        try:
            beats = 0
            while beats < 6:
                response = await asyncio.wait_for(watching.read(), 60)
                assert response is not grpc.aio.EOF
                assert not response.HasField("end"), response
                beats += response.HasField("heartbeat")
                checked = await health.Check(health_pb2.HealthCheckRequest())
                assert checked.status == health_pb2.HealthCheckResponse.SERVING
                listed = await bob.call(bob.sessions.ListSessions, session_service_pb2.ListSessionsRequest())
                assert [one.name for one in listed.sessions] == [session.name]
        finally:
            stop = True
            await asyncio.gather(*crowd)
            watching.cancel()
    assert outcomes == {"OK", "RATE_LIMITED"}


async def test_a_list_looks_at_a_bounded_part_of_the_log_and_says_where_to_go_on(edge, client, monkeypatch):
    looked = []

    async def read(*given, original=log.read_events, **how):
        looked.append(how["up_to"] - how["after"])
        return await original(*given, **how)

    monkeypatch.setattr("agentrpc.services.sessions.read_events", read)
    monkeypatch.setattr("agentrpc.services.sessions.LOOKED_AT", 100)
    notices = [1, 99, 100, 101, 450, 999, 1000]
    name = await long_log(edge, client, 1000, notices)
    assert await pages(client, rare(name)) == (notices, True)
    assert (await pages(client, rare(name, page_size=1)))[0] == notices
    assert (await pages(client, rare(name, after_sequence=100)))[0] == [101, 450, 999, 1000]
    backward = await pages(client, rare(name, order_by="sequence desc", page_size=2))
    assert backward == (notices[::-1], True)
    assert max(looked) <= 100


async def test_events_of_a_run_are_found_at_once_wherever_they_stand(edge, client, hand, monkeypatch):
    monkeypatch.setattr("agentrpc.services.sessions.LOOKED_AT", 100)
    name = await long_log(edge, client, 1000)
    other = await long_log(edge, client, 3)
    run = await client.create_run(name, "x")
    await hand.end(await hand.claim())
    request = session_service_pb2.ListSessionEventsRequest(parent=name, run=run.name)
    ascending, descending = [], []
    for order, found in (("sequence", ascending), ("sequence desc", descending)):
        request.order_by = order
        page = await client.call(client.sessions.ListSessionEvents, request)
        assert not page.next_page_token
        found += [event.sequence for event in page.events]
    assert len(ascending) > 1
    assert ascending == descending[::-1]
    events = [event.sequence async for event in client.watch(name, run=run.name)]
    assert events == ascending
    # Of a run that is not of this session there is nothing, however long the log is.
    request = session_service_pb2.ListSessionEventsRequest(parent=other, run=run.name)
    assert await pages(client, request) == ([], True)


async def test_a_replay_goes_on_slice_by_slice_and_sends_all_that_passes(edge, client, monkeypatch, until):
    monkeypatch.setattr("agentrpc.rpc.streams.LOOKED_AT", 100)
    notices = [1, 100, 101, 450, 1000]
    name = await long_log(edge, client, 1000, notices)
    slices = []

    async def read(session_id, after, up_to, *, original=edge.hub.read, **how):
        slices.append(up_to - after)
        return await original(session_id, after, up_to, **how)

    monkeypatch.setattr(edge.hub, "read", read)
    request = session_service_pb2.WatchSessionRequest(name=name, event_types=["notice"])
    call = client.sessions.WatchSession(request, metadata=await client._metadata())
    responses = await until(call, lambda response: response.HasField("caught_up"))
    call.cancel()
    assert [event.sequence for response in responses for event in response.events] == notices
    assert responses[-1].resume_after_sequence == 1000
    assert max(slices) == 100


async def test_those_who_wait_take_turns_by_key():
    turns = Turns(2, per_key=1, waiting=3)
    order = []

    async def work(key):
        async with turns.take(key):
            order.append(key)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(key) for key in "aaabcb"))
    assert order[:2] == ["a", "b"]
    assert order.index("c") < 4
    assert sorted(order) == sorted("aaabcb")
    async with turns.take("a"):
        waiting = [asyncio.create_task(work("a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="wait already"):
            await turns.enter("a")
        async with turns.take("b"):
            pass
        for task in waiting[:2]:
            task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not turns._queues
    assert not turns._total
    assert not turns._held


async def test_the_newest_of_a_key_goes_first_where_it_is_asked_for():
    turns = Turns(1, per_key=1, waiting=2, newest_first=True)
    order = []

    async def work(number):
        async with turns.take("k"):
            order.append(number)

    async with turns.take("k"):
        waiting = [asyncio.create_task(work(number)) for number in range(3)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert order == [2, 1]
    assert isinstance(results[0], ResourceExhausted)


async def test_turns_are_counted_right_whatever_is_cancelled():
    dice = random.Random(8)
    turns = Turns(3, per_key=2, waiting=50)
    most = 0

    async def work(key):
        nonlocal most
        async with turns.take(key):
            most = max(most, turns._total)
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)

    tasks = []
    for _ in range(400):
        with contextlib.suppress(IndexError):
            if dice.random() < 0.4:
                dice.choice(tasks).cancel()
        tasks.append(asyncio.create_task(work(dice.randrange(5))))
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert not turns._queues
    assert not turns._total
    assert not turns._held


# ---- Bodies of callers who are not known ----


def resident(pid):
    """The most memory that a process has had at a time, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) // 1024


@pytest.fixture
async def process(settings, edge):
    """An edge in a process of its own: (its id, its address)."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "AGENTRPC_DATABASE_URL": settings.database_url.get_secret_value(),
        "AGENTRPC_REDIS_URL": settings.redis_url.get_secret_value(),
        "AGENTRPC_SIGNING_KEY": settings.signing_key.get_secret_value(),
        "AGENTRPC_DATA_DIR": str(settings.data_dir),
        "AGENTRPC_LISTEN": "127.0.0.1:0",
        "AGENTRPC_METRICS_LISTEN": "",
        "AGENTRPC_LOGIN_ATTEMPTS_PER_MINUTE": "10000",
    }
    serving = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentrpc.app", "serve", env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    port = None
    while port is None:
        line = (await serving.stderr.readline()).decode()
        assert line, "the edge has ended"
        if found := re.search(r'"port": (\d+)', line):
            port = int(found.group(1))
    reading = asyncio.create_task(serving.stderr.read())
    yield serving.pid, f"127.0.0.1:{port}"
    serving.kill()
    await serving.wait()
    await reading


OPEN = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


async def send(address, method, size, timeout=60):
    """Send so many bytes without a token, over a connection of one's own; the reason of the answer."""
    async with grpc.aio.insecure_channel(address, options=OPEN) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/agentrpc.v1.{method}")(b"\x0a" * size, timeout=timeout)
        return decode(caught.value).reason


@pytest.mark.parametrize(
    ("method", "most", "reasons"),
    [
        ("SessionService/CreateSession", 64, {"CREDENTIALS_MISSING"}),
        # Two bodies of one address are read at a time.
        ("AuthService/Login", 256, {"TOO_LARGE", "RATE_LIMITED", "SLOW_CONSUMER"}),
    ],
)
async def test_bodies_of_those_who_are_not_known_take_little_memory(process, method, most, reasons):
    pid, address = process
    assert await send(address, method, 100) in {"CREDENTIALS_MISSING", "FIELD_INVALID"}
    before = resident(pid)
    found = set(await asyncio.gather(*(send(address, method, 14 * 2**20) for _ in range(96))))
    assert found <= reasons
    assert resident(pid) - before < most
    async with grpc.aio.insecure_channel(address) as channel:
        request = auth_service_pb2.LoginRequest(username="ann", password="password")
        login = channel.unary_unary("/agentrpc.v1.AuthService/Login")
        assert await login(request.SerializeToString(), timeout=60)


async def test_a_login_waits_for_none_of_those_that_never_send_theirs(edge, monkeypatch):
    """Senders that begin a body and leave it at that hold no place that another from the same address needs."""

    async def beginning():
        # One byte of a message of one MiB: gRPC's stubs would send all of it.
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        headers = b"".join(
            literal(name, value)
            for name, value in [
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/agentrpc.v1.AuthService/Login"),
                (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
            ]
        )  # fmt: skip
        writer.write(frame(1, 4, 1, headers) + frame(0, 0, 1, b"\0" + (2**20).to_bytes(4, "big") + b"x"))
        await writer.drain()
        return reader, writer

    connections = [await beginning() for _ in range(30)]
    async with asyncio.timeout(60):
        while edge.server._bodies._strangers._held.total() < 2:  # noqa: ASYNC110 - it has no event of that
            await asyncio.sleep(0.01)
    async with edge.client("ann") as ann:
        assert (await ann.call(ann.auth.GetMe, auth_service_pb2.GetMeRequest())).username == "ann"
    for _, writer in connections:
        writer.close()


def frame(kind, flags, stream, payload):
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name, value):
    """A header field of HPACK, literal, without indexing (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


async def test_a_call_without_its_request_is_refused(client, channel):
    token = await client._metadata()
    for method in ("SessionService/CreateSession", "SessionService/WatchSession", "AuthService/Login"):
        call = channel.stream_stream(f"/agentrpc.v1.{method}")(iter(()), metadata=token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert decode(caught.value).reason == "FIELD_INVALID"


async def test_streams_count_among_a_callers_requests(edge, client):
    session = await client.create_session(session_pb2.Session())
    edge.settings.requests_per_second = 2
    request = run_service_pb2.StreamRunRequest(parent=session.name, run=run_pb2.Run(prompt="x"))
    metadata = await client._metadata()

    async def begin():
        call = client.runs.StreamRun(request, metadata=metadata)
        try:
            assert await call.read() is not grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            return decode(error).reason
        call.cancel()
        return "OK"

    outcomes = [await begin() for _ in range(40)]
    assert outcomes.count("RATE_LIMITED") >= 20
    edge.settings.requests_per_second = 10_000
    assert (await client.get_session(session.name)).run_count == outcomes.count("OK")


async def test_every_method_counts_among_a_callers_requests(edge, client, channel):
    metadata = await client._metadata()
    edge.settings.requests_per_second = 0.001
    for service in edge.server._names[:-1]:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            if method.name in {"Login", "RefreshToken"}:
                continue
            call = channel.stream_stream(f"/{service}/{method.name}")(iter([b""]), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert decode(caught.value).reason == "RATE_LIMITED", method.name
