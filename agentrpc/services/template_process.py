"""The process that checks and renders templates: what it does is bounded, and it holds nothing worth having.

    python -I -m agentrpc.services.template_process

Reads requests from standard input and writes answers to standard output, each a JSON text behind its length in four
bytes, until its input ends. A request that needs too much processor time ends the process by SIGPROF; memory is
limited, so that what wants too much of it fails.
"""

import json
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from referencing.exceptions import Unresolvable

from agentrpc.domain.templates import TemplateInvalid, check_template, render_template
from agentrpc.domain.variables import VariableFault, VariableSchema, dump_variables, load_variables

__all__ = ["CPU_SECONDS", "receive", "send"]

# Of processor time, for one request.
CPU_SECONDS = 2.0
# For requests, beyond what the process has at its start.
_MEMORY = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_ENDLESS = "it leads back to itself without an end, or is nested too deeply"


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write a message."""
    data = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read a message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return dict(json.loads(data)) if len(data) == length else None


class _Answer:
    """What is wrong, by what it is wrong with: `template`, `schema`, `defaults` or `given`."""

    def __init__(self) -> None:
        self.faults: list[dict[str, Any]] = []

    def template(self, error: TemplateInvalid) -> None:
        self.faults += [{"what": "template", "line": f.line, "path": "", "message": f.message} for f in error.faults]

    def variables(self, what: str, faults: list[VariableFault]) -> bool:
        self.faults += [{"what": what, "line": 0, "path": f.path, "message": f.message} for f in faults]
        return not faults


def _check(request: dict[str, Any]) -> dict[str, Any]:
    """All that can be seen without an execution; with `given`, what its executions by schedule would be given."""
    answer = _Answer()
    schema = VariableSchema(request["schema"])
    defaults = load_variables(request["defaults"])
    sound = answer.variables("schema", _faults_of(schema))
    try:
        check_template(request["template"], schema.names)
    except TemplateInvalid as error:
        answer.template(error)
    if sound and answer.variables("defaults", _checked(answer, schema, defaults, each=True)) and not answer.faults:
        complete = not _checked(answer, schema, defaults)
        if complete and not answer.faults:
            _render(answer, request["template"], defaults)
        if request["given"] is not None and not answer.faults:
            given = {**defaults, **load_variables(request["given"])}
            if answer.variables("given", _checked(answer, schema, given)):
                _render(answer, request["template"], given)
    return {"faults": answer.faults}


def _faults_of(schema: VariableSchema) -> list[VariableFault]:
    try:
        return schema.faults()
    except RecursionError:
        return [VariableFault("", _ENDLESS)]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - such as a reference to an item of a list by a name
        return [VariableFault("", f"cannot be used: {error}"[:300])]


def _checked(
    answer: _Answer, schema: VariableSchema, variables: dict[str, Any], *, each: bool = False
) -> list[VariableFault]:
    try:
        return schema.check_each(variables) if each else schema.check(variables)
    except RecursionError:
        answer.variables("schema", [VariableFault("", _ENDLESS)])
    except Unresolvable as error:
        answer.variables("schema", [VariableFault("", f"a reference leads nowhere: {error}"[:300])])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - such as a number too large to be divided: what was given has done it
        return [VariableFault("", f"cannot be checked against the schema: {error}"[:300])]
    return []


def _render(answer: _Answer, template: str, variables: dict[str, Any]) -> str:
    try:
        return render_template(template, variables)
    except TemplateInvalid as error:
        answer.template(error)
    return ""


def _prepare(request: dict[str, Any]) -> dict[str, Any]:
    """The variables of an execution, defaults included, and its prompt."""
    answer = _Answer()
    schema = VariableSchema(request["schema"])
    variables = {**load_variables(request["defaults"]), **load_variables(request["given"])}
    prompt = ""
    if answer.variables("given", _checked(answer, schema, variables)) and not answer.faults:
        prompt = _render(answer, request["template"], variables)
    return {"faults": answer.faults, "variables": dump_variables(variables), "prompt": prompt}


_DOES = {"check": _check, "prepare": _prepare}


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is loaded late, is loaded before memory is short.
    warm: dict[str, Any] = {"template": "{{ a|tojson }}{{ b }}", "schema": '{"properties": {"a": {}}}', "defaults": ""}
    _check({**warm, "given": '{"a": 1}'})
    _prepare({**warm, "given": '{"a": 1}'})
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    while (request := receive(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = _DOES[request["op"]](request)
        except MemoryError:
            answer = {"memory": True}
        except Exception:  # noqa: BLE001 - it is raised again where it is logged
            answer = {"failed": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(sys.stdout.buffer, answer)
        if "memory" in answer:
            return


if __name__ == "__main__":
    _serve()
