"""What object stores do in ways of their own, and how it is taken into account; the table of the how-to."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError
from yarl import URL

from khomas.storage.conformance import MIB, read
from khomas.storage.conformance.content import blocks, content
from khomas.storage.protocols.interface import Digest, Remote
from khomas.storage.protocols.s3.answers import md5_of
from khomas.storage.protocols.s3.protocol import S3Protocol
from tests.backends.conftest import shared_folder
from tests.storage.s3 import opened
from tests.testbeds import s3
from tests.testbeds.s3 import ObjectStore


@pytest.fixture(scope="module")
def stores() -> Iterator[dict[str, ObjectStore]]:
    """Both of them."""
    with s3.rclone(shared_folder("rclone")) as rclone, s3.moto(shared_folder("moto")) as moto:
        yield {"rclone": rclone, "moto": moto}


def tool(store: ObjectStore) -> Any:
    """Speak to one without our plug-in."""
    return AioSession().create_client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{store.port}",
        region_name="us-east-1",
        aws_access_key_id=s3.ACCESS_KEY,
        aws_secret_access_key=s3.SECRET_KEY,
        config=AioConfig(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


@contextmanager
def refused(code: str) -> Iterator[None]:
    """Expect this error, if it is one."""
    if not code:
        yield
        return
    with pytest.raises(ClientError) as caught:
        yield
    assert caught.value.response["Error"]["Code"] == code


@pytest.mark.parametrize(("name", "status"), [("rclone", 200), ("moto", 206)])
async def test_status_of_a_part_may_be_that_of_the_whole(
    stores: dict[str, ObjectStore], name: str, status: int
) -> None:
    protocol = opened(stores[name])
    await protocol.put("file", blocks(b"0123456789"), 10)
    (lent,) = await protocol.lend(["file"], timedelta(minutes=5))
    assert isinstance(lent, Remote)
    part = {"Range": "bytes=3-5"}
    async with aiohttp.ClientSession() as http, http.get(URL(lent.url, encoded=True), headers=part) as answer:
        assert (answer.status, await answer.read()) == (status, b"345")
    assert await read(protocol, "file", 3, 3) == b"345"
    await protocol.close()


@pytest.mark.parametrize(("name", "is_md5"), [("rclone", True), ("moto", False)])
async def test_etag_of_parts_may_be_an_md5(stores: dict[str, ObjectStore], name: str, is_md5: bool) -> None:
    protocol = opened(stores[name], part_bytes=str(5 * MIB))
    await protocol.put("file", blocks(content(11 * MIB)), 11 * MIB)
    (told,) = await protocol.checksum(["file"], protocol.abilities.checksums[0])
    assert isinstance(told, Digest) == is_md5
    await protocol.close()


@pytest.mark.parametrize("name", ["rclone", "moto"])
async def test_condition_of_a_copy_is_ignored(stores: dict[str, ObjectStore], name: str) -> None:
    protocol = opened(stores[name])
    for path, data in (("old", b"old"), ("new", b"new")):
        await protocol.put(path, blocks(data), 3)
    key = protocol.prefix
    async with tool(stores[name]) as client:
        source = {"Bucket": s3.BUCKET, "Key": f"{key}new"}
        await client.copy_object(Bucket=s3.BUCKET, Key=f"{key}old", CopySource=source, IfNoneMatch="*")
    assert await read(protocol, "old") == b"new"
    await protocol.close()


@pytest.mark.parametrize(("name", "code"), [("rclone", ""), ("moto", "PreconditionFailed")])
async def test_condition_of_a_new_object_may_be_ignored(stores: dict[str, ObjectStore], name: str, code: str) -> None:
    protocol = opened(stores[name])
    await protocol.put("file", blocks(b"old"), 3)
    async with tool(stores[name]) as client:
        with refused(code):
            await client.put_object(Bucket=s3.BUCKET, Key=f"{protocol.prefix}file", Body=b"new", IfNoneMatch="*")
    assert await read(protocol, "file") == (b"old" if code else b"new")
    await protocol.close()


@pytest.mark.parametrize("name", ["rclone", "moto"])
async def test_wrong_checksum_is_taken(stores: dict[str, ObjectStore], name: str) -> None:
    protocol = opened(stores[name])
    key = f"{protocol.prefix}file"
    async with tool(stores[name]) as client:
        await client.put_object(Bucket=s3.BUCKET, Key=key, Body=b"abc", ChecksumCRC32="AAAAAA==")
        head = await client.head_object(Bucket=s3.BUCKET, Key=key)
    assert md5_of(head["ETag"]) == "900150983cd24fb0d6963f7d28e17f72"
    assert await read(protocol, "file") == b"abc"
    await protocol.close()


@pytest.mark.parametrize(("name", "code"), [("rclone", "BadDigest"), ("moto", "")])
async def test_wrong_md5_may_be_taken(stores: dict[str, ObjectStore], name: str, code: str) -> None:
    protocol: S3Protocol = opened(stores[name])
    async with tool(stores[name]) as client:
        with refused(code):
            await client.put_object(
                Bucket=s3.BUCKET, Key=f"{protocol.prefix}file", Body=b"abc", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg=="
            )
    await protocol.close()
