"""Variables are checked as JSON Schema says: ECMAScript's patterns, and decimals as they are written."""

import pytest

from agentrpc.domain.variables import VariableSchema, dump_variables


def faults(variables, **schema):
    """What is wrong with variables of which each has this schema."""
    text = dump_variables({"properties": dict.fromkeys(variables, schema)})
    checked = VariableSchema(text)
    assert not checked.faults()
    return checked.check(variables)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[a-z]+$", ["ann"], ["ann\n", "ann\r\n", "\nann"]),
        (r"^\d{2}$", ["34"], ["\u0663\u0664", "\uff13\uff14"]),
        (r"^\w+$", ["a_1"], ["é", "名"]),
        (r"^\s$", ["\ufeff", "\u00a0"], ["\x1c", "\x85"]),
        (r"^.$", ["x", "😀", "\x85"], ["\r", "\u2028", "xx"]),
        (r"^a\-b$", ["a-b"], ["ab"]),
        (r"b", ["abc"], ["ac"]),
        (r"^\p{L}+$", ["é名"], ["a1"]),
        (r"^(?<year>\d{4})-\k<year>$", ["2026-2026"], ["2026-2027"]),
    ],
)
def test_patterns_mean_what_they_mean_in_ecmascript(pattern, good, bad):
    for text in good:
        assert not faults({"v": text}, type="string", pattern=pattern), text
    for text in bad:
        assert faults({"v": text}, type="string", pattern=pattern), text


def test_patterns_of_names_do_too():
    schema = {"type": "object", "patternProperties": {r"^\d$": {"type": "integer"}}, "additionalProperties": False}
    assert not faults({"v": {"1": 1, "2": 2}}, **schema)
    for wrong in ({"1": "x"}, {"\u0661": 1}, {"1\n": 1}, {"x": 1}):
        assert faults({"v": wrong}, **schema), wrong
    others = {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert not faults({"v": {"a": 1, "b": "x"}}, **others)
    assert [fault.path for fault in faults({"v": {"b": 1}}, **others)] == ["v.b"]


@pytest.mark.parametrize(
    ("number", "of", "good"),
    [
        (0.3, 0.1, True), (19.99, 0.01, True), (1.1, 0.1, True), (4, 2, True), (7.5, 2.5, True), (1e308, 0.5, True),
        (0.35, 0.1, False), (19.999, 0.01, False), (5, 2, False), (1e-9, 1, False), (0, 0.1, True), (-0.3, 0.1, True),
    ],
)  # fmt: skip
def test_decimals_are_multiples_of_what_they_look_like(number, of, good):
    assert bool(faults({"v": number}, type="number", multipleOf=of)) is not good


def test_what_is_no_pattern_is_told():
    for pattern in ("(", "[", "*a"):
        assert VariableSchema(dump_variables({"properties": {"v": {"pattern": pattern}}})).faults()
