"""What callers send, checked by hand against the limits that the proto comments state. All faults are told at once."""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from agentrpc.domain.mcp_config import url_is_redacted
from agentrpc.domain.network import check_destination
from agentrpc.domain.rule_syntax import parse_rule
from agentrpc.errors import FieldViolation, InvalidArgument
from agentrpc.names import CREDENTIAL, MCP_SERVER, MEMORY_STORE
from agentrpc.reports.render import RenderError, check_template
from agentrpc.v1 import event_pb2, run_pb2, run_service_pb2, session_pb2

__all__ = [
    "MAX_RULES",
    "Faults",
    "check_decision",
    "check_enums",
    "check_mcp_server",
    "check_options",
    "check_prompt",
    "check_report_template",
    "check_rules",
    "check_run",
    "check_session",
    "event_kinds",
    "json_object",
    "request_uuid",
]

_KIB = 1024
_MAX_PROMPT = 1024 * _KIB
_MAX_RESULT = 256 * _KIB
_MAX_SYSTEM_PROMPT = 256 * _KIB
_MAX_SCHEMA = 64 * _KIB
_MAX_LABELS = 64
MAX_RULES = 1000
_MAX_SERVERS = 32
_MAX_CREDENTIALS = 16
_MAX_TURNS = 10_000
_MIN_BUDGET = 1024
_LABEL_KEY = re.compile(r"[a-z0-9._/-]{1,63}")
_SERVER_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DATABASE = re.compile(r"[a-z0-9_-]{1,63}")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_NAMESPACES = 100
_MAX_ROWS = 10_000
_MAX_DESTINATIONS = 1000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_*.-]{1,200}")
_KINDS = {field.name: field.number for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}


class Faults:
    """Collects what is wrong with a request; `done` raises it all as one error."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Note a fault."""
        self._violations.append(FieldViolation(field, description))

    def check(self, good: bool, field: str, description: str) -> None:
        """Note a fault unless `good`."""
        if not good:
            self.add(field, description)

    def text(self, field: str, value: str, limit: int) -> None:
        """At most `limit` characters, and no NUL."""
        self.check(len(value) <= limit, field, f"may have at most {limit} characters, not {len(value)}")
        self.no_nul(field, value)

    def title(self, field: str, value: str) -> None:
        """A name for people that has to be there, at most 200 characters."""
        self.check(bool(value.strip()), field, "is required: a name for people")
        self.text(field, value, 200)

    def no_nul(self, field: str, value: str) -> None:
        """No NUL, which neither a shell nor the database takes."""
        at = value.find("\0")
        self.check(at < 0, field, f"holds a NUL character at position {at}: remove it")

    def bytes(self, field: str, value: str, limit: int) -> None:
        """At most `limit` bytes of UTF-8, and no NUL."""
        self.check(len(value.encode()) <= limit, field, f"may have at most {limit} bytes")
        self.no_nul(field, value)

    def labels(self, field: str, labels: Iterable[tuple[str, str]]) -> None:
        """As on sessions and runs."""
        pairs = list(labels)
        self.check(len(pairs) <= _MAX_LABELS, field, f"may have at most {_MAX_LABELS} entries")
        for key, value in pairs:
            self.check(bool(_LABEL_KEY.fullmatch(key)), field, f"the key {key[:80]!r} is not of [a-z0-9._/-]{{1,63}}")
            self.text(f"{field}[{key[:80]}]", value, 255)

    def filter_labels(self, field: str, labels: Iterable[tuple[str, str]]) -> None:
        """What is looked for may be anything that the database takes."""
        for key, value in labels:
            self.no_nul(field, key)
            self.no_nul(field, value)

    def tags(self, field: str, tags: Sequence[str]) -> None:
        """Words of the form of a label's key, no two the same."""
        self.check(len(tags) <= _MAX_LABELS, field, f"may have at most {_MAX_LABELS} entries")
        self.check(len(set(tags)) == len(tags), field, "names one twice")
        for tag in tags:
            self.check(bool(_LABEL_KEY.fullmatch(tag)), field, f"{tag[:80]!r} is not of [a-z0-9._/-]{{1,63}}")

    def duration(self, field: str, value: Duration, least: timedelta, most: timedelta) -> None:
        """Between two durations."""
        try:
            good = least <= value.ToTimedelta() <= most
        except (OverflowError, ValueError):
            good = False
        self.check(good, field, f"must be between {least.total_seconds():g} s and {most.total_seconds():g} s")

    def time(self, message: Message, name: str, path: str = "") -> datetime | None:
        """The time in a field of a message, at `path`; None where it is not set, or none that one can reckon with."""
        found: datetime | None = None
        if message.HasField(name):
            try:
                found = getattr(message, name).ToDatetime(UTC)
            except (OverflowError, ValueError):
                self.add(path or name, "is not a time between the years 1 and 9999")
        return found

    def done(self) -> None:
        """Raise FIELD_INVALID if there was a fault."""
        if self._violations:
            raise InvalidArgument.fields(*self._violations)


def check_enums(message: Message, faults: Faults, path: str = "") -> None:
    """Values of enums that this server does not know: open enums let them through the wire."""
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        if field.enum_type is not None:
            for number in value if field.is_repeated else [value]:
                if number not in field.enum_type.values_by_number:
                    names = ", ".join(field.enum_type.values_by_name)
                    faults.add(where, f"{number} is not a value of {field.enum_type.name}: use one of {names}")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for item in value if field.is_repeated else [value]:
                check_enums(item, faults, f"{where}.")


def check_session(session: session_pb2.Session, *, prefix: str = "session") -> None:
    """All that callers set of a session. Raises FIELD_INVALID or JSON_INVALID."""
    faults = Faults()
    check_enums(session, faults, f"{prefix}.")
    faults.text(f"{prefix}.display_name", session.display_name, 200)
    faults.text(f"{prefix}.description", session.description, 4000)
    faults.labels(f"{prefix}.labels", session.labels.items())
    check_options(session.options, faults, f"{prefix}.options")
    faults.done()


def check_options(options: session_pb2.SessionOptions, faults: Faults, path: str) -> None:
    """What a session can set, but for the values of enums. Raises JSON_INVALID."""
    faults.text(f"{path}.model", options.model, 200)
    faults.bytes(f"{path}.system_prompt.custom", options.system_prompt.custom, _MAX_SYSTEM_PROMPT)
    faults.bytes(f"{path}.system_prompt.append", options.system_prompt.append, _MAX_SYSTEM_PROMPT)
    for name in options.tools.names:
        faults.check(bool(_TOOL_NAME.fullmatch(name)), f"{path}.tools.names", f"{name[:80]!r} is not a tool's name")
    for field in ("allowed_tools", "disallowed_tools"):
        check_rules(getattr(options, field), faults, f"{path}.{field}", allow=field == "allowed_tools")
    if options.HasField("max_turns"):
        good = 1 <= options.max_turns <= _MAX_TURNS
        faults.check(good, f"{path}.max_turns", f"must be between 1 and {_MAX_TURNS}")
    if options.HasField("max_cost_usd"):
        good = 0 < options.max_cost_usd < float("inf")
        faults.check(good, f"{path}.max_cost_usd", "must be above 0")
    if options.thinking.WhichOneof("mode") == "budget_tokens":
        good = options.thinking.budget_tokens >= _MIN_BUDGET
        faults.check(good, f"{path}.thinking.budget_tokens", f"must be {_MIN_BUDGET} or more")
    if options.HasField("approval_timeout"):
        wait = options.approval_timeout
        faults.duration(f"{path}.approval_timeout", wait, timedelta(seconds=1), timedelta(days=30))
    _servers(options, faults, f"{path}.mcp_servers")
    _network(options.network, faults, f"{path}.network")
    names = options.credentials
    faults.check(len(names) <= _MAX_CREDENTIALS, f"{path}.credentials", f"may have at most {_MAX_CREDENTIALS} entries")
    faults.check(len(set(names)) == len(names), f"{path}.credentials", "names one twice")
    for name in names:
        good = bool(CREDENTIAL.fullmatch(name))
        faults.check(good, f"{path}.credentials", f"{name[:80]!r} is not of the form credentials/{{credential}}")
    if options.output_schema_json:
        faults.bytes(f"{path}.output_schema_json", options.output_schema_json, _MAX_SCHEMA)
        json_object(f"{path}.output_schema_json", options.output_schema_json)


def _network(options: session_pb2.NetworkOptions, faults: Faults, path: str) -> None:
    for field in ("allowed", "denied"):
        destinations = getattr(options, field)
        few = len(destinations) <= _MAX_DESTINATIONS
        faults.check(few, f"{path}.{field}", f"may have at most {_MAX_DESTINATIONS} destinations")
        for index, text in enumerate(destinations[:_MAX_DESTINATIONS]):
            try:
                check_destination(text)
            except ValueError as error:
                faults.add(f"{path}.{field}[{index}]", f"{text[:80]!a}: {error}")
    listed = options.mode == options.MODE_LISTED
    faults.check(listed or not options.allowed, f"{path}.allowed", "goes with MODE_LISTED only: set that as the mode")
    some = not listed or bool(options.allowed)
    faults.check(some, f"{path}.allowed", "is required with MODE_LISTED: name what may be reached, or use MODE_NONE")


def check_rules(rules: Sequence[str], faults: Faults, path: str, *, allow: bool) -> None:
    """Rules for tool calls; `allow`: those that allow them."""
    faults.check(len(rules) <= MAX_RULES, path, f"may have at most {MAX_RULES} rules, not {len(rules)}")
    for rule in rules:
        try:
            parse_rule(rule, allows=allow)
        except ValueError as error:
            faults.add(path, f"{rule[:80]!r}: {error}")
        faults.no_nul(path, rule)


def check_mcp_server(server: session_pb2.McpServer, faults: Faults, path: str) -> None:
    """A server that is part of no session, by the same rules."""
    _servers(session_pb2.SessionOptions(mcp_servers=[server]), faults, path)


def check_server_name(name: str, faults: Faults, path: str) -> None:
    """A name from which those of its tools are made: it has to be told from them (`mcp__{name}__{tool}`)."""
    faults.check(bool(_SERVER_NAME.fullmatch(name)), path, "the name is not of [a-zA-Z0-9_-]{1,64}")
    good = "__" not in name and not name.endswith("_")
    faults.check(good, path, "the name holds __ or ends with _: rules could not tell its tools from another server's")


def _servers(options: session_pb2.SessionOptions, faults: Faults, path: str) -> None:
    names = [server.name for server in options.mcp_servers]
    faults.check(len(names) <= _MAX_SERVERS, path, f"may have at most {_MAX_SERVERS} servers")
    faults.check(len(set(names)) == len(names), path, "two servers have the same name")
    for server in options.mcp_servers:
        where = f"{path}[{server.name[:64]}]"
        check_server_name(server.name, faults, where)
        transport = server.WhichOneof("transport")
        if transport == "stdio":
            faults.check(bool(server.stdio.command), f"{where}.stdio.command", "is required")
            for text in [server.stdio.command, *server.stdio.args, *server.stdio.env.values(), *server.stdio.env]:
                faults.no_nul(f"{where}.stdio", text)
        elif transport in {"sse", "http"}:
            remote = getattr(server, transport)
            good = remote.url.startswith(("http://", "https://"))
            faults.check(good, f"{where}.{transport}.url", "must begin with http:// or https://")
            told = "holds REDACTED, and is not the one that is stored: send the whole"
            faults.check(not url_is_redacted(server), f"{where}.{transport}.url", told)
            for text in [remote.url, *remote.headers, *remote.headers.values()]:
                faults.check(not re.search(r"[\0\r\n]", text), f"{where}.{transport}", "holds NUL or a line break")
        elif transport == "registered":
            good = bool(MCP_SERVER.fullmatch(server.registered))
            faults.check(good, f"{where}.registered", "must be a name such as mcpServers/{mcp_server}")
        elif transport == "builtin":
            _builtin(server.builtin, faults, f"{where}.builtin")
        else:
            faults.add(where, "needs one of stdio, sse, http, registered and builtin")


def _builtin(server: session_pb2.BuiltinServer, faults: Faults, path: str) -> None:
    which = server.WhichOneof("tools")
    if which == "memory":
        store = server.memory.store
        good = bool(MEMORY_STORE.fullmatch(store))
        faults.check(good, f"{path}.memory.store", f"must be a name such as memoryStores/{{store}}, not {store[:80]!r}")
    elif which == "database":
        database, where = server.database, f"{path}.database"
        good = bool(_DATABASE.fullmatch(database.database))
        faults.check(good, f"{where}.database", "must be a name that the operator has configured, of [a-z0-9_-]{1,63}")
        good = 0 <= database.max_rows <= _MAX_ROWS
        faults.check(good, f"{where}.max_rows", f"must be between 1 and {_MAX_ROWS}; 0 takes the default")
        good = database.max_bytes == 0 or _KIB <= database.max_bytes <= _MAX_RESULT
        faults.check(good, f"{where}.max_bytes", f"must be between {_KIB} and {_MAX_RESULT}; 0 takes the default")
        if database.HasField("statement_timeout"):
            limits = timedelta(seconds=0.1), timedelta(seconds=50)
            faults.duration(f"{where}.statement_timeout", database.statement_timeout, *limits)
    elif which == "kubernetes":
        kubernetes, where = server.kubernetes, f"{path}.kubernetes"
        faults.text(f"{where}.context", kubernetes.context, 253)
        good = len(kubernetes.namespaces) <= _MAX_NAMESPACES
        faults.check(good, f"{where}.namespaces", f"may have at most {_MAX_NAMESPACES} entries")
        for name in kubernetes.namespaces:
            good = bool(_NAMESPACE.fullmatch(name))
            faults.check(good, f"{where}.namespaces", f"{name[:80]!r} is not the name of a namespace (RFC 1123)")
    elif which is None:
        faults.add(path, "needs one of memory, database, system and kubernetes")


def check_report_template(field: str, template: str) -> None:
    """A caller's own template of a report, as far as one sees without rendering it. Raises TEMPLATE_INVALID."""
    try:
        check_template(template)
    except RenderError as error:
        metadata = {"field": field, "line": str(error.line)}
        raise InvalidArgument(str(error), reason="TEMPLATE_INVALID", metadata=metadata) from None


def check_run(run: run_pb2.Run) -> None:
    """All that callers set of a run. Raises TOO_LARGE or FIELD_INVALID."""
    faults = Faults()
    check_enums(run, faults, "run.")
    check_prompt("run.prompt", run.prompt, faults)
    faults.labels("run.labels", run.labels.items())
    if run.HasField("timeout"):
        faults.duration("run.timeout", run.timeout, timedelta(seconds=1), timedelta(days=7))
    if run.HasField("inactivity_timeout"):
        faults.duration("run.inactivity_timeout", run.inactivity_timeout, timedelta(seconds=10), timedelta(days=1))
    faults.done()


def check_prompt(field: str, text: str, faults: Faults) -> None:
    """What is said to an agent. Raises TOO_LARGE."""
    size = len(text.encode())
    if size > _MAX_PROMPT:
        raise InvalidArgument(
            f"{field} has {size} bytes, at most {_MAX_PROMPT} are taken: put the rest into a file of the workspace",
            reason="TOO_LARGE",
            metadata={"field": field, "limit": str(_MAX_PROMPT), "actual": str(size)},
        )
    faults.check(size > 0, field, "is required: say what the agent is to do")
    faults.no_nul(field, text)


def check_decision(request: run_service_pb2.ResolveRunRequest) -> None:
    """A decision about calls in doubt, as far as one sees without knowing them. Raises FIELD_INVALID."""
    faults = Faults()
    check_enums(request, faults)
    faults.check(bool(request.decision), "decision", "is required: RESUME, RETRY_CALLS, ASSUME_DONE or ABANDON")
    assumed = request.decision == run_service_pb2.ResolveRunRequest.DECISION_ASSUME_DONE
    faults.check(assumed or not request.results, "results", "go with DECISION_ASSUME_DONE only")
    known = set()
    for index, result in enumerate(request.results):
        faults.bytes(f"results[{index}].text", result.text, _MAX_RESULT)
        where = f"results[{index}].tool_use_id"
        faults.no_nul(where, result.tool_use_id)
        faults.check(bool(result.tool_use_id), where, "is required: see in_doubt_calls of the run")
        faults.check(result.tool_use_id not in known, where, "is the call of another result too")
        known.add(result.tool_use_id)
    faults.done()


def json_object(field: str, text: str) -> None:
    """Raise JSON_INVALID unless the text is a JSON object, of what can be stored and written again."""
    good, place = False, ""
    try:
        found = json.loads(text)
        # Half a surrogate pair, which no string may hold, does not encode; JSON has no numbers without end.
        good = isinstance(found, dict) and bool(json.dumps(found, ensure_ascii=False, allow_nan=False).encode())
    except json.JSONDecodeError as error:
        place = f": line {error.lineno}, column {error.colno}: {error.msg}"
    except (ValueError, RecursionError):
        good = False
    if not good or "\0" in text or "\\u0000" in text:
        raise InvalidArgument(
            f"{field} is not the text of a JSON object{place}", reason="JSON_INVALID", metadata={"field": field}
        )


def request_uuid(text: str) -> UUID | None:
    """The request_id of a request; None when there is none. Raises FIELD_INVALID."""
    if not text:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise InvalidArgument.field("request_id", "must be a UUID, such as uuidgen prints") from None


def event_kinds(names: Iterable[str]) -> frozenset[int] | None:
    """Names of event types as numbers of fields; None when there are none, which means all.

    Raises:
        InvalidArgument: EVENT_TYPE_UNKNOWN.
    """
    numbers = set()
    for name in names:
        if name not in _KINDS:
            raise InvalidArgument(
                f"there is no event type {name[:80]!r}: use the names of the fields of Event.payload, "
                f"such as assistant_message",
                reason="EVENT_TYPE_UNKNOWN",
                metadata={"event_type": name[:80]},
            )
        numbers.add(_KINDS[name])
    return frozenset(numbers) or None
