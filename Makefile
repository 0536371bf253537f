# Every target sets up by itself what it needs, in `.venv` and from Debian's packages where the tests want a program.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
MEMBERS := proto/python services/kit services/catalog services/storage services/scheduler \
           services/bookkeeping services/archive clients/python clients/snakemake
PROJECTS := pyproject.toml $(MEMBERS:%=%/pyproject.toml)
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev --group demo \
           --no-emit-index-url --no-annotate --no-header $(foreach m,api client kit catalog storage,--no-emit-package khomas-$m)
# Where Python is told to write no bytecode, each of its starts would compile everything again: twice the time. What
# other projects have for other versions of Python does not compile, which is no fault.
COMPILEALL := $(BIN)/python -m compileall -qq -j 0
# What `make demo` works on (nothing: simulated runs) and where it keeps its state.
DATA ?=
STATE ?= demo-state
# Which backends run its jobs: make demo ON=slurm
ON ?=
# Passed on to pytest: make test TESTS="services/catalog -x"
TESTS ?=
# How many tests run at the same time; most of them wait for servers. Each file stays with one worker and its servers.
WORKERS ?= 2
# Contracts are compared with this state; nothing to compare with is no fault.
BUF_AGAINST ?= main

.PHONY: setup gen lint test test-kubernetes conformance check demo demo-everywhere demo-storages bench constraints
.DEFAULT_GOAL := check

setup: .venv/.installed

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Khomas needs python3 >= 3.11; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "python3 could not make a virtual environment; on Debian: sudo apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

.venv/.installed: $(PROJECTS) constraints.txt | $(UV)
	$(UV) pip install --quiet --python .venv --constraint constraints.txt --group dev \
	  $(MEMBERS:%=--editable %) --editable 'clients/python[cli]'
	@$(COMPILEALL) .venv/lib $(MEMBERS) tests || true
	@touch $@

.venv/.demo: .venv/.installed
	$(UV) pip install --quiet --python .venv --constraint constraints.txt --group demo
	@$(COMPILEALL) .venv/lib || true
	@touch $@

gen: setup
	$(BIN)/python tools/gen

lint: gen
	@git diff --exit-code --stat -- proto/python/src typings && \
	  test -z "$$(git ls-files --others --exclude-standard proto/python/src typings)" || \
	  { echo "The committed stubs differ from the contracts: commit what 'make gen' wrote." >&2; exit 1; }
	$(BIN)/buf lint
	$(BIN)/buf format --path proto/khomas --diff --exit-code
	@if git cat-file -e $(BUF_AGAINST):buf.yaml 2>/dev/null; then \
	  echo buf breaking; $(BIN)/buf breaking --path proto/khomas --against '.git#ref=$(BUF_AGAINST)'; \
	else echo "no contracts at $(BUF_AGAINST): nothing to break"; fi
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/check-manifests

test: setup
	tools/test-programs
	$(BIN)/python -m tests.testbeds install
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

# On a real API server, which is built from Debian's source the first time.
test-kubernetes: setup
	$(BIN)/python -m tests.testbeds.kubernetes_build
	KHOMAS_TEST_KUBERNETES=real $(BIN)/pytest tests/backends/test_kubernetes.py tests/backends/real_kubernetes.py $(TESTS)

# Every backend and every storage protocol on its own system; the pages about them are written from what the tests say.
conformance: setup
	tools/test-programs
	$(BIN)/python -m tests.testbeds install
	$(BIN)/pytest services/scheduler/tests/test_local_backend.py tests/backends tests/storage \
	  --junitxml=.conformance.xml $(TESTS); code=$$?; \
	  for of in backends storage; do $(BIN)/python -m tests.$$of.reference .conformance.xml || exit; done; exit $$code

check: lint test

demo: .venv/.demo
	$(BIN)/python examples/hess/demo.py $(if $(DATA),--data "$(DATA)") --state "$(STATE)" $(ON:%=--on %)

demo-everywhere: .venv/.demo
	$(BIN)/python -m tests.testbeds.demo $(if $(DATA),--data "$(DATA)") --state "$(STATE)" $(ON)

# Runs on XRootD, products on S3, a second copy on tape.
demo-storages: .venv/.demo
	@test -n "$(DATA)" || { echo "Name the folder with the runs: make demo-storages DATA=/path" >&2; exit 1; }
	$(BIN)/python -m tests.testbeds.storage_demo --data "$(DATA)" --state "$(STATE)"

bench: setup
	tools/test-programs
	$(BIN)/python tests/performance/bench.py

constraints: $(UV)
	$(BIN)/$(COMPILE) $(PROJECTS) --output-file constraints.txt --upgrade
