"""From the template of a stage to the specs of its jobs."""

from collections.abc import Mapping, MutableMapping, Sequence

from khomas.api.bookkeeping.v1.production_pb2 import Stage
from khomas.api.scheduler.v1.job_spec_pb2 import Input, JobSpec
from khomas.api.scheduler.v1.splitter_pb2 import ArgSet
from khomas.kit.expressions import Scalar
from khomas.kit.templating import Template, parse_template, scalar_text


def labelled(stage: Stage, production: str, tags: Mapping[str, str], priority: int) -> JobSpec:
    """Return the template with the tags by which the jobs of a production are found."""
    spec = JobSpec()
    spec.CopyFrom(stage.job)
    given = dict(spec.tags)
    spec.tags.clear()
    spec.tags.update({**tags, **given, "production": production.removeprefix("productions/"), "stage": stage.name})
    spec.display_name = spec.display_name or f"{production.removeprefix('productions/')} {stage.name}"[:128]
    spec.priority = spec.priority or priority
    return spec


def array_of(
    spec: JobSpec, parameters: Mapping[str, Scalar], numbers: Sequence[tuple[int, int]], events_per_job: int
) -> JobSpec:
    """Return the array of a cell, one job for each pair of run number and seed."""
    array = JobSpec()
    array.CopyFrom(spec)
    values = {key: scalar_text(value) for key, value in parameters.items()}
    for run_number, seed in numbers:
        of_job = {
            "run_number": str(run_number),
            "first_event": str((run_number - 1) * events_per_job),
            "events": str(events_per_job),
            "seed": str(seed),
        }
        array.splitter.args.sets.append(ArgSet(parameters={**values, **of_job}))
    return array


def job_of(spec: JobSpec, group: str, files: Sequence[str], path: str) -> JobSpec:
    """Return the job of a work item.

    Raises `TemplateError` for a group that cannot be formatted as wanted. In outputs {file} is the name of what was
    made, so it is left alone there.
    """
    job = JobSpec()
    job.CopyFrom(spec)
    first = files[0].rpartition("/")[2] if files else "file"
    values: dict[str, Scalar] = {"group": group, "input": first, "input_stem": first.partition(".")[0]}
    folder = f"{path.rstrip('/')}/" if path else ""
    in_command = {**values, "file": folder + first}
    command = job.command
    command.executable = _filled(command.executable, in_command)
    command.arguments[:] = [_filled(text, in_command) for text in command.arguments]
    _fill_map(command.env, in_command)
    for given in job.inputs:
        if given.WhichOneof("source") == "file":
            given.file = _filled(given.file, values)
    for output in job.outputs:
        output.name_pattern = _filled(output.name_pattern, values)
        _fill_map(output.metadata, values)
    job.inputs.extend(Input(file=_escaped(file), path=folder) for file in files)
    return job


def _fill_map(texts: MutableMapping[str, str], values: Mapping[str, Scalar]) -> None:
    for key, text in list(texts.items()):
        texts[key] = _filled(text, values)


def _filled(text: str, values: Mapping[str, Scalar]) -> str:
    """Fill these keys and leave the others to the scheduler."""
    filled = []
    for part in parse_template(text).parts:
        if isinstance(part, str):
            filled.append(_escaped(part))
        elif part.key in values:
            filled.append(_escaped(Template(text, (part,)).fill(values)))
        else:
            filled.append(f"{{{part.key}{':' if part.format else ''}{part.format}}}")
    return "".join(filled)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
