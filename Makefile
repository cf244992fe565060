# Every target does its own set-up in .venv; a second call starts at once.
#
#   make train                       the embedded default: cold start and RL in a few minutes on two cores
#   make train ARGS="steps=20 seed=2"   ... with Hydra overrides
#   make test                        the tests          make check   lint, format, types, import directions
#   make bench                       the benchmarks     make clean   remove .venv and caches, keep runs/

PYTHON ?= python3
# On a GPU machine: make train TORCH="torch" lets pip choose the CUDA build.
TORCH ?= torch==2.13.0
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: train test check bench long clean constraints

train: .venv/.installed .venv/.system
	$(BIN)/cispo train $(ARGS)

test: .venv/.installed-dev .venv/.system
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: .venv/.installed-bench .venv/.system
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/embedded.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# --- set-up -----------------------------------------------------------------------------------------------------------

.venv/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cispo needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing $(TORCH) and the rest into .venv (a few minutes, once)"
	$(PIP) "$(TORCH)"
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv/.installed-bench: .venv/.installed-dev
	$(PIP) --constraint constraints.txt --editable ".[bench]"
	@touch $@

# bubblewrap isolates the programs that the model writes; nothing else is needed from the system.
.venv/.system: .venv/.torch
	@command -v bwrap >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi; \
	  { $$as_root apt-get update -qq && $$as_root apt-get install -y -qq bubblewrap; } >/dev/null 2>&1 \
	  && command -v bwrap >/dev/null; } || { \
	  echo "cispo runs the model's programs in bubblewrap, which is not installed; ask an administrator to run: apt-get install bubblewrap"; \
	  exit 1; }
	@touch $@

constraints: .venv/.installed-bench
	@head -2 constraints.txt >.venv/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >>.venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt
