"""Kubernetes: the conformance suite and what is its own, on a stand-in or (`make test-kubernetes`) the real one."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from khomas.scheduler.backends.interface import Backend, Observation, Seen, State, Submitted
from khomas.scheduler.backends.kubernetes import KubernetesSettings, answers, open_kubernetes
from khomas.scheduler.backends.kubernetes.calls import KubernetesApi
from khomas.scheduler.backends.kubernetes.looks import CANCELLED, look
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell
from tests.testbeds import kubernetes, kubernetes_real
from tests.testbeds.kubernetes import NAMESPACE

Cluster = kubernetes.Cluster | kubernetes_real.Cluster


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> KubernetesSettings:
    return KubernetesSettings(
        spool=tmp_path / "spool",
        url=cluster.url,
        token_file=cluster.token_file,
        ca_file=cluster.ca_file,
        namespace=NAMESPACE,
        image="python:3.12-slim",
        volume={"persistentVolumeClaim": {"claimName": "khomas"}},
        command_seconds=90.0,  # the stand-in and its thousand pods share the cores with us
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


@pytest.mark.timeout(600)
class TestWithoutVolume(BackendConformance):
    """So it does where nothing but the API server is shared."""

    patience_s = 60.0
    patience_of_thousand_s = 400.0

    @pytest.fixture
    def settings(self, settings: KubernetesSettings) -> KubernetesSettings:
        return without_volume(settings)


class TestKubernetesAlone:
    """What only Kubernetes has."""

    async def test_job_asks_for_what_it_needs_and_no_more(self, backend: Backend, cluster: Cluster) -> None:
        needs = {"cpu_milli": 250, "memory_bytes": 1 << 30, "wall_time_s": 60}
        item = replace(job("sleep", "60", resources=needs), queue="night", native={"priority_class": "low"})
        [outcome] = await backend.submit([item])
        asked = cluster.job(outcome.native_id)
        pod = asked["spec"]["template"]["spec"]
        assert asked["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
        assert (pod["activeDeadlineSeconds"], asked["spec"]["backoffLimit"]) == (360, 0)
        wanted = {"cpu": "250m", "memory": str((1 << 30) + (64 << 20))}
        assert pod["containers"][0]["resources"] == {"requests": wanted, "limits": wanted}
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

    async def test_account_without_the_role_holds_submissions_back(self, settings: KubernetesSettings) -> None:
        backend = open_kubernetes(replace(settings, namespace="default"))
        [outcome] = await backend.submit([job("true")])
        assert (outcome.kind, "deploy/k8s/jobs" in outcome.message) == (Submitted.THROTTLED, True)
        await backend.aclose()

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

    async def test_job_that_no_node_takes_says_so(self, backend: Backend) -> None:
        [outcome] = await backend.submit([job("true", resources={"cpu_milli": 10**7})])
        deadline = time.monotonic() + 60
        while "Unschedulable" not in (seen := (await backend.poll([outcome.native_id])).observations[0]).native_state:
            assert time.monotonic() < deadline, f"still {seen}"
            await asyncio.sleep(0.2)
        assert (seen.state, "nodes are available" in seen.native_state) == (State.QUEUED, True)
        await backend.cancel([outcome.native_id], GRACE)

    async def test_token_that_is_not_accepted_holds_submissions_back(
        self, settings: KubernetesSettings, tmp_path: Path
    ) -> None:
        (tmp_path / "old").write_text("old")
        backend = open_kubernetes(replace(settings, token_file=tmp_path / "old"))
        [outcome] = await backend.submit([job("true")])
        assert (outcome.kind, "401" in outcome.message) == (Submitted.THROTTLED, True)
        await backend.aclose()


class TestWithoutVolumeAlone:
    """What only this way has."""

    @pytest.fixture
    def settings(self, settings: KubernetesSettings) -> KubernetesSettings:
        return without_volume(settings)

    async def test_record_longer_than_a_termination_message_comes_whole(self, backend: Backend, tmp_path: Path) -> None:
        item = shell("for i in $(seq 30); do echo $i > $i.txt; done", outputs=[{"glob": "*.txt", "sandbox": True}])
        [outcome] = await backend.submit([item])
        record = (await final(backend, outcome.native_id)).record
        assert record is not None
        assert len(record["outputs"]) == 30
        await backend.fetch_output(outcome.native_id, "sandbox/17.txt", str(tmp_path / "17"))
        assert (tmp_path / "17").read_text() == "17\n"
        assert (await backend.usage([outcome.native_id]))[outcome.native_id].wall_s > 0

    async def test_more_than_a_log_can_bring_out_fails_with_the_reason(self, backend: Backend) -> None:
        item = shell("head -c 6000000 /dev/zero > big", outputs=[{"glob": "big"}])
        [outcome] = await backend.submit([item])
        record = (await final(backend, outcome.native_id)).record
        assert record is not None
        assert (record["reason_name"], record["outputs"]) == ("DATA_STAGE_OUT", [])
        assert "6000000 bytes" in record["message"]

    async def test_logs_with_lines_like_ours_and_bytes_that_are_no_text_come_back(self, backend: Backend) -> None:
        item = shell(r"printf '#khomas stdout 7 3\nno end\377'; sleep 1; printf ' more\n'; echo other >&2")
        [outcome] = await backend.submit([item])
        await final(backend, outcome.native_id)
        seen = await backend.peek(outcome.native_id, "stdout", 0, 100)
        assert seen.data == b"#khomas stdout 7 3\nno end\377 more\n"
        assert (await backend.peek(outcome.native_id, "stderr", -4, 100)).data == b"her\n"

    async def test_manifests_go_with_the_last_job_of_their_batch(self, backend: Backend, cluster: Cluster) -> None:
        before = set(cluster.kept("secrets"))
        outcomes = await backend.submit([job("true"), job("true")])
        [made] = set(cluster.kept("secrets")) - before
        for outcome in outcomes:
            await final(backend, outcome.native_id)
        await backend.purge([outcomes[0].native_id])
        await asyncio.sleep(1)
        assert made in cluster.kept("secrets")
        await backend.purge([outcomes[1].native_id])
        deadline = time.monotonic() + 60
        while made in cluster.kept("secrets"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)

    async def test_manifest_is_in_no_job_and_of_each_pod_only_its_own(self, backend: Backend, cluster: Cluster) -> None:
        upload = {"url_prefix": "https://se/", "headers": {"Authorization": "Bearer grant"}}
        outcomes = await backend.submit([job("true", upload=upload), job("true")])
        asked = [cluster.job(outcome.native_id) for outcome in outcomes]
        assert "grant" not in str(asked)
        given = [
            volume["secret"]
            for one in asked
            for volume in one["spec"]["template"]["spec"]["volumes"]
            if "secret" in volume
        ]
        assert [[item["key"] for item in one["items"]] for one in given] == [[outcome.token] for outcome in outcomes]
        await backend.cancel([outcome.native_id for outcome in outcomes], GRACE)


class TestLists:
    """Many objects, and what a submission leaves that is killed."""

    async def test_lists_come_by_pages_also_when_the_cluster_loses_its_place(
        self, backend: Backend, cluster: Cluster
    ) -> None:
        outcomes = await backend.submit([job("true") for _ in range(5)])
        api = KubernetesApi(cluster.url, cluster.token_file, cluster.ca_file, NAMESPACE, page=2)
        for expired in (False, True):
            if isinstance(cluster, kubernetes.Cluster):
                cluster.expired = expired
            names = [one["metadata"]["name"] for one in (await api.listed("jobs")).items]
            assert {outcome.native_id for outcome in outcomes} <= set(names)
            assert len(names) == len(set(names))
        await api.aclose()

    async def test_manifests_of_a_killed_submission_are_given_to_their_jobs_or_deleted(
        self, settings: KubernetesSettings, tmp_path: Path
    ) -> None:
        with kubernetes.running(tmp_path) as own:
            backend = open_kubernetes(replace(without_volume(settings), url=own.url, token_file=own.token_file))
            outcomes = await backend.submit([job("true"), job("true")])
            with_job, without = own.kept("secrets")[0], "khomas-abandoned"
            for outcome in outcomes:
                await final(backend, outcome.native_id)
            own.age(with_job)
            own.age(without)
            await backend.purge([outcomes[0].native_id])
            assert own.kept("secrets") == (with_job,)
            await backend.purge([outcomes[1].native_id])
            assert own.kept("secrets") == ()
            await backend.aclose()


def without_volume(settings: KubernetesSettings) -> KubernetesSettings:
    return replace(settings, spool=Path(), volume={}, cancel_seconds=2.0)


async def final(backend: Backend, native_id: str) -> Observation:
    deadline = time.monotonic() + 60
    while not (seen := (await backend.poll([native_id])).observations[0]).state.final:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.1)
    return seen


def test_end_by_the_cluster_is_not_the_users() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}
    job_ = {"metadata": {"name": "khomas-a"}, "status": {"conditions": [failed]}}
    ended = {"state": {"terminated": {"exitCode": 1}}}
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory", "containerStatuses": [ended]}
    pod = {"metadata": {"name": "p"}, "status": evicted}
    seen = look("khomas-a", "a", job_, pod, {"state": "CANCELLED", "token": "a"})
    assert seen.record is not None
    assert (seen.state, seen.record["reason_name"]) == (State.FAILED, "INFRA_ENVIRONMENT")
    assert "low on memory" in seen.record["message"]


def test_job_whose_pod_is_gone_failed_for_the_place() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    seen = look("khomas-a", "a", {"metadata": {"name": "khomas-a"}, "status": {"conditions": [failed]}}, None, None)
    assert seen.record is not None
    assert (seen.state, seen.record["reason_name"]) == (State.FAILED, "INFRA_ENVIRONMENT")


def test_cancelled_job_that_its_queue_holds_back_is_cancelled() -> None:
    waits = {"metadata": {"name": "khomas-a"}, "spec": {"suspend": True}}
    assert look("khomas-a", "a", waits, None, None).native_state.startswith("Suspended")
    waits["metadata"] = {"name": "khomas-a", "annotations": {CANCELLED: "[0, 1]"}}
    assert look("khomas-a", "a", waits, None, None).state is State.CANCELLED


def test_image_without_python_says_so() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    job_ = {"metadata": {"name": "khomas-a"}, "status": {"conditions": [failed]}}
    why = 'exec: "python3": executable file not found in $PATH'
    ended = {"state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": why}}}
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Failed", "containerStatuses": [ended]}}
    seen = look("khomas-a", "a", job_, pod, None)
    assert seen.record is not None
    assert (seen.record["reason_name"], why in seen.record["message"]) == ("INFRA_ENVIRONMENT", True)


def test_ends_that_the_cluster_brought_about_are_translated() -> None:
    def ended(reason: str, container: str) -> str:
        failed = {"type": "Failed", "status": "True", "reason": reason, "message": "said"}
        pod = {
            "metadata": {"labels": {"job-name": "a"}},
            "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": container}}}]},
        }
        status = {"metadata": {"name": "a"}, "status": {"conditions": [failed]}}
        return answers.statuses([status], [pod])["a"].reason

    assert ended("BackoffLimitExceeded", "OOMKilled") == "LIMIT_MEMORY"
    assert ended("DeadlineExceeded", "Error") == "LIMIT_WALL"
    assert ended("BackoffLimitExceeded", "Error") == ""


def test_quantities_are_read() -> None:
    assert [answers.quantity(text) for text in ("250m", "2", "1.5Gi", "1k")] == [0.25, 2, 1.5 * 2**30, 1000]
