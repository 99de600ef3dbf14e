"""`--limit memory=2GiB`: what a session may take, as people write it."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated

import typer

from agentrpc.cli.connection import fail
from agentrpc.v1 import session_pb2

__all__ = ["Limit", "resource_limits"]

# What people write, and the field of ResourceLimits.
_FIELDS = {
    "memory": "memory_bytes",
    "processes": "processes",
    "cpus": "cpus",
    "open-files": "open_files",
    "workspace": "workspace_bytes",
    "workspace-files": "workspace_files",
    "tmp": "tmp_bytes",
}
_NUMBER = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)([KMGT]i?B|)", re.ASCII)
_UNITS = {"": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024))
}

Limit = Annotated[
    list[str] | None,
    typer.Option(help=f"What the agent may take, such as memory=2GiB; may be repeated: {', '.join(_FIELDS)}."),
]


def resource_limits(given: Iterable[str]) -> session_pb2.ResourceLimits:
    """What `--limit` says. Ends the command with status 2 where that is no limit."""
    limits = session_pb2.ResourceLimits()
    for text in given:
        name, _, value = text.partition("=")
        if name not in _FIELDS:
            raise fail(f"--limit {name[:80]!r} is not one of {', '.join(_FIELDS)}, followed by = and a number", 2)
        field = _FIELDS[name]
        if limits.HasField(field):
            raise fail(f"--limit {name} is given twice", 2)
        is_size = field.endswith("_bytes")
        found = _NUMBER.fullmatch(value)
        if found is None or (found[2] and not is_size):
            what = "a number of bytes, such as 2GiB or 500MB" if is_size else "a number"
            raise fail(f"--limit {name} must be {what}, not {value[:80]!r}", 2)
        number = Decimal(found[1]) * _UNITS[found[2]]
        try:
            setattr(limits, field, float(number) if field == "cpus" else _whole(number))
        except ValueError:
            raise fail(f"--limit {name} must be a whole number that is not too large, not {value[:80]!r}", 2) from None
    return limits


def _whole(number: Decimal) -> int:
    if number != int(number):
        raise ValueError
    return int(number)
