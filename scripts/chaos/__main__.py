"""`./scripts/faults`: every fault in each round, and what the checker finds; `--prove`: that it would find something."""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import uvloop

from scripts.chaos import faults, store_faults  # noqa: F401 - they put themselves on the list
from scripts.chaos.moment import FAULTS
from scripts.chaos.mutations import prove
from scripts.chaos.trial import Size, Trial, try_fault
from scripts.chaos.world import World, world

__all__: list[str] = []

# A fault that finds nothing to strike so often in a row does not work.
_MISSES = 3


async def _run(arguments: argparse.Namespace) -> int:
    size = Size(arguments.sessions, short=arguments.short)
    base = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    if arguments.prove:
        return await prove(base, size)
    names = arguments.only or list(FAULTS)
    done: Counter[str] = Counter()
    began = time.monotonic()
    async with world(real_cli=arguments.real_cli) as service:
        print(f"service in {service.folder}", flush=True)
        for number in range(arguments.rounds):
            for index, name in enumerate(names):
                # A seed by itself makes the same clients and the same fault: --only NAME --seed SEED.
                seed = base if arguments.rounds == len(names) == 1 else base + number * 1000 + index
                for again in range(_MISSES):
                    trial = await _try(service, name, seed + again * 100, size)
                    print(f"round {number + 1} {name} seed {seed + again * 100}: {trial}", flush=True)
                    done["tried"] += not trial.skipped
                    done["skipped"] += bool(trial.skipped)
                    done["violated"] += bool(trial.violations)
                    if not trial.missed:
                        break
                else:
                    done["missed"] += 1
                if trial.violations and arguments.stop:
                    break
            if done["violated"] and arguments.stop:
                break
    left = [*service.stuck, *service.left()]
    for process in left:
        print(f"    did not leave by itself: {process}", flush=True)
    bad = done["violated"] + done["missed"] + len(left)
    if not bad:
        shutil.rmtree(service.folder, ignore_errors=True)
    print(
        f"{done['tried']} trials in {time.monotonic() - began:.0f} s: {done['violated']} with violations,"
        f" {done['missed']} faults that never struck, {done['skipped']} skipped, {len(left)} processes left"
    )
    return bad


async def _try(service: World, name: str, seed: int, size: Size) -> Trial:
    try:
        return await try_fault(service, name, seed, size)
    except Exception:
        return Trial(violations=[traceback.format_exc()])


async def _until_asked(work: Coroutine[Any, Any, int]) -> int:
    """Do it; when asked to stop, stop all that was started."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault is made (1)")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="only this fault; may be repeated")
    parser.add_argument("--seed", type=int, help="decides about clients and moments; random by default")
    parser.add_argument("--sessions", type=int, default=6, help="sessions at once (6)")
    parser.add_argument("--short", action="store_true", help="little traffic, and faults that are soon over")
    parser.add_argument(
        "--real-cli", action="store_true", help="the real CLI with the scripted model, not the fake one"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument(
        "--prove", action="store_true", help="break copies of the service on purpose, to see that it is found"
    )
    sys.exit(1 if uvloop.run(_until_asked(_run(parser.parse_args()))) else 0)


main()
