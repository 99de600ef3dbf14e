"""What the Kubernetes tools do when they are called. Which there are is in `kubernetes.py`.

A namespace or a name that came from the model is checked here before it becomes part of a path, whatever the tool's
schema says.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentrpc import clock
from agentrpc.claude.tools import Arguments, ToolError
from agentrpc.claude.tools import kubernetes_views as views
from agentrpc.claude.tools.kubernetes_api import (
    IN_CLUSTER,
    KINDS,
    Cluster,
    Found,
    Kind,
    KubernetesAccess,
    Times,
    Whence,
)
from agentrpc.v1 import session_pb2

__all__ = ["DEFAULT_LIMIT", "DEFAULT_LINES", "DEFAULT_LOG", "MAX_LIMIT", "KubernetesCalls"]

DEFAULT_LIMIT, MAX_LIMIT = 50, 500
DEFAULT_LINES, DEFAULT_LOG = 200, 64 * 1024
# Events come in the order of their names: to find the newest all are looked at, up to so many.
_MAX_EVENTS = 5000
_RELATED_EVENTS, _RELATED_PODS = 20, 50
_RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
_MERGE = "application/merge-patch+json"

# RFC 1123; in a path anything else could lead to another object.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.:]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class KubernetesCalls:
    """The calls of one session's tools: each takes the arguments of its tool, and returns text for the model.

    Args:
        options: The session's.
        access: What the operator has decided.
        check: Awaited before every call; raises if the session may not make it any more.
        times: Bounds.
    """

    def __init__(
        self,
        options: session_pb2.KubernetesTools,
        access: KubernetesAccess,
        check: Callable[[], Awaitable[object]],
        times: Times,
    ) -> None:
        self._allowed = list(dict.fromkeys(options.namespaces))
        self._writes = options.allow_writes
        self._check = check
        self._times = times
        self._refusal = _refusal(options.context, access)
        self._cluster = Cluster(access, options.context, times)

    def bounded(self, name: str, call: Callable[[Arguments], Awaitable[str]]) -> Callable[[Arguments], Awaitable[str]]:
        """A call with its time and its errors."""

        async def bounded(arguments: Arguments) -> str:
            if self._refusal:
                raise ToolError(self._refusal)
            try:
                async with asyncio.timeout(self._times.call):
                    await self._check()
                    return await call(arguments)
            except TimeoutError:
                advice = f"ask for less, or try again later; if {name} changes something, look whether it was done"
                raise ToolError(f"{name} took more than {self._times.call:g} s, and was given up: {advice}") from None

        return bounded

    # Reading.

    async def list_namespaces(self, given: Arguments) -> str:
        """A table of the namespaces that the session may see."""
        kind = KINDS["namespace"]
        if not self._allowed:
            return _listed(await self._list(kind, [""], given), views.namespace_row, "namespaces")
        found = Found()
        for name in self._allowed:
            try:
                found.items.append(await self._cluster.read(kind, name))
            except ToolError as error:
                found.items.append({"metadata": {"name": name}})
                found.notes.append(str(error))
        return _listed(found, views.namespace_row, "namespaces")

    async def list_nodes(self, given: Arguments) -> str:
        """A table of nodes."""
        return _listed(await self._list(KINDS["node"], [""], given), views.node_row, "nodes")

    async def list_pods(self, given: Arguments) -> str:
        """A table of pods."""
        found = await self._list(KINDS["pod"], self._scopes(given), given)
        return _listed(found, views.pod_row, "pods")

    async def list_deployments(self, given: Arguments) -> str:
        """A table of deployments."""
        found = await self._list(KINDS["deployment"], self._scopes(given), given)
        return _listed(found, views.deployment_row, "deployments")

    async def list_events(self, given: Arguments) -> str:
        """A table of events, the newest first."""
        kind, name = given.get("kind", ""), given.get("name", "")
        if kind and not kind.isalpha():
            raise ToolError("`kind` is a word, such as Pod")
        title = KINDS[kind.lower()].title if kind.lower() in KINDS else kind
        conditions = [
            f"involvedObject.kind={title}" if kind else "",
            "type!=Normal" if given.get("warnings_only") else "",
        ]
        conditions.append(f"involvedObject.name={_named(name)}" if name else "")
        found = await self._newest(self._scopes(given), ",".join(filter(None, conditions)))
        limit = given.get("limit", DEFAULT_LIMIT)
        if len(found.items) > limit:
            found.notes.append(f"these are the newest {limit} of {len(found.items)}")
            found.items = found.items[:limit]
        return _listed(found, views.event_row, "events")

    async def describe(self, given: Arguments) -> str:
        """One object as JSON, with its pods and its newest events; what of those may not be read is said there."""
        if given["kind"] not in views.DESCRIPTIONS:
            raise ToolError(f"`kind` is one of {', '.join(sorted(views.DESCRIPTIONS))}; nothing else is shown")
        kind, name = KINDS[given["kind"]], _named(given["name"])
        namespace = ""
        if kind.namespaced:
            namespace = self._namespace(given)
        elif kind is KINDS["namespace"]:
            self._allow(name)
        thing = await self._cluster.read(kind, name, namespace)
        now = clock.utcnow()
        more = {}
        pods = await self._pods_of(given["kind"], thing, namespace)
        if pods is not None:
            rows = [views.pod_row(pod, now) for pod in pods.items]
            more["pods"] = [f"{row['NAME']}: {row['STATUS']}, ready {row['READY']}" for row in rows]
            more["pods_notes"] = pods.notes + ([f"only the first {_RELATED_PODS}"] if pods.next else [])
        events = await self._events_of(kind, name, namespace)
        rows = [views.event_row(event, now) for event in events.items[:_RELATED_EVENTS]]
        more["events"] = [
            f"{row['LAST SEEN']} ago, {row['TYPE']} {row['REASON']} (x{row['COUNT']}): {row['MESSAGE']}" for row in rows
        ]
        more["events_notes"] = events.notes
        return views.description(given["kind"], thing, now, more)

    async def logs(self, given: Arguments) -> str:
        """The end of a container's log."""
        namespace, pod = self._namespace(given), _named(given["pod"])
        query: dict[str, Any] = {"tail_lines": given.get("tail_lines", DEFAULT_LINES)}
        if container := given.get("container"):
            query["container"] = _named(container)
        query |= {key: given[key] for key in ("previous", "timestamps", "since_seconds") if given.get(key)}
        keep = given.get("max_bytes", DEFAULT_LOG)
        text, cut = await self._cluster.logs(pod, namespace, keep, **query)
        if not text:
            return "(nothing was logged there)"
        note = f"(older lines are left out: these are the last {keep} bytes at most)\n"
        return (note if cut else "") + text

    async def usage(self, given: Arguments) -> str:
        """A table of what pods or nodes use."""
        of = given["of"]
        selector = _selector(given, "label_selector")
        scopes = self._scopes(given) if of == "pods" else [""]
        measured: list[Any] = []
        for scope in scopes:
            found = await self._cluster.metrics(of, scope, selector)
            if found is None:
                raise ToolError("this cluster does not measure usage: its operator has to install metrics-server there")
            measured += found
        rows = []
        for one in measured:
            uses = [box.get("usage") or {} for box in one.get("containers") or []] if of == "pods" else [one["usage"]]
            cpu = sum((views.amount(use.get("cpu")) for use in uses), views.amount(0))
            memory = sum((views.amount(use.get("memory")) for use in uses), views.amount(0))
            rows.append((one.get("metadata") or {}, cpu, memory))
        rows.sort(key=lambda row: row[2] if given.get("sort_by") == "memory" else row[1], reverse=True)
        limit = given.get("limit", DEFAULT_LIMIT)
        room = await self._room() if of == "nodes" else {}
        lines = []
        for meta, cpu, memory in rows[:limit]:
            name = str(meta.get("name"))
            shown = [str(meta.get("namespace") or ""), name] if of == "pods" else [name]
            shown += [views.cores_text(cpu), views.bytes_text(memory) or "0Mi"]
            if of == "nodes":
                shown += [
                    _percent(cpu, room.get(name, {}).get("cpu")),
                    _percent(memory, room.get(name, {}).get("memory")),
                ]
            lines.append(shown)
        headers = ["NAMESPACE", "NAME"] if of == "pods" else ["NAME"]
        headers += ["CPU", "MEMORY"] + (["CPU%", "MEMORY%"] if of == "nodes" else [])
        if not lines:
            return f"no usage of {of} is measured there"
        note = f"\n(these are {limit} of {len(rows)})" if len(rows) > limit else ""
        return views.table(headers, lines) + note

    # Changing.

    async def scale_deployment(self, given: Arguments) -> str:
        """Set the replicas of a deployment by its scale; says how many there were."""
        namespace, name = self._writable(given)
        before = await self._cluster.scale(name, namespace)
        replicas = given["replicas"]
        after = await self._change(
            "AppsV1Api", "patch_namespaced_deployment_scale", f"scale the deployment {name} in namespace {namespace}",
            name=name, namespace=namespace, body={**_unchanged(given), "spec": {"replicas": replicas}},
            _content_type=_MERGE, **_dry(given),
        )  # fmt: skip
        had, has = (one.get("spec", {}).get("replicas", 0) for one in (before, after))
        return f"{_done(given)}deployment {name} in namespace {namespace}: replicas {had} -> {has}"

    async def restart_deployment(self, given: Arguments) -> str:
        """Do what `kubectl rollout restart` does: an annotation of the template changes."""
        namespace, name = self._writable(given)
        deployment = await self._cluster.read(KINDS["deployment"], name, namespace)
        if (deployment.get("spec") or {}).get("paused"):
            raise ToolError(f"the deployment {name} is paused, and a restart would wait for its end: resume it first")
        at = clock.utcnow().strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._change(
            "AppsV1Api", "patch_namespaced_deployment", f"restart the deployment {name} in namespace {namespace}",
            name=name, namespace=namespace,
            body={
                **_unchanged(given),
                "spec": {"template": {"metadata": {"annotations": {_RESTARTED_AT: at}}}},
            },
            _content_type=_MERGE, **_dry(given),
        )  # fmt: skip
        return (
            f"{_done(given)}deployment {name} in namespace {namespace}: restarted at {at}; `describe` shows how it goes"
        )

    async def delete_pod(self, given: Arguments) -> str:
        """Delete this very pod, by its uid: what comes after it may have the same name."""
        namespace, name = self._writable(given)
        meta = (await self._cluster.read(KINDS["pod"], name, namespace)).get("metadata") or {}
        conditions = {"uid": meta.get("uid"), "resourceVersion": given.get("resource_version")}
        body: dict[str, Any] = {"preconditions": {key: value for key, value in conditions.items() if value}}
        if "grace_seconds" in given:
            body["gracePeriodSeconds"] = given["grace_seconds"]
        if given.get("dry_run"):
            # In the body, for where there is one the server reads nothing of the query: it would delete in earnest.
            body["dryRun"] = ["All"]
        await self._change(
            "CoreV1Api", "delete_namespaced_pod", f"delete the pod {name} in namespace {namespace}",
            name=name, namespace=namespace, body=body,
        )  # fmt: skip
        owners = [f"{one.get('kind')} {one.get('name')}" for one in meta.get("ownerReferences") or []]
        after = f"{', '.join(owners)} may replace it" if owners else "nothing owns it: it will not come back"
        return f"{_done(given)}pod {name} in namespace {namespace}: deleted; {after}"

    async def _change(self, api: str, method: str, doing: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        # Again: the looks before may have taken long, and another worker may have the session now.
        await self._check()
        return await self._cluster.change(api, method, doing, **arguments)

    # What an agent may see.

    def _allow(self, namespace: str) -> str:
        if not _LABEL.fullmatch(namespace):
            raise ToolError("that is no name of a namespace: lower-case letters, digits and dashes")
        if self._allowed and namespace not in self._allowed:
            raise ToolError(f"this session may not see namespace {namespace}, only {', '.join(self._allowed)}")
        return namespace

    def _namespace(self, given: Arguments) -> str:
        if not given.get("namespace"):
            raise ToolError("name the `namespace`")
        return self._allow(given["namespace"])

    def _scopes(self, given: Arguments) -> list[str]:
        """The namespaces to look into; an empty one stands for all."""
        if given.get("namespace"):
            return [self._namespace(given)]
        return self._allowed or [""]

    def _writable(self, given: Arguments) -> tuple[str, str]:
        if not self._writes:
            raise ToolError("this session may not change anything in the cluster: its options say so")
        return self._namespace(given), _named(given["name"])

    # Lists.

    async def _list(self, kind: Kind, scopes: list[str], given: Arguments) -> Found:
        start = None
        if token := given.get("continue"):
            namespace, _, rest = token.partition(":")
            if namespace not in scopes:
                raise ToolError("`continue` belongs to another list: give the same namespace, or call without it")
            start = Whence(namespace, rest)
        return await self._cluster.list(
            kind, scopes, limit=given.get("limit", DEFAULT_LIMIT), start=start,
            label_selector=_selector(given, "label_selector"), field_selector=_selector(given, "field_selector"),
        )  # fmt: skip

    async def _newest(self, scopes: list[str], field_selector: str) -> Found:
        found = await self._cluster.list(
            KINDS["event"], scopes, limit=_MAX_EVENTS, start=None, field_selector=field_selector
        )
        if found.next is not None:
            found.notes.append(
                f"there are more than {_MAX_EVENTS} events, newer ones may be missing: name a namespace or an object"
            )
            found.next = None
        found.items.sort(key=views.event_time, reverse=True)
        return found

    async def _events_of(self, kind: Kind, name: str, namespace: str) -> Found:
        if kind is KINDS["namespace"]:
            scope = name
        elif kind is KINDS["node"]:
            # That is where kubelets tell about nodes.
            scope = "default"
        else:
            scope = namespace
        if self._allowed and scope not in self._allowed:
            return Found(notes=[f"this session may not see namespace {scope}, where they are"])
        try:
            return await self._newest([scope], f"involvedObject.kind={kind.title},involvedObject.name={name}")
        except ToolError as error:
            return Found(notes=[str(error)])

    async def _pods_of(self, kind: str, thing: Mapping[str, Any], namespace: str) -> Found | None:
        if kind == "node":
            query = {"field_selector": f"spec.nodeName={thing['metadata']['name']}"}
            scopes = self._allowed or [""]
        else:
            selector = (thing.get("spec") or {}).get("selector") or {}
            text = views.selector_text({"matchLabels": selector} if kind == "service" else selector)
            if not text:
                return None
            query = {"label_selector": text}
            scopes = [namespace]
        try:
            return await self._cluster.list(KINDS["pod"], scopes, limit=_RELATED_PODS, start=None, **query)
        except ToolError as error:
            return Found(notes=[str(error)])

    async def _room(self) -> dict[str, Mapping[str, Any]]:
        """What nodes have to give, by name; nothing if that is not to be known."""
        try:
            found = await self._cluster.list(KINDS["node"], [""], limit=MAX_LIMIT, start=None)
        except ToolError:
            return {}
        return {one["metadata"]["name"]: (one.get("status") or {}).get("allocatable") or {} for one in found.items}


def _refusal(context: str, access: KubernetesAccess) -> str:
    """Why a session has no cluster; empty: it has one."""
    if not access.kubeconfig:
        return "no cluster is set up for agents here: the operator does it with AGENTRPC_KUBECONFIG"
    if access.kubeconfig == IN_CLUSTER and context:
        return "there is one cluster here, and it has no contexts: leave `context` of the session's options empty"
    if context and context not in access.contexts:
        return f"the context {context!r} of the session's options is none that the operator lets sessions use"
    return ""


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ToolError("that is no name of an object: lower-case letters, digits, dashes and dots")
    return name


def _selector(given: Arguments, field: str) -> str:
    return str(given.get(field) or "").strip()


def _dry(given: Arguments) -> dict[str, str]:
    return {"dry_run": "All"} if given.get("dry_run") else {}


def _done(given: Arguments) -> str:
    return "dry run, nothing was changed: " if given.get("dry_run") else ""


def _unchanged(given: Arguments) -> dict[str, Any]:
    """What makes the API refuse a patch of an object that has changed since it was looked at."""
    version = given.get("resource_version")
    return {"metadata": {"resourceVersion": version}} if version else {}


def _percent(used: Any, of: object) -> str:  # noqa: ANN401 - a Decimal
    total = views.amount(of)
    return f"{int(used * 100 / total)}%" if total else ""


def _listed(found: Found, row: Callable[[Mapping[str, Any], Any], dict[str, str]], plural: str) -> str:
    now = clock.utcnow()
    rows = [row(item, now) for item in found.items]
    lines = [views.table(list(rows[0]), [list(one.values()) for one in rows])] if rows else [f"no {plural}"]
    lines += [f"({note})" for note in found.notes]
    if found.next is not None:
        more = f"about {found.remaining} more" if found.remaining else "more"
        lines.append(f"({more}: continue={found.next.namespace}:{found.next.token})")
    return "\n".join(lines)
