"""What a search for files can ask for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, and_, cast, exists, func, select

from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.catalog.v1.file_pb2 import File
from khomas.catalog.keys import Key
from khomas.catalog.tables import directory, file, file_value, replica
from khomas.catalog.values import COLUMN, microseconds_of
from khomas.kit.errors import OrderInvalid
from khomas.kit.filtering import Field, Fields, fields, parse
from khomas.kit.filtering.ast import And, Comparison, Node, Not, Operator, Or, Value
from khomas.kit.filtering.fields import Condition
from khomas.kit.filtering.literals import read_boolean, read_time
from khomas.kit.paging import Ordering

_FIELDS: dict[str, Field] = {
    "name": fields.text(file.c.name),
    "uid": fields.text(cast(file.c.uid, Text)),
    "size_bytes": fields.integer(file.c.size_bytes),
    "create_time": fields.time(file.c.create_time),
    "update_time": fields.time(file.c.update_time),
    "owner": fields.text(file.c.owner),
    "origin": fields.text(file.c.origin),
    "state": fields.enum(file.c.state, File.State),
    "storage_element": fields.within(
        fields.text(replica.c.storage_element),
        lambda condition: exists(select(1).where(and_(replica.c.file_id == file.c.id, condition))),
    ),
}
_ORDERS: dict[str, ColumnElement[Any]] = {
    "name": file.c.name,
    "create_time": file.c.create_time,
    "size_bytes": file.c.size_bytes,
}
# Files without a value come first.
_LOWEST: dict[str, Any] = {"whole": -(2**63), "number": float("-inf"), "text": ""}


def file_fields(keys: Iterable[Key]) -> Fields:
    """Return the fields of a filter over files."""
    return {**_FIELDS, "metadata": value_fields(keys, file_value, "file_id", file.c.id)}


def asks_for(text: str, name: str) -> bool:
    """Tell whether a filter compares this field anywhere."""
    return any(one.path == (name,) for one in _comparisons(parse(text)))


def _comparisons(node: Node | None) -> Iterator[Comparison]:
    match node:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _comparisons(part)
        case Not(part):
            yield from _comparisons(part)
        case Comparison():
            yield node


def value_fields(keys: Iterable[Key], table: Table, owner: str, owner_id: ColumnElement[int]) -> Fields:
    """Return the fields `metadata.<key>`: conditions on a table of values; a dotted key is a field in a field."""
    found: dict[str, Any] = {}
    for key in keys:
        *above, last = key.name.split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = _value_field(key, table, owner, owner_id)
    return found


def _value_field(key: Key, table: Table, owner: str, owner_id: ColumnElement[int]) -> Field:
    def wrap(condition: Condition) -> Condition:
        return exists(select(1).where(table.c[owner] == owner_id, table.c.key_id == key.id, condition))

    return fields.within(_typed(key.type, table), wrap)


def _typed(type_: int, table: Table) -> Field:
    match type_:
        case MetadataKey.TYPE_TEXT:
            return fields.text(table.c.text)
        case MetadataKey.TYPE_NUMBER:
            return fields.number(table.c.number)
        case MetadataKey.TYPE_INTEGER:
            return fields.integer(table.c.whole)
        case MetadataKey.TYPE_BOOLEAN:
            return _Stored(table.c.whole, lambda text: int(read_boolean(text)))
    return _Stored(table.c.whole, lambda text: microseconds_of(read_time(text)))


class _Stored:
    """A value that is stored as a whole number and written in another way."""

    def __init__(self, column: ColumnElement[int], read: Any) -> None:
        self._number = fields.integer(column)
        self._read = read

    def condition(self, operator: Operator, value: Value) -> Condition:
        if value.text:
            value = Value(str(self._read(value.text)), value.open_start, value.open_end, value.position)
        return self._number.condition(operator, value)


def ordering(order_by: str, keys: Mapping[str, Key]) -> Ordering:
    """Return how files can be ordered; `metadata.<key>` is looked up only when it is asked for."""
    orders = dict(_ORDERS)
    for term in order_by.split(","):
        name = term.split()[0] if term.split() else ""
        if name.startswith("metadata."):
            if (key := keys.get(name.removeprefix("metadata."))) is None:
                raise OrderInvalid(field=name, nearest=[f"metadata.{known}" for known in sorted(keys)[:5]])
            orders[name] = _value_order(key)
    return Ordering(orders, file.c.id, "name")


def _value_order(key: Key) -> ColumnElement[Any]:
    column = COLUMN[MetadataKey.Type.ValueType(key.type)]
    value = select(file_value.c[column]).where(file_value.c.file_id == file.c.id, file_value.c.key_id == key.id)
    return func.coalesce(value.scalar_subquery(), _LOWEST[column])


def below(path: str) -> Condition:
    """Return the condition that a file lies below a directory, at any depth."""
    path = path.rstrip("/")
    if not path:
        return file.c.id.is_not(None)
    # "0" is the character after "/": a range that the index on names serves on both databases.
    return and_(file.c.name > path + "/", file.c.name < path + "0")


def in_directory(path: str) -> Condition:
    """Return the condition that a file lies directly in a directory."""
    return file.c.directory_id == select(directory.c.id).where(directory.c.path == path).scalar_subquery()
