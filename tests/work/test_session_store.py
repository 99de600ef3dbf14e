"""The SDK's SessionStore over PostgreSQL: its own conformance suite, and what the suite does not ask."""

import pytest
from claude_agent_sdk.testing import run_session_store_conformance

from agentrpc.claude.transcripts import TranscriptStore
from agentrpc.errors import LeaseLostError
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.store.leases import lock_head
from agentrpc.store.log import read_transcript

KEY = {"project_key": "p", "session_id": "s"}


@pytest.fixture
async def open_session(database, bus, add_session):
    """Opens a session as a worker does: its id, its writer under epoch 1, and its store."""
    writers = []

    async def open_one():
        session_id = await add_session()
        writer = SessionWriter(database, bus, session_id, epoch=1, batch=0, last_sequence=0)
        writers.append(writer)

        async def load():
            await writer.flush()
            return await read_transcript(database, session_id)

        return session_id, writer, TranscriptStore(writer.put_transcript, load)

    yield open_one
    for writer in writers:
        await writer.close()


class Sessions:
    """What the suite takes for one store: a conversation of the SDK's is a session of ours."""

    def __init__(self, open_session):
        self._open = open_session
        self._stores = {}

    async def _store(self, key):
        conversation = key["project_key"], key["session_id"]
        if conversation not in self._stores:
            *_, self._stores[conversation] = await self._open()
        return self._stores[conversation]

    async def append(self, key, entries):
        await (await self._store(key)).append(key, entries)

    async def load(self, key):
        return await (await self._store(key)).load(key)

    async def list_subkeys(self, key):
        return await (await self._store(key)).list_subkeys(key)


async def test_conformance(open_session):
    await run_session_store_conformance(
        lambda: Sessions(open_session), skip_optional=frozenset({"list_sessions", "list_session_summaries", "delete"})
    )


async def test_what_was_appended_comes_back_to_the_byte(open_session, database):
    session_id, _, store = await open_session()
    entries = [
        {"type": "user", "uuid": "a", "message": {"content": "NUL \0, half of a pair \ud83d \udc00, ü 😀  \\"}},
        {"type": "note", "uuid": "b", "numbers": [0, -1, 2**60, 0.5, 1.0], "nothing": None, "empty": {}},
    ]
    await store.append(KEY, entries)
    assert await store.load(KEY) == entries
    lines = [line for _, line in await read_transcript(database, session_id)]
    assert b"NUL \\u0000, half of a pair \\ud83d \\udc00, \xc3\xbc \xf0\x9f\x98\x80" in lines[0]
    for line in lines:
        line.decode()


async def test_append_only_enqueues_and_order_holds_across_subpaths(open_session, database):
    session_id, writer, store = await open_session()
    await store.append(KEY, [{"type": "x", "n": 1}])
    await store.append({**KEY, "subpath": "subagents/agent-1"}, [{"type": "x", "n": 2}])
    await store.append(KEY, [{"type": "x", "n": 3}])
    assert await read_transcript(database, session_id) == []
    await writer.flush()
    rows = await read_transcript(database, session_id)
    assert [path for path, _ in rows] == ["", "subagents/agent-1", ""]
    assert [line[-2:-1] for _, line in rows] == [b"1", b"2", b"3"]


async def test_a_batch_with_what_is_no_json_is_refused_as_a_whole(open_session):
    *_, store = await open_session()
    with pytest.raises(TypeError):
        await store.append(KEY, [{"type": "x"}, {"type": object()}])
    assert await store.load(KEY) is None


async def test_nothing_is_written_or_told_under_an_old_epoch(open_session, database):
    session_id, writer, store = await open_session()
    await store.append(KEY, [{"type": "x", "n": 1}])
    await writer.flush()
    async with database.transaction() as tx:
        (await lock_head(tx, session_id)).epoch += 1
    await store.append(KEY, [{"type": "x", "n": 2}])
    with pytest.raises(LeaseLostError):
        await store.load(KEY)
    assert len(await read_transcript(database, session_id)) == 1
