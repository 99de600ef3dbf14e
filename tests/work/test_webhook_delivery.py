"""Deliveries over real sockets: to endpoints that fail, hang, redirect, talk without end, go away; by several workers."""

import asyncio
import contextlib
import importlib.util
import json
import random
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from agentrpc import clock
from agentrpc.services.outbox import Outbox
from agentrpc.services.webhook_delivery import WebhookDeliveries
from agentrpc.store.webhooks import claim_deliveries
from agentrpc.v1 import session_pb2, webhook_pb2, webhook_service_pb2

STATE = webhook_pb2.WebhookDelivery
EXAMPLE = Path(__file__).parent.parent.parent / "scripts" / "examples" / "verify_webhook.py"


def _example():
    spec = importlib.util.spec_from_file_location("verify_webhook", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _example()


class Receiver:
    """An endpoint on loopback that notes what comes and answers as it is told to."""

    def __init__(self):
        self.requests = []
        self.came = asyncio.Event()
        self.answer = lambda request: web.Response(status=204)

    async def _handle(self, request):
        body = await request.read()
        self.requests.append((dict(request.headers), body, clock.utcnow()))
        self.came.set()
        answer = self.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def start(self, context=None):
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}/hook"
        return self

    def bodies(self):
        return [json.loads(body) for _, body, _ in self.requests]


@pytest.fixture
async def new_receiver():
    """Makes endpoints: `await new_receiver()`."""
    made = []

    async def make(context=None):
        made.append(await Receiver().start(context))
        return made[-1]

    yield make
    for receiver in made:
        await receiver.runner.cleanup()


@pytest.fixture
async def receiver(new_receiver):
    return await new_receiver()


@pytest.fixture
def settings(settings):
    """Times that tests can wait for."""
    return settings.model_copy(update={"webhook_timeout": 1.0, "webhook_retry_delay": 0.1})


class Part:
    """What the tests do with a service that is only an edge: tell what happened, deliver."""

    def __init__(self, edge, client):
        self.edge, self.client = edge, client

    def worker(self, **changes):
        return WebhookDeliveries(self.edge.database, self.edge.settings.model_copy(update=changes))

    async def tell(self):
        return await Outbox(self.edge.database, self.edge.use_cases.consumers()).drain()

    async def create(self, url, **fields):
        request = webhook_service_pb2.CreateWebhookRequest(webhook=webhook_pb2.Webhook(url=url, **fields))
        return await self.client.call(self.client.webhooks.CreateWebhook, request)

    async def get(self, webhook):
        request = webhook_service_pb2.GetWebhookRequest(name=webhook.name)
        return await self.client.call(self.client.webhooks.GetWebhook, request)

    async def test(self, webhook):
        request = webhook_service_pb2.TestWebhookRequest(name=webhook.name)
        return await self.client.call(self.client.webhooks.TestWebhook, request)

    async def delivery(self, name):
        request = webhook_service_pb2.GetWebhookDeliveryRequest(name=name)
        return await self.client.call(self.client.webhooks.GetWebhookDelivery, request)

    async def deliveries(self, webhook, *states):
        request = webhook_service_pb2.ListWebhookDeliveriesRequest(parent=webhook.name, states=states, page_size=500)
        return list((await self.client.call(self.client.webhooks.ListWebhookDeliveries, request)).deliveries)

    async def redeliver(self, name):
        request = webhook_service_pb2.RedeliverWebhookRequest(name=name)
        return (await self.client.call(self.client.webhooks.RedeliverWebhook, request)).delivery_count

    async def drain_until(self, done, *workers, timeout=60):
        """Deliver until `await done()`; what it was."""
        async with asyncio.timeout(timeout):
            while not (found := await done()):
                await asyncio.gather(*[worker.drain() for worker in workers or [self.worker()]])
                await asyncio.sleep(0.02)
        return found

    async def ended(self, webhook):
        """The deliveries, if all have ended."""
        found = await self.deliveries(webhook)
        return found if found and all(one.state >= STATE.STATE_SUCCEEDED for one in found) else None


@pytest.fixture
def part(edge, client):
    return Part(edge, client)


async def test_events_of_a_run_arrive_signed_and_thin(part, receiver, client):
    webhook = await part.create(receiver.url, event_types=["run_ended", "session_state_changed"])
    session = await client.create_session(session_pb2.Session())
    run = await client.create_run(session.name, "work: secret words")
    await client.interrupt(run.name)
    await part.tell()
    assert await part.worker().drain() >= 3
    found = {body["type"]: body["data"] for body in receiver.bodies()}
    assert found["run_ended"]["state"] == "STATE_CANCELLED"
    assert (found["run_ended"]["run"], found["run_ended"]["session"]) == (run.name, session.name)
    assert set(found) == {"run_ended", "session_state_changed"}
    for headers, body, _ in receiver.requests:
        assert b"secret words" not in body
        example.verify(webhook.secret, {key.lower(): value for key, value in headers.items()}, body)
    listed = await part.deliveries(webhook)
    assert {one.name.rpartition("/")[2] for one in listed} == {h["webhook-id"] for h, _, _ in receiver.requests}
    assert all(one.state == STATE.STATE_SUCCEEDED and one.attempts[0].status_code == 204 for one in listed)
    assert {one.subject for one in listed} == {run.name, session.name}


async def test_the_example_refuses_replays_and_forgeries(part, receiver, monkeypatch):
    webhook = await part.create(receiver.url)
    await part.test(webhook)
    await part.worker().drain()
    headers, body, _ = receiver.requests[0]
    headers = {key.lower(): value for key, value in headers.items()}
    example.verify(webhook.secret, headers, body)
    bad = [
        (webhook.secret, headers, body + b" "),
        (webhook.secret, {**headers, "webhook-id": "x"}, body),
        (webhook.secret, {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, body),
        (webhook.secret, {**headers, "webhook-timestamp": "soon"}, body),
        (webhook.secret, {key: value for key, value in headers.items() if key != "webhook-signature"}, body),
        (webhook.secret, {**headers, "webhook-signature": "v1,AAAA"}, body),
        ("whsec_" + "A" * 44, headers, body),
    ]
    for given in bad:
        with pytest.raises(ValueError):  # noqa: PT011 - the words do not matter
            example.verify(*given)
    sent = int(headers["webhook-timestamp"])
    for seconds in (301, -301):
        monkeypatch.setattr(example.time, "time", lambda seconds=seconds: sent + seconds)
        with pytest.raises(ValueError, match="replay"):
            example.verify(webhook.secret, headers, body)


async def test_a_receiver_that_fails_at_random_gets_each_event_at_least_once(part, receiver, client):
    chance = random.Random(7)

    async def hang():
        await asyncio.sleep(30)

    def answer(request):
        match chance.randrange(6):
            case 0:
                return web.Response(status=500)
            case 1:
                request.transport.abort()
                return web.Response()
            case 2:
                return web.Response(status=429, headers={"Retry-After": "0"})
            case 3 if chance.random() < 0.3:
                return hang()
        taken.append(request.headers["webhook-id"])
        return web.Response()

    taken = []
    receiver.answer = answer
    webhook = await part.create(receiver.url)
    session = await client.create_session(session_pb2.Session())
    for _ in range(10):
        run = await client.create_run(session.name, "x")
        await client.interrupt(run.name)
    await part.tell()
    workers = [part.worker(), part.worker()]
    found = await part.drain_until(lambda: part.ended(webhook), *workers)
    assert all(one.state == STATE.STATE_SUCCEEDED for one in found)
    assert {one.name.rpartition("/")[2] for one in found} == set(taken)
    assert len([body for body in receiver.bodies() if body["type"] == "run_ended"]) >= 10
    for headers, body, _ in receiver.requests:
        example.verify(webhook.secret, {key.lower(): value for key, value in headers.items()}, body)
    # A success that was not heard of is repeated; nothing else is.
    assert len(taken) - len(set(taken)) <= 2


async def _endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 65536)
    return response


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda r: web.Response(status=500), "answered 500"),
        (lambda r: web.Response(status=302, headers={"Location": "http://169.254.169.254/"}), "not followed"),
        (lambda r: web.Response(status=404), "answered 404"),
        (lambda r: asyncio.sleep(30), "no answer within 1 s"),
        (lambda r: r.transport.abort(), "RemoteProtocolError"),
        (lambda r: web.Response(status=429, headers={"Retry-After": "soon"}), "answered 429"),
        (
            lambda r: web.Response(status=503, headers={"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}),
            "answered 503",
        ),
    ],
)
async def test_what_is_no_success_is_tried_again_and_told(part, receiver, answer, error):
    receiver.answer = answer
    webhook = await part.create(receiver.url)
    name = (await part.test(webhook)).name
    began = clock.monotonic()
    await part.worker(webhook_retry_delay=3600).drain()
    assert clock.monotonic() - began < 20
    found = await part.delivery(name)
    assert found.state == STATE.STATE_PENDING
    assert error in found.attempts[0].error
    assert found.next_attempt_time.ToDatetime() > found.create_time.ToDatetime()
    told = await part.get(webhook)
    assert (told.consecutive_failures, told.HasField("failing_since")) == (1, True)
    receiver.answer = lambda r: web.Response()
    assert await part.redeliver(name) == 1
    await part.worker().drain()
    assert (await part.delivery(name)).state == STATE.STATE_SUCCEEDED
    told = await part.get(webhook)
    assert (told.consecutive_failures, told.HasField("failing_since")) == (0, False)
    assert len({headers["webhook-id"] for headers, _, _ in receiver.requests}) == 1


async def test_a_fault_of_the_service_is_recorded_and_held_against_nobody(part, receiver, monkeypatch):
    webhook = await part.create(receiver.url)
    name = (await part.test(webhook)).name
    worker = part.worker(webhook_retry_delay=3600)

    async def post(*_):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(worker, "_post", post)
    await worker.drain()
    found = await part.delivery(name)
    assert [attempt.error for attempt in found.attempts] == ["a fault of the service"]
    assert found.next_attempt_time.ToDatetime() > found.create_time.ToDatetime()
    assert (await part.get(webhook)).consecutive_failures == 0


async def test_an_answer_without_end_is_not_read(part, receiver):
    receiver.answer = _endless
    webhook = await part.create(receiver.url)
    name = (await part.test(webhook)).name
    await part.worker().drain()
    assert (await part.delivery(name)).state == STATE.STATE_SUCCEEDED


async def test_nobody_listens(part, new_receiver):
    gone = await new_receiver()
    await gone.runner.cleanup()
    webhook = await part.create(gone.url)
    name = (await part.test(webhook)).name
    await part.worker(webhook_retry_delay=3600).drain()
    assert "Connect" in (await part.delivery(name)).attempts[0].error


async def test_what_is_too_old_is_given_up_and_can_be_sent_again(part, receiver):
    receiver.answer = lambda r: web.Response(status=500)
    webhook = await part.create(receiver.url)
    for _ in range(3):
        await part.test(webhook)
    worker = part.worker(webhook_retry_delay=1e6)
    async with part.edge.database.connection() as connection:
        await connection.execute("UPDATE webhook_deliveries SET give_up_time = now()")
    await worker.drain()
    assert len(await part.deliveries(webhook, STATE.STATE_FAILED)) == 3
    receiver.answer = lambda r: web.Response()
    assert await part.redeliver(f"{webhook.name}/deliveries/-") == 3
    await part.worker().drain()
    assert len(await part.deliveries(webhook, STATE.STATE_SUCCEEDED)) == 3
    assert await part.redeliver(f"{webhook.name}/deliveries/-") == 0


async def test_an_endpoint_that_fails_for_days_or_is_gone_is_disabled(part, receiver, edge):
    webhook = await part.create(receiver.url)
    receiver.answer = lambda r: web.Response(status=500)
    for _ in range(2):
        await part.test(webhook)
    worker = part.worker(webhook_disable_after=5 * 86400, webhook_retry_delay=1e6)
    await worker.drain()
    assert not (await part.get(webhook)).disabled
    async with edge.database.connection() as connection:
        await connection.execute("UPDATE webhooks SET failing_since = now() - interval '6 days'")
        await connection.execute("UPDATE webhook_deliveries SET due_time = now()")
    await worker.drain()
    told = await part.get(webhook)
    assert (told.disabled, told.disable_reason) == (True, webhook_pb2.Webhook.DISABLE_REASON_FAILING)
    assert len(await part.deliveries(webhook, STATE.STATE_FAILED)) == 2
    request = webhook_service_pb2.UpdateWebhookRequest(webhook=webhook_pb2.Webhook(name=webhook.name))
    request.update_mask.paths.append("disabled")
    told = await part.client.call(part.client.webhooks.UpdateWebhook, request)
    assert (told.disabled, told.consecutive_failures) == (False, 0)
    receiver.answer = lambda r: web.Response(status=410)
    await part.test(webhook)
    await worker.drain()
    assert (await part.get(webhook)).disable_reason == webhook_pb2.Webhook.DISABLE_REASON_GONE


async def test_an_endpoint_that_asks_for_time_gets_it(part, receiver):
    receiver.answer = lambda r: web.Response(status=429, headers={"Retry-After": "3000"})
    webhook = await part.create(receiver.url)
    first = await part.test(webhook)
    await part.worker().drain()
    await part.test(webhook)
    # The others wait with it.
    assert await part.worker().drain() == 0
    found = await part.delivery(first.name)
    wait = found.next_attempt_time.ToDatetime() - found.attempts[0].start_time.ToDatetime()
    assert timedelta(seconds=2999) < wait < timedelta(seconds=3100)


async def test_one_that_hangs_holds_up_nobody(part, receiver, new_receiver):
    slow = await new_receiver()
    release = asyncio.Event()

    async def hang():
        await release.wait()
        return web.Response()

    slow.answer = lambda r: hang()
    for _ in range(6):
        bad = await part.create(slow.url)
        for _ in range(5):
            await part.test(bad)
    good = await part.create(receiver.url)
    worker = part.worker(webhook_timeout=120)
    draining = asyncio.create_task(worker.drain())
    async with asyncio.timeout(60):
        await slow.came.wait()
        await part.test(good)
        # It is found while others are under way.
        await receiver.came.wait()
        found = await part.deliveries(good)
        while not found[0].attempts:
            await asyncio.sleep(0.05)
            found = await part.deliveries(good)
    assert found[0].state == STATE.STATE_SUCCEEDED
    assert not draining.done()
    # A bounded share each.
    assert len(slow.requests) <= 6 * 4
    release.set()
    async with asyncio.timeout(60):
        await draining


async def test_two_workers_at_once_send_each_once(part, receiver):
    webhook = await part.create(receiver.url)
    await asyncio.gather(*[part.test(webhook) for _ in range(40)])
    await asyncio.gather(*[part.worker().drain() for _ in range(2)])
    ids = [headers["webhook-id"] for headers, _, _ in receiver.requests]
    assert len(ids) == len(set(ids)) == 40
    assert len(await part.deliveries(webhook, STATE.STATE_SUCCEEDED)) == 40


async def test_a_worker_that_stops_gives_back_and_one_that_dies_loses_its_lease(part, receiver, edge):
    async def hang():
        await asyncio.sleep(60)

    receiver.answer = lambda r: hang()
    webhook = await part.create(receiver.url)
    name = (await part.test(webhook)).name
    draining = asyncio.create_task(part.worker(webhook_timeout=60).drain())
    async with asyncio.timeout(30):
        await receiver.came.wait()
    assert await part.worker().drain() == 0
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    # As a worker that is killed after it has taken it: nobody gives it back.
    taken = await claim_deliveries(edge.database, 10, per_webhook=4, lease=timedelta(seconds=0.5))
    assert len(taken) == 1
    receiver.answer = lambda r: web.Response()
    await part.drain_until(lambda: part.ended(webhook))
    assert (await part.delivery(name)).state == STATE.STATE_SUCCEEDED
    assert [headers["webhook-id"] for headers, _, _ in receiver.requests] == [name.rpartition("/")[2]] * 2


async def test_a_private_address_is_refused_whenever_a_name_comes_to_mean_it(part, receiver):
    port = urlsplit(receiver.url).port
    webhook = await part.create(f"http://localhost:{port}/hook")
    name = (await part.test(webhook)).name
    await part.worker(allow_private_addresses=False, webhook_retry_delay=3600).drain()
    assert "not public" in (await part.delivery(name)).attempts[0].error
    assert receiver.requests == []


async def test_the_connection_is_made_to_the_address_that_was_judged(part, receiver):
    """The name is asked for once, is the Host, and is not asked for again by the client."""
    port = urlsplit(receiver.url).port
    webhook = await part.create(f"http://hook.invalid:{port}/x?y=1")
    await part.test(webhook)
    worker = part.worker()
    asked = []

    async def resolve(host, port):
        asked.append((host, port))
        # The first cannot be reached: the second is tried.
        return ["127.0.0.2", "127.0.0.1"]

    worker._resolve = resolve
    await worker.drain()
    assert asked == [("hook.invalid", port)]
    assert receiver.requests[0][0]["Host"] == f"hook.invalid:{port}"


async def test_slow_names_of_one_owner_hold_up_nobody_else(part, edge, receiver):
    """However many of them there are: a look-up that nobody waits for any more still counts."""
    release, asked = asyncio.Event(), []

    async def resolve(host, port):
        if host.endswith(".invalid"):
            asked.append(host)
            await release.wait()
        return ["127.0.0.1"]

    worker = part.worker(webhook_timeout=2, webhook_retry_delay=3600)
    worker._resolve = resolve
    slow = [await part.create(f"http://slow{at}.invalid/") for at in range(3)]
    for webhook in slow * 3:
        await part.test(webhook)
    async with edge.client("bob") as bob:
        others = Part(edge, bob)
        good = await others.create(receiver.url)
        await others.test(good)
        assert await worker.drain() == 10
        assert (await others.deliveries(good))[0].state == STATE.STATE_SUCCEEDED
    assert len(asked) == 4
    release.set()
    for webhook in slow:
        assert [one.attempts[0].error for one in await part.deliveries(webhook)] == [
            "there was no answer within 2 s"
        ] * 3


async def test_a_certificate_has_to_be_for_the_name(part, new_receiver, tmp_path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=hook.invalid",
         "-addext", "subjectAltName=DNS:hook.invalid", "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    receiver = await new_receiver(context)

    async def resolve(host, port):
        return ["127.0.0.1"]

    for host, good in [("hook.invalid", True), ("other.invalid", False)]:
        webhook = await part.create(f"https://{host}:{receiver.port}/")
        name = (await part.test(webhook)).name
        worker = part.worker(webhook_retry_delay=3600)
        worker._resolve, worker._trust = resolve, ssl.create_default_context(cafile=tmp_path / "cert")
        await worker.drain()
        found = await part.delivery(name)
        assert (found.state == STATE.STATE_SUCCEEDED) == good, found
    assert "certificate" in found.attempts[0].error.lower()


async def test_both_secrets_sign_while_they_overlap(part, receiver):
    webhook = await part.create(receiver.url)
    request = webhook_service_pb2.RotateWebhookSecretRequest(name=webhook.name)
    fresh = await part.client.call(part.client.webhooks.RotateWebhookSecret, request)
    assert fresh.secret != webhook.secret
    await part.test(webhook)
    await part.worker().drain()
    headers, body, _ = receiver.requests[0]
    headers = {key.lower(): value for key, value in headers.items()}
    for secret in (webhook.secret, fresh.secret):
        example.verify(secret, headers, body)
    request = webhook_service_pb2.RotateWebhookSecretRequest(name=webhook.name)
    request.overlap.FromSeconds(0)
    newest = await part.client.call(part.client.webhooks.RotateWebhookSecret, request)
    await part.test(webhook)
    await part.worker().drain()
    headers, body, _ = receiver.requests[1]
    headers = {key.lower(): value for key, value in headers.items()}
    example.verify(newest.secret, headers, body)
    with pytest.raises(ValueError, match="wrong"):
        example.verify(fresh.secret, headers, body)


async def test_who_is_told(part, receiver, edge, client):
    async with edge.client("bob") as bob, edge.client("admin") as admin:
        own = await part.create(receiver.url)
        labelled = await part.create(receiver.url, session_labels={"team": "x"})
        others = await Part(edge, bob).create(receiver.url)
        everyone = await Part(edge, admin).create(receiver.url, all_users=True)
        admins = await Part(edge, admin).create(receiver.url)
        for labels in ({}, {"team": "x", "a": "b"}):
            session = await client.create_session(session_pb2.Session(labels=labels))
            run = await client.create_run(session.name, "x")
            await client.interrupt(run.name)
        await part.tell()
        counts = [
            len([one for one in await Part(edge, who).deliveries(webhook) if one.event_type == "run_ended"])
            for who, webhook in [(client, own), (client, labelled), (bob, others), (admin, everyone), (admin, admins)]
        ]
        assert counts == [2, 1, 0, 2, 0]


async def test_old_deliveries_are_forgotten(part, receiver, edge):
    webhook = await part.create(receiver.url)
    await part.test(webhook)
    await part.worker().drain()
    assert len(await part.deliveries(webhook)) == 1
    await part.worker(webhook_log_ttl=0.001).drain()
    assert await part.deliveries(webhook) == []
