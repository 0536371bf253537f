"""Kubernetes: the conformance suite against a stand-in whose pods are processes, and what is its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from khomas.scheduler.backends import kubernetes_answers
from khomas.scheduler.backends.interface import Backend, Observation, Seen, State, Submitted
from khomas.scheduler.backends.kubernetes import KubernetesSettings, open_kubernetes
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job
from tests.testbeds import kubernetes
from tests.testbeds.kubernetes import NAMESPACE, Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests; whoever stops it starts it again."""
    with kubernetes.running(tmp_path_factory.mktemp("kubernetes")) as running:
        yield running


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> KubernetesSettings:
    return KubernetesSettings(
        spool=tmp_path / "spool",
        url=cluster.url,
        token_file=cluster.token_file,
        namespace=NAMESPACE,
        image="python:3.12-slim",
        volume={"persistentVolumeClaim": {"claimName": "khomas"}},
        poll_seconds=0.2,
        settle_seconds=1.0,
    )


@pytest.fixture
async def open_backend(settings: KubernetesSettings) -> AsyncIterator[OpenBackend]:
    opened: list[Backend] = []

    def open_one() -> Backend:
        opened.append(open_kubernetes(settings))
        return opened[-1]

    yield open_one
    for backend in opened:
        await backend.aclose()


@pytest.fixture
async def backend(open_backend: OpenBackend) -> AsyncIterator[Backend]:
    backend = open_backend()
    yield backend
    await backend.aclose()


@pytest.mark.timeout(600)
class TestKubernetes(BackendConformance):
    """Kubernetes keeps the contract."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0


class TestKubernetesAlone:
    """What only Kubernetes has."""

    async def test_job_asks_for_what_it_needs_and_no_more(self, backend: Backend, cluster: Cluster) -> None:
        needs = {"cpu_milli": 250, "memory_bytes": 1 << 30, "wall_time_s": 60}
        item = replace(job("sleep", "60", resources=needs), queue="night", native={"priority_class": "low"})
        [outcome] = await backend.submit([item])
        asked = cluster.jobs[outcome.native_id]
        pod = asked["spec"]["template"]["spec"]
        assert asked["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
        assert (asked["spec"]["activeDeadlineSeconds"], asked["spec"]["backoffLimit"]) == (360, 0)
        assert pod["containers"][0]["resources"] == {
            "requests": {"cpu": "250m", "memory": str((1 << 30) + (64 << 20))},
            "limits": {"memory": str((1 << 30) + (64 << 20))},
        }
        assert (pod["priorityClassName"], pod["automountServiceAccountToken"]) == ("low", False)
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        await backend.cancel([outcome.native_id], GRACE)

    async def test_wrong_image_is_an_environment_failure(self, backend: Backend) -> None:
        [outcome] = await backend.submit([replace(job("true"), native={"image": "No Such"})])
        await backend.poll([outcome.native_id])
        seen = await final(backend, outcome.native_id)
        assert seen.record is not None
        assert (seen.state, seen.record["reason_name"]) == (State.FAILED, "INFRA_ENVIRONMENT")
        assert "No Such" in seen.record["message"]

    async def test_queue_that_is_no_label_is_refused_and_leaves_nothing(self, backend: Backend) -> None:
        item = replace(job("true"), queue="no label")
        [outcome] = await backend.submit([item])
        assert (outcome.kind, "invalid" in outcome.message) == (Submitted.REJECTED, True)
        assert await backend.find([item.token]) == {}

    async def test_cluster_that_is_away_says_nothing_of_its_jobs(self, backend: Backend, cluster: Cluster) -> None:
        [outcome] = await backend.submit([job("sleep", "60")])
        cluster.stop()
        try:
            answer = await backend.poll([outcome.native_id])
            assert ([one.seen for one in answer.observations], answer.complete) == ([Seen.NOT_ANSWERED], False)
            assert [one.kind for one in await backend.submit([job("true")])] == [Submitted.THROTTLED]
        finally:
            cluster.start()
        assert (await backend.poll([outcome.native_id])).observations[0].state is State.RUNNING
        await backend.cancel([outcome.native_id], GRACE)

    async def test_token_that_is_not_accepted_holds_submissions_back(
        self, settings: KubernetesSettings, tmp_path: Path
    ) -> None:
        (tmp_path / "old").write_text("old")
        backend = open_kubernetes(replace(settings, token_file=tmp_path / "old"))
        [outcome] = await backend.submit([job("true")])
        assert (outcome.kind, "401" in outcome.message) == (Submitted.THROTTLED, True)
        await backend.aclose()


async def final(backend: Backend, native_id: str) -> Observation:
    deadline = time.monotonic() + 60
    while not (seen := (await backend.poll([native_id])).observations[0]).state.final:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.1)
    return seen


def test_ends_that_the_cluster_brought_about_are_translated() -> None:
    def ended(reason: str, container: str) -> str:
        failed = {"type": "Failed", "status": "True", "reason": reason, "message": "said"}
        pod = {
            "metadata": {"labels": {"job-name": "a"}},
            "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": container}}}]},
        }
        status = {"metadata": {"name": "a"}, "status": {"conditions": [failed]}}
        return kubernetes_answers.statuses([status], [pod])["a"].reason

    assert ended("BackoffLimitExceeded", "OOMKilled") == "LIMIT_MEMORY"
    assert ended("DeadlineExceeded", "Error") == "LIMIT_WALL"
    assert ended("BackoffLimitExceeded", "Error") == ""


def test_quantities_are_read() -> None:
    assert [kubernetes_answers.quantity(text) for text in ("250m", "2", "1.5Gi", "1k")] == [0.25, 2, 1.5 * 2**30, 1000]
