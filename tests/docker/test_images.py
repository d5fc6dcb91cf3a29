"""The real containers of four steps: as compiled, as another user, without rights, network or a writable root."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

import components

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

CONFINED = (
    "--rm", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp",
)  # fmt: skip
SFT = {"lora_r": 4, "epochs": 1, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 5e-3}
SETTINGS = {"sft": SFT | {"max_seq_length": 256}, "dpo": {"max_seq_length": 256}}
INPUT = re.compile(r"\{\{\$\.inputs\.(?:parameters|artifacts)\['(\w+)'\](?:\.path)?\}\}")
OUTPUT = re.compile(r"\{\{\$\.outputs\.(?:parameters|artifacts)\['(\w+)'\]\.(?:path|output_file)\}\}")


@dataclass
class Containers:
    """Runs a component's container as Kubeflow's launcher does, with `folder` of this machine as /data."""

    docker: Any
    images: dict[str, str]
    folder: Path

    def run(self, name: str, *, step: str | None = None, config: dict | None = None, **inputs: str):
        """The finished process; its outputs are `<folder>/<step>/<output>`."""
        step, container = step or name, container_of(name)
        common = {"step": step, "storage_root": "/data/root", "overrides": "{}", "config": json.dumps(config or {})}
        args = [self.resolved(part, step, name, common | inputs) for part in container["args"]]
        image = self.images[re.search(r"posttrain-(\w+)", container["image"])[1]]
        open_to_all(self.folder / step)
        mounted = [f"--volume={self.folder}:/data", "--env=KFP_RUN_ID=docker"]
        return self.docker("run", *CONFINED, *mounted, image, *container["command"], *args)

    def resolved(self, part: str, step: str, name: str, given: dict[str, str]) -> str:
        if part == "{{$}}":
            return json.dumps(executor_input(name, f"/data/{step}"))
        part = OUTPUT.sub(lambda found: f"/data/{step}/{found[1]}", part)
        return INPUT.sub(lambda found: given[found[1]], part)


def container_of(name: str) -> dict:
    spec = json_format.MessageToDict(getattr(components, name).pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    return executor["container"]


def executor_input(name: str, folder: str) -> dict:
    spec = json_format.MessageToDict(getattr(components, name).pipeline_spec)
    (component,) = spec["components"].values()
    outputs = component["outputDefinitions"]
    return {
        "outputs": {
            "artifacts": {
                key: {"artifacts": [{"name": key, "uri": f"{folder}/{key}"}]} for key in outputs["artifacts"]
            },
            "parameters": {key: {"outputFile": f"{folder}/{key}"} for key in outputs.get("parameters", {})},
            "outputFile": f"{folder}/executor_output.json",
        }
    }


def open_to_all(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


@pytest.fixture(scope="module")
def containers(docker, images, tmp_path_factory, tiny_model, task_api_files) -> Containers:
    folder = tmp_path_factory.mktemp("data")
    open_to_all(folder)
    shutil.copytree(tiny_model, folder / "model", copy_function=shutil.copyfile)
    shutil.copytree(task_api_files, folder / "task_api", copy_function=shutil.copyfile)
    for name in ("model", "task_api"):
        (folder / name).chmod(0o755)  # pytest makes its folders for one user alone
    return Containers(docker, images, folder)


@pytest.fixture(scope="module")
def fetched(containers) -> None:
    succeeded(containers, "fetch_model", containers.run("fetch_model", base_model="/data/model"))


@pytest.fixture(scope="module")
def prepared(containers) -> None:
    config = {"data": {"eval_fraction": 0.25}}
    for step, dataset, kind in (
        ("prepare_sft_data", "/data/task_api/sft.jsonl", "sft"),
        ("prepare_preferences", "/data/task_api/preferences.jsonl", "preference"),
    ):
        result = containers.run("prepare_data", step=step, config=config, dataset=dataset, kind=kind)
        succeeded(containers, step, result)


def succeeded(containers: Containers, step: str, result) -> dict:
    """The executor output of a step that ended well and left its record."""
    assert result.returncode == 0, result.stdout + result.stderr
    (record,) = (containers.folder / "root" / "runs" / "docker").glob(f"{step}.*.json")
    assert json.loads(record.read_text())["status"] == "succeeded"
    return json.loads((containers.folder / step / "executor_output.json").read_text())


def test_the_base_model_comes_in(containers, fetched):
    assert (containers.folder / "fetch_model" / "model" / "model.safetensors").exists()
    assert (containers.folder / "fetch_model" / "tokenizer" / "tokenizer.json").exists()


def test_the_data_gate_passes(containers, fetched, prepared):
    files = {
        f"{name}_{part}": f"/data/{step}/{part}"
        for name, step in (("sft", "prepare_sft_data"), ("preference", "prepare_preferences"))
        for part in ("train", "eval")
    }
    result = containers.run("check_data", config=SETTINGS, tokenizer="/data/fetch_model/tokenizer", **files)
    output = succeeded(containers, "check_data", result)
    verdict = json.loads((containers.folder / "check_data" / "verdict").read_text())
    assert output["parameterValues"] == {"passed": True}, verdict
    assert (containers.folder / "check_data" / "passed").read_text() == "true"


def test_an_adapter_is_trained(containers, fetched, prepared):
    files = {part: f"/data/prepare_sft_data/{part}" for part in ("train", "eval")}
    result = containers.run("train_sft", config={"sft": SETTINGS["sft"]}, base="/data/fetch_model/model", **files)
    output = succeeded(containers, "train_sft", result)
    assert (containers.folder / "train_sft" / "adapter" / "adapter_model.safetensors").exists()
    metrics = output["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert metrics["final_loss"] < metrics["first_loss"]


def test_a_failed_step_says_why_on_its_last_line(containers):
    result = containers.run("fetch_model", step="fetch_missing", base_model="/data/missing")
    assert result.returncode == 1
    assert "/data/missing" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["cpu", "train"])
def test_an_image_starts_no_shell_and_is_not_root(docker, images, name):
    (image,) = json.loads(docker.ok("image", "inspect", images[name]))
    assert image["Config"]["Entrypoint"] is None
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == f"posttrain-{name}"


@pytest.mark.parametrize("name", ["cpu", "train"])
def test_only_the_caches_are_writable(docker, images, name):
    code = (
        "import os, pathlib, sys\n"
        "for folder in ('/cache', os.environ['HF_HOME'], '/tmp'):\n"
        "    pathlib.Path(folder).mkdir(exist_ok=True); pathlib.Path(folder, 'new').touch()\n"
        "print([folder for folder in ('/', '/work', sys.prefix, '/usr') if os.access(folder, os.W_OK)])\n"
    )
    assert docker.ok("run", *CONFINED, images[name], "python", "-c", code) == "[]"


@pytest.mark.parametrize("name", ["cpu", "train"])
def test_neither_pip_nor_the_way_to_the_index_ships(docker, images, name):
    code = (
        "import importlib.util, os\n"
        "secrets = ('/etc/pip.conf', '/run/secrets/ca', '/run/secrets/pip_conf')\n"
        "print(importlib.util.find_spec('pip'), [path for path in secrets if os.path.exists(path)])\n"
    )
    assert docker.ok("run", *CONFINED, images[name], "python", "-c", code) == "None []"


@pytest.mark.parametrize("dockerfile", ["images/Dockerfile.cpu", "Dockerfile.train"])
def test_a_build_without_a_base_says_so(docker, dockerfile):
    result = docker("build", "-f", dockerfile, ".")
    assert result.returncode != 0
    assert "BASE_IMAGE-is-missing" in result.stderr
