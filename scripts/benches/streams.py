"""fanout, latency, watchers: what the edge does for many readers."""

import asyncio
import json
import sys
import time
from typing import Any

import psutil

from agentrpc.v1 import session_pb2
from scripts.benches.frame import Figure, Outcome, Running, quantile, running


async def _start(module: str, *arguments: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"scripts.benches.{module}", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=64 * 1024 * 1024,
    )  # fmt: skip
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"ready"
    return process


async def _sessions(stack: Running, count: int) -> tuple[str, list[str]]:
    async with stack.client() as client:
        made = [await client.create_session(session_pb2.Session()) for _ in range(count)]
        token = (await client._metadata())[0][1].removeprefix("Bearer ")
    return token, [session.name.removeprefix("sessions/") for session in made]


async def _measure(stack: Running, sessions: list[str], token: str, reader: list[str], source: list[str]) -> Any:
    environment = stack.stack.environment
    reading = await _start(
        "reader", "--address", stack.stack.address, "--token", token, "--sessions", ",".join(sessions), *reader
    )
    writing = await _start(
        "source", "--database", environment["AGENTRPC_DATABASE_URL"], "--redis", environment["AGENTRPC_REDIS_URL"],
        "--signing-key", environment["AGENTRPC_SIGNING_KEY"],
        "--sessions", ",".join(sessions), *source,
    )  # fmt: skip
    began = time.monotonic()
    await writing.communicate(b"\n")
    output, _ = await reading.communicate()
    return json.loads(output.splitlines()[-1]) | {"total": time.monotonic() - began}


async def _bare(events: int, watchers: int) -> float:
    """Events a second of a bare grpc.aio stream that sends one message an event, in processes of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.benches.bare", str(events), str(watchers), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return float(output)


async def fanout() -> Outcome:
    burst, watchers = 20_000, 100
    async with running() as stack:
        token, (session, steady) = await _sessions(stack, 2)
        result = await _measure(
            stack, [session], token,
            ["--watchers", str(watchers), "--expected", str(burst), "--seconds", "40"], ["--burst", str(burst)],
        )  # fmt: skip
        rate = sum(result["counts"]) / result["elapsed"]
        lost = watchers * burst - sum(result["counts"])
        held = await _measure(
            stack, [steady], token,
            ["--watchers", str(watchers), "--seconds", "8"],
            ["--rate", "5000", "--seconds", "5", "--durable", "0.02"],
        )  # fmt: skip
    bare = await _bare(500, watchers)
    return Outcome(
        [
            Figure("burst events delivered against bare", rate / bare, "x", 30, "more"),
            Figure("burst events delivered", rate, "events/s"),
            Figure("burst events shed", lost / (watchers * burst) * 100, "%"),
            Figure("sustained 5,000/s to 100, p50", quantile(held["latencies"], 0.5) * 1000, "ms"),
            Figure("sustained 5,000/s to 100, p99", quantile(held["latencies"], 0.99) * 1000, "ms", 50),
        ],
        {"bare events/s": bare},
    )


async def latency() -> Outcome:
    figures = []
    async with running() as stack:
        for name, durable, p50, p99 in (("deltas", 0.0, 1.0, 5.0), ("10 % durable", 0.1, 1.5, 15.0)):
            token, sessions = await _sessions(stack, 50)
            result = await _measure(
                stack, sessions, token, ["--seconds", "8"],
                ["--rate", "50", "--seconds", "5", "--durable", str(durable)],
            )  # fmt: skip
            # Without the beginning, in which connections are opened and statements prepared.
            found = [value * 1000 for value in result["latencies"][len(result["latencies"]) // 5 :]]
            figures.append(Figure(f"{name}, p50", quantile(found, 0.5), "ms", p50))
            figures.append(Figure(f"{name}, p99", quantile(found, 0.99), "ms", p99))
    return Outcome(figures, {})


async def watchers() -> Outcome:
    count = 3000
    async with running() as stack:
        token, (session,) = await _sessions(stack, 1)
        edge = psutil.Process(stack.pid("serve"))
        async with stack.client() as client:
            await client.get_session(f"sessions/{session}")
        await asyncio.sleep(1)
        before = edge.memory_info().rss
        reading = await _start(
            "reader", "--address", stack.stack.address, "--token", token, "--sessions", session,
            "--watchers", str(count), "--channels", "30", "--seconds", "45",
        )  # fmt: skip
        await asyncio.sleep(3)
        began, used = time.monotonic(), sum(edge.cpu_times()[:2])
        await asyncio.sleep(32)
        share = (sum(edge.cpu_times()[:2]) - used) / (time.monotonic() - began) * 100
        memory = (edge.memory_info().rss - before) / count / 1000
        await reading.communicate()
    return Outcome(
        [
            Figure("memory of an idle watcher", memory, "kB", 40),
            Figure("CPU of 3,000 idle watchers", share, "% of a core", 3),
        ],
        {},
    )
