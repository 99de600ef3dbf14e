"""Fires schedules: what becomes of each slot is decided, and stored, once.

One transaction locks tasks whose slots have come, decides about all of these slots and writes them with their
executions, the counters and the next time. What follows is found in what it has stored, by any scheduler: executions
begin (`task_executions.py`), and those that a later slot is to end are stopped here. So a scheduler may end anywhere.

Any number may run: each passes over the tasks that another has locked. The only clock is the database's.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.bus.redis_bus import Bus
from agentrpc.domain.schedules import Action, decide_each, due, jitter_of
from agentrpc.domain.states import RunState, StopKind
from agentrpc.errors import StoreUnavailable
from agentrpc.services.executions import Ended, Touched, end_execution, stop_execution
from agentrpc.services.schedules import catchup_window, overlap_policy, slot_variables, timetable_of
from agentrpc.services.signals import Doorbell
from agentrpc.store.database import Database, Transaction
from agentrpc.store.schedules import (
    Advance,
    DueTask,
    NewSlot,
    Overlap,
    advance_tasks,
    executions_to_stop,
    forget_slots,
    lock_due_tasks,
    lock_tasks_ahead,
    next_due,
    overlaps,
    record_slots,
    want_stopped,
)
from agentrpc.store.tasks import lock_execution, lock_task
from agentrpc.v1 import task_pb2

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Firing"]

log = structlog.get_logger()

_BATCH = 200
_MAX_SLOTS = 1000
_STOPPED_AT_ONCE = 64
_FORGOTTEN_AT_ONCE = 5000
_REST_SECONDS = 60.0
_SUPERSEDED = "the next slot of the schedule has come"


class Firing:
    """The use cases of the scheduler.

    Args:
        database: The store.
        bus: Shows watchers what happens.
        doorbell: Is rung when a run is to stop.
        ended: Is told of executions that have ended.
    """

    def __init__(self, database: Database, bus: Bus, doorbell: Doorbell, ended: Ended) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = doorbell
        self._ended = ended
        # (task, next slot) of zones that this machine does not know, and until when it leaves them alone. They stay as
        # they are: another scheduler may know the zone, or this one some day, and then deals with all of their slots.
        self._unknown: dict[tuple[UUID, datetime], float] = {}

    async def fire(self) -> int:
        """Deal with slots that have come, of some tasks; how many tasks there were."""
        now = clock.monotonic()
        self._unknown = {key: until for key, until in self._unknown.items() if until > now}
        async with self._database.transaction() as tx:
            tasks = await lock_due_tasks(tx, _BATCH, self._unknown)
            if not tasks:
                return 0
            met = await overlaps(tx, [task.id for task in tasks])
            plans, unknown = _plans(tasks, met)
            slots = [slot for plan in plans for slot in plan.slots]
            counts = await record_slots(
                tx, slots, {plan.advance.task_id: plan.variables for plan in plans if plan.slots}
            )
            await advance_tasks(tx, [_counted(plan.advance, counts) for plan in plans])
            for kind in (StopKind.INTERRUPT, StopKind.CANCEL):
                if stopped := [plan.advance.task_id for plan in plans if plan.stop is kind]:
                    await want_stopped(tx, stopped, kind)
        self._unknown |= {(task.id, task.next_slot_time): now + _REST_SECONDS for task in unknown}
        return len(plans) + len(unknown)

    async def stop(self) -> int:
        """Stop executions for which a later slot waits; how many there were."""
        async with self._database.transaction() as tx:
            found = await executions_to_stop(tx, _STOPPED_AT_ONCE)
        for task_id, execution_id in found:
            touched = None
            try:
                async with self._database.transaction() as tx:
                    touched = await self._stop(tx, task_id, execution_id)
            except StoreUnavailable:
                raise
            except Exception:
                # It is tried again in the next round, and holds nobody up.
                log.exception("execution_not_stopped", execution=str(execution_id))
            if touched is not None:
                await touched.announce(self._bus, self._doorbell)
        return len(found)

    async def _stop(self, tx: Transaction, task_id: UUID, execution_id: UUID) -> Touched | None:
        task = await lock_task(tx, task_id)
        row = await lock_execution(tx, execution_id)
        if task is None or row is None or row.stop is None:
            return None
        kind, row.stop = StopKind(row.stop), None
        if row.state == "PENDING":
            await end_execution(tx, task, row, RunState.CANCELLED, self._ended)
            return None
        return await stop_execution(tx, row, kind, _SUPERSEDED) if row.state == "STARTED" else None

    async def seconds_to_next(self) -> float:
        """How long until the next slot of any task: below 0 when it has come, infinite when there is none."""
        async with self._database.transaction() as tx:
            now, slot = await next_due(tx, self._unknown)
        return (slot - now).total_seconds() if slot is not None else float("inf")

    async def follow_clock(self) -> int:
        """Let schedules go on whose slots were dealt with before their time, by a clock that has been put back.

        Slots that were dealt with then are passed over when their time comes.
        """
        async with self._database.transaction() as tx:
            tasks = await lock_tasks_ahead(tx, _BATCH)
            moved = []
            for task in tasks:
                # Where its zone has gone, `fire` says so.
                slot: datetime | None = task.now
                with suppress(ValueError):
                    slot = timetable_of(task_pb2.Task.FromString(task.spec).schedule).next(task.now)
                moved.append(Advance(task.id, slot, task.now))
            if moved:
                await advance_tasks(tx, moved)
        return len(tasks)

    async def forget(self) -> None:
        """Delete slots of long ago."""
        while True:
            async with self._database.transaction() as tx:
                if await forget_slots(tx, _FORGOTTEN_AT_ONCE) < _FORGOTTEN_AT_ONCE:
                    return


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to become of the slots of one task that have come."""

    advance: Advance
    slots: Sequence[NewSlot] = ()
    variables: str = ""
    stop: StopKind | None = None


def _plans(tasks: Sequence[DueTask], met: Mapping[UUID, Overlap]) -> tuple[list[_Plan], list[DueTask]]:
    """Of the first tasks: those behind so many slots are for the next transaction. And those of unknown zones."""
    plans: list[_Plan] = []
    unknown: list[DueTask] = []
    count = 0
    for task in tasks:
        if count >= _MAX_SLOTS:
            break
        if (plan := _plan(task, met.get(task.id, Overlap()))) is None:
            unknown.append(task)
        else:
            plans.append(plan)
            count += len(plan.slots)
    return plans, unknown


def _plan(task: DueTask, met: Overlap) -> _Plan | None:
    """None: this machine does not know its zone."""
    spec = task_pb2.Task.FromString(task.spec)
    schedule = spec.schedule
    try:
        timetable = timetable_of(schedule)
    except ValueError as error:
        log.error("schedule_not_fired", task=str(task.id), error=str(error))  # noqa: TRY400 - the message says it
        return None
    come = due(timetable, task.next_slot_time, task.now, catchup_window(schedule))
    jitter = schedule.jitter.ToTimedelta()
    decisions = decide_each(overlap_policy(schedule.overlap_policy), len(come.slots), met.under_way, met.buffered)
    slots = []
    for nominal, decision in zip(come.slots, decisions, strict=True):
        if decision.action is Action.SKIP:
            slots.append(NewSlot(task.id, nominal))
            continue
        due_time = nominal + jitter_of(task.id, nominal, jitter) if jitter else None
        waits = decision.action is Action.BUFFER
        slots.append(NewSlot(task.id, nominal, clock.uuid7(), task.owner, due_time, waits))
    stop = next((decision.stop for decision in decisions if decision.stop is not None), None)
    variables = slot_variables(spec) if slots else ""
    return _Plan(Advance(task.id, come.next, come.last, missed=come.missed), slots, variables, stop)


def _counted(advance: Advance, counts: Mapping[UUID, tuple[int, int]]) -> Advance:
    fired, skipped = counts.get(advance.task_id, (0, 0))
    return replace(advance, fired=fired, skipped=skipped)
