# Every target does its own set-up in .venv; a second call starts at once.
#
#   make train                       the embedded default: cold start and RL in a few minutes on two cores
#   make train ARGS="steps=20 seed=2"   ... with Hydra overrides
#   make test                        the tests          make check   lint, format, types, import directions
#   make bench                       the benchmarks     make clean   remove .venv and caches, keep runs/

PYTHON ?= python3
# What pip is asked for first and alone. Elsewhere than on a machine whose pip knows a CPU wheel, plain PyPI gives the CUDA
# build of several GB; for the CPU build say
#   make train TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# and on a GPU machine TORCH=torch for the newest. To change your mind: make clean.
TORCH ?= torch==2.13.0
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: train test check bench clean constraints

# A learner that needs a library of its own brings it along: make train ARGS="learner=deepspeed"
LEARNER := $(filter deepspeed megatron,$(patsubst learner=%,%,$(ARGS)))

train: .venv/.installed $(LEARNER:%=.venv/.installed-%)
	$(BIN)/cispo train $(ARGS)

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/learners.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/long_context.py
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/grading.py
	$(BIN)/python benchmarks/sandbox_cells.py
	$(BIN)/python benchmarks/sandbox_service.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# --- set-up -----------------------------------------------------------------------------------------------------------

# From the system: venv for the set-up, bubblewrap to isolate the programs that the model writes. First, so that who may
# not install them hears of it at once.
.venv/.system:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cispo needs Python 3.11 or newer; set PYTHON=...")'
	@missing=""; \
	command -v bwrap >/dev/null || missing="bubblewrap"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -z "$$missing" ] || { \
	  if [ "$$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi; \
	  $$as_root apt-get update -qq && $$as_root apt-get install -y -qq $$missing; } >/dev/null 2>&1 || { \
	  echo "cispo needs $$missing, which cannot be installed from here; ask an administrator to run: apt-get install $$missing" >&2; \
	  exit 1; }
	@mkdir -p .venv && touch $@

.venv/.torch: | .venv/.system
	$(PYTHON) -m venv .venv
	@echo "installing $(TORCH) and the rest into .venv (a few minutes, once)"
	$(PIP) $(TORCH)
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-deepspeed .venv/.installed-megatron: .venv/.installed-%: .venv/.installed
	$(PIP) --constraint constraints.txt --editable ".[$*]"
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv/.installed-bench: .venv/.installed-dev
	$(PIP) --constraint constraints.txt --editable ".[bench]"
	@touch $@

constraints: .venv/.installed-bench
	@head -2 constraints.txt >.venv/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | grep -Ev '^(torch|triton)==' >>.venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt
