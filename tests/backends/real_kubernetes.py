"""What only a real API server can judge; `make test-kubernetes` runs it, the default run does not have one."""

from pathlib import Path

import pytest

from khomas.scheduler.backends.interface import Submitted
from khomas.scheduler.backends.kubernetes import KubernetesSettings, open_kubernetes
from khomas.scheduler.conformance import job
from tests.testbeds.kubernetes_real import NAMESPACE, Cluster, RefusedError, rendered

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "deploy/k8s").glob("**/kustomization.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_manifests_are_accepted(cluster: Cluster, folder: Path) -> None:
    items = rendered(folder)
    assert items
    for item in items:
        item["metadata"]["name"] = f"dry-{item['metadata']['name']}"
        if item["kind"] != "Namespace":
            item["metadata"]["namespace"] = NAMESPACE
        cluster.create(item, dry=True)


def test_account_may_do_nothing_else(cluster: Cluster) -> None:
    item = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "mine"}, "spec": {"hard": {"pods": "9"}}}
    with pytest.raises(RefusedError, match="403"):
        cluster.ask("POST", f"api/v1/namespaces/{NAMESPACE}/resourcequotas", item, who="jobs")
    with pytest.raises(RefusedError, match="403"):
        cluster.ask("GET", "api/v1/namespaces/default/secrets", who="jobs")
    with pytest.raises(RefusedError, match="403"):
        cluster.ask("GET", f"api/v1/namespaces/{NAMESPACE}/serviceaccounts", who="jobs")


async def test_jobs_beyond_the_quota_wait(cluster: Cluster) -> None:
    name = "narrow"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for item in rendered(ROOT / "deploy/k8s/jobs"):
        if item["kind"] in ("Role", "RoleBinding"):
            item["metadata"]["namespace"] = name
            cluster.create(item)
    hard = {"count/jobs.batch": "2"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": name}}
    cluster.create({**quota, "spec": {"hard": hard}})
    cluster.until_quota(name, "few")
    backend = open_kubernetes(
        KubernetesSettings(
            url=cluster.url, token_file=cluster.token_file, ca_file=cluster.ca_file, namespace=name, image="python:3"
        )
    )
    outcomes = [(await backend.submit([job("true")]))[0] for _ in range(3)]
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds == [Submitted.ACCEPTED, Submitted.ACCEPTED, Submitted.THROTTLED]
    assert "exceeded quota" in outcomes[2].message
    await backend.aclose()
