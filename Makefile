# Everything runs in .venv, which each target makes and keeps up to date by itself.
#
#   make demo       several programs talk to one loaded model
#   make test       the test suite; leaves .venv with what the benches need
#   make test-gpu   the network on this machine's GPU
#   make check      style, types, imports, sizes, and the contract
#   make gen        write the code of the contract again
#   make clean      remove .venv and what tools left behind
#
# PYTHON=python3.12 chooses another interpreter; PIP_FLAGS goes to pip.

# The first of these that is new enough: a Mac's own python3 is not.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for it in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$it $(NEW_ENOUGH) 2>/dev/null && echo $$it && exit; done; echo python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: demo test test-gpu check gen clean
.DELETE_ON_ERROR:

demo: .venv/runtime.stamp
	$(BIN)/python demo/demo.py

test: .venv/bench.stamp
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-gpu: .venv/bench.stamp
	$(BIN)/python -m pytest tests/gpu $(PYTEST_FLAGS)

check: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_sizes.py
	$(BIN)/buf lint
	$(BIN)/python tools/check_generated.py
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/check_breaking.sh

gen: .venv/dev.stamp
	$(BIN)/python proto/generate.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, grown by what a target needs. A stamp is older than pyproject.toml when that
# changed; it is written only when pip succeeded, so an interrupted install is done again.
.venv/runtime.stamp: pyproject.toml
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { \
	  echo "ds4 needs Python 3.11 or newer, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable .
	@touch $@

.venv/dev.stamp: .venv/runtime.stamp
	$(INSTALL) --editable '.[dev]'
	@touch $@

.venv/bench.stamp: .venv/dev.stamp
	$(INSTALL) --editable '.[dev,bench]'
	@touch $@
