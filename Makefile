# One way to run a thing: these lines are CI's and the README's too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: install run test lint compile golden clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml images/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c images/constraints.txt -e '.[compile,train,dev]'
	touch $@

run: install  ## the whole line on SmolLM2-135M-Instruct, ten minutes on a CPU
	$(BIN)/python -m examples.function_calling.run

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest
	$(BIN)/python compile.py --check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

compile: install
	$(BIN)/python compile.py

golden: install  ## after a wanted change of the graph: writes post_training.yaml and the golden files of the shorter shapes
	$(BIN)/python compile.py
	$(BIN)/python compile.py --set stages.dpo.enabled=false --output tests/pipelines/golden/sft_only.yaml
	$(BIN)/python compile.py --set stages.sft.enabled=false --output tests/pipelines/golden/dpo_only.yaml

lock: install  ## every version of an environment that was tested together
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' > images/constraints.txt

clean:
	rm -rf $(VENV) build runs
