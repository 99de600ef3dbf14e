"""hogs: what quiet sessions notice of another that takes whatever it can get."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentrpc.client import AgentRpcClient
from agentrpc.v1 import run_pb2, session_pb2, session_service_pb2
from scripts.benches.frame import Figure, Outcome, quantile, running
from tests.e2e.talk import bash
from tests.security.hogs import command

_QUIET = 10
_SECONDS = 12.0
_PAUSE = 0.25
_HOGS = ("fork", "memory", "cpu", "disk")
_LIMITS = session_pb2.ResourceLimits(memory_bytes=1024**3, processes=256, workspace_bytes=512 * 1024**2)


async def _answer(client: AgentRpcClient, session: str) -> float:
    """Seconds from a prompt to the end of its run."""
    began = time.monotonic()
    async for event in client.run(session, "[[text: here]]"):
        if event.HasField("run_ended") and event.run_ended.state != run_pb2.Run.STATE_SUCCEEDED:
            raise RuntimeError(f"a quiet session failed: {event.run_ended.error.message}")
    return time.monotonic() - began


async def _latencies(client: AgentRpcClient, sessions: list[str], seconds: float) -> list[float]:
    until, found = time.monotonic() + seconds, []

    async def ask(session: str, delay: float) -> None:
        await asyncio.sleep(delay)
        while time.monotonic() < until:
            found.append(await _answer(client, session))
            await asyncio.sleep(_PAUSE)

    await asyncio.gather(*(ask(session, at * _PAUSE / len(sessions)) for at, session in enumerate(sessions)))
    return found


@asynccontextmanager
async def _hogging(client: AgentRpcClient, hog: str) -> AsyncIterator[list[str]]:
    """A session in which a hog is run again and again; how its runs ended."""
    options = session_pb2.SessionOptions(allowed_tools=["Bash"], limits=_LIMITS)
    session = (await client.create_session(session_pb2.Session(options=options))).name
    ends: list[str] = []

    async def again() -> None:
        while True:
            async for event in client.run(session, f"{bash(command(hog))}\n[[then]]\n[[text: done]]"):
                if event.HasField("run_ended"):
                    reason = event.run_ended.error.reason
                    ends.append(run_pb2.RunError.Reason.Name(reason) if reason else "SUCCEEDED")

    task = asyncio.create_task(again())
    try:
        yield ends
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.call(client.sessions.TerminateSession, session_service_pb2.TerminateSessionRequest(name=session))


async def hogs() -> Outcome:
    figures: list[Figure] = []
    async with running(AGENTRPC_MAX_PROCESSES=str(_QUIET + 2)) as stack, stack.client() as client:
        sessions = [(await client.create_session()).name for _ in range(_QUIET)]
        for session in sessions:
            await _answer(client, session)
        alone = quantile(await _latencies(client, sessions, _SECONDS), 0.99)
        for hog in _HOGS:
            async with _hogging(client, hog) as ends:
                beside = quantile(await _latencies(client, sessions, _SECONDS), 0.99)
            if not ends and hog != "cpu":
                raise RuntimeError(f"the hog {hog} was not ended")
            figures.append(Figure(f"answer of a quiet session beside a {hog} hog, p99", beside / alone, "x", 2))
            await asyncio.sleep(1)
    return Outcome(figures, {"answer of one of ten quiet sessions, p99, ms": alone * 1000})
