# Everything starts here: `make demo` and `make test` create what they need on a fresh machine with
# Python 3.11 or later, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The compiled module is rebuilt when any of these changes.
NATIVE := CMakeLists.txt setup.py $(wildcard csrc/*.cpp csrc/*.h kernels/*.h kernels/cpu/* kernels/cuda/*)
# The pinned dependencies are installed again when the pins change.
PINS := constraints.txt pyproject.toml

# Threads that wait sleep soon: tests and demo stay quick on a machine that others use too.
export GOMP_SPINCOUNT ?= 2000

.PHONY: help build demo test lint format bench sanitize gpu dryrun clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: $(VENV)/built ## create .venv and compile the extension

demo: build ## train, sample and compare the four families on real digits: runs/demo/report.html
	$(BIN)/genfast compare --data digits --out runs/demo

test: build ## run the whole test suite
	$(BIN)/python -m pytest

lint: build ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter-out CMakeLists.txt setup.py,$(NATIVE))

format: build ## rewrite sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter-out CMakeLists.txt setup.py,$(NATIVE))

bench: build ## time ops and training steps beside eager and compiled PyTorch; RESULTS=FILE.json keeps and plots it
	$(BIN)/python -m pytest benchmarks -q -W default --benchmark-columns=median,iqr,rounds --benchmark-group-by=group \
	  $(if $(RESULTS),--results $(RESULTS))

# The module and a copy of the Python sources, apart from the ones in use. libstdc++ is loaded early
# too, for else the sanitizer does not find what throws. Python and torch leak at exit, by design,
# and torch's own vectors are not marked.
SANITIZED := build/sanitize/lib
SANITIZE_TESTS ?= tests/ops
preload = $(shell $(or $(CXX),c++) -print-file-name=$(1))
sanitize: build ## op tests with the C++ under address and undefined behaviour sanitizers
	GENFAST_SANITIZE=address,undefined GENFAST_CUDA=off \
	  $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$(call preload,libasan.so) $(call preload,libstdc++.so)" PYTHONPATH=$(SANITIZED) \
	  ASAN_OPTIONS=detect_leaks=0:detect_container_overflow=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python -m pytest -o pythonpath="$(SANITIZED) ." -p no:cacheprovider $(SANITIZE_TESTS)

# Nothing is installed but genfast itself: torch, nvcc and Triton are the machine's own.
gpu: ## on a CUDA machine without a network: build, test, sanitize and measure; RESULTS=FOLDER STEPS=build,...
	$(PYTHON) -m benchmarks.cuda_machine --out $(or $(RESULTS),runs/gpu) $(if $(STEPS),--steps $(STEPS))

dryrun: build ## the same on the CPU, a little of every step
	$(BIN)/python -m benchmarks.cuda_machine --dry-run --out $(or $(RESULTS),runs/dryrun) || \
	  { tail -n 200 $(or $(RESULTS),runs/dryrun)/logs.txt; exit 1; }

clean: ## remove the environment, the build and the runs
	rm -rf $(VENV) build dist runs *.egg-info genfast/_C.*.so genfast/_build_info.json

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "genfast needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "genfast needs Python's venv module (on Debian: the package python3-venv)"; exit 1; }

# torch first and by itself: the extension is built for the torch that is installed.
$(VENV)/installed: $(PINS) | $(VENV)/bin/python
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) torch pybind11 ninja cmake
	@touch $@

$(VENV)/built: $(VENV)/installed $(NATIVE)
	$(PIP) --no-build-isolation --editable '.[dev,triton,tensorboard]'
	@touch $@
