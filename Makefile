# make demo, make test: both work from a fresh clone, need no input, and change nothing outside this folder.
# PYTHON=/path/to/python chooses the interpreter, VENV=folder where to install.

VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = test -t 1 || quiet=--quiet; \
	$(BIN)/python -m pip install $${quiet:-} --disable-pip-version-check --no-input -c constraints.txt
DEMO_ARGS ?=
# Several files of tests run at the same time: most of the end-to-end ones wait.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile
BENCH ?=
# Per cent of lines, as they were measured at least. Raise them when tests reach more.
MIN_UNIT_SERVICES ?= 85
MIN_UNIT ?= 80
MIN_SERVICES ?= 90

# The first of these that runs and is of a version that the dependencies support.
CANDIDATES = python3 python3.13 python3.12 python3.11 python
FIND_PYTHON = for p in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && { found=$$p; break; }; \
	done; \
	test -n "$${found:-}" || { \
	  echo "make: no Python 3.11, 3.12 or 3.13 found (tried: $(if $(PYTHON),$(PYTHON),$(CANDIDATES)))" >&2; \
	  echo "make: install one (https://www.python.org/downloads/, or: uv python install 3.12), or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; }

.PHONY: demo test test-long lint typecheck format coverage bench docs clean help
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed  ## install into .venv, and train a small model with four processes on this machine
	$(BIN)/legion-demo $(DEMO_ARGS)

test: lint  ## install into .venv, and run the checks and all tests
	LEGION_IPFS_NODE="$${LEGION_IPFS_NODE:-$(abspath $(VENV))}" $(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/.installed-dev  ## the few tests of large swarms that take minutes each
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m long

lint: $(VENV)/.installed-dev  ## ruff, mypy, the layers, and independence of the process's state
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_process_state.py

typecheck: $(VENV)/.installed-dev  ## mypy, strictly, over the whole package
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## put imports and lines in order, and mend what ruff can mend
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

coverage: $(VENV)/.installed-dev  ## lines that tests reach: unit tests alone, then with the simulated swarms; fails below the minimum
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov=legion_p2p --cov-report= tests/unit
	@echo "services, by unit tests alone:"
	$(BIN)/coverage report --include='legion_p2p/services/*' --fail-under=$(MIN_UNIT_SERVICES)
	@echo "the whole package, by unit tests alone:"
	$(BIN)/coverage report --format=total --fail-under=$(MIN_UNIT)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov=legion_p2p --cov-report= --cov-append tests/sim
	@echo "services, by unit tests and simulated swarms:"
	$(BIN)/coverage report --include='legion_p2p/services/*' --fail-under=$(MIN_SERVICES)

bench: $(VENV)/.installed  ## list the benchmarks; BENCH="codecs --elements 65536" runs one
	@$(BIN)/python benchmarks $(BENCH)

docs: $(VENV)/.installed-docs  ## build the documentation with its search into build/docs; needs no network
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -j auto -c docs . build/docs
	@echo "open build/docs/docs/index.html"

clean:  ## remove .venv and everything made by the commands above
	rm -rf "$(VENV)" build dist *.egg-info .coverage docs/reference .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find legion_p2p tests tools examples -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, three stamps: the dependencies, the tools for development, and those for the documentation.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(FIND_PYTHON); $(PREPARE)
	@echo "installing legion_p2p and what it needs into $(VENV) (once; minutes, mostly torch)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(FIND_PYTHON); $(PREPARE)
	@echo "installing legion_p2p, what it needs, and the tools for development into $(VENV) (once; minutes, mostly torch)"
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	@$(PIP_INSTALL) -e ".[docs]"
	@touch $@

# An environment whose Python is gone or too old, or that was left half-made, is created again.
PREPARE = "$$found" tools/check_system.py --venv "$(VENV)" || exit 1; \
	"$(BIN)/python" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	  || "$$found" -m venv --clear "$(VENV)"
