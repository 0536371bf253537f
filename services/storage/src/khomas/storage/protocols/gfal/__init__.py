"""GridFTP and SRM through gfal2, which lives in a process of its own: it blocks, and it is not on PyPI."""
