"""`s3` against moto, which knows conditions, storage classes and users, and believes what it is told of checksums."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiobotocore.session import AioSession
from yarl import URL

from khomas.storage.checksums import Algorithm
from khomas.storage.conformance import MIB, CredentialConformance, ProtocolConformance, read, write
from khomas.storage.conformance.content import blocks, content, problems
from khomas.storage.protocols.interface import (
    Digest,
    Locality,
    Problem,
    ProtocolFault,
    Recall,
    Recalling,
    Remote,
    StorageProtocol,
)
from khomas.storage.protocols.s3.protocol import S3Protocol
from tests.backends.conftest import shared_folder
from tests.storage.quota import limited
from tests.storage.s3 import opened
from tests.testbeds import s3
from tests.testbeds.s3 import ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """An object store in memory."""
    with s3.moto(shared_folder("moto")) as running:
        yield running


@pytest.fixture
async def protocol(server: ObjectStore) -> AsyncIterator[S3Protocol]:
    protocol = opened(server)
    yield protocol
    await protocol.close()


def client(server: ObjectStore, service: str, key: str = s3.ACCESS_KEY, secret: str = s3.SECRET_KEY) -> Any:
    """Speak to it as tools do."""
    return AioSession().create_client(
        service,
        endpoint_url=f"http://127.0.0.1:{server.port}",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


class TestMoto(ProtocolConformance, CredentialConformance):
    """moto keeps the contract."""

    # It keeps them in memory, and answers some hundred requests a second.
    many = 2000
    sparse_bytes = 64 * MIB

    @pytest.fixture
    async def full(self, server: ObjectStore) -> AsyncIterator[StorageProtocol]:
        async with limited(server, 4 * MIB) as gate:
            protocol = opened(gate)
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def forbidden(self, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        with s3.moto(tmp_path) as server:
            writer = opened(server, "below")
            await write(writer, "file", b"abc")
            await writer.close()
            access, secret = await reader_of(server)
            s3.ask_who(server, 0)
            protocol = opened(server, "below", keys=s3.write_keys(tmp_path / "reader", access, secret))
            yield protocol
            await protocol.close()

    @pytest.fixture
    async def expired(self, server: ObjectStore, tmp_path: Path) -> AsyncIterator[StorageProtocol]:
        end = "aws_expiration = 2020-01-01T00:00:00Z"
        protocol = opened(server, keys=s3.write_keys(tmp_path / "old", s3.ACCESS_KEY, s3.SECRET_KEY, end))
        yield protocol
        await protocol.close()


async def reader_of(server: ObjectStore) -> tuple[str, str]:
    """Make a user who may read alone; return his key."""
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket", "s3:HeadObject"], "Resource": "*"}
    async with client(server, "iam") as iam:
        await iam.create_user(UserName="reader")
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        await iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        key = (await iam.create_access_key(UserName="reader"))["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


async def test_file_in_parts_is_read_back_because_its_etag_is_no_md5(server: ObjectStore) -> None:
    protocol = opened(server, part_bytes=str(5 * MIB))
    await protocol.put("file", blocks(content(12 * MIB)), 12 * MIB)
    assert problems(await protocol.checksum(["file"], Algorithm.MD5)) == [Problem.UNSUPPORTED]
    assert await read(protocol, "file") == content(12 * MIB)
    await protocol.close()


async def test_large_object_is_copied_in_parts(server: ObjectStore) -> None:
    protocol = opened(server, copy_bytes=str(5 * MIB))
    await write(protocol, "file", content(12 * MIB))
    assert await read(protocol, "file") == content(12 * MIB)
    await protocol.close()


async def test_parts_of_a_file_that_failed_are_forgotten(server: ObjectStore) -> None:
    protocol = opened(server, part_bytes=str(5 * MIB))

    async def broken() -> AsyncIterator[memoryview]:
        async for block in blocks(content(11 * MIB)):
            yield block
        raise ConnectionResetError

    with pytest.raises(ProtocolFault):
        await protocol.put("file", broken(), 30 * MIB)
    async with client(server, "s3") as tool:
        left = (await tool.list_multipart_uploads(Bucket=s3.BUCKET)).get("Uploads", [])
    assert [one["Key"] for one in left if one["Key"].startswith(protocol.prefix)] == []
    await protocol.close()


async def test_checksum_that_the_server_only_repeats_is_not_asked_for(
    protocol: S3Protocol, server: ObjectStore
) -> None:
    """moto takes a wrong checksum, and tells it as if it had compared."""
    wrong = "AAAAAA=="
    async with client(server, "s3") as tool:
        await tool.put_object(
            Bucket=s3.BUCKET, Key=f"{protocol.prefix}file", Body=b"abc", ChecksumCRC32=wrong, ChecksumAlgorithm="CRC32"
        )
    assert problems(await protocol.checksum(["file"], Algorithm.CRC32)) == [Problem.UNSUPPORTED]
    trusting = opened(server, protocol.prefix.rstrip("/"), checksums="crc32,md5")
    (told,) = await trusting.checksum(["file"], Algorithm.CRC32)
    assert told == Digest(Algorithm.CRC32, "00000000", 3)
    await trusting.close()


async def test_presigned_address_reads_one_file_for_anybody(protocol: S3Protocol) -> None:
    name = "a b/100%41?&+ä"
    await write(protocol, name, b"0123456789")
    (lent,) = await protocol.lend([name], timedelta(minutes=5))
    assert isinstance(lent, Remote)
    assert "X-Amz-Expires=300" in lent.url
    assert s3.SECRET_KEY not in lent.url
    part = {"Range": "bytes=3-5"}
    async with aiohttp.ClientSession() as http, http.get(URL(lent.url, encoded=True), headers=part) as answer:
        assert (answer.status, await answer.read()) == (206, b"345")


async def test_archived_file_is_recalled(server: ObjectStore) -> None:
    protocol = opened(server, storage_class="GLACIER")
    await write(protocol, "file", b"abc")
    tape = protocol.tape
    assert tape is not None
    assert await tape.locality(["file"]) == [Locality.TAPE]
    assert await tape.staging("", ["file"]) == [Recalling(Recall.UNKNOWN)]
    (request,) = await tape.stage(["file"], timedelta(hours=30))
    assert request == "restore"
    assert await tape.stage(["file"], timedelta(hours=1)) == ["restore"]
    # moto is done at once.
    assert await tape.staging(request, ["file"]) == [Recalling(Recall.DONE)]
    assert await tape.locality(["file"]) == [Locality.BOTH]
    assert problems(await tape.cancel(request, ["file"])) == [Problem.UNSUPPORTED]
    assert await tape.release(request, ["file"]) == [None]
    assert await read(protocol, "file") == b"abc"
    assert problems(await tape.locality(["nothing"])) == [Problem.ABSENT]
    await protocol.close()


async def test_without_an_archive_there_is_nothing_to_recall(protocol: S3Protocol) -> None:
    assert protocol.tape is None


async def test_missing_bucket_has_lost_no_files(server: ObjectStore) -> None:
    away = opened(server, bucket="elsewhere")
    assert problems(await away.stat(["file"])) == [Problem.UNREACHABLE]
    assert problems(await away.checksum(["file"], Algorithm.MD5)) == [Problem.UNREACHABLE]
    await away.close()
