"""Makes the Jobs and their pods."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from khomas.scheduler.backends.kubernetes.settings import KubernetesSettings
from khomas.scheduler.backends.spool.dialect import Needs

OPTIONS = frozenset({"image", "node_selector", "priority_class", "service_account"})
# Asked of https://kueue.sigs.k8s.io, where the cluster has it.
_QUEUE = "kueue.x-k8s.io/queue-name"
_MARGIN_BYTES = 64 << 20
# What both streams of a job may have by default, and a little.
_LOGS_BYTES = 256 << 20
Object = dict[str, Any]


def job(settings: KubernetesSettings, needs: Needs, name: str, labels: Mapping[str, str], container: Object) -> Object:
    """A Job that is tried once; `container` says what runs where."""
    marks = {**labels, **({_QUEUE: needs.queue} if needs.queue else {})}
    volumes = container.pop("volumes")
    spec: Object = {
        "backoffLimit": 0,
        # Known from 1.28 on: no second pod beside one that still ends.
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": settings.kept_seconds,
        "template": {"metadata": {"labels": marks}, "spec": _pod(settings, needs, container, volumes)},
    }
    metadata = {"name": name, "labels": dict(marks)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _pod(settings: KubernetesSettings, needs: Needs, container: Object, volumes: Sequence[Object]) -> Object:
    native = needs.native
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": "service_account" in native,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.vacate_seconds,
        "securityContext": {
            "runAsUser": settings.user_id,
            "runAsGroup": settings.group_id,
            "runAsNonRoot": settings.user_id != 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{**_container(settings, needs), **container}],
        "volumes": list(volumes),
    }
    if needs.wall_time_s:
        # That of the Job would count the time before the pod starts.
        pod["activeDeadlineSeconds"] = math.ceil(needs.wall_time_s + settings.margin_seconds)
    for option, name in (("priority_class", "priorityClassName"), ("service_account", "serviceAccountName")):
        if option in native:
            pod[name] = str(native[option])
    if "node_selector" in native:
        pod["nodeSelector"] = {str(key): str(value) for key, value in native["node_selector"].items()}
    return pod


def _container(settings: KubernetesSettings, needs: Needs) -> Object:
    # The wrapper enforces the job's own limits, those of the container stand a little behind them.
    asked = {"cpu": f"{needs.cpu_milli}m"}
    if needs.memory_bytes:
        asked["memory"] = str(needs.memory_bytes + _MARGIN_BYTES)
    if needs.disk_bytes:
        asked["ephemeral-storage"] = str(needs.disk_bytes + _LOGS_BYTES)
    return {
        "name": "job",
        "image": str(needs.native.get("image", settings.image)),
        "resources": {"requests": asked, "limits": dict(asked)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
