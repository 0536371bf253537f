"""Backend "kubernetes": a Job of the cluster for every job, and a volume that its pods and the service share."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from khomas.scheduler.backends import kubernetes_answers as answers
from khomas.scheduler.backends.interface import BackendPlugin, ComputeResource, Submitted, Usage
from khomas.scheduler.backends.kubernetes_calls import NOT_SENT, REFUSED, KubernetesApi
from khomas.scheduler.backends.slurm_rest_calls import RestHost
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.spool.dialect import Answer, Needs, Refusal, Status, Submission
from khomas.scheduler.backends.spool.settings import SpoolSettings

OPTIONS = frozenset({"image", "node_selector", "priority_class", "service_account"})
# Labels of our objects.
SPOOL, TOKEN = "khomas.io/spool", "khomas.io/token"
# Asked of https://kueue.sigs.k8s.io, where the cluster has it.
_QUEUE = "kueue.x-k8s.io/queue-name"
_MARGIN_BYTES = 64 << 20
# Names in one call: they stand in its address.
_IN_ADDRESS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings(SpoolSettings):
    """A namespace of a cluster, and the volume with the folder of jobs."""

    # Where its API server answers: `https://cluster:6443`.
    url: str
    # A token of a service account; a new one may be written there at any time.
    token_file: Path
    # Who signed the API server's certificate; None = as this machine trusts.
    ca_file: Path | None = None
    namespace: str
    # For jobs that name none: it has `python3` and `/bin/sh`.
    image: str
    # The volume, as a pod has it: {"persistentVolumeClaim": {"claimName": "khomas"}}.
    volume: Mapping[str, Any]
    # Where the pods have it; the service has it under the same path. None = it is the folder of jobs.
    mount: Path | None = None
    # User and group of the pods: those whom the folder of jobs belongs to.
    user_id: int = field(default_factory=os.getuid)
    group_id: int = field(default_factory=os.getgid)
    # How long the cluster keeps what has ended.
    keep_seconds: int = 86400
    # Beyond the wall time of a job, for bringing files in and out.
    margin_seconds: float = 300.0
    # Between the order to end and SIGKILL by the cluster; the wrapper is quicker.
    vacate_seconds: int = 900

    def __post_init__(self) -> None:
        """Refuse what is for commands."""
        SpoolSettings.__post_init__(self)
        if self.ssh or self.prefix or self.tools:
            raise ValueError("kubernetes runs no commands: leave out ssh, prefix and tools")
        if not self.url.startswith(("https://", "http://127.0.0.1:")):
            raise ValueError(f"url must be the address of the API server, https://host:port: {self.url!r}")


class KubernetesDialect:
    """Calls of the API server in place of commands: see `KubernetesApi.command`."""

    kind = "kubernetes"
    native_options = OPTIONS
    # To suspend a Job ends its pod.
    can_hold = False
    by_process = False

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._group = sha256(str(settings.spool).encode()).hexdigest()[:32]

    def submission(self, needs: Needs, runs: str) -> Submission:
        """A Job a job: one of an indexed Job cannot be ended by itself."""
        return Submission(
            f"#!/bin/sh\nKHOMAS_INDEX=0\n{runs}",
            ["POST", "jobs", json.dumps(self._job(needs))],
            None,
            native=r'"name": "([a-z0-9.-]+)"',
            refused=f"^({NOT_SENT}|{REFUSED})",
        )

    def _job(self, needs: Needs) -> dict[str, Any]:
        settings, labels = self._settings, {SPOOL: self._group, TOKEN: "@BATCH@"}
        if needs.queue:
            labels[_QUEUE] = needs.queue
        spec: dict[str, Any] = {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": settings.keep_seconds,
            "template": {"metadata": {"labels": labels}, "spec": self._pod(needs)},
        }
        if needs.wall_time_s:
            spec["activeDeadlineSeconds"] = math.ceil(needs.wall_time_s + settings.margin_seconds)
        metadata = {"name": "khomas-@BATCH@", "labels": labels}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}

    def _pod(self, needs: Needs) -> dict[str, Any]:
        settings, native = self._settings, needs.native
        pod: dict[str, Any] = {
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
            "containers": [self._container(needs)],
            "volumes": [{"name": "khomas", **settings.volume}],
        }
        for option, name in (("priority_class", "priorityClassName"), ("service_account", "serviceAccountName")):
            if option in native:
                pod[name] = str(native[option])
        if "node_selector" in native:
            pod["nodeSelector"] = {str(key): str(value) for key, value in native["node_selector"].items()}
        return pod

    def _container(self, needs: Needs) -> dict[str, Any]:
        settings = self._settings
        asked = {"cpu": f"{needs.cpu_milli}m"}
        limits = {}
        # The wrapper enforces the job's own limit, that of the container stands a little behind it.
        if needs.memory_bytes:
            asked["memory"] = limits["memory"] = str(needs.memory_bytes + _MARGIN_BYTES)
        if needs.disk_bytes:
            asked["ephemeral-storage"] = str(needs.disk_bytes)
        return {
            "name": "job",
            "image": str(needs.native.get("image", settings.image)),
            "command": ["/bin/sh", "@SCRIPT@"],
            "resources": {"requests": asked, "limits": limits},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "khomas", "mountPath": str(settings.mount or settings.spool)}],
        }

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a refusal from what may go well later."""
        said = " ".join(answer.stderr.split())
        if said.startswith(NOT_SENT) or "exceeded quota" in said:
            return Refusal(Submitted.THROTTLED, said, timedelta(seconds=30))
        return Refusal(Submitted.REJECTED, said.removeprefix(REFUSED))

    def element(self, native: str, index: int) -> str:
        """There are no arrays."""
        return native

    def whole(self, native_id: str) -> tuple[str, int]:
        """There are no arrays."""
        return native_id, 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """Our Jobs and their pods; the wrapper's record is on the volume."""
        ours = quote(f"{SPOOL}={self._group}")
        return [["GET", f"jobs?labelSelector={ours}"], ["GET", f"pods?labelSelector={ours}"]]

    def statuses(self, answers_: Sequence[Answer]) -> Mapping[str, Status]:
        """By name of the Job."""
        jobs, pods = (answers.items(one.text()) for one in answers_)
        return answers.statuses(jobs, pods)

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """There is none beside the exit record."""
        return []

    def accounts(self, answers_: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """There is none beside the exit record."""
        return {}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By label."""
        pieces = [batches[start : start + _IN_ADDRESS] for start in range(0, len(batches), _IN_ADDRESS)]
        selectors = [quote(f"{TOKEN} in ({','.join(some)})") for some in pieces]
        return [["GET", f"jobs?labelSelector={selector}"] for selector in selectors]

    def found(self, answers_: Sequence[Answer]) -> Mapping[str, str]:
        """Names of Jobs by the tokens that they carry."""
        jobs = [job for one in answers_ for job in answers.items(one.text())]
        return {job["metadata"]["labels"][TOKEN]: job["metadata"]["name"] for job in jobs}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Delete the Jobs: a pod gets SIGTERM, and its wrapper does the rest."""
        return [["DELETE", "jobs", *native_ids]]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Not offered, see `can_hold`."""
        return []

    def resources(self) -> list[list[str]]:
        """What the namespace may have, and what it has."""
        return [["GET", "resourcequotas"], ["GET", "pods"]]

    def queues(self, answers_: Sequence[Answer]) -> list[ComputeResource]:
        """The namespace."""
        quotas, pods = (answers.items(one.text()) for one in answers_)
        return [answers.namespace(quotas, pods)]


def open_kubernetes(settings: KubernetesSettings) -> SpooledBackend:
    """Open a namespace of a cluster."""
    api = KubernetesApi(settings.url, settings.token_file, settings.ca_file, settings.namespace)
    return SpooledBackend(RestHost(api), settings, KubernetesDialect(settings))


plugin = BackendPlugin(
    name="kubernetes",
    settings=KubernetesSettings,
    open=open_kubernetes,
    credential_options={"token": "token_file"},
)
