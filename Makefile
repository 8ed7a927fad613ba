# One machine, two commands: `make book` and `make test`. `make help` lists the rest.
PROFILE ?= default
PYTHON  ?= python3
VENV    ?= .venv

SHELL  := /bin/bash
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A profile is the name of a file in params/, with or without its suffix, or a path.
PARAMS  = $(firstword $(wildcard params/$(PROFILE).yaml params/$(PROFILE) \
            $(filter %.yaml %.yml,$(PROFILE))) params/$(PROFILE).yaml)
SMOKE  := params/smoke.yaml

# Nothing that runs here reports to anyone.
export DO_NOT_TRACK = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup book notebooks lint types unit chapters test mutants toolkits clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@setup/preflight.sh "$(PYTHON)" "$(VENV)"
	@setup/install.sh "$(PYTHON)" "$(VENV)" build/install.log
	@touch $@

setup: $(STAMP)  ## create .venv and install everything, with pinned versions

.PHONY: profile
profile:
	@test -f "$(PARAMS)" || { echo "$(PARAMS): there is no such params file; the profiles in params/ are $(basename $(notdir $(wildcard params/*.yaml)))" >&2; exit 2; }

book: profile $(STAMP)  ## run PROFILE (default: default) and build its book
	@$(BIN)/fairq run --params "$(PARAMS)" --phase all
	@$(BIN)/fairq book --params "$(PARAMS)"

notebooks: $(STAMP)  ## rewrite the committed notebooks/*.ipynb from the .py at params/smoke.yaml
	@$(BIN)/fairq run --params $(SMOKE) --phase all
	@$(BIN)/fairq notebooks

lint: $(STAMP)  ## ruff, and which room may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(STAMP)  ## mypy
	@$(BIN)/mypy

unit: $(STAMP)  ## unit tests and the examples in docstrings
	@# Two processes of one thread each: two of two would wait for each other.
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --doctest-modules fairq_utils tests

chapters: $(STAMP)  ## execute the committed notebooks and compare what their checked cells print
	@$(BIN)/pytest -q --nbval-lax notebooks/

test: $(STAMP)  ## everything that must hold: lint, types, unit, smoke book, chapters
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory book PROFILE=smoke
	@$(MAKE) --no-print-directory chapters

mutants: $(STAMP)  ## which tests and checked cells notice a change that makes results wrong (an hour)
	@$(BIN)/python tests/mutants.py

bench-%: profile $(STAMP)  ## print a benchmark's table, write build/bench/NAME.json; `fairq bench` lists them
	@$(BIN)/fairq bench $* --params "$(PARAMS)"

toolkits: $(STAMP)  ## install NNCF and Brevitas, which bench-toolkits compares with if they are there
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[toolkits]'

clean:  ## remove built books and caches; the ledger and the environment stay
	rm -rf build/book build/bench _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
