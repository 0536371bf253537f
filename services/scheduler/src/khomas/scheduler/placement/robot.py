"""Small jobs that try backends out: whether they work, and how long jobs wait there."""

from google.protobuf.duration_pb2 import Duration

from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec, Resources
from khomas.api.scheduler.v1.placement_pb2 import Placement, RetryPolicy
from khomas.scheduler.config import TestJobSettings

# Owner of test jobs.
ROBOT = "khomas-robot"
_HIGHEST = 1000


def test_spec(backend: str, settings: TestJobSettings) -> JobSpec:
    """What a test job of a backend runs: once, before all others."""
    return JobSpec(
        display_name=f"test of {backend}",
        tags={"khomas_test": "yes"},
        command=Command(executable=settings.command[0], arguments=settings.command[1:]),
        resources=Resources(cpu_milli=1000, wall_time=Duration(seconds=round(settings.wall_time.total_seconds()))),
        placement=Placement(backends=[backend]),
        retry=RetryPolicy(max_attempts=1),
        priority=_HIGHEST,
        share=settings.share,
        retain_after_end=Duration(seconds=round(settings.retain.total_seconds())),
    )
