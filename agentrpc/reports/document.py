"""What a report says, whatever it is written in: its JSON, and what templates are given.

Plain values only: times are RFC 3339 text in UTC, durations seconds, cost US dollars. Lists are cut at a bound;
`left_out` says, by the name of the list, how many entries are missing.
"""

from dataclasses import dataclass, field

__all__ = [
    "AgentInfo",
    "ApprovalEntry",
    "Document",
    "Growth",
    "Lane",
    "ModelEntry",
    "Problem",
    "RunEntry",
    "Share",
    "SubagentEntry",
    "Tokens",
    "ToolEntry",
    "Turn",
]


@dataclass(slots=True)
class Tokens:
    """Tokens by kind, of all kinds together (`total`), and what they cost."""

    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0
    cost_usd: float = 0.0

    total: int = 0

    def __post_init__(self) -> None:
        self.total = self.input + self.output + self.cache_write + self.cache_read

    def add(self, more: "Tokens") -> None:
        """Those of another, too."""
        self.input += more.input
        self.output += more.output
        self.cache_write += more.cache_write
        self.cache_read += more.cache_read
        self.total += more.total
        self.cost_usd = round(self.cost_usd + more.cost_usd, 8)


@dataclass(slots=True)
class ModelEntry:
    """What one model used."""

    model: str
    tokens: Tokens


@dataclass(slots=True)
class AgentInfo:
    """What the agent worked with, as the CLI said last."""

    model: str = ""
    permission_mode: str = ""
    version: str = ""
    tool_count: int = 0
    mcp_servers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunEntry:
    """A run."""

    name: str
    state: str
    prompt: str
    answer: str
    error: str
    created: str
    started: str
    ended: str
    seconds: float
    attempt: int
    tokens: Tokens


@dataclass(slots=True)
class ToolEntry:
    """All calls of one tool."""

    tool: str
    calls: int = 0
    succeeded: int = 0
    failed: int = 0
    denied: int = 0
    interrupted: int = 0
    unknown: int = 0
    open: int = 0
    seconds: float = 0.0
    longest: float = 0.0


@dataclass(slots=True)
class ApprovalEntry:
    """A decision that a person was asked for."""

    name: str
    title: str
    tool: str
    input: str
    reason: str
    state: str
    asked: str
    resolved: str = ""
    resolver: str = ""
    scope: str = ""
    message: str = ""
    waited: float = 0.0


@dataclass(slots=True)
class SubagentEntry:
    """A subagent or a background job."""

    id: str
    kind: str
    description: str
    background: bool
    started: str
    ended: str = ""
    outcome: str = ""
    seconds: float = 0.0
    tokens: int = 0
    tool_calls: int = 0
    summary: str = ""


@dataclass(slots=True)
class Turn:
    """A piece of the conversation.

    Attributes:
        role: `user`, `agent`, `tool` for a call of one, or `note` for what the service remarks.
        outcome: How a call ended, such as `succeeded`.
    """

    role: str
    time: str
    text: str
    cut: bool = False
    tool: str = ""
    outcome: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Problem:
    """Something that went wrong."""

    time: str
    kind: str
    text: str


@dataclass(slots=True)
class Lane:
    """When something was going on: [begin, end] in seconds from the start of the report's period.

    `kind` is `model`, `tool`, `wait` or `subagent`. Times that lie close together are joined.
    """

    label: str
    kind: str
    spans: list[tuple[float, float]]


@dataclass(slots=True)
class Growth:
    """What had been used by a moment, in seconds from the start of the report's period."""

    seconds: list[float] = field(default_factory=list)
    input: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    cache: list[int] = field(default_factory=list)
    cost_usd: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Share:
    """A part of the usage of a period: a day, a model, a session or an owner."""

    label: str
    name: str
    runs: int
    failed: int
    tokens: Tokens


@dataclass(slots=True)
class Document:
    """A report.

    Attributes:
        kind: `session`, `run` or `usage`.
        title: For people.
        subject: The name of the session or the run; of a period, whose usage it is.
        state: Of the session or the run.
        begin: The first moment: of the first run, or of the period.
        end: The last moment: of the newest event, or of the period.
        seconds: Between the two.
        busy_seconds: Of which runs were under way.
        complete: False while the subject is still going on.
        event_count: How many events were read.
        last_sequence: The number of the newest event.
        run_count: Of which `runs` holds the newest.
        answer: What the newest run answered.
    """

    kind: str
    title: str
    subject: str
    state: str = ""
    description: str = ""
    begin: str = ""
    end: str = ""
    seconds: float = 0.0
    busy_seconds: float = 0.0
    complete: bool = True
    event_count: int = 0
    last_sequence: int = 0
    run_count: int = 0
    run_states: dict[str, int] = field(default_factory=dict)
    tokens: Tokens = field(default_factory=Tokens)
    model_seconds: float = 0.0
    tool_seconds: float = 0.0
    wait_seconds: float = 0.0
    answer: str = ""
    answer_cut: bool = False
    agent: AgentInfo = field(default_factory=AgentInfo)
    models: list[ModelEntry] = field(default_factory=list)
    runs: list[RunEntry] = field(default_factory=list)
    tools: list[ToolEntry] = field(default_factory=list)
    approvals: list[ApprovalEntry] = field(default_factory=list)
    subagents: list[SubagentEntry] = field(default_factory=list)
    conversation: list[Turn] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    growth: Growth = field(default_factory=Growth)
    days: list[Share] = field(default_factory=list)
    sessions: list[Share] = field(default_factory=list)
    owners: list[Share] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
