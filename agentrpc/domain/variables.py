r"""Variables of tasks: a JSON Schema says which there are, defaults fill in, and what is given is checked.

Patterns are ECMAScript's, as JSON Schema has them: `$` is the end and `\d` is 0 to 9. They may backtrack for ever:
checking is bounded where it runs, in a process of its own (`services/templates.py`). Decimals are what they look like:
0.3 is a multiple of 0.1.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012
from regress import Regex, RegressError

__all__ = ["VariableFault", "VariableSchema", "dump_variables", "load_variables"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MAX_FAULTS = 20
# What holds data and no schemas.
_DATA = ("const", "default", "enum", "examples")
# What is left of a schema so that each property counts by itself.
_ALONE = ("$schema", "$id", "$defs", "definitions", "properties")
_NAMED = ("properties", "patternProperties", "$defs", "dependentSchemas", "definitions")


@dataclass(frozen=True, slots=True)
class VariableFault:
    """What is wrong with a schema or a variable.

    Attributes:
        path: Where, such as `hosts[2].port`; empty: at the top.
        message: What.
    """

    path: str
    message: str


def load_variables(text: str) -> dict[str, Any]:
    """The object in a JSON text; empty for an empty text. Raises ValueError for what is none, or cannot be stored."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite) if text else {}
        # Neither NUL nor half a surrogate pair can be stored.
        if not isinstance(found, dict) or "\\u0000" in text or not dump_variables(found).encode():
            raise ValueError
    except RecursionError:
        raise ValueError from None
    return found


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(text)
    return number


def dump_variables(variables: Mapping[str, Any]) -> str:
    """The text of an object."""
    return json.dumps(variables, ensure_ascii=False)


class VariableSchema:
    """Which variables there are.

    Args:
        text: A JSON Schema of draft 2020-12, the text of an object; empty: there are none.
    """

    def __init__(self, text: str) -> None:
        self._schema = load_variables(text)
        properties = self._schema.get("properties")
        self.names = frozenset(properties if isinstance(properties, dict) else ())

    def faults(self) -> list[VariableFault]:
        """What is wrong with the schema itself."""
        if str(self._schema.get("$schema", _DIALECT)).rstrip("#") != _DIALECT:
            return [VariableFault("$schema", f"only {_DIALECT} is known")]
        try:
            # No formats: that of patterns is Python's.
            Draft202012Validator.check_schema(self._schema, format_checker=FormatChecker(()))
        except SchemaError as error:
            return [VariableFault(_path(error), error.message[:300])]
        found = []
        if self._schema.get("type", "object") != "object":
            found.append(VariableFault("type", "must be object: its properties are the variables"))
        found += [
            VariableFault(f"properties.{name[:80]}", "is no name: use letters, digits and `_`")
            for name in sorted(self.names)
            if not _NAME.fullmatch(name)
        ]
        registry: Registry[Any] = Registry()
        resolver = registry.resolver_with_root(DRAFT202012.create_resource(self._schema))
        for path, schema in _schemas(self._schema, ""):
            found += _faults_of(path, schema, resolver.lookup)
        return found[:_MAX_FAULTS]

    def check(self, variables: Mapping[str, Any]) -> list[VariableFault]:
        """What is wrong with the variables of an execution; raises RecursionError for a schema without an end."""
        return self._check(variables, self._schema)

    def _check(self, variables: Mapping[str, Any], schema: Mapping[str, Any]) -> list[VariableFault]:
        known = ", ".join(sorted(self.names))[:200] or "none"
        found = [
            VariableFault(name[:80], f"there is no such variable: there are {known}")
            for name in sorted(variables.keys() - self.names)
        ]
        # An empty registry: nothing is fetched.
        validator = _Validator(schema, registry=Registry())
        for error in validator.iter_errors({name: variables[name] for name in self.names & variables.keys()}):
            found.append(VariableFault(_path(error), error.message[:300]))
            if len(found) >= _MAX_FAULTS:
                break
        return found

    def check_each(self, variables: Mapping[str, Any]) -> list[VariableFault]:
        """What is wrong with some of the variables, each by itself."""
        return self._check(variables, {key: self._schema[key] for key in _ALONE if key in self._schema})


@lru_cache(1000)
def _regex(pattern: str) -> Regex:
    """A pattern, which knows about characters beyond 16 bits if it is one that may (JSON Schema Core, section 6.4)."""
    try:
        return Regex(pattern, "u")
    except RegressError:
        # Such as `\-`.
        return Regex(pattern)


def _found(pattern: str, text: str) -> bool:
    return _regex(pattern).find(text) is not None


def _pattern(validator: Any, pattern: str, instance: object, _: object) -> Iterator[ValidationError]:  # noqa: ANN401
    if validator.is_type(instance, "string") and not _found(pattern, str(instance)):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any,  # noqa: ANN401 - a class that jsonschema makes
    patterns: Mapping[str, Any],
    instance: Any,  # noqa: ANN401 - JSON
    _: object,
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, schema in patterns.items():
            for name, value in instance.items():
                if _found(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any,  # noqa: ANN401 - a class that jsonschema makes
    wanted: Any,  # noqa: ANN401 - a schema
    instance: Any,  # noqa: ANN401 - JSON
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = schema.get("patternProperties", {})
    for name in instance:
        if name in schema.get("properties", {}) or any(_found(pattern, name) for pattern in patterns):
            continue
        if wanted is False:
            yield ValidationError(f"{name!r} is not among the properties that there may be")
        else:
            yield from validator.descend(instance[name], wanted, path=name)


def _multiple_of(validator: Any, of: float, instance: object, _: object) -> Iterator[ValidationError]:  # noqa: ANN401
    if validator.is_type(instance, "number") and Fraction(str(instance)) % Fraction(str(of)):
        yield ValidationError(f"{instance!r} is not a multiple of {of}")


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "multipleOf": _multiple_of,
    },
)


def _faults_of(path: str, schema: Mapping[str, Any], lookup: Callable[[str], object]) -> Iterator[VariableFault]:
    for key in ("$id", "$schema"):
        if path and key in schema:
            yield VariableFault(f"{path}.{key}", f"only the schema as a whole may have a {key}")
    for key in ("$ref", "$dynamicRef"):
        reference = schema.get(key, "#")
        if not isinstance(reference, str) or not reference.startswith("#"):
            yield VariableFault(
                _join(path, key), f"{str(reference)[:80]!r} leads out of the schema: nothing is fetched"
            )
            continue
        try:
            lookup(reference)
        except Unresolvable:
            yield VariableFault(_join(path, key), f"{reference[:80]!r} leads nowhere")
    named = schema.get("patternProperties")
    names = named if isinstance(named, dict) else ()
    for pattern in [schema.get("pattern", ""), *names]:
        try:
            _regex(str(pattern))
            if pattern in names:
                # jsonschema looks for what `unevaluatedProperties` leaves by Python's patterns.
                re.compile(str(pattern))
        except (RegressError, re.error, RecursionError, OverflowError) as error:
            yield VariableFault(_join(path, "pattern"), f"{str(pattern)[:80]!r} is no regular expression: {error}")


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401 - JSON
    """All schemas in a schema, itself first, with their paths."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _DATA:
            continue
        if key in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from _schemas(inner, _join(path, f"{key}.{name[:80]}"))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from _schemas(inner, f"{_join(path, key)}[{index}]")
        else:
            yield from _schemas(value, _join(path, key))


def _path(error: ValidationError | SchemaError) -> str:
    path = ""
    for part in error.absolute_path:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, str(part)[:80])
    return path


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else f"{path}{name}"
