"""Prompt templates: Jinja2 in a sandbox that reads nothing but its variables.

The sandbox keeps a template from reaching out, not from using time and memory: that is bounded where it runs, in a
process of its own (`services/templates.py`).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateRuntimeError, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["MAX_PROMPT", "TemplateFault", "TemplateInvalid", "check_template", "render_template"]

MAX_PROMPT = 1024 * 1024
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


@dataclass(frozen=True, slots=True)
class TemplateFault:
    """What is wrong with a template.

    Attributes:
        line: Where, from 1; 0: nobody can tell.
        message: What, and how to mend it.
    """

    line: int
    message: str


class TemplateInvalid(Exception):
    """A template that cannot be used."""

    def __init__(self, *faults: TemplateFault) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


class _Environment(ImmutableSandboxedEnvironment):
    """In `order.items` a variable's own `items` comes before the method of that name."""

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401 - any value of JSON
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _printed(value: Any) -> Any:  # noqa: ANN401 - any value of JSON
    if callable(value) and not isinstance(value, Undefined):
        msg = "a method or function stands where a value is to be printed: call it, or name another variable"
        raise TemplateRuntimeError(msg)
    return value


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, cache_size=0, finalize=_printed)
    del environment.globals["lipsum"]
    return environment


def check_template(source: str, variables: Collection[str]) -> None:
    """Check a template without rendering it.

    Args:
        source: The template.
        variables: The names that it may use.

    Raises:
        TemplateInvalid: It does not parse, loads other templates, uses private names, or variables that are not there.
    """
    environment = _environment()
    try:
        tree = environment.parse(source)
        faults = list(_faults(tree))
        unknown = meta.find_undeclared_variables(tree) - set(environment.globals) - set(variables)
        faults += [
            TemplateFault(_line_of(tree, name), f"{name!r} is not in the properties of variables_schema_json: add it")
            for name in sorted(unknown)
        ]
        environment.compile(tree)
    except TemplateSyntaxError as error:
        raise TemplateInvalid(TemplateFault(error.lineno, error.message or "it does not parse")) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is raised in a template, the template has done
        raise TemplateInvalid(_fault(error)) from None
    if faults:
        raise TemplateInvalid(*faults)


def _faults(tree: nodes.Template) -> Iterator[TemplateFault]:
    for found in tree.find_all(_REFUSED):
        yield TemplateFault(found.lineno, f"{type(found).__name__.lower()} is not for templates: they load nothing")
    for read in tree.find_all(nodes.Getattr):
        if read.attr.startswith("_"):
            yield TemplateFault(read.lineno, f"the attribute {read.attr!r} begins with `_`: such are not for templates")
    for name in tree.find_all(nodes.Name):
        if name.name.startswith("__"):
            yield TemplateFault(name.lineno, f"the name {name.name!r} begins with `__`: such are not for templates")


def _line_of(tree: nodes.Template, name: str) -> int:
    return next((found.lineno for found in tree.find_all(nodes.Name) if found.name == name), 0)


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """What a template says with these variables.

    Raises:
        TemplateInvalid: It fails, or says nothing, too much, or what cannot be stored.
    """
    parts, size = [], 0
    try:
        for part in _environment().from_string(source).generate(dict(variables)):
            size += len(part)
            if size > MAX_PROMPT:
                break
            parts.append(part)
        text = "".join(parts)
        size = max(size, len(text.encode()))
    except UnicodeEncodeError:
        raise TemplateInvalid(TemplateFault(0, "it renders to half a surrogate pair: remove it")) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is raised in a template, the template has done
        raise TemplateInvalid(_fault(error)) from None
    if size > MAX_PROMPT:
        raise TemplateInvalid(TemplateFault(0, f"it renders to more than {MAX_PROMPT} bytes"))
    if "\0" in text:
        raise TemplateInvalid(TemplateFault(0, "it renders to a NUL character: remove it"))
    if not text.strip():
        raise TemplateInvalid(TemplateFault(0, "it renders to nothing: say what the agent is to do"))
    return text


def _fault(error: BaseException) -> TemplateFault:
    if isinstance(error, RecursionError):
        return TemplateFault(0, "it is nested, or calls itself, too deeply")
    if isinstance(error, SyntaxError):
        return TemplateFault(0, f"it cannot be compiled: {error.msg}")
    text = f"{error}"[:300] or type(error).__name__
    if isinstance(error, UndefinedError):
        text += ": test with `is defined` what may be missing, give it a default, or require it in the schema"
    return TemplateFault(_line_in(error), text)


def _line_in(error: BaseException) -> int:
    """The line of the template in which an error was raised; Jinja2 writes it into the traceback."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
