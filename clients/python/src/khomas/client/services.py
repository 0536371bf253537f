"""The calls that need no more than a request: storage elements, datasets, productions, runs, releases, traces."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import uuid4

from khomas.client.connection import Connection
from khomas.client.errors import UsageError
from khomas.client.parts import chunks, merged
from khomas.client.specs import dataset_name
from khomas.client.waiting import until

_FINAL_FROM = 20


class Calls:
    """Makes calls by area, and collects the pages of lists."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(self, area: str, method: str, request: Any) -> Any:
        """Make a call, with a fresh request_id where the request has one and none is given."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = str(uuid4())
        return await self._connection.call(area, method, request)

    async def pages(self, area: str, method: str, request: Any, items: str) -> list[Any]:
        """Collect all pages of a list."""
        found: list[Any] = []
        while True:
            answer = await self._connection.call(area, method, request)
            found += getattr(answer, items)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def until(
        self,
        read: Callable[[], Any],
        done: Callable[[Any], bool],
        *,
        timeout: float | None = None,
        on_look: Callable[[Any], None] | None = None,
    ) -> Any:
        """Read a resource until it is done."""
        return await until(read, done, timeout=timeout, on_look=on_look)


class Storage(Calls):
    """StorageElements and transfers."""

    async def create_element(self, element: Any) -> Any:
        """Make a StorageElement known."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        return await self.call(
            "storage", "CreateStorageElement", pb.CreateStorageElementRequest(storage_element=element)
        )

    async def elements(self) -> list[Any]:
        """List the StorageElements."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        return await self.pages("storage", "ListStorageElements", pb.ListStorageElementsRequest(), "storage_elements")

    async def transfer(self, names: Sequence[str], destination: str, **fields: Any) -> list[Any]:
        """Want copies of files on a StorageElement, with further fields of Transfer; returns TransferResults."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        results: list[Any] = []
        for part in chunks(names):
            request = pb.BatchCreateTransfersRequest()
            for name in part:
                request.transfers.add(file=name, destination=destination, **fields)
            results += (await self.call("storage", "BatchCreateTransfers", request)).results
        return results

    async def cancel_transfers(self, names: Sequence[str]) -> Any:
        """Want no more of transfers, given by name or id. Returns the response message with its counts."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        if not names:
            raise UsageError("name at least one transfer")
        full = [name if name.startswith("transfers/") else f"transfers/{name}" for name in names]
        requests = [pb.BatchCancelTransfersRequest(names=part) for part in chunks(full)]
        return merged([await self.call("storage", "BatchCancelTransfers", request) for request in requests])

    async def get_transfer(self, name: str) -> Any:
        """Read a transfer with its attempts."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        full = name if name.startswith("transfers/") else f"transfers/{name}"
        return await self.call("storage", "GetTransfer", pb.GetTransferRequest(name=full))

    async def transfers(self, filter_text: str = "") -> list[Any]:
        """Search transfers."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        request = pb.ListTransfersRequest(filter=filter_text, page_size=1000)
        return await self.pages("storage", "ListTransfers", request, "transfers")

    async def explain(self, name: str) -> Any:
        """Say why a transfer waits or failed."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        return await self.call("storage", "ExplainTransfer", pb.ExplainTransferRequest(name=name))

    async def explain_upload(self, name: str) -> Any:
        """Say what an upload waits for, or why it is gone."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        return await self.call("storage", "ExplainUpload", pb.ExplainUploadRequest(name=name))


class Catalog(Calls):
    """Datasets, metadata keys, adoptions."""

    async def create_dataset(self, name: str, files: Sequence[str] = (), description: str = "") -> Any:
        """Make a dataset."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb
        from khomas.api.catalog.v1.dataset_pb2 import Dataset

        dataset = Dataset(name=dataset_name(name), description=description)
        return await self.call("catalog", "CreateDataset", pb.CreateDatasetRequest(dataset=dataset, files=files))

    async def dataset(self, name: str) -> Any:
        """Read a dataset."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.call("catalog", "GetDataset", pb.GetDatasetRequest(name=dataset_name(name)))

    async def datasets(self, filter_text: str = "") -> list[Any]:
        """Search datasets."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListDatasetsRequest(filter=filter_text, page_size=1000)
        return await self.pages("catalog", "ListDatasets", request, "datasets")

    async def change_dataset(self, name: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Any:
        """Add files to and remove files from a dataset."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.UpdateDatasetFilesRequest(name=dataset_name(name), add=add, remove=remove)
        return await self.call("catalog", "UpdateDatasetFiles", request)

    async def close_dataset(self, name: str) -> Any:
        """Close a dataset for good."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.call("catalog", "CloseDataset", pb.CloseDatasetRequest(name=dataset_name(name)))

    async def keys(self) -> list[Any]:
        """List the declared metadata keys."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.pages("catalog", "ListMetadataKeys", pb.ListMetadataKeysRequest(), "metadata_keys")

    async def declare(self, keys: Sequence[Any]) -> list[Any]:
        """Declare metadata keys."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.BatchCreateMetadataKeysRequest(metadata_keys=keys)
        return list((await self.call("catalog", "BatchCreateMetadataKeys", request)).metadata_keys)

    async def adoption(self, name: str) -> Any:
        """Read an adoption."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.call("catalog", "GetAdoption", pb.GetAdoptionRequest(name=name))

    async def adoptions(self) -> list[Any]:
        """List adoptions."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.pages("catalog", "ListAdoptions", pb.ListAdoptionsRequest(), "adoptions")

    async def explain_adoption(self, name: str) -> Any:
        """Say why an adoption waits or failed."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.call("catalog", "ExplainAdoption", pb.ExplainAdoptionRequest(name=name))

    async def undo_adoption(self, name: str) -> Any:
        """Take the files of an adoption out of the catalogue again."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        return await self.call("catalog", "UndoAdoption", pb.UndoAdoptionRequest(name=name))


class Bookkeeping(Calls):
    """Productions, runs, traces."""

    async def create_production(self, production: Any, *, validate_only: bool = False) -> Any:
        """Make a production and start it, or only plan it. Returns the response message."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        request = pb.CreateProductionRequest(production=production, validate_only=validate_only)
        return await self.call("bookkeeping", "CreateProduction", request)

    async def production(self, name: str) -> Any:
        """Read a production."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        return await self.call("bookkeeping", "GetProduction", pb.GetProductionRequest(name=production_name(name)))

    async def productions(self, filter_text: str = "") -> list[Any]:
        """Search productions."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        request = pb.ListProductionsRequest(filter=filter_text, page_size=1000)
        return await self.pages("bookkeeping", "ListProductions", request, "productions")

    async def change_production(self, verb: str, name: str, **fields: str) -> Any:
        """Pause, resume or cancel a production, or flush one of its stages."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        method = "FlushStage" if verb == "flush" else f"{verb.capitalize()}Production"
        request = getattr(pb, f"{method}Request")(name=production_name(name), **fields)
        return await self.call("bookkeeping", method, request)

    async def cells(self, name: str, stage: str = "") -> list[Any]:
        """List the cells of a grid stage."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        request = pb.ListCellsRequest(production=production_name(name), stage=stage, page_size=10_000)
        return await self.pages("bookkeeping", "ListCells", request, "cells")

    async def items(self, name: str, stage: str = "", filter_text: str = "") -> list[Any]:
        """List the work items of data stages."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        request = pb.ListWorkItemsRequest(
            production=production_name(name), stage=stage, filter=filter_text, page_size=10_000
        )
        return await self.pages("bookkeeping", "ListWorkItems", request, "work_items")

    async def explain(self, name: str) -> Any:
        """Say why a production does not go on."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        return await self.call(
            "bookkeeping", "ExplainProduction", pb.ExplainProductionRequest(name=production_name(name))
        )

    async def explain_item(self, name: str) -> Any:
        """Say why a work item is not processed."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        return await self.call("bookkeeping", "ExplainWorkItem", pb.ExplainWorkItemRequest(name=name))

    async def wait(
        self, name: str, *, timeout: float | None = None, on_look: Callable[[Any], None] | None = None
    ) -> Any:
        """Wait until a production is final, or paused."""
        from khomas.api.bookkeeping.v1.production_pb2 import Production

        def done(production: Any) -> bool:
            return bool(production.state >= _FINAL_FROM or production.state == Production.STATE_PAUSED)

        return await self.until(lambda: self.production(name), done, timeout=timeout, on_look=on_look)

    async def runs(self, filter_text: str = "", order_by: str = "") -> list[Any]:
        """Search runs."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        request = pb.ListRunsRequest(filter=filter_text, order_by=order_by, page_size=10_000)
        return await self.pages("bookkeeping", "ListRuns", request, "runs")

    async def run(self, name: str) -> Any:
        """Read a run."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        return await self.call("bookkeeping", "GetRun", pb.GetRunRequest(name=run_name(name)))

    async def create_runs(self, runs: Sequence[Any]) -> list[Any]:
        """Make runs known."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        return list((await self.call("bookkeeping", "BatchCreateRuns", pb.BatchCreateRunsRequest(runs=runs))).runs)

    async def flag_run(self, name: str, quality: str, comment: str) -> Any:
        """Decide about the quality of a run."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
        from khomas.api.bookkeeping.v1.run_pb2 import Run

        run = Run(name=run_name(name), quality=Run.Quality.Value(f"QUALITY_{quality.upper()}"), comment=comment)
        request = pb.UpdateRunRequest(run=run)
        request.update_mask.paths.extend(["quality", "comment"])
        return await self.call("bookkeeping", "UpdateRun", request)

    async def trace(self, id_: str, *, forward: bool = False, max_depth: int = 0) -> Any:
        """Say where anything came from, or what came of it."""
        from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb

        direction = pb.GetTraceRequest.DIRECTION_FORWARD if forward else pb.GetTraceRequest.DIRECTION_BACK
        request = pb.GetTraceRequest(id=id_, direction=direction, max_depth=max_depth)
        return await self.call("bookkeeping", "GetTrace", request)


class Archive(Calls):
    """Releases."""

    async def create(self, release: Any, *, validate_only: bool = False) -> Any:
        """Start a release."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.call(
            "archive", "CreateRelease", pb.CreateReleaseRequest(release=release, validate_only=validate_only)
        )

    async def release(self, name: str) -> Any:
        """Read a release."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.call("archive", "GetRelease", pb.GetReleaseRequest(name=release_name(name)))

    async def releases(self) -> list[Any]:
        """List releases."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.pages("archive", "ListReleases", pb.ListReleasesRequest(page_size=1000), "releases")

    async def wait(
        self, name: str, *, timeout: float | None = None, on_look: Callable[[Any], None] | None = None
    ) -> Any:
        """Wait until a release is prepared."""
        from khomas.api.archive.v1.release_pb2 import Release

        return await self.until(
            lambda: self.release(name),
            lambda release: release.state != Release.STATE_PREPARING,
            timeout=timeout,
            on_look=on_look,
        )

    async def publish(self, name: str) -> Any:
        """Offer a release."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.call("archive", "PublishRelease", pb.PublishReleaseRequest(name=release_name(name)))

    async def withdraw(self, name: str, reason: str) -> Any:
        """Take a release back."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.call(
            "archive", "WithdrawRelease", pb.WithdrawReleaseRequest(name=release_name(name), reason=reason)
        )

    async def export(self, name: str, exporter: str, options: dict[str, Any] | None = None) -> Any:
        """Run an exporter over a release."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        request = pb.ExportReleaseRequest(name=release_name(name), exporter=exporter)
        request.options.update(options or {})
        return await self.call("archive", "ExportRelease", request)

    async def explain(self, name: str) -> Any:
        """Say why a release is not ready or failed."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        return await self.call("archive", "ExplainRelease", pb.ExplainReleaseRequest(name=release_name(name)))

    async def records(self, name: str) -> AsyncIterator[Any]:
        """Stream the ObsCore records of a release."""
        from khomas.api.archive.v1 import archive_service_pb2 as pb

        request = pb.StreamRecordsRequest(name=release_name(name))
        async for answer in self._connection.stream("archive", "StreamRecords", request):
            for record in answer.records:
                yield record


def production_name(text: str) -> str:
    """Return the resource name of a production that may be given without "productions/"."""
    return text if text.startswith("productions/") else f"productions/{text}"


def release_name(text: str) -> str:
    """Return the resource name of a release that may be given without "releases/"."""
    return text if text.startswith("releases/") else f"releases/{text}"


def run_name(text: str) -> str:
    """Return the resource name of a run that may be given without "runs/"."""
    return text if text.startswith("runs/") else f"runs/{text}"
