"""What a release offers: which file becomes which product, with which record. No I/O here."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Final

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import value_pb2
from khomas.archive import names
from khomas.archive.fits_cards import looks_like_fits
from khomas.archive.mapping import Header, Known, Rule, Value, rule_for
from khomas.archive.obscore import COLUMNS, Record

# They differ between releases of the same content.
_NOT_CONTENT: Final = frozenset({"access_url", "access_estsize"})
_MJD_OF_1970: Final = 40587.0


@dataclass(frozen=True, slots=True)
class Offer:
    """One file of the dataset and what is offered for it."""

    source: file_pb2.File
    # LFN that is offered: of the copy, or of the source itself.
    file: str
    publisher_did: str
    rule: Rule | None

    @property
    def copied(self) -> bool:
        """Tell whether a copy is made."""
        return self.file != self.source.name


@dataclass(frozen=True, slots=True)
class Checked:
    """An offer of which the content is known: its record, if it gets one, and what is wrong."""

    offer: Offer
    content_digest: str
    record: Record | None
    problems: tuple[str, ...] = ()


def offers(release: pb.Release, rules: Sequence[Rule], files: Sequence[file_pb2.File], vo: str) -> list[Offer]:
    """Say what is offered for each file."""
    folder = names.folder(vo, release.name)
    made = []
    for file in files:
        rule = rule_for(rules, names.file_name(file.name))
        copied = looks_like_fits(file.name) and not (rule and rule.by_reference)
        offered = f"{folder}/{names.file_name(file.name)}" if copied else file.name
        made.append(Offer(file, offered, names.publisher_did(release.authority, release.name, file.name), rule))
    return made


def collisions(made: Sequence[Offer]) -> list[str]:
    """Name the files that would share an identifier or the name of a copy."""
    dids, files = Counter(offer.publisher_did for offer in made), Counter(offer.file for offer in made)
    twice = [offer for offer in made if dids[offer.publisher_did] > 1 or files[offer.file] > 1]
    return [
        f"{offer.source.name}: another file of the dataset is called {names.file_name(offer.source.name)} too, "
        "or differs in the ending only; names must be unique in a release"
        for offer in twice
    ]


def checked(
    release: pb.Release, offer: Offer, headers: Sequence[Header], content_digest: str, access_url: str
) -> Checked:
    """Compute the record of an offer and say what is wrong with it."""
    if offer.rule is None:
        return Checked(offer, content_digest, None)
    metadata = {key: _plain(value) for key, value in offer.source.metadata.items()}
    mapped = offer.rule.record(Known(headers, metadata, _context(release, offer, access_url)))
    problems = tuple(
        f"{offer.source.name}: {column}: {problem}" if column else f"{offer.source.name}: {problem}"
        for column, problem in mapped.problems
    )
    return Checked(offer, content_digest, mapped.record, problems)


def snapshot_digest(snapshot: Sequence[Checked]) -> str:
    """Return the SHA-256 of a snapshot: equal for equal content, whatever the version is called."""
    lines = sorted(json.dumps(_content(one), ensure_ascii=True, sort_keys=True) for one in snapshot)
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def _content(one: Checked) -> list[object]:
    record = one.record
    columns = record and [record.get(column.name) for column in COLUMNS if column.name not in _NOT_CONTENT]
    # Files without content digest are told apart by what the catalogue knows of their bytes.
    data = one.content_digest or f"{one.offer.source.size_bytes}:{one.offer.source.checksums.adler32}"
    return [one.offer.publisher_did, data, columns]


def _context(release: pb.Release, offer: Offer, access_url: str) -> Mapping[str, Value]:
    name = names.file_name(offer.file)
    context: dict[str, Value] = {
        "did": offer.publisher_did,
        "format": names.media_type(offer.file),
        "size_kbyte": -(-offer.source.size_bytes // 1000),
        "collection": names.collection_of(release.name),
        "version": names.version_of(release.name),
        "stem": names.stem(offer.file),
        "file_name": name,
        "file": offer.file,
        "source": offer.source.name,
    }
    if access_url:
        context["url"] = access_url.format(did=offer.publisher_did, file=offer.file, file_name=name)
    return context


def _plain(value: value_pb2.Value) -> Value:
    match value.WhichOneof("kind"):
        case "integer":
            return value.integer
        case "number":
            return value.number
        case "boolean":
            return value.boolean
        case "time":
            return _MJD_OF_1970 + value.time.ToDatetime(UTC).timestamp() / 86400
    return value.text
