"""`./scripts/faults --prove`: the service is broken on purpose, one promise at a time, and the checker has to notice.

Each mutation is made in a copy of the package which the processes of a service run, never in the checkout.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts.chaos.trial import Size, try_fault
from scripts.chaos.world import world

__all__ = ["prove"]

_TRIALS = 20
# What a slow machine may show too is no proof.
_OF_TIME = ("watchers needed", " s late", " took ", "were not done after")

_LOG = "agentrpc/store/log.py"
_GATE = "agentrpc/services/session_host/gate.py"
_LEASES = "agentrpc/store/leases.py"
_WRITER = "agentrpc/services/session_host/writer.py"
_RECOVERY = "agentrpc/services/session_host/recovery.py"
_RUN_END = "agentrpc/services/run_end.py"
_COMMIT = "await self._writer.commit(event, started=StartedCall("
_PUT_STARTED = """\
    def put_started(self, event: event_pb2.Event, *, started: StartedCall) -> None:
        data = self._serialize(event)
        self._add(_Durable(LogEvent(self.run_id, _KINDS["tool_call_started"], data), started, None), len(data))

"""


@dataclass(frozen=True)
class Mutation:
    """What is broken, and which faults bring it to light.

    Attributes:
        what: In words.
        changes: (file, text, text in its place).
        faults: Tried in turn.
    """

    what: str
    changes: tuple[tuple[str, str, str], ...]
    faults: tuple[str, ...]

    def make(self, code: Path) -> None:
        """Break the package in this folder."""
        for name, text, instead in self.changes:
            source = (code / name).read_text()
            if text not in source:
                raise LookupError(f"{name} has changed, so the mutation has to change too: no {text!r}")
            (code / name).write_text(source.replace(text, instead))


MUTATIONS = (
    Mutation(
        "fencing: a stale epoch is not refused, neither by the append nor by transitions of the head",
        (
            (_LOG, "AND epoch = $2 AND batch = $3 - 1", "AND (epoch <> $2 OR batch = $3 - 1)"),
            (_LEASES, "if head is None or head.epoch != epoch:", "if head is None:"),
        ),
        ("freeze-host",),
    ),
    Mutation(
        "the gate: a call is allowed and its start is written down nowhere",
        ((_GATE, _COMMIT, _COMMIT.replace("await self._writer.commit(event, started=", "(")),),
        ("nothing",),
    ),
    Mutation(
        "the gate: a call is allowed before its start is committed",
        (
            (_GATE, _COMMIT, _COMMIT.replace("await self._writer.commit", "self._writer.put_started")),
            (_WRITER, "    async def flush(self)", _PUT_STARTED + "    async def flush(self)"),
        ),
        ("kill-worker-cut-off",),
    ),
    Mutation(
        "the number of the batch: an append that is tried again is appended again",
        ((_LOG, "AND epoch = $2 AND batch = $3 - 1", "AND epoch = $2 AND batch = batch + 0 * $3::bigint"),),
        ("answers-lost",),
    ),
    Mutation(
        "stops: what is to stop a run is accepted, and nothing is done",
        ((_RUN_END, "head.stop_run, head.stop_kind = run.id, kind", "head.stop_run, head.stop_kind = None, None"),),
        ("nothing",),
    ),
    Mutation(
        "recovery: a run that is taken up again is told its prompt once more",
        ((_RECOVERY, "if str(self._run.id) not in conversation:", "if True:"),),
        ("kill-worker-in-tool",),
    ),
)


async def prove(seed: int, size: Size) -> int:
    """Try all mutations; how many went unnoticed."""
    missed = 0
    for mutation in MUTATIONS:
        print(f"broken: {mutation.what}", flush=True)
        found = await _try(mutation, seed, size)
        missed += found is None
        print(f"    {found or f'NOT NOTICED in {_TRIALS} trials'}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} breaks were noticed")
    return missed


async def _try(mutation: Mutation, seed: int, size: Size) -> str | None:
    """The first violation, with the trial that has shown it."""
    found = None
    async with world(change=mutation.make) as service:
        for number in range(_TRIALS):
            fault = mutation.faults[number % len(mutation.faults)]
            trial = await try_fault(service, fault, seed + number, size)
            telling = [line for line in trial.violations if not any(word in line for word in _OF_TIME)]
            if telling:
                more = f" (and {len(telling) - 1} more)" if len(telling) > 1 else ""
                found = f"{fault} seed {seed + number}, trial {number + 1}: {telling[0]}{more}"
                break
    shutil.rmtree(service.folder, ignore_errors=True)
    return found
