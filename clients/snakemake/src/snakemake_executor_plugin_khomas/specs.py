"""From a job of Snakemake to a job of Khomas."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Resources
from khomas.api.scheduler.v1.placement_pb2 import Placement, RetryPolicy

_MB, _MIB = 10**6, 2**20
_LONGEST_NAME, _LONGEST_TAG = 128, 256


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all jobs of a run have in common."""

    # The nodes see it under the same path.
    folder: str
    env: Mapping[str, str]
    # Names with commas; empty = Khomas chooses.
    backend: str
    workflow_id: str


def spec_of(job: JobExecutorInterface, command: str, around: Surroundings) -> JobSpec:
    """What runs `command`, a line of sh, with the resources of the job. Raises `ValueError` for odd resources."""
    resources = job.resources
    return JobSpec(
        display_name=f"{job.name}.{job.jobid}"[:_LONGEST_NAME],
        tags={"snakemake_rule": str(job.name)[:_LONGEST_TAG], "snakemake_workflow": around.workflow_id},
        command=Command(
            executable="/bin/sh",
            arguments=["-c", _literal(f"cd {shlex.quote(around.folder)} && {command}")],
            env={name: _literal(value) for name, value in around.env.items()},
        ),
        resources=_resources(job.threads, resources),
        placement=Placement(
            backends=_names(resources.get("khomas_backend") or around.backend),
            sites=_names(resources.get("khomas_site", "")),
            queue=str(resources.get("khomas_queue", "")),
            native=_native(str(resources.get("khomas_native", ""))),
        ),
        # `retries` of the rule count, so that its `attempt` tells how often it ran.
        retry=RetryPolicy(max_attempts=_whole("khomas_attempts", resources.get("khomas_attempts", 1))),
        share=str(resources.get("khomas_share", "")),
    )


def _resources(threads: int, resources: Mapping[str, Any]) -> Resources:
    needs = Resources(cpu_milli=1000 * threads)
    needs.memory_bytes = _size(resources, "mem")
    needs.disk_bytes = _size(resources, "disk")
    if minutes := resources.get("runtime"):
        needs.wall_time.CopyFrom(Duration(seconds=60 * _whole("runtime", minutes)))
    return needs


def _size(resources: Mapping[str, Any], name: str) -> int:
    """Bytes; Snakemake makes each of the two from the other."""
    for key, unit in ((f"{name}_mb", _MB), (f"{name}_mib", _MIB)):
        if resources.get(key):
            return _whole(key, resources[key]) * unit
    return 0


def _whole(key: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"the resource {key} must be a whole number, not {value!r}") from None


def _names(text: Any) -> list[str]:
    return [name.strip() for name in str(text or "").split(",") if name.strip()]


def _native(text: str) -> dict[str, Struct]:
    """Read "slurm.constraint=el9 slurm.nice=100"; values that read as JSON are what JSON says."""
    options: dict[str, Struct] = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        kind, dot, option = key.partition(".")
        if not (equals and dot and kind and option):
            raise ValueError(f"khomas_native must be like 'slurm.constraint=el9', not {word!r}")
        options.setdefault(kind, Struct()).update({option: _value(value)})
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _literal(text: str) -> str:
    """Text in which Khomas fills nothing in."""
    return text.replace("{", "{{").replace("}", "}}")
