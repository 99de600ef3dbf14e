"""From an agent, what a caller sets beside it, and tool groups to the options of a session."""

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from agentrpc.domain.isolation import Level
from agentrpc.domain.principal import Principal
from agentrpc.errors import InvalidArgument, NotFound
from agentrpc.names import (
    agent_name,
    agent_version_name,
    parse_agent_or_version,
    parse_tool_group,
    tool_group_name,
)
from agentrpc.services.access import require_change, require_readable
from agentrpc.services.fields import copy_path
from agentrpc.services.validation import MAX_RULES
from agentrpc.store.agents import Agent, AgentVersion, lock_agent, version_of
from agentrpc.store.database import Transaction
from agentrpc.store.tool_groups import lock_tool_groups, read_tool_groups
from agentrpc.v1 import session_pb2

__all__ = [
    "ResolvedOptions",
    "change_agent",
    "load_agent",
    "load_version",
    "refer_to_agent",
    "refer_to_tool_groups",
    "resolve_options",
]

_MAX_GROUPS = 32


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """What a session gets.

    Attributes:
        options: With the values of secrets.
        agent_id: The agent; None: none.
        agent_number: The version of it.
        imposed: Rules that deny, of what is another's: the session's owner cannot take them away.
    """

    options: session_pb2.SessionOptions
    agent_id: UUID | None = None
    agent_number: int | None = None
    imposed: list[str] = field(default_factory=list)

    @property
    def agent_version_name(self) -> str:
        """`agents/{agent}/versions/{version}`; empty without an agent."""
        if self.agent_id is None or self.agent_number is None:
            return ""
        return agent_version_name(self.agent_id, self.agent_number)


async def resolve_options(
    tx: Transaction,
    principal: Principal,
    agent: str,
    overrides: session_pb2.SessionOptions,
    tool_groups: Sequence[str] = (),
    *,
    author: UUID | None = None,
    field: str = "session",
) -> ResolvedOptions:
    """The options of a session that is created now.

    Every field of `overrides` that is set wins over that of the agent's version; messages and lists are replaced as a
    whole; of two levels of isolation the stricter one counts. The rules of tool groups are added to what comes of it,
    as they are now: deny wins anyway.

    Args:
        tx: The unit of work in which the session is created.
        principal: For whom. The agent must be theirs or shared; the tool groups were looked at when they were stored.
        agent: `agents/{agent}` for the default version, `agents/{agent}/versions/{version}`, or empty.
        overrides: What is set beside it, checked.
        tool_groups: Names of further tool groups.
        author: Whose `overrides` are. None: the principal's.
        field: The message in the request that holds `agent` and `options`, for errors.

    Raises:
        InvalidArgument: NAME_INVALID, or FIELD_INVALID if there are too many rules.
        NotFound: There is no such agent, version or tool group for this principal.
    """
    options = session_pb2.SessionOptions()
    agent_id: UUID | None = None
    number: int | None = None
    imposed: list[str] = []
    groups = [parse_tool_group(name, field="tool_groups") for name in tool_groups]
    if agent:
        agent_id, number = parse_agent_or_version(agent, field=f"{field}.agent")
        found = await load_agent(tx, principal, agent_id)
        version = await load_version(tx, agent_id, number or found.default_version)
        number = version.number
        options.ParseFromString(version.options)
        if found.owner != principal.user_id:
            imposed += options.disallowed_tools
        groups = [*version.tool_groups, *groups]
    least = max(options.isolation_level, overrides.isolation_level, key=Level.of)
    for given, _ in overrides.ListFields():
        copy_path(overrides, options, given.name)
    options.isolation_level = least
    if author is not None and author != principal.user_id:
        imposed += overrides.disallowed_tools
    if groups:
        imposed += await _add_rules(tx, principal, options, groups)
        for name in ("allowed_tools", "disallowed_tools"):
            if (count := len(getattr(options, name))) > MAX_RULES:
                told = f"with those of its tool groups there are {count} rules, at most {MAX_RULES} are taken"
                raise InvalidArgument.field(f"{field}.options.{name}", f"{told}: join some by a glob")
    return ResolvedOptions(options, agent_id, number, list(dict.fromkeys(imposed)))


async def _add_rules(
    tx: Transaction, principal: Principal, options: session_pb2.SessionOptions, groups: Sequence[UUID]
) -> list[str]:
    """Add the rules of tool groups; those among them that deny and are of another's groups."""
    imposed: list[str] = []
    known = await read_tool_groups(tx, groups)
    for group_id in dict.fromkeys(groups):
        group = known.get(group_id)
        if group is None:
            # Not without it: it may be what denies.
            raise NotFound("ToolGroup", tool_group_name(group_id))
        _add(options.allowed_tools, group.allowed_tools)
        _add(options.disallowed_tools, group.disallowed_tools)
        if group.owner != principal.user_id:
            imposed += group.disallowed_tools
    return imposed


def _add(rules: MutableSequence[str], more: Sequence[str]) -> None:
    known = set(rules)
    rules.extend(rule for rule in dict.fromkeys(more) if rule not in known)


async def load_agent(tx: Transaction, principal: Principal, agent_id: UUID) -> Agent:
    """An agent that the caller may read. Raises NotFound."""
    return _readable(principal, await tx.get(Agent, agent_id), agent_id)


async def load_version(tx: Transaction, agent_id: UUID, number: int) -> AgentVersion:
    """A version of an agent. Raises NotFound."""
    version = await version_of(tx, agent_id, number)
    if version is None:
        raise NotFound("AgentVersion", agent_version_name(agent_id, number))
    return version


async def change_agent(tx: Transaction, principal: Principal, agent_id: UUID, permission: str) -> Agent:
    """An agent that the caller may change, locked. Raises NotFound and PermissionDenied."""
    agent = _readable(principal, await lock_agent(tx, agent_id), agent_id)
    name = agent_name(agent_id)
    require_change(principal, agent.owner, "Agent", name, shared=agent.shared, permission=permission)
    return agent


def _readable(principal: Principal, agent: Agent | None, agent_id: UUID) -> Agent:
    owner = agent.owner if agent is not None and agent.delete_time is None else None
    shared = agent is not None and agent.shared
    require_readable(principal, owner, "Agent", agent_name(agent_id), shared=shared)
    assert agent is not None
    return agent


async def refer_to_agent(tx: Transaction, principal: Principal, agent: str, *, field: str) -> None:
    """Check a reference that this transaction is about to store: it keeps the agent from being deleted.

    Args:
        tx: The unit of work.
        principal: Who stores it.
        agent: `agents/{agent}` or `agents/{agent}/versions/{version}`.
        field: The field it came in.

    Raises:
        InvalidArgument: NAME_INVALID.
        NotFound: It does not exist, or the caller may not read it.
    """
    agent_id, number = parse_agent_or_version(agent, field=field)
    _readable(principal, await lock_agent(tx, agent_id, to_refer=True), agent_id)
    if number is not None:
        await load_version(tx, agent_id, number)


async def refer_to_tool_groups(
    tx: Transaction, principal: Principal, names: Sequence[str], *, field: str
) -> list[UUID]:
    """Check references that this transaction is about to store: they keep the tool groups from being deleted.

    Raises:
        InvalidArgument: NAME_INVALID; FIELD_INVALID if one is named twice, or there are too many.
        NotFound: One does not exist, or the caller may not read it.
    """
    ids = [parse_tool_group(name, field=field) for name in names]
    if len(set(ids)) != len(ids):
        raise InvalidArgument.field(field, "names one twice")
    if len(ids) > _MAX_GROUPS:
        raise InvalidArgument.field(field, f"may have at most {_MAX_GROUPS} entries")
    known = await lock_tool_groups(tx, ids, to_refer=True)
    for group_id in ids:
        group = known.get(group_id)
        name = tool_group_name(group_id)
        owner, shared = (None, False) if group is None else (group.owner, group.shared)
        require_readable(principal, owner, "ToolGroup", name, shared=shared)
    return ids
