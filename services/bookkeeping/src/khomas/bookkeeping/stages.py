"""What stages of a production have to do with each other."""

from collections.abc import Mapping, Sequence

from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Stage
from khomas.bookkeeping.errors import StagesInvalid

ALL = "*"
_MAX_ACTIVE_JOBS = 1000
_MAX_TRIES = 3
_FAILURE_WINDOW = 20
_FAILURE_RATE = 0.5
# The most inputs that a job may have.
_MAX_INPUTS = 10_000


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise `StagesInvalid` unless names are distinct, lead to each other without cycles, and give work."""
    names = [stage.name for stage in stages]
    done: set[str] = set()
    for stage in stages:
        if names.count(stage.name) > 1:
            raise _invalid(stage, f"The name {stage.name} is used by two stages; rename one.")
        if unknown := sorted(set(stage.after) - set(names)):
            raise _invalid(stage, f"{stage.name} comes after {unknown[0]}, but there is no such stage.")
        if stage.job.HasField("splitter"):
            raise _invalid(
                stage, f"The job of {stage.name} has a splitter; the source of the stage does that, remove it."
            )
        if takes_outputs(stage) and not stage.after:
            raise _invalid(stage, f"{stage.name} has no files; give a dataset, a directory, or a stage to come after.")
    while waiting := [stage for stage in stages if stage.name not in done]:
        free = {stage.name for stage in waiting if done.issuperset(stage.after)}
        if not free:
            raise _invalid(waiting[0], f"{waiting[0].name} comes after itself; break the cycle.")
        done |= free


def _invalid(stage: Stage, message: str) -> StagesInvalid:
    return StagesInvalid(message, stage=stage.name)


def takes_outputs(stage: Stage) -> bool:
    """Tell whether its input is just what the stages before it made."""
    return stage.HasField("data") and not (stage.data.dataset or stage.data.directory)


def upstream_complete(stage: Stage, complete: Mapping[str, bool]) -> bool:
    """Tell whether all stages before this one are complete."""
    return all(complete[name] for name in stage.after)


def max_active_jobs(stage: Stage) -> int:
    """Return how many of its jobs may be on their way."""
    return stage.max_active_jobs or _MAX_ACTIVE_JOBS


def max_tries(source: DataSource) -> int:
    """Return after how many failed jobs a work item is given up."""
    return source.max_tries or _MAX_TRIES


def max_files(stage: Stage) -> int:
    """Return how many files one job takes at most."""
    possible = _MAX_INPUTS - len(stage.job.inputs)
    return min(stage.data.max_files or possible, possible)


def failure_window(stage: Stage) -> int:
    """Return how many of the last outcomes count."""
    return stage.failure_window_jobs or _FAILURE_WINDOW


def fails_too_often(stage: Stage, outcomes: str, *, at_rest: bool) -> bool:
    """Tell whether the last outcomes are a reason to pause: a full window, or all jobs of a small grid."""
    failed = outcomes.count("1")
    if len(outcomes) >= failure_window(stage):
        return failed > (stage.pause_above_failure_rate or _FAILURE_RATE) * len(outcomes)
    return at_rest and stage.HasField("grid") and failed == len(outcomes) > 0
