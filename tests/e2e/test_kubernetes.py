"""The real CLI uses the Kubernetes tools, against an API server over HTTP."""

import json

import pytest
import pytest_asyncio

from agentrpc.v1 import event_pb2, session_pb2
from tests.e2e.stacks import own_stack
from tests.e2e.talk import ALLOW, DENY, create, of, outputs, run, state
from tests.kubernetes_api import TOKEN, KubernetesApi
from tests.kubernetes_cluster import SECRETS, shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

Finished = event_pb2.ToolCallFinished


@pytest.fixture(scope="module")
def api():
    with KubernetesApi() as api:
        yield shop(api)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(api, tmp_path_factory):
    async with own_stack(kubeconfig=api.kubeconfig(tmp_path_factory.mktemp("operator"))) as running:
        yield running


def call(tool, **arguments):
    return f"[[tool: mcp__cluster__{tool} {json.dumps(arguments)}]]\n[[then]]\n"


def cluster(**options):
    """A session's server of Kubernetes tools, for the namespace shop."""
    options = session_pb2.KubernetesTools(namespaces=["shop"], **options)
    return session_pb2.McpServer(name="cluster", builtin=session_pb2.BuiltinServer(kubernetes=options))


def replicas(api):
    return api.get("deployments", "web", "shop")["spec"]["replicas"]


async def test_an_agent_looks_at_pods_and_logs_and_scales(client, api):
    session = await create(client, mcp_servers=[cluster(allow_writes=True)], allowed_tools=["mcp__cluster__*"])
    prompt = (
        call("list_pods", namespace="shop")
        + call("describe", kind="pod", name="web-2", namespace="shop")
        + call("logs", namespace="shop", pod="web-1", tail_lines=2)
        + call("list_pods", namespace="ops")
        + call("scale_deployment", namespace="shop", name="web", replicas=4)
        + "[[text: done]]"
    )
    events = await run(client, session, prompt)
    assert state(events) == "STATE_SUCCEEDED"
    pods, described, logs, elsewhere, scaled = outputs(events)
    assert "web-2  0/1    CrashLoopBackOff" in pods
    assert "OOMKilled" in described
    assert logs.split() == ["line", "999", "line", "1000"]
    assert "may not see namespace ops" in elsewhere
    assert scaled == "deployment web in namespace shop: replicas 2 -> 4"
    assert [done.outcome for done in of(events, "tool_call_finished")] == [
        Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_SUCCEEDED, Finished.OUTCOME_FAILED,
        Finished.OUTCOME_SUCCEEDED,
    ]  # fmt: skip
    assert replicas(api) == 4
    assert not of(events, "approval_requested")
    said = "".join(map(str, events))
    assert not any(secret in said for secret in (*SECRETS, TOKEN))
    assert not api.requests("/namespaces/ops/")


async def test_a_write_is_refused_unless_the_session_allows_writes(client, api):
    before = replicas(api)
    session = await create(client, mcp_servers=[cluster()], allowed_tools=["mcp__cluster__*"])
    prompt = (
        call("list_deployments") + call("scale_deployment", namespace="shop", name="web", replicas=9) + "[[text: x]]"
    )
    events = await run(client, session, prompt)
    shown, refused = outputs(events)
    assert "registry/web:7" in shown
    assert "scale_deployment" in refused
    assert of(events, "tool_call_finished")[1].outcome != Finished.OUTCOME_SUCCEEDED
    assert replicas(api) == before
    tools = [name for started in of(events, "agent_initialized") for name in started.tools]
    assert "mcp__cluster__list_pods" in tools
    assert "mcp__cluster__scale_deployment" not in tools


async def test_a_write_that_no_rule_allows_is_asked(client, api):
    session = await create(client, mcp_servers=[cluster(allow_writes=True)])
    prompt = call("scale_deployment", namespace="shop", name="web", replicas=7) + "[[text: x]]"
    before = replicas(api)
    events = await run(client, session, prompt, DENY)
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_DENIED
    assert replicas(api) == before
    events = await run(client, session, prompt, ALLOW)
    asked = of(events, "approval_requested")[0].approval
    assert json.loads(asked.input_json) == {"namespace": "shop", "name": "web", "replicas": 7}
    assert of(events, "tool_call_finished")[0].outcome == Finished.OUTCOME_SUCCEEDED
    assert replicas(api) == 7


async def test_a_cluster_that_hangs_or_refuses_does_not_stop_the_agent(client, api):
    session = await create(client, mcp_servers=[cluster()], allowed_tools=["mcp__cluster__*"])
    api.forbid("list", "deployments")
    fault = api.fault("/pods$", times=99, status=429, retry_after=100)
    prompt = call("list_pods") + call("list_deployments") + call("logs", namespace="shop", pod="none") + "[[text: on]]"
    events = await run(client, session, prompt)
    busy, forbidden, missing = outputs(events)
    assert "try again in 100 s" in busy
    assert "may not list deployments" in forbidden
    assert "no such object" in missing
    assert state(events) == "STATE_SUCCEEDED"
    api.faults.remove(fault)
    api.forbidden.clear()
