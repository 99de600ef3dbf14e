"""The actor of one session: owns its CLI process and carries out its runs one by one.

It is a task of its own, out of reach of any RPC's or queue's cancellation (promise 2). A run ends when the turn that
answers its messages is in and no subagent is in flight any more. Stopping always ends the whole process tree
(promise 5). While a run waits for people, or has to move to another worker, its process goes and the session is given
back: `recovery` brings it to life again.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.agent import AgentCrashedError, AgentStartError
from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.links import SandboxView
from agentrpc.claude.revival import UnknownTranscriptFormat, own_folders
from agentrpc.claude.translation import Translator, TurnEnded
from agentrpc.domain.states import RunState, StopKind
from agentrpc.errors import LeaseLostError, StoreUnavailable
from agentrpc.names import session_name
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.bounds import Bounded
from agentrpc.services.session_host.endings import (
    MISBEHAVED,
    add_usage,
    failed,
    from_turn,
    note_metered,
    run_receipt,
    stopped,
)
from agentrpc.services.session_host.gate import SessionGate
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.intents import Intents, Stop, Stopped
from agentrpc.services.session_host.process import Environment, SessionProcess
from agentrpc.services.session_host.recovery import (
    Changed,
    Parked,
    Plan,
    first_plan,
    load_conversation,
    plan_recovery,
    wait_for_upgrade,
)
from agentrpc.services.session_host.workspace import open_workspace
from agentrpc.services.session_host.writer import SessionWriter
from agentrpc.store.leases import Claim, Origin, OwnedSession
from agentrpc.store.log import transcript_place
from agentrpc.store.tables import Run
from agentrpc.telemetry import MODEL_COST, RUNS_ENDED
from agentrpc.v1 import event_pb2, session_pb2

__all__ = ["SessionActor"]

log = structlog.get_logger()

_T = TypeVar("_T")

_INTERRUPT_PATIENCE = 5.0
_TICK = 1.0
_LEAVING_TICK = 0.05
# The end of a turn names at most 64 messages that it has answered (CLI 2.1.329).
_MOST_SAID = 60
# In their place, the turn that goes on from a carried call: it need not name any.
_CARRIED = "carried"
# After so many losses in a row a process is started again; the first time at once.
_BACK_OFF = {1: 0.0, 2: 5.0}


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
        self._claude_session_id = str(claim.session.claude_session_id)
        workspace = environment.workspaces.path(claim.session.id)
        self._paths = SessionPaths.under(environment.settings.data_dir, claim.session.id, workspace)
        self._writer = SessionWriter(
            environment.database,
            environment.bus,
            claim.session.id,
            epoch=claim.epoch,
            batch=claim.batch,
            last_sequence=claim.last_sequence,
        )
        self._intents = Intents(self._writer.lost)
        self._hold = Hold(environment.database, environment.bus, self._writer, claim.session.id, claim.epoch)
        hidden = (self._paths.root, workspace.parent, environment.settings.data_dir)
        self._translator = Translator(host_paths=[str(path) for path in hidden])
        own = own_folders(self._paths, self._claude_session_id)
        self._gate = SessionGate(
            self._hold,
            self._translator,
            workspace=str(workspace),
            own=own,
            home=str(self._paths.home),
            resolve=SandboxView(self._paths).resolve,
            may_begin=self._may_begin,
        )
        self._gate.rules_since = partial(lifecycle.rules_since, environment.database, claim.session.id)
        self._gate.interrupt = lambda: self._intents.stop_run(Stop(StopKind.INTERRUPT, "denied with interrupt"))
        self._process = SessionProcess(
            environment,
            self._hold,
            self._paths,
            self._translator,
            self._gate,
            may_begin=self._may_begin,
            on_ready=self._on_ready,
            on_fault=self._on_fault,
        )
        self._unanswered: set[str] = set()
        self._active = time.monotonic()
        self._closed = False
        self._marking: asyncio.Task[None] | None = None
        self.run: Run | None = None
        self.idle_since = time.monotonic()
        self._log = log.bind(session=session_name(claim.session.id), epoch=claim.epoch)

    @property
    def has_process(self) -> bool:
        """Whether a CLI process is alive."""
        return self._process.alive

    @property
    def bounded(self) -> Bounded | None:
        """The live process trees and their limits; None: there are none."""
        return self._process.bounded

    def memory(self) -> int:
        """Bytes that the process trees use. Blocks."""
        bounded = self.bounded
        return bounded.memory() if bounded is not None else 0

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the writer has found that the lease is lost."""
        return self._writer.lost

    def _may_begin(self) -> bool:
        return not self._closed and not self._writer.lost.done() and self._env.may_begin()

    # ---- One run ----

    async def carry_out(self, claim: Claim) -> bool:
        """Carry out a claimed run to its end, or as far as it goes here.

        Returns:
            Whether the worker still holds the session.

        Raises:
            LeaseLostError: Another worker has it.
        """
        run = claim.run
        self.run = run
        self._intents.begin_run()
        self._writer.run_id = run.id
        started = time.monotonic()
        structlog.contextvars.bind_contextvars(session=session_name(self.session_id), run=str(run.id))
        try:
            await self._hold.show(claim.events)
            usage = Ending(RunState.SUCCEEDED, complete=claim.origin is Origin.QUEUED)
            ending = await self._guarded(self._conduct(claim, usage), usage)
            while ending is not None:
                self._gate.end_run()
                used = self._process.end_run()
                await self._writer.flush()
                note_metered(ending, used)
                if await self._end(run, ending, started):
                    return True
                # A further message or a cancel came in the last moment: on with the process that lives.
                ending = await self._guarded(self._conduct(claim, usage, again=True), usage)
            self._log.info("run_left")
            return False
        finally:
            self._gate.end_run()
            self._process.end_run()
            self.run = None
            self._writer.run_id = None
            self._process.run_ended()
            self.idle_since = time.monotonic()

    async def _guarded(
        self, conduct: Coroutine[Any, Any, Ending | AgentCrashedError | Parked], usage: Ending
    ) -> Ending | None:
        try:
            outcome = await conduct
        except LeaseLostError:
            raise
        except Stopped:
            return await self._halt(usage)
        except AgentStartError as error:
            self._log.error("agent_start_failed", detail=error.detail)
            if (breach := self._process.bounds.breach) is not None:
                return failed(breach.reason, breach.message)
            return failed(error.reason, str(error), retryable=error.reason == "REASON_AGENT_START_FAILED")
        except Exception:
            error_id = clock.uuid7()
            self._log.exception("run_failed", error_id=str(error_id))
            await self._process.stop()
            self._void()
            return failed("REASON_INTERNAL", f"a fault of the service; quote {error_id} to its operator")
        if self._intents.failed and not isinstance(outcome, Parked):
            # It came in the last moment, and what the turn has come to does not count any more.
            return await self._halt(usage)
        if isinstance(outcome, AgentCrashedError):
            # One that only does not listen would carry out later what it was told.
            await self._process.stop(grace=0)
            self._void()
            return failed(
                "REASON_AGENT_CRASHED", "the CLI ended in the middle of the run: create it again", usage=usage
            )
        return outcome if isinstance(outcome, Ending) else None

    async def _conduct(
        self, claim: Claim, usage: Ending, *, again: bool = False
    ) -> Ending | Parked | AgentCrashedError:
        """Process after process, until the run has ended or has to be left."""
        run = claim.run
        plan: Plan | None = first_plan(run) if claim.origin is Origin.QUEUED or again else None
        lost, losses = claim.origin is Origin.LOST, claim.losses
        if run.rewind_to is not None:
            await self._rewind(run.rewind_to)
        while True:
            options = session_pb2.SessionOptions.FromString(
                await self._hold.patiently(lambda: lifecycle.load_options(self._env.database, self.session_id))
            )
            head = await self._hold.patiently(self._head)
            if head.active_run != run.id:
                raise LeaseLostError(f"run {run.id} is not this session's active one any more")
            self._heed(head)
            if self._intents.stop is not None:
                return await self._halt(usage)
            if plan is None:
                usage.complete = False
                found = await self._without_guessing(
                    run, plan_recovery(self._hold, run, policy=options.recovery_policy, lost=lost, losses=losses)
                )
                if isinstance(found, Changed):
                    continue
                if not isinstance(found, Plan):
                    return found
                plan = found
            outcome = await self._without_guessing(run, self._attempt(run, options, plan, usage, again=again))
            plan, lost, again = None, False, False
            if isinstance(outcome, AgentCrashedError):
                if (breach := self._process.bounds.breach) is not None:
                    self._void()
                    return failed(breach.reason, breach.message, usage=usage)
                if options.recovery_policy == session_pb2.RECOVERY_POLICY_FAIL:
                    return outcome
                lost, losses = True, await self._note_loss(run)
            elif not isinstance(outcome, Changed):
                return outcome

    async def _attempt(
        self, run: Run, options: session_pb2.SessionOptions, plan: Plan, usage: Ending, *, again: bool
    ) -> Ending | Parked | Changed | AgentCrashedError:
        begins = not again and (str(run.id), run.prompt) in plan.prompts
        opening = open_workspace(self._env.workspaces, self._hold, run.id, checkpoint=begins and options.checkpoints)
        if (cannot := await self._intents.unless_stopped(opening)) is not None:
            # A live process would go on in files that nobody finds again.
            await self._process.stop(grace=0)
            self._void()
            return cannot
        self._writer.deltas = options.deltas if options.HasField("deltas") else True
        # The process is still, or has to be, out of the plan mode that the session is in.
        left_plan_mode = self._gate.planned
        self._gate.begin_run(run.id, options, planned=left_plan_mode if again else plan.planned)
        self._process.begin_run(run.id, options)
        self._gate.hold(held=self._leaving)
        self._gate.expect(plan.answers, plan.attempts)
        if again:
            # If the process has ended meanwhile, `turns` says so.
            return await self._drive(run, usage)
        conversation = plan.conversation
        if conversation is not None or left_plan_mode or not self._process.fits(options):
            await self._process.stop()
            # With what the old one has said at its end.
            await self._writer.flush()
            if conversation is None:
                conversation = await load_conversation(self._hold)
            carry = plan.carry[0] if plan.carry else None
            # One after the other: the CLI takes up only one call of a message. The last one goes on with the turn.
            step = len(plan.carry) > 1
            start = self._process.start(
                options, self._claude_session_id, conversation, carry=carry, step=step, planned=self._gate.planned
            )
            await self._intents.unless_stopped(start)
            if step:
                return await self._step(run, usage)
        self._process.forget_turns()
        self._unanswered = {_CARRIED} if plan.carry else set()
        for uuid, text in plan.prompts:
            await self._say(uuid, text)
        return await self._drive(run, usage)

    async def _step(self, run: Run, usage: Ending) -> Ending | Parked | Changed | AgentCrashedError:
        """Wait for the one call that the process was started for; the next process reads its result in the store."""
        done = asyncio.ensure_future(self._process.stepped())
        try:
            while not done.done():
                turn = await self._next(run, also=done)
                if isinstance(turn, AgentCrashedError):
                    return turn
                if self._intents.stop is not None:
                    raise Stopped
                if self._may_leave():
                    return await self._leave(run)
                if self._inactive(run):
                    return await self._give_up(run, usage)
        finally:
            done.cancel()
        await self._process.stop(grace=0)
        await self._writer.flush()
        return Changed()

    async def _drive(self, run: Run, usage: Ending) -> Ending | Parked | Changed | AgentCrashedError:
        """Follow the turns of the live process until the run ends, is to stop, or has to be left."""
        last: TurnEnded | None = None
        ceiling: float | None = None
        while True:
            turn = await self._next(run, ceiling)
            if isinstance(turn, AgentCrashedError):
                return turn
            if turn is not None:
                add_usage(usage, turn)
                mine = self._note_answers(turn)
                if (last is not None or mine) and (turn.is_error or not self._unanswered):
                    last, ceiling = turn, time.monotonic() + self._env.settings.background_ceiling
            if last is not None and last.is_error:
                if self._busy(last):
                    # Whatever is still queued in the CLI, or goes on in the background, would be the next run's.
                    await self._process.stop(grace=0)
                    self._void()
                return from_turn(last, usage)
            if last is not None and not self._intents.inputs and not self._busy(last):
                return from_turn(last, usage)
            if self._intents.stop is not None:
                return await self._interrupt(usage) if last is None else await self._halt(usage, last)
            if self._intents.inputs and self._process.begun and len(self._unanswered) < _MOST_SAID:
                await self._deliver(run)
            elif self._may_leave():
                return await self._leave(run)
            elif ceiling is not None and time.monotonic() >= ceiling and last is not None:
                self._log.warning("background_ceiling", subtasks=len(self._translator.active_subtasks))
                await self._process.stop(grace=0)
                self._void()
                return from_turn(last, usage)
            elif self._inactive(run):
                return await self._give_up(run, usage)

    def _note_answers(self, turn: TurnEnded) -> bool:
        """Whether a turn that has ended is one of this run's: answers a message of it, or what it has taken up."""
        if turn.prompt_uuids:
            # The CLI takes messages into a turn that goes on: one that took up a call, or that it began by itself.
            mine = not self._unanswered.isdisjoint(turn.prompt_uuids)
            self._unanswered.difference_update(turn.prompt_uuids)
            if not turn.origin:
                self._unanswered.discard(_CARRIED)
            return mine
        if not turn.origin:
            # Local commands such as /compact, and calls that were carried over, end without naming a message.
            self._unanswered.clear()
        return not turn.origin

    def _busy(self, last: TurnEnded) -> bool:
        """Whether a turn of this run will follow."""
        waits = self._translator.active_subtasks or self._translator.reports_due
        return bool(waits or last.queued_turn_count or self._unanswered)

    async def _give_up(self, run: Run, usage: Ending) -> Ending:
        await self._process.stop(grace=0)
        self._void()
        limit = run.inactivity_timeout or timedelta()
        return failed("REASON_INACTIVE", f"nothing came from the agent for {limit}", usage=usage)

    async def _next(
        self, run: Run, ceiling: float | None = None, also: "asyncio.Future[None] | None" = None
    ) -> TurnEnded | AgentCrashedError | None:
        """The next end of a turn or of the process; None when something else has changed, or after a while."""
        if self._process.alive and (withdrawn := self._gate.take_withdrawn()):
            args = (self._env.database, self.session_id, run.id, self.epoch, withdrawn)
            await self._hold.show(await self._hold.patiently(lambda: lifecycle.cancel_approvals(*args)))
        deadline = None
        if run.timeout is not None and run.start_time is not None:
            deadline = (run.start_time + run.timeout - clock.utcnow()).total_seconds()
        ceiling_in = None if ceiling is None else ceiling - time.monotonic()
        tick = _LEAVING_TICK if self._leaving else _TICK
        left = min(max(wait, 0.0) for wait in (deadline, ceiling_in, tick) if wait is not None)
        turn = asyncio.ensure_future(self._process.turns.get())
        try:
            await self._intents.wait(turn, *([also] if also else []), timeout=left)
        finally:
            if not turn.done():
                turn.cancel()
        if turn.done() and not turn.cancelled():
            return turn.result()
        if run.timeout is not None and run.start_time is not None and clock.utcnow() >= run.start_time + run.timeout:
            self._intents.stop_run(Stop(StopKind.EXPIRE, "its time-out passed"))
        return None

    def _inactive(self, run: Run) -> bool:
        now = time.monotonic()
        if self._gate.at_gate:
            self._active = now
        return (
            run.inactivity_timeout is not None
            and now - max(self._active, self._process.last_frame) > run.inactivity_timeout.total_seconds()
        )

    # ---- Messages ----

    async def _say(self, uuid: str, text: str) -> None:
        self._unanswered.add(uuid)
        self._active = time.monotonic()
        await self._intents.unless_stopped(self._process.send_prompt(text, uuid=uuid))

    async def _deliver(self, run: Run) -> None:
        """Give further messages to the process, which has taken in those before. Some wait, if they are many."""
        self._intents.inputs = 0
        tried: set[UUID] = set()
        limit = _MOST_SAID - len(self._unanswered)
        inputs, waiting, events = await self._hold.patiently(
            lambda: lifecycle.take_inputs(self._env.database, self.session_id, run.id, self.epoch, tried, limit)
        )
        self._intents.inputs = max(self._intents.inputs, waiting)
        await self._hold.show(events)
        for input_id, text in inputs:
            await self._say(str(input_id), text)

    async def _rewind(self, to: UUID) -> None:
        """Take the conversation back to before a run, unless that was done."""
        database = self._env.database
        await self._writer.flush()
        targets = await self._hold.patiently(lambda: lifecycle.rewind_targets(database, to))
        for target in targets:
            position = await self._hold.patiently(partial(transcript_place, database, self.session_id, str(target)))
            if position is not None:
                await self._rewind_to(target, position)
                return

    async def _rewind_to(self, to: UUID, position: int) -> None:
        database = self._env.database
        await self._process.stop()
        await self._writer.flush()
        events = await self._hold.patiently(
            lambda: lifecycle.rewind(database, self.session_id, to, self.epoch, position)
        )
        await self._hold.show(events)

    # ---- Stopping ----

    async def _interrupt(self, usage: Ending) -> Ending:
        """End the turn as Esc would; when the CLI does not, end the process tree."""
        assert self._intents.stop is not None
        if self._intents.cancelled:
            return await self._halt(usage)
        self._gate.end_run()
        interrupting = asyncio.create_task(self._end_turn(usage))
        try:
            await self._intents.wait_for(
                interrupting, lambda: self._intents.cancelled, time.monotonic() + _INTERRUPT_PATIENCE
            )
        finally:
            interrupting.cancel()
            [turn] = await asyncio.gather(interrupting, return_exceptions=True)
        if not isinstance(turn, TurnEnded):
            self._log.warning("interrupt_ignored", instead=type(turn).__name__)
        if self._intents.cancelled:
            return await self._halt(usage, turn if isinstance(turn, TurnEnded) else None)
        if (
            not isinstance(turn, TurnEnded)
            or self._intents.stop.kind is StopKind.EXPIRE
            or self._translator.active_subtasks
            or self._translator.reports_due
            or self._unanswered - {*turn.prompt_uuids}
        ):
            # Whatever is still queued in the CLI would begin a turn of its own. When its time is over nothing of a run
            # goes on: not even what its tools have started to outlive them.
            await self._process.stop()
            self._void()
        return stopped(self._intents.stop.state, usage, turn if isinstance(turn, TurnEnded) else None)

    async def _end_turn(self, usage: Ending) -> TurnEnded | AgentCrashedError:
        """Interrupt the turn; its end, or that of the process."""
        await self._process.interrupt()
        while True:
            turn = await self._process.turns.get()
            if isinstance(turn, AgentCrashedError):
                return turn
            if turn is None:
                continue
            add_usage(usage, turn)
            if not turn.origin:
                return turn

    async def _halt(self, usage: Ending, last: TurnEnded | None = None) -> Ending:
        """End the whole process tree at once."""
        assert self._intents.stop is not None
        receipt = await self._process.stop(grace=0)
        self._void()
        if self._intents.stop.failure is not None:
            self._intents.stop.failure.usage, self._intents.stop.failure.model_usage = usage.usage, usage.model_usage
            return self._intents.stop.failure
        ending = stopped(self._intents.stop.state, usage, last)
        if self._intents.cancelled:
            ending.receipt = run_receipt(receipt)
        return ending

    def _void(self) -> None:
        """The ends of calls for which no result will come."""
        for event in self._translator.abandon():
            self._writer.put(event)

    # ---- Leaving ----

    @property
    def _leaving(self) -> bool:
        return self._intents.leaving or self._gate.waited > self._env.settings.approval_hold

    def _may_leave(self) -> bool:
        if self._intents.draining or self._intents.paused:
            self._gate.hold(held=True)
        return self._intents.abandoned or (self._leaving and self._process.halted)

    async def _leave(self, run: Run) -> Parked | Changed:
        """Give the session back while nothing is under way but calls that wait at the gate."""
        self._gate.seal()
        clean = self._process.halted
        await self._process.stop(grace=0)
        self._gate.end_run()
        await self._writer.flush()
        args = (self._env.database, self.session_id, run.id, self.epoch)
        if self._intents.leaving:
            left = await self._hold.patiently(lambda: lifecycle.hand_over(*args, clean=clean))
        else:
            left = await self._hold.patiently(lambda: lifecycle.park(*args))
        return Parked() if left else Changed()

    async def _without_guessing(self, run: Run, step: Coroutine[Any, Any, _T]) -> _T | Parked | Changed:
        """When the transcript cannot be read, a caller has to decide."""
        try:
            return await step
        except UnknownTranscriptFormat as error:
            self._log.error("transcript_unknown", detail=str(error))
        self._gate.end_run()
        return await wait_for_upgrade(self._hold, run.id)

    async def _note_loss(self, run: Run) -> int:
        """The process was lost: from now on it is another attempt."""
        await self._process.stop(grace=0)
        self._gate.end_run()
        await self._writer.flush()
        losses, events = await self._hold.patiently(
            lambda: lifecycle.note_loss(self._env.database, self.session_id, run.id, self.epoch, run.attempt)
        )
        run.attempt += 1
        await self._hold.show(events)
        await self._intents.wait_out(_BACK_OFF.get(losses, 0.0))
        return losses

    async def _end(self, run: Run, ending: Ending, started: float) -> bool:
        """Write the run's end. False: a further message or a cancel has come, it goes on."""
        if ending.result is not None and not ending.result.HasField("duration"):
            ending.result.duration.FromMilliseconds(int((time.monotonic() - started) * 1000))
        events = await self._hold.patiently(
            lambda: lifecycle.end_run(self._env.database, self.session_id, run.id, self.epoch, ending)
        )
        if events is None:
            self._intents.inputs = 1
            return False
        await self._hold.show(events)
        RUNS_ENDED.labels(ending.state).inc()
        for usage in ending.model_usage:
            MODEL_COST.labels(usage.model).inc(usage.usage.cost_usd)
        self._log.info("run_ended", state=str(ending.state), seconds=round(time.monotonic() - started, 3))
        return True

    def _on_fault(self, what: str) -> None:
        # Between runs there is none to fail: the log and the end of the process say it.
        if self.run is not None:
            self.fail("REASON_AGENT_MISBEHAVED", MISBEHAVED.format(what))

    def _on_ready(self, ready: event_pb2.AgentInitialized) -> None:
        self._marking = asyncio.create_task(self._mark(ready), name="mark-agent")

    async def _mark(self, ready: event_pb2.AgentInitialized) -> None:
        """Note which CLI writes the transcript: from now on a new process has something to resume."""
        with contextlib.suppress(LeaseLostError, ValueError):
            await self._hold.patiently(
                lambda: lifecycle.mark_agent(
                    self._env.database, self.session_id, self.epoch, UUID(ready.claude_session_id), ready.agent_version
                )
            )

    # ---- From outside ----

    async def _head(self) -> OwnedSession:
        return await lifecycle.intents(self._env.database, self.session_id, self.epoch)

    def _heed(self, head: OwnedSession) -> None:
        if self.run is None:
            return
        paused = self._intents.paused
        self._intents.heed(head, self.run.id)
        if self._intents.paused != paused:
            self._gate.hold(held=self._intents.paused or self._intents.draining)

    async def look(self, head: OwnedSession) -> None:
        """Act upon what the head row says now: a stop, a pause, an answer. Called on a signal and once a second."""
        self._heed(head)
        with contextlib.suppress(StoreUnavailable):
            await self._gate.check_answers()

    def fail(self, reason: str, message: str) -> None:
        """End the process tree at once; the run fails for this reason."""
        self._intents.stop_run(Stop(StopKind.CANCEL, message, failed(reason, message)))

    def say_full(self, what: str) -> None:
        """Tell that the run under way began with more files than it may have, and may only remove some."""
        text = f"This run began with more files than the session may have ({what}). It may remove some, and add few."
        notice = event_pb2.Notice(level=event_pb2.Notice.LEVEL_WARNING, code="workspace_full", text=text)
        self._writer.put(event_pb2.Event(notice=notice))

    def drain(self) -> None:
        """Hold the next call at the gate and give the session back there."""
        self._intents.draining = True
        self._gate.hold(held=True)
        self._intents.changed.set()

    def abandon(self) -> None:
        """Give the session back at once, whatever is under way."""
        self._intents.abandoned = True
        self._intents.changed.set()

    async def close(self) -> None:
        """End the process tree and the writer. Nothing begins after this."""
        # Killed where it stands if it is another's by now, or soon; and if calls wait at the gate: at the end of its
        # input a CLI would note them as denied.
        grace = 2.0 if self._may_begin() and not self._gate.at_gate else 0
        self._closed = True
        await self._process.stop(grace=grace)
        self._gate.end_run()
        await self._writer.close()
