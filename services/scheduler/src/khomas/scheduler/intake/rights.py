"""What a caller may let jobs read and write: checked at the submission, because jobs act with our token."""

from collections.abc import Iterable

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.auth.paths import odd_path
from khomas.kit.auth.principal import Principal, refused_path
from khomas.kit.errors import CapabilityMissing, FieldInvalid
from khomas.scheduler.manifest import is_sandbox


def check_reads(principal: Principal, names: Iterable[str]) -> None:
    """Raise `CapabilityMissing` unless the caller may read all these files."""
    _check(principal, "storage.read", list(names))


def check_writes(principal: Principal, spec: JobSpec) -> None:
    """Raise `CapabilityMissing` unless the caller may create what the outputs are called."""
    patterns = [output.name_pattern for output in spec.outputs if not is_sandbox(output)]
    _check(principal, "storage.create", [fixed_part(pattern) for pattern in patterns])


def fixed_part(pattern: str) -> str:
    """The directory that all names of a pattern lie in, or the name itself."""
    if "{" not in pattern:
        return pattern
    return pattern.partition("{")[0].rpartition("/")[0] + "/"


def _check(principal: Principal, capability: str, paths: list[str]) -> None:
    if not paths:
        return
    odd = odd_path(paths)
    if odd is not None:
        raise FieldInvalid.of("spec", f"{odd!r} is no absolute name: write it as /vo/directory/file")
    path = refused_path(principal, capability, paths)
    if path is not None:
        raise CapabilityMissing(capability=capability, path=path)
