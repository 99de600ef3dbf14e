"""What callers send of tasks, checked against the limits that the contract states."""

import asyncio
import re
from datetime import timedelta
from uuid import UUID

from agentrpc.domain.states import TERMINAL_RUN_STATES
from agentrpc.domain.variables import load_variables
from agentrpc.errors import InvalidArgument
from agentrpc.services.schedules import Schedules
from agentrpc.services.templates import check_spec
from agentrpc.services.validation import Faults, check_enums, check_options, check_report_template
from agentrpc.v1 import report_pb2, run_pb2, task_pb2

__all__ = ["SETTABLE", "check_json", "check_task"]

SETTABLE = (
    "display_name",
    "description",
    "labels",
    "prompt_template",
    "variables_schema_json",
    "default_variables_json",
    "agent",
    "options",
    "tool_groups",
    "timeout",
    "inactivity_timeout",
    "retry_policy",
    "schedule",
    "notifications",
    "report",
    "shared",
)

_MAX_TEMPLATE = 256 * 1024
_MAX_JSON = 64 * 1024
# Sessions have 64, and those of executions two of ours.
_MAX_LABELS = 62
_MAX_NOTIFICATIONS = 8
_MAX_ATTEMPTS = 10
_WEBHOOK = re.compile(r"webhooks/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ENDS = [run_pb2.Run.State.Value(f"STATE_{state}") for state in TERMINAL_RUN_STATES]


async def check_task(user: UUID, task: task_pb2.Task, schedules: Schedules) -> None:
    """All that callers set of a task but what it refers to: that is for the transaction that stores it.

    Args:
        user: Whose call it is.
        task: The task.
        schedules: Knows what a schedule may be.

    Raises:
        InvalidArgument: FIELD_INVALID, JSON_INVALID, TEMPLATE_INVALID or VARIABLES_INVALID.
        ResourceExhausted: RATE_LIMITED.
    """
    faults = Faults()
    check_enums(task, faults, "task.")
    faults.title("task.display_name", task.display_name)
    faults.text("task.description", task.description, 4000)
    _labels(task, faults)
    faults.check(bool(task.prompt_template.strip()), "task.prompt_template", "is required: what the agent is to do")
    faults.bytes("task.prompt_template", task.prompt_template, _MAX_TEMPLATE)
    scheduled = task.schedule.variables_json if task.HasField("schedule") else None
    texts = {
        "task.variables_schema_json": task.variables_schema_json,
        "task.default_variables_json": task.default_variables_json,
        "task.schedule.variables_json": scheduled or "",
    }
    for field, text in texts.items():
        faults.bytes(field, text, _MAX_JSON)
    check_options(task.options, faults, "task.options")
    if task.HasField("timeout"):
        faults.duration("task.timeout", task.timeout, timedelta(seconds=1), timedelta(days=7))
    if task.HasField("inactivity_timeout"):
        faults.duration("task.inactivity_timeout", task.inactivity_timeout, timedelta(seconds=10), timedelta(days=1))
    if task.HasField("retry_policy"):
        _retry_policy(task.retry_policy, faults)
    _notifications(task, faults)
    if task.HasField("schedule"):
        schedules.check(task.schedule, faults, "task.schedule")
    faults.bytes("task.report.template", task.report.template, _MAX_TEMPLATE)
    plain = task.report.format == report_pb2.Report.FORMAT_JSON
    faults.check(not (task.report.template and plain), "task.report.template", "JSON takes no template: leave it empty")
    faults.done()
    for field, text in texts.items():
        check_json(field, text)
    if task.report.template:
        # In a thread: to parse a long one takes its time.
        await asyncio.to_thread(check_report_template, "task.report.template", task.report.template)
    await check_spec(
        user,
        template=task.prompt_template,
        schema=task.variables_schema_json,
        defaults=task.default_variables_json,
        scheduled=scheduled,
        scheduled_field="task.schedule.variables_json",
    )


def check_json(field: str, text: str) -> None:
    """Raise JSON_INVALID unless the text is empty or a JSON object, of numbers and texts that can be stored."""
    try:
        load_variables(text)
    except ValueError:
        raise InvalidArgument(
            f"{field} is not the text of a JSON object", reason="JSON_INVALID", metadata={"field": field}
        ) from None


def _labels(task: task_pb2.Task, faults: Faults) -> None:
    faults.labels("task.labels", task.labels.items())
    faults.check(len(task.labels) <= _MAX_LABELS, "task.labels", f"may have at most {_MAX_LABELS} entries")
    for key in task.labels:
        good = not key.startswith("agentrpc.dev/")
        faults.check(good, "task.labels", f"the key {key[:80]!r} begins with agentrpc.dev/, which is ours")


def _retry_policy(policy: task_pb2.RetryPolicy, faults: Faults) -> None:
    good = 1 <= policy.max_attempts <= _MAX_ATTEMPTS
    faults.check(good, "task.retry_policy.max_attempts", f"must be between 1 and {_MAX_ATTEMPTS}")
    if policy.HasField("backoff"):
        faults.duration("task.retry_policy.backoff", policy.backoff, timedelta(seconds=1), timedelta(hours=1))


def _notifications(task: task_pb2.Task, faults: Faults) -> None:
    good = len(task.notifications) <= _MAX_NOTIFICATIONS
    faults.check(good, "task.notifications", f"may have at most {_MAX_NOTIFICATIONS} entries")
    for index, notification in enumerate(task.notifications):
        where = f"task.notifications[{index}]"
        good = bool(_WEBHOOK.fullmatch(notification.webhook))
        faults.check(good, f"{where}.webhook", "must have the form webhooks/{webhook} with a lower-case UUID")
        for state in notification.states:
            faults.check(state in _ENDS, f"{where}.states", "must be states in which an execution ends")
