"""Tasks over a real socket: what is created, read, changed, shared and run, and how bad input is refused."""

import asyncio
import json
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from agentrpc.domain.states import RunState
from agentrpc.services.outbox import Outbox
from agentrpc.services.secrets import SecretBox
from agentrpc.store.tables import Session
from agentrpc.v1 import agent_pb2, agent_service_pb2, run_pb2, session_pb2, session_service_pb2, task_pb2
from agentrpc.v1 import task_service_pb2 as api
from tests.rpc.test_unary import failure

SCHEMA = json.dumps({"properties": {"host": {"type": "string"}, "n": {"type": "integer"}}, "required": ["host"]})
NOWHERE = "tasks/00000000-0000-7000-8000-000000000000"


def make(client, *, request_id="", template="", validate_only=False, **fields):
    given = {
        "display_name": "check",
        "prompt_template": "check {{ host }} {{ n }} times",
        "variables_schema_json": SCHEMA,
        "default_variables_json": '{"n": 2}',
        **fields,
    }
    task = task_pb2.Task(**({} if template else given))
    return client.call(
        client.tasks.CreateTask,
        api.CreateTaskRequest(task=task, request_id=request_id, template=template, validate_only=validate_only),
    )


def get(client, name):
    return client.call(client.tasks.GetTask, api.GetTaskRequest(name=name))


def run(client, task, given='{"host": "a"}', request_id=""):
    request = api.RunTaskRequest(name=task.name, variables_json=given, request_id=request_id)
    return client.call(client.tasks.RunTask, request)


def execution(client, name):
    return client.call(client.tasks.GetExecution, api.GetExecutionRequest(name=name))


def update(client, task, *paths, **fields):
    request = api.UpdateTaskRequest(task=task_pb2.Task(name=task.name, **fields))
    if paths:
        request.update_mask.CopyFrom(FieldMask(paths=paths))
    return client.call(client.tasks.UpdateTask, request)


def delete(client, name, etag=""):
    return client.call(client.tasks.DeleteTask, api.DeleteTaskRequest(name=name, etag=etag))


async def listed(client, **fields):
    return list((await client.call(client.tasks.ListTasks, api.ListTasksRequest(**fields))).tasks)


async def executions(client, parent="tasks/-", **fields):
    request = api.ListExecutionsRequest(parent=parent, **fields)
    return list((await client.call(client.tasks.ListExecutions, request)).executions)


@pytest.fixture
def settled(edge):
    """Lets the scheduler's side know what happened: `await settled()`."""
    return Outbox(edge.database, edge.use_cases.consumers()).drain


async def test_a_task_is_created_read_listed_changed_and_deleted(client):
    made = await make(client, labels={"team": "x"}, timeout=Duration(seconds=60), description="Every day")
    assert made.etag
    assert made.summary.total_count == 0
    assert not made.HasField("schedule_status")
    assert await get(client, made.name) == made
    other = await make(client, display_name="another")
    assert [t.name for t in await listed(client)] == [other.name, made.name]
    assert [t.name for t in await listed(client, labels={"team": "x"})] == [made.name]
    assert [t.name for t in await listed(client, text="EVERY")] == [made.name]
    assert [t.name for t in await listed(client, order_by="display_name")] == [other.name, made.name]
    assert not await listed(client, scheduled=True)
    changed = await update(client, made, "description", "owner", description="now")
    assert (changed.description, changed.owner, changed.labels) == ("now", made.owner, made.labels)
    assert changed.etag != made.etag
    assert (await update(client, made, "description", description="now")).etag == changed.etag
    assert await failure(delete(client, made.name, made.etag)) == ("ABORTED", "ETAG_MISMATCH")
    await delete(client, made.name, changed.etag)
    assert await failure(get(client, made.name)) == ("NOT_FOUND", "NOT_FOUND")
    assert await failure(run(client, made)) == ("NOT_FOUND", "NOT_FOUND")
    assert [t.name for t in await listed(client)] == [other.name]
    gone = await listed(client, show_deleted=True, labels={"team": "x"})
    assert gone[0].HasField("delete_time")


async def test_pages_of_tasks_and_executions(client):
    tasks = [await make(client, display_name=f"{n}") for n in range(5)]
    for n in range(5):
        await run(client, tasks[0], json.dumps({"host": str(n)}))
    for method, request, field in [
        (client.tasks.ListTasks, api.ListTasksRequest(page_size=2), "tasks"),
        (client.tasks.ListExecutions, api.ListExecutionsRequest(parent=tasks[0].name, page_size=2), "executions"),
    ]:
        found = []
        while True:
            response = await client.call(method, request)
            found += [one.name for one in getattr(response, field)]
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        assert len(found) == len(set(found)) == 5
        assert found == sorted(found, reverse=True)
        request.page_token = "x"
        assert await failure(client.call(method, request)) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_running_a_task_makes_a_session_and_a_run_of_the_callers(client, settled, hand):
    options = session_pb2.SessionOptions(allowed_tools=["Read"], model="m")
    task = await make(client, options=options, labels={"team": "x"}, timeout=Duration(seconds=60))
    made = await run(client, task)
    assert made.state == run_pb2.Run.STATE_QUEUED
    assert made.trigger == task_pb2.Execution.TRIGGER_MANUAL
    assert (made.attempt, made.creator) == (1, task.owner)
    assert json.loads(made.variables_json) == {"host": "a", "n": 2}
    started = await client.get_run(made.run)
    assert started.prompt == "check a 2 times"
    assert started.timeout == Duration(seconds=60)
    session = await client.get_session(made.session)
    assert (session.display_name, session.options) == ("check", options)
    assert session.labels == started.labels
    ids = [UUID(part) for part in made.name.split("/")[1::2]]
    assert dict(session.labels) == {
        "team": "x", "agentrpc.dev/task": str(ids[0]), "agentrpc.dev/execution": str(ids[1]),
    }  # fmt: skip
    assert (await get(client, task.name)).summary.open_count == 1
    claim = await hand.claim()
    await hand.call(claim, "one", "two")
    working = await execution(client, made.name)
    assert (working.state, working.tool_call_count, working.worker) == (run_pb2.Run.STATE_RUNNING, 2, "host:7")
    await hand.end(claim)
    # The end is seen at once; it is counted when the scheduler is told.
    assert (await execution(client, made.name)).state == run_pb2.Run.STATE_SUCCEEDED
    await settled()
    done = await execution(client, made.name)
    assert done.state == run_pb2.Run.STATE_SUCCEEDED
    assert done.end_time == (await client.get_run(made.run)).end_time
    summary = (await get(client, task.name)).summary
    assert (summary.total_count, summary.open_count, summary.succeeded_count, summary.success_rate) == (1, 0, 1, 1)
    assert summary.last_execution == made.name
    assert summary.HasField("mean_duration")


async def test_an_update_changes_what_begins_after_it(client):
    task = await make(client)
    before = await run(client, task)
    await update(client, task, prompt_template="look at {{ host }}")
    after = await run(client, task)
    assert (await client.get_run(before.run)).prompt == "check a 2 times"
    assert (await client.get_run(after.run)).prompt == "look at a"
    # What is only one with the other is judged as it will be.
    assert await failure(update(client, task, "variables_schema_json")) == ("INVALID_ARGUMENT", "TEMPLATE_INVALID")
    other = json.dumps({"properties": {"x": {"type": "string"}}, "required": ["x"]})
    changed = await update(client, task, variables_schema_json=other, prompt_template="{{ x }}",
                           default_variables_json='{"x": "y"}')  # fmt: skip
    again = await run(client, changed, "")
    assert (await client.get_run(again.run)).prompt == "y"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"display_name": " "}, "FIELD_INVALID"),
        ({"display_name": "x" * 201}, "FIELD_INVALID"),
        ({"prompt_template": ""}, "FIELD_INVALID"),
        ({"prompt_template": "x" * (256 * 1024 + 1)}, "FIELD_INVALID"),
        ({"prompt_template": "{{ nothing }}"}, "TEMPLATE_INVALID"),
        ({"prompt_template": "{% if"}, "TEMPLATE_INVALID"),
        ({"prompt_template": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
          "variables_schema_json": "", "default_variables_json": ""}, "TEMPLATE_INVALID"),
        ({"variables_schema_json": "[]"}, "JSON_INVALID"),
        ({"variables_schema_json": '{"type": "x"}'}, "FIELD_INVALID"),
        ({"default_variables_json": "{"}, "JSON_INVALID"),
        ({"default_variables_json": '{"n": "x"}'}, "VARIABLES_INVALID"),
        ({"default_variables_json": '{"x": 1}'}, "VARIABLES_INVALID"),
        ({"labels": {"agentrpc.dev/task": "x"}}, "FIELD_INVALID"),
        ({"labels": {f"k{n}": "" for n in range(63)}}, "FIELD_INVALID"),
        ({"options": session_pb2.SessionOptions(allowed_tools=["("])}, "FIELD_INVALID"),
        ({"timeout": Duration(seconds=0)}, "FIELD_INVALID"),
        ({"inactivity_timeout": Duration(seconds=1)}, "FIELD_INVALID"),
        ({"retry_policy": task_pb2.RetryPolicy()}, "FIELD_INVALID"),
        ({"retry_policy": task_pb2.RetryPolicy(max_attempts=11)}, "FIELD_INVALID"),
        ({"retry_policy": task_pb2.RetryPolicy(max_attempts=2, backoff=Duration(seconds=7200))}, "FIELD_INVALID"),
        ({"notifications": [task_pb2.TaskNotification(webhook="x")]}, "FIELD_INVALID"),
        ({"agent": "x"}, "NAME_INVALID"),
        ({"tool_groups": ["x"]}, "NAME_INVALID"),
        ({"tool_groups": ["toolGroups/00000000-0000-7000-8000-000000000000"] * 2}, "FIELD_INVALID"),
    ],
)  # fmt: skip
async def test_bad_tasks(client, fields, reason):
    assert await failure(make(client, **fields)) == ("INVALID_ARGUMENT", reason)
    assert await failure(make(client, validate_only=True, **fields)) == ("INVALID_ARGUMENT", reason)


async def test_what_is_not_there(client):
    for fields in [
        {"agent": NOWHERE.replace("tasks", "agents")},
        {"tool_groups": [NOWHERE.replace("tasks", "toolGroups")]},
        {"template": "none"},
    ]:
        assert await failure(make(client, **fields)) == ("NOT_FOUND", "NOT_FOUND")
    gone = f"{NOWHERE}/executions/{NOWHERE.split('/')[1]}"
    for call in [
        get(client, NOWHERE),
        execution(client, gone),
        delete(client, NOWHERE),
        executions(client, NOWHERE),
        client.call(client.tasks.CancelExecution, api.CancelExecutionRequest(name=gone)),
        client.call(client.tasks.RetryExecution, api.RetryExecutionRequest(name=gone)),
    ]:
        assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
    for name in ["", "tasks/1", NOWHERE.upper(), gone]:
        assert await failure(get(client, name)) == ("INVALID_ARGUMENT", "NAME_INVALID")
    assert await failure(execution(client, NOWHERE)) == ("INVALID_ARGUMENT", "NAME_INVALID")
    task = await make(client)
    other = await make(client)
    made = await run(client, task)
    elsewhere = made.name.replace(task.name, other.name)
    assert await failure(execution(client, elsewhere)) == ("NOT_FOUND", "NOT_FOUND")


async def test_bad_variables_and_lists(client):
    task = await make(client)
    for given, reason in [
        ("", "VARIABLES_INVALID"),
        ("{}", "VARIABLES_INVALID"),
        ('{"host": 1}', "VARIABLES_INVALID"),
        ('{"host": "a", "other": 1}', "VARIABLES_INVALID"),
        ("[]", "JSON_INVALID"),
        ('{"host": NaN}', "JSON_INVALID"),
        ('{"host": "\\u0000"}', "JSON_INVALID"),
        ('{"host": "' + "x" * 300_000 + '"}', "FIELD_INVALID"),
    ]:
        assert await failure(run(client, task, given)) == ("INVALID_ARGUMENT", reason), given[:50]
    assert not await executions(client)
    for fields in [{"page_size": -1}, {"order_by": "x"}, {"states": [99]}, {"triggers": [99]}]:
        assert await failure(executions(client, **fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    for fields in [{"page_size": -1}, {"order_by": "x"}, {"text": "x" * 201}]:
        assert await failure(listed(client, **fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert await failure(listed(client, owner="x")) == ("INVALID_ARGUMENT", "NAME_INVALID")


async def test_wrong_variables_of_long_texts_are_told(client):
    names = [f"v{number}" for number in range(4)]
    schema = json.dumps({"properties": {name: {"type": "integer"} for name in names}})
    task = await make(client, prompt_template="x", variables_schema_json=schema, default_variables_json="")
    for character in ("x", "名", "😀"):
        given = json.dumps(dict.fromkeys(names, character * 500), ensure_ascii=False)
        assert await failure(run(client, task, given)) == ("INVALID_ARGUMENT", "VARIABLES_INVALID")


async def test_numbers_that_no_store_takes_are_refused(client):
    task = await make(client, variables_schema_json='{"properties": {"x": {}}, "required": ["x"]}',
                      default_variables_json="", prompt_template="{{ x }}")  # fmt: skip
    for given in ['{"x": 1e999}', '{"x": "\\ud800"}', '{"x": ' + "9" * 5000 + "}"]:
        assert await failure(run(client, task, given)) == ("INVALID_ARGUMENT", "JSON_INVALID")
    made = await run(client, task, '{"x": 9007199254740993}')
    assert made.variables_json == '{"x": 9007199254740993}'


async def test_only_checked(client):
    checked = await make(client, validate_only=True)
    assert checked.display_name == "check"
    assert not await listed(client)


async def test_request_ids(client):
    request_id = str(uuid4())
    tasks = await asyncio.gather(*(make(client, request_id=request_id) for _ in range(10)))
    assert len({task.name for task in tasks}) == 1
    again = str(uuid4())
    made = await asyncio.gather(*(run(client, tasks[0], request_id=again) for _ in range(10)))
    assert len({one.name for one in made}) == len({one.run for one in made}) == 1
    # Also when the task does not take those variables any more.
    await update(client, tasks[0], variables_schema_json='{"properties": {"x": {}}, "required": ["x"]}',
                 prompt_template="{{ x }}", default_variables_json='{"x": 1}')  # fmt: skip
    assert (await run(client, tasks[0], request_id=again)).name == made[0].name
    assert await failure(run(client, tasks[0], '{"x": 2}', request_id=again)) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
    )
    assert len(await executions(client)) == 1


async def test_what_is_anothers_and_what_is_shared(edge, client):
    private, shared = await make(client), await make(client, shared=True)
    mine = await run(client, shared)
    async with edge.client("bob") as bob, edge.client("vic") as vic, edge.client("admin") as admin:
        for call in [get(bob, private.name), run(bob, private), update(bob, private, description="x"),
                     delete(bob, private.name), execution(bob, mine.name),
                     bob.call(bob.tasks.CancelExecution, api.CancelExecutionRequest(name=mine.name))]:  # fmt: skip
            assert await failure(call) == ("NOT_FOUND", "NOT_FOUND")
        for call in [update(bob, shared, description="x"), delete(bob, shared.name), make(vic), run(vic, shared)]:
            assert await failure(call) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert [task.name for task in await listed(bob)] == [shared.name]
        assert not await listed(bob, owner=private.owner, text="nothing")
        theirs = await run(bob, shared)
        assert theirs.creator != mine.creator
        assert (await bob.get_session(theirs.session)).owner == theirs.creator
        assert await failure(client.get_session(theirs.session)) == ("NOT_FOUND", "NOT_FOUND")
        assert [one.name for one in await executions(bob)] == [theirs.name]
        assert [one.name for one in await executions(bob, shared.name)] == [theirs.name]
        assert (await get(bob, shared.name)).summary.last_execution == theirs.name
        assert (await get(client, shared.name)).summary.last_execution == mine.name
        assert (await get(client, shared.name)).summary.total_count == 2
        assert {one.name for one in await executions(admin)} == {mine.name, theirs.name}
        assert (await get(vic, shared.name)).name == shared.name
        assert (await update(admin, shared, "shared")).shared is False
        assert await failure(run(bob, shared)) == ("NOT_FOUND", "NOT_FOUND")
        assert (await execution(bob, theirs.name)).name == theirs.name


async def test_secrets_are_kept_and_never_shown(edge, client):
    server = session_pb2.McpServer(
        name="s", http=session_pb2.McpRemote(url="https://x?key=a-secret", headers={"key": "b-secret"})
    )
    task = await make(client, options=session_pb2.SessionOptions(mcp_servers=[server], model="m"))
    assert "secret" not in str(task)
    task.options.model = "n"
    changed = await update(client, task, "options", options=task.options)
    assert "secret" not in str(changed)
    made = await run(client, task)
    async with edge.database.transaction() as tx:
        stored = (await tx.get_one(Session, UUID(made.session.removeprefix("sessions/")))).options
    assert b"-secret" not in stored
    kept = session_pb2.SessionOptions.FromString(stored)
    SecretBox(edge.settings.secret_keys).open_options(kept)
    assert kept.mcp_servers[0].http == server.http
    task.options.mcp_servers[0].http.url = "https://y?key=REDACTED"
    assert await failure(update(client, task, "options", options=task.options)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert (await client.get_session(made.session)).options.model == "n"


async def test_an_execution_takes_the_agents_default_version_of_the_moment(edge, client):
    options = session_pb2.SessionOptions(model="one", allowed_tools=["Read"])
    agent = await client.call(
        client.agents.CreateAgent,
        agent_service_pb2.CreateAgentRequest(
            agent=agent_pb2.Agent(display_name="a"), version=agent_pb2.AgentVersion(options=options)
        ),
    )
    task = await make(client, agent=agent.name, options=session_pb2.SessionOptions(model="two"), shared=True)
    made = await run(client, task)
    assert made.agent == f"{agent.name}/versions/1"
    session = await client.get_session(made.session)
    assert (session.options.model, list(session.options.allowed_tools)) == ("two", ["Read"])
    in_use = client.call(client.agents.DeleteAgent, agent_service_pb2.DeleteAgentRequest(name=agent.name))
    assert await failure(in_use) == ("FAILED_PRECONDITION", "IN_USE")
    async with edge.client("bob") as bob:
        # The task is shared, the agent is not.
        assert await failure(run(bob, task)) == ("NOT_FOUND", "NOT_FOUND")
    await delete(client, task.name)
    await client.call(client.agents.DeleteAgent, agent_service_pb2.DeleteAgentRequest(name=agent.name))


async def test_cancel_and_retry(client, settled, hand):
    task = await make(client)
    made = await run(client, task)
    again = api.RetryExecutionRequest(name=made.name)
    assert await failure(client.call(client.tasks.RetryExecution, again)) == ("FAILED_PRECONDITION", "STATE_INVALID")
    cancel = api.CancelExecutionRequest(name=made.name, reason="no")
    for _ in range(2):
        assert (await client.call(client.tasks.CancelExecution, cancel)).state == run_pb2.Run.STATE_CANCELLED
        await settled()
    assert (await get(client, task.name)).summary.cancelled_count == 1
    assert (await client.get_run(made.run)).HasField("stop_receipt")
    again.request_id = str(uuid4())
    retried = await client.call(client.tasks.RetryExecution, again)
    assert (retried.retry_of, retried.attempt) == (made.name, 1)
    assert retried.trigger == task_pb2.Execution.TRIGGER_RETRY
    assert retried.variables_json == made.variables_json
    assert (await client.call(client.tasks.RetryExecution, again)).name == retried.name
    claim = await hand.claim()
    assert (await client.call(client.tasks.CancelExecution, api.CancelExecutionRequest(name=retried.name))).state == (
        run_pb2.Run.STATE_RUNNING
    )
    assert (await hand.wanted(claim)).stop_kind == "CANCEL"
    await hand.end(claim, RunState.CANCELLED, run_pb2.StopReceipt(confirmed=True))
    await settled()
    summary = (await get(client, task.name)).summary
    assert (summary.total_count, summary.cancelled_count, summary.open_count) == (2, 2, 0)
    for fields, count in [
        ({"states": [run_pb2.Run.STATE_CANCELLED]}, 2),
        ({"states": [run_pb2.Run.STATE_QUEUED]}, 0),
        ({"triggers": [task_pb2.Execution.TRIGGER_RETRY]}, 1),
        ({"create_time_from": retried.create_time}, 1),
        ({"create_time_before": retried.create_time}, 1),
    ]:
        assert len(await executions(client, **fields)) == count, fields
    names = [one.name for one in await executions(client, order_by="create_time")]
    assert names == [made.name, retried.name]


async def test_changes_at_the_same_time_do_not_lose_each_other(client):
    task = await make(client)
    await asyncio.gather(
        update(client, task, "description", description="d"),
        update(client, task, "labels", labels={"a": "b"}),
        update(client, task, "prompt_template", prompt_template="other {{ host }}"),
        *(run(client, task) for _ in range(10)),
    )
    now = await get(client, task.name)
    assert (now.description, now.labels, now.prompt_template) == ("d", {"a": "b"}, "other {{ host }}")
    assert now.summary.total_count == 10
    prompts = {(await client.get_run(one.run)).prompt for one in await executions(client)}
    assert prompts <= {"check a 2 times", "other a"}


async def test_ready_made_tasks(client):
    response = await client.call(client.tasks.ListTaskTemplates, api.ListTaskTemplatesRequest())
    assert len(response.templates) >= 6
    only = await client.call(client.tasks.ListTaskTemplates, api.ListTaskTemplatesRequest(category="git"))
    assert [one.id for one in only.templates] == ["git-analysis"]
    task = await client.call(
        client.tasks.CreateTask,
        api.CreateTaskRequest(template="git-analysis", task=task_pb2.Task(display_name="mine")),
    )
    assert task.display_name == "mine"
    assert task.prompt_template == only.templates[0].task.prompt_template
    made = await run(client, task, '{"repository": "https://example.com/x.git"}')
    assert "https://example.com/x.git" in (await client.get_run(made.run)).prompt
    sessions = await client.call(
        client.sessions.ListSessions,
        session_service_pb2.ListSessionsRequest(labels={"agentrpc.dev/task": task.name.removeprefix("tasks/")}),
    )
    assert [one.name for one in sessions.sessions] == [made.session]
