"""Resource names (AIP-122) of sessions, runs, approvals, reports and users.

Ids are written in lower case with hyphens. A name of another form is NAME_INVALID; a well-formed one of something that
does not exist is for the store to judge.
"""

import re
from uuid import UUID

from agentrpc.errors import InvalidArgument

__all__ = [
    "approval_name",
    "parse_approval",
    "parse_report",
    "parse_run",
    "parse_session",
    "parse_session_or_wildcard",
    "parse_user",
    "report_name",
    "run_name",
    "session_name",
    "user_name",
]

_ID = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_SESSION = re.compile(f"sessions/{_ID}")
_RUN = re.compile(f"sessions/{_ID}/runs/{_ID}")
_APPROVAL = re.compile(f"sessions/{_ID}/approvals/{_ID}")
_REPORT = re.compile(f"reports/{_ID}")
_USER = re.compile(f"users/{_ID}")


def session_name(session_id: UUID) -> str:
    """`sessions/{session}`."""
    return f"sessions/{session_id}"


def run_name(session_id: UUID, run_id: UUID) -> str:
    """`sessions/{session}/runs/{run}`."""
    return f"sessions/{session_id}/runs/{run_id}"


def approval_name(session_id: UUID, approval_id: UUID) -> str:
    """`sessions/{session}/approvals/{approval}`."""
    return f"sessions/{session_id}/approvals/{approval_id}"


def report_name(report_id: UUID) -> str:
    """`reports/{report}`."""
    return f"reports/{report_id}"


def user_name(user_id: UUID) -> str:
    """`users/{user}`."""
    return f"users/{user_id}"


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


def parse_report(name: str, *, field: str = "name") -> UUID:
    """The id in `reports/{report}`. Raises as `parse_session`."""
    return _match(_REPORT, name, field, "reports/{report}")[0]


def parse_user(name: str, *, field: str = "name") -> UUID:
    """The id in `users/{user}`. Raises as `parse_session`."""
    return _match(_USER, name, field, "users/{user}")[0]


def _match(pattern: re.Pattern[str], name: str, field: str, form: str) -> list[UUID]:
    found = pattern.fullmatch(name)
    if found is None:
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise InvalidArgument(
            f"{field} must have the form {form} with lower-case UUIDs, not {shown!r}",
            reason="NAME_INVALID",
            metadata={"field": field, "pattern": form},
        )
    return [UUID(part) for part in found.groups()]
