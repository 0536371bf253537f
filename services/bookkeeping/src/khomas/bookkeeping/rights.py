"""What the caller must be allowed to do, checked at the creation, because the jobs are made with our token."""

from collections.abc import Iterable

from khomas.api.bookkeeping.v1.production_pb2 import Stage
from khomas.api.scheduler.v1.job_spec_pb2 import Input
from khomas.bookkeeping.stages import takes_outputs
from khomas.kit.auth.paths import odd_path
from khomas.kit.auth.principal import Principal, refused_path
from khomas.kit.errors import CapabilityMissing, FieldInvalid

# Where the files of a dataset or a query lie is not known before.
_ANYWHERE = "/"


def check_rights(principal: Principal, stages: Iterable[Stage]) -> None:
    """Raise `CapabilityMissing` unless the caller may submit jobs that read and make such files."""
    reads: list[str] = []
    writes: list[str] = []
    for stage in stages:
        if stage.HasField("data") and not takes_outputs(stage):
            reads.append(stage.data.directory or _ANYWHERE)
        reads += [path for given in stage.job.inputs if (path := _read(given))]
        writes += [_fixed_part(output.name_pattern) for output in stage.job.outputs if output.name_pattern]
    if refused_path(principal, "compute.create", ()) is not None:
        raise CapabilityMissing(capability="compute.create", path="")
    _check(principal, "storage.read", reads)
    _check(principal, "storage.create", writes)


def _read(given: Input) -> str:
    match given.WhichOneof("source"):
        case "file":
            return _fixed_part(given.file)
        case "dataset" | "query":
            return _ANYWHERE
    return ""


def _fixed_part(pattern: str) -> str:
    """Return the directory that all names of a pattern lie in, or the name itself."""
    return pattern if "{" not in pattern else pattern.partition("{")[0].rpartition("/")[0] + "/"


def _check(principal: Principal, capability: str, paths: list[str]) -> None:
    if not paths:
        return
    if (odd := odd_path(paths)) is not None:
        raise FieldInvalid.of("production.stages", f"{odd!r} is no absolute name: write it as /vo/directory/file")
    if (path := refused_path(principal, capability, paths)) is not None:
        raise CapabilityMissing(capability=capability, path=path)
