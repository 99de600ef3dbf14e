"""How a run goes on that was parked, handed over, or lost its worker or its process.

The log and the tool ledger are the truth, the transcript follows. Calls whose result is known get it; those that nobody
has begun are made, once, by way of the gate; those that have begun and whose end nobody has seen are in doubt, and the
session's `recovery_policy` decides about them. Keeps promise 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.revival import CallResult, Conversation, OpenCall, UnknownTranscriptFormat
from agentrpc.domain.gate import why_denied
from agentrpc.domain.rules import EXIT_PLAN
from agentrpc.domain.states import ApprovalState, RunState
from agentrpc.services.doubt import UNKNOWN_RESULT, finished, told
from agentrpc.services.run_end import Ending
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.endings import failed
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.lifecycle import Asked, RunRecord
from agentrpc.store.log import read_events, read_transcript
from agentrpc.store.runs import LedgerRow
from agentrpc.store.tables import Run
from agentrpc.v1 import event_pb2, session_pb2

__all__ = ["Changed", "Parked", "Plan", "first_plan", "load_conversation", "plan_recovery", "wait_for_upgrade"]

log = structlog.get_logger()

_FAIL = session_pb2.RECOVERY_POLICY_FAIL
_ALWAYS = session_pb2.RECOVERY_POLICY_RESUME_ALWAYS
_Outcome = event_pb2.ToolCallFinished
# Tools that are conversations of their own: what they have begun is in the ledger by itself.
_AGENTS = frozenset({"Agent", "Task", "Workflow"})
_CONTINUE = (
    "The process that carried out this task was lost and has been replaced. Go on with the task from where you were."
)
_LOST_AGENT = "The subagent was lost with the process that ran it. What it has done is done."
_LEFT_OVER = "The run ended before this call had ended. It may have had effects."
_UNKNOWN_FORMAT = (
    "the conversation is in a format that this version does not know: upgrade the workers, then decide with ResolveRun"
)


class Parked:
    """Nothing can be done now: the session was given back."""


class Changed:
    """What is wanted of the session has changed meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next process has to do.

    Attributes:
        conversation: What it goes on from; None: it is not needed when a live process fits.
        prompts: (uuid, text) to be said, in order.
        carry: Calls that it takes up again, in order.
        answers: What people have said about these calls, by tool_use_id.
        attempts: The number of the attempt of those that are made again by a caller's decision, by tool_use_id.
        planned: Whether the run's plan was approved, and the agent knows it.
    """

    conversation: Conversation | None
    prompts: Sequence[tuple[str, str]]
    carry: Sequence[OpenCall] = ()
    answers: Mapping[str, Asked] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    planned: bool = False


def first_plan(run: Run) -> Plan:
    """A run that begins."""
    return Plan(None, [(str(run.id), run.prompt)])


async def load_conversation(hold: Hold) -> Conversation:
    """The stored conversation, with a result for every call that an earlier run has left without one."""
    conversation = Conversation(await hold.patiently(lambda: read_transcript(hold.database, hold.session_id)))
    _settle_left_over(hold, conversation)
    return conversation


def _settle_left_over(hold: Hold, conversation: Conversation) -> None:
    left_over = [CallResult(call.tool_use_id, _LEFT_OVER) for call in conversation.open_calls]
    hold.writer.put_transcript("", conversation.settle(left_over))


async def plan_recovery(
    hold: Hold, run: Run, *, policy: session_pb2.RecoveryPolicy, lost: bool, losses: int
) -> Plan | Ending | Parked | Changed:
    """Find out how a run goes on, and bring log, ledger and transcript together.

    Args:
        hold: The session.
        run: Its run.
        policy: The session's.
        lost: Whether a worker or a process was lost, and not just given back.
        losses: How many in a row.

    Raises:
        LeaseLostError: Another worker has the session.
        UnknownTranscriptFormat: The transcript is not what this version writes.
    """
    record = await hold.patiently(lambda: lifecycle.record_of_run(hold.database, hold.session_id, run.id))
    lines = await hold.patiently(lambda: read_transcript(hold.database, hold.session_id))
    try:
        conversation = Conversation(lines)
    except UnknownTranscriptFormat:
        if lost and policy == _FAIL:
            return _worker_lost()
        raise
    return await _Recovery(hold, run, record, conversation).plan(policy, lost=lost, losses=losses)


def _worker_lost() -> Ending:
    return failed("REASON_WORKER_LOST", "its worker or its process was lost: create the run again")


async def wait_for_decision(hold: Hold, run_id: UUID, doubt: Sequence[LedgerRow], message: str) -> Parked | Changed:
    """Give the session back until a caller has decided how the run goes on."""
    events = await hold.patiently(
        lambda: lifecycle.await_decision(hold.database, hold.session_id, run_id, hold.epoch, doubt, message)
    )
    if events is None:
        return Changed()
    await hold.show(events)
    return Parked()


async def wait_for_upgrade(hold: Hold, run_id: UUID) -> Parked | Changed:
    """As `wait_for_decision`, about a transcript that cannot be read: every call without an end is in doubt."""
    await hold.writer.flush()
    record = await hold.patiently(lambda: lifecycle.record_of_run(hold.database, hold.session_id, run_id))
    doubt = [row for row in record.ledger.values() if row.outcome is None]
    return await wait_for_decision(hold, run_id, doubt, _UNKNOWN_FORMAT)


class _Recovery:
    def __init__(self, hold: Hold, run: Run, record: RunRecord, conversation: Conversation) -> None:
        self._hold = hold
        self._run = run
        self._record = record
        self._conversation = conversation

    async def plan(
        self, policy: session_pb2.RecoveryPolicy, *, lost: bool, losses: int
    ) -> Plan | Ending | Parked | Changed:
        doubt = self._calls_in_doubt()
        if lost and (policy == _FAIL or losses >= lifecycle.MAX_LOSSES):
            self._close(doubt)
            if policy == _FAIL:
                return _worker_lost()
            return failed("REASON_POISON_RUN", f"{losses} workers or processes in a row were lost under it")
        if doubt and policy != _ALWAYS:
            return await self._wait_for_decision(doubt)
        self._close(doubt)
        waiting = await self._wait_for_approvals()
        return waiting if waiting is not None else await self._go_on()

    # ---- What is known ----

    def _calls_in_doubt(self) -> list[LedgerRow]:
        """Calls that have begun and not ended. Those that the transcript knows to have ended, end here."""
        doubt = []
        for row in self._record.ledger.values():
            if row.outcome is not None:
                continue
            result = self._conversation.result_of(row.tool_use_id)
            if result is not None:
                outcome = _Outcome.OUTCOME_FAILED if result.is_error else _Outcome.OUTCOME_SUCCEEDED
                self._put_finished(row, outcome, result.text)
            elif row.tool_name in _AGENTS:
                self._put_finished(row, _Outcome.OUTCOME_INTERRUPTED, _LOST_AGENT)
            else:
                doubt.append(row)
        return doubt

    def _close(self, doubt: Sequence[LedgerRow]) -> None:
        for row in doubt:
            self._put_finished(row, _Outcome.OUTCOME_UNKNOWN, UNKNOWN_RESULT)

    def _put_finished(self, row: LedgerRow, outcome: event_pb2.ToolCallFinished.Outcome, text: str) -> None:
        self._hold.writer.put(finished(row.tool_use_id, row.tool_name, outcome, text))

    # ---- Waiting ----

    async def _wait_for_decision(self, doubt: Sequence[LedgerRow]) -> Parked | Changed:
        await self._hold.writer.flush()
        message = "the outcome of tool calls is unknown: decide with ResolveRun"
        return await wait_for_decision(self._hold, self._run.id, doubt, message)

    async def _wait_for_approvals(self) -> Parked | Changed | None:
        """Cancel those whose call is lost; if others wait, give the session back until they are answered."""
        hold, run_id = self._hold, self._run.id
        open_calls = {call.tool_use_id for call in self._conversation.open_calls}
        pending = [asked for asked in self._record.asked.values() if asked.state is ApprovalState.PENDING]
        orphans = [asked.approval_id for asked in pending if asked.by_subagent or asked.tool_use_id not in open_calls]
        if orphans:
            await hold.show(
                await hold.patiently(
                    lambda: lifecycle.cancel_approvals(hold.database, hold.session_id, run_id, hold.epoch, orphans)
                )
            )
        if len(pending) == len(orphans):
            return None
        await hold.writer.flush()
        parked = await hold.patiently(lambda: lifecycle.park(hold.database, hold.session_id, run_id, hold.epoch))
        return Parked() if parked else Changed()

    # ---- Going on ----

    async def _go_on(self) -> Plan | Ending:
        conversation, record = self._conversation, self._record
        if str(self._run.id) not in conversation:
            _settle_left_over(self._hold, conversation)
            return Plan(conversation, [(str(self._run.id), self._run.prompt), *self._lost_inputs()])
        await self._hold.writer.flush()
        ends = await self._ends()
        results, carry, attempts = [], [], {}
        for call in conversation.open_calls:
            row, asked = record.ledger.get(call.tool_use_id), record.asked.get(call.tool_use_id)
            again = row is not None and row.attempt == record.retry.get(call.tool_use_id)
            if row is not None and row.outcome == _Outcome.OUTCOME_UNKNOWN and again:
                carry.append(call)
                attempts[call.tool_use_id] = row.attempt + 1
            elif call.tool_use_id in ends:
                text, is_error = told(ends[call.tool_use_id])
                results.append(CallResult(call.tool_use_id, text, is_error=is_error))
            elif asked is not None and asked.state in {ApprovalState.DENIED, ApprovalState.EXPIRED}:
                results.append(self._denied(call, asked))
            else:
                carry.append(call)
        self._hold.writer.put_transcript("", conversation.settle(results))
        if any(asked.state is ApprovalState.DENIED and asked.resolution.interrupt for asked in record.asked.values()):
            return Ending(RunState.CANCELLED)
        answers = {key: asked for key, asked in record.asked.items() if asked.state is ApprovalState.ALLOWED}
        carried = {call.tool_use_id for call in carry}
        planned = any(asked.tool_name == EXIT_PLAN for key, asked in answers.items() if key not in carried)
        if carry:
            return Plan(conversation, self._lost_inputs(), carry, answers, attempts, planned)
        said = [(str(clock.uuid7()), self._continuation()), *self._lost_inputs()]
        return Plan(conversation, said, planned=planned)

    async def _ends(self) -> dict[str, event_pb2.ToolCallFinished]:
        """How calls of the run ended, by tool_use_id, as far as the log knows; the newest end of each."""
        if not self._conversation.open_calls:
            return {}
        hold = self._hold
        rows = await hold.patiently(
            lambda: read_events(
                hold.database,
                hold.session_id,
                after=self._run.first_sequence - 1,
                kinds=[event_pb2.Event.TOOL_CALL_FINISHED_FIELD_NUMBER],
                run_id=self._run.id,
                limit=500,
                descending=True,
            )
        )
        ends: dict[str, event_pb2.ToolCallFinished] = {}
        for row in rows:
            end = event_pb2.Event.FromString(row.data).tool_call_finished
            ends.setdefault(end.tool_use_id, end)
        return ends

    def _denied(self, call: OpenCall, asked: Asked) -> CallResult:
        reason = why_denied(asked.state, asked.resolution.message)
        self._hold.writer.put(
            finished(call.tool_use_id, call.tool_name, _Outcome.OUTCOME_DENIED, reason, denied_by="approval")
        )
        return CallResult(call.tool_use_id, reason)

    def _lost_inputs(self) -> list[tuple[str, str]]:
        """Further messages that no process has taken in. The CLI joins those that wait under the id of the last."""
        inputs = [(str(input_id), text) for input_id, text in self._record.inputs]
        known = [index for index, (uuid, _) in enumerate(inputs) if uuid in self._conversation]
        return inputs[known[-1] + 1 :] if known else inputs

    def _continuation(self) -> str:
        message = event_pb2.UserMessage(origin=event_pb2.UserMessage.ORIGIN_AGENT)
        message.blocks.add().text.text = _CONTINUE
        self._hold.writer.put(event_pb2.Event(user_message=message))
        return _CONTINUE
