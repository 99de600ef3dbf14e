"""The Kubernetes tools against an API server over HTTP: what they show, what they refuse, and what faults come to."""

import asyncio
import gc
import os
import re
import time

import pytest
from kubernetes.config import incluster_config
from pydantic import ValidationError

from agentrpc.claude.tools import ToolError
from agentrpc.claude.tools.kubernetes import KubernetesAccess, Times, kubernetes_tools
from agentrpc.claude.tools.kubernetes_api import KINDS, Cluster
from agentrpc.claude.tools.kubernetes_calls import KubernetesCalls
from agentrpc.settings import Settings
from agentrpc.v1 import session_pb2
from tests.kubernetes_api import TOKEN, KubernetesApi, make_certificate
from tests.kubernetes_cluster import SECRETS, event, shop

READING = {"list_namespaces", "list_nodes", "list_pods", "list_deployments", "list_events", "describe", "logs", "usage"}
WRITING = {"scale_deployment", "restart_deployment", "delete_pod"}
CALM = Times(connect=10, read=20, call=40, wait=2)
# For servers that never answer.
HASTY = Times(connect=10, read=0.5, call=40, wait=2)


@pytest.fixture
def api():
    with KubernetesApi() as api:
        yield shop(api)


class Tools:
    """The tools of one session. `await tools.list_pods(namespace="shop")`."""

    def __init__(self, options, access, times, check):
        self.tools = {tool.name: tool for tool in kubernetes_tools(options, access, check, times)}

    def __getattr__(self, name):
        async def call(**arguments):
            text = await self.tools[name].call(arguments)
            assert not any(secret in text for secret in (*SECRETS, TOKEN)), text
            return text

        return call

    async def refusal(self, name, /, **arguments):
        """The error that a call ends with."""
        with pytest.raises(ToolError) as caught:
            await self.tools[name].call(arguments)
        said = str(caught.value)
        assert not re.search(
            r"127\.0\.0\.1|10\.0\.0\.7|etcd|system:serviceaccount|Traceback|urllib3|/kubeconfig", said
        ), said
        assert TOKEN not in said
        assert len(said) < 700
        return said


async def allowed():
    return None


@pytest.fixture
def tools(api, tmp_path):
    def make(*namespaces, writes=False, context="", times=CALM, access=None, check=allowed):
        options = session_pb2.KubernetesTools(context=context, namespaces=namespaces, allow_writes=writes)
        return Tools(options, access or KubernetesAccess(str(api.kubeconfig(tmp_path))), times, check)

    return make


def rows(text):
    """The rows of a table, as dictionaries, without its notes."""
    lines = [line for line in text.splitlines() if not line.startswith("(")]
    starts = [match.start() for match in re.finditer(r"(?<!\S)\S+(?: \S+)*", lines[0])]
    ends = [*starts[1:], None]
    cells = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def names(text):
    return [row["NAME"] for row in rows(text)]


def following(text):
    """The `continue` that a list ends with."""
    found = re.search(r"continue=(\S+)\)$", text)
    return found[1] if found else ""


# What is there.


async def test_writing_tools_exist_only_where_the_session_may_write(tools):
    assert set(tools().tools) == READING
    writing = tools(writes=True).tools
    assert set(writing) == READING | WRITING
    assert {name for name, tool in writing.items() if not tool.read_only} == WRITING


async def test_a_write_that_is_called_anyway_is_refused(api):
    without = KubernetesCalls(session_pb2.KubernetesTools(), KubernetesAccess("nowhere"), allowed, CALM)
    for name in WRITING:
        with pytest.raises(ToolError, match="may not change anything"):
            await getattr(without, name)({"namespace": "shop", "name": "web", "replicas": 1})
    assert not api.seen


# Reading.


async def test_lists_show_what_is_there(tools):
    all_of_it = tools()
    assert names(await all_of_it.list_namespaces()) == ["default", "ops", "shop"]
    nodes = rows(await all_of_it.list_nodes())
    assert [(row["NAME"], row["STATUS"], row["ROLES"], row["MEMORY"]) for row in nodes] == [
        ("node-1", "Ready", "worker", "7168Mi"),
        ("node-2", "NotReady,SchedulingDisabled", "worker", "7168Mi"),
    ]
    pods = rows(await all_of_it.list_pods())
    assert [(row["NAMESPACE"], row["NAME"], row["READY"], row["STATUS"], row["RESTARTS"]) for row in pods] == [
        ("ops", "robot", "0/2", "Pending", "0"),
        ("shop", "web-1", "1/1", "Running", "0"),
        ("shop", "web-2", "0/1", "CrashLoopBackOff", "7"),
    ]
    deployment = rows(await all_of_it.list_deployments(namespace="shop"))[0]
    assert (deployment["NAME"], deployment["READY"], deployment["IMAGES"]) == ("web", "1/2", "registry/web:7")


async def test_selectors_reach_the_server(tools, api):
    assert names(await tools().list_pods(label_selector="app=web")) == ["web-1", "web-2"]
    assert names(await tools().list_pods(label_selector="app in (robot)")) == ["robot"]
    assert names(await tools().list_pods(field_selector="status.phase=Pending")) == ["robot"]
    assert await tools().list_pods(label_selector="app=nothing") == "no pods"
    said = await tools().refusal("list_pods", field_selector="spec.colour=red")
    assert "field label not supported: spec.colour" in said
    assert api.seen[-1].query["limit"] == "50"


async def test_events_are_the_newest_first_however_they_were_written(tools):
    found = rows(await tools().list_events())
    assert [row["REASON"] for row in found] == ["Preempted", "NodeNotReady", "BackOff", "ScalingReplicaSet", "Pulled"]
    assert found[2]["COUNT"] == "9"
    of_pod = rows(await tools().list_events(namespace="shop", kind="pod", name="web-2"))
    assert [row["REASON"] for row in of_pod] == ["BackOff", "Pulled"]
    warnings = rows(await tools().list_events(warnings_only=True))
    assert [row["REASON"] for row in warnings] == ["BackOff"]
    text = await tools().list_events(limit=1)
    assert [row["REASON"] for row in rows(text)] == ["Preempted"]
    assert "newest 1 of 5" in text


async def test_events_are_sorted_over_all_pages(tools, api):
    for number in range(250):
        event(
            api,
            "shop",
            f"x.{number:03}",
            "Pod",
            "x",
            f"R{number}",
            f"2026-02-01T00:{number // 60:02}:{number % 60:02}Z",
        )
    text = await tools("shop").list_events(limit=3)
    assert [row["REASON"] for row in rows(text)] == ["R249", "R248", "R247"]
    assert len(api.requests("/events$")) == 3


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("pod", ["CrashLoopBackOff", "OOMKilled", "exit code 137", "GET /ready on port 8080", "BackOff"]),
        ("deployment", ["RollingUpdate", "MinimumReplicasUnavailable", "web-2: CrashLoopBackOff", "ScalingReplicaSet"]),
        ("node", ["v1.31.4", "kubelet posts ready", "3800m", "robot: Pending"]),
        ("namespace", ["Active"]),
        ("service", ["10.2.0.1", "80/TCP to 8080", "app=web", "web-1: Running"]),
        ("replicaset", ["registry/web:7", "web-1: Running"]),
        ("statefulset", ["registry/web:7"]),
        ("daemonset", ["registry/web:7"]),
        ("job", ["registry/web:7", '"completions": 1']),
    ],
)  # fmt: skip
async def test_describe_shows_state_and_events_and_no_secrets(tools, kind, shown):
    name = {"pod": "web-2", "node": "node-1", "namespace": "shop", "deployment": "web", "service": "web"}.get(
        kind, "web-55"
    )
    where = {} if kind in ("node", "namespace") else {"namespace": "shop"}
    text = await tools().describe(kind=kind, name=name, **where)
    for words in shown:
        assert words in text
    if "registry/web:7" in text and kind != "node":
        assert "MODE=fast" in text
        assert "DB_PASSWORD=(hidden)" in text
        assert "DATABASE_URL=(hidden)" in text
        assert "API_KEY from key api of secret keys" in text
        assert "COLOUR from key colour of config map looks" in text
        assert "--password=(hidden)" in text


@pytest.mark.parametrize("kind", ["secret", "configmap", "event", "Pod", "pods", "../secrets"])
async def test_nothing_else_is_described(tools, api, kind):
    said = await tools().refusal("describe", kind=kind, name="keys", namespace="shop")
    assert "nothing else is shown" in said
    assert not api.seen


async def test_logs_end_with_what_came_last(tools, api):
    text = await tools().logs(namespace="shop", pod="web-1")
    assert text.splitlines()[0] == "line 801"
    assert text.splitlines()[-1] == "line 1000"
    cut = await tools().logs(namespace="shop", pod="web-1", tail_lines=1000, max_bytes=1024)
    assert "older lines are left out" in cut
    assert re.fullmatch(r"line 8\d\d", cut.splitlines()[1])
    assert cut.splitlines()[-1] == "line 1000"
    assert len(cut) < 1200
    assert await tools().logs(namespace="shop", pod="web-2", previous=True) == "out of memory\n"
    assert await tools().logs(namespace="shop", pod="web-2") == "(nothing was logged there)"
    await tools().logs(namespace="shop", pod="web-1", since_seconds=60, timestamps=True)
    assert api.seen[-1].query["sinceSeconds"] == "60"
    assert api.seen[-1].query["timestamps"] == "true"


async def test_logs_say_what_is_wrong_with_the_call(tools):
    said = await tools().refusal("logs", namespace="ops", pod="robot")
    assert "choose one of: [a b]" in said
    assert "� not text" in await tools().logs(namespace="ops", pod="robot", container="a")
    assert "is not valid" in await tools().refusal("logs", namespace="ops", pod="robot", container="c")
    assert "not found" in await tools().refusal("logs", namespace="shop", pod="web-1", previous=True)
    assert "no such object" in await tools().refusal("logs", namespace="shop", pod="web-9")


async def test_usage_is_summed_and_sorted(tools, api):
    pods = rows(await tools().usage(of="pods"))
    assert [(row["NAME"], row["CPU"], row["MEMORY"]) for row in pods] == [
        ("robot", "1000m", "32Mi"),
        ("web-1", "112m", "65Mi"),
    ]
    assert names(await tools().usage(of="pods", sort_by="memory")) == ["web-1", "robot"]
    assert "these are 1 of 2" in await tools().usage(of="pods", limit=1)
    node = rows(await tools().usage(of="nodes"))[0]
    assert (node["CPU%"], node["MEMORY%"]) == ("50%", "50%")
    assert names(await tools("ops").usage(of="pods")) == ["robot"]
    api.usage = None
    assert "metrics-server" in await tools().refusal("usage", of="pods")


# Pages.


async def test_pages_go_on_where_the_last_one_ended(tools, api):
    for number in range(230):
        api.put("pods", f"p-{number:03}", "bulk", spec={"containers": [{"name": "c"}]}, status={"phase": "Running"})
    found, token, pages = [], "", 0
    while True:
        text = await tools("bulk", "shop").list_pods(limit=110, **({"continue": token} if token else {}))
        found += names(text)
        pages += 1
        token = following(text)
        if not token:
            break
    assert found == [f"p-{number:03}" for number in range(230)] + ["web-1", "web-2"]
    assert pages == 3
    text = await tools().list_pods(limit=110)
    assert "about 123 more" in text
    assert max(int(one.query["limit"]) for one in api.requests("/pods$")) == 100


async def test_a_list_that_expires_in_the_middle_of_a_call_is_begun_again(tools, api):
    for number in range(150):
        api.put("pods", f"p-{number:03}", "bulk", spec={"containers": []}, status={})
    api.fault("/pods$", skip=1, status=410, body='{"kind": "Status", "code": 410, "reason": "Expired"}')
    found = names(await tools("bulk").list_pods(limit=500))
    assert found == [f"p-{number:03}" for number in range(150)]
    assert len(api.requests("/pods$")) == 4
    api.fault("/pods$", paged=True, times=99, status=410)
    assert "changes faster than it can be read" in await tools("bulk").refusal("list_pods", limit=500)


async def test_an_expired_continue_goes_on_in_a_newer_state(tools, api):
    first = await tools().list_pods(limit=1)
    api.expire()
    second = await tools().list_pods(**{"limit": 5, "continue": following(first)})
    assert names(first) + names(second) == ["robot", "web-1", "web-2"]
    assert "newer state" in second


async def test_an_expired_continue_without_another_is_told(tools, api):
    first = await tools().list_pods(limit=1)
    api.fault("/pods$", times=9, status=410)
    said = await tools().refusal("list_pods", **{"limit": 5, "continue": following(first)})
    assert "call again without it" in said


@pytest.mark.parametrize("token", ["shop:x", "nonsense", ":%%%", "ops:eyJydiI6IDF9"])
async def test_a_wrong_continue_is_refused(tools, token):
    said = await tools("ops").refusal("list_pods", **{"continue": token})
    assert "another list" in said or "continue key is not valid" in said or "refuses" in said


# Bounds.


async def test_only_the_namespaces_of_the_options_are_seen(tools, api):
    bounded = tools("shop", "default", writes=True)
    assert names(await bounded.list_namespaces()) == ["shop", "default"]
    assert names(await bounded.list_pods()) == ["web-1", "web-2"]
    assert [row["REASON"] for row in rows(await bounded.list_events())] == [
        "NodeNotReady", "BackOff", "ScalingReplicaSet", "Pulled"]  # fmt: skip
    assert "robot" not in await bounded.describe(kind="node", name="node-1")
    assert "other-team" not in await bounded.describe(kind="node", name="node-1")
    for name, arguments in {
        "list_pods": {}, "list_events": {}, "list_deployments": {}, "usage": {"of": "pods"},
        "logs": {"pod": "robot"}, "describe": {"kind": "pod", "name": "robot"},
        "scale_deployment": {"name": "x", "replicas": 0}, "restart_deployment": {"name": "x"}, "delete_pod": {"name": "robot"},
    }.items():  # fmt: skip
        said = await bounded.refusal(name, namespace="ops", **arguments)
        assert "may not see namespace ops, only shop, default" in said
    await bounded.refusal("describe", kind="namespace", name="ops")
    assert "may not see namespace default" in await tools("shop").describe(kind="node", name="node-2")
    assert not api.requests("ops")
    assert not api.requests("^/api/v1/(pods|events)$")


@pytest.mark.parametrize("name", ["..", "../ops", "a/b", "web\n", "%2e%2e", "", "A", "web/log", "a" * 300, "."])
async def test_names_cannot_lead_elsewhere(tools, api, name):
    writing = tools(writes=True)
    await writing.refusal("describe", kind="pod", name=name, namespace="shop")
    await writing.refusal("describe", kind="pod", name="web-1", namespace=name)
    await writing.refusal("logs", pod=name, namespace="shop")
    await writing.refusal("delete_pod", name=name, namespace="shop")
    if name:
        await writing.refusal("list_events", name=name)
    assert not api.seen


async def test_contexts_are_the_operators_choice(tools, api, tmp_path):
    path = str(api.kubeconfig(tmp_path))
    assert "none that the operator" in await tools(context="other").refusal("list_pods")
    both = KubernetesAccess(path, ("other",))
    assert names(await tools(context="other", access=both).list_namespaces())
    assert names(await tools(access=both).list_namespaces())
    assert "none that the operator" in await tools(context="third", access=both).refusal("list_pods")
    assert "no cluster is set up" in await tools(access=KubernetesAccess()).refusal("list_pods")
    assert "not set up rightly" in await tools(access=KubernetesAccess("in-cluster")).refusal("list_pods")
    assert "no contexts" in await tools(context="main", access=KubernetesAccess("in-cluster")).refusal("list_pods")


async def test_a_broken_kubeconfig_tells_nothing_of_itself(tools, tmp_path, capfd):
    for text in ("", "{", f"users: [{{name: me, user: {{token: {TOKEN}}}}}, {TOKEN}]", f"contexts: {{{TOKEN}: }}"):
        path = tmp_path / "broken"
        path.write_text(text)
        assert "not set up rightly" in await tools(access=KubernetesAccess(str(path))).refusal("list_pods")
    assert "not set up rightly" in await tools(access=KubernetesAccess(str(tmp_path / "none"))).refusal("list_pods")
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err


async def test_in_a_cluster_the_account_of_the_pod_is_used(tools, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(make_certificate(tmp_path / "ca.crt")))
    access = KubernetesAccess("in-cluster")
    with KubernetesApi(certificate=tmp_path / "ca.crt") as api:
        shop(api)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        assert names(await tools(access=access).list_namespaces()) == ["default", "ops", "shop"]
        make_certificate(tmp_path / "ca.crt")
        assert "cannot be reached" in await tools(access=access).refusal("list_namespaces")


async def test_a_kubeconfig_is_not_where_agents_read():
    given = {"database_url": "postgresql://x/y", "redis_url": "redis://x", "signing_key": "k" * 32}
    for path in ("/etc/kubernetes/admin.conf", "/usr/local/../../etc/k", "/opt/k"):
        with pytest.raises(ValidationError, match="agents can read"):
            Settings(**given, kubeconfig=path)
    assert Settings(**given, kubeconfig="/srv/agentrpc/kubeconfig").kubeconfig
    assert Settings(**given, kubeconfig="in-cluster", kubernetes_contexts=["a"]).kubernetes_contexts == ["a"]


async def test_a_session_that_may_not_call_any_more_changes_nothing(tools, api):
    left = 1

    async def check():
        nonlocal left
        left -= 1
        if left < 0:
            raise ToolError("lost")

    bounded = tools(writes=True, check=check)
    assert await bounded.refusal("delete_pod", namespace="shop", name="web-1") == "lost"
    assert [one.method for one in api.seen] == ["GET"]
    assert await bounded.refusal("list_pods") == "lost"
    assert len(api.seen) == 1


# Changing.


async def test_a_deployment_is_scaled(tools, api):
    writing = tools("shop", writes=True)
    dry = await writing.scale_deployment(namespace="shop", name="web", replicas=5, dry_run=True)
    assert dry == "dry run, nothing was changed: deployment web in namespace shop: replicas 2 -> 5"
    assert api.get("deployments", "web", "shop")["spec"]["replicas"] == 2
    assert api.seen[-1].query["dryRun"] == "All"
    version = api.get("deployments", "web", "shop")["metadata"]["resourceVersion"]
    await writing.scale_deployment(namespace="shop", name="web", replicas=5, resource_version=version)
    assert api.get("deployments", "web", "shop")["spec"]["replicas"] == 5
    said = await writing.refusal("scale_deployment", namespace="shop", name="web", replicas=1, resource_version=version)
    assert "changed meanwhile" in said
    assert "too many" in await writing.refusal("scale_deployment", namespace="shop", name="web", replicas=999)
    assert "no such object" in await writing.refusal("scale_deployment", namespace="shop", name="none", replicas=1)
    assert api.get("deployments", "web", "shop")["spec"]["replicas"] == 5


async def test_a_deployment_is_restarted_as_kubectl_does(tools, api):
    await tools(writes=True).restart_deployment(namespace="shop", name="web")
    deployment = api.get("deployments", "web", "shop")
    at = deployment["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at)
    assert deployment["spec"]["template"]["spec"]["containers"]
    deployment["spec"]["paused"] = True
    assert "paused" in await tools(writes=True).refusal("restart_deployment", namespace="shop", name="web")


async def test_a_pod_is_deleted_and_only_that_pod(tools, api):
    writing = tools(writes=True)
    uid = api.get("pods", "web-1", "shop")["metadata"]["uid"]
    dry = await writing.delete_pod(namespace="shop", name="web-1", dry_run=True)
    assert dry.startswith("dry run")
    assert api.get("pods", "web-1", "shop")
    text = await writing.delete_pod(namespace="shop", name="web-1", grace_seconds=3)
    assert "ReplicaSet web-55 may replace it" in text
    assert api.get("pods", "web-1", "shop") is None
    assert api.seen[-1].body == {"preconditions": {"uid": uid}, "gracePeriodSeconds": 3}
    said = await writing.refusal("delete_pod", namespace="shop", name="web-2", resource_version="1")
    assert "changed meanwhile" in said
    assert api.get("pods", "web-2", "shop")


async def test_a_busy_server_gets_a_write_again_that_it_has_turned_away(tools, api):
    api.fault("/scale$", method="PATCH", status=429, retry_after=0)
    await tools(writes=True).scale_deployment(namespace="shop", name="web", replicas=3)
    assert len(api.requests("/scale$", "PATCH")) == 2
    assert api.get("deployments", "web", "shop")["spec"]["replicas"] == 3


@pytest.mark.parametrize("fault", [{"cut": True}, {"hang": True}, {"status": 500}, {"status": 503}, {"status": 504}])
async def test_a_write_whose_outcome_is_unknown_is_told_and_not_made_again(tools, api, fault):
    api.fault("/scale$", method="PATCH", times=9, after=True, **fault)
    writing = tools(writes=True, times=HASTY if "hang" in fault else CALM)
    said = await writing.refusal("scale_deployment", namespace="shop", name="web", replicas=3)
    assert "not known whether it was done" in said
    assert len(api.requests("/scale$", "PATCH")) == 1


async def test_a_cancelled_write_ends_before_its_cancellation(tools, api):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    writing = tools(writes=True, times=HASTY)
    api.fault("/scale$", method="PATCH", hang=True)
    call = asyncio.create_task(writing.scale_deployment(namespace="shop", name="web", replicas=3))
    assert await asyncio.to_thread(api.hanging.wait, 30)
    begun = time.monotonic()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.monotonic() - begun > 0.2
    # The write that has failed then is nobody's unhandled exception.
    del call
    await asyncio.sleep(0)
    gc.collect()
    assert not complaints


async def test_a_write_that_is_cancelled_before_it_begins_is_never_made(api, tmp_path):
    cluster = Cluster(KubernetesAccess(str(api.kubeconfig(tmp_path))), "", HASTY)
    api.fault("/pods$", times=4, hang=True)
    busy = [asyncio.create_task(cluster.list(KINDS["pod"], [""], limit=1, start=None)) for _ in range(4)]
    assert await asyncio.to_thread(api.hanging.wait, 30)
    deleting = cluster.change("CoreV1Api", "delete_namespaced_pod", "delete it", name="web-1", namespace="shop")
    call = asyncio.create_task(deleting)
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, *busy, return_exceptions=True)
    assert call.cancelled()
    assert await cluster.read(KINDS["pod"], "web-1", "shop")
    assert not api.requests(method="DELETE")


# Refusals and faults.


async def test_what_the_account_may_not_is_told_without_its_name(tools, api):
    api.forbid("list", "pods", "")
    said = await tools().refusal("list_pods")
    assert "may not list pods in all namespaces: name a namespace" in said
    assert names(await tools().list_pods(namespace="shop"))
    api.forbid("list", "pods", "shop")
    assert "may not list pods in namespace shop" in await tools().refusal("list_pods", namespace="shop")
    text = await tools("shop", "ops").list_pods()
    assert names(text) == ["robot"]
    assert "namespace shop: the service's account may not list pods" in text
    api.forbid("list", "events")
    assert "may not list events" in await tools().describe(kind="pod", name="web-1", namespace="shop")
    api.forbid("patch", "deployments/scale")
    said = await tools(writes=True).refusal("scale_deployment", namespace="shop", name="web", replicas=0)
    assert "may not scale the deployment web" in said
    api.forbid("get", "namespaces")
    text = await tools("shop").list_namespaces()
    assert names(text) == ["shop"]
    assert "may not read the namespace shop" in text


async def test_credentials_that_are_refused_and_renewed(tools, api, tmp_path):
    bounded = tools(access=KubernetesAccess(str(api.kubeconfig(tmp_path, token="wrong"))))
    assert "operator has to renew" in await bounded.refusal("list_pods")
    api.kubeconfig(tmp_path)
    assert names(await bounded.list_pods())


async def test_a_busy_server_is_asked_again_when_it_says(tools, api):
    api.fault("/pods$", times=2, status=429, retry_after=1)
    assert names(await tools().list_pods())
    times = [one.time for one in api.requests("/pods$")]
    assert len(times) == 3
    assert times[1] - times[0] >= 1
    api.fault("/nodes$", status=503, retry_after=0)
    assert names(await tools().list_nodes())
    api.fault("/deployments$", times=9, status=429, retry_after=0)
    assert "busy" in await tools().refusal("list_deployments")
    assert len(api.requests("/deployments$")) == 3


async def test_nobody_waits_for_a_server_that_asks_for_too_long(tools, api):
    api.fault("/pods$", times=9, status=429, retry_after=3600)
    assert "try again in 3600 s" in await tools().refusal("list_pods")
    assert len(api.requests("/pods$")) == 1


async def test_a_connection_that_is_cut_once_does_not_matter(tools, api):
    api.fault("/pods$", cut=True)
    assert names(await tools().list_pods())
    api.fault("/nodes$", cut=True, times=9)
    assert "was cut off" in await tools().refusal("list_nodes")


async def test_nobody_is_there(tools, api, tmp_path):
    path = api.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace(str(api.port), "9"))
    said = await tools(writes=True, access=KubernetesAccess(str(path))).refusal("list_pods")
    assert "cannot be reached: nothing was done" in said


async def test_answers_that_are_none(tools, api):
    for body in ("<html>", "[]", "null", '"pods"'):
        api.fault("/pods$", body=body)
        assert "not what the API of Kubernetes answers" in await tools().refusal("list_pods")
    api.fault("/pods$", body='{"items": null, "metadata": null}')
    assert await tools().list_pods() == "no pods"
    api.fault("/pods$", status=500)
    assert await tools().refusal("list_pods") == "the cluster failed (HTTP 500): try again later"


async def test_objects_with_nothing_in_them_are_shown(tools, api):
    for plural in ("pods", "deployments", "services", "jobs"):
        api.put(plural, "bare", "shop")
    api.put("nodes", "bare", spec=None, status=None)
    assert "bare" in await tools().list_pods()
    assert "bare" in await tools().list_deployments()
    assert "bare" in await tools().list_nodes()
    for kind in ("pod", "deployment", "service", "job"):
        assert '"name": "bare"' in await tools().describe(kind=kind, name="bare", namespace="shop")
    assert '"name": "bare"' in await tools().describe(kind="node", name="bare")


@pytest.mark.parametrize("fault", [{"hang": True}, {"drip": True}])
async def test_a_hanging_server_stops_nobody_else(tools, api, fault):
    api.fault("/pods$", times=99, **fault)
    slow = tools(times=Times(connect=5, read=1, call=4))
    await slow.list_nodes()
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    hanging = [asyncio.create_task(slow.refusal("list_pods")) for _ in range(8)]
    assert names(await tools().list_nodes())
    for call in hanging:
        said = await call
        assert "did not answer" in said or "was given up" in said
    beating.cancel()
    assert beats > 20


async def test_long_results_are_bounded(tools, api):
    for number in range(120):
        labels = {f"l{key}": "v" * 60 for key in range(5)}
        api.put(
            "pods", "n" * 240 + f"-{number:03}", "bulk", spec={"containers": []}, status={}, metadata={"labels": labels}
        )
    text = await tools("bulk").list_pods(limit=500)
    assert len(text.encode()) < 256 * 1024
    api.logs["shop", "web-1", "web", False] = b"x" * 5_000_000
    assert len(await tools().logs(namespace="shop", pod="web-1", tail_lines=10_000, max_bytes=245_760)) < 256 * 1024


# A real cluster.


@pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="KUBECONFIG is not set: there is no real cluster to ask")
async def test_a_real_cluster(tools):
    real = tools(access=KubernetesAccess(os.environ["KUBECONFIG"]), times=Times())
    found = names(await real.list_namespaces(limit=500))
    assert {"default", "kube-system"} <= set(found)
    first = await real.list_namespaces(limit=1)
    rest = await real.list_namespaces(**{"limit": 500, "continue": following(first)})
    assert names(first) + names(rest) == found
    for name in ("list_nodes", "list_pods", "list_deployments", "list_events"):
        await getattr(real, name)()
    assert '"phase": "Active"' in await real.describe(kind="namespace", name="default")
    assert '"kubernetes"' in await real.describe(kind="service", name="kubernetes", namespace="default")
    assert "no such object" in await real.refusal("describe", kind="pod", name="none", namespace="default")
    assert "no such object" in await real.refusal("logs", pod="none", namespace="default")
