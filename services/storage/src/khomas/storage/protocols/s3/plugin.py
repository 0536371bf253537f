"""What the entry point gives; the libraries behind it are needed by those alone who use it."""

from pydantic import ValidationError

from khomas.storage.protocols.interface import Access, Plugin, StorageProtocol
from khomas.storage.protocols.s3.settings import Bucket, S3Settings


def _open(access: Access) -> StorageProtocol:
    bucket = Bucket(access.address)
    try:
        settings = S3Settings.model_validate(dict(access.options))
    except ValidationError as error:
        wrong = "; ".join(f"option {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(wrong) from None
    try:
        from khomas.storage.protocols.s3.protocol import S3Protocol
        from khomas.storage.protocols.s3.store import Store
    except ModuleNotFoundError as error:
        raise ValueError(f"s3 needs libraries; install khomas-storage[s3] ({error})") from error
    return S3Protocol(Store(bucket, settings, access.credential))


plugin = Plugin(open=_open)
