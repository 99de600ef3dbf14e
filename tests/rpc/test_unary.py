"""Bad input over a real socket: each gets its code and reason, and nothing internal."""

import asyncio
import importlib
import json
import pkgutil
from datetime import timedelta
from uuid import uuid4

import grpc
import jwt
import pytest
from argon2 import PasswordHasher
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

import agentrpc.v1
from agentrpc.auth.passwords import is_outdated
from agentrpc.client import RpcError
from agentrpc.client.errors import decode
from agentrpc.services import accounts, pages
from agentrpc.services.secrets import SecretBox
from agentrpc.store.users import user_by_name
from agentrpc.v1 import (
    approval_pb2,
    approval_service_pb2,
    auth_service_pb2,
    errors_pb2,
    mcp_server_pb2,
    mcp_server_service_pb2,
    memory_pb2,
    memory_service_pb2,
    report_pb2,
    report_service_pb2,
    run_pb2,
    run_service_pb2,
    session_pb2,
    session_service_pb2,
    task_service_pb2,
    webhook_pb2,
    webhook_service_pb2,
)

NOBODY = "00000000-0000-7000-8000-000000000000"
NOWHERE = f"sessions/{NOBODY}"
DELIVERIES = f"webhooks/{NOBODY}/deliveries/-"


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    error = caught.value
    if error.reason:
        errors_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}")
    assert "Traceback" not in error.message
    assert "asyncpg" not in error.message
    return error.code, error.reason


def create(client, **fields):
    return client.create_session(session_pb2.Session(**fields))


async def raw(channel, method, data, token=""):
    call = channel.unary_unary(f"/agentrpc.v1.{method}")
    try:
        return await call(data, metadata=[("authorization", f"Bearer {token}")] if token else None)
    except grpc.aio.AioRpcError as error:
        raise decode(error) from None


async def test_a_session_is_created_read_listed_changed_and_closed(client):
    made = await create(client, display_name="a", labels={"team": "x"})
    assert made.state == session_pb2.Session.STATE_IDLE
    assert await client.get_session(made.name) == made
    listed = await client.call(
        client.sessions.ListSessions, session_service_pb2.ListSessionsRequest(labels={"team": "x"})
    )
    assert [session.name for session in listed.sessions] == [made.name]
    changed = await client.call(
        client.sessions.UpdateSession,
        session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(name=made.name, etag=made.etag, display_name="b"),
            update_mask=FieldMask(paths=["display_name", "state"]),
        ),
    )
    assert changed.display_name == "b"
    assert changed.etag != made.etag
    stale = client.call(
        client.sessions.ArchiveSession,
        session_service_pb2.ArchiveSessionRequest(name=made.name, etag=made.etag),
    )
    assert await failure(stale) == ("ABORTED", "ETAG_MISMATCH")
    for _ in range(2):
        closed = await client.call(
            client.sessions.ArchiveSession, session_service_pb2.ArchiveSessionRequest(name=made.name)
        )
        assert closed.state == session_pb2.Session.STATE_ARCHIVED
    assert await failure(client.create_run(made.name, "x")) == ("FAILED_PRECONDITION", "SESSION_NOT_ACTIVE")
    await client.call(client.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(name=made.name))
    assert await failure(client.get_session(made.name)) == ("NOT_FOUND", "NOT_FOUND")


async def test_names(client):
    assert await failure(client.get_session(NOWHERE)) == ("NOT_FOUND", "NOT_FOUND")
    for name in ["", "sessions/1", "runs/x", NOWHERE.upper(), f"{NOWHERE}/x"]:
        assert await failure(client.get_session(name)) == ("INVALID_ARGUMENT", "NAME_INVALID")


async def test_what_is_anothers_looks_as_if_it_did_not_exist(edge, client):
    made = await create(client)
    run = await client.create_run(made.name, "x")
    async with edge.client("bob") as bob, edge.client("admin") as admin:
        for call in [bob.get_session(made.name), bob.get_run(run.name), bob.create_run(made.name, "x"),
                     bob.interrupt(run.name)]:  # fmt: skip
            assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
        listed = await bob.call(bob.sessions.ListSessions, session_service_pb2.ListSessionsRequest())
        assert not listed.sessions
        assert (await admin.get_session(made.name)).name == made.name
    async with edge.client("vic") as viewer:
        assert await failure(create(viewer)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


async def test_tokens(edge, channel):
    login = auth_service_pb2.LoginRequest(username="ann", password="password").SerializeToString()
    tokens = auth_service_pb2.LoginResponse.FromString(await raw(channel, "AuthService/Login", login)).tokens
    assert await raw(channel, "AuthService/GetMe", b"", tokens.access_token)
    claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    key = edge.settings.signing_key.get_secret_value()
    bad = {
        "none": jwt.encode(claims, None, algorithm="none"),
        "key": jwt.encode(claims, "x" * 32, algorithm="HS256"),
        "audience": jwt.encode({**claims, "aud": "other"}, key, algorithm="HS256"),
        "issuer": jwt.encode({**claims, "iss": "other"}, key, algorithm="HS256"),
        "kind": tokens.refresh_token,
        "cut": tokens.access_token[:-3],
        "garbage": "x",
        "without exp": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key, algorithm="HS256"),
    }
    for name, token in bad.items():
        found = await failure(raw(channel, "AuthService/GetMe", b"", token))
        assert found == ("UNAUTHENTICATED", "CREDENTIALS_INVALID"), name
    expired = jwt.encode({**claims, "exp": claims["iat"] - 100}, key, algorithm="HS256")
    assert await failure(raw(channel, "AuthService/GetMe", b"", expired)) == ("UNAUTHENTICATED", "CREDENTIALS_EXPIRED")
    assert await failure(raw(channel, "AuthService/GetMe", b"")) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    for username, password in [("ann", "nope"), ("nobody", "password"), ("a\0nn", "password"), ("ann", "pass\0word")]:
        wrong = auth_service_pb2.LoginRequest(username=username, password=password).SerializeToString()
        assert await failure(raw(channel, "AuthService/Login", wrong)) == ("UNAUTHENTICATED", "CREDENTIALS_INVALID")


async def test_a_login_renews_a_hash_with_old_parameters(edge, channel):
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("password")
    login = auth_service_pb2.LoginRequest(username="ann", password="password").SerializeToString()
    async with edge.database.transaction() as tx:
        (await user_by_name(tx, "ann")).password_hash = weak
    hashes = []
    for _ in range(2):
        assert await raw(channel, "AuthService/Login", login)
        async with edge.database.transaction() as tx:
            hashes.append((await user_by_name(tx, "ann")).password_hash)
    assert weak not in hashes
    assert hashes[0] == hashes[1]
    assert not is_outdated(hashes[0])


async def test_a_refresh_token_is_good_once_and_its_reuse_ends_the_login(channel, monkeypatch):
    monkeypatch.setattr(accounts, "_GRACE", timedelta(0))
    login = auth_service_pb2.LoginRequest(username="ann", password="password").SerializeToString()
    tokens = auth_service_pb2.LoginResponse.FromString(await raw(channel, "AuthService/Login", login)).tokens
    spend = auth_service_pb2.RefreshTokenRequest(refresh_token=tokens.refresh_token).SerializeToString()
    fresh = auth_service_pb2.RefreshTokenResponse.FromString(await raw(channel, "AuthService/RefreshToken", spend))
    assert await raw(channel, "AuthService/GetMe", b"", fresh.tokens.access_token)
    for token in (tokens.refresh_token, fresh.tokens.refresh_token):
        again = auth_service_pb2.RefreshTokenRequest(refresh_token=token).SerializeToString()
        assert await failure(raw(channel, "AuthService/RefreshToken", again)) == (
            "UNAUTHENTICATED",
            "CREDENTIALS_INVALID",
        )
    assert await failure(raw(channel, "AuthService/GetMe", b"", fresh.tokens.access_token)) == (
        "UNAUTHENTICATED",
        "CREDENTIALS_INVALID",
    )


async def test_prompts(client, edge, channel):
    name = (await create(client)).name
    assert await failure(client.create_run(name, "")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(client.create_run(name, "a\0b")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(client.create_run(name, "x" * 10_000_000)) == ("INVALID_ARGUMENT", "TOO_LARGE")
    run = await client.create_run(name, "ünï ☃ 😀 \u202e")
    assert (await client.get_run(run.name)).prompt == "ünï ☃ 😀 \u202e"
    # A lone surrogate is not UTF-8: no stub would send it, a broken client may.
    request = run_service_pb2.CreateRunRequest(parent=name, run=run_pb2.Run(prompt="AAA")).SerializeToString()
    token = (await client._metadata())[0][1].removeprefix("Bearer ")
    broken = raw(channel, "RunService/CreateRun", request.replace(b"AAA", b"\xed\xa0\x80"), token)
    assert await failure(broken) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(raw(channel, "RunService/CreateRun", b"\xff\xff", token)) == (
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
    )


async def test_options_are_checked_and_all_faults_told(client):
    options = session_pb2.SessionOptions(
        allowed_tools=["a b"], max_turns=0, max_cost_usd=-1, permission_mode=99,  # type: ignore[arg-type]
        mcp_servers=[session_pb2.McpServer(name="x y")],
    )  # fmt: skip
    with pytest.raises(RpcError) as caught:
        await create(client, display_name="x" * 201, labels={"BAD": "x"}, options=options)
    for field in ("display_name", "labels", "allowed_tools", "max_turns", "max_cost_usd", "permission_mode", "mcp_"):
        assert field in caught.value.message
    for text in ("[1]", '{"a": NaN}', '{"a": 1e999}', r'{"a": "\u0000"}', r'{"a": "\ud800"}', r'{"\udc00": 1}'):
        schema = session_pb2.SessionOptions(output_schema_json=text)
        assert await failure(create(client, options=schema)) == ("INVALID_ARGUMENT", "JSON_INVALID"), text
    await create(client, options=session_pb2.SessionOptions(output_schema_json=r'{"a": "\ud83d\ude00"}'))


async def test_masks_and_secrets(client, edge):
    # Many: a map that is written to while it is walked skips some.
    keys = [f"KEY_{number}" for number in range(40)]
    stdio = session_pb2.McpStdio(command="x", env=dict.fromkeys(keys, "secret"))
    remote = session_pb2.McpRemote(url="https://user:secret@x.example/?key=secret&on")
    servers = [session_pb2.McpServer(name="s", stdio=stdio), session_pb2.McpServer(name="r", sse=remote)]
    made = await create(client, options=session_pb2.SessionOptions(mcp_servers=servers))
    assert dict(made.options.mcp_servers[0].stdio.env) == dict.fromkeys(keys, "")
    assert made.options.mcp_servers[1].sse.url == "https://REDACTED@x.example/?key=REDACTED&on"
    request = session_service_pb2.UpdateSessionRequest(session=made, update_mask=FieldMask(paths=["nope"]))
    assert await failure(client.call(client.sessions.UpdateSession, request)) == (
        "INVALID_ARGUMENT",
        "UPDATE_MASK_INVALID",
    )
    made.options.model = "m"
    request = session_service_pb2.UpdateSessionRequest(session=made, update_mask=FieldMask(paths=["options"]))
    changed = await client.call(client.sessions.UpdateSession, request)
    assert changed.options.model == "m"
    # Nothing else changed: the secret that came back empty has kept its value.
    request = session_service_pb2.UpdateSessionRequest(session=changed, update_mask=FieldMask(paths=["options"]))
    assert (await client.call(client.sessions.UpdateSession, request)).etag == changed.etag
    async with edge.database.connection() as connection:
        stored = session_pb2.SessionOptions.FromString(await connection.fetchval("SELECT options FROM sessions"))
    SecretBox(edge.settings.secret_keys).open_options(stored)
    assert stored.mcp_servers[1].sse.url == remote.url
    assert set(stored.mcp_servers[0].stdio.env.values()) == {"secret"}
    changed.options.mcp_servers[1].sse.url = "https://REDACTED@y.example/"
    request = session_service_pb2.UpdateSessionRequest(session=changed, update_mask=FieldMask(paths=["options"]))
    assert await failure(client.call(client.sessions.UpdateSession, request)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_a_page_of_any_list_ends_where_its_bytes_do(monkeypatch, client, source, ask):
    # Each page takes one, however small it is.
    monkeypatch.setattr(pages, "_PAGE_BYTES", 1)
    content = memory_pb2.MemoryEntry(content="x")
    store = webhook = ""
    for n in range(3):
        run = await client.create_run(source.name, "x")
        await ask(run, str(n))
        await create(client)
        await client.create_report(report_pb2.Report(subject=source.name, format=report_pb2.Report.FORMAT_JSON))
        made = await client.call(client.memory.CreateMemoryStore, memory_service_pb2.CreateMemoryStoreRequest())
        store = store or made.name
        for key in ("same", f"key-{n}"):
            content.name = f"{store}/entries/{key}"
            write = memory_service_pb2.WriteMemoryEntryRequest(memory_entry=content)
            await client.call(client.memory.WriteMemoryEntry, write)
        config = session_pb2.McpServer(stdio=session_pb2.McpStdio(command="x"))
        server = mcp_server_pb2.RegisteredMcpServer(display_name=str(n), config=config)
        await client.call(
            client.mcp_servers.CreateMcpServer, mcp_server_service_pb2.CreateMcpServerRequest(mcp_server=server)
        )
        hook = webhook_pb2.Webhook(url="https://example.org/", event_types=["run_ended"])
        hook = await client.call(client.webhooks.CreateWebhook, webhook_service_pb2.CreateWebhookRequest(webhook=hook))
        webhook = webhook or hook.name
        await client.call(client.webhooks.TestWebhook, webhook_service_pb2.TestWebhookRequest(name=webhook))
    lists = [
        (client.sessions.ListSessions, session_service_pb2.ListSessionsRequest(), 4),
        (client.runs.ListRuns, run_service_pb2.ListRunsRequest(parent=source.name), 3),
        (client.approvals.ListApprovals, approval_service_pb2.ListApprovalsRequest(parent="sessions/-"), 3),
        (client.reports.ListReports, report_service_pb2.ListReportsRequest(), 3),
        (client.memory.ListMemoryStores, memory_service_pb2.ListMemoryStoresRequest(), 3),
        (client.memory.ListMemoryEntries, memory_service_pb2.ListMemoryEntriesRequest(parent=store), 4),
        (
            client.memory.ListMemoryEntryVersions,
            memory_service_pb2.ListMemoryEntryVersionsRequest(parent=f"{store}/entries/same"),
            3,
        ),
        (client.mcp_servers.ListMcpServers, mcp_server_service_pb2.ListMcpServersRequest(), 3),
        (client.webhooks.ListWebhooks, webhook_service_pb2.ListWebhooksRequest(), 3),
        (
            client.webhooks.ListWebhookDeliveries,
            webhook_service_pb2.ListWebhookDeliveriesRequest(parent=webhook),
            3,
        ),
    ]
    for method, request, count in lists:
        seen = []
        while len(seen) < count:
            page = await client.call(method, request)
            [(_, found)] = [(field, value) for field, value in page.ListFields() if field.is_repeated]
            assert len(found) == 1, request
            seen.append(found[0].SerializeToString())
            request.page_token = page.next_page_token
        assert not request.page_token
        assert len(set(seen)) == count
    search = memory_service_pb2.SearchMemoryEntriesRequest(parent=store, query="x")
    assert len((await client.call(client.memory.SearchMemoryEntries, search)).hits) == 1


async def test_pages(client, edge):
    for number in range(5):
        await create(client, display_name=str(number))

    def request(**fields):
        return session_service_pb2.ListSessionsRequest(page_size=2, order_by="display_name desc", **fields)

    seen, token = [], ""
    while True:
        page = await client.call(client.sessions.ListSessions, request(page_token=token))
        seen += [session.display_name for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["4", "3", "2", "1", "0"]
    token = (await client.call(client.sessions.ListSessions, request())).next_page_token
    for wrong in [request(page_token=token[:-2]), request(page_token="x"), request(page_token=token, owner="users/x")]:
        code, reason = await failure(client.call(client.sessions.ListSessions, wrong))
        assert code == "INVALID_ARGUMENT"
        assert reason in {"PAGE_TOKEN_INVALID", "NAME_INVALID"}
    async with edge.client("bob") as bob:
        assert await failure(bob.call(bob.sessions.ListSessions, request(page_token=token))) == (
            "INVALID_ARGUMENT",
            "PAGE_TOKEN_INVALID",
        )
    negative = session_service_pb2.ListSessionsRequest(page_size=-1)
    assert await failure(client.call(client.sessions.ListSessions, negative)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    unknown = session_service_pb2.ListSessionsRequest(states=[77])  # type: ignore[list-item]
    assert await failure(client.call(client.sessions.ListSessions, unknown)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


@pytest.mark.parametrize("text", ["x", "名", "😀"])
async def test_long_texts_in_errors_are_cut(client, text):
    request = session_service_pb2.ListSessionsRequest(order_by=text * 1000)
    with pytest.raises(RpcError, match="use create_time") as caught:
        await client.call(client.sessions.ListSessions, request)
    assert caught.value.reason == "FIELD_INVALID"
    wrong = session_service_pb2.UpdateSessionRequest(
        session=session_pb2.Session(name=NOWHERE), update_mask=FieldMask(paths=[text * 1000])
    )
    with pytest.raises(RpcError, match="use such as") as caught:
        await client.call(client.sessions.UpdateSession, wrong)
    assert caught.value.reason == "UPDATE_MASK_INVALID"


PARENTS = {
    "ListRuns": "sessions/-",
    "ListApprovals": "sessions/-",
    "ListExecutions": "tasks/-",
    "ListAgentVersions": f"agents/{NOBODY}",
    "ListMcpServerTools": f"mcpServers/{NOBODY}",
    "ListMemoryEntries": f"memoryStores/{NOBODY}",
    "ListMemoryEntryVersions": f"memoryStores/{NOBODY}/memoryEntries/a",
    "SearchMemoryEntries": f"memoryStores/{NOBODY}",
    "ListWebhookDeliveries": f"webhooks/{NOBODY}",
}


def questions():
    """Every RPC that lists or looks for something, with a request for each of its fields that has a NUL in it."""
    for module in pkgutil.iter_modules(agentrpc.v1.__path__, "agentrpc.v1."):
        if module.name.endswith("_service_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    if method.name.startswith(("List", "Search")):
                        yield from ((service.name, method.name, request) for request in nuls(method.input_type))


def nuls(request_type):
    for field in request_type.fields:
        request = GetMessageClass(request_type)()
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for labels in ({"\0": "x"}, {"x": "\0"}):
                getattr(request, field.name).clear()
                getattr(request, field.name).update(labels)
                yield request
        elif field.type == field.TYPE_STRING:
            value = ["\0"] if field.is_repeated else "\0"
            yield GetMessageClass(request_type)(**{field.name: value})


async def test_lists_refuse_nul_wherever_it_stands(client, channel):
    session = (await create(client)).name
    token = (await client._metadata())[0][1].removeprefix("Bearer ")
    asked = set()
    for service, method, request in questions():
        if "parent" in request.DESCRIPTOR.fields_by_name and not request.parent:
            request.parent = PARENTS.get(method, session)
        call = raw(channel, f"{service}/{method}", request.SerializeToString(), token)
        assert (await failure(call))[0] == "INVALID_ARGUMENT", (method, request)
        asked.add(method)
    assert {"ListSessions", "ListRuns", "ListTasks", "ListWebhookDeliveries", *PARENTS} <= asked


async def test_times_that_are_none(client):
    listings = [
        (client.sessions.ListSessions, session_service_pb2.ListSessionsRequest()),
        (client.runs.ListRuns, run_service_pb2.ListRunsRequest(parent="sessions/-")),
        (client.tasks.ListExecutions, task_service_pb2.ListExecutionsRequest(parent="tasks/-")),
        (client.reports.ListReports, report_service_pb2.ListReportsRequest()),
        (client.webhooks.RedeliverWebhook, webhook_service_pb2.RedeliverWebhookRequest(name=DELIVERIES)),
    ]
    for method, request in listings:
        for name in {"create_time_from", "create_time_before"}.intersection(request.DESCRIPTOR.fields_by_name):
            for wrong in [Timestamp(seconds=10**15), Timestamp(seconds=-(10**15)), Timestamp(nanos=2 * 10**9)]:
                asked = type(request)()
                asked.CopyFrom(request)
                getattr(asked, name).CopyFrom(wrong)
                with pytest.raises(RpcError, match=name) as caught:
                    await client.call(method, asked)
                assert caught.value.reason == "FIELD_INVALID", (method, wrong)


async def test_events_are_listed_and_bad_queries_refused(client):
    name = (await create(client)).name
    for number in range(3):
        await client.create_run(name, str(number))
    listed = await client.call(
        client.sessions.ListSessionEvents, session_service_pb2.ListSessionEventsRequest(parent=name)
    )
    assert [event.sequence for event in listed.events] == [1]
    for fields, expected in [
        ({"after_sequence": 99}, ("OUT_OF_RANGE", "SEQUENCE_AHEAD")),
        ({"event_types": ["nope"]}, ("INVALID_ARGUMENT", "EVENT_TYPE_UNKNOWN")),
        ({"after_sequence": -1}, ("INVALID_ARGUMENT", "FIELD_INVALID")),
        ({"order_by": "x"}, ("INVALID_ARGUMENT", "FIELD_INVALID")),
    ]:
        request = session_service_pb2.ListSessionEventsRequest(parent=name, **fields)
        assert await failure(client.call(client.sessions.ListSessionEvents, request)) == expected


async def test_a_request_id_makes_one_run_however_often(client):
    name = (await create(client)).name
    request_id = str(uuid4())
    runs = await asyncio.gather(*(client.create_run(name, "x", request_id=request_id) for _ in range(50)))
    assert len({run.name for run in runs}) == 1
    assert (await client.get_session(name)).run_count == 1
    assert await failure(client.create_run(name, "y", request_id=request_id)) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
    )
    assert await failure(client.create_run(name, "y", request_id="x")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    one, two = await asyncio.gather(
        *(client.create_session(session_pb2.Session(), request_id=str(request_id)) for _ in range(2))
    )
    assert one.name == two.name


async def test_queue_policies_and_interrupting_what_waits(client, settings):
    name = (await create(client)).name
    first = await client.create_run(name, "1")
    reject = run_service_pb2.CreateRunRequest(
        parent=name, run=run_pb2.Run(prompt="x", conflict_policy=run_pb2.Run.CONFLICT_POLICY_REJECT)
    )
    assert await failure(client.call(client.runs.CreateRun, reject)) == ("FAILED_PRECONDITION", "SESSION_BUSY")
    for _ in range(settings.max_queued_runs - 1):
        await client.create_run(name, "x")
    assert await failure(client.create_run(name, "x")) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    archive = session_service_pb2.ArchiveSessionRequest(name=name)
    assert await failure(client.call(client.sessions.ArchiveSession, archive)) == (
        "FAILED_PRECONDITION",
        "SESSION_BUSY",
    )
    ended = await client.interrupt(first.name)
    assert ended.state == run_pb2.Run.STATE_CANCELLED
    assert ended.first_sequence == ended.last_sequence > 0
    assert (await client.interrupt(first.name)).state == run_pb2.Run.STATE_CANCELLED


async def test_approvals_that_do_not_exist(client):
    name = f"{NOWHERE}/approvals/{NOWHERE.split('/')[1]}"
    resolution = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)
    assert await failure(client.resolve(name, resolution)) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(client.resolve(name, approval_pb2.Resolution())) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(client.resolve("x", resolution)) == ("INVALID_ARGUMENT", "NAME_INVALID")
    resolution.updated_input_json = r'{"command": "echo \ud800"}'
    assert await failure(client.resolve(name, resolution)) == ("INVALID_ARGUMENT", "JSON_INVALID")
    listed = await client.call(
        client.approvals.ListApprovals, approval_service_pb2.ListApprovalsRequest(parent="sessions/-")
    )
    assert not listed.approvals


async def test_without_postgres_the_error_says_so(client, database_url, edge):
    await create(client)
    # The token is known; then nobody answers any more.
    import asyncpg

    connection = await asyncpg.connect(database_url.replace("/test_", "/postgres?x=test_").split("?x=")[0] + (
        "?" + database_url.partition("?")[2] if "?" in database_url else ""
    ))  # fmt: skip
    name = database_url.partition("?")[0].rpartition("/")[2]
    await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    try:
        request = session_service_pb2.CreateSessionRequest()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.sessions.CreateSession(request, metadata=await client._metadata(), timeout=30)
        error = decode(caught.value)
        assert (error.code, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE"), json.dumps(error.message)
        assert error.retry_after
    finally:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await connection.close()
    assert await create(client)
