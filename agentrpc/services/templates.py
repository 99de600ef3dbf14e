"""Templates and their variables, checked and rendered where they can do no harm.

Both may come from anybody, and both can be made to loop, to backtrack or to grow without an end, in the middle of one
step of the interpreter: no thread can be stopped there. So processes do it that can (`template_process.py`), for one
user after the other.
"""

import asyncio
import atexit
import contextlib
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from agentrpc.errors import FieldViolation, InvalidArgument
from agentrpc.services.template_process import CPU_SECONDS, receive, send
from agentrpc.services.threads import outlasting
from agentrpc.turns import Turns

__all__ = ["Prepared", "check_spec", "prepare"]

_PROCESSES = 2
# Of one user.
_WAITING = 32
# Seconds on the clock, for a machine that is far too busy.
_PATIENCE = 30.0
_FIELDS = {
    "template": ("TEMPLATE_INVALID", "prompt_template"),
    "schema": ("FIELD_INVALID", "variables_schema_json"),
    "defaults": ("VARIABLES_INVALID", "default_variables_json"),
    "given": ("VARIABLES_INVALID", "variables_json"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an execution needs.

    Attributes:
        variables: All of its variables, defaults included, as the text of a JSON object.
        prompt: The rendered template.
    """

    variables: str
    prompt: str


async def check_spec(
    user: UUID, *, template: str, schema: str, defaults: str, scheduled: str | None = None, scheduled_field: str = ""
) -> None:
    """Check what a task is made of; the JSON texts are known to be objects.

    Args:
        user: Whose call it is.
        template: The prompt_template.
        schema: The variables_schema_json.
        defaults: The default_variables_json.
        scheduled: The variables that a schedule gives; None: there is no schedule.
        scheduled_field: The field that they stand in.

    Raises:
        InvalidArgument: FIELD_INVALID, TEMPLATE_INVALID or VARIABLES_INVALID.
        ResourceExhausted: RATE_LIMITED: too many templates of this user wait.
    """
    request = {"op": "check", "template": template, "schema": schema, "defaults": defaults, "given": scheduled}
    fields = {what: (reason, f"task.{field}") for what, (reason, field) in _FIELDS.items()}
    fields["given"] = ("VARIABLES_INVALID", scheduled_field)
    await _ask(user, request, fields)


async def prepare(user: UUID, *, template: str, schema: str, defaults: str, given: str) -> Prepared:
    """Check the variables of an execution and render its prompt. The template and the schema were checked before.

    Raises:
        InvalidArgument: VARIABLES_INVALID or TEMPLATE_INVALID.
        ResourceExhausted: RATE_LIMITED: too many templates of this user wait.
    """
    request = {"op": "prepare", "template": template, "schema": schema, "defaults": defaults, "given": given}
    answer = await _ask(user, request, _FIELDS)
    return Prepared(answer["variables"], answer["prompt"])


async def _ask(user: UUID, request: dict[str, Any], fields: dict[str, tuple[str, str]]) -> dict[str, Any]:
    working = asyncio.create_task(_in_turn(user, request), name="template")
    try:
        answer = await asyncio.shield(working)
    except asyncio.CancelledError:
        # It waits for its turn no more; one that has it keeps its place until its process is done.
        working.cancel()
        _given_up.add(working)
        working.add_done_callback(_given_up.discard)
        raise
    if answer is None or "memory" in answer:
        message = (
            f"checking and rendering it takes too much memory, or more than {CPU_SECONDS:g} s of processor time: "
            "make the template, or patterns of the schema, simpler"
        )
        answer = {"faults": [{"what": "template", "line": 0, "path": "", "message": message}]}
    if answer["faults"]:
        raise _error(answer["faults"], fields)
    return answer


def _error(faults: list[dict[str, Any]], fields: dict[str, tuple[str, str]]) -> InvalidArgument:
    """All faults as one error, whose reason is that of the first."""
    violations = []
    for fault in faults:
        field = fields[fault["what"]][1]
        path = fault["path"]
        where = f"{field}{'' if not path or path.startswith('[') else '.'}{path}"
        line = f"line {fault['line']}: " if fault["line"] else ""
        violations.append(FieldViolation(where, f"{line}{fault['message']}"))
    reason, field = fields[faults[0]["what"]]
    metadata = {"field": field}
    if reason == "TEMPLATE_INVALID" and faults[0]["line"]:
        metadata["line"] = str(faults[0]["line"])
    text = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return InvalidArgument(text, reason=reason, metadata=metadata, violations=tuple(violations))


# By event loop: a process has one, tests have many.
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()
_given_up: set["asyncio.Task[dict[str, Any] | None]"] = set()


async def _in_turn(user: UUID, request: dict[str, Any]) -> dict[str, Any] | None:
    loop = asyncio.get_running_loop()
    if (places := _places.get(loop)) is None:
        # One user may have all of them: whoever comes then waits for no more than one rendering.
        places = Turns(_PROCESSES, per_key=_PROCESSES, waiting=_WAITING)
        _places[loop] = places
    async with places.take(user):
        return await outlasting(loop.run_in_executor(_threads, _exchange, request))


_threads = ThreadPoolExecutor(_PROCESSES, thread_name_prefix="templates")
_idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()


def _exchange(request: dict[str, Any]) -> dict[str, Any] | None:
    """What a process answers; None: the request was too much for it."""
    process = _take()
    assert process.stdin is not None
    assert process.stdout is not None
    watch = threading.Timer(_PATIENCE, process.kill)
    watch.start()
    answer, status = None, 0
    try:
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin, request)  # type: ignore[arg-type]  # a buffered pipe
            answer = receive(process.stdout)  # type: ignore[arg-type]
    finally:
        watch.cancel()
        if answer is not None and "memory" not in answer:
            _idle.put(process)
        else:
            status = _end(process)
    if answer is None and status >= 0:
        # Not by a signal, as by its limits.
        raise RuntimeError(f"the process of templates has ended with {status}")
    if answer is not None and "failed" in answer:
        raise RuntimeError(answer["failed"])
    return answer


def _take() -> subprocess.Popen[bytes]:
    """A process that is idle and alive, or a new one."""
    with contextlib.suppress(queue.Empty):
        while (process := _idle.get_nowait()).poll() is not None:
            _end(process)
        return process
    return _start()


def _start() -> subprocess.Popen[bytes]:
    # In isolation: neither the environment nor the folder it is started in has a say.
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "agentrpc.services.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={},
    )


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process that may be about to end by itself; how it has ended."""
    with contextlib.suppress(BrokenPipeError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


@atexit.register
def _end_all() -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            _end(_idle.get_nowait())
