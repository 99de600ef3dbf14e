"""The methods of McpServerService."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.mcp_servers import McpServers
from agentrpc.v1 import mcp_server_service_pb2

__all__ = ["mcp_server_service"]


def mcp_server_service(servers: McpServers) -> Service:
    """McpServerService."""
    return Service(
        mcp_server_service_pb2.DESCRIPTOR.services_by_name["McpServerService"],
        {
            "CreateMcpServer": lambda call, r: servers.create(call.principal, r),
            "GetMcpServer": lambda call, r: servers.get(call.principal, r.name),
            "ListMcpServers": lambda call, r: servers.list(call.principal, r),
            "UpdateMcpServer": lambda call, r: servers.update(call.principal, r),
            "DeleteMcpServer": emptied(lambda call, r: servers.delete(call.principal, r.name, r.etag)),
            "CheckMcpServer": lambda call, r: servers.check(call.principal, r.name),
            "ListMcpServerTools": lambda call, r: servers.list_tools(call.principal, r),
            "ImportMcpServers": lambda call, r: servers.import_servers(call.principal, r),
            "ExportMcpServers": lambda call, r: servers.export_servers(call.principal, r),
            "ListMcpServerCatalogue": lambda *_: servers.catalogue(),
        },
    )
