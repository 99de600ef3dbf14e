"""`./scripts/bench NAME... [--json] [--runs N]`."""

import argparse
import json

import uvloop

from scripts.benches import runs, streams
from scripts.benches.frame import medians

BENCHES = {
    "relay": runs.relay,
    "latency": streams.latency,
    "fanout": streams.fanout,
    "hop": runs.hop,
    "append": runs.append,
    "watchers": streams.watchers,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/bench")
    parser.add_argument("names", nargs="+", choices=BENCHES)
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many (3)")
    given = parser.parse_args()
    for name in given.names:
        outcome = medians([uvloop.run(BENCHES[name]()) for _ in range(given.runs)])
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
                    "runs": given.runs,
                }
            ),
            flush=True,
        )


main()
