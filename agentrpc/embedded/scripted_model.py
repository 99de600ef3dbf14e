r"""The scripted model: no model at all, but a small server that speaks the Messages API and does what the prompt says.

It stands in for a provider in tests, benches and the quickstart, where the real CLI talks to it. It is stateless but
for the count of errors given: which step is due follows from the conversation, so that a resumed session goes on where
it was.

A script is written into a prompt, one directive a line. Steps are answers of the model, parted by `[[then]]`: the first
is the answer to the prompt, the next the answer to the results of its tool calls, and so on.

    [[text: Hello *world*]]                     a block of text; \n is a line break
    [[deltas: 20000 size=4]]                    a block of so many pieces of text, sent as fast as can be
    [[thinking: let me see]]                    a block of thinking
    [[redacted: abc]]                           a block of thinking that the provider withholds
    [[tool: Bash {"command": "ls"}]]            a call of a tool; several in one step are parallel calls
    [[search: cats]]                            a web search that the provider runs
    [[heard: a word]]                           a block of text: how many other messages of the conversation have it
    [[repeat: 200]]                             this step is played so often
    [[delay: 2.5]]                              seconds before the answer
    [[slow: 50]]                                milliseconds between the pieces of this step
    [[stall: 30]]                               seconds of silence in the middle
    [[cut]]                                     the connection is cut in the middle
    [[error: 529 times=2]]                      an error, for the first so many tries; retry_after=1 adds the header
    [[stop_reason: max_tokens]]                 why it stopped
    [[usage: input=10 output=20]]               what it claims to have used
    [[demo]]                                    a Bash call and a closing text, as in the quickstart

A prompt without directives gets a short answer that says that there is no model here.
"""

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from aiohttp import web

__all__ = ["ScriptedModel"]

_LINE = re.compile(r"^\s*\[\[(\w+)(?::\s*(.*?))?\]\]\s*$", re.MULTILINE)
_OPTION = re.compile(r"\b(\w+)=(\S+)")
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_DEMO = r"""
[[text: I will look at where I am.]]
[[tool: Bash {"command": "uname -sr && echo hello from a real tool | tee hello.txt", "description": "Look around"}]]
[[then]]
[[text: The tool really ran; `hello.txt` is in the workspace. I am the **scripted model**: no model was asked.]]
"""
_CHUNK = 64 * 1024


@dataclass(slots=True)
class _Step:
    """One answer."""

    blocks: list[tuple[str, Any]] = field(default_factory=list)
    delay: float = 0.0
    slow: float = 0.0
    stall: float = 0.0
    cut: bool = False
    error: tuple[int, int, str] | None = None
    stop_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)


class ScriptedModel:
    """The server.

    Args:
        expected_key: If set, any other key gets 401; else any key will do, but there has to be one.
    """

    def __init__(self, *, expected_key: str | None = None) -> None:
        self._expected_key = expected_key
        self._errors: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self.requests = 0
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve; `url` says where."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/messages/count_tokens", self._count_tokens)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/", self._hello)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End it, with all answers under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _hello(self, _: web.Request) -> web.Response:
        return web.json_response({"service": "AgentRPC scripted model", "model": None})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [], "has_more": False, "first_id": None, "last_id": None})

    def _refused(self, request: web.Request) -> web.Response | None:
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not key or (self._expected_key is not None and key != self._expected_key):
            return _error(401, "the key is missing or wrong")
        return None

    async def _count_tokens(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({"input_tokens": _tokens(await request.read())})

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._refused(request)) is not None:
            return refused
        body = await request.read()
        self.requests += 1
        try:
            asked = json.loads(body)
            step, key = _due_step(asked)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _error(400, f"the request is not a Messages request: {error}")
        if step.error is not None:
            status, times, retry_after = step.error
            self._errors[key] += 1
            if self._errors[key] <= times:
                return _error(status, "a scripted error", retry_after)
        if step.delay:
            await asyncio.sleep(step.delay)
        message = _message(asked, step, len(body))
        if not asked.get("stream"):
            return web.json_response(message)
        return await _stream(request, message, step)


async def _stream(request: web.Request, message: dict[str, Any], step: _Step) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"content-type": "text/event-stream", "cache-control": "no-cache", "request-id": message["id"]}
    )
    await response.prepare(request)
    # A client that leaves ends the answer, as it does with a provider.
    with suppress(ConnectionResetError):
        pending: list[bytes] = []
        size = 0
        pieces = list(_events(message))
        middle = len(pieces) // 2
        for at, piece in enumerate(pieces):
            pending.append(piece)
            size += len(piece)
            halfway = at == middle and (step.stall or step.cut)
            if step.slow or halfway or size > _CHUNK:
                await response.write(b"".join(pending))
                pending, size = [], 0
            if step.slow:
                await asyncio.sleep(step.slow)
            if halfway:
                await asyncio.sleep(step.stall)
                if step.cut:
                    assert request.transport is not None
                    request.transport.close()
                    return response
        await response.write(b"".join(pending))
        await response.write_eof()
    return response


def _due_step(asked: dict[str, Any]) -> tuple[_Step, str]:
    """The step that is due, and a key that names it for the counts of errors."""
    script, at = "", -1
    for index, message in enumerate(asked["messages"]):
        if message["role"] == "user" and (text := _script_of(message["content"])):
            script, at = text, index
    if at < 0:
        return _Step(blocks=[("text", _no_model(asked))]), ""
    done = sum(1 for message in asked["messages"][at + 1 :] if message["role"] == "assistant")
    steps = _parse(script)
    step = steps[done] if done < len(steps) else _Step(blocks=[("text", "Done.")])
    return step, f"{script}#{done}"


def _script_of(content: Any) -> str:  # noqa: ANN401 - JSON
    texts = [content] if isinstance(content, str) else [b["text"] for b in content if b.get("type") == "text"]
    return "\n".join(text for text in texts if _LINE.search(text))


def _parse(script: str) -> list[_Step]:
    steps: list[_Step] = []
    step, repeat = _Step(), 1

    def close() -> None:
        steps.extend([step] + [replace(step) for _ in range(repeat - 1)])

    for name, text in _LINE.findall(script.replace("[[demo]]", _DEMO)):
        if name == "then":
            close()
            step, repeat = _Step(), 1
        elif name == "repeat":
            repeat = int(text)
        else:
            _direct(step, name, text)
    close()
    return steps


def _direct(step: _Step, name: str, text: str) -> None:
    options = dict(_OPTION.findall(text))
    if name == "text":
        step.blocks.append(("text", text.replace("\\n", "\n")))
    elif name == "deltas":
        step.blocks.append(("deltas", (int(text.split(maxsplit=1)[0]), int(options.get("size", "4")))))
    elif name in {"thinking", "redacted", "search", "heard"}:
        step.blocks.append((name, text))
    elif name == "tool":
        tool, _, arguments = text.partition(" ")
        json.loads(arguments or "{}")
        step.blocks.append(("tool", (tool, arguments or "{}")))
    elif name == "error":
        step.error = (
            int(text.split(maxsplit=1)[0]),
            int(options.get("times", "1000000")),
            options.get("retry_after", ""),
        )
    elif name in {"delay", "stall"}:
        setattr(step, name, float(text))
    elif name == "slow":
        step.slow = float(text) / 1000
    elif name == "cut":
        step.cut = True
    elif name == "stop_reason":
        step.stop_reason = text
    elif name == "usage":
        step.usage = {key: int(value) for key, value in options.items()}
    else:
        msg = f"there is no directive {name}"
        raise ValueError(msg)


def _no_model(asked: dict[str, Any]) -> str:
    if not asked.get("tools"):
        # A side request of the CLI, for a title or a summary.
        return "A conversation with the scripted model"
    last = next((m["content"] for m in reversed(asked["messages"]) if m["role"] == "user"), "")
    texts = [last] if isinstance(last, str) else [b.get("text", "") for b in last]
    said = next((text for text in reversed(texts) if text and not text.startswith("<")), "")
    return (
        "There is **no model** here: this is AgentRPC's *scripted model*, and it cannot think.\n\n"
        f"> {' '.join(said.split())[:200]}\n\n"
        "For real answers set `ANTHROPIC_API_KEY` and start again. To see a tool run, send `[[demo]]`."
    )


def _message(asked: dict[str, Any], step: _Step, size: int) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    for kind, value in step.blocks:
        if kind == "text" or kind == "deltas":
            blocks.append({"type": "text", "text": value})
        elif kind == "thinking":
            blocks.append({"type": "thinking", "thinking": value, "signature": secrets.token_urlsafe(30)})
        elif kind == "heard":
            having = sum(value in json.dumps(message, ensure_ascii=False) for message in asked["messages"])
            # The one with this directive has it.
            blocks.append({"type": "text", "text": f"heard {having - 1}"})
        elif kind == "redacted":
            blocks.append({"type": "redacted_thinking", "data": value})
        elif kind == "search":
            name = f"srvtoolu_{secrets.token_hex(12)}"
            found = {"type": "web_search_result", "url": "https://example.com", "title": value, "page_age": None}
            blocks.append({"type": "server_tool_use", "id": name, "name": "web_search", "input": {"query": value}})
            blocks.append(
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": name,
                    "content": [found | {"encrypted_content": "eA=="}],
                }
            )
        else:
            tool, arguments = value
            blocks.append(
                {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": tool, "input": arguments}
            )
    calls = any(block["type"] == "tool_use" for block in blocks)
    if not asked.get("stream"):
        blocks = [_plain(block) for block in blocks]
    written = sum(len(str(block)) for block in blocks)
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model", ""),
        "content": blocks,
        "stop_reason": step.stop_reason or ("tool_use" if calls else "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": step.usage.get("input", size // 4),
            "output_tokens": step.usage.get("output", written // 4 + 1),
            "cache_creation_input_tokens": step.usage.get("cache_write", 0),
            "cache_read_input_tokens": step.usage.get("cache_read", 0),
        },
    }


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_use":
        return block | {"input": json.loads(block["input"])}
    if block["type"] == "text" and isinstance(block["text"], tuple):
        return block | {"text": "".join(_pieces(*block["text"]))}
    return block


def _pieces(count: int, size: int) -> Iterator[str]:
    for at in range(count):
        yield f"{at % 10 ** max(size - 1, 1):0{max(size - 1, 1)}d} "


def _sse(kind: str, **data: Any) -> bytes:  # noqa: ANN401 - JSON
    text = json.dumps({"type": kind, **data}, separators=(",", ":"), ensure_ascii=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _events(message: dict[str, Any]) -> Iterator[bytes]:
    usage = message["usage"]
    yield _sse(
        "message_start",
        message=message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}},
    )
    yield _sse("ping")
    for index, block in enumerate(message["content"]):
        yield from _block_events(index, block)
    yield _sse(
        "message_delta",
        delta={"stop_reason": message["stop_reason"], "stop_sequence": None},
        usage={"output_tokens": usage["output_tokens"]},
    )
    yield _sse("message_stop")


def _block_events(index: int, block: dict[str, Any]) -> Iterator[bytes]:
    def delta(kind: str, **data: str) -> bytes:
        return _sse("content_block_delta", index=index, delta={"type": kind, **data})

    kind = block["type"]
    if kind == "text":
        yield _sse("content_block_start", index=index, content_block={"type": "text", "text": ""})
        text = block["text"]
        pieces = _pieces(*text) if isinstance(text, tuple) else re.findall(r"\s*\S+\s*", text) or [text]
        for piece in pieces:
            yield delta("text_delta", text=piece)
    elif kind == "thinking":
        yield _sse(
            "content_block_start", index=index, content_block={"type": "thinking", "thinking": "", "signature": ""}
        )
        for piece in re.findall(r"\s*\S+\s*", block["thinking"]):
            yield delta("thinking_delta", thinking=piece)
        yield delta("signature_delta", signature=block["signature"])
    elif kind in {"tool_use", "server_tool_use"}:
        yield _sse("content_block_start", index=index, content_block=block | {"input": {}})
        text = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
        for at in range(0, len(text), 24):
            yield delta("input_json_delta", partial_json=text[at : at + 24])
    else:
        yield _sse("content_block_start", index=index, content_block=block)
    yield _sse("content_block_stop", index=index)


def _tokens(body: bytes) -> int:
    return max(1, len(body) // 4)


def _error(status: int, message: str, retry_after: str = "") -> web.Response:
    return web.json_response(
        {"type": "error", "error": {"type": _ERRORS.get(status, "api_error"), "message": message}},
        status=status,
        headers={"retry-after": retry_after} if retry_after else {},
    )
