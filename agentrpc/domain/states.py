"""States of runs, sessions and approvals, and the one table of transitions.

The values are the names of the contract's enums without their prefix; the store keeps them as text.
"""

from enum import StrEnum

__all__ = [
    "SUPERSEDING",
    "TERMINAL_RUN_STATES",
    "ApprovalState",
    "RunState",
    "SessionState",
    "StopKind",
    "may_follow",
    "session_state",
]


class RunState(StrEnum):
    """`agentrpc.v1.Run.State`."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    REQUIRES_ACTION = "REQUIRES_ACTION"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    UNKNOWN_OUTCOME = "UNKNOWN_OUTCOME"


class SessionState(StrEnum):
    """`agentrpc.v1.Session.State`."""

    IDLE = "IDLE"
    RUNNING = "RUNNING"
    REQUIRES_ACTION = "REQUIRES_ACTION"
    ARCHIVED = "ARCHIVED"
    FAILED = "FAILED"


class StopKind(StrEnum):
    """What is wanted of a run that is to stop: its turn to end, its process tree to go at once, or its time is over."""

    INTERRUPT = "INTERRUPT"
    CANCEL = "CANCEL"
    EXPIRE = "EXPIRE"


class ApprovalState(StrEnum):
    """`agentrpc.v1.Approval.State`."""

    PENDING = "PENDING"
    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


TERMINAL_RUN_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED})

# Conflict policies that end what is under way.
SUPERSEDING = ("INTERRUPT", "ROLLBACK")

_FOLLOWERS: dict[RunState, frozenset[RunState]] = {
    # A queued run ends without a worker only when somebody stops it, or when its session cannot go on.
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.REQUIRES_ACTION, RunState.UNKNOWN_OUTCOME, *TERMINAL_RUN_STATES}),
    RunState.REQUIRES_ACTION: frozenset({RunState.RUNNING, RunState.UNKNOWN_OUTCOME, *TERMINAL_RUN_STATES}),
    # Goes on by a decision; fails when nobody decides; ends when somebody stops it or its time is over.
    RunState.UNKNOWN_OUTCOME: frozenset({RunState.RUNNING, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED}),
}


def may_follow(before: RunState, after: RunState) -> bool:
    """Whether a run may go from `before` to `after`. Terminal states have no followers."""
    return after in _FOLLOWERS.get(before, frozenset())


def session_state(*, closed: SessionState | None, active: bool, queued: int, waiting: bool) -> SessionState:
    """The state of a session, derived from its head row.

    Args:
        closed: ARCHIVED or FAILED when the session is closed, else None. It counts from the end of the last run on:
            a session that is terminated while a run is under way is ARCHIVED when that has ended.
        active: Whether a run of it has begun and not ended.
        queued: How many runs wait.
        waiting: Whether a person is asked: to answer an approval, or to decide about calls in doubt.
    """
    if not active and not queued:
        return closed or SessionState.IDLE
    return SessionState.REQUIRES_ACTION if waiting else SessionState.RUNNING
