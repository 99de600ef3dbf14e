"""Files of sessions over a real socket: what goes in comes out, and nothing leads out of a workspace."""

import asyncio
import contextlib
import ctypes
import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import threading
import zlib

import grpc
import psutil
import pytest

from agentrpc.claude import workspace_paths
from agentrpc.client import RpcError
from agentrpc.client.errors import decode
from agentrpc.v1 import file_pb2, file_service_pb2, session_pb2, session_service_pb2
from tests.conftest import edge_of
from tests.trees import nested

pb = file_service_pb2
SECRET = b"the secret of somebody else"


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert "Errno" not in caught.value.message
    return caught.value.code, caught.value.reason


@pytest.fixture
async def session(client):
    """A session of ann's with a workspace; a file is in it."""
    name = (await client.create_session(session_pb2.Session())).name
    await client.transfers.upload_file(name, "a.txt", b"hello")
    return name


@pytest.fixture
def folder(edge, session):
    """The workspace on the disk, beside which there is a secret."""
    path = edge.settings.workspaces / session.removeprefix("sessions/") / "files"
    (path.parent / "secret").write_bytes(SECRET)
    return path


def listed(client, session, path="", **fields):
    return client.call(client.files.ListFiles, pb.ListFilesRequest(parent=session, path=path, **fields))


def known(client, session, path, **fields):
    return client.call(client.files.GetFile, pb.GetFileRequest(parent=session, path=path, **fields))


def deleted(client, session, path, **fields):
    return client.call(client.files.DeleteFile, pb.DeleteFileRequest(parent=session, path=path, **fields))


async def downloaded(client, session, path, **fields):
    out = io.BytesIO()
    await client.transfers.download_file(session, path, out, **fields)
    return out.getvalue()


async def streamed(client, method, request):
    """All responses, or the error."""
    try:
        metadata = await client._metadata()
        return [response async for response in method(request, metadata=metadata)]
    except grpc.aio.AioRpcError as error:
        raise decode(error) from None


async def read_to_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def sent(client, *requests, method="UploadFile"):
    try:
        return await getattr(client.files, method)(iter(requests), metadata=await client._metadata())
    except grpc.aio.AioRpcError as error:
        raise decode(error) from None


def start(session, path="new", **fields):
    return pb.UploadFileRequest(start=pb.UploadFileStart(parent=session, path=path, **fields))


def data(content):
    return pb.UploadFileRequest(data=content)


def tar_of(*members, mode="w:gz"):
    """(name, content or a change of its TarInfo) …"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, given in members:
            info = tarfile.TarInfo(name)
            if isinstance(given, bytes):
                info.size = len(given)
                tar.addfile(info, io.BytesIO(given))
            else:
                for key, value in given.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return out.getvalue()


def link(target):
    return {"type": tarfile.SYMTYPE, "linkname": target}


def untouched(folder):
    """Nothing of an upload is left."""
    return not list((folder.parent / "incoming").iterdir())


# ---- What goes in comes out ----


async def test_a_file_goes_in_and_comes_out(client, session, folder):
    content = os.urandom(700_000)
    made = await client.transfers.upload_file(session, "./src//deep/b.bin", content, executable=True)
    assert (made.path, made.size, made.executable) == ("src/deep/b.bin", 700_000, True)
    assert made.sha256 == hashlib.sha256(content).hexdigest()
    assert (folder / "src/deep/b.bin").read_bytes() == content
    assert os.access(folder / "src/deep/b.bin", os.X_OK)
    assert await downloaded(client, session, "src/deep/b.bin") == content
    again = await known(client, session, "src/deep/b.bin", checksum=True)
    assert (again.sha256, again.etag, again.type) == (made.sha256, made.etag, file_pb2.File.TYPE_FILE)
    assert (await client.transfers.upload_file(session, "empty", b"")).size == 0
    assert await downloaded(client, session, "empty") == b""
    assert untouched(folder)


async def test_before_the_first_run_there_is_nothing_and_another_ones_does_not_exist(edge, client):
    name = (await client.create_session(session_pb2.Session())).name
    assert not (await listed(client, name)).files
    assert await failure(known(client, name, "a")) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(listed(client, name, "a")) == ("NOT_FOUND", "NOT_FOUND")
    async with edge.client("bob") as bob:
        assert await failure(listed(bob, name)) == ("NOT_FOUND", "NOT_FOUND")
        assert await failure(bob.transfers.upload_file(name, "a", b"")) == ("NOT_FOUND", "NOT_FOUND")
    async with edge.client("vic") as vic:
        assert await failure(vic.transfers.upload_file(name, "a", b"")) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert await failure(deleted(vic, name, "a")) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert not (edge.settings.workspaces).exists()


async def test_an_existing_file_is_replaced_only_if_asked_and_unchanged(client, session, folder):
    upload = client.transfers.upload_file
    assert await failure(upload(session, "a.txt", b"two")) == ("FAILED_PRECONDITION", "STATE_INVALID")
    # Said again, as after a lost answer.
    assert (await upload(session, "a.txt", b"hello")).size == 5
    before = await known(client, session, "a.txt")
    (folder / "a.txt").write_text("by the agent")
    changed = upload(session, "a.txt", b"two", overwrite=True, etag=before.etag)
    assert await failure(changed) == ("ABORTED", "ETAG_MISMATCH")
    now = await known(client, session, "a.txt")
    await upload(session, "a.txt", b"two", overwrite=True, etag=now.etag)
    assert (folder / "a.txt").read_text() == "two"
    # A link is replaced, and what it points to is not.
    (folder / "out").symlink_to("../secret")
    await upload(session, "out", b"two", overwrite=True)
    assert (folder.parent / "secret").read_bytes() == SECRET
    assert untouched(folder)


async def test_faults_of_an_upload_leave_nothing(client, session, folder):
    upload = client.transfers.upload_file
    bad = "0" * 64
    assert await failure(upload(session, "new", b"x", sha256=bad)) == ("INVALID_ARGUMENT", "CHECKSUM_MISMATCH")
    for requests in (
        [start(session, size=5), data(b"four")],
        [start(session, size=3), data(b"four")],
        [start(session, sha256="zz")],
        [start(session, size=-1)],
        [start(session, etag="x")],
        [data(b"x")],
        [],
        [start(session), start(session)],
        [start(session), pb.UploadFileRequest()],
        [start(session), data(bytes(1024 * 1024 + 1))],
    ):
        code, reason = await failure(sent(client, *requests))
        assert code == "INVALID_ARGUMENT"
        assert reason in {"CHECKSUM_MISMATCH", "FIELD_INVALID", "TOO_LARGE"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert untouched(folder)


async def test_lists_have_pages_in_order_and_hold_what_is_odd(client, session, folder):
    (folder / "sub/deep").mkdir(parents=True)
    (folder / "sub/deep/x").write_text("x")
    (folder / "sub.txt").write_text("x")
    (folder / "line\nbreak\x1b[2J").write_text("x")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    raw = b"caf\xe9"
    (folder / os.fsdecode(raw)).write_bytes(b"latin")
    found, token = [], ""
    while True:
        page = await listed(client, session, recursive=True, page_size=2, page_token=token)
        found += page.files
        token = page.next_page_token
        if not token:
            break
    order = ["a.txt", "caf\ufffd", "line\nbreak\x1b[2J", "link", "pipe", "sub", "sub/deep", "sub/deep/x", "sub.txt"]
    assert [file.path for file in found] == order
    types = {file.path: file_pb2.File.Type.Name(file.type).removeprefix("TYPE_") for file in found}
    assert (types["link"], types["pipe"], types["sub"]) == ("LINK", "OTHER", "FOLDER")
    assert next(file.link_target for file in found if file.path == "link") == "/etc/passwd"
    odd = found[1]
    assert odd.raw_path == raw
    assert await downloaded(client, session, "", raw_path=raw) == b"latin"
    await client.call(client.files.DeleteFile, pb.DeleteFileRequest(parent=session, raw_path=raw))
    assert not (folder / os.fsdecode(raw)).exists()
    assert [file.path for file in (await listed(client, session, "sub")).files] == ["sub/deep"]
    assert await failure(listed(client, session, page_token="x")) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
    assert await failure(listed(client, session, page_size=-1)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(listed(client, session, "a.txt")) == ("INVALID_ARGUMENT", "PATH_INVALID")


async def test_a_hundred_thousand_files_come_in_pages(client, session, folder):
    (folder / "many").mkdir()
    top = os.open(folder / "many", os.O_RDONLY)
    for number in range(100_000):
        os.close(os.open(f"{number:06}", os.O_CREAT | os.O_WRONLY, dir_fd=top))
    os.close(top)
    page = await listed(client, session, "many", page_size=1000)
    assert [file.path for file in page.files[:2]] == ["many/000000", "many/000001"]
    assert len(page.files) == 1000
    page = await listed(client, session, "many", page_size=1000, page_token=page.next_page_token)
    assert page.files[0].path == "many/001000"
    shutil.rmtree(folder / "many")


async def test_deleting(client, session, folder):
    (folder / "sub").mkdir()
    (folder / "sub/x").write_text("x")
    (folder / "sub/up").symlink_to("../..")
    assert await failure(deleted(client, session, "sub")) == ("FAILED_PRECONDITION", "STATE_INVALID")
    assert await failure(deleted(client, session, "a.txt", etag="x")) == ("ABORTED", "ETAG_MISMATCH")
    await deleted(client, session, "sub", recursive=True)
    await deleted(client, session, "a.txt")
    assert not list(folder.iterdir())
    assert (folder.parent / "secret").exists()
    assert untouched(folder)
    assert await failure(deleted(client, session, "a.txt")) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(deleted(client, session, "")) == ("INVALID_ARGUMENT", "PATH_INVALID")


async def test_a_closed_session_takes_nothing(edge, client, session):
    await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=session))
    closed = ("FAILED_PRECONDITION", "SESSION_NOT_ACTIVE")
    assert await failure(client.transfers.upload_file(session, "b", b"")) == closed
    assert await failure(client.transfers.upload_archive(session, "b", tar_of())) == closed
    assert await failure(deleted(client, session, "a.txt")) == closed
    assert await downloaded(client, session, "a.txt") == b"hello"


async def test_what_is_gone_or_not_seen_is_told(edge, client, session, folder):
    folder.rename(folder.parent / "elsewhere")
    gone = ("FAILED_PRECONDITION", "STATE_INVALID")
    assert await failure(listed(client, session)) == gone
    assert await failure(client.transfers.upload_file(session, "b", b"")) == gone
    assert await failure(client.transfers.upload_archive(session, "b", tar_of(("a", b"x")))) == gone
    edge.settings.workspaces.rename(edge.settings.data_dir / "elsewhere")
    missing = ("FAILED_PRECONDITION", "NOT_CONFIGURED")
    assert await failure(listed(client, session)) == missing
    # Made where no worker sees it, a workspace would be missed by every run.
    other = (await client.create_session(session_pb2.Session())).name
    assert await failure(client.transfers.upload_file(other, "a", b"")) == missing


# ---- Downloads go on ----


async def test_a_download_goes_on_where_it_was_cut(client, session, folder):
    content = os.urandom(1_500_000)
    (folder / "big").write_bytes(content)
    request = pb.DownloadFileRequest(parent=session, path="big")
    call = client.files.DownloadFile(request, metadata=await client._metadata())
    first = await call.read()
    part = (await call.read()).data
    call.cancel()
    assert part == content[: len(part)]
    request = pb.DownloadFileRequest(parent=session, path="big", offset=len(part), etag=first.file.etag)
    rest = await streamed(client, client.files.DownloadFile, request)
    assert part + b"".join(response.data for response in rest) == content
    assert rest[-1].sha256 == hashlib.sha256(content).hexdigest()
    request.limit = 10
    few = await streamed(client, client.files.DownloadFile, request)
    assert (b"".join(r.data for r in few), few[-1].sha256) == (content[len(part) :][:10], "")
    request.offset = 10**9
    assert await failure(streamed(client, client.files.DownloadFile, request)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    (folder / "big").write_bytes(content[::-1])
    assert await failure(streamed(client, client.files.DownloadFile, request)) == ("ABORTED", "ETAG_MISMATCH")


async def test_a_tree_is_the_same_archive_each_time_and_comes_back(client, session, folder):
    (folder / "src").mkdir(mode=0o755)
    (folder / "src/run.sh").write_text("#!/bin/sh\n")
    (folder / "src/run.sh").chmod(0o755)
    (folder / "src/big").write_bytes(os.urandom(900_000))
    (folder / "src/link").symlink_to("run.sh")
    (folder / "src" / ("n" * 200)).write_text("long")
    (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    os.mkfifo(folder / "pipe")
    archives = []
    for _ in range(2):
        out = io.BytesIO()
        await client.transfers.download_archive(session, "", out)
        archives.append(out.getvalue())
    assert archives[0] == archives[1]
    request = pb.DownloadArchiveRequest(parent=session)
    whole = await streamed(client, client.files.DownloadArchive, request)
    request.etag, request.offset = whole[0].etag, 300_000
    rest = await streamed(client, client.files.DownloadArchive, request)
    assert b"".join(response.data for response in rest) == archives[0][300_000:]
    assert rest[-1].sha256 == whole[-1].sha256 == hashlib.sha256(archives[0]).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        assert {member.uid for member in tar} == {0}
    other = (await client.create_session(session_pb2.Session())).name
    answer = await client.transfers.upload_archive(other, "copy", archives[0])
    copy = folder.parent.parent / other.removeprefix("sessions/") / "files/copy"
    assert answer.file_count == 6
    assert (copy / "src/big").read_bytes() == (folder / "src/big").read_bytes()
    assert os.access(copy / "src/run.sh", os.X_OK)
    assert (copy / "src/link").readlink().name == "run.sh"
    (folder / "src/later").touch()
    assert await failure(streamed(client, client.files.DownloadArchive, request)) == ("ABORTED", "ETAG_MISMATCH")
    request.etag = ""
    faulty = await failure(streamed(client, client.files.DownloadArchive, request))
    assert faulty == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_a_download_that_nobody_reads_is_cut_and_one_at_a_drain_says_so(edge, client, session, folder):
    with (folder / "big").open("wb") as file:
        file.truncate(400 * 1024**2)
    request = pb.DownloadFileRequest(parent=session, path="big")
    call = client.files.DownloadFile(request, metadata=await client._metadata())
    await call.read()
    edge.hub.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_end(call)
    assert decode(caught.value).reason == "DRAINING"


# ---- No way out ----

PATHS = [
    "..", "../secret", "sub/../../secret", "/etc/passwd", "//etc/passwd", "a.txt/../../secret", "x/" * 201 + "x",
    "n" * 256, "/".join(["n" * 250] * 17), "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_paths_that_lead_out_are_refused(client, session, folder, path):
    bad = ("INVALID_ARGUMENT", "PATH_INVALID")
    assert await failure(downloaded(client, session, path)) == bad
    assert await failure(known(client, session, path)) == bad
    assert await failure(listed(client, session, path)) == bad
    assert await failure(deleted(client, session, path)) == bad
    assert await failure(client.transfers.upload_file(session, path, b"x", overwrite=True)) == bad
    assert await failure(client.transfers.upload_archive(session, path, tar_of(("a", b"x")))) == bad
    archive = pb.DownloadArchiveRequest(parent=session, path=path)
    assert await failure(streamed(client, client.files.DownloadArchive, archive)) == bad


@pytest.fixture(params=["openat2", "step by step"])
def kernel(request, monkeypatch):
    """With and without the call that the kernel may lack."""
    monkeypatch.setattr(workspace_paths, "_has_openat2", None if request.param == "openat2" else False)


async def test_links_are_not_followed(client, session, folder, kernel):
    (folder.parent / "out").mkdir()
    (folder.parent / "out/secret").write_bytes(SECRET)
    links = {
        "file": "../secret", "absolute": str(folder.parent / "secret"), "dir": "../out", "self": ".",
        "proc": "/proc/self/root", "fd": "/proc/self/fd", "cwd": "/proc/self/cwd", "loop": "loop", "inner": "a.txt",
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    bad = ("INVALID_ARGUMENT", "PATH_INVALID")
    ways = [
        *links,
        "dir/secret",
        "self/a.txt",
        f"proc{folder.parent}/secret",
        "fd/0",
        "cwd/README.md",
        "self/dir/secret",
    ]
    for path in ways:
        assert await failure(downloaded(client, session, path)) == bad, path
        assert await failure(listed(client, session, path)) == bad, path
        archive = pb.DownloadArchiveRequest(parent=session, path=path)
        assert await failure(streamed(client, client.files.DownloadArchive, archive)) == bad, path
    for path in ways[len(links) :]:
        assert await failure(known(client, session, path)) == bad, path
        assert await failure(deleted(client, session, path)) == bad, path
        assert await failure(client.transfers.upload_file(session, path, b"x", overwrite=True)) == bad, path
    for path in ("dir", "self", "proc"):
        assert await failure(client.transfers.upload_archive(session, path, tar_of(("secret", b"x")))) == bad
    assert (folder.parent / "out/secret").read_bytes() == SECRET
    # A folder with links in it: the links, and nothing behind them.
    out = io.BytesIO()
    await client.transfers.download_archive(session, "", out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert all(member.issym() or member.name == "a.txt" for member in tar)
    assert SECRET not in gzip.decompress(out.getvalue())
    await deleted(client, session, "dir")
    assert (folder.parent / "out/secret").exists()


async def test_pipes_and_devices_are_never_opened(client, session, folder, kernel):
    os.mkfifo(folder / "pipe")
    names = ["pipe"]
    if os.geteuid() == 0:
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(folder / "kmsg", 0o666 | stat.S_IFCHR, os.makedev(1, 11))
        names += ["null", "kmsg"]
    bad = ("INVALID_ARGUMENT", "PATH_INVALID")
    for name in names:
        async with asyncio.timeout(10):
            assert await failure(downloaded(client, session, name)) == bad
            assert await failure(listed(client, session, name)) == bad
            assert (await known(client, session, name, checksum=True)).type == file_pb2.File.TYPE_OTHER
    async with asyncio.timeout(10):
        out = io.BytesIO()
        await client.transfers.download_archive(session, "", out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert tar.getnames() == ["a.txt"]


async def test_a_folder_that_becomes_a_link_at_any_moment_leads_nowhere(client, session, folder, kernel):
    (folder.parent / "out").mkdir()
    (folder.parent / "out/x").write_bytes(SECRET)
    (folder / "sub").mkdir()
    (folder / "sub/x").write_bytes(b"inside")
    over = threading.Event()

    (folder / "evil").symlink_to("../out")
    libc = ctypes.CDLL(None)

    def swap():
        exchange = 2
        while not over.is_set():
            libc.renameat2(-100, bytes(folder / "sub"), -100, bytes(folder / "evil"), exchange)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = set()
    try:
        for number in range(150):
            with contextlib.suppress(RpcError):
                seen.add(await downloaded(client, session, "sub/x"))
            with contextlib.suppress(RpcError):
                await client.transfers.upload_file(session, f"sub/new{number}", b"mine")
            with contextlib.suppress(RpcError):
                await deleted(client, session, "sub/x" if number % 50 == 49 else "sub/none")
            if number % 10 == 0:
                with contextlib.suppress(RpcError):
                    out = io.BytesIO()
                    await client.transfers.download_archive(session, "", out)
                    assert SECRET not in gzip.decompress(out.getvalue())
    finally:
        over.set()
        await asyncio.to_thread(swapping.join)
    assert seen <= {b"inside"}
    assert [path.name for path in (folder.parent / "out").iterdir()] == ["x"]
    assert (folder.parent / "out/x").read_bytes() == SECRET


async def test_very_deep_trees_are_listed_to_a_depth_and_told(client, session, folder):
    with nested(folder, 260, "d" * 20):
        pass
    found, token = 0, ""
    while True:
        page = await listed(client, session, recursive=True, page_size=1000, page_token=token)
        found += len(page.files)
        token = page.next_page_token
        if not token:
            break
    assert found == 202
    archive = pb.DownloadArchiveRequest(parent=session)
    refused = await failure(streamed(client, client.files.DownloadArchive, archive))
    assert refused == ("FAILED_PRECONDITION", "STATE_INVALID")
    await deleted(client, session, "d" * 20, recursive=True)
    assert untouched(folder)


# ---- Archives of others ----

ESCAPES = {
    "up": [("../evil", b"x")],
    "absolute": [("/tmp/evil", b"x")],
    "up within": [("a/../../evil", b"x")],
    "through a link": [("out", link("..")), ("out/evil", b"x")],
    "link up": [("out", link("../secret"))],
    "link absolute": [("out", link("/etc/passwd"))],
    "link by a link": [("d", link(".")), ("out", link("d/../.."))],
    "hard link up": [("out", {"type": tarfile.LNKTYPE, "linkname": "../secret"})],
    "hard link to a link": [("l", link("a")), ("out", {"type": tarfile.LNKTYPE, "linkname": "l"})],
    "device": [("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "pipe": [("pipe", {"type": tarfile.FIFOTYPE})],
    "twice": [("a", b"x"), ("a", b"y")],
    "file as a folder": [("a", b"x"), ("a/b", b"y")],
}


@pytest.mark.parametrize("what", ESCAPES)
async def test_archives_that_lead_out_change_nothing(client, session, folder, what):
    archive = tar_of(("good", b"x"), *ESCAPES[what])
    bad = ("INVALID_ARGUMENT", "PATH_INVALID")
    assert await failure(client.transfers.upload_archive(session, "in", archive)) == bad
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert (folder.parent / "secret").read_bytes() == SECRET
    assert not (folder.parent / "evil").exists()
    assert untouched(folder)


async def test_an_archive_is_merged_or_refused_as_a_whole(client, session, folder):
    upload = client.transfers.upload_archive
    plain = tar_of(
        ("src/a", b"one"), ("src/l", link("a")), ("h", {"type": tarfile.LNKTYPE, "linkname": "src/a"}), mode="w"
    )
    answer = await upload(session, "", plain)
    assert (answer.file_count, answer.size) == (3, 3)
    assert (folder / "h").read_text() == (folder / "src/l").read_text() == "one"
    more = tar_of(("src/b", b"two"), ("src/a", b"three"))
    assert await failure(upload(session, "", more)) == ("FAILED_PRECONDITION", "STATE_INVALID")
    assert not (folder / "src/b").exists()
    await upload(session, "", more, overwrite=True)
    assert ((folder / "src/a").read_text(), (folder / "src/b").read_text()) == ("three", "two")
    clash = tar_of(("a.txt/x", b"x"))
    assert await failure(upload(session, "", clash, overwrite=True)) == ("INVALID_ARGUMENT", "PATH_INVALID")
    # Set-user-id and unreadable modes do not come in.
    await upload(session, "m", tar_of(("s", {"mode": 0o4000})))
    assert stat.S_IMODE((folder / "m/s").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["nothing", "text", "cut", "damaged", "huge header", "negative size"])
async def test_what_is_no_archive_is_told(client, session, folder, what):
    good = tar_of(("a", os.urandom(50_000)))
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    negative = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 11 + b"\x00"
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    content = {
        "nothing": b"",
        "text": b"hello " * 500,
        "cut": good[:-5000],
        "damaged": good[:2000] + b"!" * 500 + good[2500:],
        "huge header": header.tobuf(tarfile.GNU_FORMAT) + bytes(4096),
        "negative size": bytes(negative) + bytes(4096),
    }[what]
    async with asyncio.timeout(30):
        code, reason = await failure(client.transfers.upload_archive(session, "in", content))
    assert code == "INVALID_ARGUMENT"
    assert reason in {"FIELD_INVALID", "PATH_INVALID"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert untouched(folder)


def header(kind, content=b"", **fields):
    """A header of tar with what follows it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def sparse(extensions):
    """The header of a sparse file that says it goes on, so many blocks which say so too, and one which does not."""
    block = bytearray(header(tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + (bytes(504) + b"\1" + bytes(7)) * extensions + bytes(512)


def record(key, value):
    length = next(length for length in range(5, 2**20) if length == len(f"{length} {key}={value}\n"))
    return f"{length} {key}={value}\n".encode()


HOSTILE_HEADERS = {
    # Old versions of tarfile look for a keyword behind each digit.
    "digits": header(tarfile.XHDTYPE, b"1" * 20_000),
    "digits in a record": header(tarfile.XHDTYPE, record("comment", "1" * 20_000)),
    # And take all that follows for the keyword of each record.
    "records in records": header(tarfile.XHDTYPE, b"2 " * 3000 + b"="),
    "a long header": header(tarfile.XHDTYPE, record("comment", "a" * 70_000)),
    "many headers": header(tarfile.GNUTYPE_LONGNAME, b"a" * 30_000) * 3,
    "global headers": b"".join(
        header(tarfile.XGLTYPE, record(f"k{number}", "a" * 1000)) + header(tarfile.DIRTYPE) for number in range(20)
    ),
    "sparse, going on": sparse(1000),
    "sparse, cut off": sparse(0)[:512],
}


@pytest.mark.parametrize("what", HOSTILE_HEADERS)
async def test_headers_that_would_take_long_are_refused(client, session, folder, what):
    content = HOSTILE_HEADERS[what]
    if "cut off" not in what:
        content += header(tarfile.REGTYPE) + bytes(1024)
    bad = ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(client.transfers.upload_archive(session, "in", content)) == bad
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert untouched(folder)


async def test_an_archive_may_have_long_names_and_records(client, session, folder):
    name = "/".join(["ü" * 100] * 19)
    headers = {"SCHILY.xattr.user.a": "x" * 30_000, "mtime": "1000000000.123456789", "comment": "1" * 500}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a" * 40}) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = 700_000, headers
        tar.addfile(info, io.BytesIO(bytes(700_000)))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, name
        tar.addfile(info)
    assert (await client.transfers.upload_archive(session, "", archive.getvalue())).file_count == 2
    assert ((folder / name).stat().st_size, int((folder / name).stat().st_mtime)) == (700_000, 1_000_000_000)
    assert str((folder / "link").readlink()) == name


async def test_many_small_gzips_copy_little(monkeypatch, client, session, folder):
    given = 0

    class Unpacker:
        def __init__(self, wbits):
            self._real = zlib_decompressobj(wbits)

        def decompress(self, data, most):
            nonlocal given
            given += len(data)
            return self._real.decompress(data, most)

        def __getattr__(self, name):
            return getattr(self._real, name)

    zlib_decompressobj = zlib.decompressobj
    archive = tar_of(("a", b"x")) + gzip.compress(b"") * 30_000
    monkeypatch.setattr(zlib, "decompressobj", Unpacker)
    assert (await client.transfers.upload_archive(session, "in", archive)).file_count == 1
    assert given < 30_000 * 16 * 1024


# ---- Limits ----


@contextlib.asynccontextmanager
async def another(edge, **settings):
    """Another edge of the same service, as a client sees it."""
    other = edge_of(edge.settings.model_copy(update=settings), edge.database, edge.bus)
    other.port = await other.server.start()
    async with other.client("ann") as client:
        yield client
    await other.server.stop(0.5)


@pytest.fixture
async def tight(edge):
    """Another edge, with small limits."""
    sizes = {"max_file_size": 64 * 1024**2, "max_workspace_size": 80 * 1024**2}
    async with another(edge, **sizes, max_archive_members=100, max_streams_per_user=1) as client:
        yield client


class Zeros:
    """A file of a gigabyte."""

    def __init__(self):
        self.read_bytes = 0

    def read(self, size):
        size = min(size, 1024**3 - self.read_bytes)
        self.read_bytes += size
        return bytes(size)


@pytest.mark.parametrize("method", ["UploadFile", "UploadArchive"])
async def test_uploads_at_once_do_not_pass_the_limit_together(client, tight, session, folder, method):
    content, arrived = os.urandom(30 * 1024**2), asyncio.Event()
    if method == "UploadFile":
        first, kind, whole = start(session, "second"), pb.UploadFileRequest, content
    else:
        first = pb.UploadArchiveRequest(start=pb.UploadArchiveStart(parent=session))
        kind, whole = pb.UploadArchiveRequest, tar_of(("second", content), mode="w")

    async def slow():
        yield first
        at = 0
        while at < len(whole):
            size = 1024**2 if arrived.is_set() else 1024
            yield kind(data=whole[at : at + size])
            at += size
            if not arrived.is_set():
                await asyncio.sleep(0.05)

    incoming = folder.parent / "incoming"
    assert untouched(folder)
    call = getattr(tight.files, method)(slow(), metadata=await tight._metadata())
    # It has looked how much room there is.
    while not list(incoming.iterdir()):  # noqa: ASYNC110 - a file rings no bell
        await asyncio.sleep(0.01)
    # Another edge's.
    await client.transfers.upload_file(session, "first", bytes(60 * 1024**2))
    arrived.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert decode(caught.value).reason == "LIMIT_REACHED"
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "first"]
    assert untouched(folder)
    # What comes does not count twice.
    if method == "UploadFile":
        await tight.transfers.upload_file(session, "second", content[: 15 * 1024**2])
    else:
        await tight.transfers.upload_archive(session, "", tar_of(("second", content[: 9 * 1024**2]), mode="w"))
    assert (folder / "second").exists()


async def test_a_gigabyte_is_refused_at_once_and_takes_no_memory(tight, session, folder):
    too_large = ("INVALID_ARGUMENT", "TOO_LARGE")
    zeros = Zeros()
    before = psutil.Process().memory_info().rss
    # The first message says how much it will be.
    assert await failure(tight.transfers.upload_file(session, "new", zeros, size=1024**3)) == too_large
    assert zeros.read_bytes < 32 * 1024**2
    # It does not.
    zeros = Zeros()
    assert await failure(tight.transfers.upload_file(session, "new", zeros)) == too_large
    assert zeros.read_bytes < 160 * 1024**2
    assert psutil.Process().memory_info().rss - before < 100 * 1024**2
    assert untouched(folder)
    (folder / "full").write_bytes(bytes(60 * 1024**2))
    full = ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert await failure(tight.transfers.upload_file(session, "new", Zeros(), size=30 * 1024**2)) == full
    assert await failure(tight.transfers.upload_file(session, "new", Zeros())) == full
    # What is replaced makes room.
    again = await tight.transfers.upload_file(session, "full", bytes(30 * 1024**2), overwrite=True)
    assert again.size == 30 * 1024**2
    assert untouched(folder)


async def test_bombs_do_not_go_off(tight, session, folder):
    full = ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    upload = tight.transfers.upload_archive
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as out:
        info = tarfile.TarInfo("zeros")
        info.size = 300 * 1024**2
        out.write(info.tobuf())
        for _ in range(300):
            out.write(bytes(1024**2))
    assert len(bomb.getvalue()) < 400_000
    before = psutil.Process().memory_info().rss
    assert await failure(upload(session, "in", bomb.getvalue())) == full
    assert psutil.Process().memory_info().rss - before < 60 * 1024**2
    many = tar_of(*[(f"f{number}", b"") for number in range(101)])
    assert await failure(upload(session, "in", many)) == full
    # Folders that are no members count as they do: 2 * 60 of them, where one name has 60 at most.
    deep = tar_of(*[(f"{number}/" + "a/" * 59 + "f", b"") for number in range(2)])
    assert await failure(upload(session, "in", deep)) == full
    within = [(f"d{number}", {"type": tarfile.DIRTYPE}) for number in range(50)] * 2
    assert (await upload(session, "whole", tar_of(*within))).file_count == 0
    shutil.rmtree(folder / "whole")
    # And they need room.
    (folder / "large").write_bytes(bytes(80 * 1024**2 - 40 * 4096))
    assert await failure(upload(session, "in", tar_of(*[(f"{number}/f", b"") for number in range(45)]))) == full
    (folder / "large").unlink()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert untouched(folder)


async def test_uploads_count_as_streams(tight, session, folder):
    async def silent():
        yield start(session)
        await asyncio.sleep(600)

    call = tight.files.UploadFile(silent(), metadata=await tight._metadata())
    # One is open, and there may be one.
    while not list((folder.parent / "incoming").iterdir()):  # noqa: ASYNC110 - a file rings no bell
        await asyncio.sleep(0.01)
    assert await failure(sent(tight, start(session))) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
    call.cancel()


async def test_uploads_that_say_nothing_end(edge, session, folder):
    async def silent():
        yield start(session)
        await asyncio.sleep(600)

    async with another(edge, upload_stall_timeout=0.5) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.files.UploadFile(silent(), metadata=await client._metadata())
    assert decode(caught.value).reason == "SLOW_CONSUMER"
    assert untouched(folder)


async def test_an_upload_that_is_given_up_or_cut_leaves_nothing(edge, client, session, folder):
    arrived = asyncio.Event()

    async def slow():
        yield start(session)
        yield data(b"half")
        arrived.set()
        await asyncio.sleep(60)

    incoming = folder.parent / "incoming"
    call = client.files.UploadFile(slow(), metadata=await client._metadata())
    await arrived.wait()
    call.cancel()
    async with asyncio.timeout(10):
        while edge.server._calls:  # noqa: ASYNC110 - the end of an RPC rings no bell
            await asyncio.sleep(0.01)
    assert not list(incoming.iterdir())
    arrived.clear()
    call = client.files.UploadFile(slow(), metadata=await client._metadata())
    await arrived.wait()
    await edge.server.stop(0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert decode(caught.value).reason == "DRAINING"
    assert not list(incoming.iterdir())
    assert not (folder / "new").exists()


async def test_nobody_uploads_without_a_token(channel, session):
    method = channel.stream_unary("/agentrpc.v1.FileService/UploadFile")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(iter([start(session).SerializeToString()]))
    assert decode(caught.value).reason == "CREDENTIALS_MISSING"


async def test_what_is_no_message_is_told(client, channel, session):
    method = channel.stream_unary("/agentrpc.v1.FileService/UploadFile")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(iter([b"\xff\xff"]), metadata=await client._metadata())
    assert decode(caught.value).reason == "FIELD_INVALID"


# ---- What costs much ----


HUGE = 4 * 1024**4


def sparse(path, size=HUGE):
    with path.open("wb") as out:
        out.write(b"begin")
        out.truncate(size)


async def test_a_sparse_file_costs_what_is_sent_of_it(client, session, folder):
    sparse(folder / "sparse")
    download = client.files.DownloadFile
    # The last byte, without all that comes before it and so without the checksum of the whole.
    last = await streamed(client, download, pb.DownloadFileRequest(parent=session, path="sparse", offset=HUGE - 1))
    assert (b"".join(part.data for part in last), last[-1].sha256) == (b"\0", "")
    some = await streamed(client, download, pb.DownloadFileRequest(parent=session, path="sparse", limit=7))
    assert b"".join(part.data for part in some) == b"begin\0\0"
    too_large = ("INVALID_ARGUMENT", "TOO_LARGE")
    for fields in ({}, {"offset": 1}, {"limit": HUGE // 2}):
        request = pb.DownloadFileRequest(parent=session, path="sparse", **fields)
        assert await failure(streamed(client, download, request)) == too_large
    assert await failure(known(client, session, "sparse", checksum=True)) == too_large
    archive = pb.DownloadArchiveRequest(parent=session)
    assert await failure(streamed(client, client.files.DownloadArchive, archive)) == too_large
    # Nor is it read to find out whether an upload has come already.
    exists = ("FAILED_PRECONDITION", "STATE_INVALID")
    assert await failure(client.transfers.upload_file(session, "sparse", b"begin")) == exists


async def test_a_download_that_was_cut_goes_on_also_where_the_server_has_no_checksum(edge, client, session, folder):
    content = os.urandom(1_000_000)
    (folder / "big").write_bytes(content)
    settings = edge.settings.model_copy(update={"max_file_size": 500_000})
    small = edge_of(settings, edge.database, edge.bus)
    small.port = await small.server.start()
    try:
        async with small.client("ann") as other:
            known_before = await known(other, session, "big")
            request = pb.DownloadFileRequest(parent=session, path="big", offset=600_000, etag=known_before.etag)
            rest = await streamed(other, other.files.DownloadFile, request)
            assert (b"".join(part.data for part in rest), rest[-1].sha256) == (content[600_000:], "")
            # The client goes on by itself; what it has is whole.
            method, cut = other.files.DownloadFile, []

            def once_cut(request, **more):
                cut.append(request.offset)
                return method(request, **more) if len(cut) > 1 else cut_off(method(request, **more))

            other.transfers._files = type("Stub", (), {"DownloadFile": staticmethod(once_cut)})
            out = io.BytesIO()
            found = await other.transfers.download_file(session, "big", out)
            assert len(cut) == 2
            assert cut[1] > 0
            assert out.getvalue() == content
            assert found.sha256 == hashlib.sha256(content).hexdigest()
    finally:
        await small.server.stop(0.5)


async def cut_off(call):
    parts = 0
    async for response in call:
        yield response
        parts += bool(response.data)
        if parts == 2:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")


@pytest.fixture
async def few(edge):
    """Ann's client at an edge where a workspace has few entries."""
    settings = edge.settings.model_copy(update={"max_workspace_entries": 10})
    other = edge_of(settings, edge.database, edge.bus)
    other.port = await other.server.start()
    async with other.client("ann") as client:
        yield client
    await other.server.stop(0.5)


async def test_empty_files_take_their_place_too(few, session, folder):
    full = ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    for number in range(9):
        await few.transfers.upload_file(session, f"{number}", b"")
    assert await failure(few.transfers.upload_file(session, "more", b"")) == full
    await few.transfers.upload_file(session, "8", b"new", overwrite=True)
    assert await failure(few.transfers.upload_archive(session, "", tar_of(("a", b"")))) == full
    assert untouched(folder)
    await deleted(few, session, "8")
    await deleted(few, session, "7")
    three = tar_of(("x", b""), ("y", b""), ("z", b""))
    assert await failure(few.transfers.upload_archive(session, "", three)) == full
    await few.transfers.upload_archive(session, "", tar_of(("x", b""), ("y", b"")))
    assert len(list(folder.iterdir())) == 10
    # An agent may make more; an archive of so many is not made.
    for number in range(20):
        (folder / f"own{number}").touch()
    archive = pb.DownloadArchiveRequest(parent=session)
    assert await failure(streamed(few, few.files.DownloadArchive, archive)) == full
    assert len((await listed(few, session, page_size=1000)).files) == 30


@pytest.mark.parametrize("name", ["a\nb\x1b[2J.txt", "folder\x07/x", "c1\x85"])
async def test_an_archive_brings_no_name_that_an_upload_may_not_have(client, session, folder, name):
    bad = ("INVALID_ARGUMENT", "PATH_INVALID")
    assert await failure(client.transfers.upload_file(session, name, b"x")) == bad
    assert await failure(client.transfers.upload_archive(session, "", tar_of((name, b"x")))) == bad
    assert await failure(client.transfers.upload_archive(session, "", tar_of(("l", link(name))))) == bad
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]


async def test_an_archive_of_what_an_agent_made_is_taken_again_unless_it_leads_out(client, session, folder):
    (folder / "src").mkdir()
    (folder / "src/x").write_text("x")
    (folder / "src/inside").symlink_to("x")

    async def there_and_back(to):
        out = io.BytesIO()
        await client.transfers.download_archive(session, "src", out)
        return await client.transfers.upload_archive(session, to, out.getvalue())

    await there_and_back("copy")
    assert (folder / "copy/inside").readlink().name == "x"
    for name, target in (("out", "/etc/passwd"), ("up", "../a.txt")):
        (folder / "src" / name).symlink_to(target)
        with pytest.raises(RpcError, match=name) as caught:
            await there_and_back("again")
        assert caught.value.reason == "PATH_INVALID"
        (folder / "src" / name).unlink()
    (folder / "src/line\nbreak").touch()
    assert await failure(there_and_back("again")) == ("INVALID_ARGUMENT", "PATH_INVALID")
    assert not (folder / "again").exists()


async def test_a_folder_that_an_agent_has_closed_is_deleted(client, session, folder):
    (folder / "closed/sub").mkdir(parents=True)
    (folder / "closed/sub").chmod(0o000)
    (folder / "closed").chmod(0o500)
    await deleted(client, session, "closed", recursive=True)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]
    assert not list((folder.parent.parent / "removed").iterdir())
