"""The job wrapper, the runner, the keepers and the pilot: standard-library files that run on a node by themselves."""

from pathlib import Path

STARTER = Path(__file__).with_name("khomas_begin.py")
JOB_WRAPPER = Path(__file__).with_name("khomas_job.py")
LOCAL_RUNNER = Path(__file__).with_name("khomas_runner.py")
SPOOL_KEEPER = Path(__file__).with_name("khomas_spool.py")
POOL_KEEPER = Path(__file__).with_name("khomas_pool.py")
PILOT = Path(__file__).with_name("khomas_pilot.py")
TES_EXECUTORS = Path(__file__).with_name("khomas_tes.py")
