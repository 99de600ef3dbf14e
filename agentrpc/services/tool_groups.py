"""Tool groups: rules under one name. `agent_options.py` gives them to sessions."""

from uuid import UUID

from agentrpc import clock
from agentrpc.domain.principal import Principal
from agentrpc.domain.rule_checks import rule_warnings
from agentrpc.names import parse_tool_group, parse_user, tool_group_name, user_name
from agentrpc.services.access import require_change, require_readable, require_write, visible_owner
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.references import refuse_in_use
from agentrpc.services.validation import Faults, check_rules, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.tool_groups import (
    TOOL_GROUP_ORDER,
    ToolGroup,
    ToolGroupQuery,
    find_tool_groups,
    lock_tool_groups,
    tool_group_used_by,
)
from agentrpc.v1 import tool_group_pb2, tool_group_service_pb2

__all__ = ["ToolGroups"]

_SETTABLE = ("display_name", "description", "labels", "allowed_tools", "disallowed_tools", "shared")


class ToolGroups:
    """The use cases."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def create(
        self, principal: Principal, request: tool_group_service_pb2.CreateToolGroupRequest
    ) -> tool_group_pb2.ToolGroup:
        """CreateToolGroup."""
        require_write(principal, "toolGroups.create")
        _check(request.tool_group)
        key = RequestKey(principal, "CreateToolGroup", request_uuid(request.request_id), request_hash(request))
        given, group_id, now = request.tool_group, clock.uuid7(), clock.utcnow()
        async with self._database.transaction() as tx:
            made = await known_request(tx, key, group_id)
            if made is not None:
                return _warned(_message(_readable(principal, await tx.get(ToolGroup, made), made)))
            group = ToolGroup(
                id=group_id,
                owner=principal.user_id,
                display_name=given.display_name,
                description=given.description,
                labels=dict(given.labels),
                allowed_tools=list(given.allowed_tools),
                disallowed_tools=list(given.disallowed_tools),
                shared=given.shared,
                revision=1,
                create_time=now,
                update_time=now,
            )
            tx.add(group)
        return _warned(_message(group))

    async def get(self, principal: Principal, name: str) -> tool_group_pb2.ToolGroup:
        """GetToolGroup."""
        group_id = parse_tool_group(name)
        async with self._database.transaction() as tx:
            return _warned(_message(_readable(principal, await tx.get(ToolGroup, group_id), group_id)))

    async def list(
        self, principal: Principal, request: tool_group_service_pb2.ListToolGroupsRequest
    ) -> tool_group_service_pb2.ListToolGroupsResponse:
        """ListToolGroups."""
        size = page_size(request.page_size)
        faults = Faults()
        faults.text("query", request.query, 200)
        faults.filter_labels("labels", request.labels.items())
        faults.done()
        order = parse_order(request.order_by, TOOL_GROUP_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = ToolGroupQuery(
            visible_to=visible_owner(principal),
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            words=request.query.split(),
            labels=request.labels,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_tool_groups(tx, query)
        groups = fitting([_message(row) for row in rows[:size]])
        response = tool_group_service_pb2.ListToolGroupsResponse(tool_groups=groups)
        if len(rows) > len(groups):
            last = rows[len(groups) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(
        self, principal: Principal, request: tool_group_service_pb2.UpdateToolGroupRequest
    ) -> tool_group_pb2.ToolGroup:
        """UpdateToolGroup."""
        group_id = parse_tool_group(request.tool_group.name, field="tool_group.name")
        require_write(principal, "toolGroups.update")
        paths = settable_paths(request.update_mask, request.tool_group, _SETTABLE)
        async with self._database.transaction() as tx:
            group = await _change(tx, principal, group_id, "toolGroups.update")
            check_etag(request.tool_group.etag, group.revision, "tool group")
            before = _message(group)
            wanted = tool_group_pb2.ToolGroup()
            wanted.CopyFrom(before)
            for path in paths:
                copy_path(request.tool_group, wanted, path)
            _check(wanted)
            if wanted != before:
                group.display_name, group.description = wanted.display_name, wanted.description
                group.labels, group.shared = dict(wanted.labels), wanted.shared
                group.allowed_tools = list(wanted.allowed_tools)
                group.disallowed_tools = list(wanted.disallowed_tools)
                group.revision += 1
                group.update_time = clock.utcnow()
            return _warned(_message(group))

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteToolGroup."""
        group_id = parse_tool_group(name)
        require_write(principal, "toolGroups.delete")
        async with self._database.transaction() as tx:
            group = await _change(tx, principal, group_id, "toolGroups.delete")
            check_etag(etag, group.revision, "tool group")
            refuse_in_use(principal, "tool group", await tool_group_used_by(tx, group_id))
            await tx.delete(group)


def _check(group: tool_group_pb2.ToolGroup) -> None:
    """All that callers set of a tool group. Raises FIELD_INVALID."""
    faults = Faults()
    faults.title("tool_group.display_name", group.display_name)
    faults.text("tool_group.description", group.description, 4000)
    faults.labels("tool_group.labels", group.labels.items())
    check_rules(group.allowed_tools, faults, "tool_group.allowed_tools", allow=True)
    check_rules(group.disallowed_tools, faults, "tool_group.disallowed_tools", allow=False)
    faults.done()


def _readable(principal: Principal, group: ToolGroup | None, group_id: UUID) -> ToolGroup:
    owner, shared = (None, False) if group is None else (group.owner, group.shared)
    require_readable(principal, owner, "ToolGroup", tool_group_name(group_id), shared=shared)
    assert group is not None
    return group


async def _change(tx: Transaction, principal: Principal, group_id: UUID, permission: str) -> ToolGroup:
    group = (await lock_tool_groups(tx, [group_id])).get(group_id)
    owner, shared = (None, False) if group is None else (group.owner, group.shared)
    require_change(principal, owner, "ToolGroup", tool_group_name(group_id), shared=shared, permission=permission)
    assert group is not None
    return group


def _message(group: ToolGroup) -> tool_group_pb2.ToolGroup:
    """`agentrpc.v1.ToolGroup`."""
    message = tool_group_pb2.ToolGroup(
        name=tool_group_name(group.id),
        display_name=group.display_name,
        description=group.description,
        labels=group.labels,
        allowed_tools=group.allowed_tools,
        disallowed_tools=group.disallowed_tools,
        shared=group.shared,
        owner=user_name(group.owner),
        etag=etag_of(group.revision),
    )
    message.create_time.FromDatetime(group.create_time)
    message.update_time.FromDatetime(group.update_time)
    return message


def _warned(message: tool_group_pb2.ToolGroup) -> tool_group_pb2.ToolGroup:
    """With what is odd about its rules."""
    message.rule_warnings.extend(rule_warnings(message.allowed_tools, message.disallowed_tools))
    return message
