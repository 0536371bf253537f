"""The job wrapper, the local runner and the spool keeper: standard-library files that run on a node by themselves."""

from pathlib import Path

JOB_WRAPPER = Path(__file__).with_name("khomas_job.py")
LOCAL_RUNNER = Path(__file__).with_name("khomas_runner.py")
SPOOL_KEEPER = Path(__file__).with_name("khomas_spool.py")
