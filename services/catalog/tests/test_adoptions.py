"""The adoption of trees, with a storage that scans what the test says."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.adoption_pb2 import Adoption, HeaderRule
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1 import storage_service_pb2_grpc
from khomas.catalog import path_patterns
from khomas.catalog.app import service
from khomas.catalog.testing import Plain, create, new_file, request_id, value
from khomas.kit.boundary.call import Context
from khomas.kit.boundary.status import reason_of
from khomas.kit.config import ServiceSettings
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve


@dataclass(slots=True)
class Tree(storage_service_pb2_grpc.StorageServiceServicer):
    """A storage with these files, which breaks down once after so many."""

    files: list[storage_pb.ScannedFile] = field(default_factory=list)
    break_after: int = 0
    # Why it does not answer.
    away: str = ""

    async def ScanTree(  # noqa: N802  the contract's name
        self, request: storage_pb.ScanTreeRequest, context: Context
    ) -> AsyncIterator[storage_pb.ScanTreeResponse]:
        """Stream the files one by one."""
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.away)
        for count, one in enumerate(scanned for scanned in self.files if scanned.path > request.after_path):
            if self.break_after and count == self.break_after:
                self.break_after = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
            yield storage_pb.ScanTreeResponse(files=[one])

    @property
    def service(self) -> Service[ServiceSettings]:
        """Return it as a service that can be hosted."""

        async def start(settings: ServiceSettings, host: Host) -> Running:
            return Running(lambda server: storage_service_pb2_grpc.add_StorageServiceServicer_to_server(self, server))

        return Service("storage", ServiceSettings, start)


def scanned(run: int) -> storage_pb.ScannedFile:
    cards: dict[str, Plain] = {"OBJECT": "Crab", "ZEN_PNT": 45.5 + run, "OBS_ID": run}
    return storage_pb.ScannedFile(
        path=f"data/run_{run:06}.fits.gz",
        size_bytes=run,
        checksums=Checksums(adler32=f"{run:08x}"),
        cards=[storage_pb.HeaderCard(hdu="EVENTS", card=card, value=value(plain)) for card, plain in cards.items()],
    )


def carded(path: str, **cards: Plain) -> storage_pb.ScannedFile:
    return storage_pb.ScannedFile(
        path=path,
        size_bytes=1,
        checksums=Checksums(adler32="00000001"),
        cards=[storage_pb.HeaderCard(hdu="EVENTS", card=card, value=value(plain)) for card, plain in cards.items()],
    )


def wanted(**changes: object) -> pb.CreateAdoptionRequest:
    adoption = Adoption(
        storage_element="raw",
        destination="/hess/raw",
        path_patterns=[r"run_(?P<run>\d+)"],
        headers=[HeaderRule(card="OBJECT"), HeaderRule(card="ZEN_PNT", key="zenith", unit="deg")],
        dataset="datasets/raw",
        declare_keys=True,
    )
    adoption.MergeFrom(Adoption(**changes))  # type: ignore[arg-type]  # fields of the message by name
    return pb.CreateAdoptionRequest(adoption=adoption, request_id=request_id())


@pytest.fixture
def tree() -> Tree:
    return Tree([scanned(run) for run in range(1, 8)])  # type: ignore[abstract]  # other rpcs are UNIMPLEMENTED


@pytest.fixture
async def catalog(tree: Tree, tmp_path: Path) -> AsyncIterator[CatalogServiceStub]:
    settings = {"catalog": {"adoption_batch": 3}}
    async with serve(service, tree.service, state=tmp_path / "state", settings=settings) as served:
        yield CatalogServiceStub(served.channel)


async def ended(catalog: CatalogServiceStub, adoption: Adoption) -> Adoption:
    async with asyncio.timeout(15):
        while adoption.state == Adoption.STATE_RUNNING:
            await asyncio.sleep(0.02)
            adoption = await catalog.GetAdoption(pb.GetAdoptionRequest(name=adoption.name))
    return adoption


async def test_a_tree_becomes_files_with_metadata_where_it_lies(catalog: CatalogServiceStub) -> None:
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert (done.state, done.adopted_files, done.adopted_bytes) == (Adoption.STATE_SUCCEEDED, 7, 28), done.problems
    found = (await catalog.ListFiles(pb.ListFilesRequest(dataset="datasets/raw", filter="metadata.zenith > 50"))).files
    assert [one.name for one in found] == [f"/hess/raw/data/run_{run:06}.fits.gz" for run in (5, 6, 7)]
    assert found[0].metadata["object"].text == "Crab"
    assert found[0].metadata["run"].integer == 5
    assert found[0].replicas[0].path == "data/run_000005.fits.gz"
    assert found[0].origin == done.name.removeprefix("adoptions/")


async def test_an_adoption_goes_on_after_the_storage_was_away(catalog: CatalogServiceStub, tree: Tree) -> None:
    tree.break_after = 5
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert (done.state, done.adopted_files) == (Adoption.STATE_SUCCEEDED, 7)


async def test_adopting_twice_knows_the_files(catalog: CatalogServiceStub) -> None:
    await ended(catalog, await catalog.CreateAdoption(wanted()))
    again = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert (again.state, again.adopted_files, again.known_files) == (Adoption.STATE_SUCCEEDED, 0, 7)


async def test_an_unreadable_file_is_a_problem_not_a_file(catalog: CatalogServiceStub, tree: Tree) -> None:
    tree.files.append(storage_pb.ScannedFile(path="data/run_000009.fits.gz", error="Input/output error"))
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert done.adopted_files == 7
    assert list(done.problems) == ["data/run_000009.fits.gz: Input/output error"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("data/eff_50%.fits", "is no LFN"),
        (unicodedata.normalize("NFD", "data/Müller.fits"), "is no LFN"),
        ("data/a\nb.fits", "is no LFN"),
        ("data/" + 1020 * "a", "name: must be at most 1024 characters"),
    ],
)
async def test_a_file_that_no_call_could_name_is_a_problem_not_a_file(
    catalog: CatalogServiceStub, tree: Tree, name: str, problem: str
) -> None:
    tree.files.append(carded(name))
    request = wanted()
    request.validate_only = True
    trial = await catalog.CreateAdoption(request)
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert (done.state, done.adopted_files, trial.adopted_files) == (Adoption.STATE_SUCCEEDED, 7, 7)
    assert [one.partition(": ")[0] for one in done.problems] == [name]
    assert problem in done.problems[0]
    assert done.problems == trial.problems


async def test_a_value_that_does_not_fit_is_left_out_and_told(catalog: CatalogServiceStub, tree: Tree) -> None:
    tree.files[:] = [
        carded("data/a", MUONEFF=0.5, OBSERVER="x", COUNT=1),
        carded("data/b", MUONEFF="NaN", OBSERVER="y" * 1025, COUNT="many"),
        carded("data/c", MUONEFF=1e300, OBSERVER="z", COUNT=True),
    ]
    headers = [HeaderRule(card=card) for card in ("MUONEFF", "OBSERVER", "COUNT")]
    done = await ended(catalog, await catalog.CreateAdoption(wanted(headers=headers)))
    assert (done.state, done.adopted_files) == (Adoption.STATE_SUCCEEDED, 3)
    assert list(done.problems) == [
        "data/b: muoneff: 'NaN' does not fit the type NUMBER; left out",
        f"data/b: observer: '{79 * 'y'} does not fit the type TEXT; left out",
        "data/b: count: 'many' does not fit the type INTEGER; left out",
        "data/c: count: True does not fit the type INTEGER; left out",
    ]
    found = (await catalog.ListFiles(pb.ListFilesRequest())).files
    assert [sorted(one.metadata) for one in found] == [["count", "muoneff", "observer"], [], ["muoneff", "observer"]]


async def test_a_key_is_a_number_when_the_first_value_is_whole_by_chance(
    catalog: CatalogServiceStub, tree: Tree
) -> None:
    tree.files[:] = [carded("zen_20/a", ZEN=20), carded("zen_30.5/b", ZEN=30.5)]
    request = wanted(path_patterns=[r"zen_(?P<zenith>[\d.]+)/"], headers=[HeaderRule(card="ZEN")])
    del request.adoption.headers[:-1], request.adoption.path_patterns[:-1]
    done = await ended(catalog, await catalog.CreateAdoption(request))
    found = (await catalog.ListFiles(pb.ListFilesRequest())).files
    assert [(one.metadata["zenith"].number, one.metadata["zen"].number) for one in found] == [(20, 20), (30.5, 30.5)]
    assert not done.problems


async def test_a_pattern_that_takes_too_long_ends_the_adoption(
    catalog: CatalogServiceStub, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_patterns, "_SECONDS", 0.5)
    tree.files.append(carded("data/" + 28 * "a"))
    request = wanted(path_patterns=[r"data/(?P<run>[a-z]+)*\d$"])
    done = await ended(catalog, await catalog.CreateAdoption(request))
    assert done.state == Adoption.STATE_FAILED
    assert "adoption.path_patterns: take too long" in done.problems[0]
    request.validate_only = True
    with pytest.raises(grpc.aio.AioRpcError, match="take too long") as refused:
        await catalog.CreateAdoption(request)
    assert reason_of(refused.value) == "FIELD_INVALID"


async def test_an_undeclared_key_fails_the_adoption_and_says_so(catalog: CatalogServiceStub) -> None:
    request = wanted()
    request.adoption.declare_keys = False
    done = await ended(catalog, await catalog.CreateAdoption(request))
    assert done.state == Adoption.STATE_FAILED
    assert "is not declared" in done.problems[0]


async def test_an_undone_adoption_leaves_nothing(catalog: CatalogServiceStub) -> None:
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    undone = await catalog.UndoAdoption(pb.UndoAdoptionRequest(name=done.name, request_id=request_id()))
    assert undone.state == Adoption.STATE_UNDONE
    assert not (await catalog.ListFiles(pb.ListFilesRequest())).files
    assert (await catalog.GetDataset(pb.GetDatasetRequest(name="datasets/raw"))).file_count == 0
    again = await ended(catalog, await catalog.CreateAdoption(wanted()))
    assert again.adopted_files == 7


async def test_an_adoption_is_not_undone_while_its_files_are_used(catalog: CatalogServiceStub) -> None:
    done = await ended(catalog, await catalog.CreateAdoption(wanted()))
    await catalog.BatchCreateFiles(create(new_file("/hess/sky", parents=["/hess/raw/data/run_000001.fits.gz"])))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.UndoAdoption(pb.UndoAdoptionRequest(name=done.name, request_id=request_id()))
    assert reason_of(refused.value) == "FILE_IN_USE"


async def test_a_trial_changes_nothing(catalog: CatalogServiceStub) -> None:
    request = wanted()
    request.validate_only = True
    trial = await catalog.CreateAdoption(request)
    assert (trial.adopted_files, trial.adopted_bytes) == (7, 28)
    assert not (await catalog.ListFiles(pb.ListFilesRequest())).files


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"path_patterns": ["("]}, "no regular expression"),
        ({"path_patterns": [r"(?P<Run>\d+)"]}, "'Run' is no metadata key"),
        ({"headers": [HeaderRule(card="1AXIS")]}, "'1axis' is no metadata key"),
        ({"dataset": "datasets/a b"}, "'datasets/a b' is no dataset"),
    ],
)
async def test_what_cannot_work_is_refused_at_once(
    catalog: CatalogServiceStub, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=problem) as refused:
        await catalog.CreateAdoption(wanted(**changes))
    assert reason_of(refused.value) == "FIELD_INVALID"


async def test_adoption_explains_that_it_waits_for_the_storage_and_since_when(
    catalog: CatalogServiceStub, tree: Tree
) -> None:
    tree.away = "the disk is gone"
    begun = await catalog.CreateAdoption(wanted())
    request = pb.ExplainAdoptionRequest(name=begun.name)
    async with asyncio.timeout(15):
        while (why := await catalog.ExplainAdoption(request)).reason != "STORAGE_AWAY":
            await asyncio.sleep(0.02)

    assert (why.state, "the disk is gone" in why.summary) == ("RUNNING", True)
    assert [one.who for one in why.remedies] == ["nobody: it resolves itself", "operator"]
    await asyncio.sleep(1.5)
    assert (await catalog.ExplainAdoption(request)).since == why.since
    tree.away = ""
    await ended(catalog, begun)
    done = await catalog.ExplainAdoption(request)
    assert (done.state, done.reason, list(done.remedies)) == ("SUCCEEDED", "", [])
    assert done.summary.startswith("7 files (28 bytes) of raw are adopted below /hess/raw")


async def test_failed_adoption_explains_what_to_mend_and_how_to_go_on(catalog: CatalogServiceStub) -> None:
    wish = wanted()
    wish.adoption.declare_keys = False
    failed = await ended(catalog, await catalog.CreateAdoption(wish))

    why = await catalog.ExplainAdoption(pb.ExplainAdoptionRequest(name=failed.name))

    assert (why.state, why.reason, why.since) == ("FAILED", "FILE_REFUSED", failed.end_time)
    assert why.summary.startswith(failed.problems[-1])
    assert [one.command for one in why.remedies] == [
        "",
        "khomas adopt start raw /hess/raw",
        f"khomas adopt undo {failed.name.removeprefix('adoptions/')}",
    ]


async def test_unknown_adoption_is_not_explained(catalog: CatalogServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.ExplainAdoption(pb.ExplainAdoptionRequest(name="adoptions/none"))
    assert reason_of(refused.value) == "ADOPTION_NOT_FOUND"
