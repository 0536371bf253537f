"""Job and production files."""

from pathlib import Path

import pytest

from khomas.api.scheduler.v1 import state_pb2
from khomas.client.errors import UsageError
from khomas.client.specs import Sandboxes, job_spec, production, reason


def spec_of(**document: object) -> object:
    return job_spec({"run": ["true"], **document}, Sandboxes(Path()))


def test_a_full_job_file_becomes_a_spec(tmp_path: Path) -> None:
    (tmp_path / "reduce.py").write_text("print()")
    sandboxes = Sandboxes(tmp_path)
    spec = job_spec(
        {
            "name": "reduce",
            "run": ["python3", "reduce.py", "{stem}"],
            "files": ["reduce.py"],
            "cpus": 2,
            "memory": "2400MB",
            "wall": "1h",
            "inputs": [{"dataset": "hess/crab", "match": "*.fits", "path": "inputs/"}, {"file": "/hess/a"}],
            "outputs": [{"glob": "*.fits", "name": "/hess/{file}", "dataset": "x", "fits": {"tables": ["GTI"]}}],
            "split": {"grid": {"zenith": [0, 60], "seed": "1..3"}, "derive": {"e": "0.005/cos(zenith)"}},
            "retry": {
                "jitter": 0.5,
                "avoid_failed_nodes": True,
                "avoid_failed_backend": True,
                "rules": [{"reason": "LIMIT_MEMORY", "action": "grow", "memory": 2}],
            },
            "on": "local",
            "after": ["0190"],
            "tags": {"prod": 26},
        },
        sandboxes,
    )
    assert spec.resources.cpu_milli == 2000
    assert spec.resources.memory_bytes == 2_400_000_000
    assert spec.inputs[0].sandbox.sha256 in sandboxes.contents
    assert spec.inputs[1].dataset == "datasets/hess/crab"
    assert spec.outputs[0].fits.tables == ["GTI"]
    assert spec.splitter.grid.axes[1].range.last == 3
    assert spec.retry.rules[0].reasons == [state_pb2.REASON_LIMIT_MEMORY]
    assert (spec.retry.jitter, spec.retry.avoid_failed_nodes, spec.retry.avoid_failed_backend) == (0.5, True, True)
    assert spec.dependencies[0].job == "jobs/0190"
    assert dict(spec.tags) == {"prod": "26"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"memry": "1GB"}, "unknown key memry; did you mean memory"),
        ({"memory": 2400}, "memory: 2400 needs a unit"),
        ({"run": "echo hello"}, "run takes a list of words"),
        ({"inputs": [{"path": "x"}]}, "name one of file, dataset"),
        ({"outputs": [{"name": "/x"}]}, "glob is missing"),
        ({"outputs": [{"glob": "x", "when": "never"}]}, "when is on_success"),
        ({"split": {"max_running": 3}}, "name one of grid, count"),
        ({"retry": {"rules": [{"reason": "LIMIT_MEMRY", "action": "retry"}]}}, "choose from LIMIT_MEMORY"),
        ({"files": ["no/such/file"]}, "cannot read"),
        ({"memory": "99999999999TB"}, "memory: 99999999999TB is more than can be written down"),
        ({"wall": "99999999d"}, "wall: 99999999d is longer than a hundred years"),
        ({"cpus": "nan"}, "cpus: nan is no number to compute with"),
        ({"cpus": 1e300}, "cpus: .* is more than 2147483647"),
        ({"split": {"count": 999999999999}}, "count: 999999999999 is more than 2147483647"),
        ({"split": {"grid": {"events": "1..1e3"}}}, "events=1..1e3 is no value and no range"),
        ({"split": {"grid": {"z": "0.5..2.5"}}}, "z=0.5..2.5 is no value and no range"),
        ({"split": {"grid": {"z": ""}}}, "z= is no value and no range"),
    ],
)
def test_a_wrong_document_is_refused_by_the_key(document: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec_of(**document)


def test_a_production_file_becomes_stages() -> None:
    made = production(
        {
            "name": "crab",
            "stages": [
                {"name": "reduce", "data": {"dataset": "raw", "group_by": "run"}, "job": {"run": ["true"]}},
                {"name": "stack", "after": ["reduce"], "data": {"group_by": "*"}, "job": {"run": ["true"]}},
                {
                    "name": "simulate",
                    "grid": {"zenith": [0]},
                    "requested_events": 2e8,
                    "events_per_job": "30000",
                    "job": {"run": ["true"]},
                },
            ],
        },
        Sandboxes(Path()),
    )
    assert made.name == "productions/crab"
    assert made.stages[0].data.dataset == "datasets/raw"
    assert list(made.stages[1].after) == ["reduce"]
    assert made.stages[2].grid.requested_events == "200000000.0"


def test_unknown_reason_is_answered_with_all_reasons_the_most_like_first() -> None:
    with pytest.raises(UsageError) as refused:
        reason("limit_memry")
    named = str(refused.value).partition("choose from ")[2].split(", ")
    assert (named[0], len(named)) == ("LIMIT_MEMORY", len(state_pb2.Reason.items()) - 1)
