"""What the worker's machine has and uses: sums, and nothing of what other sessions' processes are or do."""

import asyncio
import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from agentrpc.claude.tools import Arguments, Tool, schema

__all__ = ["system_tools"]

# The interval over which the processors' use is measured.
_SAMPLE_SECONDS = 0.2


def system_tools(disk: Path) -> list[Tool]:
    """The tools.

    Args:
        disk: A path on the file system to tell of: that of the workspaces.
    """

    async def metrics(_: Arguments) -> str:
        return json.dumps(await asyncio.to_thread(_metrics, disk), indent=1)

    return [
        Tool(
            "system_metrics",
            "What the machine that you work on has and uses: processors, load, memory, swap, the disk of the "
            "workspace, and how many processes there are by state. Sizes are in bytes.",
            schema({}),
            metrics,
        )
    ]


def _metrics(disk: Path) -> dict[str, object]:
    memory, swap, space = psutil.virtual_memory(), psutil.swap_memory(), psutil.disk_usage(os.fspath(disk))
    load = os.getloadavg()
    return {
        "cpu": {
            "count": psutil.cpu_count(),
            "percent": psutil.cpu_percent(interval=_SAMPLE_SECONDS),
            "load_average": {"1m": load[0], "5m": load[1], "15m": load[2]},
        },
        "memory": {"total": memory.total, "available": memory.available, "percent": memory.percent},
        "swap": {"total": swap.total, "used": swap.used},
        "disk": {"total": space.total, "used": space.used, "free": space.free},
        "processes": dict(_states()),
    }


def _states() -> Counter[str]:
    states: Counter[str] = Counter()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            states[process.status()] += 1
    return states
