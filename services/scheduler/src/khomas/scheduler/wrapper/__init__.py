"""The job wrapper and the local runner: standard-library files that run on a node by themselves."""

from pathlib import Path

JOB_WRAPPER = Path(__file__).with_name("khomas_job.py")
LOCAL_RUNNER = Path(__file__).with_name("khomas_runner.py")
