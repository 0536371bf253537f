"""Batch systems that are driven by commands beside a folder of jobs.

`backend.py` is the same for all of them; `dialect.py` says what a batch system has to tell; `hosts.py` is where the
commands run. On that host works `wrapper/khomas_spool.py`.
"""
