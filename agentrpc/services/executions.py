"""Executions: tasks that are, were, or are to be carried out once.

An execution begins in one transaction: its session, the head of that, its run and its link to both, under its row's
lock. It ends once: whoever ends it, or is told of the end of its run, does so under the locks of its task and of itself
and counts it in that transaction.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.isolation import Level
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import TERMINAL_RUN_STATES, RunState, StopKind
from agentrpc.names import execution_name
from agentrpc.services.acceptance import accept, new_run
from agentrpc.services.agent_options import resolve_options
from agentrpc.services.run_end import stop_run, sum_usage
from agentrpc.services.sessions import add_session, new_session
from agentrpc.services.signals import Doorbell, publish
from agentrpc.services.task_views import task_spec
from agentrpc.store.database import Transaction, database_time
from agentrpc.store.leases import lock_head
from agentrpc.store.log import StoredEvent
from agentrpc.store.outbox import Message, tell
from agentrpc.store.runs import has_unknown_calls
from agentrpc.store.tables import Run
from agentrpc.store.tasks import (
    ExecutionRow,
    TaskRow,
    execution_of_run,
    lock_execution,
    lock_task,
)
from agentrpc.v1 import common_pb2, event_pb2, run_pb2, session_pb2

__all__ = [
    "EXECUTION_LABEL",
    "TASK_LABEL",
    "Ended",
    "Touched",
    "begin_execution",
    "end_execution",
    "new_execution",
    "settle",
    "stop_execution",
]

# Of the sessions and runs of executions, beside the task's own.
TASK_LABEL = "agentrpc.dev/task"
EXECUTION_LABEL = "agentrpc.dev/execution"

# With a topic, and the name of the execution, in the outbox.
_TOPIC = "task_execution_ended"
_BACKOFF = timedelta(seconds=10)
_LONGEST_BACKOFF = timedelta(hours=1)

# Told of an execution that has ended, and of the one by which it is tried again, in the transaction that ends it and
# holds the locks of the task and the execution.
Ended: TypeAlias = Callable[[Transaction, TaskRow, ExecutionRow, ExecutionRow | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Touched:
    """A session that a transaction has changed, and what is to follow its commit."""

    session_id: UUID
    worker: UUID | None
    events: Sequence[StoredEvent]

    async def announce(self, bus: Bus, doorbell: Doorbell) -> None:
        """Ring for the session, and show watchers what is new."""
        await doorbell.ring(self.session_id, self.worker)
        await publish(bus, self.session_id, self.events)


def new_execution(
    tx: Transaction,
    task: TaskRow,
    *,
    trigger: str,
    creator: UUID,
    variables: str,
    execution_id: UUID | None = None,
    slot_time: datetime | None = None,
    due_time: datetime | None = None,
    buffered: bool = False,
    backfill_id: UUID | None = None,
    retry_of: UUID | None = None,
    attempt: int = 1,
) -> ExecutionRow:
    """An execution that has not begun. The caller holds the lock of the task's row, which counts it.

    Args:
        tx: The transaction.
        task: The task.
        trigger: MANUAL, SCHEDULE, BACKFILL or RETRY.
        creator: The owner of its session.
        variables: All of them, defaults included, as the text of a JSON object that was checked.
        execution_id: Its id; None: a new one.
        slot_time: The slot.
        due_time: It does not begin before; None: it begins at once.
        buffered: It waits until it is told that it may begin.
        backfill_id: The back-fill that made it.
        retry_of: The execution that it repeats.
        attempt: 1, and 1 more for each retry by the retry policy.
    """
    row = ExecutionRow(
        id=execution_id or clock.uuid7(),
        task_id=task.id,
        trigger=trigger,
        creator=creator,
        variables=variables,
        state="PENDING",
        slot_time=slot_time,
        due_time=due_time,
        buffered=buffered,
        backfill_id=backfill_id,
        agent="",
        attempt=attempt,
        retry_of=retry_of,
        tries=0,
        stopped=False,
        create_time=clock.utcnow(),
    )
    tx.add(row)
    task.execution_count += 1
    return row


async def begin_execution(
    tx: Transaction, task: TaskRow, execution: ExecutionRow, principal: Principal, prompt: str, minimum: Level
) -> Touched:
    """Make the session and the run of an execution that is PENDING. The caller holds its row's lock.

    Args:
        tx: The transaction.
        task: Its task.
        execution: The execution.
        principal: Its creator.
        prompt: What the task's template says with its variables.
        minimum: The level of isolation that the operator demands of all.

    Raises:
        InvalidArgument: The options are too much together.
        NotFound: The agent or a tool group is not there any more, or not for the creator.
    """
    assert execution.state == "PENDING"
    spec = task_spec(task)
    resolved = await resolve_options(
        tx, principal, spec.agent, spec.options, spec.tool_groups, author=task.owner, field="task"
    )
    labels = {**spec.labels, TASK_LABEL: str(task.id), EXECUTION_LABEL: str(execution.id)}
    given = session_pb2.Session(display_name=spec.display_name, description=spec.description, labels=labels)
    session, head = new_session(clock.uuid7(), execution.creator, given, resolved)
    await add_session(tx, session, head)
    wanted = run_pb2.Run(prompt=prompt, labels=labels)
    for name in ("timeout", "inactivity_timeout"):
        if spec.HasField(name):
            getattr(wanted, name).CopyFrom(getattr(spec, name))
    run = await new_run(tx, principal, head, wanted)
    execution.state = "STARTED"
    execution.session_id, execution.run_id = session.id, run.id
    execution.agent = resolved.agent_version_name
    events = await accept(tx, head, run, limit=1, minimum=minimum)
    return Touched(session.id, None, events)


async def stop_execution(tx: Transaction, execution: ExecutionRow, kind: StopKind, reason: str = "") -> Touched | None:
    """Stop the run of an execution that is STARTED; the end of the run ends the execution.

    The caller holds its row's lock. None: the run has ended already.
    """
    assert execution.session_id is not None
    execution.stopped = True
    head = await lock_head(tx, execution.session_id)
    assert head is not None
    run = await tx.get_one(Run, execution.run_id, populate_existing=True)
    if run.state in TERMINAL_RUN_STATES:
        return None
    run.interrupt_reason = reason
    events = await stop_run(tx, head, run, kind)
    return Touched(execution.session_id, head.worker, events)


async def settle(tx: Transaction, message: Message, ended: Ended) -> None:
    """Deal with a message of the outbox: the end of a run ends its execution. Told again, it changes nothing."""
    if message.topic != "run_ended" or message.run_id is None:
        return
    known = await execution_of_run(tx, message.run_id)
    if known is None:
        return
    task = await lock_task(tx, known.task_id)
    execution = await lock_execution(tx, known.id)
    assert task is not None
    assert execution is not None
    if execution.state != "STARTED":
        return
    run = await tx.get_one(Run, message.run_id, populate_existing=True)
    await end_execution(tx, task, execution, RunState(run.state), ended, run=run)


async def end_execution(
    tx: Transaction,
    task: TaskRow,
    execution: ExecutionRow,
    state: RunState,
    ended: Ended,
    *,
    run: Run | None = None,
    error: run_pb2.RunError | None = None,
) -> None:
    """End an execution and count it. The caller holds the locks of both rows, and has seen that it has not ended.

    Args:
        tx: The transaction.
        task: Its task.
        execution: The execution.
        state: How it ends: terminal.
        ended: Is told, unless the task is deleted.
        run: Its run; None: it has not begun.
        error: Why it could not begin.
    """
    assert state in TERMINAL_RUN_STATES
    execution.state = state
    execution.end_time = clock.utcnow() if run is None else run.end_time
    if error is not None:
        execution.error = error.SerializeToString()
    if state is RunState.SUCCEEDED:
        task.succeeded_count += 1
    elif state is RunState.CANCELLED:
        task.cancelled_count += 1
    else:
        task.failed_count += 1
    if run is not None:
        _add_up(task, run)
    retry = None
    # What was to be stopped is not tried again, also when its run ended by itself just before.
    wanted = task.delete_time is None and not execution.stopped
    if wanted and run is not None and await _may_retry(tx, state, run):
        retry = await _retry(tx, task, execution)
    tell(tx, _TOPIC, execution.creator, execution_name(task.id, execution.id))
    if task.delete_time is None:
        await ended(tx, task, execution, retry)


def _add_up(task: TaskRow, run: Run) -> None:
    if run.start_time is not None and run.end_time is not None:
        task.timed_count += 1
        task.duration += run.end_time - run.start_time
    if run.usage:
        total = common_pb2.Usage.FromString(task.usage)
        sum_usage(total, event_pb2.RunEnded.FromString(run.usage).usage)
        task.usage = total.SerializeToString()


async def _may_retry(tx: Transaction, state: RunState, run: Run) -> bool:
    """Whether the same prompt may be tried again without asking anybody."""
    failed = state is RunState.FAILED and run.error is not None
    if state is not RunState.EXPIRED and not (failed and run_pb2.RunError.FromString(run.error or b"").retryable):
        return False
    # What has perhaps been done already is for people to decide.
    return run.doubt_time is None and not await has_unknown_calls(tx, run.session_id, run.id)


async def _retry(tx: Transaction, task: TaskRow, execution: ExecutionRow) -> ExecutionRow | None:
    """The execution by which the task's retry policy tries one again."""
    policy = task_spec(task).retry_policy
    if execution.attempt >= policy.max_attempts:
        return None
    wait = policy.backoff.ToTimedelta() if policy.HasField("backoff") else _BACKOFF
    wait = min(wait * 2 ** (execution.attempt - 1), _LONGEST_BACKOFF)
    return new_execution(
        tx,
        task,
        trigger="RETRY",
        creator=execution.creator,
        variables=execution.variables,
        slot_time=execution.slot_time,
        due_time=await database_time(tx) + wait,
        backfill_id=execution.backfill_id,
        retry_of=execution.id,
        attempt=execution.attempt + 1,
    )
