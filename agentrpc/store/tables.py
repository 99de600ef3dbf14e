"""The tables. Resources are ORM rows; events, transcripts and the ledger are written by the driver (`store/log.py`).

`session_heads` is the row that decides: every transition locks it first, in its own transaction. `session_events` and
`session_transcripts` are RANGE-partitioned on the session id, a UUIDv7 that begins with its time, so that retention
drops partitions. Options, results and usage are serialized messages of the contract: exact, and they evolve as it does.
"""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Approval",
    "Base",
    "Login",
    "Request",
    "Run",
    "RunInput",
    "Session",
    "SessionEvent",
    "SessionGrant",
    "SessionHead",
    "SessionTranscript",
    "ToolCallRow",
    "User",
    "Worker",
]


class Base(DeclarativeBase):
    """The metadata of the schema."""

    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        UUID: Uuid(),
        datetime: DateTime(timezone=True),
        timedelta: Interval(),
        str: Text(),
        bytes: LargeBinary(),
        dict[str, str]: JSONB(),
        list[str]: ARRAY(Text()),
    }


class User(Base):
    """Someone who may call."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    role: Mapped[str] = mapped_column(CheckConstraint("role IN ('VIEWER', 'USER', 'ADMIN')"))
    create_time: Mapped[datetime]
    disable_time: Mapped[datetime | None]


class Login(Base):
    """One login: a family of refresh tokens, of which only the newest is good (RFC 9700, section 4.14.2).

    `previous_id` is the one before the newest, spent at `refresh_time`. `address` stands for that at which it began.
    """

    __tablename__ = "logins"
    __table_args__ = (
        Index("logins_by_address", "user_id", "address"),
        Index("logins_by_expire_time", "expire_time"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    refresh_id: Mapped[UUID]
    previous_id: Mapped[UUID | None]
    refresh_time: Mapped[datetime | None]
    address: Mapped[bytes] = mapped_column(server_default=text("''::bytea"))
    expire_time: Mapped[datetime]
    end_time: Mapped[datetime | None]


class Worker(Base):
    """One process that hosts sessions. Its lease covers all of them and is kept by the database's clock."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    start_time: Mapped[datetime]
    lease_expire_time: Mapped[datetime]
    dead_time: Mapped[datetime | None]
    isolation_level: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))  # domain.isolation.Level


class Session(Base):
    """What callers set about a session, and what its runs add up to."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("sessions_by_owner", "owner", "create_time", "id"),
        Index("sessions_by_labels", "labels", postgresql_using="gin"),
        Index("sessions_by_agent", "agent_id", "create_time", "id", postgresql_where=text("agent_id IS NOT NULL")),
        Index(
            "sessions_archived",
            "archive_time",
            postgresql_where=text("archive_time IS NOT NULL AND delete_time IS NULL"),
        ),
        Index(
            "sessions_with_workspace",
            "workspace_time",
            postgresql_where=text("workspace_time IS NOT NULL AND clean_time IS NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    display_name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[dict[str, str]]
    options: Mapped[bytes]  # agentrpc.v1.SessionOptions
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    claude_session_id: Mapped[UUID]
    agent_version: Mapped[str | None]  # of the CLI
    usage: Mapped[bytes] = mapped_column(server_default=text("''::bytea"))  # agentrpc.v1.Usage
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]
    archive_time: Mapped[datetime | None]
    delete_time: Mapped[datetime | None]
    clean_time: Mapped[datetime | None]
    pause_time: Mapped[datetime | None]
    workspace_time: Mapped[datetime | None]  # when the workspace was made; from then on it must be there
    forked_from: Mapped[UUID | None]
    agent_id: Mapped[UUID | None]  # with agent_number: the version of an agent that it was made from
    agent_number: Mapped[int | None] = mapped_column(Integer)
    isolation_level: Mapped[str | None]  # of the worker that took up its newest run
    # Rules that deny, of what it was made from where that is another's: they hold whatever options say.
    imposed_rules: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default=text("'{}'::text[]"))
    # Counts changes of what the gate judges by: options, and rules that answers have added.
    rules_revision: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class SessionHead(Base):
    """The row that decides. Narrow, updated often, and locked first by every transition.

    `batch` counts the appends of the current epoch and `batch_base` is `last_sequence` before the newest of them: a
    writer that does not know whether its last append was committed asks for them.

    A run that is active while no worker holds the session waits for approvals (`pending_approvals`), for a decision
    (`in_doubt`), for the end of a pause, or just for a worker to take it up.

    The epoch moves on under an idle session's worker when its conversation was changed or closed: that ends the process
    which knows the old one, and only then gives the session back or carries out another run.

    `stop_run`, `stop_kind` and `paused` are intents: the owner reads them once a second. `losses` counts workers and
    processes that were lost under the active run, `inputs` further messages to it that are not delivered yet.
    """

    __tablename__ = "session_heads"
    __table_args__ = (
        Index(
            "session_heads_queue",
            "queued_since",
            postgresql_where=text("queued > 0 AND active_run IS NULL AND closed IS NULL AND NOT paused"),
        ),
        Index(
            "session_heads_released",
            "session_id",
            postgresql_where=text(
                "active_run IS NOT NULL AND worker IS NULL AND pending_approvals = 0 AND NOT in_doubt AND NOT paused"
            ),
        ),
        Index("session_heads_by_worker", "worker", postgresql_where=text("worker IS NOT NULL")),
        Index("session_heads_active", "tenant", postgresql_where=text("active_run IS NOT NULL")),
        Index("session_heads_served", "tenant", "claim_time"),
        {"postgresql_with": {"fillfactor": "60"}},
    )

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    tenant: Mapped[UUID]
    last_sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    transcript_position: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    worker: Mapped[UUID | None]
    batch: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    batch_base: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    active_run: Mapped[UUID | None]
    queued: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    queued_since: Mapped[datetime | None]
    claim_time: Mapped[datetime | None]  # when a worker last took a waiting run of it
    pending_approvals: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    run_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    tool_call_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    stop_run: Mapped[UUID | None]
    stop_kind: Mapped[str | None] = mapped_column(CheckConstraint("stop_kind IN ('INTERRUPT', 'CANCEL', 'EXPIRE')"))
    stop_time: Mapped[datetime | None]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    in_doubt: Mapped[bool] = mapped_column(server_default=text("false"))
    losses: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    inputs: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    # domain.isolation.Level: the least of a worker that may have it. Set with each run, and when options change.
    needed_level: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    closed: Mapped[str | None] = mapped_column(CheckConstraint("closed IN ('ARCHIVED', 'FAILED')"))


class Run(Base):
    """One input to a session and what became of it."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_by_session", "session_id", "id"),
        Index(
            "runs_open",
            "state",
            postgresql_where=text("state IN ('QUEUED', 'RUNNING', 'REQUIRES_ACTION', 'UNKNOWN_OUTCOME')"),
        ),
        Index("runs_by_creator", "creator", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    creator: Mapped[UUID]
    state: Mapped[str]
    prompt: Mapped[str]
    conflict_policy: Mapped[str]
    timeout: Mapped[timedelta | None]
    labels: Mapped[dict[str, str]]
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    first_sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    create_time: Mapped[datetime]
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]
    result: Mapped[bytes | None]  # agentrpc.v1.RunResult
    error: Mapped[bytes | None]  # agentrpc.v1.RunError
    usage: Mapped[bytes | None]  # agentrpc.v1.RunEnded, of which only usage and model_usage
    cost_usd: Mapped[float] = mapped_column(Numeric(14, 8), server_default=text("0"))
    interrupt_reason: Mapped[str | None]
    inactivity_timeout: Mapped[timedelta | None]
    retry_of: Mapped[UUID | None]
    rewind_to: Mapped[UUID | None]  # the run to whose beginning the conversation goes back before this one
    stop_receipt: Mapped[bytes | None]  # agentrpc.v1.StopReceipt
    decision: Mapped[bytes | None]  # agentrpc.v1.ResolveRunRequest: the newest decision about calls in doubt
    doubt_time: Mapped[datetime | None]  # since when it waits for a decision; kept when it ends without one


class RunInput(Base):
    """A further message to a run that is under way."""

    __tablename__ = "run_inputs"
    __table_args__ = (Index("run_inputs_by_run", "run_id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID]
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    text: Mapped[str]
    create_time: Mapped[datetime]
    deliver_time: Mapped[datetime | None]


class Approval(Base):
    """A tool call that waits for, or has had, a person's decision."""

    __tablename__ = "approvals"
    __table_args__ = (
        Index("approvals_by_session", "session_id", "id"),
        Index("approvals_pending", "expire_time", postgresql_where=text("state = 'PENDING'")),
        Index("approvals_changed", "update_time"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    tenant: Mapped[UUID]
    run_id: Mapped[UUID]
    state: Mapped[str]
    question: Mapped[bytes]  # agentrpc.v1.Approval: what was asked, without state, times and resolution
    expire_time: Mapped[datetime]
    create_time: Mapped[datetime]
    update_time: Mapped[datetime]
    resolution: Mapped[bytes | None]  # agentrpc.v1.Resolution


class SessionGrant(Base):
    """A rule that an answer "for the session" added."""

    __tablename__ = "session_grants"
    __table_args__ = (Index("session_grants_by_id", "id", unique=True),)

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    rule: Mapped[str] = mapped_column(primary_key=True)
    approval_id: Mapped[UUID]
    id: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    creator: Mapped[UUID | None]
    create_time: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Request(Base):
    """A request_id that was used, and what it made (AIP-155)."""

    __tablename__ = "requests"
    __table_args__ = (Index("requests_by_time", "create_time"),)

    principal: Mapped[UUID] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    resource_id: Mapped[UUID]
    create_time: Mapped[datetime]


class SessionEvent(Base):
    """A durable event: the serialized `agentrpc.v1.Event` without its sequence, which is the key."""

    __tablename__ = "session_events"
    __table_args__ = ({"postgresql_partition_by": "RANGE (session_id)"},)

    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    run_id: Mapped[UUID | None]
    kind: Mapped[int] = mapped_column(SmallInteger)  # the field number in Event.payload
    data: Mapped[bytes]


class SessionTranscript(Base):
    """A line of the CLI's own transcript. Bytes: jsonb refuses NUL and lone surrogates, which the CLI may write."""

    __tablename__ = "session_transcripts"
    __table_args__ = ({"postgresql_partition_by": "RANGE (session_id)"},)

    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    subpath: Mapped[str]
    data: Mapped[bytes]


class ToolCallRow(Base):
    """The tool ledger. No row: the call did not run. A row without an end: its outcome is in doubt.

    `attempt` is 1 unless somebody decided that a call in doubt is to be made again.
    """

    __tablename__ = "tool_calls"
    __table_args__ = (Index("tool_calls_in_doubt", "session_id", postgresql_where=text("outcome IS NULL")),)

    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    tool_use_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default=text("1"), autoincrement=False)
    run_id: Mapped[UUID]
    epoch: Mapped[int] = mapped_column(BigInteger)
    tool_name: Mapped[str]
    start_time: Mapped[datetime]
    end_time: Mapped[datetime | None]
    outcome: Mapped[int | None] = mapped_column(SmallInteger)  # ToolCallFinished.Outcome
