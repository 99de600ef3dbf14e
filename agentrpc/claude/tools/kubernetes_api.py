"""Requests to the API server of a Kubernetes cluster: off the event loop, bounded in time, size and number.

The only module that imports `kubernetes`, and only in threads: the import alone takes a second. Answers are the API's
own JSON as dictionaries, for the client's models refuse what some servers send. What goes wrong is a `ToolError` whose
text names neither addresses nor accounts nor anything of the operator's kubeconfig.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import structlog

from agentrpc import clock
from agentrpc.claude.tools import ToolError

__all__ = ["IN_CLUSTER", "KINDS", "Cluster", "Found", "Kind", "KubernetesAccess", "Times", "Whence"]

log = structlog.get_logger()

# Instead of a path: the service account of the pod that the worker runs in.
IN_CLUSTER = "in-cluster"

_THREADS = 4
_ATTEMPTS = 3
_RESTARTS = 2
_PAGE = 100
# The most that is read of one answer. A hundred pods are 1 to 3 MB.
_MAX_ANSWER = 32 * 1024 * 1024
_CHUNK = 64 * 1024
_MAX_MESSAGE = 500

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _GONE = 401, 403, 404, 409, 410
_TOO_MANY, _INTERNAL, _UNAVAILABLE = 429, 500, 503

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KubernetesAccess:
    """What the operator has decided.

    Attributes:
        kubeconfig: A path, or `IN_CLUSTER`. Empty: there are no clusters for agents.
        contexts: The contexts of the kubeconfig that sessions may name. Empty: only its current one.
    """

    kubeconfig: str = ""
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Times:
    """Bounds, in seconds.

    Attributes:
        connect: Until a connection is there.
        read: Between two pieces of an answer.
        call: A whole call of a tool, with its pages and repetitions.
        wait: The longest pause that a busy server is granted before a request is repeated.
    """

    connect: float = 5
    read: float = 15
    call: float = 45
    wait: float = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, and how the client calls it.

    Attributes:
        title: As in the API, such as `ReplicaSet`.
        api: The class of the client.
        method: Its part in the names of the client's methods.
        plural: For sentences.
        namespaced: Whether it is in a namespace.
    """

    title: str
    api: str
    method: str
    plural: str
    namespaced: bool = True


KINDS = {
    "pod": Kind("Pod", "CoreV1Api", "pod", "pods"),
    "deployment": Kind("Deployment", "AppsV1Api", "deployment", "deployments"),
    "node": Kind("Node", "CoreV1Api", "node", "nodes", namespaced=False),
    "namespace": Kind("Namespace", "CoreV1Api", "namespace", "namespaces", namespaced=False),
    "service": Kind("Service", "CoreV1Api", "service", "services"),
    "replicaset": Kind("ReplicaSet", "AppsV1Api", "replica_set", "replica sets"),
    "statefulset": Kind("StatefulSet", "AppsV1Api", "stateful_set", "stateful sets"),
    "daemonset": Kind("DaemonSet", "AppsV1Api", "daemon_set", "daemon sets"),
    "job": Kind("Job", "BatchV1Api", "job", "jobs"),
    "event": Kind("Event", "CoreV1Api", "event", "events"),
}


@dataclass(frozen=True, slots=True)
class Whence:
    """Where a list goes on.

    Attributes:
        namespace: Of the scopes of the list. Empty: all, or the objects have none.
        token: The API's `continue`. Empty: at the beginning of that namespace.
    """

    namespace: str = ""
    token: str = ""


@dataclass(slots=True)
class Found:
    """What a list has found.

    Attributes:
        items: The objects.
        next: Where the rest begins. None: there is none.
        remaining: How many more the server says there are; it does not always.
        notes: What the reader has to know.
    """

    items: list[JsonObject] = field(default_factory=list)
    next: Whence | None = None
    remaining: int | None = None
    notes: list[str] = field(default_factory=list)


class _Failure(Exception):
    """A request that failed, as its thread saw it.

    Attributes:
        fault: `answered`: the server said no. `unreachable`: it got nothing. `slow`, `cut`: it may have got the
            request, and did not answer in time, or not all. `too_big`: its answer was.
        status: The HTTP status, with `answered`.
        message: The server's own, for the agent only where it says what is wrong with the request.
        retry_after: Seconds, if the server said so.
        token: With 410: where to go on in a newer state of the list.
    """

    def __init__(
        self, fault: str, status: int = 0, message: str = "", retry_after: float | None = None, token: str = ""
    ) -> None:
        super().__init__(fault, status)
        self.fault = fault
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.token = token


class Cluster:
    """One cluster, as one session may see it. The connection is made at the first call.

    Args:
        access: What the operator has decided.
        context: What the session has chosen; empty for the current one.
        times: Bounds.
    """

    def __init__(self, access: KubernetesAccess, context: str, times: Times) -> None:
        self.times = times
        self._access = access
        self._context = context
        self._client: Any = None
        self._lock = threading.Lock()
        # Of its own: a cluster that hangs keeps nothing waiting but its own session.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubernetes")

    async def read(self, kind: Kind, name: str, namespace: str = "") -> JsonObject:
        """One object."""
        where = f" in namespace {namespace}" if namespace else ""
        doing = f"read the {kind.title.lower()} {name}{where}"
        arguments = {"name": name, **({"namespace": namespace} if kind.namespaced else {})}
        method = f"read_namespaced_{kind.method}" if kind.namespaced else f"read_{kind.method}"
        return cast("JsonObject", await self._call(kind.api, method, arguments, doing))

    async def scale(self, name: str, namespace: str) -> JsonObject:
        """The scale of a deployment."""
        arguments = {"name": name, "namespace": namespace}
        doing = f"read the scale of the deployment {name} in namespace {namespace}"
        return cast("JsonObject", await self._call("AppsV1Api", "read_namespaced_deployment_scale", arguments, doing))

    async def list(self, kind: Kind, scopes: Sequence[str], *, limit: int, start: Whence | None, **query: str) -> Found:
        """Objects in the API's order: by namespace and name.

        Args:
            kind: Which.
            scopes: Namespaces, one after the other; `[""]`: all, or objects without one.
            limit: How many at most, more than 0.
            start: Where an earlier list has ended. None: at the beginning.
            query: `label_selector`, `field_selector`.
        """
        for attempt in range(_RESTARTS + 1):
            try:
                return await self._list(kind, scopes, limit, start, query)
            except _ExpiredError as expired:
                # Only what the same call has read so far is read again: the agent sees nothing twice.
                if attempt == _RESTARTS:
                    raise ToolError(str(expired)) from None
        raise AssertionError

    async def _list(
        self, kind: Kind, scopes: Sequence[str], limit: int, start: Whence | None, query: dict[str, str]
    ) -> Found:
        found = Found()
        whence = start or Whence(scopes[0])
        resumed = bool(whence.token)
        for scope in scopes[scopes.index(whence.namespace) :]:
            token = whence.token if scope == whence.namespace else ""
            while True:
                try:
                    page = await self._page(kind, scope, min(_PAGE, limit - len(found.items)), token, query)
                except _Failure as failure:
                    if failure.status != _GONE:
                        if failure.status == _FORBIDDEN and len(scopes) > 1:
                            found.notes.append(f"namespace {scope}: the service's account may not list {kind.plural}")
                            break
                        raise _explained(failure, _listing(kind, scope), self.times) from None
                    if not resumed:
                        raise _ExpiredError(
                            "the list changes faster than it can be read: ask for less, with a selector or a namespace"
                        ) from None
                    resumed = False
                    if not failure.token:
                        raise ToolError("`continue` has expired: call again without it") from None
                    token = failure.token
                    found.notes.append("`continue` had expired: from here on the list is of a newer state")
                    continue
                resumed = False
                meta = page.get("metadata") or {}
                found.items += page.get("items") or []
                token = meta.get("continue") or ""
                found.remaining = meta.get("remainingItemCount")
                if len(found.items) >= limit:
                    found.next = Whence(scope, token) if token else _following(scopes, scope)
                    return found
                if not token:
                    break
        return found

    async def _page(self, kind: Kind, scope: str, limit: int, token: str, query: dict[str, str]) -> JsonObject:
        arguments: dict[str, Any] = {"limit": limit, **{key: value for key, value in query.items() if value}}
        if token:
            arguments["_continue"] = token
        if scope:
            arguments["namespace"] = scope
            method = f"list_namespaced_{kind.method}"
        else:
            method = f"list_{kind.method}_for_all_namespaces" if kind.namespaced else f"list_{kind.method}"
        return cast("JsonObject", await self._repeated(kind.api, method, arguments))

    async def metrics(self, plural: str, namespace: str, label_selector: str) -> Sequence[JsonObject] | None:
        """What pods or nodes use, of metrics.k8s.io. None: the cluster does not measure it."""
        arguments = {"group": "metrics.k8s.io", "version": "v1beta1", "plural": plural}
        if namespace:
            arguments["namespace"] = namespace
        if label_selector:
            arguments["label_selector"] = label_selector
        method = "list_namespaced_custom_object" if namespace else "list_cluster_custom_object"
        try:
            found = await self._repeated("CustomObjectsApi", method, arguments)
        except _Failure as failure:
            if failure.status in (_NOT_FOUND, _UNAVAILABLE):
                return None
            where = f" in namespace {namespace}" if namespace else ""
            raise _explained(failure, f"read what {plural} use{where}", self.times) from None
        return found.get("items") or []

    async def logs(self, name: str, namespace: str, keep: int, **query: Any) -> tuple[str, bool]:  # noqa: ANN401
        """The end of a container's log.

        Args:
            name: The pod.
            namespace: Its namespace.
            keep: How many bytes of the end at most.
            query: As `read_namespaced_pod_log` takes them.

        Returns:
            The text, and whether it is cut at its beginning.
        """
        arguments = {"name": name, "namespace": namespace, **query}
        doing = f"read the log of the pod {name} in namespace {namespace}"
        # Not by the API's limitBytes: that keeps the beginning, and what has happened last matters.
        body = await self._call("CoreV1Api", "read_namespaced_pod_log", arguments, doing, keep=keep + 1)
        if len(body) <= keep:
            return body.decode(errors="replace"), False
        cut = body[-keep:]
        return cut[cut.find(b"\n") + 1 :].decode(errors="replace"), True

    async def change(self, api: str, method: str, doing: str, **arguments: Any) -> JsonObject:  # noqa: ANN401
        """Change something. A request that the server has turned away unread is repeated, no other."""
        return cast("JsonObject", await self._call(api, method, arguments, doing, write=True))

    async def _call(
        self, api: str, method: str, arguments: JsonObject, doing: str, *, keep: int = 0, write: bool = False
    ) -> Any:  # noqa: ANN401 - as _request
        try:
            return await self._repeated(api, method, arguments, keep=keep, write=write)
        except _Failure as failure:
            raise _explained(failure, doing, self.times, write=write) from None

    async def _repeated(
        self, api: str, method: str, arguments: JsonObject, *, keep: int = 0, write: bool = False
    ) -> Any:  # noqa: ANN401 - as _request
        for attempt in range(1, _ATTEMPTS + 1):
            request = self._executor.submit(self._request, api, method, arguments, keep)
            answer = asyncio.wrap_future(request)
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                # Nobody waits for a failure any more; without this asyncio would report it.
                answer.add_done_callback(lambda done: done.cancelled() or done.exception())
                # What has begun goes on in its thread: nobody is told that all has ended before a write has.
                if not request.cancel() and write:
                    await asyncio.wait({answer})
                raise
            except _Failure as failure:
                pause = _pause(failure, write=write)
                if pause is None or pause > self.times.wait or attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError

    def _request(self, api: str, method: str, arguments: JsonObject, keep: int) -> Any:  # noqa: ANN401
        """One request, in a thread: the object that is its answer, or with `keep` so many bytes of its end."""
        from kubernetes import client  # noqa: PLC0415 - takes a second
        from urllib3 import exceptions  # noqa: PLC0415 - comes with it

        function = getattr(getattr(client, api)(self._connected()), method)
        bounds = (float(self.times.connect), float(self.times.read))
        try:
            response = function(**arguments, _preload_content=False, _request_timeout=bounds)
            try:
                body = _body(response, clock.monotonic() + self.times.call, keep)
                return body if keep else _object(body)
            finally:
                response.close()
        except client.ApiException as error:
            if error.status == _UNAUTHORIZED:
                # They may have been renewed in the file: the next call reads it again.
                self._client = None
            if not error.status:
                # The client's way to say that TLS has failed.
                raise _Failure("unreachable") from None
            raise _answered(error) from None
        except exceptions.ReadTimeoutError:
            raise _Failure("slow") from None
        except (
            exceptions.NewConnectionError,
            exceptions.ConnectTimeoutError,
            exceptions.ProxyError,
            exceptions.LocationValueError,
        ):
            raise _Failure("unreachable") from None
        except (exceptions.HTTPError, OSError):
            raise _Failure("cut") from None

    def _connected(self) -> Any:  # noqa: ANN401 - a kubernetes.client.ApiClient
        from kubernetes import client, config  # noqa: PLC0415 - takes a second

        with self._lock:
            if self._client is None:
                configuration = client.Configuration()
                # Its own repetitions would multiply the time-outs, follow redirects and obey any Retry-After.
                configuration.retries = False
                try:
                    if self._access.kubeconfig == IN_CLUSTER:
                        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                    else:
                        config.load_kube_config(  # type: ignore[no-untyped-call]
                            config_file=str(Path(self._access.kubeconfig).resolve(strict=True)),
                            context=self._context or None,
                            client_configuration=configuration,
                            persist_config=False,
                        )
                except Exception as error:  # noqa: BLE001 - of many libraries, and all mean the same
                    # No more than its name: its text may hold what the file holds.
                    log.warning("kubernetes_configuration", error=type(error).__name__)
                    message = "the service's access to the cluster is not set up rightly: tell the operator"
                    raise ToolError(message) from None
                self._client = client.ApiClient(configuration)
                self._client.user_agent = "agentrpc"
            return self._client


class _ExpiredError(Exception):
    """The state that a list was read from is gone."""


def _following(scopes: Sequence[str], scope: str) -> Whence | None:
    index = scopes.index(scope) + 1
    return Whence(scopes[index]) if index < len(scopes) else None


def _listing(kind: Kind, scope: str) -> str:
    if scope:
        return f"list {kind.plural} in namespace {scope}"
    return f"list {kind.plural}{' in all namespaces' if kind.namespaced else ''}"


def _object(body: bytes) -> JsonObject:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ToolError("the cluster's answer is not what the API of Kubernetes answers: tell the operator")
    return found


def _body(response: Any, deadline: float, keep: int) -> bytes:  # noqa: ANN401 - a urllib3 response
    pieces = bytearray()
    total = 0
    while piece := response.read1(_CHUNK):
        pieces += piece
        total += len(piece)
        if clock.monotonic() > deadline:
            raise _Failure("slow")
        if keep:
            del pieces[: max(0, len(pieces) - keep)]
        elif total > _MAX_ANSWER:
            raise _Failure("too_big")
    return bytes(pieces)


def _answered(error: Any) -> _Failure:  # noqa: ANN401 - a kubernetes ApiException
    status: JsonObject = {}
    try:
        status = json.loads(error.body or "{}")
        message = str(status.get("message") or "")
        token = str((status.get("metadata") or {}).get("continue") or "")
    except (ValueError, AttributeError):
        message, token = "", ""
    after = str((error.headers or {}).get("Retry-After") or "")
    retry_after = float(after) if after.isdecimal() else None
    return _Failure("answered", error.status, message[:_MAX_MESSAGE], retry_after, token)


def _pause(failure: _Failure, *, write: bool) -> float | None:
    """Seconds after which the request may be made again; None: it may not."""
    if failure.fault == "cut":
        return None if write else 0.1
    if failure.status == _TOO_MANY:
        return 1.0 if failure.retry_after is None else failure.retry_after
    # Without Retry-After nobody knows what a server that says 503 has done.
    return failure.retry_after if failure.status == _UNAVAILABLE else None


def _explained(failure: _Failure, doing: str, times: Times, *, write: bool = False) -> ToolError:
    """What the agent is told. Of the server's own words only those about its request."""
    unknown = "; it is not known whether it was done: look with `describe` before you try again" if write else ""
    retry = unknown or ": try again later"
    if failure.fault == "unreachable":
        return ToolError("the cluster cannot be reached: nothing was done; try again later, or tell the operator")
    if failure.fault == "slow":
        return ToolError(f"the cluster did not answer within {times.read:g} s{retry}")
    if failure.fault == "cut":
        return ToolError(f"the connection to the cluster was cut off{retry}")
    if failure.fault == "too_big":
        return ToolError("the answer is too big: ask for less, with a selector, a namespace or a smaller limit")
    if failure.status == _UNAUTHORIZED:
        return ToolError("the cluster refuses the service's credentials: the operator has to renew them")
    if failure.status == _FORBIDDEN:
        advice = "name a namespace that it may see, or ask" if "all namespaces" in doing else "ask"
        return ToolError(f"the service's account may not {doing}: {advice} the operator to grant it")
    if failure.status == _NOT_FOUND:
        return ToolError(f"could not {doing}: there is no such object; look for its name and namespace in a list")
    if failure.status == _CONFLICT:
        return ToolError(f"could not {doing}: it was changed meanwhile; look at it again with `describe`, then decide")
    turned_away = failure.retry_after is not None or not write
    if failure.status == _TOO_MANY or (failure.status == _UNAVAILABLE and turned_away):
        when = f"in {failure.retry_after:g} s" if failure.retry_after is not None else "later"
        return ToolError(f"the cluster is busy or not ready: nothing was done; try again {when}")
    if failure.status >= _INTERNAL:
        return ToolError(f"the cluster failed (HTTP {failure.status}){retry}")
    return ToolError(f"the cluster refuses to {doing}: {failure.message or f'HTTP {failure.status}'}")
