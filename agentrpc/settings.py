"""Settings of every process, from the environment (`AGENTRPC_*`), validated at start.

`agentrpc up` writes the same variables for its child processes. Secrets are `SecretStr`: they show as asterisks in logs
and tracebacks.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "get_settings"]

_MIN_KEY_BYTES = 32

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """What a process needs to know. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="AGENTRPC_", extra="ignore", populate_by_name=True)

    # Where things are.
    database_url: SecretStr = Field(description="postgresql://user:password@host:port/database, PostgreSQL 15 to 18.")
    redis_url: SecretStr = Field(description="redis://[:password@]host:port/db, Redis 6.2 or later.")
    data_dir: Path = Field(
        default=Path(".agentrpc"),
        description="What this machine keeps: the CLI's files of sessions, which it can lose.",
    )
    workspace_dir: Path | None = Field(
        default=None,
        description="Workspaces and checkpoints, shared by all workers and edges. Default: {data_dir}/workspaces.",
    )

    # Identity.
    signing_key: SecretStr = Field(description="HMAC key of tokens and page tokens, 32 bytes or more.")
    token_issuer: str = "agentrpc"  # noqa: S105 - a name
    token_audience: str = "agentrpc"  # noqa: S105 - a name
    access_token_ttl: Seconds = 3600
    refresh_token_ttl: Seconds = 30 * 86400

    # The edge.
    listen: str = Field(default="127.0.0.1:7400", description="host:port of gRPC; port 0 takes a free one.")
    tls_cert: Path | None = Field(default=None, description="PEM certificate chain. With tls_key: serve TLS.")
    tls_key: Path | None = Field(default=None, description="PEM private key.")
    tls_client_ca: Path | None = Field(default=None, description="PEM CA: require client certificates signed by it.")
    heartbeat_interval: Seconds = 15
    stream_max_age: Seconds = 1800
    stream_stall_timeout: Seconds = 10
    max_streams_per_user: int = Field(default=5000, ge=1)
    requests_per_second: float = Field(default=500, gt=0, description="Unary calls per user, by token bucket.")
    login_attempts_per_minute: int = Field(default=30, ge=1, description="Per user name and per peer address.")
    replay_concurrency: int = Field(default=8, ge=1)
    drain_grace: Seconds = Field(default=10, description="How long serve and worker wait for what is under way.")

    # The worker.
    max_processes: int = Field(default=8, ge=1, description="Live CLI processes of one worker, about 200 MB each.")
    max_agent_memory: int | None = Field(
        default=None,
        ge=1,
        description="What all process trees of one worker may use. Default: three quarters of what the machine, or the "
        "worker's cgroup, has.",
    )
    max_session_memory: int | None = Field(
        default=None, ge=1, description="What the process tree of one session may use. Default: max_agent_memory."
    )
    approval_hold: Seconds = Field(
        default=60, description="A process whose run waits for answers longer than this goes; an answer brings it back."
    )
    idle_ttl: Seconds = Field(default=300, description="A warm CLI process without a run ends after this time.")
    lease_ttl: Seconds = Field(default=30, description="A worker that has not renewed its lease for so long is lost.")
    kill_timeout: Seconds = Field(default=5, description="T_kill: within it a lost worker's processes are ended.")
    poll_interval: Seconds = Field(default=2, description="How often a worker asks Postgres without a doorbell.")
    agent_start_timeout: Seconds = 60
    background_ceiling: Seconds = Field(default=600, description="How long a run waits for background subagents.")
    isolation: Literal["auto", "bubblewrap", "subreaper"] = "auto"
    checkpoint_limit: int = Field(default=512 * 1024**2, ge=0, description="More files than this get no checkpoint.")
    checkpoints_kept: int = Field(default=5, ge=1, description="The newest of each session.")
    max_queued_runs: int = Field(default=100, ge=1, description="Waiting runs of one session; more is QUEUE_FULL.")
    decision_timeout: Seconds = Field(
        default=86400, description="A run in UNKNOWN_OUTCOME fails when nobody has decided for so long."
    )
    report_timeout: Seconds = Field(default=180, description="How long rendering a report may take.")
    report_memory: int = Field(
        default=1024**3, ge=512 * 1024**2, description="Address space that rendering a report may use."
    )
    cli_path: Path | None = Field(default=None, description="Another CLI than the one in the SDK's wheel.")

    # The model.
    default_model: str = "claude-sonnet-5"
    model_url: str = Field(
        default="https://api.anthropic.com",
        validation_alias=AliasChoices("AGENTRPC_MODEL_URL", "ANTHROPIC_BASE_URL"),
        description="A Messages-compatible endpoint.",
    )
    model_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("AGENTRPC_MODEL_API_KEY", "ANTHROPIC_API_KEY"),
        description="The provider key. Only the model gateway sees it.",
    )
    model_auth: Literal["x-api-key", "bearer"] = "x-api-key"

    # Logs and metrics.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    metrics_listen: str = Field(default="127.0.0.1:0", description="host:port of Prometheus; empty: no metrics.")

    @field_validator("signing_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value().encode()) < _MIN_KEY_BYTES:
            msg = "must have 32 bytes or more, for example from `openssl rand -hex 32`"
            raise ValueError(msg)
        return value

    @field_validator("listen", "metrics_listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if value and not (host and separator and port.isdecimal() and int(port) < 2**16):
            msg = "must be host:port, such as 127.0.0.1:7400"
            raise ValueError(msg)
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            msg = "must begin with postgresql://"
            raise ValueError(msg)
        return value

    @property
    def workspaces(self) -> Path:
        """Where workspaces are."""
        return self.workspace_dir or self.data_dir / "workspaces"

    @model_validator(mode="after")
    def _tls_pair(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            msg = "tls_cert and tls_key go together: set both or neither"
            raise ValueError(msg)
        if self.tls_client_ca is not None and self.tls_cert is None:
            msg = "tls_client_ca needs tls_cert and tls_key"
            raise ValueError(msg)
        return self


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises pydantic.ValidationError for wrong or missing ones."""
    return Settings()
