"""Files moved by FTS3, against a stand-in: what it is asked, what its answers mean, and that nobody believes them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.credentials import CredentialProvider
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.config import StorageSettings
from khomas.storage.executors.fts3.answers import PHASES, job, standings
from khomas.storage.executors.fts3.executor import Fts3, FtsOptions
from khomas.storage.executors.fts3.testing import Fts, running
from khomas.storage.executors.interface import ExecutorFault, Order, Phase
from khomas.storage.executors.opening import ExecutorMisconfigured, open_all, routes_of
from khomas.storage.executors.outside import reason_of
from khomas.storage.landing import Wanted
from khomas.storage.protocols.interface import Access, Plugin, Remote, StorageProtocol
from khomas.storage.protocols.posix import plugin as posix
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, until

Transfer = transfer_pb2.Transfer
FINAL = (Transfer.STATE_SUCCEEDED, Transfer.STATE_FAILED, Transfer.STATE_CANCELLED)


@dataclass(frozen=True, eq=False)
class Shared:
    """A disk that another engine reaches by the paths of its files."""

    disk: StorageProtocol
    family: str = "shared"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.disk, name)

    @property
    def third_party(self) -> "Shared":
        return self

    async def remote(self, path: str, *, write: bool) -> Remote:
        return Remote(f"file://{self.disk.local_path(path)}")


def opened(access: Access) -> StorageProtocol:
    return cast(StorageProtocol, cast(Any, Shared(posix.open(access))))  # the rest is delegated


@pytest.fixture
async def fts() -> AsyncIterator[Fts]:
    async with running() as server:
        yield server


@pytest.fixture
def settings(fts: Fts) -> dict[str, Any]:
    return {
        "executors": {"fts": {"plugin": "fts3", "address": fts.address}},
        "executor_routes": [{"executor": "fts", "destination": "far"}],
        "executor_poll": 0.05,
        "lease": 1,
    }


Place = Callable[[str], Awaitable[Path]]


def placing(storage: Storage, folder: Path) -> Place:
    """Let StorageElements be made that FTS3 reaches."""
    known: dict[str, Plugin] = storage.parts.protocols._plugins
    known["shared"] = Plugin(open=opened)

    async def make(name: str) -> Path:
        root = folder / name
        root.mkdir()
        element = storage_element_pb2.StorageElement(
            name=f"storageElements/{name}", media=storage_element_pb2.StorageElement.MEDIA_DISK
        )
        element.access_points.add(protocol="shared", address=str(root))
        request = pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        await storage.stub.CreateStorageElement(request)
        return root

    return make


@pytest.fixture
def place(storage: Storage, tmp_path: Path) -> Place:
    return placing(storage, tmp_path)


@asynccontextmanager
async def serving(folder: Path, catalog: MemoryCatalog, settings: dict[str, Any]) -> AsyncIterator[Storage]:
    """Run a storage that can be started again."""
    fast = {"poll": 0.05, "transfer_pause": 0.05}
    state = folder / "state"
    async with (
        serve(memory_catalog(catalog), service, state=state, settings={"storage": fast | settings}) as served,
        aiohttp.ClientSession() as http,
    ):
        storage = Storage(served, StorageServiceStub(served.channel), catalog, http, state / "storage/local")
        placing(storage, folder)
        yield storage


async def wanted(storage: Storage, *transfers: Transfer) -> list[str]:
    request = pb.BatchCreateTransfersRequest(transfers=transfers, request_id=str(uuid4()))
    return [one.transfer.name for one in (await storage.stub.BatchCreateTransfers(request)).results]


async def get(storage: Storage, name: str) -> Transfer:
    return await storage.stub.GetTransfer(pb.GetTransferRequest(name=name))


async def ended(storage: Storage, name: str) -> Transfer:
    async def final() -> bool:
        return (await get(storage, name)).state in FINAL

    await until(final, 60)
    return await get(storage, name)


async def brought(storage: Storage, place: Place, *contents: bytes) -> tuple[Path, list[str]]:
    """Bring files to `near`, and want them on `far`."""
    await place("near")
    far = await place("far")
    names = [f"/hess/{number}" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        await storage.store(name, content)
    for name in await wanted(storage, *[Transfer(file=name, destination="near") for name in names]):
        await ended(storage, name)
    return far, await wanted(storage, *[Transfer(file=one, destination="far", sources=["near"]) for one in names])


async def test_files_go_in_one_job_and_are_named_by_us(storage: Storage, fts: Fts, place: Place) -> None:
    far, names = await brought(storage, place, b"one", b"two", b"three")

    found = [await ended(storage, name) for name in names]

    assert {one.state for one in found} == {Transfer.STATE_SUCCEEDED}, found
    assert sorted(path.read_bytes() for path in far.rglob("hess/*")) == [b"one", b"three", b"two"]
    assert {one.attempts[-1].executor for one in found} == {"fts"}
    assert {one.attempts[-1].streamed_bytes for one in found} == {0}
    assert len(fts.jobs) == 1
    assert all(".khomas/incoming/" in one["dest_surl"] for files in fts.jobs.values() for one in files)


async def test_copy_that_differs_is_not_believed(storage: Storage, fts: Fts, place: Place, tmp_path: Path) -> None:
    fts.go_on.clear()
    far, (name,) = await brought(storage, place, b"right")

    async def active() -> bool:
        return fts.polls > 1

    await until(active, 60)
    (tmp_path / "near/hess/0").write_bytes(b"wrong")
    fts.go_on.set()

    async def failed() -> bool:
        return bool((await get(storage, name)).attempts)

    await until(failed, 60)
    first = (await get(storage, name)).attempts[0]
    assert first.reason == transfer_pb2.TRANSFER_REASON_DESTINATION_CHECKSUM
    assert not list(far.rglob("hess/*"))


async def test_failure_is_kept_in_the_words_of_the_engine(storage: Storage, fts: Fts, place: Place) -> None:
    fts.fate = ("FAILED", "DESTINATION [28] No space left on device")
    await place("near")
    _ = await place("far")
    await storage.store("/hess/0", b"bytes")
    (near,) = await wanted(storage, Transfer(file="/hess/0", destination="near"))
    await ended(storage, near)
    (name,) = await wanted(storage, Transfer(file="/hess/0", destination="far", sources=["near"], max_attempts=1))

    transfer = await ended(storage, name)

    assert (transfer.state, transfer.reason) == (Transfer.STATE_FAILED, transfer_pb2.TRANSFER_REASON_SPACE)
    assert transfer.message == "DESTINATION [28] No space left on device"


async def test_cancelled_transfers_are_cancelled_there(storage: Storage, fts: Fts, place: Place) -> None:
    fts.go_on.clear()
    far, (name,) = await brought(storage, place, b"bytes")

    async def active() -> bool:
        return fts.polls > 1

    await until(active, 60)
    await storage.stub.BatchCancelTransfers(pb.BatchCancelTransfersRequest(names=[name], request_id=str(uuid4())))

    async def told() -> bool:
        return fts.cancelled == list(fts.jobs)

    await until(told, 60)
    assert (await get(storage, name)).state == Transfer.STATE_CANCELLED
    assert not list(far.rglob("hess/*"))


async def test_job_survives_a_restart_of_the_service(
    tmp_path: Path, fts: Fts, catalog: MemoryCatalog, settings: dict[str, Any]
) -> None:
    fts.go_on.clear()
    async with serving(tmp_path, catalog, settings) as storage:
        _, (name,) = await brought(storage, placing(storage, tmp_path), b"bytes")

        async def active() -> bool:
            return fts.polls > 1

        await until(active, 60)
    fts.go_on.set()
    async with serving(tmp_path, catalog, settings) as storage:
        transfer = await ended(storage, name)

    assert transfer.state == Transfer.STATE_SUCCEEDED
    assert len(fts.jobs) == 1


async def test_server_that_is_down_is_waited_for(storage: Storage, fts: Fts, place: Place) -> None:
    fts.refuses = 503
    _, (name,) = await brought(storage, place, b"bytes")

    async def failed() -> bool:
        return bool((await get(storage, name)).attempts)

    await until(failed, 60)
    fts.refuses = 0
    transfer = await ended(storage, name)

    assert transfer.attempts[0].reason == transfer_pb2.TRANSFER_REASON_TRANSIENT
    assert "HTTP 503" in transfer.attempts[0].message
    assert transfer.state == Transfer.STATE_SUCCEEDED


def order(uid: str = "u", priority: int = 0) -> Order:
    return Order(uid, "davs://a/x", "davs://b/y", Wanted(3, "0000abcd"), priority)


def test_job_asks_for_checksums_and_leaves_trying_again_to_us() -> None:
    said = job([order()], "both")

    assert said["files"][0] == {
        "sources": ["davs://a/x"],
        "destinations": ["davs://b/y"],
        "filesize": 3,
        "metadata": {"transfer": "u"},
        "checksum": "ADLER32:0000abcd",
    }
    assert (said["params"]["retry"], said["params"]["overwrite"]) == (-1, False)


@pytest.mark.parametrize(("priority", "theirs"), [(-1000, 1), (0, 3), (25, 4), (1000, 5)])
def test_priorities_are_those_of_the_engine(priority: int, theirs: int) -> None:
    assert job([order(priority=priority)], "none")["params"]["priority"] == theirs


@pytest.mark.parametrize("state", [*PHASES, "QOS_TRANSITION"])
def test_every_state_means_something(state: str) -> None:
    (standing,) = standings([{"file_state": state, "file_metadata": {"transfer": "u"}}]).values()

    assert standing.phase is PHASES.get(state, Phase.WAITING)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("SOURCE CHECKSUM MISMATCH Source and user-defined ADLER32 do not match", "SOURCE"),
        ("DESTINATION CHECKSUM MISMATCH", "DESTINATION_CHECKSUM"),
        ("DESTINATION [28] No space left on device", "SPACE"),
        ("TRANSFER [110] Connection timed out", "TRANSIENT"),
        ("SOURCE [2] No such file or directory", "SOURCE"),
        ("The proxy has expired", "CREDENTIAL"),
    ],
)
def test_words_of_the_engine_become_reasons(message: str, reason: str) -> None:
    assert reason_of(message) == transfer_pb2.TransferReason.Value(f"TRANSFER_REASON_{reason}")


@dataclass(frozen=True, slots=True)
class Files:
    """A credential that is files."""

    paths: dict[str, Path]

    def files(self) -> dict[str, Path]:
        return self.paths


def credential(**paths: Path) -> CredentialProvider:
    return cast(CredentialProvider, cast(Any, Files(paths)))  # only its files are asked for


async def test_token_is_shown_as_it_is_now(fts: Fts, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    client = Fts3(fts.address, credential(token=tmp_path / "token"), FtsOptions())
    batch = await client.take([order()])
    (tmp_path / "token").write_text("second\n")
    await client.poll([batch])
    await client.close()

    assert fts.tokens == {"Bearer first", "Bearer second"}


async def test_proxy_is_delegated_once_and_lasts_no_longer_than_ours(fts: Fts, tmp_path: Path) -> None:
    (tmp_path / "proxy").write_bytes(proxy(timedelta(hours=9)))
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    fts.request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    client = Fts3(fts.address, credential(proxy=tmp_path / "proxy"), FtsOptions())

    await client.take([order()])
    await client.take([order()])
    await client.close()

    (chain,) = fts.credentials
    delegated, own = x509.load_pem_x509_certificates(chain.encode())
    delegated.verify_directly_issued_by(own)
    assert delegated.public_key() == key.public_key()
    assert delegated.not_valid_after_utc <= own.not_valid_after_utc
    assert len(delegated.subject.rdns) == len(own.subject.rdns) + 1


async def test_proxy_without_a_request_is_told(fts: Fts, tmp_path: Path) -> None:
    (tmp_path / "proxy").write_bytes(proxy(timedelta(hours=9)))
    client = Fts3(fts.address, credential(proxy=tmp_path / "proxy"), FtsOptions())

    with pytest.raises(ExecutorFault, match="no proxy can be delegated") as caught:
        await client.take([order()])
    await client.close()

    assert not caught.value.passing


async def test_job_that_the_server_does_not_know_is_left_out(fts: Fts) -> None:
    client = Fts3(fts.address, None, FtsOptions())
    batch = await client.take([order()])

    found = await client.poll([batch, "another"])
    await client.close()

    assert list(found) == [batch]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"executors": {"e": {"plugin": "fts", "address": "https://h"}}}, "no plug-in fts is installed"),
        ({"executors": {"e": {"plugin": "fts3", "address": "fts.example"}}}, "the address is https://host:8446"),
        ({"executors": {"e": {"plugin": "fts3", "address": "https://h", "credential": "c"}}}, "no credential c"),
        ({"executor_routes": [{"executor": "e"}]}, "there is no executor e"),
    ],
)
def test_wrong_settings_are_told_at_the_start(values: dict[str, Any], message: str) -> None:
    settings = StorageSettings(**values)

    with pytest.raises(ExecutorMisconfigured, match=message):
        configured(settings)


def configured(settings: StorageSettings) -> None:
    open_all(settings, {})
    routes_of(settings)


def proxy(lifetime: timedelta) -> bytes:
    """Return a certificate of a robot with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "robot")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + lifetime)
    certificate = builder.sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
