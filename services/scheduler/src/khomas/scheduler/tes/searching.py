"""From the query of a list of tasks to a search for jobs."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from multidict import MultiMapping

from khomas.api.scheduler.v1.scheduler_service_pb2 import ListJobsRequest
from khomas.kit.errors import FieldInvalid
from khomas.scheduler.tes.answers import View
from khomas.scheduler.tes.states import TaskState, jobs_in
from khomas.scheduler.tes.submission import TAG, VERSION, tag_key

_DEFAULT_PAGE, _MAX_PAGE = 256, 2047
W = TypeVar("W", bound=StrEnum)


def search(query: MultiMapping[str]) -> ListJobsRequest:
    """The search that a query stands for. Raises `FieldInvalid`."""
    return ListJobsRequest(
        filter=" AND ".join(f"({term})" for term in _terms(query)),
        page_size=min(_size(query.get("page_size", "")), _MAX_PAGE),
        page_token=query.get("page_token", ""),
        full=view_of(query) is not View.MINIMAL,
    )


def view_of(query: Mapping[str, str]) -> View:
    """How much is asked for. Raises `FieldInvalid`."""
    return _one_of(View, "view", query.get("view") or View.MINIMAL)


def _terms(query: MultiMapping[str]) -> Iterator[str]:
    yield f'tags.{TAG} = "{VERSION}"'
    if prefix := query.get("name_prefix", ""):
        yield f'display_name = "{_quoted(prefix)}*"'
    if state := query.get("state", ""):
        yield jobs_in(_one_of(TaskState, "state", state))
    values = query.getall("tag_value", [])
    for number, key in enumerate(query.getall("tag_key", [])):
        value = values[number] if number < len(values) else ""
        # An empty value is any value.
        yield f'tags.{tag_key(key)} = "{_quoted(value)}"' if value else f"tags.{tag_key(key)}:*"


def _one_of(words: type[W], field: str, text: str) -> W:
    try:
        return words(text)
    except ValueError:
        raise FieldInvalid.of(field, f"{text[:50]!r} must be one of {', '.join(words)}") from None


def _size(text: str) -> int:
    if not text:
        return _DEFAULT_PAGE
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise FieldInvalid.of("page_size", f"{text[:50]!r} must be a number above 0")
    return int(text)


def _quoted(text: str) -> str:
    for sign in ("\\", '"', "*"):
        text = text.replace(sign, f"\\{sign}")
    return text
