# One way to run a thing: these lines are CI's and the README's too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCKER ?= docker
export DOCKER_BUILDKIT = 1

.PHONY: install run test lint compile golden lock image test-docker chaos clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml images/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c images/constraints.txt -e '.[compile,train,dev]'
	touch $@

run: install  ## the whole line on SmolLM2-135M-Instruct, ten minutes on a CPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.function_calling.run

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python compile.py --check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

compile: install
	$(BIN)/python compile.py

golden: install  ## after a wanted change of graph or verdict: post_training.yaml, the shorter shapes, the verdict's schema
	$(BIN)/python compile.py
	$(BIN)/python compile.py --set stages.dpo.enabled=false --output tests/pipelines/golden/sft_only.yaml
	$(BIN)/python compile.py --set stages.sft.enabled=false --output tests/pipelines/golden/dpo_only.yaml
	$(BIN)/python -m posttrain.schema

lock: install  ## images/constraints.txt: every version of an environment that was tested together
	{ echo "# Versions that were tested together; torch without the build's suffix. \`make lock\` writes this file."; \
	  $(BIN)/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//'; } > images/constraints.txt

image:  ## both images: make image BASE_IMAGE=<name>@sha256:<digest> [CPU_BASE_IMAGE=...] [DOCKER_BUILD_ARGS=...]
	$(DOCKER) build -f images/Dockerfile.cpu --build-arg BASE_IMAGE=$(or $(CPU_BASE_IMAGE),$(BASE_IMAGE)) \
	  -t posttrain-cpu:local $(DOCKER_BUILD_ARGS) .
	$(DOCKER) build -f Dockerfile.train --build-arg BASE_IMAGE=$(BASE_IMAGE) -t posttrain-train:local $(DOCKER_BUILD_ARGS) .

test-docker: install  ## both images from nothing and real containers; needs docker.io and debootstrap
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docker -m docker

chaos: install  ## kills the line at random moments and compares the weights: make chaos KILLS=50 SEED=1
	$(BIN)/python -m tests.chaos --kills $(or $(KILLS),20) --seed $(or $(SEED),0)
	$(BIN)/python -m pytest -m chaos

clean:
	rm -rf $(VENV) build runs
