"""Jobs whose folders are on a volume that the pods and the service share."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256

from khomas.scheduler.backends.interface import ComputeResource, Submitted, Usage
from khomas.scheduler.backends.kubernetes import answers, pods
from khomas.scheduler.backends.kubernetes.calls import NOT_SENT, REFUSED, in_calls
from khomas.scheduler.backends.kubernetes.settings import KubernetesSettings
from khomas.scheduler.backends.spool.dialect import Answer, Needs, Refusal, Status, Submission

# Labels of our objects.
SPOOL, TOKEN = "khomas.io/spool", "khomas.io/token"


class KubernetesDialect:
    """Calls of the API server in place of commands: see `KubernetesApi.command`."""

    kind = "kubernetes"
    native_options = pods.OPTIONS
    # To suspend a Job ends its pod.
    can_hold = False
    by_process = False
    avoids_nodes = False

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self.margin_seconds = settings.margin_seconds
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

    def _job(self, needs: Needs) -> Mapping[str, object]:
        settings = self._settings
        container = {
            "command": ["/bin/sh", "@SCRIPT@"],
            "volumeMounts": [{"name": "khomas", "mountPath": str(settings.mount or settings.spool)}],
            "volumes": [{"name": "khomas", **settings.volume}],
        }
        return pods.job(settings, needs, "khomas-@BATCH@", {SPOOL: self._group, TOKEN: "@BATCH@"}, container)

    def refusal(self, answer: Answer) -> Refusal:
        """Tell a refusal from what may go well later."""
        said = " ".join(answer.stderr.split())
        return refusal(said) or Refusal(Submitted.REJECTED, said)

    def element(self, native: str, index: int) -> str:
        """There are no arrays."""
        return native

    def whole(self, native_id: str) -> tuple[str, int]:
        """There are no arrays."""
        return native_id, 0

    def status(self, natives: Sequence[str]) -> list[list[str]]:
        """Our Jobs and their pods; the wrapper's record is on the volume."""
        ours = f"{SPOOL}={self._group}"
        return [["GET", "jobs", ours], ["GET", "pods", ours]]

    def statuses(self, answers_: Sequence[Answer]) -> Mapping[str, Status]:
        """By name of the Job."""
        jobs, made = (answers.items(one.text()) for one in answers_)
        return answers.statuses(jobs, made)

    def accounting(self, native_ids: Sequence[str]) -> list[list[str]]:
        """There is none beside the exit record."""
        return []

    def accounts(self, answers_: Sequence[Answer]) -> Mapping[str, tuple[Status, Usage]]:
        """There is none beside the exit record."""
        return {}

    def search(self, batches: Sequence[str]) -> list[list[str]]:
        """By label."""
        return [["GET", "jobs", f"{TOKEN} in ({','.join(some)})"] for some in in_calls(batches)]

    def found(self, answers_: Sequence[Answer]) -> Mapping[str, str]:
        """Names of Jobs by the tokens that they carry."""
        jobs = [job for one in answers_ for job in answers.items(one.text())]
        return {job["metadata"]["labels"][TOKEN]: job["metadata"]["name"] for job in jobs}

    def cancel(self, native_ids: Sequence[str], *, running: bool) -> list[list[str]]:
        """Delete the Jobs, then their pods, which the cluster would do later: SIGTERM, the wrapper does the rest."""
        return [["DELETE", kind, *some] for kind in ("jobs", "pods") for some in in_calls(native_ids)]

    def hold(self, native_ids: Sequence[str], on: bool) -> list[list[str]]:
        """Not offered, see `can_hold`."""
        return []

    def resources(self) -> list[list[str]]:
        """What the namespace may have, what it has, and the nodes, which we may not be told of."""
        return [["GET", "resourcequotas"], ["GET", "pods"], ["GET", "nodes"]]

    def queues(self, answers_: Sequence[Answer]) -> list[ComputeResource]:
        """The namespace."""
        quotas, running = (answers.items(one.text()) for one in answers_[:2])
        nodes = answers.items(answers_[2].text()) if answers_[2].exit_code == 0 else []
        return [answers.namespace(quotas, running, nodes)]


def refusal(said: str) -> Refusal | None:
    """Tell a refusal from what may go well later; None when it may have been taken."""
    if said.startswith(NOT_SENT) or "exceeded quota" in said:
        return Refusal(Submitted.THROTTLED, said.removeprefix(REFUSED), timedelta(seconds=30))
    return Refusal(Submitted.REJECTED, said.removeprefix(REFUSED)) if said.startswith(REFUSED) else None
