"""What an agent reads of Kubernetes objects: rows of tables, and short descriptions, made of the API's JSON.

What is shown is chosen here field by field, and the rest is left out. Never shown: the data of secrets and config maps,
values of variables whose names or shapes look like credentials, and what annotations hold.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

__all__ = [
    "DESCRIPTIONS",
    "age",
    "amount",
    "bytes_text",
    "cores_text",
    "deployment_row",
    "event_row",
    "event_time",
    "namespace_row",
    "node_row",
    "pod_row",
    "selector_text",
    "table",
]

JsonObject = Mapping[str, Any]

_HIDDEN = "(hidden)"
_MAX_TEXT = 300
_SECRET_NAME = re.compile(
    r"pass(w(or)?d|phrase|wd)?|pwd|secret|token|credential|api_?-?key|access_?-?key|private_?-?key|auth|cookie|session"
    r"|signing|salt|dsn|_key$|^key$",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^/\s@]+@")
_OPTION = re.compile(r"^(-{0,2}[\w.-]+)=(.*)$", re.DOTALL)
_PRIVATE_KEY = "PRIVATE KEY-----"


# Tables.


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under headers, in columns."""
    lines = [[_line(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _line(text: str) -> str:
    return " ".join(str(text).split()) or "-"


def pod_row(pod: JsonObject, now: datetime) -> dict[str, str]:
    """A pod, as in a list."""
    spec, status = _of(pod, "spec"), _of(pod, "status")
    containers = status.get("containerStatuses") or []
    return {
        "NAMESPACE": _meta(pod, "namespace"),
        "NAME": _meta(pod, "name"),
        "READY": f"{sum(bool(one.get('ready')) for one in containers)}/{len(spec.get('containers') or [])}",
        "STATUS": _pod_status(pod),
        "RESTARTS": str(sum(int(one.get("restartCount") or 0) for one in containers)),
        "AGE": age(_meta(pod, "creationTimestamp"), now),
        "NODE": str(spec.get("nodeName") or ""),
    }


def _pod_status(pod: JsonObject) -> str:
    """One word for what a pod does: what holds it up first, its phase else."""
    status = _of(pod, "status")
    if _meta(pod, "deletionTimestamp"):
        return "Terminating"
    if status.get("reason"):
        return str(status["reason"])
    before = status.get("initContainerStatuses") or []
    for one in before:
        state = _of(one, "state")
        if held := _of(state, "waiting").get("reason"):
            return f"Init:{held}"
        ended = _of(state, "terminated")
        if ended and ended.get("exitCode"):
            return f"Init:{ended.get('reason') or 'Error'}"
    for one in status.get("containerStatuses") or []:
        state = _of(one, "state")
        if held := _of(state, "waiting").get("reason"):
            return str(held)
        if (ended := _of(state, "terminated")) and (reason := ended.get("reason")) and reason != "Completed":
            return str(reason)
    return str(status.get("phase") or "Unknown")


def deployment_row(deployment: JsonObject, now: datetime) -> dict[str, str]:
    """A deployment, as in a list."""
    spec, status = _of(deployment, "spec"), _of(deployment, "status")
    images = [str(one.get("image", "")) for one in _of(_of(spec, "template"), "spec").get("containers") or []]
    return {
        "NAMESPACE": _meta(deployment, "namespace"),
        "NAME": _meta(deployment, "name"),
        "READY": f"{status.get('readyReplicas') or 0}/{spec.get('replicas', 1)}",
        "UP-TO-DATE": str(status.get("updatedReplicas") or 0),
        "AVAILABLE": str(status.get("availableReplicas") or 0),
        "AGE": age(_meta(deployment, "creationTimestamp"), now),
        "IMAGES": ",".join(images),
    }


def node_row(node: JsonObject, now: datetime) -> dict[str, str]:
    """A node, as in a list."""
    status = _of(node, "status")
    states = ["Ready" if _condition(node, "Ready") == "True" else "NotReady"]
    states += [
        str(one.get("type"))
        for one in status.get("conditions") or []
        if one.get("status") == "True" and one.get("type") != "Ready"
    ]
    if _of(node, "spec").get("unschedulable"):
        states.append("SchedulingDisabled")
    prefix = "node-role.kubernetes.io/"
    roles = [label.removeprefix(prefix) for label in _of(_of(node, "metadata"), "labels") if label.startswith(prefix)]
    room = _of(status, "allocatable")
    return {
        "NAME": _meta(node, "name"),
        "STATUS": ",".join(states),
        "ROLES": ",".join(sorted(roles)),
        "AGE": age(_meta(node, "creationTimestamp"), now),
        "VERSION": str(_of(status, "nodeInfo").get("kubeletVersion") or ""),
        "CPU": str(room.get("cpu") or ""),
        "MEMORY": bytes_text(amount(room.get("memory"))),
        "PODS": str(room.get("pods") or ""),
    }


def namespace_row(namespace: JsonObject, now: datetime) -> dict[str, str]:
    """A namespace, as in a list."""
    return {
        "NAME": _meta(namespace, "name"),
        "STATUS": str(_of(namespace, "status").get("phase") or ""),
        "AGE": age(_meta(namespace, "creationTimestamp"), now),
    }


def event_time(event: JsonObject) -> str:
    """When an event was last seen, in RFC 3339; old and new ways of writing events keep it in different fields."""
    times = (
        _of(event, "series").get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        _meta(event, "creationTimestamp"),
    )
    return next((str(time) for time in times if time), "")


def event_row(event: JsonObject, now: datetime) -> dict[str, str]:
    """An event, as in a list."""
    about = _of(event, "involvedObject")
    return {
        "NAMESPACE": _meta(event, "namespace"),
        "LAST SEEN": age(event_time(event), now),
        "TYPE": str(event.get("type") or ""),
        "REASON": str(event.get("reason") or ""),
        "OBJECT": f"{str(about.get('kind') or '').lower()}/{about.get('name') or ''}",
        "COUNT": str(_of(event, "series").get("count") or event.get("count") or 1),
        "MESSAGE": _short(event.get("message")),
    }


# Descriptions.


def _pod(pod: JsonObject, now: datetime) -> dict[str, Any]:
    spec, status = _of(pod, "spec"), _of(pod, "status")
    states = {
        one.get("name"): one
        for field in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
        for one in status.get(field) or []
    }
    return _filled(
        {
            "status": _pod_status(pod),
            "phase": status.get("phase"),
            "message": _short(status.get("message")),
            "node": spec.get("nodeName"),
            "pod_ip": status.get("podIP"),
            "service_account": spec.get("serviceAccountName"),
            "qos": status.get("qosClass"),
            "priority_class": spec.get("priorityClassName"),
            "init_containers": [_container(one, states, now) for one in spec.get("initContainers") or []],
            "containers": [_container(one, states, now) for one in spec.get("containers") or []],
            "conditions": _conditions(pod, now),
            "volumes": [_volume(one) for one in spec.get("volumes") or []],
            "node_selector": spec.get("nodeSelector"),
            "tolerations": spec.get("tolerations"),
        }
    )


def _container(container: JsonObject, states: Mapping[Any, JsonObject], now: datetime) -> dict[str, Any]:
    status = states.get(container.get("name")) or {}
    return _filled(
        {
            "name": container.get("name"),
            "image": container.get("image"),
            "state": _state(_of(status, "state"), now),
            "last_state": _state(_of(status, "lastState"), now),
            "ready": status.get("ready"),
            "restarts": status.get("restartCount"),
            "command": _arguments(container.get("command")),
            "args": _arguments(container.get("args")),
            "ports": [
                f"{one.get('containerPort')}/{one.get('protocol', 'TCP')}" for one in container.get("ports") or []
            ],
            "resources": _filled(
                {key: _of(container, "resources").get(key) for key in ("requests", "limits")},
            ),
            "liveness": _probe(container.get("livenessProbe")),
            "readiness": _probe(container.get("readinessProbe")),
            "startup": _probe(container.get("startupProbe")),
            "env": [_variable(one) for one in container.get("env") or []],
            "env_from": [_source(one) for one in container.get("envFrom") or []],
            "mounts": [f"{one.get('mountPath')} from {one.get('name')}" for one in container.get("volumeMounts") or []],
        }
    )


def _state(state: JsonObject, now: datetime) -> str:
    for name, details in state.items():
        said = dict(details or {})
        parts = [name]
        if said.get("reason"):
            parts.append(str(said["reason"]))
        if "exitCode" in said:
            parts.append(f"exit code {said['exitCode']}")
        if said.get("signal"):
            parts.append(f"signal {said['signal']}")
        if said.get("finishedAt"):
            parts.append(f"ended {age(said['finishedAt'], now)} ago")
        elif said.get("startedAt"):
            parts.append(f"for {age(said['startedAt'], now)}")
        if said.get("message"):
            parts.append(_short(said["message"]))
        return ", ".join(parts)
    return ""


def _variable(variable: JsonObject) -> str:
    name = str(variable.get("name") or "")
    source = _of(variable, "valueFrom")
    for field, what in (("secretKeyRef", "secret"), ("configMapKeyRef", "config map")):
        if field in source:
            return f"{name} from key {_of(source, field).get('key')} of {what} {_of(source, field).get('name')}"
    for field in ("fieldRef", "resourceFieldRef"):
        if field in source:
            found = _of(source, field)
            return f"{name} from {found.get('fieldPath') or found.get('resource')}"
    if source:
        return f"{name} from {', '.join(source)}"
    return f"{name}={_masked(name, str(variable.get('value') or ''))}"


def _masked(name: str, value: str) -> str:
    if value and (_SECRET_NAME.search(name) or _USER_IN_URL.search(value) or _PRIVATE_KEY in value):
        return _HIDDEN
    return _short(value)


def _arguments(arguments: Sequence[str] | None) -> list[str]:
    shown: list[str] = []
    named = False
    for argument in map(str, arguments or []):
        option = _OPTION.match(argument)
        if named and not argument.startswith("-"):
            shown.append(_HIDDEN)
        elif option:
            shown.append(f"{option[1]}={_masked(option[1], option[2])}")
        else:
            # A whole script: there is no telling what in it is a credential.
            suspicious = bool(re.search(r"\s", argument)) and _SECRET_NAME.search(argument) is not None
            shown.append(_HIDDEN if suspicious else _masked("", argument))
        named = argument.startswith("-") and option is None and _SECRET_NAME.search(argument) is not None
    return shown


def _source(source: JsonObject) -> str:
    for field, what in (("secretRef", "secret"), ("configMapRef", "config map")):
        if field in source:
            return f"all keys of {what} {_of(source, field).get('name')}"
    return ", ".join(source)


def _volume(volume: JsonObject) -> str:
    name = volume.get("name")
    for kind, details in volume.items():
        if kind != "name":
            said = dict(details or {}) if isinstance(details, Mapping) else {}
            called = said.get("secretName") or said.get("claimName") or said.get("name") or said.get("path") or ""
            return f"{name}: {kind} {called}".rstrip()
    return str(name)


def _probe(probe: JsonObject | None) -> str:
    if not probe:
        return ""
    if "httpGet" in probe:
        get = _of(probe, "httpGet")
        how = f"GET {get.get('path') or '/'} on port {get.get('port')}"
    elif "tcpSocket" in probe:
        how = f"connect to port {_of(probe, 'tcpSocket').get('port')}"
    elif "grpc" in probe:
        how = f"grpc on port {_of(probe, 'grpc').get('port')}"
    else:
        how = " ".join(_arguments(_of(probe, "exec").get("command")))
    return f"{how} every {probe.get('periodSeconds', 10)} s, fails after {probe.get('failureThreshold', 3)}"


def _workload(workload: JsonObject, now: datetime) -> dict[str, Any]:
    """What deployments, replica sets, stateful sets, daemon sets and jobs have in common."""
    spec, status = _of(workload, "spec"), _of(workload, "status")
    template = _of(_of(spec, "template"), "spec")
    counts = (
        "replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "unavailableReplicas",
        "desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberAvailable", "numberUnavailable",
        "active", "succeeded", "failed", "startTime", "completionTime",
    )  # fmt: skip
    wanted = ("replicas", "paused", "completions", "parallelism", "backoffLimit", "suspend", "serviceName")
    strategy = _of(spec, "strategy") or _of(spec, "updateStrategy")
    return _filled(
        {
            "wanted": _filled({key: spec.get(key) for key in wanted}),
            "now": _filled({key: status.get(key) for key in counts}),
            "selector": selector_text(_of(spec, "selector")),
            "strategy": strategy.get("type"),
            "init_containers": [_container(one, {}, now) for one in template.get("initContainers") or []],
            "containers": [_container(one, {}, now) for one in template.get("containers") or []],
            "conditions": _conditions(workload, now),
        }
    )


def _node(node: JsonObject, now: datetime) -> dict[str, Any]:
    spec, status = _of(node, "spec"), _of(node, "status")
    about = _of(status, "nodeInfo")
    return _filled(
        {
            "status": node_row(node, now)["STATUS"],
            "taints": [
                f"{one.get('key')}={one.get('value') or ''}:{one.get('effect')}" for one in spec.get("taints") or []
            ],
            "addresses": {str(one.get("type")): one.get("address") for one in status.get("addresses") or []},
            "capacity": status.get("capacity"),
            "allocatable": status.get("allocatable"),
            "kubelet": about.get("kubeletVersion"),
            "runtime": about.get("containerRuntimeVersion"),
            "kernel": about.get("kernelVersion"),
            "os": about.get("osImage"),
            "architecture": about.get("architecture"),
            "conditions": _conditions(node, now),
        }
    )


def _namespace(namespace: JsonObject, now: datetime) -> dict[str, Any]:
    return _filled(
        {"phase": _of(namespace, "status").get("phase"), "conditions": _conditions(namespace, now)},
    )


def _service(service: JsonObject, now: datetime) -> dict[str, Any]:
    spec, status = _of(service, "spec"), _of(service, "status")
    ports = []
    for one in spec.get("ports") or []:
        text = f"{one.get('port')}/{one.get('protocol', 'TCP')} to {one.get('targetPort')}"
        ports.append(text + (f", node port {one['nodePort']}" if one.get("nodePort") else ""))
    reached = _of(status, "loadBalancer").get("ingress") or []
    return _filled(
        {
            "type": spec.get("type"),
            "cluster_ip": spec.get("clusterIP"),
            "external_name": spec.get("externalName"),
            "load_balancer": [one.get("ip") or one.get("hostname") for one in reached],
            "ports": ports,
            "selector": selector_text({"matchLabels": _of(spec, "selector")}),
            "conditions": _conditions(service, now),
        }
    )


DESCRIPTIONS: dict[str, Callable[[JsonObject, datetime], dict[str, Any]]] = {
    "pod": _pod,
    "deployment": _workload,
    "node": _node,
    "namespace": _namespace,
    "service": _service,
    "replicaset": _workload,
    "statefulset": _workload,
    "daemonset": _workload,
    "job": _workload,
}
"""What `describe` can show, and how: what every object has is not in it."""


# Pieces.


def selector_text(selector: JsonObject) -> str:
    """A label selector as the API takes it in a query."""
    parts = [f"{key}={value}" for key, value in _of(selector, "matchLabels").items()]
    for one in selector.get("matchExpressions") or []:
        key, operator, values = one.get("key"), one.get("operator"), ",".join(one.get("values") or [])
        if operator in ("In", "NotIn"):
            parts.append(f"{key} {operator.lower()} ({values})")
        else:
            parts.append(f"{'!' if operator == 'DoesNotExist' else ''}{key}")
    return ",".join(parts)


def age(moment: str, now: datetime) -> str:
    """How long ago an RFC 3339 time is, such as `3d4h`; empty for none."""
    if not moment:
        return ""
    try:
        seconds = int((now - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return ""
    seconds = max(0, seconds)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours}h" if days < 10 else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{seconds % 60}s" if minutes else f"{seconds}s"


_UNITS = {
    "n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3, "": Decimal(1),
    "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15, "E": Decimal(10) ** 18, "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30, "Ti": Decimal(2) ** 40, "Pi": Decimal(2) ** 50, "Ei": Decimal(2) ** 60,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkKMGTPE]?i?)")


def amount(quantity: object) -> Decimal:
    """A quantity of the API, such as `250m` or `128Mi`, as a number; 0 for what is none."""
    found = _QUANTITY.fullmatch(str(quantity or ""))
    if found is None or found[2] not in _UNITS:
        return Decimal(0)
    try:
        return Decimal(found[1]) * _UNITS[found[2]]
    except InvalidOperation:
        return Decimal(0)


def cores_text(cores: Decimal) -> str:
    """An amount of processor, in thousandths of a core."""
    return f"{int((cores * 1000).to_integral_value())}m"


def bytes_text(size: Decimal) -> str:
    """An amount of memory, in mebibytes."""
    return f"{int(size / 1024 / 1024)}Mi" if size else ""


def _conditions(thing: JsonObject, now: datetime) -> list[str]:
    shown = []
    for one in _of(thing, "status").get("conditions") or []:
        text = f"{one.get('type')}={one.get('status')}"
        since = age(str(one.get("lastTransitionTime") or ""), now)
        text += f" for {since}" if since else ""
        why = ": ".join(filter(None, [one.get("reason"), _short(one.get("message"))]))
        shown.append(f"{text} ({why})" if why else text)
    return shown


def _condition(thing: JsonObject, kind: str) -> str:
    found = (one.get("status") for one in _of(thing, "status").get("conditions") or [] if one.get("type") == kind)
    return str(next(found, ""))


def _of(thing: JsonObject, field: str) -> Mapping[str, Any]:
    """An object in an object; the API leaves out what is empty, or sends null."""
    found = thing.get(field)
    return found if isinstance(found, Mapping) else {}


def _meta(thing: JsonObject, field: str) -> str:
    return str(_of(thing, "metadata").get(field) or "")


def _short(text: object) -> str:
    said = str(text or "")
    return said if len(said) <= _MAX_TEXT else f"{said[:_MAX_TEXT]}…"


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is not there."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def description(kind: str, thing: JsonObject, now: datetime, more: Mapping[str, Any]) -> str:
    """An object as JSON: what every object has, what its kind has, and `more`."""
    meta = _of(thing, "metadata")
    owners = [f"{one.get('kind')}/{one.get('name')}" for one in meta.get("ownerReferences") or []]
    return json.dumps(
        _filled(
            {
                "kind": str(kind),
                "namespace": meta.get("namespace"),
                "name": meta.get("name"),
                "age": age(_meta(thing, "creationTimestamp"), now),
                "deleted": meta.get("deletionTimestamp"),
                "resource_version": meta.get("resourceVersion"),
                "labels": meta.get("labels"),
                "owners": owners,
                **DESCRIPTIONS[kind](thing, now),
                **more,
            }
        ),
        ensure_ascii=False,
        indent=1,
    )
