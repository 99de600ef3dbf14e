"""Agents and their versions: definitions that sessions are made from. What comes of one is in `agent_options.py`."""

from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.domain.rule_checks import rule_warnings
from agentrpc.errors import InvalidArgument
from agentrpc.names import (
    agent_name,
    agent_version_name,
    parse_agent,
    parse_agent_version,
    parse_user,
    tool_group_name,
    user_name,
)
from agentrpc.services.access import require_write, visible_owner
from agentrpc.services.agent_options import change_agent, load_agent, load_version, refer_to_tool_groups
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.references import refuse_in_use
from agentrpc.services.secrets import SecretBox
from agentrpc.services.session_limits import check_limits
from agentrpc.services.sessions import keep_secrets
from agentrpc.services.tool_options import check_tools
from agentrpc.services.validation import Faults, check_enums, check_options, request_uuid
from agentrpc.services.views import public_options
from agentrpc.settings import Settings
from agentrpc.store.agents import (
    AGENT_ORDER,
    Agent,
    AgentQuery,
    AgentVersion,
    agent_used_by,
    find_agents,
    find_versions,
    version_of,
)
from agentrpc.store.database import Database
from agentrpc.v1 import agent_pb2, agent_service_pb2, session_pb2

__all__ = ["Agents"]

_SETTABLE = ("display_name", "description", "category", "tags", "labels", "shared", "default_version")


class Agents:
    """The use cases."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._box = SecretBox(settings.secret_keys)

    async def create(self, principal: Principal, request: agent_service_pb2.CreateAgentRequest) -> agent_pb2.Agent:
        """CreateAgent."""
        require_write(principal, "agents.create")
        faults = Faults()
        _check_agent(request.agent, faults)
        _check_version(request.version, faults)
        faults.check(
            not request.agent.default_version, "agent.default_version", "is version 1 at first: leave it empty"
        )
        faults.done()
        key = RequestKey(principal, "CreateAgent", request_uuid(request.request_id), request_hash(request))
        given, agent_id, now = request.agent, clock.uuid7(), clock.utcnow()
        async with self._database.transaction() as tx:
            made = await known_request(tx, key, agent_id)
            if made is not None:
                return _message(await load_agent(tx, principal, made))
            check_limits(request.version.options, self._settings, path="version.options")
            await check_tools(tx, principal, request.version.options, self._settings, path="version.options")
            self._box.seal_options(request.version.options)
            groups = await refer_to_tool_groups(tx, principal, request.version.tool_groups, field="version.tool_groups")
            agent = Agent(
                id=agent_id,
                owner=principal.user_id,
                display_name=given.display_name,
                description=given.description,
                category=given.category,
                tags=list(given.tags),
                labels=dict(given.labels),
                shared=given.shared,
                default_version=1,
                newest_version=1,
                revision=1,
                create_time=now,
                update_time=now,
                usage_count=0,
                last_used_time=None,
            )
            tx.add(agent)
            await tx.flush()
            tx.add(_version(principal, agent, request.version, groups))
        return _message(agent)

    async def get(self, principal: Principal, name: str) -> agent_pb2.Agent:
        """GetAgent."""
        agent_id = parse_agent(name)
        async with self._database.transaction() as tx:
            return _message(await load_agent(tx, principal, agent_id))

    async def list(
        self, principal: Principal, request: agent_service_pb2.ListAgentsRequest
    ) -> agent_service_pb2.ListAgentsResponse:
        """ListAgents."""
        size = page_size(request.page_size)
        faults = Faults()
        faults.text("query", request.query, 200)
        for field, texts in [("category", [request.category]), ("tags", request.tags)]:
            for text in texts:
                faults.no_nul(field, text)
        faults.filter_labels("labels", request.labels.items())
        faults.done()
        order = parse_order(request.order_by, AGENT_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = AgentQuery(
            visible_to=visible_owner(principal),
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            words=request.query.split(),
            category=request.category,
            tags=request.tags,
            labels=request.labels,
            show_deleted=request.show_deleted,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_agents(tx, query)
        agents = fitting([_message(row) for row in rows[:size]])
        response = agent_service_pb2.ListAgentsResponse(agents=agents)
        if len(rows) > len(agents):
            last = rows[len(agents) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(self, principal: Principal, request: agent_service_pb2.UpdateAgentRequest) -> agent_pb2.Agent:
        """UpdateAgent."""
        agent_id = parse_agent(request.agent.name, field="agent.name")
        require_write(principal, "agents.update")
        paths = settable_paths(request.update_mask, request.agent, _SETTABLE)
        async with self._database.transaction() as tx:
            agent = await change_agent(tx, principal, agent_id, "agents.update")
            check_etag(request.agent.etag, agent.revision, "agent")
            before = _message(agent)
            wanted = agent_pb2.Agent()
            wanted.CopyFrom(before)
            for path in paths:
                copy_path(request.agent, wanted, path)
            faults = Faults()
            _check_agent(wanted, faults)
            faults.done()
            if wanted != before:
                agent.display_name, agent.description = wanted.display_name, wanted.description
                agent.category, agent.tags, agent.labels = wanted.category, list(wanted.tags), dict(wanted.labels)
                agent.shared = wanted.shared
                agent.default_version = _own_version(agent, wanted.default_version)
                _touch(agent)
            return _message(agent)

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteAgent."""
        agent_id = parse_agent(name)
        require_write(principal, "agents.delete")
        async with self._database.transaction() as tx:
            agent = await change_agent(tx, principal, agent_id, "agents.delete")
            check_etag(etag, agent.revision, "agent")
            refuse_in_use(principal, "agent", await agent_used_by(tx, agent_id))
            agent.delete_time = clock.utcnow()

    # ---- Versions ----

    async def create_version(
        self, principal: Principal, request: agent_service_pb2.CreateAgentVersionRequest
    ) -> agent_pb2.AgentVersion:
        """CreateAgentVersion."""
        agent_id = parse_agent(request.parent, field="parent")
        require_write(principal, "agents.update")
        key = RequestKey(principal, "CreateAgentVersion", request_uuid(request.request_id), request_hash(request))
        version_id = clock.uuid7()
        async with self._database.transaction() as tx:
            # The agent first: who comes with the same request_id waits for it here, and not at the etag.
            agent = await change_agent(tx, principal, agent_id, "agents.update")
            made = await known_request(tx, key, version_id)
            if made is not None:
                return _version_message(await tx.get_one(AgentVersion, made))
            check_etag(request.etag, agent.revision, "agent")
            newest = await version_of(tx, agent_id, agent.newest_version)
            assert newest is not None
            before = session_pb2.SessionOptions.FromString(newest.options)
            self._box.open_options(before)
            keep_secrets(before, request.version.options)
            faults = Faults()
            _check_version(request.version, faults)
            faults.done()
            check_limits(request.version.options, self._settings, path="version.options")
            await check_tools(tx, principal, request.version.options, self._settings, path="version.options")
            self._box.seal_options(request.version.options)
            groups = await refer_to_tool_groups(tx, principal, request.version.tool_groups, field="version.tool_groups")
            agent.newest_version += 1
            if request.make_default:
                agent.default_version = agent.newest_version
            _touch(agent)
            version = _version(principal, agent, request.version, groups, version_id)
            tx.add(version)
        return _version_message(version)

    async def get_version(self, principal: Principal, name: str) -> agent_pb2.AgentVersion:
        """GetAgentVersion."""
        agent_id, number = parse_agent_version(name)
        async with self._database.transaction() as tx:
            await load_agent(tx, principal, agent_id)
            return _version_message(await load_version(tx, agent_id, number))

    async def list_versions(
        self, principal: Principal, request: agent_service_pb2.ListAgentVersionsRequest
    ) -> agent_service_pb2.ListAgentVersionsResponse:
        """ListAgentVersions."""
        agent_id = parse_agent(request.parent, field="parent")
        size = page_size(request.page_size, default=20, limit=100)
        after = self._pager.read(request, principal.user_id)
        async with self._database.transaction() as tx:
            await load_agent(tx, principal, agent_id)
            rows = await find_versions(tx, agent_id, before=None if after is None else after[0], limit=size + 1)
        versions = fitting([_version_message(row, warned=False) for row in rows[:size]])
        response = agent_service_pb2.ListAgentVersionsResponse(versions=versions)
        if len(rows) > len(versions):
            last = rows[len(versions) - 1].number
            response.next_page_token = self._pager.issue(request, principal.user_id, [last])
        return response


def _check_agent(agent: agent_pb2.Agent, faults: Faults) -> None:
    faults.title("agent.display_name", agent.display_name)
    faults.text("agent.description", agent.description, 4000)
    faults.tags("agent.category", [agent.category] if agent.category else [])
    faults.tags("agent.tags", agent.tags)
    faults.labels("agent.labels", agent.labels.items())


def _check_version(version: agent_pb2.AgentVersion, faults: Faults) -> None:
    check_enums(version, faults, "version.")
    check_options(version.options, faults, "version.options")
    faults.text("version.note", version.note, 1000)


def _own_version(agent: Agent, name: str) -> int:
    """The number of a version that the agent has. Raises NAME_INVALID or FIELD_INVALID."""
    agent_id, number = parse_agent_version(name, field="agent.default_version")
    if agent_id != agent.id or number > agent.newest_version:
        raise InvalidArgument.field(
            "agent.default_version", f"must be one of the agent's versions, 1 to {agent.newest_version}"
        )
    return number


def _touch(agent: Agent) -> None:
    agent.revision += 1
    agent.update_time = clock.utcnow()


def _version(
    principal: Principal,
    agent: Agent,
    given: agent_pb2.AgentVersion,
    tool_groups: list[UUID],
    version_id: UUID | None = None,
) -> AgentVersion:
    """The row of an agent's newest version."""
    return AgentVersion(
        id=version_id or clock.uuid7(),
        agent_id=agent.id,
        number=agent.newest_version,
        options=given.options.SerializeToString(deterministic=True),
        tool_groups=tool_groups,
        note=given.note,
        creator=principal.user_id,
        create_time=agent.update_time,
    )


def _message(agent: Agent) -> agent_pb2.Agent:
    """`agentrpc.v1.Agent`."""
    message = agent_pb2.Agent(
        name=agent_name(agent.id),
        display_name=agent.display_name,
        description=agent.description,
        category=agent.category,
        tags=agent.tags,
        labels=agent.labels,
        shared=agent.shared,
        default_version=agent_version_name(agent.id, agent.default_version),
        newest_version=agent_version_name(agent.id, agent.newest_version),
        owner=user_name(agent.owner),
        usage_count=agent.usage_count,
        etag=etag_of(agent.revision),
    )
    message.create_time.FromDatetime(agent.create_time)
    message.update_time.FromDatetime(agent.update_time)
    if agent.last_used_time is not None:
        message.last_used_time.FromDatetime(agent.last_used_time)
    if agent.delete_time is not None:
        message.delete_time.FromDatetime(agent.delete_time)
    return message


def _version_message(version: AgentVersion, *, warned: bool = True) -> agent_pb2.AgentVersion:
    """`agentrpc.v1.AgentVersion`."""
    message = agent_pb2.AgentVersion(
        name=agent_version_name(version.agent_id, version.number),
        options=public_options(version.options),
        tool_groups=[tool_group_name(group) for group in version.tool_groups],
        note=version.note,
        creator=user_name(version.creator),
    )
    if warned:
        message.rule_warnings.extend(rule_warnings(message.options.allowed_tools, message.options.disallowed_tools))
    message.create_time.FromDatetime(version.create_time)
    return message
