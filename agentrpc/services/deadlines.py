"""Deadlines of runs that nobody drives. A worker keeps the time-outs of the runs that it drives itself."""

from datetime import timedelta
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.states import TERMINAL_RUN_STATES, RunState, StopKind
from agentrpc.errors import AgentRpcError
from agentrpc.names import run_name
from agentrpc.services.run_end import Ending, conclude, stop_run
from agentrpc.services.signals import Doorbell, publish
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.leases import lock_head
from agentrpc.store.log import StoredEvent
from agentrpc.store.runs import overdue_runs
from agentrpc.store.tables import Run
from agentrpc.v1 import run_pb2

__all__ = ["Deadlines"]

log = structlog.get_logger()

_AT_ONCE = 50


class Deadlines:
    """The use case of the scheduler.

    Args:
        database: The store.
        bus: The live tail.
        doorbell: Is rung when a session's next run may begin.
        settings: `decision_timeout`.
    """

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._patience = timedelta(seconds=settings.decision_timeout)

    async def enforce(self) -> int:
        """End runs past their time-out or that were to stop, and those about which nobody has decided.

        Returns how many were looked at. Any number of schedulers may do this.
        """
        async with self._database.transaction() as tx:
            now = clock.utcnow()
            overdue = await overdue_runs(tx, now, doubt_before=now - self._patience, limit=_AT_ONCE)
        for session_id, run_id in overdue:
            try:
                async with self._database.transaction() as tx:
                    events, worker = await self._end(tx, session_id, run_id)
            except AgentRpcError:
                raise
            except Exception:
                # One that cannot be ended does not keep the others.
                log.exception("run_not_ended", run=run_name(session_id, run_id))
                continue
            await self._doorbell.ring(session_id, worker)
            await publish(self._bus, session_id, events)
        return len(overdue)

    async def _end(self, tx: Transaction, session_id: UUID, run_id: UUID) -> tuple[list[StoredEvent], UUID | None]:
        head = await lock_head(tx, session_id)
        run = await tx.get(Run, run_id)
        if head is None or run is None or run.state in TERMINAL_RUN_STATES:
            return [], None
        now = clock.utcnow()
        events: list[StoredEvent] = []
        if head.stop_run == run_id and head.stop_kind is not None:
            # Whoever was to stop it is dead.
            events = await stop_run(tx, head, run, StopKind(head.stop_kind))
        elif run.timeout is not None and run.start_time is not None and now >= run.start_time + run.timeout:
            events = await stop_run(tx, head, run, StopKind.EXPIRE)
        elif run.doubt_time is not None and now >= run.doubt_time + self._patience:
            events = await conclude(tx, head, run, _undecided(self._patience))
        return events, head.worker


def _undecided(patience: timedelta) -> Ending:
    message = (
        f"the outcome of tool calls was unknown and nobody decided within {patience}: find out, then retry the run"
    )
    return Ending(
        RunState.FAILED,
        error=run_pb2.RunError(reason=run_pb2.RunError.REASON_UNDECIDED, message=message, retryable=True),
    )
