"""CredentialService: what callers may set, see and use."""

import asyncio
import base64
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.errors import FailedPrecondition
from agentrpc.names import parse_session
from agentrpc.services.credentials import Credentials
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_credentials import SessionCredentials
from agentrpc.services.tool_callers import Caller
from agentrpc.services.vault import Vault
from agentrpc.store.tables import User
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    credential_pb2,
    credential_service_pb2,
    session_pb2,
    session_service_pb2,
    task_pb2,
    task_service_pb2,
)

TOKEN = "ghp_ThisIsTheRealToken000"
NOBODY = "credentials/00000000-0000-7000-8000-000000000000"


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


def create(client, display_name="a", hosts=("git.example.com",), request_id="", token=TOKEN, **fields):
    if not {"bearer", "basic", "header", "git"} & set(fields):
        fields["bearer"] = credential_pb2.BearerCredential(token=token)
    given = credential_pb2.Credential(display_name=display_name, hosts=hosts, **fields)
    request = credential_service_pb2.CreateCredentialRequest(credential=given, request_id=request_id)
    return client.call(client.credentials.CreateCredential, request)


def get(client, name):
    return client.call(client.credentials.GetCredential, credential_service_pb2.GetCredentialRequest(name=name))


def update(client, given, *paths):
    request = credential_service_pb2.UpdateCredentialRequest(credential=given, update_mask=FieldMask(paths=paths))
    return client.call(client.credentials.UpdateCredential, request)


def delete(client, name, etag=""):
    request = credential_service_pb2.DeleteCredentialRequest(name=name, etag=etag)
    return client.call(client.credentials.DeleteCredential, request)


async def listed(client, **fields):
    request = credential_service_pb2.ListCredentialsRequest(**fields)
    return await client.call(client.credentials.ListCredentials, request)


async def names(client, **fields):
    return [found.display_name for found in (await listed(client, **fields)).credentials]


def naming(*credentials, **more):
    options = session_pb2.SessionOptions(credentials=[found.name for found in credentials])
    return session_pb2.Session(options=options, **more)


async def held(edge, session, names=None):
    """The credentials of a session's process, as the worker has them that holds it now."""
    session_id = UUID(str(parse_session(session.name)))
    async with edge.database.connection() as connection:
        epoch = await connection.fetchval("SELECT epoch FROM session_heads WHERE session_id = $1", session_id)
    caller = Caller(edge.database, session_id, epoch)
    return SessionCredentials(
        caller, SecretBox(edge.settings.secret_keys), names or session.options.credentials, None, None
    )


async def taken(edge, session, host="git.example.com", port=443):
    """The header that a request gets; None: none."""
    found = await (await held(edge, session)).take(host, port)
    return None if found is None else found.header


async def test_a_credential_is_created_read_listed_changed_and_deleted(client):
    request_id = str(uuid4())
    made = await create(client, "Git", ("Git.Example.COM", "*.example.org:8443"), request_id, description="x")
    assert list(made.hosts) == ["git.example.com", "*.example.org:8443"]
    assert made.WhichOneof("kind") == "bearer"
    assert made.owner.startswith("users/")
    assert not made.HasField("last_used_time")
    assert await create(client, "Git", ("Git.Example.COM", "*.example.org:8443"), request_id, description="x") == made
    other = create(client, "Git", ("Git.Example.COM", "*.example.org:8443"), request_id, "another", description="x")
    assert await failure(other) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert await get(client, made.name) == made
    await create(client, "b", header=credential_pb2.HeaderCredential(name="X-Key", value=TOKEN))
    assert await names(client) == ["b", "Git"]
    assert await names(client, order_by="display_name", page_size=1) == ["Git"]
    page = await listed(client, page_size=1)
    assert await names(client, page_size=1, page_token=page.next_page_token) == ["Git"]
    made.display_name = "Other"
    changed = await update(client, made, "display_name")
    assert (changed.display_name, changed.etag) != (made.etag, "Git")
    assert await failure(update(client, made, "display_name")) == ("ABORTED", "ETAG_MISMATCH")
    assert await failure(update(client, changed, "display_nam")) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID")
    assert await failure(delete(client, made.name, made.etag)) == ("ABORTED", "ETAG_MISMATCH")
    await delete(client, made.name, changed.etag)
    assert await failure(get(client, made.name)) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(get(client, "credentials/1")) == ("INVALID_ARGUMENT", "NAME_INVALID")


async def test_a_value_goes_in_and_never_comes_out(client, edge):
    kinds = {
        "bearer": credential_pb2.BearerCredential(token=TOKEN),
        "basic": credential_pb2.BasicCredential(username="me", password=TOKEN),
        "header": credential_pb2.HeaderCredential(name="X-Key", value=TOKEN),
        "git": credential_pb2.GitCredential(token=TOKEN),
    }
    for kind, given in kinds.items():
        made = await create(client, kind, (f"{kind}.example.com",), str(uuid4()), **{kind: given})
        answers = [made, await get(client, made.name), await listed(client)]
        answers.append(await update(client, credential_pb2.Credential(name=made.name, description="x"), "description"))
        new = credential_pb2.Credential(name=made.name, hosts=["x.example.com"], **{kind: given})
        answers.append(await update(client, new))
        bad = credential_pb2.Credential(name=made.name, hosts=["/"], **{kind: given})
        with pytest.raises(RpcError) as caught:
            await update(client, bad)
        answers.append(caught.value.message)
        assert not [answer for answer in answers if TOKEN in str(answer)]
    dump = []
    async with edge.database.connection() as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for table in tables:
            dump += [str(dict(row)) for row in await connection.fetch(f'SELECT * FROM "{table["tablename"]}"')]
    assert len(dump) > 8
    assert not [row for row in dump if TOKEN in row]


async def test_all_faults_are_told_at_once(client):
    with pytest.raises(RpcError) as caught:
        await create(client, " ", ("https://x", "203.0.113.7", "*.com"), description="\0", token="a\r\nb")
    for text in ("display_name", "hosts[0]", "hosts[1]", "hosts[2]", "description", "bearer.token"):
        assert text in caught.value.message
    assert "a\r\nb" not in caught.value.message
    for hosts in ((), ["a.example.com"] * 51):
        assert await failure(create(client, hosts=hosts)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    nothing = credential_pb2.BasicCredential(username="me")
    assert await failure(create(client, basic=nothing)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_without_a_key_there_are_none(client, edge):
    without = edge.settings.model_copy(update={"secret_keys": ()})
    edge.use_cases.credentials._box = Credentials(edge.database, without)._box
    assert await failure(create(client)) == ("FAILED_PRECONDITION", "NOT_CONFIGURED")


async def test_no_more_than_so_many(client, edge, monkeypatch):
    monkeypatch.setattr("agentrpc.services.credentials._MAX_CREDENTIALS", 2)
    results = await asyncio.gather(*[create(client, str(at)) for at in range(4)], return_exceptions=True)
    assert sorted(getattr(result, "reason", "") for result in results) == ["", "", "LIMIT_REACHED", "LIMIT_REACHED"]


async def test_an_update_keeps_the_value_unless_it_brings_one(client, edge):
    made = await create(client)
    session = await client.create_session(naming(made))
    assert await taken(edge, session) == ("Authorization", f"Bearer {TOKEN}")
    # As it was read.
    made.description = "x"
    made = await update(client, made, "*")
    assert await taken(edge, session) == ("Authorization", f"Bearer {TOKEN}")
    made.bearer.token = "another-token"
    made = await update(client, made, "bearer.token")
    assert await taken(edge, session) == ("Authorization", "Bearer another-token")
    # Another kind has another value.
    made.header.name = "X-Key"
    assert await failure(update(client, made, "header")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    made.header.value = "a-third-one"
    made = await update(client, made, "header")
    assert await taken(edge, session) == ("X-Key", "a-third-one")
    made.hosts[:] = ["other.example.com:8443"]
    await update(client, made, "hosts")
    assert await taken(edge, session) is None
    assert await taken(edge, session, "other.example.com", 8443) == ("X-Key", "a-third-one")
    assert await taken(edge, session, "other.example.com", 443) is None


async def test_others_see_what_is_shared_and_change_nothing(client, edge):
    own = await create(client, "own")
    shared = await create(client, "shared", shared=True)
    async with edge.client("bob") as bob, edge.client("vic") as vic, edge.client("admin") as admin:
        assert await names(bob) == ["shared"]
        assert await names(bob, owner=own.owner) == ["shared"]
        assert sorted(await names(admin)) == ["own", "shared"]
        for call in (get(bob, own.name), update(bob, own, "shared"), delete(bob, own.name)):
            assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
        for call in (update(bob, shared, "shared"), delete(bob, shared.name), create(vic)):
            assert await failure(call) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        # One of another, by its name, and one that nobody has, look the same.
        for name in (own.name, NOBODY):
            wanted = session_pb2.Session(options=session_pb2.SessionOptions(credentials=[name]))
            with pytest.raises(RpcError) as caught:
                await bob.create_session(wanted)
            assert caught.value.reason == "FIELD_INVALID"
            assert "there is no credential" in caught.value.message
        session = await bob.create_session(naming(shared))
        assert await taken(edge, session) == ("Authorization", f"Bearer {TOKEN}")
        # An admin sends it nowhere else without having it.
        own.hosts[:] = ["collector.example"]
        assert await failure(update(admin, own, "hosts")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        own.bearer.token = "the-admins-own"
        assert list((await update(admin, own, "hosts", "bearer.token")).hosts) == ["collector.example"]


async def test_a_session_names_what_it_may_use_and_no_host_twice(client, edge):
    one = await create(client, "one", ("a.example.com", "*.example.org"))
    other = await create(client, "other", ("b.example.com", "x.example.org"))
    assert await failure(client.create_session(naming(one, other))) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(client.create_session(naming(one, one))) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    bad = session_pb2.Session(options=session_pb2.SessionOptions(credentials=["mine"]))
    assert await failure(client.create_session(bad)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    other.hosts[:] = ["b.example.com"]
    other = await update(client, other, "hosts")
    session = await client.create_session(naming(one, other))
    assert list(session.options.credentials) == [one.name, other.name]
    assert await taken(edge, session, "x.y.example.org") == ("Authorization", f"Bearer {TOKEN}")
    assert await taken(edge, session, "example.org") is None
    # Where that comes later, the first has the host.
    other.hosts[:] = ["a.example.com"]
    other.bearer.token = "of-the-other"
    await update(client, other, "hosts", "bearer.token")
    assert await taken(edge, session, "a.example.com") == ("Authorization", f"Bearer {TOKEN}")
    # A change of something else looks again.
    session.options.model = "other"
    request = session_service_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=["options"]))
    assert await failure(client.call(client.sessions.UpdateSession, request)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_what_was_taken_back_is_not_used_any_more(client, edge):
    shared = await create(client, "shared", shared=True)
    async with edge.client("bob") as bob:
        session = await bob.create_session(naming(shared))
        own = await client.create_session(naming(shared))
        shared.shared = False
        shared = await update(client, shared, "shared")
        assert await taken(edge, session) is None
        assert await taken(edge, own) is not None
        with pytest.raises(FailedPrecondition, match="deleted or is not shared") as caught:
            await (await held(edge, session)).check()
        assert caught.value.reason == "NOT_FOUND"
    await delete(client, shared.name)
    assert await taken(edge, own) is None
    with pytest.raises(FailedPrecondition, match="deleted or is not shared"):
        await (await held(edge, own)).check()


async def test_who_may_not_use_the_service_uses_no_credential(client, edge):
    made = await create(client)
    session = await client.create_session(naming(made))
    async with edge.database.transaction() as tx:
        (await tx.get_one(User, UUID(made.owner.removeprefix("users/")))).disable_time = datetime.now(UTC)
    assert await taken(edge, session) is None


async def test_a_worker_that_lost_the_session_adds_nothing(client, edge):
    made = await create(client)
    session = await client.create_session(naming(made))
    credentials = await held(edge, session)
    assert await credentials.covers("git.example.com", 443)
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE session_heads SET epoch = epoch + 1")
    assert await credentials.take("git.example.com", 443) is None


async def test_the_last_use_is_noted_once_a_minute(client, edge):
    made = await create(client)
    session = await client.create_session(naming(made))
    await taken(edge, session)
    first = await get(client, made.name)
    assert first.HasField("last_used_time")
    assert (first.etag, first.update_time) == (made.etag, made.update_time)
    await taken(edge, session)
    assert await get(client, made.name) == first
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE credentials SET last_used_time = last_used_time - interval '61 seconds'")
    await taken(edge, session)
    after = (await get(client, made.name)).last_used_time.ToDatetime(UTC)
    assert after - first.last_used_time.ToDatetime(UTC) > -timedelta(seconds=1)
    assert after > datetime.now(UTC) - timedelta(minutes=1)


async def test_agents_and_tasks_carry_them_through(client, edge):
    made = await create(client)
    options = naming(made).options
    request = agent_service_pb2.CreateAgentRequest(
        agent=agent_pb2.Agent(display_name="a", shared=True), version=agent_pb2.AgentVersion(options=options)
    )
    agent = await client.call(client.agents.CreateAgent, request)
    session = await client.create_session(session_pb2.Session(agent=agent.name))
    assert list(session.options.credentials) == [made.name]
    task = task_pb2.Task(display_name="t", prompt_template="x", options=options)
    task = await client.call(client.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=task))
    assert list(task.options.credentials) == [made.name]
    async with edge.client("bob") as bob:
        # Who makes a session from another's agent needs the credential himself.
        theirs = bob.create_session(session_pb2.Session(agent=agent.name))
        assert await failure(theirs) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        request.agent.display_name = "b"
        assert await failure(bob.call(bob.agents.CreateAgent, request)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        task = task_pb2.Task(display_name="t", prompt_template="x", options=options)
        refused = bob.call(bob.tasks.CreateTask, task_service_pb2.CreateTaskRequest(task=task))
        assert await failure(refused) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_what_does_not_open_is_told(client, edge):
    made = await create(client)
    session = await client.create_session(naming(made))
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE credentials SET secret = 'x'")
    credentials = await held(edge, session)
    with pytest.raises(FailedPrecondition, match="AGENTRPC_SECRET_KEYS"):
        await credentials.check()
    with pytest.raises(FailedPrecondition, match="AGENTRPC_SECRET_KEYS"):
        await credentials.take("git.example.com", 443)


async def test_a_sealed_value_opens_in_its_own_row_only(client, edge):
    made = await create(client)
    other = await create(client, "b", ("b.example.com",), token="of-the-other")
    async with edge.database.connection() as connection:
        await connection.execute(
            "UPDATE credentials SET secret = (SELECT secret FROM credentials WHERE id = $1) WHERE id = $2",
            UUID(made.name.removeprefix("credentials/")),
            UUID(other.name.removeprefix("credentials/")),
        )
    session = await client.create_session(naming(other))
    with pytest.raises(FailedPrecondition):
        await taken(edge, session, "b.example.com")


async def test_a_process_without_credentials_gets_nothing_and_one_with_them_whom_to_trust(client, edge):
    vault = Vault(edge.database, edge.settings)
    plain = await client.create_session(session_pb2.Session())
    caller = Caller(edge.database, parse_session(plain.name), 0)
    assert await vault.open(caller, plain.options) is None
    async with edge.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM certificate_authority") == 0
    session = await client.create_session(naming(await create(client)))
    caller = Caller(edge.database, parse_session(session.name), 0)
    opened = await vault.open(caller, session.options)
    assert opened.trusted().endswith(opened.authority.pem)
    assert opened.trusted().count("BEGIN CERTIFICATE") > 1


async def test_the_command_reads_a_value_and_never_prints_it(client, edge, tmp_path):
    await client.login("ann", "password")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "200", "AGENTRPC_TOKEN": client._token}

    async def command(*words, given=""):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentrpc", "--server", edge.address, *words, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(given.encode())
        assert TOKEN not in (out + err).decode()
        return process.returncode, out.decode(), err.decode()

    status, out, err = await command(
        "credentials", "create", "a", "--kind", "git", "--host", "git.example.com", given=f"{TOKEN}\n"
    )
    assert status == 0, err
    name = json.loads(out)["name"]
    status, out, err = await command("sessions", "create", "--credential", name.removeprefix("credentials/"))
    assert status == 0, err
    session = await client.get_session(json.loads(out)["name"])
    assert list(session.options.credentials) == [name]
    basic = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert await taken(edge, session) == ("Authorization", f"Basic {basic}")
    file = tmp_path / "token"
    file.write_text("of-today\n")
    status, _, err = await command("credentials", "update", name, "--secret-file", str(file), "--host", "x.example.com")
    assert status == 0, err
    basic = base64.b64encode(b"x-access-token:of-today").decode()
    assert await taken(edge, session, "x.example.com") == ("Authorization", f"Basic {basic}")
    status, out, err = await command("credentials", "list")
    assert (status, name in out, "x.example.com" in out) == (0, True, True), err
