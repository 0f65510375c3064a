# Everything a newcomer or CI runs. Only Python 3.11+, pip, venv and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ONLY   ?=
JOBS   ?= 2
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install sweep test check lint format bench ui clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install into .venv (once; again when pyproject.toml or constraints.txt change)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "otsweep needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make install PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV): 3 to 5 minutes, mostly torch ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# A reference in the tests; its metadata asks for a requests of 2020, so it goes in without its dependencies.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchattacks
	@touch $@

sweep: install  ## Run a real sweep on the embedded digits to a front (ARGS="--trials 48" passes options on)
	@$(BIN)/otsweep run digits $(ARGS)

test: install  ## Run the tests, JOBS=2 files at once (ARGS="-k pareto" passes options on)
	@# A file's tests share what is dear to make, so a worker takes whole files, in the order that conftest.py gives.
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint  ## Lint, types and the fast unit tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow" tests/unit $(ARGS)

lint: install  ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

format: install  ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install  ## Run the benchmarks (ONLY=name runs one)
	@$(BIN)/python -m tests.benchmarks $(ONLY)

ui: install  ## Open MLflow on this machine's store
	@$(BIN)/otsweep ui

clean:  ## Remove the virtual environment and caches (never your sweeps)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
