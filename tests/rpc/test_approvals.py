"""WatchApprovals: what waits, then every change once, of what the caller may see, at the cost of one query a second."""

import time

from agentrpc.errors import StoreUnavailable
from agentrpc.rpc import approval_feed, approval_stream, hub, stream
from agentrpc.v1 import approval_pb2, approval_service_pb2, session_service_pb2, stream_pb2

PENDING = approval_pb2.Approval.STATE_PENDING
ALLOW = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)


async def watch(client, parent="sessions/-"):
    request = approval_service_pb2.WatchApprovalsRequest(parent=parent)
    return client.approvals.WatchApprovals(request, metadata=await client._metadata())


def caught_up(response):
    return response.HasField("caught_up")


def tells(title, state=PENDING):
    return lambda response: any((a.title, a.state) == (title, state) for a in response.approvals)


def told(responses):
    return [(approval.title, approval.state) for response in responses for approval in response.approvals]


async def test_what_waits_then_every_change_once(client, source, ask, until):
    run = await client.create_run(source.name, "x")
    early, answered = await ask(run, "early"), await ask(run, "answered before")
    await client.resolve(answered, ALLOW)
    call = await watch(client)
    responses = await until(call, caught_up)
    assert responses[0].HasField("opened")
    assert told(responses) == [("early", PENDING)]
    await ask(run, "late")
    assert told(await until(call, tells("late"))) == [("late", PENDING)]
    await client.resolve(early, ALLOW)
    await ask(run, "mark")
    assert sorted(told(await until(call, tells("mark")))) == [
        ("early", approval_pb2.Approval.STATE_ALLOWED),
        ("mark", PENDING),
    ]
    # Nothing comes again once it was told.
    responses = await until(call, lambda response: response.HasField("heartbeat"))
    assert told(responses) == []


async def test_each_sees_only_what_is_theirs(edge, client, new_source, ask, until):
    async with edge.client("bob") as bob, edge.client("admin") as admin:
        hers, other, his = await new_source(client), await new_source(client), await new_source(bob)
        runs = {}
        for title, who, where in (("hers", client, hers), ("other", client, other), ("his", bob, his)):
            runs[title] = await who.create_run(where.name, "x")
        calls = {
            "ann": await watch(client),
            "ann's one session": await watch(client, hers.name),
            "bob": await watch(bob),
            "admin": await watch(admin),
        }
        for call in calls.values():
            assert told(await until(call, caught_up)) == []
        for title in ("his", "other", "hers"):
            await ask(runs[title], title)
        expected = {
            "ann": ["hers", "other"],
            "ann's one session": ["hers"],
            "bob": ["his"],
            "admin": ["hers", "his", "other"],
        }
        for who, titles in expected.items():
            seen = []
            while len(seen) < len(titles):
                seen += told(await until(calls[who], lambda response: bool(response.approvals)))
            seen += told(await until(calls[who], lambda response: response.HasField("heartbeat")))
            assert sorted(title for title, _ in seen) == titles, who


async def test_without_redis_changes_come_too(client, source, ask, until, redis_server):
    run = await client.create_run(source.name, "x")
    call = await watch(client, source.name)
    await until(call, caught_up)
    redis_server.stop()
    name = await ask(run, "asked")
    await until(call, tells("asked"))
    await client.resolve(name, ALLOW)
    await until(call, tells("asked", approval_pb2.Approval.STATE_ALLOWED))


async def test_without_postgres_the_stream_sends_its_client_elsewhere(monkeypatch, client, source, until):
    """Also on an edge where nobody watches a session."""

    async def away(*_):
        raise StoreUnavailable

    monkeypatch.setattr(stream, "_STORE_PATIENCE", 0.5)
    call = await watch(client)
    await until(call, caught_up)
    monkeypatch.setattr(approval_feed, "changed_approvals", away)
    monkeypatch.setattr(hub, "last_sequences", away)
    responses = await until(call, lambda response: response.HasField("end"))
    assert responses[-1].end.reason == stream_pb2.StreamEnd.REASON_UNAVAILABLE


async def test_what_the_live_tail_tells_hastens_the_query(monkeypatch, client, source, ask, until):
    monkeypatch.setattr(approval_feed, "_TICK", 3600.0)
    run = await client.create_run(source.name, "x")
    call = await watch(client)
    await until(call, caught_up)
    # While somebody watches the session, the process hears what goes on in it.
    listening = client.sessions.WatchSession(
        session_service_pb2.WatchSessionRequest(name=source.name), metadata=await client._metadata()
    )
    await until(listening, caught_up)
    await ask(run, "asked")
    await until(call, tells("asked"))


async def test_many_watchers_cost_one_query_a_second(monkeypatch, client, source, ask, until):
    asked = 0

    async def counting(*arguments, original=approval_feed.changed_approvals):
        nonlocal asked
        asked += 1
        return await original(*arguments)

    monkeypatch.setattr(approval_feed, "changed_approvals", counting)
    run = await client.create_run(source.name, "x")
    calls = [await watch(client) for _ in range(30)]
    for call in calls:
        await until(call, caught_up)
    began, asked = time.monotonic(), 0
    for _ in range(3):
        await until(calls[0], lambda response: response.HasField("heartbeat"))
    await ask(run, "asked", show=False)
    for call in calls:
        await until(call, tells("asked"))
    assert 1 <= asked <= time.monotonic() - began + 1


async def test_much_that_waits_comes_in_pages(monkeypatch, client, source, ask, until):
    monkeypatch.setattr(approval_stream, "_PAGE", 3)
    run = await client.create_run(source.name, "x")
    names = [await ask(run, str(n), input_json="x" * 100_000) for n in range(10)]
    responses = await until(await watch(client), caught_up)
    assert [approval.name for response in responses for approval in response.approvals] == names
    assert max(response.ByteSize() for response in responses) < 512 * 1024


async def test_a_watch_after_all_others_have_gone_begins_anew(client, source, ask, until):
    run = await client.create_run(source.name, "x")
    first = await watch(client)
    await until(first, caught_up)
    name = await ask(run, "asked")
    await until(first, tells("asked"))
    first.cancel()
    await client.resolve(name, ALLOW)
    second = await watch(client)
    assert told(await until(second, caught_up)) == []
    await ask(run, "mark")
    assert told(await until(second, tells("mark"))) == [("mark", PENDING)]
