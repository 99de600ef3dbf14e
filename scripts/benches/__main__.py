"""`./scripts/bench NAME... [--json] [--runs N]`."""

import argparse
import json

import uvloop

from scripts.benches import durability, fence, hogs, runs, schedule, streams
from scripts.benches.frame import medians

BENCHES = {
    "relay": runs.relay,
    "latency": streams.latency,
    "fanout": streams.fanout,
    "hop": runs.hop,
    "append": runs.append,
    "watchers": streams.watchers,
    "recover": durability.recover,
    "cancel": durability.cancel,
    "sessions": durability.sessions,
    "schedule": schedule.schedule,
    "fence": fence.fence,
    "hogs": hogs.hogs,
}
# Of what takes minutes. The median of three for the others.
_RUNS = {"sessions": 1, "hogs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/bench")
    parser.add_argument("names", nargs="+", choices=BENCHES)
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--runs", type=int, help="the median of so many (3; for sessions and hogs 1)")
    given = parser.parse_args()
    for name in given.names:
        times = given.runs or _RUNS.get(name, 3)
        outcome = medians([uvloop.run(BENCHES[name]()) for _ in range(times)])
        if not given.json:
            for figure in outcome.figures:
                aim = (
                    "" if figure.target is None else f"   (target {figure.target:g}, {'ok' if figure.ok else 'MISSED'})"
                )
                print(f"{name:9} {figure.name:52} {figure.value:12.3f} {figure.unit}{aim}")
        print(
            json.dumps(
                {
                    "bench": name,
                    "ok": all(figure.ok for figure in outcome.figures),
                    "results": [
                        {"name": f.name, "value": round(f.value, 4), "unit": f.unit, "target": f.target, "ok": f.ok}
                        for f in outcome.figures
                    ],
                    "baseline": {key: round(value, 1) for key, value in outcome.baseline.items()},
                    "runs": times,
                }
            ),
            flush=True,
        )


main()
