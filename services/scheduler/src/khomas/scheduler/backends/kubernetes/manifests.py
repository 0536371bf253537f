"""Keeps what pods are told: the programs in a ConfigMap, the manifests, which hold grants, in a Secret a batch."""

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any

from khomas.scheduler.backends.interface import SubmitItem
from khomas.scheduler.backends.kubernetes.calls import CONFLICT, CREATED, KubernetesApi, Reply
from khomas.scheduler.wrapper import JOB_WRAPPER

GROUP, BATCH, OWNED = "khomas.io/group", "khomas.io/batch", "khomas.io/owned"
PROGRAM = "khomas_pod.py"
# A Secret has at most a mebibyte; its owners stand in it too, but do not count.
_BATCH_BYTES = 256 << 10
_BATCH_JOBS = 250
# A submission ends within this; a Secret that is older and has no owner was left by one that was killed.
_ABANDONED = timedelta(minutes=10)
Object = dict[str, Any]


def batches(items: Sequence[SubmitItem]) -> list[list[SubmitItem]]:
    """Cut a submission into pieces whose manifests fit into a Secret."""
    made: list[list[SubmitItem]] = []
    size = 0
    for item in items:
        more = len(_manifest(item))
        if not made or len(made[-1]) == _BATCH_JOBS or size + more > _BATCH_BYTES:
            made.append([])
            size = 0
        made[-1].append(item)
        size += more
    return made


def secret(items: Sequence[SubmitItem], group: str) -> Object:
    """The manifests of a batch."""
    data = {item.token: base64.b64encode(_manifest(item)).decode() for item in items}
    name = f"khomas-{uuid.uuid4().hex}"
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {GROUP: group}}, "data": data}


@lru_cache(maxsize=1)
def programs() -> Object:
    """Wrapper and what runs it in a pod, named by their content."""
    files = (JOB_WRAPPER, JOB_WRAPPER.with_name(PROGRAM))
    data = {path.name: path.read_text() for path in files}
    name = f"khomas-{sha256(json.dumps(data).encode()).hexdigest()[:16]}"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _manifest(item: SubmitItem) -> bytes:
    return json.dumps({**item.manifest, "token": item.token}).encode()


async def bring_programs(api: KubernetesApi) -> Reply:
    """Have the programs in the cluster."""
    reply = await api.call("POST", "configmaps", programs())
    return Reply(CREATED, b"") if reply.status == CONFLICT else reply


async def give(api: KubernetesApi, name: str, jobs: Sequence[Mapping[str, Any]]) -> Reply:
    """Let a Secret belong to these Jobs: the cluster deletes it after the last of them."""
    owners = [
        {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
        for job in jobs
    ]
    metadata = {"ownerReferences": owners, "labels": {OWNED: "yes"}}
    return await api.call("PATCH", f"secrets/{name}", {"metadata": metadata})


async def sweep(api: KubernetesApi, group: str) -> None:
    """Give away or delete what a submission left that was killed."""
    reply = await api.listed("secrets", f"{GROUP}={group},!{OWNED}")
    now = datetime.now(UTC)
    for item in reply.items:
        metadata: Mapping[str, Any] = item["metadata"]
        made = datetime.fromisoformat(metadata["creationTimestamp"])
        if now - made < _ABANDONED:
            continue
        jobs = await api.listed("jobs", f"{BATCH}={metadata['name']}")
        if jobs.items:
            await give(api, metadata["name"], jobs.items)
        elif jobs.good:
            await api.call("DELETE", f"secrets/{metadata['name']}")
