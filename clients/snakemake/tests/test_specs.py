"""What a job of Snakemake becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from snakemake_executor_plugin_khomas.specs import Surroundings, spec_of

AROUND = Surroundings(
    folder="/data/my runs", env={"PATH": "/opt/bin", "SET": "{1,2}"}, backend="slurm", workflow_id="w1"
)


@dataclass(frozen=True)
class Job:
    """What is read of a job of Snakemake."""

    name: str = "part"
    jobid: int = 7
    threads: int = 1
    resources: Mapping[str, Any] = field(default_factory=dict)


def spec(job: Job, command: str = "true") -> dict[str, Any]:
    return MessageToDict(spec_of(job, command, AROUND), preserving_proto_field_name=True)


def test_command_runs_in_the_folder_of_the_workflow_and_is_taken_as_it_is() -> None:
    made = spec(Job(), "awk '{print $1}' a")
    assert made["command"]["arguments"] == ["-c", "cd '/data/my runs' && awk '{{print $1}}' a"]
    assert made["command"]["env"] == {"PATH": "/opt/bin", "SET": "{{1,2}}"}


def test_rule_and_run_are_tags() -> None:
    made = spec(Job())
    assert made["display_name"] == "part.7"
    assert made["tags"] == {"snakemake_rule": "part", "snakemake_workflow": "w1"}


def test_resources_are_limits() -> None:
    made = spec(Job(threads=4, resources={"mem_mb": 2000, "mem_mib": 1908, "disk_mib": 3, "runtime": 90}))
    assert made["resources"] == {
        "cpu_milli": "4000",
        "memory_bytes": "2000000000",
        "disk_bytes": str(3 * 2**20),
        "wall_time": "5400s",
    }


def test_job_without_resources_has_no_limits() -> None:
    assert spec(Job())["resources"] == {"cpu_milli": "1000"}


def test_khomas_is_left_to_try_once_unless_it_is_asked_for_more() -> None:
    assert spec(Job())["retry"] == {"max_attempts": 1}
    assert spec(Job(resources={"khomas_attempts": 3}))["retry"] == {"max_attempts": 3}


def test_place_of_the_rule_comes_before_that_of_the_command_line() -> None:
    assert spec(Job())["placement"]["backends"] == ["slurm"]
    made = spec(
        Job(
            resources={
                "khomas_backend": "arc, local",
                "khomas_site": "zeuthen",
                "khomas_queue": "short",
                "khomas_native": "slurm.constraint='el9&ssd' slurm.nice=100 at.queue=b",
                "khomas_share": "hess/mc",
            }
        )
    )
    assert made["placement"] == {
        "backends": ["arc", "local"],
        "sites": ["zeuthen"],
        "queue": "short",
        "native": {"slurm": {"constraint": "el9&ssd", "nice": 100.0}, "at": {"queue": "b"}},
    }
    assert made["share"] == "hess/mc"


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"runtime": "<TBD>"}, "runtime must be a whole number"),
        ({"mem_mb": "much"}, "mem_mb must be a whole number"),
        ({"khomas_attempts": "some"}, "khomas_attempts must be a whole number"),
        ({"khomas_native": "constraint=el9"}, "slurm.constraint=el9"),
        ({"khomas_native": "slurm.constraint"}, "slurm.constraint=el9"),
    ],
)
def test_odd_resources_are_refused_by_name(resources: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(Job(resources=resources))
