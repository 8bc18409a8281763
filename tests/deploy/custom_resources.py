"""The parts that are used of two custom resources, as JSON schemas that allow nothing else.

No package has these schemas. They are written from the published API references of the
LeaderWorkerSet controller (leaderworkerset.x-k8s.io/v1) and the Prometheus operator
(monitoring.coreos.com/v1); a pod template inside is held against Kubernetes' own schema.
"""

from typing import Any

NAMES = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "labels": NAMES},
}
COUNT = {"type": "integer", "minimum": 0}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    """Write the schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


def top(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Write the schema of a whole resource."""
    return closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


POD_MONITOR = top(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    closed(
        ["selector", "podMetricsEndpoints"],
        selector=closed([], matchLabels=NAMES),
        podTargetLabels={"type": "array", "items": {"type": "string"}},
        podMetricsEndpoints={
            "type": "array",
            "minItems": 1,
            "items": closed(
                [],
                port={"type": "string"},
                path={"type": "string", "pattern": "^/"},
                interval={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
            ),
        },
    ),
)
LEADER_WORKER_SET = top(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    closed(
        ["leaderWorkerTemplate"],
        replicas=COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=closed(
            ["type"],
            type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=closed([], maxUnavailable=COUNT, maxSurge=COUNT),
        ),
        leaderWorkerTemplate=closed(
            ["workerTemplate"],
            size={"type": "integer", "minimum": 1},
            restartPolicy={
                "enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]
            },
            workerTemplate={"type": "object", "required": ["spec"]},
        ),
    ),
)
SCHEMA_OF = {"PodMonitor": POD_MONITOR, "LeaderWorkerSet": LEADER_WORKER_SET}
