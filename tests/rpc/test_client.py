"""The Python client: tokens that several share, an edge that is away for a moment, runs that outlive their request_id."""

import asyncio
import io
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest

from agentrpc import clock
from agentrpc.cli.connection import CredentialsFile
from agentrpc.client import AgentRpcClient, RpcError
from agentrpc.client import files as files_module
from agentrpc.client.files import FileTransfers
from agentrpc.domain.states import RunState
from agentrpc.v1 import auth_service_pb2, file_service_pb2, run_pb2, run_service_pb2


@pytest.fixture
async def login(edge, monkeypatch, tmp_path):
    """The credentials file of a login whose access token is over."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    store = CredentialsFile(edge.address)
    async with AgentRpcClient(edge.address, store=store) as client:
        await client.login("ann", "password")
    tokens = store.load()
    tokens.access_expire_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    store.store(tokens)
    return store


async def me(client):
    return (await client.call(client.auth.GetMe, auth_service_pb2.GetMeRequest())).username


async def test_commands_share_one_login(edge, login):
    before = login.load()
    clients = [AgentRpcClient(edge.address, store=CredentialsFile(edge.address)) for _ in range(5)]
    try:
        assert await asyncio.gather(*map(me, clients)) == ["ann"] * 5
        # One has renewed it, the others have taken what it kept.
        after = login.load()
        assert after.refresh_token != before.refresh_token
        assert {client._token for client in clients} == {after.access_token}
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    async with AgentRpcClient(edge.address, store=login) as another:
        assert await me(another) == "ann"
        assert login.load() == after


@pytest.mark.parametrize("token", ["", "another"])
async def test_a_login_is_kept_whatever_token_is_set(edge, tmp_path, monkeypatch, token):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    command = [sys.executable, "-m", "agentrpc", "login", "--username", "ann", "--password-stdin"]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "AGENTRPC_SERVER": edge.address, "AGENTRPC_TOKEN": token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    said, _ = await process.communicate(b"password\n")
    assert process.returncode == 0
    assert b"logged in as ann" in said
    assert (b"AGENTRPC_TOKEN" in said) == bool(token)
    store = CredentialsFile(edge.address)
    assert store.load() is not None
    async with AgentRpcClient(edge.address, store=store) as client:
        assert await me(client) == "ann"


def unavailable():
    metadata = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "connection refused")


async def test_an_edge_that_is_away_when_the_token_is_renewed_ends_no_login(edge, login):
    tokens = login.load()
    tokens.access_token = ""
    login.store(tokens)
    async with AgentRpcClient(edge.address, store=login) as client:
        whole, tries = client.auth.RefreshToken, []

        async def away(*args, **kwargs):
            tries.append(1)
            if len(tries) < 3:
                raise unavailable()
            return await whole(*args, **kwargs)

        client.auth.RefreshToken = away
        assert await me(client) == "ann"
        assert len(tries) == 3


async def test_a_run_is_watched_by_its_name_when_the_stream_is_lost(edge, client, source, hand):
    edge.settings.stream_max_age = 1.0
    whole, streamed, noted, seen = client.runs.StreamRun, [], [], []
    accepted = asyncio.Event()

    def note(run):
        noted.append(run)
        accepted.set()

    def stream(request, **kwargs):
        streamed.append(request)
        return whole(request, **kwargs)

    client.runs.StreamRun = stream

    async def follow():
        async for event in client.run(source.name, "x", on_run=note):
            seen.append(event.WhichOneof("payload"))

    following = asyncio.create_task(follow())
    async with asyncio.timeout(60):
        await accepted.wait()
        await asyncio.sleep(2.5)
        claim = await hand.claim()
        await hand.end(claim)
        await following
    assert len(streamed) == 1
    assert [run.state for run in noted] == [run_pb2.Run.STATE_QUEUED, run_pb2.Run.STATE_SUCCEEDED]
    assert seen == ["run_started", "user_message", "run_ended"]
    assert (await client.get_session(source.name)).run_count == 1


async def test_going_on_with_a_run_that_no_request_id_names_begins_none(client, source):
    for request_id in (str(uuid4()), ""):
        request = run_service_pb2.StreamRunRequest(
            parent=source.name, run=run_pb2.Run(prompt="x"), request_id=request_id, after_sequence=3
        )
        with pytest.raises(RpcError) as caught:
            async for _ in client.watch_responses(client.runs.StreamRun, request):
                pass
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "STATE_INVALID")
        assert caught.value.metadata["state"] == "REQUEST_UNKNOWN"
    assert (await client.get_session(source.name)).run_count == 0


async def test_a_stream_of_a_new_run_reads_nothing_that_was_before(client, source):
    await source.write(*map(str, range(300)))
    request = run_service_pb2.StreamRunRequest(parent=source.name, run=run_pb2.Run(prompt="x"), request_id=str(uuid4()))
    for _ in range(2):
        # The second time it is known.
        stream = client.watch_responses(client.runs.StreamRun, request)
        first = await anext(stream)
        await stream.aclose()
        assert first.resume_after_sequence >= 300
        request.after_sequence = 0


async def test_runs_are_carried_out_in_the_order_of_their_answers_whatever_the_clocks_say(
    client, session, hand, monkeypatch
):
    """The first edge's clock is ahead."""
    now = clock._last_stamp
    clock.follow(clock.UUID(int=((now + (60_000 << 12)) >> 12) << 80))
    runs = [await client.create_run(session, "first")]
    monkeypatch.setattr(clock, "_last_stamp", now)
    runs += [await client.create_run(session, "second"), await client.create_run(session, "third")]
    done = []
    for _ in runs:
        claim = await hand.claim()
        done.append(claim.run.prompt)
        await hand.end(claim, RunState.SUCCEEDED)
    assert done == ["first", "second", "third"]


async def test_a_download_goes_on_with_the_next_token(monkeypatch):
    expired = RpcError("UNAUTHENTICATED", "CREDENTIALS_EXPIRED", "renew it")
    monkeypatch.setattr(files_module, "decode", lambda _: expired)
    tokens, offsets = [], []

    async def metadata(*, stale=""):
        tokens.append(stale)
        return [("authorization", f"Bearer {len(tokens)}")]

    async def method(request, metadata):
        offsets.append(request.offset)
        if len(offsets) < 4:
            yield file_service_pb2.DownloadFileResponse(data=b"ab")
            raise unavailable()
        yield file_service_pb2.DownloadFileResponse(
            sha256="8b76a6a1cfb8fa4ea5c1f5cb3ad4a1db4ad4ba1ac6ab4e4be9b1d8f9e6bb2d32"
        )

    target = io.BytesIO()
    transfers = FileTransfers(None, metadata)
    with pytest.raises(RpcError, match="checksum"):
        await transfers._download(method, file_service_pb2.DownloadFileRequest(), lambda _: None, target)
    assert target.getvalue() == b"ababab"
    assert offsets == [0, 2, 4, 6]
    assert tokens == ["", "1", "2", "3"]
