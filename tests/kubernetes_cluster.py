"""What the small API server has in tests: a shop with a web front, a worker that crashes, and a secret in every corner."""

from tests.kubernetes_api import KubernetesApi

# Whoever finds one of these in a result has found a leak.
SECRETS = ("hunter2", "s3cr3t-token", "p4ssw0rd", "annotated-key", "inline-key")


def shop(api: KubernetesApi) -> KubernetesApi:
    for name in ("shop", "ops", "default"):
        api.put(
            "namespaces", name, status={"phase": "Active"}, metadata={"labels": {"kubernetes.io/metadata.name": name}}
        )
    for name, ready in (("node-1", "True"), ("node-2", "False")):
        api.put(
            "nodes", name,
            metadata={"labels": {"node-role.kubernetes.io/worker": ""}},
            spec={"unschedulable": True} if ready == "False" else {},
            status={
                "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "allocatable": {"cpu": "3800m", "memory": "7Gi", "pods": "110"},
                "conditions": [
                    {"type": "Ready", "status": ready, "reason": "KubeletReady", "message": "kubelet posts ready",
                     "lastTransitionTime": "2026-01-02T03:05:00Z"},
                    {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory"},
                ],
                "nodeInfo": {"kubeletVersion": "v1.31.4", "osImage": "Debian", "architecture": "amd64"},
                "images": [{"names": ["registry/other-team:1"]}],
            },
        )  # fmt: skip
    web = {
        "name": "web", "image": "registry/web:7", "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "command": ["serve", "--password=p4ssw0rd", "--token", "s3cr3t-token"],
        "env": [
            {"name": "MODE", "value": "fast"},
            {"name": "DB_PASSWORD", "value": "hunter2"},
            {"name": "DATABASE_URL", "value": "postgresql://shop:hunter2@db/shop"},
            {"name": "PRIVATE", "value": "-----BEGIN PRIVATE KEY-----\ninline-key"},
            {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "looks", "key": "colour"}}},
        ],
        "envFrom": [{"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "looks"}}],
        "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5},
    }  # fmt: skip
    api.put(
        "deployments", "web", "shop",
        metadata={"labels": {"app": "web"}, "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": '{"env": "annotated-key"}'}},
        spec={"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
              "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [web]}},
              "strategy": {"type": "RollingUpdate"}},
        status={"replicas": 2, "readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1, "conditions": [
            {"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable"}]},
    )  # fmt: skip
    for number, waiting in ((1, None), (2, "CrashLoopBackOff")):
        state = {"waiting": {"reason": waiting, "message": "back-off 40s"}} if waiting else {
            "running": {"startedAt": "2026-01-02T03:06:00Z"}}  # fmt: skip
        api.put(
            "pods", f"web-{number}", "shop",
            metadata={"labels": {"app": "web"}, "annotations": {"note": "annotated-key"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-55", "uid": "u", "controller": True}]},
            spec={"nodeName": "node-1", "containers": [web], "serviceAccountName": "shop",
                  "volumes": [{"name": "keys", "secret": {"secretName": "keys"}},
                              {"name": "looks", "configMap": {"name": "looks"}}]},
            status={"phase": "Running", "podIP": f"10.1.0.{number}", "qosClass": "Burstable",
                    "conditions": [{"type": "Ready", "status": "False" if waiting else "True"}],
                    "containerStatuses": [{"name": "web", "ready": not waiting, "restartCount": 7 if waiting else 0,
                        "image": "registry/web:7", "state": state,
                        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}} if waiting else {}}]},
        )  # fmt: skip
    api.put(
        "pods", "robot", "ops", metadata={"labels": {"app": "robot"}},
        spec={"nodeName": "node-1", "containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]},
        status={"phase": "Pending"},
    )  # fmt: skip
    api.put(
        "services", "web", "shop",
        spec={"type": "ClusterIP", "clusterIP": "10.2.0.1", "selector": {"app": "web"},
              "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
        status={"loadBalancer": {}},
    )  # fmt: skip
    for plural, more in (
        ("replicasets", {"replicas": 2}), ("statefulsets", {"replicas": 2}), ("daemonsets", {}), ("jobs", {"completions": 1}),
    ):  # fmt: skip
        api.put(
            plural, "web-55", "shop",
            spec={**more, "selector": {"matchLabels": {"app": "web"}}, "template": {"spec": {"containers": [web]}}},
            status={},
        )  # fmt: skip
    event(api, "shop", "web-2.1", "Pod", "web-2", "BackOff", "2026-01-02T05:00:00Z", type="Warning", count=9)
    event(api, "shop", "web-2.0", "Pod", "web-2", "Pulled", "2026-01-02T04:00:00Z")
    event(api, "shop", "web.9", "Deployment", "web", "ScalingReplicaSet", "2026-01-02T04:30:00Z")
    api.put(
        "events", "new.1", "ops", reason="Preempted", type="Normal", message="told in the new way", count=None,
        lastTimestamp=None, firstTimestamp=None, eventTime="2026-01-02T06:00:00.123456Z",
        involvedObject={"kind": "Pod", "name": "robot", "namespace": "ops"},
    )  # fmt: skip
    event(api, "default", "node-2.1", "Node", "node-2", "NodeNotReady", "2026-01-02T05:30:00Z")
    api.logs["shop", "web-1", "web", False] = b"".join(b"line %d\n" % number for number in range(1, 1001))
    api.logs["shop", "web-2", "web", True] = b"out of memory\n"
    api.logs["ops", "robot", "a", False] = b"\xff not text \x1b[31mred\n"
    api.usage = {
        "pods": [
            {"metadata": {"name": "web-1", "namespace": "shop"},
             "containers": [{"name": "web", "usage": {"cpu": "12345678n", "memory": "64Mi"}},
                            {"name": "side", "usage": {"cpu": "100m", "memory": "1048576"}}]},
            {"metadata": {"name": "robot", "namespace": "ops"},
             "containers": [{"name": "a", "usage": {"cpu": "1", "memory": "32768Ki"}}]},
        ],
        "nodes": [{"metadata": {"name": "node-1"}, "usage": {"cpu": "1900m", "memory": "3584Mi"}}],
    }  # fmt: skip
    return api


def event(api, namespace, name, kind, about, reason, time, **more):
    api.put(
        "events", name, namespace,
        involvedObject={"kind": kind, "name": about, "namespace": namespace}, reason=reason,
        message=f"{reason} happened", firstTimestamp=time, lastTimestamp=time, **{"type": "Normal", "count": 1, **more},
    )  # fmt: skip
