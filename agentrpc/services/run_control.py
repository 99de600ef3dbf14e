"""Runs under way: deciding about calls in doubt, further messages, and making a run again."""

from collections.abc import Iterable, Sequence

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.isolation import Level
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import RunState
from agentrpc.errors import FailedPrecondition, ResourceExhausted
from agentrpc.names import parse_run
from agentrpc.services import approvals
from agentrpc.services.acceptance import accept, new_run
from agentrpc.services.access import require_write
from agentrpc.services.doubt import UNKNOWN_RESULT
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.run_end import Ending, conclude, finish_call_events
from agentrpc.services.runs import describe_run, load_run
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.validation import Faults, check_decision, check_prompt, request_uuid
from agentrpc.services.views import head_state
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import LogEvent, StoredEvent, append_control
from agentrpc.store.runs import LedgerRow, ledger_of_run, newest_input
from agentrpc.store.tables import Run, RunInput, SessionHead
from agentrpc.v1 import event_pb2, run_pb2, run_service_pb2

__all__ = ["RunControl"]

_Decision = run_service_pb2.ResolveRunRequest
_Outcome = event_pb2.ToolCallFinished
_RETRYABLE = {RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED}
_UNDER_WAY = {RunState.RUNNING, RunState.REQUIRES_ACTION}
_MAX_INPUTS = 100
_SAID = {
    _Decision.DECISION_RESUME: "the model is told that outcomes are unknown",
    _Decision.DECISION_RETRY_CALLS: "the calls in doubt are made again",
    _Decision.DECISION_ASSUME_DONE: "the calls in doubt are taken as done",
}


class RunControl:
    """The use cases."""

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._settings = settings

    async def retry(self, principal: Principal, request: run_service_pb2.RetryRunRequest) -> run_pb2.Run:
        """RetryRun."""
        session_id, run_id = parse_run(request.name)
        require_write(principal, "runs.retry")
        key = RequestKey(principal, "RetryRun", request_uuid(request.request_id), request_hash(request))
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            origin, _ = await load_run(tx, principal, session_id, run_id)
            assert head is not None
            if origin.state not in _RETRYABLE:
                raise _state_invalid(origin, "only one that failed, expired or was cancelled can be made again")
            given = run_pb2.Run(prompt=origin.prompt, labels=origin.labels)
            if origin.timeout is not None:
                given.timeout.FromTimedelta(origin.timeout)
            if origin.inactivity_timeout is not None:
                given.inactivity_timeout.FromTimedelta(origin.inactivity_timeout)
            run = await new_run(tx, principal, head, given)
            run.retry_of = origin.id
            if known := await known_request(tx, key, run.id):
                return await describe_run(tx, await tx.get_one(Run, known), head)
            minimum = Level.named(self._settings.minimum_isolation)
            events = await accept(tx, head, run, self._settings.max_queued_runs, minimum)
            message = await describe_run(tx, run, head, changed=True)
            worker = head.worker
        await self._doorbell.ring(session_id, worker)
        await publish(self._bus, session_id, events)
        return message

    async def resolve(self, principal: Principal, request: run_service_pb2.ResolveRunRequest) -> run_pb2.Run:
        """ResolveRun: the first decision counts; the same decision again changes nothing."""
        session_id, run_id = parse_run(request.name)
        require_write(principal, "runs.resolve")
        check_decision(request)
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            run, _ = await load_run(tx, principal, session_id, run_id)
            assert head is not None
            if run.state != RunState.UNKNOWN_OUTCOME:
                if run.decision is not None and _same(_Decision.FromString(run.decision), request):
                    return await describe_run(tx, run, head)
                raise _state_invalid(run, "only one in UNKNOWN_OUTCOME waits for a decision")
            doubt = [row for row in (await ledger_of_run(tx, session_id, run_id)).values() if row.outcome is None]
            events = await _decide(tx, head, run, request, doubt)
            message = await describe_run(tx, run, head, changed=True)
            worker = head.worker
        await self._doorbell.ring(session_id, worker)
        await publish(self._bus, session_id, events)
        return message

    async def steer(self, principal: Principal, request: run_service_pb2.SteerRunRequest) -> run_pb2.Run:
        """SteerRun."""
        session_id, run_id = parse_run(request.name)
        require_write(principal, "runs.steer")
        faults = Faults()
        check_prompt("text", request.text, faults)
        faults.done()
        key = RequestKey(principal, "SteerRun", request_uuid(request.request_id), request_hash(request))
        async with self._database.transaction() as tx:
            head = await lock_head(tx, session_id)
            run, _ = await load_run(tx, principal, session_id, run_id)
            assert head is not None
            # Made under the lock, and after those of other edges: they are delivered in the order of their ids.
            if head.inputs and (newest := await newest_input(tx, run_id)) is not None:
                clock.follow(newest)
            input_id = clock.uuid7()
            if await known_request(tx, key, input_id):
                return await describe_run(tx, run, head)
            if run.state not in _UNDER_WAY:
                raise _state_invalid(run, "only one that is under way can be told more")
            if head.stop_run == run_id:
                raise _state_invalid(run, "it is about to be stopped: create another run")
            if head.inputs >= _MAX_INPUTS:
                raise ResourceExhausted(
                    f"{head.inputs} messages wait for the run already: wait until it has read them",
                    reason="QUEUE_FULL",
                    metadata={"limit": str(_MAX_INPUTS)},
                )
            now = clock.utcnow()
            tx.add(RunInput(id=input_id, session_id=session_id, run_id=run_id, text=request.text, create_time=now))
            head.inputs += 1
            message = await describe_run(tx, run, head, changed=True)
            worker = head.worker
        await self._doorbell.ring(session_id, worker)
        return message


async def _decide(
    tx: Transaction,
    head: SessionHead,
    run: Run,
    request: run_service_pb2.ResolveRunRequest,
    doubt: Sequence[LedgerRow],
) -> list[StoredEvent]:
    """Let a run in UNKNOWN_OUTCOME go on, or end it; nobody drives it. The caller holds the head row's lock."""
    before = head_state(head)
    decision = _Decision(decision=request.decision)
    events: list[LogEvent] = []
    if request.decision == _Decision.DECISION_ASSUME_DONE:
        decision.results.extend(_in_order(request.results, doubt))
        for row, result in zip(doubt, decision.results, strict=True):
            outcome = _Outcome.OUTCOME_FAILED if result.failed else _Outcome.OUTCOME_SUCCEEDED
            events += await finish_call_events(tx, run, [row], outcome, result.text)
    else:
        # Which attempt it was decides whether a later loss needs a decision of its own.
        decision.results.extend(
            _Decision.CallResult(tool_use_id=row.tool_use_id, text=str(row.attempt)) for row in doubt
        )
    run.decision = decision.SerializeToString()
    if request.decision == _Decision.DECISION_ABANDON:
        return await conclude(tx, head, run, Ending(RunState.CANCELLED))
    if request.decision != _Decision.DECISION_ASSUME_DONE:
        events += await finish_call_events(tx, run, doubt, _Outcome.OUTCOME_UNKNOWN, UNKNOWN_RESULT)
    head.in_doubt = False
    run.doubt_time = None
    events.append(approvals.run_state_event(run, RunState.RUNNING, _SAID[request.decision]))
    events += approvals.session_state_event(before, head_state(head))
    await tx.flush()
    return await append_control(tx, head.session_id, events)


def _in_order(
    results: Iterable[run_service_pb2.ResolveRunRequest.CallResult], doubt: Sequence[LedgerRow]
) -> list[run_service_pb2.ResolveRunRequest.CallResult]:
    """The result of each call in doubt. Raises FIELD_INVALID unless there is exactly one for each."""
    given = {result.tool_use_id: result for result in results}
    wanted = [row.tool_use_id for row in doubt]
    faults = Faults()
    for missing in sorted({*wanted} - given.keys()):
        faults.add("results", f"there is none for {missing}: each of in_doubt_calls needs one")
    for index, tool_use_id in enumerate(given):
        where = f"results[{index}].tool_use_id"
        faults.check(tool_use_id in wanted, where, f"{tool_use_id[:80]!r} is not one of in_doubt_calls")
    faults.done()
    return [given[tool_use_id] for tool_use_id in wanted]


def _same(stored: run_service_pb2.ResolveRunRequest, request: run_service_pb2.ResolveRunRequest) -> bool:
    if stored.decision != request.decision or request.decision != _Decision.DECISION_ASSUME_DONE:
        return stored.decision == request.decision
    said = [{result.tool_use_id: result for result in one.results} for one in (stored, request)]
    return said[0] == said[1]


def _state_invalid(run: Run, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the run is {run.state}: {why}", reason="STATE_INVALID", metadata={"state": f"STATE_{run.state}"}
    )
