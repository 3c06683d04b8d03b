# Two commands need nothing but Python 3.10+, a C++ compiler and pip: `make run` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/pip --disable-pip-version-check
STAMP   = $(VENV)/.installed
NATIVE  = $(shell find csrc -type f 2>/dev/null)

.PHONY: help run test test-all lint format bench docs clean

help:           ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch is installed first and alone: the constraint then keeps every later package on that build.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch numpy
	$(PIP) install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

run: $(STAMP)   ## train sparse, shrink, measure, on the bundled digits; writes runs/digits/report.html
	$(BIN)/gossamer train --out runs/digits --overwrite

# One thread in each of two processes: what is tested about threads sets its own number of them.
test: $(STAMP)  ## the test suite (CPU, under 7 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-all: $(STAMP)  ## the long tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'not gpu'

lint: $(STAMP)  ## ruff, mypy, the floors, and that the docs' tables match the committed results
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check

format: $(STAMP)  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: $(STAMP) ## measure on this machine and rewrite the docs' tables
	$(BIN)/gossamer bench detect --json benchmarks/results/cpu/detect.json
	$(BIN)/gossamer bench compact --json benchmarks/results/cpu/compact.json
	$(BIN)/gossamer bench conv --json benchmarks/results/cpu/conv.json
	$(BIN)/gossamer bench matmul --json benchmarks/results/cpu/matmul.json
	$(BIN)/python benchmarks/tables.py

docs: $(STAMP)  ## run every example of the docs and rewrite their tables from the committed results
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python -m pytest -q tests/docs

clean:          ## remove the venv and what was built
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
