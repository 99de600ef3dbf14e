"""Registered MCP servers: what callers set and ask. `mcp_checks.py` has them checked, sessions use them."""

import asyncio
import json
from uuid import UUID

from agentrpc import clock
from agentrpc.domain.mcp_config import (
    EntryError,
    entry_of,
    keep_secrets,
    missing_secrets,
    parse_entry,
    redacted,
    session_name_of,
)
from agentrpc.domain.principal import Principal, Role
from agentrpc.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from agentrpc.names import mcp_server_name, parse_mcp_server, parse_user, user_name
from agentrpc.services.access import require_write
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.mcp_catalogue import TEMPLATES
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.references import refuse_in_use
from agentrpc.services.secrets import SecretBox
from agentrpc.services.signals import Doorbell
from agentrpc.services.validation import Faults, check_enums, check_mcp_server, json_object, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction
from agentrpc.store.mcp_servers import (
    MCP_SERVER_ORDER,
    McpServerQuery,
    McpServerRow,
    ask_for_check,
    find_mcp_servers,
    lock_mcp_server,
    mcp_server_used_by,
    own_mcp_servers,
)
from agentrpc.v1 import mcp_server_pb2, mcp_server_service_pb2, session_pb2

__all__ = ["JOB", "McpServers", "full_config", "load_mcp_server"]

JOB = "mcp-health"

# Names of at most 10 resources that refer to a server.
_MAX_SERVERS = 200
_MAX_IMPORT = 100
_MAX_FILE = 1024 * 1024
_MAX_EXTRA = 64 * 1024
_SETTABLE = ("display_name", "description", "tags", "shared", "config", "extra_json")
_WAIT = 50.0
_FILE_KINDS = {"stdio", "sse", "http"}


class McpServers:
    """The use cases.

    Args:
        database: The store.
        doorbell: Is rung when there may be something to check.
        settings: The settings.
    """

    def __init__(self, database: Database, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._doorbell = doorbell
        self._box = SecretBox(settings.secret_keys)
        self._pager = Pager(settings.signing_key.get_secret_value())

    async def create(
        self, principal: Principal, request: mcp_server_service_pb2.CreateMcpServerRequest
    ) -> mcp_server_pb2.RegisteredMcpServer:
        """CreateMcpServer."""
        require_write(principal, "mcpServers.create")
        _check(request.mcp_server)
        key = RequestKey(principal, "CreateMcpServer", request_uuid(request.request_id), request_hash(request))
        row = _new_row(principal.user_id)
        self._set(row, request.mcp_server)
        async with self._database.transaction() as tx:
            if (known := await known_request(tx, key, row.id)) is not None:
                return _message(await load_mcp_server(tx, principal, known))
            own = await own_mcp_servers(tx, principal.user_id)
            _require_free(own, row.display_name)
            _require_room(len(own) + 1)
            tx.add(row)
        await self._doorbell.ring_job(JOB)
        return _message(row)

    async def get(self, principal: Principal, name: str) -> mcp_server_pb2.RegisteredMcpServer:
        """GetMcpServer."""
        server_id = parse_mcp_server(name)
        async with self._database.transaction() as tx:
            return _message(await load_mcp_server(tx, principal, server_id))

    async def list(
        self, principal: Principal, request: mcp_server_service_pb2.ListMcpServersRequest
    ) -> mcp_server_service_pb2.ListMcpServersResponse:
        """ListMcpServers."""
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        for tag in request.tags:
            faults.no_nul("tags", tag)
        faults.done()
        order = parse_order(request.order_by, MCP_SERVER_ORDER)
        after = self._pager.read(request, principal.user_id)
        query = McpServerQuery(
            reader=None if principal.role is Role.ADMIN else principal.user_id,
            owner=parse_user(request.owner, field="owner") if request.owner else None,
            tags=request.tags,
            states=[mcp_server_pb2.McpServerHealth.State.Name(s).removeprefix("STATE_") for s in request.states],
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_mcp_servers(tx, query)
        servers = fitting([_message(row) for row in rows[:size]])
        response = mcp_server_service_pb2.ListMcpServersResponse(mcp_servers=servers)
        if len(rows) > len(servers):
            last = rows[len(servers) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(
        self, principal: Principal, request: mcp_server_service_pb2.UpdateMcpServerRequest
    ) -> mcp_server_pb2.RegisteredMcpServer:
        """UpdateMcpServer."""
        server_id = parse_mcp_server(request.mcp_server.name, field="mcp_server.name")
        require_write(principal, "mcpServers.update")
        paths = settable_paths(request.update_mask, request.mcp_server, _SETTABLE)
        async with self._database.transaction() as tx:
            row = await load_mcp_server(tx, principal, server_id, to_change="mcpServers.update")
            check_etag(request.mcp_server.etag, row.revision, "server")
            before = _message(row)
            wanted = _message(row)
            for path in paths:
                copy_path(request.mcp_server, wanted, path)
            self._keep_secrets(row, wanted)
            _check(wanted)
            if wanted.display_name != row.display_name:
                _require_free(await own_mcp_servers(tx, row.owner), wanted.display_name)
            if wanted != before:
                self._set(row, wanted)
                row.revision += 1
                row.update_time = clock.utcnow()
            message = _message(row)
        await self._doorbell.ring_job(JOB)
        return message

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteMcpServer."""
        server_id = parse_mcp_server(name)
        require_write(principal, "mcpServers.delete")
        async with self._database.transaction() as tx:
            row = await load_mcp_server(tx, principal, server_id, to_change="mcpServers.delete")
            check_etag(etag, row.revision, "server")
            refuse_in_use(principal, "server", await mcp_server_used_by(tx, server_id))
            await tx.delete(row)

    # ---- Checks ----

    async def check(self, principal: Principal, name: str) -> mcp_server_pb2.RegisteredMcpServer:
        """CheckMcpServer."""
        return _message((await self._checked(principal, parse_mcp_server(name)))[0])

    async def list_tools(
        self, principal: Principal, request: mcp_server_service_pb2.ListMcpServerToolsRequest
    ) -> mcp_server_service_pb2.ListMcpServerToolsResponse:
        """ListMcpServerTools."""
        server_id = parse_mcp_server(request.parent, field="parent")
        if request.cached:
            async with self._database.transaction() as tx:
                row, done = await load_mcp_server(tx, principal, server_id), True
        else:
            row, done = await self._checked(principal, server_id)
        good = request.cached or (done and row.health_state == "HEALTHY")
        if row.tools is None or not good:
            health = mcp_server_pb2.McpServerHealth.FromString(row.health)
            why = health.error or "it was not checked yet"
            if not done:
                why = f"no worker has checked it within {_WAIT:.0f} s: try again"
            raise FailedPrecondition(
                f"its tools are not known: {why}",
                reason="STATE_INVALID",
                metadata={"state": f"STATE_{row.health_state}"},
            )
        return mcp_server_service_pb2.ListMcpServerToolsResponse.FromString(row.tools)

    async def _checked(self, principal: Principal, server_id: UUID) -> tuple[McpServerRow, bool]:
        """A server after a check from now on, and whether there was one in time."""
        require_write(principal, "mcpServers.check")
        async with self._database.transaction() as tx:
            row = await load_mcp_server(tx, principal, server_id)
            if session_pb2.McpServer.FromString(row.config).WhichOneof("transport") not in _FILE_KINDS:
                raise FailedPrecondition(
                    "the tools of this service itself are there whenever a session runs: there is nothing to check",
                    reason="STATE_INVALID",
                    metadata={"state": f"STATE_{row.health_state}"},
                )
            asked = await ask_for_check(tx, server_id)
        await self._doorbell.ring_job(JOB)
        deadline = clock.monotonic() + _WAIT
        while clock.monotonic() < deadline:
            await asyncio.sleep(clock.jitter(0.25))
            async with self._database.transaction() as tx:
                row = await load_mcp_server(tx, principal, server_id)
            if row.checked_time is not None and row.checked_time >= asked:
                return row, True
        return row, False

    # ---- Files of Claude Desktop ----

    async def import_servers(
        self, principal: Principal, request: mcp_server_service_pb2.ImportMcpServersRequest
    ) -> mcp_server_service_pb2.ImportMcpServersResponse:
        """ImportMcpServers."""
        require_write(principal, "mcpServers.create")
        file = _file(request.config_json)
        response = mcp_server_service_pb2.ImportMcpServersResponse(
            ignored_keys=[key for key in file if key != "mcpServers"]
        )
        wanted: list[tuple[McpServerRow, mcp_server_pb2.RegisteredMcpServer]] = []
        async with self._database.transaction() as tx:
            own = await own_mcp_servers(tx, principal.user_id)
            faults = Faults()
            for given in _entries(file["mcpServers"], faults):
                row = own.get(given.display_name)
                if row is None:
                    row = own[given.display_name] = _new_row(principal.user_id)
                    given.shared = request.shared
                else:
                    known = _message(row)
                    given.shared, given.description = known.shared, known.description
                    given.tags.extend(known.tags)
                    given.config.name = known.config.name
                    self._keep_secrets(row, given, from_file=True)
                    row.revision += 1
                    row.update_time = clock.utcnow()
                _check_into(given, faults, f"config_json.mcpServers[{given.display_name[:80]}]")
                response.missing_secrets.extend(
                    f"{given.display_name}: {field}" for field in missing_secrets(given.config)
                )
                wanted.append((row, given))
            faults.done()
            _require_room(len(own))
            for row, given in wanted:
                self._set(row, given)
            rows = [row for row, _ in wanted]
            response.mcp_servers.extend(map(_message, rows))
            if request.validate_only:
                # What was changed is only in memory.
                tx.expunge_all()
            else:
                tx.add_all(rows)
        if not request.validate_only:
            await self._doorbell.ring_job(JOB)
        return response

    async def export_servers(
        self, principal: Principal, request: mcp_server_service_pb2.ExportMcpServersRequest
    ) -> mcp_server_service_pb2.ExportMcpServersResponse:
        """ExportMcpServers."""
        wanted = [parse_mcp_server(name, field="names") for name in request.names]
        async with self._database.transaction() as tx:
            if wanted:
                rows = [await load_mcp_server(tx, principal, server_id) for server_id in dict.fromkeys(wanted)]
            else:
                rows = list((await own_mcp_servers(tx, principal.user_id)).values())
        servers: dict[str, object] = {}
        for row in rows:
            config = session_pb2.McpServer.FromString(row.config)
            if config.WhichOneof("transport") in _FILE_KINDS:
                # Of several owners, two may have the same.
                key = row.display_name if row.display_name not in servers else f"{row.display_name} ({row.id})"
                servers[key] = entry_of(config, row.extra)
            elif wanted:
                raise FailedPrecondition(
                    f"{mcp_server_name(row.id)} is run by this service itself: no file can have it",
                    reason="STATE_INVALID",
                    metadata={"state": f"STATE_{row.health_state}"},
                )
        text = json.dumps({"mcpServers": servers}, indent=2, ensure_ascii=False)
        return mcp_server_service_pb2.ExportMcpServersResponse(config_json=text)

    async def catalogue(self) -> mcp_server_service_pb2.ListMcpServerCatalogueResponse:
        """ListMcpServerCatalogue."""
        return mcp_server_service_pb2.ListMcpServerCatalogueResponse(templates=TEMPLATES)

    # ---- Rows ----

    def _keep_secrets(
        self, row: McpServerRow, wanted: mcp_server_pb2.RegisteredMcpServer, *, from_file: bool = False
    ) -> None:
        if row.secrets is not None and wanted.config != session_pb2.McpServer.FromString(row.config):
            keep_secrets(full_config(self._box, row), wanted.config, from_file=from_file)

    def _set(self, row: McpServerRow, given: mcp_server_pb2.RegisteredMcpServer) -> None:
        """Put what callers set into a row. Raises NOT_CONFIGURED."""
        row.display_name, row.description = given.display_name, given.description
        row.tags, row.shared, row.extra = list(given.tags), given.shared, given.extra_json
        config = session_pb2.McpServer()
        config.CopyFrom(given.config)
        config.name = config.name or session_name_of(given.display_name)
        shown = redacted(config)
        stored = shown.SerializeToString(deterministic=True)
        if stored == row.config and config == shown:
            # As it was shown: what is secret stays as it is.
            return
        if row.config:
            row.config_revision += 1
        row.secrets = None
        if config != shown:
            row.secrets = self._box.seal(config.SerializeToString(deterministic=True), mcp_server_name(row.id))
        row.config = stored
        row.health_state, row.health, row.tools = "UNKNOWN", b"", None
        # A check that is under way is of what was before.
        row.lease = row.lease_time = None
        row.due_time = clock.utcnow() if config.WhichOneof("transport") in _FILE_KINDS else None


def _new_row(owner: UUID) -> McpServerRow:
    now = clock.utcnow()
    return McpServerRow(
        id=clock.uuid7(),
        owner=owner,
        config=b"",
        revision=1,
        config_revision=1,
        create_time=now,
        update_time=now,
        secrets=None,
    )


def full_config(box: SecretBox, row: McpServerRow) -> session_pb2.McpServer:
    """The configuration with its secrets. Raises NOT_CONFIGURED."""
    if row.secrets is None:
        return session_pb2.McpServer.FromString(row.config)
    return session_pb2.McpServer.FromString(box.open(row.secrets, mcp_server_name(row.id)))


async def load_mcp_server(
    tx: Transaction, principal: Principal, server_id: UUID, *, to_change: str = ""
) -> McpServerRow:
    """A server that the caller may use; locked and his to change with `to_change`, such as `mcpServers.update`."""
    row = await (lock_mcp_server(tx, server_id) if to_change else tx.get(McpServerRow, server_id))
    owns = row is not None and (row.owner == principal.user_id or principal.role is Role.ADMIN)
    if row is None or not (row.shared or owns):
        raise NotFound("RegisteredMcpServer", mcp_server_name(server_id))
    if to_change and not owns:
        raise PermissionDenied(to_change)
    return row


# ---- Checks of what callers send ----


def _check(given: mcp_server_pb2.RegisteredMcpServer) -> None:
    faults = Faults()
    faults.check(bool(given.display_name.strip()), "mcp_server.display_name", "is required")
    _check_into(given, faults, "mcp_server")
    faults.done()


def _check_into(given: mcp_server_pb2.RegisteredMcpServer, faults: Faults, path: str) -> None:
    faults.text(f"{path}.display_name", given.display_name, 200)
    faults.text(f"{path}.description", given.description, 4000)
    faults.labels(f"{path}.tags", [(tag, "") for tag in given.tags])
    config = session_pb2.McpServer()
    config.CopyFrom(given.config)
    config.name = config.name or session_name_of(given.display_name)
    good = not config.HasField("registered")
    faults.check(good, f"{path}.config.registered", "must be the configuration itself, not another server")
    check_mcp_server(config, faults, f"{path}.config")
    faults.bytes(f"{path}.extra_json", given.extra_json, _MAX_EXTRA)
    if given.extra_json:
        json_object(f"{path}.extra_json", given.extra_json)


def _file(text: str) -> dict[str, object]:
    if len(text.encode()) > _MAX_FILE:
        raise InvalidArgument.field("config_json", f"may have at most {_MAX_FILE} bytes")
    # Editors of Windows begin files with a mark of their byte order (RFC 8259, section 8.1).
    text = text.removeprefix("\ufeff")
    json_object("config_json", text)
    file: dict[str, object] = json.loads(text)
    servers = file.get("mcpServers")
    if not isinstance(servers, dict):
        raise InvalidArgument.field("config_json", "has no object `mcpServers`")
    if len(servers) > _MAX_IMPORT:
        raise InvalidArgument.field("config_json", f"may have at most {_MAX_IMPORT} servers")
    return file


def _entries(servers: object, faults: Faults) -> list[mcp_server_pb2.RegisteredMcpServer]:
    assert isinstance(servers, dict)
    found = []
    for key, entry in servers.items():
        where = f"config_json.mcpServers[{key[:80]}]"
        try:
            config, extra = parse_entry(key, entry)
        except EntryError as error:
            faults.add(f"{where}.{error.path}".rstrip("."), str(error))
            continue
        given = mcp_server_pb2.RegisteredMcpServer(display_name=key, config=config, extra_json=extra)
        faults.check(bool(key.strip()), where, "has no name")
        found.append(given)
    return found


def _require_free(own: dict[str, McpServerRow], display_name: str) -> None:
    if display_name in own:
        taken = mcp_server_name(own[display_name].id)
        raise InvalidArgument.field("mcp_server.display_name", f"is that of {taken} already: choose another")


def _require_room(count: int) -> None:
    if count > _MAX_SERVERS:
        raise ResourceExhausted(
            f"you may have {_MAX_SERVERS} MCP servers: delete some first",
            reason="LIMIT_REACHED",
            metadata={"limit": str(_MAX_SERVERS)},
        )


def _message(row: McpServerRow) -> mcp_server_pb2.RegisteredMcpServer:
    message = mcp_server_pb2.RegisteredMcpServer(
        name=mcp_server_name(row.id),
        display_name=row.display_name,
        description=row.description,
        tags=row.tags,
        shared=row.shared,
        owner=user_name(row.owner),
        config=session_pb2.McpServer.FromString(row.config),
        extra_json=row.extra,
        health=mcp_server_pb2.McpServerHealth.FromString(row.health),
        etag=etag_of(row.revision),
        config_revision=row.config_revision,
    )
    message.health.MergeFrom(mcp_server_pb2.McpServerHealth(state=f"STATE_{row.health_state}"))
    message.create_time.FromDatetime(row.create_time)
    message.update_time.FromDatetime(row.update_time)
    return message
