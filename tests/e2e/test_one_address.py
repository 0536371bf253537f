"""Services in processes of their own behind one address: nginx with the configuration that is shipped."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from khomas.client import AsyncClient
from khomas.client.errors import KhomasError
from khomas.client.pairs import Pair
from khomas.kit.auth.issuer import DevelopmentIssuer
from tests.e2e.apart import Apart
from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, free_ports, until

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "deploy/nginx/khomas.conf").read_text()
AREAS = ("catalog", "storage")
AROUND = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""


@pytest.fixture(scope="module")
def khomas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    khomas = Apart(tmp_path_factory.mktemp("apart"), AREAS)
    khomas.start()
    yield khomas
    khomas.stop()


@pytest.fixture(scope="module")
def address(khomas: Apart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start nginx on loopback, where nobody speaks TLS."""
    install.debian(*packages.NGINX)
    folder = tmp_path_factory.mktemp("nginx")
    (port,) = free_ports(1)
    server = SHIPPED.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{port} http2;")
    server = re.sub(r"^ *(?:ssl_|grpc_ssl_).*\n", "", server, flags=re.MULTILINE)
    # Port 9 is where the others are not.
    server = re.sub(
        r"grpcs://(\w+)-server:7443", lambda found: f"grpc://127.0.0.1:{khomas.ports.get(found[1], 9)}", server
    )
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, server=server))
    nginx = ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "start.log")]
    with Processes(folder) as processes:
        processes.start(nginx, name="nginx")
        until((folder / "nginx.pid").exists, 60, "nginx", processes)
        yield f"127.0.0.1:{port}"


def token(khomas: Apart) -> str:
    return DevelopmentIssuer.open(khomas.folder / "state", "local").token("alice")


async def test_one_endpoint_leads_to_every_service(khomas: Apart, address: str, tmp_path: Path) -> None:
    (tmp_path / "run.fits").write_bytes(b"events")
    async with AsyncClient(address, token(khomas)) as client:
        await client.files.put([Pair(tmp_path / "run.fits", "/local/run.fits")])
        (file,) = await client.files.stat(["/local/run.fits"])
        elements = await client.storage.elements()
    assert file.size_bytes == len(b"events")
    assert [one.name for one in elements] == ["storageElements/local"]


async def test_many_calls_go_through(khomas: Apart, address: str) -> None:
    async with AsyncClient(address, token(khomas)) as client:
        for _ in range(1500):
            await client.storage.elements()


async def test_service_that_is_away_is_told_as_such(khomas: Apart, address: str) -> None:
    async with AsyncClient(address, token(khomas)) as client:
        with pytest.raises(KhomasError) as away:
            await client.jobs.get("0190")
    assert away.value.exit_code == 6


def test_command_needs_one_endpoint(khomas: Apart, address: str) -> None:
    words = [str(Path(sys.executable).parent / "khomas"), "--endpoint", address, "se", "ls", "--json"]
    environment = {"BEARER_TOKEN": token(khomas)}
    shown = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (shown.returncode, '"local"' in shown.stdout) == (0, True), shown.stderr


def test_every_service_of_the_contract_has_its_way() -> None:
    sources = [path.read_text() for path in (ROOT / "proto/khomas/api").glob("*/v1/*.proto")]
    services = {
        f"/{package[1]}.{name}"
        for text in sources
        if (package := re.search(r"^package ([\w.]+);", text, re.MULTILINE))
        for name in re.findall(r"^service (\w+) ", text, re.MULTILINE)
    }
    prefixes = tuple(re.findall(r"location (\S+) ", SHIPPED))
    ingress = yaml.safe_load((ROOT / "deploy/k8s/gateway/ingress.yaml").read_text())
    paths = {one["path"]: one["backend"]["service"]["name"] for one in ingress["spec"]["rules"][0]["http"]["paths"]}
    assert all(service.startswith(prefixes) for service in services)
    assert paths == {service: f"{service.split('.')[2]}-server" for service in services}
