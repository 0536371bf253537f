"""From the template of a stage to the specs of its jobs."""

import pytest

from khomas.api.bookkeeping.v1.production_pb2 import Stage
from khomas.api.scheduler.v1.job_spec_pb2 import Command, Input, JobSpec, Output
from khomas.bookkeeping.templates import array_of, job_of, labelled
from khomas.kit.templating import TemplateError


def test_the_keys_of_a_work_item_are_filled_and_the_others_are_left() -> None:
    spec = JobSpec(
        command=Command(
            executable="reduce", arguments=["{file}", "{group:05d}", "{{x}}", "{job}"], env={"S": "{input_stem}"}
        ),
        inputs=[Input(file="/calib/{group}.fits")],
        outputs=[Output(glob="*", name_pattern="/out/{input_stem}/{file}", metadata={"run": "{group}"})],
    )
    job = job_of(spec, "7", ["/raw/run_7.fits.gz", "/raw/{odd}"], "in")
    assert list(job.command.arguments) == ["in/run_7.fits.gz", "00007", "{{x}}", "{job}"]
    assert dict(job.command.env) == {"S": "run_7"}
    assert [(given.file, given.path) for given in job.inputs] == [
        ("/calib/7.fits", ""),
        ("/raw/run_7.fits.gz", "in/"),
        ("/raw/{{odd}}", "in/"),
    ]
    assert (job.outputs[0].name_pattern, job.outputs[0].metadata["run"]) == ("/out/run_7/{file}", "7")
    assert spec.inputs[0].file == "/calib/{group}.fits"


def test_a_group_that_is_no_number_cannot_be_formatted_as_one() -> None:
    with pytest.raises(TemplateError):
        job_of(JobSpec(command=Command(executable="x", arguments=["{group:05d}"])), "crab", [], "")


def test_the_names_of_the_mice_reconstruction_are_made_by_a_template() -> None:
    """Runs are kept a hundred a folder; the folder's number is derived from the run's."""
    spec = JobSpec(
        command=Command(executable="x"),
        outputs=[Output(glob="*", name_pattern="RECO/MAUS-v3.3.2/Step1/{hundred}/{run:05d}_offline.tar")],
    )
    array = array_of(spec, {"run": 4742, "hundred": 4742 // 100 * 100}, [(1, 1)], 1)
    assert array.outputs[0].name_pattern == "RECO/MAUS-v3.3.2/Step1/{hundred}/{run:05d}_offline.tar"
    assert dict(array.splitter.args.sets[0].parameters) == {
        "run": "4742",
        "hundred": "4700",
        "run_number": "1",
        "first_event": "0",
        "events": "1",
        "seed": "1",
    }


def test_jobs_carry_the_tags_of_their_production() -> None:
    stage = Stage(name="reduce", job=JobSpec(tags={"code": "own"}, command=Command(executable="x")))
    spec = labelled(stage, "productions/crab", {"code": "kaskade", "version": "26"}, 5)
    assert dict(spec.tags) == {"code": "own", "version": "26", "production": "crab", "stage": "reduce"}
    assert (spec.priority, spec.display_name) == (5, "crab reduce")
