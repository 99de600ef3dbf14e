"""Tasks with the real CLI: variables become a prompt, and what the agent does becomes the execution."""

import asyncio
import json

import pytest

from agentrpc.v1 import run_pb2, session_pb2, task_pb2
from agentrpc.v1 import task_service_pb2 as api

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ended(client, name):
    async with asyncio.timeout(120):
        while True:
            found = await client.call(client.tasks.GetExecution, api.GetExecutionRequest(name=name))
            if found.HasField("end_time"):
                return found
            await asyncio.sleep(0.1)


async def settled(client, task, count):
    """The summary of a task, once so many executions are counted in it."""
    async with asyncio.timeout(60):
        while True:
            found = (await client.call(client.tasks.GetTask, api.GetTaskRequest(name=task))).summary
            if found.total_count - found.open_count >= count:
                return found
            await asyncio.sleep(0.1)


async def test_a_task_with_variables_runs_and_its_execution_has_result_tool_calls_and_usage(client, running):
    template = (
        "{% for word in words %}"
        '[[tool: Bash {"command": "echo {{ word|upper }} >> said"}]]\n[[then]]\n'
        "{% endfor %}[[text: said {{ words|length }}]]"
    )
    schema = {"properties": {"words": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}}},
              "required": ["words"]}  # fmt: skip
    task = await client.call(
        client.tasks.CreateTask,
        api.CreateTaskRequest(
            task=task_pb2.Task(
                display_name="say",
                prompt_template=template,
                variables_schema_json=json.dumps(schema),
                options=session_pb2.SessionOptions(allowed_tools=["Bash"]),
            )
        ),
    )
    request = api.RunTaskRequest(name=task.name, variables_json='{"words": ["one", "two"]}')
    made = await client.call(client.tasks.RunTask, request)
    done = await ended(client, made.name)
    assert done.state == run_pb2.Run.STATE_SUCCEEDED, done
    assert done.result.text == "said 2"
    assert done.tool_call_count == 2
    assert done.usage.output_tokens > 0
    assert (running.workspace(done.session) / "said").read_text().split() == ["ONE", "TWO"]
    summary = await settled(client, task.name, 1)
    assert (summary.succeeded_count, summary.usage) == (1, done.usage)


async def test_an_execution_that_expires_is_tried_again(client):
    task = task_pb2.Task(
        display_name="slow",
        prompt_template='[[tool: Bash {"command": "tail -f /dev/null"}]]\n[[then]]\n[[text: x]]',
        options=session_pb2.SessionOptions(allowed_tools=["Bash"]),
        retry_policy=task_pb2.RetryPolicy(max_attempts=2),
    )
    task.timeout.FromSeconds(2)
    task.retry_policy.backoff.FromSeconds(1)
    made = await client.call(client.tasks.CreateTask, api.CreateTaskRequest(task=task))
    first = await client.call(client.tasks.RunTask, api.RunTaskRequest(name=made.name))
    assert (await ended(client, first.name)).state == run_pb2.Run.STATE_EXPIRED
    summary = await settled(client, made.name, 2)
    assert (summary.total_count, summary.failed_count) == (2, 2)
    newest = await client.call(client.tasks.GetExecution, api.GetExecutionRequest(name=summary.last_execution))
    assert (newest.retry_of, newest.attempt, newest.state) == (first.name, 2, run_pb2.Run.STATE_EXPIRED)
