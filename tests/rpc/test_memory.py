"""Memory stores over a real socket: versions, races, limits, who sees what, and bad input."""

import asyncio
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.v1 import auth_service_pb2, memory_pb2
from agentrpc.v1 import memory_service_pb2 as pb

NOWHERE = "memoryStores/00000000-0000-7000-8000-000000000000"


class Notes:
    """A client's memory service in few words."""

    def __init__(self, client):
        self.client = client
        self.stub = client.memory

    async def store(self, *, request_id="", **fields):
        request = pb.CreateMemoryStoreRequest(memory_store=memory_pb2.MemoryStore(**fields), request_id=request_id)
        return await self.client.call(self.stub.CreateMemoryStore, request)

    async def get_store(self, name):
        return await self.client.call(self.stub.GetMemoryStore, pb.GetMemoryStoreRequest(name=name))

    async def stores(self, **fields):
        return await self.client.call(self.stub.ListMemoryStores, pb.ListMemoryStoresRequest(**fields))

    async def update(self, name, *paths, **fields):
        request = pb.UpdateMemoryStoreRequest(
            memory_store=memory_pb2.MemoryStore(name=name, **fields), update_mask=FieldMask(paths=paths)
        )
        return await self.client.call(self.stub.UpdateMemoryStore, request)

    async def drop(self, name, **fields):
        return await self.client.call(self.stub.DeleteMemoryStore, pb.DeleteMemoryStoreRequest(name=name, **fields))

    async def write(self, store, key, content="x", *, expected=None, request_id="", labels=None):
        request = pb.WriteMemoryEntryRequest(
            memory_entry=memory_pb2.MemoryEntry(name=f"{store}/entries/{key}", content=content, labels=labels),
            expected_version=expected,
            request_id=request_id,
        )
        return await self.client.call(self.stub.WriteMemoryEntry, request)

    async def read(self, store, key, version=0):
        request = pb.GetMemoryEntryRequest(name=f"{store}/entries/{key}", version=version)
        return await self.client.call(self.stub.GetMemoryEntry, request)

    async def delete(self, store, key, expected=0):
        request = pb.DeleteMemoryEntryRequest(name=f"{store}/entries/{key}", expected_version=expected)
        return await self.client.call(self.stub.DeleteMemoryEntry, request)

    async def list(self, store, **fields):
        return await self.client.call(self.stub.ListMemoryEntries, pb.ListMemoryEntriesRequest(parent=store, **fields))

    async def keys(self, store, **fields):
        return [entry.name.partition("/entries/")[2] for entry in (await self.list(store, **fields)).memory_entries]

    async def search(self, store, query, **fields):
        request = pb.SearchMemoryEntriesRequest(parent=store, query=query, **fields)
        return (await self.client.call(self.stub.SearchMemoryEntries, request)).hits

    async def found(self, store, query, **fields):
        hits = await self.search(store, query, **fields)
        return [hit.memory_entry.name.partition("/entries/")[2] for hit in hits]

    async def versions(self, store, key, **fields):
        request = pb.ListMemoryEntryVersionsRequest(parent=f"{store}/entries/{key}", **fields)
        return await self.client.call(self.stub.ListMemoryEntryVersions, request)


@pytest.fixture
def notes(client):
    return Notes(client)


@pytest.fixture
async def store(notes):
    return (await notes.store()).name


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.reason


async def test_a_store_is_created_once_read_changed_and_deleted(notes):
    again = str(uuid4())
    made = await notes.store(display_name="team", request_id=again)
    assert await notes.store(display_name="team", request_id=again) == made
    assert await failure(notes.store(display_name="other", request_id=again)) == "REQUEST_ID_REUSED"
    assert (made.limits.max_entries, made.limits.max_bytes, made.limits.max_versions) == (1000, 16 * 1024**2, 10)
    changed = await notes.update(made.name, "description", "limits.max_versions", description="d", etag=made.etag,
                                 limits={"max_versions": 3})  # fmt: skip
    assert (changed.display_name, changed.description, changed.limits.max_versions) == ("team", "d", 3)
    assert changed.limits.max_entries == 1000
    assert await failure(notes.update(made.name, description="e", etag=made.etag)) == "ETAG_MISMATCH"
    assert await failure(notes.update(made.name, "nothing")) == "UPDATE_MASK_INVALID"
    await notes.write(made.name, "a")
    assert (await notes.get_store(made.name)).etag == changed.etag
    assert await failure(notes.drop(made.name)) == "IN_USE"
    assert await failure(notes.drop(made.name, force=True, etag=made.etag)) == "ETAG_MISMATCH"
    await notes.drop(made.name, force=True)
    assert await failure(notes.get_store(made.name)) == "NOT_FOUND"
    assert await failure(notes.read(made.name, "a")) == "NOT_FOUND"


async def test_every_write_makes_a_version_and_the_newest_are_kept(notes):
    store = (await notes.store(limits={"max_versions": 3})).name
    for number in range(1, 6):
        written = await notes.write(store, "facts/moon", f"text {number}", labels={"n": str(number)})
        assert written.version == number
    assert written.author.user == (await notes.get_store(store)).owner
    assert not written.author.session
    kept = await notes.versions(store, "facts/moon")
    assert [(one.version, one.content) for one in kept.memory_entries] == [(5, ""), (4, ""), (3, "")]
    old = await notes.read(store, "facts/moon", version=3)
    assert (old.content, dict(old.labels)) == ("text 3", {"n": "3"})
    assert old.create_time == written.create_time
    assert old.update_time.ToDatetime() < written.update_time.ToDatetime()
    assert await notes.read(store, "facts/moon") == written
    for gone in (2, 6):
        assert await failure(notes.read(store, "facts/moon", version=gone)) == "NOT_FOUND"
    first = await notes.versions(store, "facts/moon", page_size=2)
    rest = await notes.versions(store, "facts/moon", page_size=2, page_token=first.next_page_token)
    assert [one.version for one in rest.memory_entries] == [3]
    assert not rest.next_page_token


async def test_a_number_is_not_used_again_after_a_deletion(notes, store):
    await notes.write(store, "a", expected=0)
    assert (await notes.write(store, "a", expected=1)).version == 2
    assert await failure(notes.write(store, "a", expected=0)) == "ETAG_MISMATCH"
    assert await failure(notes.delete(store, "a", expected=1)) == "ETAG_MISMATCH"
    await notes.delete(store, "a", expected=2)
    assert await failure(notes.delete(store, "a")) == "NOT_FOUND"
    assert await failure(notes.write(store, "a", expected=2)) == "ETAG_MISMATCH"
    assert (await notes.write(store, "a", expected=0)).version == 3
    assert [one.version for one in (await notes.versions(store, "a")).memory_entries] == [3]


async def test_of_twenty_writers_one_wins_each_version(edge, notes, store):
    """Each reads, adds its line, and writes what it expects; who comes late reads again."""
    conflicts = 0
    async with edge.client("ann") as other:
        hands = [notes, Notes(other)]

        async def add(number):
            nonlocal conflicts
            hand = hands[number % 2]
            while True:
                try:
                    before = await hand.read(store, "shared")
                    content, version = before.content, before.version
                except RpcError:
                    content, version = "", 0
                try:
                    return (await hand.write(store, "shared", f"{content}{number}\n", expected=version)).version
                except RpcError as error:
                    if (error.code, error.reason) != ("ABORTED", "ETAG_MISMATCH"):
                        raise
                    conflicts += 1

        versions = await asyncio.gather(*(add(number) for number in range(20)))
    assert sorted(versions) == list(range(1, 21))
    assert conflicts
    lines = (await notes.read(store, "shared")).content.split()
    assert sorted(map(int, lines)) == list(range(20))
    found = await notes.get_store(store)
    assert (found.entry_count, found.byte_count) == (1, len("".join(f"{n}\n" for n in range(20))))


async def test_a_write_with_a_request_id_happens_once(notes, store):
    again = str(uuid4())
    made = await asyncio.gather(*(notes.write(store, "a", "once", request_id=again) for _ in range(5)))
    assert {entry.version for entry in made} == {1}
    assert await failure(notes.write(store, "a", "twice", request_id=again)) == "REQUEST_ID_REUSED"
    await notes.write(store, "a", "later")
    assert (await notes.write(store, "a", "once", request_id=again)).content == "once"
    assert (await notes.read(store, "a")).content == "later"


async def test_a_full_store_takes_only_what_makes_it_smaller(notes):
    store = (await notes.store(limits={"max_entries": 2, "max_bytes": 100})).name
    await notes.write(store, "a", "x" * 60)
    assert await failure(notes.write(store, "b", "é" * 21)) == "LIMIT_REACHED"
    await notes.write(store, "b", "é" * 20)
    assert await failure(notes.write(store, "c", "")) == "LIMIT_REACHED"
    assert await failure(notes.write(store, "a", "x" * 61)) == "LIMIT_REACHED"
    await notes.write(store, "a", "x" * 59)
    await notes.update(store, limits={"max_bytes": 10})
    await notes.write(store, "a", "x" * 50)
    assert await failure(notes.write(store, "a", "x" * 51)) == "LIMIT_REACHED"
    await notes.delete(store, "b")
    found = await notes.get_store(store)
    assert (found.entry_count, found.byte_count) == (1, 50)


async def test_writers_at_once_do_not_pass_a_limit(notes):
    store = (await notes.store(limits={"max_entries": 5})).name
    done = await asyncio.gather(*(notes.write(store, f"k{n}") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(one, RpcError) for one in done) == 15
    assert len(await notes.keys(store)) == 5


async def test_a_user_has_so_many_stores(edge, notes):
    edge.use_cases.memory._max_stores = 3
    done = await asyncio.gather(*(notes.store() for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(one, RpcError) and one.reason == "LIMIT_REACHED" for one in done) == 5


async def test_who_sees_and_who_writes(edge, notes):
    async with edge.client("bob") as bob, edge.client("admin") as admin, edge.client("vic") as vic:
        bobs, admins, vics = Notes(bob), Notes(admin), Notes(vic)
        me = (await bob.call(bob.auth.GetMe, auth_service_pb2.GetMeRequest())).name
        private = (await notes.store()).name
        read = (await notes.store(readers=[me])).name
        shared = (await notes.store(shared=True)).name
        for store in (private, read, shared):
            await notes.write(store, "a")
        for call in (bobs.get_store(private), bobs.read(private, "a"), bobs.write(private, "a"), bobs.list(private),
                     bobs.search(private, "x"), bobs.delete(private, "a"), bobs.versions(private, "a"),
                     bobs.drop(private), bobs.update(private, shared=True), vics.read(read, "a")):  # fmt: skip
            assert await failure(call) == "NOT_FOUND"
        for store in (read, shared):
            assert (await bobs.read(store, "a")).content == "x"
            assert await bobs.found(store, "x") == ["a"]
            for call in (bobs.write(store, "a"), bobs.delete(store, "a"), bobs.drop(store),
                         bobs.update(store, readers=[])):  # fmt: skip
                assert await failure(call) == "PERMISSION_DENIED"
        assert (await vics.read(shared, "a")).content == "x"
        assert await failure(vics.store()) == "PERMISSION_DENIED"
        mine = (await notes.get_store(private)).owner
        assert {one.name for one in (await bobs.stores()).memory_stores} == {read, shared}
        assert {one.name for one in (await vics.stores(owner=mine)).memory_stores} == {shared}
        assert {one.name for one in (await admins.stores()).memory_stores} == {private, read, shared}
        assert (await admins.write(private, "a")).version == 2
        await notes.update(read, "readers")
        assert await failure(bobs.read(read, "a")) == "NOT_FOUND"


async def test_lists_by_prefix_labels_and_order_in_pages(notes, store):
    for key in ["b", "a/2", "a/1", "a_1", "a"]:
        await notes.write(store, key, "content", labels={"first": key[0]})
    assert await notes.keys(store) == ["a", "a/1", "a/2", "a_1", "b"]
    assert await notes.keys(store, order_by="key desc", page_size=2) == ["b", "a_1"]
    assert await notes.keys(store, order_by="create_time") == ["b", "a/2", "a/1", "a_1", "a"]
    assert await notes.keys(store, key_prefix="a/") == ["a/1", "a/2"]
    assert await notes.keys(store, key_prefix="a_") == ["a_1"]
    assert await notes.keys(store, labels={"first": "b"}) == ["b"]
    found, token = [], ""
    while True:
        page = await notes.list(store, page_size=2, page_token=token)
        found += page.memory_entries
        if not (token := page.next_page_token):
            break
    assert len({entry.name for entry in found}) == len(found) == 5
    assert {(entry.content, entry.byte_count) for entry in found} == {("", 7)}
    first = await notes.list(store, page_size=2)
    assert await failure(notes.list(store, key_prefix="a", page_token=first.next_page_token)) == "PAGE_TOKEN_INVALID"


async def test_search_finds_words_and_fragments(notes, store):
    await notes.write(
        store, "ops/deploy", f"{'filler ' * 100}The deployment of Apollo runs on Tuesdays. {'more ' * 100}"
    )
    await notes.write(store, "people/grace", "Grace owns Apollo, and 100% of the deploy_keys.")
    await notes.write(store, "apollo", "See elsewhere.")
    assert await notes.found(store, "APOLLO") == ["apollo", "people/grace", "ops/deploy"]
    assert await notes.found(store, "apollo tuesdays") == ["ops/deploy"]
    assert await notes.found(store, "ployment") == ["ops/deploy"]
    assert await notes.found(store, "grac") == ["people/grace"]
    assert await notes.found(store, "apollo -grace") == ["apollo", "ops/deploy"]
    assert await notes.found(store, '"owns apollo"') == ["people/grace"]
    assert await notes.found(store, "100%") == ["people/grace"]
    assert await notes.found(store, "deploy_k") == ["people/grace"]
    assert await notes.found(store, "y_keys%") == []
    assert await notes.found(store, "apollo", key_prefix="ops/") == ["ops/deploy"]
    assert await notes.found(store, "apollo", page_size=1) == ["apollo"]
    for query in ["'", '"', "& | ! <->", ":*", "\\", "a' OR 1=1 --", "日本", "(((", "-", "%", "_"]:
        assert len(await notes.found(store, query)) <= 3
    [hit] = await notes.search(store, "tuesdays")
    assert "runs on Tuesdays" in hit.snippet
    assert len(hit.snippet) <= 300
    assert not hit.memory_entry.content
    # Each of these is two characters in small letters.
    await notes.write(store, "turkish", f"{'İ' * 400} the needle of it")
    [hit] = await notes.search(store, "NEEDLE")
    assert "needle" in hit.snippet


async def test_bad_input(notes, store):
    for key in ["", "/a", "a/", "a//b", "A", "ä", "a b", ".", "..", "a/../b", "./a", "a\n", "k" * 201]:
        assert await failure(notes.write(store, key)) in {"FIELD_INVALID", "NAME_INVALID"}, key
        assert await failure(notes.read(store, key)) in {"FIELD_INVALID", "NAME_INVALID"}, key
    assert await failure(notes.write(store, "a", "a\0b")) == "FIELD_INVALID"
    assert await failure(notes.write(store, "a", "é" * (32 * 1024 + 1))) == "TOO_LARGE"
    assert (await notes.write(store, "k" * 200, "é" * (32 * 1024))).byte_count == 64 * 1024
    assert await failure(notes.write(store, "a", labels={"BAD": "x"})) == "FIELD_INVALID"
    assert await failure(notes.write(store, "a", expected=-1)) == "FIELD_INVALID"
    assert await failure(notes.write(store, "a", request_id="x")) == "FIELD_INVALID"
    assert await failure(notes.read(store, "a", version=-1)) == "FIELD_INVALID"
    assert await failure(notes.delete(store, "a", expected=-1)) == "FIELD_INVALID"
    assert await failure(notes.write(NOWHERE, "a")) == "NOT_FOUND"
    for query in ["", "  ", "x" * 501, "a\0"]:
        assert await failure(notes.search(store, query)) == "FIELD_INVALID"
    for fields in [{"key_prefix": "%"}, {"order_by": "content"}, {"page_size": -1}]:
        assert await failure(notes.list(store, **fields)) == "FIELD_INVALID"
    for fields in [{"limits": {"max_entries": -1}}, {"limits": {"max_bytes": 2**40}}, {"display_name": "x" * 201},
                   {"readers": [f"users/{uuid4()}"]}, {"readers": [f"users/{uuid4()}"] * 101}]:  # fmt: skip
        assert await failure(notes.store(**fields)) == "FIELD_INVALID"
    for name in ["memoryStores/x", "sessions/x", "", NOWHERE.upper()]:
        assert await failure(notes.get_store(name)) == "NAME_INVALID"
    assert await failure(notes.store(readers=["bob"])) == "NAME_INVALID"
