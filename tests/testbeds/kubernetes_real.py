"""A real API server with etcd and the controllers of Jobs; its one node is a stand-in whose pods are processes."""

import asyncio
import contextlib
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.testbeds import kubernetes_build
from tests.testbeds.background import Background
from tests.testbeds.kubernetes_node import NAME, Node, decoded, log_piece
from tests.testbeds.processes import Processes, end, free_ports, until

NAMESPACE = "khomas"
# Who the backend is, and what it may do: as in the manifests.
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:khomas-jobs"
_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0
_CORES = 4
_CONTROLLERS = "job,namespace,garbagecollector,ttl-after-finished,podgc,resourcequota,serviceaccount"
_AREAS = {
    "Namespace": "api/v1/namespaces",
    "ServiceAccount": "api/v1/namespaces/{namespace}/serviceaccounts",
    "Service": "api/v1/namespaces/{namespace}/services",
    "ConfigMap": "api/v1/namespaces/{namespace}/configmaps",
    "Node": "api/v1/nodes",
    "ResourceQuota": "api/v1/namespaces/{namespace}/resourcequotas",
    "Deployment": "apis/apps/v1/namespaces/{namespace}/deployments",
    "Job": "apis/batch/v1/namespaces/{namespace}/jobs",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "PodDisruptionBudget": "apis/policy/v1beta1/namespaces/{namespace}/poddisruptionbudgets",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
Object = dict[str, Any]


class RefusedError(ValueError):
    """What the API server did not take."""


@dataclass(slots=True)
class Cluster:
    """One namespace and one node."""

    folder: Path
    processes: Processes
    port: int
    etcd_port: int
    _server: "subprocess.Popen[bytes] | None" = None
    _background: Background = field(default_factory=Background)

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The token of the service account."""
        return self.folder / "token"

    @property
    def ca_file(self) -> Path:
        """Who signed the certificate of the API server: itself."""
        return self.folder / "certificates/apiserver.crt"

    def start(self) -> None:
        """Start the API server and wait until it answers."""
        folder = self.folder
        argv = [
            str(kubernetes_build.programs() / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--insecure-port=0",
            f"--cert-dir={folder}/certificates",
            "--authorization-mode=RBAC",
            f"--token-auth-file={folder}/tokens.csv",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/accounts.key",
            f"--service-account-signing-key-file={folder}/accounts.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--feature-gates=TTLAfterFinished=true",
        ]
        self._server = self.processes.start(argv, name="kube-apiserver")
        until(lambda: self.ask("GET", "readyz") is not None, _START_SECONDS, "the API server", self.processes)

    def stop(self) -> None:
        """Stop the API server; pods go on."""
        if self._server is not None:
            end(self._server)

    def ask(self, method: str, path: str, body: Object | None = None, who: str = "admin") -> Any:
        """Make a call, as administrator if nothing else is said."""
        headers = {"Authorization": f"Bearer {who}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers=headers, method=method)  # noqa: S310
        context = ssl.create_default_context(cafile=self.ca_file)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{method} {path}: {error.code} {error.read().decode()[:1000]}") from error
        return json.loads(text) if text.startswith("{") else text

    def create(self, item: Object, *, dry: bool = False) -> None:
        """Create an object."""
        namespace = item["metadata"].get("namespace", NAMESPACE)
        path = _AREAS[item["kind"]].format(namespace=namespace)
        self.ask("POST", f"{path}?dryRun=All" if dry else path, _older(item))

    def until_quota(self, namespace: str, name: str) -> None:
        """Wait until the cluster counts what a quota limits."""
        path = f"{_AREAS['ResourceQuota'].format(namespace=namespace)}/{name}"
        until(lambda: self.ask("GET", path)["status"].get("hard"), _START_SECONDS, "the quota", self.processes)

    def job(self, name: str) -> Object:
        """A Job as the API server has it."""
        job: Object = self.ask("GET", f"apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}")
        return job

    def kept(self, kind: str) -> Sequence[str]:
        """Names of the objects of a kind."""
        items = self.ask("GET", f"api/v1/namespaces/{NAMESPACE}/{kind}")["items"]
        return tuple(item["metadata"]["name"] for item in items)


def _older(item: Any) -> Any:
    """The same in the words of this version, which has no probes by gRPC and a younger budget."""
    if isinstance(item, list):
        return [_older(one) for one in item]
    if not isinstance(item, dict):
        return item
    if item.get("kind") == "PodDisruptionBudget":
        return {**item, "apiVersion": "policy/v1beta1"}
    changed = {key: _older(value) for key, value in item.items()}
    probe = changed.pop("grpc", None)
    return {**changed, "tcpSocket": {"port": probe["port"]}} if probe is not None else changed


def rendered(folder: Path) -> Sequence[Object]:
    """What a Kustomize folder makes."""
    made = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, timeout=60)
    return [item for item in yaml.safe_load_all(made.stdout) if item]


@contextmanager
def running(folder: Path, cores: int = _CORES) -> Iterator[Cluster]:
    """Build what is not there yet, start it, end it with its pods."""
    programs = kubernetes_build.programs()
    port, etcd, peer, scheduler = free_ports(4)
    _write_files(folder, port)
    with Processes(folder / "logs") as processes:
        processes.start(_etcd(folder, etcd, peer), name="etcd")
        cluster = Cluster(folder, processes, port, etcd)
        cluster.start()
        controllers = [
            str(programs / "kube-controller-manager"),
            f"--kubeconfig={folder}/admin.yaml",
            f"--controllers={_CONTROLLERS}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--port=0",
            f"--secure-port={scheduler}",
            f"--cert-dir={folder}/controllers",
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
            "--feature-gates=TTLAfterFinished=true",
        ]
        processes.start(controllers, name="kube-controller-manager")
        cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for item in rendered(_ROOT / "deploy/k8s/jobs"):
            cluster.create(item)
        with cluster._background.living("node"), _node(cluster, cores):
            yield cluster


def _etcd(folder: Path, port: int, peer: int) -> list[str]:
    us, others = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return [
        "etcd",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={us}",
        f"--advertise-client-urls={us}",
        f"--listen-peer-urls={others}",
        f"--initial-advertise-peer-urls={others}",
        f"--initial-cluster=default={others}",
        "--unsafe-no-fsync",
    ]


def _write_files(folder: Path, port: int) -> None:
    (folder / "token").write_text("jobs\n")
    (folder / "tokens.csv").write_text(f'admin,admin,1,"system:masters"\njobs,{ACCOUNT},2\n')
    key = ["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"]
    subprocess.run(key, check=True, capture_output=True, timeout=60)
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=node", "-days", "2"]
    certificate += ["-keyout", str(folder / "node.key"), "-out", str(folder / "node.crt")]
    subprocess.run(certificate, check=True, capture_output=True, timeout=60)
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": f"{folder}/certificates/apiserver.crt"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": "admin"}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "admin"}}],
        "current-context": "bed",
    }
    (folder / "admin.yaml").write_text(yaml.safe_dump(document))


# ---------------------------------------------------------------------------------------------- the node


@contextmanager
def _node(cluster: Cluster, cores: int) -> Iterator[None]:
    """One node: it watches pods, runs them, and answers for their logs."""
    [port] = free_ports(1)
    cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}})
    room = {"cpu": str(cores), "memory": "64Gi", "pods": "1000"}
    status = {
        "capacity": room,
        "allocatable": room,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux"},
    }
    item = cluster.ask("GET", f"api/v1/nodes/{NAME}")
    cluster.ask("PUT", f"api/v1/nodes/{NAME}/status", {**item, "status": status})
    kubelet = _Kubelet(cluster, cores)
    cluster._background.do(kubelet.start(port))
    try:
        yield
    finally:
        cluster._background.do(kubelet.stop())


class _Kubelet:
    """Speaks for the node with the API server."""

    def __init__(self, cluster: Cluster, cores: int) -> None:
        self._cluster = cluster
        self._node = Node(cluster.folder / "node", self, 1000 * cores)
        self._uids: dict[tuple[str, str], str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Watch pods, and answer for logs."""
        context = ssl.create_default_context(cafile=self._cluster.ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=32),
            headers={"Authorization": "Bearer admin"},
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", self._log)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(self._cluster.folder / "node.crt", self._cluster.folder / "node.key")
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=serving).start()
        self._watch = asyncio.create_task(self._watching())

    async def stop(self) -> None:
        """End all pods and connections."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._node.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()
        # TLS takes a moment to say goodbye.
        await asyncio.sleep(0.3)

    async def _watching(self) -> None:
        """List, then follow the changes; again from the start when the API server was away."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, ValueError, KeyError, RefusedError):
                _, listed = await self._call("GET", "api/v1/pods")
                for item in listed["items"]:
                    self._see(item)
                await self._follow(listed["metadata"]["resourceVersion"])
            await asyncio.sleep(0.3)

    async def _follow(self, version: str) -> None:
        async with self._get(f"api/v1/pods?watch=1&resourceVersion={version}") as answer:
            rest = b""
            async for piece in answer.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "DELETED":
                        self._node.forget(event["object"])
                    elif event["type"] == "ERROR":
                        return
                    else:
                        self._see(event["object"])

    def _see(self, item: Object) -> None:
        metadata = item["metadata"]
        self._uids[metadata["namespace"], metadata["name"]] = metadata["uid"]
        self._node.see(item)

    @asynccontextmanager
    async def _get(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        async with self._session.get(f"{self._cluster.url}/{path}") as answer:
            yield answer

    async def _call(self, method: str, path: str, body: Object | None = None, kind: str = "json") -> tuple[int, Any]:
        """Make a call; one that finds no API server is made again until it does."""
        assert self._session is not None
        headers = {"Content-Type": f"application/{kind}"}
        data = json.dumps(body) if body is not None else None
        while True:
            try:
                url = f"{self._cluster.url}/{path}"
                async with self._session.request(method, url, data=data, headers=headers) as answer:
                    return answer.status, await answer.json(content_type=None)
            except aiohttp.ClientError:
                await asyncio.sleep(0.3)

    # What a node tells: see `kubernetes_node.Cluster`.

    async def bind(self, pod: Object) -> None:
        """Be the scheduler."""
        target = {"apiVersion": "v1", "kind": "Node", "name": NAME}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": _named(pod), "target": target}
        await self._call("POST", f"{_path(pod)}/binding", binding)

    async def report(self, pod: Object, status: Object) -> None:
        """Write the status of a pod that is still there."""
        await self._call("PATCH", f"{_path(pod)}/status", {"status": status}, "merge-patch+json")

    async def gone(self, pod: Object) -> None:
        """Let go of a pod."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._call("DELETE", _path(pod), {"apiVersion": "v1", "kind": "DeleteOptions", **options})

    async def content(self, namespace: str, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The entries of a ConfigMap or Secret."""
        status, item = await self._call("GET", f"api/v1/namespaces/{namespace}/{kind.lower()}s/{name}")
        if status != 200:
            return None
        if kind == "secret":
            return decoded(item.get("data"))
        return {key: text.encode() for key, text in item.get("data", {}).items()}

    async def _log(self, request: web.Request) -> web.Response:
        uid = self._uids.get((request.match_info["namespace"], request.match_info["pod"]), "")
        return web.Response(body=log_piece(self._node.log(uid), request.query), content_type="text/plain")


def _path(pod: Object) -> str:
    return f"api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _named(pod: Object) -> Object:
    return {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"]}
