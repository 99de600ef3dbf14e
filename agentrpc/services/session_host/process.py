"""The CLI process of a session: started, drained unconditionally, stopped.

Frames flow from the process through the translator into the writer for as long as it lives. What the run has to know of
them comes out of `turns`: the ends of turns, and the end of the process.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from uuid import UUID

import structlog

from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.agent import AgentCrashedError, AgentFaultError, AgentProcess, AgentSpec, AgentStartError
from agentrpc.claude.agent_users import AgentUsers
from agentrpc.claude.cgroups import Cgroups
from agentrpc.claude.gatekeeper import Tickets
from agentrpc.claude.launcher import Isolation, SessionPaths, StopReceipt
from agentrpc.claude.revival import Conversation, OpenCall
from agentrpc.claude.translation import Delta, Fault, Item, Translator, TurnEnded
from agentrpc.claude.workspaces import WorkspaceStore
from agentrpc.domain.gate import ToolCall, Verdict
from agentrpc.domain.model_calls import RunAllowance, allowance, family_models
from agentrpc.domain.rules import EXIT_PLAN
from agentrpc.errors import FailedPrecondition
from agentrpc.names import session_name
from agentrpc.services.network import EgressMaker, Gateway
from agentrpc.services.registered_mcp import resolve_registered
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_host.bounds import Bounded, SessionBounds
from agentrpc.services.session_host.folders import Folders, disk
from agentrpc.services.session_host.gate import SessionGate
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.mcp import SessionMcp
from agentrpc.services.session_host.network import SessionNetwork
from agentrpc.services.session_host.step import Step
from agentrpc.services.tool_callers import Caller
from agentrpc.services.tool_servers import Toolbox
from agentrpc.services.vault import Vault
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.log import read_transcript
from agentrpc.telemetry import AGENT_PROCESSES
from agentrpc.v1 import common_pb2, event_pb2, session_pb2

__all__ = ["Environment", "SessionProcess"]

log = structlog.get_logger()

# Ids of calls in lines of a transcript: of the block that asks, and of the result.
_STATE = "session_state_changed"
_CALL_IDS = re.compile(rb'"(?:tool_use_)?id":"([^"]{1,200})"')


@dataclass(frozen=True, slots=True)
class Environment:
    """What all actors of a worker share."""

    database: Database
    bus: Bus
    settings: Settings
    gateway: Gateway
    egress: EgressMaker
    isolation: Isolation
    workspaces: WorkspaceStore
    toolbox: Toolbox
    vault: Vault
    may_begin: Callable[[], bool]
    users: AgentUsers | None = None
    cgroups: Cgroups = field(default_factory=Cgroups)


class SessionProcess:
    """At most one live CLI of one session.

    Args:
        environment: What all actors share.
        hold: The session; its writer gets events and transcript lines.
        paths: Its folders.
        translator: Makes events of frames.
        gate: Judges every call.
        may_begin: Whether this worker may still begin anything for the session.
        on_ready: Gets what the CLI says of itself.
        on_fault: Told what the CLI has said that no CLI says. The process is being ended then.
    """

    def __init__(
        self,
        environment: Environment,
        hold: Hold,
        paths: SessionPaths,
        translator: Translator,
        gate: SessionGate,
        *,
        may_begin: Callable[[], bool],
        on_ready: Callable[[event_pb2.AgentInitialized], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self._env = environment
        self._hold = hold
        self._session_id = hold.session_id
        self._caller = Caller(hold.database, hold.session_id, hold.epoch, may_begin)
        self._writer = hold.writer
        self._paths = paths
        self._folders = Folders(paths, environment.users)
        self._translator = translator
        self._gate = gate
        self._may_begin = may_begin
        self._on_ready = on_ready
        self._on_fault = on_fault
        self._agent: AgentProcess | None = None
        self._starting: AgentProcess | None = None
        self._leaving: AgentProcess | None = None
        self._options = b""
        self._network = SessionNetwork(
            environment.gateway, environment.egress, environment.settings, environment.isolation, hold.writer.put
        )
        self._run_id: UUID | None = None
        self._may_ask: RunAllowance | None = None
        self._allowance = RunAllowance(())
        self._mcp = SessionMcp(
            environment.settings, environment.isolation, self._network, self._take, environment.users
        )
        self.bounds = SessionBounds(environment.settings, environment.cgroups, environment.isolation, self._session_id)
        self._tickets = Tickets()
        self._pump: asyncio.Task[None] | None = None
        self._abandoned = StopReceipt(0, 0.0, confirmed=True)
        self._stopping: asyncio.Task[StopReceipt] | None = None
        self._ending: asyncio.Task[StopReceipt] | None = None
        self._stored: set[str] = set()
        gate.in_transcript = lambda tool_use_id: tool_use_id in self._stored
        self._step: Step | None = None
        self._writing = False
        self.turns: asyncio.Queue[TurnEnded | AgentCrashedError | None] = asyncio.Queue()
        self.last_frame = self._said = time.monotonic()
        self._log = log.bind(session=session_name(hold.session_id))

    @property
    def alive(self) -> bool:
        """Whether a CLI process is alive."""
        return self._agent is not None

    @property
    def bounded(self) -> Bounded | None:
        """The live process trees and their limits; None: there are none."""
        agent = self._agent or self._starting or self._leaving
        if agent is None or agent.pid is None:
            return None
        folders = (self._paths.workspace, self._paths.home, self._paths.config)
        return self.bounds.of([agent.pid, *self._mcp.roots()], folders, leaving=agent is self._leaving)

    def fits(self, options: session_pb2.SessionOptions) -> bool:
        """Whether the live process, if there is one, can carry out another run with these options."""
        wanted = options.SerializeToString(deterministic=True)
        return self._agent is not None and wanted == self._options and not self._agent.exhausted(options)

    @property
    def halted(self) -> bool:
        """Whether nothing is under way but calls that wait at the gate or behind one, all of them in the transcript.

        Then the process may go without losing anything: a new one takes these calls up again.
        """
        waiting = self._gate.at_gate
        return (
            bool(waiting)
            and not self._gate.starting
            and not self._writing
            and not self._translator.calls_run
            and not self._translator.active_subtasks
            and self._translator.open_calls | waiting <= self._stored
        )

    # ---- The run ----

    def begin_run(self, run_id: UUID, options: session_pb2.SessionOptions) -> None:
        """From now on models may be asked, within the bounds of these options. A run that goes on keeps its counts."""
        settings = self._env.settings
        used = session_pb2.SessionOptions()
        used.CopyFrom(options)
        used.model = options.model or settings.default_model
        fresh = allowance(used, settings.agent_models)
        if run_id == self._run_id:
            self._allowance.bound_by(fresh)
        else:
            self._run_id, self._allowance = run_id, fresh
        self._may_ask = self._allowance
        self._network.record.run_begun()

    def end_run(self) -> RunAllowance:
        """No model may be asked until the next run, and what is asked now is cut off. What the run has used."""
        self._may_ask = None
        self._network.cut()
        self._network.record.run_ends()
        return self._allowance

    def run_ended(self) -> None:
        """Nothing that comes now is of a run."""
        self._network.record.run_ended()

    async def _judge(self, call: ToolCall) -> Verdict:
        verdict = await self._gate(call)
        if verdict.allow:
            self._allowance.call_begun(call.tool_name)
        return verdict

    def _take(self, tool_name: str, given: Mapping[str, Any]) -> bool:
        """Whether a call may be made in an MCP server elsewhere."""
        return self._may_ask is not None and self._tickets.take(tool_name, given)

    # ---- Start ----

    async def start(
        self,
        options: session_pb2.SessionOptions,
        claude_session_id: str,
        conversation: Conversation,
        *,
        carry: OpenCall | None = None,
        step: bool = False,
        planned: bool = False,
    ) -> None:
        """Start a process that goes on from the stored conversation.

        Args:
            options: The session's.
            claude_session_id: The CLI's id of the session.
            conversation: What is stored of it; empty for a new one.
            carry: A call that the CLI takes up by itself at once, by way of the gate.
            planned: Not in the plan mode that the session is in: the run's plan was approved.
            step: With `carry`: make that call and nothing else. No model is called, and only its result is kept.

        Raises:
            AgentStartError: The CLI is missing, crashed or hung, a registered MCP server is gone, or its network cannot
                be kept apart as it has to be. Nothing of it is left.
        """
        wanted = options.SerializeToString(deterministic=True)
        await self._folders.write(conversation, claude_session_id, carry)
        used = session_pb2.SessionOptions()
        used.CopyFrom(options)
        used.model = options.model or self._env.settings.default_model
        if carry is not None and carry.tool_name == EXIT_PLAN:
            # Elsewhere the CLI refuses the call before anybody is asked.
            used.permission_mode = common_pb2.PERMISSION_MODE_PLAN
        elif planned:
            used.permission_mode = common_pb2.PERMISSION_MODE_DEFAULT
        try:
            box = SecretBox(self._env.settings.secret_keys)
            await self._hold.patiently(lambda: resolve_registered(self._env.database, box, self._session_id, used))
            credentials = await self._hold.patiently(lambda: self._env.vault.open(self._caller, used))
        except FailedPrecondition as error:
            changed = error.reason == "STATE_INVALID"
            reason = "REASON_MCP_SERVER_CHANGED" if changed else "REASON_AGENT_START_FAILED"
            raise AgentStartError(error.message, reason=reason) from None
        self._translator.reset_process()
        if carry is not None:
            self._translator.call_carried(carry.tool_use_id, carry.tool_name)
        self._stored = {carry.tool_use_id} if carry is not None else set()
        self._step = None
        if step and carry is not None:
            self._step = Step(carry.tool_use_id, asyncio.get_running_loop().create_future())
        self._writing = False
        may_call = (lambda: False) if step else self._may_begin
        self._tickets = Tickets()
        try:
            door = await self._network.open(used.network, credentials, may_call, lambda: self._may_ask)
            paths = await self._folders.take_user()
            await self.bounds.open(used)
            limits, group = self.bounds.limits, self.bounds.folder
            spec = AgentSpec(
                session_id=self._session_id,
                claude_session_id=claude_session_id,
                resume=bool(conversation),
                options=used,
                paths=paths,
                gateway_url=self._network.url,
                token=door.token,
                isolation=self._env.isolation,
                gate=self._judge,
                models=family_models(used.model, self._env.settings.agent_models),
                on_transcript=self._keep,
                on_fault=self._fault,
                ways_out=self._network.serving_cli,
                load_transcript=self._load,
                carry=carry,
                cli_path=self._env.settings.cli_path,
                mcp_urls=self._mcp.open(used, self._paths, door, self._network.url, limits, group),
                tools=self._env.toolbox.tools(used, self._caller),
                tickets=self._tickets,
                authorities=credentials.trusted() if credentials is not None else "",
                limits=limits,
                group=group,
                on_begin=self._begin,
            )
            self._abandoned = StopReceipt(0, 0.0, confirmed=True)
            with disk():
                agent = await AgentProcess.start(
                    spec, timeout=self._env.settings.agent_start_timeout, on_abandoned=self._on_abandoned
                )
        except BaseException:
            await self._mcp.close()
            await self._network.close()
            await self._folders.give_user_back()
            await self.bounds.close()
            raise
        finally:
            self._starting = None
        self.forget_turns()
        self._agent, self._options = agent, wanted
        self.last_frame = self._said = time.monotonic()
        AGENT_PROCESSES.inc()
        self._pump = asyncio.create_task(self._drain(agent), name=f"pump-{self._session_id}")

    def _begin(self, agent: AgentProcess) -> None:
        self._starting = agent

    def _keep(self, subpath: str, lines: list[bytes]) -> None:
        if self._step is not None:
            # What the CLI says to itself on the way is not part of the conversation.
            wanted = f'"tool_use_id":"{self._step.tool_use_id}"'.encode()
            lines = [line for line in lines if wanted in line and b'"type":"user"' in line]
        if not lines:
            return
        self._writer.put_transcript(subpath, lines)
        if not subpath:
            for line in lines:
                self._stored.update(found.decode(errors="replace") for found in _CALL_IDS.findall(line))
        if self._step is not None:
            self._step.stored = True
            self._step.check()

    async def _load(self) -> list[tuple[str, bytes]]:
        await self._writer.flush()
        return await read_transcript(self._env.database, self._session_id)

    async def stepped(self) -> None:
        """Wait until the call of a step has ended and its result is on its way to the store. Then stop the process."""
        assert self._step is not None
        await self._step.done

    # ---- Frames ----

    async def _drain(self, agent: AgentProcess) -> None:
        """Frames to events, for the life of the process."""
        crash = AgentCrashedError(None, "")
        try:
            async for frames in agent.frames():
                if any(frame.get("subtype") != _STATE for frame in frames):
                    # It says that it is busy before it has taken in what it was told.
                    self.last_frame = time.monotonic()
                if self._step is not None:
                    frames = [frame for frame in frames if frame.get("type") == "user"]  # noqa: PLW2901 - of a step
                idle = self._translator.idle
                self._hand_on(chain.from_iterable(map(self._translator.translate, frames)))
                if self._translator.idle and not idle:
                    self.turns.put_nowait(None)
                await self._writer.room()
        except AgentCrashedError as error:
            crash = error
            self._log.warning("agent_crashed", exit_code=error.exit_code, stderr=error.stderr_tail[-500:])
        except AgentFaultError as error:
            self._fault(str(error))
            return
        if self._agent is agent:
            # Ended unasked: whatever of the tree is left goes too.
            self._pump = None
            await self.stop()
            self.turns.put_nowait(crash)

    def _fault(self, what: str) -> None:
        """What it says from now on is worth nothing, and what it does is nobody's will: it ends here."""
        if self._stopping is not None:
            return
        self._log.error("agent_misbehaved", what=what)
        self._on_fault(what)
        if self._agent is not None:
            self._ending = asyncio.create_task(self.stop(grace=0), name=f"end-{self._session_id}")

    def _hand_on(self, items: Iterable[Item]) -> None:
        put, put_delta = self._writer.put, self._writer.put_delta
        for item in items:
            if isinstance(item, Delta):
                put_delta(item)
            elif isinstance(item, TurnEnded):
                self._stored &= self._translator.open_calls | self._gate.at_gate
                self.turns.put_nowait(item)
            elif isinstance(item, Fault):
                self._fault(item.what)
            else:
                put(item)
                self._note(item)

    def _note(self, event: event_pb2.Event) -> None:
        kind = event.WhichOneof("payload")
        if kind == "assistant_message":
            for block in event.assistant_message.blocks:
                if block.HasField("tool_use"):
                    self._gate.saw_block(block.tool_use.tool_use_id)
        elif kind == "message_started" and not event.parent_tool_use_id:
            self._writing = True
        elif kind == "message_completed":
            self._writing = False
        elif kind == "tool_call_finished":
            self._forget(event.tool_call_finished.tool_use_id)
            if self._step is not None:
                self._step.ended = True
                self._step.check()
        elif kind == "agent_initialized":
            self._on_ready(event.agent_initialized)

    def _forget(self, tool_use_id: str) -> None:
        self._gate.call_ended(tool_use_id)
        if self._agent is not None:
            self._agent.call_ended(tool_use_id)
        self._stored.discard(tool_use_id)

    # ---- Use and end ----

    @property
    def begun(self) -> bool:
        """Whether the CLI has taken in what it was told last: before that, another message would be joined to it."""
        return self.last_frame > self._said

    def forget_turns(self) -> None:
        """What ended before now is of no interest."""
        self._translator.forget_reports()
        while not self.turns.empty():
            self.turns.get_nowait()

    async def send_prompt(self, text: str, *, uuid: str) -> None:
        """Begin a turn. `uuid` becomes the prompt's place in the transcript.

        A process that has ended meanwhile does not hear it: `turns` says so.
        """
        self._said = time.monotonic()
        self._allowance.prompt_given()
        try:
            if self._agent is None:
                raise AgentCrashedError(None, "it ended before it was told more")
            await self._agent.send_prompt(text, uuid=uuid)
        except AgentCrashedError as error:
            self.turns.put_nowait(error)

    async def interrupt(self) -> None:
        """Ask the CLI to end the turn, as Esc does."""
        if self._agent is not None:
            await self._agent.interrupt()

    async def stop(self, *, grace: float = 2.0) -> StopReceipt:
        """End the whole tree; the writer has everything of it when this returns.

        Args:
            grace: Seconds for the CLI to leave by itself. 0: kill it where it stands, so that it writes nothing more.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace), name=f"stop-{self._session_id}")
            self._stopping.add_done_callback(self._on_stopped)
        # Whoever asks waits until the tree is gone, also when somebody else has asked before.
        return await asyncio.shield(self._stopping)

    def _on_abandoned(self, receipt: StopReceipt) -> None:
        self._abandoned = receipt

    def _on_stopped(self, _: object) -> None:
        self._stopping = None

    async def _stop(self, grace: float) -> StopReceipt:
        agent, self._agent = self._agent, None
        self._leaving = agent
        pump, self._pump = self._pump, None
        self._network.revoke()
        # Without a process: what became of the last one that was stopped while it started.
        receipt, self._abandoned = self._abandoned, StopReceipt(0, 0.0, confirmed=True)
        if agent is not None:
            AGENT_PROCESSES.dec()
            receipt = await agent.stop(grace=grace)
            await self._mcp.close()
            await self._network.close()
            await self._folders.give_user_back()
            self._leaving = None
            receipt = replace(receipt, confirmed=await self.bounds.close() and receipt.confirmed)
            self._log.info("agent_stopped", confirmed=receipt.confirmed, seconds=round(receipt.elapsed, 3))
        if pump is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(pump)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        return receipt
