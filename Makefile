# `make` alone prints the targets. Each one makes or renews `.venv` by itself when it must: the first time,
# and whenever pyproject.toml has changed. Another Python: `make test PYTHON=/path/to/python3.12`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?= -n 2

.PHONY: help demo demo-cluster test check bench bench-peers format clean

help: ## Print this list
	@echo "nomadfn: serverless Python functions on your own machines."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.product ## Run a real program in containers: a report on Python's own standard library
	$(BIN)/nomadfn run examples/stdlib_report.py

demo-cluster: .venv/.cluster ## The same on Nomad and Consul (both on PATH), with a kill of the service that leads
	$(BIN)/python examples/cluster/demo.py

test: check ## Check the code and run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: .venv/.dev ## Lint, formatting, types and the rules of who may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py examples/cluster/*.py
	$(BIN)/lint-imports

bench: .venv/.bench ## Measure nomadfn beside ProcessPoolExecutor (quick part, under 5 minutes)
	$(BIN)/python -m benchmarks.run --quick

bench-peers: .venv/.bench .cache/peers-venv/.installed ## Measure it beside Ray, Ray Serve, Dask, Celery, Huey and taskiq as well
	$(BIN)/python -m benchmarks.run --peers --rounds 2

format: .venv/.dev ## Put the code into the form that `make check` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove `.venv` and everything that tools have left behind
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on PATH is not yet a Python that runs, so each candidate is asked for its version.
.venv/bin/python:
	@for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "Making .venv with $$("$$candidate" --version) ($$(command -v "$$candidate"))"; \
	    "$$candidate" -m venv --clear .venv && exit 0; \
	    echo "$$candidate cannot make a virtual environment." \
	        "On Debian and Ubuntu, install its venv package (python3-venv)." >&2; \
	    rm -rf .venv; exit 1; \
	done; \
	echo "nomadfn needs Python 3.11 or newer, and none of $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python) is one." \
	    "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

.venv/.product: pyproject.toml .venv/bin/python
	@echo "Installing nomadfn into .venv"
	@$(PIP) install --editable .
	@touch $@

.venv/.cluster: pyproject.toml .venv/bin/python
	@echo "Installing nomadfn, with what it needs for a cluster, into .venv"
	@$(PIP) install --editable '.[nomad,consul]'
	@touch .venv/.product $@

.venv/.dev: pyproject.toml .venv/bin/python
	@echo "Installing nomadfn and the tools to work on it into .venv"
	@$(PIP) install --editable '.[dev]'
	@touch .venv/.product .venv/.cluster $@

.venv/.bench: benchmarks/requirements.txt .venv/.dev
	@$(PIP) install --requirement benchmarks/requirements.txt
	@touch $@

.cache/peers-venv/.installed: benchmarks/peers-requirements.txt .venv/bin/python
	@echo "Installing the peers into .cache/peers-venv"
	@$(BIN)/python -m venv --clear .cache/peers-venv
	@.cache/peers-venv/bin/python -m pip --disable-pip-version-check --quiet install --requirement benchmarks/peers-requirements.txt
	@touch $@
