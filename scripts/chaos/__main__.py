"""`./scripts/faults [--rounds N] [--only NAME] [--seed S]`: every fault in each round, and what the checker finds."""

import argparse
import asyncio
import random
import sys
import time
import traceback

import uvloop

from scripts.chaos.checker import check
from scripts.chaos.faults import FAULTS, Moment, Skip
from scripts.chaos.traffic import Traffic
from scripts.chaos.world import World, world

_ENDS_WITHIN = 90.0


async def _trial(service: World, name: str, seed: int, sessions: int) -> tuple[str, list[str]]:
    """One fault under traffic: how much happened, and the violations."""
    events: asyncio.Queue = asyncio.Queue()
    traffic = Traffic(service, seed, lambda session, event: events.put_nowait((session, event)))
    moment = Moment(service, random.Random(seed + 1), events)
    talking = asyncio.create_task(traffic.run(sessions))
    try:
        await asyncio.sleep(moment.random.random() * 0.5)
        await FAULTS[name](moment)
        await talking
        waiting = await traffic.until_ended(_ENDS_WITHIN)
    finally:
        talking.cancel()
        await traffic.stop()
    violations = [*traffic.failures, *await check(service, traffic.history, waiting)]
    history = traffic.history
    calls = sum(len(run.tokens) for session in history.sessions for run in session.runs)
    seen = sum(len(seen) for session in history.sessions for seen in session.watchers.values())
    runs = sum(len(session.runs) for session in history.sessions)
    return f"{runs} runs, {calls} calls, {seen} events seen", violations


async def _run(arguments: argparse.Namespace) -> int:
    names = arguments.only or list(FAULTS)
    base = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    failed = 0
    async with world(real_cli=arguments.real_cli) as service:
        print(f"service in {service.folder}", flush=True)
        for number in range(arguments.rounds):
            for index, name in enumerate(names):
                # A seed by itself makes the same clients and the same fault: --rounds 1 --only NAME --seed SEED.
                seed = base if arguments.rounds == len(names) == 1 else base + number * 1000 + index
                began = time.monotonic()
                try:
                    amount, violations = await _trial(service, name, seed, arguments.sessions)
                except Skip as reason:
                    print(f"round {number + 1} {name}: skipped: {reason}", flush=True)
                    continue
                except Exception:
                    amount, violations = "", [traceback.format_exc()]
                failed += bool(violations)
                told = "ok" if not violations else f"{len(violations)} VIOLATIONS"
                print(
                    f"round {number + 1} {name} seed {seed}: {told} ({amount}, {time.monotonic() - began:.1f} s)",
                    flush=True,
                )
                for violation in violations[:20]:
                    print(f"    {violation}", flush=True)
                if violations and arguments.stop:
                    return failed
    left = service.agents()
    for process in left:
        print(f"    a process is left: {process}", flush=True)
    print(f"{arguments.rounds} rounds of {len(names)} faults: {failed} with violations, {len(left)} processes left")
    return failed + len(left)


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault is made (1)")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="only this fault; may be repeated")
    parser.add_argument("--seed", type=int, help="decides about clients and moments; random by default")
    parser.add_argument("--sessions", type=int, default=6, help="sessions at once (6)")
    parser.add_argument(
        "--real-cli", action="store_true", help="the real CLI with the scripted model, not the fake one"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first violation, and keep the service's files")
    sys.exit(1 if uvloop.run(_run(parser.parse_args())) else 0)


main()
