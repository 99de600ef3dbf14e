"""The gateway: the key stays on its side, tokens end when they should, bytes pass as they come."""

import asyncio
import contextlib
import json
import socket

import aiohttp
import psutil
import pytest
from aiohttp import web

from agentrpc import clock
from agentrpc.domain.model_calls import RunAllowance
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.gateway.meter import TOKENS, Meter
from agentrpc.gateway.server import ModelGateway


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


async def opened(gateway, may_call=lambda: True, under_way=None, **bounds):
    """A door for a run that is under way, and what it may ask."""
    allowance = RunAllowance(("m",), **bounds)
    door = gateway.open(may_call, under_way or (lambda: allowance))
    listener = socket.create_server(("127.0.0.1", 0))
    door.url = "http://{}:{}".format(*listener.getsockname())
    await door.serve(listener)
    return door, allowance


def body(text, stream=False, **more):
    return {
        "model": "m",
        "max_tokens": 9,
        "stream": stream,
        "tools": [{}],
        "messages": [{"role": "user", "content": text}],
        **more,
    }


async def ask(door, text="[[text: hi]]", headers=None, token=None, **more):
    token = door.token if token is None else token
    headers = {**({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{door.url}/v1/messages?beta=true", json=body(text, **more), headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers


async def test_tokens_and_leases(gateway):
    allowed, under_way = True, RunAllowance(("m",))
    door, _ = await opened(gateway, lambda: allowed, lambda: under_way)
    status, text, headers = await ask(door)
    assert status == 200
    assert "hi" in text
    assert "sk-provider" not in text + str(headers)
    assert (await ask(door, token=""))[0] == 401
    assert (await ask(door, token="run-other"))[0] == 401
    allowed = False
    assert (await ask(door))[0] == 403
    allowed, run = True, under_way
    under_way = None
    assert (await ask(door))[0] == 401
    under_way = run
    assert (await ask(door))[0] == 200
    door.revoke()
    assert (await ask(door))[0] == 401


async def test_errors_pass_and_a_lost_provider_is_overload(gateway, model):
    door, _ = await opened(gateway)
    status, _, headers = await ask(door, "[[error: 429 retry_after=7]]")
    assert (status, headers["retry-after"]) == (429, "7")
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{door.url}/v1/files", headers={"authorization": f"Bearer {door.token}"}) as response,
    ):
        assert response.status == 404
    await model.stop()
    assert (await ask(door))[0] == 529


async def test_the_first_bytes_do_not_wait_for_the_last_and_usage_is_read(gateway):
    door, _ = await opened(gateway)
    before = TOKENS.labels("m", "output")._value.get()
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"{door.url}/v1/messages",
            json=body("[[text: a b c d e f]]\n[[stall: 2]]\n[[usage: input=3 output=41]]", stream=True),
            headers={"authorization": f"Bearer {door.token}"},
        ) as response,
    ):
        began = clock.monotonic()
        assert b"message_start" in await response.content.readany()
        assert clock.monotonic() - began < 1
        await response.read()
    assert TOKENS.labels("m", "output")._value.get() - before == 41


async def test_revoking_cuts_calls_under_way(gateway):
    door, _ = await opened(gateway)
    asking = asyncio.create_task(ask(door, "[[delay: 30]]"))
    await asyncio.sleep(0.3)
    door.revoke()
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
        status, text, _ = await ask((await opened(gateway))[0])
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
        # As the provider has it: the counts of the beginning are there again.
        {"type": "message_delta", "usage": {"input_tokens": 5, "output_tokens": 7}},
        *pieces,
        {"type": "message_stop"},
    ]
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    before = [TOKENS.labels("cut", kind)._value.get() for kind in ("input", "output")]
    meter = Meter(streamed=True)
    for start in range(0, len(stream), size):
        meter.feed(stream[start : start + size])
    meter.close()
    after = [TOKENS.labels("cut", kind)._value.get() for kind in ("input", "output")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [5, 7]


# ---- What a run may ask ----


async def test_requests_beyond_the_turns_of_the_run_are_refused_and_errors_are_no_turns(gateway):
    door, allowance = await opened(gateway, max_turns=2)
    allowance.prompt_given()
    assert (await ask(door, "[[error: 500]]"))[0] == 500
    statuses = [await ask(door) for _ in range(51)]
    good = sum(status == 200 for status, _, _ in statuses)
    assert good == 8
    status, text, headers = statuses[-1]
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert json.loads(text)["error"]["type"] == "billing_error"
    assert "max_turns" in text
    assert allowance.exceeded == "turns"
    # What the gate lets pass has turns of its own; a message of a caller is answered too.
    allowance.call_begun("Agent")
    allowance.call_begun("Bash")
    assert [(await ask(door))[0] for _ in range(101)].count(200) == 100


async def test_many_at_once_stay_within_the_bound(gateway):
    door, allowance = await opened(gateway, max_turns=1)
    asked = await asyncio.gather(*[ask(door, "[[delay: 0.2]]") for _ in range(40)])
    assert sum(status == 200 for status, _, _ in asked) == 6
    assert allowance.tokens["m"]["output_tokens"] > 0


async def test_what_costs_too_much_is_refused(gateway):
    door, allowance = await opened(gateway, max_cost=0.01)
    # Nobody knows the price of `m`: it counts as the dearest one.
    assert (await ask(door, "[[usage: input=10 output=200]]"))[0] == 200
    assert allowance.cost == pytest.approx(10 * 15e-6 + 200 * 75e-6)
    status, text, headers = await ask(door)
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert "max_cost_usd" in text
    assert allowance.exceeded == "cost"


async def test_an_answer_that_costs_too_much_is_cut(gateway):
    door, allowance = await opened(gateway, max_cost=0.01)
    with pytest.raises(aiohttp.ClientPayloadError):
        await ask(door, "[[deltas: 20000]]\n[[slow: 1]]", stream=True)
    assert allowance.cost >= 0.01
    assert allowance.exceeded == "cost"
    assert allowance.tokens["m"]["output_tokens"] < 20000


async def test_who_hangs_up_has_used_what_he_asked(gateway):
    door, allowance = await opened(gateway, max_turns=1, max_cost=5)
    for _ in range(6):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(door, "[[delay: 30]]"), 0.3)
    async with asyncio.timeout(10):
        while (await ask(door))[0] != 429:
            pass
    assert allowance.tokens["m"]["input_tokens"] > 0


SERVER_TOOLS = [
    {"type": kind, "name": "x"}
    for kind in (
        "web_fetch_20250910",
        "code_execution_20250825",
        "advisor_20260301",
        "mcp_toolset",
    )
]
FETCHED = {"type": "document", "source": {"type": "url", "url": "http://evil.example/?all=secrets"}}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": "claude-opus-4-7"}, "claude-opus-4-7"),
        *[
            ({"tools": [{"name": "y", "input_schema": {}}, tool]}, tool["type"].partition("_2")[0])
            for tool in SERVER_TOOLS
        ],
        ({"mcp_servers": [{"type": "url", "url": "https://evil.example"}]}, "mcp_servers"),
        ({"container": {"skills": []}}, "container"),
        ({"fallbacks": [{"model": "claude-opus-4-7"}]}, "fallbacks"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"messages": [{"role": "user", "content": [FETCHED]}]}, "URL"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [FETCHED]}]}]}, "URL"),
        ({"metadata": {"user_id": "x" * 300_000}}, "too much"),
        ({"tools": "none"}, "no Messages request"),
        ({"model": 7}, "no Messages request"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_what_a_session_does_not_have_is_refused(gateway, model, more, named, path):
    door, _ = await opened(gateway)
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            door.url + path, json=body("[[text: hi]]", **more), headers={"authorization": f"Bearer {door.token}"}
        ) as response,
    ):
        assert response.status in {400, 404}
        error = (await response.json())["error"]
        assert named in error["message"]
    assert model.requests == 0


@pytest.mark.parametrize(
    "text",
    [
        '{"model": "m", "model": "claude-opus-4-7", "messages": []}',
        '{"model": "m", "messages": [], "mc\\u0070_servers": [{}]}',
        '{"model": "m", "tools": [{"type": "custom", "typ\\u0065": "code_execution_20250825"}], "messages": []}',
        '{"model": "m", "messages": [{"content": [{"source": {"typ\\u0065": "\\u0075rl", "url": "http://evil"}}]}]}',
        '{"model": "m", "messages": ["%s"], "messages": []}' % ("x" * 300_000),
        "[]",
        "{",
        "",
        "[" * 100_000,
    ],
)
async def test_other_ways_to_write_it_do_not_pass(gateway, model, text):
    door, _ = await opened(gateway)
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"{door.url}/v1/messages", data=text, headers={"authorization": f"Bearer {door.token}"}
        ) as response,
    ):
        assert response.status in {400, 404}
    assert model.requests == 0


async def test_what_counts_here_counts_there():
    """Of two fields of one name the provider gets the one that was judged."""
    bodies = []

    async def keep(request):
        bodies.append(await request.text())
        return web.json_response({})

    async with served(keep) as url:
        gateway = ModelGateway(upstream_url=url, api_key="k")
        await gateway.start()
        try:
            text = (
                '{"model": "claude-opus-4-7", "model": "m", "messages": [{"content": "a"}], "x": [1.0, 1e3, "\\u00e9"]}'
            )
            text = text.replace(
                '"x"', '"tools": [{"type": "mcp_toolset", "type": "custom", "input_schema": {"b": 1.0}}], "x"'
            )
            door, _ = await opened(gateway)
            headers = {"authorization": f"Bearer {door.token}"}
            async with (
                aiohttp.ClientSession() as client,
                client.post(f"{door.url}/v1/messages", data=text, headers=headers) as response,
            ):
                assert response.status == 200
        finally:
            await gateway.stop()
    [passed] = bodies
    assert "claude-opus" not in passed
    assert "mcp_toolset" not in passed
    assert '"input_schema":{"b": 1.0}' in passed
    assert '[1.0, 1e3, "\\u00e9"]' in passed


async def test_the_betas_of_the_cli_pass_and_others_are_named(gateway):
    own = (
        "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,effort-2025-11-24,"
        "per-turn-control-2026-07-01,mid-conversation-tool-changes-2026-07-01,thinking-token-count-2026-05-13,"
        "advanced-tool-use-2025-11-20,thinking-display-updates-2026-08-18,"
        "web-search-results-only-2026-11-15"
    )
    door, allowance = await opened(gateway)
    assert (await ask(door, headers={"anthropic-beta": own}))[0] == 200
    for beta in ("mcp-client-2025-11-20", "code-execution-2025-08-25", "fast-mode-2026-02-01", "context-1m-2025-08-07"):
        status, text, _ = await ask(door, headers={"Anthropic-Beta": f"{own}, {beta}"})
        assert status == 400
        assert f"Unexpected value(s) `{beta}` for the `anthropic-beta` header" in text
    allowance.long_context = True
    assert (await ask(door, headers={"anthropic-beta": "context-1m-2025-08-07"}))[0] == 200


async def test_a_search_passes_once_for_each_call_that_was_allowed(gateway):
    door, allowance = await opened(gateway)
    search = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    assert (await ask(door, **search))[0] == 400
    allowance.call_begun("WebSearch")
    assert (await ask(door, **search))[0] == 200
    assert (await ask(door, **search))[0] == 400


async def test_a_search_that_the_provider_has_not_answered_may_be_tried_again():
    answers = [529, 500, 200]

    async def answer(_):
        return web.json_response({}, status=answers.pop(0))

    async with served(answer) as url:
        gateway = ModelGateway(upstream_url=url, api_key="k")
        await gateway.start()
        try:
            door, allowance = await opened(gateway)
            allowance.call_begun("WebSearch")
            search = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
            assert [(await ask(door, **search))[0] for _ in range(4)] == [529, 500, 200, 400]
        finally:
            await gateway.stop()


async def test_arguments_that_look_like_a_url_source_pass(gateway):
    door, _ = await opened(gateway)
    called = {"type": "tool_use", "id": "t", "name": "x", "input": {"source": {"type": "url", "url": "http://x"}}}
    messages = [{"role": "user", "content": "[[text: hi]]"}, {"role": "assistant", "content": [called]}]
    assert (await ask(door, messages=messages))[0] == 200


async def test_too_many_connections_are_dropped_and_others_go_on(gateway, monkeypatch):
    monkeypatch.setattr("agentrpc.gateway.server._MAX_CONNECTIONS", 5)
    door, _ = await opened(gateway)
    place = ("127.0.0.1", int(door.url.rpartition(":")[2]))
    async with contextlib.AsyncExitStack() as stack:
        held = [await asyncio.open_connection(*place) for _ in range(5)]
        for _, writer in held:
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection(*place)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        other, _ = await opened(gateway)
        assert (await ask(other))[0] == 200
        held[0][1].close()
        await held[0][1].wait_closed()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    assert (await ask(door))[0] == 200
                    break


# ---- Bodies ----


async def hold(door, declared, sent):
    """A connection that has sent a part of its body and says no more; its answer so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rpartition(":")[2]))
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.token}\r\n"
    head += f"content-length: {declared}\r\n\r\n" if declared else "transfer-encoding: chunked\r\n\r\n"
    writer.write(head.encode())

    async def send():
        piece = b"x" * 1024 * 1024
        with contextlib.suppress(ConnectionError):
            for _ in range(sent // len(piece)):
                writer.write(piece if declared else b"100000\r\n" + piece + b"\r\n")
                await writer.drain()

    return reader, writer, asyncio.create_task(send())


@pytest.mark.parametrize("declared", [True, False])
async def test_bodies_beyond_the_bound_are_refused_before_they_are_in_memory(gateway, declared):
    door, _ = await opened(gateway)
    process = psutil.Process()
    before = process.memory_info().rss
    held = [await hold(door, 240 * 2**20 if declared else 0, 240 * 2**20) for _ in range(8)]
    peak = 0
    try:
        async with asyncio.timeout(60):
            for reader, _, _ in held[: 8 if declared else 2]:
                while not (line := await asyncio.wait_for(reader.readline(), 30)):
                    pass
                peak = max(peak, process.memory_info().rss)
                assert b" 413 " in line
    finally:
        for _, writer, task in held:
            task.cancel()
            writer.close()
    # Two of the largest, once more while they are put together, and what the allocator keeps.
    assert peak - before < 200 * 2**20


async def test_who_holds_bodies_back_keeps_nobody_else_waiting(gateway):
    door, _ = await opened(gateway)
    held = [await hold(door, 32 * 2**20, 2**20) for _ in range(8)]
    try:
        other, _ = await opened(gateway)
        status, _, _ = await asyncio.wait_for(ask(other), 10)
        assert status == 200
    finally:
        for _, writer, task in held:
            task.cancel()
            writer.close()


@contextlib.asynccontextmanager
async def served(handle):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
