"""The gateway: the key stays on its side, tokens end when they should, bytes pass as they come."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from agentrpc import clock
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.server import TOKENS, ModelGateway, _Meter


@pytest.fixture
async def model():
    async with ScriptedModel(expected_key="sk-provider") as model:
        yield model


@pytest.fixture
async def gateway(model):
    gateway = ModelGateway(upstream_url=model.url, api_key="sk-provider")
    await gateway.start()
    yield gateway
    await gateway.stop()


def body(text, stream=False):
    return {
        "model": "m",
        "max_tokens": 9,
        "stream": stream,
        "tools": [{}],
        "messages": [{"role": "user", "content": text}],
    }


async def ask(gateway, token, text="[[text: hi]]", **more):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{gateway.url}/v1/messages?beta=true", json=body(text, **more), headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers


async def test_tokens_and_leases(gateway):
    allowed = True
    token = gateway.issue(clock.uuid7(), lambda: allowed)
    status, text, headers = await ask(gateway, token)
    assert status == 200
    assert "hi" in text
    assert "sk-provider" not in text + str(headers)
    assert (await ask(gateway, ""))[0] == 401
    assert (await ask(gateway, "run-other"))[0] == 401
    allowed = False
    assert (await ask(gateway, token))[0] == 403
    allowed = True
    gateway.revoke(token)
    assert (await ask(gateway, token))[0] == 401


async def test_errors_pass_and_a_lost_provider_is_overload(gateway, model):
    token = gateway.issue(clock.uuid7(), lambda: True)
    status, _, headers = await ask(gateway, token, "[[error: 429 retry_after=7]]")
    assert (status, headers["retry-after"]) == (429, "7")
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{gateway.url}/v1/files", headers={"authorization": f"Bearer {token}"}) as response,
    ):
        assert response.status == 404
    await model.stop()
    assert (await ask(gateway, token))[0] == 529


async def test_the_first_bytes_do_not_wait_for_the_last_and_usage_is_read(gateway):
    token = gateway.issue(clock.uuid7(), lambda: True)
    before = TOKENS.labels("m", "output")._value.get()
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"{gateway.url}/v1/messages",
            json=body("[[text: a b c d e f]]\n[[stall: 2]]\n[[usage: input=3 output=41]]", stream=True),
            headers={"authorization": f"Bearer {token}"},
        ) as response,
    ):
        began = clock.monotonic()
        assert b"message_start" in await response.content.readany()
        assert clock.monotonic() - began < 1
        await response.read()
    assert TOKENS.labels("m", "output")._value.get() - before == 41


async def test_revoking_cuts_calls_under_way(gateway):
    token = gateway.issue(clock.uuid7(), lambda: True)
    asking = asyncio.create_task(ask(gateway, token, "[[delay: 30]]"))
    await asyncio.sleep(0.3)
    gateway.revoke(token)
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(asking, 5)


async def test_a_key_in_an_error_body_is_taken_out():
    async def leak(_):
        return web.Response(status=400, text="your key sk-leaky is bad")

    app = web.Application()
    app.router.add_post("/v1/messages", leak)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    gateway = ModelGateway(upstream_url=f"http://127.0.0.1:{runner.addresses[0][1]}", api_key="sk-leaky")
    await gateway.start()
    try:
        status, text, _ = await ask(gateway, gateway.issue(clock.uuid7(), lambda: True))
        assert status == 400
        assert "sk-leaky" not in text
    finally:
        await gateway.stop()
        await runner.cleanup()


@pytest.mark.parametrize("size", [1, 7, 60, 300, 100_000])
def test_usage_is_read_once_wherever_the_stream_is_cut(size):
    pieces = [{"type": "content_block_delta", "delta": {"text": "message_ \\n"}}] * 20
    events = [
        {"type": "message_start", "message": {"model": "cut", "usage": {"input_tokens": 5, "output_tokens": 1}}},
        *pieces,
        {"type": "message_delta", "usage": {"output_tokens": 7}},
        *pieces,
        {"type": "message_stop"},
    ]
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    before = [TOKENS.labels("cut", kind)._value.get() for kind in ("input", "output")]
    meter = _Meter(streamed=True)
    for start in range(0, len(stream), size):
        meter.feed(stream[start : start + size])
    meter.close()
    after = [TOKENS.labels("cut", kind)._value.get() for kind in ("input", "output")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [5, 7]
