"""The actor of one session: owns its CLI process, drains it unconditionally, and carries out its runs one by one.

It is a task of its own, out of reach of any RPC's or queue's cancellation (promise 2). Frames flow from the process
through the translator into the writer for as long as the process lives; a run ends when the turn's result is in and no
subagent is in flight any more. Stopping always ends the whole process tree (promise 5).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.claude.agent import AgentCrashedError, AgentProcess, AgentSpec, AgentStartError
from agentrpc.claude.launcher import Isolation, SessionPaths
from agentrpc.claude.transcripts import UnknownTranscriptFormat, restore_transcript, transcript_has
from agentrpc.claude.translation import Delta, Translator, TurnEnded
from agentrpc.domain.states import RunState
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.names import session_name
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.endings import failed, from_turn
from agentrpc.services.session_host.gate import SessionGate
from agentrpc.services.session_host.lifecycle import Ending
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.services.signals import publish
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.leases import Claim, OwnedSession
from agentrpc.store.log import read_transcript
from agentrpc.store.tables import Run
from agentrpc.telemetry import AGENT_PROCESSES, MODEL_COST, RUNS_ENDED
from agentrpc.v1 import content_pb2, event_pb2, session_pb2

__all__ = ["Environment", "SessionActor", "TokenIssuer"]

log = structlog.get_logger()

_T = TypeVar("_T")

_MAX_ATTEMPTS = 3
_INTERRUPT_PATIENCE = 5.0
_CONTINUE = (
    "The process that carried out this task was lost and has been replaced. No tool call was left half done. "
    "Go on with the task from where you were."
)


class TokenIssuer(Protocol):
    """The model gateway, as far as a session needs it."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    def issue(self, session_id: UUID, may_call: Callable[[], bool]) -> str:
        """A run token that is good while `may_call` says so."""
        ...

    def revoke(self, token: str) -> None:
        """End a token, and the calls under way with it."""
        ...


@dataclass(frozen=True, slots=True)
class Environment:
    """What all actors of a worker share."""

    database: Database
    bus: Bus
    settings: Settings
    tokens: TokenIssuer
    isolation: Isolation
    may_begin: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why a run has to end before its turn has: the state it gets, and the words."""

    state: RunState
    reason: str


class SessionActor:
    """Hosts one session under one epoch.

    Args:
        environment: What all actors share.
        claim: The first run and the session as it was then.
    """

    def __init__(self, environment: Environment, claim: Claim) -> None:
        self._env = environment
        self.session_id = claim.session.id
        self.epoch = claim.epoch
        self._claude_session_id = claim.session.claude_session_id
        self._paths = SessionPaths.under(environment.settings.data_dir, claim.session.id)
        self._writer = SessionWriter(
            environment.database,
            environment.bus,
            claim.session.id,
            epoch=claim.epoch,
            batch=claim.batch,
            last_sequence=claim.last_sequence,
        )
        self._translator = Translator(host_paths=[str(self._paths.root), str(environment.settings.data_dir)])
        self._gate = SessionGate(
            environment.database,
            environment.bus,
            self._writer,
            self._translator,
            session_id=claim.session.id,
            epoch=claim.epoch,
            workspace=str(self._paths.workspace),
            may_begin=self._may_begin,
        )
        self._gate.interrupt = lambda: self._stop_run(_Stop(RunState.CANCELLED, "denied with interrupt"))
        self._agent: AgentProcess | None = None
        self._agent_options = b""
        self._token: str | None = None
        self._pump: asyncio.Task[None] | None = None
        self._turns: asyncio.Queue[TurnEnded | AgentCrashedError] = asyncio.Queue()
        self._stopping: asyncio.Future[_Stop] | None = None
        self._closed = False
        self._marking: asyncio.Task[None] | None = None
        self.run: Run | None = None
        self.idle_since = time.monotonic()
        self._log = log.bind(session=session_name(claim.session.id), epoch=claim.epoch)

    @property
    def has_process(self) -> bool:
        """Whether a CLI process is alive."""
        return self._agent is not None

    def memory(self) -> int:
        """Bytes that the process tree uses."""
        return self._agent.memory() if self._agent is not None else 0

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the writer has found that the lease is lost."""
        return self._writer.lost

    def _may_begin(self) -> bool:
        return not self._closed and not self._writer.lost.done() and self._env.may_begin()

    # ---- One run ----

    async def carry_out(self, claim: Claim) -> None:
        """Carry out a claimed run to its end. Never raises but LeaseLostError and cancellation."""
        run = claim.run
        self.run = run
        self._stopping = asyncio.get_running_loop().create_future()
        self._writer.run_id = run.id
        self._writer.committed(claim.events[-1].sequence)
        started = time.monotonic()
        structlog.contextvars.bind_contextvars(session=session_name(self.session_id), run=str(run.id))
        try:
            await publish(self._env.bus, self.session_id, claim.events)
            ending = await self._guarded(claim)
            self._gate.end_run()
            await self._writer.flush()
            await self._end(run, ending, started)
        finally:
            self._gate.end_run()
            self.run = None
            self._writer.run_id = None
            self.idle_since = time.monotonic()

    async def _guarded(self, claim: Claim) -> Ending:
        try:
            return await self._conduct(claim)
        except LeaseLostError:
            raise
        except AgentStartError as error:
            self._log.error("agent_start_failed", detail=error.detail)
            return failed("REASON_AGENT_START_FAILED", str(error), retryable=True)
        except UnknownTranscriptFormat as error:
            self._log.error("transcript_unknown", detail=str(error))
            return Ending(RunState.UNKNOWN_OUTCOME)
        except Exception:
            error_id = clock.uuid7()
            self._log.exception("run_failed", error_id=str(error_id))
            await self._stop_agent()
            return failed("REASON_INTERNAL", f"a fault of the service; quote {error_id} to its operator")

    async def _conduct(self, claim: Claim) -> Ending:
        run = claim.run
        options = session_pb2.SessionOptions.FromString(
            await self._patiently(lambda: lifecycle.load_options(self._env.database, self.session_id))
        )
        prompt = run.prompt
        if claim.taken_over:
            recovered = await self._recover(run)
            if isinstance(recovered, Ending):
                return recovered
            prompt = recovered
        granted = await self._patiently(lambda: lifecycle.grants(self._env.database, self.session_id))
        self._writer.deltas = options.deltas if options.HasField("deltas") else True
        agent = await self._ready_agent(options)
        if isinstance(agent, _Stop):
            return Ending(agent.state)
        self._gate.begin_run(run.id, options, granted)
        while not self._turns.empty():
            self._turns.get_nowait()
        prompt_uuid = str(run.id) if prompt is run.prompt else str(clock.uuid7())
        await agent.send_prompt(prompt, uuid=prompt_uuid)
        return await self._until_ended(run, agent, prompt_uuid)

    async def _until_ended(self, run: Run, agent: AgentProcess, prompt_uuid: str) -> Ending:
        """The run ends with the turn that answers its prompt, or with one that follows when subtasks have reported."""
        last: TurnEnded | None = None
        usage = Ending(RunState.SUCCEEDED)
        ceiling: float | None = None
        while True:
            stop = await self._next(ceiling, run)
            if isinstance(stop, TurnEnded):
                _add_usage(usage, stop)
                if last is None and not _answers(stop, prompt_uuid):
                    continue
                last = stop
                ceiling = time.monotonic() + self._env.settings.background_ceiling
                if last.is_error or not (self._translator.active_subtasks or last.queued_turn_count):
                    return from_turn(last, usage)
            elif isinstance(stop, AgentCrashedError):
                await self._stop_agent()
                return failed(
                    "REASON_AGENT_CRASHED",
                    "the CLI ended in the middle of the run: create the run again",
                    retryable=True,
                    usage=usage,
                )
            elif isinstance(stop, _Stop) and last is not None:
                # No turn is left to interrupt, only subtasks.
                await self._stop_agent()
                return Ending(stop.state, from_turn(last, usage).result, None, usage.usage, usage.model_usage)
            elif isinstance(stop, _Stop):
                return await self._interrupt(agent, stop, usage, prompt_uuid)
            elif last is not None:
                self._log.warning("background_ceiling", subtasks=len(self._translator.active_subtasks))
                return from_turn(last, usage)

    async def _next(self, ceiling: float | None, run: Run) -> TurnEnded | AgentCrashedError | _Stop | None:
        """The next thing that matters: a turn's end, the process's end, a stop, or None at the ceiling."""
        assert self._stopping is not None
        turn = asyncio.ensure_future(self._turns.get())
        deadline = None
        if run.timeout is not None and run.start_time is not None:
            deadline = (run.start_time + run.timeout - clock.utcnow()).total_seconds()
        waits = [deadline, None if ceiling is None else ceiling - time.monotonic()]
        left = min((max(wait, 0.0) for wait in waits if wait is not None), default=None)
        try:
            waited: set[asyncio.Future[Any]] = {turn, self._stopping, self._writer.lost}
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self._writer.lost.done():
                raise LeaseLostError("the session's writer has stopped")
            if turn.done():
                return turn.result()
            if self._stopping.done():
                return self._stopping.result()
            if (
                run.timeout is not None
                and run.start_time is not None
                and clock.utcnow() >= run.start_time + run.timeout
            ):
                return _Stop(RunState.EXPIRED, "its time-out passed")
            return None
        finally:
            if not turn.done():
                turn.cancel()

    async def _interrupt(self, agent: AgentProcess, stop: _Stop, usage: Ending, prompt_uuid: str) -> Ending:
        """End the turn as Esc would; when the CLI does not, end the process tree."""
        self._gate.end_run()
        turn: TurnEnded | AgentCrashedError | None = None
        try:
            async with asyncio.timeout(_INTERRUPT_PATIENCE):
                await agent.interrupt()
                turn = await self._turns.get()
                while isinstance(turn, TurnEnded) and not _answers(turn, prompt_uuid):
                    _add_usage(usage, turn)
                    turn = await self._turns.get()
        except TimeoutError:
            self._log.warning("interrupt_ignored")
        except Exception as error:
            self._log.warning("interrupt_failed", error=type(error).__name__)
        if not isinstance(turn, TurnEnded) or self._translator.active_subtasks:
            await self._stop_agent()
        ending = Ending(stop.state, usage=usage.usage, model_usage=usage.model_usage)
        if isinstance(turn, TurnEnded):
            _add_usage(ending, turn)
            ending.result = from_turn(turn, ending).result
        return ending

    async def _recover(self, run: Run) -> str | Ending:
        """After the loss of a worker: the prompt with which to go on, or the end."""
        database = self._env.database
        doubt = await lifecycle.calls_in_doubt(database, self.session_id, run.id)
        events = await lifecycle.cancel_orphaned_approvals(database, self.session_id, run.id, self.epoch)
        if events:
            self._writer.committed(events[-1].sequence)
            await publish(self._env.bus, self.session_id, events)
        for tool_use_id, tool_name in doubt:
            self._writer.put(
                event_pb2.Event(
                    tool_call_finished=event_pb2.ToolCallFinished(
                        tool_use_id=tool_use_id,
                        tool_name=tool_name,
                        outcome=event_pb2.ToolCallFinished.OUTCOME_UNKNOWN,
                    )
                )
            )
        if doubt:
            return Ending(RunState.UNKNOWN_OUTCOME)
        if run.attempt > _MAX_ATTEMPTS:
            return failed("REASON_WORKER_LOST", f"{run.attempt - 1} workers were lost while they carried it out")
        lines = await read_transcript(database, self.session_id)
        if not transcript_has(lines, str(run.id)):
            return run.prompt
        message = event_pb2.UserMessage(origin=event_pb2.UserMessage.ORIGIN_AGENT)
        message.blocks.add(text=content_pb2.TextBlock(text=_CONTINUE))
        self._writer.put(event_pb2.Event(user_message=message))
        return _CONTINUE

    async def _end(self, run: Run, ending: Ending, started: float) -> None:
        if ending.result is not None and not ending.result.HasField("duration"):
            ending.result.duration.FromMilliseconds(int((time.monotonic() - started) * 1000))
        events = await self._patiently(
            lambda: lifecycle.end_run(self._env.database, self.session_id, run.id, self.epoch, ending)
        )
        if events:
            self._writer.committed(events[-1].sequence)
            await publish(self._env.bus, self.session_id, events)
        RUNS_ENDED.labels(ending.state).inc()
        for usage in ending.model_usage:
            MODEL_COST.labels(usage.model).inc(usage.usage.cost_usd)
        self._log.info("run_ended", state=str(ending.state), seconds=round(time.monotonic() - started, 3))

    async def _patiently(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try again while the database is away: the run goes on when it is back. Raises LeaseLostError meanwhile."""
        delay = 0.1
        while True:
            if self._writer.lost.done():
                raise LeaseLostError("the session's writer has stopped")
            try:
                return await attempt()
            except StoreUnavailable:
                await asyncio.sleep(clock.jitter(delay))
                delay = min(delay * 2, 2.0)

    # ---- The process ----

    async def _ready_agent(self, options: session_pb2.SessionOptions) -> AgentProcess | _Stop:
        """A live process with these options: the warm one, or a new one that resumes the conversation."""
        assert self._stopping is not None
        wanted = options.SerializeToString(deterministic=True)
        if self._agent is not None:
            if wanted == self._agent_options and not self._agent.exhausted(options):
                return self._agent
            await self._stop_agent()
        starting = asyncio.create_task(self._start_agent(options, wanted))
        try:
            waited: set[asyncio.Future[Any]] = {starting, self._stopping, self._writer.lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            raise
        if starting.done():
            return starting.result()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        if self._stopping.done():
            return self._stopping.result()
        raise LeaseLostError("the session's writer has stopped")

    async def _start_agent(self, options: session_pb2.SessionOptions, wanted: bytes) -> AgentProcess:
        self._paths.create()
        lines = await read_transcript(self._env.database, self.session_id)
        if lines:
            restore_transcript(self._paths, str(self._claude_session_id), lines)
        self._token = self._env.tokens.issue(self.session_id, self._may_begin)
        if not options.model:
            options.model = self._env.settings.default_model
        spec = AgentSpec(
            session_id=self.session_id,
            claude_session_id=str(self._claude_session_id),
            resume=bool(lines),
            options=options,
            paths=self._paths,
            gateway_url=self._env.tokens.url,
            token=self._token,
            isolation=self._env.isolation,
            gate=self._gate,
            on_transcript=self._writer.put_transcript,
            cli_path=self._env.settings.cli_path,
        )
        try:
            agent = await AgentProcess.start(spec, timeout=self._env.settings.agent_start_timeout)
        except BaseException:
            self._env.tokens.revoke(self._token)
            self._token = None
            raise
        self._translator.reset_process()
        self._agent, self._agent_options = agent, wanted
        AGENT_PROCESSES.inc()
        self._pump = asyncio.create_task(self._drain(agent), name=f"pump-{self.session_id}")
        return agent

    async def _drain(self, agent: AgentProcess) -> None:
        """Frames to events, for the life of the process."""
        translate, put, put_delta = self._translator.translate, self._writer.put, self._writer.put_delta
        crash = AgentCrashedError(None, "")
        try:
            async for frames in agent.frames():
                for item in chain.from_iterable(map(translate, frames)):
                    if isinstance(item, Delta):
                        put_delta(item)
                    elif isinstance(item, TurnEnded):
                        self._turns.put_nowait(item)
                    else:
                        put(item)
                        self._note(item)
                await self._writer.room()
        except AgentCrashedError as error:
            crash = error
            self._log.warning("agent_crashed", exit_code=error.exit_code, stderr=error.stderr_tail[-500:])
        if self._agent is agent:
            # Ended unasked: whatever of the tree is left goes too.
            self._turns.put_nowait(crash)
            self._pump = None
            await self._stop_agent()

    def _note(self, event: event_pb2.Event) -> None:
        if event.HasField("assistant_message"):
            for block in event.assistant_message.blocks:
                if block.HasField("tool_use"):
                    self._gate.saw_block(block.tool_use.tool_use_id)
        elif event.HasField("agent_initialized"):
            self._marking = asyncio.create_task(self._mark(event.agent_initialized), name="mark-agent")

    async def _mark(self, ready: event_pb2.AgentInitialized) -> None:
        """Note which CLI writes the transcript: from now on a new process has something to resume."""
        with contextlib.suppress(LeaseLostError, ValueError):
            await self._patiently(
                lambda: lifecycle.mark_agent(
                    self._env.database, self.session_id, UUID(ready.claude_session_id), ready.agent_version
                )
            )

    async def _stop_agent(self) -> None:
        agent, self._agent = self._agent, None
        pump, self._pump = self._pump, None
        token, self._token = self._token, None
        if token is not None:
            self._env.tokens.revoke(token)
        if agent is not None:
            AGENT_PROCESSES.dec()
            receipt = await agent.stop()
            self._log.info("agent_stopped", confirmed=receipt.confirmed, seconds=round(receipt.elapsed, 3))
        if pump is not None and pump is not asyncio.current_task():
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    # ---- From outside ----

    def _stop_run(self, stop: _Stop) -> None:
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(stop)

    async def look(self, head: OwnedSession) -> None:
        """Act upon what the head row says now: an interrupt, an answer. Called on a signal and once a second."""
        run = self.run
        if run is not None and head.interrupt_run == run.id:
            self._stop_run(_Stop(RunState.CANCELLED, "interrupted"))
        with contextlib.suppress(StoreUnavailable):
            await self._gate.check_answers()

    async def close(self) -> None:
        """End the process tree and the writer. Nothing begins after this."""
        self._closed = True
        self._gate.end_run()
        await self._stop_agent()
        await self._writer.close()


def _answers(turn: TurnEnded, prompt_uuid: str) -> bool:
    """Whether a turn is of this prompt, and not one that the CLI began by itself or of an earlier run.

    Local commands such as /compact end without naming a prompt.
    """
    return prompt_uuid in turn.prompt_uuids or not (turn.prompt_uuids or turn.origin)


def _add_usage(ending: Ending, turn: TurnEnded) -> None:
    for name in type(ending.usage).DESCRIPTOR.fields_by_name:
        setattr(ending.usage, name, getattr(ending.usage, name) + getattr(turn.usage, name))
    ending.model_usage = [*ending.model_usage, *turn.model_usage]
