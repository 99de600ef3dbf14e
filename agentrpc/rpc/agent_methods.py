"""What each RPC of agents and tool groups does."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.agents import Agents
from agentrpc.services.tool_groups import ToolGroups
from agentrpc.v1 import agent_service_pb2, tool_group_service_pb2

__all__ = ["agent_service", "tool_group_service"]


def agent_service(agents: Agents) -> Service:
    """AgentService."""
    return Service(
        agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"],
        {
            "CreateAgent": lambda call, r: agents.create(call.principal, r),
            "GetAgent": lambda call, r: agents.get(call.principal, r.name),
            "ListAgents": lambda call, r: agents.list(call.principal, r),
            "UpdateAgent": lambda call, r: agents.update(call.principal, r),
            "DeleteAgent": emptied(lambda call, r: agents.delete(call.principal, r.name, r.etag)),
            "CreateAgentVersion": lambda call, r: agents.create_version(call.principal, r),
            "GetAgentVersion": lambda call, r: agents.get_version(call.principal, r.name),
            "ListAgentVersions": lambda call, r: agents.list_versions(call.principal, r),
        },
    )


def tool_group_service(tool_groups: ToolGroups) -> Service:
    """ToolGroupService."""
    return Service(
        tool_group_service_pb2.DESCRIPTOR.services_by_name["ToolGroupService"],
        {
            "CreateToolGroup": lambda call, r: tool_groups.create(call.principal, r),
            "GetToolGroup": lambda call, r: tool_groups.get(call.principal, r.name),
            "ListToolGroups": lambda call, r: tool_groups.list(call.principal, r),
            "UpdateToolGroup": lambda call, r: tool_groups.update(call.principal, r),
            "DeleteToolGroup": emptied(lambda call, r: tool_groups.delete(call.principal, r.name, r.etag)),
        },
    )
