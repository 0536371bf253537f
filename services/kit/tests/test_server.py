"""Health, reflection, limits, TLS and the drain of the server."""

import asyncio
import datetime
import ipaddress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from khomas.kit.auth.verifier import Verifier
from khomas.kit.boundary.boundary import Boundary
from khomas.kit.boundary.status import reason_of, received_status
from khomas.kit.config import AuthSettings, ConfigError, ServerSettings, TlsSettings
from khomas.kit.embedded import SETTINGS
from khomas.kit.server import Server
from khomas.kit.telemetry.recorder import PlainRecorder
from khomas.kit.testing import serve
from khomas.kit.testing.echo import SERVICE, Reply, Request, add_echo, echo_service, method


def bare_server(settings: ServerSettings) -> Server:
    return Server(settings, Boundary(Verifier([], AuthSettings()), PlainRecorder(), 10, 10))


def _certificate(folder: Path) -> TlsSettings:
    """Make a certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "khomas test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    tls = TlsSettings(certificate=folder / "cert.pem", key=folder / "key.pem")
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    tls.key.write_bytes(private)
    return tls


@pytest.mark.parametrize("name", ["", "readiness", SERVICE])
async def test_health_is_serving_without_a_token(name: str) -> None:
    async with serve(echo_service()) as served:
        health = health_pb2_grpc.HealthStub(served.bare_channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services() -> None:
    async with serve(echo_service()) as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.bare_channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [found.name async for answer in call for found in answer.list_services_response.service]
    assert SERVICE in names


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:0"])
async def test_plaintext_is_refused_beyond_loopback(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.tls"):
        bare_server(ServerSettings(listen=listen)).bind()


async def test_call_over_the_limit_is_told_to_come_back() -> None:
    busy, release = asyncio.Semaphore(0), asyncio.Event()

    async def answer(_: Request) -> Reply:
        busy.release()
        await release.wait()
        return Reply()

    async with serve(echo_service(answer), server=SETTINGS.model_copy(update={"max_calls": 2})) as served:
        echo = method(served.channel, "Echo")
        held = [asyncio.ensure_future(echo(Request())) for _ in range(2)]
        await busy.acquire()
        await busy.acquire()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(Request())
        release.set()
        await asyncio.gather(*held)
        await echo(Request())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "OVERLOADED"
    status, retry = received_status(caught.value), error_details_pb2.RetryInfo()
    assert status is not None
    assert status.details[1].Unpack(retry)


async def test_tls_port_serves_those_who_trust_its_certificate(tmp_path: Path) -> None:
    tls = _certificate(tmp_path)
    server = bare_server(ServerSettings(listen="127.0.0.1:0", tls=tls))
    port = server.bind()
    await server.start()
    try:
        credentials = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await server.stop(0)


async def test_client_without_certificate_is_refused_where_one_is_wanted(tmp_path: Path) -> None:
    tls = _certificate(tmp_path)
    wanting = tls.model_copy(update={"client_ca": tls.certificate})
    server = bare_server(ServerSettings(listen="127.0.0.1:0", tls=wanting))
    port = server.bind()
    await server.start()
    ca = tls.certificate.read_bytes()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca)) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        own = grpc.ssl_channel_credentials(ca, tls.key.read_bytes(), ca)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", own) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    finally:
        await server.stop(0)


async def test_drain_says_not_serving_and_finishes_calls() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def answer(_: Request) -> Reply:
        started.set()
        await release.wait()
        return Reply(cursor="done")

    server = bare_server(SETTINGS.model_copy(update={"drain_pause": datetime.timedelta(seconds=0.3)}))
    add_echo(server, answer)
    port = server.bind()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = asyncio.ensure_future(method(channel, "Open")(Request()))
        await started.wait()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        asyncio.get_running_loop().call_later(0.5, release.set)
        draining = asyncio.create_task(server.drain())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await call).cursor == "done"
        await draining


async def test_drain_does_not_wait_for_watchers() -> None:
    async with serve(echo_service()) as served:
        watch = method(served.bare_channel, "Repeat")(
            Request(cursor="a"), metadata=[("authorization", f"Bearer {served.token()}")]
        )
        assert (await watch.read()).cursor == "a"
        server_gone = asyncio.get_running_loop().time()
        task = asyncio.create_task(watch.read())
    # the block has ended although the stream was open
    assert asyncio.get_running_loop().time() - server_gone < 3
    await asyncio.wait([task])


async def test_probes_have_a_port_with_health_and_nothing_else() -> None:
    server = bare_server(ServerSettings(listen="127.0.0.1:0", health_listen="127.0.0.1:0"))
    add_echo(server)
    server.bind()
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as probes:
            asked = health_pb2.HealthCheckRequest(service="readiness")
            answer = await health_pb2_grpc.HealthStub(probes).Check(asked, timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(probes, "Open")(Request(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)
