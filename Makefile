# `make demo` and `make test` need Python >= 3.10, a C++17 compiler and pip; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# `make models-env PYTHON=path` goes into the environment of that interpreter, without PYTHON= into .venv.
MODELS_ENV := $(if $(filter file,$(origin PYTHON)),.venv/.models,models-into-python)
DATA := $(or $(SFF_FAST_TEST_DATA),$(wildcard ../shared/data))
PYTEST := SFF_FAST_TEST_DATA="$(DATA)" $(BIN)/python -m pytest
NATIVE := setup.py CMakeLists.txt cmake/cuda.cmake $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
FORMATTED := $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' | sort)
TIDY := $(filter-out %_isa.cpp,$(wildcard csrc/cpu/*.cpp))

.DEFAULT_GOAL := help
MINUTES ?= 60
.PHONY: help setup models-env models-into-python cuda-tools cuda-tools-if-can browser-driver browser-driver-if-can gpu-check demo test test-slow test-exhaustive lint tidy format docs coverage mutation fuzz bench doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: .venv/.built  ## create .venv, install the package and build its native module
models-env: $(MODELS_ENV)  ## add the packages of the model families (1.8 GB); PYTHON=path: to that environment

cuda-tools: .venv/.cuda  ## add what the tests read CUDA machine code with, and nvcc where the machine has none

browser-driver: .venv/.browser  ## add what the report's tests drive a browser with; the browser is the system's (chromium)

gpu-check: setup  ## on a machine with a GPU, offline after setup: build, CUDA tests, 1e9 elements against the CPU, bandwidth
	SFF_FAST_CUDA=on $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	PYTHONPATH=tests $(BIN)/python tools/gpu_check.py

demo: setup  ## zero-shot, from scratch, full and smoothed fine-tuning on real weather, in a few minutes
	$(BIN)/sff-fast demo --out runs/demo --overwrite

test: setup .venv/.models cuda-tools-if-can browser-driver-if-can  ## the test suite, with nvcc's code where nvcc is there or can be had
	$(PYTEST) -m "not slow and not exhaustive"

test-slow: setup .venv/.models .venv/.docs .venv/.lint .venv/.fuzz cuda-tools  ## builds, sanitizers, more sizes, kills
	$(PYTEST) -m slow

test-exhaustive: setup  ## all input words, 1e8 elements and draws (half an hour or more); writes docs/exhaustive.md
	$(BIN)/python tools/exhaustive.py

docs: setup .venv/.docs  ## the documentation site: build/site/index.html; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup .venv/.lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/pyright --pythonpath $(BIN)/python

tidy: setup .venv/.lint  ## clang-tidy over the native code (minutes)
	$(BIN)/cmake -S . -B build/tidy -DSFF_NATIVE_TESTS=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
	$(BIN)/clang-tidy --quiet -p build/tidy $(TIDY)

format: setup .venv/.lint  ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

coverage: setup .venv/.models .venv/.lint  ## lines that the tests run: Python under the suite, C++ under the native driver
	$(BIN)/cmake -S . -B build/gcov -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSFF_NATIVE_TESTS=ON \
		-DCMAKE_CXX_FLAGS="--coverage -fprofile-update=atomic" -DCMAKE_CXX_FLAGS_RELEASE=-O0 >/dev/null
	$(BIN)/cmake --build build/gcov --target driver
	build/gcov/driver fuzz 1 20000 400 2
	build/gcov/driver fuzz 2 20 300000 3
	PYTHONPATH=tests $(BIN)/python -c "import driver; open('build/gcov/vectors', 'wb').write(b''.join(driver.vectors()))"
	build/gcov/driver vectors build/gcov/vectors
	$(BIN)/gcovr --root . --merge-lines --filter csrc/ --exclude '.*adamw.*' --exclude '.*quantize.*' build/gcov
	SFF_FAST_TEST_DATA="$(DATA)" $(BIN)/coverage run -m pytest -m "not slow and not exhaustive"
	$(BIN)/coverage report

mutation: setup  ## breaks the kernels one token at a time; writes docs/mutation.md (an hour)
	$(BIN)/python tools/mutate_kernels.py

fuzz: setup .venv/.fuzz  ## parsers, Python layer and kernels' tables, MINUTES=60 for each; found inputs go to build/fuzz/found
	$(BIN)/python tools/fuzz.py --minutes $(MINUTES)

bench: setup  ## speed of smoothing against its peers: README's tables and picture, docs/kernel-limits.md
	$(BIN)/python benchmarks/bench_smooth.py
	$(BIN)/python tools/kernel_limits.py

doctor: setup  ## what is installed, and what is missing
	$(BIN)/sff-fast doctor

clean:  ## remove .venv, builds and runs
	rm -rf .venv build runs sff_fast/_cpu*.so sff_fast/_cuda*.so sff_fast/_cuda_absent.txt

.venv/.packages: requirements/dev.txt requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/dev.txt
	touch $@

.venv/.built: .venv/.packages pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

define install-models
$(1) -m pip install --quiet -c requirements/constraints.txt -r requirements/models.txt
$(1) -m pip install --quiet --no-deps -r requirements/models-no-deps.txt
endef

.venv/.docs .venv/.fuzz .venv/.lint: .venv/.%: requirements/%.txt requirements/constraints.txt .venv/.packages
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r $<
	touch $@

.venv/.models: .venv/.packages requirements/models.txt requirements/models-no-deps.txt
	$(call install-models,$(BIN)/python)
	touch $@

models-into-python:
	$(call install-models,$(PYTHON))

define install-cuda-tools
$(BIN)/python -m pip install --quiet -r requirements/cuda-disassembler.txt && \
{ command -v nvcc >/dev/null || $(BIN)/python -m pip install --quiet -r requirements/cuda.txt; } && touch .venv/.cuda
endef

.venv/.cuda: .venv/.packages requirements/cuda.txt requirements/cuda-disassembler.txt
	$(install-cuda-tools)

cuda-tools-if-can: .venv/.packages
	@test -e .venv/.cuda || { $(install-cuda-tools); } || echo "the CUDA tools cannot be installed: tests that need them are skipped"

define install-browser-driver
$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/browser.txt && touch .venv/.browser
endef

.venv/.browser: .venv/.packages requirements/browser.txt
	$(install-browser-driver)

browser-driver-if-can: .venv/.packages
	@test -e .venv/.browser || { $(install-browser-driver); } || echo "the browser's driver cannot be installed: tests that need it are skipped"
