"""What a client does not notice: drains, rotations and tokens that expire, while events come."""

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest

from agentrpc.client import AgentRpcClient
from agentrpc.client.errors import decode
from agentrpc.rpc import approval_stream
from agentrpc.v1 import (
    approval_service_pb2,
    file_service_pb2,
    run_pb2,
    run_service_pb2,
    session_service_pb2,
    stream_pb2,
)
from agentrpc.v1.file_service_pb2_grpc import FileServiceStub
from agentrpc.v1.session_service_pb2_grpc import SessionServiceStub
from tests.conftest import edge_of

End = stream_pb2.StreamEnd


class Reader:
    """Reads a stream, over as many calls as it takes, while the test goes on."""

    def __init__(self, responses):
        self.sequences, self.texts, self.runs, self.ends = [], [], [], []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read(responses))

    async def _read(self, responses):
        async for response in responses:
            self.sequences += [event.sequence for event in response.events]
            self.texts += [event.notice.text for event in response.events if event.HasField("notice")]
            if response.HasField("end"):
                self.ends.append(response.end.reason)
            if "run" in response.DESCRIPTOR.fields_by_name and response.HasField("run"):
                self.runs.append(response.run)
            self._news.set()

    async def until(self, wanted):
        async with asyncio.timeout(60):
            while not wanted():
                assert not self.task.done(), "the stream is over"
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def read():
    """Reads WatchSession, or StreamRun for a request of that, by a client: `read(client, request)`; a Reader."""
    readers = []

    def read(client, request):
        of_run = isinstance(request, run_service_pb2.StreamRunRequest)
        method = client.runs.StreamRun if of_run else client.sessions.WatchSession
        readers.append(Reader(client.watch_responses(method, request)))
        return readers[-1]

    yield read
    for reader in readers:
        reader.task.cancel()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)


async def endless_upload(session, begun):
    """Requests of an upload that begins and does not go on."""
    begun.set()
    yield file_service_pb2.UploadFileRequest(start=file_service_pb2.UploadFileStart(parent=session, path="x"))
    await asyncio.sleep(60)


def stream_run(source):
    return run_service_pb2.StreamRunRequest(
        parent=source.name, run=run_pb2.Run(prompt="x"), request_id=str(uuid4()), include_deltas=True
    )


def run_id(run):
    return UUID(run.name.rpartition("/")[2])


async def ended_by(call):
    """The reason that a call ends with, by its status or by its last message; empty for one that was answered."""
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            return End.Reason.Name([response async for response in call][-1].end.reason).removeprefix("REASON_")
        await call
    except grpc.aio.AioRpcError as error:
        return decode(error).reason
    return ""


async def test_calls_that_come_as_an_edge_stops_are_told(edge, source, client):
    """However far a call has come when the stop begins: its request is on its way, or its handler has begun."""
    metadata = await client._metadata()
    for turns in range(12):
        other = edge_of(edge.settings, edge.database, edge.bus)
        port = await other.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            sessions, begun = SessionServiceStub(channel), asyncio.Event()
            get = sessions.GetSession(session_service_pb2.GetSessionRequest(name=source.name), metadata=metadata)
            watch = sessions.WatchSession(session_service_pb2.WatchSessionRequest(name=source.name), metadata=metadata)
            send = FileServiceStub(channel).UploadFile(endless_upload(source.name, begun), metadata=metadata)
            await begun.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            await other.server.stop(0.3)
            assert await ended_by(get) in {"", "DRAINING"}
            assert await ended_by(watch) == "DRAINING"
            assert await ended_by(send) == "DRAINING"


async def test_a_drain_under_load_hands_over_without_a_gap(edge, second_edge, source, read):
    async with AgentRpcClient(
        f"ipv4:127.0.0.1:{edge.port},127.0.0.1:{second_edge.port}", username="ann", password="password"
    ) as client:
        readers = [read(client, session_service_pb2.WatchSessionRequest(name=source.name)) for _ in range(5)]
        of_run = read(client, stream_run(source))
        await of_run.until(lambda: of_run.runs)
        expected = []
        enough = asyncio.Event()

        async def load():
            while not enough.is_set():
                texts = [f"{len(expected) + n} {'x' * 1000}" for n in range(10)]
                expected.extend(texts)
                await source.write(*texts, run=run_id(of_run.runs[0]))
                await source.delta("live", run=run_id(of_run.runs[0]))
                await asyncio.sleep(0.01)

        loading = asyncio.create_task(load())
        for reader in [*readers, of_run]:
            await reader.until(lambda reader=reader: len(reader.texts) >= 100)
        drained, left = (edge, second_edge) if edge.hub._streams else (second_edge, edge)
        await drained.server.stop(30)
        assert not drained.hub._streams
        goal = len(expected) + 100
        for reader in [*readers, of_run]:
            await reader.until(lambda reader=reader: len(reader.texts) >= goal)
        assert len(left.hub._streams) == len(readers) + 1
        enough.set()
        await loading
        for reader in [*readers, of_run]:
            await reader.until(lambda reader=reader: len(reader.texts) == len(expected))
            assert reader.texts == expected
            assert reader.ends == [End.REASON_DRAINING]


async def test_a_run_that_is_streamed_again_is_the_same_run(edge, client, source, read):
    edge.settings.stream_max_age = 1.0
    reader = read(client, stream_run(source))
    await reader.until(lambda: reader.runs)
    run = reader.runs[0]
    for n in range(3):
        await source.write(f"{n}", run=run_id(run))
        await source.write("of no run")
        await reader.until(lambda n=n: len(reader.ends) > n)
    await client.interrupt(run.name)
    await asyncio.wait_for(reader.task, 60)
    assert set(reader.ends[:-1]) == {End.REASON_ROTATED}
    assert reader.ends[-1] == End.REASON_RUN_ENDED
    assert reader.texts == ["0", "1", "2"]
    assert len(reader.sequences) == len(set(reader.sequences))
    assert {run.name for run in reader.runs} == {run.name}
    assert reader.runs[-1].state == run_pb2.Run.STATE_CANCELLED
    assert (await client.get_session(source.name)).run_count == 1


async def test_a_stream_ends_with_its_token_and_goes_on_with_the_next(edge, source, read):
    edge.settings.access_token_ttl = 2.0
    async with edge.client("ann") as client:
        await source.write("before")
        reader = read(client, session_service_pb2.WatchSessionRequest(name=source.name))
        await reader.until(lambda: reader.ends)
        await source.write("after")
        await reader.until(lambda: len(reader.texts) == 2)
        assert reader.texts == ["before", "after"]
        assert set(reader.ends) == {End.REASON_CREDENTIALS_EXPIRED}


async def test_a_watch_of_approvals_goes_on_with_the_next_token(edge, client, source, ask, ended):
    run = await client.create_run(source.name, "x")
    await ask(run, "before")
    watching = client.watch_approvals()
    async with asyncio.timeout(60):
        assert (await anext(watching)).title == "before"
        token = client._token
        for stream in edge.hub._streams:
            stream._expire_at = 0.0
        following = asyncio.ensure_future(anext(watching))
        await ended.wait()
        await ask(run, "after")
        assert (await following).title == "after"
    assert client._token != token
    await watching.aclose()


async def test_archiving_ends_the_watchers_without_redis(client, source, read, redis_server):
    await source.write("1")
    reader = read(client, session_service_pb2.WatchSessionRequest(name=source.name))
    await reader.until(lambda: reader.texts)
    redis_server.stop()
    await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=source.name))
    await asyncio.wait_for(reader.task, 60)
    assert reader.ends == [End.REASON_SESSION_CLOSED]
    assert reader.sequences == [1, 2]


async def test_too_much_news_of_approvals_ends_the_stream(monkeypatch, client, source, ask, until):
    monkeypatch.setattr(approval_stream, "_NEWS_BYTES", 1000)
    run = await client.create_run(source.name, "x")
    call = client.approvals.WatchApprovals(
        approval_service_pb2.WatchApprovalsRequest(parent="sessions/-"), metadata=await client._metadata()
    )
    await until(call, lambda response: response.HasField("caught_up"))
    await ask(run, "large", input_json="x" * 2000)
    last = (await until(call, lambda response: response.HasField("end")))[-1]
    assert last.end.reason == End.REASON_SLOW_CONSUMER
