"""Opens object stores for tests."""

from pathlib import Path
from uuid import uuid4

from khomas.kit.credentials.access_key import AccessKey, AccessKeyOptions
from khomas.storage.protocols.interface import Access
from khomas.storage.protocols.s3.plugin import plugin
from khomas.storage.protocols.s3.protocol import S3Protocol
from tests.testbeds.s3 import BUCKET, ObjectStore


def opened(
    store: ObjectStore, prefix: str = "", *, keys: Path | None = None, bucket: str = "", **options: str
) -> S3Protocol:
    """Open what is below a prefix, a new one if none is named."""
    credential = AccessKey("test", AccessKeyOptions(file=keys or store.keys))
    address = f"{store.address.rpartition('/')[0]}/{bucket or BUCKET}/{prefix or f'a b-ä-{uuid4().hex}'}"
    options = {"plain": "true", "idle_seconds": "20"} | options
    protocol = plugin.open(Access(address, credential=credential, options=options))
    assert isinstance(protocol, S3Protocol)
    return protocol
