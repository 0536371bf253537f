"""Resolves at the submission what must not change any more: which files a job reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.splitter_pb2 import FileSplitter
from khomas.scheduler.catalog import Catalog, Found, names_of
from khomas.scheduler.errors import InputNotFound, NoMatch
from khomas.scheduler.intake.blueprint import Blueprint, Identity, matches
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.placement.locality import Locality
from khomas.scheduler.splitters.files import InputFile, divide

# Names of an array's inputs that are looked up at the submission; the others are when their turn comes.
_LOOKED_UP = 10_000


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one input."""

    position: int
    files: Sequence[Found]


async def freeze(catalog: Catalog, spec: JobSpec, locality: Locality) -> Frozen:
    """List the files of datasets and queries, and divide files among children.

    Raises `InputNotFound`, and `NoMatch` for files that cannot be at the site of the job.
    """
    splits_files = spec.HasField("splitter") and spec.splitter.WhichOneof("kind") == "files"
    key = spec.splitter.files.group_key if splits_files else ""
    sources = await _listed(catalog, spec, key)
    if not splits_files:
        return Frozen({source.position: names_of(source.files) for source in sources})
    sources += await _named(catalog, spec, key)
    files = [
        InputFile(source.position, one.name, one.size_bytes, one.value)
        for source in sorted(sources, key=lambda source: source.position)
        for one in source.files
    ]
    if spec.splitter.files.grouping == FileSplitter.GROUPING_BY_SITE:
        sites = await locality.sites_of([file.name for file in files])
        files = [replace(file, sites=sites.get(file.name, frozenset())) for file in files]
        if spec.placement.require_data_local:
            _check_common_sites(files, bool(spec.splitter.files.group_key))
    return Frozen(groups=divide(spec.splitter.files, files))


def _check_common_sites(files: Sequence[InputFile], grouped: bool) -> None:
    """Raise `NoMatch` when files that belong together are at no common site."""
    together: dict[str, list[InputFile]] = {}
    for file in files:
        together.setdefault(file.value if grouped else file.name, []).append(file)
    apart = [some for some in together.values() if not frozenset.intersection(*[file.sites for file in some])]
    if apart:
        names = ", ".join(file.name for file in apart[0][:3])
        which = f"{sum(map(len, apart))} of {len(files)} input files are at no common site, such as {names}"
        raise NoMatch(needed=f"{which}; their jobs need all input at one site (require_data_local)")


async def check_files(catalog: Catalog, blueprints: Iterable[Blueprint]) -> None:
    """Raise `InputNotFound` for an input that is not in the catalogue.

    Jobs that depend on others are left out: those may make it.
    """
    names: dict[str, None] = {}
    for blueprint in blueprints:
        if not waits_for_others(blueprint.spec):
            names |= dict.fromkeys(wanted_names(blueprint))
    if not names:
        return
    found = await catalog.find(names)
    for name in names:
        if name not in found:
            raise InputNotFound(input=name)


def wanted_names(blueprint: Blueprint) -> list[str]:
    """LFNs that the inputs of kind `file` name, of the first children of an array."""
    if blueprint.frozen.groups is not None:
        return []  # they were found already
    names = dict.fromkeys(blueprint.fixed_files())
    if blueprint.varied_files:
        for index in range(min(len(blueprint), _LOOKED_UP)):
            child = blueprint.child(index)
            names |= dict.fromkeys(blueprint.file_names(blueprint.values(child, Identity("", index))))
    return list(names)


def frozen_names(frozen: Frozen) -> Iterable[str]:
    """LFNs that were resolved."""
    for names in frozen.inputs.values():
        yield from names
    if frozen.groups is not None:
        yield from (name for _, name in frozen.groups.files)


def waits_for_others(spec: JobSpec) -> bool:
    """Whether other jobs run before, so that its inputs may still be made."""
    return bool(spec.dependencies) or any(one.WhichOneof("source") == "job_outputs" for one in spec.inputs)


async def _listed(catalog: Catalog, spec: JobSpec, key: str) -> list[Source]:
    """Files of datasets and queries."""
    sources = []
    for position, source in enumerate(spec.inputs):
        kind = source.WhichOneof("source")
        if kind not in ("dataset", "query"):
            continue
        found = await (catalog.members(source.dataset, key) if kind == "dataset" else catalog.search(source.query, key))
        files = [one for one in found if matches(one.name, source.match)]
        if not files:
            raise InputNotFound(input=f"{source.dataset or source.query} (no file matches)")
        sources.append(Source(position, files))
    return sources


async def _named(catalog: Catalog, spec: JobSpec, key: str) -> list[Source]:
    """Files given by name, with the sizes and values that a splitter divides them by."""
    named = {position: one.file for position, one in enumerate(spec.inputs) if one.WhichOneof("source") == "file"}
    found = await catalog.find(set(named.values()), key) if named else {}
    for name in named.values():
        if name not in found:
            raise InputNotFound(input=name)
    return [Source(position, [found[name]]) for position, name in named.items()]
