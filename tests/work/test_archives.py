"""Archive storage: what goes there comes back as it was, in a folder and in S3, wherever a worker was killed."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import tarfile
from contextlib import suppress
from datetime import timedelta

import pytest
from pydantic import SecretStr

from agentrpc import clock
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.client import RpcError
from agentrpc.ending import end_tasks
from agentrpc.errors import StoreUnavailable
from agentrpc.names import parse_session
from agentrpc.rpc.hub import Hub
from agentrpc.services import archives as archives_module
from agentrpc.services import sessions as sessions_module
from agentrpc.services.archives import Archives
from agentrpc.store import objects as objects_module
from agentrpc.store.archives import ArchiveRow, take_archive
from agentrpc.store.housekeeping import note_cleaned, sessions_to_clean
from agentrpc.store.log import Batch, LogEvent, append, read_transcript
from agentrpc.store.objects import ObjectError, Objects
from agentrpc.store.tables import SessionHead
from agentrpc.v1 import archive_pb2, archive_service_pb2, event_pb2, session_pb2, session_service_pb2
from tests.trees import nested

State = archive_pb2.Archive.State


@pytest.fixture(scope="module")
def s3():
    """An S3-compatible server on loopback; its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def settings(request, settings, tmp_path):
    """With archive storage."""
    if request.param == "folder":
        return settings.model_copy(update={"archive_url": (tmp_path / "archive storage").as_uri()})
    address = request.getfixturevalue("s3")
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    bucket = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=bucket)
    return settings.model_copy(
        update={
            "archive_url": f"s3://{bucket}/some/prefix",
            "archive_s3_endpoint": address,
            "archive_s3_access_key_id": SecretStr("key"),
            "archive_s3_secret_access_key": SecretStr("secret"),
        }
    )


only_folder = pytest.mark.parametrize("settings", ["folder"], indirect=True)


@pytest.fixture
def archives(edge):
    """Does the work, as a worker."""
    return edge.use_cases.archives


@pytest.fixture
async def session(edge, client):
    """A session of ann's with a log, a transcript and files."""
    made = await client.create_session(session_pb2.Session())
    session_id = parse_session(made.name)
    store = WorkspaceStore(edge.settings.workspaces, checkpoint_limit=1, checkpoints_kept=1)
    await client.transfers.upload_file(made.name, "src/run.sh", b"#!/bin/sh\n", executable=True)
    files = store.path(session_id)
    (files / "src/link").symlink_to("/outside")
    (files / "read only").write_text("x")
    (files / "read only").chmod(0o444)
    (files / "big").write_bytes(os.urandom(3_000_000))
    (files / "empty").mkdir(mode=0o750)
    async with edge.database.transaction() as tx:
        (await tx.get_one(SessionHead, session_id)).epoch = 1
    run = clock.uuid7()
    for number in range(1, 4):
        events = [
            LogEvent.of(
                event_pb2.Event(notice=event_pb2.Notice(text=f"{number} {at} ü\0" * 3)), run if at % 2 else None
            )
            for at in range(400)
        ]
        lines = [("" if at % 3 else "subagents/a", b"{\xff\x00\n" + os.urandom(20)) for at in range(300)]
        await append(edge.database, session_id, 1, number, Batch(events=events, transcript=lines))
    return made.name


@pytest.fixture
async def closed(client, session):
    """The same, archived."""
    await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=session))
    return session


def picture(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = (
            path.readlink()
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else None
        )
        found[str(path.relative_to(folder))] = (info.st_mode, int(info.st_mtime), content)
    return found


async def everything(edge, name):
    """All that a session is made of."""
    session_id = parse_session(name)
    async with edge.database.connection() as connection:
        events = await connection.fetch(
            "SELECT sequence, run_id, kind, data FROM session_events WHERE session_id = $1 ORDER BY sequence",
            session_id,
        )
        lines = await connection.fetch(
            "SELECT position, subpath, data FROM session_transcripts WHERE session_id = $1 ORDER BY position",
            session_id,
        )
    files = edge.settings.workspaces / str(session_id) / "files"
    return [tuple(row) for row in events], [tuple(row) for row in lines], picture(files) if files.exists() else None


def store(client, name):
    return client.call(client.archives.StoreSession, archive_service_pb2.StoreSessionRequest(name=name))


def restore(client, name):
    return client.call(client.archives.RestoreSession, archive_service_pb2.RestoreSessionRequest(name=name))


def found(client, name):
    return client.call(client.archives.GetArchive, archive_service_pb2.GetArchiveRequest(name=f"{name}/archive"))


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


async def work(archives):
    """All that is due."""
    while await archives.drain():
        pass


async def now_due(edge):
    """Let nobody wait, and no lease count."""
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE archives SET due_time = now(), lease_expire_time = now()")


EMPTY = ([], [], None)
INVALID = ("FAILED_PRECONDITION", "STATE_INVALID")


async def test_a_session_goes_to_archive_storage_and_comes_back_as_it_was(edge, client, closed, archives):
    before = await everything(edge, closed)
    assert len(before[0]) == 1201
    assert (await store(client, closed)).state == State.STATE_STORING
    assert not (await client.get_session(closed)).restore_needed
    await work(archives)
    stored = await found(client, closed)
    assert (stored.state, stored.restore_needed, stored.error) == (State.STATE_STORED, True, "")
    assert (stored.event_count, stored.file_count) == (1201, 3)
    assert stored.size > 3_000_000
    assert await everything(edge, closed) == EMPTY
    assert (await store(client, closed)) == stored
    await work(archives)

    # Nothing that has gone looks as if it had never been.
    session = await client.get_session(closed)
    assert (session.archive_storage_state, session.restore_needed) == (State.STATE_STORED, True)
    listed = await client.call(client.sessions.ListSessions, session_service_pb2.ListSessionsRequest())
    assert [one.restore_needed for one in listed.sessions] == [True]
    events = session_service_pb2.ListSessionEventsRequest(parent=closed)
    assert await failure(client.call(client.sessions.ListSessionEvents, events)) == INVALID
    assert await failure(anext(client.watch(closed))) == INVALID
    assert await failure(client.fork_session(closed)) == INVALID
    assert await failure(client.transfers.download_file(closed, "big", None)) == INVALID

    assert (await restore(client, closed)).state == State.STATE_RESTORING
    await work(archives)
    assert (await found(client, closed)).state == State.STATE_RESTORED
    assert await everything(edge, closed) == before
    assert (await restore(client, closed)).state == State.STATE_RESTORED
    page = await client.call(client.sessions.ListSessionEvents, events)
    assert [event.sequence for event in page.events[:3]] == [1, 2, 3]
    # What was brought back stays until it is stored again.
    assert await sessions_to_clean(edge.database, 10) == []
    await store(client, closed)
    await work(archives)
    assert await everything(edge, closed) == EMPTY
    await restore(client, closed)
    await work(archives)
    assert await everything(edge, closed) == before
    assert len(await read_transcript(edge.database, parse_session(closed))) == 900


@only_folder
async def test_a_path_that_nobody_could_unpack_again_drops_nothing(edge, client, closed, archives):
    with nested(edge.settings.workspaces / closed.removeprefix("sessions/") / "files", 21, "x" * 200):
        pass
    await store(client, closed)
    await work(archives)
    assert "more than 4095 bytes" in (await found(client, closed)).error
    assert not (await client.get_session(closed)).restore_needed
    assert [event.sequence async for event in client.watch(closed)] == list(range(1, 1202))


@only_folder
async def test_files_that_are_nearly_all_holes_stay_here_and_that_is_told(edge, client, closed, archives):
    folder = edge.settings.workspaces / closed.removeprefix("sessions/") / "files"
    with (folder / "sparse").open("wb") as out:
        out.truncate(4 * 1024**4)
    await store(client, closed)
    await work(archives)
    assert "holes" in (await found(client, closed)).error
    assert not (await client.get_session(closed)).restore_needed
    assert (folder / "sparse").exists()


@only_folder
async def test_a_reader_is_told_when_the_log_goes_to_archive_storage_meanwhile(
    monkeypatch, edge, client, closed, archives
):
    async def then_store(read, *arguments, **named):
        rows = await read(*arguments, **named)
        await store(client, closed)
        await work(archives)
        return rows

    seen = []

    async def watch():
        async for event in client.watch(closed):
            seen.append(event.sequence)

    with monkeypatch.context() as patch:
        patch.setattr(Hub, "read", lambda hub, *a, read=Hub.read, **n: then_store(read, hub, *a, **n))
        assert await failure(watch()) == INVALID
    assert seen == list(range(1, len(seen) + 1))
    assert 0 < len(seen) < 1201

    await restore(client, closed)
    await work(archives)
    events = session_service_pb2.ListSessionEventsRequest(parent=closed, page_size=1000)
    events.page_token = (await client.call(client.sessions.ListSessionEvents, events)).next_page_token
    assert events.page_token

    async def too_late(*arguments, original=sessions_module.read_events, **named):
        await then_store(asyncio.sleep, 0)
        return await original(*arguments, **named)

    monkeypatch.setattr(sessions_module, "read_events", too_late)
    assert await failure(client.call(client.sessions.ListSessionEvents, events)) == INVALID


@only_folder
async def test_the_object_can_be_opened_by_any_tool(edge, client, closed, archives, tmp_path):
    await store(client, closed)
    await work(archives)
    folder = tmp_path / "archive storage" / closed.removeprefix("sessions/")
    manifest, archive = sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    told = json.loads(manifest.read_text())
    assert (told["events"], told["transcript_lines"], told["workspace"]["files"]) == (1201, 900, 3)
    assert archive.stat().st_size == told["size"]
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        first = json.loads(tar.extractfile("events/000001.jsonl").readline())
    assert first["sequence"] == 1
    assert "workspace/src/run.sh" in names


@only_folder
async def test_only_closed_sessions_of_ones_own_are_stored(edge, client, session, archives):
    assert await failure(store(client, session)) == INVALID
    assert await failure(restore(client, session)) == INVALID
    assert await failure(found(client, session)) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(found(client, "x")) == ("INVALID_ARGUMENT", "NAME_INVALID")
    async with edge.client("bob") as bob:
        assert await failure(store(bob, session)) == ("NOT_FOUND", "NOT_FOUND")
    async with edge.client("vic") as vic:
        assert await failure(store(vic, session)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    edge.settings.archive_url = None
    assert await failure(store(client, session)) == ("FAILED_PRECONDITION", "NOT_CONFIGURED")


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


@pytest.fixture
def kill(edge, monkeypatch):
    """Makes a worker of its own that is killed at the n-th call of something: `kill(owner, "name", 2)`."""

    def kill(owner, name, at=1, *, after=False):
        original, calls = getattr(owner, name), []

        async def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) == at and not after:
                raise Killed
            result = await original(*args, **kwargs)
            if len(calls) == at:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            patch.setattr(Archives, "_give_back", _nothing)
            yield Archives(edge.database, edge.settings)

    async def _nothing(*_):
        return None

    import contextlib

    return contextlib.contextmanager(kill)


STORE_POINTS = [
    (Objects, "put", 1, False), (Objects, "put", 1, True), (Objects, "put_bytes", 1, True),
    (archives_module, "held_archive", 2, False), (archives_module, "drop_log", 1, True),
    (Objects, "delete", 1, False), (Archives, "_remove_files", 1, False), (Archives, "_remove_files", 1, True),
]  # fmt: skip
RESTORE_POINTS = [
    (archives_module, "held_archive", 1, False), (archives_module, "drop_log", 1, True),
    (archives_module, "insert_events", 1, True), (archives_module, "insert_transcript", 1, True),
]  # fmt: skip


@only_folder
@pytest.mark.parametrize("point", STORE_POINTS, ids=lambda point: f"{point[1]}-{point[2]}-{point[3]}")
async def test_a_worker_that_is_killed_while_it_stores_loses_nothing(edge, client, closed, archives, kill, point):
    before = await everything(edge, closed)
    await store(client, closed)
    owner, name, at, after = point
    with kill(owner, name, at, after=after) as worker, pytest.raises(Killed):
        await work(worker)
    state = await found(client, closed)
    if not state.restore_needed:
        assert await everything(edge, closed) == before
    await now_due(edge)
    await work(archives)
    assert await everything(edge, closed) == EMPTY
    assert (await found(client, closed)).state == State.STATE_STORED
    await restore(client, closed)
    await work(archives)
    assert await everything(edge, closed) == before


@only_folder
@pytest.mark.parametrize("point", RESTORE_POINTS, ids=lambda point: f"{point[1]}-{point[2]}")
async def test_a_worker_that_is_killed_while_it_restores_is_followed(edge, client, closed, archives, kill, point):
    before = await everything(edge, closed)
    await store(client, closed)
    await work(archives)
    await restore(client, closed)
    owner, name, at, after = point
    with kill(owner, name, at, after=after) as worker, pytest.raises(Killed):
        await work(worker)
    assert (await found(client, closed)).restore_needed
    await now_due(edge)
    await work(archives)
    assert await everything(edge, closed) == before


@only_folder
async def test_a_lease_that_was_lost_changes_nothing(edge, client, closed, archives, monkeypatch):
    await store(client, closed)
    before = await everything(edge, closed)
    original = Objects.put_bytes

    async def slow(*args):
        await original(*args)
        await now_due(edge)
        assert await take_archive(edge.database, 60) is not None

    monkeypatch.setattr(Objects, "put_bytes", slow)
    assert await archives.drain() == 1
    assert await everything(edge, closed) == before
    assert (await found(client, closed)).state == State.STATE_STORING
    monkeypatch.undo()
    await now_due(edge)
    await work(archives)
    assert (await found(client, closed)).state == State.STATE_STORED


@only_folder
@pytest.mark.parametrize("again", [True, False], ids=["stored again", "restored"])
async def test_a_worker_that_comes_late_leaves_what_others_have_made(
    edge, client, closed, archives, monkeypatch, tmp_path, again
):
    """Frozen behind the commit, while others bring the session back and may store it again."""
    before = await everything(edge, closed)
    folder = tmp_path / "archive storage" / closed.removeprefix("sessions/")
    folder.mkdir(parents=True)
    (folder / "left.tar.gz").write_bytes(b"x")
    original = Objects.delete

    async def late(*args):
        monkeypatch.setattr(Objects, "delete", original)
        await now_due(edge)
        other = Archives(edge.database, edge.settings)
        await work(other)
        await restore(client, closed)
        await work(other)
        if again:
            await store(client, closed)
            await work(other)
        await original(*args)

    monkeypatch.setattr(Objects, "delete", late)
    await store(client, closed)
    await archives.drain()
    assert len(list(folder.iterdir())) == 2
    await restore(client, closed)
    await work(archives)
    assert await everything(edge, closed) == before


@only_folder
async def test_a_worker_that_ends_while_the_database_is_away_ends(edge, client, closed, archives, monkeypatch):
    began = asyncio.Event()

    async def hang(*_):
        began.set()
        await asyncio.sleep(60)

    async def away(*_):
        raise StoreUnavailable

    monkeypatch.setattr(Objects, "put", hang)
    monkeypatch.setattr(archives, "_give_back", away)
    await store(client, closed)
    draining = asyncio.create_task(archives.drain())
    async with asyncio.timeout(20):
        await began.wait()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining


@only_folder
async def test_an_object_that_was_changed_brings_nothing_back_and_says_so(edge, client, closed, archives, tmp_path):
    await store(client, closed)
    await work(archives)
    folder = tmp_path / "archive storage" / closed.removeprefix("sessions/")
    archive = next(folder.glob("*.tar.gz"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1] + b"!")
    await restore(client, closed)
    await work(archives)
    now = await found(client, closed)
    assert (now.state, now.restore_needed) == (State.STATE_RESTORING, True)
    assert "checksum" in now.error
    assert await everything(edge, closed) == EMPTY
    archive.unlink()
    await now_due(edge)
    await work(archives)
    assert "not in archive storage" in (await found(client, closed)).error
    archive.write_bytes(whole)
    await now_due(edge)
    await work(archives)
    assert (await found(client, closed)).state == State.STATE_RESTORED


@only_folder
async def test_storage_that_is_away_or_files_that_are_lost_drop_nothing(edge, client, closed, archives, monkeypatch):
    before = await everything(edge, closed)

    async def away(*_):
        raise ObjectError("archive storage cannot be read or written (GenericError)")

    monkeypatch.setattr(Objects, "put", away)
    await store(client, closed)
    for _ in range(10):
        await work(archives)
        await now_due(edge)
    now = await found(client, closed)
    assert (now.state, now.attempt_count) == (State.STATE_FAILED, 10)
    assert await everything(edge, closed) == before
    monkeypatch.undo()
    shutil.rmtree(edge.settings.workspaces / closed.removeprefix("sessions/"))
    await store(client, closed)
    await work(archives)
    assert "gone" in (await found(client, closed)).error
    assert (await everything(edge, closed))[:2] == before[:2]


@only_folder
async def test_files_wait_for_the_archive_and_old_sessions_go_there_by_themselves(edge, client, closed, archives):
    session_id = parse_session(closed)
    edge.settings.archive_after = 0.2
    assert await sessions_to_clean(edge.database, 10, keep=None) == []
    scheduling = asyncio.create_task(archives.schedule())
    async with asyncio.timeout(20):
        while (await client.get_session(closed)).archive_storage_state != State.STATE_STORED:
            await work(archives)
    scheduling.cancel()
    await asyncio.gather(scheduling, return_exceptions=True)
    assert await everything(edge, closed) == EMPTY
    assert not (edge.settings.workspaces / str(session_id)).exists()
    assert await sessions_to_clean(edge.database, 10, keep=None) == []


@only_folder
async def test_files_that_were_removed_before_are_not_missed(edge, client, closed, archives):
    before = await everything(edge, closed)
    assert await sessions_to_clean(edge.database, 10, keep=edge.settings.keep_closed_files) == []
    assert await sessions_to_clean(edge.database, 10) == [parse_session(closed)]
    async with edge.database.transaction() as tx:
        assert await note_cleaned(tx, parse_session(closed))
    shutil.rmtree(edge.settings.workspaces / closed.removeprefix("sessions/"))
    await store(client, closed)
    await work(archives)
    assert (await found(client, closed)).file_count == 0
    await restore(client, closed)
    await work(archives)
    assert await everything(edge, closed) == (*before[:2], None)


@only_folder
async def test_an_operator_may_keep_what_is_stored(edge, client, closed, archives):
    before = await everything(edge, closed)
    edge.settings.archive_drop = False
    await store(client, closed)
    await work(archives)
    now = await found(client, closed)
    assert (now.state, now.restore_needed) == (State.STATE_STORED, False)
    assert await everything(edge, closed) == before


@only_folder
async def test_several_workers_share_the_work(edge, client, archives):
    names = []
    for _ in range(4):
        name = (await client.create_session(session_pb2.Session())).name
        await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=name))
        await store(client, name)
        names.append(name)
    done = await asyncio.gather(*[Archives(edge.database, edge.settings).drain() for _ in range(6)])
    assert sum(done) == 4
    async with edge.database.transaction() as tx:
        rows = [await tx.get_one(ArchiveRow, parse_session(name)) for name in names]
    assert {(row.state, row.attempts) for row in rows} == {("STORED", 1)}


@only_folder
async def test_a_session_that_is_deleted_meanwhile_is_left_alone(edge, client, closed, archives):
    await store(client, closed)
    await client.call(client.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(name=closed))
    assert await archives.drain() == 0
    assert await sessions_to_clean(edge.database, 10) == [parse_session(closed)]


@only_folder
async def test_reading_takes_as_long_as_it_takes_and_goes_on_where_the_store_said_nothing_more(settings, monkeypatch):
    monkeypatch.setattr(objects_module, "_STALLED", timedelta(seconds=1))
    content = os.urandom(4_000_000)
    asked, answering = [], []

    async def answer(reader, writer):
        answering.append(asyncio.current_task())
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    asked.append(head)
                    found = re.search(r"range: bytes=(\d+)-", head)
                    at = int(found[1]) if found else 0
                    status = f"206 x\r\nContent-Range: bytes {at}-{len(content) - 1}/{len(content)}" if at else "200 x"
                    date = "Last-Modified: Sat, 21 Nov 2026 12:00:00 GMT"
                    length = len(content) - at
                    writer.write(
                        f'HTTP/1.1 {status}\r\n{date}\r\nETag: "x"\r\nContent-Length: {length}\r\n\r\n'.encode()
                    )
                    # More time than it may say nothing for, in which it says something.
                    for _ in range(5):
                        writer.write(content[at : at + 400_000])
                        at += 400_000
                        await writer.drain()
                        await asyncio.sleep(0.4)
                    if len(asked) == 1:
                        await reader.read()
                    writer.write(content[at:])
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    storage = {
        "archive_url": "s3://bucket",
        "archive_s3_endpoint": f"http://127.0.0.1:{port}",
        "archive_s3_access_key_id": SecretStr("key"),
        "archive_s3_secret_access_key": SecretStr("secret"),
    }
    objects = Objects(settings.model_copy(update=storage))
    try:
        assert b"".join([chunk async for chunk in objects.get("key")]) == content
    finally:
        server.close()
        await end_tasks(answering)
    assert len(asked) == 2
    assert objects._store.client_options["timeout"] == "12h"
