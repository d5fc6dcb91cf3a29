"""The real container of every component: as compiled, as another user, without rights, network or a writable root."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

import components
from pipelines.steps import Steps, step_names
from posttrain.config import PipelineConfig, load_config
from posttrain.config.line import step_of
from posttrain.verdict import Verdict
from tests.docker.conftest import CONFINED
from tests.tiny_line import write_line

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

INPUT = re.compile(r"\{\{\$\.inputs\.(?:parameters|artifacts)\['(\w+)'\](?:\.path)?\}\}")
SWEEPS = re.compile(r"run_\w*trials?|judge_\w*winner")
EXPORTS = re.compile(r"check_\w*export")
OUTPUT = re.compile(r"\{\{\$\.outputs\.(?:parameters|artifacts)\['(\w+)'\]\.(?:path|output_file)\}\}")

# Step -> component, and for each input the step and the output that it comes from.
ROWS, PAIRS = "prepare_sft_data", "prepare_preferences"
STEPS = {
    "preflight": ("preflight", {}),
    "fetch_model": ("fetch_model", {}),
    "prepare_sft_data": ("prepare_data", {}),
    "prepare_preferences": ("prepare_data", {}),
    "check_data": ("check_data", {
        "tokenizer": "fetch_model/tokenizer", "sft_train": f"{ROWS}/train", "sft_eval": f"{ROWS}/eval",
        "preference_train": f"{PAIRS}/train", "preference_eval": f"{PAIRS}/eval",
    }),
    "train_sft": ("train_sft", {"base": "fetch_model/model", "train": f"{ROWS}/train", "eval": f"{ROWS}/eval"}),
    "check_sft": ("check_sft", {
        "base": "fetch_model/model", "adapter": "train_sft/adapter", "training": "train_sft/metrics",
        "eval": f"{ROWS}/eval",
    }),
    "merge_sft": ("merge_adapter", {"base": "fetch_model/model", "adapter": "train_sft/adapter"}),
    "check_sft_merge": ("check_merge", {
        "base": "fetch_model/model", "adapter": "train_sft/adapter", "model": "merge_sft/model", "eval": f"{ROWS}/eval",
    }),
    "train_dpo": ("train_dpo", {"model": "merge_sft/model", "train": f"{PAIRS}/train", "eval": f"{PAIRS}/eval"}),
    "merge_dpo": ("merge_adapter", {"base": "merge_sft/model", "adapter": "train_dpo/adapter"}),
    "check_dpo_merge": ("check_merge", {
        "base": "merge_sft/model", "adapter": "train_dpo/adapter", "model": "merge_dpo/model", "eval": f"{PAIRS}/eval",
    }),
    "check_alignment": ("check_alignment", {
        "base": "fetch_model/model", "before": "merge_sft/model", "model": "merge_dpo/model",
        "training": "train_dpo/metrics", "preference_eval": f"{PAIRS}/eval", "sft_eval": f"{ROWS}/eval",
    }),
    "publish_model": ("publish_model", {"model": "merge_dpo/model"}),
    "check_champion": ("check_champion", {
        "receipt": "publish_model/receipt", "model": "merge_dpo/model", "preference_eval": f"{PAIRS}/eval",
        "sft_eval": f"{ROWS}/eval",
    }),
    "promote_model": ("promote_model", {"receipt": "publish_model/receipt"}),
    "report_run": ("report_run", {}),
    "reject_sft": ("reject", {"verdict": "check_sft/verdict"}),
}  # fmt: skip


@dataclass
class Containers:
    """Runs a component's container as Kubeflow's launcher does; a folder of this machine keeps its path."""

    docker: Any
    images: dict[str, str]
    folder: Path
    config: PipelineConfig
    results: dict[str, Any] = field(default_factory=dict)  # of the steps so far

    def run(self, step: str, **parameters: str):
        """The finished process of a step, after those that it needs. Outputs are `<folder>/<step>/<output>`."""
        if step not in self.results:
            component, inputs = STEPS[step]
            for origin in inputs.values():
                self.run(origin.partition("/")[0])
            values = {name: str(self.folder / origin) for name, origin in inputs.items()}
            self.results[step] = self._start(step, component, self._parameters(step, component) | values | parameters)
        return self.results[step]

    def _start(self, step: str, component: str, values: dict[str, str]):
        container = container_of(component)
        args = [self._resolved(part, step, component, values) for part in container["args"]]
        image = self.images[re.search(r"posttrain-(\w+)", container["image"])[1]]
        open_to_all(self.folder / step)
        options = [*CONFINED, f"--volume={self.folder}:{self.folder}", "--env=KFP_RUN_ID=docker"]
        options.append("--env=OMP_NUM_THREADS=1")  # beside other work two threads wait for each other, for minutes
        return self.docker("run", *options, image, *container["command"], *args)

    def _parameters(self, step: str, component: str) -> dict[str, str]:
        """Arguments that the graph passes in: the run's parameters, and the component's part of the configuration."""
        steps = Steps(self.config)
        names = step_names(self.config)
        steps.names = names[: names.index(step)] if step in names else names  # publishing asks for the gates before it
        is_pairs = step == "prepare_preferences"
        return {
            "step": step, "storage_root": self.config.storage_root, "overrides": "{}", "model_name": "tiny",
            "config": json.dumps(steps._config_of(step_of(step))), "base_model": self.config.base_model,
            "sft_dataset": self.config.sft_dataset, "preference_dataset": self.config.preference_dataset,
            "dataset": self.config.preference_dataset if is_pairs else self.config.sft_dataset,
            "kind": "preference" if is_pairs else "sft", "status": "{}",
        }  # fmt: skip

    def _resolved(self, part: str, step: str, component: str, values: dict[str, str]) -> str:
        if part == "{{$}}":
            config = json.loads(values["config"])
            inputs = {"parameterValues": {"config": config}}
            return json.dumps(executor_input(component, self.folder / step) | {"inputs": inputs})
        part = OUTPUT.sub(lambda found: str(self.folder / step / found[1]), part)
        return INPUT.sub(lambda found: values[found[1]], part)


def container_of(component: str) -> dict:
    spec = json_format.MessageToDict(getattr(components, component).pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    return executor["container"]


def outputs_of(component: str) -> dict[str, dict]:
    spec = json_format.MessageToDict(getattr(components, component).pipeline_spec)
    (component,) = spec["components"].values()
    return component.get("outputDefinitions", {})


def executor_input(component: str, folder: Path) -> dict:
    outputs = outputs_of(component)
    return {
        "outputs": {
            "artifacts": {
                name: {"artifacts": [{"name": name, "uri": f"{folder}/{name}"}]}
                for name in outputs.get("artifacts", {})
            },
            "parameters": {name: {"outputFile": f"{folder}/{name}"} for name in outputs.get("parameters", {})},
            "outputFile": f"{folder}/executor_output.json",
        }
    }


def open_to_all(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


@pytest.fixture(scope="module")
def containers(docker, images, tmp_path_factory, model) -> Containers:
    folder = tmp_path_factory.mktemp("components")
    open_to_all(folder)
    shutil.copytree(model, folder / "base")
    config = load_config(write_line(folder, folder / "base"))
    return Containers(docker, images, folder, config)


@pytest.mark.parametrize("step", [step for step in STEPS if not step.startswith("reject_")])
def test_a_component_runs_in_its_container(containers, step):
    result = containers.run(step)
    assert result.returncode == 0, result.stdout + result.stderr
    (record,) = (Path(containers.config.storage_root) / "runs" / "docker").glob(f"{step}.*.json")
    assert json.loads(record.read_text())["status"] == "succeeded"
    outputs = outputs_of(STEPS[step][0])
    for name in [*outputs.get("artifacts", {}), *outputs.get("parameters", {}), "executor_output.json"]:
        assert (containers.folder / step / name).exists(), name
    if step.startswith("check_"):
        verdict = (containers.folder / step / "verdict").read_text()
        assert (containers.folder / step / "passed").read_text() == "true", verdict


def test_every_component_of_the_full_graph_is_run():
    other_shapes = {"check_sft_data", "check_preference_data", "check_preference_alignment", "check_safety"}
    other_shapes |= {"check_adapter_champion", "check_preference_champion", "check_sft_champion"}
    other_shapes |= {"reject_and_tell", "register_model"}
    of_pairs = {"prepare_data_with_references", "sample_pairs", "sample_pairs_alone", "check_pairs"}
    of_exports = {"export_model", "publish_exported_model"} | {
        name for name in components.__all__ if EXPORTS.fullmatch(name)
    }
    of_sweeps = {"hold_out", "compare_trials"} | {name for name in components.__all__ if SWEEPS.fullmatch(name)}
    assert {component for component, _ in STEPS.values()} == set(
        components.__all__
    ) - other_shapes - of_pairs - of_exports - of_sweeps


def test_training_learns(containers):
    containers.run("train_sft")
    output = json.loads((containers.folder / "train_sft" / "executor_output.json").read_text())
    metrics = output["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert metrics["final_loss"] < metrics["first_loss"]


def test_the_report_says_that_the_model_was_published_and_made_current(containers):
    containers.run("check_champion")
    containers.run("promote_model")
    containers.run("report_run")
    assert json.loads((containers.folder / "report_run" / "result").read_text())["success"] is True


def test_a_rejected_verdict_ends_the_step(containers):
    containers.run("check_sft")
    verdict = Verdict.read((containers.folder / "check_sft" / "verdict").read_bytes())
    failed = containers.folder / "failed.json"
    checks = [verdict.checks[0].model_copy(update={"status": "failed"}), *verdict.checks[1:]]
    failed.write_text(verdict.model_copy(update={"checks": tuple(checks)}).model_dump_json())
    result = containers.run("reject_sft", verdict=str(failed))
    assert result.returncode == 1
    assert "rejected by check_sft" in result.stderr.splitlines()[-1]


def test_a_failed_step_says_why_on_its_last_line(containers):
    missing = f"{containers.folder}/missing"
    values = containers._parameters("fetch_model", "fetch_model") | {"step": "fetch_missing", "base_model": missing}
    result = containers._start("fetch_missing", "fetch_model", values)
    assert result.returncode == 1
    assert missing in result.stderr.splitlines()[-1]
