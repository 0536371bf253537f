"""`python -m khomas.kit.auth explain`."""

import sys

from khomas.kit.auth.explain import main

if sys.argv[1:2] != ["explain"]:
    sys.exit("usage: python -m khomas.kit.auth explain [--help]")
sys.exit(main(sys.argv[2:]))
