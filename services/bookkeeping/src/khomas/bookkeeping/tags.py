"""Filters over tags: every tag is a field."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import JSON, ColumnElement, type_coerce

from khomas.kit.filtering import Field, fields

_TAG = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Tags(Mapping[str, Field]):
    """Any tag of a column of JSON."""

    def __init__(self, column: ColumnElement[Any]) -> None:
        self._column = column

    def __getitem__(self, key: str) -> Field:
        if key not in self:
            raise KeyError(key)
        return fields.text(type_coerce(self._column, JSON)[key].as_string())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _TAG.fullmatch(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
