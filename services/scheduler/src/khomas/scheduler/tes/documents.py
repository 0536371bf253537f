"""Tasks as clients send them, and what is wrong with them."""

import json
import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from khomas.kit.errors import FieldInvalid, FieldViolation

# Of the node, where the files of a task cannot be.
_OF_THE_SYSTEM = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_ODD = frozenset({"", ".", ".."})
M = TypeVar("M", bound=BaseModel)


def _text(text: str) -> str:
    """Text that programs and databases take; JSON can escape what is none."""
    if _NO_TEXT.search(text):
        raise ValueError("must be Unicode text without the sign NUL")
    return text


def _task_path(path: str) -> str:
    first, *rest = path.split("/")
    if first or not rest or _ODD & set(rest):
        raise ValueError("must be an absolute path without odd segments: /data/file")
    if rest[0] in _OF_THE_SYSTEM:
        raise ValueError(f"/{rest[0]} is the node's own, for tasks run without a container: take /data/… or the like")
    return path


def _directory(path: str) -> str:
    return _task_path(path.rstrip("/") or path)


Text = Annotated[str, AfterValidator(_text)]
Path = Annotated[Text, AfterValidator(_task_path)]
Directory = Annotated[Text, AfterValidator(_directory)]


class FileType(StrEnum):
    """What an input or output is."""

    FILE = "FILE"
    DIRECTORY = "DIRECTORY"


class _Part(BaseModel):
    """Unknown fields are of later versions, or of other servers: they change nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Input(_Part):
    """A file to bring in."""

    name: Text | None = None
    description: Text | None = None
    url: Text | None = None
    path: Path
    type: Annotated[FileType, Field(strict=False)] = FileType.FILE
    content: Text | None = None
    streamable: bool | None = None


class Output(_Part):
    """A file to bring out."""

    name: Text | None = None
    description: Text | None = None
    url: Text
    path: Path
    path_prefix: Directory | None = None
    type: Annotated[FileType, Field(strict=False)] = FileType.FILE


class Executor(_Part):
    """A command."""

    image: Text
    command: Annotated[list[Text], Field(min_length=1)]
    workdir: Directory | None = None
    stdin: Path | None = None
    stdout: Path | None = None
    stderr: Path | None = None
    env: dict[Text, Text] | None = None
    ignore_error: bool | None = None


class Resources(_Part):
    """What the task needs."""

    cpu_cores: Annotated[int | None, Field(ge=0, le=100_000)] = None
    preemptible: bool | None = None
    ram_gb: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False)] = None
    disk_gb: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False)] = None
    zones: list[Text] | None = None
    backend_parameters: dict[Text, Text] | None = None
    backend_parameters_strict: bool | None = None


class Task(_Part):
    """What a client wants done."""

    name: Text | None = None
    description: Text | None = None
    inputs: Annotated[list[Input], Field(max_length=10_000)] | None = None
    outputs: Annotated[list[Output], Field(max_length=99)] | None = None
    resources: Resources | None = None
    executors: Annotated[list[Executor], Field(min_length=1, max_length=100)]
    volumes: list[Directory] | None = None
    # One of the 64 tags of a job is ours.
    tags: Annotated[dict[Text, Annotated[Text, Field(max_length=256)]], Field(max_length=63)] | None = None


def read_task(text: str) -> Task:
    """Read a task. Raises `FieldInvalid` with all that is wrong."""
    try:
        return Task.model_validate(_read_json(text))
    except ValidationError as error:
        found = [FieldViolation(_where(one["loc"]), one["msg"]) for one in error.errors(include_url=False)]
        raise FieldInvalid.all_of(found) from None


def written(part: BaseModel) -> dict[str, Any]:
    """The document again, without what was not said."""
    return part.model_dump(mode="json", exclude_none=True)


def parent_of(path: str) -> str:
    """The directory that a path is in, "" for those at the top."""
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "/" else parent


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldInvalid.of("body", f"must be the JSON of a task: {error}") from None


def _where(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".") or "task"
