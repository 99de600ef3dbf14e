"""Resource names (AIP-122).

Ids are written in lower case with hyphens. A name of another form is NAME_INVALID; a well-formed one of something that
does not exist is for the store to judge.
"""

import re
from uuid import UUID

from agentrpc.errors import InvalidArgument

__all__ = [
    "CREDENTIAL",
    "MCP_SERVER",
    "MEMORY_STORE",
    "agent_name",
    "agent_version_name",
    "approval_name",
    "archive_name",
    "credential_name",
    "delivery_name",
    "execution_name",
    "grant_name",
    "mcp_server_name",
    "memory_entry_name",
    "memory_store_name",
    "parse_agent",
    "parse_agent_or_version",
    "parse_agent_version",
    "parse_approval",
    "parse_archive",
    "parse_credential",
    "parse_delivery",
    "parse_delivery_or_wildcard",
    "parse_execution",
    "parse_grant",
    "parse_mcp_server",
    "parse_memory_entry",
    "parse_memory_store",
    "parse_report",
    "parse_run",
    "parse_session",
    "parse_session_or_wildcard",
    "parse_task",
    "parse_task_or_wildcard",
    "parse_tool_group",
    "parse_user",
    "parse_webhook",
    "report_name",
    "run_name",
    "session_name",
    "task_name",
    "tool_group_name",
    "user_name",
    "webhook_name",
]

_ID = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_SESSION = re.compile(f"sessions/{_ID}")
_RUN = re.compile(f"sessions/{_ID}/runs/{_ID}")
_APPROVAL = re.compile(f"sessions/{_ID}/approvals/{_ID}")
_GRANT = re.compile(f"sessions/{_ID}/grants/{_ID}")
MEMORY_STORE = re.compile(f"memoryStores/{_ID}")
_MEMORY_ENTRY = re.compile(f"memoryStores/{_ID}/entries/(.+)", re.DOTALL)
_ARCHIVE = re.compile(f"sessions/{_ID}/archive")
_REPORT = re.compile(f"reports/{_ID}")
_USER = re.compile(f"users/{_ID}")
_TASK = re.compile(f"tasks/{_ID}")
_EXECUTION = re.compile(f"tasks/{_ID}/executions/{_ID}")
_AGENT = re.compile(f"agents/{_ID}")
_AGENT_VERSION = re.compile(f"agents/{_ID}/versions/([1-9][0-9]{{0,8}})")
_TOOL_GROUP = re.compile(f"toolGroups/{_ID}")
_WEBHOOK = re.compile(f"webhooks/{_ID}")
_DELIVERY = re.compile(f"webhooks/{_ID}/deliveries/{_ID}")
MCP_SERVER = re.compile(f"mcpServers/{_ID}")
CREDENTIAL = re.compile(f"credentials/{_ID}")


def session_name(session_id: UUID) -> str:
    """`sessions/{session}`."""
    return f"sessions/{session_id}"


def run_name(session_id: UUID, run_id: UUID) -> str:
    """`sessions/{session}/runs/{run}`."""
    return f"sessions/{session_id}/runs/{run_id}"


def grant_name(session_id: UUID, grant_id: UUID) -> str:
    """`sessions/{session}/grants/{grant}`."""
    return f"sessions/{session_id}/grants/{grant_id}"


def approval_name(session_id: UUID, approval_id: UUID) -> str:
    """`sessions/{session}/approvals/{approval}`."""
    return f"sessions/{session_id}/approvals/{approval_id}"


def memory_store_name(store_id: UUID) -> str:
    """`memoryStores/{store}`."""
    return f"memoryStores/{store_id}"


def memory_entry_name(store_id: UUID, key: str) -> str:
    """`memoryStores/{store}/entries/{key}`; a key may have slashes."""
    return f"memoryStores/{store_id}/entries/{key}"


def archive_name(session_id: UUID) -> str:
    """`sessions/{session}/archive`."""
    return f"sessions/{session_id}/archive"


def report_name(report_id: UUID) -> str:
    """`reports/{report}`."""
    return f"reports/{report_id}"


def user_name(user_id: UUID) -> str:
    """`users/{user}`."""
    return f"users/{user_id}"


def task_name(task_id: UUID) -> str:
    """`tasks/{task}`."""
    return f"tasks/{task_id}"


def execution_name(task_id: UUID, execution_id: UUID) -> str:
    """`tasks/{task}/executions/{execution}`."""
    return f"tasks/{task_id}/executions/{execution_id}"


def parse_session(name: str, *, field: str = "name") -> UUID:
    """The id in `sessions/{session}`.

    Args:
        name: The name as the caller wrote it.
        field: The field it came in, for the error.

    Raises:
        InvalidArgument: NAME_INVALID, for another form.
    """
    return _match(_SESSION, name, field, "sessions/{session}")[0]


def parse_session_or_wildcard(name: str, *, field: str = "parent") -> UUID | None:
    """As `parse_session`; None for `sessions/-`, which stands for all sessions (AIP-159)."""
    return None if name == "sessions/-" else parse_session(name, field=field)


def parse_run(name: str, *, field: str = "name") -> tuple[UUID, UUID]:
    """The ids of session and run in `sessions/{session}/runs/{run}`. Raises as `parse_session`."""
    session_id, run_id = _match(_RUN, name, field, "sessions/{session}/runs/{run}")
    return session_id, run_id


def parse_approval(name: str, *, field: str = "name") -> tuple[UUID, UUID]:
    """The ids of session and approval in `sessions/{session}/approvals/{approval}`. Raises as `parse_session`."""
    session_id, approval_id = _match(_APPROVAL, name, field, "sessions/{session}/approvals/{approval}")
    return session_id, approval_id


def parse_grant(name: str, *, field: str = "name") -> tuple[UUID, UUID]:
    """The ids of session and grant in `sessions/{session}/grants/{grant}`. Raises as `parse_session`."""
    session_id, grant_id = _match(_GRANT, name, field, "sessions/{session}/grants/{grant}")
    return session_id, grant_id


def parse_memory_store(name: str, *, field: str = "name") -> UUID:
    """The id in `memoryStores/{store}`. Raises as `parse_session`."""
    return _match(MEMORY_STORE, name, field, "memoryStores/{store}")[0]


def parse_memory_entry(name: str, *, field: str = "name") -> tuple[UUID, str]:
    """The store's id and the key in `memoryStores/{store}/entries/{key}`, not checked. Raises as `parse_session`."""
    store_id, key = _groups(_MEMORY_ENTRY, name, field, "memoryStores/{store}/entries/{key}")
    return UUID(store_id), key


def parse_archive(name: str, *, field: str = "name") -> UUID:
    """The id of the session in `sessions/{session}/archive`. Raises as `parse_session`."""
    return _match(_ARCHIVE, name, field, "sessions/{session}/archive")[0]


def parse_report(name: str, *, field: str = "name") -> UUID:
    """The id in `reports/{report}`. Raises as `parse_session`."""
    return _match(_REPORT, name, field, "reports/{report}")[0]


def parse_user(name: str, *, field: str = "name") -> UUID:
    """The id in `users/{user}`. Raises as `parse_session`."""
    return _match(_USER, name, field, "users/{user}")[0]


def parse_task(name: str, *, field: str = "name") -> UUID:
    """The id in `tasks/{task}`. Raises as `parse_session`."""
    return _match(_TASK, name, field, "tasks/{task}")[0]


def parse_task_or_wildcard(name: str, *, field: str = "parent") -> UUID | None:
    """As `parse_task`; None for `tasks/-`, which stands for all tasks (AIP-159)."""
    return None if name == "tasks/-" else parse_task(name, field=field)


def parse_execution(name: str, *, field: str = "name") -> tuple[UUID, UUID]:
    """The ids of task and execution in `tasks/{task}/executions/{execution}`. Raises as `parse_session`."""
    task_id, execution_id = _match(_EXECUTION, name, field, "tasks/{task}/executions/{execution}")
    return task_id, execution_id


def agent_name(agent_id: UUID) -> str:
    """`agents/{agent}`."""
    return f"agents/{agent_id}"


def agent_version_name(agent_id: UUID, number: int) -> str:
    """`agents/{agent}/versions/{version}`."""
    return f"agents/{agent_id}/versions/{number}"


def tool_group_name(group_id: UUID) -> str:
    """`toolGroups/{tool_group}`."""
    return f"toolGroups/{group_id}"


def parse_agent(name: str, *, field: str = "name") -> UUID:
    """The id in `agents/{agent}`. Raises as `parse_session`."""
    return _match(_AGENT, name, field, "agents/{agent}")[0]


def parse_agent_version(name: str, *, field: str = "name") -> tuple[UUID, int]:
    """Agent and number in `agents/{agent}/versions/{version}`, a number from 1 on. Raises as `parse_session`."""
    found = _AGENT_VERSION.fullmatch(name)
    if found is None:
        raise _wrong(name, field, "agents/{agent}/versions/{version}", "a lower-case UUID and a number from 1 on")
    return UUID(found[1]), int(found[2])


def parse_agent_or_version(name: str, *, field: str = "agent") -> tuple[UUID, int | None]:
    """As `parse_agent_version`; the number is None in `agents/{agent}`."""
    return parse_agent_version(name, field=field) if "/versions/" in name else (parse_agent(name, field=field), None)


def parse_tool_group(name: str, *, field: str = "name") -> UUID:
    """The id in `toolGroups/{tool_group}`. Raises as `parse_session`."""
    return _match(_TOOL_GROUP, name, field, "toolGroups/{tool_group}")[0]


def webhook_name(webhook_id: UUID) -> str:
    """`webhooks/{webhook}`."""
    return f"webhooks/{webhook_id}"


def delivery_name(webhook_id: UUID, delivery_id: UUID) -> str:
    """`webhooks/{webhook}/deliveries/{delivery}`."""
    return f"webhooks/{webhook_id}/deliveries/{delivery_id}"


def parse_webhook(name: str, *, field: str = "name") -> UUID:
    """The id in `webhooks/{webhook}`. Raises as `parse_session`."""
    return _match(_WEBHOOK, name, field, "webhooks/{webhook}")[0]


def parse_delivery(name: str, *, field: str = "name") -> tuple[UUID, UUID]:
    """The ids of webhook and delivery in `webhooks/{webhook}/deliveries/{delivery}`. Raises as `parse_session`."""
    webhook_id, delivery_id = _match(_DELIVERY, name, field, "webhooks/{webhook}/deliveries/{delivery}")
    return webhook_id, delivery_id


def parse_delivery_or_wildcard(name: str, *, field: str = "name") -> tuple[UUID, UUID | None]:
    """As `parse_delivery`; None as the second for `webhooks/{webhook}/deliveries/-`, which stands for all of them."""
    if name.endswith("/deliveries/-"):
        return parse_webhook(name.removesuffix("/deliveries/-"), field=field), None
    return parse_delivery(name, field=field)


def mcp_server_name(server_id: UUID) -> str:
    """`mcpServers/{mcp_server}`."""
    return f"mcpServers/{server_id}"


def parse_mcp_server(name: str, *, field: str = "name") -> UUID:
    """The id in `mcpServers/{mcp_server}`. Raises as `parse_session`."""
    return _match(MCP_SERVER, name, field, "mcpServers/{mcp_server}")[0]


def credential_name(credential_id: UUID) -> str:
    """`credentials/{credential}`."""
    return f"credentials/{credential_id}"


def parse_credential(name: str, *, field: str = "name") -> UUID:
    """The id in `credentials/{credential}`. Raises as `parse_session`."""
    return _match(CREDENTIAL, name, field, "credentials/{credential}")[0]


def _match(pattern: re.Pattern[str], name: str, field: str, form: str) -> list[UUID]:
    return [UUID(part) for part in _groups(pattern, name, field, form)]


def _groups(pattern: re.Pattern[str], name: str, field: str, form: str) -> tuple[str, ...]:
    found = pattern.fullmatch(name)
    if found is None:
        raise _wrong(name, field, form, "lower-case UUIDs")
    return found.groups()


def _wrong(name: str, field: str, form: str, parts: str) -> InvalidArgument:
    shown = name if len(name) <= 100 else f"{name[:100]}…"
    return InvalidArgument(
        f"{field} must have the form {form} with {parts}, not {shown!r}",
        reason="NAME_INVALID",
        metadata={"field": field, "pattern": form},
    )
