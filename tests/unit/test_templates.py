"""Templates and variables from strangers: each attack ends with an error that says what to do, in bounded time."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.errors import InvalidArgument
from agentrpc.services import templates
from agentrpc.services.task_catalogue import task_templates
from agentrpc.services.templates import check_spec, prepare

ANY = json.dumps({"properties": {"a": {}}})


async def rendered(template, given=None, schema=ANY, defaults=""):
    given = json.dumps(given or {})
    return (await prepare(clock.uuid7(), template=template, schema=schema, defaults=defaults, given=given)).prompt


async def checked(template="x", schema=ANY, defaults="", scheduled=None):
    await check_spec(
        clock.uuid7(),
        template=template,
        schema=schema,
        defaults=defaults,
        scheduled=scheduled,
        scheduled_field="task.schedule.variables_json",
    )


async def refused(awaitable):
    with pytest.raises(InvalidArgument) as caught:
        await awaitable
    error = caught.value
    assert "Traceback" not in error.message
    return error


async def test_variables_filters_conditions_and_loops():
    template = "{% for h in hosts if h.up %}{{ h.name|upper }}{{ ', ' if not loop.last }}{% endfor %} {{ n + 1 }}"
    schema = json.dumps({"properties": {"hosts": {"type": "array"}, "n": {"type": "integer"}}})
    schema = json.dumps({**json.loads(schema), "required": ["hosts"]})
    await check_spec(clock.uuid7(), template=template, schema=schema, defaults='{"n": 41}')
    given = {"hosts": [{"name": "a", "up": True}, {"name": "b", "up": False}, {"name": "ü", "up": True}]}
    done = await prepare(clock.uuid7(), template=template, schema=schema, defaults='{"n": 41}', given=json.dumps(given))
    assert done.prompt == "A, Ü 42"
    assert json.loads(done.variables) == {**given, "n": 41}


@pytest.mark.parametrize(
    ("template", "line", "says"),
    [
        ("x\n{% if %}", "2", "expression"),
        ("{{ a }}\n\n{{ b }}", "3", "'b' is not in the properties"),
        ("{% include 'x' %}", "1", "include"),
        ("{% import 'x' as y %}", "1", "import"),
        ("{% from 'x' import y %}", "1", "import"),
        ("{% extends 'x' %}", "1", "extends"),
        ("\n{{ a.__class__ }}", "2", "`_`"),
        ("{{ a.b._c }}", "1", "`_`"),
        ("{{ __name__ }}", "1", "__name__"),
        ("{{ range.__globals__ }}", "1", "`_`"),
        ("{{ lipsum() }}", "1", "lipsum"),
        ("{{ a|nothing }}", "1", "No filter"),
        ("{% for i in [1] %}" * 30 + "x" + "{% endfor %}" * 30, None, "nested"),
        ("{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}", None, "too deeply"),
        ("{% if a %}" * 3000 + "x" + "{% endif %}" * 3000, None, "too deeply"),
    ],
)
async def test_what_is_wrong_is_found_when_the_task_is_created(template, line, says):
    error = await refused(checked(template))
    assert (error.reason, error.metadata.get("line")) == ("TEMPLATE_INVALID", line)
    assert error.metadata["field"] == "task.prompt_template"
    assert says in error.message


async def test_all_faults_are_told_at_once():
    error = await refused(checked("{{ b }}\n{{ c }}\n{% include 'x' %}{{ a._x }}"))
    assert len(error.violations) == 4


@pytest.mark.parametrize(
    "template",
    [
        "{{ a|attr('__class__') }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__.__mro__}'.format(a) }}",
        "{{ ['__class__']|map('attr', a)|list }}",
        "{% set x = [1] %}{{ x.append(2) }}",
        "{{ a.update({'x': 1}) }}",
        "{{ a.clear() }}",
        "{{ 1/0 }}",
        "{{ a.missing }}",
        "{{ [][1] }}",
        "{{ '\\x00' }}",
        "{{ '\\ud800' }}",
        "{{ '' }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 2**20 }}y",
        "{% for i in range(1100) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
async def test_what_is_wrong_with_these_variables_is_found_when_it_is_rendered(template):
    error = await refused(rendered(template, {"a": {"b": 1}}))
    assert error.reason == "TEMPLATE_INVALID"


async def test_what_is_private_does_not_exist():
    assert "class" not in await rendered("{{ [a]|map(attribute='__class__')|list }}", {"a": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a'|center(10**10) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'x'|indent(10**9) }}",
        "{{ [0] * 10**9 }}",
    ],
)
async def test_memory_is_bounded(template):
    error = await refused(rendered(template))
    assert error.reason == "TEMPLATE_INVALID"
    assert "too much memory" in error.message


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% set x = 9 ** 9999999 %}{{ x ** 99 }}",
        "{% for i in range(99999) %}{{ (range(99999)|sort(reverse=true)|list)[0] }}{% endfor %}",
    ],
)
async def test_time_is_bounded_also_inside_of_one_step(template):
    error = await refused(rendered(template))
    assert error.reason == "TEMPLATE_INVALID"
    assert await rendered("fine") == "fine"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$dynamicRef": "other#x"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"$ref": "#", "properties": {"a": {}}}, "back to itself"),
        ({"properties": {"a": {"type": "int"}}}, "int"),
        ({"properties": {"a": {"pattern": "("}}}, "regular expression"),
        ({"properties": {"a": {"$id": "http://x/"}}}, "$id"),
        ({"properties": {"a": {"$schema": "http://json-schema.org/draft-04/schema#"}}}, "$schema"),
        ({"properties": {"_a": {}}}, "no name"),
        ({"properties": []}, "object"),
        ({"type": "array"}, "must be object"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "2020-12"),
        ({"$schema": 7}, "2020-12"),
        ({"allOf": [{"$ref": 7}]}, "not of type"),
        ({"other": {"properties": {"a": {"$ref": 7}}}}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/properties/b/enum/z"}, "b": {"enum": [1]}}}, "cannot be used"),
    ],
)
async def test_schemas(schema, says):
    error = await refused(checked("x", json.dumps(schema)))
    assert error.reason == "FIELD_INVALID"
    assert error.violations[0].field.startswith("task.variables_schema_json")
    assert says in error.message


async def test_a_schema_may_refer_to_itself_where_that_ends():
    schema = json.dumps({"properties": {"a": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": {
        "type": "object", "additionalProperties": {"$ref": "#/$defs/tree"}}}})  # fmt: skip
    assert await rendered("{{ a|length }}", {"a": {"b": {"c": {}}}}, schema) == "1"
    error = await refused(rendered("x", {"a": {"b": 1}}, schema))
    assert [v.field for v in error.violations] == ["variables_json.a.b"]


async def test_each_wrong_variable_is_named():
    schema = json.dumps({"properties": {"n": {"type": "integer", "minimum": 3}, "l": {"items": {"type": "string"}}},
                         "required": ["n", "l"], "additionalProperties": True})  # fmt: skip
    error = await refused(rendered("x", {"n": 1, "l": ["a", 2], "more": 1}, schema))
    assert error.reason == "VARIABLES_INVALID"
    assert {v.field for v in error.violations} == {"variables_json.n", "variables_json.l[1]", "variables_json.more"}
    error = await refused(rendered("x", {}, schema))
    assert len(error.violations) == 2
    error = await refused(rendered("x", {"a": 1}, ""))
    assert "there are none" in error.message


async def test_defaults_follow_the_schema_each_by_itself_and_are_rendered_when_they_suffice():
    schema = json.dumps({"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]})
    await checked("{{ 10 // b }} {{ a }}", schema, '{"b": 0}')
    error = await refused(checked("{{ a }}", schema, '{"b": "x", "c": 1}'))
    assert error.reason == "VARIABLES_INVALID"
    assert {v.field for v in error.violations} == {"task.default_variables_json.b", "task.default_variables_json.c"}
    error = await refused(checked("{{ 10 // b }} {{ a }}", schema, '{"a": "x", "b": 0}'))
    assert error.reason == "TEMPLATE_INVALID"
    error = await refused(checked("{{ a }}", ANY))
    assert "require it in the schema" in error.message


async def test_variables_of_a_schedule_have_to_suffice():
    schema = json.dumps({"properties": {"a": {"type": "integer"}}, "required": ["a"]})
    await checked("{{ 1 // a }}", schema, scheduled='{"a": 1}')
    for given, reason in [("{}", "VARIABLES_INVALID"), ('{"a": "x"}', "VARIABLES_INVALID"),
                          ('{"a": 0}', "TEMPLATE_INVALID")]:  # fmt: skip
        assert (await refused(checked("{{ 1 // a }}", schema, scheduled=given))).reason == reason


async def test_a_variable_comes_before_the_method_of_its_name_and_no_method_is_printed():
    order = {"order": {"items": [1, 2], "count": 2}}
    schema = json.dumps({"properties": {"order": {}}})
    assert await rendered("{{ order.items }} {{ order.count }}", order, schema) == "[1, 2] 2"
    loop = "{% for key, value in order.items() %}{{ key }}={{ value }} {% endfor %}"
    assert (await rendered(loop, {"order": {"a": 1}}, schema)).strip() == "a=1"
    error = await refused(rendered("\n{{ order.items }}", {"order": {"a": 1}}, schema))
    assert error.reason == "TEMPLATE_INVALID"
    assert "method" in error.message


async def test_numbers_of_any_size_are_reckoned_with():
    schema = json.dumps({"properties": {"a": {"multipleOf": 0.5}}})
    await rendered("x", {"a": 10**400}, schema)
    odd = json.dumps({"properties": {"a": {"multipleOf": 2}}})
    error = await refused(rendered("x", {"a": 10**400 + 1}, odd))
    assert error.reason == "VARIABLES_INVALID"
    assert [v.field for v in error.violations] == ["variables_json.a"]
    error = await refused(checked("x", odd, json.dumps({"a": 10**400 + 1})))
    assert [v.field for v in error.violations] == ["task.default_variables_json.a"]


async def test_patterns_that_backtrack_for_ever_end():
    schema = json.dumps({"properties": {"a": {"pattern": "^(a+)+$"}}})
    error = await refused(rendered("x", {"a": "a" * 60 + "!"}, schema))
    assert "processor time" in error.message
    error = await refused(checked("x", schema, json.dumps({"a": "a" * 60 + "!"})))
    assert "processor time" in error.message


async def test_many_at_once_do_not_wait_for_ever_and_leave_nothing(monkeypatch):
    bad = [refused(rendered("{{ 'a' * 10**10 }}")) for _ in range(10)]
    good = [rendered("{{ a }}", {"a": n}) for n in range(50)]
    found = await asyncio.gather(*bad, *good)
    assert found[10:] == [str(n) for n in range(50)]
    # Who gives up leaves the process in order.
    waiting = asyncio.create_task(rendered("{% for i in range(99999) %}{% set x = i|string * 99 %}{% endfor %}fine"))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await rendered("fine") == "fine"
    assert templates._idle.qsize() <= 2


async def test_the_process_has_no_environment(monkeypatch):
    monkeypatch.setenv("AGENTRPC_SIGNING_KEY", "secret")
    await rendered("x")
    process = templates._idle.get_nowait()
    templates._idle.put(process)
    assert b"secret" not in await asyncio.to_thread(Path(f"/proc/{process.pid}/environ").read_bytes)


async def test_a_process_that_was_killed_is_replaced():
    await rendered("x")
    process = templates._idle.get_nowait()
    templates._idle.put(process)
    os.kill(process.pid, 9)
    process.wait()
    assert await rendered("x") == "x"


async def test_it_is_fast():
    await rendered("x")
    start = time.monotonic()
    await asyncio.gather(*[rendered("{{ a }}", {"a": 1}) for _ in range(100)])
    assert time.monotonic() - start < 20


async def test_ready_made_tasks_are_sound_and_say_what_they_are_given():
    found = task_templates()
    assert {"kubernetes", "docker", "git", "logs", "backup"} <= {one.category for one in found.values()}
    examples = {
        "git-analysis": {"repository": "https://example.com/x.git", "focus": "locks"},
        "dependency-audit": {"repository": "https://example.com/x.git"},
        "log-analysis": {"paths": ["/var/log/app.log"], "ignore": ["known"]},
        "backup-verification": {"folder": "/backups"},
        "kubernetes-health-check": {"namespaces": ["shop"]},
        "docker-monitoring": {},
    }
    for name, one in found.items():
        task = one.task
        spec = {"template": task.prompt_template, "schema": task.variables_schema_json,
                "defaults": task.default_variables_json}  # fmt: skip
        await check_spec(clock.uuid7(), **spec)
        prompt = (await prepare(clock.uuid7(), **spec, given=json.dumps(examples[name]))).prompt
        assert all(str(value) in prompt for value in examples[name].values() if isinstance(value, str)), prompt
    git = found["git-analysis"].task
    bad = json.dumps({"repository": "https://x/y; rm -rf /"})
    error = await refused(prepare(clock.uuid7(), template=git.prompt_template, schema=git.variables_schema_json,
                                  defaults=git.default_variables_json, given=bad))  # fmt: skip
    assert error.reason == "VARIABLES_INVALID"
