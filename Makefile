# One word per job, from a fresh clone with Python >= 3.10 only: make demo, test, lint, types, docs, wheel, clean.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Anything more for pip, such as --extra-index-url with PyTorch's index of CPU builds.
PIP_FLAGS ?=
# Flags of recipes/distill_bert.py; PYTEST_FLAGS are pytest's.
DEMO_FLAGS ?=
QUICK_FLAGS ?= --quick --output_dir runs/demo_quick
# A process for each core, of one thread: most tests are of models too small for two.
PYTEST_FLAGS ?= -n logical --maxprocesses 4 --dist loadfile

# accelerate launch gives each process one OpenMP thread unless this is set: the demo would use one core.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
LAUNCH = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} $(BIN)/accelerate launch --quiet \
         --config_file accelerate_configs/cpu.yaml

.NOTPARALLEL: # one pip in an environment at a time
.PHONY: help demo demo-quick test test-slow lint format types docs wheel clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Two stamps, so that `make demo` doesn't install what only the tests need. Each is renewed when what it stands
# for changes: the package itself is an editable install, so its own sources need no renewal.
$(VENV)/bin/python:
	@echo "==> making the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hf_distill needs Python >= 3.10")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> installing hf_distill into $(VENV) (the first time 1 to 5 minutes, mostly PyTorch's download)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> installing hf_distill[test] into $(VENV) (the first time 1 to 5 minutes, mostly PyTorch's download)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed  ## the main job: a BERT classifier distilled on real text
	@echo "==> distilling on the embedded text (minutes; a second run keeps the teacher)"
	@$(LAUNCH) recipes/distill_bert.py $(DEMO_FLAGS)

demo-quick: $(VENV)/.installed  ## the same path, small and in about a minute: its numbers mean nothing
	@echo "==> the main job in its quick form (about a minute)"
	@$(LAUNCH) recipes/distill_bert.py $(QUICK_FLAGS) $(DEMO_FLAGS)

test: $(VENV)/.installed-test  ## every test but those marked slow or gpu
	@echo "==> running the tests (some minutes on 2 cores)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-slow: $(VENV)/.installed-test  ## the tests marked slow
	@echo "==> running the slow tests"
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS) || { status=$$?; \
	  if [ $$status -eq 5 ]; then echo "no test is marked slow"; else exit $$status; fi; }

lint: $(VENV)/.installed-test  ## ruff: rules and formatting
	@echo "==> ruff (seconds)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-test  ## ruff rewrites what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.installed-test  ## mypy on hf_distill
	@echo "==> mypy (a minute or two the first time, then seconds)"
	@$(BIN)/mypy

docs: $(VENV)/.installed  ## write docs/objectives.md from the docstrings
	@echo "==> writing docs/objectives.md"
	@$(BIN)/python docs/generate_objectives.py

wheel: $(VENV)/.installed-test  ## the wheel, in dist/
	@echo "==> building the wheel"
	@$(BIN)/python -m build --wheel --no-isolation .

clean:  ## remove the environment, builds and caches; runs/ stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed; runs/ is left as it is"
