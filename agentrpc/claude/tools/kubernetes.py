"""The Kubernetes tools of agents: looking into a cluster, and where the session may, changing what runs there.

Three things bound what an agent can do: the rights of the account that the operator gives to the service, the
namespaces of the session's options, and `allow_writes` there. The first is the cluster's to keep, the other two are
kept here. Every call passes the gate besides, as all tool calls do. No credential is in what this returns.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from agentrpc.claude.tools import Arguments, Tool, schema
from agentrpc.claude.tools.kubernetes_api import IN_CLUSTER, KubernetesAccess, Times
from agentrpc.claude.tools.kubernetes_calls import DEFAULT_LIMIT, DEFAULT_LINES, DEFAULT_LOG, MAX_LIMIT, KubernetesCalls
from agentrpc.claude.tools.kubernetes_views import DESCRIPTIONS
from agentrpc.v1 import session_pb2

__all__ = ["IN_CLUSTER", "KubernetesAccess", "Times", "kubernetes_tools"]

_MAX_LINES = 10_000
_MAX_LOG = 240 * 1024
_MAX_REPLICAS = 1000
_MAX_SELECTOR = 1000

_Call: TypeAlias = Callable[[Arguments], Awaitable[str]]


def _text(description: str, limit: int = 253) -> dict[str, Any]:
    return {"type": "string", "maxLength": limit, "description": description}


def _number(description: str, low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


_NAMESPACE = _text("A namespace. Left out: all that you may see.", 63)
_IN_NAMESPACE = _text("The namespace.", 63)
_LIMIT = _number(f"How many at most. Default {DEFAULT_LIMIT}.", 1, MAX_LIMIT)
_PAGED = {
    "limit": _LIMIT,
    "continue": _text("The `continue` that an earlier list has ended with, to go on from there.", 4096),
}
_SELECTED = {
    "label_selector": _text("Such as `app=web,tier!=cache`.", _MAX_SELECTOR),
    "field_selector": _text("Such as `status.phase=Running` or `spec.nodeName=node-1`.", _MAX_SELECTOR),
}
_CHANGES = {
    "namespace": _IN_NAMESPACE,
    "dry_run": {"type": "boolean", "description": "True: the cluster checks the change and does not make it."},
    "resource_version": _text("Of `describe`: the change is made only if the object is still the same.", 64),
}


def kubernetes_tools(
    options: session_pb2.KubernetesTools,
    access: KubernetesAccess,
    check: Callable[[], Awaitable[object]],
    times: Times | None = None,
) -> list[Tool]:
    """The tools of one session.

    Args:
        options: The session's.
        access: What the operator has decided.
        check: Awaited before every call; raises if the session may not make it any more.
        times: Bounds, if others than the usual ones.
    """
    tools = KubernetesCalls(options, access, check, times or Times())
    kinds = ", ".join(sorted(DESCRIPTIONS))

    def tool(
        call: _Call, description: str, properties: Mapping[str, Any], *required: str, writes: bool = False
    ) -> Tool:
        name = call.__name__
        return Tool(
            name, description, schema(properties, required=required), tools.bounded(name, call), read_only=not writes
        )

    found = [
        tool(tools.list_namespaces, "List the namespaces that you may see.", _PAGED),
        tool(tools.list_nodes, "List nodes: state, roles, version, room.", {**_SELECTED, **_PAGED}),
        tool(tools.list_pods, "List pods: state, restarts, node.", {"namespace": _NAMESPACE, **_SELECTED, **_PAGED}),
        tool(
            tools.list_deployments,
            "List deployments: replicas, images.",
            {"namespace": _NAMESPACE, **_SELECTED, **_PAGED},
        ),
        tool(
            tools.list_events,
            "List events, the newest first; those of one object if `kind` and `name` are given.",
            {
                "namespace": _NAMESPACE,
                "kind": _text("The object's kind, such as `Pod`.", 63),
                "name": _text("The object's name."),
                "warnings_only": {"type": "boolean", "description": "True: no events of type Normal."},
                "limit": _LIMIT,
            },
        ),
        tool(
            tools.describe,
            f"Describe one object: its state, conditions, containers, pods and newest events. Kinds: {kinds}.",
            {
                "kind": {"type": "string", "enum": sorted(DESCRIPTIONS)},
                "name": _text("Its name."),
                "namespace": _text("Its namespace; nodes and namespaces have none.", 63),
            },
            "kind",
            "name",
        ),
        tool(
            tools.logs,
            "Read the end of a container's log.",
            {
                "namespace": _IN_NAMESPACE,
                "pod": _text("The pod."),
                "container": _text("Needed if the pod has several.", 63),
                "previous": {
                    "type": "boolean",
                    "description": "True: of the container's life before its last restart.",
                },
                "tail_lines": _number(f"Lines of the end. Default {DEFAULT_LINES}.", 1, _MAX_LINES),
                "since_seconds": _number("Only what is at most so old.", 1, 10**9),
                "timestamps": {"type": "boolean", "description": "True: each line begins with its time."},
                "max_bytes": _number(f"Bytes of the end at most. Default {DEFAULT_LOG}.", 1024, _MAX_LOG),
            },
            "namespace",
            "pod",
        ),
        tool(
            tools.usage,
            "What pods or nodes use of processor and memory now, most first.",
            {
                "of": {"type": "string", "enum": ["pods", "nodes"]},
                "namespace": _NAMESPACE,
                "label_selector": _SELECTED["label_selector"],
                "sort_by": {"type": "string", "enum": ["cpu", "memory"], "description": "Default cpu."},
                "limit": _LIMIT,
            },
            "of",
        ),
    ]
    if options.allow_writes:
        found += [
            tool(
                tools.scale_deployment,
                "Set how many replicas a deployment has.",
                {**_CHANGES, "name": _text("The deployment."), "replicas": _number("How many.", 0, _MAX_REPLICAS)},
                "namespace",
                "name",
                "replicas",
                writes=True,
            ),
            tool(
                tools.restart_deployment,
                "Restart a deployment: all its pods are replaced, by its strategy.",
                {**_CHANGES, "name": _text("The deployment.")},
                "namespace",
                "name",
                writes=True,
            ),
            tool(
                tools.delete_pod,
                "Delete a pod. What owns it may make another one.",
                {
                    **_CHANGES,
                    "name": _text("The pod."),
                    "grace_seconds": _number("Seconds that it has to end. Default: the pod's own.", 1, 3600),
                },
                "namespace",
                "name",
                writes=True,
            ),
        ]
    return found
