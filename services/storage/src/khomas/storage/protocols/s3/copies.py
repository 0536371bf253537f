"""Copies within a server, which S3 has instead of renaming."""

from typing import Any

from khomas.storage.protocols.s3.store import Store


async def copy(store: Store, source: str, target: str, size_bytes: int) -> None:
    """Copy an object to a key that is free; where the server knows how, it makes sure of that."""
    client = await store.client()
    where = {"Bucket": store.bucket.name, "Key": store.bucket.key(target)}
    origin = {"Bucket": store.bucket.name, "Key": store.bucket.key(source)}
    more = {"StorageClass": store.settings.storage_class} if store.settings.storage_class else {}
    if size_bytes > store.settings.copy_bytes:
        await _in_parts(client, store, where, origin, size_bytes, more)
    else:
        await client.copy_object(**where, CopySource=origin, IfNoneMatch="*", **more)


async def _in_parts(
    client: Any, store: Store, where: dict[str, str], origin: dict[str, str], size_bytes: int, more: dict[str, str]
) -> None:
    upload = (await client.create_multipart_upload(**where, **more))["UploadId"]
    try:
        parts = []
        for number, start in enumerate(range(0, size_bytes, store.settings.copy_bytes), 1):
            end = min(start + store.settings.copy_bytes, size_bytes) - 1
            answer = await client.upload_part_copy(
                **where, CopySource=origin, CopySourceRange=f"bytes={start}-{end}", PartNumber=number, UploadId=upload
            )
            parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        await client.complete_multipart_upload(
            **where, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    except BaseException:
        await client.abort_multipart_upload(**where, UploadId=upload)
        raise
