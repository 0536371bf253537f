#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Run a program that lies beside this file: `python3 khomas_begin.py khomas_job element SPOOL BATCH INDEX`.

Python keeps the compiled form of what it imports, not of the file that it is given: so jobs begin sooner.
"""

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
