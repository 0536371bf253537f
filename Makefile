# Every target sets up what it needs by itself.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
MEMBERS := proto/python services/kit services/catalog services/storage services/scheduler \
           services/bookkeeping services/archive clients/python
STAMP := .venv/.installed

.PHONY: setup gen
setup: $(STAMP)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Khomas needs python3 >= 3.11; point make at one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt uv

$(STAMP): pyproject.toml constraints.txt $(MEMBERS:%=%/pyproject.toml) | $(UV)
	$(UV) pip install --quiet --constraint constraints.txt --group dev \
	  $(MEMBERS:%=--editable %) --editable 'clients/python[cli]'
	@touch $@

gen: setup
	$(BIN)/python tools/gen
