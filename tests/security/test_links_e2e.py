"""An agent of the real CLI plants links to the files of others wherever it can write, and the service works on there."""

import asyncio
import io

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.v1 import archive_pb2, archive_service_pb2, file_service_pb2, session_pb2, session_service_pb2
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import bash, create, outputs, run, state

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    storage = tmp_path_factory.mktemp("storage")
    async with own_stack(archive_url=storage.as_uri(), idle_ttl=300) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(running):
    async with running.client() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def victims(running, client):
    """What there is of another session, and a folder of the worker's user, with names that the service looks for."""
    other = await create(client, allowed_tools=["Bash"])
    await run(client, other, bash("echo precious > precious; mkdir -p sub && echo x > sub/x"))
    folder = running.folder / "of-the-operator"
    for name in ("subagents", "tool-results", "projects"):
        (folder / name / "precious").mkdir(parents=True, exist_ok=True)
    (folder / "precious").write_text("precious")
    kept = [running.workspace(other).parent, folder]
    before = [seen(path) for path in kept]
    yield folder
    assert [seen(path) for path in kept] == before
    assert outputs(await run(client, other, bash("cat precious sub/x")))[0].split() == ["precious", "x"]


def seen(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


async def restarted(client, session, turns):
    """The next run has another process."""
    changed = session_pb2.Session(name=session, options=session_pb2.SessionOptions(max_turns=turns))
    request = session_service_pb2.UpdateSessionRequest(
        session=changed, update_mask=FieldMask(paths=["options.max_turns"])
    )
    await client.call(client.sessions.UpdateSession, request)


ATTACKS = {
    "beside the conversation": 'rm -rf "$id"; ln -s {victim} "$id"',
    "the folder of all workspaces": 'rm -rf "$id"; ln -s {workspaces} "$id"',
    "the conversation": 'rm -f "$id.jsonl"; ln -s {victim}/precious "$id.jsonl"',
    "a conversation that is not there": 'rm -f "$id.jsonl"; ln -s {victim}/new "$id.jsonl"',
    "the project": 'cd ..; for key in *; do mv "$key" ../was; ln -s {victim} "$key"; done',
    "all projects": "cd ../..; mv projects was; ln -s {victim} projects",
    # Later, when nothing is written to it: the CLI that opens it does not come back.
    "a pipe": """nohup sh -c 'sleep 1; rm "$0" && mkfifo "$0"' "$id.jsonl" > /dev/null 2>&1 &""",
    "a file": "cd ../..; mv projects was; touch projects",
    "a folder": 'rm -f "$id.jsonl"; mkdir -p "$id.jsonl/x"; chmod 0 "$id.jsonl"',
    "closed": "chmod 0 . .. ../.. ~",
    "within": 'mkdir -p "$id"; cd "$id"; for name in subagents tool-results x; do rm -rf "$name"; ln -s {victim} "$name"; done',
    "deep": 'mkdir -p "$id"; cd "$id"; python3 -c "import os\nfor _ in range(3000): os.mkdir(\'d\'); os.chdir(\'d\')"',
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_process_that_starts_anew_touches_nothing_of_others(client, running, victims, attack):
    session = await create(client, allowed_tools=["Bash"])
    first = await run(client, session, "[[text: first words]]")
    assert state(first) == "STATE_SUCCEEDED"
    command = (
        ATTACKS[attack].replace("{victim}", str(victims)).replace("{workspaces}", str(running.folder / "workspaces"))
    )
    await run(
        client, session, bash(f'cd "$CLAUDE_CONFIG_DIR"/projects/* && id=$(basename *.jsonl .jsonl) && {command}')
    )
    if attack == "a pipe":
        await until(lambda: any(path.is_fifo() for path in (running.local(session) / "config").rglob("*.jsonl")))
    await restarted(client, session, 7)
    events = await run(client, session, f"{bash('echo alive')}\n[[then]]\n[[heard: first words]]")
    assert state(events) == "STATE_SUCCEEDED"
    assert outputs(events) == ["alive"]
    # What is left of the session goes with it, and holds nobody up.
    await client.call(client.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(name=session))
    await until(lambda: not running.local(session).exists() and not running.workspace(session).exists(), 90)


PLANT = """
for at in "$CLAUDE_CONFIG_DIR" "$HOME" . sub sub/deep; do
  mkdir -p "$at"
  for name in plans todos shell-snapshots .bashrc.d x new; do ln -sfn {victim} "$at/$name"; done
  ln -sfn {victim}/precious "$at/to-a-file"
  mkfifo "$at/pipe" 2>/dev/null
done
python3 -c "import os
for _ in range(150): os.mkdir('d'); os.chdir('d')"
mkdir closed && chmod 0 closed
truncate -s 9G sparse
echo mine > mine
"""


async def test_all_that_is_done_with_a_session_stays_in_it(client, running, victims):
    session = await create(client, allowed_tools=["Bash"], checkpoints=True)
    await run(client, session, bash(PLANT.replace("{victim}", str(victims))))
    second = await run(client, session, bash("rm -rf sparse closed; echo changed > mine"))
    third = await run(client, session, bash("ls -A; cat mine"))
    assert "changed" in outputs(third)[0]
    files = client.files

    async def attempt(awaitable):
        # It works, or says why not.
        try:
            return await awaitable
        except RpcError as error:
            if error.code not in {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}:
                raise
            return None

    listed = await client.call(
        files.ListFiles, file_service_pb2.ListFilesRequest(parent=session, recursive=True, page_size=1000)
    )
    assert {file.path for file in listed.files} >= {"sub/deep/x", "x", "mine", "sub/pipe"}
    for path in ("x", "x/precious", "to-a-file", "pipe", "sub/deep/x/precious", "mine"):
        await attempt(client.transfers.download_file(session, path, io.BytesIO()))
        await attempt(
            client.call(files.GetFile, file_service_pb2.GetFileRequest(parent=session, path=path, checksum=True))
        )
        await attempt(client.transfers.upload_file(session, f"{path}/new", b"uploaded", overwrite=True))
    await attempt(client.transfers.download_archive(session, "", io.BytesIO()))
    await attempt(
        client.call(files.DeleteFile, file_service_pb2.DeleteFileRequest(parent=session, path="sub", recursive=True))
    )
    name = next(event.run for event in third if event.HasField("run_started"))
    await client.rewind_session(name, restore_workspace=True)
    fork = (await client.fork_session(session, copy_workspace=True)).name
    assert outputs(await run(client, fork, bash("cat mine; readlink x")))[0].split() == ["changed", str(victims)]
    # The checkpoint before the second run was too large: the hole has nine gigabytes, as much as a file may.
    first = next(event.run for event in second if event.HasField("run_started"))
    assert await attempt(client.rewind_session(first, restore_workspace=True)) is None

    await client.call(client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=session))
    archives = client.archives
    await client.call(archives.StoreSession, archive_service_pb2.StoreSessionRequest(name=session))
    await reached(client, session, archive_pb2.Archive.STATE_STORED)
    await client.call(archives.RestoreSession, archive_service_pb2.RestoreSessionRequest(name=session))
    await reached(client, session, archive_pb2.Archive.STATE_RESTORED)
    assert (running.workspace(session) / "x").readlink() == victims
    for one in (session, fork):
        await client.call(client.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(name=one))
        await until(lambda one=one: not running.workspace(one).exists() and not running.local(one).exists(), 90)


async def reached(client, session, wanted):
    request = archive_service_pb2.GetArchiveRequest(name=f"{session}/archive")
    async with asyncio.timeout(90):
        while (await client.call(client.archives.GetArchive, request)).state != wanted:  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.1)
