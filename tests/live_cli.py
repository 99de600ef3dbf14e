"""The real CLI, without a worker around it."""

import contextlib

from agentrpc import clock
from agentrpc.claude.agent import AgentProcess, AgentSpec
from agentrpc.domain.gate import Verdict
from agentrpc.v1 import session_pb2
from tests.e2e.talk import bash
from tests.isolations import reaching


class Cli:
    """A real CLI and the model that tells it what to do."""

    def __init__(self, agent):
        self.agent = agent

    async def bash(self, *commands):
        """What these commands print, each called as a tool."""
        found = []
        prompt = "\n[[then]]\n".join([*map(bash, commands), "[[text: done]]"])
        await self.agent.send_prompt(prompt, uuid=str(clock.uuid7()))
        async for frames in self.agent.frames():
            for frame in frames:
                if frame["type"] == "user" and isinstance(frame["message"]["content"], list):
                    found += [b["content"] for b in frame["message"]["content"] if b["type"] == "tool_result"]
                elif frame["type"] == "result":
                    return found
        return found


async def _allow(_):
    return Verdict(allow=True)


@contextlib.asynccontextmanager
async def live_cli(paths, isolation, model, token="t"):
    """A CLI of these folders, which may call every tool."""
    session_id = clock.uuid7()
    spec = AgentSpec(
        session_id=session_id, claude_session_id=str(session_id), resume=False, paths=paths,
        options=session_pb2.SessionOptions(model="claude-sonnet-5"), token=token, **reaching(model.url, isolation),
        gate=_allow, on_transcript=lambda *_: None,
    )  # fmt: skip
    agent = await AgentProcess.start(spec, timeout=60)
    try:
        yield Cli(agent)
    finally:
        await agent.stop(grace=0)
