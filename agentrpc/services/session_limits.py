"""The limits of a session: what it asks for, else what the operator has set, never more than the operator allows."""

import math
from collections.abc import Mapping
from typing import Any

from agentrpc.claude.cgroups import machine_memory
from agentrpc.claude.limits import Limits
from agentrpc.errors import InvalidArgument
from agentrpc.settings import LEAST_LIMITS, Settings
from agentrpc.v1 import session_pb2

__all__ = ["SETTING_OF", "agent_memory", "check_limits", "limits_of"]

_SHARE = 0.75
# The setting that is the ceiling of each.
SETTING_OF = {
    "memory_bytes": "max_session_memory",
    "processes": "max_session_processes",
    "cpus": "max_session_cpus",
    "open_files": "max_session_open_files",
    "workspace_bytes": "max_workspace_size",
    "workspace_files": "max_workspace_entries",
    "tmp_bytes": "max_session_tmp",
}


def check_limits(options: session_pb2.SessionOptions, settings: Settings, *, path: str = "session.options") -> None:
    """Refuse what is too little for any agent, or more than the operator allows. Raises FIELD_INVALID."""
    ceilings = _ceilings(settings)
    for field, value in options.limits.ListFields():
        least, most = LEAST_LIMITS[field.name], ceilings[field.name]
        where = f"{path}.limits.{field.name}"
        # Neither infinity nor NaN.
        if not least <= value < math.inf:
            raise InvalidArgument.field(where, f"must be a number, {least:.15g} or more")
        if most is not None and value > most:
            raise InvalidArgument.field(
                where, f"may be at most {most:.15g}, which the operator sets ({SETTING_OF[field.name]})"
            )


def limits_of(settings: Settings, options: session_pb2.SessionOptions | None = None) -> Limits:
    """The limits of a session with these options on this worker; without any, those of what is no session's."""
    asked = {} if options is None else {field.name: value for field, value in options.limits.ListFields()}
    found: dict[str, Any] = {}
    for name, most in _ceilings(settings).items():
        wanted = settings.session_limits.get(name, most)
        if name in asked:
            wanted = asked[name]
        found[name] = wanted if most is None or wanted is None else min(wanted, most)
    together = agent_memory(settings)
    return Limits(
        memory=int(min(found["memory_bytes"] or together, together)),
        processes=int(found["processes"]),
        cpus=found["cpus"],
        open_files=int(found["open_files"]),
        disk_bytes=int(found["workspace_bytes"]),
        disk_files=int(found["workspace_files"]),
        tmp_bytes=int(found["tmp_bytes"]),
    )


def agent_memory(settings: Settings) -> int:
    """Bytes that all sessions of a worker may use together."""
    return settings.max_agent_memory or int(machine_memory() * _SHARE)


def _ceilings(settings: Settings) -> Mapping[str, float | None]:
    return {name: getattr(settings, setting) for name, setting in SETTING_OF.items()}
