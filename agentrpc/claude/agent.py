"""One live CLI process.

Its frames are the raw dictionaries of the SDK's control protocol and not the SDK's typed messages, which lose fields.
`client._query` is private to the SDK: the version is pinned, and tests with the real CLI cover every use of it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import claude_agent_sdk
from claude_agent_sdk import (
    ClaudeSDKClient,
    CLIConnectionError,
    HookMatcher,
    ProcessError,
)

from agentrpc.claude.agent_users import AgentUser
from agentrpc.claude.channel import BrokenFrameError, Channel, frames_of
from agentrpc.claude.gatekeeper import Gatekeeper, Tickets
from agentrpc.claude.launcher import Isolation, SessionPaths, StopReceipt, stop_tree, write_launcher
from agentrpc.claude.limits import Limits
from agentrpc.claude.listeners import Listeners, WaysOut
from agentrpc.claude.options import agent_environment, agent_options, trust_environment
from agentrpc.claude.revival import OpenCall
from agentrpc.claude.tools import Tool, ToolServers
from agentrpc.claude.transcripts import TranscriptStore
from agentrpc.domain.gate import Gate
from agentrpc.v1 import session_pb2

__all__ = ["AgentCrashedError", "AgentFaultError", "AgentProcess", "AgentSpec", "AgentStartError", "bundled_cli"]

# How long a CLI may leave a message unread.
_SAY_SECONDS = 30.0
# Longer than the longest approval: some hook time-outs fail open, and the gate has a deadline of its own.
_HOOK_TIMEOUT = 40 * 86400


class AgentStartError(Exception):
    """The CLI is missing, crashed or hung at its start.

    Attributes:
        detail: For the log; callers see only the message.
        reason: A name of `RunError.Reason`.
    """

    def __init__(self, message: str, detail: str = "", *, reason: str = "REASON_AGENT_START_FAILED") -> None:
        super().__init__(message)
        self.detail = detail
        self.reason = reason


class AgentCrashedError(Exception):
    """The CLI ended unasked."""

    def __init__(self, exit_code: int | None, stderr_tail: str) -> None:
        super().__init__(f"the CLI ended by itself with status {exit_code}")
        self.exit_code = exit_code
        self.stderr_tail = stderr_tail


class AgentFaultError(Exception):
    """The CLI has said what no CLI says: what it says from now on is worth nothing."""


async def _nothing() -> list[tuple[str, bytes]]:
    return []


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What a process is started with.

    Attributes:
        session_id: The session.
        claude_session_id: The CLI's id of it.
        resume: Whether there is a transcript to go on from.
        options: The session's options, with the model set.
        paths: The session's folders, made.
        gateway_url: The model gateway, as the CLI finds it.
        token: The run token for it.
        isolation: How the tree is kept apart.
        ways_out: Serves what leads out of a fenced tree, until it has ended. None: nothing does.
        gate: Judges every call.
        models: What the CLI is to take for its aliases of models, such as `opus`.
        on_transcript: Gets (subpath, lines); must only enqueue.
        load_transcript: All (subpath, line) of the session, with those that `on_transcript` was given before.
        on_fault: Told of calls and questions that no CLI makes; they are refused in any case.
        carry: A call of the stored conversation that the CLI takes up by itself at its start.
        mcp_urls: Where the CLI finds MCP servers that are not in its sandbox, by name.
        cli_path: Another CLI than the bundled one.
        tools: Tools that are run here, by the name of the option's `builtin` server that has them.
        tickets: Gets what the gate lets pass. For this process only.
        authorities: PEM of those whom programs in the sandbox trust. Empty: the system's.
        limits: How the tree is bounded.
        group: The folder of its cgroup; None: it has none.
        on_begin: Told of the process before it has started: what is in it may be at work before the CLI answers.
    """

    session_id: UUID
    claude_session_id: str
    resume: bool
    options: session_pb2.SessionOptions
    paths: SessionPaths
    gateway_url: str
    token: str
    isolation: Isolation
    gate: Gate
    on_transcript: Callable[[str, list[bytes]], None]
    load_transcript: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]] = _nothing
    on_fault: Callable[[str], None] = lambda _: None
    ways_out: WaysOut | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    carry: OpenCall | None = None
    mcp_urls: Mapping[str, str] = field(default_factory=dict)
    cli_path: Path | None = None
    tools: Mapping[str, Sequence[Tool]] = field(default_factory=dict)
    tickets: Tickets = field(default_factory=Tickets)
    authorities: str = ""
    limits: Limits = field(default_factory=Limits)
    group: Path | None = None
    on_begin: "Callable[[AgentProcess], None]" = lambda _: None


def bundled_cli() -> Path:
    """The CLI in the SDK's wheel."""
    return Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"


class AgentProcess:
    """A live CLI. Made by `start`; `frames` has to be drained for as long as it lives."""

    def __init__(
        self,
        client: ClaudeSDKClient,
        channel: Channel,
        gatekeeper: Gatekeeper,
        servers: ToolServers,
        ways: contextlib.AsyncExitStack,
        user: AgentUser | None,
    ) -> None:
        self._client = client
        self._channel = channel
        self._gatekeeper = gatekeeper
        self._servers = servers
        self._ways = ways
        self._user = user
        self._prompts = 0
        self._stopping: asyncio.Task[StopReceipt] | None = None

    @classmethod
    async def start(
        cls, spec: AgentSpec, *, timeout: float, on_abandoned: Callable[[StopReceipt], None] = lambda _: None
    ) -> "AgentProcess":
        """Start a CLI and wait until it is ready.

        Args:
            spec: With what.
            timeout: Seconds after which a CLI that does not answer counts as hung.
            on_abandoned: Told what became of the process tree when this fails or is cancelled.

        Raises:
            AgentStartError: It is missing, crashed or hung. Nothing of it is left.
        """
        cli = (spec.cli_path or bundled_cli()).resolve()
        if not cli.is_file():
            raise AgentStartError("the CLI is missing on the worker: reinstall claude-agent-sdk there", str(cli))
        environment = agent_environment(spec.paths, spec.isolation, spec.gateway_url, spec.token, spec.models)
        if spec.authorities:
            environment |= trust_environment(spec.paths.write_option("authorities.pem", spec.authorities))
        script = await asyncio.to_thread(
            write_launcher, spec.paths, spec.isolation, cli, environment, spec.limits, spec.group
        )
        gatekeeper = Gatekeeper(spec.gate, spec.carry, spec.on_fault, spec.tickets)
        rest: dict[str, Any] = {
            "cli_path": str(script),
            # The mirror checks paths against it here, in our process; the launcher sets it for the CLI.
            "env": {"CLAUDE_CONFIG_DIR": str(spec.paths.config)},
            "session_store": TranscriptStore(spec.on_transcript, spec.load_transcript),
            "session_store_flush": "eager",
            "hooks": {
                "PreToolUse": [
                    HookMatcher(hooks=[cast("Any", gatekeeper.hook)], timeout=_HOOK_TIMEOUT, on_failure="block")
                ]
            },
            "can_use_tool": gatekeeper.can_use_tool,
            ("resume" if spec.resume else "session_id"): spec.claude_session_id,
        }
        # The CLI may take a carried call up before it knows of the hook, and makes harmless ones at once.
        ask = [spec.carry.tool_name] if spec.carry is not None else []
        options = agent_options(spec.options, spec.paths, rest, spec.mcp_urls, ask=ask)
        servers = ToolServers(spec.tools, gatekeeper.redeem)
        ways = contextlib.AsyncExitStack()

        async def lead_out(listeners: Listeners) -> None:
            assert spec.ways_out is not None
            await ways.enter_async_context(spec.ways_out(listeners))

        channel = Channel(options, lead_out if spec.isolation.fenced and spec.ways_out is not None else None)
        # The CLI finds all servers in a file, which the channel names; the SDK has to know those that run here.
        client = ClaudeSDKClient(replace(options, mcp_servers=cast("Any", servers.configs)), channel)
        agent = cls(client, channel, gatekeeper, servers, ways, spec.paths.user)
        spec.on_begin(agent)
        connecting = asyncio.create_task(client.connect(), name="connect")
        try:
            done, _ = await asyncio.wait({connecting}, timeout=timeout)
            if not done:
                raise AgentStartError(f"the CLI did not answer within {timeout:.0f} s of its start", agent.stderr_tail)
            connecting.result()
        except BaseException as error:
            connecting.cancel()
            # Not the SDK's own way, which takes up to 20 s and misses what tools have started.
            on_abandoned(await asyncio.shield(agent._stop_spawned()))
            await servers.stop()
            await asyncio.gather(connecting, return_exceptions=True)
            await channel.close()
            await ways.aclose()
            if isinstance(error, (AgentStartError, asyncio.CancelledError)):
                raise
            detail = f"{type(error).__name__}: {error}; {agent.stderr_tail}"
            raise AgentStartError("the CLI ended while it was starting", detail) from error
        return agent

    async def _stop_spawned(self) -> StopReceipt:
        await self._channel.spawned()
        return await stop_tree(self.pid, user=self._user)

    @property
    def pid(self) -> int | None:
        """The root of the process tree."""
        return self._channel.pid

    @property
    def stderr_tail(self) -> str:
        """The last lines that the CLI printed, for the log."""
        return self._channel.errors()

    def exhausted(self, options: session_pb2.SessionOptions) -> bool:
        """Whether another run needs another process: the CLI counts cost for its whole life, we count it for a run."""
        return self._prompts > 0 and options.HasField("max_cost_usd")

    async def frames(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Raw frames, those that came together in one list, until `stop`.

        Raises:
            AgentCrashedError: The CLI ended unasked.
            AgentFaultError: It wrote what cannot be read.
        """
        assert self._client._query is not None
        exit_code: int | None = 0
        try:
            async for message in self._client._query.receive_messages():
                yield frames_of(message)
        except ProcessError as error:
            exit_code = error.exit_code
        except BrokenFrameError as error:
            raise AgentFaultError(str(error)) from error
        except Exception as error:
            # Of the SDK's reader, about a message of the control protocol.
            raise AgentFaultError(f"a control message that cannot be read ({type(error).__name__})") from error
        if self._stopping is None:
            raise AgentCrashedError(exit_code, self.stderr_tail)

    def call_ended(self, tool_use_id: str) -> None:
        """The result of a call has come."""
        self._gatekeeper.ended(tool_use_id)

    async def send_prompt(self, text: str, *, uuid: str) -> None:
        """Begin a turn. `uuid` becomes the prompt's place in the transcript.

        Raises:
            AgentCrashedError: The CLI does not read any more. What it has read of this is not to be used.
        """
        self._prompts += 1
        message = {
            "type": "user",
            "message": {"role": "user", "content": text},
            "parent_tool_use_id": None,
            "session_id": "default",
            "uuid": uuid,
            "client_composed": True,
        }
        try:
            async with asyncio.timeout(_SAY_SECONDS):
                await self._channel.write(json.dumps(message) + "\n")
        except (CLIConnectionError, TimeoutError) as error:
            raise AgentCrashedError(None, self.stderr_tail) from error

    async def interrupt(self) -> None:
        """Ask the CLI to end the turn, as Esc does."""
        await self._client.interrupt()

    async def stop(self, *, grace: float = 2.0) -> StopReceipt:
        """End the whole tree. Goes on even if the caller is cancelled.

        Args:
            grace: Seconds for the CLI to leave by itself after the end of its input. 0: it is killed where it stands.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace), name="stop-agent")
        return await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> StopReceipt:
        pid = self.pid
        if grace:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(grace):
                    await self._channel.end_input()
                    await self._channel.exited()
        # Calls that are cut off get no answer any more: they are in doubt, as those of the CLI's own tools. They end
        # before anyone is told that the tree is gone.
        self._servers.close()
        receipt = await stop_tree(pid, user=self._user)
        receipt = replace(receipt, confirmed=await self._servers.stop() and receipt.confirmed)
        await self._ways.aclose()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await self._client.disconnect()
        return receipt
