"""WebhookService: what callers may set, see and ask."""

from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.client import RpcError
from agentrpc.services.webhooks import Webhooks
from agentrpc.v1 import webhook_pb2, webhook_service_pb2

URL = "https://hooks.example/agentrpc"


async def failure(awaitable):
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.code, caught.value.reason


def create(client, request_id="", **fields):
    request = webhook_service_pb2.CreateWebhookRequest(
        webhook=webhook_pb2.Webhook(**{"url": URL, **fields}), request_id=request_id
    )
    return client.call(client.webhooks.CreateWebhook, request)


def get(client, name):
    return client.call(client.webhooks.GetWebhook, webhook_service_pb2.GetWebhookRequest(name=name))


def update(client, *paths, **fields):
    request = webhook_service_pb2.UpdateWebhookRequest(
        webhook=webhook_pb2.Webhook(**fields), update_mask=FieldMask(paths=paths)
    )
    return client.call(client.webhooks.UpdateWebhook, request)


def listed(client, **fields):
    return client.call(client.webhooks.ListWebhooks, webhook_service_pb2.ListWebhooksRequest(**fields))


def send_test(client, name, request_id=""):
    return client.call(
        client.webhooks.TestWebhook, webhook_service_pb2.TestWebhookRequest(name=name, request_id=request_id)
    )


async def test_a_webhook_is_created_read_listed_changed_and_deleted(client, edge):
    request_id = str(uuid4())
    made = await create(client, request_id, display_name="a", event_types=["run_ended"])
    assert made.secret.startswith("whsec_")
    assert await create(client, request_id, display_name="a", event_types=["run_ended"]) == made
    assert await failure(create(client, request_id, display_name="b")) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    async with edge.database.connection() as connection:
        stored = await connection.fetchval("SELECT secret FROM webhooks")
    assert made.secret.encode() not in stored
    known = await get(client, made.name)
    assert known.secret == ""
    made.secret = ""
    assert known == made
    second = await create(client, disabled=True)
    assert second.disable_reason == webhook_pb2.Webhook.DISABLE_REASON_CALLER
    assert [one.name for one in (await listed(client)).webhooks] == [second.name, made.name]
    assert [one.name for one in (await listed(client, disabled=False)).webhooks] == [made.name]
    page = await listed(client, page_size=1, order_by="display_name desc")
    assert [one.name for one in page.webhooks] == [made.name]
    page = await listed(client, page_size=1, order_by="display_name desc", page_token=page.next_page_token)
    assert ([one.name for one in page.webhooks], page.next_page_token) == ([second.name], "")
    changed = await update(client, "url", name=made.name, url="https://other.example/", etag=made.etag)
    assert (changed.url, changed.event_types) == ("https://other.example/", ["run_ended"])
    assert await failure(update(client, "url", name=made.name, url=URL, etag=made.etag)) == ("ABORTED", "ETAG_MISMATCH")
    assert await failure(update(client, "nope", name=made.name)) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID")
    delete = webhook_service_pb2.DeleteWebhookRequest(name=made.name)
    await send_test(client, made.name)
    await client.call(client.webhooks.DeleteWebhook, delete)
    assert await failure(get(client, made.name)) == ("NOT_FOUND", "NOT_FOUND")
    async with edge.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM webhook_deliveries") == 0


async def test_all_faults_are_told_at_once(client):
    with pytest.raises(RpcError) as caught:
        await create(
            client, url="ftp://u:p@x/#y", display_name="x" * 201, event_types=["nope"], session_labels={"BAD": "x"}
        )
    for text in ("display_name", "nope", "session_labels", "http://", "user name", "fragment"):
        assert text in caught.value.message
    assert await failure(get(client, "webhooks/1")) == ("INVALID_ARGUMENT", "NAME_INVALID")
    assert await failure(listed(client, order_by="url")) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(listed(client, page_token="x")) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_private_addresses_and_missing_keys(client, edge):
    settings = edge.settings.model_copy(update={"allow_private_addresses": False})
    webhooks = edge.use_cases.webhooks
    webhooks._settings = settings
    for url in ("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:10.0.0.1]/"):
        assert await failure(create(client, url=url)) == ("INVALID_ARGUMENT", "ADDRESS_REFUSED")
    made = await create(client)
    assert await failure(update(client, "url", name=made.name, url="http://10.0.0.1/")) == (
        "INVALID_ARGUMENT",
        "ADDRESS_REFUSED",
    )
    without = Webhooks(edge.database, webhooks._doorbell, settings.model_copy(update={"secret_keys": ()}))
    webhooks._box = without._box
    assert await failure(create(client)) == ("FAILED_PRECONDITION", "NOT_CONFIGURED")
    assert (await get(client, made.name)).url == URL


async def test_others_see_nothing_and_viewers_change_nothing(client, edge):
    made = await create(client)
    delivery = await send_test(client, made.name)
    async with edge.client("bob") as bob, edge.client("vic") as vic, edge.client("admin") as admin:
        rotate = webhook_service_pb2.RotateWebhookSecretRequest(name=made.name)
        again = webhook_service_pb2.RedeliverWebhookRequest(name=delivery.name)
        deliveries = webhook_service_pb2.ListWebhookDeliveriesRequest(parent=made.name)
        one = webhook_service_pb2.GetWebhookDeliveryRequest(name=delivery.name)
        for call in (
            get(bob, made.name),
            update(bob, "url", name=made.name, url=URL),
            bob.call(bob.webhooks.DeleteWebhook, webhook_service_pb2.DeleteWebhookRequest(name=made.name)),
            bob.call(bob.webhooks.RotateWebhookSecret, rotate),
            send_test(bob, made.name),
            bob.call(bob.webhooks.RedeliverWebhook, again),
            bob.call(bob.webhooks.ListWebhookDeliveries, deliveries),
            bob.call(bob.webhooks.GetWebhookDelivery, one),
        ):
            assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
        assert not (await listed(bob, owner=made.owner)).webhooks
        assert await failure(create(vic)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert [one.name for one in (await listed(admin)).webhooks] == [made.name]
        # What happens to others is for admins, and stays with them.
        assert await failure(create(client, all_users=True)) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert await failure(update(client, "all_users", name=made.name, all_users=True)) == (
            "PERMISSION_DENIED",
            "PERMISSION_DENIED",
        )
        assert (await create(admin, all_users=True)).all_users


async def test_a_disabled_one_sends_nothing(client, edge):
    made = await create(client)
    waiting = await send_test(client, made.name)
    told = await update(client, "disabled", name=made.name, disabled=True)
    assert told.disable_reason == webhook_pb2.Webhook.DISABLE_REASON_CALLER
    request = webhook_service_pb2.GetWebhookDeliveryRequest(name=waiting.name)
    found = await client.call(client.webhooks.GetWebhookDelivery, request)
    assert found.state == webhook_pb2.WebhookDelivery.STATE_FAILED
    again = webhook_service_pb2.RedeliverWebhookRequest(name=waiting.name)
    for call in (send_test(client, made.name), client.call(client.webhooks.RedeliverWebhook, again)):
        assert await failure(call) == ("FAILED_PRECONDITION", "STATE_INVALID")
    told = await update(client, "disabled", name=made.name)
    assert (told.disabled, told.disable_reason) == (False, 0)
    assert (await client.call(client.webhooks.RedeliverWebhook, again)).delivery_count == 1


async def test_requests_that_are_repeated(client):
    made = await create(client)
    request_id = str(uuid4())
    first = await send_test(client, made.name, request_id)
    assert (await send_test(client, made.name, request_id)).name == first.name
    rotate = webhook_service_pb2.RotateWebhookSecretRequest(name=made.name, request_id=request_id)
    secrets = {(await client.call(client.webhooks.RotateWebhookSecret, rotate)).secret for _ in range(2)}
    assert len(secrets) == 1
    assert made.secret not in secrets
    rotate.request_id = ""
    rotate.overlap.FromSeconds(8 * 86400)
    call = client.call(client.webhooks.RotateWebhookSecret, rotate)
    assert await failure(call) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    deliveries = webhook_service_pb2.ListWebhookDeliveriesRequest(parent=made.name, event_types=["test"], states=[1])
    assert [one.name for one in (await client.call(client.webhooks.ListWebhookDeliveries, deliveries)).deliveries] == [
        first.name
    ]


async def test_there_is_a_limit(client, edge):
    await create(client)
    async with edge.database.connection() as connection:
        await connection.execute(
            "INSERT INTO webhooks SELECT gen_random_uuid(), owner, display_name, url, event_types, session_labels,"
            " all_users, revision, secret, NULL, NULL, NULL, 0, NULL, NULL, NULL, create_time, update_time"
            " FROM webhooks, generate_series(1, 99)"
        )
    assert await failure(create(client)) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
