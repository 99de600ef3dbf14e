"""Webhooks of a whole service: from the run to the endpoint, and over the death of the worker that was sending."""

import asyncio

from aiohttp import web

from agentrpc.v1 import webhook_pb2, webhook_service_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import create, run
from tests.work.test_webhook_delivery import Receiver, example


async def test_an_event_arrives_though_the_worker_that_sends_it_is_killed():
    receiver = await Receiver().start()
    try:
        async with (
            own_stack(allow_private_addresses="true", webhook_timeout=4) as stack,
            stack.client() as client,
        ):
            webhook = webhook_pb2.Webhook(url=receiver.url, event_types=["run_ended"])
            request = webhook_service_pb2.CreateWebhookRequest(webhook=webhook)
            made = await client.call(client.webhooks.CreateWebhook, request)
            receiver.answer = lambda r: asyncio.sleep(60)
            await run(client, await create(client), "[[text: hi]]")
            async with asyncio.timeout(90):
                await receiver.came.wait()
                stack.stack.kill_child("worker")
                receiver.answer = lambda r: web.Response()
                while len(receiver.requests) < 2:
                    receiver.came.clear()
                    await receiver.came.wait()
            ids = [headers["webhook-id"] for headers, _, _ in receiver.requests]
            assert len(set(ids)) == 1
            headers, body, _ = receiver.requests[-1]
            example.verify(made.secret, {key.lower(): value for key, value in headers.items()}, body)
    finally:
        await receiver.runner.cleanup()
