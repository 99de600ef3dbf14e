"""A small API server of Kubernetes over HTTP: its JSON, its pages, its refusals, and faults to order.

What it answers follows the API's own conventions (kubernetes.io, "API concepts"): lists with `metadata.continue` and
`remainingItemCount`, `Status` objects for whatever fails, preconditions, dry runs, patches and sub-resources.
"""

import asyncio
import base64
import copy
import datetime as dt
import ipaddress
import json
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "token-of-the-operator-5d1f"

# By path: group and version, plural, kind, whether it is in a namespace.
_RESOURCES = {
    "pods": ("api/v1", "Pod", True),
    "events": ("api/v1", "Event", True),
    "services": ("api/v1", "Service", True),
    "namespaces": ("api/v1", "Namespace", False),
    "nodes": ("api/v1", "Node", False),
    "deployments": ("apis/apps/v1", "Deployment", True),
    "replicasets": ("apis/apps/v1", "ReplicaSet", True),
    "statefulsets": ("apis/apps/v1", "StatefulSet", True),
    "daemonsets": ("apis/apps/v1", "DaemonSet", True),
    "jobs": ("apis/batch/v1", "Job", True),
}
_METRICS = "apis/metrics.k8s.io/v1beta1"


@dataclass
class Fault:
    """What the server does to requests instead of answering them.

    Attributes:
        path: A pattern that is searched in the path.
        times: To how many requests.
        skip: How many of them it lets pass first.
        status: It answers with this; 0: see the others.
        retry_after: Of that answer, in seconds.
        hang: It does not answer until the server ends.
        drip: It sends its answer a byte at a time.
        cut: It ends the connection in the middle of its answer.
        body: Instead of a Status.
        after: It does what was asked before.
        method: Only of this method.
        paged: Only the pages of lists after the first.
    """

    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 0
    retry_after: int | None = None
    hang: bool = False
    drip: bool = False
    cut: bool = False
    body: str | None = None
    after: bool = False
    method: str = ""
    paged: bool = False
    met: int = 0


@dataclass
class Seen:
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    content_type: str
    time: float


@dataclass
class KubernetesApi:
    """The server. `with KubernetesApi() as api:` starts it on loopback, in a thread of its own.

    Attributes:
        certificate: With it the server speaks TLS: the PEM file of its key and certificate.
        hanging: Set once a request hangs.
    """

    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[tuple[str, str, str, bool], bytes] = field(default_factory=dict)
    usage: dict[str, list[dict[str, Any]]] | None = None
    forbidden: set[tuple[str, str, str]] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    version: int = 1000
    oldest: int = 0
    port: int = 0
    certificate: Path | None = None
    hanging: threading.Event = field(default_factory=threading.Event)

    # What tests put in.

    def put(self, plural: str, name: str, namespace: str = "", **body: Any) -> dict[str, Any]:
        """Store an object; `metadata` is filled up."""
        path, kind, namespaced = _RESOURCES[plural]
        self.version += 1
        meta = {
            "name": name, "uid": str(uuid4()), "resourceVersion": str(self.version),
            "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 1,
            **({"namespace": namespace} if namespaced else {}), **body.pop("metadata", {}),
        }  # fmt: skip
        stored = {"kind": kind, "apiVersion": path.removeprefix("api/").removeprefix("apis/"), "metadata": meta, **body}
        self.objects[plural, namespace, name] = stored
        return stored

    def get(self, plural: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        return self.objects.get((plural, namespace, name))

    def forbid(self, verb: str, plural: str, namespace: str = "*") -> None:
        """Refuse a verb for a resource; a namespace of `` means the request over all of them."""
        self.forbidden.add((verb, plural, namespace))

    def fault(self, path: str = "", **what: Any) -> Fault:
        """Order a fault."""
        self.faults.append(Fault(path, **what))
        return self.faults[-1]

    def expire(self) -> None:
        """Forget the states that pages under way are read from."""
        self.oldest = self.version = self.version + 1

    def requests(self, path: str = "", method: str = "") -> list[Seen]:
        return [one for one in self.seen if re.search(path, one.path) and (not method or one.method == method)]

    def kubeconfig(self, folder: Any, token: str = TOKEN, contexts: tuple[str, ...] = ("main", "other")) -> Any:
        """A kubeconfig of this server, whose current context is the first."""
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": contexts[0],
            "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "it", "user": "me"}} for name in contexts],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    # Its life.

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        transports = set()

        @web.middleware
        async def noted(request: web.Request, handler: Any) -> web.StreamResponse:
            transports.add(request.transport)
            return await handler(request)

        app.middlewares.append(noted)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        context = None
        if self.certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate)
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        started.set()
        await self._ended.wait()
        await runner.cleanup()
        for transport in transports:
            # A polite end would wait for a client that does not read.
            transport.abort()
        await asyncio.sleep(0)

    # Its answers.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.seen.append(
            Seen(request.method, request.path, dict(request.query), body, request.content_type, time.monotonic())
        )
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if (scheme.lower(), token) != ("bearer", TOKEN):
            return _status(401, "Unauthorized", "Unauthorized")
        fault = next((one for one in self.faults if self._meets(one, request)), None)
        if fault is not None and not fault.after:
            return await self._fail(fault, request, None)
        try:
            answer = self._answer(request, body)
        except web.HTTPException as refusal:
            answer = web.Response(status=refusal.status, text=refusal.text, content_type="application/json")
        return answer if fault is None else await self._fail(fault, request, answer)

    def _meets(self, fault: Fault, request: web.Request) -> bool:
        if fault.method not in ("", request.method) or not re.search(fault.path, request.path):
            return False
        if fault.paged and "continue" not in request.query:
            return False
        fault.met += 1
        return fault.skip < fault.met <= fault.skip + fault.times

    async def _fail(self, fault: Fault, request: web.Request, answer: web.Response | None) -> web.StreamResponse:
        if fault.hang:
            self.hanging.set()
            await self._ended.wait()
        if fault.cut or fault.drip:
            response = web.StreamResponse(headers={"Content-Length": "100000", "Content-Type": "application/json"})
            await response.prepare(request)
            while fault.drip and not self._ended.is_set():
                await response.write(b" ")
                await asyncio.sleep(0.02)
            await response.write(b'{"kind": "PodLi')
            request.transport.close()
            return response
        if fault.status:
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            if fault.body is not None:
                return web.Response(status=fault.status, text=fault.body, headers=headers)
            return _status(fault.status, "Failed", "etcdserver: https://10.0.0.7:2379 is not well", headers=headers)
        if fault.body is not None:
            return web.Response(text=fault.body, content_type="application/json")
        return answer

    def _answer(self, request: web.Request, body: Any) -> web.Response:
        path = request.path.strip("/")
        if path.startswith(_METRICS):
            return self._metrics(path.removeprefix(_METRICS).strip("/").split("/"))
        for plural, (prefix, kind, namespaced) in _RESOURCES.items():
            found = re.fullmatch(
                rf"{prefix}/(?:namespaces/(?P<namespace>[^/]+)/)?{plural}(?:/(?P<name>[^/]+)(?:/(?P<sub>\w+))?)?", path
            )
            if found:
                name, namespace = found["name"], found["namespace"] or ""
                verb = {"GET": "get" if name else "list"}.get(request.method, request.method.lower())
                resource = plural + (f"/{found['sub']}" if found["sub"] else "")
                if self.forbidden & {(verb, resource, namespace), (verb, resource, "*")}:
                    where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
                    message = f'User "system:serviceaccount:ops:robot" cannot {verb} resource "{resource}"{where}'
                    return _status(403, "Forbidden", f"{resource} is forbidden: {message}")
                if name is None:
                    return self._list(plural, kind, namespace, namespaced, request.query)
                return self._one(request, plural, namespace, name, found["sub"] or "", body)
        return _status(404, "NotFound", "the server could not find the requested resource")

    def _list(self, plural: str, kind: str, namespace: str, namespaced: bool, query: Any) -> web.Response:
        limit = int(query.get("limit") or 0)
        version, start = self.version, ""
        if token := query.get("continue"):
            try:
                given = json.loads(base64.urlsafe_b64decode(token))
                version, start = given["rv"], given["start"]
            except (ValueError, KeyError):
                return _status(400, "BadRequest", "continue key is not valid: encoding error")
            if 0 <= version < self.oldest:
                newer = base64.urlsafe_b64encode(json.dumps({"rv": -1, "start": start}).encode()).decode()
                return _status(
                    410, "Expired",
                    "The provided continue parameter is too old to display a consistent list result.",
                    meta={"continue": newer},
                )  # fmt: skip
        found = []
        for (which, place, name), thing in sorted(self.objects.items()):
            key = f"{place}/{name}"
            if which == plural and key > start and (not namespace or place == namespace):
                if not _selects(query.get("labelSelector", ""), thing["metadata"].get("labels") or {}):
                    continue
                try:
                    if not _matches(query.get("fieldSelector", ""), thing):
                        continue
                except KeyError as unknown:
                    return _status(400, "BadRequest", f"field label not supported: {unknown.args[0]}")
                found.append((key, thing))
        shown = found[:limit] if limit else found
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if len(found) > len(shown):
            again = {"rv": version, "start": shown[-1][0]}
            meta["continue"] = base64.urlsafe_b64encode(json.dumps(again).encode()).decode()
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(found) - len(shown)
        version_of = _RESOURCES[plural][0].removeprefix("api/").removeprefix("apis/")
        # Items of a list carry neither kind nor apiVersion.
        items = [
            {key: value for key, value in thing.items() if key not in ("kind", "apiVersion")} for _, thing in shown
        ]
        return web.json_response({"kind": f"{kind}List", "apiVersion": version_of, "metadata": meta, "items": items})

    def _one(self, request: web.Request, plural: str, namespace: str, name: str, sub: str, body: Any) -> web.Response:
        thing = self.objects.get((plural, namespace, name))
        if thing is None:
            return _status(404, "NotFound", f'{plural} "{name}" not found')
        if sub == "log":
            return self._log(thing, request.query)
        dry = request.query.get("dryRun") == "All"
        if request.method == "GET":
            return web.json_response(_scale(thing) if sub == "scale" else thing)
        if request.method == "PATCH":
            if request.content_type not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
                return _status(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
            return self._patch(thing, body, dry=dry, scale=sub == "scale")
        if request.method == "DELETE":
            # As the real one: options in a body make those of the query void.
            dry = "All" in body.get("dryRun", []) if body else dry
            wanted = (body or {}).get("preconditions") or {}
            for key, found in (
                ("uid", thing["metadata"]["uid"]),
                ("resourceVersion", thing["metadata"]["resourceVersion"]),
            ):
                if wanted.get(key, found) != found:
                    return _status(
                        409,
                        "Conflict",
                        f"Precondition failed: {key} in precondition: {wanted[key]}, in object meta: {found}",
                    )
            if not dry:
                del self.objects[plural, namespace, name]
            return web.json_response(thing)
        return _status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _patch(self, thing: dict[str, Any], patch: dict[str, Any], *, dry: bool, scale: bool) -> web.Response:
        wanted = (patch.get("metadata") or {}).get("resourceVersion")
        if wanted is not None and wanted != thing["metadata"]["resourceVersion"]:
            name = thing["metadata"]["name"]
            return _status(
                409, "Conflict",
                f'Operation cannot be fulfilled on deployments.apps "{name}": the object has been modified; please'
                f" apply your changes to the latest version and try again",
            )  # fmt: skip
        changed = _merged(copy.deepcopy(thing), patch)
        replicas = changed["spec"].get("replicas", 1)
        if replicas > 500:
            return _status(422, "Invalid", f"Scale is invalid: spec.replicas: Invalid value: {replicas}: too many")
        if not dry:
            self.version += 1
            changed["metadata"]["resourceVersion"] = str(self.version)
            thing.clear()
            thing.update(changed)
        return web.json_response(_scale(changed) if scale else changed)

    def _log(self, pod: dict[str, Any], query: Any) -> web.Response:
        meta = pod["metadata"]
        names = [one["name"] for one in pod["spec"]["containers"]]
        container = query.get("container") or (names[0] if len(names) == 1 else "")
        if not container:
            said = f"a container name must be specified for pod {meta['name']}, choose one of: [{' '.join(names)}]"
            return _status(400, "BadRequest", said)
        if container not in names:
            return _status(400, "BadRequest", f"container {container} is not valid for pod {meta['name']}")
        previous = query.get("previous") == "true"
        text = self.logs.get((meta["namespace"], meta["name"], container, previous))
        if text is None:
            said = f'previous terminated container "{container}" in pod "{meta["name"]}" not found'
            return _status(400, "BadRequest", said) if previous else web.Response(text="")
        if lines := query.get("tailLines"):
            text = b"".join(text.splitlines(keepends=True)[-int(lines) :])
        if most := query.get("limitBytes"):
            text = text[: int(most)]
        return web.Response(body=text, content_type="text/plain")

    def _metrics(self, parts: list[str]) -> web.Response:
        if self.usage is None:
            return web.Response(status=404, text="404 page not found\n", content_type="text/plain")
        plural = parts[-1]
        found = self.usage.get(plural, [])
        if parts[0] == "namespaces":
            found = [one for one in found if one["metadata"].get("namespace") == parts[1]]
        kind = "PodMetricsList" if plural == "pods" else "NodeMetricsList"
        return web.json_response({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": found})


def make_certificate(path: Path) -> Path:
    """A key with a certificate for loopback, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a cluster")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _status(
    code: int, reason: str, message: str, *, headers: dict[str, str] | None = None, meta: dict[str, str] | None = None
) -> web.Response:
    status = {
        "kind": "Status", "apiVersion": "v1", "metadata": meta or {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    }  # fmt: skip
    return web.json_response(status, status=code, headers=headers)


def _scale(thing: dict[str, Any]) -> dict[str, Any]:
    labels = thing["spec"].get("selector", {}).get("matchLabels", {})
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: thing["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"replicas": thing["spec"].get("replicas", 1)},
        "status": {
            "replicas": thing.get("status", {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
        },
    }


def _merged(thing: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396."""
    for key, value in patch.items():
        if value is None:
            thing.pop(key, None)
        elif isinstance(value, dict):
            thing[key] = _merged(thing.get(key) or {}, value)
        else:
            thing[key] = value
    return thing


def _selects(selector: str, labels: dict[str, str]) -> bool:
    """Equality, `in` and existence, as far as the tests go."""
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        if found := re.fullmatch(r"\s*(\S+) (in|notin) \(([^)]*)\)\s*", part):
            values = [value.strip() for value in found[3].split(",")]
            if (labels.get(found[1]) in values) != (found[2] == "in"):
                return False
        elif found := re.fullmatch(r"\s*([^=!\s]+)\s*(==|=|!=)\s*(\S*)\s*", part):
            if (labels.get(found[1]) == found[3]) == (found[2] == "!="):
                return False
        elif part.strip().startswith("!") == (part.strip().lstrip("!") in labels):
            return False
    return True


_FIELDS = {
    "metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "involvedObject.kind",
    "involvedObject.name", "type", "reason",
}  # fmt: skip


def _matches(selector: str, thing: dict[str, Any]) -> bool:
    for part in filter(None, selector.split(",")):
        key, operator, wanted = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part).groups()
        if key not in _FIELDS:
            raise KeyError(key)
        found: Any = thing
        for step in key.split("."):
            found = (found or {}).get(step)
        if ((found or "") == wanted) == (operator == "!="):
            return False
    return True
