"""A catalogue and a storage in memory, with a door for the bytes."""

import hashlib
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc
from aiohttp import web

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import catalog_service_pb2_grpc as catalog_grpc
from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1 import storage_service_pb2_grpc as storage_grpc
from khomas.api.storage.v1.grant_pb2 import AccessGrant
from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from khomas.kit.boundary.call import Context
from khomas.kit.boundary.status import status_of
from khomas.kit.config import ServiceSettings
from khomas.kit.errors import DomainError, NotFound
from khomas.kit.ids import new_uid
from khomas.kit.service import Host, Running, Service


class FileExists(DomainError):
    """What the catalogue says when a name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    area = "catalog"
    reason = "FILE_EXISTS"
    template = "The file {name} exists already."


@dataclass(slots=True)
class Files:
    """What is stored, what was asked for, and what goes wrong."""

    files: dict[str, File] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    commits: list[storage_pb.BatchCommitUploadsRequest] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    keys: dict[str, "MetadataKey.Type.ValueType"] = field(default_factory=dict)
    # Raised by the next commits, and by the next renewals, one each.
    troubles: list[DomainError] = field(default_factory=list)
    renewal_troubles: list[DomainError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    # Where StorageElements are.
    sites: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, content: bytes, elements: Sequence[str] = (), **metadata: object) -> None:
        """Store a file, with replicas on these StorageElements."""
        sums = Checksums(adler32=f"{zlib.adler32(content):08x}", sha256=hashlib.sha256(content).hexdigest())
        file = File(name=name, uid=new_uid(), size_bytes=len(content), checksums=sums)
        for element in elements:
            file.replicas.add(storage_element=element, path=name[1:], state=Replica.STATE_AVAILABLE)
        for key, value in metadata.items():
            file.metadata[key].text = str(value)
        self.files[name], self.content[name] = file, content


class _Settings(ServiceSettings, env_prefix="KHOMAS_TEST_"):
    """Nothing to set."""


class _Catalog(catalog_grpc.CatalogServiceServicer):
    def __init__(self, files: Files) -> None:
        self._files = files

    async def BatchGetFiles(  # noqa: N802
        self, request: catalog_pb.BatchGetFilesRequest, context: Context
    ) -> catalog_pb.BatchGetFilesResponse:
        self._files.calls.append("BatchGetFiles")
        return catalog_pb.BatchGetFilesResponse(results=[self._result(name) for name in request.names])

    async def ListFiles(  # noqa: N802
        self, request: catalog_pb.ListFilesRequest, context: Context
    ) -> catalog_pb.ListFilesResponse:
        """Datasets are directories here, and a filter is the beginning of a name."""
        self._files.calls.append("ListFiles")
        start = request.filter or f"/{request.dataset.removeprefix('datasets/')}/"
        found = [file for name, file in sorted(self._files.files.items()) if name.startswith(start)]
        return catalog_pb.ListFilesResponse(files=found)

    async def ListMetadataKeys(  # noqa: N802
        self, request: catalog_pb.ListMetadataKeysRequest, context: Context
    ) -> catalog_pb.ListMetadataKeysResponse:
        keys = [MetadataKey(name=f"metadataKeys/{key}", type=kind) for key, kind in self._files.keys.items()]
        return catalog_pb.ListMetadataKeysResponse(metadata_keys=keys)

    def _result(self, name: str) -> catalog_pb.FileResult:
        if name not in self._files.files:
            return catalog_pb.FileResult(error=status_of(NotFound(name=name)))
        return catalog_pb.FileResult(file=self._files.files[name])


class _Storage(storage_grpc.StorageServiceServicer):
    def __init__(self, files: Files, http_url: str) -> None:
        self._files = files
        self._url = http_url

    async def BatchCreateUploads(  # noqa: N802
        self, request: storage_pb.BatchCreateUploadsRequest, context: Context
    ) -> storage_pb.BatchCreateUploadsResponse:
        self._files.calls.append("BatchCreateUploads")
        answer = storage_pb.BatchCreateUploadsResponse(uploads=request.uploads)
        for upload in answer.uploads:
            uid = new_uid()
            upload.name, upload.grant.url = f"uploads/{uid}", f"{self._url}/uploads/{uid}/"
            upload.grant.headers["Authorization"] = "Bearer secret"
            self._files.uploads[upload.name] = {}
        return answer

    async def BatchCommitUploads(  # noqa: N802
        self, request: storage_pb.BatchCommitUploadsRequest, context: Context
    ) -> storage_pb.BatchCommitUploadsResponse:
        if self._files.troubles:
            raise self._files.troubles.pop(0)
        for one in request.files:
            if one.name in self._files.files and all(one.name != done.files[0].name for done in self._files.commits):
                raise FileExists(name=one.name)
        self._files.commits.append(request)
        answer = storage_pb.BatchCommitUploadsResponse()
        for one in request.files:
            content = self._files.uploads[one.upload][one.index]
            self._files.put(one.name, content)
            file = self._files.files[one.name]
            answer.files.add(name=one.name, uid=file.uid, size_bytes=len(content), storage_element="local")
        return answer

    async def BatchRenewUploads(  # noqa: N802
        self, request: storage_pb.BatchRenewUploadsRequest, context: Context
    ) -> storage_pb.BatchRenewUploadsResponse:
        if self._files.renewal_troubles:
            raise self._files.renewal_troubles.pop(0)
        self._files.renewed += request.names
        return storage_pb.BatchRenewUploadsResponse()

    async def BatchAbandonUploads(  # noqa: N802
        self, request: storage_pb.BatchAbandonUploadsRequest, context: Context
    ) -> storage_pb.BatchAbandonUploadsResponse:
        self._files.abandoned += request.names
        return storage_pb.BatchAbandonUploadsResponse()

    async def BatchCreateDownloads(  # noqa: N802
        self, request: storage_pb.BatchCreateDownloadsRequest, context: Context
    ) -> storage_pb.BatchCreateDownloadsResponse:
        self._files.calls.append("BatchCreateDownloads")
        return storage_pb.BatchCreateDownloadsResponse(downloads=[self._download(name) for name in request.names])

    async def ListStorageElements(  # noqa: N802
        self, request: storage_pb.ListStorageElementsRequest, context: Context
    ) -> storage_pb.ListStorageElementsResponse:
        self._files.calls.append("ListStorageElements")
        elements = [
            StorageElement(name=f"storageElements/{element}", site=site) for element, site in self._files.sites.items()
        ]
        return storage_pb.ListStorageElementsResponse(storage_elements=elements)

    def _download(self, name: str) -> storage_pb.Download:
        if name not in self._files.files:
            return storage_pb.Download(name=name, error=status_of(NotFound(name=name)))
        file = self._files.files[name]
        grant = AccessGrant(url=f"{self._url}/files{name}", storage_element="local")
        return storage_pb.Download(name=name, size_bytes=file.size_bytes, checksums=file.checksums, grants=[grant])


def _door(files: Files) -> web.Application:
    async def put(request: web.Request) -> web.Response:
        name = f"uploads/{request.match_info['uid']}"
        content = await request.read()
        files.uploads[name][int(request.match_info["index"])] = content
        return web.Response(status=201, headers={"Digest": f"adler32={zlib.adler32(content):08x}"})

    async def get(request: web.Request) -> web.Response:
        return web.Response(body=files.content[f"/{request.match_info['name']}"])

    door = web.Application()
    door.router.add_put("/uploads/{uid}/{index}", put)
    door.router.add_get("/files/{name:.+}", get)
    return door


def memory_services(files: Files) -> tuple[Service[_Settings], Service[_Settings]]:
    """The catalogue and the storage over these files."""

    async def start_catalog(_: _Settings, host: Host) -> Running:
        servicer = _Catalog(files)  # type: ignore[abstract]  # what jobs do not need is UNIMPLEMENTED
        return Running(add_to=lambda server: catalog_grpc.add_CatalogServiceServicer_to_server(servicer, server))

    async def start_storage(_: _Settings, host: Host) -> Running:
        servicer = _Storage(files, host.http_url)  # type: ignore[abstract]  # see above
        return Running(
            add_to=lambda server: storage_grpc.add_StorageServiceServicer_to_server(servicer, server), http=_door(files)
        )

    return _service("catalog", start_catalog), _service("storage", start_storage)


def _service(name: str, start: Callable[[_Settings, Host], Awaitable[Running]]) -> Service[_Settings]:
    return Service(name, _Settings, start)
