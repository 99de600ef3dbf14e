"""Accepting a run: the limits of the queue, and what becomes of the runs before it."""

from collections.abc import Sequence

from agentrpc import clock
from agentrpc.domain.isolation import Level, needed_level
from agentrpc.domain.principal import Principal
from agentrpc.domain.states import SUPERSEDING, RunState, StopKind
from agentrpc.errors import ResourceExhausted
from agentrpc.services.approvals import session_state_event
from agentrpc.services.run_end import cancel_queued, stop_run
from agentrpc.services.sessions import busy, not_active
from agentrpc.services.views import head_state
from agentrpc.store.database import Transaction
from agentrpc.store.log import StoredEvent, append_control
from agentrpc.store.runs import newest_queued, superseding_queued
from agentrpc.store.tables import Run, Session, SessionHead
from agentrpc.v1 import run_pb2, session_pb2

__all__ = ["accept", "check_acceptable", "new_run"]


async def new_run(tx: Transaction, principal: Principal, head: SessionHead, given: run_pb2.Run) -> Run:
    """A queued run as a caller wants it, after all that wait. The caller holds the head row's lock."""
    if head.queued and (newest := await newest_queued(tx, head.session_id)) is not None:
        # By the clock of another edge, perhaps. Runs are carried out in the order of their ids.
        clock.follow(newest)
    policy = run_pb2.Run.ConflictPolicy.Name(given.conflict_policy).removeprefix("CONFLICT_POLICY_")
    return Run(
        id=clock.uuid7(),
        session_id=head.session_id,
        creator=principal.user_id,
        state=RunState.QUEUED,
        prompt=given.prompt,
        conflict_policy="ENQUEUE" if policy == "UNSPECIFIED" else policy,
        timeout=given.timeout.ToTimedelta() if given.HasField("timeout") else None,
        inactivity_timeout=given.inactivity_timeout.ToTimedelta() if given.HasField("inactivity_timeout") else None,
        labels=dict(given.labels),
        attempt=0,
        first_sequence=0,
        last_sequence=0,
        create_time=clock.utcnow(),
    )


async def check_acceptable(tx: Transaction, head: SessionHead, run: Run, limit: int) -> Sequence[Run]:
    """Check whether a session takes a run now.

    Returns:
        The runs that wait and that this one supersedes.

    Raises:
        FailedPrecondition: SESSION_NOT_ACTIVE, SESSION_BUSY.
        ResourceExhausted: QUEUE_FULL.
    """
    if head.closed is not None:
        raise not_active(head)
    if run.conflict_policy == "REJECT" and (head.active_run is not None or head.queued):
        raise busy(head)
    superseded = await superseding_queued(tx, head.session_id) if run.conflict_policy in SUPERSEDING else []
    waiting = head.queued - len(superseded)
    if waiting >= limit:
        raise ResourceExhausted(
            f"{waiting} runs wait in the session already: wait for some to end",
            reason="QUEUE_FULL",
            metadata={"limit": str(limit)},
        )
    return superseded


async def accept(tx: Transaction, head: SessionHead, run: Run, limit: int, minimum: Level) -> list[StoredEvent]:
    """Put a run into the queue and do what its conflict policy says. The caller holds the head row's lock.

    Args:
        tx: The transaction.
        head: The head of the session.
        run: The run.
        limit: How many may wait.
        minimum: The level of isolation that the operator demands of all.

    Returns:
        The events, to be published after the commit; ring the doorbell then.

    Raises:
        AgentRpcError: As `check_acceptable`.
    """
    superseded = await check_acceptable(tx, head, run, limit)
    before = head_state(head)
    tx.add(run)
    session = await tx.get_one(Session, head.session_id)
    # Each time: what the operator demands may have changed since the session was made.
    head.needed_level = needed_level(session_pb2.SessionOptions.FromString(session.options), minimum)
    head.queued += 1
    head.run_count += 1
    head.queued_since = head.queued_since or run.create_time
    await tx.flush()
    events: list[StoredEvent] = []
    if change := session_state_event(before, head_state(head)):
        events += await append_control(tx, head.session_id, change)
    if run.conflict_policy in SUPERSEDING:
        events += await _make_way(tx, head, run, superseded)
    return events


async def _make_way(tx: Transaction, head: SessionHead, run: Run, superseded: Sequence[Run]) -> list[StoredEvent]:
    """End what comes before a run that is to be carried out at once."""
    events: list[StoredEvent] = []
    for other in superseded:
        events += await cancel_queued(tx, head, other)
    if run.conflict_policy == "ROLLBACK":
        # What was to be rolled back by a run that is superseded itself still is.
        rewinds = [other.rewind_to for other in superseded if other.rewind_to is not None]
        run.rewind_to = head.active_run or (rewinds[-1] if rewinds else None)
    if head.active_run is not None:
        events += await stop_run(tx, head, await tx.get_one(Run, head.active_run), StopKind.INTERRUPT)
    return events
