"""From a scanned file to a File: paths and header cards into metadata. No I/O."""

import re
from collections.abc import Iterable, Mapping, Sequence

from khomas.api.catalog.v1.adoption_pb2 import Adoption, HeaderRule
from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.value_pb2 import Value
from khomas.api.storage.v1.storage_service_pb2 import HeaderCard, ScannedFile
from khomas.catalog.keys import PREFIX, Key
from khomas.catalog.names import check_dataset, check_key, check_name
from khomas.catalog.values import TYPE_OF_KIND
from khomas.kit.errors import FieldInvalid

_WHOLE = re.compile(r"[+-]?\d{1,18}")


def check_wanted(wanted: Adoption) -> None:
    """Check what can be seen before anything is scanned."""
    check_name(wanted.destination, "adoption.destination")
    if wanted.dataset:
        check_dataset(wanted.dataset, "adoption.dataset")
    for index, pattern in enumerate(compiled(wanted.path_patterns)):
        for key in pattern.groupindex:
            check_key(key, f"adoption.path_patterns[{index}]")
    for index, rule in enumerate(wanted.headers):
        check_key(key_of(rule), f"adoption.headers[{index}].key")


def compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """Check the path patterns of an adoption."""
    found = []
    for index, pattern in enumerate(patterns):
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise FieldInvalid.of(f"adoption.path_patterns[{index}]", f"is no regular expression: {error}") from error
    return found


def key_of(rule: HeaderRule) -> str:
    """Return the metadata key that a card becomes."""
    return rule.key or rule.card.lower().replace("-", "_")


def found_values(
    scanned: ScannedFile, wanted: Adoption, patterns: Iterable[re.Pattern[str]]
) -> dict[str, tuple[Value, str]]:
    """Return value and unit by key, from the path and the header cards of a file."""
    values: dict[str, tuple[Value, str]] = {}
    for pattern in patterns:
        if match := pattern.search(scanned.path):
            values |= {key: (_from_path(text), "") for key, text in match.groupdict().items() if text is not None}
    for rule in wanted.headers:
        if card := _card(scanned.cards, rule):
            values[key_of(rule)] = (card.value, rule.unit)
    return values


def _card(cards: Iterable[HeaderCard], rule: HeaderRule) -> HeaderCard | None:
    for card in cards:
        if card.card == rule.card and rule.hdu in ("", card.hdu):
            return card
    return None


def _from_path(text: str) -> Value:
    return Value(integer=int(text)) if _WHOLE.fullmatch(text) else Value(text=text)


def missing_keys(found: Iterable[Mapping[str, tuple[Value, str]]], known: Iterable[str]) -> list[MetadataKey]:
    """Return declarations for keys that are not known, with the type of the first value that was seen."""
    declared = set(known)
    missing = []
    for values in found:
        for key, (value, unit) in values.items():
            kind = value.WhichOneof("kind")
            if key not in declared and kind is not None:
                declared.add(key)
                missing.append(MetadataKey(name=PREFIX + key, type=TYPE_OF_KIND[kind], unit=unit))
    return missing


def fitted(value: Value, key: Key) -> Value | None:
    """Return a value in the type that its key is declared with, None where it does not fit."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if TYPE_OF_KIND[kind] == key.type or (kind == "integer" and key.type == MetadataKey.TYPE_NUMBER):
        return value
    if key.type == MetadataKey.TYPE_TEXT and kind in ("integer", "number"):
        return Value(text=f"{getattr(value, kind):g}" if kind == "number" else str(value.integer))
    if key.type == MetadataKey.TYPE_NUMBER and kind == "text":
        return _number(value.text)
    if key.type == MetadataKey.TYPE_INTEGER and kind == "number" and value.number.is_integer():
        return Value(integer=int(value.number))
    return None


def _number(text: str) -> Value | None:
    try:
        return Value(number=float(text))
    except ValueError:
        return None


def as_file(scanned: ScannedFile, wanted: Adoption, uid: str) -> File:
    """Return the File that a scanned file becomes, without metadata."""
    top = wanted.path.strip("/")
    inside = scanned.path[len(top) :].lstrip("/") if top else scanned.path
    return File(
        name=f"{wanted.destination}/{inside}",
        size_bytes=scanned.size_bytes,
        checksums=scanned.checksums,
        origin=uid,
        replicas=[Replica(storage_element=wanted.storage_element, path=scanned.path, state=Replica.STATE_AVAILABLE)],
    )
