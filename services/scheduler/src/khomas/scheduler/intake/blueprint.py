"""A spec with everything in it parsed: says what each child runs, reads and makes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from khomas.api.scheduler.v1.job_spec_pb2 import Input, JobSpec, Output
from khomas.kit.expressions import ExpressionError, Scalar
from khomas.kit.templating import Template, TemplateError, parse_template, scalar_text
from khomas.scheduler.errors import ExpressionInvalid, InputPathConflict
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.splitters import Child, Splitter, make_splitter

_JOB_KEYS = frozenset({"job", "index", "attempt"})
_FILE_KEYS = frozenset({"file", "stem"})
_FILE_SOURCES = ("file", "dataset", "query")
_SINGLE = Child()


@dataclass(frozen=True, slots=True)
class Identity:
    """Which attempt of which job it is, for the keys {job}, {index} and {attempt}."""

    job: str
    index: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file to bring in: one of `lfn`, `content`, `sha256` and `local` is set."""

    path: str
    lfn: str = ""
    content: bytes | None = None
    sha256: str = ""
    # A file that the service keeps.
    local: Path | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class _OutputTemplates:
    name: Template
    metadata: Mapping[str, Template]


class Blueprint:
    """A parsed spec. Raises `ExpressionInvalid` where it is made from a bad one."""

    def __init__(self, spec: JobSpec, frozen: Frozen) -> None:
        self.spec = spec
        self.frozen = frozen
        self.splitter: Splitter | None = None
        if spec.HasField("splitter"):
            self.splitter = make_splitter(spec.splitter, frozen)
        keys = _JOB_KEYS | (self.splitter.names if self.splitter else frozenset())
        command = spec.command
        self._command = [_template(text, keys) for text in (command.executable, *command.arguments)]
        self._env = {name: _template(text, keys) for name, text in command.env.items()}
        self._files = {
            position: _template(one.file, keys)
            for position, one in enumerate(spec.inputs)
            if one.WhichOneof("source") == "file"
        }
        self._outputs = [_output_templates(output, keys | _FILE_KEYS) for output in spec.outputs]

    def __len__(self) -> int:
        """How many jobs it makes."""
        if self.splitter is None:
            return 1
        return len(self.splitter) if self.frozen.picks is None else len(self.frozen.picks)

    @cached_property
    def place_needs(self) -> tuple[bytes, bytes, bytes]:
        """All of the spec that the choice of a place depends on."""
        spec = self.spec
        parts = (spec.placement, spec.resources, spec.environment)
        placement, resources, environment = (part.SerializeToString(deterministic=True) for part in parts)
        return placement, resources, environment

    def original_index(self, index: int) -> int:
        """Index that a child of an array that is tried again had at first."""
        return index if self.frozen.picks is None else self.frozen.picks[index]

    def child(self, index: int) -> Child:
        """What is special of this child. Raises `ExpressionInvalid`."""
        if self.splitter is None:
            return _SINGLE
        try:
            return self.splitter.child(self.original_index(index))
        except ExpressionError as error:
            raise _invalid(error) from None

    def parameters(self, index: int) -> dict[str, str]:
        """Values of the splitter, as text."""
        return {key: scalar_text(value) for key, value in self.child(index).values.items()}

    def values(self, child: Child, identity: Identity) -> dict[str, Scalar]:
        """Values of all keys but {file} and {stem}."""
        known: dict[str, Scalar] = {"job": identity.job, "attempt": identity.attempt}
        known["index"] = self.original_index(identity.index)
        return {**known, **child.values}

    def command(self, child: Child, values: Mapping[str, Scalar]) -> list[str]:
        """Executable and arguments."""
        return [*(_filled(part, values) for part in self._command), *child.arguments]

    def environment(self, child: Child, values: Mapping[str, Scalar]) -> dict[str, str]:
        """Environment variables."""
        return {**{name: _filled(part, values) for name, part in self._env.items()}, **child.env}

    def inputs(
        self, child: Child, values: Mapping[str, Scalar], produced: Mapping[int, Sequence[WantedFile]]
    ) -> list[WantedFile]:
        """Files to bring in. `produced` by position: the outputs of other jobs.

        Raises `InputPathConflict` for two files at one path.
        """
        given = None if child.files is None else _by_position(child.files)
        wanted: list[WantedFile] = []
        for position, source in enumerate(self.spec.inputs):
            wanted += self._wanted(position, source, given, values, produced)
        seen = set()
        for one in wanted:
            if one.path in seen:
                raise InputPathConflict(path=one.path)
            seen.add(one.path)
        return wanted

    def _wanted(
        self,
        position: int,
        source: Input,
        given: Mapping[int, Sequence[str]] | None,
        values: Mapping[str, Scalar],
        produced: Mapping[int, Sequence[WantedFile]],
    ) -> Iterator[WantedFile]:
        kind = source.WhichOneof("source")
        if kind == "inline_content":
            yield WantedFile(source.path, content=source.inline_content, executable=source.executable)
        elif kind == "sandbox":
            path = _placed(source, source.sandbox.name, many=False)
            yield WantedFile(path, sha256=source.sandbox.sha256, executable=source.executable)
        elif kind == "job_outputs":
            yield from produced.get(position, ())
        else:
            many = kind != "file"
            names = given.get(position, ()) if given is not None else self._names(position, many, values)
            for name in names:
                yield WantedFile(_placed(source, name, many=many), lfn=name, executable=source.executable)

    def _names(self, position: int, many: bool, values: Mapping[str, Scalar]) -> Sequence[str]:
        return self.frozen.inputs[position] if many else [_filled(self._files[position], values)]

    def output_name(self, number: int, path: str, values: Mapping[str, Scalar]) -> str:
        """LFN of a file that came out of this output."""
        file = path.rpartition("/")[2]
        return _filled(self._outputs[number].name, {**values, "file": file, "stem": file.partition(".")[0]})

    def output_metadata(self, number: int, path: str, values: Mapping[str, Scalar]) -> dict[str, str]:
        """Metadata of a file that came out of this output, as text."""
        file = path.rpartition("/")[2]
        known = {**values, "file": file, "stem": file.partition(".")[0]}
        return {key: _filled(part, known) for key, part in self._outputs[number].metadata.items()}

    def fixed_files(self) -> list[str]:
        """LFNs that are the same for all children."""
        return [part.source for part in self._files.values() if not part.keys]

    def file_names(self, values: Mapping[str, Scalar]) -> list[str]:
        """LFNs of the inputs of kind `file`."""
        return [_filled(part, values) for part in self._files.values()]

    @property
    def varied_files(self) -> bool:
        """Whether LFNs of inputs differ between children."""
        return any(part.keys for part in self._files.values())


def matches(name: str, pattern: str) -> bool:
    """Compare an LFN with a shell pattern: the whole name when the pattern has a slash, else its last segment."""
    return not pattern or fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)


def place(path: str, name: str, *, many: bool) -> str:
    """Path in the work directory of an input: a directory for many files and where it ends in a slash."""
    file = name.rpartition("/")[2]
    if not path:
        return file
    return f"{path.rstrip('/')}/{file}" if many or path.endswith("/") else path


def _placed(source: Input, name: str, *, many: bool) -> str:
    return place(source.path, name, many=many)


def _by_position(files: Sequence[tuple[int, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for position, name in files:
        found.setdefault(position, []).append(name)
    return found


def _output_templates(output: Output, keys: frozenset[str]) -> _OutputTemplates:
    metadata = {key: _template(text, keys) for key, text in output.metadata.items()}
    return _OutputTemplates(_template(output.name_pattern, keys), metadata)


def _template(text: str, keys: frozenset[str]) -> Template:
    try:
        template = parse_template(text)
        template.require(keys)
    except TemplateError as error:
        raise _invalid(error) from None
    return template


def _filled(template: Template, values: Mapping[str, Scalar]) -> str:
    try:
        return template.fill(values)
    except TemplateError as error:
        raise _invalid(error) from None


def _invalid(error: ExpressionError | TemplateError) -> ExpressionInvalid:
    written = error.template if isinstance(error, TemplateError) else error.expression
    return ExpressionInvalid(str(error), expression=written, position=error.position)
