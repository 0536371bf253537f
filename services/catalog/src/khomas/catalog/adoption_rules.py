"""From a scanned file to a File: paths and header cards into metadata. No I/O."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence

from khomas.api.catalog.v1.adoption_pb2 import Adoption, HeaderRule
from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.value_pb2 import Value
from khomas.api.storage.v1.storage_service_pb2 import HeaderCard, ScannedFile
from khomas.catalog.keys import PREFIX
from khomas.catalog.names import check_dataset, check_key, check_name
from khomas.catalog.values import TYPE_OF_KIND, storable, type_name
from khomas.kit.auth.paths import odd_path
from khomas.kit.boundary import validation
from khomas.kit.errors import FieldInvalid

_WHOLE = re.compile(r"[+-]?\d{1,18}")
_MAX_WHOLE = 2**63
_MAX_SHOWN = 80


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


def found_values(scanned: ScannedFile, wanted: Adoption, from_path: Mapping[str, str]) -> dict[str, tuple[Value, str]]:
    """Return value and unit by key, from the path and the header cards of a file."""
    values = {key: (_from_path(text), "") for key, text in from_path.items()}
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


def missing_keys(found: Iterable[Mapping[str, tuple[Value, str]]], known: Container[str]) -> list[MetadataKey]:
    """Return declarations for keys that are not known, with the type of the first value that was seen.

    An INTEGER becomes a NUMBER when any of the other values is one.
    """
    missing: dict[str, MetadataKey] = {}
    for values in found:
        for key, (value, unit) in values.items():
            kind = value.WhichOneof("kind")
            if key in known or kind is None:
                continue
            new = missing.setdefault(key, MetadataKey(name=PREFIX + key, type=TYPE_OF_KIND[kind], unit=unit))
            number = kind != "integer" and fitted(value, MetadataKey.TYPE_NUMBER) is not None
            if new.type == MetadataKey.TYPE_INTEGER and number:
                new.type = MetadataKey.TYPE_NUMBER
    return list(missing.values())


def fitted(value: Value, type_: int) -> Value | None:
    """Return a value in the type that its key is declared with, None where it does not fit."""
    found = _converted(value, type_)
    kind = found.WhichOneof("kind") if found is not None else None
    return found if kind is not None and storable(getattr(found, kind)) else None


def _converted(value: Value, type_: int) -> Value | None:
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if TYPE_OF_KIND[kind] == type_ or (kind == "integer" and type_ == MetadataKey.TYPE_NUMBER):
        return value
    if type_ == MetadataKey.TYPE_TEXT and kind in ("integer", "number"):
        return Value(text=f"{getattr(value, kind):g}" if kind == "number" else str(value.integer))
    if type_ == MetadataKey.TYPE_NUMBER and kind == "text":
        return _number(value.text)
    if type_ == MetadataKey.TYPE_INTEGER and kind == "number" and value.number.is_integer():
        return Value(integer=int(value.number)) if abs(value.number) < _MAX_WHOLE else None
    return None


def _number(text: str) -> Value | None:
    try:
        return Value(number=float(text))
    except ValueError:
        return None


def as_file(
    scanned: ScannedFile,
    wanted: Adoption,
    uid: str,
    values: Mapping[str, tuple[Value, str]],
    types: Mapping[str, int],
) -> tuple[File | None, list[str]]:
    """Return the File that a scanned file becomes, and what is left out of it.

    Values of keys without a type are not looked at. None = the file is left out: no call would take its name.
    """
    top = wanted.path.strip("/")
    inside = scanned.path[len(top) :].lstrip("/") if top else scanned.path
    new = File(
        name=f"{wanted.destination}/{inside}",
        size_bytes=scanned.size_bytes,
        checksums=scanned.checksums,
        origin=uid,
        replicas=[Replica(storage_element=wanted.storage_element, path=scanned.path, state=Replica.STATE_AVAILABLE)],
    )
    problems = []
    for key, (value, _) in values.items():
        if key not in types or (kind := value.WhichOneof("kind")) is None:
            continue
        if (fit := fitted(value, types[key])) is not None:
            new.metadata[key].CopyFrom(fit)
        else:
            shown = repr(getattr(value, kind))[:_MAX_SHOWN]
            problems.append(f"{scanned.path}: {key}: {shown} does not fit the type {type_name(types[key])}; left out")
    if (refused := _refused(new)) is not None:
        return None, [f"{scanned.path}: {refused}"]
    return new, problems


def _refused(new: File) -> str | None:
    """Return why no call could name a file or commit it; the storage has names that we do not."""
    if odd_path([new.name]) is not None:
        return "is no LFN: rename the file; a % stands before two hexadecimal digits, an accent is part of its letter"
    try:
        validation.check(new)
    except FieldInvalid as error:
        return error.message
    return None
