"""A whole stack whose agents have users of their own: what callers, workers and edges do with a session still works."""

import io
import tarfile

import pytest
import pytest_asyncio

from agentrpc.claude.agent_users import processes_of
from agentrpc.v1 import event_pb2, session_pb2
from tests.e2e.stacks import own_stack, until
from tests.e2e.talk import bash, create, of, outputs, run, state
from tests.isolations import users

pytestmark = [users, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# Says as whom it runs. It needs nothing but a shell.
WHO = r"""
while read -r line; do
  id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
  case $line in
    *'"initialize"'*) r='{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"w","version":"1"}}';;
    *'"tools/list"'*) r='{"tools":[{"name":"who","description":"w","inputSchema":{"type":"object"}}]}';;
    *'"tools/call"'*) r="{\"content\":[{\"type\":\"text\",\"text\":\"$(id -u) $(pwd)\"}]}";;
    *) continue;;
  esac
  echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":$r}"
done
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running():
    async with own_stack(isolation="user", minimum_isolation="user", poll_interval=0.5) as running:
        yield running


async def test_what_callers_and_agents_put_into_a_workspace_both_can_use(client, running):
    session = await create(client, allowed_tools=["Bash"], checkpoints=True)
    await client.transfers.upload_file(session, "in/list", b"one\n")
    first = await run(
        client, session, bash("echo two >> in/list; id -u; stat -c %u . in in/list; ls -a ~ && touch ~/x")
    )
    uid, *owners = outputs(first)[0].split()[:4]
    assert set(owners) == {uid}
    assert int(uid) >= 200000
    found = await client.get_session(session)
    assert found.isolation_level == session_pb2.Session.ISOLATION_LEVEL_USER
    # While its process is warm.
    await client.transfers.upload_file(session, "in/list", b"three\n", overwrite=True)
    await client.transfers.upload_file(session, "new/folder/file", b"four\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a/b/file")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"five\n"))
    await client.transfers.upload_archive(session, "tree", packed.getvalue())
    change = "for f in in/list new/folder/file tree/a/b/file; do echo more >> $f && cat $f; done; rm -r new tree; ls"
    assert outputs(await run(client, session, bash(change)))[0].split() == [
        "three", "more", "four", "more", "five", "more", "in",
    ]  # fmt: skip
    out = io.BytesIO()
    await client.transfers.download_file(session, "in/list", out)
    assert out.getvalue() == b"three\nmore\n"
    # Back, and to a copy.
    name = next(event.run for event in first if event.HasField("run_started"))
    await run(client, session, bash("echo lost > in/list"))
    await client.rewind_session(name, restore_workspace=True)
    assert outputs(await run(client, session, bash("cat in/list; echo back >> in/list; find . ! -uid $(id -u)"))) == [
        "one"
    ]
    fork = (await client.fork_session(session, copy_workspace=True)).name
    said = outputs(await run(client, fork, bash("cat in/list; echo x >> in/list; id -u")))[0].split()
    assert said[:2] == ["one", "back"]
    assert said[2] != uid


async def test_a_session_whose_worker_was_killed_goes_on_as_the_same_user(client, running):
    session = await create(client, allowed_tools=["Bash"])
    (uid,) = outputs(await run(client, session, bash("touch own; (setsid sleep 600 &); id -u")))
    assert processes_of(int(uid))
    running.stack.kill_child("worker")
    await until(lambda: not processes_of(int(uid)), 20)
    events = await run(client, session, bash("echo more >> own; id -u"))
    assert state(events) == "STATE_SUCCEEDED"
    assert of(events, "run_started")[0].process_start == event_pb2.PROCESS_START_RESUMED
    assert outputs(events) == [uid]


async def test_a_server_beside_the_agent_has_another_user(client, running):
    stdio = session_pb2.McpStdio(command="sh", args=["-c", WHO], env={"TOKEN": "secret"})
    session = await create(
        client, allowed_tools=["Bash", "mcp__w"], mcp_servers=[session_pb2.McpServer(name="w", stdio=stdio)]
    )
    events = await run(
        client,
        session,
        "\n[[then]]\n".join(
            [bash("id -u"), "[[tool: mcp__w__who {}]]", bash("ps -eo user:20,args | grep '^2[0-9]* '")]
        ),
    )
    own, other, seen = outputs(events)
    uid, folder = other.split()
    assert int(uid) >= 200000
    assert uid != own
    assert f"{uid} " in seen
    assert "secret" not in seen
    (refused,) = outputs(await run(client, session, bash(f"ls {folder} {folder}/.. 2>&1; true")))
    assert refused.count("Permission denied") == 2
    assert outputs(await run(client, session, "[[tool: mcp__w__who {}]]")) == [other]


async def test_no_session_can_go_below_what_the_operator_demands(client, running):
    session = await create(client, isolation_level=session_pb2.Session.ISOLATION_LEVEL_SANDBOX)
    waiting = (await client.create_run(session, "x")).waiting_on
    assert list(waiting.worker_isolation_levels) == [session_pb2.Session.ISOLATION_LEVEL_USER]
    session = await create(client, isolation_level=session_pb2.Session.ISOLATION_LEVEL_NONE)
    assert state(await run(client, session, "[[text: done]]")) == "STATE_SUCCEEDED"
