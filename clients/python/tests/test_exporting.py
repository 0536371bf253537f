"""Jobs that become job files again."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.client.errors import UsageError
from khomas.client.exporting import document_of_job, document_of_spec, left_out
from khomas.client.specs import Sandboxes, job_spec

PAGE = Path(__file__).parents[3] / "docs/reference/job-file.md"
# Keys that the page tells of in words.
FURTHER: dict[str, Any] = {
    "inherit_env": True,
    "note": "try again",
    "automatic": True,
    "kill_grace": "20s",
    "queue": "long",
    "native": {"slurm": {"qos": "normal"}},
    "require_local_data": True,
    "platform": "el9",
}
SPLITS = [
    {"args": [["a", "b"], ["c"]]},
    {"args": [{"zenith": "20"}]},
    {"files": {"per_job": 2, "group_by": "run", "bytes_per_job": "2GB"}},
    {"files": {"by_site": True}},
    {"count": 100, "max_jobs": 200},
]


def documented() -> dict[str, Any]:
    """Return the document that the page shows, with every key that there is."""
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    document: dict[str, Any] = yaml.safe_load(found[1])
    del document["files"]
    for merger in document["merge"]:
        merger.pop("files", None)
    document["retry"] |= {"backoff": "5s", "jitter": 0, "avoid_failed_backend": True, "avoid_failed_nodes": True}
    return document | FURTHER


def read(document: dict[str, Any]) -> JobSpec:
    return job_spec(document, Sandboxes(Path()))


def test_a_spec_with_everything_survives_its_document() -> None:
    spec = read(documented())
    assert read(document_of_spec(spec)) == spec
    assert left_out(spec) == []
    written = yaml.safe_load(yaml.safe_dump(document_of_spec(spec), sort_keys=False))
    assert read(written) == spec


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_array_survives(split: dict[str, Any]) -> None:
    spec = read({"run": ["true"], "split": split})
    assert read(document_of_spec(spec)) == spec


def test_files_that_were_sent_along_are_named_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "reduce.py").write_text("print()")
    spec = job_spec({"run": ["python3", "reduce.py"], "files": ["reduce.py"]}, Sandboxes(tmp_path))
    assert read(document_of_spec(spec)) == spec


def test_what_a_job_file_cannot_say_is_told() -> None:
    spec = read({"run": ["true"], "kill_grace": "20s"})
    spec.limits.start_after.CopyFrom(Timestamp(seconds=1))
    spec.placement.sites.append("lyon")
    assert left_out(spec) == ["limits.start_after", "placement.sites"]


@pytest.mark.parametrize(
    ("split", "child", "alone"),
    [
        ({"grid": {"zenith": [0, 20, 40]}, "derive": {"half": "zenith/2"}}, {"zenith": "20", "half": "10"}, "grid"),
        ({"args": [["a"], ["b"], ["c"]]}, {}, "args"),
        ({"count": 9}, {}, "count"),
    ],
)
def test_a_child_of_an_array_is_exported_alone(split: dict[str, Any], child: dict[str, str], alone: str) -> None:
    spec = read({"run": ["true", "{index}"], "split": split, "merge": [{"text": {}}]})
    exported = document_of_job(Job(uid="0190/1", parent="jobs/0190", index=1, parameters=child, spec=spec))
    assert "merge" not in exported
    assert (
        exported["split"]
        == {
            "grid": {"grid": {"zenith": [20.0]}, "derive": {"half": "zenith/2"}},
            "args": {"args": [["b"]]},
            "count": {"count": 1},
        }[alone]
    )
    assert read(exported).command == spec.command


def test_a_child_that_got_its_files_from_a_splitter_is_not_exported() -> None:
    spec = read({"run": ["true"], "split": {"files": {"per_job": 2}}})
    with pytest.raises(UsageError, match="export 0190"):
        document_of_job(Job(uid="0190/1", parent="jobs/0190", index=1, spec=spec))
