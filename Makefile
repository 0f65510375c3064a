# Everything a newcomer or CI runs. Only Python 3.11+, pip, venv and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NEWEST := .venv-newest
AUDIT  := .venv-audit
PIP    := -m pip install --quiet --disable-pip-version-check
ONLY   ?=
JOBS   ?= 2
ARGS   ?=
# A file's tests share what is dear to make, so a worker takes whole files, in the order that conftest.py gives.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install sweep check test lint types format hooks canaries audit-packages bench gpu ui clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install into .venv (once; again when pyproject.toml or constraints.txt change)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "otsweep needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make install PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV): 3 to 5 minutes, mostly torch ..."
	@# One that was interrupted while it was made has no pip: it is made anew.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	@# A reference in the tests; its metadata asks for a requests of 2020, so it goes in without its dependencies.
	@$(BIN)/python $(PIP) --no-deps -c constraints.txt torchattacks
	@touch $@

sweep: install  ## Run a real sweep on the embedded digits to a front (ARGS="--trials 48" passes options on)
	@$(BIN)/otsweep run digits $(ARGS)

check: lint  ## Check format, lint, types and what the fast tests test, in minutes: before every commit
	@$(PYTEST) -m "not slow" tests/unit $(ARGS)

test: install  ## Run all tests, JOBS=2 files at once (ARGS="-k pareto" passes options on)
	@$(PYTEST) $(ARGS)

lint: install types  ## Check format, lint, docstrings and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/python -m tests.docstrings

types: install  ## Check types
	@$(BIN)/pyright

format: install  ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

hooks: install  ## Have git check format, lint and docstrings at every commit
	@$(BIN)/pre-commit install

canaries: install  ## Test what we use of Ray, Optuna and MLflow beside their documentation, on their newest versions
	@$(NEWEST)/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear $(NEWEST)
	@# All else is that of .venv.
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/all-else.pth"
	@$(NEWEST)/bin/python $(PIP) --upgrade 'ray[tune]' optuna mlflow
	@$(NEWEST)/bin/python -m pip list --disable-pip-version-check 2>/dev/null | grep -E '^(ray|optuna|mlflow) '
	@$(NEWEST)/bin/python -m pytest -m canary tests/unit $(ARGS)

audit-packages:  ## Look up the known vulnerabilities of every pinned package, on the network (pip-audit)
	@said=$$({ $(AUDIT)/bin/pip-audit --version >/dev/null 2>&1 || { $(PYTHON) -m venv --clear $(AUDIT) \
		&& $(AUDIT)/bin/python $(PIP) pip-audit; }; } 2>&1 && $(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps \
		--progress-spinner off -r constraints.txt 2>&1); status=$$?; \
	case "$$said" in \
	*"nown vulnerabilit"*) echo "$$said" | grep -v ^WARNING; exit $$status ;; \
	*) echo "audit-packages: nothing was audited, as the advisories did not answer: $$(echo "$$said" | tail -n 1)"; exit 1 ;; \
	esac

bench: install  ## Run the benchmarks (ONLY=name runs one)
	@$(BIN)/python -m tests.benchmarks $(ONLY)

gpu:  ## Try everything on a GPU in 6 minutes; torch is needed, no install (ARGS="--data-dir DIR", "--rehearse" on a CPU)
	@$(PYTHON) -m tests.gpu $(ARGS)

ui: install  ## Open MLflow on this machine's store
	@$(BIN)/otsweep ui

clean:  ## Remove the virtual environments and caches (never your sweeps)
	rm -rf $(VENV) $(NEWEST) $(AUDIT) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
