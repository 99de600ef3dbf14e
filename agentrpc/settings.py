"""Settings of every process, from the environment (`AGENTRPC_*`), validated at start.

`agentrpc up` writes the same variables for its child processes. Secrets are `SecretStr`: they show as asterisks in logs
and tracebacks.
"""

import math
import re
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["DEFAULT_UIDS", "LEAST_LIMITS", "SYSTEM_FOLDERS", "IsolationSettings", "Settings", "get_settings"]

# What agents see of the system: nothing that they must not know may be in it.
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt")

DEFAULT_UIDS = "200000-265535"

_MIN_KEY_BYTES = 32
_MIN_UIDS, _NO_UID = 128, 2**32 - 1
_OVERFLOW_UIDS = 65534, 65535
_DATABASE_NAME = re.compile(r"[a-z0-9_-]{1,63}")
# Within which somebody who archives a session has to ask for it to be stored with its files.
_STORE_GRACE = 3600

Seconds = Annotated[float, Field(gt=0)]


# The least of each field of ResourceLimits: with less the CLI itself does not work.
LEAST_LIMITS = {
    "memory_bytes": 256 * 1024**2,
    "processes": 64,
    "cpus": 0.05,
    "open_files": 256,
    "workspace_bytes": 1024**2,
    "workspace_files": 100,
    "tmp_bytes": 1024**2,
}


class IsolationSettings(BaseSettings):
    """How agents are kept apart."""

    model_config = SettingsConfigDict(env_prefix="AGENTRPC_", extra="ignore", populate_by_name=True)

    isolation: Literal["auto", "bubblewrap", "user", "subreaper"] = Field(
        default="auto",
        description="What keeps agents apart. auto: bubblewrap, without which a worker does not start. user: a uid for "
        "each session; the worker has to be root. subreaper: nothing, agents run as the worker's own user.",
    )
    minimum_isolation: Literal["none", "user", "sandbox"] = Field(
        default="none",
        description="The least level for all sessions: bubblewrap has sandbox. A worker that has less does not start, "
        "and runs wait for one that has it. Set it for edges and schedulers too.",
    )
    agent_uids: str = Field(
        default=DEFAULT_UIDS,
        description="first-last: uids and gids for agents, with isolation `user`. Nothing else on the machine may have "
        "them; workers on one machine, or with one folder of workspaces, may share the range.",
    )

    @field_validator("agent_uids")
    @classmethod
    def _range(cls, value: str) -> str:
        first, _, last = value.partition("-")
        # Below: what systems give to their users. 65534 and 65535 are nobody's.
        if not (first.isdecimal() and last.isdecimal() and 1000 <= int(first) <= int(last) < _NO_UID):
            msg = "must be first-last, such as 200000-265535, from 1000 on"
            raise ValueError(msg)
        if int(last) - int(first) < _MIN_UIDS or (int(first) <= _OVERFLOW_UIDS[1] and int(last) >= _OVERFLOW_UIDS[0]):
            msg = f"must hold {_MIN_UIDS} numbers or more, and neither 65534 nor 65535"
            raise ValueError(msg)
        return value


class Settings(IsolationSettings):
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

    # Secrets of callers, and addresses that they name.
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Fernet keys of secrets at rest, joined by commas. The first encrypts, all decrypt; without one "
        "nothing with a secret can be stored.",
    )
    allow_private_addresses: bool = Field(
        default=False, description="Whether webhooks and checks of MCP servers may call private and local addresses."
    )
    egress_ca: Path | None = Field(
        default=None,
        description="PEM of further authorities by whom servers may be certified to which credentials are sent, beside "
        "the system's.",
    )
    mcp_check_interval: float = Field(
        default=3600, ge=0, description="How often registered MCP servers are checked unasked; 0: never."
    )
    mcp_check_timeout: Seconds = Field(default=40, description="For one check of an MCP server.")
    webhook_timeout: Seconds = Field(default=10, description="For one attempt of a delivery, all in all.")
    webhook_retry_delay: Seconds = Field(default=10, description="Before the second attempt, at most; then it doubles.")
    webhook_retry_window: Seconds = Field(default=86400, description="A delivery is given up when it is so old.")
    webhook_disable_after: Seconds = Field(
        default=5 * 86400, description="A webhook whose attempts all failed for so long is disabled."
    )
    webhook_log_ttl: Seconds = Field(default=14 * 86400, description="How long ended deliveries are kept.")

    # The edge.
    listen: str = Field(default="127.0.0.1:7400", description="host:port of gRPC; port 0 takes a free one.")
    tls_cert: Path | None = Field(default=None, description="PEM certificate chain. With tls_key: serve TLS.")
    tls_key: Path | None = Field(default=None, description="PEM private key.")
    tls_client_ca: Path | None = Field(default=None, description="PEM CA: require client certificates signed by it.")
    heartbeat_interval: Seconds = 15
    stream_max_age: Seconds = 1800
    stream_stall_timeout: Seconds = 10
    max_streams_per_user: int = Field(default=5000, ge=1)
    requests_per_second: float = Field(default=500, gt=0, description="Calls and streams per user, by token bucket.")
    login_attempts_per_minute: int = Field(
        default=30, ge=1, description="Failures of one address at one name; see services/login_limits.py for the rest."
    )
    replay_concurrency: int = Field(default=8, ge=1, description="Reads of logs for watchers; users take turns.")
    max_file_size: int = Field(default=512 * 1024**2, ge=1, description="Of an uploaded file.")
    max_workspace_size: int = Field(
        default=10 * 1024**3,
        ge=LEAST_LIMITS["workspace_bytes"],
        description="Uploads and downloads of folders stop there, and runs fail whose agents write more; of those the "
        "home folder counts too.",
    )
    max_workspace_entries: int = Field(
        default=1_000_000,
        ge=LEAST_LIMITS["workspace_files"],
        description="Files, folders and links of a workspace: as max_workspace_size.",
    )
    max_archive_members: int = Field(
        default=100_000, ge=1, description="Of an uploaded archive; folders that their names imply count too."
    )
    upload_stall_timeout: Seconds = Field(default=30, description="An upload of which nothing comes for so long ends.")
    drain_grace: Seconds = Field(default=10, description="How long serve and worker wait for what is under way.")

    # The worker.
    max_processes: int = Field(default=8, ge=1, description="Live CLI processes of one worker, about 200 MB each.")
    max_agent_memory: int | None = Field(
        default=None,
        ge=1,
        description="What all process trees of one worker may use. Default: three quarters of what the machine, or the "
        "worker's cgroup, has.",
    )
    # Of one session: what it has, unless its options.limits or session_limits says less.
    max_session_memory: int | None = Field(
        default=None,
        ge=LEAST_LIMITS["memory_bytes"],
        description="What the processes of one session and their /tmp may use. Default: max_agent_memory.",
    )
    max_session_processes: int = Field(
        default=1024, ge=LEAST_LIMITS["processes"], le=2**22, description="Processes and threads of one session."
    )
    max_session_cpus: float | None = Field(
        default=None,
        ge=LEAST_LIMITS["cpus"],
        allow_inf_nan=False,
        description="Processors that one session may use at one time, where the worker has cgroups. Unset: its share.",
    )
    max_session_open_files: int = Field(
        default=4096, ge=LEAST_LIMITS["open_files"], description="Open files of one process of a session."
    )
    max_session_tmp: int = Field(
        default=512 * 1024**2,
        ge=LEAST_LIMITS["tmp_bytes"],
        le=2**62,
        description="What the /tmp of a sandbox, which is in memory, may hold.",
    )
    session_limits: dict[str, float] = Field(
        default_factory=dict,
        description="Limits of sessions that set none: a JSON object of the fields of ResourceLimits, such as "
        '{"memory_bytes": 2147483648}. Unset: the most that a session may have.',
    )
    min_free_space: int = Field(
        default=256 * 1024**2,
        ge=0,
        description="Of the file systems that agents write to: below it the run that writes most there fails.",
    )
    approval_hold: Seconds = Field(
        default=60, description="A process whose run waits for answers longer than this goes; an answer brings it back."
    )
    idle_ttl: Seconds = Field(default=300, description="A warm CLI process without a run ends after this time.")
    lease_ttl: Seconds = Field(default=30, description="A worker that has not renewed its lease for so long is lost.")
    kill_timeout: Seconds = Field(default=5, description="T_kill: within it a lost worker's processes are ended.")
    poll_interval: Seconds = Field(default=2, description="How often a worker asks Postgres without a doorbell.")
    agent_start_timeout: Seconds = 60
    background_ceiling: Seconds = Field(
        default=600, description="How long a run waits for background agents before they are ended."
    )
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

    # The network of agents.
    network_mode: Literal["NONE", "LISTED", "PUBLIC"] = Field(
        default="PUBLIC", description="What agents may reach whose options do not say it: see docs/isolation.md."
    )
    network_ceiling: Literal["NONE", "LISTED", "PUBLIC"] = Field(
        default="PUBLIC", description="The most that options may ask for."
    )
    network_denied: tuple[str, ...] = Field(
        default=(),
        description="A JSON list of destinations that no agent reaches, such as `*.example.com`, `203.0.113.0/24` or "
        "`example.com:25`.",
    )
    network_private: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="A JSON list of networks such as `10.1.0.0/16` that agents may reach though they are not public.",
    )

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
    agent_models: tuple[str, ...] = Field(
        default=("claude-haiku-*",),
        description="A JSON list of names or patterns: the models that agents may ask besides their session's own, for "
        "subagents and what the CLI asks a small model. An alias such as `opus` without one here is the session's own.",
    )
    agent_betas: tuple[str, ...] = Field(
        default=(),
        description="A JSON list: betas of the provider that agents may use besides those of the CLI, as names without "
        "a date, such as `files-api`.",
    )
    gateway_memory: int = Field(
        default=256 * 1024**2, ge=64 * 1024**2, description="Bytes of agents' requests that a worker holds at once."
    )

    # Tools of agents.
    max_memory_stores: int = Field(default=100, ge=1, description="Of one user; more is LIMIT_REACHED.")
    tool_databases: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Databases that sessions may query: a JSON object of names and postgresql:// URLs. Give each a "
        "role that may read what agents may see, and no more.",
    )
    kubeconfig: str = Field(
        default="",
        description="The cluster of agents' Kubernetes tools: the path of a kubeconfig that no agent can read, or "
        "`in-cluster` for the service account of the worker's pod. Empty: there is none.",
    )
    kubernetes_contexts: list[str] = Field(
        default_factory=list,
        description="A JSON list: the contexts of the kubeconfig that sessions may name besides its current one.",
    )
    # Archive storage.
    archive_url: str | None = Field(
        default=None, description="file:///folder, on all workers, or s3://bucket/prefix. Unset: there is none."
    )
    archive_after: Seconds | None = Field(
        default=None,
        description="Archived sessions go there after this time, with their files, which are kept so long. Unset: when "
        "somebody asks.",
    )
    archive_drop: bool = Field(
        default=True, description="What is stored there is removed here: events, transcript, files."
    )
    archive_s3_endpoint: str | None = Field(default=None, description="http(s)://host:port of an S3-compatible store.")
    archive_s3_region: str = "us-east-1"
    archive_s3_access_key_id: SecretStr | None = Field(
        default=None, description="With the secret key. Unset: as the environment of AWS says."
    )
    archive_s3_secret_access_key: SecretStr | None = None

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

    @field_validator("secret_keys", mode="before")
    @classmethod
    def _keys(cls, value: object) -> object:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("secret_keys")
    @classmethod
    def _fernet(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            try:
                Fernet(key.get_secret_value())
            except ValueError:
                msg = "each key must be 32 bytes in URL-safe base64, from `openssl rand -base64 32 | tr +/ -_`"
                raise ValueError(msg) from None
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

    @field_validator("tool_databases")
    @classmethod
    def _tool_databases(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, url in value.items():
            if not _DATABASE_NAME.fullmatch(name):
                msg = f"the name {name[:80]!r} is not of [a-z0-9_-]{{1,63}}"
                raise ValueError(msg)
            if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
                msg = f"{name}: must begin with postgresql://"
                raise ValueError(msg)
        return value

    @field_validator("session_limits")
    @classmethod
    def _known_limits(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            if name not in LEAST_LIMITS:
                msg = f"{name[:80]!r} is not one of {', '.join(LEAST_LIMITS)}"
                raise ValueError(msg)
            if not LEAST_LIMITS[name] <= number < math.inf:
                msg = f"{name} must be a number, {LEAST_LIMITS[name]:.15g} or more"
                raise ValueError(msg)
        return value

    @field_validator("kubeconfig")
    @classmethod
    def _out_of_sight(cls, value: str) -> str:
        path = Path(value).resolve()
        for folder in SYSTEM_FOLDERS if value else ():
            if path.is_relative_to(Path(folder).resolve()):
                msg = f"agents can read what is in {folder}: keep it elsewhere, with the keys that it names"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _not_the_store(self) -> Self:
        own = _place(self.database_url)
        for name, url in self.tool_databases.items():
            if _place(url) == own:
                msg = f"tool_databases: {name} is the service's own database, which agents must not see"
                raise ValueError(msg)
        return self

    @field_validator("archive_url")
    @classmethod
    def _known_storage(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(file:///.|s3://[^/]+)", value):
            msg = "must be file:///folder or s3://bucket/prefix"
            raise ValueError(msg)
        return value

    @property
    def keep_closed_files(self) -> timedelta | None:
        """How long the files of an archived session stay for archive storage; None: until they have gone there."""
        if self.archive_after is not None:
            return None
        return timedelta(seconds=_STORE_GRACE if self.archive_url is not None else 0)

    @property
    def workspaces(self) -> Path:
        """Where workspaces are."""
        return self.workspace_dir or self.data_dir / "workspaces"

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        modes = ("NONE", "LISTED", "PUBLIC")
        if modes.index(self.network_mode) > modes.index(self.network_ceiling):
            msg = "network_mode is more than network_ceiling"
            raise ValueError(msg)
        if (self.tls_cert is None) != (self.tls_key is None):
            msg = "tls_cert and tls_key go together: set both or neither"
            raise ValueError(msg)
        if (self.archive_s3_access_key_id is None) != (self.archive_s3_secret_access_key is None):
            msg = "archive_s3_access_key_id and archive_s3_secret_access_key go together: set both or neither"
            raise ValueError(msg)
        if self.archive_after is not None and self.archive_url is None:
            msg = "archive_after needs archive_url"
            raise ValueError(msg)
        if self.tls_client_ca is not None and self.tls_cert is None:
            msg = "tls_client_ca needs tls_cert and tls_key"
            raise ValueError(msg)
        return self


def _place(url: SecretStr) -> tuple[str | None, int, str, str]:
    """Which database a URL leads to, whoever connects."""
    parts = urlsplit(url.get_secret_value())
    return parts.hostname, parts.port or 5432, parts.path.strip("/"), parts.query


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises pydantic.ValidationError for wrong or missing ones."""
    return Settings()
