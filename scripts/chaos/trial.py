"""One trial: traffic, a fault, and what the checker finds when everything has ended."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from agentrpc.ending import end_tasks
from scripts.chaos.checker import check
from scripts.chaos.moment import FAULTS, Moment, Skip
from scripts.chaos.traffic import Traffic
from scripts.chaos.world import World

__all__ = ["Size", "Trial", "try_fault"]

_ENDS_WITHIN = 90.0
_ACCEPTED_WITHIN = 240.0
_SHOWN = 20


@dataclass(frozen=True)
class Size:
    """How much happens in a trial: sessions at once, and whether it is to be over soon."""

    sessions: int
    short: bool = False


@dataclass
class Trial:
    """What came of it."""

    skipped: str = ""
    struck: tuple[int, str] = (0, "strikes")
    amount: str = ""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        """Whether nothing happened that can be told of."""
        return not self.skipped and not self.violations and not self.struck[0]

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        told = f"{len(self.violations)} VIOLATIONS" if self.violations else "MISSED" if self.missed else "ok"
        lines = [f"{told}, {self.struck[0]} {self.struck[1]} ({self.amount}; {self.seconds:.1f} s)"]
        return "\n    ".join([*lines, *self.violations[:_SHOWN]])


async def try_fault(service: World, name: str, seed: int, size: Size) -> Trial:
    """One fault under traffic."""
    trial, began = Trial(), time.monotonic()
    traffic = Traffic(service, seed, short=size.short)
    moment = Moment(service, traffic, seed + 1, short=size.short)
    talking = asyncio.create_task(traffic.run(size.sessions))
    waiting: list[str] = []
    try:
        await moment.pause(0.5)
        async with asyncio.timeout(_ACCEPTED_WITHIN):
            trial.struck = await FAULTS[name].strike(moment)
            await talking
        waiting = await traffic.until_ended(_ENDS_WITHIN)
    except Skip as reason:
        trial.skipped = str(reason)
    except TimeoutError:
        waiting = traffic.waiting
        traffic.failures.append(f"clients and fault were not done after {_ACCEPTED_WITHIN:.0f} s")
    finally:
        await end_tasks([talking])
        catching_up = await traffic.stop()
    if not trial.skipped:
        trial.violations = await check(service, traffic, waiting, catching_up, FAULTS[name].may)
        trial.amount = await _amount(service, traffic)
    trial.seconds = time.monotonic() - began
    return trial


async def _amount(service: World, traffic: Traffic) -> str:
    """How much happened."""
    ids = ", ".join(f"'{session.name.rpartition('/')[2]}'" for session in traffic.sessions)
    rows = await service.execute(f"SELECT state, attempt FROM runs WHERE session_id IN ({ids})")
    states = Counter(row[0] for row in rows)
    again = sum(row[1] > 1 for row in rows)
    calls = await service.execute(f"SELECT count(*) FROM tool_calls WHERE session_id IN ({ids})")
    seen = sum(len(seen) for session in traffic.sessions for seen in session.watchers.values())
    told = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    return (
        f"{len(rows)} runs: {told}; {again} taken up again; {calls[0][0]} calls, {seen} events seen,"
        f" at most {traffic.lag:.1f} s late"
    )
