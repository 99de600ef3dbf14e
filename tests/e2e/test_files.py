"""Files with the real CLI: what a caller puts there the agent changes, and the caller gets it back."""

import io

import pytest

from agentrpc.client import RpcError
from tests.e2e.talk import bash, create, outputs, run, state

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_upload_let_the_agent_change_it_download_compare(client, running):
    session = await create(client, allowed_tools=["Bash"])
    await client.transfers.upload_file(session, "in/list.txt", b"one\ntwo\n")
    await client.transfers.upload_file(session, "in/say.sh", b"#!/bin/sh\necho three\n", executable=True)
    events = await run(
        client, session, bash("in/say.sh >> in/list.txt && sort -r in/list.txt -o in/list.txt; cat in/list.txt")
    )
    assert state(events) == "STATE_SUCCEEDED"
    assert outputs(events)[0].split() == ["two", "three", "one"]
    out = io.BytesIO()
    found = await client.transfers.download_file(session, "in/list.txt", out)
    assert out.getvalue() == b"two\nthree\none\n" == (running.workspace(session) / "in/list.txt").read_bytes()
    assert found.size == 14
    # The agent's own files, and a link of its own that leads out.
    await run(client, session, bash("mkdir own && echo mine > own/x && ln -s /etc/passwd own/out && mkfifo own/pipe"))
    with pytest.raises(RpcError) as caught:
        await client.transfers.download_file(session, "own/out", io.BytesIO())
    assert caught.value.reason == "PATH_INVALID"
    await client.transfers.upload_file(session, "own/x", b"yours\n", overwrite=True)
    assert outputs(await run(client, session, bash("cat own/x && echo again >> own/x && cat own/x")))[0].split() == [
        "yours", "yours", "again",
    ]  # fmt: skip
