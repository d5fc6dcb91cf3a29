# There is one way to run a thing: CI and the documentation use these targets.
PYTHON ?= python3
VENV ?= .venv
UNSLOTH_VENV ?= .venv-unsloth
BIN := $(VENV)/bin
DOCKER ?= docker
export DOCKER_BUILDKIT = 1

.PHONY: install run test lint compile golden lock image image-cpu image-train push engine test-docker test-unsloth \
  test-gpu rehearse-gpu test-cluster test-long chaos chaos-nodes mutants bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml images/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c images/constraints.txt -e '.[compile,train,dev]'
	touch $@

run: install  ## the whole pipeline on SmolLM2-135M-Instruct, on a CPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.function_calling.run

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
	$(BIN)/python compile.py --check

test-long: install  ## what takes minutes: gates that fail in every way, attacks, sweeps, collapsed models, documents
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m long

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

compile: install
	$(BIN)/python compile.py

golden: install  ## after a deliberate change of graph, verdict or setting: every file that is generated from them
	$(BIN)/python compile.py
	$(BIN)/python compile.py --set stages.dpo.enabled=false --output tests/pipelines/golden/sft_only.yaml
	$(BIN)/python compile.py --set stages.sft.enabled=false --output tests/pipelines/golden/dpo_only.yaml
	$(BIN)/python compile.py --set stages.pairs.enabled=true --output tests/pipelines/golden/pairs.yaml
	$(BIN)/python compile.py --set 'export.formats=[q8_0]' --output tests/pipelines/golden/exported.yaml
	$(BIN)/python compile.py --set registries.model_registry.url=http://model-registry-service.kubeflow.svc:8080 \
	  --set 'registries.mlflow={tracking_uri: https://mlflow.example.com, secret: mlflow, key: token}' \
	  --output tests/pipelines/golden/registered.yaml
	$(BIN)/python -m posttrain.schema
	$(BIN)/python -m docs.reference
	$(BIN)/python -m docs.memory

lock: install  ## every version of this environment, tested together, and the wheels of the images with their SHA-256
	{ echo "# Versions that were tested together; torch without the build's suffix. \`make lock\` writes this file."; \
	  $(BIN)/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//'; } > images/constraints.txt
	$(BIN)/python -m images.lock

image: image-cpu image-train  ## make image BASE_IMAGE=<name>@sha256:<digest> [CPU_BASE_IMAGE=...] [DOCKER_BUILD_ARGS=...]

image-cpu image-train: image-%:  ## one of them, and its bill of materials, build/posttrain-<name>.cdx.json
	$(BUILD) -t posttrain-$*:local .
	$(BUILD) --target sbom --output build .

BUILD = $(DOCKER) build -f $(DOCKERFILE) --build-arg BASE_IMAGE=$(BASE) --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(REVISION) $(DOCKER_BUILD_ARGS)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION := $(shell git rev-parse HEAD 2> /dev/null || echo unknown)
image-cpu: DOCKERFILE = images/Dockerfile.cpu
image-cpu: BASE = $(or $(CPU_BASE_IMAGE),$(BASE_IMAGE))
image-train: DOCKERFILE = Dockerfile.train
image-train: BASE = $(BASE_IMAGE)

push: install  ## both images to make push REGISTRY=<host>/<path>, their digests into images/digests.yaml, and the graph
	$(MAKE) image
	DOCKER=$(DOCKER) $(BIN)/python -m images.push --version $(VERSION) \
	  --registry $(or $(REGISTRY),$(error REGISTRY is missing: make push REGISTRY=<host>/<path> BASE_IMAGE=...))
	$(BIN)/python compile.py
	$(BIN)/python -m pipelines.lint post_training.yaml

engine:  ## Debian's Docker engine and registry, and debootstrap, where they are missing; needs root
	which dockerd docker-registry debootstrap > /dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends docker.io docker-registry debootstrap; }

test-unsloth: $(UNSLOTH_VENV)/installed  ## SFT, DPO, merge and resume with unsloth and in 4 bits, on the CPU
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(UNSLOTH_VENV)/bin/python -m pytest tests/unsloth -m unsloth

$(UNSLOTH_VENV)/installed: pyproject.toml images/constraints.txt images/unsloth.txt
	$(PYTHON) -m venv $(UNSLOTH_VENV)
	$(UNSLOTH_VENV)/bin/pip install --quiet --disable-pip-version-check -c images/constraints.txt -e '.[train,dev]'
	$(UNSLOTH_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r images/unsloth.txt
	touch $@

test-gpu: install  ## training, gates and merge on a GPU; with unsloth and in 4 bits where they are installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu -m gpu -W default

rehearse-gpu: $(UNSLOTH_VENV)/installed  ## the tests of test-gpu on a CPU, with a stand-in for memory and kernels
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GPU_TESTS_ON=cpu $(UNSLOTH_VENV)/bin/python -m pytest tests/gpu -m gpu -W default

test-docker: install  ## both images from nothing, their containers, a release; starts the engine that make engine installs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docker -m docker

test-cluster: install  ## the line on your Kubeflow: make test-cluster ENDPOINT=... STORAGE=gs://... [CLUSTER_ARGS=...]
	OMP_NUM_THREADS=1 $(BIN)/python -m $(if $(ENDPOINT),tests.cluster --endpoint $(ENDPOINT) \
	  --storage $(or $(STORAGE),$(error STORAGE is missing: a gs:// or s3:// folder)) $(CLUSTER_ARGS),pytest tests/cluster -m cluster)

chaos: install  ## kills the line at random moments and compares the weights: make chaos KILLS=50 SEED=1
	$(BIN)/python -m tests.chaos --kills $(or $(KILLS),20) --seed $(or $(SEED),0)
	$(BIN)/python -m pytest -m chaos

# judge_agreement needs a judge of the user's own, and stays apart.
BENCHMARKS = checkpointing cold_start dpo gate_checks generation growth line merge sft storage sweep

chaos-nodes: install  ## the same for a training on two nodes, on a stub of the Kubernetes API: make chaos-nodes KILLS=50 SEED=1 STAGE=dpo
	$(BIN)/python -m tests.chaos.nodes --kills $(or $(KILLS),20) --seed $(or $(SEED),0) --stage $(or $(STAGE),sft)

mutants: install  ## changes the code that judges, place by place, to see a test fail: make mutants ONLY=verdict SAMPLE=50
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(if $(ONLY),--only $(ONLY)) $(if $(SAMPLE),--sample $(SAMPLE)) \
	  $(if $(QUICK),--quick) --seed $(or $(SEED),0)

bench: install  ## every figure against its peers, and benchmarks/README.md; one that fails does not keep the others back
	$(MAKE) --keep-going $(addprefix bench-,$(BENCHMARKS)) table

bench-%: install  ## one of them: make bench-gpu BENCH_ARGS=--tiny rehearses that of a GPU on a CPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.$* $(BENCH_ARGS)

table: install
	$(BIN)/python -m benchmarks.table

clean:
	rm -rf $(VENV) $(UNSLOTH_VENV) build runs
